//! Two-dimensional convolution on channels-last pictures.

use candle_core::Tensor;

use super::{Activation, Linear, Params};
use crate::error::{Error, Result};

/// Rows and columns of zeros around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns on the left.
    pub left: usize,
    /// Columns on the right.
    pub right: usize,
}

impl Padding {
    /// The same on all sides.
    pub const fn same(width: usize) -> Self {
        Self {
            top: width,
            bottom: width,
            left: width,
            right: width,
        }
    }

    fn uniform(self) -> Option<usize> {
        (self == Self::same(self.top)).then_some(self.top)
    }
}

/// The shape of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Kernel `(height, width)`.
    pub kernel: (usize, usize),
    /// Step between output pixels, in both directions.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Conv2dConfig {
    /// A square kernel of odd side that keeps the picture's size.
    pub const fn same(kernel: usize) -> Self {
        let padding = Padding::same(kernel / 2);
        Self {
            kernel: (kernel, kernel),
            stride: 1,
            padding,
            bias: true,
        }
    }

    /// The same convolution with a stride.
    pub const fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same convolution with other padding.
    pub const fn with_padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }

    /// The same convolution without a bias.
    pub const fn without_bias(self) -> Self {
        Self {
            bias: false,
            ..self
        }
    }
}

/// A convolution. Kernels of one pixel run as a matrix product.
#[derive(Debug, Clone)]
pub enum Conv2d {
    /// A kernel of one pixel, stride 1, no padding.
    Pointwise(Linear),
    /// Any other kernel.
    Spatial {
        /// `(output, input, height, width)`.
        weight: Tensor,
        /// `(output)`.
        bias: Option<Tensor>,
        /// Kernel, stride and padding.
        config: Conv2dConfig,
    },
}

impl Conv2d {
    /// Reads `weight` `(output, input, height, width)` and, if configured, `bias` `(output)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a kernel or stride of zero; otherwise if reading fails.
    pub fn new(
        params: Params<'_>,
        input: usize,
        output: usize,
        config: Conv2dConfig,
    ) -> Result<Self> {
        let (height, width) = config.kernel;
        if height == 0 || width == 0 || config.stride == 0 {
            let found = format!("kernel {height} x {width}, stride {}", config.stride);
            return Err(Error::argument(
                "convolution",
                "a kernel and a stride of at least 1",
                found,
            ));
        }
        if config == Conv2dConfig::same(1) {
            return Ok(Self::Pointwise(Linear::from_conv1x1(
                params, input, output,
            )?));
        }
        let weight = params.tensor("weight", &[output, input, height, width])?;
        let bias = config
            .bias
            .then(|| params.tensor("bias", &[output]))
            .transpose()?;
        Ok(Self::Spatial {
            weight,
            bias,
            config,
        })
    }

    /// # Shapes
    /// `x`: `(batch, height, width, input)`; returns `(batch, height', width', output)` with
    /// `height' = (height + padding - kernel) / stride + 1`, rounded down.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the padded picture is smaller than the kernel,
    /// [`Error::Tensor`] if the shapes do not fit.
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        match self {
            Self::Pointwise(linear) => linear.forward(x),
            Self::Spatial {
                weight,
                bias,
                config,
            } => {
                let weight = weight.to_dtype(x.dtype())?;
                let picture = x.tensor().permute((0, 3, 1, 2))?;
                let mut y = convolve(&picture, &weight, config)?.permute((0, 2, 3, 1))?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
                }
                Ok(Activation::new(y.contiguous()?))
            }
        }
    }
}

/// Candle's convolution, given just the pixels that it reads.
///
/// Candle pads all sides alike, and its gradient for a stride above 1 is an error where height and
/// width leave unread rows and columns of different number. Padding and cropping here cures both.
fn convolve(picture: &Tensor, weight: &Tensor, config: &Conv2dConfig) -> Result<Tensor> {
    let Conv2dConfig {
        kernel,
        stride,
        padding,
        ..
    } = *config;
    if let (Some(width), 1) = (padding.uniform(), stride) {
        return Ok(picture.conv2d(weight, width, 1, 1, 1)?);
    }
    let mut picture = picture.clone();
    let sides = [
        (2, kernel.0, padding.top, padding.bottom),
        (3, kernel.1, padding.left, padding.right),
    ];
    for (dim, kernel, before, after) in sides {
        let len = picture.dim(dim)? + before + after;
        if len < kernel {
            let found = format!("{len} pixels with padding");
            return Err(Error::argument(
                "picture",
                format!("a side of at least {kernel}"),
                found,
            ));
        }
        let read = (len - kernel) / stride * stride + kernel;
        picture = picture
            .pad_with_zeros(dim, before, after)?
            .narrow(dim, 0, read)?;
    }
    Ok(picture.contiguous()?.conv2d(weight, 0, stride, 1, 1)?)
}
