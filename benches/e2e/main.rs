//! Whole runs and single models by the clock, in lines of JSON: `cargo run --release -p diffusion-benches --bin e2e --
//! run --model FOLDER`.

mod parts;
mod quality;
mod run;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use diffusion_core::{DType, Quantization, device};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Times a model: a whole run, or one part of it alone.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// From a prompt to a picture on disk, in one line: load, encode, steps, decode, total, memory.
    Run(run::RunArgs),
    /// Evaluations of the UNet, one line each after one about loading.
    Unet(parts::PartArgs),
    /// Decodes of the autoencoder, one line each after one about loading.
    Vae(parts::PartArgs),
    /// How far the pictures of faster ways are from those of f32, and their times, one line for each way.
    Quality(quality::QualityArgs),
    /// The processor's f32 peak, one line each time.
    Fma(parts::FmaArgs),
}

/// Which model, and what is asked of it.
#[derive(Args)]
struct ModelArgs {
    /// A model folder in the diffusers layout, or one file with the whole model.
    #[arg(long)]
    model: PathBuf,
    /// The number format that weights are held in.
    #[arg(long, default_value = "f32", value_parser = device::parse_dtype)]
    dtype: DType,
    /// Holds layers in fewer bits: int8.
    #[arg(long)]
    quantize: Option<Quantization>,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 512)]
    size: usize,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Run(args) => run::run(&args),
        Task::Unet(args) => parts::unet(&args),
        Task::Vae(args) => parts::vae(&args),
        Task::Quality(args) => quality::quality(&args),
        Task::Fma(args) => parts::fma(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
