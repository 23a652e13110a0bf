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

        let factor = (self.vae.downscale() as u64).pow(2).max(1);
        let latent_pixels = (pixels / factor).saturating_mul(2);
        let config = self.unet.config();
        let mut skips = 0u64;
        let mut widest = 0u64;
        for (level, &channels) in config.block_out_channels.iter().enumerate() {
            let here = bytes(latent_pixels >> (2 * level), channels);
            // About three residual blocks a level leave a skip behind.
            skips = skips.saturating_add(here.saturating_mul(3));
            // On the way up a level reads its own and its skip's channels; the feed-forward layers of
            // its transformers are eight times as wide.
            widest = widest.max(here.saturating_mul(8));
        }
        let step = skips
            .saturating_add(widest.saturating_mul(2))
            .saturating_add(ATTENTION_BLOCK);
        decode.max(step)
    }

    /// Refuses a run that cannot fit. On devices of their own memory only the noise is made on the host.
    pub(super) fn check_memory(
        &self,
        width: usize,
        height: usize,
        batch_size: usize,
    ) -> Result<()> {
        let needed = if self.device.is_cpu() {
            self.memory_estimate(width, height, batch_size)
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
