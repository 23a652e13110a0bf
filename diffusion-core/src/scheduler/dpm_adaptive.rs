//! DPM-Solver with steps of its own: fast and adaptive.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::sampler::excerpt;
use super::updates::{FreshNoise, ancestral, check_order, check_range, eta_of, renoise};
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
    /// The noise levels, of which only the first and the last above 0 count.
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
        let (axis, count) = (Axis::of(noise), num_steps / 3 + 1);
        let (high, low) = ends(&self.levels, noise, num_steps)?;
        let (from, to) = (axis.place(high), axis.place(low));
        let between =
            (1..count).map(|i| axis.level(from * (to / from).powf(i as f64 / count as f64)));
        Ok([high].into_iter().chain(between).chain([low]).collect())
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
            let start = Start::new(step, latents, sigma)?;
            let moved = match order {
                1 => start.first_order(step, down)?,
                2 => start.second_order(step, down, 0.5)?.0,
                _ => start.third_order(step, down)?.1,
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
    /// The noise levels, of which only the first and the last above 0 count.
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
        check_order("solver_order", self.solver_order, 2..=3)?;
        self.fresh.check()?;
        let positive = f64::MIN_POSITIVE..=f64::MAX;
        check_range("rtol", self.rtol, positive.clone())?;
        check_range("atol", self.atol, positive.clone())?;
        check_range("h_init", self.h_init, positive)?;
        check_range("accept_safety", self.accept_safety, 0.0..=1.0)?;
        Ok(())
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let (high, low) = ends(&self.levels, noise, num_steps)?;
        Ok(vec![high, low])
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
        let (axis, lowest) = (Axis::of(step.schedule()), step.sigma_next());
        let (mut sigma, mut length) = (step.sigma(), self.h_init);
        let mut latents = latents.clone();
        let mut before = (latents.clone(), axis.stretch(sigma));
        for _ in 0..MAX_STEPS {
            let place = axis.place(sigma);
            if (place / axis.place(lowest)).ln() <= CLOSE {
                return Ok(latents);
            }
            let next = axis.level(place * (-length).exp()).max(lowest);
            let (down, up) = down_and_up(step, sigma, next, eta);
            let start = Start::new(step, &latents, sigma)?;
            let (low, high) = match self.solver_order {
                2 => (
                    start.first_order(step, down)?,
                    start.second_order(step, down, 0.5)?.0,
                ),
                _ => start.third_order(step, down)?,
            };
            let low = (low, axis.stretch(down));
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

    /// How far both orders are from each other, by the tolerance, as a root mean square. Latents are as they
    /// step along the axis: `low` and `before` stand beside how much larger they are.
    fn error(&self, low: &(Tensor, f64), high: &Tensor, before: &(Tensor, f64)) -> Result<f64> {
        let values = |tensor: &Tensor, stretch: f64| {
            let values = (tensor.flatten_all()? / stretch)?.to_vec1::<f32>()?;
            Ok::<_, Error>(values)
        };
        let high = values(high, low.1)?;
        let (low, before) = (values(&low.0, low.1)?, values(&before.0, before.1)?);
        let squares = low.iter().zip(&high).zip(&before).map(|((l, h), b)| {
            let tolerance = self.atol.max(self.rtol * f64::from(l.abs().max(b.abs())));
            (f64::from(l - h) / tolerance).powi(2)
        });
        Ok((squares.sum::<f64>() / low.len() as f64).sqrt())
    }
}

/// The levels between which a curve lies: the first of its plan and the last above 0, or those of the model if
/// it is one between two levels.
fn ends(levels: &Levels, noise: &NoiseSchedule, num_steps: usize) -> Result<(f64, f64)> {
    use SigmaSchedule as S;
    if matches!(
        levels.sigma_schedule,
        S::Native | S::Karras | S::Exponential | S::Beta
    ) {
        let noise = noise.with_finite_terminal_snr();
        return Ok((noise.sigma_max(), noise.sigma_min()));
    }
    // A single step has one level.
    let plan = levels.plan(Grid::Fractional, noise, num_steps.max(2))?;
    let low = plan.iter().rev().find(|sigma| **sigma > 0.0);
    match (plan.first(), low) {
        (Some(&high), Some(&low)) if low < high => Ok((high, low)),
        _ => {
            let expected = "two noise levels above 0, falling";
            Err(Error::argument("sigmas", expected, excerpt(&plan)))
        }
    }
}

/// Where an ancestral step goes down to, not below the end of the run, and the fresh noise after it.
fn down_and_up(step: &Step<'_>, sigma: f64, next: f64, eta: f64) -> (f64, f64) {
    let lowest = step.sigmas()[step.num_steps()];
    let down = ancestral(sigma, next, eta).0.max(lowest);
    (down, (next * next - down * down).max(0.0).sqrt())
}

/// What a step starts from.
struct Start<'a> {
    axis: Axis,
    latents: &'a Tensor,
    sigma: f64,
    slope: Tensor,
}

impl<'a> Start<'a> {
    fn new(step: &mut Step<'_>, latents: &'a Tensor, sigma: f64) -> Result<Self> {
        let axis = Axis::of(step.schedule());
        let slope = slope_at(axis, step, latents, sigma)?;
        Ok(Self {
            axis,
            latents,
            sigma,
            slope,
        })
    }

    fn first_order(&self, step: &Step<'_>, to: f64) -> Result<Tensor> {
        let length = self.axis.place(to) - self.axis.place(self.sigma);
        self.moved(step, to, &[(length, &self.slope)])
    }

    /// The latents, and the slope at the share `r` of the way.
    fn second_order(&self, step: &mut Step<'_>, to: f64, r: f64) -> Result<(Tensor, Tensor)> {
        let (from, end) = (self.axis.place(self.sigma), self.axis.place(to));
        let between = self.axis.level(from * (end / from).powf(r));
        let there = self.first_order(step, between)?;
        let slope_there = slope_at(self.axis, step, &there, between)?;
        let change = (end - from) / (2.0 * r);
        let slopes = [(end - from - change, &self.slope), (change, &slope_there)];
        Ok((self.moved(step, to, &slopes)?, slope_there))
    }

    /// The latents by second and by third order.
    fn third_order(&self, step: &mut Step<'_>, to: f64) -> Result<(Tensor, Tensor)> {
        const R1: f64 = 1.0 / 3.0;
        const R2: f64 = 2.0 / 3.0;
        let (low, slope_one) = self.second_order(step, to, R1)?;
        let (from, end) = (self.axis.place(self.sigma), self.axis.place(to));
        let h = (from / end).ln();
        let place = from * (end / from).powf(R2);
        let between = self.axis.level(place);
        let change = (R2 / R1) * (place - (from - place) / (R2 * h));
        let slopes = [(place - from - change, &self.slope), (change, &slope_one)];
        let there = self.moved(step, between, &slopes)?;
        let slope_two = slope_at(self.axis, step, &there, between)?;
        let change = (end - (from - end) / h) / R2;
        let slopes = [(end - from - change, &self.slope), (change, &slope_two)];
        Ok((low, self.moved(step, to, &slopes)?))
    }

    fn moved(&self, step: &Step<'_>, to: f64, slopes: &[(f64, &Tensor)]) -> Result<Tensor> {
        self.axis
            .moved(step, self.latents, (self.sigma, to), slopes)
    }
}

fn slope_at(axis: Axis, step: &mut Step<'_>, latents: &Tensor, sigma: f64) -> Result<Tensor> {
    let denoised = step.denoise(latents, sigma)?;
    axis.slope(step, latents, &denoised, sigma)
}
