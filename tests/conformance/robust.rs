//! Runs that are stopped, and runs of any length.

use std::ops::ControlFlow;

use diffusion_core::{Error, ErrorKind, Scheduler};

use super::same::{STEPS, differing};
use super::{Expected, Run, bits, named};
use crate::TestResult;

/// An observer that breaks ends the run at once with [`Error::Cancelled`], and the scheduler works after it
/// as before.
///
/// # Errors
/// What happened in its place.
pub fn cancel(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("cancel", || {
        let run = Run::new(scheduler, expected, STEPS);
        let mut reports = 0;
        let before = run.finish_with(&mut |_| {
            reports += 1;
            ControlFlow::Continue(())
        })?;
        if reports == 0 {
            return Err("0 reports to the observer, at least 1 expected".into());
        }
        for stop_at in [1, reports / 2 + 1, reports] {
            let mut seen = 0;
            let result = run.finish_with(&mut |_| {
                seen += 1;
                match seen == stop_at {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
            let found = result.map(|_| "latents").map_err(|error| error.kind());
            if found != Err(ErrorKind::Cancelled) || seen != stop_at {
                return Err(format!(
                    "{found:?} after {seen} reports, Cancelled after {stop_at} expected"
                )
                .into());
            }
        }
        differing(
            &bits(&before)?,
            &bits(&run.finish()?)?,
            "after a cancelled run",
        )?;
        Ok(format!("{reports} reports"))
    })
}

/// Runs of 1, 2, 3 and 1000 steps give finite latents of the right shape; more steps than can be planned
/// are an error of the plan that names `num_steps`.
///
/// # Errors
/// The number of steps, and what came of it.
pub fn step_counts(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("step_counts", || {
        let mut outcomes = Vec::new();
        for num_steps in [1, 2, 3, 1000] {
            let mut run = Run::new(scheduler, expected, num_steps);
            run.num_steps = num_steps;
            match run.sampler().sigmas() {
                Ok(_) => {}
                Err(Error::InvalidArgument { name, .. })
                    if name == "num_steps" && num_steps > expected.max_steps =>
                {
                    outcomes.push(format!("{num_steps} refused"));
                    continue;
                }
                Err(error) => return Err(format!("{num_steps} steps: {error}").into()),
            }
            let named = |error: Error| format!("{num_steps} steps: {error}");
            let (start, _) = run.start()?;
            let end = run.finish().map_err(named)?;
            if end.dims() != start.dims() {
                let (found, shape) = (end.dims(), start.dims());
                return Err(format!("{num_steps} steps: {found:?}, {shape:?} expected").into());
            }
            let values = end.flatten_all()?.to_vec1::<f32>()?;
            let largest = values
                .iter()
                .fold(0.0f32, |max, value| match value.is_finite() {
                    true => max.max(value.abs()),
                    false => f32::INFINITY,
                });
            if largest.is_infinite() {
                return Err(format!("{num_steps} steps: latents that are not finite").into());
            }
            outcomes.push(format!("{num_steps} to at most {largest:.1}"));
        }
        Ok(outcomes.join(", "))
    })
}
