//! DPM-Solver++ of second order in single steps, ancestral.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::cfg_pp::Evaluated;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{FreshNoise, ancestral, eta_of, renoise, straight};
use super::{Solver, Step};
use crate::error::Result;

/// DPM++ 2S a: second order, two evaluations a step, stochastic. k-diffusion's
/// `sample_dpmpp_2s_ancestral`, ComfyUI's `dpmpp_2s_ancestral_cfg_pp`.
///
/// Source: Lu et al., "DPM-Solver++", 2022, algorithm 1 with r = 1/2; Katherine Crowson's k-diffusion for
/// the ancestral step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmPp2sAncestral {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
    /// Whether guidance is CFG++'s.
    pub cfg_pp: bool,
}

impl Default for DpmPp2sAncestral {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            fresh: FreshNoise::FULL,
            cfg_pp: false,
        }
    }
}

impl Algorithm for DpmPp2sAncestral {
    const CLASS: &'static str = "DPMPP2SAncestralScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        let cfg_pp = self.cfg_pp;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let (down, up) = ancestral(sigma, next, eta_of(step, eta)?);
            let now = Evaluated::new(step, latents, sigma, cfg_pp)?;
            let mut estimate = now.estimate.clone();
            if down > 0.0 {
                let middle = (sigma * down).sqrt();
                let halfway = straight(step, latents, &estimate, sigma, middle)?;
                estimate = Evaluated::new(step, &halfway, middle, cfg_pp)?.estimate;
            }
            let moved = straight(step, latents, &estimate, sigma, down)?;
            let moved = now.guide(step, moved, 1.0)?;
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }

    fn takes_unconditional(&self) -> bool {
        self.cfg_pp
    }
}

with_levels!(DpmPp2sAncestral);
