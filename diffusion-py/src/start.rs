//! What a run starts from beside noise.

use diffusion_core::media::{Margins, Resampling, ResizeMode};
use diffusion_core::nn::Interpolation;
use diffusion_core::{
    Error, GenerateRequest, GrayImage, Hires, InitImage, MaskedContent, Result, Upscaler,
};
use pyo3::prelude::*;

use crate::pictures::{RawPicture, picture};
use crate::request::{RawArray, named, set, tensor};

/// A dictionary of Python's arguments.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct RawStart {
    pictures: Vec<RawPicture>,
    latents: Option<RawArray>,
    noise: Option<RawArray>,
    strength: Option<f64>,
    resize_mode: String,
    mask: Option<RawPicture>,
    mask_blur: Option<f64>,
    only_masked: Option<usize>,
    paste_back: bool,
    masked_content: Option<String>,
    margins: Option<(u32, u32, u32, u32)>,
    variation: Option<(u64, f64)>,
    hires: Option<RawHires>,
}

/// Size, upscaler, strength, number of steps, prompt.
type RawHires = ((usize, usize), String, f64, Option<usize>, Option<String>);

const RESIZE_MODES: &[(&str, ResizeMode)] = &[
    ("stretch", ResizeMode::Stretch),
    ("crop", ResizeMode::Crop),
    ("fill", ResizeMode::Fill),
];
const CONTENTS: &[(&str, MaskedContent)] = &[
    ("original", MaskedContent::Original),
    ("fill", MaskedContent::Fill),
    ("noise", MaskedContent::Noise),
    ("nothing", MaskedContent::Nothing),
];
const UPSCALERS: &[(&str, Upscaler)] = &[
    ("latent", Upscaler::Latents(Interpolation::Bilinear)),
    ("latent_nearest", Upscaler::Latents(Interpolation::Nearest)),
    (
        "latent_antialiased",
        Upscaler::Latents(Interpolation::BilinearAntialiased),
    ),
    ("latent_bicubic", Upscaler::Latents(Interpolation::Bicubic)),
    (
        "latent_bicubic_antialiased",
        Upscaler::Latents(Interpolation::BicubicAntialiased),
    ),
    ("nearest", Upscaler::Pixels(Resampling::Nearest)),
    ("bilinear", Upscaler::Pixels(Resampling::Bilinear)),
    ("bicubic", Upscaler::Pixels(Resampling::Bicubic)),
    ("lanczos", Upscaler::Pixels(Resampling::Lanczos)),
];

/// The bright channel of a grey picture.
fn grey(raw: &RawPicture) -> Result<GrayImage> {
    let rgb = picture(raw)?;
    Ok(GrayImage::from_fn(rgb.width(), rgb.height(), |x, y| {
        let [level, ..] = rgb.get_pixel(x, y).0;
        [level].into()
    }))
}

impl RawStart {
    /// The request of a prompt with all this.
    pub(crate) fn request(self, prompt: &str) -> Result<GenerateRequest> {
        let mut pictures = self
            .pictures
            .iter()
            .map(picture)
            .collect::<Result<Vec<_>>>()?;
        let latents = self.latents.map(tensor).transpose()?;
        let image = match latents {
            Some(latents) => Some(InitImage::Latents(latents)),
            None if pictures.is_empty() => None,
            None => Some(InitImage::Pictures(pictures.clone())),
        };
        let mask = self.mask.as_ref().map(grey).transpose()?;
        let mut request = match (image, mask, self.margins) {
            (Some(image), Some(mask), None) => GenerateRequest::inpaint(prompt, image, mask),
            (Some(_), None, Some((left, top, right, bottom))) if !pictures.is_empty() => {
                let margins = Margins {
                    left,
                    top,
                    right,
                    bottom,
                };
                GenerateRequest::outpaint(prompt, pictures.swap_remove(0), margins)
            }
            (Some(image), None, None) => GenerateRequest::img2img(prompt, image),
            (None, None, None) => GenerateRequest::txt2img(prompt),
            (image, mask, _) => {
                return Err(Error::InvalidArgument {
                    name: "mask_image or margins",
                    expected: "one of them, beside a picture".into(),
                    found: match (image, mask) {
                        (None, _) => "no picture",
                        (_, Some(_)) => "both",
                        (_, None) => "latents",
                    }
                    .into(),
                });
            }
        };
        let mode = named("resize_mode", &self.resize_mode, RESIZE_MODES)?;
        request = request.resize_mode(mode).paste_back(self.paste_back);
        request = set(request, self.strength, GenerateRequest::strength);
        request = set(request, self.mask_blur, GenerateRequest::mask_blur);
        request = set(request, self.only_masked, GenerateRequest::only_masked);
        let content = self
            .masked_content
            .map(|name| named("masked_content", &name, CONTENTS));
        request = set(
            request,
            content.transpose()?,
            GenerateRequest::masked_content,
        );
        let noise = self.noise.map(tensor).transpose()?;
        request = set(request, noise, GenerateRequest::noise);
        request = set(request, self.variation, |request, (seed, strength)| {
            request.variation(seed, strength)
        });
        let hires = self
            .hires
            .map(|((width, height), upscaler, strength, num_steps, prompt)| {
                Ok::<_, Error>(Hires {
                    upscaler: named("hires upscaler", &upscaler, UPSCALERS)?,
                    strength,
                    num_steps,
                    prompt,
                    ..Hires::new(width, height)
                })
            });
        Ok(set(request, hires.transpose()?, GenerateRequest::hires))
    }
}

/// What Python says of guidance.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct RawGuidance {
    scale: f64,
    /// Scales along the run, in place of one.
    curve: Vec<f64>,
    /// The shares between which it is on.
    interval: (f64, f64),
    rescale: f64,
    image_scale: f64,
    cfg_zero_star: Option<usize>,
}

pub(crate) fn guidance(request: GenerateRequest, raw: RawGuidance) -> GenerateRequest {
    let (start, end) = raw.interval;
    let request = request
        .guidance_scale(raw.scale)
        .guidance_curve(raw.curve)
        .guidance_interval(start, end)
        .guidance_rescale(raw.rescale)
        .image_guidance_scale(raw.image_scale);
    set(request, raw.cfg_zero_star, GenerateRequest::cfg_zero_star)
}
