//! Changing a picture's size as Pillow does, to the bit: columns first, then rows (the other way about where only
//! rows become fewer), weights in fixed point and 8 bits in between.

use std::f64::consts::PI;
use std::ops::Range;

use image::RgbImage;
use serde::{Deserialize, Serialize};

/// Bits behind the point of a weight: Pillow's for pictures of 8 bits.
const PRECISION: u32 = 32 - 8 - 2;
/// What rounds a sum of weighted levels to the nearest.
const HALF: i32 = 1 << (PRECISION - 1);
pub(super) const CHANNELS: usize = 3;

/// How much pixels count by their distance, in pixels of the smaller picture.
pub(super) struct Kernel {
    reach: f64,
    weight: fn(f64) -> f64,
}

/// Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, equation 4.
pub(super) const BICUBIC: Kernel = Kernel {
    reach: 2.0,
    weight: |x| {
        // Keys' constant, Pillow's choice.
        const A: f64 = -0.5;
        match x.abs() {
            x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    },
};

/// Source: Duchon, "Lanczos Filtering in One and Two Dimensions", 1979, with three lobes.
const LANCZOS: Kernel = Kernel {
    reach: 3.0,
    weight: |x| {
        let sinc = |x: f64| match x * PI {
            0.0 => 1.0,
            x => x.sin() / x,
        };
        match (-3.0..3.0).contains(&x) {
            true => sinc(x) * sinc(x / 3.0),
            false => 0.0,
        }
    },
};

/// Straight lines between pixels.
const BILINEAR: Kernel = Kernel {
    reach: 1.0,
    weight: |x| (1.0 - x.abs()).max(0.0),
};

/// Pillow's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resampling {
    /// The nearest pixel.
    Nearest,
    /// Straight lines between pixels.
    Bilinear,
    /// Cubic curves.
    Bicubic,
    /// Windowed sines with three lobes, which diffusers prepares pictures with.
    #[default]
    Lanczos,
}

/// The picture in another size, as by Pillow's `Image.resize`. Of no pixels it makes black ones.
pub fn resize(picture: &RgbImage, width: u32, height: u32, resampling: Resampling) -> RgbImage {
    let filter = |len: u32, new_len: u32| {
        let (len, new_len) = (len as usize, new_len as usize);
        let kernel = match resampling {
            Resampling::Nearest => return Filter::nearest(len, new_len),
            Resampling::Bilinear => &BILINEAR,
            Resampling::Bicubic => &BICUBIC,
            Resampling::Lanczos => &LANCZOS,
        };
        Filter::new(kernel, len, new_len, 0..new_len)
    };
    if picture.is_empty() || width == 0 || height == 0 {
        return RgbImage::new(width, height);
    }
    let columns = filter(picture.width(), width);
    let rows = filter(picture.height(), height);
    if width > picture.width() && height < picture.height() {
        let pixels = resample(&transposed(picture), &rows, &columns);
        return transposed(&RgbImage::from_raw(height, width, pixels).unwrap_or_default());
    }
    let pixels = resample(picture, &columns, &rows);
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
}

/// Columns as rows.
fn transposed(picture: &RgbImage) -> RgbImage {
    RgbImage::from_fn(picture.height(), picture.width(), |x, y| {
        *picture.get_pixel(y, x)
    })
}

/// The weights of a run of output pixels along one axis.
pub(super) struct Filter {
    /// For each output pixel the first input pixel that it takes, and the weight of this and the next.
    taps: Vec<(usize, Vec<i32>)>,
}

impl Filter {
    /// The pixels `outputs` of an axis that is brought from `len` to `new_len` pixels.
    pub(super) fn new(kernel: &Kernel, len: usize, new_len: usize, outputs: Range<usize>) -> Self {
        let ratio = len as f64 / new_len as f64;
        let taps = outputs.map(|at| match len == new_len {
            // Pillow leaves an axis of the right length alone.
            true => (at, vec![1 << PRECISION]),
            false => kernel.window(len, ratio, (at as f64 + 0.5) * ratio),
        });
        Self {
            taps: taps.collect(),
        }
    }

    fn nearest(len: usize, new_len: usize) -> Self {
        let ratio = len as f64 / new_len as f64;
        let taps =
            (0..new_len).map(|at| (((at as f64 + 0.5) * ratio) as usize, vec![1 << PRECISION]));
        Self {
            taps: taps.collect(),
        }
    }

    /// A row of pixels in its new length.
    fn apply(&self, row: &[u8]) -> Vec<u8> {
        let places = self
            .taps
            .iter()
            .flat_map(|tap| (0..CHANNELS).map(move |c| (tap, c)));
        let levels = places.map(|((first, weights), channel)| {
            let levels = row[first * CHANNELS + channel..].iter().step_by(CHANNELS);
            let products = levels
                .zip(weights)
                .map(|(&level, weight)| i32::from(level) * weight);
            to_level(HALF + products.sum::<i32>())
        });
        levels.collect()
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

impl Kernel {
    /// The first input pixel around a centre that counts, and the weights from there on. Smaller pictures widen
    /// the kernel, which keeps them free of aliases.
    fn window(&self, len: usize, ratio: f64, center: f64) -> (usize, Vec<i32>) {
        let widening = ratio.max(1.0);
        let (reach, narrowing) = (self.reach * widening, widening.recip());
        let first = (center - reach + 0.5).max(0.0) as usize;
        let end = ((center + reach + 0.5) as usize).min(len);
        let weights: Vec<f64> = (first..end)
            .map(|at| (self.weight)((at as f64 - center + 0.5) * narrowing))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << PRECISION)).round() as i32;
        (first, weights.into_iter().map(fixed).collect())
    }
}

/// Both passes: RGB of the output, row by row. Rows that no output pixel takes are not read. Each other row is
/// added to the sums that it counts in and forgotten, so memory does not grow with the picture's proportions.
pub(super) fn resample(picture: &RgbImage, columns: &Filter, rows: &Filter) -> Vec<u8> {
    let stride = picture.width() as usize * CHANNELS;
    let line = columns.taps.len() * CHANNELS;
    let mut sums = vec![HALF; line * rows.taps.len()];
    let mut done = 0;
    for y in rows.inputs() {
        let narrow = columns.apply(&picture.as_raw()[y * stride..(y + 1) * stride]);
        // Later windows neither begin nor end earlier.
        let ended = |(first, weights): &&(usize, Vec<i32>)| first + weights.len() <= y;
        done += rows.taps[done..].iter().take_while(ended).count();
        let begun = rows.taps[done..]
            .iter()
            .take_while(|(first, _)| *first <= y);
        for ((first, weights), sums) in begun.zip(sums[done * line..].chunks_exact_mut(line)) {
            let weight = weights[y - first];
            for (sum, &level) in sums.iter_mut().zip(&narrow) {
                *sum += i32::from(level) * weight;
            }
        }
    }
    sums.into_iter().map(to_level).collect()
}

/// A sum of weighted levels and a half, in 8 bits.
fn to_level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_any_proportions_keep_their_colour() {
        let red = image::Rgb([255, 0, 128]);
        for (width, height) in [(1, 100_000), (100_000, 1), (1, 1)] {
            let picture = RgbImage::from_pixel(width, height, red);
            let resized = resize(&picture, 40, 8, Resampling::Lanczos);
            assert!(resized.pixels().all(|pixel| *pixel == red));
        }
        for (width, height) in [(0, 0), (0, 5), (5, 0)] {
            assert_eq!(
                resize(&RgbImage::new(width, height), 3, 2, Resampling::Nearest),
                RgbImage::new(3, 2)
            );
            let none = resize(&RgbImage::new(3, 2), width, height, Resampling::Lanczos);
            assert_eq!(none.len(), 0);
        }
    }
}
