//! Judging pictures.

use std::path::PathBuf;

use diffusion_core::Result;
use diffusion_core::device::{parse_device, parse_dtype};
use diffusion_core::model::SafetyChecker;
use pyo3::prelude::*;

use crate::error;
use crate::pictures::{RawPicture, default_dtype, picture};

/// Scores, numbers of the flagged concepts, scores of those of special care.
type RawReport = (Vec<f32>, Vec<usize>, Vec<f32>);

/// A safety checker, loaded.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativeSafetyChecker(SafetyChecker);

#[pymethods]
impl NativeSafetyChecker {
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        dtype: Option<String>,
        device: String,
    ) -> PyResult<Self> {
        let open = || {
            let device = parse_device(&device)?;
            let dtype = match dtype {
                Some(name) => parse_dtype(&name)?,
                None => default_dtype(&device),
            };
            SafetyChecker::open(path, dtype, &device)
        };
        py.detach(open)
            .map(Self)
            .map_err(|e| error::to_python(py, e))
    }

    fn check(&self, py: Python<'_>, pictures: Vec<RawPicture>) -> PyResult<Vec<RawReport>> {
        let check = || {
            let pictures = pictures.iter().map(picture).collect::<Result<Vec<_>>>()?;
            self.0.check(&pictures)
        };
        let reports = py.detach(check).map_err(|e| error::to_python(py, e))?;
        let raw = reports
            .into_iter()
            .map(|report| (report.scores, report.concepts, report.special_scores));
        Ok(raw.collect())
    }
}
