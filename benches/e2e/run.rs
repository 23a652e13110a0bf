//! A whole run.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use diffusion_benches::{median, peak_memory};
use diffusion_core::{GenerateRequest, Pipeline};
use serde_json::json;

use crate::{ModelArgs, Result};

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the pictures shall show.
    #[arg(long, default_value = "a red heart, flat style")]
    prompt: String,
    /// Number of steps.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// How far the pictures follow the prompt.
    #[arg(long, default_value_t = 7.5)]
    guidance: f64,
    /// Pictures at once.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// The seed of the first picture.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Whether the text encoders go once the prompt is read.
    #[arg(long)]
    drop_text_encoders: bool,
    /// Where the first picture goes.
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

pub(crate) fn run(args: &RunArgs) -> Result {
    let start = Instant::now();
    let ModelArgs {
        model,
        dtype,
        quantize,
        size,
    } = &args.model;
    let mut builder = Pipeline::builder().weights(model).dtype(*dtype);
    if let Some(quantization) = quantize {
        builder = builder.quantize(*quantization);
    }
    let mut pipe = builder.build()?;
    let load = start.elapsed();
    let request = GenerateRequest::txt2img(&args.prompt)
        .size(*size, *size)
        .num_steps(args.steps)
        .guidance_scale(args.guidance)
        .num_images(args.batch)
        .batch_size(args.batch)
        .seed(args.seed);
    let begun = Instant::now();
    if args.drop_text_encoders {
        pipe.encode_plan(&request)?;
        pipe.drop_text_encoders();
    }
    let encode = begun.elapsed();
    let mut ends = vec![Duration::ZERO];
    let output = pipe.generate_with(&request, &mut |progress| {
        ends.push(progress.elapsed);
        ControlFlow::Continue(())
    })?;
    output.save(0, &args.output)?;
    let total = start.elapsed();

    let steps: Vec<f64> = ends.windows(2).map(|w| seconds(w[1] - w[0])).collect();
    let report = json!({
        "load": seconds(load),
        "encode": seconds(encode + output.timings.encode),
        "step": median(&steps),
        "steps": steps,
        "decode": seconds(output.timings.decode),
        "total": seconds(total),
        "peak_memory": peak_memory(),
    });
    println!("{report}");
    Ok(())
}

/// To a tenth of a millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 1e4
}
