//! Pictures that are too large to be worked off at once: in tiles, and one by one.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Seamless, wrap};

/// Whether an autoencoder works in tiles that overlap and are blended, so that memory no longer grows with the
/// picture. Each tile is seen alone, so colours may differ a little from those of the whole picture.
///
/// Source: `enable_tiling` of diffusers' autoencoders; the tiles are the same.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeTiling {
    /// Never.
    Off,
    /// Tiles of 512 pixels that overlap by a quarter, for pictures whose widest activation has more than
    /// 1.5 * 2^28 values (1.5 GiB in f32): more than 1024 x 1536 pixels with Stable Diffusion's autoencoder, four
    /// times as many with TAESD. All others are worked off whole.
    #[default]
    Auto,
    /// For pictures that are wider or higher than a tile.
    Tiles {
        /// Side of a tile in pixels: a multiple of the autoencoder's factor (8 in Stable Diffusion), at least
        /// twice that.
        size: usize,
        /// The share of a tile's side that the next one covers too, from 0 to 0.5; what is left of a tile is
        /// rounded down to whole latent pixels.
        overlap: f64,
    },
}

/// Side of the tiles of [`VaeTiling::Auto`] in pixels, and the share that the next one covers too.
const AUTO_SIZE: usize = 512;
const AUTO_OVERLAP: f64 = 0.25;
/// Values of the widest activation, above which [`VaeTiling::Auto`] works in tiles.
const AUTO_VALUES: u64 = 3 << 27;

/// Tiles in latent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Side of a tile.
    size: usize,
    /// From one tile to the next.
    step: usize,
}

impl Tiles {
    fn new(size: usize, overlap: f64) -> Self {
        let step = (size as f64 * (1.0 - overlap)) as usize;
        Self {
            size,
            step: step.max(1),
        }
    }

    /// Side of the strip that two tiles share.
    fn overlap(&self) -> usize {
        self.size - self.step
    }
}

/// How much of a batch an autoencoder works off at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Portions {
    pub(super) tiling: VaeTiling,
    /// Whether one picture at a time.
    pub(super) slicing: bool,
}

/// What an autoencoder's own sizes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// Pixels of a picture's side for each latent pixel.
    pub(super) factor: usize,
    /// Values of the widest activation for each pixel of the picture.
    pub(super) peak_channels: usize,
}

/// How tiles are joined where they overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// Each fades in from the one above and from the one on the left, as in `AutoencoderKL`.
    Fade,
    /// Each is painted over what is there, as in `AutoencoderTiny`.
    Paint,
}

/// Pixels for each latent pixel, before and after a network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio {
    input: usize,
    output: usize,
}

impl Ratio {
    /// From latents to pictures.
    pub(super) fn decode(factor: usize) -> Self {
        Self {
            input: 1,
            output: factor,
        }
    }

    /// From pictures to latents.
    pub(super) fn encode(factor: usize) -> Self {
        Self {
            input: factor,
            output: 1,
        }
    }

    /// `(height, width)` of the latents of what a network reads.
    fn latent(&self, x: &Tensor) -> Result<(usize, usize)> {
        let (_, _, height, width) = x.dims4()?;
        Ok((height.div_ceil(self.input), width.div_ceil(self.input)))
    }
}

impl Portions {
    /// Checks the size of tiles.
    pub(super) fn check(&self, factor: usize) -> Result<()> {
        let VaeTiling::Tiles { size, overlap } = self.tiling else {
            return Ok(());
        };
        if size < 2 * factor || !size.is_multiple_of(factor) {
            let expected = format!("a multiple of {factor} pixels, at least {}", 2 * factor);
            return Err(Error::argument("vae_tiling size", expected, size));
        }
        match (0.0..=0.5).contains(&overlap) {
            true => Ok(()),
            false => Err(Error::argument("vae_tiling overlap", "0 to 0.5", overlap)),
        }
    }

    /// The tiles of latents of a size, if they are not worked off whole.
    fn tiles(&self, scale: Scale, (height, width): (usize, usize)) -> Option<Tiles> {
        let tiles = match self.tiling {
            VaeTiling::Off => return None,
            VaeTiling::Auto => {
                let side = |latent: usize| (latent as u64).saturating_mul(scale.factor as u64);
                let values = side(height)
                    .saturating_mul(side(width))
                    .saturating_mul(scale.peak_channels as u64);
                if values <= AUTO_VALUES {
                    return None;
                }
                Tiles::new((AUTO_SIZE / scale.factor).max(2), AUTO_OVERLAP)
            }
            VaeTiling::Tiles { size, overlap } => Tiles::new(size / scale.factor, overlap),
        };
        (height > tiles.size || width > tiles.size).then_some(tiles)
    }

    /// Values of the widest activation of a decode, for pictures of `height` x `width` pixels.
    pub(super) fn peak_values(&self, scale: Scale, height: u64, width: u64, batch: u64) -> u64 {
        let latent = |side: u64| (side / scale.factor.max(1) as u64) as usize;
        let at_once = match self.slicing {
            true => 1,
            false => batch,
        };
        let (height, width) = match self.tiles(scale, (latent(height), latent(width))) {
            Some(tiles) => {
                let side = (tiles.size * scale.factor) as u64;
                (height.min(side), width.min(side))
            }
            None => (height, width),
        };
        [width, at_once, scale.peak_channels as u64]
            .into_iter()
            .fold(height, u64::saturating_mul)
    }

    /// `forward` from latents to pictures.
    pub(super) fn decode(
        &self,
        latents: &Tensor,
        scale: Scale,
        join: Join,
        forward: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.run(latents, scale, Ratio::decode(scale.factor), join, forward)
    }

    /// `forward` from pictures to what has the size of latents.
    pub(super) fn encode(
        &self,
        images: &Tensor,
        scale: Scale,
        join: Join,
        forward: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.run(images, scale, Ratio::encode(scale.factor), join, forward)
    }

    fn run(
        &self,
        x: &Tensor,
        scale: Scale,
        ratio: Ratio,
        join: Join,
        forward: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (batch, latent) = (x.dim(0)?, ratio.latent(x)?);
        let work = |x: &Tensor| match (self.tiles(scale, latent), join) {
            (None, _) => forward(x),
            (Some(tiles), Join::Fade) => fade(x, tiles, ratio, &forward),
            (Some(tiles), Join::Paint) => paint(x, tiles, ratio, &forward),
        };
        if !self.slicing || batch <= 1 {
            return work(x);
        }
        let slices = (0..batch).map(|i| work(&x.narrow(0, i, 1)?));
        Ok(Tensor::cat(&slices.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// What tiles of a seamless picture see beyond its sides: as much as tiles overlap, of the opposite sides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Margin {
    seamless: Seamless,
    /// In latent pixels.
    width: usize,
    ratio: Ratio,
}

impl Margin {
    /// That of a seamless picture, if it is worked off in tiles.
    pub(super) fn new(
        seamless: Seamless,
        portions: Portions,
        scale: Scale,
        ratio: Ratio,
        x: &Tensor,
    ) -> Result<Option<Self>> {
        let tiles = portions.tiles(scale, ratio.latent(x)?);
        let tiles = tiles.filter(|_| seamless != Seamless::NONE);
        Ok(tiles.map(|tiles| Self {
            seamless,
            width: tiles.overlap(),
            ratio,
        }))
    }

    fn sides(&self) -> impl Iterator<Item = usize> {
        let Seamless { x, y } = self.seamless;
        y.then_some(2).into_iter().chain(x.then_some(3))
    }

    /// What a network reads, with the margin.
    pub(super) fn around(&self, x: &Tensor) -> Result<Tensor> {
        let margin = self.width * self.ratio.input;
        self.sides()
            .try_fold(x.clone(), |x, dim| wrap(&x, dim, margin, margin))
    }

    /// What it gives, without.
    pub(super) fn cut(&self, x: &Tensor) -> Result<Tensor> {
        let margin = self.width * self.ratio.output;
        self.sides().try_fold(x.clone(), |x, dim| {
            Ok(x.narrow(dim, margin, x.dim(dim)? - 2 * margin)?)
        })
    }
}

/// At most `len` rows or columns from `start` on.
fn crop(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    Ok(x.narrow(dim, start, len.min(x.dim(dim)? - start))?)
}

fn fade(
    x: &Tensor,
    tiles: Tiles,
    ratio: Ratio,
    forward: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let (size, step) = (tiles.size * ratio.input, tiles.step * ratio.input);
    let (extent, limit) = (tiles.overlap() * ratio.output, tiles.step * ratio.output);
    let mut above: Vec<Tensor> = Vec::new();
    let mut strips = Vec::new();
    for top in (0..height).step_by(step) {
        let rows = crop(x, 2, top, size)?;
        let mut row: Vec<Tensor> = Vec::new();
        let mut kept = Vec::new();
        for (column, left) in (0..width).step_by(step).enumerate() {
            let mut tile = forward(&crop(&rows, 3, left, size)?)?;
            if let Some(upper) = above.get(column) {
                tile = fade_in(upper, &tile, 2, extent)?;
            }
            if let Some(before) = row.last() {
                tile = fade_in(before, &tile, 3, extent)?;
            }
            kept.push(crop(&crop(&tile, 2, 0, limit)?, 3, 0, limit)?);
            row.push(tile);
        }
        strips.push(Tensor::cat(&kept, 3)?);
        above = row;
    }
    Ok(Tensor::cat(&strips, 2)?)
}

/// `tile` with its first `extent` rows or columns led over from the last ones of `before`.
fn fade_in(before: &Tensor, tile: &Tensor, dim: usize, extent: usize) -> Result<Tensor> {
    let (len_before, len) = (before.dim(dim)?, tile.dim(dim)?);
    let extent = extent.min(len_before).min(len);
    if extent == 0 {
        return Ok(tile.clone());
    }
    let share = |i: usize| i as f64 / extent as f64;
    let fading_in = ramp(extent, dim, tile, share)?;
    let fading_out = ramp(extent, dim, tile, |i| 1.0 - share(i))?;
    let mixed = (before
        .narrow(dim, len_before - extent, extent)?
        .broadcast_mul(&fading_out)?
        + tile.narrow(dim, 0, extent)?.broadcast_mul(&fading_in)?)?;
    let rest = tile.narrow(dim, extent, len - extent)?;
    Ok(Tensor::cat(&[&mixed, &rest], dim)?)
}

/// Numbers along one dimension, the others being 1.
fn ramp(len: usize, dim: usize, like: &Tensor, value: impl Fn(usize) -> f64) -> Result<Tensor> {
    let mut shape = [1; 4];
    shape[dim] = len;
    let values: Vec<f64> = (0..len).map(value).collect();
    let ramp = Tensor::from_vec(values, &shape, &Device::Cpu)?;
    Ok(ramp.to_dtype(like.dtype())?.to_device(like.device())?)
}

fn paint(
    x: &Tensor,
    tiles: Tiles,
    ratio: Ratio,
    forward: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (batch, _, height, width) = x.dims4()?;
    if height % ratio.input != 0 || width % ratio.input != 0 {
        let expected = format!("sides of a multiple of {}, for tiles", ratio.input);
        let found = format!("{width} x {height}");
        return Err(Error::argument("picture", expected, found));
    }
    let (size, step) = (tiles.size * ratio.input, tiles.step * ratio.input);
    // The whole strip of the overlap fades in, its last line included.
    let last = (tiles.overlap() * ratio.output).saturating_sub(1).max(1);
    let share = |start: usize, len: usize, dim: usize, like: &Tensor| {
        ramp(len, dim, like, |i| match start {
            0 => 1.0,
            _ if tiles.overlap() == 0 => 1.0,
            _ => (i as f64 / last as f64).min(1.0),
        })
    };
    let mut painted: Option<Tensor> = None;
    for top in (0..height).step_by(step) {
        for left in (0..width).step_by(step) {
            let tile = forward(&crop(&crop(x, 2, top, size)?, 3, left, size)?)?;
            let (_, channels, rows, columns) = tile.dims4()?;
            let canvas = match painted.take() {
                Some(canvas) => canvas,
                None => {
                    let at_output = |side: usize| side / ratio.input * ratio.output;
                    let shape = (batch, channels, at_output(height), at_output(width));
                    Tensor::zeros(shape, DType::F32, tile.device())?
                }
            };
            let at = |start: usize| start / ratio.input * ratio.output;
            let there = crop(&crop(&canvas, 2, at(top), rows)?, 3, at(left), columns)?;
            let new =
                share(top, rows, 2, &tile)?.broadcast_mul(&share(left, columns, 3, &tile)?)?;
            let old = new.affine(-1.0, 1.0)?;
            let mixed = (tile.broadcast_mul(&new)? + there.broadcast_mul(&old)?)?;
            let (bottom, right) = (at(top) + rows, at(left) + columns);
            let region = [0..batch, 0..channels, at(top)..bottom, at(left)..right];
            painted = Some(canvas.slice_assign(&region, &mixed)?);
        }
    }
    painted.ok_or_else(|| Error::argument("picture", "at least one pixel", "none"))
}
