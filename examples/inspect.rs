//! Says what a checkpoint is.
//!
//! `cargo run --release --example inspect -- model.safetensors` takes any file, model folder or folder of one part, such
//! as a ControlNet; several files are read as parts of one model. `--save-diffusers` and `--save-single-file` convert.
//! IP-Adapters and the image encoders by which they see are described, too.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::model::{ClipVisionConfig, IpAdapterConfig};
use diffusion_core::nn::TensorSource;
use diffusion_core::pipeline::ImageEncoderFiles;
use diffusion_core::weights::{Checkpoint, Component, OpenOptions, TensorFile, TensorSummary};

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
        [one] if is_part(one) => return describe_part(one),
        [one] => Checkpoint::open_with(one, &options)?,
        several => Checkpoint::open_files(several, &options)?,
    };
    if let ([one], None) = (args.paths.as_slice(), checkpoint.components().next())
        && one.is_file()
        && is_beside_a_model(&TensorFile::open(one)?)
    {
        return describe_part(one);
    }
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

/// Whether it is the folder of one part of a model.
fn is_part(path: &Path) -> bool {
    path.join("config.json").is_file() && !path.join("model_index.json").is_file()
}

fn is_beside_a_model(tensors: &dyn TensorSource) -> bool {
    IpAdapterConfig::describes(tensors) || ClipVisionConfig::describes(tensors)
}

/// Says what an IP-Adapter or an image encoder is.
fn describe_part(path: &Path) -> Result<(), Box<dyn Error>> {
    let tensors: Box<dyn TensorSource> = match path.is_dir() {
        true => Box::new(Component::open(path, None)?.open_weights()?),
        false => Box::new(TensorFile::open(path)?),
    };
    if IpAdapterConfig::describes(&*tensors) {
        let config = IpAdapterConfig::from_tensors(&*tensors)?;
        println!("{config}\n{}", TensorSummary::of(&*tensors));
        if !config.unused.is_empty() {
            println!("unused: {}", config.unused.join(", "));
        }
    } else {
        let config = ImageEncoderFiles::open(path)?.config;
        println!("{config}\n{}", TensorSummary::of(&*tensors));
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
