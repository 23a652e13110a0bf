//! A folder of frames becomes another, frame by frame, with the same noise for each, so that what does not move in the
//! one does not flicker in the other: `cargo run --release --example vid2vid` moves a sketch and writes `frames/0001.png`
//! and on. `--frames` takes a folder of your own.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::GenerateRequest;
use diffusion_examples::{open, sketch};

/// Changes the frames of a film by a prompt.
#[derive(Parser)]
struct Args {
    /// What the frames shall show.
    #[arg(default_value = "a red heart, flat style")]
    prompt: String,
    /// A model folder in the diffusers layout, or one file. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A folder of pictures, taken by name. Default: a sketch that moves.
    #[arg(long)]
    frames: Option<PathBuf>,
    /// How much changes, from 0 to 1.
    #[arg(long, default_value_t = 0.6)]
    strength: f64,
    /// The seed of all frames.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the frames go.
    #[arg(short, long, default_value = "frames")]
    output: PathBuf,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let pipe = open(args.model.as_deref())?;
    let frames = match args.frames {
        Some(folder) => {
            let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
            let mut paths = entries.collect::<std::io::Result<Vec<_>>>()?;
            paths.sort();
            let opened = paths.iter().map(|path| Ok(image::open(path)?.to_rgb8()));
            opened.collect::<image::ImageResult<Vec<_>>>()?
        }
        None => {
            let side = pipe.default_size().0 as u32;
            (-4..=4).map(|i| sketch(side, 3.0 * i as f32)).collect()
        }
    };
    fs::create_dir_all(&args.output)?;
    for (i, frame) in frames.into_iter().enumerate() {
        let request = GenerateRequest::img2img(args.prompt.as_str(), frame)
            .strength(args.strength)
            .num_steps(25)
            .guidance_scale(5.0)
            .seed(args.seed);
        let path = args.output.join(format!("{:04}.png", i + 1));
        pipe.generate(&request)?.images[0].save(&path)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
