//! `AutoencoderKL`, Stable Diffusion's own autoencoder.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::tiling::{Join, Portions, Scale};
use super::{Posterior, VaeTiling};
use crate::config::{check_levels, parse_model};
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationFunction, Attention, AttentionConfig, Conv2d, Conv2dConfig, Downsample,
    GroupNorm, Params, ResnetBlock, ResnetConfig, Seamless, TensorSource, TimeScaleShift, Upsample,
    Weights,
};

/// Epsilon of all norms.
const EPS: f64 = 1e-6;

/// The `config.json` of an `AutoencoderKL`, field by field as diffusers names them.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AutoencoderKlConfig {
    /// Channels of the pictures that are read.
    pub in_channels: usize,
    /// Channels of the pictures that are written.
    pub out_channels: usize,
    /// Channels of each level, from full size down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// The non-linearity.
    pub act_fn: ActivationFunction,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the norms.
    pub norm_num_groups: usize,
    /// Latents are multiplied by this for the UNet.
    pub scaling_factor: f64,
    /// Subtracted from latents before that.
    pub shift_factor: f64,
    /// The mean of each channel of the latents, subtracted from them. Only together with `latents_std`.
    pub latents_mean: Option<Vec<f64>>,
    /// The standard deviation of each channel of the latents, by which they are then divided.
    pub latents_std: Option<Vec<f64>>,
    /// Whether the model overflows in f16; it is then held in f32 where f16 arithmetic was asked for.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution leads the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle has attention.
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: ActivationFunction::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: 0.0,
            latents_mean: None,
            latents_std: None,
            force_upcast: false,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] if it does not parse, [`Error::Unsupported`] for blocks or settings that this
    /// version does not know.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        for (name, known) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            let types = json[name].as_array().into_iter().flatten();
            if let Some(other) = types.into_iter().find(|kind| *kind != known) {
                let what = format!("AutoencoderKL with a block {other} among {name}");
                return Err(Error::unsupported(what, format!("{known} is")));
            }
        }
        let config: Self = parse_model(path, json)?;
        check_levels("block_out_channels", &config.block_out_channels)?;
        config.check_statistics()?;
        Ok(config)
    }

    fn check_statistics(&self) -> Result<()> {
        let fits = match (&self.latents_mean, &self.latents_std) {
            (None, None) => true,
            (Some(mean), Some(std)) => {
                let is_whole = |list: &[f64]| list.len() == self.latent_channels;
                is_whole(mean) && is_whole(std) && std.iter().all(|&std| std > 0.0)
            }
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => Err(Error::argument(
                "latents_mean and latents_std",
                "a number and one above 0 for each channel of the latents",
                format!("{:?} and {:?}", self.latents_mean, self.latents_std),
            )),
        }
    }

    /// How many pixels of a picture's side one latent pixel stands for.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len().max(1) - 1)
    }

    fn resnet(&self, input: usize, output: usize) -> ResnetConfig {
        ResnetConfig {
            input,
            output,
            temb: None,
            groups: self.norm_num_groups,
            eps: EPS,
            function: self.act_fn,
            time_scale_shift: TimeScaleShift::Default,
            output_scale_factor: 1.0,
        }
    }
}

/// The residual blocks of one level.
fn resnets(
    params: Params<'_>,
    config: &AutoencoderKlConfig,
    count: usize,
    input: usize,
    output: usize,
) -> Result<Vec<ResnetBlock>> {
    (0..count)
        .map(|i| {
            let input = if i == 0 { input } else { output };
            params.at(format_args!("resnets.{i}"), |p| {
                ResnetBlock::new(p, config.resnet(input, output))
            })
        })
        .collect()
}

#[derive(Debug, Clone)]
struct MidAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl MidAttention {
    fn new(params: Params<'_>, config: &AutoencoderKlConfig, channels: usize) -> Result<Self> {
        let group_norm = params.at("group_norm", |p| {
            GroupNorm::new(p, channels, config.norm_num_groups, EPS)
        })?;
        let shape = AttentionConfig {
            query: channels,
            context: channels,
            inner: channels,
            heads: 1,
            qkv_bias: true,
            upcast: true,
        };
        Ok(Self {
            group_norm,
            attention: Attention::new(params, shape)?,
        })
    }

    fn forward(&self, x: &Activation) -> Result<Activation> {
        let (height, width) = x.size()?;
        let tokens = self.group_norm.forward(x)?.to_tokens()?;
        self.attention
            .forward(&tokens, None)?
            .to_picture(height, width)?
            .add(x)
    }
}

#[derive(Debug, Clone)]
struct MidBlock {
    first: ResnetBlock,
    attention: Option<MidAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    fn new(params: Params<'_>, config: &AutoencoderKlConfig, channels: usize) -> Result<Self> {
        let resnet = |name: &str| {
            params.at(name, |p| {
                ResnetBlock::new(p, config.resnet(channels, channels))
            })
        };
        let attention = config
            .mid_block_add_attention
            .then(|| params.at("attentions.0", |p| MidAttention::new(p, config, channels)))
            .transpose()?;
        Ok(Self {
            first: resnet("resnets.0")?,
            attention,
            second: resnet("resnets.1")?,
        })
    }

    fn forward(&self, x: Activation) -> Result<Activation> {
        let mut x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(x, None)
    }
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(params: Params<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let conv3x3 = Conv2dConfig::same(3);
        let down_blocks = (0..channels.len())
            .map(|i| {
                params.at(format_args!("down_blocks.{i}"), |p| {
                    let (input, output) = (channels[i.saturating_sub(1)], channels[i]);
                    let resnets = resnets(p, config, config.layers_per_block, input, output)?;
                    let downsampler = (i + 1 < channels.len())
                        .then(|| p.at("downsamplers.0", |p| Downsample::new(p, output, 0)))
                        .transpose()?;
                    Ok((resnets, downsampler))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            conv_in: params.at("conv_in", |p| {
                Conv2d::new(p, config.in_channels, first, conv3x3)
            })?,
            down_blocks,
            mid_block: params.at("mid_block", |p| MidBlock::new(p, config, last))?,
            conv_norm_out: params.at("conv_norm_out", |p| {
                GroupNorm::new(p, last, config.norm_num_groups, EPS)
            })?,
            conv_out: params.at("conv_out", |p| {
                Conv2d::new(p, last, 2 * config.latent_channels, conv3x3)
            })?,
        })
    }

    fn forward(&self, x: &Activation, function: ActivationFunction) -> Result<Activation> {
        let mut x = self.conv_in.forward(x)?;
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                x = resnet.forward(x, None)?;
            }
            if let Some(downsampler) = downsampler {
                x = downsampler.forward(&x)?;
            }
        }
        x = self.mid_block.forward(x)?;
        self.conv_out
            .forward(&self.conv_norm_out.forward_then_within(x, function)?)
    }
}

#[derive(Debug, Clone)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(params: Params<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (lowest, highest) = (channels[0], channels[channels.len() - 1]);
        let conv3x3 = Conv2dConfig::same(3);
        let up_blocks = (0..channels.len())
            .map(|i| {
                params.at(format_args!("up_blocks.{i}"), |p| {
                    let (input, output) = (channels[i.saturating_sub(1)], channels[i]);
                    let resnets = resnets(p, config, config.layers_per_block + 1, input, output)?;
                    let upsampler = (i + 1 < channels.len())
                        .then(|| p.at("upsamplers.0", |p| Upsample::new(p, output)))
                        .transpose()?;
                    Ok((resnets, upsampler))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            conv_in: params.at("conv_in", |p| {
                Conv2d::new(p, config.latent_channels, lowest, conv3x3)
            })?,
            mid_block: params.at("mid_block", |p| MidBlock::new(p, config, lowest))?,
            up_blocks,
            conv_norm_out: params.at("conv_norm_out", |p| {
                GroupNorm::new(p, highest, config.norm_num_groups, EPS)
            })?,
            conv_out: params.at("conv_out", |p| {
                Conv2d::new(p, highest, config.out_channels, conv3x3)
            })?,
        })
    }

    fn forward(&self, x: &Activation, function: ActivationFunction) -> Result<Activation> {
        let mut x = self.mid_block.forward(self.conv_in.forward(x)?)?;
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                x = resnet.forward(x, None)?;
            }
            if let Some(upsampler) = upsampler {
                x = upsampler.forward(&x, None)?;
            }
        }
        self.conv_out
            .forward(&self.conv_norm_out.forward_then_within(x, function)?)
    }
}

/// The autoencoder of Stable Diffusion.
///
/// Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
/// section 3.1; Kingma and Welling, "Auto-Encoding Variational Bayes", 2013.
#[derive(Debug, Clone)]
pub struct AutoencoderKl {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: AutoencoderKlConfig,
    dtype: DType,
    portions: Portions,
    weights: Weights,
}

impl AutoencoderKl {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`](crate::device::compute_dtype).
    ///
    /// # Errors
    /// [`Error::Weights`] if tensors and configuration do not fit; otherwise if reading fails.
    pub fn new(
        config: AutoencoderKlConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        check_levels("block_out_channels", &config.block_out_channels)?;
        let dtype = match compute_dtype(device, dtype) {
            DType::F16 if config.force_upcast => DType::F32,
            _ => dtype,
        };
        Params::build(source, dtype, device, &[], |params| {
            let conv = |name: &str, present: bool, channels: usize| {
                present
                    .then(|| {
                        params.at(name, |p| {
                            Conv2d::new(p, channels, channels, Conv2dConfig::same(1))
                        })
                    })
                    .transpose()
            };
            let latent = config.latent_channels;
            Ok(Self {
                encoder: params.at("encoder", |p| Encoder::new(p, &config))?,
                quant_conv: conv("quant_conv", config.use_quant_conv, 2 * latent)?,
                post_quant_conv: conv("post_quant_conv", config.use_post_quant_conv, latent)?,
                decoder: params.at("decoder", |p| Decoder::new(p, &config))?,
                dtype: compute_dtype(device, dtype),
                portions: Portions::default(),
                weights: params.weights(),
                config,
            })
        })
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The number format of the arithmetic.
    pub fn compute_dtype(&self) -> DType {
        self.dtype
    }

    /// The same weights with arithmetic in another number format.
    pub fn with_compute_dtype(&self, dtype: DType) -> Self {
        Self {
            dtype,
            ..self.clone()
        }
    }

    /// The same weights, working in tiles or not. Default: [`VaeTiling::Auto`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for tiles of another size than [`VaeTiling`] allows.
    pub fn with_tiling(&self, tiling: VaeTiling) -> Result<Self> {
        let portions = Portions {
            tiling,
            ..self.portions
        };
        portions.check(self.config.downscale())?;
        Ok(Self {
            portions,
            ..self.clone()
        })
    }

    /// The same weights, working off one picture of a batch at a time or all at once, which is the default. On the CPU
    /// the bits are the same, but for pictures of less than about 80 pixels a side.
    pub fn with_slicing(&self, slicing: bool) -> Self {
        let portions = Portions {
            slicing,
            ..self.portions
        };
        Self {
            portions,
            ..self.clone()
        }
    }

    /// The same weights for pictures that go on at their opposite side.
    pub(super) fn with_seamless(&self, seamless: Seamless) -> Result<Self> {
        let weights = self.weights.with_seamless(seamless);
        let config = self.config.clone();
        Ok(Self {
            dtype: self.dtype,
            portions: self.portions,
            ..Self::new(config, &weights, weights.dtype(), weights.device())?
        })
    }

    pub(super) fn seamless(&self) -> Seamless {
        self.weights.seamless()
    }

    pub(super) fn portions(&self) -> Portions {
        self.portions
    }

    pub(super) fn scale(&self) -> Scale {
        // The level that doubles to full size still has the channels of the one below.
        let widest = self.config.block_out_channels.iter().take(2).max();
        Scale {
            factor: self.config.downscale(),
            peak_channels: widest.copied().unwrap_or(0),
        }
    }

    /// The distribution of a picture's latents, not yet scaled.
    ///
    /// # Shapes
    /// `images`: `(batch, in_channels, height, width)` in `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        let moments = self
            .portions
            .encode(images, self.scale(), Join::Fade, |images| {
                let x = Activation::from_nchw(&images.to_dtype(self.dtype)?)?;
                let mut moments = self.encoder.forward(&x, self.config.act_fn)?;
                if let Some(conv) = &self.quant_conv {
                    moments = conv.forward(&moments)?;
                }
                Ok(moments.to_nchw()?.to_dtype(DType::F32)?)
            })?;
        let halves = moments.chunk(2, 1)?;
        let logvar = halves[1].clamp(-30.0, 20.0)?;
        Ok(Posterior {
            mean: halves[0].contiguous()?,
            logvar: Some(logvar),
        })
    }

    /// Pictures from unscaled latents.
    ///
    /// # Shapes
    /// `latents`: `(batch, latent_channels, h, w)`; returns `(batch, out_channels, height, width)`, f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.portions
            .decode(latents, self.scale(), Join::Fade, |latents| {
                let mut x = Activation::from_nchw(&latents.to_dtype(self.dtype)?)?;
                if let Some(conv) = &self.post_quant_conv {
                    x = conv.forward(&x)?;
                }
                let image = self.decoder.forward(&x, self.config.act_fn)?;
                Ok(image.to_nchw()?.to_dtype(DType::F32)?)
            })
    }
}
