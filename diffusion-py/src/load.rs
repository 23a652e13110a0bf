//! From paths to a pipeline.

use std::path::PathBuf;

use diffusion_core::device::{parse_device, parse_dtype};
use diffusion_core::weights::{Embedding, Lora, LoraMode, LoraScale};
use diffusion_core::{Pipeline, Result};
use pyo3::prelude::*;

use crate::error;

/// A LoRA's file, folder or id, and its strength in the UNet and in the text encoders, with factors for blocks of the
/// UNet.
pub(crate) type ScaledLora = (PathBuf, (f64, f64, Vec<(String, f64)>));

/// The file of a learned word, and the word if it shall have another name.
pub(crate) type NamedEmbedding = (PathBuf, Option<String>);

/// What a pipeline is made of.
pub(crate) struct Parts {
    pub(crate) path: PathBuf,
    pub(crate) dtype: Option<String>,
    pub(crate) variant: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) device: String,
    pub(crate) num_threads: Option<usize>,
    pub(crate) quantize: Option<String>,
    pub(crate) vae: Vec<PathBuf>,
    pub(crate) loras: Vec<ScaledLora>,
    pub(crate) embeddings: Vec<NamedEmbedding>,
}

fn lora_scale((unet, text_encoder, blocks): (f64, f64, Vec<(String, f64)>)) -> LoraScale {
    let scale = LoraScale::from(unet).text_encoder(text_encoder);
    let with_block = |scale: LoraScale, (block, factor): (String, f64)| scale.block(block, factor);
    blocks.into_iter().fold(scale, with_block)
}

/// Loads a pipeline with the GIL released.
pub(crate) fn load(py: Python<'_>, parts: Parts) -> PyResult<Pipeline> {
    #[cfg(feature = "hub")]
    let interrupt = crate::interrupt::Interrupt::default();
    let build = || {
        let mut builder = Pipeline::builder()
            .weights(parts.path)
            .device(parse_device(&parts.device)?);
        #[cfg(feature = "hub")]
        {
            builder = builder.hub(interrupt.hub());
        }
        if let Some(dtype) = parts.dtype {
            builder = builder.dtype(parse_dtype(&dtype)?);
        }
        if let Some(variant) = parts.variant {
            builder = builder.variant(variant);
        }
        if let Some(revision) = parts.revision {
            builder = builder.revision(revision);
        }
        if let Some(count) = parts.num_threads {
            builder = builder.num_threads(count);
        }
        if let Some(quantize) = parts.quantize {
            builder = builder.quantize(quantize.parse()?);
        }
        for path in parts.vae {
            builder = builder.vae_from(path);
        }
        for (path, token) in parts.embeddings {
            builder = builder.embedding(Embedding::open(path, token.as_deref())?);
        }
        for (path, scale) in parts.loras {
            builder = builder.lora(path, lora_scale(scale));
        }
        builder.build()
    };
    let built = py.detach(build);
    #[cfg(feature = "hub")]
    interrupt.check()?;
    built.map_err(|e| error::to_python(py, e))
}

/// Puts LoRAs in place of those that were there before.
pub(crate) fn set_loras(pipe: &mut Pipeline, loras: Vec<ScaledLora>, merged: bool) -> Result<()> {
    let open = |(path, scale): ScaledLora| Ok((Lora::open(path)?, lora_scale(scale)));
    let loras = loras.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let loras: Vec<_> = loras
        .iter()
        .map(|(lora, scale)| (lora, scale.clone()))
        .collect();
    let mode = match merged {
        true => LoraMode::Merged,
        false => LoraMode::AtRunTime,
    };
    pipe.set_loras_as(mode, &loras)
}
