//! Pictures near another: `cargo run --release --example variations` writes a picture and what other seeds make of it to
//! `out.png`, a row for each strength.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::{GenerateRequest, RgbImage};
use diffusion_examples::{open, side_by_side};

/// Varies a picture by the noise of other seeds.
#[derive(Parser)]
struct Args {
    /// What the pictures shall show.
    #[arg(default_value = "a face, flat style")]
    prompt: String,
    /// A model folder in the diffusers layout, or one file. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// How much of the other seeds' noise counts, from 0 to 1, a row for each.
    #[arg(long, value_delimiter = ',', default_value = "0.3,0.6")]
    strength: Vec<f64>,
    /// The seed of the picture that is varied.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the PNG goes.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let pipe = open(args.model.as_deref())?;
    let request = GenerateRequest::txt2img(args.prompt)
        .num_steps(25)
        .guidance_scale(5.0)
        .seed(args.seed);
    let first = pipe.generate(&request)?.images;
    let mut rows = Vec::new();
    for strength in args.strength {
        let varied = request.clone().variation(1000, strength).num_images(4);
        let varied = pipe.generate(&varied)?.images;
        rows.push(side_by_side(&[first.clone(), varied].concat()));
    }
    let width = rows.iter().map(RgbImage::width).max().unwrap_or(0);
    let mut sheet = RgbImage::new(width, rows.iter().map(RgbImage::height).sum());
    let mut top = 0;
    for row in rows {
        image::imageops::replace(&mut sheet, &row, 0, top);
        top += i64::from(row.height());
    }
    sheet.save(args.output)?;
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
