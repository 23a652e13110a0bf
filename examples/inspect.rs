//! Says what a checkpoint is.
//!
//! `cargo run --release --example inspect -- model.safetensors` takes any file, model folder or folder of one part, such
//! as a ControlNet; several files are read as parts of one model. `--save-diffusers` and `--save-single-file` convert.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::weights::{Checkpoint, OpenOptions};

/// Says what a checkpoint is: its family, components, number formats, sizes, and what of it is not used.
#[derive(Parser)]
struct Args {
    /// A folder in the diffusers layout, a file, or files that hold parts of one model.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Takes the running averages (EMA) of the UNet's weights.
    #[arg(long)]
    ema: bool,
    /// Writes the model as a folder in the diffusers layout.
    #[arg(long)]
    save_diffusers: Option<PathBuf>,
    /// Writes the model as one safetensors file in the original names.
    #[arg(long)]
    save_single_file: Option<PathBuf>,
    /// Lets the two replace what is there.
    #[arg(long)]
    overwrite: bool,
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let options = OpenOptions {
        ema: args.ema,
        ..Default::default()
    };
    let checkpoint = match args.paths.as_slice() {
        [one] => Checkpoint::open_with(one, &options)?,
        several => Checkpoint::open_files(several, &options)?,
    };
    print!("{}", checkpoint.description());
    let checkpoint = checkpoint.overwrite(args.overwrite);
    if let Some(folder) = args.save_diffusers {
        checkpoint.save_diffusers(&folder)?;
        println!("saved {}", folder.display());
    }
    if let Some(file) = args.save_single_file {
        checkpoint.save_single_file(&file)?;
        println!("saved {}", file.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
