//! The stages of a run of the small model: `cargo bench -p diffusion-benches`.

use std::error::Error;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use criterion::Criterion;
use diffusion_core::{DType, Device, GenerateRequest, Pipeline, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(8))
        .configure_from_args();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji");
    let load = || Pipeline::builder().weights(&model).build();
    let pipe = load()?;
    criterion.bench_function("load", |b| b.iter(|| black_box(load())));

    let prompt = GenerateRequest::txt2img("a red heart, flat style");
    criterion.bench_function("encode two prompts", |b| {
        b.iter(|| black_box(pipe.encode_prompt(&prompt)));
    });

    let (conditioning, _) = pipe.encode_prompt(&prompt)?;
    let step = |guidance: f64| {
        let request = GenerateRequest::txt2img("")
            .num_steps(1)
            .guidance_scale(guidance)
            .seed(1);
        pipe.sample(&conditioning, &request, &mut |_| ControlFlow::Continue(()))
    };
    criterion.bench_function("a guided step", |b| b.iter(|| black_box(step(5.0))));
    criterion.bench_function("a step without guidance", |b| {
        b.iter(|| black_box(step(1.0)))
    });

    let latents = Tensor::zeros((1, 4, 16, 16), DType::F32, &Device::Cpu)?;
    criterion.bench_function("decode", |b| b.iter(|| black_box(pipe.decode(&latents))));
    criterion.final_summary();
    Ok(())
}
