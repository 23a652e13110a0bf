//! Denoising diffusion probabilistic models.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, TimestepSpacing};
use super::limits::Limits;
use super::updates::{ancestral, renoise};
use super::whole_steps::training_time;
use super::{Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// How much fresh noise a step adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior's variance, the lower bound.
    #[default]
    #[serde(alias = "fixed_small_log")]
    FixedSmall,
    /// The variance of the way there, the upper bound.
    FixedLarge,
}

/// DDPM: ancestral sampling; first order, one evaluation a step, stochastic; it wants many steps.
/// diffusers' `DDPMScheduler`.
///
/// Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020, equations 6, 7 and 11.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ddpm {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// How much fresh noise a step adds.
    pub variance_type: VarianceType,
    /// Keeps the estimate in range.
    #[serde(flatten)]
    pub limits: Limits,
}

impl Default for Ddpm {
    /// As Stable Diffusion 1.x takes it.
    fn default() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 1),
            variance_type: VarianceType::FixedSmall,
            limits: Limits::OFF,
        }
    }
}

impl Algorithm for Ddpm {
    const CLASS: &'static str = "DDPMScheduler";
    const GRID: Grid = Grid::Whole;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn class_defaults() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 0),
            limits: Limits::CLIP,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<()> {
        self.limits.check()
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.levels.plan_to(Self::GRID, noise, num_steps, 0.0)
    }

    fn begin(&self) -> Box<dyn Solver> {
        let config = self.clone();
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| config.step(step, latents))
    }
}

impl Ddpm {
    fn step(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let limited = self.limits.apply(step.denoise(latents, sigma)?)?;
        // The posterior's mean, and its deviation.
        let keep = (next / sigma).powi(2);
        let moved = step.combine(&[(keep, latents), (1.0 - keep, &limited)])?;
        let deviation = match self.variance_type {
            VarianceType::FixedSmall => ancestral(sigma, next, 1.0).1,
            // The first timestep adds none.
            VarianceType::FixedLarge if training_time(step, sigma) > 0.0 => {
                let (from, to) = (sigma.hypot(1.0), next.hypot(1.0));
                to * (1.0 - (to / from).powi(2)).max(0.0).sqrt()
            }
            VarianceType::FixedLarge => 0.0,
        };
        renoise(step, moved, (sigma, next), deviation)
    }
}

with_levels!(Ddpm);
