//! What the models of single files predict, and of which noise.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{Checkpoint, DiffusersFolder, OpenOptions, TensorFile};
use diffusion_core::{
    DType, Device, ErrorKind, GenerateRequest, Pipeline, Result, Tensor, Tokenizer,
};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TestResult, assert_close, golden_json, golden_path, model_path,
};
use serde_json::Value;

/// The tensors of a file with free text beside them.
struct Noted {
    tensors: HashMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl TensorSource for Noted {
    fn name(&self) -> String {
        "noted".into()
    }
    fn tensor_names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.shape(name)
    }
    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.tensors.load(name, dtype, device)
    }
    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }
}

/// One of the tiny files, with some tensors more or others.
fn read(name: &str, changes: &[(&str, Tensor)]) -> TestResult<HashMap<String, Tensor>> {
    let path = golden_path(&format!("single_files/{name}.safetensors"));
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    for (name, tensor) in changes {
        tensors.insert((*name).to_owned(), tensor.clone());
    }
    Ok(tensors)
}

fn open(source: impl TensorSource + 'static) -> diffusion_core::Result<Checkpoint> {
    Checkpoint::from_sources("x", vec![Box::new(source)], &OpenOptions::default())
}

fn numbers(values: &[f32]) -> TestResult<Tensor> {
    Ok(Tensor::new(values, &Device::Cpu)?)
}

#[test]
fn sd2_is_told_by_notes_steps_and_a_bias() -> TestResult {
    // The first norm of the last transformer of the tiny model.
    let bias = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias";
    let spread = |by: f32| numbers(&[by, -by, by, -by, by, -by, by, -by]);
    let no_note = BTreeMap::new();
    let noted = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let steps = ("global_step", numbers(&[875_000.0])?);
    for (changes, metadata, expected, is_assumed) in [
        (
            vec![(bias, spread(0.1)?)],
            no_note.clone(),
            "v_prediction",
            true,
        ),
        // Of eight numbers the unbiased estimate is 0.0941.
        (
            vec![(bias, spread(0.088)?)],
            no_note.clone(),
            "epsilon",
            true,
        ),
        (vec![(bias, spread(0.1)?), steps], no_note, "epsilon", false),
        (
            vec![(bias, spread(0.1)?)],
            noted("modelspec.predict_key", "epsilon"),
            "epsilon",
            false,
        ),
        (
            vec![(bias, spread(0.05)?)],
            noted("modelspec.predict_key", "v"),
            "v_prediction",
            false,
        ),
        (
            vec![(bias, spread(0.05)?)],
            noted("modelspec.prediction_type", "v"),
            "v_prediction",
            false,
        ),
    ] {
        let tensors = read("sd2", &changes)?;
        let description = open(Noted { tensors, metadata })?.description();
        assert_eq!(description.prediction_type.as_deref(), Some(expected));
        let mut assumed = description.assumptions.iter();
        assert_eq!(
            assumed.any(|text| text.contains("bias")),
            is_assumed,
            "{description}"
        );
        let size = if expected == "epsilon" { "512" } else { "768" };
        assert!(
            !is_assumed || description.to_string().contains(size),
            "{description}"
        );
    }
    Ok(())
}

#[test]
fn what_was_assumed_reaches_the_pipeline() -> TestResult {
    let mut tensors = read("sd1", &[])?;
    tensors.insert("odd.one".into(), numbers(&[1.0])?);
    let mut checkpoint = open(tensors)?;
    let settings = golden_json("single_files/settings.json")?;
    for kind in checkpoint.components().collect::<Vec<_>>() {
        checkpoint.configure(kind, &settings["sd1"][kind.folder()])?;
    }
    let pipe = Pipeline::builder().checkpoint(checkpoint).build()?;
    let has = |part: &str| pipe.notes().iter().any(|note| note.contains(part));
    assert!(
        has("assumed: prediction_type epsilon"),
        "{:?}",
        pipe.notes()
    );
    assert!(has("odd.one"), "{:?}", pipe.notes());
    let folder = Pipeline::builder().weights(model_path("sd15")).build()?;
    assert_eq!(folder.notes(), [""; 0]);
    Ok(())
}

#[test]
fn markers_say_the_noise_of_sdxl() -> TestResult {
    let scheduler = |changes: &[(&str, Tensor)]| -> TestResult<Value> {
        let checkpoint = open(read("sdxl", changes)?)?;
        assert_eq!(checkpoint.description().unused, [""; 0]);
        Ok(checkpoint.scheduler_config().ok_or("no scheduler")?.clone())
    };
    let cosxl = scheduler(&[
        ("edm_vpred.sigma_max", numbers(&[100.0])?),
        ("edm_vpred.sigma_min", numbers(&[0.25])?),
    ])?;
    assert_eq!(cosxl["sigma_max"], 100.0);
    assert_eq!(cosxl["sigma_min"], 0.25);
    assert_eq!(cosxl["prediction_type"], "v_prediction");
    let cosxl = scheduler(&[("edm_vpred.sigma_max", numbers(&[120.0])?)])?;
    assert_eq!(cosxl["sigma_min"], 0.002);
    let empty = || numbers(&[]);
    let zero_snr = scheduler(&[("v_pred", empty()?), ("ztsnr", empty()?)])?;
    assert_eq!(zero_snr["rescale_betas_zero_snr"], true);
    for changes in [
        [("edm_mean", numbers(&[0.0; 4])?)].as_slice(),
        &[("edm_vpred.sigma_max", empty()?)],
        &[("edm_vpred.sigma_max", numbers(&[f32::INFINITY])?)],
    ] {
        let error = open(read("sdxl", changes)?).err().ok_or("accepted")?;
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    }
    Ok(())
}

/// The tiny SDXL as one file without notes: what of it diffusers was told otherwise, its tensors say.
fn one_file(name: &str, vae: &Value) -> TestResult<Checkpoint> {
    let source = DiffusersFolder::open(model_path("sdxl"), None)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("x.safetensors");
    Checkpoint::open(model_path("sdxl"))?.save_single_file(&file)?;
    let file = TensorFile::open(&file)?;
    let mut tensors = HashMap::new();
    for name in file.tensor_names() {
        tensors.insert(name.clone(), file.load(&name, DType::F32, &Device::Cpu)?);
    }
    let list = |key: &str| -> TestResult<Tensor> {
        let list: Vec<f32> = serde_json::from_value(vae[key].clone())?;
        Ok(Tensor::new(list, &Device::Cpu)?.reshape((1, 4, 1, 1))?)
    };
    match name {
        "playground" => {
            tensors.insert("edm_mean".into(), list("latents_mean")?);
            tensors.insert("edm_std".into(), list("latents_std")?);
        }
        _ => {
            _ = tensors.insert(
                "edm_vpred.sigma_max".into(),
                Tensor::new(120f32, &Device::Cpu)?,
            )
        }
    }
    let mut checkpoint = open(tensors)?;
    for kind in checkpoint.components().collect::<Vec<_>>() {
        let mut config = source.required(kind.folder())?.config;
        let settings = config.as_object_mut().ok_or("no settings")?;
        settings.retain(|key, _| !key.starts_with("latents_"));
        if name == "playground" {
            settings.remove("scaling_factor");
        }
        checkpoint.configure(kind, &config)?;
    }
    Ok(checkpoint)
}

#[test]
fn models_of_karras_form_run_as_in_diffusers() -> TestResult {
    let cases = golden_json("edm.json")?;
    for case in cases["cases"].as_array().ok_or("no cases")? {
        let name = case["name"].as_str().ok_or("no name")?;
        let golden = Golden::open(&format!("edm/{name}"))?;
        let checkpoint = one_file(name, &case["vae"])?;
        let tokenizer = |folder: &str| Tokenizer::open(model_path("sdxl").join(folder));
        let pipe = Pipeline::builder()
            .checkpoint(checkpoint)
            .tokenizer(tokenizer("tokenizer")?)
            .tokenizer_2(tokenizer("tokenizer_2")?)
            .build()?;
        let text = |key: &str| case[key].as_str().ok_or("no text");
        let request = GenerateRequest::txt2img(text("prompt")?)
            .negative_prompt(text("negative_prompt")?)
            .size(96, 64)
            .num_steps(6)
            .guidance_scale(3.0)
            .seed(42);
        let sampled = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
        let expected = golden.tensor("latents")?;
        assert_close(name, &sampled.latents, &expected, RUN_TOLERANCE)?;
        let (picture, _) = pipe.decode_tensor(&expected)?;
        let picture = picture.affine(0.5, 0.5)?.clamp(0.0, 1.0)?;
        assert_close(name, &picture, &golden.tensor("picture")?, RUN_TOLERANCE)?;
        // The way back, for pictures to begin with.
        let vae = pipe.vae();
        let again = vae.scale(&vae.unscale(&expected)?)?;
        assert_close(name, &again, &expected, 1e-6)?;
    }
    Ok(())
}
