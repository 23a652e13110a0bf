//! Changing a picture's size as Pillow does, to the bit.

use image::RgbImage;

/// Bits behind the point of a weight: Pillow's for pictures of 8 bits.
const PRECISION: u32 = 32 - 8 - 2;
/// Half the width of the window that Lanczos' kernel is cut to.
const LOBES: f64 = 3.0;
const CHANNELS: usize = 3;

/// The picture in another size, by Lanczos' kernel of three lobes, wider where the picture shrinks. It is Pillow's
/// `Image.resize` with `Resampling.LANCZOS`, which diffusers prepares pictures with: rows first, then
/// columns, weights in fixed point and 8 bits in between.
///
/// Source: Duchon, "Lanczos Filtering in One and Two Dimensions", 1979.
pub fn resize(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let mut picture = picture.clone();
    if picture.width() != width {
        let mut wider = RgbImage::new(width, picture.height());
        let len = picture.width() as usize;
        resample(picture.as_raw(), len, width as usize, 1, &mut wider);
        picture = wider;
    }
    if picture.height() != height {
        let mut higher = RgbImage::new(width, height);
        let len = picture.height() as usize;
        resample(
            picture.as_raw(),
            len,
            height as usize,
            width as usize,
            &mut higher,
        );
        picture = higher;
    }
    picture
}

/// Changes the middle dimension of `(any, len, stride)` pixels to `new_len`.
fn resample(pixels: &[u8], len: usize, new_len: usize, stride: usize, resampled: &mut [u8]) {
    let step = stride * CHANNELS;
    let windows = windows(len, new_len);
    let mut targets = resampled.iter_mut();
    for line in pixels.chunks_exact((len * step).max(1)) {
        for (first, weights) in &windows {
            for (place, target) in (0..step).zip(&mut targets) {
                let values = line[first * step + place..].iter().step_by(step);
                let sum: i32 = values
                    .zip(weights)
                    .map(|(&value, weight)| i32::from(value) * weight)
                    .sum();
                let rounded = (sum + (1 << (PRECISION - 1))) >> PRECISION;
                *target = rounded.clamp(0, 255) as u8;
            }
        }
    }
}

/// For each new pixel the first old one that counts, and the weights from there on.
fn windows(len: usize, new_len: usize) -> Vec<(usize, Vec<i32>)> {
    let ratio = len as f64 / new_len as f64;
    let scale = ratio.max(1.0);
    let (reach, narrowing) = (LOBES * scale, scale.recip());
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * ratio;
        let first = (center - reach + 0.5).max(0.0) as usize;
        let end = ((center + reach + 0.5) as usize).min(len);
        let weights: Vec<f64> = (first..end)
            .map(|j| lanczos((j as f64 - center + 0.5) * narrowing))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << PRECISION)).round() as i32;
        (first, weights.into_iter().map(fixed).collect())
    };
    (0..new_len).map(window).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| match x * std::f64::consts::PI {
        0.0 => 1.0,
        x => x.sin() / x,
    };
    match (-LOBES..LOBES).contains(&x) {
        true => sinc(x) * sinc(x / LOBES),
        false => 0.0,
    }
}
