//! What the schedulers of this crate have in common: configurable noise levels, and JSON.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::levels::{Grid, Levels, SigmaSchedule};
use super::sampler::check_steps;
use super::{Scheduler, Solver};
use crate::config::parse;
use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};
use crate::rng::NoiseKind;

/// Where errors say that a field stands.
const PLACE: &str = "scheduler config";

/// Names of options, and values.
pub(super) type Options = Vec<(&'static str, Vec<Value>)>;

/// The values of an option.
pub(super) fn only<T: Into<Value>, const N: usize>(values: [T; N]) -> Vec<Value> {
    values.map(Into::into).into()
}

/// A scheduler with configurable noise levels: all those of this crate.
pub trait WithLevels: Sized {
    /// The noise levels.
    fn levels(&self) -> &Levels;

    /// The noise levels, to change them.
    fn levels_mut(&mut self) -> &mut Levels;

    /// With another curve of noise levels.
    fn sigma_schedule(mut self, sigma_schedule: SigmaSchedule) -> Self {
        self.levels_mut().sigma_schedule = sigma_schedule;
        self
    }

    /// With Karras et al.'s noise levels, the most used curve.
    fn karras(self) -> Self {
        self.sigma_schedule(SigmaSchedule::Karras)
    }
}

/// An algorithm over [`Levels`]. Its fields are those of a `scheduler_config.json`.
pub(super) trait Algorithm:
    WithLevels + Default + Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static
{
    /// The class in configurations, diffusers' where it has one.
    const CLASS: &'static str;
    /// How its reference lays out the levels.
    const GRID: Grid;
    /// Whether the class has `timestep_spacing` and `steps_offset`.
    const HAS_SPACING: bool = true;
    /// Whether the class has `use_karras_sigmas` and the like. Those of a model that was saved with another
    /// class do not count then; `sigma_schedule` always does.
    const HAS_CURVES: bool = true;
    /// Whether the class has `final_sigmas_type`.
    const HAS_END: bool = true;

    /// What the class has where a configuration is silent.
    fn class_defaults() -> Self {
        Self::default()
    }

    /// Options of the class that would change the picture and are not known here, each with the values that
    /// do not, beside an absent one.
    fn unknown_options() -> Options {
        Vec::new()
    }

    /// Fresh state for one run.
    fn begin(&self) -> Box<dyn Solver>;

    /// Refuses fields out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.levels().plan(Self::GRID, noise, num_steps)
    }

    fn told_timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        self.levels().timestep(Self::GRID, noise, sigma)
    }

    fn start_scale(&self, noise: &NoiseSchedule, sigma_max: f64) -> f64 {
        self.levels().init_noise_sigma(Self::GRID, noise, sigma_max)
    }

    fn fresh_noise(&self) -> NoiseKind {
        NoiseKind::Gaussian
    }

    fn plan_rises(&self) -> bool {
        false
    }

    fn takes_unconditional(&self) -> bool {
        false
    }

    fn starting_later(&self, _strength: f64) -> Option<Arc<dyn Scheduler>> {
        None
    }
}

impl<A: Algorithm> Scheduler for A {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.levels().check()?;
        self.check()?;
        check_steps(num_steps)?;
        self.plan(noise, num_steps)
    }

    fn solver(&self) -> Box<dyn Solver> {
        self.begin()
    }

    fn shortened(&self, strength: f64) -> Option<Arc<dyn Scheduler>> {
        self.starting_later(strength)
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        self.told_timestep(noise, sigma)
    }

    fn init_noise_sigma(&self, noise: &NoiseSchedule, sigma_max: f64) -> f64 {
        self.start_scale(noise, sigma_max)
    }

    fn final_scale(&self, noise: &NoiseSchedule, sigma_last: f64) -> f64 {
        self.levels().final_scale(A::GRID, noise, sigma_last)
    }

    fn noise_kind(&self) -> NoiseKind {
        self.fresh_noise()
    }

    fn may_rise(&self) -> bool {
        self.plan_rises()
    }

    fn needs_unconditional(&self) -> bool {
        self.takes_unconditional()
    }

    fn config(&self) -> Option<Value> {
        let mut config = serde_json::to_value(self).ok()?;
        config["_class_name"] = A::CLASS.into();
        Some(config)
    }
}

/// Reads a configuration: fields that are absent or null are the class's own.
pub(super) fn from_fields<A: Algorithm>(config: &Value) -> Result<Arc<dyn Scheduler>> {
    // Options that another class wrote are not this one's.
    if config["_class_name"]
        .as_str()
        .is_none_or(|class| class == A::CLASS)
    {
        refuse_unknown::<A>(config)?;
    }
    let mut fields = serde_json::to_value(A::class_defaults()).map_err(Error::custom)?;
    if let (Some(fields), Some(given)) = (fields.as_object_mut(), config.as_object()) {
        // A curve that is given takes the place of the class's own, however either is written.
        let chooses = given.iter().any(|(name, value)| match name.as_str() {
            "sigma_schedule" | "sigmas" | "timesteps" => !value.is_null(),
            name => is_curve_flag(name) && has_option::<A>(name) && *value == true,
        });
        if chooses {
            fields.retain(|name, _| !is_curve_flag(name) && name != "sigma_schedule");
        }
        let given = given
            .iter()
            .filter(|(name, value)| !value.is_null() && has_option::<A>(name));
        fields.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    }
    let algorithm: A = parse(Path::new(PLACE), &fields)?;
    algorithm.levels().check()?;
    algorithm.check()?;
    Ok(Arc::new(algorithm))
}

fn refuse_unknown<A: Algorithm>(config: &Value) -> Result<()> {
    for (name, allowed) in A::unknown_options() {
        let found = &config[name];
        if !found.is_null() && !allowed.contains(found) {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            let hint = match allowed.is_empty() {
                true => {
                    "this version has no such option; models that need it do not run".to_owned()
                }
                false => format!("it must be {} or absent", allowed.join(", ")),
            };
            let what = format!("{} with {name} = {found}", A::CLASS);
            return Err(Error::unsupported(what, hint));
        }
    }
    Ok(())
}

fn has_option<A: Algorithm>(name: &str) -> bool {
    match name {
        "timestep_spacing" | "steps_offset" => A::HAS_SPACING,
        "final_sigmas_type" => A::HAS_END,
        name => A::HAS_CURVES || !is_curve_flag(name),
    }
}

/// Whether a field is one of diffusers' ways to choose a curve.
pub(super) fn is_curve_flag(name: &str) -> bool {
    name.starts_with("use_") && (name.ends_with("_sigmas") || name.ends_with("_lambdas"))
}

/// Gives a scheduler its levels.
macro_rules! with_levels {
    ($($name:ty),+ $(,)?) => {$(
        impl $crate::scheduler::WithLevels for $name {
            fn levels(&self) -> &$crate::scheduler::Levels {
                &self.levels
            }

            fn levels_mut(&mut self) -> &mut $crate::scheduler::Levels {
                &mut self.levels
            }
        }
    )+};
}
pub(super) use with_levels;
