//! What a UNet sees beside the latents.

use std::ops::Range;

use candle_core::Tensor;

use super::guidance::{repeated, rows_of};
use crate::error::Result;

/// What a UNet is given as channels beside the latents.
#[derive(Debug, Clone)]
pub enum Channels {
    /// `(1 or batch, channels, height / 8, width / 8)`: told with and without the prompt, as a mask and what it
    /// leaves of a picture.
    Always(Tensor),
    /// The same: a picture to change, for which the model is also asked without it.
    Picture(Tensor),
}

impl Channels {
    /// The rows of some of `num_images` pictures.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the range does not fit.
    pub fn of_images(&self, images: &Range<usize>, num_images: usize) -> Result<Self> {
        let rows = |tensor: &Tensor| rows_of(tensor, images, num_images);
        Ok(match self {
            Self::Always(tensor) => Self::Always(rows(tensor)?),
            Self::Picture(tensor) => Self::Picture(rows(tensor)?),
        })
    }

    /// The rows of each part of a batch.
    pub(super) fn parts(&self, count: usize, batch: usize) -> Result<Tensor> {
        let parts = match self {
            Self::Always(tensor) => vec![repeated(tensor, batch)?; count],
            Self::Picture(tensor) => {
                let picture = repeated(tensor, batch)?;
                let mut parts = vec![picture.clone(); count];
                if count > 1 {
                    parts[0] = picture.zeros_like()?;
                }
                parts
            }
        };
        Ok(Tensor::cat(&parts, 0)?)
    }
}
