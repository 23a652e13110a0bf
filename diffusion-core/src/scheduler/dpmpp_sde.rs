//! DPM-Solver++ as a stochastic differential equation, as k-diffusion has it.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::dpm_updates::SolverType;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{FreshNoise, ancestral, check_order, eta_of, renoise, straight};
use super::{Solver, Step};
use crate::error::Result;
use crate::rng::NoiseKind;

/// DPM++ SDE: two evaluations a step, the second at the middle of the logarithms; stochastic, with noise
/// from a Brownian path. diffusers' `DPMSolverSDEScheduler`, k-diffusion's `sample_dpmpp_sde`.
///
/// Source: Lu et al., "DPM-Solver++", 2022, appendix; Katherine Crowson's k-diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmSolverSde {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for DpmSolverSde {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            fresh: FreshNoise::FULL,
        }
    }
}

impl Algorithm for DpmSolverSde {
    const CLASS: &'static str = "DPMSolverSDEScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn fresh_noise(&self) -> NoiseKind {
        NoiseKind::Brownian
    }

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let eta = eta_of(step, eta)?;
            let denoised = step.denoise(latents, sigma)?;
            if next == 0.0 {
                return straight(step, latents, &denoised, sigma, next);
            }
            let middle = (sigma * next).sqrt();
            let (down, up) = ancestral(sigma, middle, eta);
            let halfway = straight(step, latents, &denoised, sigma, down)?;
            let halfway = renoise(step, halfway, (sigma, middle), up * s_noise)?;
            let denoised = step.denoise(&halfway, middle)?;
            let (down, up) = ancestral(sigma, next, eta);
            let moved = straight(step, latents, &denoised, sigma, down)?;
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }
}

/// DPM++ 2M SDE and 3M SDE: second or third order over the last steps, one evaluation a step; stochastic,
/// with noise from a Brownian path. k-diffusion's `sample_dpmpp_2m_sde` and `sample_dpmpp_3m_sde`.
///
/// Source: Lu et al., "DPM-Solver++", 2022, section 5; Katherine Crowson's k-diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmPpMultistepSde {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The order, 2 or 3.
    pub solver_order: usize,
    /// The form of the second-order term, at order 2.
    pub solver_type: SolverType,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for DpmPpMultistepSde {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            fresh: FreshNoise::FULL,
        }
    }
}

impl Algorithm for DpmPpMultistepSde {
    const CLASS: &'static str = "DPMPPMultistepSDEScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        self.fresh.check()?;
        check_order("solver_order", self.solver_order, 2..=3)
    }

    fn fresh_noise(&self) -> NoiseKind {
        NoiseKind::Brownian
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(MultistepSdeSolver {
            config: self.clone(),
            history: VecDeque::new(),
        })
    }
}

with_levels!(DpmSolverSde, DpmPpMultistepSde);

struct MultistepSdeSolver {
    config: DpmPpMultistepSde,
    /// The estimates of the last steps and the lengths of those steps, the newest first.
    history: VecDeque<(Tensor, f64)>,
}

impl Solver for MultistepSdeSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let eta = eta_of(step, self.config.fresh.eta)?;
        let denoised = step.denoise(latents, sigma)?;
        if next == 0.0 {
            return straight(step, latents, &denoised, sigma, next);
        }
        let h = (sigma / next).ln();
        // The step's length with the fresh noise counted in.
        let length = h * (1.0 + eta);
        let keep = (-length).exp();
        let mut terms = vec![(keep, latents), (1.0 - keep, &denoised)];
        let slope = 1.0 - (1.0 - keep) / length;
        let usable = if h > 0.0 { self.history.len() } else { 0 };
        match (self.config.solver_order, usable) {
            (_, 0) => {}
            (3, 2..) => {
                let [(one, h1), (two, h2)] = [&self.history[0], &self.history[1]];
                let (r0, r1) = (h1 / h, h2 / h);
                let curvature = slope / length - 0.5;
                let nearer = slope * (1.0 + r0 / (r0 + r1)) - curvature / (r0 + r1);
                let farther = slope - nearer;
                terms.push((nearer / r0, &denoised));
                terms.push((farther / r1 - nearer / r0, one));
                terms.push((-farther / r1, two));
            }
            (order, _) => {
                let (before, h_before) = &self.history[0];
                let is_midpoint = order == 2 && self.config.solver_type == SolverType::Midpoint;
                let weight = if is_midpoint {
                    0.5 * (1.0 - keep)
                } else {
                    slope
                };
                let weight = weight * h / h_before;
                terms.extend([(weight, &denoised), (-weight, before)]);
            }
        }
        let moved = step.combine(&terms)?;
        if h > 0.0 {
            self.history.push_front((denoised, h));
            self.history.truncate(self.config.solver_order - 1);
        }
        let fresh = next * (-(-2.0 * h * eta).exp_m1()).sqrt();
        renoise(
            step,
            moved,
            (sigma, next),
            fresh * self.config.fresh.s_noise,
        )
    }
}
