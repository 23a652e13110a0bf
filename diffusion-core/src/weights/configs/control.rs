//! `ControlNetModel` and `T2IAdapter`.

use serde_json::{Value, json};

use super::{Shapes, unet};
use crate::error::Result;
use crate::weights::keys::{T2iAdapterLayout, UNetLayout, count};

pub(super) fn control_net_config(shapes: &Shapes<'_>) -> Result<Value> {
    let layout = UNetLayout::from_diffusers(|name| shapes.has(name));
    let embedding = "controlnet_cond_embedding";
    let block = |i: usize| format!("{embedding}.blocks.{i}.weight");
    let conv_in = format!("{embedding}.conv_in.weight");
    let mut channels = vec![shapes.dim(&conv_in, 0)?];
    // Of each pair of convolutions the second changes the number of channels.
    for i in 0..count(|i| shapes.has(&block(i))) / 2 {
        channels.push(shapes.dim(&block(2 * i + 1), 0)?);
    }
    let mut config = unet::encoder_config(shapes, &layout)?;
    config["_class_name"] = json!("ControlNetModel");
    config["conditioning_channels"] = json!(shapes.dim(&conv_in, 1)?);
    config["conditioning_embedding_out_channels"] = json!(channels);
    config["controlnet_conditioning_channel_order"] = json!("rgb");
    config["global_pool_conditions"] = json!(false);
    Ok(config)
}

/// Squares of pixels as channels, for pictures in colour or grey: SDXL's adapters have a larger square.
const XL_FACTOR: usize = 16;

/// Channels of the picture and pixels of a square's side, whose product is `unshuffled`.
fn unshuffle(unshuffled: usize) -> Option<(usize, usize)> {
    [3, 1].into_iter().find_map(|channels| {
        let factor = unshuffled.checked_div(channels)?.isqrt();
        let is_exact =
            factor.is_power_of_two() && factor.checked_pow(2)?.checked_mul(channels)? == unshuffled;
        is_exact.then_some((channels, factor))
    })
}

pub(super) fn t2i_adapter_config(shapes: &Shapes<'_>) -> Result<Value> {
    let T2iAdapterLayout {
        levels,
        blocks,
        is_light,
    } = T2iAdapterLayout::from_diffusers(|name| shapes.has(name));
    let (first, output) = match is_light {
        true => ("adapter.body.0.in_conv.weight", "out_conv"),
        false => ("adapter.conv_in.weight", "resnets.0.block1"),
    };
    let input = shapes.dim(first, 1)?;
    let Some((in_channels, factor)) = unshuffle(input) else {
        let what =
            format!("a T2I-Adapter of {input} channels after its pixels are laid out as such");
        return Err(shapes.unsupported(&what));
    };
    // A light adapter's last level has the channels of the one before, and is not counted.
    let counted = levels - usize::from(is_light && levels > 1);
    let channels = (0..counted)
        .map(|i| shapes.dim(&format!("adapter.body.{i}.{output}.weight"), 0))
        .collect::<Result<Vec<_>>>()?;
    let adapter_type = match (is_light, factor) {
        (true, _) => "light_adapter",
        (false, XL_FACTOR..) => "full_adapter_xl",
        (false, _) => "full_adapter",
    };
    Ok(json!({
        "_class_name": "T2IAdapter",
        "adapter_type": adapter_type,
        "channels": channels,
        "downscale_factor": factor,
        "in_channels": in_channels,
        "num_res_blocks": blocks,
    }))
}
