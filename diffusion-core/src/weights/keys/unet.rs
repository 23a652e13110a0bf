//! The UNet: `input_blocks`, `middle_block`, `output_blocks` and diffusers' levels.

use super::{KeyMap, count};

/// Modules that every UNet has, and those that some have beside.
const WHOLE: &[(&str, &str)] = &[
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    // CompVis's own code has no guidance embedding; the name is the one that converters agree on.
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// A residual block.
const RESNET: &[(&str, &str)] = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// What a UNet is made of, as far as the numbers in its tensors' names go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UNetLayout {
    /// The levels on the way down, from the highest resolution.
    pub down: Vec<UNetLevel>,
    /// Transformer blocks in the middle, 0 for a middle of one residual block; `None` if there is no middle.
    pub mid: Option<usize>,
    /// The levels on the way up, from the lowest resolution.
    pub up: Vec<UNetLevel>,
}

/// One level of a [`UNetLayout`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UNetLevel {
    /// For each residual block the number of transformer blocks behind it, 0 for no attention.
    pub depths: Vec<usize>,
    /// Whether the picture's size changes at its end.
    pub resamples: bool,
}

impl UNetLayout {
    /// Reads it off the names of CompVis's dialect, without prefix.
    pub fn from_original(has: impl Fn(&str) -> bool) -> Self {
        let is_resnet = |at: &str| has(&format!("{at}.0.in_layers.2.weight"));
        let depth = |at: &str| transformer_blocks(&has, &format!("{at}.1"));
        let mut down = vec![UNetLevel::default()];
        for i in 1.. {
            let at = format!("input_blocks.{i}");
            let last = down.len() - 1;
            if has(&format!("{at}.0.op.weight")) {
                down[last].resamples = true;
                down.push(UNetLevel::default());
            } else if is_resnet(&at) {
                down[last].depths.push(depth(&at));
            } else {
                break;
            }
        }
        let mut up = vec![UNetLevel::default()];
        let blocks = count(|i| is_resnet(&format!("output_blocks.{i}")));
        for i in 0..blocks {
            let at = format!("output_blocks.{i}");
            let last = up.len() - 1;
            up[last].depths.push(depth(&at));
            if [1, 2].iter().any(|j| has(&format!("{at}.{j}.conv.weight"))) {
                up[last].resamples = true;
                up.push(UNetLevel::default());
            }
        }
        let mid = has("middle_block.0.in_layers.2.weight").then(|| depth("middle_block"));
        for levels in [&mut down, &mut up] {
            levels.retain(|level| !level.depths.is_empty());
        }
        Self { down, mid, up }
    }

    /// Reads it off the names of diffusers' dialect.
    pub fn from_diffusers(has: impl Fn(&str) -> bool) -> Self {
        let is_resnet = |at: &str, i| has(&format!("{at}.resnets.{i}.conv1.weight"));
        let depth = |at: &str, i| transformer_blocks(&has, &format!("{at}.attentions.{i}"));
        let levels = |side: &str, sampler: &str| {
            (0..count(|i| is_resnet(&format!("{side}.{i}"), 0)))
                .map(|i| {
                    let at = format!("{side}.{i}");
                    UNetLevel {
                        depths: (0..count(|j| is_resnet(&at, j)))
                            .map(|j| depth(&at, j))
                            .collect(),
                        resamples: has(&format!("{at}.{sampler}.0.conv.weight")),
                    }
                })
                .collect()
        };
        Self {
            down: levels("down_blocks", "downsamplers"),
            mid: is_resnet("mid_block", 0).then(|| depth("mid_block", 0)),
            up: levels("up_blocks", "upsamplers"),
        }
    }

    /// The names of such a UNet, without prefix.
    pub fn key_map(&self) -> KeyMap {
        let mut map = KeyMap::default();
        for (original, diffusers) in WHOLE {
            map.add(original, diffusers);
        }
        let mut add_layer = |block: &str, level: &str, index: usize, depth: usize| {
            map.add_table(
                format_args!("{block}.0"),
                format_args!("{level}.resnets.{index}"),
                RESNET,
            );
            if depth > 0 {
                map.add(
                    format_args!("{block}.1"),
                    format_args!("{level}.attentions.{index}"),
                );
            }
        };
        let mut samplers = Vec::new();
        // The first of the input blocks is the first convolution.
        let mut block = 1;
        for (i, level) in self.down.iter().enumerate() {
            for (j, &depth) in level.depths.iter().enumerate() {
                let at = format!("input_blocks.{block}");
                add_layer(&at, &format!("down_blocks.{i}"), j, depth);
                block += 1;
            }
            if level.resamples {
                let sampler = format!("down_blocks.{i}.downsamplers.0.conv");
                samplers.push((format!("input_blocks.{block}.0.op"), sampler));
                block += 1;
            }
        }
        if let Some(depth) = self.mid {
            add_layer("middle_block", "mid_block", 0, depth);
        }
        let mut block = 0;
        for (i, level) in self.up.iter().enumerate() {
            for (j, &depth) in level.depths.iter().enumerate() {
                let at = format!("output_blocks.{block}");
                add_layer(&at, &format!("up_blocks.{i}"), j, depth);
                if level.resamples && j + 1 == level.depths.len() {
                    let place = 1 + usize::from(depth > 0);
                    let sampler = format!("up_blocks.{i}.upsamplers.0.conv");
                    samplers.push((format!("{at}.{place}.conv"), sampler));
                }
                block += 1;
            }
        }
        if self.mid.is_some_and(|depth| depth > 0) {
            map.add_table("middle_block.2", "mid_block.resnets.1", RESNET);
        }
        for (original, diffusers) in samplers {
            map.add(original, diffusers);
        }
        map
    }
}

fn transformer_blocks(has: impl Fn(&str) -> bool, attention: &str) -> usize {
    count(|i| has(&format!("{attention}.transformer_blocks.{i}.norm1.weight")))
}
