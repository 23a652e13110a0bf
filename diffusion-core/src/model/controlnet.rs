//! ControlNet: a copy of a UNet's way down that reads a picture.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use super::unet::{ControlResiduals, Encoder, UNet, UNetConfig, UNetInput};
use crate::config::{check_levels, parse_model, require_defaults};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationFunction, Conv2d, Conv2dConfig, Params, TensorSource, Weights,
};

/// The order of a picture's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelOrder {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// The `config.json` of a `ControlNetModel`, field by field as diffusers names them.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ControlNetConfig {
    /// The settings that it shares with its UNet. Those of the way up mean nothing.
    #[serde(skip)]
    pub encoder: UNetConfig,
    /// Channels of the picture.
    pub conditioning_channels: usize,
    /// Channels of the picture's embedding, from full size down; each level but the last halves it.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// The order of channels that the model was trained with; pictures are given in RGB all the same.
    pub controlnet_conditioning_channel_order: ChannelOrder,
    /// Whether residuals are averaged over the picture, for models that read its style and not its places.
    pub global_pool_conditions: bool,
}

impl Default for ControlNetConfig {
    fn default() -> Self {
        Self {
            encoder: UNetConfig::default(),
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            controlnet_conditioning_channel_order: ChannelOrder::Rgb,
            global_pool_conditions: false,
        }
    }
}

impl ControlNetConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// As [`UNetConfig::from_json`].
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let class = json["_class_name"].as_str().unwrap_or("ControlNetModel");
        if class != "ControlNetModel" {
            let hint = "ControlNets of Stable Diffusion and SDXL are of the class ControlNetModel";
            return Err(Error::unsupported(class, hint));
        }
        require_defaults(class, json, &[("conv_in_kernel", json!(3))])?;
        // A UNet has as many levels on the way up.
        let mut encoder = json.clone();
        if let (Some(fields), Some(down)) = (
            encoder.as_object_mut(),
            json.get("down_block_types")
                .filter(|types| types.is_array()),
        ) {
            fields.insert("up_block_types".into(), down.clone());
        }
        let config = Self {
            encoder: UNetConfig::from_json(path, &encoder)?,
            ..parse_model(path, json)?
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the setting that does not.
    pub fn check(&self) -> Result<()> {
        self.encoder.check()?;
        let name = "conditioning_embedding_out_channels";
        check_levels(name, &self.conditioning_embedding_out_channels)
    }

    /// How many pixels of the picture, in each direction, are one of the latents.
    pub fn downscale(&self) -> usize {
        1 << (self.conditioning_embedding_out_channels.len().max(1) - 1)
    }
}

/// `ControlNetModel`: what a [`UNet`] is told about a picture that the result shall follow.
///
/// Source: Zhang, Rao and Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", 2023.
#[derive(Debug, Clone)]
pub struct ControlNet {
    embedding: HintEmbedding,
    encoder: Encoder,
    /// Convolutions of one pixel, zero where training starts.
    down: Vec<Conv2d>,
    mid: Conv2d,
    config: ControlNetConfig,
    weights: Weights,
}

impl ControlNet {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`](crate::device::compute_dtype).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the configuration does not fit together, [`Error::Weights`] if
    /// the tensors do not fit it; otherwise if reading fails.
    pub fn new(
        config: ControlNetConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Params::build(source, dtype, device, &[], |params| {
            let encoder = Encoder::new(params, &config.encoder)?;
            let zero_conv = |p: Params<'_>, n| Conv2d::new(p, n, n, Conv2dConfig::same(1));
            let skips = config.encoder.skip_channels()?;
            let bottom = skips[skips.len() - 1];
            Ok(Self {
                embedding: params.at("controlnet_cond_embedding", |p| {
                    HintEmbedding::new(p, &config)
                })?,
                down: skips
                    .into_iter()
                    .enumerate()
                    .map(|(i, channels)| {
                        let name = format_args!("controlnet_down_blocks.{i}");
                        params.at(name, |p| zero_conv(p, channels))
                    })
                    .collect::<Result<_>>()?,
                mid: params.at("controlnet_mid_block", |p| zero_conv(p, bottom))?,
                encoder,
                config,
                weights: params.weights(),
            })
        })
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// The weights that the model was built from.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Checks that the residuals are for such a UNet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first setting in which the two differ.
    pub fn check_unet(&self, unet: &UNet) -> Result<()> {
        let (ours, theirs) = (&self.config.encoder, unet.config());
        let check = |setting: &str, ours: String, theirs: String| match ours == theirs {
            true => Ok(()),
            false => {
                let expected = format!("a ControlNet of the UNet's family ({setting} {theirs})");
                Err(Error::argument("control", expected, ours))
            }
        };
        if let (Some(ours), Some(theirs)) = (ours.context_width()?, theirs.context_width()?) {
            check("cross_attention_dim", ours.to_string(), theirs.to_string())?;
        }
        let added = |config: &UNetConfig| {
            let width = config.projection_class_embeddings_input_dim;
            format!("{:?}", config.addition_embed_type.map(|kind| (kind, width)))
        };
        check("addition_embed_type", added(ours), added(theirs))?;
        let skips = |config: &UNetConfig| Ok::<_, Error>(format!("{:?}", config.skip_channels()?));
        check("channels of skips", skips(ours)?, skips(theirs)?)?;
        let latents = (
            ours.in_channels.to_string(),
            theirs.out_channels.to_string(),
        );
        check("latent channels", latents.0, latents.1)
    }

    /// Pictures as [`forward`](Self::forward) reads them, which are the same in every step.
    ///
    /// # Shapes
    /// `images`: `(batch, conditioning_channels, height, width)` in `[0, 1]`, RGB, of the size of the pictures
    /// that are wanted; returns `(batch, height / downscale, width / downscale, channels)`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn embed(&self, images: &Tensor) -> Result<Activation> {
        let images = images.to_dtype(self.encoder.dtype())?;
        let images = match self.config.controlnet_conditioning_channel_order {
            ChannelOrder::Rgb => images,
            ChannelOrder::Bgr => images.flip(&[1])?,
        };
        self.embedding.forward(&Activation::from_nchw(&images)?)
    }

    /// What the UNet of the same `input` adds. Guidance embeddings, residuals and perturbed layers of `input` are not
    /// read.
    ///
    /// Guess mode weakens the residuals the more the higher their resolution, so that a picture alone, without
    /// a prompt, is followed and not copied: scales of one to ten, evenly by their logarithm.
    ///
    /// # Shapes
    /// As [`UNet::forward`]; `hint` is [`embed`](Self::embed)'s of as many pictures as `input.sample`, or of one for all.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward(
        &self,
        input: &UNetInput<'_>,
        hint: &Activation,
        scale: f64,
        guess_mode: bool,
    ) -> Result<ControlResiduals> {
        // Pictures as prompts and perturbed layers are the UNet's, whose layers have the same names.
        let input = UNetInput {
            timestep_cond: None,
            image_attention: None,
            residuals: None,
            perturbed: None,
            ..*input
        };
        let encoded = self.encoder.forward(&input, Some(hint))?;
        let pooled = self.config.global_pool_conditions;
        let last = self.down.len();
        let residual = |conv: &Conv2d, x: &Activation, place: usize| {
            let weight = match guess_mode && !pooled {
                true => 10f64.powf(place as f64 / last as f64 - 1.0),
                false => 1.0,
            };
            let residual = conv.forward(x)?.affine(weight * scale, 0.0)?;
            match pooled {
                true => Ok(Activation::new(residual.to_tensor()?.mean_keepdim((1, 2))?)),
                false => Ok::<_, Error>(residual),
            }
        };
        let pairs = self.down.iter().zip(&encoded.skips).enumerate();
        Ok(ControlResiduals {
            down: pairs
                .map(|(i, (conv, skip))| residual(conv, skip, i))
                .collect::<Result<_>>()?,
            mid: residual(&self.mid, &encoded.mid, last)?,
        })
    }
}

/// `ControlNetConditioningEmbedding`: a picture at the size of its latents.
#[derive(Debug, Clone)]
struct HintEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl HintEmbedding {
    fn new(params: Params<'_>, config: &ControlNetConfig) -> Result<Self> {
        let channels = &config.conditioning_embedding_out_channels;
        let conv3x3 = Conv2dConfig::same(3);
        let mut blocks = Vec::new();
        for pair in channels.windows(2) {
            for (output, stride) in [(pair[0], 1), (pair[1], 2)] {
                let conv = conv3x3.with_stride(stride);
                let name = format_args!("blocks.{}", blocks.len());
                blocks.push(params.at(name, |p| Conv2d::new(p, pair[0], output, conv))?);
            }
        }
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let output = config.encoder.block_out_channels[0];
        Ok(Self {
            conv_in: params.at("conv_in", |p| {
                Conv2d::new(p, config.conditioning_channels, first, conv3x3)
            })?,
            blocks,
            conv_out: params.at("conv_out", |p| Conv2d::new(p, last, output, conv3x3))?,
        })
    }

    fn forward(&self, x: &Activation) -> Result<Activation> {
        let silu = ActivationFunction::Silu;
        let mut x = silu.apply(&self.conv_in.forward(x)?)?;
        for block in &self.blocks {
            x = silu.apply(&block.forward(&x)?)?;
        }
        self.conv_out.forward(&x)
    }
}
