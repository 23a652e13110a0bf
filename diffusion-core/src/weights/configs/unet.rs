//! `UNet2DConditionModel`, and what a ControlNet shares with it.

use serde_json::{Value, json};

use super::Shapes;
use crate::error::Result;
use crate::weights::keys::{UNetLayout, UNetLevel};

/// Channels of a head where the transformers' projections are linear layers: SD 2 and SDXL.
const HEAD_WIDTH: usize = 64;
/// Heads where they are convolutions: SD 1.
const HEADS: usize = 8;
/// Width of the embedding of each of SDXL's sizes.
const TIME_ID_WIDTH: usize = 256;

pub(super) fn config(shapes: &Shapes<'_>) -> Result<Value> {
    let layout = UNetLayout::from_diffusers(|name| shapes.has(name));
    check_way_up(shapes, &layout)?;
    let mut config = encoder_config(shapes, &layout)?;
    config["_class_name"] = json!("UNet2DConditionModel");
    config["center_input_sample"] = json!(false);
    config["conv_in_kernel"] = json!(shapes.dim("conv_in.weight", 2)?);
    config["conv_out_kernel"] = json!(shapes.dim("conv_out.weight", 2)?);
    config["out_channels"] = json!(shapes.dim("conv_out.weight", 0)?);
    config["time_cond_proj_dim"] = json!(shapes.optional_dim("time_embedding.cond_proj.weight", 1));
    config["up_block_types"] = json!(block_types(shapes, &layout.up, "up"));
    Ok(config)
}

/// The settings of a UNet's way down and middle, which a ControlNet has too.
pub(super) fn encoder_config(shapes: &Shapes<'_>, layout: &UNetLayout) -> Result<Value> {
    let channels = layout
        .down
        .iter()
        .enumerate()
        .map(|(i, _)| shapes.dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>>>()?;
    let is_linear = shapes.has_linear_projections();
    let cross_attention_dim = first_attention(layout)
        .map(|at| shapes.dim(&format!("{at}.transformer_blocks.0.attn2.to_k.weight"), 1))
        .transpose()?;
    let heads = match is_linear {
        true => json!(
            channels
                .iter()
                .map(|n| (n / HEAD_WIDTH).max(1))
                .collect::<Vec<_>>()
        ),
        false => json!(HEADS),
    };
    let added = shapes.optional_dim("add_embedding.linear_1.weight", 1);
    let (depths, reversed) = transformer_layers(shapes, layout)?;
    Ok(json!({
        "act_fn": "silu",
        "addition_embed_type": added.map(|_| "text_time"),
        "addition_time_embed_dim": added.map(|_| TIME_ID_WIDTH),
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "cross_attention_dim": cross_attention_dim.unwrap_or(1280),
        "down_block_types": block_types(shapes, &layout.down, "down"),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": shapes.dim("conv_in.weight", 1)?,
        "layers_per_block": layers_per_block(shapes, layout)?,
        "mid_block_scale_factor": 1,
        "mid_block_type": match (layout.mid, attending_middle(shapes, layout)) {
            (Some(_), Some(_)) => Some("UNetMidBlock2DCrossAttn"),
            (Some(_), None) => Some("UNetMidBlock2D"),
            (None, _) => None,
        },
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": added,
        "reverse_transformer_layers_per_block": reversed,
        "time_embedding_dim": time_embedding_dim(shapes, &channels)?,
        "transformer_layers_per_block": depths,
        "upcast_attention": false,
        "use_linear_projection": is_linear,
    }))
}

fn block_types(shapes: &Shapes<'_>, levels: &[UNetLevel], side: &str) -> Vec<&'static str> {
    let block_type = |(i, level): (usize, &UNetLevel)| match (side, attends(shapes, side, i, level))
    {
        ("down", true) => "CrossAttnDownBlock2D",
        ("down", false) => "DownBlock2D",
        (_, true) => "CrossAttnUpBlock2D",
        (_, false) => "UpBlock2D",
    };
    levels.iter().enumerate().map(block_type).collect()
}

/// Whether a level has attention. Small ControlNets have some of no transformer blocks, which project only.
fn attends(shapes: &Shapes<'_>, side: &str, index: usize, level: &UNetLevel) -> bool {
    let norm = format!("{side}_blocks.{index}.attentions.0.norm.weight");
    level.depths.first().is_some_and(|&depth| depth > 0) || shapes.has(&norm)
}

/// Transformer blocks in a middle with attention.
fn attending_middle(shapes: &Shapes<'_>, layout: &UNetLayout) -> Option<usize> {
    let has_norm = shapes.has("mid_block.attentions.0.norm.weight");
    layout.mid.filter(|&depth| depth > 0 || has_norm)
}

fn check_way_up(shapes: &Shapes<'_>, layout: &UNetLayout) -> Result<()> {
    let down = layout.down.iter().map(|level| level.depths.len() + 1);
    match layout
        .up
        .iter()
        .rev()
        .map(|level| level.depths.len())
        .eq(down)
    {
        true => Ok(()),
        false => {
            Err(shapes.unsupported("a UNet whose way up is not one block longer in each level"))
        }
    }
}

/// Where the first spatial transformer with blocks is.
fn first_attention(layout: &UNetLayout) -> Option<String> {
    let on_the_way = |levels: &[UNetLevel], side: &str| {
        let level = levels
            .iter()
            .position(|level| level.depths.first().is_some_and(|&depth| depth > 0))?;
        Some(format!("{side}.{level}.attentions.0"))
    };
    let middle = layout.mid.filter(|&depth| depth > 0);
    on_the_way(&layout.down, "down_blocks")
        .or_else(|| middle.map(|_| "mid_block.attentions.0".to_owned()))
        .or_else(|| on_the_way(&layout.up, "up_blocks"))
}

/// One number if all levels have as many, as in all published models.
fn layers_per_block(shapes: &Shapes<'_>, layout: &UNetLayout) -> Result<Value> {
    let counts: Vec<usize> = layout.down.iter().map(|l| l.depths.len()).collect();
    let all = layout.down.iter().chain(&layout.up);
    for level in all {
        if level.depths.contains(&0) && level.depths.iter().any(|&depth| depth > 0) {
            return Err(shapes.unsupported("a UNet with attention in some blocks of a level only"));
        }
    }
    Ok(match counts.as_slice() {
        [first, rest @ ..] if rest.iter().all(|n| n == first) => json!(first),
        _ => json!(counts),
    })
}

/// `transformer_layers_per_block`, and `reverse_transformer_layers_per_block` where the way up is not its
/// mirror image.
fn transformer_layers(shapes: &Shapes<'_>, layout: &UNetLayout) -> Result<(Value, Option<Value>)> {
    let bottom = layout.down.len().saturating_sub(1);
    let mut depths: Vec<Vec<usize>> = layout.down.iter().map(|l| l.depths.clone()).collect();
    let middle = attending_middle(shapes, layout);
    // The number of a level without attention is free, and the middle takes the last one.
    for (i, level) in depths.iter_mut().enumerate() {
        if attends(shapes, "down", i, &layout.down[i]) {
            continue;
        }
        let free = middle.filter(|_| i == bottom);
        for depth in level.iter_mut().filter(|depth| **depth == 0) {
            *depth = free.unwrap_or(1);
        }
    }
    let last = depths.last().and_then(|level| level.first());
    if let (Some(mid), Some(&last)) = (middle, last)
        && mid != last
    {
        return Err(
            shapes.unsupported("a UNet whose middle is deeper or shallower than the lowest level")
        );
    }
    let is_mirrored = layout.up.iter().rev().zip(&depths).all(|(up, down)| {
        let same = down.iter().all(|depth| Some(depth) == down.first());
        let has_none = up.depths.first() == Some(&0);
        has_none || (same && up.depths.iter().all(|depth| Some(depth) == down.first()))
    });
    let short = |level: &[usize]| match level {
        [first, rest @ ..] if rest.iter().all(|depth| depth == first) => json!(first),
        _ => json!(level),
    };
    let reversed = (!is_mirrored).then(|| {
        let levels = layout.up.iter().map(|level| {
            let level: Vec<usize> = level.depths.iter().map(|&depth| depth.max(1)).collect();
            short(&level)
        });
        Value::Array(levels.collect())
    });
    let levels: Vec<Value> = depths.iter().map(|level| short(level)).collect();
    Ok(match levels.as_slice() {
        [first, rest @ ..] if first.is_number() && rest.iter().all(|n| n == first) => {
            (first.clone(), reversed)
        }
        _ => (Value::Array(levels), reversed),
    })
}

/// Width of the timestep's vector, where it is not the usual one.
fn time_embedding_dim(shapes: &Shapes<'_>, channels: &[usize]) -> Result<Option<usize>> {
    let width = shapes.dim("time_embedding.linear_1.weight", 0)?;
    Ok(Some(width).filter(|&width| {
        channels
            .first()
            .is_none_or(|first| width != first.saturating_mul(4))
    }))
}
