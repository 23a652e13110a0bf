//! The one sampling loop.

use std::ops::{ControlFlow, Range};

use candle_core::Tensor;

use super::Scheduler;
use crate::denoise::{Denoiser, Estimate, NoiseSchedule};
use crate::error::{Error, Result};
use crate::rng::NoiseSource;

/// The highest noise level of a plan: latents of f32 and their squares stay finite.
const MAX_SIGMA: f64 = (1u64 << 41) as f64;

/// The most steps of a run.
const MAX_STEPS: usize = 1_000_000;

/// Levels nearer than this share of themselves are one: the slope between two would be of rounding errors.
const SAME_LEVEL: f64 = 1e-6;

/// Refuses numbers of steps that no run has.
pub(super) fn check_steps(num_steps: usize) -> Result<()> {
    match (1..=MAX_STEPS).contains(&num_steps) {
        true => Ok(()),
        false => {
            let expected = format!("1 to {MAX_STEPS}");
            Err(Error::argument("num_steps", expected, num_steps))
        }
    }
}

/// Called after each step; it may stop the run.
pub type Observer<'a> = dyn FnMut(&StepReport<'_>) -> ControlFlow<()> + 'a;

/// What a solver works with during one step.
pub struct Step<'a> {
    index: usize,
    sigmas: &'a [f64],
    requested_steps: usize,
    eta: Option<f64>,
    scheduler: &'a dyn Scheduler,
    schedule: &'a NoiseSchedule,
    denoiser: &'a mut dyn Denoiser,
    noise: &'a mut dyn NoiseSource,
    observe: &'a mut Observer<'a>,
    estimate: Option<Estimate>,
}

impl Step<'_> {
    /// The number of this step, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of steps of the run.
    pub fn num_steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// The number of steps that the run was asked for, where the scheduler plans another.
    pub fn requested_steps(&self) -> usize {
        self.requested_steps
    }

    /// The noise levels of the whole run, falling but where [`Scheduler::may_rise`] says so.
    pub fn sigmas(&self) -> &[f64] {
        self.sigmas
    }

    /// The noise level that the latents have.
    pub fn sigma(&self) -> f64 {
        self.sigmas[self.index]
    }

    /// The noise level that the latents shall have.
    pub fn sigma_next(&self) -> f64 {
        self.sigmas[self.index + 1]
    }

    /// The noise levels of the model's timesteps.
    pub fn schedule(&self) -> &NoiseSchedule {
        self.schedule
    }

    /// The share of fresh noise that the request asks for, from 0 (none) to 1, if it does.
    pub fn eta(&self) -> Option<f64> {
        self.eta
    }

    /// What the model is told at a noise level, possibly fractional.
    pub fn timestep(&self, sigma: f64) -> f64 {
        match self.sigmas.contains(&sigma) {
            true => self.scheduler.timestep(self.schedule, sigma),
            false => self.schedule.timestep(sigma),
        }
    }

    /// One evaluation of the model, at any noise level: an estimate of the clean latents.
    ///
    /// # Errors
    /// What the model returns.
    pub fn denoise(&mut self, latents: &Tensor, sigma: f64) -> Result<Tensor> {
        self.denoise_at(latents, sigma, self.timestep(sigma))
    }

    /// One evaluation of the model, which is told a timestep of the solver's choice.
    ///
    /// # Errors
    /// What the model returns.
    pub fn denoise_at(&mut self, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Tensor> {
        let estimate = self.denoiser.denoise(latents, sigma, timestep)?;
        Ok(self.estimate.insert(estimate).denoised.clone())
    }

    /// The last estimate under the negative prompt alone, where guidance is on.
    pub fn unconditional(&self) -> Option<&Tensor> {
        self.estimate.as_ref()?.unconditional.as_ref()
    }

    /// Fresh noise of unit variance for the way between two noise levels, seeded for each image.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device cannot hold it.
    pub fn noise(&mut self, from: f64, to: f64) -> Result<Tensor> {
        self.noise.noise(from, to)
    }

    /// Shows the observer where a solver is that makes many small steps of its own within this one.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer stops the run; solvers pass it on.
    pub fn report(&mut self, latents: &Tensor, sigma: f64) -> Result<()> {
        let num_steps = self.num_steps();
        let report = StepReport {
            index: self.index,
            num_steps,
            sigma,
            latents,
            denoised: self
                .estimate
                .as_ref()
                .map_or(latents, |estimate| &estimate.denoised),
        };
        if (self.observe)(&report).is_break() {
            return Err(Error::Cancelled {
                step: self.index + 1,
                num_steps,
            });
        }
        Ok(())
    }

    /// The weighted sum of tensors, in f32. Terms of weight 0 do not count, whatever their values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no terms, [`Error::Tensor`] if the shapes differ.
    pub fn combine(&self, terms: &[(f64, &Tensor)]) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (weight, tensor) in terms.iter().filter(|(weight, _)| *weight != 0.0) {
            let term = (*tensor * *weight)?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        match (sum, terms.first()) {
            (Some(sum), _) => Ok(sum),
            (None, Some((_, tensor))) => Ok(tensor.zeros_like()?),
            (None, None) => Err(Error::argument("combine", "at least one term", "none")),
        }
    }
}

/// What an observer sees after each step.
#[derive(Debug)]
#[non_exhaustive]
pub struct StepReport<'a> {
    /// The number of the step that is done, from 0.
    pub index: usize,
    /// The number of steps of the run.
    pub num_steps: usize,
    /// The noise level that the latents have now.
    pub sigma: f64,
    /// `(batch, channels, height, width)`: the latents, clean plus `sigma` times unit noise.
    pub latents: &'a Tensor,
    /// The last estimate of the clean latents, of the same shape; the latents themselves if the solver made
    /// none.
    pub denoised: &'a Tensor,
}

/// The first few of many levels.
pub(super) fn excerpt(sigmas: &[f64]) -> String {
    const SHOWN: usize = 8;
    match sigmas.len() {
        0..=SHOWN => format!("{sigmas:?}"),
        count => format!("{:?} and {} more", &sigmas[..SHOWN], count - SHOWN),
    }
}

/// One run: a scheduler, the model's noise schedule, and a number of steps.
#[derive(Debug, Clone, Copy)]
pub struct Sampler<'a> {
    /// Plans and solves.
    pub scheduler: &'a dyn Scheduler,
    /// The noise levels of the model's timesteps.
    pub schedule: &'a NoiseSchedule,
    /// Number of steps, at least 1.
    pub num_steps: usize,
    /// The share of fresh noise, from 0 to 1, for schedulers that have one; `None` for their own.
    pub eta: Option<f64>,
}

impl Sampler<'_> {
    /// The noise levels of the run. Those that are nearer than a millionth of themselves become one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no steps, or if the scheduler's plan is empty, starts at no noise,
    /// rises where the scheduler does not say so, or is not finite.
    pub fn sigmas(&self) -> Result<Vec<f64>> {
        check_steps(self.num_steps)?;
        let mut sigmas = self.scheduler.sigmas(self.schedule, self.num_steps)?;
        // Every level that a step starts from holds noise.
        let (last, starts) = sigmas.split_last().unwrap_or((&f64::NAN, &[]));
        let holds_noise = |sigma: &f64| *sigma > 0.0 && *sigma <= MAX_SIGMA;
        let in_range = starts.iter().all(holds_noise) && (0.0..=MAX_SIGMA).contains(last);
        let rises = sigmas.windows(2).any(|pair| pair[0] < pair[1]);
        if starts.is_empty() || !in_range || (rises && !self.scheduler.may_rise()) {
            let expected = match self.scheduler.may_rise() {
                true => "noise levels above 0, and then a last one, from the scheduler",
                false => {
                    "noise levels above 0 that never rise, and then a last one, from the scheduler"
                }
            };
            let found = excerpt(&sigmas);
            return Err(Error::argument("sigmas", expected, found));
        }
        for i in 1..sigmas.len() {
            if (sigmas[i] - sigmas[i - 1]).abs() <= SAME_LEVEL * sigmas[i - 1] {
                sigmas[i] = sigmas[i - 1];
            }
        }
        Ok(sigmas)
    }

    /// The lowest noise level above 0 and the highest of the run: the range of a Brownian path.
    ///
    /// # Errors
    /// As [`sigmas`](Self::sigmas).
    pub fn sigma_range(&self) -> Result<(f64, f64)> {
        let sigmas = self.sigmas()?;
        let above_zero = || sigmas.iter().copied().filter(|sigma| *sigma > 0.0);
        let lowest = above_zero().fold(f64::INFINITY, f64::min);
        Ok((lowest, above_zero().fold(lowest, f64::max)))
    }

    /// The number of the first step whose timestep lies below `1 - share` of the model's: where a model that
    /// does `share` of the denoising hands over to another. It is the number of steps if there is none.
    ///
    /// # Errors
    /// As [`sigmas`](Self::sigmas).
    pub fn step_at(&self, share: f64) -> Result<usize> {
        let total = self.schedule.num_train_timesteps() as f64;
        let cutoff = (total - share * total).round_ties_even();
        let sigmas = self.sigmas()?;
        let starts = &sigmas[..sigmas.len() - 1];
        let below = |sigma: &f64| self.scheduler.timestep(self.schedule, *sigma) < cutoff;
        Ok(starts.iter().position(below).unwrap_or(starts.len()))
    }

    /// Unit noise as latents of the run's first noise level.
    ///
    /// # Errors
    /// As [`sigmas`](Self::sigmas).
    pub fn initial_latents(&self, noise: &Tensor) -> Result<Tensor> {
        let sigma_max = self.sigmas()?[0];
        Ok((noise * self.scheduler.init_noise_sigma(self.schedule, sigma_max))?)
    }

    /// Walks unit noise to clean latents. After each step `observe` sees where it is and may stop it.
    ///
    /// # Shapes
    /// `noise`: `(batch, channels, height, width)`, f32, unit variance; returns the same shape.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `observe` breaks; what the scheduler, the solver or the denoiser returns.
    pub fn run(
        &self,
        denoiser: &mut dyn Denoiser,
        noise: &Tensor,
        fresh_noise: &mut dyn NoiseSource,
        observe: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let steps = 0..self.sigmas()?.len() - 1;
        let latents = self.initial_latents(noise)?;
        self.run_steps(steps, &latents, denoiser, fresh_noise, observe)
    }

    /// Walks latents through some of the steps: from the noise level `sigmas()[steps.start]` to
    /// `sigmas()[steps.end]`.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height, width)`, f32, clean latents plus the level at the start times
    /// unit noise; returns the same shape, with the level at the end.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no such steps; otherwise as [`run`](Self::run).
    pub fn run_steps(
        &self,
        steps: Range<usize>,
        latents: &Tensor,
        denoiser: &mut dyn Denoiser,
        fresh_noise: &mut dyn NoiseSource,
        observe: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let sigmas = self.sigmas()?;
        let last = sigmas.len() - 1;
        let Range { start, end } = steps;
        if start > end || end > last {
            let expected = format!("some of the {last} of the run");
            return Err(Error::argument(
                "steps",
                expected,
                format!("{start}..{end}"),
            ));
        }
        let mut latents = latents.clone();
        let mut solver = self.scheduler.solver();
        for index in start..end {
            denoiser.begin_step(index - start, end - start);
            let mut step = Step {
                index,
                sigmas: &sigmas,
                requested_steps: self.num_steps,
                eta: self.eta,
                scheduler: self.scheduler,
                schedule: self.schedule,
                denoiser,
                noise: fresh_noise,
                observe: &mut *observe,
                estimate: None,
            };
            latents = solver.step(&mut step, &latents)?;
            step.report(&latents, sigmas[index + 1])?;
        }
        match end == last {
            true => Ok((latents * self.scheduler.final_scale(self.schedule, sigmas[last]))?),
            false => Ok(latents),
        }
    }
}
