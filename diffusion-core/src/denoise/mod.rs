//! From noisy latents to an estimate of the clean ones.

mod guidance;
mod image_prompt;
mod noise_config;
mod schedule;

use candle_core::Tensor;

pub use guidance::{Conditioning, Guided};
pub use image_prompt::ImagePrompt;
pub use noise_config::{BetaSchedule, NoiseForm, NoiseScheduleConfig, PredictionType};
pub use schedule::{NoiseSchedule, ZERO_SNR_SIGMA};
pub(crate) use schedule::{flow_to_sigma, shifted};

use crate::error::Result;

/// What a denoiser says about noisy latents.
#[derive(Debug, Clone)]
pub struct Estimate {
    /// The clean latents, guidance applied.
    pub denoised: Tensor,
    /// The clean latents under the negative prompt alone, where guidance is on.
    pub unconditional: Option<Tensor>,
}

/// Estimates clean latents. Prediction type, input scaling and guidance are its business, so that
/// solvers are algebra over its answers.
///
/// A closure of the same arguments is a denoiser too.
pub trait Denoiser {
    /// One evaluation.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height, width)`, f32, clean latents plus `sigma` times unit noise
    /// (the variance-exploding form); the estimate has the same shape. `timestep` is what the model calls
    /// this noise level, possibly fractional.
    ///
    /// # Errors
    /// Whatever stops the model; [`Error::custom`](crate::Error::custom) wraps errors of other crates.
    fn denoise(&mut self, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Estimate>;
}

impl<F> Denoiser for F
where
    F: FnMut(&Tensor, f64, f64) -> Result<Estimate>,
{
    fn denoise(&mut self, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Estimate> {
        self(latents, sigma, timestep)
    }
}
