//! Files into pictures.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage,
    error,
};

use crate::error::{Error, Result};

/// The most pixels that are read.
pub(super) const MAX_PIXELS: u64 = 1 << 27;
/// The longest side that is read.
const MAX_SIDE: u32 = 1 << 16;
/// The most memory that a decoder may ask for: eight bytes for each of the pixels, and as much again.
const MAX_BYTES: u64 = 16 * MAX_PIXELS;
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

const CUT_OFF: &str = "the file ends before the picture does";

/// A picture with what was transparent in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Its colours, also where they were transparent.
    pub picture: RgbImage,
    /// How opaque each pixel is, 255 wholly; `None` if all of them are. Painters keep the picture of an inpainting
    /// and its mask in one file so.
    pub alpha: Option<GrayImage>,
}

/// Reads a picture from a file: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF, recognised by its content.
///
/// It becomes RGB as by diffusers' `load_image`, which is Pillow's `exif_transpose` and `convert("RGB")`: turned as
/// EXIF says, grey and palettes as colours, CMYK as the ink would show, **transparency dropped and not laid upon a
/// background**, colour profiles left alone. Of 16 bits the upper 8 count, in colours as Pillow has it; Pillow
/// cuts off grey ones above 255 instead, which makes them white.
///
/// # Errors
/// [`Error::NotFound`] or [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is damaged or no
/// picture, [`Error::Unsupported`] for a kind of pixels or a compression that is not known, [`Error::InvalidArgument`] for
/// more than 2^27 pixels, a side above 65536 or a file of more than 1 GiB, before any memory is asked for.
pub fn read(path: impl AsRef<Path>) -> Result<RgbImage> {
    Ok(read_with_alpha(path)?.picture)
}

/// [`read`], with the transparency beside the colours.
///
/// # Errors
/// As [`read`].
pub fn read_with_alpha(path: impl AsRef<Path>) -> Result<Decoded> {
    let path = path.as_ref();
    decode_at(&read_file(path)?, path)
}

/// [`read`] from the bytes of a file.
///
/// # Errors
/// As [`read`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    Ok(decode_with_alpha(bytes)?.picture)
}

/// [`read_with_alpha`] from the bytes of a file.
///
/// # Errors
/// As [`read`].
pub fn decode_with_alpha(bytes: &[u8]) -> Result<Decoded> {
    decode_at(bytes, Path::new("picture"))
}

/// The bytes of a file of a reasonable size.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let hint = "give the path of a picture";
    let file = File::open(path).map_err(|e| Error::open(path, e, hint))?;
    let mut bytes = Vec::new();
    let mut bounded = file.take(MAX_FILE + 1);
    bounded
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    match bytes.len() as u64 > MAX_FILE {
        true => {
            let found = format!("{}: more", path.display());
            Err(Error::argument("picture", "a file of at most 1 GiB", found))
        }
        false => Ok(bytes),
    }
}

fn decode_at(bytes: &[u8], path: &Path) -> Result<Decoded> {
    let fail = |error| failure(path, error);
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|e| Error::io(path, e))?;
    if reader.format().is_none() {
        let reason =
            "expected a PNG, JPEG, WebP, GIF, BMP or TIFF; its first bytes are of none of them";
        return Err(Error::format(path, reason));
    }
    if reader.format() == Some(ImageFormat::Jpeg) && is_cut_off(bytes) {
        return Err(Error::format(path, CUT_OFF));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let found = format!("{}: {width} x {height}", path.display());
        let expected = format!("at most {MAX_PIXELS} pixels");
        return Err(Error::argument("picture", expected, found));
    }
    // Damaged notes do not turn a picture.
    let orientation = decoder.orientation();
    let mut picture = DynamicImage::from_decoder(decoder).map_err(fail)?;
    if let Ok(orientation) = orientation {
        picture.apply_orientation(orientation);
    }
    split(picture).ok_or_else(|| {
        let what = format!("{}: a picture of floating-point numbers", path.display());
        Error::unsupported(what, "save it with 8 or 16 bits a channel")
    })
}

/// Whether a JPEG lacks its end, which decoders fill up with grey. Within its pixels no marker occurs, so there is
/// an end behind the last start of some.
fn is_cut_off(jpeg: &[u8]) -> bool {
    let last = |marker: &[u8; 2]| jpeg.windows(2).rposition(|pair| pair == marker);
    last(b"\xff\xd9") < last(b"\xff\xda")
}

/// Colours and alpha of a picture of 8 or 16 bits.
fn split(picture: DynamicImage) -> Option<Decoded> {
    let (width, height) = (picture.width(), picture.height());
    let high = |levels: Vec<u16>| levels.into_iter().map(|level| (level >> 8) as u8).collect();
    let (levels, channels): (Vec<u8>, usize) = match picture {
        DynamicImage::ImageLuma8(pixels) => (pixels.into_raw(), 1),
        DynamicImage::ImageLumaA8(pixels) => (pixels.into_raw(), 2),
        DynamicImage::ImageRgb8(pixels) => (pixels.into_raw(), 3),
        DynamicImage::ImageRgba8(pixels) => (pixels.into_raw(), 4),
        DynamicImage::ImageLuma16(pixels) => (high(pixels.into_raw()), 1),
        DynamicImage::ImageLumaA16(pixels) => (high(pixels.into_raw()), 2),
        DynamicImage::ImageRgb16(pixels) => (high(pixels.into_raw()), 3),
        DynamicImage::ImageRgba16(pixels) => (high(pixels.into_raw()), 4),
        _ => return None,
    };
    let opacity: Vec<u8> = match channels {
        2 | 4 => levels
            .iter()
            .skip(channels - 1)
            .step_by(channels)
            .copied()
            .collect(),
        _ => Vec::new(),
    };
    let is_opaque = opacity.iter().all(|&opacity| opacity == u8::MAX);
    let colors = match channels {
        3 => levels,
        1 | 2 => levels
            .chunks_exact(channels)
            .flat_map(|pixel| [pixel[0]; 3])
            .collect(),
        _ => levels
            .chunks_exact(channels)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect(),
    };
    Some(Decoded {
        picture: RgbImage::from_raw(width, height, colors)?,
        alpha: match is_opaque {
            true => None,
            false => GrayImage::from_raw(width, height, opacity),
        },
    })
}

/// A decoder's reason in this library's kinds.
fn failure(path: &Path, error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(reason) => {
            let what = format!("{}: {reason}", path.display());
            Error::unsupported(what, "save it as an ordinary PNG or JPEG")
        }
        ImageError::Limits(reason) => match reason.kind() {
            error::LimitErrorKind::DimensionError => {
                let expected = format!("sides of at most {MAX_SIDE} pixels");
                let found = format!("{}: more", path.display());
                Error::argument("picture", expected, found)
            }
            _ => {
                let expected = format!("a picture that is decoded in {} MiB", MAX_BYTES >> 20);
                let found = format!("{}: {reason}", path.display());
                Error::argument("picture", expected, found)
            }
        },
        ImageError::IoError(reason) if reason.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::format(path, CUT_OFF)
        }
        reason => Error::format(path, reason),
    }
}
