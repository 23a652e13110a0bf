//! Binding adapters to a model and adding them to its weights.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::adapter::{Adapter, Reason};
use super::modules::{Module, Modules, is_cross_attention_key, tensor};
use super::{Lora, LoraScale, ModelPart};
use crate::error::{Error, Result};
use crate::nn::{LowRank, NamedTensors, WeightChanges, Weights};

/// What became of a LoRA's tensors in a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraReport {
    /// The file.
    pub name: String,
    /// How strongly it works.
    pub scale: LoraScale,
    /// Modules of the model that it changes.
    pub num_modules: usize,
    /// Keys of the file that change nothing, sorted.
    pub unused: Vec<String>,
}

/// How LoRAs change a model. The pictures are the same but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoraMode {
    /// Added to the weights: runs are as fast as without, and changed weights take memory beside the base's.
    #[default]
    Merged,
    /// Small matrices beside the weights: no weight is copied, and each changed layer does some more work.
    /// What is not of low rank (LoHa, LoKr, whole differences, DoRA, cores) is merged all the same.
    AtRunTime,
}

/// What LoRAs change in a model.
#[derive(Debug, Clone, Default)]
pub struct MergedLoras {
    parts: BTreeMap<ModelPart, WeightChanges>,
    /// One report for each LoRA.
    pub reports: Vec<LoraReport>,
}

impl MergedLoras {
    /// Takes the changes of a part: of all weights that differ from the base and no others.
    pub fn take(&mut self, part: ModelPart) -> WeightChanges {
        self.parts.remove(&part).unwrap_or_default()
    }
}

/// Adds LoRAs to the weights of a model's parts, each at its scale. The base is left as it is: a result has
/// the base's weights plus the sum of all changes, each reckoned from the base in f32.
///
/// # Errors
/// [`Error::InvalidArgument`] for a LoRA of another family of models, one that has none of the model's
/// modules, or a scale that is not finite; [`Error::Format`] if an adapter does not fit its module's shape.
pub fn merge_loras(
    parts: &[(ModelPart, &Weights)],
    loras: &[(&Lora, &LoraScale)],
    mode: LoraMode,
) -> Result<MergedLoras> {
    let parts: Vec<_> = parts
        .iter()
        .map(|(part, weights)| Modules::new(*part, weights))
        .collect();
    let mut merged = MergedLoras::default();
    let mut plan = BTreeMap::<(usize, &str), Vec<Change<'_>>>::new();
    for (lora, scale) in loras {
        scale.check()?;
        let bound = bind(lora, &parts)?;
        for Bound {
            part,
            module,
            adapter,
            key,
        } in &bound.modules
        {
            let change = Change {
                lora,
                adapter,
                key,
                scale: scale.at(parts[*part].part, module),
            };
            if change.scale != 0.0 {
                plan.entry((*part, &module.path)).or_default().push(change);
            }
        }
        merged.reports.push(LoraReport {
            name: lora.name.clone(),
            scale: (*scale).clone(),
            num_modules: bound.modules.len(),
            unused: bound.unused,
        });
    }
    for ((part, path), changes) in plan {
        let Modules { part, weights, .. } = &parts[part];
        let target = merged.parts.entry(*part).or_default();
        if mode == LoraMode::AtRunTime
            && let Some(low_rank) = low_ranks(weights.tensors(), path, &changes)?
        {
            target.low_rank.insert(path.to_owned(), low_rank);
            continue;
        }
        for (name, delta) in DELTAS {
            if let Some(changed) = apply(weights, path, name, delta, &changes)? {
                target.tensors.insert(format!("{path}.{name}"), changed);
            }
        }
    }
    Ok(merged)
}

/// An adapter's change of one module.
struct Change<'a> {
    lora: &'a Lora,
    adapter: &'a Adapter,
    key: &'a str,
    scale: f64,
}

type Delta = fn(&Adapter, Option<&Tensor>, f64) -> Result<Option<Tensor>, Reason>;

/// A module's tensors and what an adapter adds to each.
const DELTAS: [(&str, Delta); 2] = [
    ("weight", Adapter::weight_delta),
    ("bias", Adapter::bias_delta),
];

impl Change<'_> {
    fn error(&self, path: &str, reason: Reason) -> Error {
        let reason = format!("{}: {reason} ({path})", self.key);
        Error::format(self.lora.name.as_ref(), reason)
    }
}

/// A layer's changes, if all of them are of low rank.
fn low_ranks(
    tensors: &NamedTensors,
    path: &str,
    changes: &[Change<'_>],
) -> Result<Option<Vec<LowRank>>> {
    let Some(weight) = tensor(tensors, path, "weight").filter(|_| is_layer(path)) else {
        return Ok(None);
    };
    changes
        .iter()
        .map(|change| {
            let low_rank = change.adapter.low_rank(weight, change.scale);
            low_rank.map_err(|reason| change.error(path, reason))
        })
        .collect()
}

/// Tables of vectors are looked up, not multiplied by.
fn is_layer(path: &str) -> bool {
    !path.ends_with("_embedding")
}

/// A module's tensor with all changes added, or `None` if none changes it.
fn apply(
    weights: &Weights,
    path: &str,
    name: &str,
    delta: Delta,
    changes: &[Change<'_>],
) -> Result<Option<Tensor>> {
    let base = weights.tensor(&format!("{path}.{name}"), DType::F32)?;
    let mut sum: Option<Tensor> = None;
    for change in changes {
        let added = delta(change.adapter, base.as_ref(), change.scale)
            .map_err(|reason| change.error(&format!("{path}.{name}"), reason))?;
        sum = match (sum, added) {
            (Some(sum), Some(added)) => Some((sum + added)?),
            (sum, added) => sum.or(added),
        };
    }
    match (sum, base) {
        (Some(sum), Some(base)) => Ok(Some((base + sum)?.to_dtype(weights.dtype())?)),
        _ => Ok(None),
    }
}

/// A LoRA's adapters with the modules that they are for.
struct Binding<'a> {
    modules: Vec<Bound<'a>>,
    unused: Vec<String>,
}

struct Bound<'a> {
    part: usize,
    module: &'a Module,
    adapter: &'a Adapter,
    key: &'a str,
}

fn bind<'a>(lora: &'a Lora, parts: &'a [Modules<'_>]) -> Result<Binding<'a>> {
    let mut binding = Binding {
        modules: Vec::new(),
        unused: lora.unused.clone(),
    };
    for (spelled, entry) in &lora.modules {
        let found = parts
            .iter()
            .enumerate()
            .filter(|(_, part)| spelled.part.is_none_or(|wanted| wanted == part.part))
            .find_map(|(i, part)| Some((i, part.find(&spelled.name)?)));
        let name = found.map_or(spelled.name.as_str(), |(_, module)| &module.path);
        if is_cross_attention_key(name) {
            check_context(lora, &entry.adapter, parts)?;
        }
        match found {
            Some((part, module)) => binding.modules.push(Bound {
                part,
                module,
                adapter: &entry.adapter,
                key: &entry.keys[0],
            }),
            None => binding.unused.extend(entry.keys.iter().cloned()),
        }
    }
    binding.unused.sort();
    // Parts that two families have in common must not hide that the others do not fit.
    let bound = |part: ModelPart| {
        binding
            .modules
            .iter()
            .any(|found| parts[found.part].part == part)
    };
    let stated = lora.modules.iter().find(|(spelled, _)| {
        spelled
            .part
            .is_some_and(|part| parts.iter().any(|p| p.part == part) && !bound(part))
    });
    let first = lora
        .modules
        .iter()
        .next()
        .filter(|_| binding.modules.is_empty());
    match stated.or(first) {
        Some((_, entry)) => {
            let found = format!(
                "{}: the model has no module such as that of {}",
                lora.name, entry.keys[0]
            );
            Err(Error::argument(
                "lora",
                "one whose modules the model has",
                found,
            ))
        }
        None => Ok(binding),
    }
}

/// Refuses a LoRA whose cross-attention reads text of another width than the model's.
fn check_context(lora: &Lora, adapter: &Adapter, parts: &[Modules<'_>]) -> Result<()> {
    let model = parts.iter().find_map(Modules::context_width);
    match (model, adapter.input_width()) {
        (Some(model), Some(found)) if model != found => Err(Error::argument(
            "lora",
            format!("one for text of {}, as the model's", family(model)),
            format!("{}: one for text of {}", lora.name, family(found)),
        )),
        _ => Ok(()),
    }
}

/// A width of the text conditioning, and whose it is.
pub(super) fn family(width: usize) -> String {
    let name = match width {
        768 => " (Stable Diffusion 1)",
        1024 => " (Stable Diffusion 2)",
        1280 => " (the refiner of SDXL)",
        2048 => " (SDXL)",
        _ => "",
    };
    format!("{width} channels{name}")
}
