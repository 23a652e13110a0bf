//! Says what a checkpoint is.
//!
//! `cargo run --release --example inspect -- model.safetensors` takes any file, model folder or folder of one part, such
//! as a ControlNet; several files are read as parts of one model. `--save-diffusers` and `--save-single-file` convert.
//! LoRAs, learned words, IP-Adapters and the image encoders by which they see are described, too.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::model::{ClipVisionConfig, IpAdapterConfig};
use diffusion_core::nn::TensorSource;
use diffusion_core::pipeline::ImageEncoderFiles;
use diffusion_core::weights::{
    Checkpoint, Component, Embedding, Lora, OpenOptions, TensorFile, TensorSummary,
};

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
    if let [one] = args.paths.as_slice()
        && let Some(description) = describe_beside(one)?
    {
        println!("{}", description.trim_end());
        return Ok(());
    }
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

/// What is used beside a model: an IP-Adapter, an image encoder, a LoRA, a learned word.
fn describe_beside(path: &Path) -> Result<Option<String>, Box<dyn Error>> {
    let tensors: Box<dyn TensorSource> = match path.is_dir() {
        true if Component::is_at(path) => Box::new(Component::open(path, None)?.open_weights()?),
        true => return Ok(Lora::open(path).ok().map(|lora| lora.to_string())),
        false => Box::new(TensorFile::open(path)?),
    };
    let tensors = &*tensors;
    let summary = TensorSummary::of(tensors);
    if IpAdapterConfig::describes(tensors) {
        let config = IpAdapterConfig::from_tensors(tensors)?;
        let unused = match config.unused.as_slice() {
            [] => String::new(),
            names => format!("unused: {}", names.join(", ")),
        };
        return Ok(Some(format!("{config}\n{summary}\n{unused}")));
    }
    if ClipVisionConfig::describes(tensors) {
        let config = ImageEncoderFiles::open(path)?.config;
        return Ok(Some(format!("{config}\n{summary}")));
    }
    if Checkpoint::open(path).is_ok_and(|checkpoint| checkpoint.components().next().is_some()) {
        return Ok(None);
    }
    if let Ok(lora) = Lora::open(path) {
        return Ok(Some(format!("{lora}{summary}")));
    }
    let word = Embedding::open(path, None);
    Ok(word.ok().map(|word| format!("{word}\n{summary}")))
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
