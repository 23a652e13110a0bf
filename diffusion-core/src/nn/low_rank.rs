//! Changes of a layer by products of small matrices, added where the layer runs.

use std::collections::HashMap;

use candle_core::{D, Tensor};

use crate::error::Result;

/// What is added to a layer's weight `(output, input, ...)`: the product `up down`.
///
/// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `(rank, input, ...)`, a layer of the same kind.
    pub down: Tensor,
    /// `(output, rank)`, its strength included.
    pub up: Tensor,
}

/// Changes by the names of their layers.
pub type LowRanks = HashMap<String, Vec<LowRank>>;

impl LowRank {
    /// Adds the change to the layer's result.
    ///
    /// # Shapes
    /// `y`: `(..., output)`, `lowered`: what `down` makes of the layer's input, `(..., rank)`; returns the shape
    /// of `y`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub(super) fn add(&self, y: &Tensor, lowered: &Tensor) -> Result<Tensor> {
        let rank = lowered.dim(D::Minus1)?;
        let up = self.up.to_dtype(y.dtype())?.t()?;
        let raised = lowered.reshape(((), rank))?.matmul(&up)?;
        Ok((y + raised.reshape(y.shape())?)?)
    }
}
