//! T2I-Adapter: a small network whose features of a picture a UNet adds to its own.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::unet::{BlockType, UNet};
use crate::config::{check_levels, parse_model};
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationFunction, Conv2d, Conv2dConfig, Params, TensorSource, Weights,
};

/// The shapes of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterType {
    /// Each level but the first halves the picture.
    #[default]
    FullAdapter,
    /// Only the third level does, as SDXL's UNet has fewer of them.
    FullAdapterXl,
    /// Each level but the first halves the picture, in a quarter of the channels.
    LightAdapter,
}

/// The `config.json` of a `T2IAdapter`, field by field as diffusers names them.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct T2iAdapterConfig {
    /// Channels of the picture: 3, or 1 for grey ones.
    pub in_channels: usize,
    /// Channels of each level, from the highest resolution; light adapters have the last one twice.
    pub channels: Vec<usize>,
    /// Residual blocks of each level.
    pub num_res_blocks: usize,
    /// How many pixels of the picture, in each direction, are one of the first level.
    pub downscale_factor: usize,
    /// The shape.
    pub adapter_type: AdapterType,
}

impl Default for T2iAdapterConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            channels: vec![320, 640, 1280, 1280],
            num_res_blocks: 2,
            downscale_factor: 8,
            adapter_type: AdapterType::FullAdapter,
        }
    }
}

/// What an adapter's level has.
#[derive(Debug, Clone, Copy)]
struct Level {
    input: usize,
    output: usize,
    downsamples: bool,
}

impl T2iAdapterConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] if it does not parse, [`Error::InvalidArgument`] if its numbers make no network.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let config: Self = parse_model(path, json)?;
        config.check()?;
        Ok(config)
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the one that makes no network.
    pub fn check(&self) -> Result<()> {
        check_levels("channels", &self.channels)?;
        for (name, value, most) in [
            ("in_channels", self.in_channels, 1 << 10),
            ("downscale_factor", self.downscale_factor, 1 << 8),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::argument(name, format!("1 to {most}"), value));
            }
        }
        Ok(())
    }

    fn levels(&self) -> Vec<Level> {
        let channels = &self.channels;
        let is_light = self.adapter_type == AdapterType::LightAdapter;
        let unshuffled = self.in_channels * self.downscale_factor * self.downscale_factor;
        let extra = channels.last().filter(|_| is_light);
        let outputs: Vec<usize> = channels.iter().chain(extra).copied().collect();
        let level = |(i, &output): (usize, &usize)| {
            let before = match i {
                0 if is_light => unshuffled,
                i => outputs[i.saturating_sub(1)],
            };
            let (input, downsamples) = match self.adapter_type {
                AdapterType::FullAdapterXl if i != 1 && i != 2 => (output, false),
                AdapterType::FullAdapterXl => (before, i == 2),
                _ => (before, i > 0),
            };
            Level {
                input,
                output,
                downsamples,
            }
        };
        outputs.iter().enumerate().map(level).collect()
    }

    /// For each feature its channels, and how many pixels of the picture one of its own is in each direction.
    pub fn features(&self) -> Vec<(usize, usize)> {
        let mut scale = self.downscale_factor;
        let features = self.levels().into_iter().map(|level| {
            scale <<= usize::from(level.downsamples);
            (level.output, scale)
        });
        features.collect()
    }
}

/// `T2IAdapter`: pictures in, features for a [`UNet`] out. They are the same in every step.
///
/// Source: Mou et al., "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image
/// Diffusion Models", 2023.
#[derive(Debug, Clone)]
pub struct T2iAdapter {
    conv_in: Option<Conv2d>,
    body: Vec<AdapterBlock>,
    config: T2iAdapterConfig,
    dtype: DType,
    weights: Weights,
}

impl T2iAdapter {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is [`compute_dtype`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the configuration makes no network, [`Error::Weights`] if the tensors do
    /// not fit it; otherwise if reading fails.
    pub fn new(
        config: T2iAdapterConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Params::build(source, dtype, device, &[], |params| {
            params.at("adapter", |params| {
                let is_light = config.adapter_type == AdapterType::LightAdapter;
                let unshuffled = config.in_channels * config.downscale_factor.pow(2);
                let conv_in = (!is_light).then(|| {
                    params.at("conv_in", |p| {
                        Conv2d::new(p, unshuffled, config.channels[0], Conv2dConfig::same(3))
                    })
                });
                let levels = config.levels().into_iter().enumerate();
                Ok(Self {
                    conv_in: conv_in.transpose()?,
                    body: levels
                        .map(|(i, level)| {
                            params.at(format_args!("body.{i}"), |p| {
                                AdapterBlock::new(p, level, config.num_res_blocks, is_light)
                            })
                        })
                        .collect::<Result<_>>()?,
                    dtype: compute_dtype(device, dtype),
                    weights: params.weights(),
                    config: config.clone(),
                })
            })
        })
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &T2iAdapterConfig {
        &self.config
    }

    /// The weights that the model was built from.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Checks that the features are for such a UNet, of latents `downscale` times smaller than pictures.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first feature that does not fit.
    pub fn check_unet(&self, unet: &UNet, downscale: usize) -> Result<()> {
        let config = unet.config();
        let channels = &config.block_out_channels;
        let bottom = channels.len() - 1;
        let places = (0..=channels.len()).map(|i| {
            let level = i.min(bottom);
            let is_plain = config.down_block_types[level] == BlockType::Plain;
            let halved = usize::from(is_plain && i < bottom);
            (channels[level], downscale << (level + halved))
        });
        let places: Vec<_> = places.collect();
        let features = self.config.features();
        let fits = features.len() >= channels.len() && places.starts_with(&features);
        match fits {
            true => Ok(()),
            false => {
                let expected = format!(
                    "a T2I-Adapter of the UNet's family (channels and scale of its levels, perhaps without the \
                     last: {places:?})"
                );
                Err(Error::argument(
                    "control",
                    expected,
                    format!("{features:?}"),
                ))
            }
        }
    }

    /// The features of pictures: `(batch, h, w, channels)` each, by [`T2iAdapterConfig::features`].
    ///
    /// # Shapes
    /// `images`: `(batch, in_channels, height, width)` in `[0, 1]`, RGB; height and width are multiples of
    /// `downscale_factor`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is no multiple, [`Error::Tensor`] if the shape does not fit.
    pub fn forward(&self, images: &Tensor) -> Result<Vec<Activation>> {
        let images = Activation::from_nchw(&images.to_dtype(self.dtype)?)?;
        let mut x = pixel_unshuffle(&images, self.config.downscale_factor)?;
        if let Some(conv_in) = &self.conv_in {
            x = conv_in.forward(&x)?;
        }
        let mut features = Vec::with_capacity(self.body.len());
        for block in &self.body {
            x = block.forward(&x)?;
            features.push(x.clone());
        }
        Ok(features)
    }
}

/// `AdapterBlock` and `LightAdapterBlock`: one level.
#[derive(Debug, Clone)]
struct AdapterBlock {
    downsamples: bool,
    in_conv: Option<Conv2d>,
    /// Two convolutions around a rectifier, with a shortcut.
    resnets: Vec<(Conv2d, Conv2d)>,
    out_conv: Option<Conv2d>,
}

impl AdapterBlock {
    fn new(
        params: Params<'_>,
        level: Level,
        num_res_blocks: usize,
        is_light: bool,
    ) -> Result<Self> {
        let Level { input, output, .. } = level;
        let conv = |name: &str, from, to, kernel| {
            params.at(name, |p| {
                Conv2d::new(p, from, to, Conv2dConfig::same(kernel))
            })
        };
        let (width, kernel) = match is_light {
            true => (output / 4, 3),
            false => (output, 1),
        };
        Ok(Self {
            downsamples: level.downsamples,
            in_conv: (is_light || input != output)
                .then(|| conv("in_conv", input, width, 1))
                .transpose()?,
            resnets: (0..num_res_blocks)
                .map(|i| {
                    let block1 = conv(&format!("resnets.{i}.block1"), width, width, 3)?;
                    Ok((
                        block1,
                        conv(&format!("resnets.{i}.block2"), width, width, kernel)?,
                    ))
                })
                .collect::<Result<_>>()?,
            out_conv: is_light
                .then(|| conv("out_conv", width, output, 1))
                .transpose()?,
        })
    }

    fn forward(&self, x: &Activation) -> Result<Activation> {
        let mut x = match self.downsamples {
            true => average_pairs(x)?,
            false => x.clone(),
        };
        if let Some(conv) = &self.in_conv {
            x = conv.forward(&x)?;
        }
        for (block1, block2) in &self.resnets {
            let hidden = ActivationFunction::Relu.apply(&block1.forward(&x)?)?;
            x = block2.forward(&hidden)?.add(&x)?;
        }
        match &self.out_conv {
            Some(conv) => conv.forward(&x),
            None => Ok(x),
        }
    }
}

/// Squares of `factor` pixels become one of as many more channels, those of one channel side by side.
fn pixel_unshuffle(x: &Activation, factor: usize) -> Result<Activation> {
    let x = x.to_tensor()?;
    let (batch, height, width, channels) = x.dims4()?;
    for (name, side) in [("height", height), ("width", width)] {
        if side == 0 || side % factor != 0 {
            let expected = format!("a multiple of {factor} pixels, for this T2I-Adapter");
            return Err(Error::argument(name, expected, side));
        }
    }
    let (h, w) = (height / factor, width / factor);
    let squares = x.reshape(&[batch, h, factor, w, factor, channels])?;
    let squares = squares.permute(vec![0, 1, 3, 5, 2, 4])?.contiguous()?;
    Ok(Activation::new(squares.reshape((
        batch,
        h,
        w,
        channels * factor * factor,
    ))?))
}

/// The mean of each two by two pixels, fewer at odd borders.
fn average_pairs(x: &Activation) -> Result<Activation> {
    let mut mean = x.to_tensor()?;
    for dim in [1, 2] {
        let len = mean.dim(dim)?;
        if len % 2 == 1 {
            // The mean of a pixel with itself is the pixel.
            mean = Tensor::cat(&[&mean, &mean.narrow(dim, len - 1, 1)?], dim)?;
        }
        let mut pairs = mean.dims().to_vec();
        pairs[dim] = len.div_ceil(2);
        pairs.insert(dim + 1, 2);
        mean = mean.reshape(pairs)?.mean(dim + 1)?;
    }
    Ok(Activation::new(mean))
}
