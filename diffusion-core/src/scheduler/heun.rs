//! Heun's method.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::limits::ClipSample;
use super::updates::{Churn, straight};
use super::{Solver, Step};
use crate::error::Result;

/// Heun's method: second order, two evaluations a step but for the last, deterministic
/// without churn. diffusers' `HeunDiscreteScheduler`, k-diffusion's `sample_heun`.
///
/// Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
/// algorithm 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heun {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Keeps the estimate in range.
    #[serde(flatten)]
    pub clip: ClipSample,
    /// Fresh noise before each step.
    #[serde(flatten)]
    pub churn: Churn,
}

impl Default for Heun {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            clip: ClipSample::OFF,
            churn: Churn::OFF,
        }
    }
}

impl Algorithm for Heun {
    const CLASS: &'static str = "HeunDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        self.churn.check()?;
        self.clip.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let Self { clip, churn, .. } = *self;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (latents, sigma) = churn.apply(step, latents)?;
            heun_step(step, &latents, &clip, sigma, Axis::of(step.schedule()))
        })
    }
}

with_levels!(Heun);

/// From `sigma` to the end of the step by the mean of the slopes at both: the straight step, corrected.
pub(super) fn heun_step(
    step: &mut Step<'_>,
    latents: &Tensor,
    clip: &ClipSample,
    sigma: f64,
    axis: Axis,
) -> Result<Tensor> {
    let next = step.sigma_next();
    let denoised = clip.apply(step.denoise(latents, sigma)?)?;
    let ahead = straight(step, latents, &denoised, sigma, next)?;
    if next == 0.0 {
        return Ok(ahead);
    }
    let denoised_ahead = clip.apply(step.denoise(&ahead, next)?)?;
    let slope = axis.slope(step, latents, &denoised, sigma)?;
    let slope_ahead = axis.slope(step, &ahead, &denoised_ahead, next)?;
    let half = 0.5 * (axis.place(next) - axis.place(sigma));
    let slopes = [(-half, &slope), (half, &slope_ahead)];
    axis.moved(step, &ahead, (next, next), &slopes)
}
