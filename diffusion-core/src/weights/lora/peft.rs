//! The scales that PEFT keeps beside its tensors.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ModelPart;
use super::adapter::DefaultAlpha;
use super::keys::Spelled;

/// The name under which diffusers writes an adapter's settings into the header of its file.
const METADATA_KEY: &str = "lora_adapter_metadata";

/// `adapter_config.json`, or what diffusers has in its place: the same names behind the part's name and a dot.
pub(super) struct PeftSettings {
    config: Value,
    metadata: Value,
}

impl PeftSettings {
    pub(super) fn new(metadata: &BTreeMap<String, String>, config: &Value) -> Self {
        let metadata = metadata
            .get(METADATA_KEY)
            .and_then(|text| serde_json::from_str(text).ok());
        Self {
            config: config.clone(),
            metadata: metadata.unwrap_or_default(),
        }
    }

    /// The `alpha` of a module whose tensors have none beside them.
    pub(super) fn default_alpha(&self, module: &Spelled) -> Option<DefaultAlpha> {
        let part = match module.part {
            Some(ModelPart::UNet) => "unet.",
            Some(ModelPart::TextEncoder) => "text_encoder.",
            Some(ModelPart::TextEncoder2) => "text_encoder_2.",
            None => "",
        };
        let setting = |name: &str| match self.metadata.get(format!("{part}{name}")) {
            Some(value) => value,
            None => &self.config[name],
        };
        let of_module = setting("alpha_pattern").as_object().and_then(|patterns| {
            let fitting = patterns.iter().find(|(pattern, _)| {
                let before = module.name.strip_suffix(pattern.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            });
            fitting?.1.as_f64()
        });
        // LoRA's setting has another name than that of LoHa and LoKr.
        let alpha = of_module
            .or_else(|| setting("lora_alpha").as_f64())
            .or_else(|| setting("alpha").as_f64())?;
        Some(DefaultAlpha {
            alpha,
            rank: setting("r").as_f64(),
            rank_stabilised: setting("use_rslora").as_bool() == Some(true),
        })
    }
}
