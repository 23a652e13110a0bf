//! Grows a picture beyond its edges: `cargo run --release --example outpaint` makes one, takes its left half, and writes
//! that and a new whole side by side to `out.png`. `--image` takes a picture of your own.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::GenerateRequest;
use diffusion_core::media::Margins;
use diffusion_examples::{open, side_by_side};

/// Grows a picture.
#[derive(Parser)]
struct Args {
    /// What the larger picture shall show.
    #[arg(default_value = "grinning face, flat style, on a blue background")]
    prompt: String,
    /// A model folder in the diffusers layout, or one file. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The picture to grow. Default: the left half of one that the model makes of the prompt.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Pixels on the left, above, on the right and below.
    #[arg(long, value_delimiter = ',', default_value = "0,0,64,0")]
    margins: Vec<u32>,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the PNG goes.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let &[left, top, right, bottom] = args.margins.as_slice() else {
        return Err("--margins wants four numbers, such as 32,0,32,0".into());
    };
    let pipe = open(args.model.as_deref())?;
    let picture = match args.image {
        Some(path) => image::open(path)?.to_rgb8(),
        None => {
            let request = GenerateRequest::txt2img(args.prompt.as_str());
            let made = pipe.generate(&request.guidance_scale(5.0).seed(args.seed))?;
            let made = made.images.first().ok_or("no picture")?;
            image::imageops::crop_imm(made, 0, 0, made.width() / 2, made.height()).to_image()
        }
    };
    let margins = Margins {
        left,
        top,
        right,
        bottom,
    };
    let request = GenerateRequest::outpaint(args.prompt, picture.clone(), margins)
        .num_steps(25)
        .guidance_scale(5.0)
        .seed(args.seed);
    let grown = pipe.generate(&request)?.images;
    side_by_side(&[vec![picture], grown].concat()).save(args.output)?;
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
