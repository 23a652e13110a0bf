//! Changing a picture's size inside a model.

use candle_core::{Device, Tensor};

use super::{Activation, Conv2d, Conv2dConfig, Padding, Params};
use crate::error::Result;

/// Repeats pixels to reach `(height, width)`: output pixel `i` is input pixel
/// `floor(i * input / output)`.
///
/// # Shapes
/// `x`: `(batch, h, w, channels)`; returns `(batch, height, width, channels)`.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
pub fn upsample_nearest(x: &Activation, height: usize, width: usize) -> Result<Activation> {
    let x = x.to_tensor()?;
    let (batch, h, w, channels) = x.dims4()?;
    if (height, width) == (2 * h, 2 * w) {
        // Broadcasting has a right gradient, where candle's own nearest upsampling overwrites it.
        let pixels = x.reshape((batch, h, 1, w, channels))?;
        let rows = pixels.broadcast_as((batch, h, 2, w, channels))?;
        let columns = rows.reshape((batch, height, w, 1, channels))?;
        let both = columns.broadcast_as((batch, height, w, 2, channels))?;
        return Ok(Activation::new(
            both.reshape((batch, height, width, channels))?,
        ));
    }
    let indices = |from: usize, to: usize| {
        let indices: Vec<u32> = (0..to).map(|i| (i * from / to.max(1)) as u32).collect();
        Tensor::from_vec(indices, to, x.device())
    };
    let rows = x.index_select(&indices(h, height)?, 1)?;
    Ok(Activation::new(rows.index_select(&indices(w, width)?, 2)?))
}

/// Cubic interpolation to `(height, width)`, without a filter where the picture shrinks: torch's `interpolate`
/// with `mode="bicubic"` and `align_corners=False`.
///
/// Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with a = -3/4.
///
/// # Shapes
/// `x`: `(batch, h, w, channels)`; returns `(batch, height, width, channels)`.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
pub fn resize_bicubic(x: &Activation, height: usize, width: usize) -> Result<Activation> {
    let rows = resize_lines(&x.to_tensor()?, 1, height)?;
    Ok(Activation::new(resize_lines(&rows, 2, width)?))
}

/// `len` lines along `dim`, each mixed of four.
fn resize_lines(x: &Tensor, dim: usize, len: usize) -> Result<Tensor> {
    let from = x.dim(dim)?;
    if from == len {
        return Ok(x.clone());
    }
    let x = x.contiguous()?;
    let mut shape = [1; 4];
    shape[dim] = len;
    let ratio = from as f64 / len as f64;
    let places: Vec<f64> = (0..len).map(|i| (i as f64 + 0.5) * ratio - 0.5).collect();
    let mut sum: Option<Tensor> = None;
    for neighbour in -1..=2 {
        let line = |place: &f64| place.floor() + f64::from(neighbour);
        let last = from.saturating_sub(1) as f64;
        let indices = places.iter().map(|p| line(p).clamp(0.0, last) as u32);
        let indices = Tensor::from_iter(indices, x.device())?;
        let weights: Vec<f64> = places.iter().map(|p| cubic(p - line(p))).collect();
        let weights = Tensor::from_vec(weights, &shape, &Device::Cpu)?;
        let weights = weights.to_dtype(x.dtype())?.to_device(x.device())?;
        let part = x.index_select(&indices, dim)?.broadcast_mul(&weights)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    Ok(sum.unwrap_or(x))
}

/// The weight of a line at a distance.
fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    let d = distance.abs();
    match d {
        _ if d <= 1.0 => ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => A * (((d - 5.0) * d + 8.0) * d - 4.0),
        _ => 0.0,
    }
}

/// Nearest upsampling, then a 3x3 convolution.
#[derive(Debug, Clone)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Reads `conv`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(params: Params<'_>, channels: usize) -> Result<Self> {
        let conv = params.at("conv", |p| {
            Conv2d::new(p, channels, channels, Conv2dConfig::same(3))
        })?;
        Ok(Self { conv })
    }

    /// To `size` (`(height, width)`) or to twice the input's size.
    ///
    /// # Shapes
    /// `x`: `(batch, h, w, channels)`; returns `(batch, height, width, channels)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Activation, size: Option<(usize, usize)>) -> Result<Activation> {
        let (h, w) = x.size()?;
        let (height, width) = size.unwrap_or((2 * h, 2 * w));
        if (height, width) == (2 * h, 2 * w) {
            return self.conv.forward_doubled(x);
        }
        self.conv.forward(&upsample_nearest(x, height, width)?)
    }
}

/// A 3x3 convolution of stride 2.
#[derive(Debug, Clone)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// Reads `conv`. A `padding` of 0 means one row below and one column on the right, as
    /// Stable Diffusion's autoencoder has it.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(params: Params<'_>, channels: usize, padding: usize) -> Result<Self> {
        let padding = match padding {
            0 => Padding {
                bottom: 1,
                right: 1,
                ..Padding::default()
            },
            width => Padding::same(width),
        };
        let config = Conv2dConfig::same(3).with_stride(2).with_padding(padding);
        let conv = params.at("conv", |p| Conv2d::new(p, channels, channels, config))?;
        Ok(Self { conv })
    }

    /// # Shapes
    /// `x`: `(batch, h, w, channels)`; returns about half of each side.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        self.conv.forward(x)
    }
}
