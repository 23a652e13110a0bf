//! Pictures as CLIP's vision model takes them.

use std::ops::Range;

use candle_core::{Device, Tensor};
use image::RgbImage;

use crate::error::{Error, Result};

/// Mean and standard deviation of the colours that CLIP was trained on, of values from 0 to 1.
const MEAN: [f32; CHANNELS] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; CHANNELS] = [0.26862954, 0.261_302_6, 0.275_777_1];

const CHANNELS: usize = 3;

/// Binary places of Pillow's weights.
const PRECISION: u32 = 22;
/// Reach of the cubic, in pixels of the smaller picture.
const SUPPORT: f64 = 2.0;
/// Keys' constant, Pillow's choice.
const A: f64 = -0.5;

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
    // The longer side is rounded down, as in transformers.
    let resized = |length: usize| (side as u64 * length as u64 / shorter as u64) as usize;
    let columns = Filter::middle(width, resized(width), side);
    let rows = Filter::middle(height, resized(height), side);
    let square = resample(picture, &columns, &rows);

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

/// The weights of a run of output pixels along one axis.
struct Filter {
    /// For each output pixel the first input pixel that it takes, and the weight of this and the next.
    taps: Vec<(usize, Vec<i32>)>,
}

impl Filter {
    /// The `count` pixels in the middle of an axis that is brought from `input` to `output` pixels.
    fn middle(input: usize, output: usize, count: usize) -> Self {
        let first = (output - count) / 2;
        let scale = input as f64 / output as f64;
        let taps = (first..first + count).map(|at| match input == output {
            // Pillow leaves an axis of the right length alone.
            true => (at, vec![1 << PRECISION]),
            false => Self::weights(input, scale, (at as f64 + 0.5) * scale),
        });
        Self {
            taps: taps.collect(),
        }
    }

    /// Smaller pictures widen the filter, which keeps them free of aliases.
    fn weights(input: usize, scale: f64, centre: f64) -> (usize, Vec<i32>) {
        let widening = scale.max(1.0);
        let reach = SUPPORT * widening;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(input);
        let cubics: Vec<f64> = (first..end)
            .map(|at| cubic((at as f64 - centre + 0.5) / widening))
            .collect();
        let sum: f64 = cubics.iter().sum();
        let unit = f64::from(1 << PRECISION);
        let weights = cubics.iter().map(|w| (w / sum * unit).round() as i32);
        (first, weights.collect())
    }

    /// The input pixels that any output pixel takes.
    fn inputs(&self) -> Range<usize> {
        let ends = self
            .taps
            .iter()
            .map(|(first, weights)| first + weights.len());
        let first = self.taps.iter().map(|(first, _)| *first).min();
        first.unwrap_or(0)..ends.max().unwrap_or(0)
    }
}

/// Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, equation 4.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Both passes, columns first: RGB of the output, row by row.
fn resample(picture: &RgbImage, columns: &Filter, rows: &Filter) -> Vec<u8> {
    let stride = picture.width() as usize * CHANNELS;
    let pixels = picture.as_raw();
    let inputs = rows.inputs();
    let narrow: Vec<u8> = inputs
        .clone()
        .flat_map(|y| {
            let row = &pixels[y * stride..(y + 1) * stride];
            let taps = columns.taps.iter();
            taps.flat_map(move |(first, weights)| {
                std::array::from_fn::<u8, CHANNELS, _>(|c| {
                    let taken = row[first * CHANNELS + c..].iter().step_by(CHANNELS);
                    weighted(taken, weights)
                })
            })
        })
        .collect();
    let stride = columns.taps.len() * CHANNELS;
    let below = |first: usize| (first - inputs.start) * stride;
    let taps = rows.taps.iter();
    taps.flat_map(|(first, weights)| {
        let (narrow, begin) = (&narrow, below(*first));
        (0..stride).map(move |x| weighted(narrow[begin + x..].iter().step_by(stride), weights))
    })
    .collect()
}

/// A weighted sum, rounded to 8 bits.
fn weighted<'a>(levels: impl Iterator<Item = &'a u8>, weights: &[i32]) -> u8 {
    let half = 1 << (PRECISION - 1);
    let sum = levels.zip(weights).fold(half, |sum, (&level, weight)| {
        sum + i32::from(level) * weight
    });
    (sum >> PRECISION).clamp(0, 255) as u8
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
