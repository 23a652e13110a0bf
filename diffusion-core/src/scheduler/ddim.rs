//! Denoising diffusion implicit models.

use candle_core::Tensor;
use serde::Deserialize;

use super::{Scheduler, Solver, Step, TimestepSpacing, karras_sigmas};
use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};

/// DDIM: first order, one evaluation a step, deterministic at `eta` 0 and as DDPM at `eta` 1. In sigma
/// space it is Euler's method, ancestral with a share `eta` of the noise. diffusers' `DDIMScheduler`.
///
/// Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2020, equations 12 and 16.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default = "Ddim::of_diffusers")]
pub struct Ddim {
    /// How the steps are spread over the timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Added to timesteps under [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether the last step goes to no noise, or to the model's lowest noise level.
    pub set_alpha_to_one: bool,
    /// Whether the estimate of the clean latents is clamped.
    pub clip_sample: bool,
    /// The bound of that clamping.
    pub clip_sample_range: f64,
    /// Whether the noise levels are Karras et al.'s over the model's whole range. diffusers' class has no
    /// such option, so a configuration does not set it.
    #[serde(skip)]
    pub use_karras_sigmas: bool,
    /// The share of fresh noise in each step, from 0 to 1; a request's own comes first.
    #[serde(skip)]
    pub eta: f64,
}

impl Default for Ddim {
    /// What Stable Diffusion 1.x is sampled with.
    fn default() -> Self {
        Self {
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: false,
            clip_sample_range: 1.0,
            use_karras_sigmas: false,
            eta: 0.0,
        }
    }
}

impl Ddim {
    /// What diffusers' class has where a configuration is silent.
    fn of_diffusers() -> Self {
        let defaults = Self::default();
        Self {
            steps_offset: 0,
            set_alpha_to_one: true,
            clip_sample: true,
            ..defaults
        }
    }

    fn final_sigma(&self, noise: &NoiseSchedule) -> f64 {
        if self.set_alpha_to_one {
            0.0
        } else {
            noise.sigma_min()
        }
    }

    /// The noise level that the published update aims at from timestep `t`: always one whole stride on,
    /// where spacings other than `leading`, or step counts that do not divide the timesteps, take the next
    /// step from a slightly different timestep. diffusers does so, and its pictures are the measure.
    fn target_sigma(&self, step: &Step<'_>) -> f64 {
        let noise = step.schedule();
        if self.use_karras_sigmas {
            return step.sigma_next();
        }
        let stride = noise.num_train_timesteps() / step.num_steps();
        let target = noise.timestep(step.sigma()).round() - stride as f64;
        if target < 0.0 {
            self.final_sigma(noise)
        } else {
            noise.sigma(target)
        }
    }
}

impl Scheduler for Ddim {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let total = noise.num_train_timesteps();
        let timesteps = self
            .timestep_spacing
            .timesteps(total, num_steps, self.steps_offset)?;
        let mut sigmas = match self.use_karras_sigmas {
            true => {
                let highest = noise.with_finite_terminal_snr().sigma_max();
                karras_sigmas(noise.sigma_min(), highest, num_steps)
            }
            false => timesteps
                .iter()
                .map(|t| noise.sigma(t.round_ties_even()))
                .collect(),
        };
        sigmas.push(self.final_sigma(noise));
        Ok(sigmas)
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(DdimSolver(self.clone()))
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        let timestep = noise.timestep(sigma);
        if self.use_karras_sigmas {
            timestep
        } else {
            timestep.round()
        }
    }
}

struct DdimSolver(Ddim);

impl Solver for DdimSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let Self(config) = self;
        let eta = step.eta().unwrap_or(config.eta);
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::argument("eta", "0 to 1", eta));
        }
        let (sigma, target) = (step.sigma(), config.target_sigma(step));
        let denoised = step.denoise(latents, sigma)?;
        let range = config.clip_sample_range;
        let clipped = match config.clip_sample {
            true => denoised.clamp(-range as f32, range as f32)?,
            false => denoised.clone(),
        };
        // The variance of fresh noise, and what is left of the old.
        let ratio = target / sigma;
        let fresh = eta * target * (1.0 - ratio * ratio).max(0.0).sqrt();
        let keep = (target * target - fresh * fresh).max(0.0).sqrt() / sigma;
        let moved = if config.clip_sample {
            // The direction is that of the estimate before clamping.
            step.combine(&[(keep, latents), (-keep, &denoised), (1.0, &clipped)])?
        } else {
            step.combine(&[(keep, latents), (1.0 - keep, &denoised)])?
        };
        let rescale = ((1.0 + step.sigma_next().powi(2)) / (1.0 + target * target)).sqrt();
        if fresh == 0.0 {
            return step.combine(&[(rescale, &moved)]);
        }
        let noise = step.noise(sigma, target)?;
        step.combine(&[(rescale, &moved), (rescale * fresh, &noise)])
    }
}
