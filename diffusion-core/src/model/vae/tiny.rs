//! `AutoencoderTiny`: TAESD.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use super::VaeTiling;
use super::tiling::{Join, Portions, Scale};
use crate::config::{check_levels, parse_model, require_defaults};
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationFunction, Conv2d, Conv2dConfig, Params, Seamless, TensorSource, Weights,
    upsample_nearest,
};

/// The `config.json` of an `AutoencoderTiny`, field by field as diffusers names them.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AutoencoderTinyConfig {
    /// Channels of the pictures that are read.
    pub in_channels: usize,
    /// Channels of the pictures that are written.
    pub out_channels: usize,
    /// Channels of each level of the encoder, from full size down.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of each level of the decoder, from latent size up.
    pub decoder_block_out_channels: Vec<usize>,
    /// The non-linearity.
    pub act_fn: ActivationFunction,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// The decoder's growth from level to level.
    pub upsampling_scaling_factor: usize,
    /// Residual blocks of each level of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks of each level of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Latents are multiplied by this for the UNet.
    pub scaling_factor: f64,
    /// Subtracted from latents before that.
    pub shift_factor: f64,
}

impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            act_fn: ActivationFunction::Relu,
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}

impl AutoencoderTinyConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] if it does not parse, [`Error::Unsupported`] for settings that this version does
    /// not know, [`Error::InvalidArgument`] if its lists do not fit together.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        require_defaults(
            "AutoencoderTiny",
            json,
            &[("upsample_fn", json!("nearest"))],
        )?;
        let config: Self = parse_model(path, json)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        check_levels(
            "encoder_block_out_channels",
            &self.encoder_block_out_channels,
        )?;
        check_levels(
            "decoder_block_out_channels",
            &self.decoder_block_out_channels,
        )?;
        for (name, channels, blocks) in [
            (
                "num_encoder_blocks",
                &self.encoder_block_out_channels,
                &self.num_encoder_blocks,
            ),
            (
                "num_decoder_blocks",
                &self.decoder_block_out_channels,
                &self.num_decoder_blocks,
            ),
        ] {
            if channels.len() != blocks.len() {
                let expected = format!("one for each of {} levels", channels.len());
                return Err(Error::argument(name, expected, blocks.len()));
            }
        }
        match self.upsampling_scaling_factor {
            1..=4 => Ok(()),
            other => Err(Error::argument(
                "upsampling_scaling_factor",
                "1 to 4",
                other,
            )),
        }
    }

    /// How many pixels of a picture's side one latent pixel stands for.
    pub fn downscale(&self) -> usize {
        let levels = self.decoder_block_out_channels.len().max(1) as u32;
        self.upsampling_scaling_factor.pow(levels - 1)
    }
}

/// Three convolutions around a shortcut.
#[derive(Debug, Clone)]
struct Block {
    convs: [Conv2d; 3],
    function: ActivationFunction,
}

impl Block {
    fn new(params: Params<'_>, channels: usize, function: ActivationFunction) -> Result<Self> {
        let conv = |name: &str| {
            params.at(name, |p| {
                Conv2d::new(p, channels, channels, Conv2dConfig::same(3))
            })
        };
        Ok(Self {
            convs: [conv("conv.0")?, conv("conv.2")?, conv("conv.4")?],
            function,
        })
    }

    fn forward(&self, x: &Activation) -> Result<Activation> {
        let [first, second, third] = &self.convs;
        let hidden = self.function.apply(&first.forward(x)?)?;
        let hidden = self.function.apply(&second.forward(&hidden)?)?;
        ActivationFunction::Relu.apply(&third.forward(&hidden)?.add(x)?)
    }
}

/// One entry of the numbered list that encoder and decoder are.
#[derive(Debug, Clone)]
enum Layer {
    Conv(Conv2d),
    Function(ActivationFunction),
    Block(Box<Block>),
    Upsample(usize),
}

impl Layer {
    fn forward(&self, x: &Activation) -> Result<Activation> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Function(function) => function.apply(x),
            Self::Block(block) => block.forward(x),
            Self::Upsample(factor) => {
                let (height, width) = x.size()?;
                upsample_nearest(x, height * factor, width * factor)
            }
        }
    }
}

/// Builds a numbered list: each layer is read at its number.
struct Layers<'a> {
    params: Params<'a>,
    list: Vec<Layer>,
}

impl Layers<'_> {
    fn conv(&mut self, input: usize, output: usize, config: Conv2dConfig) -> Result<()> {
        let at = format!("layers.{}", self.list.len());
        self.list.push(Layer::Conv(
            self.params
                .at(at, |p| Conv2d::new(p, input, output, config))?,
        ));
        Ok(())
    }

    fn blocks(
        &mut self,
        count: usize,
        channels: usize,
        function: ActivationFunction,
    ) -> Result<()> {
        for _ in 0..count {
            let at = format!("layers.{}", self.list.len());
            let block = self.params.at(at, |p| Block::new(p, channels, function))?;
            self.list.push(Layer::Block(Box::new(block)));
        }
        Ok(())
    }
}

/// A small autoencoder distilled from Stable Diffusion's.
///
/// Source: Ollin Boer Bohan, "Tiny AutoEncoder for Stable Diffusion" (TAESD), 2023.
#[derive(Debug, Clone)]
pub struct AutoencoderTiny {
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    config: AutoencoderTinyConfig,
    dtype: DType,
    portions: Portions,
    weights: Weights,
}

impl AutoencoderTiny {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`](crate::device::compute_dtype).
    ///
    /// # Errors
    /// [`Error::Weights`] if tensors and configuration do not fit; otherwise if reading fails.
    pub fn new(
        config: AutoencoderTinyConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Params::build(source, dtype, device, &[], |params| {
            Ok(Self {
                encoder: params.at("encoder", |p| encoder(p, &config))?,
                decoder: params.at("decoder", |p| decoder(p, &config))?,
                dtype: compute_dtype(device, dtype),
                portions: Portions::default(),
                weights: params.weights(),
                config,
            })
        })
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &AutoencoderTinyConfig {
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
        let widest = self.config.decoder_block_out_channels.last();
        Scale {
            factor: self.config.downscale(),
            peak_channels: widest.copied().unwrap_or(0),
        }
    }

    /// Latents of a picture, not yet scaled.
    ///
    /// # Shapes
    /// `images`: `(batch, in_channels, height, width)` in `[-1, 1]`; returns
    /// `(batch, latent_channels, h, w)`, f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        self.portions
            .encode(images, self.scale(), Join::Paint, |images| {
                // TAESD itself works on pictures in [0, 1].
                let unit = images.to_dtype(self.dtype)?.affine(0.5, 0.5)?;
                let x = run(&self.encoder, Activation::from_nchw(&unit)?)?;
                Ok(x.to_nchw()?.to_dtype(DType::F32)?)
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
            .decode(latents, self.scale(), Join::Paint, |latents| {
                let bounded = ((latents.to_dtype(self.dtype)? / 3.0)?.tanh()? * 3.0)?;
                let x = run(&self.decoder, Activation::from_nchw(&bounded)?)?;
                Ok(x.affine(2.0, -1.0)?.to_nchw()?.to_dtype(DType::F32)?)
            })
    }
}

fn run(layers: &[Layer], x: Activation) -> Result<Activation> {
    layers.iter().try_fold(x, |x, layer| layer.forward(&x))
}

fn encoder(params: Params<'_>, config: &AutoencoderTinyConfig) -> Result<Vec<Layer>> {
    let mut layers = Layers {
        params,
        list: Vec::new(),
    };
    let conv3x3 = Conv2dConfig::same(3);
    let mut output = config.in_channels;
    let levels = config
        .encoder_block_out_channels
        .iter()
        .zip(&config.num_encoder_blocks);
    for (i, (&channels, &blocks)) in levels.enumerate() {
        match i {
            0 => layers.conv(config.in_channels, channels, conv3x3)?,
            _ => layers.conv(channels, channels, conv3x3.with_stride(2).without_bias())?,
        }
        layers.blocks(blocks, channels, config.act_fn)?;
        output = channels;
    }
    layers.conv(output, config.latent_channels, conv3x3)?;
    Ok(layers.list)
}

fn decoder(params: Params<'_>, config: &AutoencoderTinyConfig) -> Result<Vec<Layer>> {
    let mut layers = Layers {
        params,
        list: Vec::new(),
    };
    let conv3x3 = Conv2dConfig::same(3);
    layers.conv(
        config.latent_channels,
        config.decoder_block_out_channels[0],
        conv3x3,
    )?;
    layers.list.push(Layer::Function(config.act_fn));
    let count = config.decoder_block_out_channels.len();
    let levels = config
        .decoder_block_out_channels
        .iter()
        .zip(&config.num_decoder_blocks);
    for (i, (&channels, &blocks)) in levels.enumerate() {
        layers.blocks(blocks, channels, config.act_fn)?;
        if i + 1 < count {
            layers
                .list
                .push(Layer::Upsample(config.upsampling_scaling_factor));
            layers.conv(channels, channels, conv3x3.without_bias())?;
        } else {
            layers.conv(channels, config.out_channels, conv3x3)?;
        }
    }
    Ok(layers.list)
}
