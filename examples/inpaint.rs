//! Changes a part of a picture: `cargo run --release --example inpaint` makes a face and paints its lower half anew, the
//! picture, the mask and the result side by side in `out.png`. `--image` and `--mask` take your own.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::{GenerateRequest, GrayImage, RgbImage};
use diffusion_examples::{open, side_by_side};

/// Changes a picture where a mask is white.
#[derive(Parser)]
struct Args {
    /// What the changed part shall show.
    #[arg(default_value = "a face with a medical mask, flat style, on a blue background")]
    prompt: String,
    /// A model folder in the diffusers layout, or one file. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The picture to change. Default: one that the model makes.
    #[arg(long)]
    image: Option<PathBuf>,
    /// A picture of the same size, white where it changes. Default: the lower half.
    #[arg(long)]
    mask: Option<PathBuf>,
    /// How much changes there, from 0 to 1.
    #[arg(long, default_value_t = 1.0)]
    strength: f64,
    /// How soft the edge of the mask is, in pixels.
    #[arg(long, default_value_t = 3.0)]
    blur: f64,
    /// Works on the surroundings of the mask alone, at the model's size, with this many pixels around it.
    #[arg(long)]
    only_masked: Option<usize>,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the PNG goes.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let pipe = open(args.model.as_deref())?;
    let picture = match args.image {
        Some(path) => image::open(path)?.to_rgb8(),
        None => {
            let request =
                GenerateRequest::txt2img("grinning face, flat style, on a blue background");
            let made = pipe.generate(&request.num_steps(25).guidance_scale(5.0).seed(1))?;
            made.images.into_iter().next().ok_or("no picture")?
        }
    };
    let mask = match args.mask {
        Some(path) => image::open(path)?.to_luma8(),
        None => GrayImage::from_fn(picture.width(), picture.height(), |_, y| {
            image::Luma([if 2 * y > picture.height() { 255 } else { 0 }])
        }),
    };
    let mut request = GenerateRequest::inpaint(args.prompt, picture.clone(), mask.clone())
        .strength(args.strength)
        .mask_blur(args.blur)
        .num_steps(25)
        .guidance_scale(5.0)
        .seed(args.seed);
    if let Some(padding) = args.only_masked {
        request = request.only_masked(padding);
    }
    let shown: RgbImage = image::buffer::ConvertBuffer::convert(&mask);
    let mut row = vec![picture, shown];
    row.extend(pipe.generate(&request)?.images);
    side_by_side(&row).save(args.output)?;
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
