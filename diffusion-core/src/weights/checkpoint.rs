//! Models in whatever files they came.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::configs::Shapes;
use super::description::{ComponentDescription, ModelDescription, TensorSummary};
use super::family::{Family, Model};
use super::renamed::{Entry, RenamedTensors};
use super::sections::{ComponentKind, Dialect, Sorted, is_average};
use super::{Component, DiffusersFolder, TensorFile};
use crate::error::{Error, Result};
use crate::nn::TensorSource;

/// How a [`Checkpoint`] is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Prefers weight files of a variant of a folder, such as `fp16`.
    pub variant: Option<String>,
    /// Reads the running averages (EMA) of the UNet's weights in place of the weights.
    pub ema: bool,
    /// Components of a folder that the caller does not need; they may be missing or damaged.
    pub without: Vec<ComponentKind>,
    /// The family of a file that does not tell it: autoencoders of SD and SDXL have the same shapes and are
    /// scaled otherwise.
    pub family: Option<Family>,
    /// The branch, tag or commit of a model on the hub. Default: `main`.
    pub revision: Option<String>,
    /// How the hub is reached. Default: [`HubOptions::from_env`](super::HubOptions::from_env).
    #[cfg(feature = "hub")]
    pub hub: Option<super::HubOptions>,
}

pub(super) struct Part {
    pub(super) config: Value,
    config_path: PathBuf,
    pub(super) dialect: Dialect,
    entries: BTreeMap<String, Entry>,
}

/// A model's files: a folder in the diffusers layout or that of one of its parts, one file with all of it in
/// CompVis's names, or files that hold parts. Whatever the dialect, components come under diffusers' names and with a configuration.
///
/// ```no_run
/// use diffusion_core::weights::Checkpoint;
///
/// let checkpoint = Checkpoint::open("model.safetensors")?;
/// println!("{}", checkpoint.description());
/// checkpoint.save_diffusers("model")?;
/// # Ok::<(), diffusion_core::Error>(())
/// ```
pub struct Checkpoint {
    pub(super) path: PathBuf,
    /// The folder of a model in the diffusers layout.
    pub(super) folder: Option<DiffusersFolder>,
    pub(super) sources: Vec<Box<dyn TensorSource>>,
    pub(super) parts: BTreeMap<ComponentKind, Part>,
    pub(super) model: Model,
    pub(super) scheduler_config: Option<Value>,
    pub(super) leftovers: Vec<String>,
    unused: Vec<String>,
    pub(super) assumptions: Vec<String>,
    pub(super) overwrite: bool,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("model", &self.model)
            .field("components", &self.parts.keys())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a folder, a file or a model of the hub ([`OpenOptions::locate`]) and says what it is by its tensors,
    /// whatever its name. A file of no known model opens without components, and [`description`](Self::description) lists its tensors.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such path or a listed component is missing, [`Error::Format`] if
    /// a file is damaged, [`Error::Unsupported`] for a structure that no diffusers model has.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`OpenOptions::locate`], and [`Error::Format`] if running averages or a variant
    /// are asked for and there are none.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = options.locate(path)?;
        match path.is_file() {
            true => Self::open_files(&[path], options),
            false => Self::open_folder(&path, options),
        }
    }

    /// Opens files that hold parts of one model, such as TAESD's encoder and decoder, or a UNet and an
    /// autoencoder. A tensor that two of them have is taken from the first.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn open_files(paths: &[impl AsRef<Path>], options: &OpenOptions) -> Result<Self> {
        let Some(first) = paths.first() else {
            return Err(Error::argument("paths", "at least one file", "none"));
        };
        let sources = paths.iter().map(|path| open_tensors(path.as_ref()));
        Self::from_sources(first.as_ref(), sources.collect::<Result<_>>()?, options)
    }

    /// Takes tensors from anywhere as files that hold parts of one model; `path` is what errors call them.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn from_sources(
        path: impl AsRef<Path>,
        sources: Vec<Box<dyn TensorSource>>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let mut checkpoint = Self::empty(path.as_ref());
        let mut has_averages = false;
        for (index, source) in sources.iter().enumerate() {
            has_averages |= source.tensor_names().iter().any(|name| is_average(name));
            checkpoint.add(Sorted::new(index, source.as_ref(), options.ema));
        }
        checkpoint.sources = sources;
        if options.ema && !has_averages {
            let reason = "no running averages (tensors model_ema.*) are in it; open it without ema";
            return Err(Error::format(&checkpoint.path, reason));
        }
        checkpoint.detect();
        checkpoint.model.family = checkpoint.model.family.or(options.family);
        checkpoint.infer_configs()?;
        Ok(checkpoint)
    }

    fn open_folder(path: &Path, options: &OpenOptions) -> Result<Self> {
        let variant = options.variant.as_deref();
        let mut checkpoint = Self::empty(path);
        if Component::is_at(path) {
            checkpoint.add_component(None, Component::open(path, variant)?)?;
            checkpoint.detect();
            return Ok(checkpoint);
        }
        let folder = DiffusersFolder::open(path, variant)?;
        for kind in ComponentKind::ALL {
            if options.without.contains(&kind) {
                continue;
            }
            if let Some(component) = folder.component(kind.folder())? {
                checkpoint.add_component(Some(kind), component)?;
            }
        }
        checkpoint.detect();
        let has_scheduler = folder.component_path("scheduler").is_some();
        checkpoint.scheduler_config = has_scheduler
            .then(|| folder.scheduler_config())
            .transpose()?;
        checkpoint.folder = Some(folder);
        Ok(checkpoint)
    }

    /// Adds a component's folder. Of which kind it is its tensors say, where the folder's name does not.
    fn add_component(&mut self, kind: Option<ComponentKind>, component: Component) -> Result<()> {
        let source: Box<dyn TensorSource> = Box::new(component.open_weights()?);
        let index = self.sources.len();
        let sorted = Sorted::new(index, source.as_ref(), false);
        let found = sorted.components.keys().next().copied();
        let Some(kind) = kind.or(found) else {
            let reason = "its tensors are of no known part of a model";
            return Err(Error::format(&component.path, reason));
        };
        self.sources.push(source);
        let dialect = sorted.dialects.values().next();
        let mut entries = BTreeMap::new();
        for part in sorted.components.into_values() {
            entries.extend(part);
        }
        // The model itself reports what it has no place for.
        entries.extend(sorted.unused.into_iter().map(|name| {
            let entry = Entry::unchanged(index, &name);
            (name, entry)
        }));
        let part = Part {
            config: component.config,
            config_path: component.config_path,
            dialect: dialect.copied().unwrap_or(Dialect::Diffusers),
            entries,
        };
        self.parts.insert(kind, part);
        self.leftovers.extend(sorted.leftovers);
        Ok(())
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            folder: None,
            sources: Vec::new(),
            parts: BTreeMap::new(),
            model: Model::default(),
            scheduler_config: None,
            leftovers: Vec::new(),
            unused: Vec::new(),
            assumptions: Vec::new(),
            overwrite: false,
        }
    }

    fn add(&mut self, sorted: Sorted) {
        for (kind, entries) in sorted.components {
            let part = self.parts.entry(kind).or_insert_with(|| Part {
                config: Value::Null,
                config_path: self.path.clone(),
                dialect: sorted
                    .dialects
                    .get(&kind)
                    .copied()
                    .unwrap_or(Dialect::Diffusers),
                entries: BTreeMap::new(),
            });
            for (name, entry) in entries {
                match part.entries.contains_key(&name) {
                    true => self.unused.push(entry.name),
                    false => _ = part.entries.insert(name, entry),
                }
            }
        }
        self.leftovers.extend(sorted.leftovers);
        self.unused.extend(sorted.unused);
    }

    fn detect(&mut self) {
        let dialects = self.parts.iter().map(|(&kind, part)| (kind, part.dialect));
        self.model = Model::detect(&self.shapes(), &dialects.collect());
    }

    pub(super) fn shapes(&self) -> BTreeMap<ComponentKind, Shapes<'_>> {
        let kinds = self.parts.keys().copied();
        kinds
            .filter_map(|kind| Some((kind, self.shapes_of(&self.component(kind)?.tensors))))
            .collect()
    }

    pub(super) fn shapes_of(&self, tensors: &RenamedTensors<'_>) -> Shapes<'_> {
        let names = tensors.tensor_names().into_iter();
        Shapes {
            path: &self.path,
            map: names
                .filter_map(|name| {
                    let shape = tensors.shape(&name)?;
                    Some((name, shape))
                })
                .collect(),
        }
    }

    /// Where the checkpoint was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is, and what of it is not used.
    pub fn description(&self) -> ModelDescription {
        let (averages, leftovers): (Vec<_>, Vec<_>) = self
            .leftovers
            .iter()
            .cloned()
            .partition(|name| is_average(name));
        let prediction = self.scheduler_config.as_ref().map(|config| {
            let noted = config["prediction_type"].as_str();
            noted.unwrap_or("epsilon").to_owned()
        });
        ModelDescription {
            family: self.model.family,
            task: self.model.task,
            distillation: self.model.distillation,
            has_guidance_embedding: self.model.has_guidance_embedding,
            prediction_type: prediction,
            components: self
                .parts
                .iter()
                .map(|(&kind, part)| self.describe(kind, part))
                .collect(),
            num_averages: averages.len(),
            leftovers,
            unused: self.unused.clone(),
            assumptions: self.assumptions.clone(),
        }
    }

    fn describe(&self, kind: ComponentKind, part: &Part) -> ComponentDescription {
        let tensors = RenamedTensors {
            sources: &self.sources,
            entries: &part.entries,
        };
        let class = part.config["_class_name"]
            .as_str()
            .or_else(|| part.config["architectures"][0].as_str());
        ComponentDescription {
            kind,
            class_name: class.unwrap_or("of unknown class").to_owned(),
            dialect: part.dialect,
            tensors: TensorSummary::of(&tensors),
        }
    }

    /// Whether it is a folder in the diffusers layout.
    pub fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// diffusers' class of the whole pipeline, as the folder says it or by the family.
    pub fn pipeline_class(&self) -> &str {
        let folder = self.folder.as_ref();
        let noted = folder.and_then(DiffusersFolder::class_name);
        noted.unwrap_or_else(|| self.model.pipeline_class())
    }

    /// Whether no negative prompt means zeros, not the empty text: so SDXL was published, but not its refiner.
    pub fn zeroes_empty_prompt(&self) -> bool {
        let noted = self.folder.as_ref().map(|folder| {
            let setting = folder.setting(ZEROES_EMPTY_PROMPT);
            setting.as_bool().unwrap_or(true)
        });
        let is_base = self.model.family == Some(Family::StableDiffusionXl);
        self.pipeline_class().contains("XL") && noted.unwrap_or(is_base)
    }

    /// The components that are there.
    pub fn components(&self) -> impl Iterator<Item = ComponentKind> {
        self.parts.keys().copied()
    }

    /// A component, or `None` if it is not there.
    pub fn component(&self, kind: ComponentKind) -> Option<CheckpointComponent<'_>> {
        let part = self.parts.get(&kind)?;
        Some(CheckpointComponent {
            config: &part.config,
            config_path: &part.config_path,
            tensors: RenamedTensors {
                sources: &self.sources,
                entries: &part.entries,
            },
        })
    }

    /// A component that the model cannot do without.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not there.
    pub fn required(&self, kind: ComponentKind) -> Result<CheckpointComponent<'_>> {
        self.component(kind).ok_or_else(|| match self.is_folder() {
            true => Error::NotFound {
                path: self.path.join(kind.folder()),
                hint: format!("model_index.json must list {kind} and the folder must hold it"),
            },
            false => Error::NotFound {
                path: self.path.clone(),
                hint: format!("there is no {kind} among its tensors; give one from another file"),
            },
        })
    }

    /// The `scheduler_config.json`, or what the family was published with; `None` without a UNet.
    pub fn scheduler_config(&self) -> Option<&Value> {
        self.scheduler_config.as_ref()
    }

    /// The folder of a tokenizer, which only models in the diffusers layout have. One file has none, and
    /// published models of that form all have CLIP's.
    pub fn tokenizer_folder(&self, kind: ComponentKind) -> Option<PathBuf> {
        let name = match kind {
            ComponentKind::TextEncoder2 => "tokenizer_2",
            _ => "tokenizer",
        };
        self.folder.as_ref()?.component_path(name)
    }

    /// Changes settings of a component: what shapes do not say and the usual value of is wrong, such as
    /// `{"attention_head_dim": 4}`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such component or `settings` is not an object.
    pub fn configure(&mut self, kind: ComponentKind, settings: &Value) -> Result<()> {
        let found = self.parts.get_mut(&kind).map(|part| &mut part.config);
        change(found, kind.folder(), settings)
    }

    /// Changes settings of the scheduler, such as `{"prediction_type": "epsilon"}`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no UNet or `settings` is not an object.
    pub fn configure_scheduler(&mut self, settings: &Value) -> Result<()> {
        change(self.scheduler_config.as_mut(), SCHEDULER, settings)
    }

    /// Whether [`save_diffusers`](Self::save_diffusers) and [`save_single_file`](Self::save_single_file)
    /// replace what is at their path. Default: no.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }
}

/// One component of a [`Checkpoint`].
pub struct CheckpointComponent<'a> {
    /// Its configuration, as diffusers' or transformers' `config.json` has it.
    pub config: &'a Value,
    /// The file that errors about the configuration name.
    pub config_path: &'a Path,
    /// Its tensors under diffusers' names.
    pub tensors: RenamedTensors<'a>,
}

/// What a folder's index calls [`Checkpoint::zeroes_empty_prompt`].
pub(super) const ZEROES_EMPTY_PROMPT: &str = "force_zeros_for_empty_prompt";
/// Behind a component's name: the key of metadata that holds its configuration.
pub(super) const CONFIG_NOTE: &str = ".config.json";
/// What the scheduler's folder and its note are called.
pub(super) const SCHEDULER: &str = "scheduler";

fn open_tensors(path: &Path) -> Result<Box<dyn TensorSource>> {
    Ok(Box::new(TensorFile::open(path)?))
}

pub(super) fn merge(config: &mut Value, settings: &Value) {
    if let (Some(config), Some(settings)) = (config.as_object_mut(), settings.as_object()) {
        config.extend(settings.clone());
    }
}

fn change(config: Option<&mut Value>, what: &str, settings: &Value) -> Result<()> {
    let expected = format!("an object with settings of a {what} that is there");
    match config {
        Some(config) if settings.is_object() => {
            merge(config, settings);
            Ok(())
        }
        Some(_) => Err(Error::argument("settings", expected, settings)),
        None => Err(Error::argument(
            "settings",
            expected,
            format_args!("no {what}"),
        )),
    }
}
