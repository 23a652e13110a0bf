//! How much noise each timestep means to a model.

use std::borrow::Cow;
use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use crate::config::parse;
use crate::error::{Error, Result};

/// The noise level at which diffusers' sigma-space schedulers put a zero signal-to-noise ratio: they set
/// the last cumulative alpha to 2^-24.
pub const ZERO_SNR_SIGMA: f64 = 4_095.999_877_929_685;

/// A noise level so high that f32 latents there are pure noise, and low enough for their squares to be
/// finite. It stands for the infinite sigma of a zero signal-to-noise ratio.
const INFINITE_SIGMA: f64 = (1u64 << 40) as f64;

/// What the model was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise. Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020.
    #[default]
    Epsilon,
    /// The velocity `alpha * noise - sigma * clean`. Salimans and Ho, "Progressive Distillation", 2022.
    VPrediction,
    /// The clean latents.
    Sample,
}

/// How the variances grow over the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly. Ho, Jain and Abbeel, 2020.
    #[default]
    Linear,
    /// Evenly in their square roots. Rombach et al., 2021.
    ScaledLinear,
    /// So that the signal falls as a squared cosine. Nichol and Dhariwal, "Improved DDPM", 2021,
    /// equation 17.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosCapV2,
}

/// The part of a `scheduler_config.json` that describes the model and not the sampler.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct NoiseScheduleConfig {
    /// Number of timesteps that the model was trained on.
    pub num_train_timesteps: usize,
    /// The first variance.
    pub beta_start: f64,
    /// The last variance.
    pub beta_end: f64,
    /// How the variances grow in between.
    pub beta_schedule: BetaSchedule,
    /// The variances themselves, in place of the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Whether the variances are rescaled so that the last timestep is pure noise. Lin et al., "Common
    /// Diffusion Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1.
    pub rescale_betas_zero_snr: bool,
}

impl Default for NoiseScheduleConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            rescale_betas_zero_snr: false,
        }
    }
}

impl NoiseScheduleConfig {
    /// The names of all fields, by which a `scheduler_config.json` shows that it describes the model.
    pub(crate) const FIELDS: [&str; 7] = [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
    ];

    /// Stable Diffusion 1.x: 1000 timesteps, `scaled_linear` from 0.00085 to 0.012, epsilon.
    pub fn stable_diffusion() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..Self::default()
        }
    }

    fn betas(&self) -> Result<Vec<f64>> {
        let n = self.num_train_timesteps;
        if !(2..=1_000_000).contains(&n) {
            return Err(Error::argument("num_train_timesteps", "2 to 1000000", n));
        }
        let (start, end) = (self.beta_start, self.beta_end);
        let lerp = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / (n - 1) as f64;
        let betas: Vec<f64> = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => betas.clone(),
            (None, BetaSchedule::Linear) => (0..n).map(|i| lerp(start, end, i)).collect(),
            (None, BetaSchedule::ScaledLinear) => (0..n)
                .map(|i| lerp(start.sqrt(), end.sqrt(), i).powi(2))
                .collect(),
            (None, BetaSchedule::SquaredCosCapV2) => {
                let signal = |t: f64| {
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                        .cos()
                        .powi(2)
                };
                (0..n)
                    .map(|i| {
                        let (from, to) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
                        (1.0 - signal(to) / signal(from)).min(0.999)
                    })
                    .collect()
            }
        };
        match betas.iter().find(|&&beta| !(beta > 0.0 && beta < 1.0)) {
            Some(beta) => Err(Error::argument("betas", "values between 0 and 1", beta)),
            None => Ok(betas),
        }
    }
}

/// The noise levels of a model's timesteps, in f64.
///
/// `sigma` is the noise's standard deviation against a signal of unit scale: `sqrt((1 - a) / a)` for the
/// cumulative alpha `a`. Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
/// Models", 2022, table 1.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    sigmas: Vec<f64>,
    prediction_type: PredictionType,
    zero_terminal_snr: bool,
}

impl NoiseSchedule {
    /// Computes the schedule.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for fewer than two timesteps or variances not between 0 and 1.
    pub fn new(config: &NoiseScheduleConfig) -> Result<Self> {
        let mut product = 1.0;
        let mut alphas_cumprod: Vec<f64> = config
            .betas()?
            .into_iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if alphas_cumprod.len() < 2 {
            let found = alphas_cumprod.len();
            return Err(Error::argument(
                "trained_betas",
                "at least two values",
                found,
            ));
        }
        if config.rescale_betas_zero_snr {
            rescale_zero_terminal_snr(&mut alphas_cumprod);
        }
        let highest = match (config.rescale_betas_zero_snr, config.prediction_type) {
            // Pure noise says nothing about the clean latents to a model that predicts noise.
            (true, PredictionType::Epsilon) => ZERO_SNR_SIGMA,
            _ => INFINITE_SIGMA,
        };
        let sigmas = alphas_cumprod
            .iter()
            .map(|a| ((1.0 - a) / a).sqrt().min(highest))
            .collect();
        Ok(Self {
            alphas_cumprod,
            sigmas,
            prediction_type: config.prediction_type,
            zero_terminal_snr: config.rescale_betas_zero_snr,
        })
    }

    /// Computes the schedule that a `scheduler_config.json` describes.
    ///
    /// # Errors
    /// [`Error::Format`] for fields of the wrong type or unknown names; otherwise as [`new`](Self::new).
    pub fn from_json(config: &Value) -> Result<Self> {
        Self::new(&parse(Path::new("scheduler config"), config)?)
    }

    /// The same schedule with diffusers' stand-in for a zero signal-to-noise ratio, [`ZERO_SNR_SIGMA`];
    /// schedules that were not rescaled to one stay as they are.
    pub fn with_finite_terminal_snr(&self) -> Cow<'_, Self> {
        if !self.zero_terminal_snr {
            return Cow::Borrowed(self);
        }
        let sigmas = self.sigmas.iter().map(|s| s.min(ZERO_SNR_SIGMA)).collect();
        Cow::Owned(Self {
            sigmas,
            ..self.clone()
        })
    }

    /// Number of timesteps that the model was trained on.
    pub fn num_train_timesteps(&self) -> usize {
        self.sigmas.len()
    }

    /// The share of signal left in the variance at each timestep, from almost 1 down.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// The noise level of each timestep, from the lowest up.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// What the model predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// The lowest noise level.
    pub fn sigma_min(&self) -> f64 {
        self.sigmas[0]
    }

    /// The highest noise level.
    pub fn sigma_max(&self) -> f64 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// The noise level of a timestep; between two, the straight line. Outside the range, the nearest end.
    pub fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let timestep = timestep.clamp(0.0, last as f64);
        let low = (timestep as usize).min(last - 1);
        let weight = timestep - low as f64;
        if weight == 0.0 {
            return self.sigmas[low];
        }
        self.sigmas[low] * (1.0 - weight) + self.sigmas[low + 1] * weight
    }

    /// The timestep of a noise level, fractional, by the straight line between the two nearest logarithms.
    /// Outside the range, the nearest end.
    pub fn timestep(&self, sigma: f64) -> f64 {
        self.invert(sigma, f64::ln)
    }

    /// The inverse of [`sigma`](Self::sigma).
    pub fn timestep_linear(&self, sigma: f64) -> f64 {
        self.invert(sigma, |sigma| sigma)
    }

    fn invert(&self, sigma: f64, scale: impl Fn(f64) -> f64) -> f64 {
        let above = self.sigmas.partition_point(|&s| s <= sigma);
        let low = above.saturating_sub(1).min(self.sigmas.len() - 2);
        let (from, to) = (scale(self.sigmas[low]), scale(self.sigmas[low + 1]));
        let weight = (scale(sigma.max(1e-10)) - from) / (to - from);
        low as f64 + weight.clamp(0.0, 1.0)
    }

    /// The factor that brings latents at `sigma` to the unit variance that models take.
    pub fn input_scale(&self, sigma: f64) -> f64 {
        (sigma * sigma + 1.0).sqrt().recip()
    }

    /// The clean latents that a model's output means.
    ///
    /// # Shapes
    /// `latents` and `output`: the same.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shapes differ.
    pub fn denoised(&self, latents: &Tensor, output: &Tensor, sigma: f64) -> Result<Tensor> {
        let scale = self.input_scale(sigma);
        Ok(match self.prediction_type {
            PredictionType::Epsilon => (latents - (output * sigma)?)?,
            PredictionType::VPrediction => {
                ((latents * (scale * scale))? - (output * (sigma * scale))?)?
            }
            PredictionType::Sample => output.clone(),
        })
    }
}

/// Shifts and scales the square roots so that the last is 0 and the first stays.
fn rescale_zero_terminal_snr(alphas_cumprod: &mut [f64]) {
    let first = alphas_cumprod[0].sqrt();
    let last = alphas_cumprod[alphas_cumprod.len() - 1].sqrt();
    for alpha in alphas_cumprod {
        *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigma_and_timestep_are_inverse() -> Result<()> {
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction] {
            for rescale_betas_zero_snr in [false, true] {
                let config = NoiseScheduleConfig {
                    prediction_type,
                    rescale_betas_zero_snr,
                    ..NoiseScheduleConfig::stable_diffusion()
                };
                let noise = NoiseSchedule::new(&config)?;
                for t in [0.0, 0.25, 1.0, 500.5, 997.75, 998.0, 999.0] {
                    assert!(
                        (noise.timestep_linear(noise.sigma(t)) - t).abs() < 1e-9,
                        "{t}"
                    );
                }
                for t in [0.0, 1.0, 500.0, 998.0, 999.0] {
                    assert!((noise.timestep(noise.sigma(t)) - t).abs() < 1e-9, "{t}");
                }
                assert_eq!(noise.timestep(0.0), 0.0);
                assert_eq!(noise.timestep(f64::MAX), 999.0);
            }
        }
        Ok(())
    }

    #[test]
    fn bad_schedules_are_errors() {
        let base = NoiseScheduleConfig::default();
        for config in [
            NoiseScheduleConfig {
                num_train_timesteps: 0,
                ..base.clone()
            },
            NoiseScheduleConfig {
                num_train_timesteps: usize::MAX,
                ..base.clone()
            },
            NoiseScheduleConfig {
                beta_end: f64::NAN,
                ..base.clone()
            },
            NoiseScheduleConfig {
                beta_end: 1.0,
                ..base.clone()
            },
            NoiseScheduleConfig {
                trained_betas: Some(vec![]),
                ..base
            },
        ] {
            assert!(NoiseSchedule::new(&config).is_err(), "{config:?}");
        }
    }
}
