//! Pictures and masks that a run starts from, in the caller's memory.

use std::ptr::null;

use diffusion_core::media::Margins;
use diffusion_core::{GenerateRequest, GrayImage, Hires, RgbImage};

use crate::params::dfn_generate_params;
use crate::status::Failure;

/// A picture in the caller's memory, rows from top to bottom. It is read during the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dfn_picture {
    /// The first pixel; NULL: there is no picture, and all else must be 0.
    pub pixels: *const u8,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Bytes from one row to the next; 0 for rows without gaps.
    pub row_stride: usize,
}

impl dfn_picture {
    pub(crate) const NONE: Self = Self {
        pixels: null(),
        width: 0,
        height: 0,
        row_stride: 0,
    };

    /// The bytes of the pixels, of `PIXEL` bytes each; nothing if there is no picture.
    ///
    /// # Safety
    /// `pixels` is null or points to as many bytes as the size and the stride say.
    unsafe fn read<const PIXEL: usize>(self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        let Self {
            pixels,
            width,
            height,
            row_stride,
        } = self;
        let found = || format!("{width} x {height} pixels, rows {row_stride} bytes apart");
        if pixels.is_null() {
            return match (width, height, row_stride) {
                (0, 0, 0) => Ok(None),
                _ => Err(Failure::argument(name, "zeros without pixels", found())),
            };
        }
        let row = (width as usize).checked_mul(PIXEL);
        let stride = if row_stride == 0 {
            row
        } else {
            Some(row_stride)
        };
        let is_one = |row: usize, stride: usize| width > 0 && height > 0 && stride >= row;
        let size = |row: usize, stride: usize| {
            let above = stride.checked_mul(height as usize - 1)?;
            isize::try_from(above.checked_add(row)?).ok()
        };
        let (row, stride) = match (row, stride) {
            (Some(row), Some(stride)) if is_one(row, stride) && size(row, stride).is_some() => {
                (row, stride)
            }
            _ => {
                let expected = "a picture with rows at least as long as its width";
                return Err(Failure::argument(name, expected, found()));
            }
        };
        let mut bytes = Vec::with_capacity(row * height as usize);
        for y in 0..height as usize {
            // SAFETY: the caller's promise; the last row ends within what an object may hold, as checked.
            let line = unsafe { std::slice::from_raw_parts(pixels.add(y * stride), row) };
            bytes.extend_from_slice(line);
        }
        Ok(Some(bytes))
    }

    /// The colours of RGBA; nothing if there is no picture.
    ///
    /// # Safety
    /// As [`read`](Self::read).
    pub(crate) unsafe fn rgba(self, name: &str) -> Result<Option<RgbImage>, Failure> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.read::<4>(name) }?;
        let rgb = bytes.map(|bytes| {
            bytes
                .chunks_exact(4)
                .flat_map(|pixel| pixel[..3].to_vec())
                .collect()
        });
        Ok(rgb.and_then(|rgb| RgbImage::from_raw(self.width, self.height, rgb)))
    }

    unsafe fn grey(self, name: &str) -> Result<Option<GrayImage>, Failure> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.read::<1>(name) }?;
        Ok(bytes.and_then(|bytes| GrayImage::from_raw(self.width, self.height, bytes)))
    }
}

/// A request of the parameters' pictures and sizes, without a prompt.
///
/// # Safety
/// The pictures' pixels are null or point to as many bytes as they say.
pub(crate) unsafe fn start(params: &dfn_generate_params) -> Result<GenerateRequest, Failure> {
    // SAFETY: the caller's promise.
    let (image, mask) = unsafe { (params.image.rgba("image")?, params.mask.grey("mask")?) };
    let [left, top, right, bottom] = params.margins;
    let has_margins = params.margins != [0; 4];
    let mut request = match (image, mask, has_margins) {
        (None, None, false) => GenerateRequest::txt2img(""),
        (Some(image), None, false) => GenerateRequest::img2img("", image),
        (Some(image), Some(mask), false) => GenerateRequest::inpaint("", image, mask),
        (Some(image), None, true) => {
            let margins = Margins {
                left,
                top,
                right,
                bottom,
            };
            GenerateRequest::outpaint("", image, margins)
        }
        (None, ..) => {
            return Err(Failure::argument(
                "image",
                "one, beside a mask or margins",
                "none",
            ));
        }
        (Some(_), Some(_), true) => {
            return Err(Failure::argument("mask", "none beside margins", "one"));
        }
    };
    if params.width != 0 {
        request = request.width(params.width as usize);
    }
    if params.height != 0 {
        request = request.height(params.height as usize);
    }
    match (params.has_strength != 0, params.strength) {
        (true, strength) => request = request.strength(strength),
        (false, 0.0) => {}
        (false, strength) => {
            let expected = "0 without has_strength (set has_strength to 1 for one of your own)";
            return Err(Failure::argument("strength", expected, strength));
        }
    }
    match (params.has_only_masked != 0, params.only_masked) {
        (true, padding) => request = request.only_masked(padding as usize),
        (false, 0) => {}
        (false, padding) => {
            let expected = "0 without has_only_masked (set has_only_masked to 1)";
            return Err(Failure::argument("only_masked", expected, padding));
        }
    }
    if params.mask_blur != 0.0 {
        request = request.mask_blur(params.mask_blur);
    }
    match (
        params.hires_width,
        params.hires_height,
        params.hires_strength,
    ) {
        (0, 0, 0.0) => {}
        (width, height, strength) => {
            let hires = Hires::new(width as usize, height as usize);
            let strength = match strength {
                0.0 => hires.strength,
                strength => strength,
            };
            request = request.hires(Hires { strength, ..hires });
        }
    }
    Ok(request)
}
