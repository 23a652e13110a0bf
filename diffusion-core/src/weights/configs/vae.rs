//! `AutoencoderKL` and `AutoencoderTiny`.

use serde_json::{Value, json};

use super::Shapes;
use crate::error::Result;
use crate::weights::keys::count;

pub(super) fn config(shapes: &Shapes<'_>) -> Result<Value> {
    let resnet = |i, j| format!("encoder.down_blocks.{i}.resnets.{j}.conv1.weight");
    let levels = count(|i| shapes.has(&resnet(i, 0)));
    let channels = (0..levels)
        .map(|i| shapes.dim(&resnet(i, 0), 0))
        .collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "force_upcast": false,
        "in_channels": shapes.dim("encoder.conv_in.weight", 1)?,
        "latent_channels": shapes.dim("decoder.conv_in.weight", 1)?,
        "layers_per_block": count(|j| shapes.has(&resnet(0, j))),
        "mid_block_add_attention": shapes.has("decoder.mid_block.attentions.0.group_norm.weight"),
        "norm_num_groups": 32,
        "out_channels": shapes.dim("decoder.conv_out.weight", 0)?,
        "scaling_factor": 0.18215,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": shapes.has("post_quant_conv.weight"),
        "use_quant_conv": shapes.has("quant_conv.weight"),
    }))
}

/// The levels of one half of TAESD.
struct Levels {
    /// Residual blocks of each.
    blocks: Vec<usize>,
    /// Channels of each.
    channels: Vec<usize>,
    /// Channels that the last convolution gives.
    output: usize,
}

/// One half of TAESD in its levels, which convolutions without bias divide.
fn levels(shapes: &Shapes<'_>, half: &str) -> Result<Levels> {
    let at = |i: usize| format!("{half}.layers.{i}");
    let numbers = shapes.map.keys().filter_map(|name| {
        let rest = name.strip_prefix(half)?.strip_prefix(".layers.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    });
    let last = numbers.max().unwrap_or(0);
    let first = shapes.dim(&format!("{}.weight", at(0)), 0)?;
    let mut levels = Levels {
        blocks: vec![0],
        channels: vec![first],
        output: shapes.dim(&format!("{}.weight", at(last)), 0)?,
    };
    // A number in a name is no reason to count to it.
    for i in (1..=last.min(shapes.map.len())).map(at) {
        let end = levels.blocks.len() - 1;
        if shapes.has(&format!("{i}.conv.0.weight")) {
            levels.blocks[end] += 1;
            levels.channels[end] = shapes.dim(&format!("{i}.conv.0.weight"), 0)?;
        } else if shapes.has(&format!("{i}.weight")) && !shapes.has(&format!("{i}.bias")) {
            levels.blocks.push(0);
            levels.channels.push(shapes.dim(&format!("{i}.weight"), 0)?);
        }
    }
    Ok(levels)
}

/// The numbers of a half that is not there are those of the published models.
pub(super) fn tiny_config(shapes: &Shapes<'_>) -> Result<Value> {
    let mut config = json!({
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    });
    for half in ["encoder", "decoder"] {
        let Some(input) = shapes.optional_dim(&format!("{half}.layers.0.weight"), 1) else {
            continue;
        };
        let levels = levels(shapes, half)?;
        let (from, to) = match half {
            "encoder" => ("in_channels", "latent_channels"),
            _ => ("latent_channels", "out_channels"),
        };
        config[from] = json!(input);
        config[to] = json!(levels.output);
        config[format!("num_{half}_blocks")] = json!(levels.blocks);
        config[format!("{half}_block_out_channels")] = json!(levels.channels);
    }
    Ok(config)
}
