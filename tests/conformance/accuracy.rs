//! Whether whole runs end where they should.

use diffusion_core::{Scheduler, Tensor};

use super::gaussian::standardised;
use super::order::root_mean_square;
use super::{Expected, Run, named};
use crate::TestResult;

/// Numbers of steps, few to many.
const STEPS: [usize; 3] = [10, 40, 160];
/// The relative error that the most of them may leave; fewer may leave more, as at first order. Also what 250
/// steps may leave of the mean, in units of the standard deviation, and of the variance, in units of itself.
const ERROR: f64 = 0.03;

/// Steps, height and width of the run whose distribution is looked at.
const MANY_STEPS: usize = 250;
const LARGE: usize = 64;
/// How many standard errors of the sample a mean or variance may be off.
const STANDARD_ERRORS: f64 = 4.0;

/// Final latents as deviations from the means at the last noise level.
fn standardised_end(run: &Run<'_>, latents: &Tensor) -> TestResult<Vec<f64>> {
    let sigmas = run.sampler().sigmas()?;
    let last = sigmas.last().copied().ok_or("no levels")?;
    let scale = run.scheduler.final_scale(&run.expected.schedule, last);
    Ok(standardised(&(latents / scale)?, last)?)
}

/// The scheduler's own levels lead to the exact solution of the probability flow: 160 steps are within 3%
/// of it, and no further than fewer. Where a scheduler cannot plan that many, the bound is as much higher.
///
/// # Errors
/// The relative errors, root mean squares, if they are above that bound or do not fall.
pub fn agreement(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("agreement", || {
        if expected.is_stochastic {
            return Ok("stochastic: see variance".into());
        }
        let steps = STEPS.map(|num_steps| num_steps.min(expected.max_steps));
        let mut errors = Vec::new();
        for num_steps in steps {
            let run = Run::new(scheduler, expected, num_steps);
            let (start, sigma) = run.start()?;
            let end = standardised_end(&run, &run.finish()?)?;
            errors.push(root_mean_square(&end, &standardised(&start, sigma)?));
        }
        let [few, some, many] = errors[..] else {
            return Err("no errors".into());
        };
        // One of them may be close by chance.
        let fewer = few.max(some);
        let bound = ERROR * STEPS[2] as f64 / steps[2] as f64;
        let listed = format!("errors {errors:.5?} at {steps:?} steps");
        // A tenth of the bound is little enough not to fall any more.
        match many <= bound && (many <= fewer || many <= 0.1 * bound) {
            true => Ok(listed),
            false => Err(format!("{listed}; at most {bound:.3} and falling expected").into()),
        }
    })
}

/// A stochastic run with many steps ends in the distribution of the clean latents.
///
/// # Errors
/// Mean and variance, in units of the right ones, if they are further from 0 and [`Expected::variance`] than
/// 0.03 and four standard errors of the sample.
pub fn variance(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("variance", || {
        if !expected.is_stochastic {
            return Ok("deterministic: see agreement".into());
        }
        let mut run = Run::new(scheduler, expected, MANY_STEPS);
        run.side = LARGE;
        let end = standardised_end(&run, &run.finish()?)?;
        let count = end.len() as f64;
        let mean = end.iter().sum::<f64>() / count;
        let variance = end.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let mean_bound = STANDARD_ERRORS / count.sqrt() + ERROR;
        let variance_bound = STANDARD_ERRORS * (2.0 / count).sqrt() + ERROR;
        let wanted = expected.variance;
        let measured = format!("mean {mean:.4}, variance {variance:.4}");
        match mean.abs() <= mean_bound && (variance - wanted).abs() <= variance_bound {
            true => Ok(measured),
            false => Err(format!(
                "{measured}; 0 within {mean_bound:.3} and {wanted} within {variance_bound:.3} expected"
            )
            .into()),
        }
    })
}
