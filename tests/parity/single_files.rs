//! One-file checkpoints of every family, under the original repositories' names, against diffusers.

use std::collections::HashMap;
use std::fs;

use diffusion_core::model::{TextTime, UNetConfig, UNetInput, Vae};
use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{
    Checkpoint, ComponentKind, Dialect, Family, OpenOptions, Task, TensorFile,
};
use diffusion_core::{DType, Device, Error, ErrorKind, Tensor, TextEncoder, UNet};
use diffusion_tests::{Golden, TOLERANCE, TestResult, assert_close, golden_json, golden_path};
use serde_json::json;

use ComponentKind::{TextEncoder as FirstText, TextEncoder2 as SecondText};

/// File, family, task, dialect of the first text encoder there is, what it predicts.
const FAMILIES: &[(&str, Family, Task, Dialect, &str)] = {
    use Dialect::{Diffusers, OpenClip};
    use Family::{
        StableDiffusion1 as Sd1, StableDiffusion2 as Sd2, StableDiffusionXl as Xl,
        StableDiffusionXlRefiner as Refiner,
    };
    use Task::{Inpainting, InstructPix2Pix, TextToImage};
    &[
        ("sd1", Sd1, TextToImage, Diffusers, "epsilon"),
        ("sd1_inpaint", Sd1, Inpainting, Diffusers, "epsilon"),
        ("sd1_pix2pix", Sd1, InstructPix2Pix, Diffusers, "epsilon"),
        ("sd1_lcm", Sd1, TextToImage, Diffusers, "epsilon"),
        ("sd1_bk_small", Sd1, TextToImage, Diffusers, "epsilon"),
        ("sd2", Sd2, TextToImage, OpenClip, "epsilon"),
        ("sdxl", Xl, TextToImage, Diffusers, "epsilon"),
        ("sdxl_ssd", Xl, TextToImage, Diffusers, "epsilon"),
        ("refiner", Refiner, TextToImage, OpenClip, "epsilon"),
    ]
};

fn path(name: &str) -> std::path::PathBuf {
    golden_path(&format!("single_files/{name}.safetensors"))
}

/// A tiny model's file, told what its shapes cannot say.
fn open(name: &str, options: &OpenOptions) -> TestResult<Checkpoint> {
    let mut checkpoint = Checkpoint::open_with(path(name), options)?;
    let settings = golden_json("single_files/settings.json")?;
    for kind in checkpoint.components().collect::<Vec<_>>() {
        checkpoint.configure(kind, &settings[name][kind.folder()])?;
    }
    Ok(checkpoint)
}

fn unet(checkpoint: &Checkpoint) -> TestResult<UNet> {
    let part = checkpoint.required(ComponentKind::UNet)?;
    let config = UNetConfig::from_json(part.config_path, part.config)?;
    Ok(UNet::new(config, &part.tensors, DType::F32, &Device::Cpu)?)
}

fn vae(checkpoint: &Checkpoint) -> TestResult<Vae> {
    let part = checkpoint.required(ComponentKind::Vae)?;
    let (path, config) = (part.config_path, part.config);
    Ok(Vae::new(
        path,
        config,
        &part.tensors,
        DType::F32,
        &Device::Cpu,
    )?)
}

fn run_unet(unet: &UNet, golden: &Golden) -> TestResult<diffusion_core::Tensor> {
    let tensor = |key: &str| golden.tensor(&format!("unet.{key}"));
    let optional = |key: &str| {
        let is_there = golden.contains(&format!("unet.{key}"));
        is_there.then(|| tensor(key)).transpose()
    };
    let timestep_cond = optional("timestep_cond")?;
    let text_time =
        optional("text_embeds")?
            .zip(optional("time_ids")?)
            .map(|(text_embeds, time_ids)| TextTime {
                text_embeds,
                time_ids,
            });
    let (sample, text) = (tensor("sample")?, tensor("encoder_hidden_states")?);
    Ok(unet.forward(&UNetInput {
        text_time: text_time.as_ref(),
        timestep_cond: timestep_cond.as_ref(),
        ..UNetInput::new(&sample, &golden.values("unet.timesteps")?, &text)
    })?)
}

fn assert_text(
    name: &str,
    kind: ComponentKind,
    checkpoint: &Checkpoint,
    golden: &Golden,
) -> TestResult {
    let part = checkpoint.required(kind)?;
    let config = TextEncoder::parse_config(part.config_path, part.config)?;
    let encoder = TextEncoder::new(config, &part.tensors, DType::F32, &Device::Cpu)?;
    let tensor = |key: &str| golden.tensor(&format!("{kind}.{key}"));
    let ids: Vec<Vec<u32>> = tensor("ids")?.to_dtype(DType::U32)?.to_vec2()?;
    let encoded = encoder.forward(&ids)?;
    let penultimate = &encoded.hidden_states[encoded.hidden_states.len() - 2];
    for (key, ours) in [
        ("last_hidden_state", Some(&encoded.last_hidden_state)),
        ("penultimate", Some(penultimate)),
        ("text_embeds", encoded.text_embeds.as_ref()),
    ] {
        let expected = golden.contains(&format!("{kind}.{key}"));
        assert_eq!(ours.is_some(), expected, "{name} {kind} {key}");
        if let Some(ours) = ours {
            assert_close(
                &format!("{name} {kind} {key}"),
                ours,
                &tensor(key)?,
                TOLERANCE,
            )?;
        }
    }
    Ok(())
}

#[test]
fn every_family_computes_as_in_diffusers() -> TestResult {
    for (name, ..) in FAMILIES {
        let golden = Golden::open(&format!("single_files/{name}_golden"))?;
        let checkpoint = open(name, &OpenOptions::default())?;
        let out = run_unet(&unet(&checkpoint)?, &golden)?;
        assert_close(
            &format!("{name} unet"),
            &out,
            &golden.tensor("unet.out")?,
            TOLERANCE,
        )?;
        let vae = vae(&checkpoint)?;
        let decoded = vae.decode(&golden.tensor("vae.latents")?)?;
        assert_close(
            &format!("{name} decoded"),
            &decoded,
            &golden.tensor("vae.decoded")?,
            TOLERANCE,
        )?;
        let posterior = vae.encode(&golden.tensor("vae.image")?)?;
        assert_close(
            &format!("{name} mean"),
            posterior.mode(),
            &golden.tensor("vae.mean")?,
            TOLERANCE,
        )?;
        for kind in checkpoint
            .components()
            .filter(|kind| [FirstText, SecondText].contains(kind))
        {
            assert_text(name, kind, &checkpoint, &golden)?;
        }
    }
    Ok(())
}

#[test]
fn families_are_told_by_their_tensors() -> TestResult {
    let folder = tempfile::tempdir()?;
    for (name, family, task, dialect, prediction) in FAMILIES {
        // The name must not help.
        let file = folder.path().join("x.bin");
        fs::copy(path(name), &file)?;
        let checkpoint = Checkpoint::open(&file)?;
        let description = checkpoint.description();
        assert_eq!(description.family, Some(*family), "{name}");
        assert_eq!(description.task, *task, "{name}");
        assert_eq!(
            description.prediction_type.as_deref(),
            Some(*prediction),
            "{name}"
        );
        assert_eq!(
            description.has_guidance_embedding,
            *name == "sd1_lcm",
            "{name}"
        );
        assert_eq!(description.unused, [""; 0], "{name}");
        let text = description
            .components
            .iter()
            .find(|part| part.kind >= FirstText);
        assert_eq!(text.map(|part| part.dialect), Some(*dialect), "{name}");
        let two_texts = name.starts_with("sdxl");
        assert_eq!(
            description.components.len(),
            3 + usize::from(two_texts),
            "{name}"
        );
        for part in &description.components {
            assert_eq!(
                part.tensors.num_bytes,
                2 * part.tensors.num_parameters,
                "{name} {}",
                part.kind
            );
        }
        let report = description.to_string();
        assert!(report.contains(&family.to_string()), "{report}");
        assert!(report.contains("assumed: "), "{report}");
    }
    let unet = Checkpoint::open(path("sdxl_ssd"))?;
    let config = unet.required(ComponentKind::UNet)?.config.clone();
    assert_eq!(
        config["reverse_transformer_layers_per_block"],
        json!([[3, 3, 4], 1])
    );
    assert_eq!(config["mid_block_type"], json!("UNetMidBlock2D"));
    assert_eq!(config["addition_time_embed_dim"], json!(8));
    Ok(())
}

#[test]
fn running_averages_are_read_when_asked_for() -> TestResult {
    let options = OpenOptions {
        ema: true,
        ..Default::default()
    };
    let plain = open("sd1", &OpenOptions::default())?;
    let averaged = open("sd1", &options)?;
    assert_eq!(
        plain.description().num_averages,
        averaged.description().num_averages
    );
    assert!(plain.description().num_averages > 100);
    let name = "mid_block.attentions.0.proj_in.weight";
    let read = |checkpoint: &Checkpoint| -> TestResult<Vec<f32>> {
        let tensors = checkpoint.required(ComponentKind::UNet)?.tensors;
        let tensor = tensors.load(name, DType::F32, &Device::Cpu)?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    };
    let halves: Vec<f32> = read(&plain)?.iter().map(|x| x / 2.0).collect();
    let close = read(&averaged)?
        .iter()
        .zip(&halves)
        .all(|(a, b)| (a - b).abs() < 1e-3);
    assert!(close);
    let error = Checkpoint::open_with(path("sd2"), &options).err();
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::Format));
    Ok(())
}

#[test]
fn settings_of_what_is_not_there_are_refused() -> TestResult {
    let mut checkpoint = Checkpoint::open(path("sd1"))?;
    for result in [
        checkpoint.configure(SecondText, &json!({"hidden_size": 3})),
        checkpoint.configure(FirstText, &json!(3)),
    ] {
        assert!(matches!(result, Err(Error::InvalidArgument { .. })));
    }
    checkpoint.configure_scheduler(&json!({"prediction_type": "v_prediction"}))?;
    let prediction = checkpoint.description().prediction_type;
    assert_eq!(prediction.as_deref(), Some("v_prediction"));
    Ok(())
}

#[test]
fn taesd_in_two_files_of_numbered_layers() -> TestResult {
    let golden = Golden::open("single_files/taesd_golden")?;
    let files = [path("taesd_decoder"), path("taesd_encoder")];
    let checkpoint = Checkpoint::open_files(&files, &OpenOptions::default())?;
    assert_eq!(checkpoint.description().unused, [""; 0]);
    let vae = vae(&checkpoint)?;
    let decoded = vae.decode(&golden.tensor("latents")?)?;
    assert_close(
        "taesd decoded",
        &decoded,
        &golden.tensor("decoded")?,
        TOLERANCE,
    )?;
    let encoded = vae.encode(&golden.tensor("image")?)?;
    assert_close(
        "taesd encoded",
        encoded.mode(),
        &golden.tensor("encoded")?,
        TOLERANCE,
    )?;
    for file in &files {
        // One half alone opens and is named, and no autoencoder is made of it.
        let half = Checkpoint::open(file)?;
        assert_eq!(half.components().collect::<Vec<_>>(), [ComponentKind::Vae]);
        assert!(self::vae(&half).is_err());
    }
    Ok(())
}

#[test]
fn text_encoders_as_stable_diffusion_cpp_names_them() -> TestResult {
    let original = open("sdxl", &OpenOptions::default())?;
    let mut tensors = HashMap::new();
    for kind in [FirstText, SecondText] {
        let source = original.required(kind)?.tensors;
        let prefix = match kind {
            FirstText => "cond_stage_model.transformer.",
            _ => "cond_stage_model.1.transformer.",
        };
        for name in source.tensor_names() {
            let tensor = source.load(&name, DType::F32, &Device::Cpu)?;
            match name.as_str() {
                "text_projection.weight" => tensors.insert(
                    format!("{prefix}text_model.text_projection"),
                    tensor.t()?.contiguous()?,
                ),
                _ => tensors.insert(format!("{prefix}{name}"), tensor),
            };
        }
    }
    let options = OpenOptions::default();
    let mut renamed = Checkpoint::from_sources("sdxl.gguf", vec![Box::new(tensors)], &options)?;
    assert_eq!(renamed.description().unused, [""; 0]);
    let golden = Golden::open("single_files/sdxl_golden")?;
    for kind in [FirstText, SecondText] {
        renamed.configure(kind, &json!({"num_attention_heads": 2}))?;
        assert_text("stable-diffusion.cpp", kind, &renamed, &golden)?;
    }
    Ok(())
}

#[test]
fn weights_in_float8_have_a_scale_beside_them() -> TestResult {
    let base = open("sd1", &OpenOptions::default())?;
    let file = TensorFile::open(path("sd1"))?;
    let mut tensors = HashMap::new();
    for name in file.tensor_names() {
        tensors.insert(name.clone(), file.load(&name, DType::F32, &Device::Cpu)?);
    }
    let unet = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2";
    let text = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn";
    for (module, weight, input) in [
        (format!("{unet}.to_k"), "scale_weight", "scale_input"),
        (format!("{text}.q_proj"), "weight_scale", "input_scale"),
    ] {
        let key = format!("{module}.weight");
        let stored = (&tensors[&key] * 64.0)?.to_dtype(DType::F8E4M3)?;
        let one = Tensor::new(1f32 / 64.0, &Device::Cpu)?;
        tensors.insert(key, stored);
        tensors.insert(format!("{module}.{weight}"), one.clone());
        tensors.insert(format!("{module}.{input}"), one);
    }
    tensors.insert(
        "scaled_fp8".into(),
        Tensor::zeros(0, DType::F8E4M3, &Device::Cpu)?,
    );
    let open = |tensors: &HashMap<String, Tensor>| {
        let source = Box::new(tensors.clone());
        Checkpoint::from_sources("x", vec![source], &OpenOptions::default())
    };
    let scaled = open(&tensors)?;
    assert_eq!(scaled.description().unused, [""; 0]);
    for (kind, name) in [
        (
            ComponentKind::UNet,
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        ),
        (
            FirstText,
            "text_model.encoder.layers.0.self_attn.q_proj.weight",
        ),
    ] {
        let read = |checkpoint: &Checkpoint, dtype| -> TestResult<Tensor> {
            let tensors = checkpoint.required(kind)?.tensors;
            Ok(tensors.load(name, dtype, &Device::Cpu)?)
        };
        // Three bits of mantissa.
        for dtype in [DType::F32, DType::F16] {
            assert_close(
                name,
                &read(&scaled, dtype)?,
                &read(&base, dtype)?,
                1.0 / 16.0,
            )?;
        }
    }
    let key = format!("{unet}.to_k.scale_weight");
    for (name, tensor, kind) in [
        (
            key.clone(),
            Tensor::ones(16, DType::F32, &Device::Cpu)?,
            ErrorKind::Format,
        ),
        (
            format!("{unet}.to_k.weight"),
            Tensor::ones((8, 16), DType::U8, &Device::Cpu)?,
            ErrorKind::Unsupported,
        ),
    ] {
        let mut tensors = tensors.clone();
        tensors.insert(name, tensor);
        let checkpoint = open(&tensors)?;
        let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        let source = checkpoint.required(ComponentKind::UNet)?.tensors;
        let error = source
            .load(name, DType::F32, &Device::Cpu)
            .err()
            .ok_or("read")?;
        assert_eq!(error.kind(), kind, "{error}");
    }
    Ok(())
}
