//! A sketch becomes a picture: `cargo run --release --example img2img` draws a heart badly and asks for a better one at
//! four strengths, side by side in `out.png`. `--image` takes a picture of your own.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::GenerateRequest;
use diffusion_examples::{open, side_by_side, sketch};

/// Changes a picture by a prompt.
#[derive(Parser)]
struct Args {
    /// What the picture shall show.
    #[arg(default_value = "a red heart, flat style")]
    prompt: String,
    /// A model folder in the diffusers layout, or one file. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The picture to start from. Default: a sketch.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How much changes, from 0 to 1, as 0.6 or 0.2,0.4.
    #[arg(long, value_delimiter = ',', default_value = "0.4,0.6,0.8,0.95")]
    strength: Vec<f64>,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the PNG goes.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let pipe = open(args.model.as_deref())?;
    let image = match args.image {
        Some(path) => image::open(path)?.to_rgb8(),
        None => sketch(pipe.default_size().0 as u32, 0.0),
    };
    let mut row = vec![image.clone()];
    for strength in args.strength {
        let request = GenerateRequest::img2img(args.prompt.as_str(), image.clone())
            .strength(strength)
            .num_steps(25)
            .guidance_scale(5.0)
            .seed(args.seed);
        row.extend(pipe.generate(&request)?.images);
    }
    side_by_side(&row).save(args.output)?;
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
