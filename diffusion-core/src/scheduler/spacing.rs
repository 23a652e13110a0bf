//! Which noise levels a run visits.

use serde::Deserialize;

use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};

/// How the steps of a run are spread over the model's timesteps.
///
/// Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSpacing {
    /// Evenly, from the last timestep to the first.
    Linspace,
    /// Whole strides from the first timestep up, plus an offset. The last timestep is not among them.
    Leading,
    /// Strides from the last timestep down.
    Trailing,
}

impl TimestepSpacing {
    /// `num_steps` timesteps, falling, not rounded under [`Linspace`](Self::Linspace).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more steps than the model has timesteps.
    pub fn timesteps(
        self,
        num_train_timesteps: usize,
        num_steps: usize,
        steps_offset: usize,
    ) -> Result<Vec<f64>> {
        let total = num_train_timesteps;
        if num_steps == 0 || num_steps > total {
            return Err(Error::argument(
                "num_steps",
                format!("1 to {total}"),
                num_steps,
            ));
        }
        let last = (total - 1) as f64;
        Ok(match self {
            Self::Linspace => {
                // From the first timestep up, where a single step stands alone.
                let stride = last / (num_steps - 1).max(1) as f64;
                (0..num_steps).rev().map(|i| i as f64 * stride).collect()
            }
            Self::Leading => {
                let stride = total / num_steps;
                let top =
                    |i: usize| ((num_steps - 1 - i) * stride).saturating_add(steps_offset) as f64;
                (0..num_steps).map(|i| top(i).min(last)).collect()
            }
            Self::Trailing => {
                let stride = total as f64 / num_steps as f64;
                (0..num_steps)
                    .map(|i| (total as f64 - stride * i as f64).round_ties_even() - 1.0)
                    .collect()
            }
        })
    }
}

/// Where a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// At no noise.
    #[default]
    Zero,
    /// At the lowest noise level of the model.
    SigmaMin,
}

impl FinalSigmas {
    /// The last noise level of a run.
    pub fn sigma(self, noise: &NoiseSchedule) -> f64 {
        match self {
            Self::Zero => 0.0,
            Self::SigmaMin => noise.sigma_min(),
        }
    }
}

/// `num_steps` noise levels, falling from `sigma_max` to `sigma_min`, evenly in the power 1/7.
///
/// Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
/// equation 5 with rho = 7.
pub fn karras_sigmas(sigma_min: f64, sigma_max: f64, num_steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (sigma_min.powf(RHO.recip()), sigma_max.powf(RHO.recip()));
    (0..num_steps)
        .map(|i| match i {
            0 => sigma_max,
            _ if i + 1 == num_steps => sigma_min,
            _ => (high + (low - high) * i as f64 / (num_steps - 1) as f64).powf(RHO),
        })
        .collect()
}
