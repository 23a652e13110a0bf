//! LoRA and its relatives: small files that change a model's weights.

mod adapter;
mod description;
mod keys;
mod merge;
mod modules;
mod peft;
mod scale;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::embedding::{self, Embedded, Embedding};
use super::{OpenOptions, TensorFile, Wanted, locate};
use crate::config::read_text;
use crate::error::{Error, Result};
use crate::nn::TensorSource;

use adapter::Adapter;
use keys::{Slot, Spelled};
pub use merge::{LoraMode, LoraReport, MergedLoras, merge_loras};
use peft::PeftSettings;
pub use scale::LoraScale;

/// A part of a model that adapters and embeddings are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelPart {
    /// The UNet.
    UNet,
    /// The text encoder, or the first of two.
    TextEncoder,
    /// The second text encoder of SDXL.
    TextEncoder2,
}

impl fmt::Display for ModelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UNet => "UNet",
            Self::TextEncoder => "text encoder",
            Self::TextEncoder2 => "second text encoder",
        })
    }
}

/// The adapters of a file, not yet bound to a model; [`merge_loras`] binds them.
///
/// Read are LoRA of linear layers and convolutions (with or without a core in between), LoHa, LoKr, whole
/// differences and DoRA, with the keys of kohya's scripts, LyCORIS, diffusers (old and new), PEFT and
/// cloneofsimo/lora.
#[derive(Debug, Clone)]
pub struct Lora {
    name: String,
    modules: BTreeMap<Spelled, Entry>,
    unused: Vec<String>,
    embeddings: Vec<Embedding>,
}

/// A module's adapter and the keys that it came from.
#[derive(Debug, Clone)]
struct Entry {
    adapter: Adapter,
    keys: Vec<String>,
}

/// What a folder's LoRA may be called.
pub(super) const FILE_NAMES: [&str; 2] = ["pytorch_lora_weights.safetensors", ADAPTER_MODEL];
/// PEFT's file, which has its settings beside it.
pub(super) const ADAPTER_MODEL: &str = "adapter_model.safetensors";
/// PEFT's settings.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

impl Lora {
    /// Reads a safetensors file, a folder as diffusers or PEFT save it, or a LoRA of the hub by its id.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; otherwise as [`read`](Self::read) and [`OpenOptions::locate`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = locate(path.as_ref(), &OpenOptions::default(), Wanted::Lora)?;
        let file = match path.is_dir() {
            true => file_of(&path)?,
            false => path,
        };
        let config = file.with_file_name(ADAPTER_CONFIG);
        let is_peft = file.file_name().is_some_and(|name| name == ADAPTER_MODEL);
        let config = match is_peft && config.is_file() {
            true => read_text(&config)?,
            false => Value::Null.to_string(),
        };
        Self::read_with(&TensorFile::open(file)?, &config)
    }

    /// Reads the adapters of any source. `config` is PEFT's `adapter_config.json`, or null. Of the patterns in
    /// it that fit a module the first counts, in the order that a [`Value`] has; [`open`](Self::open) goes by the file's.
    ///
    /// # Errors
    /// [`Error::Format`] if tensors that belong together are missing or do not fit each other, if no key
    /// is one of an adapter, if numbers are not finite, if a word that it brings has no vectors `(count, width)`, or if
    /// a pattern of PEFT's is no regular expression of the crate `regex`.
    pub fn read(source: &dyn TensorSource, config: &Value) -> Result<Self> {
        Self::read_with(source, &config.to_string())
    }

    fn read_with(source: &dyn TensorSource, config: &str) -> Result<Self> {
        let name = source.name();
        let bad = |reason: String| Error::format(Path::new(&name), reason);
        let mut keys = source.tensor_names();
        keys.sort();
        let Embedded {
            embeddings,
            keys: of_embeddings,
        } = embedding::embedded(source).map_err(|e| bad(format!("a word of it: {e}")))?;
        let peft = PeftSettings::new(&source.metadata(), config).map_err(bad)?;

        let mut slots = BTreeMap::<Spelled, HashMap<Slot, Tensor>>::new();
        let mut modules = BTreeMap::<Spelled, Vec<String>>::new();
        let mut unused = Vec::new();
        for key in keys {
            let Some((module, slot)) = keys::parse(&key) else {
                if !of_embeddings.contains(&key) {
                    unused.push(key);
                }
                continue;
            };
            let tensor = source.load(&key, DType::F32, &Device::Cpu)?;
            if !is_finite(&tensor)? {
                return Err(bad(format!("{key} has numbers that are not finite")));
            }
            if slots
                .entry(module.clone())
                .or_default()
                .insert(slot, tensor)
                .is_some()
            {
                return Err(bad(format!(
                    "{key}: the module has another tensor of the kind"
                )));
            }
            modules.entry(module).or_default().push(key);
        }
        let mut result = Self {
            name: name.clone(),
            modules: BTreeMap::new(),
            unused,
            embeddings,
        };
        for ((spelled, tensors), keys) in slots.into_iter().zip(modules.into_values()) {
            let default_alpha = peft.default_alpha(&spelled);
            let adapter = Adapter::new(tensors, default_alpha)
                .map_err(|reason| bad(format!("{}: {reason}", keys[0])))?;
            match adapter.does_something() {
                true => {
                    result.modules.insert(spelled, Entry { adapter, keys });
                }
                false => result.unused.extend(keys),
            }
        }
        if result.modules.is_empty() {
            let reason = "no key is one of a LoRA, LoHa, LoKr or difference of weights";
            return Err(bad(reason.into()));
        }
        result.count_numbered();
        Ok(result)
    }

    /// What errors and reports call it: the file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many modules it has adapters for.
    pub fn num_modules(&self) -> usize {
        self.modules.len()
    }

    /// Keys that are of no dialect. Those of modules that a model does not have are reported when the
    /// LoRA is merged.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The tokens that the file brings with it.
    pub fn embeddings(&self) -> &[Embedding] {
        &self.embeddings
    }

    /// Gives numbered modules the name under which a model lists them, which has their count in it.
    fn count_numbered(&mut self) {
        let number = |spelled: &Spelled| spelled.name.parse::<usize>().ok();
        let numbered: Vec<Spelled> = self
            .modules
            .keys()
            .filter(|spelled| number(spelled).is_some())
            .cloned()
            .collect();
        for spelled in &numbered {
            let count = numbered
                .iter()
                .filter(|other| other.part == spelled.part)
                .count();
            let name = number(spelled).map(|number| modules::numbered_name(number, count));
            if let (Some(name), Some(entry)) = (name, self.modules.remove(spelled)) {
                let part = spelled.part;
                self.modules.insert(Spelled { part, name }, entry);
            }
        }
    }
}

/// Infinities and what is no number would make every weight that they are added to one.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let zero = (tensor * 0.0)?
        .flatten_all()?
        .sum_all()?
        .to_scalar::<f32>()?;
    Ok(zero == 0.0)
}

fn file_of(folder: &Path) -> Result<PathBuf> {
    let mut files = FILE_NAMES.iter().map(|name| folder.join(name));
    files
        .find(|file| file.is_file())
        .ok_or_else(|| Error::NotFound {
            path: folder.to_owned(),
            hint: format!("a LoRA's folder has {}", FILE_NAMES.join(" or ")),
        })
}
