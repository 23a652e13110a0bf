//! What a run will need, before it starts.

use super::Pipeline;
use crate::device::available_memory;
use crate::error::{Error, Result};
use crate::model::Vae;
use crate::nn::scores_at_once;

/// Copies of a layer's activation that live at once at the peak: input, its padded or re-laid form,
/// output, and the shortcut.
const LIVE_COPIES: u64 = 6;
/// Bytes of an f32.
const F32: u64 = 4;
/// Colours of a pixel.
const RGB: u64 = 3;
/// Bytes of an attention score in the three forms that softmax passes through.
const SCORE: u64 = 3 * F32;

impl Pipeline {
    /// About how many bytes a run needs at its peak beside the weights, for pictures of `width` x `height`
    /// worked on `batch_size` at once. Saturates for absurd sizes.
    pub fn memory_estimate(&self, width: usize, height: usize, batch_size: usize) -> u64 {
        self.run_estimate(&self.vae, (width, height), batch_size)
    }

    fn run_estimate(&self, vae: &Vae, (width, height): (usize, usize), batch_size: usize) -> u64 {
        let (width, height, batch) = (width as u64, height as u64, batch_size as u64);
        let pixels = width.saturating_mul(height).saturating_mul(batch);
        let bytes = |values: u64| values.saturating_mul(F32).saturating_mul(LIVE_COPIES);
        // Of tiles, more than the picture is no longer the most.
        let decode = bytes(vae.peak_values(height, width, batch))
            .saturating_add(bytes(pixels.saturating_mul(RGB)));

        let levels = self.level_bytes(pixels);
        // On the way up a level reads its own and its skip's channels; the feed-forward layers of
        // its transformers are eight times as wide.
        let widest = levels.iter().max().map_or(0, |most| most.saturating_mul(8));
        let scores = match self.device.is_cpu() {
            // Attention there has none but those of a few queries.
            true => 0,
            false => scores_at_once(self.latent_pixels(width.saturating_mul(height))),
        };
        let step = skip_bytes(&levels)
            .saturating_add(widest.saturating_mul(2))
            .saturating_add(scores.saturating_mul(SCORE));
        decode.max(step)
    }

    /// What the residuals of ControlNets take beside, which are as large as the skips: their sum, and one more.
    fn residuals_estimate(&self, width: usize, height: usize, batch_size: usize) -> u64 {
        let pixels = (width as u64).saturating_mul(height as u64);
        let levels = self.level_bytes(pixels.saturating_mul(batch_size as u64));
        skip_bytes(&levels).saturating_mul(2)
    }

    fn latent_pixels(&self, pixels: u64) -> u64 {
        pixels / (self.vae.downscale() as u64).pow(2).max(1)
    }

    /// Bytes of an activation of the UNet under guidance, level by level.
    fn level_bytes(&self, pixels: u64) -> Vec<u64> {
        let latent_pixels = self.latent_pixels(pixels).saturating_mul(2);
        let channels = self.unet.config().block_out_channels.iter();
        let bytes = channels.enumerate().map(|(level, &channels)| {
            let pixels = latent_pixels >> (2 * level);
            pixels.saturating_mul(channels as u64).saturating_mul(F32)
        });
        bytes.collect()
    }

    /// Refuses a run that cannot fit. On devices of their own memory only the noise is made on the host.
    pub(super) fn check_memory(
        &self,
        vae: &Vae,
        (width, height): (usize, usize),
        batch_size: usize,
        has_controls: bool,
    ) -> Result<()> {
        let needed = if self.device.is_cpu() {
            let residuals = match has_controls {
                true => self.residuals_estimate(width, height, batch_size),
                false => 0,
            };
            let run = self.run_estimate(vae, (width, height), batch_size);
            run.saturating_add(residuals)
        } else {
            let pixels = (width as u64).saturating_mul(height as u64);
            pixels.saturating_mul(batch_size as u64).saturating_mul(F32)
        };
        match available_memory() {
            Some(available) if needed > available => {
                let hint = format!(
                    "{width} x {height} pixels, {batch_size} at once: ask for fewer or smaller pictures"
                );
                Err(Error::OutOfMemory {
                    needed,
                    available,
                    hint,
                })
            }
            _ => Ok(()),
        }
    }
}

/// About three residual blocks a level leave a skip behind.
fn skip_bytes(levels: &[u64]) -> u64 {
    let three = levels.iter().map(|bytes| bytes.saturating_mul(3));
    three.fold(0, u64::saturating_add)
}
