//! What of a request is not data: named by size and hash, so that its owner finds it again.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::pipeline::{GenerateRequest, InitImage};

/// Describes the request's pictures and networks. The latents and the noise are each picture's own and described there.
pub(super) fn note_pictures(request: &GenerateRequest) -> Result<Map<String, Value>> {
    // Without `..`: a new field must be placed. What serde writes is data and needs no more.
    let GenerateRequest {
        prompt: _,
        prompt_2: _,
        negative_prompt: _,
        negative_prompt_2: _,
        prompt_syntax: _,
        clip_skip: _,
        prompt_embeds,
        negative_prompt_embeds,
        sizes: _,
        negative_sizes: _,
        aesthetic_score: _,
        negative_aesthetic_score: _,
        width: _,
        height: _,
        num_steps: _,
        guidance: _,
        seed: _,
        num_images: _,
        batch_size: _,
        eta: _,
        scheduler: _,
        latents: _,
        noise: _,
        variation: _,
        image,
        resize_mode: _,
        strength: _,
        inpainting,
        margins: _,
        is_instruction: _,
        hires: _,
        cancel_token: _,
        keep_cancelled: _,
        denoising_start: _,
        denoising_end: _,
        ip_adapter_images,
        controls,
        pag_scale: _,
        pag_adaptive_scale: _,
        pag_layers: _,
        deep_shrink: _,
        deep_cache: _,
        tgate: _,
        token_merging: _,
        seamless: _,
        vae_tiling: _,
        vae_slicing: _,
    } = request;
    let images = ip_adapter_images.iter().map(|image| image.note());
    let controls = controls.iter().map(|control| control.note());
    let mut needs = Map::new();
    match image {
        Some(InitImage::Pictures(pictures)) => {
            let pictures = pictures.iter().map(hash_picture);
            needs.insert("image".into(), pictures.collect());
        }
        Some(InitImage::Latents(latents)) => {
            needs.insert("image".into(), hash_tensor(latents)?);
        }
        None => {}
    }
    for (name, embeds) in [
        ("prompt_embeds", prompt_embeds),
        ("negative_prompt_embeds", negative_prompt_embeds),
    ] {
        if let Some(embeds) = embeds {
            needs.insert(name.into(), hash_tensor(&embeds.embeds)?);
        }
    }
    if let Some(mask) = &inpainting.mask {
        let size = [mask.width(), mask.height()];
        let hash = hash(mask.as_raw().iter().copied());
        needs.insert("mask".into(), json!({"size": size, "hash": hash}));
    }
    for (name, notes) in [
        ("ip_adapter_images", images.collect::<Result<Vec<_>>>()?),
        ("controls", controls.collect::<Result<Vec<_>>>()?),
    ] {
        if !notes.is_empty() {
            needs.insert(name.into(), notes.into());
        }
    }
    Ok(needs)
}

/// A picture by its size and hash.
pub(in crate::pipeline) fn hash_picture(picture: &RgbImage) -> Value {
    let (width, height) = picture.dimensions();
    json!({"size": [width, height], "hash": hash(picture.as_raw().iter().copied())})
}

/// A tensor by its shape and the hash of its values in f32.
pub(in crate::pipeline) fn hash_tensor(tensor: &Tensor) -> Result<Value> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let values = values.flatten_all()?.to_vec1::<f32>()?;
    let bytes = values.into_iter().flat_map(f32::to_le_bytes);
    Ok(json!({"shape": tensor.dims(), "hash": hash(bytes)}))
}

/// FNV-1a of 64 bits, which tells pictures apart and keeps no secrets.
///
/// Source: RFC 9923.
fn hash(bytes: impl Iterator<Item = u8>) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("fnv1a64:{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values() {
        assert_eq!(hash([].into_iter()), "fnv1a64:cbf29ce484222325");
        assert_eq!(hash(b"foobar".iter().copied()), "fnv1a64:85944171f73967e8");
    }
}
