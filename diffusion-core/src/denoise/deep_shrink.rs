//! When a UNet's inner levels are smaller.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Shrink, UNet};

/// Kohya's Deep Shrink: the first part of a run works on smaller inner levels, so that a picture larger than those of
/// the model's training is laid out as one, without doubled heads.
///
/// Source: ComfyUI's `PatchModelAddDownscale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DeepShrink {
    /// Where, and by how much.
    pub shrink: Shrink,
    /// From which share of the model's timesteps on, from 0 (pure noise) to 1.
    pub start: f64,
    /// To which. Default: 0.35.
    pub end: f64,
}

impl Default for DeepShrink {
    fn default() -> Self {
        Self {
            shrink: Shrink::default(),
            start: 0.0,
            end: 0.35,
        }
    }
}

impl DeepShrink {
    /// Checks that a UNet can do it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for values out of range.
    pub fn check(&self, unet: &UNet) -> Result<()> {
        for (name, share) in [
            ("deep_shrink start", self.start),
            ("deep_shrink end", self.end),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::argument(name, "0 to 1", share));
            }
        }
        unet.check_shrink(self.shrink)
    }

    /// Whether and how a UNet of `num_train_timesteps` shrinks at a timestep.
    pub(super) fn at(&self, timestep: f64, num_train_timesteps: usize) -> Option<Shrink> {
        let last = num_train_timesteps.saturating_sub(1) as f64;
        let timestep_at = |share: f64| (1.0 - share) * last;
        // The first timesteps lie at 1000 in some schedules, above the last that was trained.
        let started = self.start <= 0.0 || timestep <= timestep_at(self.start);
        (started && timestep >= timestep_at(self.end)).then_some(self.shrink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_in_timesteps() {
        let shrink = |start, end, timestep| {
            let shrink = DeepShrink {
                start,
                end,
                ..DeepShrink::default()
            };
            shrink.at(timestep, 1000).is_some()
        };
        assert!(shrink(0.0, 0.35, 1000.0) && shrink(0.0, 0.35, 649.35));
        assert!(!shrink(0.0, 0.35, 649.0) && !shrink(0.0, 0.35, 0.0));
        assert!(!shrink(0.5, 1.0, 600.0) && shrink(0.5, 1.0, 499.5));
        assert!(shrink(0.0, 1.0, 0.0));
    }
}
