//! `AutoencoderKL`.

use super::{Form, KeyMap};

/// Modules outside of levels.
const WHOLE: &[(&str, &str)] = &[
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.norm_out", "encoder.conv_norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.norm_out", "decoder.conv_norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
];

/// A residual block.
const RESNET: &[(&str, &str)] = &[
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
];

/// The middle's projections, 1x1 convolutions in CompVis's files.
const PROJECTIONS: &[(&str, &str)] = &[
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
];

/// What diffusers called the same before version 0.16.
const FORMER_PROJECTIONS: &[(&str, &str)] = &[
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("proj_attn", "to_out.0"),
];

const HALVES: [&str; 2] = ["encoder", "decoder"];

impl KeyMap {
    /// The autoencoder of `levels` levels with `layers` residual blocks each in the encoder and one more in
    /// the decoder.
    pub fn vae(levels: usize, layers: usize) -> Self {
        let mut map = Self::default();
        for (original, diffusers) in WHOLE {
            map.add(original, diffusers);
        }
        for half in HALVES {
            for i in 0..2 {
                map.add_table(
                    format_args!("{half}.mid.block_{}", i + 1),
                    format_args!("{half}.mid_block.resnets.{i}"),
                    RESNET,
                );
            }
            let diffusers = format!("{half}.mid_block.attentions.0");
            map.add(
                format_args!("{half}.mid.attn_1.norm"),
                format_args!("{diffusers}.group_norm"),
            );
            for (inner, renamed) in PROJECTIONS {
                map.add_as(
                    format_args!("{half}.mid.attn_1.{inner}"),
                    format_args!("{diffusers}.{renamed}"),
                    Form::Pointwise,
                );
            }
        }
        for i in 0..levels {
            // CompVis counts the decoder's levels from full size, too.
            let up = levels - 1 - i;
            for j in 0..layers {
                map.add_table(
                    format_args!("encoder.down.{i}.block.{j}"),
                    format_args!("encoder.down_blocks.{i}.resnets.{j}"),
                    RESNET,
                );
            }
            for j in 0..=layers {
                map.add_table(
                    format_args!("decoder.up.{up}.block.{j}"),
                    format_args!("decoder.up_blocks.{i}.resnets.{j}"),
                    RESNET,
                );
            }
            map.add(
                format_args!("encoder.down.{i}.downsample.conv"),
                format_args!("encoder.down_blocks.{i}.downsamplers.0.conv"),
            );
            map.add(
                format_args!("decoder.up.{up}.upsample.conv"),
                format_args!("decoder.up_blocks.{i}.upsamplers.0.conv"),
            );
        }
        map
    }

    /// diffusers' names of today for the autoencoders that it wrote before version 0.16.
    pub fn former_vae() -> Self {
        let mut map = Self::identity();
        for half in HALVES {
            for (former, today) in FORMER_PROJECTIONS {
                let attention = format!("{half}.mid_block.attentions.0");
                map.add_as(
                    format_args!("{attention}.{former}"),
                    format_args!("{attention}.{today}"),
                    Form::Pointwise,
                );
            }
        }
        map
    }
}
