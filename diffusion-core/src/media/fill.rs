//! Colours for what is not there yet.

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde::{Deserialize, Serialize};

/// How many pixels a picture grows on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Margins {
    /// On the left.
    pub left: u32,
    /// Above.
    pub top: u32,
    /// On the right.
    pub right: u32,
    /// Below.
    pub bottom: u32,
}

impl Margins {
    /// The same on all sides.
    pub fn all(pixels: u32) -> Self {
        Self {
            left: pixels,
            top: pixels,
            right: pixels,
            bottom: pixels,
        }
    }
}

/// The picture with margins, which have the colours of its edges, and a mask that is white on them.
pub fn extend(picture: &RgbImage, margins: Margins) -> (RgbImage, GrayImage) {
    let (width, height) = picture.dimensions();
    let larger = (
        width
            .saturating_add(margins.left)
            .saturating_add(margins.right),
        height
            .saturating_add(margins.top)
            .saturating_add(margins.bottom),
    );
    let inside = |at: u32, first: u32, len: u32| at >= first && at - first < len;
    let mask = GrayImage::from_fn(larger.0, larger.1, |x, y| {
        let kept = inside(x, margins.left, width) && inside(y, margins.top, height);
        Luma([if kept { 0 } else { 255 }])
    });
    let nearest =
        |at: u32, first: u32, len: u32| at.saturating_sub(first).min(len.saturating_sub(1));
    let extended = RgbImage::from_fn(larger.0, larger.1, |x, y| {
        let (x, y) = (
            nearest(x, margins.left, width),
            nearest(y, margins.top, height),
        );
        picture
            .get_pixel_checked(x, y)
            .copied()
            .unwrap_or(Rgb([0; 3]))
    });
    (extended, mask)
}

/// One level of the pyramid that colours flow through: sums of colours and their weights.
struct Level {
    width: usize,
    height: usize,
    sums: Vec<[f32; 4]>,
}

impl Level {
    /// Half as wide and high: each place has the sum of four.
    fn halved(&self) -> Self {
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let mut sums = vec![[0f32; 4]; width * height];
        for (i, sum) in self.sums.iter().enumerate() {
            let at = i / self.width / 2 * width + i % self.width / 2;
            for (total, value) in sums[at].iter_mut().zip(sum) {
                *total += value;
            }
        }
        Self {
            width,
            height,
            sums,
        }
    }

    /// The mean colour of a place.
    fn color(&self, x: usize, y: usize) -> Option<[f32; 3]> {
        let [red, green, blue, weight] = self.sums[y * self.width + x];
        (weight > 0.0).then(|| [red, green, blue].map(|sum| sum / weight))
    }

    /// The colour at a place of the level below, by straight lines between the places of this one.
    fn color_below(&self, x: usize, y: usize) -> [f32; 3] {
        let place = |at: usize, len: usize| {
            let center = (at as f32 / 2.0 - 0.25).max(0.0);
            let first = (center as usize).min(len - 1);
            let share = (center - first as f32).clamp(0.0, 1.0);
            [(first, 1.0 - share), ((first + 1).min(len - 1), share)]
        };
        let mut color = [0f32; 3];
        for (y, in_y) in place(y, self.height) {
            for (x, in_x) in place(x, self.width) {
                let here = self.color(x, y).unwrap_or_default();
                for (sum, value) in color.iter_mut().zip(here) {
                    *sum += value * in_x * in_y;
                }
            }
        }
        color
    }
}

/// The picture with soft colours from around where the mask is bright (128 and more), as A1111's "fill" has them.
/// A picture all under the mask becomes black.
///
/// Source: Gortler et al., "The Lumigraph", 1996, section 3.6 (pull and push).
pub fn fill(picture: &RgbImage, mask: &GrayImage) -> RgbImage {
    let is_open = |x: u32, y: u32| mask.get_pixel_checked(x, y).is_some_and(|p| p.0[0] >= 128);
    let sums = picture.enumerate_pixels().map(|(x, y, pixel)| {
        let weight = if is_open(x, y) { 0.0 } else { 1.0 };
        let [red, green, blue] = pixel.0.map(|level| f32::from(level) * weight);
        [red, green, blue, weight]
    });
    let mut levels = vec![Level {
        width: picture.width() as usize,
        height: picture.height() as usize,
        sums: sums.collect(),
    }];
    while let Some(level) = levels.last().filter(|level| level.sums.len() > 1) {
        levels.push(level.halved());
    }
    // Downwards again: what has no colour of its own gets that of the level above.
    for i in (0..levels.len().saturating_sub(1)).rev() {
        let (below, above) = levels.split_at_mut(i + 1);
        let (Some(level), Some(above)) = (below.last_mut(), above.first()) else {
            break;
        };
        for at in 0..level.sums.len() {
            let (x, y) = (at % level.width, at / level.width);
            if level.color(x, y).is_none() {
                let [red, green, blue] = above.color_below(x, y);
                level.sums[at] = [red, green, blue, 1.0];
            }
        }
    }
    let mut filled = picture.clone();
    for (x, y, pixel) in filled
        .enumerate_pixels_mut()
        .filter(|(x, y, _)| is_open(*x, *y))
    {
        let color = levels[0].color(x as usize, y as usize).unwrap_or_default();
        *pixel = Rgb(color.map(|level| level.round().clamp(0.0, 255.0) as u8));
    }
    filled
}
