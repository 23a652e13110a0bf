//! Seeded random numbers that equal PyTorch's CPU generator, so that a seed gives the picture that
//! it gives in diffusers.

mod brownian;
mod slerp;
mod torch;

use std::hash::{BuildHasher, RandomState};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

pub use brownian::BrownianNoise;
pub use slerp::slerp;
pub use torch::TorchRng;

use crate::error::Result;

/// A seed from the system's entropy, for requests that name none. It fits in 32 bits, since PyTorch
/// uses no more.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8) & 0xffff_ffff
}

/// One stream an image, so that an image depends on its own seed only, whatever stands beside it in
/// the batch.
pub struct ImageRngs {
    streams: Vec<TorchRng>,
    shape: Vec<usize>,
    device: Device,
}

impl ImageRngs {
    /// One stream for each of `seeds`; every draw has `shape` (without the batch dimension).
    pub fn new(seeds: &[u64], shape: &[usize], device: &Device) -> Self {
        Self {
            streams: seeds.iter().map(|&seed| TorchRng::new(seed)).collect(),
            shape: shape.to_vec(),
            device: device.clone(),
        }
    }

    /// Draws the next noise of every image.
    ///
    /// # Shapes
    /// Returns `(seeds, shape...)`, f32, unit variance.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device cannot hold it.
    pub fn draw(&mut self) -> Result<Tensor> {
        let noise = self
            .streams
            .iter_mut()
            .map(|stream| stream.randn_tensor(&self.shape, &self.device))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&noise, 0)?)
    }
}

/// Where a run's fresh noise comes from. A closure of the same arguments is a source too.
pub trait NoiseSource {
    /// Noise of unit variance for the way from one noise level to a lower one.
    ///
    /// # Shapes
    /// Returns that of the latents, `(batch, channels, height, width)`, f32.
    ///
    /// # Errors
    /// Whatever stops the source.
    fn noise(&mut self, from: f64, to: f64) -> Result<Tensor>;
}

impl NoiseSource for ImageRngs {
    fn noise(&mut self, _from: f64, _to: f64) -> Result<Tensor> {
        self.draw()
    }
}

impl<F> NoiseSource for F
where
    F: FnMut(f64, f64) -> Result<Tensor>,
{
    fn noise(&mut self, from: f64, to: f64) -> Result<Tensor> {
        self(from, to)
    }
}

/// Which noise a scheduler's solver takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseKind {
    /// Independent in every step.
    #[default]
    Gaussian,
    /// The way of a Brownian path from level to level: [`BrownianNoise`].
    Brownian,
}
