//! What a callback sees.

use diffusion_core::Tensor;
use pyo3::prelude::*;
use pyo3::types::PyRange;

use crate::{arrays, error};

/// Where a run is: the argument of the `callback` of `Pipeline.generate`.
///
/// It may be kept after the callback has returned; it then keeps its latents in memory.
#[pyclass(frozen, module = "diffusion_py")]
pub(crate) struct Progress {
    /// Steps of this batch that are done, from 1.
    #[pyo3(get)]
    step: usize,
    /// Steps of each batch.
    #[pyo3(get)]
    num_steps: usize,
    /// Pictures of the whole call.
    #[pyo3(get)]
    num_images: usize,
    /// The noise level that the latents have now: they are clean latents plus `sigma` times unit noise.
    #[pyo3(get)]
    sigma: f64,
    /// The share of the whole call's steps that is done, from 0 to 1.
    #[pyo3(get)]
    fraction: f64,
    images: (usize, usize),
    latents: Tensor,
    denoised: Tensor,
}

impl Progress {
    pub(crate) fn new(progress: &diffusion_core::Progress<'_>) -> Self {
        Self {
            step: progress.step,
            num_steps: progress.num_steps,
            num_images: progress.num_images,
            sigma: progress.sigma,
            fraction: progress.fraction(),
            images: (progress.images.start, progress.images.end),
            latents: progress.latents.clone(),
            denoised: progress.denoised.clone(),
        }
    }
}

fn to_numpy<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<Bound<'py, PyAny>> {
    let raw = py
        .detach(|| arrays::to_bytes(tensor))
        .map_err(|e| error::to_python(py, e))?;
    py.import("diffusion_py._arrays")?
        .getattr("to_numpy")?
        .call1(arrays::to_python(py, raw))
}

#[pymethods]
impl Progress {
    /// Which of the call's pictures are in this batch, as a `range`.
    #[getter]
    fn images<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyRange>> {
        PyRange::new(py, self.images.0 as isize, self.images.1 as isize)
    }

    /// The latents: float32, `(batch, channels, height / 8, width / 8)`. Copied from the device at each
    /// access; needs numpy.
    #[getter]
    fn latents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_numpy(py, &self.latents)
    }

    /// The current estimate of the clean latents, of the same shape: `Pipeline.decode` makes a preview of
    /// it. Copied from the device at each access; needs numpy.
    #[getter]
    fn denoised<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_numpy(py, &self.denoised)
    }

    fn __repr__(&self) -> String {
        format!(
            "Progress(step={}, num_steps={}, images=range({}, {}), sigma={:.4})",
            self.step, self.num_steps, self.images.0, self.images.1, self.sigma
        )
    }
}
