//! Solvers for rectified-flow models.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{check_range, renoise, straight};
use super::{Solver, Step};
use crate::denoise::{NoiseForm, NoiseSchedule, flow_to_sigma, shifted};
use crate::error::{Error, Result};

/// How a dynamic shift moves the shares of noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// By the exponential of `mu`.
    #[default]
    Exponential,
    /// By `mu`.
    Linear,
}

/// Euler's method for rectified flows: first order, one evaluation a step. Where noise has the share `s`, a
/// step is a straight line in `s`. diffusers' `FlowMatchEulerDiscreteScheduler`.
///
/// The shift of the shares is the noise schedule's (`shift`), unless it is dynamic.
///
/// Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024,
/// equations 22 and 23.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowMatchEuler {
    /// The noise levels; lists of levels are shares of noise here, before the shift, without the end.
    #[serde(flatten)]
    pub levels: Levels,
    /// Whether the shift depends on the picture's size, by `mu`.
    pub use_dynamic_shifting: bool,
    /// The dynamic shift; [`dynamic_shift`](Self::dynamic_shift) computes it.
    pub mu: Option<f64>,
    /// How the dynamic shift works.
    pub time_shift_type: TimeShift,
    /// The share of the last level above 0, to which the others are stretched.
    pub shift_terminal: Option<f64>,
    /// Whether each step jumps to clean latents and back with fresh noise.
    pub stochastic_sampling: bool,
}

impl Default for FlowMatchEuler {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            use_dynamic_shifting: false,
            mu: None,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
            stochastic_sampling: false,
        }
    }
}

impl Algorithm for FlowMatchEuler {
    const CLASS: &'static str = "FlowMatchEulerDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn unknown_options() -> Vec<(&'static str, Value)> {
        vec![("invert_sigmas", json!(false))]
    }

    fn check(&self) -> Result<()> {
        check_range("mu", self.mu.unwrap_or_default(), f64::MIN..=f64::MAX)?;
        let terminal = self.shift_terminal.unwrap_or_default();
        check_range("shift_terminal", terminal, 0.0..=0.999)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let shares = self.shares(noise, num_steps)?;
        Ok(shares.into_iter().map(flow_to_sigma).chain([0.0]).collect())
    }

    fn begin(&self) -> Box<dyn Solver> {
        let is_stochastic = self.stochastic_sampling;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let denoised = step.denoise(latents, sigma)?;
            match is_stochastic {
                true => renoise(step, denoised, (sigma, next), next),
                // The straight lines of `s` are those of the noise level.
                false => straight(step, latents, &denoised, sigma, next),
            }
        })
    }
}

impl FlowMatchEuler {
    /// `mu` for a picture of `image_seq_len` latent patches, on the straight line through 256 patches at
    /// 0.5 and 4096 at 1.15, as diffusers' pipelines compute it.
    pub fn dynamic_shift(image_seq_len: usize) -> f64 {
        let slope = (1.15 - 0.5) / (4096.0 - 256.0);
        0.5 + slope * (image_seq_len as f64 - 256.0)
    }

    fn shift(&self, noise: &NoiseSchedule, share: f64) -> Result<f64> {
        if !self.use_dynamic_shifting {
            return Ok(shifted(share, shift_of(noise)));
        }
        let mu = self.mu.ok_or_else(|| {
            let expected = "a number with use_dynamic_shifting, see FlowMatchEuler::dynamic_shift";
            Error::argument("mu", expected, "none")
        })?;
        let factor = match self.time_shift_type {
            TimeShift::Exponential => mu.exp(),
            TimeShift::Linear => mu,
        };
        Ok(shifted(share, factor))
    }

    fn shares(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let total = noise.num_train_timesteps() as f64;
        let listed = match &self.levels.sigma_schedule {
            SigmaSchedule::Sigmas(sigmas) => sigmas.clone(),
            SigmaSchedule::Timesteps(timesteps) => timesteps.iter().map(|t| t / total).collect(),
            _ => {
                let shift = if self.use_dynamic_shifting {
                    1.0
                } else {
                    shift_of(noise)
                };
                even_shares(shifted(total.recip(), shift), num_steps)
            }
        };
        let mut shares = listed
            .into_iter()
            .map(|share| self.shift(noise, share))
            .collect::<Result<Vec<f64>>>()?;
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, shares.last()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            shares
                .iter_mut()
                .for_each(|share| *share = 1.0 - (1.0 - *share) / scale);
        }
        let ends = (shares.last().copied(), shares.first().copied());
        let (Some(low), Some(high)) = ends else {
            return Ok(shares);
        };
        let curve = &self.levels.sigma_schedule;
        let curve = self.levels.curve_between(curve, (low, high), num_steps);
        Ok(curve.unwrap_or(shares))
    }
}

/// Heun's method for rectified flows: second order, two evaluations a step but for the last, deterministic.
/// diffusers' `FlowMatchHeunDiscreteScheduler`.
///
/// Source: as [`FlowMatchEuler`], with Karras et al., 2022, algorithm 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowMatchHeun {
    /// The noise levels, which are always the model's own.
    #[serde(flatten)]
    pub levels: Levels,
}

impl Default for FlowMatchHeun {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
        }
    }
}

impl Algorithm for FlowMatchHeun {
    const CLASS: &'static str = "FlowMatchHeunDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let shift = shift_of(noise);
        let lowest = shifted((noise.num_train_timesteps() as f64).recip(), shift);
        let shares = even_shares(lowest, num_steps).into_iter();
        let sigmas = shares.map(|share| flow_to_sigma(shifted(share, shift)));
        Ok(sigmas.chain([0.0]).collect())
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(flow_heun_step)
    }
}

with_levels!(FlowMatchEuler, FlowMatchHeun);

/// The mean of the slopes in the share of noise, `(x - denoised) / s` for the mixture `x`.
fn flow_heun_step(step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
    let (sigma, next) = (step.sigma(), step.sigma_next());
    let denoised = step.denoise(latents, sigma)?;
    let ahead = straight(step, latents, &denoised, sigma, next)?;
    if next == 0.0 {
        return Ok(ahead);
    }
    let denoised_ahead = step.denoise(&ahead, next)?;
    // Latents are the mixture times 1 + sigma.
    let (from, to) = (sigma / (1.0 + sigma), next / (1.0 + next));
    let half = 0.5 * (to - from) * (1.0 + next);
    step.combine(&[
        (1.0, &ahead),
        (-half / (from * (1.0 + sigma)), latents),
        (half / from, &denoised),
        (half / (to * (1.0 + next)), &ahead),
        (-half / to, &denoised_ahead),
    ])
}

fn shift_of(noise: &NoiseSchedule) -> f64 {
    match noise.form() {
        NoiseForm::Flow { shift } => shift,
        NoiseForm::Variances | NoiseForm::Edm { .. } => 1.0,
    }
}

/// Shares of noise from 1 to `lowest`, evenly; a single one is 1.
fn even_shares(lowest: f64, num_steps: usize) -> Vec<f64> {
    let gaps = (num_steps.max(2) - 1) as f64;
    (0..num_steps)
        .map(|i| 1.0 + (lowest - 1.0) * i as f64 / gaps)
        .collect()
}
