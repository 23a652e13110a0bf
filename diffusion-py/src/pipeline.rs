//! Loading, changing, sampling and decoding, with the GIL released.

use std::ops::ControlFlow;
use std::path::PathBuf;

use diffusion_core::pipeline::SharedPipeline;
use diffusion_core::weights::Embedding;
use diffusion_core::{
    ControlNet, Device, Error, GenerateRequest, Pipeline, Result, Tensor, Warning,
};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays::{self, PyRaw, Raw};
use crate::error;
use crate::files::RawProvenance;
use crate::load::{self, NamedEmbedding, Parts, ScaledLora};
use crate::pictures::{self, NativeControlModel, RawControl, RawIpAdapterImage};
use crate::progress::Progress;
use crate::request::{self, RawEmbeds, Sizes, set};
use crate::start::{self, NativeRequest, RawGuidance, RawStart};

/// A loaded model. Threads may use and change one at the same time: a run goes on with what it began with.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativePipeline(SharedPipeline);

#[pymethods]
impl NativePipeline {
    #[staticmethod]
    #[pyo3(signature = (path, *, dtype, variant, revision, device, vae, loras, embeddings))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        dtype: Option<String>,
        variant: Option<String>,
        revision: Option<String>,
        device: String,
        vae: Vec<PathBuf>,
        loras: Vec<ScaledLora>,
        embeddings: Vec<NamedEmbedding>,
    ) -> PyResult<Self> {
        let parts = Parts {
            path,
            dtype,
            variant,
            revision,
            device,
            vae,
            loras,
            embeddings,
        };
        load::load(py, parts).map(|pipe| Self(SharedPipeline::new(pipe)))
    }

    /// Puts LoRAs in place of those that were there before.
    fn set_loras(&self, py: Python<'_>, loras: Vec<ScaledLora>, merged: bool) -> PyResult<()> {
        self.change(py, |pipe| load::set_loras(pipe, loras, merged))
    }

    /// Takes all LoRAs out.
    fn clear_loras(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |pipe| {
            pipe.clear_loras();
            Ok(())
        })
    }

    /// What was assumed of the model, and what of its files is not used.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.current().notes().to_vec()
    }

    /// Name, number of changed modules and unused keys of each LoRA.
    fn loras(&self) -> Vec<(String, usize, Vec<String>)> {
        let pipe = self.0.current();
        let reports = pipe.loras().iter().cloned();
        reports
            .map(|report| (report.name, report.num_modules, report.unused))
            .collect()
    }

    /// Adds a learned word and says what it is called.
    fn add_embedding(
        &self,
        py: Python<'_>,
        path: PathBuf,
        token: Option<String>,
    ) -> PyResult<String> {
        self.change(py, |pipe| {
            let embedding = Embedding::open(path, token.as_deref())?;
            pipe.add_embedding(&embedding)?;
            Ok(embedding.token().to_owned())
        })
    }

    /// `(width, height)` of pictures of calls that name no size.
    #[getter]
    fn default_size(&self) -> (usize, usize) {
        self.0.current().default_size()
    }

    /// Opens a ControlNet where and in the number format that the pipeline is.
    fn open_control_net(&self, py: Python<'_>, path: PathBuf) -> PyResult<NativeControlModel> {
        let pipe = self.0.current();
        let open = || ControlNet::open(path, pipe.unet().weights().dtype(), pipe.device());
        let net = py.detach(open).map_err(|e| error::to_python(py, e))?;
        Ok(NativeControlModel(net.into()))
    }

    /// Adds an IP-Adapter, after its image encoder if that is given.
    fn add_ip_adapter(
        &self,
        py: Python<'_>,
        path: PathBuf,
        image_encoder: Option<PathBuf>,
    ) -> PyResult<()> {
        self.change(py, |pipe| {
            if let Some(encoder) = image_encoder {
                pipe.load_image_encoder(encoder)?;
            }
            pipe.add_ip_adapter(path)
        })
    }

    /// Takes all IP-Adapters out.
    fn clear_ip_adapters(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |pipe| {
            pipe.clear_ip_adapters();
            Ok(())
        })
    }

    /// Runs all steps. Returns the clean latents, the seed of each picture, warnings, the seconds of the
    /// text encoder and of all steps, and the provenance of each picture.
    #[pyo3(signature = (
        prompt, *, prompt_2, negative_prompt, negative_prompt_2, prompt_syntax, clip_skip, prompt_embeds,
        negative_prompt_embeds, num_steps, guidance, width, height,
        seed, num_images, batch_size, eta, scheduler_name, scheduler_config, latents, denoising_start,
        denoising_end, sizes, negative_sizes, aesthetic_score, negative_aesthetic_score, controls,
        ip_adapter_images, start, callback
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    #[allow(clippy::type_complexity, reason = "a tuple in Python")]
    fn generate_latents<'py>(
        &self,
        py: Python<'py>,
        prompt: String,
        prompt_2: Option<String>,
        negative_prompt: Option<String>,
        negative_prompt_2: Option<String>,
        prompt_syntax: &str,
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
        latents: Option<(PyBackedBytes, Vec<usize>)>,
        denoising_start: Option<f64>,
        denoising_end: Option<f64>,
        sizes: Sizes,
        negative_sizes: Option<Sizes>,
        aesthetic_score: f64,
        negative_aesthetic_score: f64,
        controls: Vec<RawControl>,
        ip_adapter_images: Vec<RawIpAdapterImage>,
        start: RawStart,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<(
        PyRaw<'py>,
        Vec<u64>,
        Vec<String>,
        (f64, f64),
        Vec<RawProvenance>,
        NativeRequest,
    )> {
        let fail = |e| error::to_python(py, e);
        let config = scheduler_config.as_deref().map(request::parse_config);
        let config = config.transpose().map_err(fail)?;
        let latents = latents.map(|(bytes, shape)| arrays::from_bytes(&bytes, shape, &Device::Cpu));
        let latents = latents.transpose().map_err(fail)?;
        let embeds = |raw: RawEmbeds| request::embeds(raw).map_err(fail);
        let (prompt_embeds, negative_prompt_embeds) = (
            prompt_embeds.map(embeds).transpose()?,
            negative_prompt_embeds.map(embeds).transpose()?,
        );
        let mut request = start
            .request(prompt)
            .map_err(fail)?
            .prompt_syntax(prompt_syntax.parse().map_err(fail)?)
            .num_steps(num_steps)
            .num_images(num_images)
            .batch_size(batch_size)
            .sizes(request::sizes(sizes))
            .aesthetic_score(aesthetic_score)
            .negative_aesthetic_score(negative_aesthetic_score);
        request = start::guidance(request, guidance);
        request = set(request, prompt_2, GenerateRequest::prompt_2);
        request = set(request, negative_prompt, GenerateRequest::negative_prompt);
        request = set(
            request,
            negative_prompt_2,
            GenerateRequest::negative_prompt_2,
        );
        request = set(request, clip_skip, GenerateRequest::clip_skip);
        request = set(request, prompt_embeds, GenerateRequest::prompt_embeds);
        request = set(
            request,
            negative_prompt_embeds,
            GenerateRequest::negative_prompt_embeds,
        );
        request = set(request, width, GenerateRequest::width);
        request = set(request, height, GenerateRequest::height);
        request = set(request, seed, GenerateRequest::seed);
        request = set(request, eta, GenerateRequest::eta);
        request = set(request, scheduler_name, GenerateRequest::scheduler_name);
        request = set(request, config, GenerateRequest::scheduler_config);
        request = set(request, latents, GenerateRequest::latents);
        request = set(request, denoising_start, GenerateRequest::denoising_start);
        request = set(request, denoising_end, GenerateRequest::denoising_end);
        let negative_sizes = negative_sizes.map(request::sizes);
        request = set(request, negative_sizes, GenerateRequest::negative_sizes);
        for control in &controls {
            request = request.control(pictures::control(control).map_err(fail)?);
        }
        for image in &ip_adapter_images {
            request = request.ip_adapter_image(pictures::ip_adapter_image(image).map_err(fail)?);
        }

        let mut raised = None;
        let result = py.detach(|| {
            let pipe = self.0.current();
            let sampled =
                pipe.generate_latents(&request, &mut |progress| match Python::attach(|py| {
                    goes_on(py, callback.as_ref(), progress)
                }) {
                    Ok(true) => ControlFlow::Continue(()),
                    Ok(false) => ControlFlow::Break(()),
                    Err(exception) => {
                        raised = Some(exception);
                        ControlFlow::Break(())
                    }
                })?;
            Ok((arrays::to_bytes(&sampled.latents)?, sampled))
        });
        if let Some(exception) = raised {
            return Err(exception);
        }
        let (raw, sampled) = result.map_err(|e| error::to_python(py, e))?;
        let warnings = sampled.warnings.iter().map(ToString::to_string).collect();
        let timings = sampled.timings;
        let seconds = (timings.encode.as_secs_f64(), timings.sample.as_secs_f64());
        let told = (0..sampled.seeds.len()).map(|i| sampled.provenance(i));
        let told = told.map(|told| told.map(|told| (told.parameters, told.record)));
        let told = told.collect::<Result<_>>();
        let told = told.map_err(|e| error::to_python(py, e))?;
        let raw = arrays::to_python(py, raw);
        let request = NativeRequest(request);
        Ok((raw, sampled.seeds, warnings, seconds, told, request))
    }

    /// Decodes latents of `shape`, one picture after the other: `rgb8` into `(n, height, width, 3)` bytes,
    /// else into as many float32 from 0 to 1. Bytes are pasted back into a request's pictures. Returns warnings,
    /// too.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        latents: PyBackedBytes,
        shape: Vec<usize>,
        rgb8: bool,
        request: Option<Py<NativeRequest>>,
    ) -> PyResult<(PyRaw<'py>, Vec<String>)> {
        let (raw, warnings) = py.detach(|| {
            let fail = |e| Python::attach(|py| error::to_python(py, e));
            let pipe = self.0.current();
            let latents = check_latents(&pipe, &latents, shape).map_err(fail)?;
            let mut bytes = Vec::new();
            let mut shape = Vec::new();
            let mut warnings = Vec::new();
            let mut pictures = Vec::new();
            for i in 0..latents.dims()[0] {
                Python::attach(|py| py.check_signals())?;
                let latents = latents.narrow(0, i, 1).map_err(|e| fail(e.into()))?;
                let more = if rgb8 {
                    let (picture, more) = pipe.decode(&latents).map_err(fail)?;
                    pictures.extend(picture);
                    more
                } else {
                    let ((picture, size), more) = decode_floats(&pipe, &latents).map_err(fail)?;
                    bytes.extend(picture);
                    shape = size;
                    more
                };
                warnings.extend(more.iter().map(ToString::to_string));
            }
            if let Some(request) = &request {
                let pasted = pipe.paste_back(&request.get().0, pictures);
                pictures = pasted.map_err(fail)?;
            }
            for picture in pictures {
                shape = vec![picture.height() as usize, picture.width() as usize, 3];
                bytes.extend(picture.into_raw());
            }
            shape.insert(0, latents.dims()[0]);
            warnings.dedup();
            Ok::<_, PyErr>(((bytes, shape), warnings))
        })?;
        Ok((arrays::to_python(py, raw), warnings))
    }
}

impl NativePipeline {
    fn change<T: Send>(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&mut Pipeline) -> Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| self.0.change(change))
            .map_err(|e| error::to_python(py, e))
    }
}

fn check_latents(pipe: &Pipeline, bytes: &[u8], shape: Vec<usize>) -> Result<Tensor> {
    let channels = pipe.vae().latent_channels();
    match shape[..] {
        [_, found, _, _] if found == channels && !shape.contains(&0) => {
            arrays::from_bytes(bytes, shape, pipe.device())
        }
        _ => Err(Error::InvalidArgument {
            name: "latents",
            expected: format!("shape (n, {channels}, height, width)"),
            found: format!("{shape:?}"),
        }),
    }
}

/// The float32 of one picture, from 0 to 1.
fn decode_floats(pipe: &Pipeline, latents: &Tensor) -> Result<(Raw, Vec<Warning>)> {
    let (picture, warnings) = pipe.decode_tensor(latents)?;
    let picture = picture.affine(0.5, 0.5)?.clamp(0.0, 1.0)?;
    let raw = arrays::to_bytes(&picture.squeeze(0)?.permute((1, 2, 0))?)?;
    Ok((raw, warnings))
}

/// Lets Ctrl-C through, then asks the callback: `False` stops the run, all else goes on.
fn goes_on(
    py: Python<'_>,
    callback: Option<&Py<PyAny>>,
    progress: &diffusion_core::Progress<'_>,
) -> PyResult<bool> {
    py.check_signals()?;
    let Some(callback) = callback else {
        return Ok(true);
    };
    let answer = callback.call1(py, (Progress::new(progress),))?;
    Ok(answer.extract::<bool>(py).ok() != Some(false))
}
