//! Element-wise activation functions.

use serde::Deserialize;

use super::{Activation, engine};
use crate::error::Result;

/// An element-wise non-linearity, by the names that model configurations use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationFunction {
    /// `x * sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// `x * sigmoid(1.702 x)`, as the CLIP of SD 1.x.
    QuickGelu,
    /// `x * Phi(x)` with the exact error function.
    Gelu,
    /// The tanh approximation of [`Gelu`](Self::Gelu).
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `max(x, 0)`.
    Relu,
}

impl ActivationFunction {
    /// Applies the function to every element.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device fails.
    pub fn apply(self, x: &Activation) -> Result<Activation> {
        if let Some(y) = engine::apply(self, x)? {
            return Ok(y);
        }
        let x = x.to_tensor()?;
        let y = match self {
            Self::Silu => x.silu()?,
            Self::QuickGelu => (&x * candle_nn::ops::sigmoid(&(&x * 1.702)?)?)?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluNew => x.gelu()?,
            Self::Relu => x.relu()?,
        };
        Ok(Activation::new(y))
    }
}
