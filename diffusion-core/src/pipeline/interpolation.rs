//! Pictures between pictures: from prompt to prompt and from noise to noise.

use candle_core::Tensor;
use image::RgbImage;

use super::{Conditioning, GenerateRequest, Pipeline, Progress, ProgressFn, Warning};
use crate::error::{Error, Result};
use crate::rng::{ImageRngs, slerp};

/// The most frames of one interpolation.
const MAX_FRAMES: usize = 1 << 20;

/// A way through key frames, each a prompt and a seed.
///
/// Between two of them the conditioning goes along a straight line and the noise along an arc ([`slerp`]). All else
/// is the request's: size, steps, scheduler, guidance, the negative prompt. Fresh noise of stochastic
/// schedulers is that of the first seed in every frame, so that frames differ by little.
///
/// ```no_run
/// use std::time::Duration;
///
/// use diffusion_core::media::Animation;
/// use diffusion_core::pipeline::Interpolation;
/// use diffusion_core::{GenerateRequest, Pipeline};
///
/// let pipe = Pipeline::builder().weights("examples/models/emoji").build()?;
/// let request = GenerateRequest::txt2img("").num_steps(20).guidance_scale(5.0);
/// let way = Interpolation::new(request, 12)
///     .key("a red heart, flat style", 1)
///     .key("a green heart, flat style", 2)
///     .closed(true);
/// let frames = pipe.interpolate(&way)?.images;
/// Animation::new(frames, Duration::from_millis(80)).save("loop.webp", None)?;
/// # Ok::<(), diffusion_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Interpolation {
    request: GenerateRequest,
    keys: Vec<(String, u64)>,
    frames_per_segment: usize,
    is_closed: bool,
}

/// The frames of an interpolation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Interpolated {
    /// The frames in their order.
    pub images: Vec<RgbImage>,
    /// What the caller should know and may show.
    pub warnings: Vec<Warning>,
}

impl Interpolation {
    /// A way without key frames. `request` has what all frames share; its prompt, seed and number of pictures do not
    /// count. From one key frame to the next there are `frames_per_segment` frames, of which the first is the key
    /// frame itself.
    pub fn new(request: GenerateRequest, frames_per_segment: usize) -> Self {
        Self {
            request,
            keys: Vec::new(),
            frames_per_segment,
            is_closed: false,
        }
    }

    /// Adds a key frame: what the picture shows there, and the seed of its noise. Without fresh noise of the scheduler
    /// it is the picture that a request of this prompt and seed gives.
    pub fn key(mut self, prompt: impl Into<String>, seed: u64) -> Self {
        self.keys.push((prompt.into(), seed));
        self
    }

    /// Whether the way leads back to the first key frame, for a loop without a seam: the frame after the last is
    /// the first, which does not come twice. Otherwise it ends with the last key frame. Default: it ends.
    pub fn closed(mut self, is_closed: bool) -> Self {
        self.is_closed = is_closed;
        self
    }

    /// Number of frames.
    pub fn num_frames(&self) -> usize {
        self.segments().saturating_mul(self.frames_per_segment) + usize::from(!self.is_closed)
    }

    fn segments(&self) -> usize {
        self.keys.len().saturating_sub(usize::from(!self.is_closed))
    }

    /// The key frame before a frame, the one after it, and the share of the way between them.
    fn place(&self, frame: usize) -> (usize, usize, f64) {
        let (segment, step) = (
            frame / self.frames_per_segment,
            frame % self.frames_per_segment,
        );
        let share = step as f64 / self.frames_per_segment as f64;
        // The last frame of an open way is in no segment, and of share 0.
        let next = (segment + 1) % self.keys.len();
        (segment, next, share)
    }

    fn check(&self) -> Result<()> {
        if self.keys.len() < 2 {
            return Err(Error::argument("keys", "at least 2", self.keys.len()));
        }
        let found = self.num_frames();
        if self.frames_per_segment == 0 || found > MAX_FRAMES {
            let expected = format!("1 and more, and at most {MAX_FRAMES} frames in all");
            let found = self.frames_per_segment;
            return Err(Error::argument("frames_per_segment", expected, found));
        }
        match &self.request.latents {
            None => Ok(()),
            Some(_) => Err(Error::argument(
                "latents",
                "none, since the keys have seeds",
                "some",
            )),
        }
    }
}

impl Pipeline {
    /// Makes the frames of a way through key frames.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for less than two key frames, or a request with latents; otherwise as
    /// [`generate`](Self::generate).
    pub fn interpolate(&self, way: &Interpolation) -> Result<Interpolated> {
        self.interpolate_with(way, &mut |_| std::ops::ControlFlow::Continue(()))
    }

    /// Makes the frames of a way through key frames. `progress` sees each step of each frame, told as one of
    /// [`num_frames`](Interpolation::num_frames) pictures, and may cancel.
    ///
    /// # Errors
    /// As [`interpolate`](Self::interpolate), and [`Error::Cancelled`].
    pub fn interpolate_with(
        &self,
        way: &Interpolation,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Interpolated> {
        way.check()?;
        let base = way.request.clone().num_images(1).seed(way.keys[0].1);
        let (width, height) = self.image_size(&base)?;
        let factor = self.vae.downscale();
        let shape = [self.vae.latent_channels(), height / factor, width / factor];
        let decoder = self.with_vae_of(&base)?;
        let mut warnings = Vec::new();
        let keys = way.keys.iter().map(|(prompt, seed)| {
            let (told, more) = self.encode_prompt(&base.clone().prompt(prompt))?;
            warnings.extend(more);
            Ok((told, ImageRngs::new(&[*seed], &shape, &self.device).draw()?))
        });
        let keys: Vec<(Conditioning, Tensor)> = keys.collect::<Result<_>>()?;

        let num_images = way.num_frames();
        let mut images = Vec::with_capacity(num_images);
        for frame in 0..num_images {
            let (from, to, share) = way.place(frame);
            let ((told, noise), (next_told, next_noise)) = (&keys[from], &keys[to]);
            let told = told.lerp(next_told, share)?;
            let request = base.clone().latents(slerp(noise, next_noise, share)?);
            let sampled = self.sample(&told, &request, &mut |one| {
                progress(&Progress {
                    images: frame..frame + 1,
                    num_images,
                    ..*one
                })
            })?;
            let (image, more) = decoder.decode(&sampled.latents)?;
            images.extend(image);
            warnings.extend(more);
            // One warning is enough for what is wrong with every frame.
            warnings.dedup();
        }
        Ok(Interpolated { images, warnings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(keys: usize, is_closed: bool) -> Interpolation {
        let way = Interpolation::new(GenerateRequest::default(), 3).closed(is_closed);
        (0..keys as u64).fold(way, |way, seed| way.key("a", seed))
    }

    #[test]
    fn a_loop_does_not_show_its_first_frame_twice() {
        let places = |way: &Interpolation| {
            let frames = 0..way.num_frames();
            frames.map(|frame| way.place(frame)).collect::<Vec<_>>()
        };
        let third = 1.0 / 3.0;
        let open = [(0, 1, 0.0), (0, 1, third), (0, 1, 2.0 * third), (1, 0, 0.0)];
        assert_eq!(places(&way(2, false)), open);
        let closed = places(&way(2, true));
        assert_eq!(closed.len(), 6);
        assert_eq!(
            closed[3..],
            [(1, 0, 0.0), (1, 0, third), (1, 0, 2.0 * third)]
        );
    }

    #[test]
    fn no_way_is_refused() {
        for keys in [0, 1] {
            assert!(way(keys, false).check().is_err() && way(keys, true).check().is_err());
        }
        for frames in [0, usize::MAX] {
            let mut way = way(2, true);
            way.frames_per_segment = frames;
            assert!(way.check().is_err());
        }
    }
}
