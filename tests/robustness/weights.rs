//! Folders and files that are missing, cut off, damaged or of another model.

use std::fs;
use std::path::Path;

use diffusion_core::{Error, ErrorKind, GenerateRequest, Pipeline};
use diffusion_tests::{TestResult, copy_folder, golden_path, model_path};
use serde_json::{Value, json};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A copy of the tiny SD 1.5 to damage.
fn copy() -> TestResult<TempDir> {
    let folder = tempfile::tempdir()?;
    copy_folder(&model_path("sd15"), folder.path())?;
    Ok(folder)
}

fn open_error(folder: &Path) -> TestResult<Error> {
    match Pipeline::builder().weights(folder).build() {
        Ok(_) => Err(format!("{} opened", folder.display()).into()),
        Err(error) => Ok(error),
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) -> TestResult {
    let mut value: Value = serde_json::from_slice(&fs::read(path)?)?;
    edit(&mut value);
    Ok(fs::write(path, value.to_string())?)
}

#[test]
fn an_intact_copy_opens() -> TestResult {
    Pipeline::builder().weights(copy()?.path()).build()?;
    Ok(())
}

#[test]
fn no_such_path() -> TestResult {
    let error = open_error(Path::new("no/such/model"))?;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().starts_with("no/such/model: not found"),
        "{error}"
    );
    Ok(())
}

#[test]
fn not_a_model_folder() -> TestResult {
    let folder = tempfile::tempdir()?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Format);
    let file = folder.path().join("model.safetensors");
    fs::write(&file, "text")?;
    assert_eq!(open_error(&file)?.kind(), ErrorKind::Format);
    fs::write(folder.path().join("model_index.json"), "[1, 2]")?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Format);
    fs::write(folder.path().join("model_index.json"), "{\"unet\":")?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Format);
    fs::write(folder.path().join("model_index.json"), b"\xff\xfe")?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Io);
    Ok(())
}

#[test]
fn missing_parts() -> TestResult {
    for (part, kind) in [
        ("unet/config.json", ErrorKind::NotFound),
        (UNET, ErrorKind::NotFound),
        (
            "vae/diffusion_pytorch_model.safetensors",
            ErrorKind::NotFound,
        ),
        ("scheduler/scheduler_config.json", ErrorKind::NotFound),
        ("tokenizer/vocab.json", ErrorKind::NotFound),
    ] {
        let folder = copy()?;
        fs::remove_file(folder.path().join(part))?;
        let error = open_error(folder.path())?;
        assert_eq!(error.kind(), kind, "{part}: {error}");
    }
    Ok(())
}

#[test]
fn a_model_without_text_encoder_opens_and_says_so_when_asked() -> TestResult {
    let folder = copy()?;
    edit_json(&folder.path().join("model_index.json"), |index| {
        index["text_encoder"] = json!([null, null]);
    })?;
    let pipe = Pipeline::builder().weights(folder.path()).build()?;
    let error = pipe
        .encode_prompt(&GenerateRequest::txt2img("a cat"))
        .expect_err("no text encoder");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    Ok(())
}

#[test]
fn a_component_with_a_bin_file_alone() -> TestResult {
    let folder = copy()?;
    let unet = folder.path().join(UNET);
    let bin = unet.with_extension("bin");
    // The container is what the bytes say, not what the name says.
    fs::rename(&unet, &bin)?;
    Pipeline::builder().weights(folder.path()).build()?;
    // A pickle, but not of this model.
    fs::copy(golden_path("containers/legacy.pt"), &bin)?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Weights);
    // Shards.
    fs::rename(&bin, bin.with_file_name("part-1.bin"))?;
    let index = json!({"weight_map": {"a": "part-1.bin"}});
    let index_path = bin.with_file_name("diffusion_pytorch_model.bin.index.json");
    fs::write(index_path, index.to_string())?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Weights);
    // safetensors are preferred.
    fs::copy(model_path("sd15").join(UNET), &unet)?;
    Pipeline::builder().weights(folder.path()).build()?;
    Ok(())
}

#[test]
fn cut_off_anywhere() -> TestResult {
    let folder = copy()?;
    let path = folder.path().join(UNET);
    let whole = fs::read(&path)?;
    for part in 0..64 {
        fs::write(&path, &whole[..whole.len() * part / 64])?;
        let error = open_error(folder.path())?;
        assert!(
            matches!(error.kind(), ErrorKind::Format | ErrorKind::Io),
            "{part}: {error}"
        );
    }
    let mut longer = whole;
    longer.push(0);
    fs::write(&path, longer)?;
    assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Format);
    Ok(())
}

#[test]
fn damaged_headers() -> TestResult {
    let folder = copy()?;
    let path = folder.path().join(UNET);
    let whole = fs::read(&path)?;
    for (at, bytes) in [
        (0, &[0xff; 8][..]),
        (0, &[0; 8][..]),
        (8, b"[".as_slice()),
        (9, b"\xff".as_slice()),
    ] {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, damaged)?;
        assert_eq!(open_error(folder.path())?.kind(), ErrorKind::Format, "{at}");
    }
    Ok(())
}

#[test]
fn every_tensor_that_does_not_fit_is_named() -> TestResult {
    let folder = copy()?;
    edit_json(&folder.path().join("unet/config.json"), |config| {
        config["cross_attention_dim"] = json!(24);
        config["layers_per_block"] = json!([2, 3]);
        config["conv_out_kernel"] = json!(1);
    })?;
    let Error::Weights(report) = open_error(folder.path())? else {
        return Err("another kind of error".into());
    };
    let key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let wrong = report
        .misshapen
        .iter()
        .find(|m| m.name == key)
        .ok_or("not named")?;
    assert_eq!(
        (wrong.expected.as_slice(), wrong.found.as_slice()),
        (&[16, 24][..], &[16, 32][..])
    );
    assert!(report.misshapen.iter().any(|m| m.name == "conv_out.weight"));
    assert!(
        report
            .missing
            .iter()
            .any(|name| name == "down_blocks.1.resnets.2.conv1.weight")
    );
    assert!(report.to_string().contains(key));

    let folder = copy()?;
    edit_json(&folder.path().join("unet/config.json"), |config| {
        config["layers_per_block"] = json!(1);
    })?;
    let Error::Weights(report) = open_error(folder.path())? else {
        return Err("another kind of error".into());
    };
    assert!(
        report
            .unexpected
            .iter()
            .any(|name| name == "down_blocks.0.resnets.1.conv1.weight")
    );
    Ok(())
}

#[test]
fn settings_that_are_not_known_are_named() -> TestResult {
    for (file, key, value, kind) in [
        (
            "unet/config.json",
            "class_embed_type",
            json!("timestep"),
            ErrorKind::Unsupported,
        ),
        (
            "unet/config.json",
            "dual_cross_attention",
            json!(true),
            ErrorKind::Unsupported,
        ),
        (
            "unet/config.json",
            "mid_block_type",
            json!("UNetMidBlock2DSimpleCrossAttn"),
            ErrorKind::Format,
        ),
        (
            "unet/config.json",
            "down_block_types",
            json!(["AttnDownBlock2D", "DownBlock2D"]),
            ErrorKind::Format,
        ),
        (
            "unet/config.json",
            "block_out_channels",
            json!([]),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "block_out_channels",
            json!([16]),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "block_out_channels",
            json!("many"),
            ErrorKind::Format,
        ),
        (
            "unet/config.json",
            "norm_num_groups",
            json!(0),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "norm_num_groups",
            json!(7),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "downsample_padding",
            json!(1 << 24),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "attention_head_dim",
            json!(3),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "conv_in_kernel",
            json!(0),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "attention_head_dim",
            json!([1, 2, 3]),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "block_out_channels",
            json!([0, 0]),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "block_out_channels",
            json!(vec![8; 65]),
            ErrorKind::InvalidArgument,
        ),
        (
            "unet/config.json",
            "cross_attention_dim",
            json!(u64::MAX),
            ErrorKind::Format,
        ),
        (
            "unet/config.json",
            "layers_per_block",
            json!(1u64 << 40),
            ErrorKind::Format,
        ),
        (
            "unet/config.json",
            "layers_per_block",
            json!(1 << 20),
            ErrorKind::Weights,
        ),
        (
            "unet/config.json",
            "cross_attention_dim",
            json!(1 << 24),
            ErrorKind::Weights,
        ),
        (
            "vae/config.json",
            "latent_channels",
            json!(1 << 24),
            ErrorKind::Weights,
        ),
        (
            "text_encoder/config.json",
            "num_hidden_layers",
            json!(1 << 24),
            ErrorKind::Weights,
        ),
        (
            "text_encoder/config.json",
            "vocab_size",
            json!(-1),
            ErrorKind::Format,
        ),
        (
            "vae/config.json",
            "_class_name",
            json!("VQModel"),
            ErrorKind::Unsupported,
        ),
        (
            "vae/config.json",
            "latents_mean",
            json!([0.0]),
            ErrorKind::InvalidArgument,
        ),
        (
            "vae/config.json",
            "block_out_channels",
            json!([]),
            ErrorKind::InvalidArgument,
        ),
        (
            "text_encoder/config.json",
            "hidden_act",
            json!("tanh"),
            ErrorKind::Format,
        ),
        (
            "scheduler/scheduler_config.json",
            "beta_schedule",
            json!("sigmoid"),
            ErrorKind::Format,
        ),
        (
            "scheduler/scheduler_config.json",
            "beta_end",
            json!(2.0),
            ErrorKind::InvalidArgument,
        ),
    ] {
        let folder = copy()?;
        edit_json(&folder.path().join(file), |config| {
            config[key] = value.clone()
        })?;
        let error = open_error(folder.path())?;
        assert_eq!(error.kind(), kind, "{file} {key} {value}: {error}");
    }
    Ok(())
}

#[test]
fn shard_lists() -> TestResult {
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    for (content, kind) in [
        (json!({}), ErrorKind::Format),
        (json!({"weight_map": {}}), ErrorKind::Format),
        (json!({"weight_map": {"a": "../secret"}}), ErrorKind::Format),
        (
            json!({"weight_map": {"a": "/etc/passwd"}}),
            ErrorKind::Format,
        ),
        (
            json!({"weight_map": {"a": "missing.safetensors"}}),
            ErrorKind::NotFound,
        ),
    ] {
        let folder = copy()?;
        fs::remove_file(folder.path().join(UNET))?;
        fs::write(folder.path().join(index), content.to_string())?;
        let error = open_error(folder.path())?;
        assert_eq!(error.kind(), kind, "{content}: {error}");
    }
    Ok(())
}

#[test]
fn an_unknown_scheduler_is_an_error_until_a_request_names_another() -> TestResult {
    let folder = copy()?;
    edit_json(
        &folder.path().join("scheduler/scheduler_config.json"),
        |config| {
            config["_class_name"] = json!("NoSuchScheduler");
        },
    )?;
    let pipe = Pipeline::builder().weights(folder.path()).build()?;
    assert!(pipe.scheduler().is_none());
    let request = GenerateRequest::txt2img("a cat")
        .num_steps(2)
        .size(64, 64)
        .seed(0);
    let error = pipe.generate(&request).expect_err("an unknown scheduler");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("\"NoSuchScheduler\""), "{error}");
    let named = pipe.generate(&request.scheduler_name("ddim"))?;
    assert_eq!(named.images.len(), 1);
    Ok(())
}

#[test]
fn widths_of_sizes_that_do_not_fit_are_named() -> TestResult {
    for width in [7, 9, 0, 16] {
        let folder = tempfile::tempdir()?;
        copy_folder(&model_path("sdxl"), folder.path())?;
        edit_json(&folder.path().join("unet/config.json"), |config| {
            config["addition_time_embed_dim"] = json!(width);
        })?;
        let built = Pipeline::builder().weights(folder.path()).build();
        let request = GenerateRequest::txt2img("a").num_steps(1).size(16, 16);
        let error = built.and_then(|pipe| pipe.generate(&request)).err();
        let kind = error.ok_or("accepted")?.kind();
        let expected = [ErrorKind::InvalidArgument, ErrorKind::Unsupported];
        assert!(expected.contains(&kind), "{width}: {kind:?}");
    }
    Ok(())
}
