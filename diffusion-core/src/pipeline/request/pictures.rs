//! Pictures that a run starts from, or changes a part of.

use candle_core::Tensor;
use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use super::GenerateRequest;
use crate::media::{Margins, ResizeMode};

/// What a run starts from.
#[derive(Debug, Clone)]
pub enum InitImage {
    /// One picture, or one for each picture of the request. They are brought to the request's size.
    Pictures(Vec<RgbImage>),
    /// `(1 or num_images, channels, height / 8, width / 8)`: clean latents, scaled for the UNet.
    Latents(Tensor),
}

impl From<RgbImage> for InitImage {
    fn from(picture: RgbImage) -> Self {
        Self::Pictures(vec![picture])
    }
}

impl From<Vec<RgbImage>> for InitImage {
    fn from(pictures: Vec<RgbImage>) -> Self {
        Self::Pictures(pictures)
    }
}

impl From<Tensor> for InitImage {
    fn from(latents: Tensor) -> Self {
        Self::Latents(latents)
    }
}

/// What is under the mask when an inpainting run begins, at strengths below 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MaskedContent {
    /// The picture itself.
    #[default]
    Original,
    /// Colours that flow in from around.
    Fill,
    /// Noise, as latents.
    Noise,
    /// Nothing: zero latents, a grey.
    Nothing,
}

/// What a request says about its mask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::pipeline) struct Inpainting {
    #[serde(skip)]
    pub(in crate::pipeline) mask: Option<GrayImage>,
    #[serde(rename = "mask_blur")]
    pub(in crate::pipeline) blur: f64,
    pub(in crate::pipeline) only_masked: Option<usize>,
    pub(in crate::pipeline) paste_back: bool,
    #[serde(rename = "masked_content")]
    pub(in crate::pipeline) content: MaskedContent,
}

impl Default for Inpainting {
    fn default() -> Self {
        Self {
            mask: None,
            blur: 0.0,
            only_masked: None,
            paste_back: true,
            content: MaskedContent::Original,
        }
    }
}

impl GenerateRequest {
    /// Another picture out of one, by the prompt; how much of it changes is said by
    /// [`strength`](Self::strength).
    ///
    /// Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
    /// Equations", 2021.
    pub fn img2img(prompt: impl Into<String>, image: impl Into<InitImage>) -> Self {
        Self {
            image: Some(image.into()),
            ..Self::txt2img(prompt)
        }
    }

    /// Changes a picture where the mask is bright (128 and more of 255), by the prompt. Models that see the mask
    /// (9 input channels) and others do it.
    pub fn inpaint(
        prompt: impl Into<String>,
        image: impl Into<InitImage>,
        mask: GrayImage,
    ) -> Self {
        let mut request = Self::img2img(prompt, image);
        request.inpainting.mask = Some(mask);
        request
    }

    /// Grows a picture beyond its edges, by the prompt. The sides become multiples of the autoencoder's
    /// factor, if need be by a few pixels more on the right and below.
    pub fn outpaint(prompt: impl Into<String>, image: RgbImage, margins: Margins) -> Self {
        Self {
            margins: Some(margins),
            ..Self::img2img(prompt, image)
        }
        .masked_content(MaskedContent::Fill)
        .mask_blur(4.0)
    }

    /// Changes a picture as the prompt tells, such as "make it winter": for instruct-pix2pix models.
    ///
    /// Source: Brooks et al., "InstructPix2Pix: Learning to Follow Image Editing Instructions", 2023.
    pub fn instruct(prompt: impl Into<String>, image: impl Into<InitImage>) -> Self {
        Self {
            is_instruction: true,
            ..Self::img2img(prompt, image)
        }
    }

    /// What the run starts from, in place of what the constructor was given, if anything.
    pub fn image(mut self, image: impl Into<InitImage>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Where the picture changes, in place of what the constructor was given, if anything; see
    /// [`inpaint`](Self::inpaint).
    pub fn mask(mut self, mask: GrayImage) -> Self {
        self.inpainting.mask = Some(mask);
        self
    }

    /// How much of the picture changes, from 0 (it goes through the autoencoder and back) to 1: the share of
    /// the steps that are done, as diffusers counts them, `floor(num_steps * strength)`. Default: 0.8, and 1
    /// for inpainting and instructions, which then start from noise alone.
    pub fn strength(mut self, strength: f64) -> Self {
        self.strength = Some(strength);
        self
    }

    /// How pictures and masks are brought to the request's size. Default: stretched.
    pub fn resize_mode(mut self, mode: ResizeMode) -> Self {
        self.resize_mode = mode;
        self
    }

    /// Softens the edge of the mask by a Gaussian of this standard deviation in pixels, from 0 to 1024.
    /// Default: 0.
    pub fn mask_blur(mut self, radius: f64) -> Self {
        self.inpainting.blur = radius;
        self
    }

    /// Works on the surroundings of the mask alone, at the request's size: details in large pictures. The
    /// padding is in pixels of the picture, up to 65,536. Default: on the whole picture.
    pub fn only_masked(mut self, padding: usize) -> Self {
        self.inpainting.only_masked = Some(padding);
        self
    }

    /// Whether what the mask leaves alone gets the picture's own pixels back, to the bit, which have been
    /// through the autoencoder otherwise. Default: yes.
    pub fn paste_back(mut self, paste_back: bool) -> Self {
        self.inpainting.paste_back = paste_back;
        self
    }

    /// What is under the mask at the start, at strengths below 1. Default: the picture itself.
    pub fn masked_content(mut self, content: MaskedContent) -> Self {
        self.inpainting.content = content;
        self
    }
}
