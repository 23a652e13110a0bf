//! What a callback sees, and what stops a run.

use std::ops::ControlFlow;

use diffusion_core::model::vae::{LatentRgb, latents_to_rgb};
use diffusion_core::pipeline::ProgressFn;
use diffusion_core::{CancelToken, Result, Tensor, media};
use pyo3::prelude::*;
use pyo3::types::PyRange;

use crate::{arrays, error, pictures};

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
    /// The pass over the pictures, from 0: the second is that of `Hires`.
    #[pyo3(get)]
    pass_index: usize,
    /// How many passes there are.
    #[pyo3(get)]
    num_passes: usize,
    /// Seconds that this pass has been at its steps.
    #[pyo3(get)]
    elapsed: f64,
    /// Seconds that the rest of this pass's steps will take, if they go on as so far.
    #[pyo3(get)]
    time_left: f64,
    images: (usize, usize),
    latents: Tensor,
    denoised: Tensor,
    rgb: LatentRgb,
}

impl Progress {
    fn new(progress: &diffusion_core::Progress<'_>, rgb: LatentRgb) -> Self {
        Self {
            step: progress.step,
            num_steps: progress.num_steps,
            num_images: progress.num_images,
            sigma: progress.sigma,
            fraction: progress.fraction(),
            images: (progress.images.start, progress.images.end),
            latents: progress.latents.clone(),
            denoised: progress.denoised.clone(),
            pass_index: progress.pass,
            num_passes: progress.num_passes,
            elapsed: progress.elapsed.as_secs_f64(),
            time_left: progress.time_left().as_secs_f64(),
            rgb,
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

    /// What the batch's pictures will about look like, at the size of the latents, an eighth of each side.
    /// It costs next to nothing; `Pipeline.decode` of `denoised` shows them in full.
    #[pyo3(signature = (output_type = "pil"))]
    fn preview<'py>(&self, py: Python<'py>, output_type: &str) -> PyResult<Bound<'py, PyAny>> {
        let raw = py
            .detach(|| {
                let colours = latents_to_rgb(&self.denoised, &self.rgb)?;
                Ok(pictures::to_bytes(media::to_rgb8(&colours)?))
            })
            .map_err(|e| error::to_python(py, e))?;
        py.import("diffusion_py._arrays")?
            .getattr("to_pictures")?
            .call1((arrays::to_python(py, raw), output_type))
    }

    fn __repr__(&self) -> String {
        format!(
            "Progress(step={}, num_steps={}, images=range({}, {}), sigma={:.4})",
            self.step, self.num_steps, self.images.0, self.images.1, self.sigma
        )
    }
}

/// Stops the calls that it is given to, from any thread, within one of their steps: `cancel_token` of
/// `Pipeline.generate`.
#[pyclass(frozen, name = "CancelToken", module = "diffusion_py")]
pub(crate) struct NativeCancelToken(pub(crate) CancelToken);

#[pymethods]
impl NativeCancelToken {
    #[new]
    fn new() -> Self {
        Self(CancelToken::default())
    }

    /// Stops the calls. Those that begin later end at once.
    fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether `cancel` was called.
    #[getter]
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Runs with the GIL released, and tells a callback of each step. What it or Ctrl-C raises stops the run and comes out.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    callback: Option<Py<PyAny>>,
    rgb: LatentRgb,
    run: impl FnOnce(&mut ProgressFn<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        run(&mut |progress| {
            let answer = Python::attach(|py| {
                py.check_signals()?;
                let callback = callback.as_ref();
                callback.map_or(Ok(true), |callback| {
                    goes_on(py, callback, Progress::new(progress, rgb))
                })
            });
            match answer {
                Ok(true) => ControlFlow::Continue(()),
                Ok(false) => ControlFlow::Break(()),
                Err(exception) => {
                    raised = Some(exception);
                    ControlFlow::Break(())
                }
            }
        })
    });
    match raised {
        Some(exception) => Err(exception),
        None => result.map_err(|e| error::to_python(py, e)),
    }
}

/// Asks the callback: `False` stops the run, all else goes on.
fn goes_on(py: Python<'_>, callback: &Py<PyAny>, progress: Progress) -> PyResult<bool> {
    let answer = callback.call1(py, (progress,))?;
    Ok(answer.extract::<bool>(py).ok() != Some(false))
}
