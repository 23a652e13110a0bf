//! How much noise each timestep means to a model.

use std::borrow::Cow;

use candle_core::Tensor;
use serde_json::Value;

use super::{NoiseForm, NoiseScheduleConfig, PredictionType};
use crate::error::{Error, Result};

/// The noise level at which diffusers' sigma-space schedulers put a zero signal-to-noise ratio: they set
/// the last cumulative alpha to 2^-24.
pub const ZERO_SNR_SIGMA: f64 = 4_095.999_877_929_685;

/// A noise level so high that f32 latents there are pure noise, and low enough for their squares to be
/// finite. It stands for the infinite sigma of a zero signal-to-noise ratio.
const INFINITE_SIGMA: f64 = (1u64 << 40) as f64;

/// The noise levels of a model's timesteps, in f64.
///
/// `sigma` is the noise's standard deviation against a signal of unit scale: `sqrt((1 - a) / a)` for the
/// cumulative alpha `a`. Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
/// Models", 2022, table 1.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    sigmas: Vec<f64>,
    prediction_type: PredictionType,
    form: NoiseForm,
    zero_terminal_snr: bool,
}

impl NoiseSchedule {
    /// Computes the schedule.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for fewer than two timesteps, variances not between 0 and 1, a form whose
    /// numbers are out of range, or levels that do not rise.
    pub fn new(config: &NoiseScheduleConfig) -> Result<Self> {
        let sigmas = match config.form {
            NoiseForm::Variances => sigmas_of_variances(config)?,
            NoiseForm::Flow { shift } => {
                positive("shift", shift)?;
                let n = config.checked_timesteps()?;
                (1..=n)
                    .map(|i| flow_to_sigma(shifted(i as f64 / n as f64, shift)))
                    .collect::<Vec<_>>()
            }
            NoiseForm::Edm {
                sigma_min,
                sigma_max,
                sigma_data,
            } => {
                positive("sigma_data", sigma_data)?;
                if !(sigma_min > 0.0 && sigma_max > sigma_min && sigma_max.is_finite()) {
                    let expected = "0 < sigma_min < sigma_max";
                    let found = format!("{sigma_min} and {sigma_max}");
                    return Err(Error::argument("sigma_min", expected, found));
                }
                let n = config.checked_timesteps()?;
                let (low, high) = (sigma_min.powf(1.0 / 7.0), sigma_max.powf(1.0 / 7.0));
                let share = |i: usize| i as f64 / (n - 1) as f64;
                (0..n)
                    .map(|i| (low + (high - low) * share(i)).powi(7))
                    .collect()
            }
        };
        let rises = sigmas.is_sorted_by(|low, high| low < high);
        if !(rises && sigmas[0] > 0.0 && sigmas[sigmas.len() - 1].is_finite()) {
            let expected = "timesteps whose noise levels rise from above 0";
            let found = format!("{:?} of {} timesteps", config.form, sigmas.len());
            return Err(Error::argument("noise schedule", expected, found));
        }
        Ok(Self {
            sigmas,
            prediction_type: config.prediction_type,
            form: config.form,
            zero_terminal_snr: config.rescale_betas_zero_snr,
        })
    }

    /// Computes the schedule that a `scheduler_config.json` describes.
    ///
    /// # Errors
    /// [`Error::Format`] for fields of the wrong type or unknown names; otherwise as [`new`](Self::new).
    pub fn from_json(config: &Value) -> Result<Self> {
        Self::new(&NoiseScheduleConfig::from_json(config)?)
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

    /// How noise and clean latents are mixed.
    pub fn form(&self) -> NoiseForm {
        self.form
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

    /// Whether the highest noise level leaves nothing of the clean latents, or next to nothing.
    pub fn starts_at_pure_noise(&self) -> bool {
        self.zero_terminal_snr || matches!(self.form, NoiseForm::Flow { .. })
    }

    /// The noise level of a timestep; between two, the straight line. Outside the range, the nearest end.
    pub fn sigma(&self, timestep: f64) -> f64 {
        match self.form {
            NoiseForm::Variances => self.interpolate(timestep, |sigma| sigma, |sigma| sigma),
            NoiseForm::Flow { .. } => {
                flow_to_sigma((timestep / self.sigmas.len() as f64).clamp(0.0, 1.0))
            }
            NoiseForm::Edm { .. } => (4.0 * timestep).exp(),
        }
    }

    /// The noise level at a place in [`sigmas`](Self::sigmas); between two, by the straight line between
    /// their logarithms. Outside the range, the nearest end.
    pub fn sigma_log(&self, index: f64) -> f64 {
        self.interpolate(index, f64::ln, f64::exp)
    }

    fn interpolate(&self, index: f64, scale: fn(f64) -> f64, unscale: fn(f64) -> f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let index = index.clamp(0.0, last as f64);
        let low = (index as usize).min(last - 1);
        let weight = index - low as f64;
        if weight == 0.0 {
            return self.sigmas[low];
        }
        unscale(scale(self.sigmas[low]) * (1.0 - weight) + scale(self.sigmas[low + 1]) * weight)
    }

    /// The timestep of a noise level, fractional, by the straight line between the two nearest logarithms.
    /// Outside the range, the nearest end.
    pub fn timestep(&self, sigma: f64) -> f64 {
        match self.form {
            NoiseForm::Variances => self.index(sigma),
            NoiseForm::Flow { .. } => self.sigmas.len() as f64 * sigma / (1.0 + sigma),
            NoiseForm::Edm { .. } => 0.25 * sigma.ln(),
        }
    }

    /// The place of a noise level in [`sigmas`](Self::sigmas): the inverse of [`sigma_log`](Self::sigma_log).
    pub fn index(&self, sigma: f64) -> f64 {
        self.invert(sigma, f64::ln)
    }

    /// The inverse of [`sigma`](Self::sigma).
    pub fn timestep_linear(&self, sigma: f64) -> f64 {
        match self.form {
            NoiseForm::Variances => self.invert(sigma, |sigma| sigma),
            _ => self.timestep(sigma),
        }
    }

    fn invert(&self, sigma: f64, scale: impl Fn(f64) -> f64) -> f64 {
        let above = self.sigmas.partition_point(|&s| s <= sigma);
        let low = above.saturating_sub(1).min(self.sigmas.len() - 2);
        let (from, to) = (scale(self.sigmas[low]), scale(self.sigmas[low + 1]));
        if sigma >= self.sigmas[low + 1] {
            return (low + 1) as f64;
        }
        let weight = (scale(sigma.max(1e-10)) - from) / (to - from);
        low as f64 + weight.clamp(0.0, 1.0)
    }

    /// The factor that brings latents at `sigma` to the scale that models take.
    pub fn input_scale(&self, sigma: f64) -> f64 {
        match self.form {
            NoiseForm::Variances => sigma.hypot(1.0).recip(),
            NoiseForm::Flow { .. } => (1.0 + sigma).recip(),
            NoiseForm::Edm { sigma_data, .. } => sigma.hypot(sigma_data).recip(),
        }
    }

    /// The clean latents that a model's output means.
    ///
    /// # Shapes
    /// `latents` and `output`: the same.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shapes differ.
    pub fn denoised(&self, latents: &Tensor, output: &Tensor, sigma: f64) -> Result<Tensor> {
        let (skip, out) = self.output_weights(sigma);
        Ok(match skip {
            0.0 => (output * out)?,
            _ => ((latents * skip)? + (output * out)?)?,
        })
    }

    /// The inverse of [`denoised`](Self::denoised): the output of the model that the clean latents mean.
    ///
    /// # Errors
    /// As [`denoised`](Self::denoised).
    pub fn output(&self, latents: &Tensor, denoised: &Tensor, sigma: f64) -> Result<Tensor> {
        let (skip, out) = self.output_weights(sigma);
        Ok(((denoised * out.recip())? - (latents * (skip / out))?)?)
    }

    /// The weights of latents and output in the clean latents.
    fn output_weights(&self, sigma: f64) -> (f64, f64) {
        let scale = self.input_scale(sigma);
        match (self.form, self.prediction_type) {
            (_, PredictionType::Sample) => (0.0, 1.0),
            (NoiseForm::Edm { sigma_data, .. }, prediction_type) => {
                let out = sigma * sigma_data * scale;
                let sign = match prediction_type {
                    PredictionType::VPrediction => -1.0,
                    _ => 1.0,
                };
                ((sigma_data * scale).powi(2), sign * out)
            }
            (_, PredictionType::Epsilon) => (1.0, -sigma),
            (_, PredictionType::VPrediction) => (scale * scale, -sigma * scale),
            (_, PredictionType::FlowPrediction) => {
                let share = sigma / (1.0 + sigma);
                ((1.0 + sigma).recip(), -share)
            }
        }
    }
}

/// The levels of the timesteps of a model with variances.
fn sigmas_of_variances(config: &NoiseScheduleConfig) -> Result<Vec<f64>> {
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
    Ok(alphas_cumprod
        .iter()
        .map(|a| ((1.0 - a) / a).sqrt().min(highest))
        .collect())
}

/// The noise level of a flow in which noise has the share `s`: clean latents have the scale 1.
pub(crate) fn flow_to_sigma(s: f64) -> f64 {
    // What is no number stays so, for the plan to be refused.
    match s / (1.0 - s) {
        sigma if sigma > INFINITE_SIGMA => INFINITE_SIGMA,
        sigma => sigma,
    }
}

/// A share of noise, moved towards noise by a factor above 1.
pub(crate) fn shifted(s: f64, shift: f64) -> f64 {
    shift * s / (1.0 + (shift - 1.0) * s)
}

fn positive(name: &'static str, value: f64) -> Result<()> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::argument(name, "a finite number above 0", value)),
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
                ..base.clone()
            },
            // Levels that end as one, and that start at 0.
            NoiseScheduleConfig {
                beta_start: 0.9,
                beta_end: 0.99,
                ..base.clone()
            },
            NoiseScheduleConfig {
                beta_start: 1e-18,
                beta_end: 1e-18,
                ..base.clone()
            },
            NoiseScheduleConfig {
                beta_start: 1e-18,
                beta_end: 1e-18,
                rescale_betas_zero_snr: true,
                ..base.clone()
            },
            NoiseScheduleConfig {
                form: NoiseForm::Flow { shift: 1e300 },
                ..base
            },
        ] {
            assert!(NoiseSchedule::new(&config).is_err(), "{config:?}");
        }
    }
}
