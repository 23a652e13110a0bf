//! What a run starts from beside noise: pictures, masks, and what models see of them.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use image::GrayImage;

use super::canvas::Canvas;
use super::check::Checked;
use super::request::{InitImage, MaskedContent};
use super::{GenerateRequest, Pipeline, Warning};
use crate::denoise::{Channels, row_for_each};
use crate::error::{Error, Result};
use crate::media;
use crate::model::Posterior;
use crate::rng::ImageRngs;

/// What a UNet takes as input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inputs {
    /// The latents alone.
    Latents,
    /// A mask and what it leaves of a picture beside: inpainting models.
    Mask,
    /// A picture beside: instruct-pix2pix models.
    Picture,
}

impl Pipeline {
    /// What the UNet takes, by its channels.
    pub(super) fn inputs(&self) -> Result<Inputs> {
        let (channels, latent) = (self.unet.config().in_channels, self.vae.latent_channels());
        match channels {
            _ if channels == latent => Ok(Inputs::Latents),
            _ if channels == 2 * latent + 1 => Ok(Inputs::Mask),
            _ if channels == 2 * latent => Ok(Inputs::Picture),
            _ => Err(Error::unsupported(
                format!("a UNet of {channels} input channels for latents of {latent}"),
                format!(
                    "{latent}, {} (inpainting) and {} (instruct-pix2pix) are known",
                    2 * latent + 1,
                    2 * latent
                ),
            )),
        }
    }
}

/// Latents of one picture, or of one for each picture of the run.
enum Source {
    Latents(Tensor),
    Encoded(Posterior),
}

impl Source {
    /// The latents of some of the run's pictures, scaled for the UNet. Each picture draws from its own stream,
    /// where the autoencoder gives a distribution.
    fn draw(
        &self,
        pipe: &Pipeline,
        rows: impl Fn(&Tensor) -> Result<Tensor>,
        rngs: &mut ImageRngs,
    ) -> Result<Tensor> {
        match self {
            Self::Latents(latents) => rows(latents),
            Self::Encoded(Posterior { mean, logvar }) => {
                let mean = rows(mean)?;
                let Some(logvar) = logvar else {
                    return pipe.vae.scale(&mean);
                };
                let logvar = Some(rows(logvar)?);
                let posterior = Posterior { mean, logvar };
                pipe.vae.scale(&posterior.sample(&rngs.draw()?)?)
            }
        }
    }
}

/// A request's pictures, ready for its batches.
pub(super) struct Start {
    inputs: Inputs,
    num_images: usize,
    image: Option<Source>,
    /// `(1, 1, height / 8, width / 8)`: 1 where the picture changes.
    mask: Option<Tensor>,
    /// What the mask leaves of the picture.
    masked: Option<Source>,
    /// What an instruct-pix2pix model sees.
    channels: Option<Channels>,
    content: MaskedContent,
    from_noise: bool,
}

/// What the run of a batch starts from.
pub(super) struct Begin {
    /// Unit noise.
    pub(super) noise: Tensor,
    /// The picture's latents, where the run starts from them or keeps some.
    pub(super) clean: Option<Tensor>,
    /// The same with what is under the mask at the start.
    pub(super) start: Option<Tensor>,
    /// The mask, where the pipeline and not the model looks after it.
    pub(super) mask: Option<Tensor>,
    /// What the UNet sees beside the latents.
    pub(super) channels: Option<Channels>,
}

impl Start {
    /// Reads the request's pictures.
    pub(super) fn new(
        pipe: &Pipeline,
        request: &GenerateRequest,
        checked: &Checked,
        canvas: &Canvas,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        let inputs = pipe.inputs()?;
        let from_noise = checked.from_noise;
        let device = &pipe.device;
        let pictures = canvas
            .pictures
            .iter()
            .map(|picture| media::from_rgb8(picture, device));
        let pictures = pictures.collect::<Result<Vec<_>>>()?;
        let is_kept = canvas.mask.is_some() && inputs == Inputs::Latents;
        let image = match &request.image {
            Some(_) if from_noise && !is_kept => None,
            None => None,
            Some(InitImage::Latents(latents)) => {
                let latents = latents.to_device(device)?.to_dtype(DType::F32)?;
                Some(Source::Latents(latents))
            }
            Some(InitImage::Pictures(_)) => Some(pipe.encode_all(&pictures, warnings)?),
        };
        let size = (checked.height, checked.width);
        let mask = match (&canvas.mask, inputs) {
            (Some(mask), _) => Some(open_pixels(mask, device)?),
            // A model that wants a mask has all open, where the request has none.
            (None, Inputs::Mask) => Some(Tensor::ones((1, 1, size.0, size.1), DType::F32, device)?),
            (None, _) => None,
        };
        let masked = match (&mask, pictures.is_empty()) {
            (None, _) => None,
            (Some(mask), false) => {
                let kept = mask.affine(-1.0, 1.0)?;
                let kept = pictures
                    .iter()
                    .map(|picture| Ok(picture.broadcast_mul(&kept)?));
                Some(pipe.encode_all(&kept.collect::<Result<Vec<_>>>()?, warnings)?)
            }
            (Some(_), true) if inputs == Inputs::Mask => {
                let grey = Tensor::zeros((1, 3, size.0, size.1), DType::F32, device)?;
                Some(pipe.encode_all(&[grey], warnings)?)
            }
            (Some(_), true) => None,
        };
        let channels = match inputs {
            Inputs::Picture => {
                let Source::Encoded(seen) = pipe.encode_all(&pictures, warnings)? else {
                    return Err(pictures_missing());
                };
                Some(Channels::Picture(seen.mean))
            }
            _ => None,
        };
        let factor = pipe.vae.downscale();
        Ok(Self {
            inputs,
            num_images: request.num_images,
            image,
            mask: mask.map(|mask| every(&mask, factor)).transpose()?,
            masked,
            channels,
            content: request.inpainting.content,
            from_noise,
        })
    }

    /// Draws what a batch starts from, in the order in which diffusers draws: the picture's latents, the noise,
    /// what the mask leaves.
    pub(super) fn begin(
        &self,
        pipe: &Pipeline,
        images: &Range<usize>,
        rngs: &mut ImageRngs,
        noise: impl FnOnce(&mut ImageRngs) -> Result<Tensor>,
    ) -> Result<Begin> {
        let rows = |tensor: &Tensor| row_for_each(tensor, images, self.num_images);
        let draw = |source: &Option<Source>, rngs: &mut ImageRngs| {
            let drawn = source.as_ref().map(|source| source.draw(pipe, rows, rngs));
            drawn.transpose()
        };
        let clean = draw(&self.image, rngs)?;
        let noise = noise(rngs)?;
        let masked = draw(&self.masked, rngs)?;
        let channels = match (self.inputs, &self.mask, masked) {
            (Inputs::Mask, Some(mask), Some(masked)) => {
                let mask = rows(mask)?;
                Some(Channels::Always(Tensor::cat(&[mask, masked], 1)?))
            }
            _ => {
                let channels = self.channels.as_ref();
                channels
                    .map(|channels| channels.of_images(images, self.num_images))
                    .transpose()?
            }
        };
        let start = match (&clean, &self.mask, self.content) {
            _ if self.from_noise => None,
            (Some(clean), Some(mask), MaskedContent::Noise) => Some(mixed(clean, mask, &noise)?),
            (Some(clean), Some(mask), MaskedContent::Nothing) => {
                Some(mixed(clean, mask, &clean.zeros_like()?)?)
            }
            _ => clean.clone(),
        };
        let mask = self.mask.clone().filter(|_| self.inputs == Inputs::Latents);
        Ok(Begin {
            noise,
            clean,
            start,
            mask,
            channels,
        })
    }
}

/// `clean` outside of the mask and `changed` within.
fn mixed(clean: &Tensor, mask: &Tensor, changed: &Tensor) -> Result<Tensor> {
    let outside = mask.affine(-1.0, 1.0)?;
    let kept = clean.broadcast_mul(&outside)?;
    Ok(kept.broadcast_add(&changed.broadcast_mul(mask)?)?)
}

/// `(1, 1, height, width)`: 1 where the mask is bright.
fn open_pixels(mask: &GrayImage, device: &Device) -> Result<Tensor> {
    let open = mask.pixels().map(|level| f32::from(level.0[0] >= 128));
    let shape = (1, 1, mask.height() as usize, mask.width() as usize);
    Ok(Tensor::from_vec(open.collect::<Vec<_>>(), shape, device)?)
}

/// Every `factor`th row and column.
fn every(mask: &Tensor, factor: usize) -> Result<Tensor> {
    let (_, _, height, width) = mask.dims4()?;
    let (rows, columns) = (height / factor, width / factor);
    let blocks = mask.reshape((rows, factor, columns, factor))?;
    let corners = blocks.narrow(1, 0, 1)?.narrow(3, 0, 1)?;
    Ok(corners.contiguous()?.reshape((1, 1, rows, columns))?)
}

fn pictures_missing() -> Error {
    let expected =
        "a picture to change, for this instruct-pix2pix model (GenerateRequest::instruct)";
    Error::argument("image", expected, "none")
}

impl Pipeline {
    /// The latents' distributions, not yet scaled, one picture after another, so that each has the same bits
    /// whatever stands beside it.
    fn encode_all(&self, pictures: &[Tensor], warnings: &mut Vec<Warning>) -> Result<Source> {
        let encoded = pictures
            .iter()
            .map(|picture| self.encode_picture(picture, warnings));
        let encoded = encoded.collect::<Result<Vec<_>>>()?;
        if encoded.is_empty() {
            return Err(pictures_missing());
        }
        let means: Vec<_> = encoded.iter().map(|posterior| &posterior.mean).collect();
        let logvars: Vec<_> = encoded.iter().filter_map(|p| p.logvar.as_ref()).collect();
        Ok(Source::Encoded(Posterior {
            mean: Tensor::cat(&means, 0)?.to_dtype(DType::F32)?,
            logvar: match logvars.is_empty() {
                true => None,
                false => Some(Tensor::cat(&logvars, 0)?.to_dtype(DType::F32)?),
            },
        }))
    }

    /// An autoencoder that overflows in half precision, as SDXL's does, is asked again in f32, and a warning
    /// says so.
    fn encode_picture(&self, picture: &Tensor, warnings: &mut Vec<Warning>) -> Result<Posterior> {
        let posterior = self.vae.encode(picture)?;
        if self.vae.compute_dtype() == DType::F32 || media::is_finite(&posterior.mean)? {
            return Ok(posterior);
        }
        if !warnings.contains(&Warning::EncodedInF32) {
            warnings.push(Warning::EncodedInF32);
        }
        self.vae.with_compute_dtype(DType::F32).encode(picture)
    }
}
