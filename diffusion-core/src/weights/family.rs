//! Which model a checkpoint is of.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::checkpoint::merge;
use super::configs::Shapes;
use super::keys::UNetLayout;
use super::prediction::Prediction;
use super::{ComponentKind, Dialect};

/// The base models; all others are trained from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Stable Diffusion 1.x: OpenAI's CLIP ViT-L.
    StableDiffusion1,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H.
    StableDiffusion2,
    /// SDXL: both of CLIP ViT-L and OpenCLIP ViT-bigG, and picture sizes.
    StableDiffusionXl,
    /// SDXL's refiner: OpenCLIP ViT-bigG, picture sizes and an aesthetic score.
    StableDiffusionXlRefiner,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StableDiffusion1 => "Stable Diffusion 1.x",
            Self::StableDiffusion2 => "Stable Diffusion 2.x",
            Self::StableDiffusionXl => "Stable Diffusion XL",
            Self::StableDiffusionXlRefiner => "Stable Diffusion XL refiner",
        })
    }
}

/// What the UNet's input holds beside the noisy latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Task {
    /// Nothing.
    #[default]
    TextToImage,
    /// A mask and the latents of the masked picture: 9 channels for 4.
    Inpainting,
    /// The latents of the picture to edit: 8 channels for 4.
    InstructPix2Pix,
    /// A depth map: 5 channels for 4. Not run yet.
    DepthToImage,
    /// The small picture to enlarge: 7 channels for 4. Not run yet.
    Upscaling,
    /// Nothing, but pictures as CLIP sees them beside the timestep (unCLIP). Not run yet.
    ImageVariation,
    /// Something that no published model has.
    Unknown,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextToImage => "text to image",
            Self::Inpainting => "inpainting",
            Self::InstructPix2Pix => "instruct-pix2pix",
            Self::DepthToImage => "depth to image",
            Self::Upscaling => "upscaling",
            Self::ImageVariation => "variations of pictures (unCLIP)",
            Self::Unknown => "an input that no published model has",
        })
    }
}

/// Published distillations: transformer blocks behind each residual block on the way down, whether there is
/// a middle with attention, and the model's name.
#[rustfmt::skip]
const DISTILLATIONS: &[(Family, &[&[usize]], bool, &str)] = &[
    (Family::StableDiffusion1, &[&[1], &[1], &[1], &[0]], true, "BK-SDM-Base"),
    (Family::StableDiffusion1, &[&[1], &[1], &[1], &[0]], false, "BK-SDM-Small or small-sd"),
    (Family::StableDiffusion1, &[&[1], &[1], &[1]], false, "BK-SDM-Tiny or tiny-sd"),
    (Family::StableDiffusionXl, &[&[0, 0], &[2, 2], &[4, 4]], false, "SSD-1B"),
    (Family::StableDiffusionXl, &[&[0, 0], &[1, 1], &[2, 2]], false, "Segmind Vega"),
    (Family::StableDiffusionXl, &[&[0], &[2], &[5]], false, "KOALA-700M"),
    (Family::StableDiffusionXl, &[&[0], &[2], &[6]], true, "KOALA-1B"),
];

/// What a checkpoint's tensors say of the whole model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) family: Option<Family>,
    pub(super) task: Task,
    pub(super) distillation: Option<&'static str>,
    pub(super) has_guidance_embedding: bool,
}

impl Model {
    pub(super) fn detect(
        shapes: &BTreeMap<ComponentKind, Shapes<'_>>,
        dialects: &BTreeMap<ComponentKind, Dialect>,
    ) -> Self {
        // A ControlNet is a part of a UNet.
        let control = || shapes.get(&ComponentKind::ControlNet);
        let Some(unet) = shapes.get(&ComponentKind::UNet).or_else(control) else {
            return Self {
                family: family_of_parts(shapes, dialects),
                ..Self::default()
            };
        };
        let layout = UNetLayout::from_diffusers(|name| unet.has(name));
        let has_text = |kind| shapes.contains_key(&kind);
        let cross_attention_dim = unet
            .map
            .iter()
            .find(|(name, _)| name.ends_with("attn2.to_k.weight"))
            .and_then(|(_, shape)| shape.get(1));
        let is_refiner = cross_attention_dim == Some(&REFINER_CONTEXT)
            || (has_text(ComponentKind::TextEncoder2) && !has_text(ComponentKind::TextEncoder));
        let is_unclip = unet.has("add_embedding.linear_1.weight")
            && (cross_attention_dim == Some(&SD2_CONTEXT)
                || (has_text(ComponentKind::TextEncoder)
                    && !has_text(ComponentKind::TextEncoder2)));
        let family = match (
            unet.has("add_embedding.linear_1.weight"),
            unet.has_linear_projections(),
        ) {
            _ if is_unclip => Family::StableDiffusion2,
            (true, _) if is_refiner => Family::StableDiffusionXlRefiner,
            (true, _) => Family::StableDiffusionXl,
            (false, true) => Family::StableDiffusion2,
            (false, false) => Family::StableDiffusion1,
        };
        let input = unet.optional_dim("conv_in.weight", 1);
        let output = unet.optional_dim("conv_out.weight", 0);
        // A ControlNet has no output, and takes what its model takes.
        let task = match output.map(|output| (output, input.and_then(|n| n.checked_sub(output)))) {
            None => Task::TextToImage,
            Some((_, Some(0))) if is_unclip => Task::ImageVariation,
            Some((_, Some(0))) => Task::TextToImage,
            Some((output, Some(more))) if more == output => Task::InstructPix2Pix,
            Some((output, Some(more))) if more == output.saturating_add(1) => Task::Inpainting,
            Some((_, Some(1))) => Task::DepthToImage,
            Some((_, Some(3))) => Task::Upscaling,
            Some(_) => Task::Unknown,
        };
        let depths: Vec<&[usize]> = layout.down.iter().map(|l| l.depths.as_slice()).collect();
        let has_middle = layout.mid.is_some_and(|depth| depth > 0);
        let distillation = DISTILLATIONS
            .iter()
            .find(|(of, down, middle, _)| {
                (*of, *down, *middle) == (family, depths.as_slice(), has_middle)
            })
            .map(|(.., name)| *name);
        Self {
            family: Some(family),
            task,
            distillation,
            has_guidance_embedding: unet.has("time_embedding.cond_proj.weight"),
        }
    }

    pub(super) fn is_xl(&self) -> bool {
        matches!(
            self.family,
            Some(Family::StableDiffusionXl | Family::StableDiffusionXlRefiner)
        )
    }

    /// diffusers' class of the whole.
    pub(super) fn pipeline_class(&self) -> &'static str {
        match (self.is_xl(), self.task) {
            (_, Task::TextToImage) if self.has_guidance_embedding => {
                "LatentConsistencyModelPipeline"
            }
            (_, Task::DepthToImage) => "StableDiffusionDepth2ImgPipeline",
            (_, Task::Upscaling) => "StableDiffusionUpscalePipeline",
            (_, Task::ImageVariation) => "StableUnCLIPImg2ImgPipeline",
            (false, Task::TextToImage | Task::Unknown) => "StableDiffusionPipeline",
            (false, Task::Inpainting) => "StableDiffusionInpaintPipeline",
            (false, Task::InstructPix2Pix) => "StableDiffusionInstructPix2PixPipeline",
            (true, Task::Inpainting) => "StableDiffusionXLInpaintPipeline",
            (true, Task::InstructPix2Pix) => "StableDiffusionXLInstructPix2PixPipeline",
            (true, _) if self.family == Some(Family::StableDiffusionXlRefiner) => {
                "StableDiffusionXLImg2ImgPipeline"
            }
            (true, _) => "StableDiffusionXLPipeline",
        }
    }

    /// Side of the training latents.
    pub(super) fn sample_size(&self, predicts_velocity: bool) -> usize {
        match self.family {
            Some(Family::StableDiffusionXl | Family::StableDiffusionXlRefiner) => 128,
            Some(Family::StableDiffusion2) if predicts_velocity => 96,
            _ => 64,
        }
    }

    /// The `scheduler_config.json` that the family was published with.
    pub(super) fn scheduler_config(&self, prediction: Prediction) -> Value {
        if let Some(config) = prediction.edm_scheduler() {
            return config;
        }
        let mut config = json!({
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": false,
            "steps_offset": 1,
            "timestep_spacing": "leading",
        });
        let class = match self {
            Self {
                has_guidance_embedding: true,
                ..
            } => "LCMScheduler",
            Self {
                task: Task::InstructPix2Pix,
                ..
            } => "EulerAncestralDiscreteScheduler",
            _ if self.is_xl() => "EulerDiscreteScheduler",
            Self {
                family: Some(Family::StableDiffusion2),
                ..
            } => "DDIMScheduler",
            _ => "PNDMScheduler",
        };
        config["_class_name"] = json!(class);
        if class == "PNDMScheduler" {
            config["skip_prk_steps"] = json!(true);
        }
        merge(&mut config, &prediction.settings());
        config
    }
}

/// Channels of SD 2's text conditioning.
const SD2_CONTEXT: usize = 1024;
/// Channels of the refiner's text conditioning.
const REFINER_CONTEXT: usize = 1280;

/// Colours of pixels that T2I-Adapters for SDXL take as channels, for pictures in colour or grey.
const XL_ADAPTER_INPUTS: [usize; 2] = [3 * 16 * 16, 16 * 16];

/// Text encoders alone tell SD 2 and SDXL; the first encoder of SDXL is that of SD 1. T2I-Adapters tell SDXL.
fn family_of_parts(
    shapes: &BTreeMap<ComponentKind, Shapes<'_>>,
    dialects: &BTreeMap<ComponentKind, Dialect>,
) -> Option<Family> {
    let adapter = shapes.get(&ComponentKind::T2iAdapter);
    let input = adapter.and_then(|part| part.optional_dim("adapter.conv_in.weight", 1));
    if input.is_some_and(|input| XL_ADAPTER_INPUTS.contains(&input)) {
        return Some(Family::StableDiffusionXl);
    }
    let has = |kind| shapes.contains_key(&kind);
    let is_open_clip = dialects.get(&ComponentKind::TextEncoder) == Some(&Dialect::OpenClip);
    match (
        has(ComponentKind::TextEncoder),
        has(ComponentKind::TextEncoder2),
    ) {
        (true, true) => Some(Family::StableDiffusionXl),
        (true, false) if is_open_clip => Some(Family::StableDiffusion2),
        _ => None,
    }
}
