//! Linear multistep method.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::check_order;
use super::{Solver, Step};
use crate::error::Result;

/// LMS: Adams and Bashforth's method, the polynomial through up to four slopes; one
/// evaluation a step, deterministic. diffusers' `LMSDiscreteScheduler`, k-diffusion's `sample_lms`.
///
/// Source: Katherine Crowson's k-diffusion; Hairer, Norsett and Wanner, "Solving Ordinary Differential
/// Equations I", section III.1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lms {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The number of slopes, from 1 to 4.
    pub order: usize,
}

impl Default for Lms {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            order: 4,
        }
    }
}

impl Algorithm for Lms {
    const CLASS: &'static str = "LMSDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        check_order("order", self.order, 1..=4)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(LmsSolver {
            order: self.order,
            slopes: VecDeque::new(),
        })
    }
}

with_levels!(Lms);

struct LmsSolver {
    order: usize,
    /// Of the last steps, the newest first.
    slopes: VecDeque<Tensor>,
}

impl Solver for LmsSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (index, sigma) = (step.index(), step.sigma());
        let denoised = step.denoise(latents, sigma)?;
        // Fourth order overshoots over a few even steps. Levels that fall from thousands to tens at once leave
        // the older slopes next to no weight.
        let axis = Axis::of_flows(step.schedule());
        let slope = axis.slope(step, latents, &denoised, sigma)?;
        self.slopes.push_front(slope);
        self.slopes.truncate(self.order);
        // By the number of the step, also where a run starts late and has fewer slopes, as the reference.
        let order = self.order.min(index + 1);
        let nodes: Vec<f64> = step.sigmas()[index + 1 - order..=index]
            .iter()
            .rev()
            .map(|&level| axis.place(level))
            .collect();
        let next = step.sigma_next();
        let weights = adams_weights(&nodes, axis.place(next));
        let slopes: Vec<_> = weights.into_iter().zip(&self.slopes).collect();
        axis.moved(step, latents, (sigma, next), &slopes)
    }
}

/// The integral from the first node to `to` of each of the polynomials that are 1 at one node and 0 at
/// the others. Where a node is there twice, the first alone counts.
fn adams_weights(nodes: &[f64], to: f64) -> Vec<f64> {
    let from = nodes[0];
    if nodes.windows(2).any(|pair| pair[0] == pair[1]) {
        return vec![to - from];
    }
    // Gauss and Legendre's rule of two points is exact for cubic polynomials.
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    let points = [-1.0, 1.0].map(|side| middle + half * side / 3f64.sqrt());
    (0..nodes.len())
        .map(|j| {
            let others = || nodes.iter().enumerate().filter(move |(k, _)| *k != j);
            let basis = |x: f64| -> f64 {
                others()
                    .map(|(_, node)| (x - node) / (nodes[j] - node))
                    .product()
            };
            half * points.map(basis).iter().sum::<f64>()
        })
        .collect()
}
