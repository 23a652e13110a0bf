//! A model whose exact solution is known.

use diffusion_core::denoise::{Denoiser, Estimate};
use diffusion_core::{DType, Device, Result, Tensor};

/// Channels of the latents.
pub const CHANNELS: usize = 4;

/// Means of the clean latents, by channel.
const MEANS: [f64; CHANNELS] = [-0.5, 0.0, 0.25, 1.0];
/// Standard deviations of the clean latents, by channel; not one for all, so that errors do not vanish
/// together by chance.
const DEVIATIONS: [f64; CHANNELS] = [0.5, 0.75, 1.0, 1.5];

/// A model of clean latents whose elements are independent and normal. At a noise level `sigma` the best
/// estimate is `(s^2 x + sigma^2 mean) / (s^2 + sigma^2)`, and along the probability flow each element
/// stays the same number of deviations `sqrt(s^2 + sigma^2)` away from its mean.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gaussian {
    /// Whether it tells, as distilled models do, where the exact solution ends.
    pub is_distilled: bool,
}

impl Denoiser for Gaussian {
    fn denoise(&mut self, latents: &Tensor, sigma: f64, _timestep: f64) -> Result<Estimate> {
        let keep = DEVIATIONS.map(|s| {
            let share = s * s / (s * s + sigma * sigma);
            if self.is_distilled {
                share.sqrt()
            } else {
                share
            }
        });
        let mut mean = MEANS;
        mean.iter_mut()
            .zip(keep)
            .for_each(|(m, keep)| *m *= 1.0 - keep);
        let denoised = latents
            .broadcast_mul(&by_channel(&keep, latents)?)?
            .broadcast_add(&by_channel(&mean, latents)?)?;
        Ok(Estimate {
            // Guidance that changes nothing, for solvers that want it.
            unconditional: Some(denoised.clone()),
            denoised,
        })
    }
}

/// `(1, channels, 1, 1)`, of the format and on the device of `like`.
fn by_channel(values: &[f64; CHANNELS], like: &Tensor) -> Result<Tensor> {
    let tensor = Tensor::new(values, &Device::Cpu)?.reshape((1, CHANNELS, 1, 1))?;
    Ok(tensor.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// Standard deviations of latents, by channel.
fn deviations(sigma: f64) -> [f64; CHANNELS] {
    DEVIATIONS.map(|s| s.hypot(sigma))
}

/// Latents of a noise level as deviations from their means: what the exact solution never changes.
///
/// # Shapes
/// `latents`: `(batch, channels, height, width)`; returns all elements, in f64.
pub(super) fn standardised(latents: &Tensor, sigma: f64) -> Result<Vec<f64>> {
    let latents = latents.to_dtype(DType::F64)?;
    let centred = latents.broadcast_sub(&by_channel(&MEANS, &latents)?)?;
    let unit = centred.broadcast_div(&by_channel(&deviations(sigma), &latents)?)?;
    Ok(unit.flatten_all()?.to_vec1()?)
}

/// The inverse: latents of a noise level from unit noise of the same shape.
pub(super) fn latents_at(noise: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(noise
        .broadcast_mul(&by_channel(&deviations(sigma), noise)?)?
        .broadcast_add(&by_channel(&MEANS, noise)?)?)
}
