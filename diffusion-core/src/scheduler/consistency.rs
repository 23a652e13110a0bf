//! Solvers for distilled models: latent consistency and trajectory consistency.

use std::ops::RangeInclusive;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, TimestepSpacing};
use super::limits::Limits;
use super::updates::{MAX_FACTOR, check_order, check_range, eta_of, noise_of, renoise};
use super::whole_steps::training_time;
use super::{Scheduler, Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};

const ORIGINAL_STEPS: &str = "original_inference_steps";
/// As many as models have timesteps.
const ANY_STEPS: RangeInclusive<usize> = 1..=1_000_000;

/// LCM: jumps to clean latents and back to the next noise level; one evaluation a step, stochastic; 1 to 8
/// steps with a distilled model. diffusers' `LCMScheduler`.
///
/// Source: Luo et al., "Latent Consistency Models", 2023, algorithm 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lcm {
    /// The noise levels; the model's own are those that it was distilled on.
    #[serde(flatten)]
    pub levels: Levels,
    /// The steps of the schedule that the model was distilled on.
    pub original_inference_steps: usize,
    /// The factor of timesteps in the boundary condition.
    pub timestep_scaling: f64,
    /// Keeps the estimate in range.
    #[serde(flatten)]
    pub limits: Limits,
}

impl Default for Lcm {
    fn default() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 0),
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            limits: Limits::OFF,
        }
    }
}

impl Algorithm for Lcm {
    const CLASS: &'static str = "LCMScheduler";
    const GRID: Grid = Grid::Whole;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        check_order(ORIGINAL_STEPS, self.original_inference_steps, ANY_STEPS)?;
        check_range("timestep_scaling", self.timestep_scaling, 0.0..=MAX_FACTOR)?;
        self.limits.check()
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        distilled_levels(
            &self.levels,
            noise,
            self.original_inference_steps,
            1.0,
            num_steps,
            0.0,
        )
    }

    fn begin(&self) -> Box<dyn Solver> {
        let config = self.clone();
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| config.step(step, latents))
    }

    fn starting_later(&self, strength: f64) -> Option<Arc<dyn Scheduler>> {
        Some(Arc::new(LcmFrom {
            lcm: self.clone(),
            strength,
        }))
    }
}

/// LCM whose levels are chosen among the lower ones of those that the model was distilled on.
#[derive(Debug)]
struct LcmFrom {
    lcm: Lcm,
    strength: f64,
}

impl Scheduler for LcmFrom {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.lcm.sigmas(noise, num_steps)?;
        let steps = self.lcm.original_inference_steps;
        distilled_levels(
            &self.lcm.levels,
            noise,
            steps,
            self.strength,
            num_steps,
            0.0,
        )
    }

    fn solver(&self) -> Box<dyn Solver> {
        self.lcm.solver()
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        self.lcm.timestep(noise, sigma)
    }

    fn init_noise_sigma(&self, noise: &NoiseSchedule, sigma_max: f64) -> f64 {
        self.lcm.init_noise_sigma(noise, sigma_max)
    }
}

impl Lcm {
    fn step(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        /// The standard deviation of clean latents in the boundary condition.
        const SIGMA_DATA: f64 = 0.5;
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let limited = self.limits.apply(step.denoise(latents, sigma)?)?;
        let scaled = training_time(step, sigma) * self.timestep_scaling;
        let length = scaled.hypot(SIGMA_DATA);
        let (skip, out) = ((SIGMA_DATA / length).powi(2), scaled / length);
        // The boundary condition mixes in latents as the model takes them.
        let noise = step.schedule();
        let skip = skip * noise.input_scale(sigma) / noise.input_scale(0.0);
        let clean = step.combine(&[(out, &limited), (skip, latents)])?;
        renoise(step, clean, (sigma, next), next)
    }
}

/// TCD: jumps to a lower noise level along the trajectory and adds noise up to the next; one evaluation a
/// step, deterministic at `eta` 0; 1 to 8 steps with a distilled model. diffusers' `TCDScheduler`.
///
/// Source: Zheng et al., "Trajectory Consistency Distillation", 2024, algorithm 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tcd {
    /// The noise levels; the model's own are those that it was distilled on.
    #[serde(flatten)]
    pub levels: Levels,
    /// The steps of the schedule that the model was distilled on.
    pub original_inference_steps: usize,
    /// The share of each step's timesteps that is gone with fresh noise, from 0 to 1: the paper's gamma. A
    /// request's own comes first; diffusers' pipelines pass 0, and the paper's examples 0.3.
    pub eta: f64,
}

impl Default for Tcd {
    fn default() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 0),
            original_inference_steps: 50,
            eta: 0.0,
        }
    }
}

impl Algorithm for Tcd {
    const CLASS: &'static str = "TCDScheduler";
    const GRID: Grid = Grid::Whole;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        check_order(ORIGINAL_STEPS, self.original_inference_steps, ANY_STEPS)?;
        check_range("eta", self.eta, 0.0..=1.0)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let last = noise.sigma_min();
        distilled_levels(
            &self.levels,
            noise,
            self.original_inference_steps,
            1.0,
            num_steps,
            last,
        )
    }

    fn begin(&self) -> Box<dyn Solver> {
        let (eta, is_native) = (self.eta, self.levels.is_native());
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let eta = eta_of(step, eta)?;
            let noise = step.schedule();
            let place = (1.0 - eta) * noise.index(next);
            // Levels of one's own are not those of whole timesteps.
            let place = if is_native { place.floor() } else { place };
            let down = match eta {
                0.0 => next,
                _ => noise.sigma_log(place).min(next),
            };
            let denoised = step.denoise(latents, sigma)?;
            let noise = noise_of(step, latents, &denoised, sigma)?;
            let moved = step.combine(&[(1.0, &denoised), (down, &noise)])?;
            let up = (next * next - down * down).max(0.0).sqrt();
            renoise(step, moved, (sigma, next), up)
        })
    }
}

with_levels!(Lcm, Tcd);

/// Evenly chosen from the levels of the distillation.
fn distilled_levels(
    levels: &Levels,
    noise: &NoiseSchedule,
    original_steps: usize,
    strength: f64,
    num_steps: usize,
    last: f64,
) -> Result<Vec<f64>> {
    if !levels.is_native() {
        return levels.plan_to(Grid::Whole, noise, num_steps, last);
    }
    let total = noise.num_train_timesteps();
    if !(1..=total).contains(&original_steps) {
        let expected = format!("1 to {total}, the model's timesteps");
        return Err(Error::argument(ORIGINAL_STEPS, expected, original_steps));
    }
    let steps = (original_steps as f64 * strength) as usize;
    if num_steps > steps {
        let expected = format!("1 to {steps}, the steps that the model was distilled on");
        return Err(Error::argument("num_steps", expected, num_steps));
    }
    let stride = total / original_steps;
    let mut sigmas: Vec<f64> = (0..num_steps)
        .map(|i| steps - i * steps / num_steps)
        .map(|place| noise.sigmas()[place * stride - 1])
        .collect();
    sigmas.push(last);
    Ok(sigmas)
}
