//! The fully connected layer.

use candle_core::{D, Tensor};

use super::engine::{self, Layer};
use super::{Activation, LowRank, Params, Weight};
use crate::error::Result;

/// `y = x W^T + b` over the channels, and what low-rank changes add.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    low_rank: Vec<LowRank>,
}

impl Linear {
    /// Reads `weight` `(output, input)` and, if asked for, `bias` `(output)`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(params: Params<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        let weight = params.weight("weight", &[output, input])?;
        let bias = bias.then(|| params.tensor("bias", &[output])).transpose()?;
        Ok(Self {
            weight,
            bias,
            low_rank: params.low_rank(),
        })
    }

    /// Reads a layer that is stored as a convolution of one pixel: `weight` `(output, input, 1, 1)`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn from_conv1x1(params: Params<'_>, input: usize, output: usize) -> Result<Self> {
        let weight = params.weight("weight", &[output, input, 1, 1])?;
        let weight = weight.squeezed()?;
        let bias = Some(params.tensor("bias", &[output])?);
        Ok(Self {
            weight,
            bias,
            low_rank: params.low_rank(),
        })
    }

    /// Products with the rows of a matrix `(output, input)`.
    pub(super) fn of_matrix(matrix: Tensor) -> Self {
        Self {
            weight: Weight::new(matrix),
            bias: None,
            low_rank: Vec::new(),
        }
    }

    /// # Shapes
    /// `x`: `(..., input)`; returns `(..., output)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        match engine::linear(x, self.layer(), None, false)? {
            Some(y) => Ok(y),
            None => self.forward_tensor(x),
        }
    }

    /// The layer's result plus `add`, in whose memory it may come.
    ///
    /// # Shapes
    /// `x`: `(..., input)`; `add` and what it returns: `(..., output)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward_add(&self, x: &Activation, mut add: Activation) -> Result<Activation> {
        match engine::linear(x, self.layer(), Some(&mut add), false)? {
            Some(y) => Ok(y),
            None => self.forward_tensor(x)?.add(&add),
        }
    }

    /// The first half of the result's channels, times GELU (erf) of the second.
    ///
    /// # Shapes
    /// `x`: `(..., input)`; returns `(..., output / 2)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward_gated(&self, x: &Activation) -> Result<Activation> {
        if let Some(y) = engine::linear(x, self.layer(), None, true)? {
            return Ok(y);
        }
        let halves = self.forward(x)?.to_tensor()?.chunk(2, D::Minus1)?;
        Ok(Activation::new((&halves[0] * halves[1].gelu_erf()?)?))
    }

    fn layer(&self) -> Layer<'_> {
        Layer {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            low_rank: &self.low_rank,
        }
    }

    fn forward_tensor(&self, x: &Activation) -> Result<Activation> {
        let (output, input) = self.weight.values().dims2()?;
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = output;
        }
        let x = x.to_tensor()?;
        let x = x.reshape((x.elem_count() / input.max(1), input))?;
        let weight = self.weight.to_dtype(x.dtype())?;
        let mut y = x.matmul(&weight.t()?)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
        }
        for change in &self.low_rank {
            let down = change.down.flatten_from(1)?.to_dtype(x.dtype())?;
            y = change.add(&y, &x.matmul(&down.t()?)?)?;
        }
        Ok(Activation::new(y.reshape(dims)?))
    }
}
