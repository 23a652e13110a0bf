//! Joining a model's parts.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::Pipeline;
use super::adapters::Adapters;
use crate::denoise::NoiseSchedule;
use crate::device::check_weights_dtype;
use crate::error::{Error, Result};
use crate::model::{TextEncoder, Tokenizer, UNet, UNetConfig, Vae};
use crate::scheduler::{self, Scheduler};
use crate::weights::{DiffusersFolder, Embedding, Lora, LoraScale};

/// Collects the parts of a [`Pipeline`]: a folder, and parts of the caller's own in place of the folder's.
#[derive(Debug, Default)]
pub struct PipelineBuilder {
    weights: Option<PathBuf>,
    variant: Option<String>,
    device: Option<Device>,
    dtype: Option<DType>,
    scheduler: Option<Arc<dyn Scheduler>>,
    noise_schedule: Option<NoiseSchedule>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<TextEncoder>,
    unet: Option<UNet>,
    vae: Option<Vae>,
    loras: Vec<(PathBuf, LoraScale)>,
    embeddings: Vec<Embedding>,
}

impl PipelineBuilder {
    /// A model folder in the diffusers layout.
    pub fn weights(mut self, path: impl Into<PathBuf>) -> Self {
        self.weights = Some(path.into());
        self
    }

    /// Prefers weight files of a variant, such as `fp16`.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Where the model runs. Default: the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// The number format that weights are held in: f32, f16 or bf16. On the CPU the arithmetic is f32 in all
    /// three. Default: f32 on the CPU, f16 elsewhere.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// The scheduler of requests that name none. Default: the folder's `scheduler_config.json`.
    pub fn scheduler(mut self, scheduler: impl Scheduler + 'static) -> Self {
        self.scheduler = Some(Arc::new(scheduler));
        self
    }

    /// The noise levels of the UNet's timesteps. Default: the folder's `scheduler_config.json`.
    pub fn noise_schedule(mut self, noise_schedule: NoiseSchedule) -> Self {
        self.noise_schedule = Some(noise_schedule);
        self
    }

    /// A tokenizer in place of the folder's.
    pub fn tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// A text encoder in place of the folder's.
    pub fn text_encoder(mut self, text_encoder: TextEncoder) -> Self {
        self.text_encoder = Some(text_encoder);
        self
    }

    /// A UNet in place of the folder's.
    pub fn unet(mut self, unet: UNet) -> Self {
        self.unet = Some(unet);
        self
    }

    /// An autoencoder in place of the folder's.
    pub fn vae(mut self, vae: Vae) -> Self {
        self.vae = Some(vae);
        self
    }

    /// A LoRA, or one of its relatives, at a strength: a file or a folder. Several add up. What became of each
    /// is in [`Pipeline::loras`].
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: impl Into<LoraScale>) -> Self {
        self.loras.push((path.into(), scale.into()));
        self
    }

    /// A word of textual inversion, for prompts and negative prompts.
    pub fn embedding(mut self, embedding: Embedding) -> Self {
        self.embeddings.push(embedding);
        self
    }

    /// Reads what is still missing from the folder.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the folder or a part is missing, [`Error::Format`] if a file is damaged,
    /// [`Error::Weights`] if tensors do not fit their configuration, [`Error::Unsupported`] for models and
    /// settings that this version does not know.
    pub fn build(self) -> Result<Pipeline> {
        let device = self.device.unwrap_or(Device::Cpu);
        let default_dtype = if device.is_cpu() {
            DType::F32
        } else {
            DType::F16
        };
        let dtype = check_weights_dtype(self.dtype.unwrap_or(default_dtype))?;
        let folder = self
            .weights
            .map(|path| DiffusersFolder::open(path, self.variant.as_deref()))
            .transpose()?;
        let needs_folder = |part: &'static str| {
            Error::argument("builder", format!("weights(..) or {part}(..)"), "neither")
        };

        let scheduler_config = match (&folder, &self.scheduler, &self.noise_schedule) {
            (Some(folder), ..) => pipeline_config(folder, folder.scheduler_config()?),
            (None, Some(_), Some(_)) => Value::Null,
            _ => return Err(needs_folder("scheduler(..) and noise_schedule")),
        };
        let noise = match self.noise_schedule {
            Some(noise) => noise,
            None => NoiseSchedule::from_json(&scheduler_config)?,
        };
        // A scheduler that is not known is an error of the first request that names no other.
        let scheduler = self
            .scheduler
            .or_else(|| scheduler::from_config(&scheduler_config).ok());

        // With a second text encoder the first alone would mean another prompt than the model's.
        let single = folder
            .as_ref()
            .filter(|f| f.component_path("text_encoder_2").is_none());
        let tokenizer = match (
            self.tokenizer,
            single.and_then(|f| f.component_path("tokenizer")),
        ) {
            (None, Some(path)) => Some(Tokenizer::open(path)?),
            (given, _) => given,
        };
        let text_encoder = match (self.text_encoder, single) {
            (None, Some(folder)) => load_text_encoder(folder, dtype, &device)?,
            (given, _) => given,
        };
        let unet = match (self.unet, &folder) {
            (Some(unet), _) => unet,
            (None, Some(folder)) => {
                let part = folder.required("unet")?;
                let config = UNetConfig::from_json(&part.config_path, &part.config)?;
                UNet::new(config, &part.open_weights()?, dtype, &device)?
            }
            (None, None) => return Err(needs_folder("unet")),
        };
        let vae = match (self.vae, &folder) {
            (Some(vae), _) => vae,
            (None, Some(folder)) => {
                let part = folder.required("vae")?;
                Vae::new(
                    &part.config_path,
                    &part.config,
                    &part.open_weights()?,
                    dtype,
                    &device,
                )?
            }
            (None, None) => return Err(needs_folder("vae")),
        };
        let mut pipeline = Pipeline {
            tokenizer,
            text_encoder,
            unet,
            vae,
            noise,
            scheduler,
            scheduler_config,
            device,
            adapters: Adapters::default(),
        };
        for embedding in &self.embeddings {
            pipeline.add_embedding(embedding)?;
        }
        if !self.loras.is_empty() {
            let open = |(path, scale): (PathBuf, LoraScale)| Ok((Lora::open(path)?, scale));
            let loras = self
                .loras
                .into_iter()
                .map(open)
                .collect::<Result<Vec<_>>>()?;
            let loras: Vec<_> = loras
                .iter()
                .map(|(lora, scale)| (lora, scale.clone()))
                .collect();
            pipeline.set_loras(&loras)?;
        }
        Ok(pipeline)
    }
}

fn load_text_encoder(
    folder: &DiffusersFolder,
    dtype: DType,
    device: &Device,
) -> Result<Option<TextEncoder>> {
    let Some(part) = folder.component("text_encoder")? else {
        return Ok(None);
    };
    let config = TextEncoder::parse_config(&part.config_path, &part.config)?;
    TextEncoder::new(config, &part.open_weights()?, dtype, device).map(Some)
}

/// The configuration as diffusers' Stable Diffusion pipelines (SDXL's not among them) correct it: an offset
/// of one step and no clamping, whatever old files say.
fn pipeline_config(folder: &DiffusersFolder, mut config: Value) -> Value {
    let is_sdxl = folder
        .class_name()
        .is_some_and(|class| class.contains("XL"));
    if let (false, Some(fields)) = (is_sdxl, config.as_object_mut()) {
        fields.insert("steps_offset".into(), json!(1));
        fields.insert("clip_sample".into(), json!(false));
    }
    config
}
