//! Inner levels at a lower resolution, against doubled anatomy in large pictures.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Activation, resize_bicubic};

/// Where a UNet works on a smaller picture than it is given. The way up gives it back its size where a skip is
/// larger.
///
/// Source: Kohya's Deep Shrink, in the form of ComfyUI's `PatchModelAddDownscale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shrink {
    /// Behind which output of the way down, as ComfyUI counts its input blocks: 0 is the first convolution, then
    /// come the blocks and the downsampling of each level. 3 is the first downsampling in Stable Diffusion.
    pub block: usize,
    /// What both sides are divided by, from 1 to 16.
    pub factor: f64,
    /// Whether the skip keeps its size.
    pub after_skip: bool,
}

impl Default for Shrink {
    fn default() -> Self {
        Self {
            block: 3,
            factor: 2.0,
            after_skip: true,
        }
    }
}

impl Shrink {
    /// Checks that a model of so many skips can do it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a block or factor out of range.
    pub(super) fn check(&self, skips: usize) -> Result<()> {
        if self.block >= skips {
            let expected = format!("0 to {} in this model", skips.saturating_sub(1));
            return Err(Error::argument("deep_shrink block", expected, self.block));
        }
        match (1.0..=16.0).contains(&self.factor) {
            true => Ok(()),
            false => Err(Error::argument(
                "deep_shrink factor",
                "1 to 16",
                self.factor,
            )),
        }
    }

    fn apply(&self, x: &Activation) -> Result<Activation> {
        let (height, width) = x.size()?;
        let shrunk = |side: usize| ((side as f64 / self.factor).round_ties_even() as usize).max(1);
        resize_bicubic(x, shrunk(height), shrunk(width))
    }
}

/// Outputs of the way down, which the way up reads.
#[derive(Debug, Default)]
pub(super) struct Skips {
    pub(super) list: Vec<Activation>,
    pub(super) shrink: Option<Shrink>,
}

impl Skips {
    /// Keeps an output and returns what the way down goes on with.
    pub(super) fn keep(&mut self, x: Activation) -> Result<Activation> {
        let place = self.list.len();
        let Some(shrink) = self.shrink.filter(|shrink| shrink.block == place) else {
            self.list.push(x.clone());
            return Ok(x);
        };
        let shrunk = shrink.apply(&x)?;
        self.list.push(match shrink.after_skip {
            true => x,
            false => shrunk.clone(),
        });
        Ok(shrunk)
    }
}
