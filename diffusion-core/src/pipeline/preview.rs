//! Looking at a run while it goes on.

use image::RgbImage;

use super::{Pipeline, Progress};
use crate::error::{Error, Result};
use crate::media;
use crate::model::Vae;
use crate::model::vae::{LatentRgb, latents_to_rgb};

impl Pipeline {
    /// The factors by which latents of this model are guessed at: SDXL's, or those of the older models, whose latents
    /// the tiny autoencoder (TAESD) shares.
    pub fn latent_rgb(&self) -> LatentRgb {
        match self.unet.config().addition_embed_type {
            Some(_) => LatentRgb::SDXL,
            None => LatentRgb::STABLE_DIFFUSION,
        }
    }

    /// What the pictures of a batch will about look like, at the size of their latents (an eighth of each side). It
    /// costs next to nothing; [`decode`](Self::decode) of [`Progress::denoised`] shows them in full.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the latents do not have four channels, [`Error::NotFinite`] if they are not
    /// numbers.
    pub fn preview(&self, progress: &Progress<'_>) -> Result<Vec<RgbImage>> {
        media::to_rgb8(&latents_to_rgb(progress.denoised, &self.latent_rgb())?)
    }

    /// What the pictures of a batch will about look like, decoded by another autoencoder of the same latents: a tiny
    /// one takes a hundredth of the time.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if its latents have other channels, [`Error::NotFinite`] if the pictures are not
    /// numbers.
    pub fn preview_with(&self, progress: &Progress<'_>, vae: &Vae) -> Result<Vec<RgbImage>> {
        let channels = progress.denoised.dim(1)?;
        if channels != vae.latent_channels() {
            let expected = format!("an autoencoder of latents with {channels} channels");
            return Err(Error::argument("preview", expected, vae.latent_channels()));
        }
        media::to_rgb8(&vae.decode(&vae.unscale(progress.denoised)?)?)
    }
}
