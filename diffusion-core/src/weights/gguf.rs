//! The GGUF container of ggml, which stable-diffusion.cpp writes (versions 2 and 3).
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Candle's own reader keeps the
//! metadata, at many times its size, and divides by an alignment of zero; its quantised types are used.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::element::Element;
use super::file::Contents;
use super::reader::Reader;
use super::stored::StoredTensor;
use crate::error::Result;

/// The first bytes of a file.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// Many times what any model has; a header of more could take more memory than its file.
const MAX_TENSORS: u64 = 100_000;

/// ggml's own limit.
const MAX_DIMS: u32 = 4;

/// Tensor data begin at multiples of this unless the metadata say otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Deeper lists in lists are no metadata.
const MAX_DEPTH: usize = 4;

/// Where ComfyUI's converter notes the shape of a tensor that it had to flatten into whole blocks.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// What the metadata say about the tensors.
struct Metadata {
    alignment: u64,
    original_shapes: HashMap<String, Vec<usize>>,
}

/// A tensor as the header lists it.
struct Listed {
    name: String,
    shape: Vec<usize>,
    element: Element,
    offset: u64,
}

/// Reads a whole file's header.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Contents> {
    let mut reader = Reader::new(path, file);
    reader.take(MAGIC.len() as u64)?;
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        // A big-endian file states its version in its own order.
        let what = match version.swap_bytes() {
            2 | 3 => "a big-endian GGUF file".to_owned(),
            _ => format!("GGUF of version {version}"),
        };
        return Err(reader.unsupported(what, "versions 2 and 3 are, little-endian"));
    }
    let tensor_count = reader.u64()?;
    let metadata_count = reader.u64()?;
    if tensor_count > MAX_TENSORS {
        let reason = format!("{tensor_count} tensors, at most {MAX_TENSORS} were expected");
        return Err(reader.error(reason));
    }
    let mut metadata = read_metadata(&mut reader, metadata_count)?;
    let listed: Vec<Listed> = (0..tensor_count)
        .map(|_| read_listed(&mut reader))
        .collect::<Result<_>>()?;
    let data_start = (reader.position() as u64).next_multiple_of(metadata.alignment);
    let mut contents = Contents::default();
    for Listed {
        name,
        mut shape,
        element,
        offset,
    } in listed
    {
        if !offset.is_multiple_of(metadata.alignment) {
            let reason = format!("tensor {name} begins at byte {offset}, which is not aligned");
            return Err(reader.error(reason));
        }
        if let Some(original) = metadata.original_shapes.remove(&name) {
            shape = original;
        }
        let start = data_start.checked_add(offset).map(usize::try_from);
        let Some(Ok(start)) = start else {
            return Err(reader.error(format!("tensor {name} begins outside of the file")));
        };
        let tensor = StoredTensor::contiguous(element, shape, start, file.len())
            .map_err(|e| reader.error(format!("tensor {name}: {e}")))?;
        if contents.tensors.insert(name.clone(), tensor).is_some() {
            return Err(reader.error(format!("two tensors are called {name}")));
        }
    }
    Ok(contents)
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<Metadata> {
    let mut metadata = Metadata {
        alignment: DEFAULT_ALIGNMENT,
        original_shapes: HashMap::new(),
    };
    for _ in 0..count {
        let key = read_string(reader)?;
        let kind = reader.u32()?;
        if key == "general.alignment" && kind == U32 {
            metadata.alignment = reader.u32()?.into();
            if metadata.alignment < 8 || !metadata.alignment.is_power_of_two() {
                let reason = format!(
                    "general.alignment: expected a power of two from 8 on, found {}",
                    metadata.alignment
                );
                return Err(reader.error(reason));
            }
        } else if let Some(name) = key.strip_prefix(ORIGINAL_SHAPE) {
            let shape = read_shape(reader, kind)?;
            metadata.original_shapes.insert(name.to_owned(), shape);
        } else {
            skip_value(reader, kind, MAX_DEPTH)?;
        }
    }
    Ok(metadata)
}

const U32: u32 = 4;
const I32: u32 = 5;
const STRING: u32 = 8;
const LIST: u32 = 9;

fn skip_value(reader: &mut Reader<'_>, kind: u32, depth: usize) -> Result<()> {
    match kind {
        STRING => {
            let length = reader.u64()?;
            reader.take(length)?;
        }
        LIST => {
            let kind = reader.u32()?;
            let count = reader.u64()?;
            match fixed_size(kind) {
                Some(size) => {
                    reader.take(count.saturating_mul(size))?;
                }
                None if depth == 0 => return Err(reader.error("metadata nested too deeply")),
                None => {
                    for _ in 0..count {
                        skip_value(reader, kind, depth - 1)?;
                    }
                }
            }
        }
        _ => {
            let size = fixed_size(kind);
            let size =
                size.ok_or_else(|| reader.error(format!("metadata of unknown type {kind}")))?;
            reader.take(size)?;
        }
    }
    Ok(())
}

/// The bytes of a metadata value that always has as many.
fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        // U8, I8, BOOL
        0 | 1 | 7 => Some(1),
        // U16, I16
        2 | 3 => Some(2),
        // F32
        U32 | I32 | 6 => Some(4),
        // U64, I64, F64
        10..=12 => Some(8),
        _ => None,
    }
}

fn read_shape(reader: &mut Reader<'_>, kind: u32) -> Result<Vec<usize>> {
    let (element, count) = match kind {
        LIST => (reader.u32()?, reader.u64()?),
        _ => (kind, 0),
    };
    if element != I32 || !(1..=8).contains(&count) {
        return Err(reader.error("an original shape is not a list of 1 to 8 I32"));
    }
    (0..count)
        .map(|_| {
            let size = reader.u32()? as i32;
            usize::try_from(size).map_err(|_| reader.error(format!("a shape with {size}")))
        })
        .collect()
}

fn read_listed(reader: &mut Reader<'_>) -> Result<Listed> {
    let name = read_string(reader)?.to_owned();
    let num_dims = reader.u32()?;
    if num_dims > MAX_DIMS {
        let reason =
            format!("tensor {name} has {num_dims} dimensions, ggml has at most {MAX_DIMS}");
        return Err(reader.error(reason));
    }
    let mut shape = Vec::with_capacity(num_dims as usize);
    for _ in 0..num_dims {
        let size = reader.u64()?;
        let size = usize::try_from(size);
        shape.push(size.map_err(|_| reader.error(format!("tensor {name} is too large")))?);
    }
    // ggml lists the dimension whose elements lie side by side first.
    shape.reverse();
    let kind = reader.u32()?;
    let element = element(kind).ok_or_else(|| {
        reader.unsupported(
            format!("tensor {name} of ggml's type {kind}"),
            "F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K are",
        )
    })?;
    let offset = reader.u64()?;
    Ok(Listed {
        name,
        shape,
        element,
        offset,
    })
}

fn read_string<'a>(reader: &mut Reader<'a>) -> Result<&'a str> {
    let length = reader.u64()?;
    let bytes = reader.take(length)?;
    std::str::from_utf8(bytes).map_err(|e| reader.error(format!("a name is not UTF-8: {e}")))
}

/// The type that ggml numbers so.
fn element(kind: u32) -> Option<Element> {
    Some(match kind {
        0 => Element::F32,
        1 => Element::F16,
        2 => Element::Quantized(GgmlDType::Q4_0),
        3 => Element::Quantized(GgmlDType::Q4_1),
        6 => Element::Quantized(GgmlDType::Q5_0),
        7 => Element::Quantized(GgmlDType::Q5_1),
        8 => Element::Quantized(GgmlDType::Q8_0),
        10 => Element::Quantized(GgmlDType::Q2K),
        11 => Element::Quantized(GgmlDType::Q3K),
        12 => Element::Quantized(GgmlDType::Q4K),
        13 => Element::Quantized(GgmlDType::Q5K),
        14 => Element::Quantized(GgmlDType::Q6K),
        24 => Element::I8,
        25 => Element::I16,
        26 => Element::I32,
        27 => Element::I64,
        28 => Element::F64,
        30 => Element::Bf16,
        _ => return None,
    })
}
