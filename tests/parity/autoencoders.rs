//! Autoencoders from other files than the model's.

use std::fs;
use std::path::Path;

use diffusion_core::weights::{Checkpoint, ComponentKind, OpenOptions};
use diffusion_core::{DType, Device, ErrorKind, GenerateRequest, Pipeline, RgbImage, Vae};
use diffusion_tests::{TestResult, golden_path, model_path};
use serde_json::{Value, json};

fn taesd(half: &str) -> std::path::PathBuf {
    golden_path(&format!("single_files/taesd_{half}.safetensors"))
}

fn picture(pipe: &Pipeline) -> TestResult<RgbImage> {
    let request = GenerateRequest::txt2img("a heart")
        .seed(3)
        .num_steps(2)
        .size(64, 64);
    Ok(pipe.generate(&request)?.images.remove(0))
}

fn with_vae(path: impl AsRef<Path>) -> TestResult<RgbImage> {
    let builder = Pipeline::builder().weights(model_path("sd15"));
    picture(&builder.vae_from(path.as_ref()).build()?)
}

/// A safetensors file again, with metadata.
fn copy_with_note(from: &Path, to: &Path, note: Value) -> TestResult {
    let bytes = fs::read(from)?;
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into()?) as usize);
    let mut header: Value = serde_json::from_slice(header)?;
    header["__metadata__"] = note;
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(to, [&length, header.as_bytes(), data].concat())?;
    Ok(())
}

#[test]
fn two_files_are_one_autoencoder() -> TestResult {
    let files = [taesd("encoder"), taesd("decoder")];
    let joined = Checkpoint::open_files(&files, &OpenOptions::default())?;
    let part = joined.required(ComponentKind::Vae)?;
    let vae = Vae::new(
        part.config_path,
        part.config,
        &part.tensors,
        DType::F32,
        &Device::Cpu,
    )?;
    let builder = || Pipeline::builder().weights(model_path("sd15"));
    let expected = picture(&builder().vae(vae).build()?)?;
    let [encoder, decoder] = &files;
    let pipe = builder().vae_from(encoder).vae_from(decoder).build()?;
    assert_eq!(picture(&pipe)?, expected);
    assert_ne!(picture(&builder().build()?)?, expected);
    Ok(())
}

#[test]
fn a_folder_a_model_and_the_file_in_them_are_one() -> TestResult {
    // Another model's, by its folder, by its configuration in the file's own notes, and by the whole model.
    let folder = model_path("sd21").join("vae");
    let expected = with_vae(&folder)?;
    assert_eq!(with_vae(model_path("sd21"))?, expected);
    let config = fs::read_to_string(folder.join("config.json"))?;
    let copy = tempfile::tempdir()?;
    let file = copy.path().join("vae.safetensors");
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    copy_with_note(&weights, &file, json!({ "vae.config.json": config }))?;
    assert_eq!(with_vae(&file)?, expected);
    let own = Pipeline::builder().weights(model_path("sd15")).build()?;
    assert_ne!(picture(&own)?, expected);
    Ok(())
}

#[test]
fn a_file_is_scaled_as_its_model() -> TestResult {
    let folder = model_path("sdxl").join("vae");
    let copy = tempfile::tempdir()?;
    let file = copy.path().join("sdxl_vae.safetensors");
    // The tiny model's number of groups is not the published ones'.
    let note = json!({ "vae.config.json": r#"{"norm_num_groups": 4}"# });
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    copy_with_note(&weights, &file, note)?;
    for (model, scaling) in [("sdxl", 0.13025), ("sd15", 0.18215)] {
        let builder = Pipeline::builder().weights(model_path(model));
        let pipe = builder.vae_from(&file).build()?;
        let Vae::Kl(vae) = pipe.vae() else {
            return Err("another class".into());
        };
        assert_eq!(vae.config().scaling_factor, scaling, "{model}");
    }
    Ok(())
}

#[test]
fn what_is_no_autoencoder_is_refused() {
    let with = |path: &Path| {
        let builder = Pipeline::builder().weights(model_path("sd15"));
        builder.vae_from(path).build().err().map(|e| e.kind())
    };
    let lora = golden_path("loras/kohya_a.safetensors");
    assert_eq!(with(&lora), Some(ErrorKind::NotFound));
    let unet = model_path("sd15").join("unet");
    assert_eq!(with(&unet), Some(ErrorKind::NotFound));
    assert_eq!(with(Path::new("nowhere.pt")), Some(ErrorKind::NotFound));
    // One half of TAESD.
    assert_eq!(with(&taesd("decoder")), Some(ErrorKind::Weights));
}
