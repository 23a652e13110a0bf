//! UNet and autoencoders against diffusers.

use std::fs;

use diffusion_core::model::{TextTime, UNetConfig, UNetInput, Vae};
use diffusion_core::weights::DiffusersFolder;
use diffusion_core::{DType, Device, UNet};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, assert_close, copy_folder, golden_json, golden_path, model_path,
};

pub(crate) fn open_unet(model: &str) -> TestResult<UNet> {
    let part = DiffusersFolder::open(model_path(model), None)?.required("unet")?;
    let config = UNetConfig::from_json(&part.config_path, &part.config)?;
    Ok(UNet::new(
        config,
        &part.open_weights()?,
        DType::F32,
        &Device::Cpu,
    )?)
}

fn assert_unet(name: &str, unet: &UNet, golden: &Golden, prefix: &str) -> TestResult {
    let tensor = |key: &str| golden.tensor(&format!("{prefix}{key}"));
    let optional = |key: &str| {
        golden
            .contains(&format!("{prefix}{key}"))
            .then(|| tensor(key))
            .transpose()
    };
    let timesteps = golden.values(&format!("{prefix}timesteps"))?;
    assert!(
        timesteps.len() == 2 && timesteps[0] != timesteps[1],
        "{name}: {timesteps:?}"
    );
    let text_time =
        optional("text_embeds")?
            .zip(optional("time_ids")?)
            .map(|(text_embeds, time_ids)| TextTime {
                text_embeds,
                time_ids,
            });
    let timestep_cond = optional("timestep_cond")?;
    let output = unet.forward(&UNetInput {
        text_time: text_time.as_ref(),
        timestep_cond: timestep_cond.as_ref(),
        ..UNetInput::new(
            &tensor("sample")?,
            &timesteps,
            &tensor("encoder_hidden_states")?,
        )
    })?;
    assert_close(
        &format!("{name} {prefix}"),
        &output,
        &tensor("out")?,
        TOLERANCE,
    )
}

#[test]
fn whole_unets_at_square_wide_and_odd_sizes() -> TestResult {
    for model in ["sd15", "sd21", "sdxl"] {
        let unet = open_unet(model)?;
        let golden = Golden::open(&format!("unet_{model}"))?;
        for case in ["square.", "wide.", "odd."] {
            assert_unet(model, &unet, &golden, case)?;
        }
    }
    Ok(())
}

#[test]
fn every_configuration_switch() -> TestResult {
    let mut count = 0;
    for entry in fs::read_dir(golden_path("unet_variants"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .ok_or("not a name")?;
        let golden = Golden::open(&format!("unet_variants/{name}"))?;
        let json = golden_json(&format!("unet_variants/{name}.json"))?;
        let config = UNetConfig::from_json(&path, &json).map_err(|e| format!("{name}: {e}"))?;
        let weights = golden.below("weights.");
        let unet = UNet::new(config, &weights, DType::F32, &Device::Cpu)
            .map_err(|e| format!("{name}: {e}"))?;
        assert_unet(name, &unet, &golden, "")?;
        count += 1;
    }
    assert!(count >= 13, "{count} variants");
    Ok(())
}

pub(crate) fn open_vae(model: &str, variant: Option<&str>) -> TestResult<Vae> {
    let part = DiffusersFolder::open(model_path(model), variant)?.required("vae")?;
    let weights = part.open_weights()?;
    Ok(Vae::new(
        &part.config_path,
        &part.config,
        &weights,
        DType::F32,
        &Device::Cpu,
    )?)
}

fn assert_vae(name: &str, vae: &Vae) -> TestResult {
    let golden = Golden::open(&format!("vae_{name}"))?;
    let close = |what: &str, ours: &diffusion_core::Tensor| {
        assert_close(
            &format!("{name} {what}"),
            ours,
            &golden.tensor(what)?,
            TOLERANCE,
        )
    };
    let posterior = vae.encode(&golden.tensor("image")?)?;
    match &posterior.logvar {
        Some(logvar) => {
            close("mean", posterior.mode())?;
            close("logvar", logvar)?;
            close("sample", &posterior.sample(&golden.tensor("noise")?)?)?;
        }
        None => close("encoded", posterior.mode())?,
    }
    close("decoded", &vae.decode(&golden.tensor("latents")?)?)?;
    close("odd.decoded", &vae.decode(&golden.tensor("odd.latents")?)?)
}

#[test]
fn autoencoders_encode_sample_and_decode() -> TestResult {
    for model in ["sd15", "sd21", "emoji"] {
        assert_vae(model, &open_vae(model, None)?)?;
    }
    Ok(())
}

#[test]
fn weights_of_a_variant() -> TestResult {
    assert_vae("sd21", &open_vae("sd21", Some("fp16"))?)?;
    // A component that has no such weights is read as it is.
    open_vae("sd21", Some("fp16"))?;
    let folder = tempfile::tempdir()?;
    copy_folder(&model_path("sd21"), folder.path())?;
    fs::remove_file(
        folder
            .path()
            .join("vae/diffusion_pytorch_model.safetensors"),
    )?;
    let part = DiffusersFolder::open(folder.path(), None)?.required("vae")?;
    assert!(
        part.open_weights().is_ok(),
        "a folder with nothing but a variant"
    );
    assert!(DiffusersFolder::open(model_path("sd21"), Some("nonsense")).is_err());
    Ok(())
}
