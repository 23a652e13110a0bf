//! Bringing pictures to a size of other proportions.

use image::RgbImage;
use image::imageops::{crop_imm, replace};
use serde::{Deserialize, Serialize};

use super::{Resampling, resize};

/// How a picture is brought to a size of other proportions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResizeMode {
    /// It is stretched: A1111's "Just resize", diffusers' `default`.
    #[default]
    Stretch,
    /// What is too much is cut off on both sides: "Crop and resize", `crop`.
    Crop,
    /// What is missing gets the colours of the edges: "Resize and fill", `fill`.
    Fill,
}

/// The picture in another size, by Lanczos' filter. Of no pixels it makes black ones.
///
/// Source: diffusers' `VaeImageProcessor.resize`, whose proportions these are.
pub fn fit(picture: &RgbImage, (width, height): (u32, u32), mode: ResizeMode) -> RgbImage {
    let resized = |width, height| resize(picture, width, height, Resampling::Lanczos);
    if picture.is_empty() || mode == ResizeMode::Stretch {
        return resized(width, height);
    }
    let (from_width, from_height) = (u64::from(picture.width()), u64::from(picture.height()));
    // Of the same proportions, with this height or this width.
    let fitting_width = (from_width * u64::from(height) / from_height) as u32;
    let fitting_height = (from_height * u64::from(width) / from_width) as u32;
    let is_wider = u64::from(width) * from_height < from_width * u64::from(height);
    let (inner_width, inner_height) = match (mode, is_wider) {
        (ResizeMode::Crop, true) | (ResizeMode::Fill, false) => (fitting_width, height),
        _ => (width, fitting_height),
    };
    let inner = resized(inner_width.max(1), inner_height.max(1));
    let left = i64::from(width / 2) - i64::from(inner.width() / 2);
    let top = i64::from(height / 2) - i64::from(inner.height() / 2);
    if mode == ResizeMode::Crop {
        let (x, y) = ((-left).max(0) as u32, (-top).max(0) as u32);
        return crop_imm(&inner, x, y, width, height).to_image();
    }
    let nearest =
        |at: u32, first: i64, len: u32| (i64::from(at) - first).clamp(0, i64::from(len) - 1) as u32;
    let mut filled = RgbImage::from_fn(width, height, |x, y| {
        let x = nearest(x, left, inner.width());
        let y = nearest(y, top, inner.height());
        *inner.get_pixel(x, y)
    });
    replace(&mut filled, &inner, left, top);
    filled
}
