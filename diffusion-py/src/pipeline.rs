//! Loading, changing, sampling and decoding, with the GIL released.

use std::path::PathBuf;

use diffusion_core::pipeline::{Interpolation, SharedPipeline};
use diffusion_core::weights::Embedding;
use diffusion_core::{ControlNet, Error, Pipeline, Result, Tensor, Warning};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays::{self, PyRaw, Raw};
use crate::error;
use crate::files::RawProvenance;
use crate::load::{self, NamedEmbedding, Parts, ScaledLora};
use crate::pictures::{self, NativeControlModel};
use crate::progress;
use crate::request::NativeRequest;

/// A loaded model. Threads may use and change one at the same time: a run goes on with what it began with.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativePipeline(SharedPipeline);

#[pymethods]
impl NativePipeline {
    #[staticmethod]
    #[pyo3(signature = (path, *, dtype, variant, revision, device, num_threads, quantize, vae, loras, embeddings))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        dtype: Option<String>,
        variant: Option<String>,
        revision: Option<String>,
        device: String,
        num_threads: Option<usize>,
        quantize: Option<String>,
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
            num_threads,
            quantize,
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

    /// Gives the memory of the text encoders back.
    fn drop_text_encoders(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |pipe| {
            pipe.drop_text_encoders();
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

    /// About how many bytes a run needs beside the weights.
    fn memory_estimate(&self, width: usize, height: usize, batch_size: usize) -> u64 {
        self.0.current().memory_estimate(width, height, batch_size)
    }

    /// Runs all steps.
    fn generate_latents<'py>(
        &self,
        py: Python<'py>,
        request: &NativeRequest,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<NativeSampled<'py>> {
        let pipe = self.0.current();
        let (raw, estimate, sampled) =
            progress::watched(py, callback, pipe.latent_rgb(), |watch| {
                let sampled = pipe.generate_latents(&request.0, watch)?;
                let estimate = sampled.estimate.as_ref().map(arrays::to_bytes);
                let raw = arrays::to_bytes(&sampled.latents)?;
                Ok((raw, estimate.transpose()?, sampled))
            })?;
        let told = (0..sampled.seeds.len()).map(|i| sampled.provenance(i));
        let told = told.map(|told| told.map(|told| (told.parameters, told.record)));
        let told = told.collect::<Result<_>>();
        Ok(NativeSampled {
            latents: arrays::to_python(py, raw),
            estimate: estimate.map(|raw| arrays::to_python(py, raw)),
            warnings: texts(&sampled.warnings),
            encode_seconds: sampled.timings.encode.as_secs_f64(),
            sample_seconds: sampled.timings.sample.as_secs_f64(),
            provenance: told.map_err(|e| error::to_python(py, e))?,
            seeds: sampled.seeds,
        })
    }

    /// Makes the frames between key frames: bytes of shape `(n, height, width, 3)`, and warnings.
    fn interpolate<'py>(
        &self,
        py: Python<'py>,
        request: &NativeRequest,
        keys: Vec<(String, u64)>,
        frames_per_segment: usize,
        closed: bool,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<(PyRaw<'py>, Vec<String>)> {
        let pipe = self.0.current();
        let way = Interpolation::new(request.0.clone(), frames_per_segment).closed(closed);
        let way = keys
            .into_iter()
            .fold(way, |way, (prompt, seed)| way.key(prompt, seed));
        let frames = progress::watched(py, callback, pipe.latent_rgb(), |watch| {
            pipe.interpolate_with(&way, watch)
        })?;
        let raw = pictures::to_bytes(frames.images);
        Ok((arrays::to_python(py, raw), texts(&frames.warnings)))
    }

    /// Decodes latents of `shape`, one picture after the other: `rgb8` into `(n, height, width, 3)` bytes,
    /// else into as many float32 from 0 to 1. A request's own autoencoder does it, and bytes are pasted back into
    /// its pictures. Returns warnings, too.
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
            let pipe = match &request {
                Some(request) => self.0.current().with_vae_of(&request.get().0),
                None => Ok(Pipeline::clone(&self.0.current())),
            };
            let pipe = pipe.map_err(fail)?;
            let latents = check_latents(&pipe, &latents, shape).map_err(fail)?;
            let mut bytes = Vec::new();
            let mut shape = Vec::new();
            let mut warnings = Vec::new();
            let mut images = Vec::new();
            for i in 0..latents.dims()[0] {
                Python::attach(|py| py.check_signals())?;
                let latents = latents.narrow(0, i, 1).map_err(|e| fail(e.into()))?;
                let more = if rgb8 {
                    let (picture, more) = pipe.decode(&latents).map_err(fail)?;
                    images.extend(picture);
                    more
                } else {
                    let ((picture, size), more) = decode_floats(&pipe, &latents).map_err(fail)?;
                    bytes.extend(picture);
                    shape = size;
                    more
                };
                warnings.extend(more.iter().map(ToString::to_string));
            }
            if let Some(request) = request.filter(|_| rgb8) {
                let pasted = pipe.paste_back(&request.get().0, images);
                images = pasted.map_err(fail)?;
            }
            warnings.dedup();
            if rgb8 {
                return Ok((pictures::to_bytes(images), warnings));
            }
            shape.insert(0, latents.dims()[0]);
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

fn texts(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(ToString::to_string).collect()
}

/// What a run came to.
#[derive(IntoPyObject)]
struct NativeSampled<'py> {
    latents: PyRaw<'py>,
    /// The clean latents as a cancelled run estimates them.
    estimate: Option<PyRaw<'py>>,
    seeds: Vec<u64>,
    warnings: Vec<String>,
    encode_seconds: f64,
    sample_seconds: f64,
    provenance: Vec<RawProvenance>,
}
