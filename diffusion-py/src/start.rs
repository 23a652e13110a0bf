//! What a run starts from beside noise.

use diffusion_core::media::{Margins, Resampling, ResizeMode};
use diffusion_core::nn::Interpolation;
use diffusion_core::{
    Device, Error, GenerateRequest, GrayImage, Hires, InitImage, MaskedContent, Result, Upscaler,
};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays;
use crate::pictures::{RawPicture, picture};
use crate::request::set;

/// Bytes of float32 and their shape.
pub(crate) type RawArray = (PyBackedBytes, Vec<usize>);

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

/// One of several values by name.
fn named<T: Copy>(what: &'static str, name: &str, values: &[(&str, T)]) -> Result<T> {
    let found = values.iter().find(|(other, _)| *other == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::InvalidArgument {
            name: what,
            expected: values
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", "),
            found: format!("{name:?}"),
        })
}

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
    pub(crate) fn request(self, prompt: String) -> Result<GenerateRequest> {
        let mut pictures = self
            .pictures
            .iter()
            .map(picture)
            .collect::<Result<Vec<_>>>()?;
        let array =
            |(bytes, shape): &RawArray| arrays::from_bytes(bytes, shape.clone(), &Device::Cpu);
        let latents = self.latents.as_ref().map(array).transpose()?;
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
        let noise = self.noise.as_ref().map(array).transpose()?;
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

/// Scales of guidance along the run, the shares between which it is on, its rescaling, and the scale of the
/// picture that is to change.
pub(crate) type RawGuidance = (f64, Vec<f64>, (f64, f64), f64, f64);

pub(crate) fn guidance(request: GenerateRequest, raw: RawGuidance) -> GenerateRequest {
    let (scale, curve, (start, end), rescale, image_scale) = raw;
    request
        .guidance_scale(scale)
        .guidance_curve(curve)
        .guidance_interval(start, end)
        .guidance_rescale(rescale)
        .image_guidance_scale(image_scale)
}

/// A request as a run had it.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativeRequest(pub(crate) GenerateRequest);
