//! The conditional UNet of latent diffusion.

mod blocks;
mod config;
mod cross_attention;
mod deep;
mod encoder;
mod levels;
mod perturbed;
mod residuals;
mod shrink;

use candle_core::{DType, Device, Tensor};

use blocks::UpBlock;
pub use config::{AdditionEmbedType, BlockType, MidBlockType, TransformerLayers, UNetConfig};
pub use cross_attention::CrossAttention;
pub use deep::DeepFeatures;
use encoder::Encoded;
pub(super) use encoder::Encoder;
use levels::Levels;
pub use residuals::{ControlResiduals, UNetResiduals};
pub use shrink::Shrink;

use crate::error::Result;
use crate::nn::{
    Activation, Context, Conv2d, Conv2dConfig, Gate, GroupNorm, ImageAttention, Lease, Params,
    PerturbedAttention, Seamless, TensorSource, WeightChanges, Weights,
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
    /// What ControlNets and T2I-Adapters add.
    pub residuals: Option<&'a UNetResiduals>,
    /// Self-attention layers that are perturbed.
    pub perturbed: Option<&'a PerturbedAttention>,
    /// Inner levels at a lower resolution.
    pub shrink: Option<Shrink>,
    /// Whether cross-attention layers leave what they find, or answer what was left.
    pub gate: Option<Gate<'a>>,
    /// Which share of the tokens goes into others for self-attention, in the outermost level that has it; above 3/4 is
    /// as 3/4.
    pub token_merging: f64,
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
            residuals: None,
            perturbed: None,
            shrink: None,
            gate: None,
            token_merging: 0.0,
        }
    }

    /// What attention layers are told.
    fn context<'b>(&self, text: &'b Activation) -> Context<'b>
    where
        'a: 'b,
    {
        Context {
            text,
            pictures: self.image_attention,
            perturbed: self.perturbed,
            gate: self.gate,
            token_merging: self.token_merging,
        }
    }
}

/// `UNet2DConditionModel`: noisy latents, a timestep and text in, the model's prediction out.
///
/// Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021; the
/// added conditioning is that of Podell et al., "SDXL", 2023, section 2.2.
#[derive(Debug, Clone)]
pub struct UNet {
    encoder: Encoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    weights: Weights,
}

impl UNet {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`](crate::device::compute_dtype).
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) if the configuration does not fit together,
    /// [`Weights`](crate::Error::Weights) if the tensors do not fit it; otherwise if reading fails.
    pub fn new(
        config: UNetConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Params::build(source, dtype, device, &[], |params| {
            let channels = &config.block_out_channels;
            let (first, n) = (channels[0], channels.len());
            let levels = Levels::new(&config)?;
            let encoder = Encoder::new(params, &config)?;
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
                encoder,
                up_blocks,
                conv_norm_out: params.at("conv_norm_out", |p| {
                    GroupNorm::new(p, first, config.norm_num_groups, config.norm_eps)
                })?,
                conv_out: params.at("conv_out", |p| {
                    let config_out = Conv2dConfig::same(config.conv_out_kernel);
                    Conv2d::new(p, first, config.out_channels, config_out)
                })?,
                weights: params.weights(),
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
    /// [`Error::Weights`](crate::Error::Weights) if a replacement is of another name or shape than the model's.
    pub fn with_changes(&self, changes: impl Into<WeightChanges>) -> Result<Self> {
        let weights = self.weights.changed(changes.into());
        let config = self.config().clone();
        Self::new(config, &weights, weights.dtype(), weights.device())
    }

    /// The same model, in the same memory, for pictures that go on at their opposite side.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device fails.
    pub fn with_seamless(&self, seamless: Seamless) -> Result<Self> {
        let weights = self.weights.with_seamless(seamless);
        let config = self.config().clone();
        Self::new(config, &weights, weights.dtype(), weights.device())
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &UNetConfig {
        self.encoder.config()
    }

    /// The cross-attention layers, in the order in which diffusers counts attention layers: on the way down, on
    /// the way up, in the middle.
    pub fn cross_attentions(&self) -> Vec<CrossAttention> {
        cross_attention::of(&self.weights)
    }

    /// Checks that the model can work on smaller inner levels like this.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) for a block or factor out of range.
    pub fn check_shrink(&self, shrink: Shrink) -> Result<()> {
        shrink.check(self.config().skip_channels()?.len())
    }

    /// One evaluation.
    ///
    /// # Shapes
    /// See [`UNetInput`]; returns `(batch, out_channels, height, width)` in f32. Height and width may be
    /// any; odd ones are met by upsampling to the size of the level above.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::Error::InvalidArgument) if the number of timesteps, the added conditioning,
    /// residuals or `shrink` do not fit, [`Tensor`](crate::Error::Tensor) if a shape does not.
    pub fn forward(&self, input: &UNetInput<'_>) -> Result<Tensor> {
        self.forward_whole(input).map(|(_, answer)| answer)
    }

    /// One evaluation, and what went into its last block on the way up.
    fn forward_whole(&self, input: &UNetInput<'_>) -> Result<(Activation, Tensor)> {
        let _memory = Lease::of_evaluation();
        let mut encoded = self.encoder.forward(input, None)?;
        if let Some(control) = input.residuals.and_then(|r| r.control.as_ref()) {
            control.add_to(&mut encoded.skips, &mut encoded.mid)?;
        }
        let mut skips = std::mem::take(&mut encoded.skips);
        let mut x = encoded.mid.clone();
        for block in &self.up_blocks[..self.up_blocks.len() - 1] {
            x = block.forward(&x, encoded.conditioning(), &mut skips)?;
        }
        let answer = self.finish(&x, &encoded, skips)?;
        Ok((x, answer))
    }

    /// One evaluation of the outermost level alone, around what was found within.
    fn forward_shallow(&self, input: &UNetInput<'_>, features: &Activation) -> Result<Tensor> {
        let _memory = Lease::of_evaluation();
        let mut encoded = self.encoder.forward_outermost(input)?;
        let mut skips = std::mem::take(&mut encoded.skips);
        // Beyond them is what the next level begins with.
        skips.truncate(self.up_blocks[self.up_blocks.len() - 1].num_skips());
        self.finish(features, &encoded, skips)
    }

    /// The last block on the way up, and what follows.
    fn finish(
        &self,
        x: &Activation,
        encoded: &Encoded<'_>,
        mut skips: Vec<Activation>,
    ) -> Result<Tensor> {
        let last = &self.up_blocks[self.up_blocks.len() - 1];
        let x = last.forward(x, encoded.conditioning(), &mut skips)?;
        let x = self
            .conv_norm_out
            .forward_then_within(x, self.config().act_fn)?;
        Ok(self.conv_out.forward(&x)?.to_nchw()?.to_dtype(DType::F32)?)
    }
}
