//! Group and layer normalisation. Statistics are f32 whatever the activations are.

use candle_core::{D, DType, Tensor};

use super::{Activation, ActivationFunction, Params, engine};
use crate::error::{Error, Result};

/// Normalises groups of channels over all pixels of an image.
///
/// Source: Wu and He, "Group Normalization", 2018.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, both `(channels)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `groups` does not divide `channels`; otherwise if reading fails.
    pub fn new(params: Params<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let expected = format!("a divisor of {channels} channels");
            return Err(Error::argument("norm_num_groups", expected, groups));
        }
        let weight = params.tensor("weight", &[channels])?;
        let bias = params.tensor("bias", &[channels])?;
        Ok(Self {
            weight,
            bias,
            groups,
            eps,
        })
    }

    /// # Shapes
    /// `x`: `(batch, ..., channels)`; returns the same.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shapes do not fit.
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        match engine::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, false)? {
            Some(y) => Ok(y),
            None => self.forward_tensor(x),
        }
    }

    /// The non-linearity of what is normalised.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_then(&self, x: &Activation, function: ActivationFunction) -> Result<Activation> {
        if function == ActivationFunction::Silu
            && let Some(y) =
                engine::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, true)?
        {
            return Ok(y);
        }
        function.apply(&self.forward(x)?)
    }

    /// [`forward_then`](Self::forward_then) in the memory of `x` where nothing else has it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_then_within(
        &self,
        mut x: Activation,
        function: ActivationFunction,
    ) -> Result<Activation> {
        let Self {
            weight,
            bias,
            groups,
            eps,
        } = self;
        let is_done = function == ActivationFunction::Silu
            && engine::group_norm_in_place(&mut x, weight, bias, *groups, *eps, true)?;
        match is_done {
            true => Ok(x),
            false => self.forward_then(&x, function),
        }
    }

    fn forward_tensor(&self, x: &Activation) -> Result<Activation> {
        let channels = x.channels();
        let batch = x.dims().first().copied().unwrap_or(1);
        let pixels = x.dims().iter().product::<usize>() / (batch * channels).max(1);
        let rows = x
            .to_tensor()?
            .reshape((batch, pixels, channels))?
            .to_dtype(DType::F32)?;
        let centred = rows.broadcast_sub(&self.group_mean(&rows)?)?;
        let variance = self.group_mean(&centred.sqr()?)?;
        let scale = (variance + self.eps)?.sqrt()?.recip()?;
        let scale = scale.broadcast_mul(&self.weight.to_dtype(DType::F32)?)?;
        let y = centred
            .broadcast_mul(&scale)?
            .broadcast_add(&self.bias.to_dtype(DType::F32)?)?;
        Ok(Activation::new(y.to_dtype(x.dtype())?.reshape(x.dims())?))
    }

    /// The mean of each group, repeated for each of its channels: `(batch, 1, channels)`.
    fn group_mean(&self, rows: &Tensor) -> Result<Tensor> {
        let (batch, _, channels) = rows.dims3()?;
        let width = channels / self.groups;
        let means = rows
            .mean(1)?
            .reshape((batch, self.groups, width))?
            .mean_keepdim(2)?;
        Ok(means
            .broadcast_as((batch, self.groups, width))?
            .reshape((batch, 1, channels))?)
    }
}

/// Normalises the channels of each token.
///
/// Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, both `(channels)`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(params: Params<'_>, channels: usize, eps: f64) -> Result<Self> {
        let weight = params.tensor("weight", &[channels])?;
        let bias = params.tensor("bias", &[channels])?;
        Ok(Self { weight, bias, eps })
    }

    /// # Shapes
    /// `x`: `(..., channels)`; returns the same.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shapes do not fit.
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        if let Some(y) = engine::layer_norm(x, &self.weight, &self.bias, self.eps)? {
            return Ok(y);
        }
        let rows = x.to_tensor()?.to_dtype(DType::F32)?;
        let centred = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        let y = y.broadcast_mul(&self.weight.to_dtype(DType::F32)?)?;
        let y = y.broadcast_add(&self.bias.to_dtype(DType::F32)?)?;
        Ok(Activation::new(y.to_dtype(x.dtype())?))
    }
}
