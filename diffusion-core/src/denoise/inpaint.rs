//! Keeping what a mask leaves alone.

use candle_core::Tensor;

use super::{Denoiser, Estimate};
use crate::error::Result;

/// A denoiser that changes a picture within a mask alone: around every evaluation the rest has the noise level
/// that it would have, and the estimate of it is the picture itself.
///
/// Source: Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022,
/// equation 8.
#[derive(Debug)]
pub struct Inpaint<D> {
    inner: D,
    mask: Tensor,
    clean: Tensor,
    noise: Tensor,
    /// Whether the next evaluation is of noise alone.
    begins_with_noise: bool,
}

impl<D: Denoiser> Inpaint<D> {
    /// Around `inner`.
    ///
    /// # Shapes
    /// `mask`: `(1 or batch, 1, height, width)`, 1 where the picture changes and 0 where it stays; `clean` (the
    /// picture's latents) and `noise` (of unit variance, the run's own): `(1 or batch, channels, height, width)`.
    /// `begins_with_noise` says that the run starts from noise alone, so that its first evaluation sees nothing
    /// of the picture.
    pub fn new(
        inner: D,
        mask: Tensor,
        clean: Tensor,
        noise: Tensor,
        begins_with_noise: bool,
    ) -> Self {
        Self {
            inner,
            mask,
            clean,
            noise,
            begins_with_noise,
        }
    }

    /// `changed` within the mask and `kept` outside.
    fn blend(&self, changed: &Tensor, kept: &Tensor) -> Result<Tensor> {
        let outside = self.mask.affine(-1.0, 1.0)?;
        let kept = kept.broadcast_mul(&outside)?;
        Ok(changed.broadcast_mul(&self.mask)?.broadcast_add(&kept)?)
    }

    /// What a run came to, with the picture as it was outside of the mask; `sigma` is the noise level that is
    /// left.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes differ.
    pub fn finish(&self, latents: &Tensor, sigma: f64) -> Result<Tensor> {
        let kept = self.clean.broadcast_add(&(&self.noise * sigma)?)?;
        self.blend(latents, &kept)
    }
}

impl<D: Denoiser> Denoiser for Inpaint<D> {
    fn begin_step(&mut self, index: usize, num_steps: usize) {
        self.inner.begin_step(index, num_steps);
    }

    fn denoise(&mut self, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Estimate> {
        let latents = match std::mem::take(&mut self.begins_with_noise) {
            true => latents.clone(),
            false => self.finish(latents, sigma)?,
        };
        let estimate = self.inner.denoise(&latents, sigma, timestep)?;
        Ok(Estimate {
            denoised: self.blend(&estimate.denoised, &self.clean)?,
            unconditional: estimate
                .unconditional
                .map(|unconditional| self.blend(&unconditional, &self.clean))
                .transpose()?,
        })
    }
}
