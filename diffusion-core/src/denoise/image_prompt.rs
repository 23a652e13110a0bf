//! Pictures as prompts, ready for a UNet.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::guidance::{parts_of, rows_of};
use crate::error::Result;
use crate::model::{IpAdapter, IpAdapterScale};
use crate::nn::ImageAttention;

/// The tokens of pictures, the adapter that made them, and how strongly they count.
#[derive(Debug, Clone)]
pub struct ImagePrompt {
    /// Turns the tokens into keys and values.
    pub adapter: Arc<IpAdapter>,
    /// How strongly they count, and where.
    pub scale: IpAdapterScale,
    /// `(1 or batch, tokens, cross_attention_dim)`: the pictures.
    pub tokens: Tensor,
    /// `(1 or batch, tokens, cross_attention_dim)`: no pictures; needed for guidance above 1.
    pub negative_tokens: Option<Tensor>,
}

impl ImagePrompt {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.tokens].into_iter().chain(&self.negative_tokens)
    }

    /// The rows of some of `num_images` pictures.
    pub(super) fn of_images(&self, images: &Range<usize>, num_images: usize) -> Result<Self> {
        let rows = |tensor: &Tensor| rows_of(tensor, images, num_images);
        Ok(Self {
            tokens: rows(&self.tokens)?,
            negative_tokens: self.negative_tokens.as_ref().map(rows).transpose()?,
            ..self.clone()
        })
    }

    /// Adds keys and values for the negative parts, if any, and the positive.
    pub(super) fn attend(
        &self,
        count: usize,
        batch: usize,
        attention: &mut ImageAttention,
    ) -> Result<()> {
        let negative = self.negative_tokens.as_ref();
        let tokens = parts_of(&self.tokens, negative, count, batch)?;
        self.adapter.attend(&tokens, &self.scale, attention)
    }
}
