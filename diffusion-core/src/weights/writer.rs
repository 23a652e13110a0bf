//! Writing safetensors files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// A tensor to write.
pub(super) struct Output {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

impl Output {
    fn num_bytes(&self) -> usize {
        let width = self.dtype.size_in_bytes();
        self.shape
            .iter()
            .fold(width, |bytes, &n| bytes.saturating_mul(n))
    }
}

/// Writes a safetensors file; `load` is asked for one tensor after the other. The widest numbers come first, so
/// that all are aligned.
pub(super) fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    mut outputs: Vec<Output>,
    mut load: impl FnMut(&Output) -> Result<Tensor>,
) -> Result<()> {
    let failed = |source| Error::io(path, source);
    outputs.sort_by_key(|output| std::cmp::Reverse(output.dtype.size_in_bytes()));
    let mut file = BufWriter::new(File::create_new(path).map_err(failed)?);
    let header = header(metadata, &outputs)?;
    let length = (header.len() as u64).to_le_bytes();
    file.write_all(&length).map_err(failed)?;
    file.write_all(header.as_bytes()).map_err(failed)?;
    for output in &outputs {
        let tensor = load(output)?;
        if tensor.dims() != output.shape || tensor.dtype() != output.dtype {
            let expected = format!("{:?} of {:?}", output.shape, output.dtype);
            let found = format!("{:?} of {:?}", tensor.dims(), tensor.dtype());
            let reason = format!("{}: expected {expected}, found {found}", output.name);
            return Err(Error::format(path, reason));
        }
        tensor.write_bytes(&mut file)?;
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn header(metadata: &BTreeMap<String, String>, outputs: &[Output]) -> Result<String> {
    let mut fields = serde_json::Map::new();
    fields.insert("__metadata__".into(), json!(metadata));
    let mut start = 0;
    for output in outputs {
        let end = output.num_bytes().saturating_add(start);
        let entry = json!({
            "dtype": dtype_name(output)?,
            "shape": output.shape,
            "data_offsets": [start, end],
        });
        fields.insert(output.name.clone(), entry);
        start = end;
    }
    let mut text = Value::Object(fields).to_string();
    // The numbers begin at a multiple of eight bytes.
    let padded = text.len().next_multiple_of(size_of::<u64>());
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    Ok(text)
}

fn dtype_name(output: &Output) -> Result<&'static str> {
    Ok(match output.dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::F8E4M3 => "F8_E4M3",
        DType::I64 => "I64",
        DType::U32 => "U32",
        DType::U8 => "U8",
        other => {
            let what = format!("{}: writing {other:?}", output.name);
            return Err(Error::unsupported(what, "floating point numbers are"));
        }
    })
}

/// A place beside a path where something is made that then takes the path's name. What was made is removed
/// if it is dropped before.
pub(super) struct Draft {
    target: PathBuf,
    draft: PathBuf,
}

impl Draft {
    /// Plans a file or folder at `target`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if something is there and `overwrite` is false.
    pub(super) fn new(target: &Path, overwrite: bool) -> Result<Self> {
        let Some(name) = target.file_name() else {
            let found = target.display();
            return Err(Error::argument(
                "path",
                "a file or folder with a name",
                found,
            ));
        };
        if target.exists() && !overwrite {
            let expected = "a path where nothing is, or overwrite(true)";
            let found = format!("{}, which exists", target.display());
            return Err(Error::argument("path", expected, found));
        }
        let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let draft = target.with_file_name(name);
        remove(&draft).map_err(|e| Error::io(&draft, e))?;
        Ok(Self {
            target: target.to_owned(),
            draft,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.draft
    }

    /// Gives it its name.
    pub(super) fn finish(self) -> Result<()> {
        let failed = |source| Error::io(&self.target, source);
        // A folder cannot be renamed onto another; a file is replaced in one step.
        if self.target.is_dir() {
            remove(&self.target).map_err(failed)?;
        }
        fs::rename(&self.draft, &self.target).map_err(failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `finish` nothing is there any more, and a failure to tidy up is not worth an error.
        _ = remove(&self.draft);
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match path {
        path if path.is_dir() => fs::remove_dir_all(path),
        path if path.exists() => fs::remove_file(path),
        _ => Ok(()),
    }
}
