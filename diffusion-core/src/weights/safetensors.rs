//! Memory-mapped safetensors files.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use crate::error::{Error, Result};
use crate::nn::TensorSource;

struct Shard {
    path: PathBuf,
    map: Mmap,
    /// Where the tensors' bytes begin.
    data_start: usize,
    metadata: Metadata,
}

/// The tensors of one or several safetensors files, read from the page cache as they are asked for.
pub struct SafeTensorsSource {
    shards: Vec<Shard>,
    /// Which shard holds a tensor.
    index: HashMap<String, usize>,
}

impl SafeTensorsSource {
    /// Maps the files and checks their headers: every tensor's bytes must lie inside its file.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Io`] if a file cannot be opened, [`Error::Format`] if one is cut
    /// off or damaged, or if two hold a tensor of the same name.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let mut index = HashMap::new();
        let mut shards = Vec::with_capacity(files.len());
        for (i, path) in files.iter().enumerate() {
            let shard = Shard::open(path)?;
            for name in shard.metadata.offset_keys() {
                if index.insert(name.clone(), i).is_some() {
                    let reason = format!("the tensor {name} is in another shard too");
                    return Err(Error::format(path, reason));
                }
            }
            shards.push(shard);
        }
        Ok(Self { shards, index })
    }

    fn shard(&self, name: &str) -> Option<&Shard> {
        self.shards.get(*self.index.get(name)?)
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let hint = "the checkpoint names this file; copy or download it again";
        let file = File::open(path).map_err(|e| Error::open(path, e, hint))?;
        let map = map(&file).map_err(|source| Error::io(path, source))?;
        let damaged = |e| Error::format(path, format!("not a whole safetensors file: {e}"));
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(damaged)?;
        Ok(Self {
            path: path.to_owned(),
            map,
            data_start: header_len + 8,
            metadata,
        })
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read only and private to this process. A file that another process cuts off or
    // overwrites while a checkpoint loads is outside of what any reader can guard against; the map lives
    // only until the tensors are copied out.
    unsafe { Mmap::map(file) }
}

impl TensorSource for SafeTensorsSource {
    fn name(&self) -> String {
        let paths: Vec<_> = self
            .shards
            .iter()
            .map(|s| s.path.display().to_string())
            .collect();
        paths.join(", ")
    }

    fn tensor_names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.shard(name)?.metadata.info(name)?.shape.clone())
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let found = self
            .shard(name)
            .and_then(|shard| Some((shard, shard.metadata.info(name)?)));
        let (shard, info) =
            found.ok_or_else(|| crate::nn::missing_tensor(TensorSource::name(self), name))?;
        let stored = stored_dtype(info.dtype).ok_or_else(|| {
            let path = shard.path.display();
            let what = format!("{path}: tensor {name} of type {:?}", info.dtype);
            Error::unsupported(what, "F64, F32, F16 and BF16 are")
        })?;
        let (start, end) = info.data_offsets;
        // The header's check has seen to it that these bytes are there.
        let bytes = &shard.map[shard.data_start + start..shard.data_start + end];
        let tensor = match (stored, dtype) {
            (DType::F16, DType::F32) => widen(bytes, &info.shape, half::f16::from_le_bytes)?,
            (DType::BF16, DType::F32) => widen(bytes, &info.shape, half::bf16::from_le_bytes)?,
            _ => Tensor::from_raw_buffer(bytes, stored, &info.shape, &Device::Cpu)?
                .to_dtype(dtype)?,
        };
        Ok(tensor.to_device(device)?)
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        stored_dtype(self.shard(name)?.metadata.info(name)?.dtype)
    }

    fn metadata(&self) -> HashMap<String, String> {
        let metadata = self
            .shards
            .iter()
            .filter_map(|s| s.metadata.metadata().as_ref());
        metadata
            .flatten()
            .map(|(key, text)| (key.clone(), text.clone()))
            .collect()
    }
}

fn stored_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return None,
    })
}

/// Half-precision numbers as f32, without a copy in between.
fn widen<T: Into<f32>>(bytes: &[u8], shape: &[usize], read: fn([u8; 2]) -> T) -> Result<Tensor> {
    let (pairs, _) = bytes.as_chunks::<2>();
    let values: Vec<f32> = pairs.iter().map(|&pair| read(pair).into()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
