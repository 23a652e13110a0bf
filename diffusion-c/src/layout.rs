//! Where pictures lie in the caller's memory.

use diffusion_core::{GenerateRequest, Pipeline, RgbImage};

use crate::pipeline::narrow;
use crate::status::Failure;

/// RGBA, a byte each.
const PIXEL: usize = 4;

/// Pictures one below the other, with equal distances between the starts of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) width: u32,
    pub(crate) height: u32,
    row_bytes: usize,
    stride: usize,
    /// From the first row's start to the last row's end.
    pub(crate) bytes: usize,
}

impl Layout {
    pub(crate) fn new(
        pipeline: &Pipeline,
        request: &GenerateRequest,
        num_images: u32,
        row_stride: usize,
    ) -> Result<Self, Failure> {
        let (width, height) = pipeline.output_size(request)?;
        let (width, height) = narrow(width, height)?;
        if num_images == 0 {
            return Err(Failure::argument("num_images", "at least 1", 0));
        }
        let too_big = || {
            let found = format!(
                "{} of {width} x {height} pixels, rows {row_stride} bytes apart",
                num_images
            );
            Failure::argument("pixels", "pictures that memory can hold", found)
        };
        let row_bytes = (width as usize).checked_mul(PIXEL).ok_or_else(too_big)?;
        let stride = match row_stride {
            0 => row_bytes,
            stride if stride >= row_bytes => stride,
            stride => {
                let expected = format!("0, or at least {row_bytes} bytes a row");
                return Err(Failure::argument("row_stride", expected, stride));
            }
        };
        let bytes = (height as usize)
            .checked_mul(num_images as usize)
            .and_then(|rows| rows.checked_sub(1)?.checked_mul(stride))
            .and_then(|above| above.checked_add(row_bytes))
            // The most that one object in memory may have.
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(too_big)?;
        Ok(Self {
            width,
            height,
            row_bytes,
            stride,
            bytes,
        })
    }

    /// Writes the pictures, opaque, and nothing between or behind their rows.
    ///
    /// # Safety
    /// `pixels` points to `self.bytes` writable bytes, and there are no more pictures than the layout was
    /// made for.
    pub(crate) unsafe fn write(&self, pictures: &[RgbImage], pixels: *mut u8) {
        let mut row = vec![u8::MAX; self.row_bytes];
        let mut offset = 0;
        for picture in pictures {
            // The safety of the rows below rests on it.
            assert_eq!(picture.dimensions(), (self.width, self.height));
            for source in picture.as_raw().chunks_exact(self.width as usize * 3) {
                for (to, from) in row.chunks_exact_mut(PIXEL).zip(source.chunks_exact(3)) {
                    to[..3].copy_from_slice(from);
                }
                // SAFETY: with every picture of the layout's size the last row ends at `self.bytes`, and
                // `row` is our own memory. The buffer is written as raw bytes as C need not have set it.
                unsafe {
                    let to = pixels.add(offset);
                    to.copy_from_nonoverlapping(row.as_ptr(), self.row_bytes);
                }
                offset += self.stride;
            }
        }
    }
}
