//! How the dialects spell their keys.

use super::ModelPart;

/// Which of an adapter's tensors a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// LoRA's first matrix, `(rank, input, ...)`.
    Down,
    /// LoRA's second matrix, `(output, rank, ...)`.
    Up,
    /// The core of a Tucker decomposition, between the two.
    Mid,
    /// The scale times the rank.
    Alpha,
    /// DoRA's lengths as PEFT has them: one for each output.
    Magnitude,
    /// DoRA's lengths as LyCORIS has them: one for each output or for each input.
    DoraScale,
    /// LoHa: two products `a b`, each perhaps with a Tucker core.
    Hada1A,
    Hada1B,
    Hada1Core,
    Hada2A,
    Hada2B,
    Hada2Core,
    /// LoKr: two factors, each whole or a product, the second perhaps with a Tucker core.
    Kron1,
    Kron1A,
    Kron1B,
    Kron2,
    Kron2A,
    Kron2B,
    Kron2Core,
    /// What is added to the weight as it stands.
    Diff,
    /// What is added to the bias.
    DiffBias,
}

/// The ends of keys, behind the module's name. An ending that contains another comes first.
const ENDINGS: &[(&str, Slot)] = &[
    (".lora_linear_layer.down.weight", Slot::Down),
    (".lora_linear_layer.up.weight", Slot::Up),
    (".lora.down.weight", Slot::Down),
    (".lora.up.weight", Slot::Up),
    ("_lora.down.weight", Slot::Down),
    ("_lora.up.weight", Slot::Up),
    (".lora_down.weight", Slot::Down),
    (".lora_up.weight", Slot::Up),
    (".lora_mid.weight", Slot::Mid),
    (".lora_A.weight", Slot::Down),
    (".lora_B.weight", Slot::Up),
    (".lora_magnitude_vector.weight", Slot::Magnitude),
    (".lora_magnitude_vector", Slot::Magnitude),
    (".dora_scale", Slot::DoraScale),
    (".alpha", Slot::Alpha),
    (".hada_w1_a", Slot::Hada1A),
    (".hada_w1_b", Slot::Hada1B),
    (".hada_t1", Slot::Hada1Core),
    (".hada_w2_a", Slot::Hada2A),
    (".hada_w2_b", Slot::Hada2B),
    (".hada_t2", Slot::Hada2Core),
    (".lokr_w1", Slot::Kron1),
    (".lokr_w1_a", Slot::Kron1A),
    (".lokr_w1_b", Slot::Kron1B),
    (".lokr_w2", Slot::Kron2),
    (".lokr_w2_a", Slot::Kron2A),
    (".lokr_w2_b", Slot::Kron2B),
    (".lokr_t2", Slot::Kron2Core),
    (".diff", Slot::Diff),
    (".diff_b", Slot::DiffBias),
    (".w_norm", Slot::Diff),
    (".b_norm", Slot::DiffBias),
    // cloneofsimo/lora numbers the modules: `unet:0:down`.
    (":down", Slot::Down),
    (":up", Slot::Up),
];

/// What follows one of these is the name that PEFT gave the adapter.
const NAMED_BY_PEFT: [&str; 3] = [".lora_A.", ".lora_B.", ".lora_magnitude_vector."];

/// The beginnings of module names, and whose modules they are. kohya's come with underscores for dots.
const BEGINNINGS: &[(&str, Option<ModelPart>)] = &[
    ("lora_unet_", Some(ModelPart::UNet)),
    ("lora_te_", Some(ModelPart::TextEncoder)),
    ("lora_te1_", Some(ModelPart::TextEncoder)),
    ("lora_te2_", Some(ModelPart::TextEncoder2)),
    ("lycoris_", None),
    ("unet.", Some(ModelPart::UNet)),
    ("model.diffusion_model.", Some(ModelPart::UNet)),
    ("diffusion_model.", Some(ModelPart::UNet)),
    ("text_encoder.", Some(ModelPart::TextEncoder)),
    ("text_encoder_2.", Some(ModelPart::TextEncoder2)),
    ("unet:", Some(ModelPart::UNet)),
    ("text_encoder:", Some(ModelPart::TextEncoder)),
];

/// A module as a file spells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Spelled {
    /// Whose module it is, if the file says so.
    pub(super) part: Option<ModelPart>,
    /// Its name in one of the spellings that [`Modules`](super::modules::Modules) knows.
    pub(super) name: String,
}

/// The module and the slot of a key, or `None` if it is of no dialect.
pub(super) fn parse(key: &str) -> Option<(Spelled, Slot)> {
    let key = without_adapter_name(key);
    let (module, slot) = ENDINGS
        .iter()
        .find_map(|(ending, slot)| Some((key.strip_suffix(ending)?, *slot)))?;
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    let found = BEGINNINGS
        .iter()
        .find_map(|(start, part)| Some((*part, module.strip_prefix(start)?)));
    let (part, name) = found.unwrap_or((None, module));
    let name = name.to_owned();
    Some((Spelled { part, name }, slot))
}

/// `x.lora_A.default.weight` as `x.lora_A.weight`.
fn without_adapter_name(key: &str) -> String {
    for part in NAMED_BY_PEFT {
        if let Some((module, rest)) = key.split_once(part) {
            let part = part.trim_end_matches('.');
            return match rest == "weight" || rest.ends_with(".weight") {
                true => format!("{module}{part}.weight"),
                false => format!("{module}{part}"),
            };
        }
    }
    key.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect() {
        use ModelPart::{TextEncoder, TextEncoder2, UNet};
        let q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        let old_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q";
        for (key, part, name, slot) in [
            (
                "lora_unet_conv_in.lora_down.weight",
                Some(UNet),
                "conv_in",
                Slot::Down,
            ),
            (
                "lora_te_text_model_x.alpha",
                Some(TextEncoder),
                "text_model_x",
                Slot::Alpha,
            ),
            (
                "lora_te1_text_model_x.lora_mid.weight",
                Some(TextEncoder),
                "text_model_x",
                Slot::Mid,
            ),
            (
                "lora_te2_text_model_x.dora_scale",
                Some(TextEncoder2),
                "text_model_x",
                Slot::DoraScale,
            ),
            (
                &format!("unet.{old_q}_lora.up.weight"),
                Some(UNet),
                old_q,
                Slot::Up,
            ),
            (
                &format!("{old_q}_lora.down.weight"),
                None,
                old_q,
                Slot::Down,
            ),
            (
                &format!("unet.{q}.lora.down.weight"),
                Some(UNet),
                q,
                Slot::Down,
            ),
            (
                &format!("base_model.model.{q}.lora_A.weight"),
                None,
                q,
                Slot::Down,
            ),
            (
                &format!("base_model.model.unet.{q}.lora_B.default.weight"),
                Some(UNet),
                q,
                Slot::Up,
            ),
            (
                &format!("unet.{q}.lora_magnitude_vector"),
                Some(UNet),
                q,
                Slot::Magnitude,
            ),
            (
                &format!("unet.{q}.lora_magnitude_vector.default"),
                Some(UNet),
                q,
                Slot::Magnitude,
            ),
            (
                &format!("unet.{q}.lora_magnitude_vector.style.weight"),
                Some(UNet),
                q,
                Slot::Magnitude,
            ),
            (
                "text_encoder.x.lora_linear_layer.up.weight",
                Some(TextEncoder),
                "x",
                Slot::Up,
            ),
            (
                "text_encoder_2.x.lora_A.weight",
                Some(TextEncoder2),
                "x",
                Slot::Down,
            ),
            ("unet:12:down", Some(UNet), "12", Slot::Down),
            ("text_encoder:3:up", Some(TextEncoder), "3", Slot::Up),
            ("lora_unet_x.hada_w1_a", Some(UNet), "x", Slot::Hada1A),
            ("lora_unet_x.lokr_w2", Some(UNet), "x", Slot::Kron2),
            ("lycoris_x.lokr_t2", None, "x", Slot::Kron2Core),
            ("lora_unet_x.diff_b", Some(UNet), "x", Slot::DiffBias),
        ] {
            let name = name.to_owned();
            assert_eq!(parse(key), Some((Spelled { part, name }, slot)), "{key}");
        }
        assert_eq!(parse("lora_unet_x.oft_blocks"), None);
        assert_eq!(parse("<s1>"), None);
    }
}
