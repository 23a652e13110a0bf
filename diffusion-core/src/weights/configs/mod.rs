//! A component's `config.json` from the shapes of its tensors.

mod control;
mod text;
mod unet;
mod vae;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{ComponentKind, Dialect};
use crate::error::{Error, Result};

/// The shapes of one component's tensors, by diffusers' names.
pub(super) struct Shapes<'a> {
    /// What errors call the file.
    pub(super) path: &'a Path,
    pub(super) map: BTreeMap<String, Vec<usize>>,
}

impl Shapes<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// One dimension of a tensor.
    pub(super) fn dim(&self, name: &str, axis: usize) -> Result<usize> {
        let found = self.map.get(name).and_then(|shape| shape.get(axis));
        found.copied().ok_or_else(|| {
            let reason = match self.map.get(name) {
                Some(shape) => format!("tensor {name}: {shape:?} has too few dimensions"),
                None => format!("no tensor {name} (as diffusers names it) to tell the model by"),
            };
            Error::format(self.path, reason)
        })
    }

    /// One dimension of a tensor that need not be there.
    pub(super) fn optional_dim(&self, name: &str, axis: usize) -> Option<usize> {
        self.map.get(name)?.get(axis).copied()
    }

    /// Whether spatial transformers project by matrices, as in SD 2 and SDXL, and not by convolutions.
    pub(super) fn has_linear_projections(&self) -> bool {
        let mut projections = self
            .map
            .iter()
            .filter(|(name, _)| name.ends_with("attentions.0.proj_in.weight"));
        projections.any(|(_, shape)| shape.len() == 2)
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::unsupported(
            format!("{}: {what}", self.path.display()),
            "diffusers' models have none such, so there is no configuration for it",
        )
    }
}

/// The configuration of a component, with the usual values for what shapes cannot tell.
pub(super) fn config(kind: ComponentKind, dialect: Dialect, shapes: &Shapes<'_>) -> Result<Value> {
    match kind {
        ComponentKind::UNet => unet::config(shapes),
        ComponentKind::Vae if shapes.has("encoder.layers.0.weight") => vae::tiny_config(shapes),
        ComponentKind::Vae if shapes.has("decoder.layers.0.weight") => vae::tiny_config(shapes),
        ComponentKind::Vae => vae::config(shapes),
        ComponentKind::TextEncoder | ComponentKind::TextEncoder2 => {
            text::config(kind, dialect, shapes)
        }
        ComponentKind::ControlNet => control::control_net_config(shapes),
        ComponentKind::T2iAdapter => control::t2i_adapter_config(shapes),
    }
}
