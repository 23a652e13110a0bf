//! The configurations of files that come without.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::checkpoint::{CONFIG_NOTE, SCHEDULER, merge};
use super::family::Prediction;
use super::{Checkpoint, ComponentKind, Family, Task, configs};
use crate::config::parse_json;
use crate::error::{Error, Result};

/// SD 2 base's number of training steps, by which diffusers knows it.
const SD2_BASE_STEPS: f64 = 875_000.0;

/// What a file's metadata says.
#[derive(Default)]
struct Notes {
    configs: HashMap<String, Value>,
    predicts_velocity: Option<bool>,
}

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
        let prediction = self.predict(&notes);
        self.adapt_to_family(&mut found, prediction);
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
            // The note of the Stability AI model specification, which trainers write.
            let noted = metadata.get("modelspec.prediction_type");
            let noted = noted.map(|text| text.starts_with('v'));
            notes.predicts_velocity = notes.predicts_velocity.or(noted);
        }
        Ok(notes)
    }

    /// What the model predicts: its tensors tell only where trainers left a mark.
    fn predict(&mut self, notes: &Notes) -> Prediction {
        let has = |name: &str| self.leftovers.iter().any(|leftover| leftover == name);
        if has("v_pred") {
            return match has("ztsnr") {
                true => Prediction::ZeroSnrVelocity,
                false => Prediction::Velocity,
            };
        }
        match notes.predicts_velocity {
            Some(true) => return Prediction::Velocity,
            Some(false) => return Prediction::Epsilon,
            None if notes.configs.contains_key(SCHEDULER) => return Prediction::Epsilon,
            None => {}
        }
        let is_sd2 = self.model.family == Some(Family::StableDiffusion2);
        if is_sd2 && self.model.task == Task::TextToImage {
            if self.steps_trained() == Some(SD2_BASE_STEPS) {
                return Prediction::Epsilon;
            }
            self.assumptions.push(
                "prediction_type v_prediction, of SD 2.x at 768 pixels; those of 512 pixels have the same \
                 shapes and predict epsilon: configure_scheduler says so"
                    .into(),
            );
            return Prediction::Velocity;
        }
        if self.parts.contains_key(&ComponentKind::UNet) {
            let text = "prediction_type epsilon: no tensor says so; configure_scheduler changes it";
            self.assumptions.push(text.into());
        }
        Prediction::Epsilon
    }

    /// How long the model was trained, which some files note.
    fn steps_trained(&self) -> Option<f64> {
        let value = self
            .sources
            .iter()
            .find_map(|source| source.load("global_step", DType::F64, &Device::Cpu).ok())?;
        value
            .flatten_all()
            .ok()?
            .to_vec1::<f64>()
            .ok()?
            .first()
            .copied()
    }

    fn adapt_to_family(
        &mut self,
        found: &mut BTreeMap<ComponentKind, Value>,
        prediction: Prediction,
    ) {
        let is_refiner = self.model.family == Some(Family::StableDiffusionXlRefiner);
        let pooled = found
            .get(&ComponentKind::TextEncoder2)
            .and_then(|config| config["projection_dim"].as_u64());
        if let Some(config) = found.get_mut(&ComponentKind::ControlNet) {
            config["upcast_attention"] = json!(self.model.family == Some(Family::StableDiffusion2));
        }
        if let Some(config) = found.get_mut(&ComponentKind::UNet) {
            config["sample_size"] =
                json!(self.model.sample_size(prediction != Prediction::Epsilon));
            // SD 2.1 overflows in f16 otherwise.
            config["upcast_attention"] = json!(self.model.family == Some(Family::StableDiffusion2));
            let sizes = if is_refiner { 5 } else { 6 };
            let added = config["projection_class_embeddings_input_dim"].as_u64();
            if let Some(width) = added
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
            config["sample_size"] =
                json!(8 * self.model.sample_size(prediction != Prediction::Epsilon));
            if self.model.is_xl() {
                config["scaling_factor"] = json!(0.13025);
                config["force_upcast"] = json!(true);
            }
        }
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
