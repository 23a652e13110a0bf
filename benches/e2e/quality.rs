//! What faster ways cost: their pictures and times beside those of f32 with nothing left out.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use diffusion_benches::median;
use diffusion_core::{DType, GenerateRequest, Pipeline, Quantization, device};
use diffusion_tests::psnr;
use serde_json::json;

use crate::Result;

/// What the small model draws well, in the order of its samples.
const SUBJECTS: [&str; 32] = [
    "a red heart",
    "a blue heart",
    "cat face",
    "dog face",
    "grinning face",
    "smiling face with sunglasses",
    "pizza",
    "hamburger",
    "red apple",
    "banana",
    "rocket",
    "sun",
    "ghost",
    "alien",
    "robot",
    "soccer ball",
    "panda",
    "frog",
    "penguin",
    "green heart, on a yellow background",
    "skull, on a purple background",
    "strawberry",
    "watermelon",
    "mushroom",
    "tree",
    "cactus",
    "star",
    "fire",
    "umbrella",
    "key",
    "blue circle",
    "red square, on a black background",
];

#[derive(Args)]
pub(crate) struct QualityArgs {
    /// A model folder in the diffusers layout, or one file with the whole model.
    #[arg(long, default_value = "examples/models/emoji")]
    model: PathBuf,
    /// What is compared: f16, bf16, int8, deep_cache=N, tgate=N, token_merging=RATIO.
    #[arg(required = true)]
    ways: Vec<Way>,
    /// How many prompts, from 1 to 32.
    #[arg(long, default_value_t = SUBJECTS.len())]
    prompts: usize,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Number of steps.
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// How far the pictures follow the prompt.
    #[arg(long, default_value_t = 5.0)]
    guidance: f64,
    /// A folder for the pictures: `N-WAY.png`.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// A way to draw, by its name.
#[derive(Debug, Clone)]
struct Way {
    name: String,
    change: Change,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Nothing,
    Dtype(DType),
    Quantize(Quantization),
    DeepCache(usize),
    TGate(usize),
    TokenMerging(f64),
}

impl FromStr for Way {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let change = match name.split_once('=') {
            None => match name.parse() {
                Ok(quantization) => Change::Quantize(quantization),
                Err(_) => Change::Dtype(device::parse_dtype(name).map_err(|e| wrong(&e))?),
            },
            Some(("deep_cache", number)) => {
                Change::DeepCache(number.parse().map_err(|e| wrong(&e))?)
            }
            Some(("tgate", number)) => Change::TGate(number.parse().map_err(|e| wrong(&e))?),
            Some(("token_merging", number)) => {
                Change::TokenMerging(number.parse().map_err(|e| wrong(&e))?)
            }
            Some(_) => return Err(wrong(&"expected deep_cache, tgate or token_merging")),
        };
        Ok(Self {
            name: name.to_owned(),
            change,
        })
    }
}

impl Way {
    /// A pipeline of its own, where it has other weights.
    fn pipeline(&self, model: &Path) -> Result<Option<Pipeline>> {
        let builder = Pipeline::builder().weights(model);
        let builder = match self.change {
            Change::Dtype(dtype) => builder.dtype(dtype),
            Change::Quantize(quantization) => builder.dtype(DType::F32).quantize(quantization),
            _ => return Ok(None),
        };
        Ok(Some(builder.build()?))
    }

    fn request(&self, request: GenerateRequest) -> GenerateRequest {
        match self.change {
            Change::DeepCache(interval) => request.deep_cache(interval),
            Change::TGate(num_steps) => request.tgate(num_steps),
            Change::TokenMerging(ratio) => request.token_merging(ratio),
            Change::Nothing | Change::Dtype(_) | Change::Quantize(_) => request,
        }
    }
}

/// What was found of one way so far.
#[derive(Default)]
struct Found {
    times: Vec<f64>,
    psnr: Vec<f64>,
}

pub(crate) fn quality(args: &QualityArgs) -> Result {
    let plain = Way {
        name: "f32".into(),
        change: Change::Nothing,
    };
    let builder = Pipeline::builder().weights(&args.model);
    let plain_pipe = builder.dtype(DType::F32).build()?;
    let ways: Vec<&Way> = [&plain].into_iter().chain(&args.ways).collect();
    let pipelines = ways.iter().map(|way| way.pipeline(&args.model));
    let pipelines = pipelines.collect::<Result<Vec<_>>>()?;
    let mut found: Vec<Found> = ways.iter().map(|_| Found::default()).collect();
    for (number, subject) in SUBJECTS.iter().enumerate().take(args.prompts) {
        let request = GenerateRequest::txt2img(format!("{subject}, flat style"))
            .size(args.size, args.size)
            .num_steps(args.steps)
            .guidance_scale(args.guidance)
            .seed(1);
        let mut reference = None;
        for ((way, pipe), found) in ways.iter().zip(&pipelines).zip(&mut found) {
            let mut steps = Duration::ZERO;
            let pipe = pipe.as_ref().unwrap_or(&plain_pipe);
            let output = pipe.generate_with(&way.request(request.clone()), &mut |progress| {
                steps = progress.elapsed;
                ControlFlow::Continue(())
            })?;
            if let Some(folder) = &args.output {
                std::fs::create_dir_all(folder)?;
                output.save(0, folder.join(format!("{number:02}-{}.png", way.name)))?;
            }
            let picture = output.images[0].clone();
            let reference = reference.get_or_insert_with(|| picture.clone());
            found.times.push(steps.as_secs_f64());
            found.psnr.push(psnr(reference.as_raw(), picture.as_raw()));
        }
    }
    for (way, of_way) in ways.iter().zip(&found) {
        let times = of_way.times.iter().zip(&found[0].times);
        let ratios: Vec<f64> = times.map(|(time, whole)| time / whole).collect();
        let mean = of_way.psnr.iter().sum::<f64>() / of_way.psnr.len() as f64;
        let least = of_way.psnr.iter().copied().fold(f64::INFINITY, f64::min);
        let report = json!({
            "way": way.name,
            "steps": median(&of_way.times),
            "ratio": median(&ratios),
            "psnr_mean": mean,
            "psnr_least": least,
        });
        println!("{report}");
    }
    Ok(())
}
