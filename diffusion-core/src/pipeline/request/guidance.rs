//! How far a picture follows its prompt.

use super::GenerateRequest;
use crate::denoise::{Guidance, Window};

impl GenerateRequest {
    /// All that guidance can be told at once, in place of the methods that follow.
    pub fn guidance(mut self, guidance: Guidance) -> Self {
        self.guidance = guidance;
        self
    }

    /// How far the picture follows the prompt, from 0 to a million; see [`Guidance::scale`]. At most 1 means
    /// without guidance, in half the time. Models that are told the scale (LCM) take half the time at any.
    /// Default: 7.5.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.guidance.scale = scale;
        self
    }

    /// Scales along the run in place of one; see [`Guidance::curve`].
    pub fn guidance_curve(mut self, scales: impl Into<Vec<f64>>) -> Self {
        self.guidance.curve = scales.into();
        self
    }

    /// Guides the steps between two shares of the run alone, each from 0 to 1; see [`Guidance::window`].
    /// Default: all.
    pub fn guidance_interval(mut self, start: f64, end: f64) -> Self {
        self.guidance.window = Window { start, end };
        self
    }

    /// Gives guided pictures back the contrast that guidance takes, from 0 to 1; see [`Guidance::rescale`].
    /// Default: 0.
    pub fn guidance_rescale(mut self, share: f64) -> Self {
        self.guidance.rescale = share;
        self
    }

    /// How far the picture follows the one that an instruction is to change, from 0 to a million; see
    /// [`Guidance::image_scale`]. Default: 1.5.
    pub fn image_guidance_scale(mut self, scale: f64) -> Self {
        self.guidance.image_scale = scale;
        self
    }

    /// CFG-Zero* with this many steps at the start that change nothing; see [`Guidance::zero_star`]. Default:
    /// off.
    pub fn cfg_zero_star(mut self, zero_steps: usize) -> Self {
        self.guidance.zero_star = Some(zero_steps);
        self
    }
}
