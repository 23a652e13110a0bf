//! Masks: grey pictures, bright where something shall change.

use image::{GrayImage, Rgb, RgbImage};

/// A part of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub x: u32,
    /// The first row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// The mask with soft edges, by a Gaussian of a standard deviation in pixels.
pub fn blur(mask: &GrayImage, sigma: f64) -> GrayImage {
    match sigma > 0.0 && !mask.is_empty() {
        true => image::imageops::blur(mask, sigma as f32),
        false => mask.clone(),
    }
}

/// The smallest part of a picture that holds all of the mask that is not black, with `padding` around it, grown to
/// the proportions of `width` to `height` as far as the picture goes. The whole picture where all is black.
///
/// Source: A1111's `get_crop_region` and `expand_crop_region`, which diffusers' `padding_mask_crop` follows.
pub fn crop_region(mask: &GrayImage, (width, height): (u32, u32), padding: u32) -> Region {
    let (mask_width, mask_height) = mask.dimensions();
    let touched = mask.enumerate_pixels().filter(|(.., level)| level.0[0] > 0);
    let bounds = touched.fold(None, |bounds, (x, y, _)| {
        let (left, top, right, bottom) = bounds.unwrap_or((x, y, x, y));
        Some((left.min(x), top.min(y), right.max(x), bottom.max(y)))
    });
    let Some((left, top, right, bottom)) = bounds else {
        return Region {
            x: 0,
            y: 0,
            width: mask_width,
            height: mask_height,
        };
    };
    let padded = |first: u32, last: u32, len: u32| {
        let end = (last + 1).saturating_add(padding).min(len);
        (first.saturating_sub(padding), end)
    };
    let (columns, rows) = (
        padded(left, right, mask_width),
        padded(top, bottom, mask_height),
    );
    let length = |(start, end): (u32, u32)| f64::from(end - start);
    let ratio = f64::from(width) / f64::from(height.max(1));
    let (columns, rows) = match length(columns) / length(rows) > ratio {
        true => (columns, grown(rows, length(columns) / ratio, mask_height)),
        false => (grown(columns, length(rows) * ratio, mask_width), rows),
    };
    Region {
        x: columns.0,
        y: rows.0,
        width: columns.1 - columns.0,
        height: rows.1 - rows.0,
    }
}

/// A stretch made as long as wanted, on both sides alike, and moved to lie within `len`.
fn grown((start, end): (u32, u32), wanted: f64, len: u32) -> (u32, u32) {
    let more = (wanted - f64::from(end - start)) as i64;
    let (mut start, mut end) = (
        i64::from(start) - more / 2,
        i64::from(end) + more - more / 2,
    );
    let len = i64::from(len);
    let beyond = (end - len).max(0);
    (start, end) = (start - beyond, end - beyond);
    let before = (-start).max(0);
    (start, end) = (start + before, (end + before).min(len));
    (start as u32, end as u32)
}

/// `changed` where the mask is white, `original` where it is black, and in between by its grey. All have the same
/// size; pixels that one of them lacks are the original's.
pub fn composite(original: &RgbImage, changed: &RgbImage, mask: &GrayImage) -> RgbImage {
    let mut picture = original.clone();
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (Some(changed), Some(level)) = (
            changed.get_pixel_checked(x, y),
            mask.get_pixel_checked(x, y),
        ) else {
            continue;
        };
        let weight = u32::from(level.0[0]);
        let mix = |kept: u8, new: u8| {
            let sum = u32::from(new) * weight + u32::from(kept) * (255 - weight);
            ((sum + 127) / 255) as u8
        };
        *pixel = Rgb(std::array::from_fn(|i| mix(pixel.0[i], changed.0[i])));
    }
    picture
}
