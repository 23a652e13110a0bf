//! Changing the size of tensors of pictures, as PyTorch's `interpolate` does with `align_corners=False`.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How values between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Interpolation {
    /// The nearest pixel's (`nearest-exact`).
    Nearest,
    /// Straight lines between pixels.
    #[default]
    Bilinear,
    /// The same, with a wider reach where the result is smaller.
    BilinearAntialiased,
    /// Cubic curves, with PyTorch's constant of -0.75.
    Bicubic,
    /// Cubic curves with Pillow's constant of -0.5, and a wider reach where the result is smaller.
    BicubicAntialiased,
}

impl Interpolation {
    /// The weights of `len` pixels in each of `new_len`, `(new_len, len)`.
    fn weights(self, len: usize, new_len: usize) -> Vec<f32> {
        let ratio = len as f64 / new_len as f64;
        let stretch = match self {
            Self::BilinearAntialiased | Self::BicubicAntialiased => ratio.max(1.0),
            _ => 1.0,
        };
        let mut weights = vec![0f32; new_len * len];
        for (at, row) in weights.chunks_exact_mut(len).enumerate() {
            let center = (at as f64 + 0.5) * ratio - 0.5;
            match self {
                Self::Nearest => row[((center + 0.5) as usize).min(len - 1)] = 1.0,
                Self::Bilinear | Self::Bicubic => {
                    let reach = self.reach();
                    let first = (center.floor() - reach + 1.0) as i64;
                    for i in first..first + 2 * reach as i64 {
                        // Beyond the edge the last pixel goes on.
                        let inside = i.clamp(0, len as i64 - 1) as usize;
                        row[inside] += self.weight(center - i as f64) as f32;
                    }
                }
                Self::BilinearAntialiased | Self::BicubicAntialiased => {
                    let weight = |i: usize| self.weight((i as f64 - center) / stretch);
                    let reach = self.reach() * stretch;
                    let first = (center - reach + 1.0).floor().max(0.0) as usize;
                    let end = ((center + reach).ceil() as usize + 1).min(len);
                    let sum: f64 = (first..end).map(weight).sum();
                    for (i, value) in (first..end).zip(&mut row[first..end]) {
                        *value = (weight(i) / sum) as f32;
                    }
                }
            }
        }
        weights
    }

    fn reach(self) -> f64 {
        match self {
            Self::Nearest | Self::Bilinear | Self::BilinearAntialiased => 1.0,
            Self::Bicubic | Self::BicubicAntialiased => 2.0,
        }
    }

    /// What a pixel counts at a distance.
    ///
    /// Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, equation 4.
    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        let a = match self {
            Self::Bicubic => -0.75,
            Self::BicubicAntialiased => -0.5,
            _ => return (1.0 - x).max(0.0),
        };
        match x {
            x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
            _ => 0.0,
        }
    }
}

/// Tensors in another size.
///
/// # Shapes
/// `images`: `(batch, channels, height, width)`; returns `(batch, channels, new_height, new_width)`, f32.
///
/// # Errors
/// [`Error::InvalidArgument`] for another shape or no pixels, [`Error::Tensor`] if the device fails.
pub fn interpolate(
    images: &Tensor,
    (new_height, new_width): (usize, usize),
    how: Interpolation,
) -> Result<Tensor> {
    let &[batch, channels, height, width] = images.dims() else {
        let found = format!("{:?}", images.dims());
        let expected = "shape (batch, channels, height, width)";
        return Err(Error::argument("images", expected, found));
    };
    if images.elem_count() == 0 || new_height == 0 || new_width == 0 {
        let found = format!("{:?} to {new_height} x {new_width}", images.dims());
        return Err(Error::argument("images", "some pixels", found));
    }
    let device = images.device();
    let matrix = |len, new_len| Tensor::from_vec(how.weights(len, new_len), (new_len, len), device);
    let rows = matrix(height, new_height)?;
    let columns = matrix(width, new_width)?.t()?;
    let images = images.to_dtype(DType::F32)?.contiguous()?;
    let wide = images
        .reshape((batch * channels * height, width))?
        .matmul(&columns)?
        .reshape((batch * channels, height, new_width))?;
    let rows = rows.broadcast_left(batch * channels)?.contiguous()?;
    Ok(rows
        .matmul(&wide)?
        .reshape((batch, channels, new_height, new_width))?)
}
