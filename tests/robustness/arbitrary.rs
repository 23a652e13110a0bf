//! Requests of arbitrary numbers and pictures of any size: a result or a typed error.

use diffusion_core::denoise::DeepShrink;
use diffusion_core::media::{Margins, ResizeMode};
use diffusion_core::model::VaeTiling;
use diffusion_core::nn::Seamless;
use diffusion_core::{
    ErrorKind, GenerateRequest, GrayImage, Hires, MaskedContent, Pipeline, RgbImage,
};
use diffusion_tests::{TestResult, model_path};

/// Marsaglia's xorshift, seeded.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Usual numbers more often than strange ones.
    fn number(&mut self) -> f64 {
        let strange = [
            f64::NAN,
            f64::INFINITY,
            -1.0,
            1e-300,
            1e300,
            -0.0,
            2.0,
            f64::MIN,
        ];
        match self.below(4) {
            0 => self.one_of(&strange),
            _ => self.one_of(&[0.0, 0.25, 0.5, 1.0]),
        }
    }

    fn count(&mut self) -> usize {
        match self.below(6) {
            0 => self.one_of(&[0, usize::MAX, 1 << 40, 1001]),
            _ => self.one_of(&[1, 2]),
        }
    }

    fn side(&mut self) -> usize {
        match self.below(5) {
            0 => self.one_of(&[0, 3, usize::MAX, 65_536, 12]),
            _ => self.one_of(&[8, 16, 24, 40]),
        }
    }

    fn picture(&mut self) -> RgbImage {
        let sides = [0, 1, 2, 7, 8, 9, 17, 33, 64];
        let (width, height) = (self.one_of(&sides), self.one_of(&sides));
        RgbImage::from_fn(width, height, |x, y| {
            [x as u8, y as u8, (x ^ y) as u8].into()
        })
    }

    fn mask(&mut self, image: &RgbImage) -> GrayImage {
        let (width, height) = match self.below(5) {
            0 => (self.below(9) as u32, self.below(9) as u32),
            _ => image.dimensions(),
        };
        let level = self.one_of(&[0, 127, 128, 255]);
        GrayImage::from_fn(width, height, |x, _| {
            [if x % 3 == 0 { level } else { 0 }].into()
        })
    }

    fn request(&mut self) -> GenerateRequest {
        let image = self.picture();
        let request = match self.below(6) {
            0 => GenerateRequest::txt2img("a cat"),
            1 => GenerateRequest::img2img("a cat", image),
            2 => GenerateRequest::img2img("a cat", vec![image.clone(), self.picture()]),
            3 => {
                let margin = self.one_of(&[0, 1, 8, 70_000, u32::MAX]);
                let margins = Margins {
                    left: margin,
                    ..Margins::all(3)
                };
                GenerateRequest::outpaint("a cat", image, margins)
            }
            4 => GenerateRequest::instruct("a cat", image),
            _ => {
                let mask = self.mask(&image);
                GenerateRequest::inpaint("a cat", image, mask)
            }
        };
        let mut request = request.num_steps(2).seed(1);
        // A few fields at a time: with all of them nothing would ever run.
        for _ in 0..self.below(4) {
            request = self.changed(request);
        }
        request
    }

    fn changed(&mut self, request: GenerateRequest) -> GenerateRequest {
        match self.below(27) {
            0 => request.num_steps(self.count()),
            1 => request.num_images(self.count()),
            2 => request.batch_size(self.count()),
            3 => request.size(self.side(), self.side()),
            4 => request.width(self.side()),
            5 => request.guidance_scale(self.number()),
            6 => request.guidance_curve([self.number(), self.number()]),
            7 => request.guidance_interval(self.number(), self.number()),
            8 => request.guidance_rescale(self.number()),
            9 => request.image_guidance_scale(self.number()),
            10 => request.cfg_zero_star(self.count()),
            11 => request.eta(self.number()),
            12 => request.strength(self.number()),
            13 => request.mask_blur(self.number()),
            14 => request.only_masked(self.one_of(&[0, 1, 5, 65_536, usize::MAX])),
            15 => request.masked_content(self.one_of(&[
                MaskedContent::Fill,
                MaskedContent::Noise,
                MaskedContent::Nothing,
            ])),
            16 => request.resize_mode(self.one_of(&[ResizeMode::Crop, ResizeMode::Fill])),
            17 => request.variation(self.0, self.number()),
            18 => request.denoising_end(self.number()),
            19 => request.pag_scale(self.number()),
            20 => request.deep_shrink(DeepShrink {
                start: self.number(),
                ..DeepShrink::default()
            }),
            21 => request.seamless(Seamless { x: true, y: false }),
            22 => request.vae_tiling(VaeTiling::Tiles {
                size: self.side(),
                overlap: self.number(),
            }),
            23 => request.deep_cache(self.count()),
            24 => request.tgate(self.count()),
            25 => request.token_merging(self.number()),
            _ => request.hires(Hires {
                strength: self.number(),
                num_steps: Some(self.count()),
                ..Hires::new(self.side(), self.side())
            }),
        }
    }
}

#[test]
fn arbitrary_requests() -> TestResult {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (model, rounds) in [("sd15", 300), ("inpaint", 100), ("pix2pix", 100)] {
        let pipe = Pipeline::builder().weights(model_path(model)).build()?;
        let mut made = 0;
        for _ in 0..rounds {
            let request = random.request();
            match pipe.generate(&request) {
                Ok(output) => {
                    let (width, height) = pipe.output_size(&request)?;
                    let size = (width as u32, height as u32);
                    assert!(output.images.iter().all(|image| image.dimensions() == size));
                    made += 1;
                }
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::InvalidArgument
                            | ErrorKind::OutOfMemory
                            | ErrorKind::Unsupported
                            | ErrorKind::Device
                    ),
                    "{error:?} of {request:?}"
                ),
            }
        }
        assert!(made > rounds / 10, "{model}: {made} of {rounds}");
    }
    Ok(())
}
