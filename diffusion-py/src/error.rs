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

/// Fields of requests that are called otherwise in Python.
const NAMES: &[(&str, &str)] = &[
    ("num_steps", "num_inference_steps"),
    ("only_masked", "padding_mask_crop"),
    ("pag_layers", "pag_applied_layers"),
];

pub(crate) fn to_python(py: Python<'_>, mut error: Error) -> PyErr {
    if let Error::InvalidArgument { name, .. } = &mut error {
        let python = NAMES.iter().find(|(core, _)| core == name);
        *name = python.map_or(*name, |(_, python)| python);
    }
    let class = class_name(error.kind());
    py.import("diffusion_py.errors")
        .and_then(|module| module.getattr(class)?.call1((error.to_string(),)))
        .map_or_else(|failed| failed, PyErr::from_value)
}
