//! Keyword arguments to a request.

use diffusion_core::{
    CancelToken, Device, Error, GenerateRequest, PictureSizes, PromptEmbeds, Result,
};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays;
use crate::error;
use crate::networks::RawNetworks;
use crate::pictures::{self, RawControl, RawIpAdapterImage};
use crate::progress::NativeCancelToken;
use crate::start::{self, RawGuidance, RawStart};

/// Bytes of float32 in C order and the shape that they have.
pub(crate) type RawArray = (PyBackedBytes, Vec<usize>);

/// The embeddings of a prompt, and SDXL's pooled vector.
type RawEmbeds = (RawArray, Option<RawArray>);

/// `(height, width)` of the original, `(top, left)` of the crop, `(height, width)` of the target: diffusers'
/// order.
type Sizes = (
    Option<(usize, usize)>,
    (usize, usize),
    Option<(usize, usize)>,
);

/// What a run shall do.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativeRequest(pub(crate) GenerateRequest);

/// A dictionary of Python's arguments: those that become fields of a request as they are.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct RawRequest {
    prompt: String,
    prompt_2: Option<String>,
    negative_prompt: Option<String>,
    negative_prompt_2: Option<String>,
    prompt_syntax: String,
    clip_skip: Option<usize>,
    prompt_embeds: Option<RawEmbeds>,
    negative_prompt_embeds: Option<RawEmbeds>,
    num_steps: usize,
    guidance: RawGuidance,
    width: Option<usize>,
    height: Option<usize>,
    seed: Option<u64>,
    num_images: usize,
    batch_size: usize,
    eta: Option<f64>,
    scheduler_name: Option<String>,
    scheduler_config: Option<String>,
    latents: Option<RawArray>,
    denoising_start: Option<f64>,
    denoising_end: Option<f64>,
    sizes: Sizes,
    negative_sizes: Option<Sizes>,
    aesthetic_score: f64,
    negative_aesthetic_score: f64,
    controls: Vec<RawControl>,
    ip_adapter_images: Vec<RawIpAdapterImage>,
    cancel_token: Option<Py<NativeCancelToken>>,
    keep_cancelled: bool,
}

#[pymethods]
impl NativeRequest {
    #[new]
    fn new(
        py: Python<'_>,
        plain: RawRequest,
        start: RawStart,
        networks: RawNetworks,
    ) -> PyResult<Self> {
        let request = start
            .request(&plain.prompt)
            .and_then(|request| networks.set(request))
            .and_then(|request| plain.set(request));
        request.map(Self).map_err(|e| error::to_python(py, e))
    }
}

impl RawRequest {
    fn set(self, request: GenerateRequest) -> Result<GenerateRequest> {
        let config = self.scheduler_config.as_deref().map(parse_config);
        let latents = self.latents.map(tensor).transpose()?;
        let prompt_embeds = self.prompt_embeds.map(embeds).transpose()?;
        let negative_prompt_embeds = self.negative_prompt_embeds.map(embeds).transpose()?;
        let mut request = start::guidance(request, self.guidance)
            .prompt_syntax(self.prompt_syntax.parse()?)
            .num_steps(self.num_steps)
            .num_images(self.num_images)
            .batch_size(self.batch_size)
            .sizes(sizes(self.sizes))
            .aesthetic_score(self.aesthetic_score)
            .negative_aesthetic_score(self.negative_aesthetic_score)
            .keep_cancelled(self.keep_cancelled);
        request = set(request, self.prompt_2, GenerateRequest::prompt_2);
        request = set(
            request,
            self.negative_prompt,
            GenerateRequest::negative_prompt,
        );
        request = set(
            request,
            self.negative_prompt_2,
            GenerateRequest::negative_prompt_2,
        );
        request = set(request, self.clip_skip, GenerateRequest::clip_skip);
        request = set(request, prompt_embeds, GenerateRequest::prompt_embeds);
        request = set(
            request,
            negative_prompt_embeds,
            GenerateRequest::negative_prompt_embeds,
        );
        request = set(request, self.width, GenerateRequest::width);
        request = set(request, self.height, GenerateRequest::height);
        request = set(request, self.seed, GenerateRequest::seed);
        request = set(request, self.eta, GenerateRequest::eta);
        request = set(
            request,
            self.scheduler_name,
            GenerateRequest::scheduler_name,
        );
        request = set(
            request,
            config.transpose()?,
            GenerateRequest::scheduler_config,
        );
        request = set(request, latents, GenerateRequest::latents);
        request = set(
            request,
            self.denoising_start,
            GenerateRequest::denoising_start,
        );
        request = set(request, self.denoising_end, GenerateRequest::denoising_end);
        let negative_sizes = self.negative_sizes.map(sizes);
        request = set(request, negative_sizes, GenerateRequest::negative_sizes);
        let token = self.cancel_token.map(|token| token.get().0.clone());
        request = set::<CancelToken>(request, token, GenerateRequest::cancel_token);
        for control in &self.controls {
            request = request.control(pictures::control(control)?);
        }
        for image in &self.ip_adapter_images {
            request = request.ip_adapter_image(pictures::ip_adapter_image(image)?);
        }
        Ok(request)
    }
}

fn sizes((original, crop, target): Sizes) -> PictureSizes {
    let swap = |(vertical, horizontal)| (horizontal, vertical);
    PictureSizes {
        original: original.map(swap),
        crop: swap(crop),
        target: target.map(swap),
    }
}

fn embeds((embeds, pooled): RawEmbeds) -> Result<PromptEmbeds> {
    Ok(PromptEmbeds {
        embeds: tensor(embeds)?,
        pooled: pooled.map(tensor).transpose()?,
    })
}

pub(crate) fn tensor((bytes, shape): RawArray) -> Result<diffusion_core::Tensor> {
    arrays::from_bytes(&bytes, shape, &Device::Cpu)
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

/// One of several values by name.
pub(crate) fn named<T: Copy>(what: &'static str, name: &str, values: &[(&str, T)]) -> Result<T> {
    let found = values.iter().find(|(other, _)| *other == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::InvalidArgument {
            name: what,
            expected: values
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", "),
            found: format!("{name:?}"),
        })
}

/// A scheduler's configuration as Python wrote it.
fn parse_config(json: &str) -> Result<serde_json::Value> {
    serde_json::from_str(json).map_err(|reason| Error::InvalidArgument {
        name: "scheduler",
        expected: "JSON".into(),
        found: reason.to_string(),
    })
}
