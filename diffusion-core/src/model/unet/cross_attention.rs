//! Where a UNet attends to its text.

use crate::nn::Weights;

/// A cross-attention layer of a UNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossAttention {
    /// The transformer block that it is in, such as `down_blocks.0.attentions.0.transformer_blocks.0`.
    pub path: String,
    /// Width of its keys and values.
    pub inner: usize,
    /// Width of what it attends to.
    pub context: usize,
}

/// The projection by whose shape a layer is known.
const TO_KEY: &str = ".attn2.to_k.weight";

/// Those of a model, in diffusers' order.
pub(super) fn of(weights: &Weights) -> Vec<CrossAttention> {
    let found = weights.tensors().iter().filter_map(|(name, tensor)| {
        let path = name.strip_suffix(TO_KEY)?.to_owned();
        let (inner, context) = tensor.dims2().ok()?;
        Some(CrossAttention {
            path,
            inner,
            context,
        })
    });
    let mut layers: Vec<_> = found.collect();
    layers.sort_by_cached_key(|layer| order(&layer.path));
    layers
}

/// diffusers lists the modules of its UNet as its constructor made them: the middle comes last.
fn order(path: &str) -> (usize, Vec<usize>) {
    let sections = ["down_blocks", "up_blocks", "mid_block"];
    let section = sections.iter().position(|name| path.starts_with(name));
    let numbers = path.split('.').filter_map(|part| part.parse().ok());
    (section.unwrap_or(sections.len()), numbers.collect())
}
