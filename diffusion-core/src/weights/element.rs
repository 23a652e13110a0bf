//! How numbers are stored, and their way into a tensor.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use half::f16;

use crate::error::Result;

/// The type of the numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Element {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 8 bits, 3 of them mantissa, no infinities (torch's `float8_e4m3fn`).
    F8E4m3,
    /// 8 bits, 2 of them mantissa (torch's `float8_e5m2`).
    F8E5m2,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 16-bit integer.
    I16,
    /// 8-bit integer.
    I8,
    /// 64-bit natural number.
    U64,
    /// 32-bit natural number.
    U32,
    /// 16-bit natural number.
    U16,
    /// 8-bit natural number.
    U8,
    /// One byte, zero or one.
    Bool,
    /// Blocks of quantised numbers, as ggml has them.
    Quantized(GgmlDType),
}

impl Element {
    /// The number format that holds every value of this type exactly, where candle has one: 64-bit
    /// natural numbers above 2^63 do not fit, and quantised values are f32.
    pub fn dtype(self) -> DType {
        match self {
            Self::F64 => DType::F64,
            Self::F32 | Self::Quantized(_) => DType::F32,
            Self::F16 | Self::F8E4m3 | Self::F8E5m2 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::I64 | Self::U64 => DType::I64,
            Self::I32 => DType::I32,
            Self::I16 | Self::I8 => DType::I16,
            Self::U32 | Self::U16 => DType::U32,
            Self::U8 | Self::Bool => DType::U8,
        }
    }

    /// The bytes of one element, or `None` for quantised blocks.
    pub(super) fn size(self) -> Option<usize> {
        Some(match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F8E4m3 | Self::F8E5m2 | Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Quantized(_) => return None,
        })
    }

    /// The bytes of `count` elements side by side; `None` if they are no whole blocks or too many.
    pub(super) fn byte_count(self, count: usize) -> Option<usize> {
        match (self, self.size()) {
            (Self::Quantized(kind), _) => {
                let is_whole = count.is_multiple_of(kind.block_size());
                let blocks = is_whole.then(|| count / kind.block_size())?;
                blocks.checked_mul(kind.type_size())
            }
            (_, size) => count.checked_mul(size?),
        }
    }

    /// Elements side by side as a tensor on the CPU. There must be as many bytes as the shape needs.
    pub(super) fn decode(self, bytes: &[u8], shape: &[usize], dtype: DType) -> Result<Tensor> {
        match self {
            Self::I8 => integers(bytes, shape, dtype, |[b]| (b as i8).into()),
            Self::U16 => integers(bytes, shape, dtype, |b| u16::from_le_bytes(b).into()),
            // Two's complement: the bits of numbers from 2^63 on are those of negative ones.
            Self::U64 => integers(bytes, shape, dtype, i64::from_le_bytes),
            Self::Quantized(kind) => dequantize(bytes, kind, shape, dtype),
            _ => {
                let tensor = Tensor::from_raw_buffer(bytes, self.dtype(), shape, &Device::Cpu)?;
                Ok(tensor.to_dtype(dtype)?)
            }
        }
    }
}

/// Integers that candle has no format for.
fn integers<const N: usize>(
    bytes: &[u8],
    shape: &[usize],
    dtype: DType,
    read: impl Fn([u8; N]) -> i64,
) -> Result<Tensor> {
    let (parts, _) = bytes.as_chunks::<N>();
    let values: Vec<i64> = parts.iter().map(|&part| read(part)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

/// Sign, 4 bits of exponent with bias 7, 3 of mantissa; all ones is NaN and there is no infinity
/// (Micikevicius et al., "FP8 Formats for Deep Learning", section 3).
pub(super) fn e4m3(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let mantissa = f32::from(code & 7);
    sign * match (code >> 3) & 0xf {
        15 if code & 7 == 7 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        exponent => (8.0 + mantissa) * 2f32.powi(i32::from(exponent) - 10),
    }
}

/// The upper byte of an f16.
pub(super) fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).into()
}

fn dequantize(bytes: &[u8], kind: GgmlDType, shape: &[usize], dtype: DType) -> Result<Tensor> {
    if bytes.is_empty() {
        return Ok(Tensor::zeros(shape, dtype, &Device::Cpu)?);
    }
    // Blocks may run over the ends of rows, which QTensor would refuse.
    let count = bytes.len() / kind.type_size() * kind.block_size();
    let storage = QStorage::from_data(aligned(bytes).bytes(), &Device::Cpu, kind)?;
    let flat = QTensor::new(storage, count)?.dequantize(&Device::Cpu)?;
    Ok(flat.to_dtype(dtype)?.reshape(shape)?)
}

/// Bytes that begin where candle's blocks may begin: it refuses others with a panic.
struct Aligned<'a> {
    bytes: Cow<'a, [u8]>,
    skip: usize,
}

/// No block of ggml asks for more.
const BLOCK_ALIGNMENT: usize = 8;

fn aligned(bytes: &[u8]) -> Aligned<'_> {
    let misfit = |bytes: &[u8]| bytes.as_ptr().align_offset(BLOCK_ALIGNMENT);
    if misfit(bytes) == 0 {
        let bytes = Cow::Borrowed(bytes);
        return Aligned { bytes, skip: 0 };
    }
    let mut copy = Vec::with_capacity(bytes.len() + BLOCK_ALIGNMENT);
    let skip = misfit(&copy).min(BLOCK_ALIGNMENT);
    copy.resize(skip, 0);
    copy.extend_from_slice(bytes);
    let bytes = Cow::Owned(copy);
    Aligned { bytes, skip }
}

impl Aligned<'_> {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes[self.skip..])
    }
}
