//! Two-dimensional convolution on channels-last pictures.

use candle_core::{Device, Tensor};

use super::engine::{self, Layer};
use super::seamless::{Seamless, wrap};
use super::{Activation, Linear, LowRank, Params, Weight, upsample_nearest};
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
}

/// The shape of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Kernel `(height, width)`.
    pub kernel: (usize, usize),
    /// Step between output pixels, in both directions.
    pub stride: usize,
    /// Zeros around the input; where the model is [`Seamless`], its opposite side.
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

/// Elements of the patches that are laid out at once; larger pictures are worked off in bands of rows.
const MAX_PATCHES: usize = 1 << 21;

/// A convolution. Kernels of one pixel run as a matrix product.
#[derive(Debug, Clone)]
pub struct Conv2d {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// A kernel of one pixel, stride 1, no padding.
    Pointwise(Linear),
    /// Any other kernel.
    Spatial {
        /// `(output, input, height, width)`, on the CPU with the channels last in memory.
        weight: Weight,
        bias: Option<Tensor>,
        low_rank: Vec<LowRank>,
        config: Conv2dConfig,
        seamless: Seamless,
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
            let expected = "a kernel and a stride of at least 1";
            let found = format!("kernel {height} x {width}, stride {}", config.stride);
            return Err(Error::argument("convolution", expected, found));
        }
        if config == Conv2dConfig::same(1) {
            let kind = Kind::Pointwise(Linear::from_conv1x1(params, input, output)?);
            return Ok(Self { kind });
        }
        let shape = [output, input, height, width];
        let weight = params.weight("weight", &shape)?;
        let bias = config
            .bias
            .then(|| params.tensor("bias", &[output]))
            .transpose()?;
        Ok(Self {
            kind: Kind::Spatial {
                weight,
                bias,
                low_rank: params.low_rank(),
                config,
                seamless: params.seamless(),
            },
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
        self.run(x, None, false)
    }

    /// The layer's result plus `add`, of its shape, in whose memory it may come.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_add(&self, x: &Activation, add: Activation) -> Result<Activation> {
        self.run(x, Some(add), false)
    }

    /// Of a picture of twice the size, in which each pixel of `x` is repeated.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(super) fn forward_doubled(&self, x: &Activation) -> Result<Activation> {
        self.run(x, None, true)
    }

    fn run(
        &self,
        x: &Activation,
        mut add: Option<Activation>,
        doubled: bool,
    ) -> Result<Activation> {
        let y = match &self.kind {
            Kind::Pointwise(linear) => {
                let x = doubled_if(x, doubled)?;
                return match add {
                    Some(add) => linear.forward_add(&x, add),
                    None => linear.forward(&x),
                };
            }
            Kind::Spatial {
                weight,
                bias,
                low_rank,
                config,
                seamless,
            } => {
                let layer = Layer {
                    weight,
                    bias: bias.as_ref(),
                    low_rank,
                };
                if let Some(y) =
                    engine::convolve(x, layer, *config, *seamless, add.as_mut(), doubled)?
                {
                    return Ok(y);
                }
                let x = doubled_if(x, doubled)?.to_tensor()?;
                let padded = pad(&x, config, *seamless)?;
                let mut y = convolve(&padded, &weight.to_dtype(x.dtype())?, config)?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
                }
                for change in low_rank {
                    y = change.add(&y, &convolve(&padded, &change.down, config)?)?;
                }
                Activation::new(y)
            }
        };
        match add {
            Some(add) => y.add(&add),
            None => Ok(y),
        }
    }
}

fn doubled_if(x: &Activation, doubled: bool) -> Result<Activation> {
    if !doubled {
        return Ok(x.clone());
    }
    let (height, width) = x.size()?;
    upsample_nearest(x, 2 * height, 2 * width)
}

fn convolve(padded: &Tensor, weight: &Tensor, config: &Conv2dConfig) -> Result<Tensor> {
    let dtype = padded.dtype();
    match padded.device() {
        Device::Cpu => {
            let weight = flatten_kernels(weight)?.to_dtype(dtype)?;
            convolve_by_patches(padded, &weight, config)
        }
        _ => convolve_on_device(padded, &weight.to_dtype(dtype)?, config),
    }
}

/// `(output, input, height, width)` to `(output, height * width * input)`: each row a kernel. Copies nothing
/// if the channels are last in memory.
fn flatten_kernels(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.permute((0, 2, 3, 1))?.flatten_from(1)?)
}

/// The picture with its padding, and just as many rows and columns as the kernel reads.
fn pad(picture: &Tensor, config: &Conv2dConfig, seamless: Seamless) -> Result<Tensor> {
    let Conv2dConfig {
        kernel,
        stride,
        padding,
        ..
    } = *config;
    let sides = [
        (1, kernel.0, padding.top, padding.bottom, seamless.y),
        (2, kernel.1, padding.left, padding.right, seamless.x),
    ];
    let mut picture = picture.clone();
    for (dim, kernel, before, after, wraps) in sides {
        let len = picture.dim(dim)? + before + after;
        if len < kernel {
            let expected = format!("a side of at least {kernel} pixels with padding");
            return Err(Error::argument("picture", expected, len));
        }
        let read = (len - kernel) / stride * stride + kernel;
        let padded = match wraps {
            true => wrap(&picture, dim, before, after)?,
            false => picture.pad_with_zeros(dim, before, after)?,
        };
        picture = padded.narrow(dim, 0, read)?;
    }
    Ok(picture)
}

/// Lays the pixels under the kernel side by side and multiplies matrices.
///
/// On the CPU candle's own convolution spends most of its time on its layouts, which are not channels-last,
/// and its input gradient is a plain loop. Here all is copies of whole pixels, a matrix product and their
/// gradients.
fn convolve_by_patches(padded: &Tensor, weight: &Tensor, config: &Conv2dConfig) -> Result<Tensor> {
    let Conv2dConfig {
        kernel: (kernel_h, kernel_w),
        stride,
        ..
    } = *config;
    let (batch, padded_h, padded_w, _) = padded.dims4()?;
    let (out_h, out_w) = (
        (padded_h - kernel_h) / stride + 1,
        (padded_w - kernel_w) / stride + 1,
    );
    let (output, patch) = weight.dims2()?;
    let transposed = weight.t()?;
    let band = (MAX_PATCHES / (batch * out_w * patch).max(1)).clamp(1, out_h);
    let mut bands = Vec::with_capacity(out_h.div_ceil(band));
    for top in (0..out_h).step_by(band) {
        let rows = band.min(out_h - top);
        let mut shifted = Vec::with_capacity(kernel_h * kernel_w);
        for y in 0..kernel_h {
            let lines = every(padded, 1, top * stride + y, rows, stride)?;
            for x in 0..kernel_w {
                shifted.push(every(&lines, 2, x, out_w, stride)?.contiguous()?);
            }
        }
        let patches = Tensor::cat(&shifted, 3)?.reshape((batch * rows * out_w, patch))?;
        bands.push(
            patches
                .matmul(&transposed)?
                .reshape((batch, rows, out_w, output))?,
        );
    }
    Ok(Tensor::cat(&bands, 1)?)
}

/// `count` slices along `dim`, from `start` on, `stride` apart.
fn every(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.narrow(dim, start, count)?);
    }
    let indices: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
    Ok(x.contiguous()?
        .index_select(&Tensor::from_vec(indices, count, x.device())?, dim)?)
}

/// Candle's convolution, which calls cuDNN and the like. With the padding in the picture and no unread
/// rows or columns its gradient is right for every stride and size.
fn convolve_on_device(padded: &Tensor, weight: &Tensor, config: &Conv2dConfig) -> Result<Tensor> {
    let picture = padded.permute((0, 3, 1, 2))?.contiguous()?;
    let y = picture.conv2d(weight, 0, config.stride, 1, 1)?;
    Ok(y.permute((0, 2, 3, 1))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Var};

    use super::*;

    /// The definition: a sum over the kernel at every output pixel.
    fn by_definition(
        x: &[f32],
        size: [usize; 4],
        w: &[f32],
        out: usize,
        c: &Conv2dConfig,
    ) -> Vec<f64> {
        let [batch, height, width, channels] = size;
        let (kernel_h, kernel_w) = c.kernel;
        let p = c.padding;
        let out_h = (height + p.top + p.bottom - kernel_h) / c.stride + 1;
        let out_w = (width + p.left + p.right - kernel_w) / c.stride + 1;
        let mut y = Vec::new();
        for b in 0..batch {
            for i in 0..out_h * out_w {
                for o in 0..out {
                    let mut sum = 0.0;
                    for k in 0..kernel_h * kernel_w {
                        let row = (i / out_w * c.stride + k / kernel_w).wrapping_sub(p.top);
                        let column = (i % out_w * c.stride + k % kernel_w).wrapping_sub(p.left);
                        if row >= height || column >= width {
                            continue;
                        }
                        for ch in 0..channels {
                            let at = ((b * height + row) * width + column) * channels + ch;
                            let weight = w[(o * channels + ch) * kernel_h * kernel_w + k];
                            sum += f64::from(x[at]) * f64::from(weight);
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    fn random(len: usize, seed: u64) -> Vec<f32> {
        crate::rng::TorchRng::new(seed).randn(len)
    }

    #[test]
    fn any_kernel_stride_and_padding() -> Result<()> {
        let asymmetric = Padding {
            top: 0,
            bottom: 2,
            left: 3,
            right: 1,
        };
        for (kernel, stride, padding) in [
            ((3, 3), 1, Padding::same(1)),
            ((3, 3), 2, Padding::same(1)),
            (
                (3, 3),
                2,
                Padding {
                    bottom: 1,
                    right: 1,
                    ..Padding::default()
                },
            ),
            ((1, 1), 2, Padding::default()),
            ((1, 4), 1, asymmetric),
            ((2, 5), 3, asymmetric),
        ] {
            for (height, width) in [(7, 8), (8, 5), (6, 6)] {
                let config = Conv2dConfig {
                    kernel,
                    stride,
                    padding,
                    bias: false,
                };
                let size = [2, height, width, 3];
                let x = random(size.iter().product(), 1);
                let w = random(4 * 3 * kernel.0 * kernel.1, 2);
                let weight = Tensor::from_slice(&w, (4, 3, kernel.0, kernel.1), &Device::Cpu)?;
                let source = HashMap::from([("weight".to_owned(), weight)]);
                let conv = Params::build(&source, DType::F32, &Device::Cpu, &[], |p| {
                    Conv2d::new(p, 3, 4, config)
                })?;
                let picture = Activation::new(Tensor::from_slice(&x, &size, &Device::Cpu)?);
                let ours = conv
                    .forward(&picture)?
                    .to_tensor()?
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                let expected = by_definition(&x, size, &w, 4, &config);
                assert_eq!(ours.len(), expected.len(), "{config:?} {size:?}");
                for (ours, expected) in ours.iter().zip(expected) {
                    assert!(
                        (f64::from(*ours) - expected).abs() < 1e-4,
                        "{config:?} {size:?}"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn both_ways_agree_in_value_and_gradient() -> Result<()> {
        for (stride, height, width, seamless) in [
            (1, 6, 7, Seamless::NONE),
            (2, 8, 7, Seamless::NONE),
            (2, 7, 8, Seamless::BOTH),
            (3, 9, 8, Seamless { x: true, y: false }),
        ] {
            let config = Conv2dConfig::same(3).with_stride(stride).without_bias();
            let x = Tensor::from_vec(
                random(2 * height * width * 3, 1),
                (2, height, width, 3),
                &Device::Cpu,
            )?;
            let weight = Tensor::from_vec(random(4 * 27, 2), (4, 3, 3, 3), &Device::Cpu)?;
            let (x, weight) = (Var::from_tensor(&x)?, Var::from_tensor(&weight)?);
            let padded = pad(&x, &config, seamless)?;
            let mut results = Vec::new();
            for y in [
                convolve_by_patches(&padded, &flatten_kernels(&weight)?, &config)?,
                convolve_on_device(&padded, &weight, &config)?,
            ] {
                let gradients = y.sqr()?.sum_all()?.backward()?;
                let gradient = |of: &Var| {
                    gradients
                        .get(of)
                        .cloned()
                        .ok_or_else(|| Error::custom("no gradient"))
                };
                results.push([y, gradient(&x)?, gradient(&weight)?]);
            }
            for (a, b) in results[0].iter().zip(&results[1]) {
                let difference = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                let largest = a.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                assert!(
                    difference <= 1e-5 * largest,
                    "stride {stride}, {height} x {width}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_picture_smaller_than_the_kernel_is_an_error() -> Result<()> {
        let config = Conv2dConfig {
            kernel: (5, 5),
            stride: 1,
            padding: Padding::default(),
            bias: false,
        };
        let weight = Tensor::zeros((1, 1, 5, 5), DType::F32, &Device::Cpu)?;
        let source = HashMap::from([("weight".to_owned(), weight)]);
        let conv = Params::build(&source, DType::F32, &Device::Cpu, &[], |p| {
            Conv2d::new(p, 1, 1, config)
        })?;
        let picture = Activation::new(Tensor::zeros((1, 4, 4, 1), DType::F32, &Device::Cpu)?);
        assert!(conv.forward(&picture).is_err());
        Ok(())
    }
}
