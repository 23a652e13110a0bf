//! Which files of a repository are needed, and no more.

use std::collections::BTreeSet;

use serde_json::Value;

use super::id::ending;
use crate::weights::folder::{any_weights_in, usual_names, weights_in};
use crate::weights::lora;
use crate::weights::{ComponentKind, OpenOptions};

/// The files of a model in the diffusers layout that are needed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Their paths in the repository. Of sharded weights it is the index.
    pub(super) files: Vec<String>,
    /// What is needed and not listed.
    pub(super) missing: Vec<String>,
    /// Whether other weights than those of the variant that was asked for stand in for some.
    pub(super) has_substitutes: bool,
    /// Whether some weights are of the variant that was asked for.
    pub(super) has_variant: bool,
}

/// What tells that a repository has the diffusers layout.
pub(super) const INDEX: &str = "model_index.json";

/// Text encoders and their tokenizers.
const TOKENIZERS: [(ComponentKind, &str); 2] = [
    (ComponentKind::TextEncoder, "tokenizer"),
    (ComponentKind::TextEncoder2, "tokenizer_2"),
];
/// What a tokenizer reads if it is there.
const TOKENIZER_SETTINGS: [&str; 3] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

impl Plan {
    /// Chooses among `listing` what `model_index.json` lists and a pipeline reads.
    pub(super) fn new(listing: &BTreeSet<String>, index: &Value, options: &OpenOptions) -> Self {
        let mut plan = Self::default();
        let is_listed = |name: &str| index[name].is_array() && !index[name][1].is_null();
        for kind in ComponentKind::ALL {
            let folder = kind.folder();
            if is_listed(folder) {
                plan.need(listing, format!("{folder}/config.json"));
                if !options.without.contains(&kind) {
                    plan.need_weights(listing, folder, options.variant.as_deref());
                }
            }
        }
        if is_listed("scheduler") {
            plan.need(listing, "scheduler/scheduler_config.json".into());
        }
        for (kind, folder) in TOKENIZERS {
            if is_listed(folder) && !options.without.contains(&kind) {
                plan.need_tokenizer(listing, folder);
            }
        }
        plan
    }

    fn need(&mut self, listing: &BTreeSet<String>, file: String) {
        match listing.contains(&file) {
            true => self.files.push(file),
            false => self.missing.push(file),
        }
    }

    fn need_weights(&mut self, listing: &BTreeSet<String>, folder: &str, variant: Option<&str>) {
        let prefix = format!("{folder}/");
        let names = listing
            .iter()
            .filter_map(|path| path.strip_prefix(&prefix))
            .filter(|name| !name.contains('/'))
            .map(str::to_owned);
        let names: Vec<String> = names.collect();
        let exact = weights_in(&names, variant);
        self.has_variant |= exact.is_some();
        self.has_substitutes |= exact.is_none();
        match any_weights_in(&names, variant) {
            Some(name) => self.files.push(format!("{folder}/{name}")),
            None => {
                let usual = usual_names();
                let of_text = usize::from(folder.starts_with("text_encoder"));
                self.missing.push(format!("{folder}/{}", usual[of_text]));
            }
        }
    }

    fn need_tokenizer(&mut self, listing: &BTreeSet<String>, folder: &str) {
        let path = |name: &str| format!("{folder}/{name}");
        let parts = [path("vocab.json"), path("merges.txt")];
        let whole = path("tokenizer.json");
        let has_parts = parts.iter().all(|part| listing.contains(part));
        if has_parts || !listing.contains(&whole) {
            for part in parts {
                self.need(listing, part);
            }
        } else {
            self.files.push(whole);
        }
        let settings = TOKENIZER_SETTINGS.map(path).into_iter();
        self.files
            .extend(settings.filter(|path| listing.contains(path)));
    }
}

/// The one file of tensors in a repository without the diffusers layout: safetensors before other formats,
/// the uppermost folder before others.
///
/// # Errors
/// The files that it could be, if they are several or none.
pub(super) fn single_file(listing: &BTreeSet<String>) -> Result<String, Vec<String>> {
    let rank = |path: &String| {
        let format = match ending(path)? {
            "safetensors" => 0,
            // Quantized to one of many sizes.
            "gguf" => 2,
            _ => 1,
        };
        Some((path.contains('/'), format))
    };
    let best = listing.iter().filter_map(rank).min();
    let candidates: Vec<String> = match best {
        Some(best) => {
            let is_best = |path: &&String| rank(path) == Some(best);
            listing.iter().filter(is_best).cloned().collect()
        }
        None => Vec::new(),
    };
    match <[String; 1]>::try_from(candidates) {
        Ok([file]) => Ok(file),
        Err(candidates) => Err(candidates),
    }
}

/// The files of a LoRA: those that diffusers or PEFT save, or the one file of tensors.
///
/// # Errors
/// As [`single_file`].
pub(super) fn lora_files(listing: &BTreeSet<String>) -> Result<Vec<String>, Vec<String>> {
    for name in lora::FILE_NAMES {
        if listing.contains(name) {
            let settings = Some(lora::ADAPTER_CONFIG)
                .filter(|config| name == lora::ADAPTER_MODEL && listing.contains(*config));
            return Ok([name]
                .into_iter()
                .chain(settings)
                .map(str::to_owned)
                .collect());
        }
    }
    single_file(listing).map(|file| vec![file])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listing(files: &[&str]) -> BTreeSet<String> {
        files.iter().map(|file| (*file).to_owned()).collect()
    }

    /// The files of stable-diffusion-v1-5, with some that other models have.
    fn sd15() -> BTreeSet<String> {
        listing(&[
            ".gitattributes",
            "README.md",
            "feature_extractor/preprocessor_config.json",
            "model_index.json",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/flax_model.msgpack",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.onnx",
            "text_encoder/model.safetensors",
            "text_encoder/openvino_model.bin",
            "text_encoder/pytorch_model.bin",
            "text_encoder/pytorch_model.fp16.bin",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.bin",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "v1-5-pruned-emaonly.ckpt",
            "v1-5-pruned-emaonly.safetensors",
            "v1-5-pruned.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.safetensors",
        ])
    }

    fn index() -> Value {
        let there = json!(["diffusers", "Class"]);
        json!({
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": there, "safety_checker": there, "image_encoder": [null, null],
            "scheduler": there, "text_encoder": there, "tokenizer": there, "unet": there, "vae": there,
        })
    }

    const OTHERS: [&str; 8] = [
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    ];

    fn weights(plan: &Plan) -> Vec<&str> {
        let files = plan.files.iter().map(String::as_str);
        files.filter(|file| !OTHERS.contains(file)).collect()
    }

    #[test]
    fn one_format_of_one_variant_is_chosen() {
        let plan = Plan::new(&sd15(), &index(), &OpenOptions::default());
        assert_eq!(plan.files.len(), OTHERS.len() + 3);
        assert_eq!(
            weights(&plan),
            [
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder/model.safetensors",
            ]
        );
        assert!(plan.missing.is_empty() && !plan.has_substitutes);
    }

    #[test]
    fn a_variant_that_a_part_lacks_is_stood_in_for() {
        let options = OpenOptions {
            variant: Some("fp16".into()),
            ..Default::default()
        };
        let plan = Plan::new(&sd15(), &index(), &options);
        assert_eq!(
            weights(&plan),
            [
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder/model.fp16.safetensors",
            ]
        );
        assert!(plan.has_variant && plan.has_substitutes);
    }

    #[test]
    fn parts_of_the_callers_own_are_left_out_but_for_their_settings() {
        let options = OpenOptions {
            without: vec![ComponentKind::UNet, ComponentKind::TextEncoder],
            ..Default::default()
        };
        let plan = Plan::new(&sd15(), &index(), &options);
        assert_eq!(weights(&plan), ["vae/diffusion_pytorch_model.safetensors"]);
        assert!(plan.files.contains(&"unet/config.json".to_owned()));
        assert!(!plan.files.contains(&"tokenizer/vocab.json".to_owned()));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut files = sd15();
        files.retain(|file| !file.starts_with("text_encoder/") && file != "tokenizer/vocab.json");
        files.remove("tokenizer/tokenizer.json");
        let plan = Plan::new(&files, &index(), &OpenOptions::default());
        assert_eq!(
            plan.missing,
            [
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "tokenizer/vocab.json",
            ]
        );
    }

    #[test]
    fn a_repository_of_one_file() {
        let single = |files: &[&str]| single_file(&listing(files));
        let of = |file: &str| Ok(file.to_owned());
        assert_eq!(
            single(&["README.md", "a.ckpt", "a.safetensors"]),
            of("a.safetensors")
        );
        assert_eq!(
            single(&["a.gguf", "b.ckpt", "vae/c.safetensors"]),
            of("b.ckpt")
        );
        assert_eq!(
            single(&["a.safetensors", "b.safetensors", "c.ckpt"]),
            Err(vec!["a.safetensors".into(), "b.safetensors".into()])
        );
        assert_eq!(single(&["README.md", "config.json"]), Err(vec![]));
    }

    #[test]
    fn a_lora_brings_its_settings() {
        let files = |names: &[&str]| lora_files(&listing(names));
        let of = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        let peft = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "x.safetensors",
        ];
        assert_eq!(
            files(&peft),
            of(&["adapter_model.safetensors", "adapter_config.json"])
        );
        assert_eq!(
            files(&["a/style.safetensors"]),
            of(&["a/style.safetensors"])
        );
    }
}
