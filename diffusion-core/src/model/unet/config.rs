//! The `config.json` of a `UNet2DConditionModel`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{PerLevel, check_levels, parse_model, require_defaults};
use crate::error::{Error, Result};
use crate::nn::{ActivationFunction, TimeScaleShift};

/// The kinds of blocks on the way down and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum BlockType {
    /// Residual blocks only.
    #[serde(alias = "DownBlock2D", alias = "UpBlock2D")]
    Plain,
    /// Residual blocks, each followed by a spatial transformer.
    #[serde(alias = "CrossAttnDownBlock2D", alias = "CrossAttnUpBlock2D")]
    CrossAttention,
}

/// The kinds of blocks in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum MidBlockType {
    /// One residual block.
    #[serde(rename = "UNetMidBlock2D")]
    Plain,
    /// Two residual blocks around a spatial transformer.
    #[serde(rename = "UNetMidBlock2DCrossAttn")]
    CrossAttention,
}

/// Vectors beside the text that are added to the timestep's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// The pooled text embedding and picture sizes, as SDXL.
    TextTime,
}

/// One number of transformer layers, or one for each attention of a block.
pub type TransformerLayers = PerLevel<usize>;

/// The `config.json` of a `UNet2DConditionModel`, field by field as diffusers names them. A list has one
/// value for each level, from the highest resolution down.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct UNetConfig {
    /// Side of the training latents, in latent pixels: one number, or height and width.
    pub sample_size: Option<PerLevel<usize>>,
    /// Channels in.
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
    /// Whether the input is mapped from `[0, 1]` to `[-1, 1]`.
    pub center_input_sample: bool,
    /// Whether the sinusoidal embedding has the cosines first.
    pub flip_sin_to_cos: bool,
    /// Shift of the sinusoidal embedding's frequencies.
    pub freq_shift: f64,
    /// The blocks on the way down.
    pub down_block_types: Vec<BlockType>,
    /// The block in the middle, if any.
    pub mid_block_type: Option<MidBlockType>,
    /// The blocks on the way up.
    pub up_block_types: Vec<BlockType>,
    /// Whether the first attention of a transformer block attends to the text too.
    pub only_cross_attention: PerLevel<bool>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level on the way down; one more on the way up.
    pub layers_per_block: PerLevel<usize>,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: usize,
    /// The middle's residual sums are divided by this.
    pub mid_block_scale_factor: f64,
    /// Non-linearity of the residual blocks.
    pub act_fn: ActivationFunction,
    /// Groups of the norms.
    pub norm_num_groups: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Channels of the text conditioning.
    pub cross_attention_dim: PerLevel<usize>,
    /// Transformer layers of each attention, a number for each level or a list for each level.
    pub transformer_layers_per_block: PerLevel<TransformerLayers>,
    /// The same for the way up, from the lowest resolution, where it is not the mirror image.
    pub reverse_transformer_layers_per_block: Option<Vec<TransformerLayers>>,
    /// The number of heads (not their width: the name is historical).
    pub attention_head_dim: PerLevel<usize>,
    /// Whether the transformers' projections are linear layers, not 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Vectors that are added to the timestep's.
    pub addition_embed_type: Option<AdditionEmbedType>,
    /// Width of each size's embedding under [`AdditionEmbedType::TextTime`].
    pub addition_time_embed_dim: Option<usize>,
    /// Input width of the added embedding.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Whether attention scores are f32 whatever the activations are.
    pub upcast_attention: bool,
    /// How the timestep enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Width of the timestep's vector, where it is not four times the first level's channels.
    pub time_embedding_dim: Option<usize>,
    /// Width of the guidance embedding of distilled models.
    pub time_cond_proj_dim: Option<usize>,
    /// Side of the first convolution's kernel.
    pub conv_in_kernel: usize,
    /// Side of the last convolution's kernel.
    pub conv_out_kernel: usize,
}

impl Default for UNetConfig {
    fn default() -> Self {
        use BlockType::{CrossAttention, Plain};
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![CrossAttention, CrossAttention, CrossAttention, Plain],
            mid_block_type: Some(MidBlockType::CrossAttention),
            up_block_types: vec![Plain, CrossAttention, CrossAttention, CrossAttention],
            only_cross_attention: PerLevel::Same(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerLevel::Same(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            act_fn: ActivationFunction::Silu,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerLevel::Same(1280),
            transformer_layers_per_block: PerLevel::Same(PerLevel::Same(1)),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerLevel::Same(8),
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            upcast_attention: false,
            resnet_time_scale_shift: TimeScaleShift::Default,
            time_embedding_dim: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
        }
    }
}

impl UNetConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] if it does not parse, [`Error::Unsupported`] for a setting that this version
    /// does not know and that would change the picture, [`Error::InvalidArgument`] if its lists do not fit
    /// together.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        require_defaults(
            "UNet2DConditionModel",
            json,
            &[
                ("attention_type", json!("default")),
                ("class_embed_type", Value::Null),
                ("class_embeddings_concat", json!(false)),
                ("cross_attention_norm", Value::Null),
                ("dual_cross_attention", json!(false)),
                ("encoder_hid_dim", Value::Null),
                ("encoder_hid_dim_type", Value::Null),
                ("num_attention_heads", Value::Null),
                ("num_class_embeds", Value::Null),
                ("time_embedding_act_fn", Value::Null),
                ("time_embedding_type", json!("positional")),
                ("timestep_post_act", Value::Null),
            ],
        )?;
        let mut config: Self = parse_model(path, json)?;
        if json.get("mid_block_type").is_some_and(Value::is_null) {
            config.mid_block_type = None;
        }
        config.check()?;
        Ok(config)
    }

    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the setting that does not.
    pub fn check(&self) -> Result<()> {
        check_levels("block_out_channels", &self.block_out_channels)?;
        let levels = self.block_out_channels.len();
        for (name, found) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ] {
            if found != levels {
                let expected = format!("one for each of {levels} block_out_channels");
                return Err(Error::argument(name, expected, found));
            }
        }
        match self.downsample_padding {
            0 | 1 => Ok(()),
            other => Err(Error::argument("downsample_padding", "0 or 1", other)),
        }
    }

    /// Width of the timestep's vector in the residual blocks.
    pub fn time_embed_dim(&self) -> usize {
        let first = self.block_out_channels.first().copied().unwrap_or(0);
        self.time_embedding_dim.unwrap_or(4 * first)
    }

    /// The channels of each of the skips, the first convolution's first.
    pub(in crate::model) fn skip_channels(&self) -> Result<Vec<usize>> {
        let levels = self.block_out_channels.len();
        let layers = self.layers_per_block.to_vec("layers_per_block", levels)?;
        let mut skips = vec![self.block_out_channels[0]];
        for (i, (&channels, layers)) in self.block_out_channels.iter().zip(layers).enumerate() {
            let downsamplers = usize::from(i + 1 < levels);
            skips.extend(vec![channels; layers.saturating_add(downsamplers)]);
        }
        Ok(skips)
    }

    /// The channels of the text that the way down and the middle attend to; `None` without attention there.
    pub(in crate::model) fn context_width(&self) -> Result<Option<usize>> {
        let levels = self.block_out_channels.len();
        let widths = self
            .cross_attention_dim
            .to_vec("cross_attention_dim", levels)?;
        let depths = &self.transformer_layers_per_block;
        let depths = depths.to_vec("transformer_layers_per_block", levels)?;
        let has_blocks = |level: usize| match &depths[level] {
            PerLevel::Same(count) => *count > 0,
            PerLevel::Each(counts) => counts.iter().any(|&count| count > 0),
        };
        let attends = |level: &usize| {
            let middle = self.mid_block_type.filter(|_| level + 1 == levels);
            let kind = self.down_block_types[*level];
            let is_cross =
                kind == BlockType::CrossAttention || middle == Some(MidBlockType::CrossAttention);
            is_cross && has_blocks(*level)
        };
        Ok((0..levels).find(attends).map(|level| widths[level]))
    }
}
