//! The layers of SD 1.5 and SDXL one by one, in the sizes of a guided step at 512 x 512 and 1024 x 1024 pixels; the
//! throughput is in floating-point operations: `cargo bench -p diffusion-benches --bench kernels`.

use std::collections::HashMap;
use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use diffusion_benches::fma;
use diffusion_core::nn::{
    Activation, ActivationFunction, Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Lease, Linear,
    Mask, Params, attention,
};
use diffusion_core::{DType, Device, Result, Tensor};

/// What multiplies in half precision is held in it.
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn random(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::rand(-1f32, 1f32, shape, &Device::Cpu)?)
}

/// What another layer has made, as a layer of a model finds it.
fn made(shape: &[usize]) -> Result<Activation> {
    ActivationFunction::Silu.apply(&Activation::new(random(shape)?))
}

/// A layer with random weights.
fn layer<T>(
    shape: &[usize],
    dtype: DType,
    build: impl FnOnce(Params<'_>) -> Result<T>,
) -> Result<T> {
    let weights = HashMap::from([
        ("weight".to_owned(), random(shape)?),
        ("bias".to_owned(), random(&shape[..1])?),
    ]);
    Params::build(&weights, dtype, &Device::Cpu, &[], build)
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let threads = std::thread::available_parallelism()?.get();
    let peak = fma::peak_flops(threads, Duration::from_millis(300)) / 1e9;
    println!("the processor's peak now, f32, {threads} threads: {peak:.0} GFLOP/s");
    // As in a run, layers find the memory of those before.
    let _memory = Lease::of_run();
    convolutions(&mut criterion)?;
    products(&mut criterion)?;
    attentions(&mut criterion)?;
    norms(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

fn convolutions(criterion: &mut Criterion) -> Result<()> {
    for (batch, side, input, output, stride) in [
        (2, 64, 320, 320, 1),
        (2, 64, 960, 320, 1),
        (2, 64, 320, 320, 2),
        (2, 32, 640, 640, 1),
        (2, 32, 1920, 640, 1),
        (2, 16, 1280, 1280, 1),
        (2, 8, 1280, 1280, 1),
        (2, 128, 320, 320, 1),
        (1, 256, 256, 256, 1),
        (1, 512, 128, 128, 1),
        (1, 512, 128, 3, 1),
    ] {
        let mut group = criterion.benchmark_group("convolution 3 x 3");
        let pixels = batch * side * side / (stride * stride);
        group.throughput(Throughput::Elements(
            (2 * 9 * pixels * input * output) as u64,
        ));
        let x = made(&[batch, side, side, input])?;
        for dtype in DTYPES {
            let config = Conv2dConfig::same(3).with_stride(stride);
            let conv = layer(&[output, input, 3, 3], dtype, |p| {
                Conv2d::new(p, input, output, config)
            })?;
            let name =
                format!("{batch}x{side}x{side}, {input} to {output}, stride {stride}, {dtype:?}");
            group.bench_function(name, |b| b.iter(|| black_box(conv.forward(&x))));
        }
    }
    Ok(())
}

fn products(criterion: &mut Criterion) -> Result<()> {
    for (rows, input, output) in [
        (8192, 320, 320),
        (8192, 1280, 320),
        (2048, 640, 640),
        (2048, 2560, 640),
        (512, 1280, 1280),
        (512, 5120, 1280),
        (154, 768, 320),
        (8192, 640, 640),
        (2048, 1280, 1280),
    ] {
        let mut group = criterion.benchmark_group("linear");
        group.throughput(Throughput::Elements((2 * rows * input * output) as u64));
        let x = made(&[1, rows, input])?;
        for dtype in DTYPES {
            let linear = layer(&[output, input], dtype, |p| {
                Linear::new(p, input, output, true)
            })?;
            let name = format!("{rows} rows, {input} to {output}, {dtype:?}");
            group.bench_function(name, |b| b.iter(|| black_box(linear.forward(&x))));
        }
    }
    Ok(())
}

fn attentions(criterion: &mut Criterion) -> Result<()> {
    for (queries, keys, heads, width) in [
        (4096, 4096, 8, 40),
        (4096, 77, 8, 40),
        (1024, 1024, 8, 80),
        (256, 256, 8, 160),
        (4096, 4096, 10, 64),
        (1024, 1024, 20, 64),
    ] {
        let mut group = criterion.benchmark_group("attention");
        let operations = 2 * 4 * heads * width * queries * keys;
        group.throughput(Throughput::Elements(operations as u64));
        let tokens = |tokens| made(&[2, tokens, heads * width]);
        let (q, k, v) = (tokens(queries)?, tokens(keys)?, tokens(keys)?);
        let name = format!("{queries} x {keys}, {heads} heads of {width}");
        group.bench_function(name, |b| {
            b.iter(|| black_box(attention(&q, &k, &v, heads, Mask::None, false)))
        });
    }
    Ok(())
}

fn norms(criterion: &mut Criterion) -> Result<()> {
    for (side, channels) in [(64, 320), (32, 640), (16, 1280)] {
        let mut group = criterion.benchmark_group("norm");
        group.throughput(Throughput::Bytes((2 * side * side * channels * 4) as u64));
        let x = made(&[2, side, side, channels])?;
        let norm = layer(&[channels], DType::F32, |p| {
            GroupNorm::new(p, channels, 32, 1e-5)
        })?;
        let name = format!("group norm, {side} x {side} x {channels}");
        group.bench_function(name, |b| b.iter(|| black_box(norm.forward(&x))));
        let norm = layer(&[channels], DType::F32, |p| {
            LayerNorm::new(p, channels, 1e-5)
        })?;
        let name = format!("layer norm, {side} x {side} x {channels}");
        group.bench_function(name, |b| b.iter(|| black_box(norm.forward(&x))));
    }
    Ok(())
}
