//! DPM-Solver with steps of its own: fast and adaptive.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{FreshNoise, ancestral, check_range, eta_of, noise_of, renoise};
use super::{Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};

/// DPM fast: blocks of third order, even in the logarithm, with as many evaluations in all as the run has
/// steps; it makes about a third as many steps. Ends at the model's lowest noise level. Stochastic where
/// `eta` is above 0. k-diffusion's `sample_dpm_fast`.
///
/// Source: Lu et al., "DPM-Solver", 2022, section 3.4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmFast {
    /// The noise levels, of which only the first and the last count.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for DpmFast {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Exponential),
            fresh: FreshNoise::NONE,
        }
    }
}

impl Algorithm for DpmFast {
    const CLASS: &'static str = "DPMFastScheduler";
    const GRID: Grid = Grid::Fractional;

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let noise = noise.with_finite_terminal_snr();
        let count = num_steps / 3 + 1;
        let ratio = noise.sigma_min() / noise.sigma_max();
        let place = |i: usize| ratio.powf(i as f64 / count as f64);
        Ok((0..=count).map(|i| noise.sigma_max() * place(i)).collect())
    }

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let to_go = step.num_steps() - step.index();
            // What is left of the evaluations once the blocks of three are done.
            let order = match (to_go, step.requested_steps() % 3) {
                (1, 0) => 1,
                (2, 0) => 2,
                (1, rest) => rest,
                _ => 3,
            };
            let (down, up) = down_and_up(step, sigma, next, eta_of(step, eta)?);
            let slope = slope_at(step, latents, sigma)?;
            let moved = match order {
                1 => first_order(step, latents, &slope, sigma, down)?,
                2 => second_order(step, latents, &slope, sigma, down, 0.5)?.0,
                _ => third_order(step, latents, &slope, sigma, down)?.1,
            };
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }
}

/// DPM adaptive: third order (or second) with steps as long as the estimated error allows, so that the
/// number of steps of a request does not count; the whole way is one step, which reports each of its own.
/// Ends at the model's lowest noise level. The pictures of a batch share their steps. Stochastic where
/// `eta` is above 0. k-diffusion's `sample_dpm_adaptive`.
///
/// Source: Lu et al., "DPM-Solver", 2022, appendix C (algorithms 3 and 4); Katherine Crowson's k-diffusion
/// for the step controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DpmAdaptive {
    /// The noise levels, of which only the first and the last count.
    #[serde(flatten)]
    pub levels: Levels,
    /// The order, 2 or 3.
    pub solver_order: usize,
    /// The relative tolerance, above 0.
    pub rtol: f64,
    /// The absolute tolerance, above 0.
    pub atol: f64,
    /// The length of the first step, in the logarithm.
    pub h_init: f64,
    /// How much better than expected a step must be to be accepted.
    pub accept_safety: f64,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for DpmAdaptive {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Exponential),
            solver_order: 3,
            rtol: 0.05,
            atol: 0.0078,
            h_init: 0.05,
            accept_safety: 0.81,
            fresh: FreshNoise::NONE,
        }
    }
}

impl Algorithm for DpmAdaptive {
    const CLASS: &'static str = "DPMAdaptiveScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        if !matches!(self.solver_order, 2 | 3) {
            return Err(Error::argument("solver_order", "2 or 3", self.solver_order));
        }
        self.fresh.check()?;
        let positive = f64::MIN_POSITIVE..=f64::MAX;
        check_range("rtol", self.rtol, positive.clone())?;
        check_range("atol", self.atol, positive.clone())?;
        check_range("h_init", self.h_init, positive)?;
        check_range("accept_safety", self.accept_safety, 0.0..=1.0)?;
        Ok(())
    }

    fn plan(&self, noise: &NoiseSchedule, _num_steps: usize) -> Result<Vec<f64>> {
        let noise = noise.with_finite_terminal_snr();
        Ok(vec![noise.sigma_max(), noise.sigma_min()])
    }

    fn begin(&self) -> Box<dyn Solver> {
        let config = self.clone();
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| config.walk(step, latents))
    }
}

with_levels!(DpmFast, DpmAdaptive);

impl DpmAdaptive {
    fn walk(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        /// Steps that a run may take; the tolerances cannot be met beyond.
        const MAX_STEPS: usize = 10_000;
        /// Where the end counts as reached, in the logarithm.
        const CLOSE: f64 = 1e-5;
        let eta = eta_of(step, self.fresh.eta)?;
        // With fresh noise the error falls more slowly.
        let order = if eta > 0.0 {
            1.5
        } else {
            self.solver_order as f64
        };
        let lowest = step.sigma_next();
        let (mut sigma, mut length) = (step.sigma(), self.h_init);
        let (mut latents, mut before) = (latents.clone(), latents.clone());
        for _ in 0..MAX_STEPS {
            if (sigma / lowest).ln() <= CLOSE {
                return Ok(latents);
            }
            let next = (sigma * (-length).exp()).max(lowest);
            let (down, up) = down_and_up(step, sigma, next, eta);
            let slope = slope_at(step, &latents, sigma)?;
            let (low, high) = match self.solver_order {
                2 => (
                    first_order(step, &latents, &slope, sigma, down)?,
                    second_order(step, &latents, &slope, sigma, down, 0.5)?.0,
                ),
                _ => third_order(step, &latents, &slope, sigma, down)?,
            };
            let error = self.error(&low, &high, &before)?;
            if !error.is_finite() {
                break;
            }
            let factor = 1.0 + ((error + 1e-8).recip().powf(order.recip()) - 1.0).atan();
            length *= factor;
            if factor >= self.accept_safety {
                before = low;
                latents = renoise(step, high, (sigma, next), up * self.fresh.s_noise)?;
                sigma = next;
            }
            step.report(&latents, sigma)?;
        }
        let reason = format!(
            "DPM adaptive: no step at noise level {sigma} meets rtol {} and atol {}; raise them, or take \
             another scheduler",
            self.rtol, self.atol
        );
        Err(Error::custom(reason))
    }

    /// How far both orders are from each other, by the tolerance, as a root mean square.
    fn error(&self, low: &Tensor, high: &Tensor, before: &Tensor) -> Result<f64> {
        let values = |tensor: &Tensor| Ok::<_, Error>(tensor.flatten_all()?.to_vec1::<f32>()?);
        let (low, high, before) = (values(low)?, values(high)?, values(before)?);
        let squares = low.iter().zip(&high).zip(&before).map(|((l, h), b)| {
            let tolerance = self.atol.max(self.rtol * f64::from(l.abs().max(b.abs())));
            (f64::from(l - h) / tolerance).powi(2)
        });
        Ok((squares.sum::<f64>() / low.len() as f64).sqrt())
    }
}

/// Where an ancestral step goes down to, not below the end of the run, and the fresh noise after it.
fn down_and_up(step: &Step<'_>, sigma: f64, next: f64, eta: f64) -> (f64, f64) {
    let lowest = step.sigmas()[step.num_steps()];
    let down = ancestral(sigma, next, eta).0.max(lowest);
    (down, (next * next - down * down).max(0.0).sqrt())
}

fn slope_at(step: &mut Step<'_>, latents: &Tensor, sigma: f64) -> Result<Tensor> {
    let denoised = step.denoise(latents, sigma)?;
    noise_of(step, latents, &denoised, sigma)
}

fn first_order(
    step: &Step<'_>,
    latents: &Tensor,
    slope: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor> {
    step.combine(&[(1.0, latents), (to - from, slope)])
}

/// The latents, and the slope at the share `r` of the way.
fn second_order(
    step: &mut Step<'_>,
    latents: &Tensor,
    slope: &Tensor,
    from: f64,
    to: f64,
    r: f64,
) -> Result<(Tensor, Tensor)> {
    let between = from * (to / from).powf(r);
    let there = first_order(step, latents, slope, from, between)?;
    let slope_there = slope_at(step, &there, between)?;
    let change = (to - from) / (2.0 * r);
    let moved = step.combine(&[
        (1.0, latents),
        (to - from - change, slope),
        (change, &slope_there),
    ])?;
    Ok((moved, slope_there))
}

/// The latents by second and by third order.
fn third_order(
    step: &mut Step<'_>,
    latents: &Tensor,
    slope: &Tensor,
    from: f64,
    to: f64,
) -> Result<(Tensor, Tensor)> {
    const R1: f64 = 1.0 / 3.0;
    const R2: f64 = 2.0 / 3.0;
    let (low, slope_one) = second_order(step, latents, slope, from, to, R1)?;
    let h = (from / to).ln();
    let between = from * (to / from).powf(R2);
    let change = (R2 / R1) * (between - (from - between) / (R2 * h));
    let there = step.combine(&[
        (1.0, latents),
        (between - from - change, slope),
        (change, &slope_one),
    ])?;
    let slope_two = slope_at(step, &there, between)?;
    let change = (to - (from - to) / h) / R2;
    let high = step.combine(&[
        (1.0, latents),
        (to - from - change, slope),
        (change, &slope_two),
    ])?;
    Ok((low, high))
}
