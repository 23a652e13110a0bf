//! A battery for schedulers, this project's and those of others: whether they go where the mathematics
//! says, and whether a value of theirs can be shared, repeated and stopped.
//!
//! The model is a [`Gaussian`], for which the exact answers are known. [`check`] runs everything:
//! ```ignore
//! let expected = Expected::new(Some(2.0))?;
//! conformance::check(&MyScheduler::default(), &expected)?;
//! ```

mod accuracy;
mod gaussian;
mod order;
mod robust;
mod run;
mod same;

use std::fmt;

use diffusion_core::denoise::NoiseScheduleConfig;
use diffusion_core::{NoiseSchedule, Scheduler};

pub use accuracy::{agreement, variance};
pub use gaussian::{CHANNELS, Gaussian};
pub use order::{measured_order, order};
pub use robust::{cancel, step_counts};
pub use run::{Run, bits, initial_noise};
pub use same::{batch, determinism, threads};

use crate::TestResult;

/// What a scheduler says of itself; the battery holds it to that.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The order of convergence of a deterministic solver, over smooth plans of any levels. `None` where
    /// there is none, or where a solver works on levels of its own only.
    pub order: Option<f64>,
    /// Whether fresh noise changes the result.
    pub is_stochastic: bool,
    /// Whether the pictures of a batch have an influence on each other.
    pub couples_batch: bool,
    /// Whether the scheduler is for distilled models, which tell where the exact solution ends in place of
    /// the mean of the clean latents.
    pub is_distilled: bool,
    /// The most steps that the scheduler can plan. More are an error that names `num_steps`, or a run.
    pub max_steps: usize,
    /// What the variance comes to in 250 steps, in units of the right one, if the scheduler is stochastic:
    /// 1, unless the exact recursion of its updates over the battery's model gives another.
    pub variance: f64,
    /// The noise levels of the model's timesteps.
    pub schedule: NoiseSchedule,
}

impl Expected {
    /// A deterministic scheduler of an order, on Stable Diffusion's noise schedule.
    ///
    /// # Errors
    /// What [`NoiseSchedule::new`] returns; none is known.
    pub fn new(order: Option<f64>) -> TestResult<Self> {
        Ok(Self {
            order,
            is_stochastic: false,
            couples_batch: false,
            is_distilled: false,
            max_steps: 1000,
            variance: 1.0,
            schedule: NoiseSchedule::new(&NoiseScheduleConfig::stable_diffusion())?,
        })
    }
}

/// One part of the battery: says what it measured.
///
/// # Errors
/// The name of the check, the figure that it came to and the bound.
pub type Check = fn(&dyn Scheduler, &Expected) -> TestResult<String>;

/// All parts.
pub const CHECKS: [(&str, Check); 8] = [
    ("order", order),
    ("agreement", agreement),
    ("variance", variance),
    ("determinism", determinism),
    ("batch", batch),
    ("threads", threads),
    ("cancel", cancel),
    ("step_counts", step_counts),
];

/// What each check said of one scheduler.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name of the check, and what it measured or why it failed.
    pub outcomes: Vec<(&'static str, Result<String, String>)>,
}

impl Report {
    /// Runs the whole battery.
    pub fn of(scheduler: &dyn Scheduler, expected: &Expected) -> Self {
        let outcome = |check: Check| check(scheduler, expected).map_err(|e| e.to_string());
        let outcomes = CHECKS.map(|(name, check)| (name, outcome(check)));
        Self {
            outcomes: outcomes.into(),
        }
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> Vec<&'static str> {
        let failed = self.outcomes.iter().filter(|(_, outcome)| outcome.is_err());
        failed.map(|(name, _)| *name).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.outcomes {
            match outcome {
                Ok(measured) => writeln!(f, "ok      {name}: {measured}")?,
                Err(reason) => writeln!(f, "FAILED  {reason}")?,
            }
        }
        Ok(())
    }
}

/// Holds a scheduler to the whole battery.
///
/// # Errors
/// The [`Report`], if any check failed.
pub fn check(scheduler: &dyn Scheduler, expected: &Expected) -> TestResult {
    let report = Report::of(scheduler, expected);
    match report.failed().is_empty() {
        true => Ok(()),
        false => Err(format!("{scheduler:?}\n{report}").into()),
    }
}

/// Puts the name of a check before its error.
fn named<T>(name: &str, check: impl FnOnce() -> TestResult<T>) -> TestResult<T> {
    check().map_err(|error| format!("{name}: {error}").into())
}
