//! The way down and the middle, which a ControlNet has a copy of.

use candle_core::{D, DType, Tensor};

use super::blocks::{Conditioning, DownBlock, MidBlock};
use super::levels::Levels;
use super::shrink::Skips;
use super::{AdditionEmbedType, UNetConfig, UNetInput};
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Conv2d, Conv2dConfig, Params, TimestepEmbedding, sinusoidal_embedding,
};

/// What UNet and ControlNet share: first convolution, timestep, levels on the way down, middle.
#[derive(Debug, Clone)]
pub(in crate::model) struct Encoder {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    config: UNetConfig,
    dtype: DType,
}

/// What the way down leaves behind.
#[derive(Debug)]
pub(in crate::model) struct Encoded<'a> {
    temb: Activation,
    text: Activation,
    input: UNetInput<'a>,
    /// Outputs of the first convolution and of each block of the levels, in order.
    pub(in crate::model) skips: Vec<Activation>,
    /// The middle's output.
    pub(in crate::model) mid: Activation,
}

impl Encoded<'_> {
    /// What the blocks on the way up are told.
    pub(super) fn conditioning(&self) -> Conditioning<'_> {
        Conditioning {
            temb: &self.temb,
            context: self.input.context(&self.text),
        }
    }
}

impl Encoder {
    /// Reads `conv_in`, `time_embedding`, `add_embedding`, `down_blocks` and `mid_block`.
    pub(in crate::model) fn new(params: Params<'_>, config: &UNetConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, n) = (channels[0], channels.len());
        let levels = Levels::new(config)?;
        let time_embed_dim = config.time_embed_dim();
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
                    let name = "projection_class_embeddings_input_dim";
                    let input = config.projection_class_embeddings_input_dim;
                    let input = input
                        .ok_or_else(|| Error::argument(name, "a width, for text_time", "none"))?;
                    params.at("add_embedding", |p| {
                        TimestepEmbedding::new(p, input, time_embed_dim, None, config.act_fn)
                    })
                })
                .transpose()?,
            down_blocks: (0..n)
                .map(|i| {
                    let input = channels[i.saturating_sub(1)];
                    let padding = (i + 1 < n).then_some(config.downsample_padding);
                    let level = levels.level(config, i, config.down_block_types[i]);
                    let layers = levels.down_transformer_layers(i)?;
                    params.at(format_args!("down_blocks.{i}"), |p| {
                        DownBlock::new(p, input, &level, &layers, padding)
                    })
                })
                .collect::<Result<_>>()?,
            mid_block: config
                .mid_block_type
                .map(|kind| {
                    let (level, layers) = levels.middle(config, kind);
                    params.at("mid_block", |p| MidBlock::new(p, &level, layers))
                })
                .transpose()?,
            config: config.clone(),
            dtype: compute_dtype(params.device(), params.dtype()),
        })
    }

    pub(in crate::model) fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The number format of the arithmetic.
    pub(in crate::model) fn dtype(&self) -> DType {
        self.dtype
    }

    /// `hint` is added to what comes out of the first convolution.
    pub(in crate::model) fn forward<'a>(
        &self,
        input: &UNetInput<'a>,
        hint: Option<&Activation>,
    ) -> Result<Encoded<'a>> {
        self.forward_levels(input, hint, self.down_blocks.len())
    }

    /// The outermost level alone; what is beyond it, is not there.
    pub(super) fn forward_outermost<'a>(&self, input: &UNetInput<'a>) -> Result<Encoded<'a>> {
        self.forward_levels(input, None, 1)
    }

    fn forward_levels<'a>(
        &self,
        input: &UNetInput<'a>,
        hint: Option<&Activation>,
        levels: usize,
    ) -> Result<Encoded<'a>> {
        if let Some(shrink) = input.shrink {
            shrink.check(self.config.skip_channels()?.len())?;
        }
        let batch = input.sample.dim(0)?;
        let temb = self.embed(input, batch)?;
        let text = Activation::new(input.encoder_hidden_states.to_dtype(self.dtype)?);
        let cond = Conditioning {
            temb: &temb,
            context: input.context(&text),
        };
        let mut x = Activation::from_nchw(&input.sample.to_dtype(self.dtype)?)?;
        if self.config.center_input_sample {
            x = x.affine(2.0, -1.0)?;
        }
        x = self.conv_in.forward(&x)?;
        if let Some(hint) = hint {
            x = x.broadcast_add(hint)?;
        }
        let mut features = input.residuals.iter().flat_map(|r| &r.features);
        let mut skips = Skips {
            shrink: input.shrink,
            ..Skips::default()
        };
        x = skips.keep(x)?;
        for block in &self.down_blocks[..levels] {
            x = block.forward(&x, cond, features.next(), &mut skips)?;
        }
        let mid_block = self.mid_block.as_ref();
        if let Some(block) = mid_block.filter(|_| levels == self.down_blocks.len()) {
            x = block.forward(&x, cond)?;
        }
        if let Some(feature) = features.next() {
            x = x.broadcast_add(feature)?;
        }
        Ok(Encoded {
            mid: x,
            temb,
            text,
            input: *input,
            skips: skips.list,
        })
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
        let (ids, text) = (&text_time.time_ids, &text_time.text_embeds);
        let (count, pooled) = (ids.dim(D::Minus1)?, text.dim(D::Minus1)?);
        let input = config.projection_class_embeddings_input_dim.unwrap_or(0);
        if !dim.is_multiple_of(2) || count.saturating_mul(dim).saturating_add(pooled) != input {
            return Err(Error::argument(
                "addition_time_embed_dim",
                format!(
                    "an even width of which {count} numbers make {input} channels with {pooled} of the text"
                ),
                dim,
            ));
        }
        let time_ids = ids.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let time_ids: Vec<f64> = time_ids.into_iter().map(f64::from).collect();
        let sizes = sinusoid(&time_ids, dim)?.reshape((batch, ()))?;
        let text = text.to_dtype(DType::F32)?;
        let added = Tensor::cat(&[&text, &sizes], D::Minus1)?;
        temb.add(&add_embedding.forward(&added, None, self.dtype)?)
    }
}
