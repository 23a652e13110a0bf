//! Pictures into files.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::{Provenance, exif};
use crate::error::{Error, Result};

/// The quality of JPEG files that [`save`] writes.
const JPEG_QUALITY: u8 = 95;
/// The most that a JPEG's segment holds beside EXIF's own marker.
const MAX_JPEG_EXIF: usize = 65535 - 2 - 6;

/// The longest side of a WebP that all decoders take.
pub(super) const MAX_WEBP_SIDE: u32 = (1 << 14) - 1;

/// Writes a picture, and how it came about, into a file of the kind that its ending says: PNG, JPEG (`.jpg`,
/// `.jpeg`, of quality 95) or WebP (lossless).
///
/// # Errors
/// [`Error::Unsupported`] for other endings, [`Error::Io`] if writing fails; otherwise as [`to_png`] and its like.
pub fn save(
    picture: &RgbImage,
    path: impl AsRef<Path>,
    provenance: Option<&Provenance>,
) -> Result<()> {
    let path = path.as_ref();
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let bytes = match ending.to_lowercase().as_str() {
        "png" => to_png(picture, provenance)?,
        "jpg" | "jpeg" => to_jpeg(picture, JPEG_QUALITY, provenance)?,
        "webp" => to_webp(picture, provenance)?,
        _ => {
            let what = format!("writing {}", path.display());
            return Err(Error::unsupported(what, "end it in .png, .jpg or .webp"));
        }
    };
    fs::write(path, bytes).map_err(|e| Error::io(path, e))
}

/// Encodes a picture as PNG, with how it came about in text chunks.
///
/// # Errors
/// [`Error::InvalidArgument`] for a picture without pixels.
pub fn to_png(picture: &RgbImage, provenance: Option<&Provenance>) -> Result<Vec<u8>> {
    check_pixels(picture)?;
    let mut info = png::Info::with_size(picture.width(), picture.height());
    info.color_type = png::ColorType::Rgb;
    info.bit_depth = png::BitDepth::Eight;
    if let Some(provenance) = provenance {
        provenance.write_png(&mut info);
    }
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::with_info(&mut bytes, info)
        .and_then(png::Encoder::write_header)
        .map_err(Error::custom)?;
    writer
        .write_image_data(picture.as_raw())
        .map_err(Error::custom)?;
    writer.finish().map_err(Error::custom)?;
    Ok(bytes)
}

/// Encodes a picture as JPEG of a quality from 1 to 100, with how it came about in EXIF.
///
/// # Errors
/// [`Error::InvalidArgument`] for a picture without pixels or with a side above 65535, or another quality;
/// [`Error::Unsupported`] for a provenance of more than the 64 KiB that JPEG has for it.
pub fn to_jpeg(
    picture: &RgbImage,
    quality: u8,
    provenance: Option<&Provenance>,
) -> Result<Vec<u8>> {
    check_pixels(picture)?;
    check_sides(picture, u32::from(u16::MAX))?;
    if !(1..=100).contains(&quality) {
        return Err(Error::argument("quality", "1 to 100", quality));
    }
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    if let Some(provenance) = provenance {
        let exif = exif::write(provenance);
        if exif.len() > MAX_JPEG_EXIF {
            let what = format!("a provenance of {} bytes in a JPEG", exif.len());
            return Err(Error::unsupported(what, "write a PNG or a WebP"));
        }
        encoder.set_exif_metadata(exif).map_err(Error::custom)?;
    }
    write_rgb(encoder, picture)?;
    Ok(bytes.into_inner())
}

/// Encodes a picture as WebP without loss, with how it came about in EXIF.
///
/// # Errors
/// [`Error::InvalidArgument`] for a picture without pixels or with a side above 16383.
pub fn to_webp(picture: &RgbImage, provenance: Option<&Provenance>) -> Result<Vec<u8>> {
    check_pixels(picture)?;
    check_sides(picture, MAX_WEBP_SIDE)?;
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = WebPEncoder::new_lossless(&mut bytes);
    if let Some(provenance) = provenance {
        let exif = exif::write(provenance);
        encoder.set_exif_metadata(exif).map_err(Error::custom)?;
    }
    write_rgb(encoder, picture)?;
    Ok(bytes.into_inner())
}

fn write_rgb(encoder: impl ImageEncoder, picture: &RgbImage) -> Result<()> {
    let (width, height) = picture.dimensions();
    encoder
        .write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(Error::custom)
}

/// Refuses a picture without pixels.
pub(super) fn check_pixels(picture: &RgbImage) -> Result<()> {
    match picture.dimensions() {
        (0, _) | (_, 0) => Err(Error::argument("picture", "at least 1 pixel", "none")),
        _ => Ok(()),
    }
}

/// Refuses a picture larger than a format can hold.
pub(super) fn check_sides(picture: &RgbImage, max: u32) -> Result<()> {
    let (width, height) = picture.dimensions();
    match width.max(height) > max {
        true => {
            let expected = format!("sides of at most {max} pixels in this format");
            let found = format!("{width} x {height}");
            Err(Error::argument("picture", expected, found))
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::decode;

    fn picture() -> RgbImage {
        RgbImage::from_fn(19, 7, |x, y| image::Rgb([x as u8 * 13, y as u8 * 30, 77]))
    }

    #[test]
    fn the_pixels_and_their_provenance_come_back() -> Result<()> {
        let latin = Provenance::new(Some("é, \"quoted\"\nSteps: 3".into()), Some("{}".into()));
        let wide = Provenance::new(Some("猫 🐈\nSteps: 3".into()), Some("{\"猫\": 1}".into()));
        for provenance in [latin, wide] {
            let picture = picture();
            let encoded = [
                (to_png(&picture, Some(&provenance))?, true),
                (to_webp(&picture, Some(&provenance))?, true),
                (to_jpeg(&picture, 95, Some(&provenance))?, false),
            ];
            for (bytes, is_lossless) in encoded {
                assert_eq!(Provenance::from_bytes(&bytes)?, provenance);
                let back = decode(&bytes)?;
                assert_eq!(back.dimensions(), picture.dimensions());
                assert_eq!(back == picture, is_lossless);
            }
            for bytes in [to_png(&picture, None)?, to_jpeg(&picture, 95, None)?] {
                assert!(Provenance::from_bytes(&bytes)?.is_empty());
            }
        }
        Ok(())
    }

    #[test]
    fn a_png_that_is_cut_off_still_says_where_it_is_from() -> Result<()> {
        let provenance = Provenance::new(Some("a cat\nSteps: 3".into()), None);
        let bytes = to_png(&picture(), Some(&provenance))?;
        let cut = &bytes[..bytes.len() - 30];
        assert!(decode(cut).is_err());
        assert_eq!(Provenance::from_bytes(cut)?, provenance);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = Provenance::new(Some("long ".repeat(10_000)), None);
        let refused = to_jpeg(&picture(), 95, Some(&long));
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
        assert!(to_png(&picture(), Some(&long)).is_ok());
        assert!(to_jpeg(&picture(), 0, None).is_err());
        assert!(to_webp(&RgbImage::new(1 << 15, 1), None).is_err());
        for (width, height) in [(0, 0), (0, 3), (3, 0)] {
            let none = RgbImage::new(width, height);
            assert!(to_png(&none, None).is_err());
            assert!(to_jpeg(&none, 95, None).is_err());
            assert!(to_webp(&none, None).is_err());
        }
        assert!(save(&picture(), "picture.txt", None).is_err());
    }
}
