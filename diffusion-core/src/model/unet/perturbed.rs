//! Which self-attention layers of a UNet perturbed-attention guidance means.

use super::cross_attention::blocks_with;
use super::{UNet, UNetConfig};
use crate::config::PerLevel;
use crate::error::{Error, Result};
use crate::nn::PerturbedAttention;

/// The projection by which a transformer block's first attention is known.
const TO_VALUE: &str = ".attn1.to_v.weight";

impl UNet {
    /// The transformer blocks that have self-attention, such as `mid_block.attentions.0.transformer_blocks.0`.
    pub fn self_attentions(&self) -> Vec<String> {
        let blocks = blocks_with(self.weights(), TO_VALUE);
        let paths = blocks.into_iter().map(|(path, _)| path);
        paths
            .filter(|path| !attends_to_text(self.config(), path))
            .collect()
    }

    /// The self-attention layers whose names have one of `layers` in them, perturbed for the images of a batch from
    /// `first_row` on.
    ///
    /// Names are diffusers' (`pag_applied_layers`): `mid`, `down_blocks.1`, `up_blocks.0.attentions.0`,
    /// `transformer_blocks.1`, or as its first versions wrote them: `down.block_1`, `up.block_0.attentions_0`. A
    /// number is meant whole. They are not regular expressions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that no layer has.
    pub fn perturbed_attention(
        &self,
        layers: &[impl AsRef<str>],
        first_row: usize,
    ) -> Result<PerturbedAttention> {
        let all = self.self_attentions();
        let mut paths = Vec::new();
        for layer in layers.iter().map(AsRef::as_ref) {
            let name = present_name(layer);
            let found = all.iter().filter(|path| names(&name, path));
            let before = paths.len();
            paths.extend(found.cloned());
            if paths.len() == before {
                let expected = format!("a part of one of {}", all.join(", "));
                return Err(Error::argument("pag_layers", expected, layer));
            }
        }
        Ok(PerturbedAttention::new(paths, first_row))
    }
}

/// A layer's name in the words of the module tree.
fn present_name(layer: &str) -> String {
    [
        ("down.block_", "down_blocks."),
        ("up.block_", "up_blocks."),
        ("mid.block_0", "mid_block"),
        (".attentions_", ".attentions."),
    ]
    .iter()
    .fold(layer.to_owned(), |name, (old, new)| name.replace(old, new))
}

/// Whether `name` is a part of the self-attention's name, and does not end within a number.
fn names(name: &str, path: &str) -> bool {
    let full = format!("{path}.attn1");
    let ends_in_digit = name.ends_with(|c: char| c.is_ascii_digit());
    let mut places = full.match_indices(name);
    !name.is_empty()
        && places.any(|(at, _)| {
            let rest = &full[at + name.len()..];
            !(ends_in_digit && rest.starts_with(|c: char| c.is_ascii_digit()))
        })
}

/// Whether the first attention of a block attends to the text too. The middle's never does.
fn attends_to_text(config: &UNetConfig, path: &str) -> bool {
    let mut parts = path.split('.');
    let (section, index) = (parts.next(), parts.next().and_then(|i| i.parse().ok()));
    let levels = config.block_out_channels.len();
    let level = match (section, index) {
        (Some("down_blocks"), Some(index)) => index,
        (Some("up_blocks"), Some(index)) => levels.saturating_sub(index + 1_usize),
        _ => return false,
    };
    match &config.only_cross_attention {
        PerLevel::Same(only) => *only,
        PerLevel::Each(each) => each.get(level).copied().unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_as_in_diffusers() {
        let path = |section: &str, block: usize| {
            format!("{section}.attentions.0.transformer_blocks.{block}")
        };
        for (layer, path, expected) in [
            ("mid", path("mid_block", 0), true),
            ("mid.block_0", path("mid_block", 0), true),
            ("mid.block_0.attentions_0", path("mid_block", 0), true),
            ("down", path("down_blocks.2", 0), true),
            ("down.block_1", path("down_blocks.1", 0), true),
            ("down.block_1", path("up_blocks.1", 0), false),
            ("down_blocks.1", path("down_blocks.1", 0), true),
            ("down_blocks.1", path("down_blocks.10", 0), false),
            ("up.block_0.attentions_0", path("up_blocks.0", 1), true),
            ("up.block_0.attentions_1", path("up_blocks.0", 1), false),
            ("transformer_blocks.1", path("mid_block", 1), true),
            ("transformer_blocks.1", path("mid_block", 10), false),
            ("attn1", path("mid_block", 3), true),
            ("attn2", path("mid_block", 3), false),
            ("", path("mid_block", 0), false),
        ] {
            assert_eq!(
                names(&present_name(layer), &path),
                expected,
                "{layer} {path}"
            );
        }
    }
}
