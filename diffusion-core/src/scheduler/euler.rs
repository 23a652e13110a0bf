//! Euler's method.

use candle_core::Tensor;
use serde::Deserialize;

use super::{FinalSigmas, Scheduler, Solver, Step, TimestepSpacing, karras_sigmas};
use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// Euler's method in sigma space: first order, one evaluation a step, deterministic. diffusers'
/// `EulerDiscreteScheduler`, k-diffusion's `sample_euler`.
///
/// Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
/// algorithm 1 without its second-order correction.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Euler {
    /// How the steps are spread over the timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Added to timesteps under [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether the noise levels are Karras et al.'s between the first and the last of the spacing.
    pub use_karras_sigmas: bool,
    /// Where the run ends.
    pub final_sigmas_type: FinalSigmas,
}

impl Default for Euler {
    fn default() -> Self {
        Self {
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigmas::Zero,
        }
    }
}

impl Euler {
    /// With Karras et al.'s noise levels.
    pub fn karras() -> Self {
        Self {
            use_karras_sigmas: true,
            ..Self::default()
        }
    }
}

impl Scheduler for Euler {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let noise = noise.with_finite_terminal_snr();
        let timesteps = self.timestep_spacing.timesteps(
            noise.num_train_timesteps(),
            num_steps,
            self.steps_offset,
        )?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| noise.sigma(t)).collect();
        if self.use_karras_sigmas {
            sigmas = karras_sigmas(sigmas[num_steps - 1], sigmas[0], num_steps);
        }
        sigmas.push(self.final_sigmas_type.sigma(&noise));
        Ok(sigmas)
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(euler_step)
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        let noise = noise.with_finite_terminal_snr();
        match self.use_karras_sigmas {
            true => noise.timestep(sigma),
            false => noise.timestep_linear(sigma),
        }
    }

    fn init_noise_sigma(&self, sigma_max: f64) -> f64 {
        match self.timestep_spacing {
            // These start at the highest noise level, where the signal's share is forgotten.
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => sigma_max,
            TimestepSpacing::Leading => (sigma_max * sigma_max + 1.0).sqrt(),
        }
    }

    fn final_scale(&self, _sigma_last: f64) -> f64 {
        1.0
    }
}

/// `x' = x + (sigma' - sigma) (x - denoised) / sigma`, written so that no large terms cancel.
pub(super) fn euler_step(step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
    let denoised = step.denoise(latents, step.sigma())?;
    let keep = step.sigma_next() / step.sigma();
    step.combine(&[(keep, latents), (1.0 - keep, &denoised)])
}
