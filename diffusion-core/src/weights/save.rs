//! Writing a checkpoint in another layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::checkpoint::{CONFIG_NOTE, SCHEDULER, ZEROES_EMPTY_PROMPT};
use super::keys::{Form, KeyMap, Place, T2iAdapterLayout, UNetLayout, count};
use super::writer::{Draft, Output, write_safetensors};
use super::{Checkpoint, CheckpointComponent, ComponentKind, Family};
use crate::clip_vocab;
use crate::error::{Error, Result};
use crate::nn::TensorSource;

/// The tensors of diffusers that make one of the original file.
type Sources = Vec<(Form, String)>;

impl Checkpoint {
    /// Writes a folder in the diffusers layout: each component's weights in their number format with its
    /// configuration, the scheduler's settings and tokenizers. A ControlNet or T2I-Adapter alone is written as the
    /// folder of one component. What
    /// [`description`](Self::description) lists as unused is left out.
    ///
    /// The folder appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if something is at the path and [`overwrite`](Self::overwrite) was not
    /// called, [`Error::Format`] if there is no component to write; otherwise if reading or writing fails.
    pub fn save_diffusers(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.require_components()?;
        let draft = Draft::new(folder.as_ref(), self.overwrite)?;
        let root = draft.path();
        make_folder(root)?;
        if let Some((&kind, part)) = self.parts.first_key_value()
            && self.parts.len() == 1
            && kind.is_addition()
        {
            write_json(&root.join("config.json"), &part.config)?;
            self.write_component(kind, root)?;
            return draft.finish();
        }
        let mut index = serde_json::Map::new();
        index.insert("_class_name".into(), json!(self.pipeline_class()));
        for kind in ComponentKind::ALL {
            let Some(CheckpointComponent { config, .. }) = self.component(kind) else {
                continue;
            };
            let path = root.join(kind.folder());
            make_folder(&path)?;
            write_json(&path.join("config.json"), config)?;
            self.write_component(kind, &path)?;
            let entry = class_entry(kind, config);
            index.insert(kind.folder().into(), entry);
            if let Some(name) = self.write_tokenizer(kind, root)? {
                index.insert(name.into(), json!(["transformers", "CLIPTokenizer"]));
            }
        }
        if let Some(config) = self.scheduler_config() {
            let path = root.join(SCHEDULER);
            make_folder(&path)?;
            write_json(&path.join("scheduler_config.json"), config)?;
            index.insert(
                SCHEDULER.into(),
                json!(["diffusers", config["_class_name"]]),
            );
        }
        for (name, value) in self.missing_entries() {
            index.entry(name).or_insert(value);
        }
        write_json(&root.join("model_index.json"), &Value::Object(index))?;
        draft.finish()
    }

    /// Writes one safetensors file in the names that CompVis and Stability AI publish a model of the family
    /// under. Configurations are noted in its metadata, so that it opens again as it was; tokenizers
    /// are not, since such files have none.
    ///
    /// The file appears whole or not at all.
    ///
    /// # Errors
    /// As [`save_diffusers`](Self::save_diffusers), and [`Error::Unsupported`] for a tensor that has no
    /// name in that dialect.
    pub fn save_single_file(&self, file: impl AsRef<Path>) -> Result<()> {
        self.require_components()?;
        let draft = Draft::new(file.as_ref(), self.overwrite)?;
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut note = |name: &str, config: &Value| {
            metadata.insert(format!("{name}{CONFIG_NOTE}"), config.to_string());
        };
        let mut originals: BTreeMap<String, (ComponentKind, Sources)> = BTreeMap::new();
        for kind in self.components() {
            if let Some(part) = self.component(kind) {
                note(kind.folder(), part.config);
            }
            for (original, form, name) in self.original_names(kind)? {
                let (_, sources) = originals
                    .entry(original)
                    .or_insert_with(|| (kind, Vec::new()));
                sources.push((form, name));
            }
        }
        if let Some(config) = self.scheduler_config() {
            note(SCHEDULER, config);
        }
        let outputs = originals
            .iter()
            .map(|(name, (kind, sources))| self.plan(name, *kind, sources))
            .collect::<Result<Vec<_>>>()?;
        write_safetensors(draft.path(), &metadata, outputs, |output| {
            let (kind, sources) = &originals[&output.name];
            self.join(*kind, sources, output.dtype)
        })?;
        draft.finish()
    }

    fn require_components(&self) -> Result<()> {
        match self.parts.is_empty() {
            false => Ok(()),
            true => Err(Error::format(
                &self.path,
                "no part of a known model is in it",
            )),
        }
    }

    fn write_component(&self, kind: ComponentKind, folder: &Path) -> Result<()> {
        let Some(CheckpointComponent { tensors, .. }) = self.component(kind) else {
            return Ok(());
        };
        let outputs: Vec<Output> = tensors
            .tensor_names()
            .into_iter()
            .map(|name| Output {
                dtype: tensors.dtype(&name).unwrap_or(DType::F32),
                shape: tensors.shape(&name).unwrap_or_default(),
                name,
            })
            .collect();
        let stem = match kind {
            ComponentKind::TextEncoder | ComponentKind::TextEncoder2 => "model",
            _ => "diffusion_pytorch_model",
        };
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = folder.join(format!("{stem}.safetensors"));
        write_safetensors(&path, &metadata, outputs, |output| {
            tensors.load(&output.name, output.dtype, &Device::Cpu)
        })
    }

    /// Writes a text encoder's tokenizer and returns its folder's name. One of a vocabulary that is neither
    /// there nor CLIP's cannot be written.
    fn write_tokenizer(&self, kind: ComponentKind, root: &Path) -> Result<Option<&'static str>> {
        let name = match kind {
            ComponentKind::TextEncoder => "tokenizer",
            ComponentKind::TextEncoder2 => "tokenizer_2",
            _ => return Ok(None),
        };
        let target = root.join(name);
        if let Some(folder) = self.tokenizer_folder(kind) {
            copy_files(&folder, &target)?;
            return Ok(Some(name));
        }
        let vocab_size = self
            .component(kind)
            .and_then(|part| part.config["vocab_size"].as_u64());
        if vocab_size != Some(clip_vocab::SIZE as u64) {
            return Ok(None);
        }
        make_folder(&target)?;
        let is_open_clip = kind == ComponentKind::TextEncoder2
            || self.model.family == Some(Family::StableDiffusion2);
        let pad = match is_open_clip {
            true => clip_vocab::OPEN_CLIP_PAD,
            false => clip_vocab::END,
        };
        for (file, contents) in clip_vocab::files(pad) {
            let path = target.join(file);
            fs::write(&path, contents).map_err(|e| Error::io(&path, e))?;
        }
        Ok(Some(name))
    }

    /// Components that the pipeline's class has and the checkpoint has not.
    fn missing_entries(&self) -> Vec<(String, Value)> {
        let mut names = vec!["text_encoder", "tokenizer"];
        match self.model.is_xl() {
            true => names.extend(["text_encoder_2", "tokenizer_2"]),
            false => names.extend(["safety_checker", "feature_extractor", "image_encoder"]),
        }
        let null = json!([null, null]);
        let mut entries: Vec<_> = names
            .iter()
            .map(|n| (n.to_string(), null.clone()))
            .collect();
        let zeroes = || {
            (
                ZEROES_EMPTY_PROMPT.into(),
                json!(self.zeroes_empty_prompt()),
            )
        };
        match self.model.family {
            Some(Family::StableDiffusionXlRefiner) => {
                entries.push(("requires_aesthetics_score".into(), json!(true)));
                entries.push(zeroes());
            }
            Some(Family::StableDiffusionXl) => entries.push(zeroes()),
            _ => entries.push(("requires_safety_checker".into(), json!(false))),
        }
        entries
    }

    /// For each tensor of a component: the original's name, how its numbers lie, diffusers' name.
    fn original_names(&self, kind: ComponentKind) -> Result<Vec<(String, Form, String)>> {
        let Some(CheckpointComponent { tensors, .. }) = self.component(kind) else {
            return Ok(Vec::new());
        };
        let shapes = self.shapes_of(&tensors);
        let has = |name: &str| shapes.has(name);
        let layers = count(|i| has(&format!("text_model.encoder.layers.{i}.layer_norm1.weight")));
        let (prefix, map) = match (kind, self.model.family) {
            (ComponentKind::UNet, _) => (
                "model.diffusion_model.",
                UNetLayout::from_diffusers(has).key_map(),
            ),
            (ComponentKind::Vae, family) => {
                let is_tiny = has("encoder.layers.0.weight") || has("decoder.layers.0.weight");
                let resnet = |i, j| format!("encoder.down_blocks.{i}.resnets.{j}.conv1.weight");
                let map = match is_tiny {
                    true => KeyMap::identity(),
                    false => {
                        let layers = count(|j| has(&resnet(0, j)));
                        KeyMap::vae(count(|i| has(&resnet(i, 0))), layers)
                    }
                };
                let prefix = match family {
                    Some(_) => "first_stage_model.",
                    None => "",
                };
                (prefix, map)
            }
            (ComponentKind::ControlNet, _) => {
                let block = |i| has(&format!("controlnet_cond_embedding.blocks.{i}.weight"));
                let map = UNetLayout::from_diffusers(has).control_net_key_map(2 + count(block));
                ("control_model.", map)
            }
            (ComponentKind::T2iAdapter, _) => {
                let layout = T2iAdapterLayout::from_diffusers(has);
                ("", KeyMap::t2i_adapter(&layout))
            }
            (ComponentKind::TextEncoder, Some(Family::StableDiffusion1)) => {
                ("cond_stage_model.transformer.", KeyMap::clip("text_model."))
            }
            (ComponentKind::TextEncoder, Some(Family::StableDiffusion2)) => {
                ("cond_stage_model.model.", KeyMap::open_clip(layers))
            }
            (ComponentKind::TextEncoder, Some(_)) => (
                "conditioner.embedders.0.transformer.",
                KeyMap::clip("text_model."),
            ),
            (ComponentKind::TextEncoder, None) => ("", KeyMap::clip("text_model.")),
            (ComponentKind::TextEncoder2, Some(Family::StableDiffusionXlRefiner)) => {
                ("conditioner.embedders.0.model.", KeyMap::open_clip(layers))
            }
            (ComponentKind::TextEncoder2, _) => {
                ("conditioner.embedders.1.model.", KeyMap::open_clip(layers))
            }
        };
        tensors
            .tensor_names()
            .into_iter()
            .map(|name| match map.to_original(&name) {
                Some(Place { name: inner, form }) => Ok((format!("{prefix}{inner}"), form, name)),
                None => Err(Error::unsupported(
                    format!(
                        "{}: {kind}'s tensor {name} in one file",
                        self.path.display()
                    ),
                    "that dialect has no name for it; save_diffusers keeps it",
                )),
            })
            .collect()
    }

    fn plan(&self, name: &str, kind: ComponentKind, sources: &Sources) -> Result<Output> {
        let tensors = self.component(kind).map(|part| part.tensors);
        let dtypes: Vec<DType> = sources
            .iter()
            .map(|(_, source)| tensors.as_ref().and_then(|t| t.dtype(source)))
            .map(|dtype| dtype.unwrap_or(DType::F32))
            .collect();
        let is_third = |(form, _): &(Form, String)| matches!(form, Form::Third(_));
        let thirds = sources.iter().filter(|source| is_third(source)).count();
        let is_whole = matches!((sources.len(), thirds), (1, 0) | (3, 3));
        if !is_whole || dtypes.iter().any(|&dtype| dtype != dtypes[0]) {
            return Err(Error::unsupported(
                format!("{}: joining {sources:?} to {name}", self.path.display()),
                "queries, keys and values must all be there and of one number format",
            ));
        }
        let (form, first) = &sources[0];
        let shape = tensors.and_then(|t| t.shape(first)).unwrap_or_default();
        Ok(Output {
            name: name.to_owned(),
            dtype: dtypes[0],
            shape: form.reverted_shape(shape),
        })
    }

    fn join(&self, kind: ComponentKind, sources: &Sources, dtype: DType) -> Result<Tensor> {
        let CheckpointComponent { tensors, .. } = self.required(kind)?;
        let mut sources = sources.clone();
        sources.sort_by_key(|(form, _)| match form {
            Form::Third(index) => *index,
            _ => 0,
        });
        let load =
            |(form, name): &(Form, String)| form.revert(tensors.load(name, dtype, &Device::Cpu)?);
        match sources.as_slice() {
            [one] => load(one),
            several => {
                let parts = several.iter().map(load).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&parts, 0)?)
            }
        }
    }
}

fn class_entry(kind: ComponentKind, config: &Value) -> Value {
    match kind {
        ComponentKind::TextEncoder => json!(["transformers", "CLIPTextModel"]),
        ComponentKind::TextEncoder2 => json!(["transformers", "CLIPTextModelWithProjection"]),
        _ => json!(["diffusers", config["_class_name"]]),
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(|e| Error::io(path, e))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    fs::write(path, text).map_err(|e| Error::io(path, e))
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    make_folder(to)?;
    for entry in fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let path = entry.map_err(|e| Error::io(from, e))?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_file()) {
            fs::copy(&path, to.join(name)).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}
