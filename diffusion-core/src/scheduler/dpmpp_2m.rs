//! DPM-Solver++, multistep, second order.

use candle_core::Tensor;
use serde::Deserialize;

use super::{FinalSigmas, Scheduler, Solver, Step, TimestepSpacing, karras_sigmas};
use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};

/// The form of the second-order term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The slope at the middle of the step; diffusers takes the names of other schedulers' types for it.
    #[default]
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// The slope over the whole step.
    Heun,
}

/// DPM-Solver++ 2M: second order, one evaluation a step, deterministic. diffusers'
/// `DPMSolverMultistepScheduler` with `dpmsolver++`, k-diffusion's `sample_dpmpp_2m`.
///
/// Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
/// Models", 2022, algorithm 2.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct DpmPp2m {
    /// How the steps are spread over the timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Added to timesteps under [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether the noise levels are Karras et al.'s over the model's whole range.
    pub use_karras_sigmas: bool,
    /// Where the run ends.
    pub final_sigmas_type: FinalSigmas,
    /// The order, 1 or 2.
    pub solver_order: usize,
    /// The form of the second-order term.
    pub solver_type: SolverType,
    /// Whether the last step of runs under 15 steps is of first order, for stability.
    pub lower_order_final: bool,
    /// Whether the last step is of first order whatever the number of steps.
    pub euler_at_final: bool,
}

impl Default for DpmPp2m {
    fn default() -> Self {
        Self {
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigmas::Zero,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
        }
    }
}

impl DpmPp2m {
    /// With Karras et al.'s noise levels: A1111's "DPM++ 2M Karras".
    pub fn karras() -> Self {
        Self {
            use_karras_sigmas: true,
            ..Self::default()
        }
    }
}

impl Scheduler for DpmPp2m {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let noise = noise.with_finite_terminal_snr();
        let total = noise.num_train_timesteps();
        let mut sigmas = if self.use_karras_sigmas {
            karras_sigmas(noise.sigma_min(), noise.sigma_max(), num_steps)
        } else {
            // One timestep more than steps, of which the lowest is left to the final noise level.
            let count = match self.timestep_spacing {
                TimestepSpacing::Linspace | TimestepSpacing::Leading => num_steps + 1,
                TimestepSpacing::Trailing => num_steps,
            };
            if num_steps >= total {
                let expected = format!("1 to {}, one less than the model's timesteps", total - 1);
                return Err(Error::argument("num_steps", expected, num_steps));
            }
            let timesteps = self
                .timestep_spacing
                .timesteps(total, count, self.steps_offset)?;
            let rounded = timesteps.iter().map(|t| noise.sigma(t.round_ties_even()));
            rounded.take(num_steps).collect()
        };
        sigmas.push(self.final_sigmas_type.sigma(&noise));
        Ok(sigmas)
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(DpmPp2mSolver {
            config: self.clone(),
            previous: None,
        })
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        noise
            .with_finite_terminal_snr()
            .timestep(sigma)
            .round_ties_even()
    }
}

struct DpmPp2mSolver {
    config: DpmPp2m,
    /// The noise level and the estimate of the step before.
    previous: Option<(f64, Tensor)>,
}

impl Solver for DpmPp2mSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let denoised = step.denoise(latents, sigma)?;
        let is_last = step.index() + 1 == step.num_steps();
        let first_order_final = config.euler_at_final
            || (config.lower_order_final && step.num_steps() < 15)
            || next == 0.0;
        let history = self.previous.replace((sigma, denoised.clone()));
        let keep = next / sigma;
        let second_order = config.solver_order > 1 && !(is_last && first_order_final);
        // A level that is visited twice has no slope.
        let usable = |(before, _): &(f64, Tensor)| second_order && *before > sigma && sigma > next;
        let Some((before, previous)) = history.filter(usable) else {
            return step.combine(&[(keep, latents), (1.0 - keep, &denoised)]);
        };
        // With lambda = -ln(sigma): this step's length, and its ratio to the one before.
        let h = (sigma / next).ln();
        let ratio = (before / sigma).ln() / h;
        let slope = match config.solver_type {
            SolverType::Midpoint => (1.0 - keep) / (2.0 * ratio),
            SolverType::Heun => (1.0 - (1.0 - keep) / h) / ratio,
        };
        step.combine(&[
            (keep, latents),
            (1.0 - keep + slope, &denoised),
            (-slope, &previous),
        ])
    }
}
