//! An animation from prompt to prompt and from seed to seed.
//!
//! `cargo run --release --example interpolate` makes `loop.webp`, without a seam, with the small model beside this
//! file; `--model` takes any folder in the diffusers layout or one file.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use diffusion_core::media::Animation;
use diffusion_core::pipeline::Interpolation;
use diffusion_core::{Device, GenerateRequest, Pipeline, device};
use diffusion_examples::emoji_model;
use indicatif::{ProgressBar, ProgressStyle};

/// Makes an animation from prompt to prompt.
#[derive(Parser)]
struct Args {
    /// What the key frames show, one after the other, each with a seed behind @ if it shall not be that of --seed.
    #[arg(default_values = [
        "a red heart, flat style@1",
        "cat face, flat style, on a blue background@1",
        "smiling face with sunglasses, flat style@3",
    ])]
    keys: Vec<String>,
    /// Frames from one key frame to the next.
    #[arg(long, default_value_t = 12)]
    frames: usize,
    /// Ends with the last key frame instead of going back to the first.
    #[arg(long)]
    open: bool,
    /// How long a frame stands, in milliseconds.
    #[arg(long, default_value_t = 80)]
    delay: u64,
    /// A model folder in the diffusers layout, or one file with the whole model. Default: the small emoji model of
    /// this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// What the frames shall not show.
    #[arg(long)]
    negative: Option<String>,
    /// Number of steps of each frame.
    #[arg(long, default_value_t = 15)]
    steps: usize,
    /// How far the frames follow the prompts. Default: 5 for the emoji model, 7.5 for others.
    #[arg(long)]
    guidance: Option<f64>,
    /// The seed of key frames that name none.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A scheduler by name; those without fresh noise give the calmest ways.
    #[arg(long, default_value = "dpmpp_2m")]
    scheduler: String,
    /// cpu, cuda or metal, with a number as cuda:1 if there are several.
    #[arg(long, default_value = "cpu", value_parser = device::parse_device)]
    device: Device,
    /// Where the animation goes, as .webp, .png (APNG) or .gif.
    #[arg(short, long, default_value = "loop.webp")]
    output: PathBuf,
}

/// A key frame's prompt, and its seed if it has one.
fn split_key(key: &str) -> (&str, Option<u64>) {
    let split = key.rsplit_once('@');
    let numbered = split.and_then(|(prompt, seed)| Some((prompt, Some(seed.parse().ok()?))));
    numbered.unwrap_or((key, None))
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let guidance = if args.model.is_none() { 5.0 } else { 7.5 };
    let pipe = Pipeline::builder()
        .weights(args.model.unwrap_or_else(emoji_model))
        .device(args.device)
        .build()?;
    let mut request = GenerateRequest::default()
        .num_steps(args.steps)
        .guidance_scale(args.guidance.unwrap_or(guidance))
        .scheduler_name(args.scheduler);
    if let Some(negative) = args.negative {
        request = request.negative_prompt(negative);
    }
    let mut way = Interpolation::new(request, args.frames).closed(!args.open);
    for key in &args.keys {
        let (prompt, seed) = split_key(key);
        way = way.key(prompt, seed.unwrap_or(args.seed));
    }
    let bar = ProgressBar::new(way.num_frames().saturating_mul(args.steps) as u64);
    let style = "{bar:40} {pos}/{len} steps {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?);
    let frames = pipe.interpolate_with(&way, &mut |_| {
        bar.inc(1);
        ControlFlow::Continue(())
    })?;
    bar.finish();
    for warning in &frames.warnings {
        eprintln!("warning: {warning}");
    }
    let count = frames.images.len();
    let animation = Animation::new(frames.images, Duration::from_millis(args.delay));
    let animation = animation.plays(u16::from(args.open));
    animation.save(&args.output, None)?;
    println!("{} ({count} frames)", args.output.display());
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
