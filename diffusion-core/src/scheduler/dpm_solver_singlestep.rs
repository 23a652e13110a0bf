//! DPM-Solver and DPM-Solver++, single-step.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, with_levels};
use super::dpm_updates::{
    DpmAlgorithm, DpmUpdate, SolverType, check_dpm_order, unknown_of_dpm_solvers,
};
use super::levels::{FinalSigmas, Grid, Levels, SigmaSchedule};
use super::limits::Thresholding;
use super::updates::{falling, straight};
use super::{Solver, Step};
use crate::error::{Error, Result};

/// DPM-Solver and DPM-Solver++ in blocks of as many steps as the order, 1 to 3; one evaluation a step; the
/// `sde` form is stochastic. diffusers' `DPMSolverSinglestepScheduler`.
///
/// Source: Lu et al., "DPM-Solver++", 2022, algorithm 1; Lu et al., "DPM-Solver", 2022, algorithms 1 and 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmSolverSinglestep {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// What is integrated, and whether fresh noise comes in; not `sde-dpmsolver`.
    pub algorithm_type: DpmAlgorithm,
    /// The order, from 1 to 3.
    pub solver_order: usize,
    /// The form of the terms of higher order.
    pub solver_type: SolverType,
    /// Whether the last block is of lower order. It always is where the run ends at no noise, or where the
    /// steps are no multiple of the order.
    pub lower_order_final: bool,
    /// Keeps the estimate in the range of most of its values.
    #[serde(flatten)]
    pub thresholding: Thresholding,
}

impl Default for DpmSolverSinglestep {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            algorithm_type: DpmAlgorithm::DpmSolverPp,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: false,
            thresholding: Thresholding::OFF,
        }
    }
}

impl Algorithm for DpmSolverSinglestep {
    const CLASS: &'static str = "DPMSolverSinglestepScheduler";
    const GRID: Grid = Grid::Rounded;
    const HAS_SPACING: bool = false;

    fn unknown_options() -> Options {
        unknown_of_dpm_solvers()
    }

    fn check(&self) -> Result<()> {
        self.thresholding.check()?;
        if self.algorithm_type == DpmAlgorithm::SdeDpmSolver {
            let expected = "dpmsolver, dpmsolver++ or sde-dpmsolver++ in single steps";
            return Err(Error::argument("algorithm_type", expected, "sde-dpmsolver"));
        }
        check_dpm_order(self.solver_order, self.algorithm_type)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(SinglestepSolver {
            config: self.clone(),
            history: VecDeque::new(),
            start: None,
        })
    }
}

with_levels!(DpmSolverSinglestep);

impl DpmSolverSinglestep {
    /// The order of the step `index`: each block counts up.
    fn order(&self, index: usize, num_steps: usize) -> usize {
        let highest = self.solver_order;
        let in_block = index % highest + 1;
        let is_last = index + 1 == num_steps;
        let ends_clean = self.levels.final_sigmas_type == FinalSigmas::Zero;
        // Where the steps are a multiple of the order, the last block would end at the full order.
        match is_last && (ends_clean || (self.lower_order_final && in_block == highest)) {
            true => 1,
            false => in_block,
        }
    }
}

struct SinglestepSolver {
    config: DpmSolverSinglestep,
    /// Noise levels and values of the last steps, the newest first.
    history: VecDeque<(f64, Tensor)>,
    /// Where the block started.
    start: Option<Tensor>,
}

impl Solver for SinglestepSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let config = &self.config;
        let algorithm = config.algorithm_type;
        let denoised = config.thresholding.apply(step.denoise(latents, sigma)?)?;
        let value = algorithm.value(step, latents, denoised.clone(), sigma)?;
        self.history.push_front((sigma, value));
        self.history.truncate(config.solver_order);
        if next == 0.0 {
            return straight(step, latents, &denoised, sigma, next);
        }
        let values = &self.history;
        // A run that starts within a block has no start.
        let usable = match &self.start {
            Some(_) => falling(values.iter().map(|(sigma, _)| *sigma)),
            None => 1,
        };
        let order = config.order(step.index(), step.num_steps()).min(usable);
        if order == 1 {
            self.start = Some(latents.clone());
        }
        let start = self.start.as_ref().unwrap_or(latents);
        let (first, base) = &values[order - 1];
        let update = DpmUpdate::new(algorithm, *first, next);
        let h = (first / next).ln();
        // How far into the block an evaluation was.
        let place = |i: usize| (first / values[i].0).ln() / h;
        let (now, before) = (&values[0].1, |i: usize| &values[i].1);
        match order {
            1 => update.apply(step, start, base, &[]),
            2 => {
                let slope = update.slope_of(config.solver_type) / place(0);
                update.apply(step, start, base, &[(slope, now), (-slope, base)])
            }
            _ => {
                let (r0, r1) = (place(0), place(1));
                let (slope, curvature) = update.third_order();
                // Of the two divided differences, the one at the end and the one between.
                let (end, between) = match config.solver_type {
                    SolverType::Midpoint => (slope, 0.0),
                    SolverType::Heun => {
                        let span = r0 - r1;
                        let end = (2.0 * curvature - slope * r1) / span;
                        (end, (slope * r0 - 2.0 * curvature) / span)
                    }
                };
                let higher = [
                    (end / r0, now),
                    (between / r1, before(1)),
                    (-end / r0 - between / r1, base),
                ];
                update.apply(step, start, base, &higher)
            }
        }
    }
}
