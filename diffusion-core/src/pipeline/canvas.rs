//! A request's pictures and mask at the size of its run, and the way back.

use image::buffer::ConvertBuffer;
use image::imageops::{crop_imm, replace};
use image::{GrayImage, RgbImage};

use super::GenerateRequest;
use super::request::{InitImage, MaskedContent};
use crate::media::{self, Margins, Region, ResizeMode};

/// The request's pictures and mask as the run sees them.
pub(super) struct Canvas {
    /// None, one, or one for each picture of the request, of the run's size.
    pub(super) pictures: Vec<RgbImage>,
    /// Bright where the picture changes, of the run's size.
    pub(super) mask: Option<GrayImage>,
    paste: Option<Paste>,
}

/// What a result is pasted into.
struct Paste {
    /// One, or one for each picture.
    originals: Vec<RgbImage>,
    mask: GrayImage,
    /// Where the result belongs, if it is a part of the picture.
    region: Option<Region>,
}

impl Canvas {
    /// Brings the pictures of a checked request to the size of the run.
    pub(super) fn new(request: &GenerateRequest, (width, height): (usize, usize)) -> Self {
        let size = (width as u32, height as u32);
        let mode = request.resize_mode;
        let pictures = match &request.image {
            Some(InitImage::Pictures(pictures)) => pictures.as_slice(),
            _ => &[],
        };
        let fitted = |pictures: &[RgbImage]| -> Vec<RgbImage> {
            let fitted = pictures
                .iter()
                .map(|picture| media::fit(picture, size, mode));
            fitted.collect()
        };
        let extended = request
            .margins
            .zip(pictures.first())
            .map(|(margins, picture)| {
                let margins = rounded_up(picture, margins, size);
                media::extend(picture, margins)
            });
        let (originals, mask) = match (extended, &request.inpainting.mask) {
            (Some((picture, mask)), _) => (vec![picture], Some(mask)),
            (None, mask) => (pictures.to_vec(), mask.clone()),
        };
        let Some(mask) = mask.map(|mask| media::blur(&mask, request.inpainting.blur)) else {
            return Self {
                pictures: fitted(&originals),
                mask: None,
                paste: None,
            };
        };
        let padding = request.inpainting.only_masked;
        let region = padding.map(|padding| media::crop_region(&mask, size, padding as u32));
        let (seen, seen_mask) = match region {
            Some(region) => {
                let Region {
                    x,
                    y,
                    width,
                    height,
                } = region;
                let parts = originals
                    .iter()
                    .map(|picture| crop_imm(picture, x, y, width, height).to_image());
                let part = crop_imm(&mask, x, y, width, height).to_image();
                let mode = ResizeMode::Fill;
                let parts = parts.map(|part| media::fit(&part, size, mode)).collect();
                (parts, fit_mask(&part, size, mode))
            }
            None => (fitted(&originals), fit_mask(&mask, size, mode)),
        };
        let paste = match (region, request.inpainting.paste_back) {
            (None, false) => None,
            (None, true) => Some(Paste {
                originals: seen.clone(),
                mask: seen_mask.clone(),
                region: None,
            }),
            (Some(_), paste_back) => Some(Paste {
                originals,
                mask: match paste_back {
                    true => mask,
                    false => GrayImage::from_pixel(mask.width(), mask.height(), image::Luma([255])),
                },
                region,
            }),
        };
        let pictures = match request.inpainting.content {
            MaskedContent::Fill => seen
                .iter()
                .map(|picture| media::fill(picture, &seen_mask))
                .collect(),
            _ => seen,
        };
        Self {
            pictures,
            mask: Some(seen_mask),
            paste: paste.filter(|paste| !paste.originals.is_empty()),
        }
    }

    /// The result for the run's picture `index`: what the mask leaves alone is the original's.
    pub(super) fn finish(&self, index: usize, picture: RgbImage) -> RgbImage {
        let Some(Paste {
            originals,
            mask,
            region,
        }) = &self.paste
        else {
            return picture;
        };
        let original = originals.get(index).unwrap_or(&originals[0]);
        let Some(region) = region else {
            return media::composite(original, &picture, mask);
        };
        let size = (region.width, region.height);
        let part = media::fit(&picture, size, ResizeMode::Crop);
        let mut whole = original.clone();
        replace(&mut whole, &part, i64::from(region.x), i64::from(region.y));
        media::composite(original, &whole, mask)
    }
}

/// Margins that bring a picture to a size which is a little larger than they say.
fn rounded_up(picture: &RgbImage, margins: Margins, (width, height): (u32, u32)) -> Margins {
    Margins {
        right: width.saturating_sub(picture.width().saturating_add(margins.left)),
        bottom: height.saturating_sub(picture.height().saturating_add(margins.top)),
        ..margins
    }
}

/// A mask brought to a size as the picture is.
fn fit_mask(mask: &GrayImage, size: (u32, u32), mode: ResizeMode) -> GrayImage {
    let rgb: RgbImage = mask.convert();
    let fitted = media::fit(&rgb, size, mode);
    GrayImage::from_fn(size.0, size.1, |x, y| {
        image::Luma([fitted.get_pixel(x, y).0[0]])
    })
}
