//! Keyword arguments to a request.

use diffusion_core::{Device, Error, GenerateRequest, PictureSizes, PromptEmbeds};
use pyo3::pybacked::PyBackedBytes;

use crate::arrays;

/// Bytes in C order and the shape that they have.
type RawArray = (PyBackedBytes, Vec<usize>);

/// The embeddings of a prompt, and SDXL's pooled vector.
pub(crate) type RawEmbeds = (RawArray, Option<RawArray>);

/// `(height, width)` of the original, `(top, left)` of the crop, `(height, width)` of the target: diffusers'
/// order.
pub(crate) type Sizes = (
    Option<(usize, usize)>,
    (usize, usize),
    Option<(usize, usize)>,
);

pub(crate) fn sizes((original, crop, target): Sizes) -> PictureSizes {
    let swap = |(vertical, horizontal)| (horizontal, vertical);
    PictureSizes {
        original: original.map(swap),
        crop: swap(crop),
        target: target.map(swap),
    }
}

pub(crate) fn embeds((embeds, pooled): RawEmbeds) -> Result<PromptEmbeds, Error> {
    let tensor = |(bytes, shape): RawArray| arrays::from_bytes(&bytes, shape, &Device::Cpu);
    Ok(PromptEmbeds {
        embeds: tensor(embeds)?,
        pooled: pooled.map(tensor).transpose()?,
    })
}

/// Sets what was given.
pub(crate) fn set<T>(
    request: GenerateRequest,
    value: Option<T>,
    setter: impl FnOnce(GenerateRequest, T) -> GenerateRequest,
) -> GenerateRequest {
    match value {
        Some(value) => setter(request, value),
        None => request,
    }
}

/// A scheduler's configuration as Python wrote it.
pub(crate) fn parse_config(json: &str) -> Result<serde_json::Value, Error> {
    serde_json::from_str(json).map_err(|reason| Error::InvalidArgument {
        name: "scheduler",
        expected: "JSON".into(),
        found: reason.to_string(),
    })
}
