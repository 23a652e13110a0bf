//! DPM-Solver++ of second order over two steps, for CFG++.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::cfg_pp::Evaluated;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::straight;
use super::{Solver, Step};

/// DPM++ 2M for CFG++: second order, one evaluation a step, deterministic. ComfyUI's `dpmpp_2m_cfg_pp`.
///
/// Its slope is that from the last estimate under the negative prompt to the guided one.
///
/// Source: Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
/// 2024, appendix, over Lu et al., "DPM-Solver++", 2022, algorithm 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmPp2mCfgPp {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
}

impl Default for DpmPp2mCfgPp {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
        }
    }
}

impl Algorithm for DpmPp2mCfgPp {
    const CLASS: &'static str = "DPMPP2MCFGPPScheduler";
    const GRID: Grid = Grid::Fractional;

    fn begin(&self) -> Box<dyn Solver> {
        // The noise level and the estimate of the step before.
        let mut before: Option<(f64, Tensor)> = None;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let now = Evaluated::new(step, latents, sigma, true)?;
            let moved = straight(step, latents, &now.estimate, sigma, next)?;
            let moved = now.guide(step, moved, 1.0)?;
            let moved = match &before {
                // A level that is visited twice has no slope.
                Some((last, estimate)) if next > 0.0 && *last > sigma => {
                    let h = (sigma / next).ln();
                    let slope = 0.5 * (1.0 - next / sigma) * h / (last / sigma).ln();
                    step.combine(&[(1.0, &moved), (slope, now.guided()), (-slope, estimate)])?
                }
                _ => moved,
            };
            before = Some((sigma, now.estimate));
            Ok(moved)
        })
    }

    fn takes_unconditional(&self) -> bool {
        true
    }
}

with_levels!(DpmPp2mCfgPp);
