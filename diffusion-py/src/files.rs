//! Pictures and animations into files, and what files say of their pictures.

use std::path::PathBuf;
use std::time::Duration;

use diffusion_core::Result;
use diffusion_core::media::{self, Animation, Provenance};
use diffusion_core::pipeline::Recalled;
use pyo3::prelude::*;

use crate::error;
use crate::pictures::{RawPicture, picture};

/// A text in A1111's form, and a record in this library's.
pub(crate) type RawProvenance = (Option<String>, Option<String>);

/// Writes a picture, and how it came about.
#[pyfunction]
pub(crate) fn save_picture(
    py: Python<'_>,
    image: RawPicture,
    path: PathBuf,
    provenance: RawProvenance,
) -> PyResult<()> {
    let (parameters, record) = provenance;
    let provenance = Provenance::new(parameters, record);
    let save = || media::save(&picture(&image)?, path, Some(&provenance));
    py.detach(save).map_err(|e| error::to_python(py, e))
}

/// Writes frames that stand for a number of seconds each.
#[pyfunction]
pub(crate) fn save_animation(
    py: Python<'_>,
    frames: Vec<RawPicture>,
    path: PathBuf,
    delay: f64,
    plays: u16,
) -> PyResult<()> {
    let save = || {
        let frames = frames.iter().map(picture).collect::<Result<Vec<_>>>()?;
        // What is no duration is none, and refused as such.
        let delay = Duration::try_from_secs_f64(delay).unwrap_or_default();
        Animation::new(frames, delay).plays(plays).save(path, None)
    };
    py.detach(save).map_err(|e| error::to_python(py, e))
}

/// The request in a picture's file as JSON, the model's name, and what is missing.
#[pyfunction]
pub(crate) fn recall(
    py: Python<'_>,
    path: PathBuf,
) -> PyResult<(String, Option<String>, Vec<String>)> {
    let read = || {
        let recalled = Recalled::read(path)?;
        let request = serde_json::to_string(&recalled.request);
        let request = request.map_err(diffusion_core::Error::custom)?;
        let warnings = recalled.warnings.iter().map(ToString::to_string);
        Ok((request, recalled.model, warnings.collect()))
    };
    py.detach(read).map_err(|e| error::to_python(py, e))
}
