//! Solvers for rectified-flow models.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, only, with_levels};
use super::axis::Axis;
use super::heun::heun_step;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::limits::ClipSample;
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
    /// `mu` of a picture of as many latent patches as the next field says.
    pub base_shift: f64,
    /// `mu` of a larger picture.
    pub max_shift: f64,
    /// The latent patches of a small picture.
    pub base_image_seq_len: usize,
    /// The latent patches of that larger picture.
    pub max_image_seq_len: usize,
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
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
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

    fn unknown_options() -> Options {
        vec![("invert_sigmas", only([false]))]
    }

    fn check(&self) -> Result<()> {
        if let Some(mu) = self.mu {
            // The factor of the shift is above 0 and finite.
            let range = match self.time_shift_type {
                TimeShift::Exponential => -50.0..=50.0,
                TimeShift::Linear => 1e-20..=1e20,
            };
            check_range("mu", mu, range)?;
        }
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
    /// `mu` for a picture of `image_seq_len` latent patches, on the straight line through the pictures of
    /// [`base_shift`](Self::base_shift) and [`max_shift`](Self::max_shift), as diffusers' pipelines compute it.
    pub fn dynamic_shift(&self, image_seq_len: usize) -> f64 {
        let length = |patches: usize| patches as f64 - self.base_image_seq_len as f64;
        let slope = (self.max_shift - self.base_shift) / length(self.max_image_seq_len);
        self.base_shift + slope * length(image_seq_len)
    }

    fn shift(&self, noise: &NoiseSchedule) -> Result<f64> {
        if !self.use_dynamic_shifting {
            return Ok(shift_of(noise));
        }
        let mu = self.mu.ok_or_else(|| {
            let expected = "a number with use_dynamic_shifting, see FlowMatchEuler::dynamic_shift";
            Error::argument("mu", expected, "none")
        })?;
        Ok(match self.time_shift_type {
            TimeShift::Exponential => mu.exp(),
            TimeShift::Linear => mu,
        })
    }

    fn shares(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        use SigmaSchedule as S;
        let total = noise.num_train_timesteps() as f64;
        let own_shift = match self.use_dynamic_shifting {
            true => 1.0,
            false => shift_of(noise),
        };
        let shift = self.shift(noise)?;
        let (mut shares, missing_shift) = match &self.levels.sigma_schedule {
            S::Sigmas(sigmas) => (sigmas.clone(), shift),
            S::Timesteps(timesteps) => (timesteps.iter().map(|t| t / total).collect(), shift),
            S::Native | S::Flow | S::Karras | S::Exponential | S::Beta => {
                let lowest = shifted(total.recip(), own_shift);
                (even_shares(lowest, num_steps), shift)
            }
            _ => {
                // Of the model's own levels, in which its shift is.
                let mut sigmas = self.levels.plan(Self::GRID, noise, num_steps)?;
                sigmas.pop();
                let share = |sigma: f64| sigma / (1.0 + sigma);
                let shares = sigmas.into_iter().map(share).collect();
                (shares, shift / shift_of(noise))
            }
        };
        for share in &mut shares {
            *share = shifted(*share, missing_shift);
        }
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, shares.last()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            // A single level is pure noise, and there is nothing to stretch.
            if scale > 0.0 {
                shares
                    .iter_mut()
                    .for_each(|share| *share = 1.0 - (1.0 - *share) / scale);
            }
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
    /// The noise levels, as [`FlowMatchEuler`]'s.
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
        let levels = self.levels.clone();
        let euler = FlowMatchEuler {
            levels,
            ..FlowMatchEuler::default()
        };
        euler.plan(noise, num_steps)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(|step: &mut Step<'_>, latents: &Tensor| {
            heun_step(step, latents, &ClipSample::OFF, step.sigma(), Axis::SHARES)
        })
    }
}

with_levels!(FlowMatchEuler, FlowMatchHeun);

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
