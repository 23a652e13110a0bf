//! The diffusers folder layout.

use std::path::{Component as PathPart, Path, PathBuf};

use serde_json::Value;

use super::TensorFiles;
use crate::config::read_json;
use crate::error::{Error, Result};

/// A model folder as diffusers writes it: `model_index.json` and a folder for each component.
#[derive(Debug, Clone)]
pub struct DiffusersFolder {
    path: PathBuf,
    index: Value,
    variant: Option<String>,
}

/// One component of a [`DiffusersFolder`], or a folder that holds one alone.
#[derive(Debug, Clone)]
pub struct Component {
    /// The component's folder.
    pub path: PathBuf,
    /// Where its configuration is.
    pub config_path: PathBuf,
    /// Its `config.json`.
    pub config: Value,
    variant: Option<String>,
}

impl DiffusersFolder {
    /// Opens a folder. `variant` prefers weights such as `model.fp16.safetensors` for `fp16`; components
    /// that have none of the kind are read as they are.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such path, [`Error::Format`] if it is not a model folder or has
    /// no weights of the variant at all.
    pub fn open(path: impl AsRef<Path>, variant: Option<&str>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        if !path.exists() {
            let hint = "give the folder of a model in the diffusers layout".into();
            return Err(Error::NotFound { path, hint });
        }
        let index_path = path.join(INDEX);
        if !index_path.is_file() {
            let reason = "not a model folder: expected a folder with model_index.json, as diffusers' \
                          save_pretrained writes it";
            return Err(Error::format(&path, reason));
        }
        let index = read_json(&index_path)?;
        if !index.is_object() {
            return Err(Error::format(
                &index_path,
                "expected an object with a key a component",
            ));
        }
        let folder = Self {
            path,
            index,
            variant: variant.map(str::to_owned),
        };
        folder.check_variant()?;
        Ok(folder)
    }

    fn check_variant(&self) -> Result<()> {
        let Some(variant) = &self.variant else {
            return Ok(());
        };
        let infix = format!(".{variant}");
        let folders = self.component_names().map(|name| self.path.join(name));
        if folders
            .flat_map(|folder| file_names(&folder))
            .any(|name| name.contains(&infix))
        {
            return Ok(());
        }
        let reason = format!("no component has weights of the variant {variant:?}; leave it out");
        Err(Error::format(&self.path, reason))
    }

    fn component_names(&self) -> impl Iterator<Item = &str> {
        self.index
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| {
                // `[null, null]` stands for an optional component that is not there.
                (value.is_array() && !value[1].is_null()).then_some(name.as_str())
            })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The class of the whole pipeline, such as `StableDiffusionPipeline`.
    pub fn class_name(&self) -> Option<&str> {
        self.index["_class_name"].as_str()
    }

    /// A setting of the whole pipeline; null if there is none of that name.
    pub fn setting(&self, name: &str) -> &Value {
        &self.index[name]
    }

    /// The folder of a component, or `None` if the model has none of that name.
    pub fn component_path(&self, name: &str) -> Option<PathBuf> {
        let is_listed = self.component_names().any(|listed| listed == name);
        Some(self.path.join(name)).filter(|path| is_listed && path.is_dir())
    }

    /// A component with its `config.json`, or `None` if the model has none of that name.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`] if its configuration cannot be read.
    pub fn component(&self, name: &str) -> Result<Option<Component>> {
        let Some(path) = self.component_path(name) else {
            return Ok(None);
        };
        Component::open(path, self.variant.as_deref()).map(Some)
    }

    /// A component that the model cannot do without.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is missing; otherwise as [`component`](Self::component).
    pub fn required(&self, name: &str) -> Result<Component> {
        self.component(name)?.ok_or_else(|| Error::NotFound {
            path: self.path.join(name),
            hint: format!("model_index.json must list {name} and the folder must hold it"),
        })
    }

    /// `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is missing, [`Error::Format`] if it does not parse.
    pub fn scheduler_config(&self) -> Result<Value> {
        let path = self.path.join("scheduler").join("scheduler_config.json");
        if !path.is_file() {
            let hint = "it says what the model predicts and how noisy each timestep is".into();
            return Err(Error::NotFound { path, hint });
        }
        read_json(&path)
    }
}

impl Component {
    /// Opens the folder of a component that stands alone. `variant` is as for [`DiffusersFolder::open`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such folder or no `config.json` in it, [`Error::Io`] or
    /// [`Error::Format`] if the configuration cannot be read.
    pub fn open(path: impl AsRef<Path>, variant: Option<&str>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let config_path = path.join("config.json");
        if !config_path.exists() {
            let hint = "give the folder of a model with its config.json and weights".into();
            let path = config_path;
            return Err(Error::NotFound { path, hint });
        }
        let config = read_json(&config_path)?;
        Ok(Self {
            path,
            config_path,
            config,
            variant: variant.map(str::to_owned),
        })
    }

    /// Whether a folder is one component's own, and not that of a whole model.
    pub fn is_at(path: &Path) -> bool {
        path.join(CONFIG).is_file() && !path.join(INDEX).is_file()
    }

    /// Maps the component's weights: one file, or the shards that an index lists. Of a safetensors file
    /// and a pickle with the same weights the first is read.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, and as [`TensorFile::open`](super::TensorFile::open).
    pub fn open_weights(&self) -> Result<TensorFiles> {
        TensorFiles::open(&self.weight_files()?)
    }

    fn weight_files(&self) -> Result<Vec<PathBuf>> {
        let names = file_names(&self.path);
        let Some(name) = any_weights_in(&names, self.variant.as_deref()) else {
            let hint = format!("expected {} or its index", usual_names().join(", "));
            return Err(Error::NotFound {
                path: self.path.clone(),
                hint,
            });
        };
        let path = self.path.join(&name);
        match name.ends_with(".json") {
            true => {
                let shards = shards(&path)?;
                Ok(shards.iter().map(|name| self.path.join(name)).collect())
            }
            false => Ok(vec![path]),
        }
    }
}

/// The weights among a component's files: a file, or the index of shards. A variant is preferred, and a folder
/// with nothing but another one is meant to be read.
pub(super) fn any_weights_in(names: &[String], variant: Option<&str>) -> Option<String> {
    let wanted = variant.and_then(|variant| weights_in(names, Some(variant)));
    wanted.or_else(|| weights_in(names, None)).or_else(|| {
        let mut variants = names.iter().filter_map(|name| variant_of(name));
        variants.find_map(|variant| weights_in(names, Some(variant)))
    })
}

/// The weights of exactly this variant, if they are there.
pub(super) fn weights_in(names: &[String], variant: Option<&str>) -> Option<String> {
    let infix = variant.map_or_else(String::new, |variant| format!(".{variant}"));
    NAMES.iter().find_map(|(stem, ending)| {
        let candidates = [
            format!("{stem}{infix}.{ending}"),
            // Both spellings are in use.
            format!("{stem}.{ending}.index{infix}.json"),
            format!("{stem}{infix}.{ending}.index.json"),
        ];
        candidates.into_iter().find(|name| names.contains(name))
    })
}

/// What weights without a variant are called, the preferred name first.
pub(super) fn usual_names() -> [String; 4] {
    NAMES.map(|(stem, ending)| format!("{stem}.{ending}"))
}

/// The files that an index of shards lists, which lie beside it.
pub(super) fn shards(index_path: &Path) -> Result<Vec<String>> {
    let index = read_json(index_path)?;
    let Some(map) = index["weight_map"].as_object() else {
        return Err(Error::format(index_path, "expected an object weight_map"));
    };
    let mut files: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    files.sort_unstable();
    files.dedup();
    if files.is_empty() {
        return Err(Error::format(index_path, "weight_map names no file"));
    }
    files
        .into_iter()
        .map(|file| {
            let mut parts = Path::new(file).components();
            match (parts.next(), parts.next()) {
                (Some(PathPart::Normal(_)), None) => Ok(file.to_owned()),
                _ => Err(Error::format(
                    index_path,
                    format!("{file:?} is not a plain file name"),
                )),
            }
        })
        .collect()
}

/// The variant that the name of a weight file or of an index states, if it does.
fn variant_of(name: &str) -> Option<&str> {
    NAMES.iter().find_map(|(stem, ending)| {
        let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
        let between = |start: &str, end: &str| rest.strip_prefix(start)?.strip_suffix(end);
        between(&format!("{ending}.index."), ".json")
            .or_else(|| between("", &format!(".{ending}.index.json")))
            .or_else(|| between("", &format!(".{ending}")))
    })
}

/// What a whole model's folder has.
const INDEX: &str = "model_index.json";
/// What a component's folder has.
const CONFIG: &str = "config.json";

/// What weight files are called, without variant, the preferred ones first.
const NAMES: [(&str, &str); 4] = [
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
];

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}
