//! What the examples share: the bundled model, sketches, peak memory and the end of a program.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use diffusion_core::{Pipeline, Result, RgbImage};

/// The small model that the examples run on by default.
pub fn emoji_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

/// The small model, or another, loaded.
pub fn open(model: Option<&Path>) -> Result<Pipeline> {
    let model = model.map_or_else(emoji_model, Path::to_owned);
    Pipeline::builder().weights(model).build()
}

/// A child's drawing of a heart, `side` pixels wide and high, moved to the right by some pixels.
pub fn sketch(side: u32, moved: f32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| {
        let place = |at: u32, by: f32| (at as f32 - by) / side as f32 - 0.5;
        let (x, y) = (place(x, moved), place(y, 0.0));
        let is_bow = |center: f32| (x - center).hypot(y + 0.1) < 0.17;
        let is_tip = y > -0.05 && y < 0.33 && x.abs() < 0.3 - 0.8 * y;
        match is_bow(-0.15) || is_bow(0.15) || is_tip {
            true => image::Rgb([220, 40, 50]),
            false => image::Rgb([255; 3]),
        }
    })
}

/// Pictures of one height, side by side.
pub fn side_by_side(pictures: &[RgbImage]) -> RgbImage {
    let width = pictures.iter().map(RgbImage::width).sum();
    let height = pictures.iter().map(RgbImage::height).max().unwrap_or(0);
    let mut row = RgbImage::from_pixel(width, height, image::Rgb([255; 3]));
    let mut left = 0;
    for picture in pictures {
        image::imageops::replace(&mut row, picture, left, 0);
        left += i64::from(picture.width());
    }
    row
}

/// Peak resident memory of this process in bytes, where the system tells it (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Says in one line why a program failed, if it did.
pub fn finish(result: std::result::Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
