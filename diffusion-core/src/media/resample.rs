//! Changing a picture's size as Pillow does, to the bit: columns first, then rows, weights in fixed point and 8 bits in
//! between.

use std::f64::consts::PI;
use std::ops::Range;

use image::RgbImage;

/// Bits behind the point of a weight: Pillow's for pictures of 8 bits.
const PRECISION: u32 = 32 - 8 - 2;
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

/// The picture in another size, as by Pillow's `Image.resize` with `Resampling.LANCZOS`, which diffusers prepares
/// pictures with. Of no pixels it makes black ones.
pub fn resize(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let filter = |len: u32, new_len: u32| {
        Filter::new(
            &LANCZOS,
            len as usize,
            new_len as usize,
            0..new_len as usize,
        )
    };
    if picture.is_empty() {
        return RgbImage::new(width, height);
    }
    let columns = filter(picture.width(), width);
    let rows = filter(picture.height(), height);
    let pixels = resample(picture, &columns, &rows);
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
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

/// Both passes: RGB of the output, row by row. Rows that no output pixel takes are not read.
pub(super) fn resample(picture: &RgbImage, columns: &Filter, rows: &Filter) -> Vec<u8> {
    let stride = picture.width() as usize * CHANNELS;
    let pixels = picture.as_raw();
    let inputs = rows.inputs();
    let narrow: Vec<u8> = inputs
        .clone()
        .flat_map(|y| {
            let row = &pixels[y * stride..(y + 1) * stride];
            columns.taps.iter().flat_map(move |(first, weights)| {
                std::array::from_fn::<u8, CHANNELS, _>(|c| {
                    let taken = row[first * CHANNELS + c..].iter().step_by(CHANNELS);
                    weighted(taken, weights)
                })
            })
        })
        .collect();
    let stride = columns.taps.len() * CHANNELS;
    let taps = rows.taps.iter();
    taps.flat_map(|(first, weights)| {
        let (narrow, begin) = (&narrow, (first - inputs.start) * stride);
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
