//! Files of tensors, whatever their container.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::pickle::{self, Pickle, PickleValue};
use super::storage::Storage;
use super::stored::StoredTensor;
use super::{gguf, safetensors};
use crate::error::{Error, Result};
use crate::nn::{TensorSource, channels_last};
use candle_core::{DType, Device, Tensor};

/// What a file's first bytes say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Container {
    /// safetensors.
    SafeTensors,
    /// What torch.save writes since version 1.6: a zip archive with a pickle inside.
    TorchZip,
    /// What torch.save wrote before: pickles, then the numbers.
    TorchLegacy,
    /// ggml's, as stable-diffusion.cpp writes it.
    Gguf,
}

/// The tensors of one file, read from the page cache as they are asked for.
///
/// Opening reads the header alone; it takes no more memory than the file's size and a small constant.
pub struct TensorFile {
    path: PathBuf,
    storage: Storage,
    container: Container,
    contents: Contents,
}

/// What a container's header holds.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, StoredTensor>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) pickle: Option<Pickle>,
}

impl TensorFile {
    /// Opens a file of tensors. Its container is recognised by its first bytes, never by its name.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Io`] if it cannot be opened, [`Error::Format`] if it is cut off,
    /// damaged or no file of tensors, [`Error::Unsupported`] if it holds what cannot be read, by name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let hint = "copy or download the checkpoint again";
        let file = File::open(path).map_err(|e| Error::open(path, e, hint))?;
        let storage = Storage::of_file(file).map_err(|source| Error::io(path, source))?;
        Self::parse(path.to_owned(), storage)
    }

    /// The tensors of a file that is in memory. `name` stands for its path in errors.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Unsupported`] as [`open`](Self::open).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(name.into(), Storage::Bytes(bytes))
    }

    fn parse(path: PathBuf, storage: Storage) -> Result<Self> {
        let file = storage.as_ref();
        let container = recognize(&path, file)?;
        let contents = match container {
            Container::SafeTensors => safetensors::parse(&path, file)?,
            Container::TorchZip => pickle::parse_zip(&path, file)?,
            Container::TorchLegacy => pickle::parse_legacy(&path, file)?,
            Container::Gguf => gguf::parse(&path, file)?,
        };
        Ok(Self {
            path,
            storage,
            container,
            contents,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn container(&self) -> Container {
        self.container
    }

    /// Everything that a pickle holds, tensors and else; `None` for other containers.
    pub fn pickle(&self) -> Option<PickleValue<'_>> {
        let pickle = self.contents.pickle.as_ref()?;
        Some(pickle.root(self.storage.as_ref()))
    }

    /// How a tensor is stored, or `None` if there is none of that name.
    pub fn stored(&self, name: &str) -> Option<&StoredTensor> {
        self.contents.tensors.get(name)
    }

    /// Reads a tensor of this file's.
    ///
    /// # Errors
    /// [`Error::Io`] if the file was cut off since, [`Error::Tensor`] if there is no such conversion or the
    /// device fails.
    pub fn read(&self, tensor: &StoredTensor, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = tensor.decode(&self.path, &self.storage, dtype, false)?;
        Ok(tensor.to_device(device)?)
    }

    fn of_name(&self, name: &str) -> Result<&StoredTensor> {
        self.stored(name)
            .ok_or_else(|| crate::nn::missing_tensor(TensorSource::name(self), name))
    }
}

/// The container that a file's first bytes tell.
fn recognize(path: &Path, file: &[u8]) -> Result<Container> {
    let begins = |magic: &[u8]| file.starts_with(magic);
    if begins(b"PK\x03\x04") {
        return Ok(Container::TorchZip);
    }
    if begins(gguf::MAGIC) {
        return Ok(Container::Gguf);
    }
    // A safetensors file begins with the length of its header, which is a JSON object. The length may look
    // like the first bytes of a pickle.
    if file.get(8) == Some(&b'{') {
        return Ok(Container::SafeTensors);
    }
    if pickle::is_pickle(file) {
        return Ok(Container::TorchLegacy);
    }
    let text = String::from_utf8_lossy(&file[..file.len().min(64)]);
    let start = text.trim_start().to_ascii_lowercase();
    let reason = if file.is_empty() {
        "the file is empty; download it again".to_owned()
    } else if start.starts_with("version https://git-lfs") {
        "a Git LFS pointer stands in for the file; fetch it with git lfs pull".to_owned()
    } else if ["<!doctype", "<html", "<?xml"]
        .iter()
        .any(|tag| start.starts_with(tag))
    {
        "a web page, not a checkpoint: the server answered the download with an error or a login form"
            .to_owned()
    } else {
        format!(
            "expected safetensors, a file of torch.save or GGUF; the file begins with {:?}",
            text.chars().take(16).collect::<String>()
        )
    };
    Err(Error::format(path, reason))
}

impl TensorSource for TensorFile {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.contents.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.stored(name)?.shape().to_vec())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        Some(self.stored(name)?.element().dtype())
    }

    /// Those of safetensors files; other containers have none.
    fn metadata(&self) -> BTreeMap<String, String> {
        self.contents.metadata.clone()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.read(self.of_name(name)?, dtype, device)
    }

    fn load_channels_last(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let stored = self.of_name(name)?;
        let tensor = stored.decode(&self.path, &self.storage, dtype, true)?;
        Ok(channels_last(tensor)?.to_device(device)?)
    }
}

/// The tensors of several files together, such as the shards of one model.
pub struct TensorFiles {
    files: Vec<TensorFile>,
    /// Which file holds a tensor.
    index: HashMap<String, usize>,
}

impl TensorFiles {
    /// Opens all of them.
    ///
    /// # Errors
    /// As [`TensorFile::open`], and [`Error::Format`] if two hold a tensor of the same name.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut index = HashMap::new();
        let mut files = Vec::with_capacity(paths.len());
        for (i, path) in paths.iter().enumerate() {
            let file = TensorFile::open(path)?;
            for name in file.contents.tensors.keys() {
                if index.insert(name.clone(), i).is_some() {
                    let reason = format!("the tensor {name} is in another shard too");
                    return Err(Error::format(path, reason));
                }
            }
            files.push(file);
        }
        Ok(Self { files, index })
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&TensorFile> {
        self.files.get(*self.index.get(name)?)
    }

    fn holder(&self, name: &str) -> Result<&TensorFile> {
        self.file_of(name)
            .ok_or_else(|| crate::nn::missing_tensor(TensorSource::name(self), name))
    }
}

impl TensorSource for TensorFiles {
    fn name(&self) -> String {
        let names: Vec<_> = self.files.iter().map(TensorSource::name).collect();
        names.join(", ")
    }

    fn tensor_names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file_of(name)?.shape(name)
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.file_of(name)?.dtype(name)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let all = self.files.iter().flat_map(TensorSource::metadata);
        all.collect()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.holder(name)?.load(name, dtype, device)
    }

    fn load_channels_last(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.holder(name)?.load_channels_last(name, dtype, device)
    }
}
