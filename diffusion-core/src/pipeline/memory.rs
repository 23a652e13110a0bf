//! What a run will need, before it starts.

use super::Pipeline;
use crate::device::available_memory;
use crate::error::{Error, Result};

/// Copies of a layer's activation that live at once at the peak: input, its padded or re-laid form,
/// output, and the shortcut.
const LIVE_COPIES: u64 = 6;
/// Bytes of an f32.
const F32: u64 = 4;
/// Blocks of attention scores: elements, as bytes, in the three forms that softmax passes through.
const ATTENTION_BLOCK: u64 = 3 * F32 * (1 << 24);

impl Pipeline {
    /// About how many bytes a run needs at its peak beside the weights, for pictures of `width` x `height`
    /// worked on `batch_size` at once. Saturates for absurd sizes.
    pub fn memory_estimate(&self, width: usize, height: usize, batch_size: usize) -> u64 {
        let (width, height, batch) = (width as u64, height as u64, batch_size as u64);
        let pixels = width.saturating_mul(height).saturating_mul(batch);
        let bytes = |pixels: u64, channels: usize| {
            pixels.saturating_mul(channels as u64).saturating_mul(F32)
        };
        let decode = bytes(pixels, self.vae.peak_channels()).saturating_mul(LIVE_COPIES);

        let levels = self.level_bytes(pixels);
        // On the way up a level reads its own and its skip's channels; the feed-forward layers of
        // its transformers are eight times as wide.
        let widest = levels.iter().max().map_or(0, |most| most.saturating_mul(8));
        let step = skip_bytes(&levels)
            .saturating_add(widest.saturating_mul(2))
            .saturating_add(ATTENTION_BLOCK);
        decode.max(step)
    }

    /// What the residuals of ControlNets take beside, which are as large as the skips: their sum, and one more.
    fn residuals_estimate(&self, width: usize, height: usize, batch_size: usize) -> u64 {
        let pixels = (width as u64).saturating_mul(height as u64);
        let levels = self.level_bytes(pixels.saturating_mul(batch_size as u64));
        skip_bytes(&levels).saturating_mul(2)
    }

    /// Bytes of an activation of the UNet under guidance, level by level.
    fn level_bytes(&self, pixels: u64) -> Vec<u64> {
        let factor = (self.vae.downscale() as u64).pow(2).max(1);
        let latent_pixels = (pixels / factor).saturating_mul(2);
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
        width: usize,
        height: usize,
        batch_size: usize,
        has_controls: bool,
    ) -> Result<()> {
        let needed = if self.device.is_cpu() {
            let residuals = match has_controls {
                true => self.residuals_estimate(width, height, batch_size),
                false => 0,
            };
            let run = self.memory_estimate(width, height, batch_size);
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
