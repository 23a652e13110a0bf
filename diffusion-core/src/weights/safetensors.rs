//! The safetensors container.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::element::Element;
use super::file::Contents;
use super::stored::StoredTensor;
use crate::error::{Error, Result};

/// The length of a header that is fine however small the file is, its long texts not counted.
const MAX_BARE_HEADER: usize = 8 << 20;
/// Longer texts are not counted: trainers put all their captions into the metadata of LoRAs.
const LONG_TEXT: usize = 1 << 10;

/// Reads a whole file's header: every tensor's bytes must lie inside the file.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Contents> {
    check_header_len(path, file)?;
    let damaged = |e| Error::format(path, format!("not a whole safetensors file: {e}"));
    let (header_len, header) = SafeTensors::read_metadata(file).map_err(damaged)?;
    let data_start = header_len + size_of::<u64>();
    let mut contents = Contents::default();
    for (name, info) in header.tensors() {
        let element = element(info.dtype).ok_or_else(|| {
            let what = format!("{}: tensor {name} of type {:?}", path.display(), info.dtype);
            Error::unsupported(what, "convert it to F32, F16, BF16, F8_E4M3 or F8_E5M2")
        })?;
        let (start, end) = info.data_offsets;
        let shape = info.shape.clone();
        let tensor = StoredTensor::contiguous(element, shape, data_start + start, data_start + end);
        let tensor = tensor.map_err(|e| Error::format(path, format!("tensor {name}: {e}")))?;
        contents.tensors.insert(name, tensor);
    }
    if let Some(metadata) = header.metadata() {
        contents.metadata.extend(metadata.clone());
    }
    Ok(contents)
}

/// A parsed header takes about ten times its length, long texts aside, so a file that is all header is refused.
fn check_header_len(path: &Path, file: &[u8]) -> Result<()> {
    let Some((len, rest)) = file.split_first_chunk() else {
        return Ok(());
    };
    // What leaves the file is the parser's to refuse.
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let Some(header) = rest.get(..len) else {
        return Ok(());
    };
    let limit = MAX_BARE_HEADER + file.len() / 16;
    let counted = match len <= limit {
        true => len,
        false => len - long_texts(header),
    };
    match counted <= limit {
        true => Ok(()),
        false => Err(Error::format(
            path,
            format!(
                "a safetensors header of {counted} bytes, long texts not counted; at most {limit} were expected"
            ),
        )),
    }
}

/// How many bytes of JSON are in texts that are long.
fn long_texts(json: &[u8]) -> usize {
    let (mut sum, mut rest) = (0, json);
    let quote = |bytes: &[u8]| bytes.iter().position(|&byte| byte == b'"');
    while let Some(start) = quote(rest) {
        rest = &rest[start + 1..];
        let mut len = 0;
        // An escaped character takes two bytes.
        while let Some(&byte) = rest.get(len).filter(|&&byte| byte != b'"') {
            len += 1 + usize::from(byte == b'\\');
        }
        if len > LONG_TEXT {
            sum += len.min(rest.len());
        }
        rest = rest.get(len + 1..).unwrap_or_default();
    }
    sum
}

fn element(dtype: Dtype) -> Option<Element> {
    Some(match dtype {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::F8_E4M3 => Element::F8E4m3,
        Dtype::F8_E5M2 => Element::F8E5m2,
        Dtype::I64 => Element::I64,
        Dtype::I32 => Element::I32,
        Dtype::I16 => Element::I16,
        Dtype::I8 => Element::I8,
        Dtype::U64 => Element::U64,
        Dtype::U32 => Element::U32,
        Dtype::U16 => Element::U16,
        Dtype::U8 => Element::U8,
        Dtype::BOOL => Element::Bool,
        _ => return None,
    })
}
