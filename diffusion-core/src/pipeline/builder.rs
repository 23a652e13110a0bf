//! Joining a model's parts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::adapters::{Adapters, TextPart};
use super::image_prompts::Sight;
use super::{Pipeline, PromptCache};
use crate::denoise::NoiseSchedule;
use crate::device::check_weights_dtype;
use crate::error::{Error, Result};
use crate::model::{TextEncoder, Tokenizer, UNet, UNetConfig, Vae};
use crate::nn::{Quantization, Quantized, TensorSource, Threads};
use crate::scheduler::{self, Scheduler};
use crate::weights::{Checkpoint, ComponentKind, Family, OpenOptions};
use crate::weights::{Embedding, Lora, LoraMode, LoraScale, Wanted, locate};

/// Collects the parts of a [`Pipeline`]: a checkpoint, and parts of the caller's own in place of its.
#[derive(Debug, Default)]
pub struct PipelineBuilder {
    weights: Option<PathBuf>,
    checkpoint: Option<Checkpoint>,
    variant: Option<String>,
    revision: Option<String>,
    #[cfg(feature = "hub")]
    hub: Option<crate::weights::HubOptions>,
    device: Option<Device>,
    dtype: Option<DType>,
    quantization: Option<Quantization>,
    scheduler: Option<Arc<dyn Scheduler>>,
    noise_schedule: Option<NoiseSchedule>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<TextEncoder>,
    tokenizer_2: Option<Tokenizer>,
    text_encoder_2: Option<TextEncoder>,
    unet: Option<UNet>,
    vae: Option<Vae>,
    vae_files: Vec<PathBuf>,
    loras: Vec<(PathBuf, LoraScale)>,
    lora_mode: LoraMode,
    embeddings: Vec<Embedding>,
    image_encoder: Option<PathBuf>,
    ip_adapters: Vec<PathBuf>,
    num_threads: Option<usize>,
}

impl PipelineBuilder {
    /// A model folder in the diffusers layout, one file that holds the whole model, or, where no such path is,
    /// a [`HubId`](crate::weights::HubId) such as `stable-diffusion-v1-5/stable-diffusion-v1-5`.
    pub fn weights(mut self, path: impl Into<PathBuf>) -> Self {
        self.weights = Some(path.into());
        self
    }

    /// An open checkpoint in place of [`weights`](Self::weights), for callers that change its settings or
    /// join files.
    pub fn checkpoint(mut self, checkpoint: Checkpoint) -> Self {
        self.checkpoint = Some(checkpoint);
        self
    }

    /// How many threads the layers work on, 1 to 1024, on the CPU: of the pipeline's own, which its clones share.
    /// Pictures are the same on any number. Default: those of the whole program, one for each processor or as the
    /// environment's `RAYON_NUM_THREADS` says, so that several pipelines do not get in each other's way.
    pub fn num_threads(mut self, num_threads: usize) -> Self {
        self.num_threads = Some(num_threads);
        self
    }

    /// Prefers weight files of a variant, such as `fp16`.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// The branch, tag or commit of a model on the hub. Default: `main`.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// How the hub is reached. Default: as the environment says.
    #[cfg(feature = "hub")]
    pub fn hub(mut self, hub: crate::weights::HubOptions) -> Self {
        self.hub = Some(hub);
        self
    }

    /// Where the model runs. Default: the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// The number format that weights are held in: f32, f16 or bf16. On the CPU activations are f32 in all three,
    /// and so are products but those with weights in bf16, which are faster and coarser. Default: f32 on the CPU,
    /// f16 elsewhere.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Holds the layers of the UNet and the text encoders in fewer bits than [`dtype`](Self::dtype), which all else
    /// keeps. Merged LoRAs are held so, too. Default: off.
    pub fn quantize(mut self, quantization: Quantization) -> Self {
        self.quantization = Some(quantization);
        self
    }

    /// The scheduler of requests that name none. Default: the folder's `scheduler_config.json`, or that of a
    /// file's family.
    pub fn scheduler(mut self, scheduler: impl Scheduler + 'static) -> Self {
        self.scheduler = Some(Arc::new(scheduler));
        self
    }

    /// The noise levels of the UNet's timesteps. Default: the folder's `scheduler_config.json`, or that of a
    /// file's family.
    pub fn noise_schedule(mut self, noise_schedule: NoiseSchedule) -> Self {
        self.noise_schedule = Some(noise_schedule);
        self
    }

    /// A tokenizer in place of the checkpoint's.
    pub fn tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// A text encoder in place of the checkpoint's.
    pub fn text_encoder(mut self, text_encoder: TextEncoder) -> Self {
        self.text_encoder = Some(text_encoder);
        self
    }

    /// A tokenizer in place of that of SDXL's second text encoder.
    pub fn tokenizer_2(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer_2 = Some(tokenizer);
        self
    }

    /// A text encoder in place of SDXL's second.
    pub fn text_encoder_2(mut self, text_encoder: TextEncoder) -> Self {
        self.text_encoder_2 = Some(text_encoder);
        self
    }

    /// A UNet in place of the checkpoint's.
    pub fn unet(mut self, unet: UNet) -> Self {
        self.unet = Some(unet);
        self
    }

    /// An autoencoder in place of the checkpoint's.
    pub fn vae(mut self, vae: Vae) -> Self {
        self.vae = Some(vae);
        self.vae_files.clear();
        self
    }

    /// An autoencoder from elsewhere in place of the checkpoint's: its folder or file, a whole model that has
    /// one, or an id on the hub. Called again it adds a file, as TAESD has its encoder and its decoder in
    /// one each.
    pub fn vae_from(mut self, path: impl Into<PathBuf>) -> Self {
        self.vae_files.push(path.into());
        self.vae = None;
        self
    }

    /// A LoRA, or one of its relatives, at a strength: a file, a folder or an id on the hub. Several add up. What became of each
    /// is in [`Pipeline::loras`].
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: impl Into<LoraScale>) -> Self {
        self.loras.push((path.into(), scale.into()));
        self
    }

    /// Whether LoRAs are merged into the weights or applied where the layers run. Default: merged.
    pub fn lora_mode(mut self, mode: LoraMode) -> Self {
        self.lora_mode = mode;
        self
    }

    /// A word of textual inversion, for prompts and negative prompts.
    pub fn embedding(mut self, embedding: Embedding) -> Self {
        self.embeddings.push(embedding);
        self
    }

    /// An IP-Adapter, by which requests have pictures as prompts; see [`Pipeline::add_ip_adapter`]. Several are
    /// counted in the order of the calls.
    pub fn ip_adapter(mut self, path: impl Into<PathBuf>) -> Self {
        self.ip_adapters.push(path.into());
        self
    }

    /// The image encoder of the IP-Adapters; see [`Pipeline::load_image_encoder`]. Default: the one that lies
    /// beside the first of them.
    pub fn image_encoder(mut self, path: impl Into<PathBuf>) -> Self {
        self.image_encoder = Some(path.into());
        self
    }

    /// Reads what is still missing from the checkpoint.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the path or a part is missing, [`Error::Format`] if a file is damaged,
    /// [`Error::Weights`] if tensors do not fit their configuration, [`Error::Unsupported`] for models and
    /// settings that this version does not know.
    pub fn build(mut self) -> Result<Pipeline> {
        let device = self.device.take().unwrap_or(Device::Cpu);
        let default_dtype = if device.is_cpu() {
            DType::F32
        } else {
            DType::F16
        };
        let dtype = check_weights_dtype(self.dtype.unwrap_or(default_dtype))?;
        let format = Format {
            dtype,
            quantization: self.quantization,
        };
        let given = self.weights.clone();
        let checkpoint = self.open_checkpoint()?;
        let place = checkpoint
            .as_ref()
            .map(|open| given.as_deref().unwrap_or(open.path()));
        let name = place.and_then(model_name);
        let vae_files = self.open_vae_files(checkpoint.as_ref())?;
        let notes = checkpoint.iter().chain(&vae_files);
        let notes = notes
            .flat_map(|files| files.description().notes())
            .collect();
        let vae = match vae_files {
            Some(files) => Some(load_vae(&files, dtype, &device)?),
            None => self.vae,
        };
        let needs_weights = |part: &'static str| {
            Error::argument("builder", format!("weights(..) or {part}(..)"), "neither")
        };

        let found = checkpoint.as_ref().and_then(pipeline_config);
        let scheduler_config = match (found, &self.scheduler, &self.noise_schedule) {
            (Some(config), ..) => config,
            (None, Some(_), Some(_)) => Value::Null,
            _ => return Err(no_schedule(checkpoint.as_ref())),
        };
        let noise = match self.noise_schedule {
            Some(noise) => noise,
            None => NoiseSchedule::from_json(&scheduler_config)?,
        };
        // A scheduler that is not known is an error of the first request that names no other.
        let scheduler = self
            .scheduler
            .or_else(|| scheduler::from_config(&scheduler_config).ok());

        let text = |kind, given: Option<TextEncoder>, tokenizer: Option<Tokenizer>| {
            let Some(checkpoint) = &checkpoint else {
                return Ok(TextPart::new(tokenizer, given));
            };
            let tokenizer = match tokenizer {
                None => load_tokenizer(checkpoint, kind)?,
                given => given,
            };
            let encoder = match given {
                None => load_text_encoder(checkpoint, kind, format, &device)?,
                given => given,
            };
            Ok::<_, Error>(TextPart::new(tokenizer, encoder))
        };
        let text = [
            text(
                ComponentKind::TextEncoder,
                self.text_encoder,
                self.tokenizer,
            )?,
            text(
                ComponentKind::TextEncoder2,
                self.text_encoder_2,
                self.tokenizer_2,
            )?,
        ];
        let unet = match (self.unet, &checkpoint) {
            (Some(unet), _) => unet,
            (None, Some(checkpoint)) => {
                let part = checkpoint.required(ComponentKind::UNet)?;
                let config = UNetConfig::from_json(part.config_path, part.config)?;
                format.with(&part.tensors, |tensors, dtype| {
                    UNet::new(config, tensors, dtype, &device)
                })?
            }
            (None, None) => return Err(needs_weights("unet")),
        };
        let vae = match (vae, &checkpoint) {
            (Some(vae), _) => vae,
            (None, Some(checkpoint)) => load_vae(checkpoint, dtype, &device)?,
            (None, None) => return Err(needs_weights("vae")),
        };
        let threads = self.num_threads.map(Threads::new).transpose()?;
        let mut pipeline = Pipeline {
            threads: threads.unwrap_or_default(),
            name,
            text,
            zeroes_empty_prompt: checkpoint
                .as_ref()
                .is_some_and(Checkpoint::zeroes_empty_prompt),
            unet,
            vae,
            noise,
            scheduler,
            scheduler_config,
            device,
            adapters: Adapters::default(),
            sight: Sight::default(),
            safety_checker: None,
            notes,
            prompts: PromptCache::default(),
        };
        if let Some(path) = self.image_encoder {
            pipeline.load_image_encoder(path)?;
        }
        for path in self.ip_adapters {
            pipeline.add_ip_adapter(path)?;
        }
        for embedding in &self.embeddings {
            pipeline.add_embedding(embedding)?;
        }
        if !self.loras.is_empty() {
            let hub = OpenOptions {
                #[cfg(feature = "hub")]
                hub: self.hub,
                ..Default::default()
            };
            let open = |(path, scale): (PathBuf, LoraScale)| {
                let path = locate(&path, &hub, Wanted::Lora)?;
                Ok((Lora::open(path)?, scale))
            };
            let loras = self
                .loras
                .into_iter()
                .map(open)
                .collect::<Result<Vec<_>>>()?;
            let loras: Vec<_> = loras
                .iter()
                .map(|(lora, scale)| (lora, scale.clone()))
                .collect();
            pipeline.set_loras_as(self.lora_mode, &loras)?;
        }
        Ok(pipeline)
    }

    /// Opens the weights, if any, without the components that the caller has.
    fn open_checkpoint(&mut self) -> Result<Option<Checkpoint>> {
        let Some(path) = self.weights.take() else {
            return Ok(self.checkpoint.take());
        };
        if let Some(checkpoint) = self.checkpoint.take() {
            let found = format!("both, {checkpoint:?}");
            return Err(Error::argument(
                "builder",
                "weights(..) or checkpoint(..)",
                found,
            ));
        }
        let given = [
            (ComponentKind::UNet, self.unet.is_some()),
            (
                ComponentKind::Vae,
                self.vae.is_some() || !self.vae_files.is_empty(),
            ),
            (ComponentKind::TextEncoder, self.text_encoder.is_some()),
            (ComponentKind::TextEncoder2, self.text_encoder_2.is_some()),
            // Requests bring their own.
            (ComponentKind::ControlNet, true),
            (ComponentKind::T2iAdapter, true),
        ];
        let options = OpenOptions {
            variant: self.variant.take(),
            revision: self.revision.take(),
            #[cfg(feature = "hub")]
            hub: self.hub.clone(),
            without: given.iter().filter(|g| g.1).map(|g| g.0).collect(),
            ..Default::default()
        };
        Checkpoint::open_with(path, &options).map(Some)
    }

    /// Opens the autoencoder of [`vae_from`](Self::vae_from), if any, for the family of the model.
    fn open_vae_files(&self, model: Option<&Checkpoint>) -> Result<Option<Checkpoint>> {
        let mut without = ComponentKind::ALL.to_vec();
        without.retain(|&kind| kind != ComponentKind::Vae);
        let options = OpenOptions {
            without,
            family: model.and_then(|model| model.description().family),
            #[cfg(feature = "hub")]
            hub: self.hub.clone(),
            ..Default::default()
        };
        match &self.vae_files[..] {
            [] => Ok(None),
            [path] => Checkpoint::open_with(path, &options).map(Some),
            files => {
                let files = files.iter().map(|file| options.locate(file));
                let files = files.collect::<Result<Vec<_>>>()?;
                Checkpoint::open_files(&files, &options).map(Some)
            }
        }
    }
}

/// What the model at a path, or of an id on the hub, is called.
fn model_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let endings = [".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"];
    let stem = endings.iter().find_map(|ending| name.strip_suffix(ending));
    Some(stem.unwrap_or(name).to_owned())
}

/// The folder's tokenizer, or CLIP's for files, which have none.
fn load_tokenizer(checkpoint: &Checkpoint, kind: ComponentKind) -> Result<Option<Tokenizer>> {
    use Family::{StableDiffusion2, StableDiffusionXl, StableDiffusionXlRefiner};
    let family = checkpoint.description().family;
    match (checkpoint.tokenizer_folder(kind), kind, family) {
        (Some(path), ..) => Tokenizer::open(path).map(Some),
        (None, ..) if checkpoint.is_folder() => Ok(None),
        (None, ComponentKind::TextEncoder, Some(StableDiffusionXlRefiner)) => Ok(None),
        (None, ComponentKind::TextEncoder, Some(StableDiffusion2))
        | (None, ComponentKind::TextEncoder2, Some(StableDiffusionXl | StableDiffusionXlRefiner)) => {
            Tokenizer::open_clip().map(Some)
        }
        (None, ComponentKind::TextEncoder, _) => Tokenizer::clip().map(Some),
        (None, ..) => Ok(None),
    }
}

/// How weights are held.
#[derive(Clone, Copy)]
struct Format {
    dtype: DType,
    quantization: Option<Quantization>,
}

impl Format {
    /// Builds a model of tensors that are to be held so.
    fn with<M>(
        self,
        tensors: &dyn TensorSource,
        model: impl FnOnce(&dyn TensorSource, DType) -> Result<M>,
    ) -> Result<M> {
        match self.quantization {
            Some(quantization) => model(&Quantized::new(tensors, quantization), self.dtype),
            None => model(tensors, self.dtype),
        }
    }
}

fn load_text_encoder(
    checkpoint: &Checkpoint,
    kind: ComponentKind,
    format: Format,
    device: &Device,
) -> Result<Option<TextEncoder>> {
    let Some(part) = checkpoint.component(kind) else {
        return Ok(None);
    };
    let config = TextEncoder::parse_config(part.config_path, part.config)?;
    let encoder = format.with(&part.tensors, |tensors, dtype| {
        TextEncoder::new(config, tensors, dtype, device)
    });
    encoder.map(Some)
}

fn load_vae(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Vae> {
    let part = checkpoint.required(ComponentKind::Vae)?;
    Vae::new(part.config_path, part.config, &part.tensors, dtype, device)
}

/// The configuration as diffusers' Stable Diffusion pipelines (SDXL's not among them) correct it: an offset
/// of one step and no clamping, whatever old files say.
fn pipeline_config(checkpoint: &Checkpoint) -> Option<Value> {
    let mut config = checkpoint.scheduler_config()?.clone();
    let is_xl = checkpoint.pipeline_class().contains("XL");
    if let (false, Some(fields)) = (is_xl, config.as_object_mut()) {
        fields.insert("steps_offset".into(), json!(1));
        fields.insert("clip_sample".into(), json!(false));
    }
    Some(config)
}

/// Why there are no settings of a scheduler.
fn no_schedule(checkpoint: Option<&Checkpoint>) -> Error {
    let Some(checkpoint) = checkpoint else {
        let expected = "weights(..) or scheduler(..) and noise_schedule(..)";
        return Error::argument("builder", expected, "neither");
    };
    match checkpoint.required(ComponentKind::UNet) {
        Err(error) => error,
        Ok(_) => Error::NotFound {
            path: checkpoint.path().join("scheduler"),
            hint: "its scheduler_config.json says what the model predicts and how noisy each timestep is"
                .into(),
        },
    }
}
