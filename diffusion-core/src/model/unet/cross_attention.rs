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
    let blocks = blocks_with(weights, TO_KEY).into_iter();
    let layers = blocks.map(|(path, (inner, context))| CrossAttention {
        path,
        inner,
        context,
    });
    layers.collect()
}

/// The transformer blocks that have a matrix of a name, and its shape, in diffusers' order.
pub(super) fn blocks_with(weights: &Weights, suffix: &str) -> Vec<(String, (usize, usize))> {
    let found = weights.tensors().iter().filter_map(|(name, tensor)| {
        let path = name.strip_suffix(suffix)?.to_owned();
        Some((path, tensor.dims2().ok()?))
    });
    let mut blocks: Vec<_> = found.collect();
    blocks.sort_by_cached_key(|(path, _)| order(path));
    blocks
}

/// diffusers lists the modules of its UNet as its constructor made them: the middle comes last.
fn order(path: &str) -> (usize, Vec<usize>) {
    let sections = ["down_blocks", "up_blocks", "mid_block"];
    let section = sections.iter().position(|name| path.starts_with(name));
    let numbers = path.split('.').filter_map(|part| part.parse().ok());
    (section.unwrap_or(sections.len()), numbers.collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::Result;

    #[test]
    fn the_middle_comes_last_and_numbers_are_numbers() -> Result<()> {
        let in_order = [
            "down_blocks.1.attentions.0.transformer_blocks.2",
            "down_blocks.1.attentions.0.transformer_blocks.10",
            "down_blocks.1.attentions.1.transformer_blocks.0",
            "down_blocks.2.attentions.0.transformer_blocks.0",
            "up_blocks.0.attentions.0.transformer_blocks.0",
            "mid_block.attentions.0.transformer_blocks.0",
        ];
        let weight = Tensor::zeros((6, 4), DType::F32, &Device::Cpu)?;
        let attention = |path: &str, layer: &str| format!("{path}.{layer}.to_k.weight");
        let names = in_order
            .iter()
            .flat_map(|path| [attention(path, "attn1"), attention(path, "attn2")]);
        let tensors = names.map(|name| (name, weight.clone())).collect();
        let layers = of(&Weights::new(tensors, DType::F32, Device::Cpu));
        let paths: Vec<_> = layers.iter().map(|layer| layer.path.as_str()).collect();
        assert_eq!(paths, in_order);
        assert!(layers.iter().all(|l| (l.inner, l.context) == (6, 4)));
        Ok(())
    }
}
