//! DPM-Solver++ for Stable Audio's models.

use std::f64::consts::FRAC_2_PI;

use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::{DpmAlgorithm, DpmSolverMultistep, Solver, WithLevels};
use crate::denoise::{NoiseForm, NoiseSchedule};
use crate::error::Result;
use crate::rng::NoiseKind;

/// [`DpmSolverMultistep`] as Stable Audio Open takes it: `sde-dpmsolver++` of order 1 or 2, one evaluation a
/// step, stochastic, with noise from a Brownian path, over levels even in the logarithm. Models in the form
/// of Karras et al. are told the angle of a cosine schedule, from 0 to 1. diffusers'
/// `CosineDPMSolverMultistepScheduler`.
///
/// Source: Evans et al., "Stable Audio Open", 2024; as [`DpmSolverMultistep`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CosineDpmSolverMultistep {
    /// The algorithm.
    pub solver: DpmSolverMultistep,
}

impl Default for CosineDpmSolverMultistep {
    fn default() -> Self {
        Self {
            solver: DpmSolverMultistep {
                levels: Levels::new(SigmaSchedule::Exponential),
                algorithm_type: DpmAlgorithm::SdeDpmSolverPp,
                ..DpmSolverMultistep::default()
            },
        }
    }
}

impl Algorithm for CosineDpmSolverMultistep {
    const CLASS: &'static str = "CosineDPMSolverMultistepScheduler";
    const GRID: Grid = Grid::Rounded;
    const HAS_CURVES: bool = false;

    fn check(&self) -> Result<()> {
        self.solver.check()
    }

    fn told_timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        match noise.form() {
            NoiseForm::Edm { .. } => FRAC_2_PI * sigma.atan(),
            _ => self.levels().timestep(Self::GRID, noise, sigma),
        }
    }

    fn fresh_noise(&self) -> NoiseKind {
        NoiseKind::Brownian
    }

    fn begin(&self) -> Box<dyn Solver> {
        self.solver.begin()
    }
}

impl WithLevels for CosineDpmSolverMultistep {
    fn levels(&self) -> &Levels {
        &self.solver.levels
    }

    fn levels_mut(&mut self) -> &mut Levels {
        &mut self.solver.levels
    }
}
