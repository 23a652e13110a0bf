//! One part alone, which stays loaded and works when it is told to.

use std::io::stdin;
use std::time::{Duration, Instant};

use clap::Args;
use diffusion_benches::{fma, peak_memory};
use diffusion_core::config::PerLevel;
use diffusion_core::model::{UNetConfig, UNetInput};
use diffusion_core::nn::{Quantized, TensorSource};
use diffusion_core::weights::{Checkpoint, ComponentKind};
use diffusion_core::{Device, Tensor, UNet, Vae};
use serde_json::{Value, json};

use crate::{ModelArgs, Result};

#[derive(Args)]
pub(crate) struct PartArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Pictures at once; guidance makes two of one.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[command(flatten)]
    count: CountArgs,
}

#[derive(Args)]
pub(crate) struct FmaArgs {
    /// Threads. Default: as many as the processor runs at once.
    #[arg(long)]
    threads: Option<usize>,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 200)]
    milliseconds: u64,
    #[command(flatten)]
    count: CountArgs,
}

#[derive(Args)]
struct CountArgs {
    /// How often. Default: once for each line of the standard input, until it ends.
    #[arg(long)]
    count: Option<usize>,
}

impl CountArgs {
    /// Works as often as asked, with a line of JSON each time.
    fn serve(&self, mut work: impl FnMut() -> Result<Value>) -> Result {
        let mut answer = || {
            println!("{}", work()?);
            Ok(())
        };
        match self.count {
            Some(count) => (0..count).try_for_each(|_| answer()),
            None => stdin().lines().try_for_each(|line| {
                line?;
                answer()
            }),
        }
    }
}

pub(crate) fn unet(args: &PartArgs) -> Result {
    let start = Instant::now();
    let ModelArgs {
        model,
        dtype,
        quantize,
        size,
    } = &args.model;
    let checkpoint = Checkpoint::open(model)?;
    let part = checkpoint.required(ComponentKind::UNet)?;
    let config = UNetConfig::from_json(part.config_path, part.config)?;
    let channels = config.in_channels;
    let PerLevel::Same(width) = config.cross_attention_dim else {
        return Err("a UNet with text of another width at each level is not timed here".into());
    };
    let tensors = match quantize {
        Some(quantization) => &Quantized::new(&part.tensors, *quantization) as &dyn TensorSource,
        None => &part.tensors,
    };
    let unet = UNet::new(config, tensors, *dtype, &Device::Cpu)?;
    drop(checkpoint);
    println!("{}", json!({"load": start.elapsed().as_secs_f64()}));

    let side = size / 8;
    let sample = numbers(&[args.batch, channels, side, side])?;
    let text = numbers(&[args.batch, 77, width])?;
    let input = UNetInput::new(&sample, &[500.0], &text);
    args.count.serve(|| timed(|| Ok(unet.forward(&input)?)))
}

pub(crate) fn vae(args: &PartArgs) -> Result {
    let start = Instant::now();
    let ModelArgs {
        model, dtype, size, ..
    } = &args.model;
    let checkpoint = Checkpoint::open(model)?;
    let part = checkpoint.required(ComponentKind::Vae)?;
    let vae = Vae::new(
        part.config_path,
        part.config,
        &part.tensors,
        *dtype,
        &Device::Cpu,
    )?;
    drop(checkpoint);
    println!("{}", json!({"load": start.elapsed().as_secs_f64()}));

    let side = size / vae.downscale();
    let latents = numbers(&[args.batch, vae.latent_channels(), side, side])?;
    args.count.serve(|| timed(|| Ok(vae.decode(&latents)?)))
}

pub(crate) fn fma(args: &FmaArgs) -> Result {
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let time = Duration::from_millis(args.milliseconds);
    args.count
        .serve(|| Ok(json!({"gflops": fma::peak_flops(threads, time) / 1e9})))
}

/// What one piece of work took, and 64 values of its result, by which programs are compared.
fn timed(work: impl FnOnce() -> Result<Tensor>) -> Result<Value> {
    let start = Instant::now();
    let result = work()?;
    let seconds = start.elapsed().as_secs_f64();
    let values: Vec<f32> = result.flatten_all()?.to_vec1()?;
    let sample: Vec<f32> = (0..64).map(|i| values[i * values.len() / 64]).collect();
    Ok(json!({"seconds": seconds, "peak_memory": peak_memory(), "sample": sample}))
}

/// Numbers of mean 0 and variance 1 that other languages make alike: multiples of the golden ratio, modulo 1.
fn numbers(shape: &[usize]) -> Result<Tensor> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i: usize| ((i as f64 * 0.618033988749895).fract() - 0.5) * 12f64.sqrt())
        .map(|value| value as f32)
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
