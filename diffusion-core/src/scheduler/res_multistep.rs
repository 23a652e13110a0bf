//! Refined exponential solver, multistep.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::cfg_pp::Evaluated;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{FreshNoise, ancestral, eta_of, renoise, straight};
use super::{Solver, Step};
use crate::error::Result;

/// RES: second order over two steps, one evaluation a step; deterministic, or ancestral where `eta` is
/// above 0. ComfyUI's `res_multistep`, `res_multistep_ancestral` and the same with `_cfg_pp`.
///
/// Source: Zhang et al., "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models
/// Sampling", 2023, section 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResMultistep {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
    /// Whether guidance is CFG++'s. After the first step it counts in the latents, so that the step shrinks
    /// it with them.
    pub cfg_pp: bool,
}

impl Default for ResMultistep {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            fresh: FreshNoise::NONE,
            cfg_pp: false,
        }
    }
}

impl Algorithm for ResMultistep {
    const CLASS: &'static str = "RESMultistepScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(ResSolver {
            config: self.clone(),
            last: None,
        })
    }

    fn takes_unconditional(&self) -> bool {
        self.cfg_pp
    }
}

with_levels!(ResMultistep);

/// What a step needs of the one before.
struct Last {
    sigma: f64,
    /// Where its deterministic part went.
    down: f64,
    estimate: Tensor,
}

struct ResSolver {
    config: ResMultistep,
    last: Option<Last>,
}

impl Solver for ResSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let (down, up) = ancestral(sigma, next, eta_of(step, self.config.fresh.eta)?);
        let now = Evaluated::new(step, latents, sigma, self.config.cfg_pp)?;
        let moved = match &self.last {
            // A level that is visited twice has no slope.
            Some(last) if down > 0.0 && down < sigma && last.down < last.sigma => {
                let h = (sigma / down).ln();
                // Where the older estimate is, in steps.
                let place = (last.down / last.sigma).ln() / h;
                let growth = 1.0 - down / sigma;
                let older = (1.0 - growth / h) / place;
                let moved = step.combine(&[
                    (down / sigma, latents),
                    (growth - older, &now.estimate),
                    (older, &last.estimate),
                ])?;
                now.guide(step, moved, down / sigma)?
            }
            _ => {
                let moved = straight(step, latents, &now.estimate, sigma, down)?;
                now.guide(step, moved, 1.0)?
            }
        };
        self.last = Some(Last {
            sigma,
            down,
            estimate: now.estimate,
        });
        renoise(step, moved, (sigma, next), up * self.config.fresh.s_noise)
    }
}
