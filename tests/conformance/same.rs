//! The same result: again, in company, from any thread.

use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use diffusion_core::Scheduler;

use super::{Expected, Run, bits, named};
use crate::TestResult;

/// Enough for schedulers that do something else in longer runs.
pub(super) const STEPS: usize = 40;

/// The same seed gives the same bits, another seed others; other fresh noise gives others exactly if the
/// scheduler is stochastic.
///
/// # Errors
/// Which of these does not hold.
pub fn determinism(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("determinism", || {
        let run = Run::new(scheduler, expected, STEPS);
        let first = bits(&run.finish()?)?;
        differing(&first, &bits(&run.finish()?)?, "of the same seed again")?;
        if first == bits(&run.clone().seeds(&[1]).finish()?)? {
            return Err("two seeds give the same latents".into());
        }
        let mut other = run;
        other.fresh_seeds = vec![1];
        let is_same = first == bits(&other.finish()?)?;
        match (expected.is_stochastic, is_same) {
            (true, true) => Err("stochastic, but other fresh noise changes nothing".into()),
            (false, false) => {
                Err("deterministic, but other fresh noise changes the latents".into())
            }
            _ => Ok("same bits".into()),
        }
    })
}

/// A batch of three seeds is three runs of one, bit for bit.
///
/// # Errors
/// How many elements differ.
pub fn batch(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    const SEEDS: [u64; 3] = [3, 1, 2];
    named("batch", || {
        if expected.couples_batch {
            return Ok("pictures of a batch have an influence on each other".into());
        }
        let run = Run::new(scheduler, expected, STEPS);
        let together = run.clone().seeds(&SEEDS).finish()?;
        for (i, seed) in SEEDS.into_iter().enumerate() {
            let alone = bits(&run.clone().seeds(&[seed]).finish()?)?;
            let ours = bits(&together.narrow(0, i, 1)?)?;
            differing(&alone, &ours, "in a batch")?;
        }
        Ok("same bits".into())
    })
}

/// Four threads that share a scheduler, each with a seed of its own, come to what one thread alone does.
///
/// # Errors
/// How many elements differ.
pub fn threads(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult<String> {
    named("threads", || {
        let run = |seed| Run::new(scheduler, expected, STEPS).seeds(&[seed]);
        let alone = (0..4)
            .map(|seed| Ok(bits(&run(seed).finish()?)?))
            .collect::<TestResult<Vec<_>>>()?;
        let together = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|seed| scope.spawn(move || run(seed).finish_with(&mut |_| give_way())))
                .collect();
            let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
            joined.collect::<Vec<_>>()
        });
        for (latents, alone) in together.into_iter().zip(alone) {
            let latents = latents.map_err(|_| "a thread panicked")??;
            differing(&alone, &bits(&latents)?, "with other threads")?;
        }
        Ok("same bits".into())
    })
}

/// Lets the other threads take a step.
fn give_way() -> ControlFlow<()> {
    thread::sleep(Duration::from_micros(50));
    ControlFlow::Continue(())
}

/// Fails if any bits differ.
pub(super) fn differing(expected: &[u32], found: &[u32], what: &str) -> TestResult {
    if expected.len() != found.len() {
        return Err(format!("{} elements, {} {what}", expected.len(), found.len()).into());
    }
    match expected.iter().zip(found).filter(|(a, b)| a != b).count() {
        0 => Ok(()),
        count => Err(format!(
            "{count} of {} elements differ {what}, 0 allowed",
            found.len()
        )
        .into()),
    }
}
