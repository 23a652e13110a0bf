//! A configuration, level by level.

use super::blocks::LevelConfig;
use super::{BlockType, MidBlockType, TransformerLayers, UNetConfig};
use crate::config::PerLevel;
use crate::error::{Error, Result};
use crate::nn::{ResnetConfig, TransformerConfig};

/// The settings that are given once or for each level, spelled out for each.
pub(super) struct Levels {
    heads: Vec<usize>,
    cross_attention_dim: Vec<usize>,
    only_cross_attention: Vec<bool>,
    layers_per_block: Vec<usize>,
    transformer_layers: Vec<TransformerLayers>,
}

impl Levels {
    pub(super) fn new(config: &UNetConfig) -> Result<Self> {
        let n = config.block_out_channels.len();
        Ok(Self {
            heads: config.attention_head_dim.to_vec("attention_head_dim", n)?,
            cross_attention_dim: config
                .cross_attention_dim
                .to_vec("cross_attention_dim", n)?,
            only_cross_attention: config
                .only_cross_attention
                .to_vec("only_cross_attention", n)?,
            layers_per_block: config.layers_per_block.to_vec("layers_per_block", n)?,
            transformer_layers: config
                .transformer_layers_per_block
                .to_vec("transformer_layers_per_block", n)?,
        })
    }

    pub(super) fn level(&self, config: &UNetConfig, index: usize, kind: BlockType) -> LevelConfig {
        let channels = config.block_out_channels[index];
        let resnet = ResnetConfig {
            input: channels,
            output: channels,
            temb: Some(config.time_embed_dim()),
            groups: config.norm_num_groups,
            eps: config.norm_eps,
            function: config.act_fn,
            time_scale_shift: config.resnet_time_scale_shift,
            output_scale_factor: 1.0,
        };
        // The level with the most tokens, where attention to all of them costs most.
        let mut kinds = config.down_block_types.iter();
        let outermost = kinds.position(|kind| *kind == BlockType::CrossAttention);
        let transformer = (kind == BlockType::CrossAttention).then(|| TransformerConfig {
            channels,
            heads: self.heads[index],
            layers: 1,
            cross_attention_dim: self.cross_attention_dim[index],
            groups: config.norm_num_groups,
            use_linear_projection: config.use_linear_projection,
            only_cross_attention: self.only_cross_attention[index],
            upcast_attention: config.upcast_attention,
            merges_tokens: outermost == Some(index),
        });
        LevelConfig {
            resnet,
            transformer,
        }
    }

    pub(super) fn middle(&self, config: &UNetConfig, kind: MidBlockType) -> (LevelConfig, usize) {
        let bottom = self.heads.len() - 1;
        let kind = match kind {
            MidBlockType::Plain => BlockType::Plain,
            MidBlockType::CrossAttention => BlockType::CrossAttention,
        };
        let mut level = self.level(config, bottom, kind);
        level.resnet.output_scale_factor = config.mid_block_scale_factor;
        if let Some(transformer) = &mut level.transformer {
            // diffusers hands this setting to the levels and not to the middle.
            transformer.only_cross_attention = false;
        }
        let layers = match &self.transformer_layers[bottom] {
            PerLevel::Same(layers) => *layers,
            PerLevel::Each(each) => each.first().copied().unwrap_or(1),
        };
        (level, layers)
    }

    pub(super) fn down_transformer_layers(&self, index: usize) -> Result<Vec<usize>> {
        let count = self.layers_per_block[index];
        self.transformer_layers[index].to_vec("transformer_layers_per_block", count)
    }

    pub(super) fn up_transformer_layers(
        &self,
        config: &UNetConfig,
        index: usize,
    ) -> Result<Vec<usize>> {
        let from_bottom = self.heads.len() - 1 - index;
        let count = self.layers_per_block[from_bottom] + 1;
        let layers = match &config.reverse_transformer_layers_per_block {
            None => &self.transformer_layers[from_bottom],
            Some(each) => each.get(index).ok_or_else(|| {
                let name = "reverse_transformer_layers_per_block";
                Error::argument(name, "one for each level", each.len())
            })?,
        };
        layers.to_vec("transformer_layers_per_block", count)
    }
}
