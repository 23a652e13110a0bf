//! Order of convergence.

use std::ops::ControlFlow;

use diffusion_core::rng::NoiseKind;
use diffusion_core::{NoiseSchedule, Result, Scheduler, Solver};

use super::gaussian::standardised;
use super::{Expected, Run, named};
use crate::TestResult;

/// Numbers of steps. Multiples of 8, so that [`measured_steps`] is one of 6 and ends blocks of two or three.
const STEPS: [usize; 4] = [16, 32, 64, 128];

/// The noise levels between which errors are measured.
const RANGE: (f64, f64) = (10.0, 0.1);

/// How far below the stated order a measured one may be: the steps are not infinitely many.
const SLACK: f64 = 0.3;

/// Relative errors below this are of the rounding of f32 and say nothing.
const ROUNDING: f64 = 2e-6;

/// Three quarters of a run: many solvers lower their order in the last steps.
fn measured_steps(num_steps: usize) -> usize {
    num_steps * 3 / 4
}

/// Another scheduler's solver over the battery's levels: evenly in the logarithm from the highest of the
/// range on, over the range in the first three quarters of the run.
#[derive(Debug)]
struct Replanned<'a> {
    scheduler: &'a dyn Scheduler,
    rises: bool,
}

impl Scheduler for Replanned<'_> {
    fn sigmas(&self, _noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let (from, to) = match self.rises {
            true => (RANGE.1, RANGE.0),
            false => RANGE,
        };
        let ratio = (to / from).powf((measured_steps(num_steps) as f64).recip());
        Ok((0..=num_steps)
            .map(|i| from * ratio.powi(i as i32))
            .collect())
    }

    fn solver(&self) -> Box<dyn Solver> {
        self.scheduler.solver()
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        self.scheduler.timestep(noise, sigma)
    }

    fn init_noise_sigma(&self, noise: &NoiseSchedule, sigma_max: f64) -> f64 {
        self.scheduler.init_noise_sigma(noise, sigma_max)
    }

    fn final_scale(&self, noise: &NoiseSchedule, sigma_last: f64) -> f64 {
        self.scheduler.final_scale(noise, sigma_last)
    }

    fn noise_kind(&self) -> NoiseKind {
        self.scheduler.noise_kind()
    }

    fn may_rise(&self) -> bool {
        self.scheduler.may_rise()
    }

    fn needs_unconditional(&self) -> bool {
        self.scheduler.needs_unconditional()
    }
}

/// The relative error of a solver over the battery's levels, a root mean square.
fn error_of(scheduler: &Replanned<'_>, expected: &Expected, num_steps: usize) -> TestResult<f64> {
    let mut run = Run::new(scheduler, expected, num_steps);
    run.num_steps = num_steps;
    let (start, sigma) = run.start()?;
    let mut end = None;
    run.finish_with(&mut |report| {
        if report.index + 1 == measured_steps(num_steps) {
            end = Some((report.latents.clone(), report.sigma));
        }
        ControlFlow::Continue(())
    })?;
    let (end, sigma_end) = end.ok_or("the solver shows the observer too few steps")?;
    let start = standardised(&start, sigma)?;
    Ok(root_mean_square(&standardised(&end, sigma_end)?, &start))
}

pub(super) fn root_mean_square(ours: &[f64], exact: &[f64]) -> f64 {
    let squares = ours.iter().zip(exact).map(|(a, b)| (a - b).powi(2));
    (squares.sum::<f64>() / exact.len() as f64).sqrt()
}

/// The order that a scheduler's solver shows, the slope of the errors' logarithms, and the errors at 16 to
/// 128 steps. No order if all errors but one are of f32's rounding.
///
/// # Errors
/// What the run returns.
pub fn measured_order(
    scheduler: &dyn Scheduler,
    expected: &Expected,
) -> TestResult<(Option<f64>, Vec<f64>)> {
    let own = scheduler.sigmas(&expected.schedule, 4)?;
    let replanned = Replanned {
        scheduler,
        rises: own.first() < own.last(),
    };
    let errors = STEPS
        .iter()
        .map(|&num_steps| error_of(&replanned, expected, num_steps))
        .collect::<TestResult<Vec<f64>>>()?;
    if let Some(error) = errors.iter().find(|error| !error.is_finite()) {
        return Err(format!("error {error} over levels from 10 to 0.1").into());
    }
    let points: Vec<(f64, f64)> = STEPS
        .iter()
        .zip(&errors)
        .filter(|(_, error)| **error > ROUNDING)
        .map(|(&num_steps, error)| ((num_steps as f64).ln(), error.ln()))
        .collect();
    Ok(((points.len() > 1).then(|| -slope(&points)), errors))
}

/// The slope of the straight line that is nearest to points, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let products = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y));
    let squares = points.iter().map(|(x, _)| (x - mean_x).powi(2));
    products.sum::<f64>() / squares.sum::<f64>()
}

/// The solver's error falls with the number of steps as its order says. Levels are the battery's own: even
/// in the logarithm and ending above 0, so that no last Euler step spoils the order. A first one does: the
/// order of convergence of a multistep method that starts with it is 2 in the limit.
///
/// # Errors
/// The order, if it is more than 0.3 below the stated one.
pub fn order(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("order", || {
        let stated = match expected.order {
            Some(stated) if !expected.is_stochastic => stated,
            _ => return Ok("stochastic, or none stated".into()),
        };
        let (measured, errors) = measured_order(scheduler, expected)?;
        let errors: Vec<String> = errors.iter().map(|error| format!("{error:.1e}")).collect();
        let errors = errors.join(", ");
        match measured {
            None => Ok(format!("exact up to rounding: {errors}")),
            Some(measured) if measured >= stated - SLACK => {
                Ok(format!("{measured:.2} (errors {errors})"))
            }
            Some(measured) => {
                let least = stated - SLACK;
                Err(format!("{measured:.2} (errors {errors}), at least {least:.2} expected").into())
            }
        }
    })
}
