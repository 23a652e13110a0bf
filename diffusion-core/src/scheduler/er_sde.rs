//! Extended reverse-time stochastic differential equations.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{MAX_FACTOR, check_order, check_range, renoise};
use super::{Solver, Step};
use crate::error::Result;

/// ER-SDE: order 1 to 3 over the last steps, one evaluation a step, stochastic. ComfyUI's `er_sde`.
///
/// Source: Cui et al., "Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models",
/// 2023, algorithms 1 to 3 in the variance-exploding form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErSde {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The order, from 1 to 3.
    pub solver_order: usize,
    /// The standard deviation of the fresh noise, about 1.
    pub s_noise: f64,
}

impl Default for ErSde {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            solver_order: 3,
            s_noise: 1.0,
        }
    }
}

impl Algorithm for ErSde {
    const CLASS: &'static str = "ERSDEScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        check_range("s_noise", self.s_noise, 0.0..=MAX_FACTOR)?;
        check_order("solver_order", self.solver_order, 1..=3)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(ErSdeSolver {
            config: self.clone(),
            history: VecDeque::new(),
        })
    }
}

with_levels!(ErSde);

struct ErSdeSolver {
    config: ErSde,
    /// Noise levels, estimates and their slopes at the last steps, the newest first.
    history: VecDeque<(f64, Tensor, Option<Tensor>)>,
}

/// The function of the noise level that says how much fresh noise comes in, `sigma * (exp(sigma^0.3) + 10)`,
/// the paper's fifth: its value at `sigma` by that at `other`. High levels have none that is finite.
fn noise_ratio(sigma: f64, other: f64) -> f64 {
    let log = |sigma: f64| {
        let power = sigma.powf(0.3);
        sigma.ln() + power + (10.0 * (-power).exp()).ln_1p()
    };
    (log(sigma) - log(other)).exp()
}

/// The integrals from `to` to `from` of [`noise_ratio`]: of that of `to`, and of that times the distance from
/// `from`, by the reference's 200 points.
fn integrals(from: f64, to: f64) -> (f64, f64) {
    const POINTS: u32 = 200;
    let width = (from - to) / f64::from(POINTS);
    (0..POINTS).fold((0.0, 0.0), |(plain, moment), i| {
        let at = to + f64::from(i) * width;
        let share = width * noise_ratio(to, at);
        (plain + share, moment + (at - from) * share)
    })
}

impl Solver for ErSdeSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let denoised = step.denoise(latents, sigma)?;
        if next == 0.0 {
            return Ok(denoised);
        }
        let ratio = noise_ratio(next, sigma);
        let moved = step.combine(&[(ratio, latents), (1.0 - ratio, &denoised)])?;
        let mut terms = vec![(1.0, &moved)];
        let change = next - sigma;
        let (plain, moment) = integrals(sigma, next);
        // A level that is visited twice has no slope.
        let before = self.history.front().filter(|last| last.0 > sigma);
        let slope = match before {
            Some((level, estimate, _)) if self.config.solver_order > 1 => {
                let scale = (sigma - level).recip();
                Some(step.combine(&[(scale, &denoised), (-scale, estimate)])?)
            }
            _ => None,
        };
        if let Some(slope) = &slope {
            terms.push((change + plain, slope));
        }
        let curvature_weight = 0.5 * change * change + moment;
        let older = before.and_then(|(_, _, slope)| slope.as_ref().zip(self.history.get(1)));
        if let (Some(slope), Some((slope_before, (level, ..))), 3) =
            (&slope, older, self.config.solver_order)
        {
            let weight = 2.0 * curvature_weight / (sigma - level);
            terms.extend([(weight, slope), (-weight, slope_before)]);
        }
        let moved = step.combine(&terms)?;
        self.history.push_front((sigma, denoised, slope));
        self.history.truncate(2);
        let fresh = (next * next - (sigma * ratio).powi(2)).max(0.0).sqrt();
        renoise(step, moved, (sigma, next), fresh * self.config.s_noise)
    }
}
