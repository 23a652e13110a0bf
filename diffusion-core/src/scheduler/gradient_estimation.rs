//! Gradient estimation.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::cfg_pp::Evaluated;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{MAX_FACTOR, check_range, straight};
use super::{Solver, Step};
use crate::error::Result;

/// Gradient estimation: Euler's method whose noise is carried beyond that of the step before; one
/// evaluation a step, deterministic. ComfyUI's `gradient_estimation` and `gradient_estimation_cfg_pp`.
///
/// Source: Permenter and Yuan, "Interpreting and Improving Diffusion Models from an Optimization
/// Perspective", 2024, algorithm 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GradientEstimation {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// How far it is carried: 1 is Euler's method, 2 the paper's choice.
    pub gamma: f64,
    /// Whether guidance is CFG++'s.
    pub cfg_pp: bool,
}

impl Default for GradientEstimation {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            gamma: 2.0,
            cfg_pp: false,
        }
    }
}

impl Algorithm for GradientEstimation {
    const CLASS: &'static str = "GradientEstimationScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        check_range("gamma", self.gamma, 0.0..=MAX_FACTOR)
    }

    fn begin(&self) -> Box<dyn Solver> {
        let Self { gamma, cfg_pp, .. } = *self;
        let mut before: Option<Tensor> = None;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let now = Evaluated::new(step, latents, sigma, cfg_pp)?;
            let moved = straight(step, latents, &now.estimate, sigma, next)?;
            let moved = now.guide(step, moved, 1.0)?;
            if next == 0.0 {
                return Ok(moved);
            }
            let axis = Axis::of(step.schedule());
            let slope = axis.slope(step, latents, &now.estimate, sigma)?;
            let before = before.replace(slope.clone());
            let Some(before) = before else {
                return Ok(moved);
            };
            let carry = (gamma - 1.0) * (axis.place(next) - axis.place(sigma));
            let slopes = [(carry, &slope), (-carry, &before)];
            axis.moved(step, &moved, (next, next), &slopes)
        })
    }

    fn takes_unconditional(&self) -> bool {
        self.cfg_pp
    }
}

with_levels!(GradientEstimation);
