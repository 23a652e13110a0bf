//! Which tensor of a file belongs to which component.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::keys::{KeyMap, T2iAdapterLayout, UNetLayout, count};
use super::prediction::MARKERS;
use super::renamed::Entry;
use crate::nn::TensorSource;

/// The parts of a model that have weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ComponentKind {
    /// The network that denoises.
    UNet,
    /// The autoencoder.
    Vae,
    /// The text encoder; of SDXL the first.
    TextEncoder,
    /// SDXL's second text encoder, the only one of its refiner.
    TextEncoder2,
    /// A ControlNet, which comes beside a model.
    ControlNet,
    /// A T2I-Adapter, which comes beside a model.
    T2iAdapter,
}

impl ComponentKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::UNet,
        Self::Vae,
        Self::TextEncoder,
        Self::TextEncoder2,
        Self::ControlNet,
        Self::T2iAdapter,
    ];

    /// Its folder in the diffusers layout.
    pub fn folder(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::ControlNet => "controlnet",
            Self::T2iAdapter => "adapter",
        }
    }
}

impl ComponentKind {
    /// Whether it comes beside a whole model, in a folder or a file of its own.
    pub(super) fn is_addition(self) -> bool {
        matches!(self, Self::ControlNet | Self::T2iAdapter)
    }
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// Whose names a component has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// diffusers' and transformers'.
    Diffusers,
    /// CompVis's latent-diffusion and its heirs.
    CompVis,
    /// transformers' text model without its outer module.
    BareClip,
    /// OpenCLIP's.
    OpenClip,
    /// transformers' as stable-diffusion.cpp writes them.
    StableDiffusionCpp,
    /// TAESD's encoder.
    TinyEncoder,
    /// TAESD's decoder.
    TinyDecoder,
    /// TencentARC's adapters.
    TencentArc,
}

struct Section {
    component: ComponentKind,
    dialect: Dialect,
    prefix: &'static str,
    /// A tensor that shows that the section is there.
    marker: &'static str,
}

impl Section {
    fn is_in(&self, names: &BTreeSet<String>) -> bool {
        let has = |name: &str| names.contains(&format!("{}{name}", self.prefix));
        // Many small networks have a layer 1; TAESD's decoder has no layer 0, which bounds its input.
        let is_decoder = || !has("0.weight") && has("3.conv.0.weight");
        has(self.marker) && (self.dialect != Dialect::TinyDecoder || is_decoder())
    }
}

const fn section(
    component: ComponentKind,
    dialect: Dialect,
    prefix: &'static str,
    marker: &'static str,
) -> Section {
    Section {
        component,
        dialect,
        prefix,
        marker,
    }
}

const CLIP: &str = "text_model.embeddings.token_embedding.weight";
const BARE_CLIP: &str = "embeddings.token_embedding.weight";
const OPEN_CLIP: &str = "token_embedding.weight";

/// All known places of components.
#[rustfmt::skip]
const SECTIONS: &[Section] = {
    use ComponentKind::{ControlNet, T2iAdapter, TextEncoder, TextEncoder2, UNet, Vae};
    use Dialect::{
        BareClip, CompVis, Diffusers, OpenClip, StableDiffusionCpp, TencentArc, TinyDecoder,
        TinyEncoder,
    };
    &[
        section(UNet, CompVis, "model.diffusion_model.", "out.2.weight"),
        section(UNet, CompVis, "diffusion_model.", "out.2.weight"),
        section(UNet, CompVis, "", "out.2.weight"),
        section(UNet, Diffusers, "unet.", "conv_norm_out.weight"),
        section(UNet, Diffusers, "", "conv_norm_out.weight"),
        section(Vae, CompVis, "first_stage_model.", "decoder.norm_out.weight"),
        section(Vae, CompVis, "vae.", "decoder.norm_out.weight"),
        section(Vae, CompVis, "", "decoder.norm_out.weight"),
        section(Vae, Diffusers, "first_stage_model.", "decoder.conv_norm_out.weight"),
        section(Vae, Diffusers, "vae.", "decoder.conv_norm_out.weight"),
        section(Vae, Diffusers, "", "decoder.conv_norm_out.weight"),
        section(Vae, Diffusers, "first_stage_model.", "decoder.layers.0.weight"),
        section(Vae, Diffusers, "", "decoder.layers.0.weight"),
        section(Vae, TinyEncoder, "", "1.conv.0.weight"),
        section(Vae, TinyDecoder, "", "1.weight"),
        section(TextEncoder, Diffusers, "cond_stage_model.transformer.", CLIP),
        section(TextEncoder, BareClip, "cond_stage_model.transformer.", BARE_CLIP),
        section(TextEncoder, OpenClip, "cond_stage_model.model.", OPEN_CLIP),
        section(TextEncoder, Diffusers, "conditioner.embedders.0.transformer.", CLIP),
        section(TextEncoder, BareClip, "conditioner.embedders.0.transformer.", BARE_CLIP),
        section(TextEncoder2, OpenClip, "conditioner.embedders.1.model.", OPEN_CLIP),
        section(TextEncoder2, OpenClip, "conditioner.embedders.0.model.", OPEN_CLIP),
        section(TextEncoder2, StableDiffusionCpp, "cond_stage_model.1.transformer.", CLIP),
        section(TextEncoder, Diffusers, "text_encoder.", CLIP),
        section(TextEncoder2, Diffusers, "text_encoder_2.", CLIP),
        section(TextEncoder, Diffusers, "", CLIP),
        section(TextEncoder, BareClip, "", BARE_CLIP),
        section(TextEncoder, OpenClip, "", OPEN_CLIP),
        section(ControlNet, CompVis, "control_model.", "zero_convs.0.0.weight"),
        section(ControlNet, CompVis, "", "zero_convs.0.0.weight"),
        section(ControlNet, Diffusers, "controlnet.", "controlnet_mid_block.weight"),
        section(ControlNet, Diffusers, "", "controlnet_mid_block.weight"),
        section(T2iAdapter, Diffusers, "", "adapter.body.0.resnets.0.block1.weight"),
        section(T2iAdapter, TencentArc, "", "body.0.block1.weight"),
        section(T2iAdapter, TencentArc, "", "body.0.body.0.block1.weight"),
    ]
};

/// What training left in files and no picture needs: whole names, or the last part of names.
const LEFTOVERS: &[&str] = &[
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "denoiser.sigmas",
    "global_step",
    "log_one_minus_alphas_cumprod",
    "logit_scale",
    "logvar",
    "lvlb_weights",
    "position_ids",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "scale_factor",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
];

/// The same: beginnings of names.
const LEFTOVER_MODULES: &[&str] = &[
    "model_ema.",
    "loss.",
    "first_stage_model.loss.",
    "cond_stage_model.model.visual.",
    "visual.",
    "vision_model.",
    "visual_projection.",
];

/// Before the name of a tensor's running average, which is the name without its dots.
const EMA: &str = "model_ema.";

/// OpenCLIP ViT-H, the text encoder of SD 2, has this many layers, and the last is never run.
const VIT_H_LAYERS: usize = 24;

/// Width of OpenCLIP ViT-bigG, the second text encoder of SDXL.
const BIG_G_WIDTH: usize = 1280;

/// A file's tensors, each in its place.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// By component, the entries by diffusers' name.
    pub(super) components: BTreeMap<ComponentKind, BTreeMap<String, Entry>>,
    /// The dialects that were found.
    pub(super) dialects: BTreeMap<ComponentKind, Dialect>,
    /// Tensors that are known not to be needed.
    pub(super) leftovers: Vec<String>,
    /// Tensors that nothing has a place for.
    pub(super) unused: Vec<String>,
}

/// A section that a file has, with its names.
struct Found {
    section: &'static Section,
    component: ComponentKind,
    map: KeyMap,
    /// Modules that the model never runs.
    idle: Vec<String>,
}

impl Found {
    fn new(
        section: &'static Section,
        names: &BTreeSet<String>,
        tensors: &dyn TensorSource,
    ) -> Self {
        let has = |name: &str| names.contains(&format!("{}{name}", section.prefix));
        // A text encoder's file of its own does not say which of SDXL's two it is; its width does.
        let is_big_g = || {
            let tokens = tensors.shape(&format!("{}{}", section.prefix, section.marker));
            tokens.is_some_and(|shape| shape.get(1) == Some(&BIG_G_WIDTH))
        };
        let component = match section.component {
            ComponentKind::TextEncoder if is_big_g() => ComponentKind::TextEncoder2,
            component => component,
        };
        let mut idle = Vec::new();
        let map = match (component, section.dialect) {
            (ComponentKind::UNet, Dialect::CompVis) => UNetLayout::from_original(has).key_map(),
            (ComponentKind::Vae, Dialect::CompVis) => {
                let decoder = |i, j| has(&format!("decoder.up.{i}.block.{j}.conv1.weight"));
                let layers = count(|j| decoder(0, j)).saturating_sub(1);
                KeyMap::vae(count(|i| decoder(i, 0)), layers)
            }
            (ComponentKind::Vae, Dialect::Diffusers)
                if has("decoder.mid_block.attentions.0.query.weight") =>
            {
                KeyMap::former_vae()
            }
            (ComponentKind::ControlNet, Dialect::CompVis) => {
                let hints = count(|i| has(&format!("input_hint_block.{}.weight", 2 * i)));
                UNetLayout::from_original(has).control_net_key_map(hints)
            }
            (_, Dialect::TencentArc) => KeyMap::t2i_adapter(&T2iAdapterLayout::from_original(has)),
            (
                ComponentKind::UNet
                | ComponentKind::Vae
                | ComponentKind::ControlNet
                | ComponentKind::T2iAdapter,
                Dialect::Diffusers,
            ) => KeyMap::identity(),
            (_, Dialect::OpenClip) => {
                let layers = count(|i| has(&format!("transformer.resblocks.{i}.ln_1.weight")));
                let has_projection = has("text_projection");
                // Only the penultimate layer is read, and converters leave the rest out.
                let is_penultimate = component == ComponentKind::TextEncoder
                    && (has_projection || layers == VIT_H_LAYERS);
                let kept = layers - usize::from(is_penultimate && layers > 0);
                if is_penultimate {
                    idle.push(format!("transformer.resblocks.{kept}."));
                    idle.push("text_projection".into());
                }
                KeyMap::open_clip(kept)
            }
            (_, Dialect::TinyEncoder) => KeyMap::tiny_encoder(names.len()),
            (_, Dialect::TinyDecoder) => KeyMap::tiny_decoder(names.len()),
            (_, Dialect::BareClip) => KeyMap::clip(""),
            (_, Dialect::StableDiffusionCpp) => KeyMap::stable_diffusion_cpp(),
            _ => {
                let layers = "text_model.encoder.layers";
                let last = VIT_H_LAYERS - 1;
                // stable-diffusion.cpp writes SD 2's text encoder so, whole. Folders leave the last layer out.
                if component == ComponentKind::TextEncoder
                    && section.prefix.starts_with("cond_stage_model.")
                    && has(&format!("{layers}.{last}.layer_norm1.weight"))
                {
                    idle.push(format!("{layers}.{last}."));
                }
                KeyMap::clip("text_model.")
            }
        };
        Self {
            section,
            component,
            map,
            idle,
        }
    }

    fn is_idle(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.section.prefix);
        rest.is_some_and(|rest| self.idle.iter().any(|module| rest.starts_with(module)))
    }
}

/// The factors that ComfyUI writes beside weights in float8, and those of activations, which nobody needs whose
/// activations are wider: `x.scale_weight` and `x.scale_input`, or, later, `x.weight_scale` and `x.input_scale` with a
/// description `x.comfy_quant`.
#[derive(Default)]
struct Scales {
    /// By the weight's name, the factor's.
    of_weights: BTreeMap<String, String>,
    all: BTreeSet<String>,
}

impl Scales {
    fn new(names: &BTreeSet<String>) -> Self {
        let mut scales = Self::default();
        for name in names {
            let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
            let weight = format!("{module}.weight");
            let known = match last {
                "scale_weight" | "weight_scale" if names.contains(&weight) => {
                    scales.of_weights.insert(weight, name.clone());
                    true
                }
                "scale_input" | "input_scale" | "comfy_quant" => names.contains(&weight),
                // An empty tensor that says that the others are there.
                "scaled_fp8" => true,
                _ => false,
            };
            if known {
                scales.all.insert(name.clone());
            }
        }
        scales
    }

    fn has(&self, name: &str) -> bool {
        self.all.contains(name)
    }

    fn of(&self, weight: &str) -> Option<String> {
        self.of_weights.get(weight).cloned()
    }
}

impl Sorted {
    /// Sorts the tensors of source number `source`. With `ema` the UNet's tensors are their running averages,
    /// where there are any.
    pub(super) fn new(source: usize, tensors: &dyn TensorSource, ema: bool) -> Self {
        let names: BTreeSet<String> = tensors.tensor_names().into_iter().collect();
        let found: Vec<Found> = SECTIONS
            .iter()
            .filter(|s| s.is_in(&names))
            .map(|section| Found::new(section, &names, tensors))
            .collect();
        let mut sorted = Self::default();
        for part in &found {
            sorted.dialects.insert(part.component, part.section.dialect);
        }
        let scales = Scales::new(&names);
        for name in &names {
            if is_leftover(name) || scales.has(name) || found.iter().any(|part| part.is_idle(name))
            {
                sorted.leftovers.push(name.clone());
            } else if !sorted.place(source, name, &found, &scales, ema.then_some(&names)) {
                sorted.unused.push(name.clone());
            }
        }
        sorted
    }

    /// Whether the tensor has a place that is still free.
    fn place(
        &mut self,
        source: usize,
        name: &str,
        found: &[Found],
        scales: &Scales,
        averages: Option<&BTreeSet<String>>,
    ) -> bool {
        for part in found {
            let Some(rest) = name.strip_prefix(part.section.prefix) else {
                continue;
            };
            let places = part.map.to_diffusers(rest);
            let entries = self.components.entry(part.component).or_default();
            if places.is_empty() || places.iter().any(|p| entries.contains_key(&p.name)) {
                continue;
            }
            let average = average_name(name);
            let name = averages
                .and_then(|names| names.get(&average))
                .map_or(name, String::as_str);
            entries.extend(places.into_iter().map(|place| {
                let entry = Entry {
                    source,
                    name: name.to_owned(),
                    form: place.form,
                    scale: scales.of(name),
                };
                (place.name, entry)
            }));
            return true;
        }
        false
    }
}

/// The name of a tensor's running average: the modules below the model, without dots.
fn average_name(name: &str) -> String {
    let inner = name.strip_prefix("model.").unwrap_or(name);
    format!("{EMA}{}", inner.replace('.', ""))
}

/// Whether a tensor is a running average of another.
pub(super) fn is_average(name: &str) -> bool {
    name.starts_with(EMA)
}

fn is_leftover(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    LEFTOVERS.contains(&name)
        || MARKERS.contains(&name)
        || LEFTOVERS.contains(&last)
        || LEFTOVER_MODULES
            .iter()
            .any(|module| name.starts_with(module))
}
