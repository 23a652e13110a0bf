//! The fully connected layer.

use candle_core::Tensor;

use super::{Activation, Params};
use crate::error::Result;

/// `y = x W^T + b` over the channels.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` `(output, input)` and, if asked for, `bias` `(output)`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(params: Params<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        let weight = params.tensor("weight", &[output, input])?;
        let bias = bias.then(|| params.tensor("bias", &[output])).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Reads a layer that is stored as a convolution of one pixel: `weight` `(output, input, 1, 1)`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn from_conv1x1(params: Params<'_>, input: usize, output: usize) -> Result<Self> {
        let weight = params.tensor("weight", &[output, input, 1, 1])?;
        let weight = weight.squeeze(3)?.squeeze(2)?;
        let bias = Some(params.tensor("bias", &[output])?);
        Ok(Self { weight, bias })
    }

    /// # Shapes
    /// `x`: `(..., input)`; returns `(..., output)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        let (output, input) = self.weight.dims2()?;
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = output;
        }
        let rows = x.tensor().elem_count() / input.max(1);
        let weight = self.weight.to_dtype(x.dtype())?;
        let mut y = x.tensor().reshape((rows, input))?.matmul(&weight.t()?)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
        }
        Ok(Activation::new(y.reshape(dims)?))
    }
}
