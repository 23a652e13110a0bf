//! From noisy latents to an estimate of the clean ones.

mod channels;
mod controls;
mod deep_cache;
mod deep_shrink;
mod guidance;
mod image_prompt;
mod inpaint;
mod lerp;
mod noise_config;
mod perturbation;
mod plan;
mod scales;
mod schedule;
mod text_gate;

use candle_core::Tensor;

pub use channels::Channels;
pub use controls::{Controls, FeatureControl, NetControl, Window};
use deep_cache::DeepCache;
pub use deep_shrink::DeepShrink;
pub(crate) use guidance::row_for_each;
pub use guidance::{Conditioning, Guided};
pub use image_prompt::ImagePrompt;
pub use inpaint::Inpaint;
pub use noise_config::{BetaSchedule, NoiseForm, NoiseScheduleConfig, PredictionType};
pub use perturbation::Perturbation;
pub use plan::{ComposedPrompt, Planned, PromptPlan};
pub use scales::Guidance;
pub(crate) use scales::MAX_SCALE;
pub use schedule::{NoiseSchedule, ZERO_SNR_SIGMA};
pub(crate) use schedule::{flow_to_sigma, shifted};
use text_gate::TextGate;

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
    /// Called once before each step of a run: its number, from 0, and how many there are. Whatever noise levels a
    /// solver asks about until the next call belong to that step, so what changes along a run (ControlNets that
    /// begin or end) changes between steps and not within one. Default: nothing.
    fn begin_step(&mut self, _index: usize, _num_steps: usize) {}

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
