//! The noise that a run starts from.

use std::ops::Range;

use candle_core::{D, Device, Tensor};

use super::GenerateRequest;
use crate::error::{Error, Result};
use crate::rng::ImageRngs;

/// Where two rows of noise point the same way, on the average, they are mixed along a straight line.
const PARALLEL: f32 = 0.9995;

impl GenerateRequest {
    /// The noise of the seeds, with some of the other seed's in it where the request has one.
    pub(super) fn draw_noise(
        &self,
        rngs: &mut ImageRngs,
        images: &Range<usize>,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor> {
        let noise = rngs.draw()?;
        let Some(variation) = self.variation else {
            return Ok(noise);
        };
        let seeds = images
            .clone()
            .map(|i| variation.seed.wrapping_add(i as u64));
        let other = ImageRngs::new(&seeds.collect::<Vec<_>>(), shape, device).draw()?;
        let rows = (0..images.len()).map(|i| {
            let (noise, other) = (noise.narrow(0, i, 1)?, other.narrow(0, i, 1)?);
            turned(&noise, &other, variation.strength)
        });
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }

    pub(super) fn check_variation(&self) -> Result<()> {
        match self.variation.map(|variation| variation.strength) {
            Some(strength) if !(0.0..=1.0).contains(&strength) => {
                Err(Error::argument("variation strength", "0 to 1", strength))
            }
            _ => Ok(()),
        }
    }
}

/// One noise turned towards another by a share of the angle between them, column by column.
///
/// Source: Shoemake, "Animating Rotation with Quaternion Curves", 1985; the columns are A1111's.
fn turned(noise: &Tensor, other: &Tensor, share: f64) -> Result<Tensor> {
    let along = D::Minus2;
    let unit = |noise: &Tensor| {
        let length = noise.sqr()?.sum_keepdim(along)?.sqrt()?;
        Ok::<_, Error>(noise.broadcast_div(&length)?)
    };
    let cosines = (unit(noise)? * unit(other)?)?.sum_keepdim(along)?;
    if cosines.mean_all()?.to_scalar::<f32>()? > PARALLEL {
        return Ok(((noise * (1.0 - share))? + (other * share)?)?);
    }
    let shape = cosines.shape().clone();
    let cosines = cosines.flatten_all()?.to_vec1::<f32>()?;
    let weights = |share: f64| {
        let weights = cosines.iter().map(|cosine| {
            let angle = cosine.clamp(-1.0, 1.0).acos();
            match angle.sin() {
                0.0 => share as f32,
                sine => (share as f32 * angle).sin() / sine,
            }
        });
        Tensor::from_vec(weights.collect::<Vec<_>>(), shape.clone(), noise.device())
    };
    let (kept, gone) = (weights(1.0 - share)?, weights(share)?);
    Ok((noise.broadcast_mul(&kept)? + other.broadcast_mul(&gone)?)?)
}
