//! The conditional UNet of latent diffusion.

mod blocks;
mod config;
mod cross_attention;

use candle_core::{D, DType, Device, Tensor};

use blocks::{Conditioning, DownBlock, LevelConfig, MidBlock, UpBlock};
pub use config::{AdditionEmbedType, BlockType, MidBlockType, TransformerLayers, UNetConfig};
pub use cross_attention::CrossAttention;

use crate::config::PerLevel;
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Context, Conv2d, Conv2dConfig, GroupNorm, ImageAttention, Params, ResnetConfig,
    TensorSource, TimestepEmbedding, TransformerConfig, WeightChanges, Weights,
    sinusoidal_embedding,
};

/// What SDXL is told beside the text.
#[derive(Debug, Clone)]
pub struct TextTime {
    /// `(batch, width)`: the pooled text embedding.
    pub text_embeds: Tensor,
    /// `(batch, 6)` (base) or `(batch, 5)` (refiner), f32: original height and width, crop top and left,
    /// target height and width, in pixels; or the first four and an aesthetic score.
    pub time_ids: Tensor,
}

/// The arguments of one forward pass.
#[derive(Debug, Clone, Copy)]
pub struct UNetInput<'a> {
    /// `(batch, in_channels, height, width)`: scaled noisy latents.
    pub sample: &'a Tensor,
    /// One timestep for each of the batch, or one for all; fractional ones are meant as they stand.
    pub timesteps: &'a [f64],
    /// `(batch, tokens, cross_attention_dim)`: the text.
    pub encoder_hidden_states: &'a Tensor,
    /// What SDXL is told beside the text.
    pub text_time: Option<&'a TextTime>,
    /// `(batch, time_cond_proj_dim)`: the guidance embedding of distilled models.
    pub timestep_cond: Option<&'a Tensor>,
    /// Pictures that the cross-attention layers attend to beside the text, of the same batch.
    pub image_attention: Option<&'a ImageAttention>,
}

impl<'a> UNetInput<'a> {
    /// The arguments that every model takes.
    pub fn new(
        sample: &'a Tensor,
        timesteps: &'a [f64],
        encoder_hidden_states: &'a Tensor,
    ) -> Self {
        Self {
            sample,
            timesteps,
            encoder_hidden_states,
            text_time: None,
            timestep_cond: None,
            image_attention: None,
        }
    }
}

/// `UNet2DConditionModel`: noisy latents, a timestep and text in, the model's prediction out.
///
/// Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021; the
/// added conditioning is that of Podell et al., "SDXL", 2023, section 2.2.
#[derive(Debug, Clone)]
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNetConfig,
    dtype: DType,
    weights: Weights,
}

impl UNet {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the configuration does not fit together, [`Error::Weights`] if
    /// the tensors do not fit it; otherwise if reading fails.
    pub fn new(
        config: UNetConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Params::build(source, dtype, device, &[], |params| {
            let channels = config.block_out_channels.clone();
            let first = channels[0];
            let levels = Levels::new(&config)?;
            let n = channels.len();
            let time_embed_dim = config.time_embed_dim();
            let down_blocks = (0..n)
                .map(|i| {
                    let input = channels[i.saturating_sub(1)];
                    let padding = (i + 1 < n).then_some(config.downsample_padding);
                    let level = levels.level(&config, i, config.down_block_types[i]);
                    let layers = levels.down_transformer_layers(i)?;
                    params.at(format_args!("down_blocks.{i}"), |p| {
                        DownBlock::new(p, input, &level, &layers, padding)
                    })
                })
                .collect::<Result<_>>()?;
            let mid_block = config
                .mid_block_type
                .map(|kind| {
                    let (level, layers) = levels.middle(&config, kind);
                    params.at("mid_block", |p| MidBlock::new(p, &level, layers))
                })
                .transpose()?;
            let up_blocks = (0..n)
                .map(|i| {
                    let from_bottom = n - 1 - i;
                    let previous = channels[(from_bottom + 1).min(n - 1)];
                    let skip = channels[from_bottom.saturating_sub(1)];
                    let level = levels.level(&config, from_bottom, config.up_block_types[i]);
                    let layers = levels.up_transformer_layers(&config, i)?;
                    params.at(format_args!("up_blocks.{i}"), |p| {
                        UpBlock::new(p, previous, skip, &level, &layers, i + 1 < n)
                    })
                })
                .collect::<Result<_>>()?;
            Ok(Self {
                conv_in: params.at("conv_in", |p| {
                    let config_in = Conv2dConfig::same(config.conv_in_kernel);
                    Conv2d::new(p, config.in_channels, first, config_in)
                })?,
                time_embedding: params.at("time_embedding", |p| {
                    let cond_dim = config.time_cond_proj_dim;
                    TimestepEmbedding::new(p, first, time_embed_dim, cond_dim, config.act_fn)
                })?,
                add_embedding: config
                    .addition_embed_type
                    .map(|AdditionEmbedType::TextTime| {
                        let input =
                            config
                                .projection_class_embeddings_input_dim
                                .ok_or_else(|| {
                                    let name = "projection_class_embeddings_input_dim";
                                    Error::argument(name, "a width, for text_time", "none")
                                })?;
                        params.at("add_embedding", |p| {
                            TimestepEmbedding::new(p, input, time_embed_dim, None, config.act_fn)
                        })
                    })
                    .transpose()?,
                down_blocks,
                mid_block,
                up_blocks,
                conv_norm_out: params.at("conv_norm_out", |p| {
                    GroupNorm::new(p, first, config.norm_num_groups, config.norm_eps)
                })?,
                conv_out: params.at("conv_out", |p| {
                    let config_out = Conv2dConfig::same(config.conv_out_kernel);
                    Conv2d::new(p, first, config.out_channels, config_out)
                })?,
                dtype: compute_dtype(device, dtype),
                weights: params.weights(),
                config,
            })
        })
    }

    /// The weights that the model was built from.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The same model with some of its weights changed; it shares the memory of all others.
    ///
    /// # Errors
    /// [`Error::Weights`] if a replacement is of another name or shape than the model's.
    pub fn with_changes(&self, changes: impl Into<WeightChanges>) -> Result<Self> {
        let weights = self.weights.changed(changes.into());
        let config = self.config.clone();
        Self::new(config, &weights, weights.dtype(), weights.device())
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The cross-attention layers, in the order in which diffusers counts attention layers: on the way down, on
    /// the way up, in the middle.
    pub fn cross_attentions(&self) -> Vec<CrossAttention> {
        cross_attention::of(&self.weights)
    }

    /// One evaluation.
    ///
    /// # Shapes
    /// See [`UNetInput`]; returns `(batch, out_channels, height, width)` in f32. Height and width may be
    /// any; odd ones are met by upsampling to the size of the level above.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of timesteps or the added conditioning does not fit,
    /// [`Error::Tensor`] if a shape does not.
    pub fn forward(&self, input: &UNetInput<'_>) -> Result<Tensor> {
        let batch = input.sample.dim(0)?;
        let temb = self.embed(input, batch)?;
        let text = Activation::new(input.encoder_hidden_states.to_dtype(self.dtype)?);
        let cond = Conditioning {
            temb: &temb,
            context: Context {
                text: &text,
                pictures: input.image_attention,
            },
        };
        let mut x = Activation::from_nchw(&input.sample.to_dtype(self.dtype)?)?;
        if self.config.center_input_sample {
            x = x.affine(2.0, -1.0)?;
        }
        x = self.conv_in.forward(&x)?;
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(&x, cond, &mut skips)?;
        }
        if let Some(block) = &self.mid_block {
            x = block.forward(&x, cond)?;
        }
        for block in &self.up_blocks {
            x = block.forward(&x, cond, &mut skips)?;
        }
        let x = self.config.act_fn.apply(&self.conv_norm_out.forward(&x)?)?;
        Ok(self.conv_out.forward(&x)?.to_nchw()?.to_dtype(DType::F32)?)
    }

    /// The vector that residual blocks take: timestep, guidance, and what SDXL is told beside the text.
    fn embed(&self, input: &UNetInput<'_>, batch: usize) -> Result<Activation> {
        let config = &self.config;
        let device = input.sample.device();
        let timesteps = match input.timesteps {
            [one] => vec![*one; batch],
            each if each.len() == batch => each.to_vec(),
            other => {
                let expected = format!("1 or {batch}, one for each of the batch");
                return Err(Error::argument("timesteps", expected, other.len()));
            }
        };
        let sinusoid = |values: &[f64], dim: usize| {
            sinusoidal_embedding(
                values,
                dim,
                config.flip_sin_to_cos,
                config.freq_shift,
                device,
            )
        };
        let width = config.block_out_channels[0];
        let projected = sinusoid(&timesteps, width)?;
        let temb = self
            .time_embedding
            .forward(&projected, input.timestep_cond, self.dtype)?;
        let Some(add_embedding) = &self.add_embedding else {
            return Ok(temb);
        };
        let text_time = input.text_time.ok_or_else(|| {
            Error::argument(
                "text_time",
                "the pooled text and time ids of an SDXL model",
                "none",
            )
        })?;
        let dim = config.addition_time_embed_dim.unwrap_or(256);
        let time_ids = text_time
            .time_ids
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let time_ids: Vec<f64> = time_ids.into_iter().map(f64::from).collect();
        let sizes = sinusoid(&time_ids, dim)?.reshape((batch, ()))?;
        let text = text_time.text_embeds.to_dtype(DType::F32)?;
        let added = Tensor::cat(&[&text, &sizes], D::Minus1)?;
        temb.add(&add_embedding.forward(&added, None, self.dtype)?)
    }
}

/// The settings that are given once or for each level, spelled out for each.
struct Levels {
    heads: Vec<usize>,
    cross_attention_dim: Vec<usize>,
    only_cross_attention: Vec<bool>,
    layers_per_block: Vec<usize>,
    transformer_layers: Vec<TransformerLayers>,
}

impl Levels {
    fn new(config: &UNetConfig) -> Result<Self> {
        let n = config.block_out_channels.len();
        Ok(Self {
            heads: config.attention_head_dim.to_vec("attention_head_dim", n)?,
            cross_attention_dim: config
                .cross_attention_dim
                .to_vec("cross_attention_dim", n)?,
            only_cross_attention: config
                .only_cross_attention
                .to_vec("only_cross_attention", n)?,
            layers_per_block: config.layers_per_block.to_vec("layers_per_block", n)?,
            transformer_layers: config
                .transformer_layers_per_block
                .to_vec("transformer_layers_per_block", n)?,
        })
    }

    fn level(&self, config: &UNetConfig, index: usize, kind: BlockType) -> LevelConfig {
        let channels = config.block_out_channels[index];
        let resnet = ResnetConfig {
            input: channels,
            output: channels,
            temb: Some(config.time_embed_dim()),
            groups: config.norm_num_groups,
            eps: config.norm_eps,
            function: config.act_fn,
            time_scale_shift: config.resnet_time_scale_shift,
            output_scale_factor: 1.0,
        };
        let transformer = (kind == BlockType::CrossAttention).then(|| TransformerConfig {
            channels,
            heads: self.heads[index],
            layers: 1,
            cross_attention_dim: self.cross_attention_dim[index],
            groups: config.norm_num_groups,
            use_linear_projection: config.use_linear_projection,
            only_cross_attention: self.only_cross_attention[index],
            upcast_attention: config.upcast_attention,
        });
        LevelConfig {
            resnet,
            transformer,
        }
    }

    fn middle(&self, config: &UNetConfig, kind: MidBlockType) -> (LevelConfig, usize) {
        let bottom = self.heads.len() - 1;
        let kind = match kind {
            MidBlockType::Plain => BlockType::Plain,
            MidBlockType::CrossAttention => BlockType::CrossAttention,
        };
        let mut level = self.level(config, bottom, kind);
        level.resnet.output_scale_factor = config.mid_block_scale_factor;
        if let Some(transformer) = &mut level.transformer {
            // diffusers hands this setting to the levels and not to the middle.
            transformer.only_cross_attention = false;
        }
        let layers = match &self.transformer_layers[bottom] {
            PerLevel::Same(layers) => *layers,
            PerLevel::Each(each) => each.first().copied().unwrap_or(1),
        };
        (level, layers)
    }

    fn down_transformer_layers(&self, index: usize) -> Result<Vec<usize>> {
        let count = self.layers_per_block[index];
        self.transformer_layers[index].to_vec("transformer_layers_per_block", count)
    }

    fn up_transformer_layers(&self, config: &UNetConfig, index: usize) -> Result<Vec<usize>> {
        let from_bottom = self.heads.len() - 1 - index;
        let count = self.layers_per_block[from_bottom] + 1;
        let layers = match &config.reverse_transformer_layers_per_block {
            None => &self.transformer_layers[from_bottom],
            Some(each) => each.get(index).ok_or_else(|| {
                let name = "reverse_transformer_layers_per_block";
                Error::argument(name, "one for each level", each.len())
            })?,
        };
        layers.to_vec("transformer_layers_per_block", count)
    }
}
