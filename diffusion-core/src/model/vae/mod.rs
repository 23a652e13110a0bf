//! Autoencoders between pictures and latents.

mod kl;
mod preview;
mod tiling;
mod tiny;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

pub use kl::{AutoencoderKl, AutoencoderKlConfig};
pub use preview::{LatentRgb, latents_to_rgb};
pub use tiling::VaeTiling;
use tiling::{Margin, Portions, Ratio, Scale};
pub use tiny::{AutoencoderTiny, AutoencoderTinyConfig};

use crate::error::{Error, Result};
use crate::nn::{Lease, Seamless, TensorSource};

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
    Tiny(Box<AutoencoderTiny>),
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
                Ok(Self::Tiny(Box::new(AutoencoderTiny::new(
                    config, source, dtype, device,
                )?)))
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

    /// Values of the widest activation of a decode of pictures of `height` x `width` pixels.
    pub(crate) fn peak_values(&self, height: u64, width: u64, batch: u64) -> u64 {
        let (portions, scale) = self.portions();
        portions.peak_values(scale, height, width, batch)
    }

    fn portions(&self) -> (Portions, Scale) {
        match self {
            Self::Kl(vae) => (vae.portions(), vae.scale()),
            Self::Tiny(vae) => (vae.portions(), vae.scale()),
        }
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
            Self::Tiny(vae) => Self::Tiny(Box::new(vae.with_compute_dtype(dtype))),
        }
    }

    /// The same weights, working in tiles or not. Default: [`VaeTiling::Auto`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for tiles of another size than [`VaeTiling`] allows.
    pub fn with_tiling(&self, tiling: VaeTiling) -> Result<Self> {
        Ok(match self {
            Self::Kl(vae) => Self::Kl(Box::new(vae.with_tiling(tiling)?)),
            Self::Tiny(vae) => Self::Tiny(Box::new(vae.with_tiling(tiling)?)),
        })
    }

    /// The same weights, working off one picture of a batch at a time or all at once, which is the default. On the CPU
    /// the bits are the same, but for pictures of less than about 80 pixels a side.
    pub fn with_slicing(&self, slicing: bool) -> Self {
        match self {
            Self::Kl(vae) => Self::Kl(Box::new(vae.with_slicing(slicing))),
            Self::Tiny(vae) => Self::Tiny(Box::new(vae.with_slicing(slicing))),
        }
    }

    /// The same weights, in the same memory, for pictures that go on at their opposite side.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device fails.
    pub fn with_seamless(&self, seamless: Seamless) -> Result<Self> {
        Ok(match self {
            Self::Kl(vae) => Self::Kl(Box::new(vae.with_seamless(seamless)?)),
            Self::Tiny(vae) => Self::Tiny(Box::new(vae.with_seamless(seamless)?)),
        })
    }

    fn seamless(&self) -> Seamless {
        match self {
            Self::Kl(vae) => vae.seamless(),
            Self::Tiny(vae) => vae.seamless(),
        }
    }

    /// What is beyond the sides of pictures that go on there and are worked off in tiles: a margin of their opposite
    /// sides, for tiles do not know it.
    fn margin(&self, x: &Tensor, ratio: Ratio) -> Result<Option<Margin>> {
        let (portions, scale) = self.portions();
        Margin::new(self.seamless(), portions, scale, ratio, x)
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
        let _memory = Lease::of_autoencoder();
        if let Some(margin) = self.margin(images, Ratio::encode(self.downscale()))? {
            let Posterior { mean, logvar } = self
                .with_seamless(Seamless::NONE)?
                .encode(&margin.around(images)?)?;
            return Ok(Posterior {
                mean: margin.cut(&mean)?,
                logvar: logvar.map(|logvar| margin.cut(&logvar)).transpose()?,
            });
        }
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
        let _memory = Lease::of_autoencoder();
        if let Some(margin) = self.margin(latents, Ratio::decode(self.downscale()))? {
            let plain = self.with_seamless(Seamless::NONE)?;
            return margin.cut(&plain.decode(&margin.around(latents)?)?);
        }
        match self {
            Self::Kl(vae) => vae.decode(latents),
            Self::Tiny(vae) => vae.decode(latents),
        }
    }
}
