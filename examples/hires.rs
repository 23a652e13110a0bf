//! A picture larger than the model knows, in one pass and in two: `cargo run --release --example hires` writes them side
//! by side to `out.png`. The first has its motif doubled; the second keeps what was found at the model's own size.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::media::Resampling;
use diffusion_core::{GenerateRequest, Hires, Upscaler};
use diffusion_examples::{open, side_by_side};

/// Makes a large picture in two passes.
#[derive(Parser)]
struct Args {
    /// What the picture shall show.
    #[arg(default_value = "grinning face, flat style, on a blue background")]
    prompt: String,
    /// A model folder in the diffusers layout, or one file. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// How much larger each side becomes, to the next multiple of 8.
    #[arg(long, default_value_t = 1.5)]
    factor: f64,
    /// How much the second pass changes, from 0 to 1.
    #[arg(long, default_value_t = 0.3)]
    strength: f64,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the PNG goes.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let pipe = open(args.model.as_deref())?;
    let larger = |side: usize| (side as f64 * args.factor / 8.0).round() as usize * 8;
    let (width, height) = pipe.default_size();
    let (width, height) = (larger(width), larger(height));
    let request = GenerateRequest::txt2img(args.prompt)
        .num_steps(25)
        .guidance_scale(5.0)
        .seed(args.seed);
    let hires = Hires {
        strength: args.strength,
        upscaler: Upscaler::Pixels(Resampling::Lanczos),
        ..Hires::new(width, height)
    };
    let mut row = pipe.generate(&request.clone().size(width, height))?.images;
    row.extend(pipe.generate(&request.hires(hires))?.images);
    side_by_side(&row).save(args.output)?;
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
