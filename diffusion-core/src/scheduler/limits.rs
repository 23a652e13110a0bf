//! Limits on the estimate of the clean latents.

use std::ops::RangeInclusive;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::updates::check_range;
use crate::error::Result;

/// Of the values that estimates are kept to: f32 above 0.
const BOUNDS: RangeInclusive<f64> = f32::MIN_POSITIVE as f64..=f32::MAX as f64;

/// Both limits, of which thresholding comes first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Keeps the estimate in a fixed range.
    #[serde(flatten)]
    pub clip: ClipSample,
    /// Keeps the estimate in the range of most of its values.
    #[serde(flatten)]
    pub thresholding: Thresholding,
}

impl Limits {
    /// No limits.
    pub const OFF: Self = Self {
        clip: ClipSample::OFF,
        thresholding: Thresholding::OFF,
    };

    /// A fixed range of 1.
    pub const CLIP: Self = Self {
        clip: ClipSample {
            clip_sample: true,
            ..ClipSample::OFF
        },
        thresholding: Thresholding::OFF,
    };

    pub(super) fn apply(&self, denoised: Tensor) -> Result<Tensor> {
        match self.thresholding.thresholding {
            true => self.thresholding.apply(denoised),
            false => self.clip.apply(denoised),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.clip.check()?;
        self.thresholding.check()
    }
}

/// Keeps an estimate of the clean latents in a fixed range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClipSample {
    /// Whether the estimate is clamped.
    pub clip_sample: bool,
    /// The bound of that clamping, above 0.
    pub clip_sample_range: f64,
}

impl ClipSample {
    /// No clamping.
    pub const OFF: Self = Self {
        clip_sample: false,
        clip_sample_range: 1.0,
    };

    pub(super) fn apply(&self, denoised: Tensor) -> Result<Tensor> {
        let range = self.clip_sample_range as f32;
        Ok(match self.clip_sample {
            true => denoised.clamp(-range, range)?,
            false => denoised,
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        check_range("clip_sample_range", self.clip_sample_range, BOUNDS)
    }
}

/// Keeps an estimate of the clean latents in the range of most of its values, scaled to 1. For models in
/// pixels; it harms latents.
///
/// Source: Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
/// Understanding", 2022, section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Thresholding {
    /// Whether the estimate is thresholded.
    pub thresholding: bool,
    /// The share of values that stay as they are, from 0 to 1.
    pub dynamic_thresholding_ratio: f64,
    /// The highest bound, above 0. Below it the bound is at least 1.
    pub sample_max_value: f64,
}

impl Thresholding {
    /// No thresholding.
    pub const OFF: Self = Self {
        thresholding: false,
        dynamic_thresholding_ratio: 0.995,
        sample_max_value: 1.0,
    };

    pub(super) fn apply(&self, denoised: Tensor) -> Result<Tensor> {
        if !self.thresholding {
            return Ok(denoised);
        }
        let images = denoised.dim(0)?;
        let images: Vec<Tensor> = (0..images)
            .map(|i| {
                let image = denoised.narrow(0, i, 1)?;
                let bound = self.bound(&image)?;
                Ok((image.clamp(-bound, bound)? / f64::from(bound))?)
            })
            .collect::<Result<_>>()?;
        Ok(Tensor::cat(&images, 0)?)
    }

    /// The quantile of the magnitudes, on the straight line between the two nearest.
    fn bound(&self, image: &Tensor) -> Result<f32> {
        let mut values = image.abs()?.flatten_all()?.to_vec1::<f32>()?;
        values.sort_by(f32::total_cmp);
        let Some(last) = values.len().checked_sub(1) else {
            return Ok(1.0);
        };
        let place = self.dynamic_thresholding_ratio * last as f64;
        let low = (place as usize).min(last);
        let high = values[(low + 1).min(last)];
        let quantile = values[low] + (high - values[low]) * (place - low as f64) as f32;
        Ok(quantile.max(1.0).min(self.sample_max_value as f32))
    }

    pub(super) fn check(&self) -> Result<()> {
        let ratio = self.dynamic_thresholding_ratio;
        check_range("dynamic_thresholding_ratio", ratio, 0.0..=1.0)?;
        check_range("sample_max_value", self.sample_max_value, BOUNDS)
    }
}
