//! A second pass over a larger picture.

use serde::{Deserialize, Serialize};

use super::GenerateRequest;
use crate::media::Resampling;
use crate::nn::Interpolation;

/// How the first pass's picture becomes larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Upscaler {
    /// Its latents do. Fast; wants strengths of 0.5 and more.
    Latents(Interpolation),
    /// Its pixels do, between the autoencoder's decoder and encoder. Keeps more of the picture.
    Pixels(Resampling),
}

/// A second pass over the picture in a larger size, which keeps the composition that the model finds at the
/// size that it knows: the cure for doubled heads in tall pictures. A1111's "Hires. fix".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hires {
    /// `(width, height)` of the result in pixels, each a multiple of the autoencoder's factor.
    pub size: (usize, usize),
    /// How the picture becomes larger. Default: its latents, by bilinear interpolation.
    pub upscaler: Upscaler,
    /// The strength of the second pass, from 0 to 1, as in img2img. Default: 0.7.
    pub strength: f64,
    /// Number of steps of which the second pass does its share. Default: the request's.
    pub num_steps: Option<usize>,
    /// The prompt of the second pass. Default: the request's.
    pub prompt: Option<String>,
}

impl Hires {
    /// Up to `width` x `height`, with all else at its default.
    pub fn new(width: usize, height: usize) -> Self {
        Self {
            size: (width, height),
            upscaler: Upscaler::Latents(Interpolation::Bilinear),
            strength: 0.7,
            num_steps: None,
            prompt: None,
        }
    }
}

impl GenerateRequest {
    /// Makes the picture in two passes: at the request's size, and then larger. Default: one.
    pub fn hires(mut self, hires: Hires) -> Self {
        self.hires = Some(hires);
        self
    }
}
