//! Updates between whole timesteps, as the classes of diffusers label them.

use candle_core::Tensor;

use super::Step;
use super::levels::Levels;
use crate::denoise::{NoiseForm, NoiseSchedule};
use crate::error::Result;

/// The noise level of a timestep; `last` where it is below the model's first.
pub(super) fn sigma_at(noise: &NoiseSchedule, timestep: f64, last: f64) -> f64 {
    match timestep < 0.0 {
        true => last,
        false => noise.sigma(timestep),
    }
}

/// Whether a run takes strides of whole timesteps: over the model's own levels, if it has variances.
pub(super) fn has_strides(levels: &Levels, noise: &NoiseSchedule) -> bool {
    levels.is_native() && noise.form() == NoiseForm::Variances
}

/// Where a noise level is among the model's timesteps, from 0: what the model is told, but for models in the
/// form of Karras et al., which are told logarithms.
pub(super) fn training_time(step: &Step<'_>, sigma: f64) -> f64 {
    match step.schedule().form() {
        NoiseForm::Edm { .. } => step.schedule().index(sigma),
        _ => step.timestep(sigma),
    }
}

/// How many timesteps the published updates go at once: always whole strides, whatever the spacing.
pub(super) fn stride(step: &Step<'_>) -> f64 {
    (step.schedule().num_train_timesteps() / step.num_steps()) as f64
}

/// The noise level that the published update aims at: always one whole stride on, where spacings other
/// than `leading`, or step counts that do not divide the timesteps, take the next step from a slightly
/// different timestep. diffusers does so, and its pictures are the measure.
pub(super) fn target(levels: &Levels, step: &Step<'_>, last: f64) -> f64 {
    match has_strides(levels, step.schedule()) {
        true => {
            let timestep = step.timestep(step.sigma()) - stride(step);
            sigma_at(step.schedule(), timestep, last)
        }
        false => step.sigma_next(),
    }
}

/// The factor that gives latents, which stay as they are in the scale that models take, another noise
/// level.
pub(super) fn relabel(noise: &NoiseSchedule, from: f64, to: f64) -> f64 {
    match from == to {
        true => 1.0,
        false => noise.input_scale(from) / noise.input_scale(to),
    }
}

/// Latents under another noise level.
pub(super) fn relabelled(step: &Step<'_>, latents: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    step.combine(&[(relabel(step.schedule(), from, to), latents)])
}
