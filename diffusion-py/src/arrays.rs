//! Tensors to bytes and back. numpy arrays are made of them in Python, so that numpy stays optional and
//! the stable ABI of Python 3.10, which has no buffer protocol, is enough.

use diffusion_core::{DType, Device, Result, Tensor};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

/// Bytes in C order and the shape that they have.
pub(crate) type Raw = (Vec<u8>, Vec<usize>);

/// The same as Python has it. A `bytearray`, because numpy arrays over `bytes` are read-only.
pub(crate) type PyRaw<'py> = (Bound<'py, PyByteArray>, Vec<usize>);

pub(crate) fn to_python(py: Python<'_>, (bytes, shape): Raw) -> PyRaw<'_> {
    (PyByteArray::new(py, &bytes), shape)
}

pub(crate) fn to_bytes(tensor: &Tensor) -> Result<Raw> {
    let values = tensor
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let bytes = values.into_iter().flat_map(f32::to_ne_bytes).collect();
    Ok((bytes, tensor.dims().to_vec()))
}

pub(crate) fn from_bytes(bytes: &[u8], shape: Vec<usize>, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&value| f32::from_ne_bytes(value))
        .collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}
