//! Pictures: to tensors and back, from files and into them.

mod animation;
mod clip;
mod exif;
mod fill;
mod fit;
mod grid;
mod mask;
mod provenance;
mod read;
mod resample;
mod write;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

pub use animation::Animation;
pub use clip::to_clip;
pub use fill::{Margins, extend, fill};
pub use fit::{ResizeMode, fit};
pub use grid::grid;
pub use mask::{Region, blur, composite, crop_region};
pub use provenance::Provenance;
pub use read::{Decoded, decode, decode_with_alpha, read, read_with_alpha};
pub use resample::{Resampling, resize};
pub use write::{save, to_jpeg, to_png, to_webp};

use crate::error::{Error, Result};

/// Turns decoded images into RGB8 pictures. Values are clamped to `[-1, 1]` and rounded to the
/// nearest of 256 levels, as diffusers does.
///
/// # Shapes
/// `images`: `(batch, 3, height, width)` in `[-1, 1]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for another shape, [`Error::NotFinite`] for values that are not numbers,
/// [`Error::Tensor`] if the device fails.
pub fn to_rgb8(images: &Tensor) -> Result<Vec<RgbImage>> {
    let &[batch, 3, height, width] = images.dims() else {
        let found = format!("{:?}", images.dims());
        return Err(Error::argument(
            "images",
            "shape (batch, 3, height, width)",
            found,
        ));
    };
    let images = images.to_dtype(DType::F32)?;
    if !is_finite(&images)? {
        let hint = "hold the weights in f32 or bf16, and check the latents";
        return Err(Error::NotFinite { hint });
    }
    let bytes = (images.clamp(-1.0, 1.0)? * 127.5)?.affine(1.0, 127.5)?;
    let bytes = bytes
        .round()?
        .to_dtype(DType::U8)?
        .permute((0, 2, 3, 1))?
        .contiguous()?;
    (0..batch)
        .map(|i| {
            let pixels = bytes.get(i)?.flatten_all()?.to_vec1::<u8>()?;
            RgbImage::from_raw(width as u32, height as u32, pixels).ok_or_else(|| {
                Error::argument("images", "sides below 2^32", format!("{width} x {height}"))
            })
        })
        .collect()
}

/// Whether all values are numbers.
///
/// # Errors
/// [`Error::Tensor`] if the device fails.
pub fn is_finite(images: &Tensor) -> Result<bool> {
    let sum = images.to_dtype(DType::F32)?.sum_all()?;
    Ok(sum.to_scalar::<f32>()?.is_finite())
}

/// Turns a picture into the tensor that [`Vae::encode`](crate::Vae::encode) takes.
///
/// # Shapes
/// Returns `(1, 3, height, width)`, f32 in `[-1, 1]`.
///
/// # Errors
/// [`Error::Tensor`] if the device fails.
pub fn from_rgb8(picture: &RgbImage, device: &Device) -> Result<Tensor> {
    from_levels(picture, 1.0 / 127.5, -1.0, device)
}

/// The picture's brightness in all three channels, as Pillow's `convert("L")` reckons it.
pub fn grey(picture: &RgbImage) -> RgbImage {
    let mut grey = picture.clone();
    for pixel in grey.pixels_mut() {
        let [red, green, blue] = pixel.0.map(u32::from);
        let sum = 19595 * red + 38470 * green + 7471 * blue;
        pixel.0 = [((sum + (1 << 15)) >> 16) as u8; 3];
    }
    grey
}

/// Turns a picture into what networks take that read one beside the latents.
///
/// # Shapes
/// Returns `(1, 3, height, width)`, f32 in `[0, 1]`.
///
/// # Errors
/// [`Error::Tensor`] if the device fails.
pub fn to_unit_range(picture: &RgbImage, device: &Device) -> Result<Tensor> {
    from_levels(picture, 1.0 / 255.0, 0.0, device)
}

fn from_levels(picture: &RgbImage, factor: f64, offset: f64, device: &Device) -> Result<Tensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let pixels = Tensor::from_slice(picture.as_raw(), (1, height, width, 3), device)?;
    let scaled = pixels.to_dtype(DType::F32)?.affine(factor, offset)?;
    Ok(scaled.permute((0, 3, 1, 2))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() -> Result<()> {
        let picture = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, 100 + y as u8, 255]));
        let tensor = from_rgb8(&picture, &Device::Cpu)?;
        assert_eq!(tensor.dims(), [1, 3, 2, 3]);
        assert_eq!(to_rgb8(&tensor)?, [picture]);
        Ok(())
    }

    #[test]
    fn what_is_not_a_number_is_not_black() -> Result<()> {
        let shape = (1, 3, 8, 8);
        for value in [f32::NAN, f32::INFINITY] {
            let images = Tensor::full(value, shape, &Device::Cpu)?;
            assert!(matches!(to_rgb8(&images), Err(Error::NotFinite { .. })));
        }
        let beyond = Tensor::full(7f32, shape, &Device::Cpu)?;
        assert_eq!(to_rgb8(&beyond)?[0].get_pixel(0, 0).0, [255; 3]);
        Ok(())
    }
}
