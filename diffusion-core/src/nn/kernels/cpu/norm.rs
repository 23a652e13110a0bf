//! Group and layer normalisation.

use super::dispatch::{self, Precision, Work};
use super::math;
use super::simd::{Kernel, Simd};
use super::threads::{Shared, for_each, for_portions};

/// Pixels whose sums are f32; those of a whole image are f64.
const PIXELS: usize = 128;

/// What normalised values are multiplied by, and what is added to them, for each channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f64,
}

/// Normalises groups of channels over all pixels of each of `batch` images, and then takes `x / (1 + e^-x)` if asked.
///
/// # Shapes
/// `x` and `out`: `(batch, pixels, channels)`.
///
/// # Panics
/// If lengths do not fit.
pub(crate) fn group_norm(
    x: &[f32],
    batch: usize,
    groups: usize,
    affine: Affine<'_>,
    silu: bool,
    out: &mut [f32],
) {
    assert_eq!(out.len(), x.len());
    let scale_shift = scales_of(x, batch, groups, affine);
    // SAFETY: what is read is as long as what is written.
    unsafe { scale(x.as_ptr(), out, batch, &scale_shift, silu) };
}

/// As [`group_norm`], in place.
///
/// # Panics
/// If lengths do not fit.
pub(crate) fn group_norm_in_place(
    x: &mut [f32],
    batch: usize,
    groups: usize,
    affine: Affine<'_>,
    silu: bool,
) {
    let scale_shift = scales_of(x, batch, groups, affine);
    // SAFETY: each value is read before it is written.
    unsafe { scale(x.as_ptr(), x, batch, &scale_shift, silu) };
}

/// For each image what its channels are multiplied by, and what is added then.
fn scales_of(x: &[f32], batch: usize, groups: usize, affine: Affine<'_>) -> Vec<f32> {
    let channels = affine.weight.len();
    let pixels = x.len() / (batch * channels).max(1);
    assert_eq!(x.len(), batch * pixels * channels);
    assert!(affine.bias.len() == channels && channels.is_multiple_of(groups));
    let portions = pixels.div_ceil(PIXELS);
    let mut sums = vec![0.0; batch * portions * 2 * channels];
    let shared = Shared::new(&mut sums);
    for_each(batch * portions, |i| {
        let first = i % portions * PIXELS;
        let image = &x[i / portions * pixels * channels..][..pixels * channels];
        let task = Sum {
            // Far from zero, squares of what is left after a first guess of the mean are small.
            shift: &image[..channels],
            rows: &image[first * channels..(first + PIXELS).min(pixels) * channels],
            // SAFETY: the sums of this portion.
            sums: unsafe { shared.at(i * 2 * channels) },
        };
        // SAFETY: as above.
        unsafe { dispatch::run(dispatch::isa(), Precision::F32, task) };
    });
    let mut scale_shift = vec![0.0; batch * 2 * channels];
    for (image, scale_shift) in scale_shift.chunks_mut(2 * channels).enumerate() {
        let sums = &sums[image * portions * 2 * channels..][..portions * 2 * channels];
        let shift = &x[image * pixels * channels..][..channels];
        write_scales(sums, shift, pixels, groups, affine, scale_shift);
    }
    scale_shift
}

/// Scales and shifts all pixels.
///
/// # Safety
/// As many values as are written must be readable at `x`: the same ones, or others.
unsafe fn scale(x: *const f32, out: &mut [f32], batch: usize, scale_shift: &[f32], silu: bool) {
    let channels = scale_shift.len() / (2 * batch).max(1);
    let rows = out.len() / channels.max(1);
    let pixels = rows / batch.max(1);
    let (x, out) = (Shared::reading(x), Shared::new(out));
    for_portions(rows, PIXELS, |rows| {
        for row in rows {
            // SAFETY: each row is read and written by one task.
            let (x, out) = unsafe { (x.at(row * channels), out.at(row * channels)) };
            let task = Scale {
                x,
                scale_shift: &scale_shift[row / pixels * 2 * channels..][..2 * channels],
                silu,
                out,
            };
            // SAFETY: as above.
            unsafe { dispatch::run(dispatch::isa(), Precision::F32, task) };
        }
    });
}

/// What the pixels of an image are multiplied by, and what is added then.
fn write_scales(
    sums: &[f32],
    shift: &[f32],
    pixels: usize,
    groups: usize,
    affine: Affine<'_>,
    scale_shift: &mut [f32],
) {
    let channels = shift.len();
    let width = channels / groups;
    let count = pixels as f64;
    // Mean, and sum of squares of what is apart from it, of each channel.
    let moments: Vec<(f64, f64)> = (0..channels)
        .map(|channel| {
            let total = |first: usize| -> f64 {
                let portions = sums[first + channel..].iter().step_by(2 * channels);
                portions.map(|sum| f64::from(*sum)).sum()
            };
            let (sum, squares) = (total(0), total(channels));
            (
                f64::from(shift[channel]) + sum / count,
                squares - sum * sum / count,
            )
        })
        .collect();
    for (group, moments) in moments.chunks(width).enumerate() {
        let mean = moments.iter().map(|(mean, _)| mean).sum::<f64>() / width as f64;
        let apart = moments
            .iter()
            .map(|(of, squares)| squares + count * (of - mean) * (of - mean));
        let variance = apart.sum::<f64>() / (count * width as f64);
        let scale = (variance.max(0.0) + affine.eps).sqrt().recip();
        for channel in group * width..(group + 1) * width {
            let scale = scale * f64::from(affine.weight[channel]);
            scale_shift[channel] = scale as f32;
            scale_shift[channels + channel] =
                (f64::from(affine.bias[channel]) - mean * scale) as f32;
        }
    }
}

/// Sums of each channel's values and squares.
struct Sum<'a> {
    shift: &'a [f32],
    rows: &'a [f32],
    sums: *mut f32,
}

impl Work for Sum<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let channels = self.shift.len();
        // SAFETY: the caller's; channels beyond the last whole vector are worked off one by one.
        unsafe {
            let whole = channels / K::S::LANES * K::S::LANES;
            for channel in (0..whole).step_by(K::S::LANES) {
                let shift = K::S::load(self.shift.as_ptr().add(channel));
                let (mut sum, mut squares) = (K::S::splat(0.0), K::S::splat(0.0));
                for row in self.rows.chunks_exact(channels) {
                    let x = K::S::sub(K::S::load(row.as_ptr().add(channel)), shift);
                    sum = K::S::add(sum, x);
                    squares = K::S::fma(x, x, squares);
                }
                K::S::store(self.sums.add(channel), sum);
                K::S::store(self.sums.add(channels + channel), squares);
            }
            for channel in whole..channels {
                let apart = self
                    .rows
                    .chunks_exact(channels)
                    .map(|row| row[channel] - self.shift[channel]);
                let (sum, squares) = apart.fold((0.0, 0.0), |(a, b), x| (a + x, b + x * x));
                self.sums.add(channel).write(sum);
                self.sums.add(channels + channel).write(squares);
            }
        }
    }
}

/// A pixel, scaled and shifted.
struct Scale<'a> {
    x: *const f32,
    scale_shift: &'a [f32],
    silu: bool,
    out: *mut f32,
}

impl Work for Scale<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let (scale, shift) = self.scale_shift.split_at(self.scale_shift.len() / 2);
        // SAFETY: the caller's.
        unsafe {
            math::map::<K::S>(
                scale.len(),
                self.out,
                #[inline(always)]
                |at, part| {
                    let y = K::S::fma(
                        part.load::<K::S>(self.x.add(at)),
                        part.load::<K::S>(scale.as_ptr().add(at)),
                        part.load::<K::S>(shift.as_ptr().add(at)),
                    );
                    match self.silu {
                        true => math::sigmoid_times::<K::S>(y, 1.0),
                        false => y,
                    }
                },
            );
        }
    }
}

/// Normalises each row.
///
/// # Shapes
/// `x` and `out`: `(rows, channels)`.
///
/// # Panics
/// If lengths do not fit.
pub(crate) fn layer_norm(x: &[f32], affine: Affine<'_>, out: &mut [f32]) {
    let channels = affine.weight.len();
    let rows = x.len() / channels.max(1);
    assert!(x.len() == rows * channels && out.len() == x.len() && affine.bias.len() == channels);
    let out = Shared::new(out);
    for_portions(rows, (1 << 14) / channels.max(1), |rows| {
        for row in rows {
            // SAFETY: each row is written by one task.
            unsafe {
                let task = Row {
                    x: &x[row * channels..(row + 1) * channels],
                    affine,
                    out: out.at(row * channels),
                };
                dispatch::run(dispatch::isa(), Precision::F32, task);
            }
        }
    });
}

struct Row<'a> {
    x: &'a [f32],
    affine: Affine<'a>,
    out: *mut f32,
}

impl Work for Row<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let Self { x, affine, .. } = self;
        let count = x.len() as f32;
        // SAFETY: the caller's.
        unsafe {
            let mean = math::sum::<K::S>(x, |x| x) / count;
            let squares = math::sum::<K::S>(x, |x| {
                let apart = K::S::sub(x, K::S::splat(mean));
                K::S::mul(apart, apart)
            });
            // Lanes beyond the last value are zero there, too, and count as apart by the mean.
            let beyond = (x.len().next_multiple_of(K::S::LANES) - x.len()) as f32;
            let variance = f64::from((squares - beyond * mean * mean) / count);
            let scale = (variance.max(0.0) + affine.eps).sqrt().recip() as f32;
            math::map::<K::S>(
                x.len(),
                self.out,
                #[inline(always)]
                |at, part| {
                    let apart = K::S::sub(part.load::<K::S>(x.as_ptr().add(at)), K::S::splat(mean));
                    let y = K::S::mul(apart, K::S::splat(scale));
                    K::S::fma(
                        y,
                        part.load::<K::S>(affine.weight.as_ptr().add(at)),
                        part.load::<K::S>(affine.bias.as_ptr().add(at)),
                    )
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::TorchRng;

    /// Mean and variance, in two goes.
    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let apart = values.iter().map(|x| (x - mean) * (x - mean));
        (mean, apart.sum::<f64>() / values.len() as f64)
    }

    #[test]
    fn groups_far_from_zero() {
        for (batch, pixels, channels, groups, offset) in [
            (1, 1, 4, 2, 0.0),
            (2, 300, 36, 3, 0.0),
            (2, 130, 8, 8, 1000.0),
            (1, 257, 320, 32, -50.0),
        ] {
            let mut rng = TorchRng::new(pixels as u64);
            let x: Vec<f32> = rng
                .randn(batch * pixels * channels)
                .into_iter()
                .map(|x| x + offset)
                .collect();
            let (weight, bias) = (rng.randn(channels), rng.randn(channels));
            let affine = Affine {
                weight: &weight,
                bias: &bias,
                eps: 1e-5,
            };
            for silu in [false, true] {
                let mut out = vec![f32::NAN; x.len()];
                group_norm(&x, batch, groups, affine, silu, &mut out);
                let mut within = x.clone();
                group_norm_in_place(&mut within, batch, groups, affine, silu);
                assert_eq!(within, out);
                let width = channels / groups;
                for (image, group) in (0..batch).flat_map(|i| (0..groups).map(move |g| (i, g))) {
                    let at = |pixel: usize, channel: usize| {
                        (image * pixels + pixel) * channels + group * width + channel
                    };
                    let all = || (0..pixels).flat_map(|p| (0..width).map(move |c| (p, c)));
                    let values: Vec<f64> = all().map(|(p, c)| f64::from(x[at(p, c)])).collect();
                    let (mean, variance) = moments(&values);
                    for ((p, c), value) in all().zip(&values) {
                        let (w, b) = (weight[group * width + c], bias[group * width + c]);
                        let mut expected =
                            (value - mean) / (variance + 1e-5).sqrt() * f64::from(w) + f64::from(b);
                        if silu {
                            expected /= 1.0 + (-expected).exp();
                        }
                        let apart = (f64::from(out[at(p, c)]) - expected).abs();
                        let tolerance = 3e-6 * (1.0 + f64::from(offset).abs() / 10.0);
                        assert!(
                            apart <= tolerance,
                            "{pixels}: {} for {expected}",
                            out[at(p, c)]
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_any_length() {
        for (rows, channels, offset) in [(1, 1, 0.0), (7, 3, 0.0), (40, 320, 10.0), (3, 77, -100.0)]
        {
            let mut rng = TorchRng::new(channels as u64);
            let x: Vec<f32> = rng
                .randn(rows * channels)
                .into_iter()
                .map(|x| x + offset)
                .collect();
            let (weight, bias) = (rng.randn(channels), rng.randn(channels));
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(
                &x,
                Affine {
                    weight: &weight,
                    bias: &bias,
                    eps: 1e-5,
                },
                &mut out,
            );
            for (row, out) in x.chunks(channels).zip(out.chunks(channels)) {
                let values: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                let (mean, variance) = moments(&values);
                for (i, out) in out.iter().enumerate() {
                    let expected = (values[i] - mean) / (variance + 1e-5).sqrt()
                        * f64::from(weight[i])
                        + f64::from(bias[i]);
                    let tolerance = 3e-6 * (1.0 + f64::from(offset).abs());
                    assert!(
                        (f64::from(*out) - expected).abs() <= tolerance,
                        "{channels}: {out}, {expected}"
                    );
                }
            }
        }
    }
}
