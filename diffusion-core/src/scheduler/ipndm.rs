//! Improved pseudo linear multistep.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::pndm::ADAMS_BASHFORTH;
use super::updates::{check_order, falling, straight};
use super::{Solver, Step};
use crate::error::Result;

/// iPNDM: Adams and Bashforth's weights for even steps on the noise of up to four steps; one evaluation a
/// step, no special start, deterministic. diffusers' `IPNDMScheduler`, ComfyUI's `ipndm` and, with the
/// weights for the steps as they are, `ipndm_v`.
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
    /// Whether the weights are those of the steps' own lengths.
    pub variable_steps: bool,
}

impl Default for Ipndm {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            max_order: 4,
            lower_order_final: true,
            variable_steps: false,
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
            history: VecDeque::new(),
        })
    }
}

with_levels!(Ipndm);

struct IpndmSolver {
    config: Ipndm,
    /// Places on the axis and slopes of the last steps, the newest first.
    history: VecDeque<(f64, Tensor)>,
}

impl Solver for IpndmSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let denoised = step.denoise(latents, sigma)?;
        let axis = match self.config.variable_steps {
            // Its weights grow wild where lengths do, as those of shares from pure noise do under most curves.
            true => Axis::of_flows(step.schedule()),
            false => Axis::of(step.schedule()),
        };
        let slope = axis.slope(step, latents, &denoised, sigma)?;
        self.history.push_front((axis.place(sigma), slope));
        self.history.truncate(self.config.max_order);
        let moved = straight(step, latents, &denoised, sigma, next)?;
        if next == 0.0 && self.config.lower_order_final {
            return Ok(moved);
        }
        // What the older slopes change against a straight step.
        let weights = match self.config.variable_steps {
            true => self.variable_weights(axis.place(next)),
            false => ADAMS_BASHFORTH[self.history.len() - 1].to_vec(),
        };
        let length = axis.place(next) - axis.place(sigma);
        let slopes: Vec<_> = (weights.iter().zip(&self.history).enumerate())
            .map(|(i, (weight, (_, slope)))| {
                let straight = if i == 0 { 1.0 } else { 0.0 };
                (length * (weight - straight), slope)
            })
            .collect();
        axis.moved(step, &moved, (next, next), &slopes)
    }
}

impl IpndmSolver {
    /// Adams and Bashforth's weights for steps of any length, from Newton's divided differences, as
    /// ComfyUI has them: in two places marked here other than the expansion gives, unless the steps are
    /// even.
    fn variable_weights(&self, next: f64) -> Vec<f64> {
        let places: Vec<f64> = self.history.iter().map(|(place, _)| *place).collect();
        let usable = falling(places.iter().copied());
        let h = next - places[0];
        // The lengths of the steps before this one.
        let length = |i: usize| places[i] - places[i + 1];
        let mut weights = vec![1.0, 0.0, 0.0, 0.0];
        let mut add = |share: f64, difference: [f64; 4]| {
            let sums = weights.iter_mut().zip(difference);
            sums.for_each(|(weight, part)| *weight += share * part);
        };
        if usable > 1 {
            add(0.5 * h / length(0), [1.0, -1.0, 0.0, 0.0]);
        }
        if usable > 2 {
            let (h1, h2) = (length(0), length(1));
            let ratio = h1 / h2;
            // The expansion has the second factor outside the bracket.
            let share = 0.5 * (1.0 - h / (3.0 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2)));
            add(share, [1.0, -1.0 - ratio, ratio, 0.0]);
        }
        if usable > 3 {
            let (h1, h2, h3) = (length(0), length(1), length(2));
            let ratio = h1 / h2;
            let bend = ratio * (h1 + h2) / (h2 + h3);
            let rise = h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3));
            let first = 0.5 * (1.0 - h / (3.0 * (h + h1)));
            let second = (1.0 - h / (2.0 * (h + h1))) * h / (6.0 * (h + h1 + h2));
            // The expansion has `h2 / h3` as the last factor.
            let oldest = -bend * ratio;
            let older = ratio + bend * (1.0 + h2 / h3);
            let difference = [1.0, -1.0 - ratio - bend, older, oldest];
            add((first + second) * rise, difference);
        }
        weights
    }
}
