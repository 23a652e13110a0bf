//! Denoising diffusion implicit models, and their inversion.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::cfg_pp::Evaluated;
use super::levels::{FinalSigmas, Grid, Levels, TimestepSpacing};
use super::limits::{ClipSample, Limits};
use super::updates::{ancestral, eta_of, noise_of, renoise};
use super::whole_steps::{relabel, target};
use super::{Solver, Step};
use crate::denoise::{NoiseSchedule, PredictionType};
use crate::error::Result;

/// DDIM: first order, one evaluation a step, deterministic at `eta` 0 and as DDPM at `eta` 1. In sigma
/// space it is Euler's method, ancestral with a share `eta` of the noise. diffusers' `DDIMScheduler`;
/// A1111's "DDIM CFG++", which divides the guidance scale by 12.5 where here it is as given.
///
/// Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2020, equations 12 and 16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ddim {
    /// The noise levels. Where they end is said by `set_alpha_to_one` alone.
    #[serde(flatten)]
    pub levels: Levels,
    /// Whether the last step goes to no noise, or to the model's lowest noise level.
    pub set_alpha_to_one: bool,
    /// Keeps the estimate in range.
    #[serde(flatten)]
    pub limits: Limits,
    /// The share of fresh noise in each step, from 0 to 1; a request's own comes first.
    pub eta: f64,
    /// Whether the noise to go back to is that under the negative prompt alone, as CFG++ has it.
    pub cfg_pp: bool,
}

impl Default for Ddim {
    /// What Stable Diffusion 1.x is sampled with.
    fn default() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 1),
            set_alpha_to_one: false,
            limits: Limits::OFF,
            eta: 0.0,
            cfg_pp: false,
        }
    }
}

impl Algorithm for Ddim {
    const CLASS: &'static str = "DDIMScheduler";
    const GRID: Grid = Grid::Whole;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn class_defaults() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 0),
            set_alpha_to_one: true,
            limits: Limits::CLIP,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<()> {
        self.limits.check()
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let last = last_sigma(self.set_alpha_to_one, noise);
        self.levels.plan_to(Self::GRID, noise, num_steps, last)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(DdimSolver(self.clone()))
    }

    fn takes_unconditional(&self) -> bool {
        self.cfg_pp
    }
}

/// Where a run ends.
pub(super) fn last_sigma(set_alpha_to_one: bool, noise: &NoiseSchedule) -> f64 {
    match set_alpha_to_one {
        true => FinalSigmas::Zero.sigma(noise),
        false => FinalSigmas::SigmaMin.sigma(noise),
    }
}

struct DdimSolver(Ddim);

impl Solver for DdimSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let Self(config) = self;
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let last = last_sigma(config.set_alpha_to_one, step.schedule());
        let to = target(&config.levels, step, last);
        let (down, up) = ancestral(sigma, to, eta_of(step, config.eta)?);
        let now = Evaluated::new(step, latents, sigma, config.cfg_pp)?;
        let limited = config.limits.apply(now.guided().clone())?;
        let rescale = relabel(step.schedule(), to, next);
        let keep = rescale * down / sigma;
        // The direction is that of the estimate before it is limited.
        let moved =
            step.combine(&[(keep, latents), (-keep, &now.estimate), (rescale, &limited)])?;
        renoise(step, moved, (sigma, to), rescale * up)
    }
}

/// DDIM backwards: from clean latents to the noise that [`Ddim`] makes them of. First order, one
/// evaluation a step, deterministic. The run starts from clean latents where others start from noise.
/// diffusers' `DDIMInverseScheduler`.
///
/// Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2020, section 4.3; Mokady et al.,
/// "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022, equation 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DdimInverse {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Whether the latents that the run starts from are clean, or have the model's lowest noise level.
    pub set_alpha_to_one: bool,
    /// Keeps the estimate in a fixed range.
    #[serde(flatten)]
    pub clip: ClipSample,
}

impl Default for DdimInverse {
    /// The way back of [`Ddim::default`].
    fn default() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 1),
            set_alpha_to_one: false,
            clip: ClipSample::OFF,
        }
    }
}

impl Algorithm for DdimInverse {
    const CLASS: &'static str = "DDIMInverseScheduler";
    const GRID: Grid = Grid::Whole;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn class_defaults() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 0),
            set_alpha_to_one: true,
            clip: ClipSample {
                clip_sample: true,
                ..ClipSample::OFF
            },
        }
    }

    fn check(&self) -> Result<()> {
        self.clip.check()
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let first = last_sigma(self.set_alpha_to_one, noise).max(ALMOST_CLEAN);
        let mut sigmas = self.levels.plan_to(Self::GRID, noise, num_steps, first)?;
        // Lists may end at no noise.
        if let Some(last) = sigmas.last_mut() {
            *last = last.max(ALMOST_CLEAN);
        }
        sigmas.reverse();
        Ok(sigmas)
    }

    fn plan_rises(&self) -> bool {
        true
    }

    fn begin(&self) -> Box<dyn Solver> {
        let config = self.clone();
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| config.step(step, latents))
    }
}

/// Stands for no noise, at which an estimate of the clean latents says nothing about the noise.
const ALMOST_CLEAN: f64 = 1.0 / 1024.0;

impl DdimInverse {
    /// The model is told the timestep that the step goes to.
    fn step(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let timestep = step.timestep(next);
        let denoised = step.denoise_at(latents, sigma, timestep)?;
        let schedule = step.schedule();
        let is_clean = sigma == ALMOST_CLEAN;
        // Where there is no noise, the model's output is the noise to come, be it noise or velocity.
        let noise = match schedule.prediction_type() {
            PredictionType::Epsilon | PredictionType::VPrediction if is_clean => {
                schedule.output(latents, &denoised, sigma)?
            }
            _ => noise_of(step, latents, &denoised, sigma)?,
        };
        let limited = self.clip.apply(match is_clean {
            true => latents.clone(),
            false => denoised,
        })?;
        step.combine(&[(1.0, &limited), (next, &noise)])
    }
}

with_levels!(Ddim, DdimInverse);
