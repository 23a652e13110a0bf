//! What a checkpoint is, in words.

use std::collections::BTreeMap;
use std::fmt;

use super::{ComponentKind, Dialect, Family, Task};
use crate::nn::TensorSource;

/// What a checkpoint holds; its `Display` is a report for people.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelDescription {
    /// The base model; `None` where the tensors are those of several, as an autoencoder's alone are.
    pub family: Option<Family>,
    /// What the UNet's input holds beside the latents.
    pub task: Task,
    /// The published distillation of the same layers, if any.
    pub distillation: Option<&'static str>,
    /// Whether the UNet is told the guidance scale, as consistency models are.
    pub has_guidance_embedding: bool,
    /// `epsilon`, `v_prediction` and so on; `None` without a UNet.
    pub prediction_type: Option<String>,
    /// The parts with weights.
    pub components: Vec<ComponentDescription>,
    /// Running averages of the UNet's tensors (EMA) that are there beside them.
    pub num_averages: usize,
    /// Tensors that are known not to be needed: what training left, layers that are never run.
    pub leftovers: Vec<String>,
    /// Tensors that nothing has a place for.
    pub unused: Vec<String>,
    /// What the tensors cannot say, what was assumed, and how to say otherwise.
    pub assumptions: Vec<String>,
}

/// One part of a [`ModelDescription`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ComponentDescription {
    /// Which part it is.
    pub kind: ComponentKind,
    /// Its class in diffusers or transformers.
    pub class_name: String,
    /// Whose names its tensors have.
    pub dialect: Dialect,
    /// Its tensors, as diffusers counts them.
    pub tensors: TensorSummary,
}

/// How much a source of tensors holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSummary {
    /// Tensors.
    pub num_tensors: usize,
    /// Numbers in them.
    pub num_parameters: u64,
    /// Bytes that they take in the file; 0 for those of formats that tensors cannot have.
    pub num_bytes: u64,
    /// Number formats, with how many tensors have each.
    pub dtypes: BTreeMap<String, usize>,
}

impl TensorSummary {
    /// Counts all tensors of a source.
    pub fn of(source: &dyn TensorSource) -> Self {
        let mut summary = Self::default();
        for name in source.tensor_names() {
            let shape = source.shape(&name).unwrap_or_default();
            let count = shape
                .iter()
                .fold(1u64, |count, &n| count.saturating_mul(n as u64));
            let dtype = source.dtype(&name);
            let width = dtype.map_or(0, |dtype| dtype.size_in_bytes() as u64);
            let called = dtype.map_or("of another format", |dtype| dtype.as_str());
            summary.num_tensors += 1;
            summary.num_parameters = count.saturating_add(summary.num_parameters);
            summary.num_bytes = count
                .saturating_mul(width)
                .saturating_add(summary.num_bytes);
            *summary.dtypes.entry(called.to_owned()).or_default() += 1;
        }
        summary
    }
}

impl fmt::Display for TensorSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtypes: Vec<_> = self
            .dtypes
            .iter()
            .map(|(dtype, count)| match self.dtypes.len() {
                1 => dtype.clone(),
                _ => format!("{count} {dtype}"),
            })
            .collect();
        write!(
            f,
            "{} tensors, {:.1} M parameters, {:.1} MiB, {}",
            self.num_tensors,
            self.num_parameters as f64 / 1e6,
            self.num_bytes as f64 / f64::from(1 << 20),
            dtypes.join(", ")
        )
    }
}

impl ModelDescription {
    /// What whoever runs the model should know, one sentence each: what was assumed, and what is not used.
    pub fn notes(&self) -> Vec<String> {
        let assumed = self.assumptions.iter();
        let mut notes: Vec<_> = assumed.map(|text| format!("assumed: {text}")).collect();
        if let Some(first) = self.unused.first() {
            let count = self.unused.len();
            notes.push(format!(
                "unused: {count} tensors that nothing has a place for, such as {first}"
            ));
        }
        notes
    }

    /// Whether a component is there.
    pub fn has(&self, kind: ComponentKind) -> bool {
        self.components.iter().any(|part| part.kind == kind)
    }
}

/// A report names no more of a list.
const MAX_NAMES: usize = 12;

pub(super) fn list(f: &mut fmt::Formatter<'_>, what: &str, names: &[String]) -> fmt::Result {
    if names.is_empty() {
        return Ok(());
    }
    writeln!(f, "{what}: {}", names.len())?;
    for name in names.iter().take(MAX_NAMES) {
        writeln!(f, "  {name}")?;
    }
    match names.len().saturating_sub(MAX_NAMES) {
        0 => Ok(()),
        more => writeln!(f, "  and {more} more"),
    }
}

impl fmt::Display for ModelDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Some(family) => write!(f, "{family}")?,
            None if self.components.is_empty() => write!(f, "no part of a known model")?,
            None => write!(f, "a part of several families")?,
        }
        if self.has(ComponentKind::UNet) {
            write!(f, ", {}", self.task)?;
        }
        if let Some(name) = self.distillation {
            write!(f, ", the layers of {name}")?;
        }
        if self.has_guidance_embedding {
            write!(f, ", told the guidance scale (consistency model)")?;
        }
        if let Some(prediction) = &self.prediction_type {
            write!(f, ", predicts {prediction}")?;
        }
        writeln!(f)?;
        for part in &self.components {
            writeln!(f, "{part}")?;
        }
        if self.num_averages > 0 {
            writeln!(f, "running averages (EMA): {}", self.num_averages)?;
        }
        for assumption in &self.assumptions {
            writeln!(f, "assumed: {assumption}")?;
        }
        list(f, "not needed", &self.leftovers)?;
        list(f, "unused", &self.unused)
    }
}

impl fmt::Display for ComponentDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({:?} names), {}",
            self.kind, self.class_name, self.dialect, self.tensors
        )
    }
}
