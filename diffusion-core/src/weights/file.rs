//! Files of tensors, whatever their container.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::pickle::{self, Pickle, PickleValue};
use super::stored::StoredTensor;
use super::{gguf, safetensors};
use crate::error::{Error, Result};
use crate::nn::TensorSource;

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
    bytes: Bytes,
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

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
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
        let map = map(&file).map_err(|source| Error::io(path, source))?;
        Self::parse(path.to_owned(), Bytes::Mapped(map))
    }

    /// The tensors of a file that is in memory. `name` stands for its path in errors.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Unsupported`] as [`open`](Self::open).
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(name.into(), Bytes::Owned(bytes))
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let file = bytes.as_ref();
        let container = recognize(&path, file)?;
        let contents = match container {
            Container::SafeTensors => safetensors::parse(&path, file)?,
            Container::TorchZip => pickle::parse_zip(&path, file)?,
            Container::TorchLegacy => pickle::parse_legacy(&path, file)?,
            Container::Gguf => gguf::parse(&path, file)?,
        };
        Ok(Self {
            path,
            bytes,
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
        Some(pickle.root(self.bytes.as_ref()))
    }

    /// How a tensor is stored, or `None` if there is none of that name.
    pub fn stored(&self, name: &str) -> Option<&StoredTensor> {
        self.contents.tensors.get(name)
    }

    /// Reads a tensor of this file's.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such conversion or the device fails.
    pub fn read(&self, tensor: &StoredTensor, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = tensor.decode(self.bytes.as_ref(), dtype)?;
        Ok(tensor.to_device(device)?)
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read only and private to this process. A file that another process cuts off or
    // overwrites while a checkpoint loads is outside of what any reader can guard against; the map lives
    // only until the tensors are copied out.
    unsafe { Mmap::map(file) }
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
        let stored = self.stored(name);
        let stored =
            stored.ok_or_else(|| crate::nn::missing_tensor(TensorSource::name(self), name))?;
        self.read(stored, dtype, device)
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
        let file = self.file_of(name);
        let file = file.ok_or_else(|| crate::nn::missing_tensor(TensorSource::name(self), name))?;
        file.load(name, dtype, device)
    }
}
