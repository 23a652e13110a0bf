//! Checking a request's pictures.

use candle_core::Tensor;

use super::check::MAX_SIDE;
use super::request::InitImage;
use super::start::Inputs;
use super::{GenerateRequest, Pipeline};
use crate::error::{Error, Result};

/// The widest Gaussian that softens a mask, in pixels.
const MAX_BLUR: f64 = 1024.0;

impl Pipeline {
    /// `(width, height)` that a request has of its own: that of its latents, its noise or its picture.
    pub(super) fn own_size(&self, request: &GenerateRequest) -> Option<(usize, usize)> {
        let factor = self.vae.downscale();
        let latents = match &request.image {
            Some(InitImage::Latents(latents)) => Some(latents),
            _ => request.latents.as_ref().or(request.noise.as_ref()),
        };
        if let Some(&[_, _, height, width]) = latents.map(Tensor::dims) {
            return Some((width.saturating_mul(factor), height.saturating_mul(factor)));
        }
        let Some(InitImage::Pictures(pictures)) = &request.image else {
            return None;
        };
        if request.inpainting.only_masked.is_some() {
            return None;
        }
        let picture = pictures.first()?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Some(match request.margins {
            Some(margins) => {
                let grown = |side: usize, before: u32, after: u32| {
                    (side + before as usize + after as usize).next_multiple_of(factor)
                };
                (
                    grown(width, margins.left, margins.right),
                    grown(height, margins.top, margins.bottom),
                )
            }
            None => {
                let cut = |side: usize| (side - side % factor).max(factor);
                (cut(width), cut(height))
            }
        })
    }

    /// `(width, height)` of the pictures that a request results in: that of its second pass, that of the whole
    /// picture of which a part is worked on, or that of its [run](Self::image_size).
    ///
    /// # Errors
    /// As [`image_size`](Self::image_size).
    pub fn output_size(&self, request: &GenerateRequest) -> Result<(usize, usize)> {
        if let Some(hires) = &request.hires {
            return Ok(hires.size);
        }
        match (&request.image, request.inpainting.only_masked) {
            (Some(InitImage::Pictures(pictures)), Some(_)) if !pictures.is_empty() => {
                let (width, height) = pictures[0].dimensions();
                Ok((width as usize, height as usize))
            }
            _ => self.image_size(request),
        }
    }

    pub(super) fn check_pictures(&self, request: &GenerateRequest) -> Result<()> {
        let inputs = self.inputs()?;
        match (&request.image, inputs) {
            (None, Inputs::Picture) => {
                let expected = "a picture to change, for this instruct-pix2pix model (GenerateRequest::instruct)";
                return Err(Error::argument("image", expected, "none"));
            }
            (Some(InitImage::Latents(_)), Inputs::Mask | Inputs::Picture) => {
                let expected = "a picture, since this model sees more of it than latents";
                return Err(Error::argument("image", expected, "latents"));
            }
            (Some(_), Inputs::Latents | Inputs::Mask) if request.is_instruction => {
                return Err(Error::unsupported(
                    "an instruction for this model",
                    "instruct-pix2pix models take them, whose UNet has 8 input channels; others take img2img",
                ));
            }
            _ => {}
        }
        if let Some(InitImage::Pictures(pictures)) = &request.image {
            let count = pictures.len();
            if count != 1 && count != request.num_images {
                let expected = format!("1 picture, or {}, one for each", request.num_images);
                return Err(Error::argument("image", expected, count));
            }
            let size = pictures[0].dimensions();
            for picture in pictures {
                let (width, height) = picture.dimensions();
                let is_side = |side: u32| (1..=MAX_SIDE).contains(&(side as usize));
                if !(is_side(width) && is_side(height)) || (width, height) != size {
                    let expected =
                        format!("pictures of one size, with sides of 1 to {MAX_SIDE} pixels");
                    return Err(Error::argument(
                        "image",
                        expected,
                        format!("{width} x {height}"),
                    ));
                }
            }
        }
        self.check_mask(request)
    }

    fn check_mask(&self, request: &GenerateRequest) -> Result<()> {
        let settings = &request.inpainting;
        if !(0.0..=MAX_BLUR).contains(&settings.blur) {
            let expected = format!("0 to {MAX_BLUR} pixels");
            return Err(Error::argument("mask_blur", expected, settings.blur));
        }
        if let Some(padding) = settings.only_masked.filter(|padding| *padding > MAX_SIDE) {
            let expected = format!("at most {MAX_SIDE} pixels");
            return Err(Error::argument("only_masked", expected, padding));
        }
        if let Some(margins) = request.margins {
            if !matches!(request.image, Some(InitImage::Pictures(_))) {
                let expected = "a picture to grow, for margins (GenerateRequest::outpaint)";
                return Err(Error::argument("image", expected, "none"));
            }
            let sides = [margins.left, margins.top, margins.right, margins.bottom];
            if let Some(side) = sides.into_iter().find(|side| *side as usize > MAX_SIDE) {
                let expected = format!("at most {MAX_SIDE} pixels");
                return Err(Error::argument("margins", expected, side));
            }
            if request.width.or(request.height).is_some() || settings.only_masked.is_some() {
                let expected = "none beside margins, which say how large the picture becomes";
                return Err(Error::argument("size or only_masked", expected, "one"));
            }
        }
        let Some(mask) = &settings.mask else {
            return match settings.only_masked {
                Some(_) if request.margins.is_none() => {
                    let expected = "a mask, for only_masked (GenerateRequest::inpaint)";
                    Err(Error::argument("mask", expected, "none"))
                }
                _ => Ok(()),
            };
        };
        let (width, height) = mask.dimensions();
        let expected = match &request.image {
            Some(InitImage::Pictures(pictures)) => pictures.first().map(|p| p.dimensions()),
            _ => {
                let factor = self.vae.downscale();
                let size = self.own_size(request);
                size.map(|(width, height)| (width / factor * factor, height / factor * factor))
                    .map(|(width, height)| (width as u32, height as u32))
            }
        };
        match expected {
            Some(size) if size != (width, height) => {
                let expected = format!("{} x {} pixels, as the picture", size.0, size.1);
                Err(Error::argument(
                    "mask",
                    expected,
                    format!("{width} x {height}"),
                ))
            }
            _ => Ok(()),
        }
    }
}
