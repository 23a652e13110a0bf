//! Improved pseudo linear multistep.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::pndm::ADAMS_BASHFORTH;
use super::updates::{check_order, straight};
use super::{Solver, Step};
use crate::error::Result;

/// iPNDM: Adams and Bashforth's weights for even steps on the noise of up to four steps; one evaluation a
/// step, no special start, deterministic. diffusers' `IPNDMScheduler`, ComfyUI's `ipndm`.
///
/// diffusers' class has a noise schedule of its own; here the model's counts.
///
/// Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, without its
/// Runge and Kutta start; Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator",
/// 2022, appendix H.2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ipndm {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The number of steps that are combined, from 1 to 4.
    pub max_order: usize,
    /// Whether a last step to no noise is of first order, for stability. diffusers' class has it of full
    /// order.
    pub lower_order_final: bool,
}

impl Default for Ipndm {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            max_order: 4,
            lower_order_final: true,
        }
    }
}

impl Algorithm for Ipndm {
    const CLASS: &'static str = "IPNDMScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn class_defaults() -> Self {
        Self {
            lower_order_final: false,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<()> {
        check_order("max_order", self.max_order, 1..=4)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(IpndmSolver {
            config: self.clone(),
            slopes: VecDeque::new(),
        })
    }
}

with_levels!(Ipndm);

struct IpndmSolver {
    config: Ipndm,
    /// Of the last steps, the newest first.
    slopes: VecDeque<Tensor>,
}

impl Solver for IpndmSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let denoised = step.denoise(latents, sigma)?;
        let axis = Axis::of(step.schedule());
        let slope = axis.slope(step, latents, &denoised, sigma)?;
        self.slopes.push_front(slope);
        self.slopes.truncate(self.config.max_order);
        let moved = straight(step, latents, &denoised, sigma, next)?;
        if next == 0.0 && self.config.lower_order_final {
            return Ok(moved);
        }
        // What the older slopes change against a straight step.
        let weights = ADAMS_BASHFORTH[self.slopes.len() - 1];
        let length = axis.place(next) - axis.place(sigma);
        let slopes: Vec<_> = (weights.iter().zip(&self.slopes).enumerate())
            .map(|(i, (weight, slope))| {
                let straight = if i == 0 { 1.0 } else { 0.0 };
                (length * (weight - straight), slope)
            })
            .collect();
        axis.moved(step, &moved, (next, next), &slopes)
    }
}
