//! How steps are spread over timesteps, and where they end.

use serde::{Deserialize, Serialize};

use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};
use crate::scheduler::sampler::check_steps;

/// How the steps of a run are spread over the model's timesteps.
///
/// Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// [`Error::InvalidArgument`] for more steps than the model has timesteps, unless they are fractional.
    pub fn timesteps(
        self,
        num_train_timesteps: usize,
        num_steps: usize,
        steps_offset: usize,
    ) -> Result<Vec<f64>> {
        check_steps(num_steps)?;
        let total = num_train_timesteps;
        let too_many = num_steps > total && self != Self::Linspace;
        if total == 0 || too_many {
            let expected = format!("1 to {total}");
            return Err(Error::argument("num_steps", expected, num_steps));
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
