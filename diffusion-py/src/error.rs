//! Errors to exceptions.

use diffusion_core::{Error, ErrorKind};
use pyo3::prelude::*;

/// The class in `diffusion_py.errors`. The classes are defined in Python, where they can inherit from two
/// builtin ones.
fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidArgument => "InvalidArgumentError",
        ErrorKind::NotFound => "NotFoundError",
        ErrorKind::Io => "IoError",
        ErrorKind::Format => "FormatError",
        ErrorKind::Weights => "WeightsError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::OutOfMemory => "OutOfMemoryError",
        ErrorKind::Cancelled => "Cancelled",
        ErrorKind::Device => "DeviceError",
        _ => "DiffusionError",
    }
}

pub(crate) fn to_python(py: Python<'_>, mut error: Error) -> PyErr {
    if let Error::InvalidArgument { name, .. } = &mut error
        && *name == "num_steps"
    {
        *name = "num_inference_steps";
    }
    let class = class_name(error.kind());
    py.import("diffusion_py.errors")
        .and_then(|module| module.getattr(class)?.call1((error.to_string(),)))
        .map_or_else(|failed| failed, PyErr::from_value)
}
