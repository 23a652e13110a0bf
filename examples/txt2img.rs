//! A prompt becomes a picture.
//!
//! `cargo run --release --example txt2img -- "a red heart, flat style"` runs the small model beside this
//! file; `--model` takes any folder in the diffusers layout or one file.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use diffusion_core::weights::Embedding;
use diffusion_core::{Device, GenerateRequest, Pipeline, Quantization, device};
use diffusion_examples::{emoji_model, peak_memory};
use indicatif::{ProgressBar, ProgressStyle};

/// Makes pictures from a prompt.
#[derive(Parser)]
struct Args {
    /// What the picture shall show.
    prompt: String,
    /// A model folder in the diffusers layout, or one file with the whole model. Default: the small emoji model of
    /// this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A LoRA file, as style.safetensors or style.safetensors=0.8; may be given again.
    #[arg(long, value_parser = parse_lora)]
    lora: Vec<(PathBuf, f64)>,
    /// A file of a learned word, which the prompt then uses by its name; may be given again.
    #[arg(long)]
    embedding: Vec<PathBuf>,
    /// What the picture shall not show.
    #[arg(long)]
    negative: Option<String>,
    /// Number of steps.
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// How far the picture follows the prompt. Default: 5 for the emoji model, 7.5 for others.
    #[arg(long)]
    guidance: Option<f64>,
    /// Size in pixels, as 512 or 768x512 (width x height). Default: the model's own.
    #[arg(long, value_parser = parse_size)]
    size: Option<(usize, usize)>,
    /// The seed of the first picture. Default: a random one.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of pictures, of one seed after another.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// One of 57 names, such as ddim, euler_a, dpmpp_2m or unipc, with _karras or another curve at its end if
    /// wanted; docs/SCHEDULERS.md lists them all. Default: the model's own.
    #[arg(long)]
    scheduler: Option<String>,
    /// The number format that weights are held in: f32, f16 or bf16. Default: f32 on the CPU, f16 elsewhere.
    #[arg(long)]
    dtype: Option<String>,
    /// Holds the layers of UNet and text encoder in fewer bits: int8.
    #[arg(long)]
    quantize: Option<Quantization>,
    /// cpu, cuda or metal, with a number as cuda:1 if there are several.
    #[arg(long, default_value = "cpu", value_parser = device::parse_device)]
    device: Device,
    /// Where the picture goes, as PNG, JPEG or WebP with what made it in its file; with --count above 1 a number is put before the ending.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    match (width.parse(), height.parse()) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err("expected a size such as 512 or 768x512".into()),
    }
}

fn parse_lora(text: &str) -> Result<(PathBuf, f64), String> {
    let Some((path, scale)) = text.rsplit_once('=') else {
        return Ok((text.into(), 1.0));
    };
    let scale = scale.parse();
    scale
        .map(|scale| (path.into(), scale))
        .map_err(|_| "expected a strength behind =, such as style.safetensors=0.8".into())
}

fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().unwrap_or("png".as_ref()).to_string_lossy();
    path.with_file_name(format!("{stem}-{}.{ending}", index + 1))
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let guidance = args
        .guidance
        .unwrap_or(if args.model.is_none() { 5.0 } else { 7.5 });
    let mut builder = Pipeline::builder()
        .weights(args.model.unwrap_or_else(emoji_model))
        .device(args.device);
    for (path, scale) in args.lora {
        builder = builder.lora(path, scale);
    }
    for path in args.embedding {
        builder = builder.embedding(Embedding::open(path, None)?);
    }
    if let Some(dtype) = &args.dtype {
        builder = builder.dtype(device::parse_dtype(dtype)?);
    }
    if let Some(quantization) = args.quantize {
        builder = builder.quantize(quantization);
    }
    let pipe = builder.build()?;
    for note in pipe.notes() {
        eprintln!("note: {note}");
    }
    for lora in pipe.loras().iter().filter(|lora| !lora.unused.is_empty()) {
        let (name, count) = (&lora.name, lora.unused.len());
        eprintln!(
            "warning: {name}: the model has no place for {count} keys, {}",
            lora.unused[0]
        );
    }
    let load = start.elapsed();

    let mut request = GenerateRequest::txt2img(args.prompt)
        .num_steps(args.steps)
        .guidance_scale(guidance)
        .num_images(args.count);
    if let Some(negative) = args.negative {
        request = request.negative_prompt(negative);
    }
    if let Some((width, height)) = args.size {
        request = request.size(width, height);
    }
    if let Some(seed) = args.seed {
        request = request.seed(seed);
    }
    if let Some(scheduler) = args.scheduler {
        request = request.scheduler_name(scheduler);
    }
    let bar = ProgressBar::new(args.steps.saturating_mul(args.count) as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} steps {eta} left",
    )?);
    let output = pipe.generate_with(&request, &mut |_| {
        bar.inc(1);
        ControlFlow::Continue(())
    })?;
    bar.finish();

    for warning in &output.warnings {
        eprintln!("warning: {warning}");
    }
    for (i, seed) in output.seeds.iter().enumerate() {
        let path = numbered(&args.output, i, output.images.len());
        output.save(i, &path)?;
        println!("{} (seed {seed})", path.display());
    }
    let timings = output.timings;
    let per_step = timings.sample / args.steps.saturating_mul(args.count).max(1) as u32;
    let memory = peak_memory().map_or(String::new(), |b| format!(", peak memory {} MiB", b >> 20));
    println!(
        "load {load:.2?}, encode {:.2?}, {per_step:.2?} a step, decode {:.2?}{memory}",
        timings.encode, timings.decode
    );
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
