//! Pictures in cross-attention, beside the text.

use std::collections::HashMap;

use super::{Activation, Gate, Mask, PerturbedAttention, attention};
use crate::error::Result;

/// Keys and values of a picture for one cross-attention layer.
#[derive(Debug, Clone)]
pub struct ImageKeyValue {
    /// `(batch, tokens, inner)`.
    pub key: Activation,
    /// `(batch, tokens, inner)`.
    pub value: Activation,
    /// What the attention to them is multiplied by before it is added to the attention to the text.
    pub scale: f64,
}

/// Keys and values of pictures for the cross-attention layers of a UNet.
///
/// They are the same in every step of a run, so they are made once, and the UNet stays as it is.
#[derive(Debug, Clone, Default)]
pub struct ImageAttention {
    layers: HashMap<String, Vec<ImageKeyValue>>,
}

impl ImageAttention {
    /// Adds a picture to the cross-attention of the transformer block at `path`, such as
    /// `down_blocks.0.attentions.0.transformer_blocks.0`.
    pub fn add(&mut self, path: impl Into<String>, pictures: ImageKeyValue) {
        self.layers.entry(path.into()).or_default().push(pictures);
    }

    /// The same with each key and value changed.
    ///
    /// # Errors
    /// What `change` returns.
    pub fn map(&self, change: impl Fn(&Activation) -> Result<Activation>) -> Result<Self> {
        let picture = |picture: &ImageKeyValue| {
            Ok(ImageKeyValue {
                key: change(&picture.key)?,
                value: change(&picture.value)?,
                scale: picture.scale,
            })
        };
        let layers = self.layers.iter().map(|(path, pictures)| {
            let pictures = pictures.iter().map(picture).collect::<Result<_>>()?;
            Ok((path.clone(), pictures))
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The pictures of the transformer block at `path`.
    pub fn at(&self, path: &str) -> &[ImageKeyValue] {
        self.layers.get(path).map_or(&[], Vec::as_slice)
    }
}

/// What the attention layers of a model are told.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// `(batch, tokens, cross_attention_dim)`.
    pub text: &'a Activation,
    /// Pictures beside it.
    pub pictures: Option<&'a ImageAttention>,
    /// Self-attention layers that are perturbed.
    pub perturbed: Option<&'a PerturbedAttention>,
    /// Whether cross-attention layers leave what they find, or answer what was left.
    pub gate: Option<Gate<'a>>,
    /// Which share of the tokens goes into others for self-attention, where layers allow that.
    pub token_merging: f64,
}

impl<'a> Context<'a> {
    /// Text alone.
    pub fn text(text: &'a Activation) -> Self {
        Self {
            text,
            pictures: None,
            perturbed: None,
            gate: None,
            token_merging: 0.0,
        }
    }
}

/// Adds what `queries` find in `pictures` to what they found in the text.
///
/// Source: Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter", 2023, equation 5.
///
/// # Shapes
/// `found` and `queries`: `(batch, queries, inner)`; returns the same.
///
/// # Errors
/// As [`attention`].
pub(super) fn add_pictures(
    found: Activation,
    queries: &Activation,
    pictures: &[ImageKeyValue],
    heads: usize,
    upcast: bool,
) -> Result<Activation> {
    pictures.iter().try_fold(found, |found, picture| {
        let ImageKeyValue { key, value, scale } = picture;
        let (key, value) = (
            key.to_dtype(queries.dtype())?,
            value.to_dtype(queries.dtype())?,
        );
        let seen = attention(queries, &key, &value, heads, Mask::None, upcast)?;
        found.add(&seen.affine(*scale, 0.0)?)
    })
}
