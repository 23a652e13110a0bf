//! ControlNets and T2I-Adapters.

use super::{KeyMap, UNetLayout, count};

impl UNetLayout {
    /// The names of a ControlNet beside such a way down and middle, without prefix. `hints` is the number of
    /// convolutions that read the picture.
    pub fn control_net_key_map(&self, hints: usize) -> KeyMap {
        let mut map = self.key_map();
        // Every second module of the original is an activation.
        for i in 0..hints {
            let original = format!("input_hint_block.{}", 2 * i);
            let embedding = "controlnet_cond_embedding";
            match i {
                0 => map.add(original, format_args!("{embedding}.conv_in")),
                i if i + 1 == hints => map.add(original, format_args!("{embedding}.conv_out")),
                i => map.add(original, format_args!("{embedding}.blocks.{}", i - 1)),
            }
        }
        let blocks = self
            .down
            .iter()
            .map(|level| level.depths.len() + usize::from(level.resamples));
        for i in 0..=blocks.sum() {
            map.add(
                format_args!("zero_convs.{i}.0"),
                format_args!("controlnet_down_blocks.{i}"),
            );
        }
        map.add("middle_block_out.0", "controlnet_mid_block");
        map
    }
}

/// Levels of published full adapters, where names do not tell.
const LEVELS: usize = 4;

/// What a T2I-Adapter is made of, as far as the numbers in its tensors' names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct T2iAdapterLayout {
    /// Levels, light adapters' last one included.
    pub levels: usize,
    /// Residual blocks of each.
    pub blocks: usize,
    /// Whether it is a light adapter.
    pub is_light: bool,
}

impl T2iAdapterLayout {
    /// Reads it off TencentARC's names. Full adapters are one list of residual blocks there, of which the first
    /// of the second level changes the number of channels.
    pub fn from_original(has: impl Fn(&str) -> bool) -> Self {
        let block = |i: usize| has(&format!("body.{i}.block1.weight"));
        let inner = |i: usize, j: usize| has(&format!("body.{i}.body.{j}.block1.weight"));
        if inner(0, 0) {
            return Self {
                levels: count(|i| inner(i, 0)),
                blocks: count(|j| inner(0, j)),
                is_light: true,
            };
        }
        let all = count(block);
        let second = (1..all).find(|i| has(&format!("body.{i}.in_conv.weight")));
        let blocks = second.unwrap_or(all / LEVELS).max(1);
        Self {
            levels: all.div_ceil(blocks),
            blocks,
            is_light: false,
        }
    }

    /// Reads it off diffusers' names.
    pub fn from_diffusers(has: impl Fn(&str) -> bool) -> Self {
        let block = |i, j| has(&format!("adapter.body.{i}.resnets.{j}.block1.weight"));
        Self {
            levels: count(|i| block(i, 0)),
            blocks: count(|j| block(0, j)),
            is_light: !has("adapter.conv_in.weight"),
        }
    }
}

impl KeyMap {
    /// The names of a T2I-Adapter.
    pub fn t2i_adapter(layout: &T2iAdapterLayout) -> Self {
        let mut map = Self::default();
        if !layout.is_light {
            map.add("conv_in", "adapter.conv_in");
        }
        for i in 0..layout.levels {
            let level = format!("adapter.body.{i}");
            let (original, ends) = match layout.is_light {
                true => (format!("body.{i}"), ["in_conv", "out_conv"].as_slice()),
                false => (
                    format!("body.{}", i * layout.blocks),
                    ["in_conv"].as_slice(),
                ),
            };
            for end in ends {
                map.add(
                    format_args!("{original}.{end}"),
                    format_args!("{level}.{end}"),
                );
            }
            for j in 0..layout.blocks {
                let original = match layout.is_light {
                    true => format!("body.{i}.body.{j}"),
                    false => format!("body.{}", i * layout.blocks + j),
                };
                for conv in ["block1", "block2"] {
                    map.add(
                        format_args!("{original}.{conv}"),
                        format_args!("{level}.resnets.{j}.{conv}"),
                    );
                }
            }
        }
        map
    }
}
