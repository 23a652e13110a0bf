//! The configurations of files that come without.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::checkpoint::{CONFIG_NOTE, SCHEDULER, merge};
use super::prediction::Prediction;
use super::{Checkpoint, ComponentKind, Family, Task, configs};
use crate::config::parse_json;
use crate::error::{Error, Result};

/// What a file's metadata says.
#[derive(Default)]
pub(super) struct Notes {
    configs: HashMap<String, Value>,
    pub(super) predicts_velocity: Option<bool>,
}

impl Notes {
    /// Whether the scheduler's whole configuration is there.
    pub(super) fn has_scheduler(&self) -> bool {
        self.configs.contains_key(SCHEDULER)
    }
}

/// What the model predicts, `epsilon` or `v`, as the model specification of Stability AI calls it and as ComfyUI
/// does.
const PREDICTION_NOTES: [&str; 2] = ["modelspec.prediction_type", "modelspec.predict_key"];

impl Checkpoint {
    /// Settings from shapes, then from what is known of the family, then from the file's own notes.
    pub(super) fn infer_configs(&mut self) -> Result<()> {
        let shapes = self.shapes();
        let mut found = BTreeMap::new();
        for (&kind, shapes) in &shapes {
            found.insert(
                kind,
                configs::config(kind, self.parts[&kind].dialect, shapes)?,
            );
        }
        drop(shapes);
        let notes = self.notes()?;
        let prediction = self.predict(&notes)?;
        self.adapt_to_family(&mut found, prediction)?;
        self.assume(&found, &notes);
        for (kind, mut config) in found {
            if let Some(noted) = notes.configs.get(kind.folder()) {
                merge(&mut config, noted);
            }
            if let Some(part) = self.parts.get_mut(&kind) {
                part.config = config;
            }
        }
        if self.parts.contains_key(&ComponentKind::UNet) {
            let mut config = self.model.scheduler_config(prediction);
            if let Some(noted) = notes.configs.get(SCHEDULER) {
                config = noted.clone();
            }
            self.scheduler_config = Some(config);
        }
        Ok(())
    }

    fn notes(&self) -> Result<Notes> {
        let mut notes = Notes::default();
        for source in &self.sources {
            let metadata = source.metadata();
            for (key, text) in &metadata {
                if let Some(component) = key.strip_suffix(CONFIG_NOTE) {
                    let config = parse_json(text)
                        .map_err(|e| Error::format(&self.path, format!("metadata {key}: {e}")))?;
                    notes.configs.insert(component.to_owned(), config);
                }
            }
            let noted = PREDICTION_NOTES.iter().find_map(|key| metadata.get(*key));
            let noted = noted.map(|text| text.starts_with('v'));
            notes.predicts_velocity = notes.predicts_velocity.or(noted);
        }
        Ok(notes)
    }

    fn adapt_to_family(
        &mut self,
        found: &mut BTreeMap<ComponentKind, Value>,
        prediction: Prediction,
    ) -> Result<()> {
        let is_refiner = self.model.family == Some(Family::StableDiffusionXlRefiner);
        let pooled = found
            .get(&ComponentKind::TextEncoder2)
            .and_then(|config| config["projection_dim"].as_u64());
        if let Some(config) = found.get_mut(&ComponentKind::ControlNet) {
            config["upcast_attention"] = json!(self.model.family == Some(Family::StableDiffusion2));
        }
        if let Some(config) = found.get_mut(&ComponentKind::UNet) {
            config["sample_size"] = json!(self.model.sample_size(prediction.is_velocity()));
            // SD 2.1 overflows in f16 otherwise.
            config["upcast_attention"] = json!(self.model.family == Some(Family::StableDiffusion2));
            let sizes = if is_refiner { 5 } else { 6 };
            let added = config["projection_class_embeddings_input_dim"].as_u64();
            if self.model.task == Task::ImageVariation {
                // Where SDXL has sizes and pooled text, unCLIP has a picture and how noisy it is.
                config["addition_embed_type"] = Value::Null;
                config["addition_time_embed_dim"] = Value::Null;
                config["class_embed_type"] = json!("projection");
            } else if let Some(width) = added
                .zip(pooled)
                .and_then(|(all, text)| all.checked_sub(text))
                && width.is_multiple_of(sizes)
            {
                config["addition_time_embed_dim"] = json!(width / sizes);
            }
        }
        if let Some(config) = found.get_mut(&ComponentKind::Vae)
            && config["_class_name"] == "AutoencoderKL"
        {
            config["sample_size"] = json!(8 * self.model.sample_size(prediction.is_velocity()));
            if self.model.is_xl() {
                config["scaling_factor"] = json!(0.13025);
                config["force_upcast"] = json!(true);
            }
            if let Some([mean, std]) = self.edm_latents()? {
                config["scaling_factor"] = json!(0.5);
                config["latents_mean"] = json!(mean);
                config["latents_std"] = json!(std);
            }
        }
        Ok(())
    }

    /// Lists what the tensors cannot say and the file's notes do not.
    fn assume(&mut self, found: &BTreeMap<ComponentKind, Value>, notes: &Notes) {
        let is_noted = |kind: ComponentKind| notes.configs.contains_key(kind.folder());
        let is_assumed = |kind: ComponentKind| found.contains_key(&kind) && !is_noted(kind);
        if is_assumed(ComponentKind::UNet) || is_assumed(ComponentKind::ControlNet) {
            let text = "attention heads (8, or of 64 channels each in SD 2 and SDXL) and groups of norms (32) \
                        of the published models: configure changes them";
            self.assumptions.push(text.into());
        }
        if is_assumed(ComponentKind::ControlNet) {
            let text = "global_pool_conditions false and the channel order rgb, as all but a ControlNet for the \
                        style of a picture (shuffle) have: configure changes them";
            self.assumptions.push(text.into());
        }
        let is_kl = |config: &Value| config["_class_name"] == "AutoencoderKL";
        if found.get(&ComponentKind::Vae).is_some_and(is_kl)
            && self.model.family.is_none()
            && !is_noted(ComponentKind::Vae)
        {
            let text = "scaling_factor 0.18215, of SD 1 and 2; SDXL's autoencoders have the same shapes and \
                        0.13025: configure changes it";
            self.assumptions.push(text.into());
        }
    }
}
