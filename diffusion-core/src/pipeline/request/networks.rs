//! What happens within the networks.

use super::GenerateRequest;
use crate::denoise::DeepShrink;
use crate::model::VaeTiling;
use crate::nn::Seamless;

impl GenerateRequest {
    /// Perturbed-attention guidance: how far to go away from what the model draws with blind self-attention, finite
    /// and at least 0. It gives clearer structure, with a prompt or without, for half as much time again (twice
    /// without guidance). Default: 0, off; usual is 3.
    pub fn pag_scale(mut self, scale: f64) -> Self {
        self.pag_scale = scale;
        self
    }

    /// What [`pag_scale`](Self::pag_scale) loses with each timestep below 1000, until nothing is left; finite and at
    /// least 0. Default: 0.
    pub fn pag_adaptive_scale(mut self, scale: f64) -> Self {
        self.pag_adaptive_scale = scale;
        self
    }

    /// The self-attention layers that are blind, by [parts of their
    /// names](crate::UNet::perturbed_attention). Default: `mid`.
    pub fn pag_layers(mut self, layers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.pag_layers = layers.into_iter().map(Into::into).collect();
        self
    }

    /// Smaller inner levels in the first part of the run, for pictures larger than those that the model was trained
    /// on: they are then laid out as one picture. Default: off.
    pub fn deep_shrink(mut self, deep_shrink: DeepShrink) -> Self {
        self.deep_shrink = Some(deep_shrink);
        self
    }

    /// Asks the inner levels of the UNet, which are most of the work, in each `interval`-th evaluation alone, and takes
    /// over what they found in the others: faster, for pictures that are a little different. Evaluations with
    /// ControlNets, T2I-Adapters or Deep Shrink are always whole. From 1, all, to 1000. Default: 1; usual is 2 or 3.
    pub fn deep_cache(mut self, interval: usize) -> Self {
        self.deep_cache = interval;
        self
    }

    /// After how many steps the text is read no more (T-GATE): guidance ends there, and cross-attention answers what it
    /// found in the last of them, the mean over both prompts. Faster, for pictures that differ in details. It takes one
    /// prompt at a time. From 1. Default: none; usual is 10 of 25 steps.
    pub fn tgate(mut self, num_steps: usize) -> Self {
        self.tgate = Some(num_steps);
        self
    }

    /// Which share of the tokens is merged with others, similar to them, for self-attention in the UNet's outermost
    /// level that has attention (ToMe): faster the larger the picture is, and a little different. From 0, none, to 0.9;
    /// 3/4 is the most that can be. Default: 0; usual is 0.5.
    pub fn token_merging(mut self, ratio: f64) -> Self {
        self.token_merging = ratio;
        self
    }

    /// In which directions copies of the picture shall fit side by side. ControlNets do not know of it. Default: in
    /// none.
    pub fn seamless(mut self, seamless: Seamless) -> Self {
        self.seamless = seamless;
        self
    }

    /// Whether the autoencoder works in tiles. Default: as the pipeline's own does, which is [`VaeTiling::Auto`] if
    /// nothing else was set.
    pub fn vae_tiling(mut self, tiling: VaeTiling) -> Self {
        self.vae_tiling = Some(tiling);
        self
    }

    /// Whether the autoencoder works off one picture of a batch at a time, which takes less memory. Default: no.
    pub fn vae_slicing(mut self, slicing: bool) -> Self {
        self.vae_slicing = slicing;
        self
    }
}
