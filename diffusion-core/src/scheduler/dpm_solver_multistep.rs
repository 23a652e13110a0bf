//! DPM-Solver and DPM-Solver++, multistep.

use std::cmp::Ordering;
use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, with_levels};
use super::dpm_updates::{
    DpmAlgorithm, DpmUpdate, SolverType, check_dpm_order, unknown_of_dpm_solvers,
};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::limits::Thresholding;
use super::updates::{falling, straight};
use super::{Solver, Step};
use crate::error::Result;

/// DPM-Solver and DPM-Solver++ over the last steps: order 1 to 3, one evaluation a step; the `sde` forms
/// are stochastic. By default "DPM++ 2M". diffusers' `DPMSolverMultistepScheduler`, k-diffusion's
/// `sample_dpmpp_2m`.
///
/// Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
/// 2022, algorithm 2; Lu et al., "DPM-Solver", 2022, for the forms without `++`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmSolverMultistep {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// What is integrated, and whether fresh noise comes in.
    pub algorithm_type: DpmAlgorithm,
    /// The order, from 1 to 3; for `sde-dpmsolver` to 2.
    pub solver_order: usize,
    /// The form of the second-order term.
    pub solver_type: SolverType,
    /// Whether the last steps of runs under 15 steps are of lower order, for stability.
    pub lower_order_final: bool,
    /// Whether the last step is of first order whatever the number of steps.
    pub euler_at_final: bool,
    /// Keeps the estimate in the range of most of its values.
    #[serde(flatten)]
    pub thresholding: Thresholding,
}

impl Default for DpmSolverMultistep {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            algorithm_type: DpmAlgorithm::DpmSolverPp,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            thresholding: Thresholding::OFF,
        }
    }
}

impl Algorithm for DpmSolverMultistep {
    const CLASS: &'static str = "DPMSolverMultistepScheduler";
    const GRID: Grid = Grid::Rounded;

    fn unknown_options() -> Options {
        unknown_of_dpm_solvers()
    }

    fn check(&self) -> Result<()> {
        self.thresholding.check()?;
        check_dpm_order(self.solver_order, self.algorithm_type)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(MultistepSolver {
            config: self.clone(),
            history: VecDeque::new(),
        })
    }
}

/// [`DpmSolverMultistep`] for models in the form of Karras et al. diffusers'
/// `EDMDPMSolverMultistepScheduler`.
///
/// Source: as [`DpmSolverMultistep`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EdmDpmSolverMultistep {
    /// The algorithm.
    pub solver: DpmSolverMultistep,
}

impl Default for EdmDpmSolverMultistep {
    fn default() -> Self {
        let levels = Levels::new(SigmaSchedule::Karras);
        Self {
            solver: DpmSolverMultistep {
                levels,
                ..DpmSolverMultistep::default()
            },
        }
    }
}

impl Algorithm for EdmDpmSolverMultistep {
    const CLASS: &'static str = "EDMDPMSolverMultistepScheduler";
    const GRID: Grid = Grid::Rounded;
    const HAS_CURVES: bool = false;

    fn check(&self) -> Result<()> {
        self.solver.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        self.solver.begin()
    }
}

impl super::WithLevels for EdmDpmSolverMultistep {
    fn levels(&self) -> &Levels {
        &self.solver.levels
    }

    fn levels_mut(&mut self) -> &mut Levels {
        &mut self.solver.levels
    }
}

with_levels!(DpmSolverMultistep);

struct MultistepSolver {
    config: DpmSolverMultistep,
    /// Noise levels and values of the last steps, the newest first.
    history: VecDeque<(f64, Tensor)>,
}

impl MultistepSolver {
    /// The order of this step.
    fn order(&self, step: &Step<'_>) -> usize {
        let config = &self.config;
        let (to_go, is_short) = (step.num_steps() - step.index(), step.num_steps() < 15);
        let is_lowered = config.lower_order_final && is_short;
        let highest = match to_go {
            1 if config.euler_at_final || is_lowered || step.sigma_next() == 0.0 => 1,
            2 if is_lowered => 2,
            _ => 3,
        };
        let levels = self.history.iter().map(|(sigma, _)| *sigma);
        let usable = match step.sigma().partial_cmp(&step.sigma_next()) {
            Some(Ordering::Greater) => falling(levels),
            // On the way back it is the negatives that fall.
            Some(Ordering::Less) => falling(levels.map(|sigma| -sigma)),
            _ => 1,
        };
        config.solver_order.min(highest).min(usable)
    }
}

impl Solver for MultistepSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let algorithm = self.config.algorithm_type;
        let denoised = self
            .config
            .thresholding
            .apply(step.denoise(latents, sigma)?)?;
        let value = algorithm.value(step, latents, denoised.clone(), sigma)?;
        self.history.push_front((sigma, value));
        self.history.truncate(self.config.solver_order);
        if next == 0.0 {
            return straight(step, latents, &denoised, sigma, next);
        }
        let order = self.order(step);
        let update = DpmUpdate::new(algorithm, sigma, next);
        let h = (sigma / next).ln();
        let values = &self.history;
        // Step lengths before this one, in its own.
        let ratio = |i: usize| (values[i + 1].0 / values[i].0).ln() / h;
        let (now, before) = (&values[0].1, |i: usize| &values[i].1);
        match order {
            1 => update.apply(step, latents, now, &[]),
            2 => {
                let slope = update.slope_of(self.config.solver_type) / ratio(0);
                update.apply(step, latents, now, &[(slope, now), (-slope, before(1))])
            }
            _ => {
                let (r0, r1) = (ratio(0), ratio(1));
                let (slope, curvature) = update.third_order();
                // Of the two divided differences, the nearer and the farther.
                let nearer = slope * (1.0 + r0 / (r0 + r1)) + curvature / (r0 + r1);
                let farther = slope - nearer;
                let higher = [
                    (nearer / r0, now),
                    (farther / r1 - nearer / r0, before(1)),
                    (-farther / r1, before(2)),
                ];
                update.apply(step, latents, now, &higher)
            }
        }
    }
}
