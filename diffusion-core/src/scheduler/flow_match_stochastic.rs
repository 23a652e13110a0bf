//! Solvers with fresh noise for rectified-flow models.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options};
use super::levels::{Grid, Levels};
use super::updates::{FreshNoise, eta_of, renoise, straight};
use super::{FlowMatchEuler, Solver, Step, WithLevels};
use crate::denoise::{NoiseSchedule, flow_to_sigma};
use crate::error::Result;

/// LCM for rectified flows: jumps to clean latents and back to the next noise level; one evaluation a step,
/// stochastic; a few steps with a distilled model. diffusers' `FlowMatchLCMScheduler`.
///
/// Source: Luo et al., "Latent Consistency Models", 2023, algorithm 3, over [`FlowMatchEuler`]'s levels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlowMatchLcm {
    /// What the levels are made of; `stochastic_sampling` does not count.
    pub flow: FlowMatchEuler,
}

impl Algorithm for FlowMatchLcm {
    const CLASS: &'static str = "FlowMatchLCMScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn unknown_options() -> Options {
        let mut options = FlowMatchEuler::unknown_options();
        // Latents that grow on the way.
        options.push(("scale_factors", vec![]));
        options
    }

    fn check(&self) -> Result<()> {
        self.flow.check()
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.flow.plan(noise, num_steps)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(|step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let denoised = step.denoise(latents, sigma)?;
            renoise(step, denoised, (sigma, next), next)
        })
    }
}

/// Euler's method with fresh noise in each step, for rectified flows: first order, one evaluation a step,
/// stochastic. diffusers' `LTXEulerAncestralRFScheduler`, ComfyUI's `euler_ancestral` on flow models.
///
/// Source: ComfyUI's `sample_euler_ancestral_RF`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowMatchEulerAncestral {
    /// What the levels are made of; `stochastic_sampling` does not count.
    #[serde(flatten)]
    pub flow: FlowMatchEuler,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for FlowMatchEulerAncestral {
    fn default() -> Self {
        Self {
            flow: FlowMatchEuler::default(),
            fresh: FreshNoise::FULL,
        }
    }
}

impl Algorithm for FlowMatchEulerAncestral {
    const CLASS: &'static str = "LTXEulerAncestralRFScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn unknown_options() -> Options {
        FlowMatchEuler::unknown_options()
    }

    fn check(&self) -> Result<()> {
        self.flow.check()?;
        self.fresh.check()
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.flow.plan(noise, num_steps)
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let eta = eta_of(step, eta)?;
            let denoised = step.denoise(latents, sigma)?;
            // The share of noise to step down to is less by the step's own ratio of shares.
            let (from, to) = (sigma / (1.0 + sigma), next / (1.0 + next));
            let down = match eta {
                0.0 => next,
                eta => flow_to_sigma(to * (1.0 + (to / from - 1.0) * eta)).min(next),
            };
            let moved = straight(step, latents, &denoised, sigma, down)?;
            let up = (next * next - down * down).max(0.0).sqrt();
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }
}

/// These have the levels of [`FlowMatchEuler`].
macro_rules! with_flow_levels {
    ($($name:ty),+) => {$(
        impl WithLevels for $name {
            fn levels(&self) -> &Levels {
                self.flow.levels()
            }

            fn levels_mut(&mut self) -> &mut Levels {
                self.flow.levels_mut()
            }
        }
    )+};
}
with_flow_levels!(FlowMatchLcm, FlowMatchEulerAncestral);
