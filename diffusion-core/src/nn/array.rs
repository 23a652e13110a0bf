//! Values in memory that comes back, for the kernels of the CPU.

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use super::Activation;
use super::kernels::cpu::{Buffer, Precision, Values};
use crate::error::Result;

/// Values of f32, and their dimensions.
#[derive(Debug, Clone)]
pub(super) struct Array {
    buffer: Arc<Buffer>,
    dims: Vec<usize>,
    /// That of the products that made them, which attention takes over.
    pub(super) precision: Precision,
}

impl Array {
    /// A copy of a tensor on the CPU of which no gradient is asked.
    pub(super) fn from_tensor(tensor: &Tensor) -> Result<Option<Self>> {
        let is_plain = matches!(tensor.device(), Device::Cpu) && tensor.dtype() == DType::F32;
        if !is_plain || tensor.track_op() {
            return Ok(None);
        }
        with_values(tensor, &[], |values| match values {
            Values::F32(values) => Some(Self {
                buffer: Buffer::from_slice(values).into(),
                dims: tensor.dims().to_vec(),
                precision: Precision::F32,
            }),
            _ => None,
        })
    }

    pub(super) fn to_tensor(&self) -> Result<Tensor> {
        let values = self.values().to_vec();
        Ok(Tensor::from_vec(
            values,
            self.dims.as_slice(),
            &Device::Cpu,
        )?)
    }

    pub(super) fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub(super) fn len(&self) -> usize {
        self.values().len()
    }

    /// The same values, as many, in other dimensions.
    pub(super) fn reshaped(&self, dims: Vec<usize>) -> Self {
        Self {
            buffer: self.buffer.clone(),
            dims,
            precision: self.precision,
        }
    }

    pub(super) fn values(&self) -> &[f32] {
        (*self.buffer).as_ref()
    }

    pub(super) fn channels(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// The values, if nothing else has them.
    pub(super) fn own_values(&mut self) -> Option<&mut [f32]> {
        Arc::get_mut(&mut self.buffer).map(AsMut::as_mut)
    }

    /// Takes the memory, if nothing else has it.
    pub(super) fn take(&mut self) -> Option<Buffer> {
        let buffer = Arc::get_mut(&mut self.buffer)?;
        Some(std::mem::replace(buffer, Buffer::new(0)))
    }

    /// New values of some dimensions, which `write` writes.
    pub(super) fn build(
        dims: Vec<usize>,
        precision: Precision,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Option<Activation>> {
        let buffer = Buffer::new(dims.iter().product::<usize>());
        Self::build_in(buffer, dims, precision, write)
    }

    /// The same in memory that is there.
    pub(super) fn build_in(
        mut buffer: Buffer,
        dims: Vec<usize>,
        precision: Precision,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<Option<Activation>> {
        write(buffer.as_mut());
        Ok(Some(Activation::from_array(Self {
            buffer: buffer.into(),
            dims,
            precision,
        })))
    }
}

/// Calls `f` with a tensor's values as they are held, in the order of its dimensions.
pub(super) fn with_values<T>(
    tensor: &Tensor,
    scales: &[f32],
    f: impl FnOnce(Values<'_>) -> T,
) -> Result<T> {
    let is_int8 = tensor.dtype() == DType::U8 && tensor.dims().first() == Some(&scales.len());
    let tensor = match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => tensor.contiguous()?,
        _ if is_int8 => tensor.contiguous()?,
        _ => tensor.to_dtype(DType::F32)?.contiguous()?,
    };
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    Ok(match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => f(Values::F32(&values[range])),
        Storage::Cpu(CpuStorage::F16(values)) => f(Values::F16(&values[range])),
        Storage::Cpu(CpuStorage::BF16(values)) => f(Values::Bf16(&values[range])),
        Storage::Cpu(CpuStorage::U8(values)) => f(Values::Int8 {
            values: &values[range],
            scales,
        }),
        _ => {
            drop(storage);
            let values = tensor
                .flatten_all()?
                .to_device(&Device::Cpu)?
                .to_vec1::<f32>()?;
            f(Values::F32(&values))
        }
    })
}
