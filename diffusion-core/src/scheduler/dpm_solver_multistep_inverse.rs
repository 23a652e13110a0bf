//! DPM-Solver and DPM-Solver++, multistep, backwards.

use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options};
use super::levels::{Grid, Levels, SigmaSchedule, TimestepSpacing};
use super::{DpmAlgorithm, DpmSolverMultistep, Solver, WithLevels};
use crate::denoise::{NoiseForm, NoiseSchedule};
use crate::error::{Error, Result};

/// [`DpmSolverMultistep`] backwards: from clean latents to the noise that it makes them of. Order 1 to 3, one
/// evaluation a step, deterministic. The run starts from clean latents where others start from noise.
/// diffusers' `DPMSolverMultistepInverseScheduler`.
///
/// Source: Lu et al., "DPM-Solver++", 2022, algorithm 2, in falling half logarithm of the signal-to-noise
/// ratio.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DpmSolverMultistepInverse {
    /// The algorithm, without fresh noise.
    pub solver: DpmSolverMultistep,
}

impl Algorithm for DpmSolverMultistepInverse {
    const CLASS: &'static str = "DPMSolverMultistepInverseScheduler";
    const GRID: Grid = Grid::Rounded;
    const HAS_END: bool = false;

    fn unknown_options() -> Options {
        DpmSolverMultistep::unknown_options()
    }

    fn check(&self) -> Result<()> {
        match self.solver.algorithm_type {
            DpmAlgorithm::DpmSolver | DpmAlgorithm::DpmSolverPp => self.solver.check(),
            other => Err(Error::argument(
                "algorithm_type",
                "dpmsolver or dpmsolver++: fresh noise has no way back",
                format!("{other:?}"),
            )),
        }
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let levels = &self.solver.levels;
        let spacing = levels.timestep_spacing;
        let lowest = match spacing {
            TimestepSpacing::Leading => noise.sigma(levels.steps_offset as f64),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => noise.sigma_min(),
        };
        let mut sigmas = levels.plan_to(Self::GRID, noise, num_steps, lowest)?;
        sigmas.reverse();
        let is_spaced = levels.is_native() && noise.form() == NoiseForm::Variances;
        let is_listed = matches!(levels.sigma_schedule, SigmaSchedule::Sigmas(_));
        let is_single = num_steps == 1 && !is_spaced;
        match sigmas.last_mut() {
            Some(highest) if is_spaced && spacing != TimestepSpacing::Trailing => {
                *highest = noise.with_finite_terminal_snr().sigma_max();
            }
            // The others have the highest level twice in the reference, and so nothing to do in the end.
            Some(&mut highest) if !is_listed && !is_single => {
                sigmas.remove(0);
                sigmas.push(highest);
            }
            _ => {}
        }
        Ok(sigmas)
    }

    fn plan_rises(&self) -> bool {
        true
    }

    fn begin(&self) -> Box<dyn Solver> {
        self.solver.begin()
    }
}

impl WithLevels for DpmSolverMultistepInverse {
    fn levels(&self) -> &Levels {
        &self.solver.levels
    }

    fn levels_mut(&mut self) -> &mut Levels {
        &mut self.solver.levels
    }
}
