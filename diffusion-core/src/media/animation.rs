//! Pictures in motion: GIF, APNG and animated WebP.

use std::fs;
use std::path::Path;
use std::time::Duration;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, RgbImage};

use super::write::{MAX_WEBP_SIDE, check_pixels, check_sides};
use super::{Provenance, exif, to_webp};
use crate::error::{Error, Result};

/// The longest that a frame stands: APNG counts milliseconds in 16 bits.
const MAX_DELAY: Duration = Duration::from_millis(u16::MAX as u64);
/// How thoroughly a GIF's palettes are sought, from 1 (the best) to 30.
const GIF_SPEED: i32 = 1;
/// GIF counts time in hundredths of a second.
const GIF_TICK: Duration = Duration::from_millis(10);

/// Frames of one size, and how they are shown.
///
/// ```no_run
/// # fn f(frames: Vec<diffusion_core::RgbImage>) -> diffusion_core::Result<()> {
/// use std::time::Duration;
/// use diffusion_core::media::Animation;
///
/// Animation::new(frames, Duration::from_millis(80)).save("loop.webp", None)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Animation {
    frames: Vec<RgbImage>,
    delay: Duration,
    plays: u16,
}

impl Animation {
    /// Frames that stand for `delay` each, from 1 millisecond to 65 seconds, again and again. GIF has hundredths of a
    /// second: its frames stand shorter or longer by less than one, and their sum is right. Many viewers
    /// show frames of less than 20 milliseconds for 100.
    pub fn new(frames: Vec<RgbImage>, delay: Duration) -> Self {
        Self {
            frames,
            delay,
            plays: 0,
        }
    }

    /// How often all frames are shown; 0 means without end. Default: 0.
    pub fn plays(mut self, plays: u16) -> Self {
        self.plays = plays;
        self
    }

    /// Writes a file of the kind that its ending says: `.gif`, `.png` or `.apng`, `.webp`, with how its pictures
    /// came about where the kind has a place for it, which GIF has not.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other endings, [`Error::Io`] if writing fails; otherwise as
    /// [`to_gif`](Self::to_gif) and its like.
    pub fn save(&self, path: impl AsRef<Path>, provenance: Option<&Provenance>) -> Result<()> {
        let path = path.as_ref();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let bytes = match ending.to_lowercase().as_str() {
            "gif" => self.to_gif()?,
            "png" | "apng" => self.to_apng(provenance)?,
            "webp" => self.to_webp(provenance)?,
            _ => {
                let what = format!("writing an animation into {}", path.display());
                return Err(Error::unsupported(what, "end it in .gif, .png or .webp"));
            }
        };
        fs::write(path, bytes).map_err(|e| Error::io(path, e))
    }

    /// Encodes a GIF. Each frame has a palette of its own: its very colours if they are at most 256, otherwise those
    /// that a self-organising map finds, without dithering.
    ///
    /// Source: Dekker, "Kohonen neural networks for optimal colour quantization", 1994.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no frames, frames of several sizes, sides above 65535 or a delay out of range.
    pub fn to_gif(&self) -> Result<Vec<u8>> {
        self.check(u32::from(u16::MAX))?;
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new_with_speed(&mut bytes, GIF_SPEED);
        // The format counts how often frames are shown again.
        let repeat = match self.plays {
            0 => Some(Repeat::Infinite),
            1 => None,
            plays => Some(Repeat::Finite(plays - 1)),
        };
        if let Some(repeat) = repeat {
            encoder.set_repeat(repeat).map_err(Error::custom)?;
        }
        let tick = |frame: usize| {
            let end = self.delay.as_secs_f64() * frame as f64;
            (end / GIF_TICK.as_secs_f64()).round() as u32
        };
        for (frame, i) in self.frames.iter().zip(0..) {
            let ticks = tick(i + 1) - tick(i);
            let delay = Delay::from_saturating_duration(GIF_TICK * ticks);
            let pixels = DynamicImage::ImageRgb8(frame.clone()).into_rgba8();
            let frame = Frame::from_parts(pixels, 0, 0, delay);
            encoder.encode_frame(frame).map_err(Error::custom)?;
        }
        drop(encoder);
        Ok(bytes)
    }

    /// Encodes an animated PNG, without loss. Programs that do not know these show the first frame.
    ///
    /// # Errors
    /// As [`to_gif`](Self::to_gif), without a bound of the sides.
    pub fn to_apng(&self, provenance: Option<&Provenance>) -> Result<Vec<u8>> {
        let (width, height) = self.check(u32::MAX)?;
        let mut info = png::Info::with_size(width, height);
        info.color_type = png::ColorType::Rgb;
        info.bit_depth = png::BitDepth::Eight;
        if let Some(provenance) = provenance {
            provenance.write_png(&mut info);
        }
        let mut bytes = Vec::new();
        self.write_apng(info, &mut bytes).map_err(Error::custom)?;
        Ok(bytes)
    }

    fn write_apng(
        &self,
        info: png::Info<'_>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::with_info(bytes, info)?;
        encoder.set_animated(self.frames.len() as u32, u32::from(self.plays))?;
        encoder.set_frame_delay(self.delay.as_millis() as u16, 1000)?;
        let mut writer = encoder.write_header()?;
        for frame in &self.frames {
            writer.write_image_data(frame.as_raw())?;
        }
        writer.finish()
    }

    /// Encodes an animated WebP, without loss.
    ///
    /// Source: "WebP Container Specification": the chunks `VP8X`, `ANIM` and `ANMF`.
    ///
    /// # Errors
    /// As [`to_gif`](Self::to_gif), for sides above 16383, and [`Error::Unsupported`] for more than 4 GiB.
    pub fn to_webp(&self, provenance: Option<&Provenance>) -> Result<Vec<u8>> {
        const ANIMATED: u32 = 0x02;
        const HAS_EXIF: u32 = 0x08;
        // Each frame takes the place of the one before and is not laid upon it.
        const REPLACES: u8 = 0x02;
        let (width, height) = self.check(MAX_WEBP_SIDE)?;
        let exif = provenance.map(exif::write);
        let flags = ANIMATED | exif.as_ref().map_or(0, |_| HAS_EXIF);
        let header = [&flags.to_le_bytes()[..], &u24(width - 1), &u24(height - 1)];
        // A background of no colour.
        let loops = [&[0; 4][..], &self.plays.to_le_bytes()];
        let mut body = b"WEBP".to_vec();
        push_chunk(&mut body, b"VP8X", &header.concat())?;
        push_chunk(&mut body, b"ANIM", &loops.concat())?;
        for frame in &self.frames {
            let still = to_webp(frame, None)?;
            let corner = [0; 3];
            let time = u24(self.delay.as_millis() as u32);
            let place = [corner, corner, u24(width - 1), u24(height - 1), time].concat();
            // Behind "RIFF", a length and "WEBP" is the one chunk of pixels.
            let pixels = &still[12..];
            push_chunk(
                &mut body,
                b"ANMF",
                &[&place, &[REPLACES][..], pixels].concat(),
            )?;
        }
        if let Some(exif) = exif {
            push_chunk(&mut body, b"EXIF", &exif)?;
        }
        let mut file = Vec::new();
        push_chunk(&mut file, b"RIFF", &body)?;
        Ok(file)
    }

    /// Checks frames and delay; returns `(width, height)`.
    fn check(&self, max_side: u32) -> Result<(u32, u32)> {
        let first = self.frames.first();
        let first = first.ok_or_else(|| Error::argument("frames", "at least 1", "none"))?;
        check_pixels(first)?;
        check_sides(first, max_side)?;
        let size = first.dimensions();
        if let Some(other) = self.frames.iter().find(|frame| frame.dimensions() != size) {
            let expected = format!("frames of one size, {} x {}", size.0, size.1);
            let found = format!("{} x {}", other.width(), other.height());
            return Err(Error::argument("frames", expected, found));
        }
        match (Duration::from_millis(1)..=MAX_DELAY).contains(&self.delay) {
            true => Ok(size),
            false => {
                let expected = format!("1 millisecond to {MAX_DELAY:?}");
                let found = format!("{:?}", self.delay);
                Err(Error::argument("delay", expected, found))
            }
        }
    }
}

/// A number in three bytes.
fn u24(number: u32) -> [u8; 3] {
    let [first, second, third, _] = number.to_le_bytes();
    [first, second, third]
}

/// A chunk of a RIFF file: name, length, data, and a byte that makes it even.
fn push_chunk(bytes: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) -> Result<()> {
    let len = u32::try_from(data.len()).map_err(|_| {
        let what = format!("a WebP of {} MiB", data.len() >> 20);
        Error::unsupported(what, "write fewer or smaller frames, or an APNG")
    })?;
    bytes.extend(name);
    bytes.extend(len.to_le_bytes());
    bytes.extend(data);
    if data.len() % 2 == 1 {
        bytes.push(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use image::codecs::gif::GifDecoder;
    use image::codecs::png::PngDecoder;
    use image::codecs::webp::WebPDecoder;
    use image::{AnimationDecoder, Frames};

    fn frames(count: u32) -> Vec<RgbImage> {
        let color = |i: u32, x: u32, y: u32| [(x * 8 + i) as u8, (y * 16) as u8, (i * 50) as u8];
        let frame = |i| RgbImage::from_fn(17, 11, |x, y| image::Rgb(color(i, x, y)));
        (0..count).map(frame).collect()
    }

    fn read(frames: Frames<'_>) -> Result<(Vec<RgbImage>, Vec<Duration>)> {
        let frames = frames.collect_frames().map_err(Error::custom)?;
        let delays = frames.iter().map(|frame| frame.delay().into()).collect();
        let pixels = frames.into_iter().map(Frame::into_buffer);
        let pixels = pixels.map(|frame| DynamicImage::ImageRgba8(frame).into_rgb8());
        Ok((pixels.collect(), delays))
    }

    #[test]
    fn every_frame_comes_back() -> Result<()> {
        let provenance = Provenance::new(Some("a cat\nSteps: 3".into()), Some("{}".into()));
        for count in [1, 2, 5] {
            // All colours of a frame fit into a palette.
            let frames = frames(count);
            let animation = Animation::new(frames.clone(), Duration::from_millis(45));
            let gif = animation.to_gif()?;
            let apng = animation.to_apng(Some(&provenance))?;
            let webp = animation.to_webp(Some(&provenance))?;
            let decoder = GifDecoder::new(Cursor::new(&gif)).map_err(Error::custom)?;
            let (pixels, delays) = read(decoder.into_frames())?;
            assert_eq!(pixels, frames);
            let total: Duration = delays.iter().sum();
            assert!(total.abs_diff(Duration::from_millis(45) * count) <= GIF_TICK / 2);

            let decoder = PngDecoder::new(Cursor::new(&apng)).map_err(Error::custom)?;
            let apng_frames = decoder.apng().map_err(Error::custom)?.into_frames();
            let decoder = WebPDecoder::new(Cursor::new(&webp)).map_err(Error::custom)?;
            for frames_read in [apng_frames, decoder.into_frames()] {
                let (pixels, delays) = read(frames_read)?;
                assert_eq!(pixels, frames);
                assert!(
                    delays
                        .iter()
                        .all(|delay| *delay == Duration::from_millis(45))
                );
            }
            for bytes in [apng, webp] {
                assert_eq!(Provenance::from_bytes(&bytes)?, provenance);
            }
        }
        Ok(())
    }

    #[test]
    fn more_colours_than_a_palette_has_are_near() -> Result<()> {
        let colors = |x: u32, y: u32| [(x * 4) as u8, (y * 4) as u8, ((x + y) * 2) as u8];
        let frame = RgbImage::from_fn(64, 64, |x, y| image::Rgb(colors(x, y)));
        let gif = Animation::new(vec![frame.clone()], Duration::from_millis(100)).to_gif()?;
        let back = crate::media::decode(&gif)?;
        let squares = back
            .iter()
            .zip(frame.iter())
            .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        let error = (squares.sum::<f64>() / frame.len() as f64).sqrt();
        assert!(error < 8.0, "{error}");
        Ok(())
    }

    #[test]
    fn what_is_no_animation_is_refused() {
        let delay = Duration::from_millis(100);
        let mut uneven = frames(2);
        uneven[1] = RgbImage::new(3, 3);
        let refused = [
            Animation::new(Vec::new(), delay),
            Animation::new(vec![RgbImage::new(0, 3)], delay),
            Animation::new(uneven, delay),
            Animation::new(frames(1), Duration::ZERO),
            Animation::new(frames(1), Duration::from_secs(66)),
        ];
        for animation in refused {
            for encoded in [
                animation.to_gif(),
                animation.to_apng(None),
                animation.to_webp(None),
            ] {
                assert!(matches!(encoded, Err(Error::InvalidArgument { .. })));
            }
        }
        let good = Animation::new(frames(1), delay);
        assert!(matches!(
            good.save("animation.txt", None),
            Err(Error::Unsupported { .. })
        ));
    }
}
