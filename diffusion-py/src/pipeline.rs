//! Loading, sampling and decoding, with the GIL released.

use std::ops::ControlFlow;
use std::path::PathBuf;

use diffusion_core::device::{parse_device, parse_dtype};
use diffusion_core::{Device, Error, GenerateRequest, Pipeline, Tensor, Warning};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays::{self, PyRaw, Raw};
use crate::error;
use crate::progress::Progress;

/// A loaded model. Immutable: threads may use one at the same time.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativePipeline(Pipeline);

#[pymethods]
impl NativePipeline {
    #[staticmethod]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        dtype: Option<String>,
        variant: Option<String>,
        device: String,
    ) -> PyResult<Self> {
        let load = || {
            let mut builder = Pipeline::builder()
                .weights(path)
                .device(parse_device(&device)?);
            if let Some(dtype) = dtype {
                builder = builder.dtype(parse_dtype(&dtype)?);
            }
            if let Some(variant) = variant {
                builder = builder.variant(variant);
            }
            builder.build()
        };
        py.detach(load)
            .map(Self)
            .map_err(|e| error::to_python(py, e))
    }

    /// `(width, height)` of pictures of calls that name no size.
    #[getter]
    fn default_size(&self) -> (usize, usize) {
        self.0.default_size()
    }

    /// Runs all steps. Returns the clean latents, the seed of each picture, warnings, and the seconds of the
    /// text encoder and of all steps.
    #[pyo3(signature = (
        prompt, *, negative_prompt, num_steps, guidance_scale, width, height, seed, num_images,
        batch_size, eta, scheduler_name, scheduler_config, latents, callback
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    #[allow(clippy::type_complexity, reason = "a tuple in Python")]
    fn generate_latents<'py>(
        &self,
        py: Python<'py>,
        prompt: String,
        negative_prompt: Option<String>,
        num_steps: usize,
        guidance_scale: f64,
        width: Option<usize>,
        height: Option<usize>,
        seed: Option<u64>,
        num_images: usize,
        batch_size: usize,
        eta: Option<f64>,
        scheduler_name: Option<String>,
        scheduler_config: Option<String>,
        latents: Option<(PyBackedBytes, Vec<usize>)>,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<(PyRaw<'py>, Vec<u64>, Vec<String>, (f64, f64))> {
        let mut request = GenerateRequest::txt2img(prompt)
            .num_steps(num_steps)
            .guidance_scale(guidance_scale)
            .num_images(num_images)
            .batch_size(batch_size);
        if let Some(text) = negative_prompt {
            request = request.negative_prompt(text);
        }
        if let Some(width) = width {
            request = request.width(width);
        }
        if let Some(height) = height {
            request = request.height(height);
        }
        if let Some(seed) = seed {
            request = request.seed(seed);
        }
        if let Some(eta) = eta {
            request = request.eta(eta);
        }
        if let Some(name) = scheduler_name {
            request = request.scheduler_name(name);
        }
        if let Some(json) = scheduler_config {
            let config = serde_json::from_str(&json).map_err(|reason| Error::InvalidArgument {
                name: "scheduler",
                expected: "JSON".into(),
                found: reason.to_string(),
            });
            request = request.scheduler_config(config.map_err(|e| error::to_python(py, e))?);
        }
        if let Some((bytes, shape)) = latents {
            let latents = arrays::from_bytes(&bytes, shape, &Device::Cpu);
            request = request.latents(latents.map_err(|e| error::to_python(py, e))?);
        }

        let mut raised = None;
        let result = py.detach(|| {
            let sampled =
                self.0
                    .generate_latents(&request, &mut |progress| match Python::attach(|py| {
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
        Ok((arrays::to_python(py, raw), sampled.seeds, warnings, seconds))
    }

    /// Decodes latents of `shape`, one picture after the other: `rgb8` into `(n, height, width, 3)` bytes,
    /// else into as many float32 from 0 to 1. Returns warnings, too.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        latents: PyBackedBytes,
        shape: Vec<usize>,
        rgb8: bool,
    ) -> PyResult<(PyRaw<'py>, Vec<String>)> {
        let (raw, warnings) = py.detach(|| {
            let fail = |e| Python::attach(|py| error::to_python(py, e));
            let latents = self.check_latents(&latents, shape).map_err(fail)?;
            let mut bytes = Vec::new();
            let mut shape = Vec::new();
            let mut warnings = Vec::new();
            for i in 0..latents.dims()[0] {
                Python::attach(|py| py.check_signals())?;
                let ((picture, size), more) = self.decode_one(&latents, i, rgb8).map_err(fail)?;
                bytes.extend(picture);
                shape = size;
                warnings.extend(more.iter().map(ToString::to_string));
            }
            shape.insert(0, latents.dims()[0]);
            warnings.dedup();
            Ok::<_, PyErr>(((bytes, shape), warnings))
        })?;
        Ok((arrays::to_python(py, raw), warnings))
    }
}

impl NativePipeline {
    fn check_latents(&self, bytes: &[u8], shape: Vec<usize>) -> diffusion_core::Result<Tensor> {
        let channels = self.0.vae().latent_channels();
        match shape[..] {
            [_, found, _, _] if found == channels && !shape.contains(&0) => {
                arrays::from_bytes(bytes, shape, self.0.device())
            }
            _ => Err(Error::InvalidArgument {
                name: "latents",
                expected: format!("shape (n, {channels}, height, width)"),
                found: format!("{shape:?}"),
            }),
        }
    }

    fn decode_one(
        &self,
        latents: &Tensor,
        index: usize,
        rgb8: bool,
    ) -> diffusion_core::Result<(Raw, Vec<Warning>)> {
        let latents = latents.narrow(0, index, 1)?;
        if rgb8 {
            let (mut pictures, warnings) = self.0.decode(&latents)?;
            let picture = pictures.swap_remove(0);
            let shape = vec![picture.height() as usize, picture.width() as usize, 3];
            return Ok(((picture.into_raw(), shape), warnings));
        }
        let (picture, warnings) = self.0.decode_tensor(&latents)?;
        let picture = picture.affine(0.5, 0.5)?.clamp(0.0, 1.0)?;
        let raw = arrays::to_bytes(&picture.squeeze(0)?.permute((1, 2, 0))?)?;
        Ok((raw, warnings))
    }
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
