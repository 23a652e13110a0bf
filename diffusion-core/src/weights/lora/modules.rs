//! The modules of a model under all the names that LoRA files have for them.

use std::collections::{BTreeMap, HashMap};

use super::ModelPart;
use crate::nn::{NamedTensors, Weights};

/// A module of a model that can take an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name in the model, in front of `.weight`.
    pub(super) path: String,
    /// Its name in the original layout of UNets, which numbers blocks as block weights do.
    pub(super) original: Option<String>,
}

/// A part's modules. Names with underscores for dots are looked up among those of the real modules,
/// since no rule can tell which underscores were dots.
pub(super) struct Modules<'a> {
    pub(super) part: ModelPart,
    pub(super) weights: &'a Weights,
    modules: Vec<Module>,
    by_name: HashMap<String, usize>,
}

impl<'a> Modules<'a> {
    pub(super) fn new(part: ModelPart, weights: &'a Weights) -> Self {
        let paths: Vec<&str> = weights
            .tensors()
            .keys()
            .filter_map(|name| name.strip_suffix(".weight"))
            .collect();
        let mut result = Self {
            part,
            weights,
            modules: Vec::with_capacity(paths.len()),
            by_name: HashMap::new(),
        };
        match part {
            ModelPart::UNet => result.add_unet(&paths),
            ModelPart::TextEncoder | ModelPart::TextEncoder2 => result.add_text_encoder(&paths),
        }
        result
    }

    /// The module that a file calls `name`.
    pub(super) fn find(&self, name: &str) -> Option<&Module> {
        self.modules.get(*self.by_name.get(name)?)
    }

    /// The width of the text that the model's cross-attention reads.
    pub(super) fn context_width(&self) -> Option<usize> {
        self.modules
            .iter()
            .find(|module| is_cross_attention_key(&module.path))
            .and_then(|module| self.weight(module)?.dim(1).ok())
    }

    pub(super) fn weight(&self, module: &Module) -> Option<&candle_core::Tensor> {
        tensor(self.weights.tensors(), &module.path, "weight")
    }

    fn add(&mut self, module: Module, names: impl IntoIterator<Item = String>) {
        let index = self.modules.len();
        self.modules.push(module);
        for name in names {
            self.by_name.insert(name.replace('.', "_"), index);
            self.by_name.insert(name, index);
        }
    }

    fn add_unet(&mut self, paths: &[&str]) {
        let layout = Layout::new(paths);
        for &path in paths {
            let original = layout.original_name(path);
            let mut names = vec![path.to_owned()];
            names.extend(original.clone());
            if let Some((attention, projection)) = split_projection(path) {
                names.push(format!("{attention}.{projection}"));
                names.push(format!("{attention}.processor.{projection}"));
            }
            self.add(
                Module {
                    path: path.to_owned(),
                    original,
                },
                names,
            );
        }
        let with_feed_forward = numbered_unet(paths);
        let attention_only = with_feed_forward
            .iter()
            .filter(|path| !path.contains(".ff."));
        self.number(attention_only.cloned().collect());
        self.number(with_feed_forward);
    }

    fn add_text_encoder(&mut self, paths: &[&str]) {
        for &path in paths {
            let short = path.strip_prefix("text_model.").unwrap_or(path);
            let mut names = vec![short.to_owned(), format!("text_model.{short}")];
            for (new, old) in [
                ("q_proj", "to_q"),
                ("k_proj", "to_k"),
                ("v_proj", "to_v"),
                ("out_proj", "to_out"),
            ] {
                if let Some(attention) = short.strip_suffix(new) {
                    names.push(format!("text_model.{attention}{old}"));
                }
            }
            self.add(
                Module {
                    path: path.to_owned(),
                    original: None,
                },
                names,
            );
        }
        self.number(numbered_text_encoder(paths));
    }

    fn number(&mut self, order: Vec<String>) {
        for (number, path) in order.iter().enumerate() {
            if let Some(&index) = self.by_name.get(path) {
                self.by_name
                    .insert(numbered_name(number, order.len()), index);
            }
        }
    }
}

/// The name of module `number` of the `count` that a file has: how many tells which kinds it counts.
pub(super) fn numbered_name(number: usize, count: usize) -> String {
    format!("{number} of {count}")
}

pub(super) fn tensor<'a>(
    tensors: &'a NamedTensors,
    path: &str,
    part: &str,
) -> Option<&'a candle_core::Tensor> {
    tensors.get(&format!("{path}.{part}"))
}

/// Whether a module, in whichever spelling, makes keys or values of the text.
pub(super) fn is_cross_attention_key(name: &str) -> bool {
    name.contains("attn2") && (name.ends_with("to_k") || name.ends_with("to_v"))
}

/// `attn1` and `to_q`, where old files have the projection below an attention "processor" and its output
/// without the `.0`.
fn split_projection(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_suffix(".0").unwrap_or(path);
    let (attention, projection) = path.rsplit_once('.')?;
    ["to_q", "to_k", "to_v", "to_out"]
        .contains(&projection)
        .then_some((attention, projection))
}

/// The order in which cloneofsimo/lora numbers a UNet's linear layers: it walks the model as the diffusers
/// of its day registered modules, with the middle block last and the feed-forward layer between the
/// attentions.
fn numbered_unet(paths: &[&str]) -> Vec<String> {
    const LAYERS: [&str; 9] = [
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1.to_out.0",
        "ff.net.0.proj",
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.to_out.0",
    ];
    let mut blocks: Vec<&str> = paths
        .iter()
        .filter_map(|path| path.strip_suffix(".attn1.to_q"))
        .collect();
    blocks.sort_by_key(|block| {
        let stage = ["down_blocks", "up_blocks", "mid_block"]
            .iter()
            .position(|stage| block.starts_with(stage));
        (stage, numbers(block))
    });
    blocks
        .into_iter()
        .flat_map(|block| LAYERS.map(|layer| format!("{block}.{layer}")))
        .collect()
}

/// The same for a text encoder: the attention's projections as transformers registers them.
fn numbered_text_encoder(paths: &[&str]) -> Vec<String> {
    let mut layers: Vec<&str> = paths
        .iter()
        .filter_map(|path| path.strip_suffix(".k_proj"))
        .collect();
    layers.sort_by_key(|layer| numbers(layer));
    layers
        .into_iter()
        .flat_map(|layer| {
            ["k_proj", "v_proj", "q_proj", "out_proj"].map(|name| format!("{layer}.{name}"))
        })
        .collect()
}

/// The numbers of a dotted name, in order.
fn numbers(path: &str) -> Vec<usize> {
    path.split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// What the original layout of a UNet counts through: the residual blocks and resamplers of each level.
struct Layout {
    /// The number that the first module of a level has, by `down_blocks.0` and the like.
    first: BTreeMap<String, usize>,
    /// Residual blocks of each level.
    resnets: BTreeMap<String, usize>,
    /// Levels with attention.
    with_attention: Vec<String>,
}

impl Layout {
    fn new(paths: &[&str]) -> Self {
        let mut resnets = BTreeMap::<String, usize>::new();
        let mut with_attention = Vec::new();
        for path in paths {
            let Some((level, rest)) = split_level(path) else {
                continue;
            };
            let mut parts = rest.split('.');
            let index = |part: Option<&str>| part.and_then(|part| part.parse::<usize>().ok());
            match (parts.next(), index(parts.next())) {
                (Some("resnets"), Some(index)) => {
                    let count = resnets.entry(level).or_default();
                    *count = (*count).max(index.saturating_add(1));
                }
                (Some("attentions"), _) => with_attention.push(level),
                _ => {}
            }
        }
        let mut first = BTreeMap::new();
        // Input block 0 is the first convolution; each downsampler is an input block of its own.
        for (kind, start, resampler) in [("down_blocks", 1, 1), ("up_blocks", 0, 0)] {
            let mut next = start;
            for i in 0.. {
                let level = format!("{kind}.{i}");
                let Some(count) = resnets.get(&level) else {
                    break;
                };
                first.insert(level, next);
                next += count + resampler;
            }
        }
        Self {
            first,
            resnets,
            with_attention,
        }
    }

    /// The name of a module in the layout of the original code, without `model.diffusion_model.`.
    fn original_name(&self, path: &str) -> Option<String> {
        const OUTSIDE: [(&str, &str); 7] = [
            ("conv_in", "input_blocks.0.0"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
        ];
        if let Some((_, name)) = OUTSIDE.iter().find(|(name, _)| *name == path) {
            return Some((*name).to_owned());
        }
        let (level, rest) = split_level(path)?;
        let mut parts = rest.splitn(3, '.');
        let kind = parts.next()?;
        let index: usize = parts.next()?.parse().ok()?;
        let inner = parts.next()?;
        let (place, inner) = match kind {
            "resnets" => (0, in_resnet(inner)?),
            "attentions" => (1, inner),
            "downsamplers" => (0, "op"),
            "upsamplers" => (
                1 + usize::from(self.with_attention.contains(&level)),
                "conv",
            ),
            _ => return None,
        };
        if level == "mid_block" {
            return Some(format!("middle_block.{}.{inner}", 2 * index + place));
        }
        let first = self.first.get(&level)?;
        let last = self.resnets.get(&level)?.saturating_sub(1);
        let (blocks, number) = match (level.starts_with("down"), kind) {
            (true, "downsamplers") => ("input_blocks", first + last + 1),
            (true, _) => ("input_blocks", first + index),
            (false, "upsamplers") => ("output_blocks", first + last),
            (false, _) => ("output_blocks", first + index),
        };
        Some(format!("{blocks}.{number}.{place}.{inner}"))
    }
}

/// `down_blocks.1` and what follows, or `mid_block` and what follows.
fn split_level(path: &str) -> Option<(String, &str)> {
    let (kind, rest) = path.split_once('.')?;
    match kind {
        "mid_block" => Some((kind.to_owned(), rest)),
        "down_blocks" | "up_blocks" => {
            let (index, rest) = rest.split_once('.')?;
            Some((format!("{kind}.{index}"), rest))
        }
        _ => None,
    }
}

fn in_resnet(name: &str) -> Option<&'static str> {
    Some(match name {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}
