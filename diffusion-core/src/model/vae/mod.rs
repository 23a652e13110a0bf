//! Autoencoders between pictures and latents.

mod kl;
mod tiny;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

pub use kl::{AutoencoderKl, AutoencoderKlConfig};
pub use tiny::{AutoencoderTiny, AutoencoderTinyConfig};

use crate::error::{Error, Result};
use crate::nn::TensorSource;

/// The distribution of latents that an encoder gives for a picture: Gaussian, each value by itself.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `(batch, latent_channels, height, width)`.
    pub mean: Tensor,
    /// The logarithm of the variance, of the same shape; `None` where the encoder is deterministic.
    pub logvar: Option<Tensor>,
}

impl Posterior {
    /// The most likely latents, not yet scaled.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// `mean + noise * standard deviation`, not yet scaled.
    ///
    /// # Shapes
    /// `noise`: that of `mean`, standard normal.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shapes differ.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        match &self.logvar {
            Some(logvar) => Ok((&self.mean + ((logvar * 0.5)?.exp()? * noise)?)?),
            None => Ok(self.mean.clone()),
        }
    }
}

/// The autoencoder of a pipeline: pictures `(batch, 3, height, width)` in `[-1, 1]` to latents
/// `(batch, latent_channels, height / factor, width / factor)` and back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Vae {
    /// Stable Diffusion's own.
    Kl(Box<AutoencoderKl>),
    /// A distilled one: a hundredth of the work, slightly softer pictures.
    Tiny(AutoencoderTiny),
}

impl Vae {
    /// Reads an autoencoder as its `config.json` says. Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`](crate::device::compute_dtype).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a class or setting that this version does not know,
    /// [`Error::Format`] if the configuration does not parse, [`Error::Weights`] if the tensors do not
    /// fit it.
    pub fn new(
        config_path: &Path,
        config: &Value,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        match config["_class_name"].as_str() {
            Some("AutoencoderKL") => {
                let config = AutoencoderKlConfig::from_json(config_path, config)?;
                Ok(Self::Kl(Box::new(AutoencoderKl::new(
                    config, source, dtype, device,
                )?)))
            }
            Some("AutoencoderTiny") => {
                let config = AutoencoderTinyConfig::from_json(config_path, config)?;
                Ok(Self::Tiny(AutoencoderTiny::new(
                    config, source, dtype, device,
                )?))
            }
            other => Err(Error::unsupported(
                format!(
                    "{}: an autoencoder of class {other:?}",
                    config_path.display()
                ),
                "AutoencoderKL and AutoencoderTiny are",
            )),
        }
    }

    /// How many pixels of a picture's side one latent pixel stands for.
    pub fn downscale(&self) -> usize {
        match self {
            Self::Kl(vae) => vae.config().downscale(),
            Self::Tiny(vae) => vae.config().downscale(),
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(vae) => vae.config().latent_channels,
            Self::Tiny(vae) => vae.config().latent_channels,
        }
    }

    /// Values in the widest activation of a decode, for each pixel of the picture.
    pub(crate) fn peak_channels(&self) -> usize {
        match self {
            // The level that doubles to full size still has the channels of the one below.
            Self::Kl(vae) => vae
                .config()
                .block_out_channels
                .iter()
                .take(2)
                .copied()
                .max(),
            Self::Tiny(vae) => vae.config().decoder_block_out_channels.last().copied(),
        }
        .unwrap_or(0)
    }

    /// The number format of the arithmetic, which need not be that of the weights.
    pub fn compute_dtype(&self) -> DType {
        match self {
            Self::Kl(vae) => vae.compute_dtype(),
            Self::Tiny(vae) => vae.compute_dtype(),
        }
    }

    /// The same weights with arithmetic in another number format.
    pub fn with_compute_dtype(&self, dtype: DType) -> Self {
        match self {
            Self::Kl(vae) => Self::Kl(Box::new(vae.with_compute_dtype(dtype))),
            Self::Tiny(vae) => Self::Tiny(vae.with_compute_dtype(dtype)),
        }
    }

    fn scaling(&self) -> (f64, f64) {
        match self {
            Self::Kl(vae) => (vae.config().scaling_factor, vae.config().shift_factor),
            Self::Tiny(vae) => (vae.config().scaling_factor, vae.config().shift_factor),
        }
    }

    /// The mean and the standard deviation of each channel of the latents, `(1, channels, 1, 1)`, where they
    /// are not scaled by one number alone.
    fn statistics(&self, latents: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let Self::Kl(vae) = self else {
            return Ok(None);
        };
        let row = |numbers: &Vec<f64>| -> Result<Tensor> {
            let row = Tensor::from_slice(numbers, (1, numbers.len(), 1, 1), latents.device())?;
            Ok(row.to_dtype(latents.dtype())?)
        };
        let config = vae.config();
        match (&config.latents_mean, &config.latents_std) {
            (Some(mean), Some(std)) => Ok(Some((row(mean)?, row(std)?))),
            _ => Ok(None),
        }
    }

    /// The latents' distribution, not yet scaled for the UNet.
    ///
    /// # Shapes
    /// `images`: `(batch, 3, height, width)` in `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        match self {
            Self::Kl(vae) => vae.encode(images),
            Self::Tiny(vae) => Ok(Posterior {
                mean: vae.encode(images)?,
                logvar: None,
            }),
        }
    }

    /// From the autoencoder's latents to the UNet's: `(latents - shift_factor) * scaling_factor`, in front of
    /// which each channel is brought to mean 0 and standard deviation 1 where the configuration has them.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device fails.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        let (scaling, shift) = self.scaling();
        let latents = match self.statistics(latents)? {
            Some((mean, std)) => &latents.broadcast_sub(&mean)?.broadcast_div(&std)?,
            None => latents,
        };
        Ok(latents.affine(scaling, -shift * scaling)?)
    }

    /// The inverse of [`scale`](Self::scale).
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device fails.
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        let (scaling, shift) = self.scaling();
        let latents = latents.affine(scaling.recip(), shift)?;
        Ok(match self.statistics(&latents)? {
            Some((mean, std)) => latents.broadcast_mul(&std)?.broadcast_add(&mean)?,
            None => latents,
        })
    }

    /// Pictures from unscaled latents.
    ///
    /// # Shapes
    /// `latents`: `(batch, latent_channels, height, width)`; returns
    /// `(batch, 3, height * factor, width * factor)`, f32, about `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.decode(latents),
            Self::Tiny(vae) => vae.decode(latents),
        }
    }
}
