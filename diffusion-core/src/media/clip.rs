//! Pictures as CLIP's vision model takes them.

use candle_core::{Device, Tensor};
use image::RgbImage;

use super::resample::{BICUBIC, CHANNELS, Filter, resample};
use crate::error::{Error, Result};

/// Mean and standard deviation of the colours that CLIP was trained on, of values from 0 to 1.
const MEAN: [f32; CHANNELS] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; CHANNELS] = [0.26862954, 0.261_302_6, 0.275_777_1];

/// Turns a picture into what CLIP's vision model takes: the shorter side brought to `side` pixels by a bicubic
/// filter, the square in the middle cut out, colours brought to CLIP's mean and deviation.
///
/// The levels are those of transformers' `CLIPImageProcessor` on Pillow, bit for bit: weights in fixed point, and
/// both passes round and clip to 8 bits. What is not in the square is not computed, so memory does not grow
/// with the picture's proportions.
///
/// # Shapes
/// Returns `(1, 3, side, side)`, f32.
///
/// # Errors
/// [`Error::InvalidArgument`] for a picture or a `side` without pixels, [`Error::Tensor`] if the device fails.
pub fn to_clip(picture: &RgbImage, side: usize, device: &Device) -> Result<Tensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if width == 0 || height == 0 || side == 0 {
        let found = format!("{width} x {height}, to be brought to {side}");
        return Err(Error::argument(
            "picture",
            "sides of at least 1 pixel",
            found,
        ));
    }
    let shorter = width.min(height);
    let middle = |length: usize| {
        // The longer side is rounded down, as in transformers.
        let resized = (side as u64 * length as u64 / shorter as u64) as usize;
        let first = (resized - side) / 2;
        Filter::new(&BICUBIC, length, resized, first..first + side)
    };
    let square = resample(picture, &middle(width), &middle(height));

    let levels: Vec<f32> = (0..CHANNELS)
        .flat_map(|c| {
            square
                .iter()
                .skip(c)
                .step_by(CHANNELS)
                .map(move |&v| (c, v))
        })
        .map(|(c, level)| (f32::from(level) / 255.0 - MEAN[c]) / STD[c])
        .collect();
    Ok(Tensor::from_vec(levels, (1, CHANNELS, side, side), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thin_pictures_need_no_memory() -> Result<()> {
        // Brought to 224 pixels in whole, these would be 22 million pixels long.
        for (width, height) in [(1, 100_000), (100_000, 1)] {
            let picture = RgbImage::from_pixel(width, height, image::Rgb([255, 0, 128]));
            let tensor = to_clip(&picture, 224, &Device::Cpu)?;
            assert_eq!(tensor.dims(), [1, 3, 224, 224]);
            let red = tensor.flatten_all()?.to_vec1::<f32>()?[0];
            assert!((red - (1.0 - MEAN[0]) / STD[0]).abs() < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn nothing_is_not_a_picture() {
        for (width, height, side) in [(0, 5, 8), (5, 0, 8), (5, 5, 0)] {
            let refused = to_clip(&RgbImage::new(width, height), side, &Device::Cpu);
            assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
        }
    }
}
