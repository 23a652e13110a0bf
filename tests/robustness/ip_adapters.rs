//! IP-Adapters and image encoders that are damaged or of another kind, and pictures that do not fit.

use std::collections::HashMap;
use std::path::Path;

use candle_core::safetensors;
use diffusion_core::model::{ClipVisionConfig, ImageEncoder, IpAdapterConfig};
use diffusion_core::pipeline::{ImageEmbeds, ImageEncoderFiles, IpAdapterImage};
use diffusion_core::weights::TensorFile;
use diffusion_core::{
    DType, Device, Error, ErrorKind, GenerateRequest, Pipeline, RgbImage, Tensor,
};
use diffusion_tests::{TestResult, copy_folder, golden_path, model_path};

type Tensors = HashMap<String, Tensor>;

fn adapter_path(name: &str) -> std::path::PathBuf {
    golden_path("ip_adapters").join(name)
}

fn base() -> TestResult<Pipeline> {
    Ok(Pipeline::builder().weights(model_path("sd15")).build()?)
}

fn with_adapter() -> TestResult<Pipeline> {
    let mut pipe = base()?;
    pipe.add_ip_adapter(adapter_path("sd15.safetensors"))?;
    Ok(pipe)
}

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("a cat")
        .size(64, 64)
        .num_steps(1)
        .seed(1)
}

fn picture() -> RgbImage {
    RgbImage::new(20, 30)
}

/// A copy of an adapter's file with its tensors changed.
fn changed(folder: &Path, name: &str, change: impl FnOnce(&mut Tensors)) -> TestResult<Error> {
    let mut tensors = safetensors::load(adapter_path(name), &Device::Cpu)?;
    change(&mut tensors);
    let path = folder.join("changed.safetensors");
    safetensors::save(&tensors, &path)?;
    let mut pipe = base()?;
    match pipe.add_ip_adapter(&path) {
        Err(error) => Ok(error),
        Ok(()) => Err(format!("{name}: the change did not matter").into()),
    }
}

#[test]
fn what_is_not_right_is_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let missing = changed(folder.path(), "sd15.safetensors", |tensors| {
        tensors.remove("ip_adapter.7.to_v_ip.weight");
    })?;
    assert_eq!(missing.kind(), ErrorKind::Weights);
    assert!(missing.to_string().contains("ip_adapter.7.to_v_ip.weight"));

    let wide = zeros(&[16, 48])?;
    let misshapen = changed(folder.path(), "sd15.safetensors", |tensors| {
        tensors.insert("ip_adapter.1.to_k_ip.weight".into(), wide);
    })?;
    assert_eq!(misshapen.kind(), ErrorKind::Weights);
    assert!(misshapen.to_string().contains("ip_adapter.1.to_k_ip"));

    let uneven = zeros(&[130, 24])?;
    let no_tokens = changed(folder.path(), "sd15.safetensors", |tensors| {
        tensors.insert("image_proj.proj.weight".into(), uneven);
    })?;
    assert_eq!(no_tokens.kind(), ErrorKind::Format);

    let alone = changed(folder.path(), "sd15.safetensors", |tensors| {
        tensors.retain(|name, _| name.starts_with("image_proj."));
    })?;
    assert_eq!(alone.kind(), ErrorKind::Format);
    assert!(alone.to_string().contains("ip_adapter."), "{alone}");
    Ok(())
}

#[test]
fn faces_are_refused_by_name() -> TestResult {
    let folder = tempfile::tempdir()?;
    let face = Tensor::zeros((48, 512), DType::F32, &Device::Cpu)?;
    for (kind, marker) in [
        ("FaceID", "image_proj.proj.2.weight"),
        (
            "FaceID Plus",
            "image_proj.perceiver_resampler.proj_in.weight",
        ),
    ] {
        let error = changed(folder.path(), "sd15.safetensors", |tensors| {
            tensors.retain(|name, _| name.starts_with("ip_adapter."));
            tensors.insert("image_proj.proj.0.weight".into(), face.clone());
            tensors.insert("image_proj.norm.weight".into(), face.clone());
            tensors.insert(marker.into(), face.clone());
        })?;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let message = error.to_string();
        assert!(
            message.contains(&format!("IP-Adapter {kind} ")),
            "{message}"
        );
        assert!(message.contains("recognises faces"), "{message}");
    }
    Ok(())
}

#[test]
fn another_family_is_refused() -> TestResult {
    let error = base()?.add_ip_adapter(adapter_path("sdxl.safetensors"));
    let error = error.expect_err("SDXL's adapter in SD 1.5");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let message = error.to_string();
    assert!(message.contains("32 channels") && message.contains("40 channels"));
    let mut pipe = base()?;
    let model = model_path("sd15").join("unet/diffusion_pytorch_model.safetensors");
    let error = pipe.add_ip_adapter(model).expect_err("a UNet");
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.to_string().contains("not an IP-Adapter"), "{error}");
    Ok(())
}

#[test]
fn cut_off_files_are_errors() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cut");
    let mut pipe = base()?;
    for name in ["sd15.safetensors", "sd15_plus.bin"] {
        let bytes = std::fs::read(adapter_path(name))?;
        for part in 0..64 {
            std::fs::write(&path, &bytes[..bytes.len() * part / 64])?;
            let error = pipe.add_ip_adapter(&path).expect_err("cut off");
            assert_eq!(error.kind(), ErrorKind::Format, "{name} {part}: {error}");
        }
    }
    Ok(())
}

#[test]
fn pictures_and_adapters_must_fit() -> TestResult {
    let (base, pipe) = (base()?, with_adapter()?);
    let refused = |pipe: &Pipeline, request: &GenerateRequest, part: &str| {
        let error = pipe.generate(request).expect_err(part);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(
        &base,
        &request().ip_adapter_image(picture()),
        "the pipeline has no IP-Adapter",
    );
    let two = request()
        .ip_adapter_image(picture())
        .ip_adapter_image(picture());
    refused(&pipe, &two, "each of 1 IP-Adapters, found 2");
    let none = IpAdapterImage::pictures(Vec::new());
    refused(
        &pipe,
        &request().ip_adapter_image(none),
        "a picture, found none",
    );
    for (width, height) in [(0, 0), (0, 5), (5, 0)] {
        let empty = RgbImage::new(width, height);
        refused(
            &pipe,
            &request().ip_adapter_image(empty),
            "sides of at least 1 pixel",
        );
    }
    for scale in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let image = IpAdapterImage::from(picture());
        refused(
            &pipe,
            &request().ip_adapter_image(image.clone().scale(scale)),
            "a finite number",
        );
        let block = diffusion_core::model::IpAdapterScale::from(1.0).block("up_blocks", scale);
        refused(
            &pipe,
            &request().ip_adapter_image(image.scale(block)),
            "a finite number",
        );
    }
    // An adapter without pictures does nothing; one pixel is a picture.
    pipe.generate(&request())?;
    pipe.generate(&request().ip_adapter_image(RgbImage::new(1, 1)))?;
    Ok(())
}

#[test]
fn embeddings_must_fit() -> TestResult {
    let pipe = with_adapter()?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let nan = Tensor::full(f32::NAN, (1, 24), &Device::Cpu)?;
    for (embeds, negative_embeds) in [
        (zeros(&[1, 25])?, None),
        (zeros(&[0, 24])?, None),
        (zeros(&[24])?, None),
        (zeros(&[1, 17, 24])?, None),
        (zeros(&[1, 24])?, Some(zeros(&[1, 25])?)),
        (nan.clone(), None),
        (zeros(&[1, 24])?, Some(nan)),
    ] {
        let image = IpAdapterImage::embeds(ImageEmbeds {
            embeds,
            negative_embeds,
        });
        let error = pipe.generate(&request().ip_adapter_image(image.clone()));
        let error = error.expect_err(&format!("{image:?}"));
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let error = pipe.encode_image(1, &[picture()], true).err();
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
    Ok(())
}

#[test]
fn an_image_encoder_must_be_there_and_fit() -> TestResult {
    let folder = tempfile::tempdir()?;
    let lonely = folder.path().join("lonely.safetensors");
    std::fs::copy(adapter_path("sd15.safetensors"), &lonely)?;
    let mut pipe = base()?;
    pipe.add_ip_adapter(&lonely)?;
    assert!(pipe.image_encoder().is_none());
    let error = pipe
        .generate(&request().ip_adapter_image(picture()))
        .expect_err("no encoder");
    assert!(error.to_string().contains("image_encoder"), "{error}");

    // Of another width than the adapter takes: it is not taken for the adapter's, and refused where it is named.
    let other = folder.path().join("image_encoder");
    copy_folder(&adapter_path("image_encoder"), &other)?;
    let weights = other.join("model.safetensors");
    let mut tensors = safetensors::load(&weights, &Device::Cpu)?;
    let narrow = Tensor::zeros((20, 32), DType::F16, &Device::Cpu)?;
    tensors.insert("visual_projection.weight".into(), narrow);
    safetensors::save(&tensors, &weights)?;
    let config = std::fs::read_to_string(other.join("config.json"))?;
    std::fs::write(
        other.join("config.json"),
        config.replace("\"projection_dim\": 24", "\"projection_dim\": 20"),
    )?;
    let error = pipe.load_image_encoder(&other).expect_err("another width");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("24 channels"), "{error}");
    let mut pipe = base()?;
    pipe.add_ip_adapter(&lonely)?;
    assert!(pipe.image_encoder().is_none());
    let mut pipe = base()?;
    pipe.load_image_encoder(&other)?;
    let error = pipe.add_ip_adapter(&lonely).expect_err("another width");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);

    // The right one, given later.
    let mut pipe = base()?;
    pipe.add_ip_adapter(&lonely)?;
    pipe.load_image_encoder(adapter_path("image_encoder"))?;
    pipe.generate(&request().ip_adapter_image(picture()))?;
    Ok(())
}

#[test]
fn settings_of_image_encoders_have_bounds() -> TestResult {
    let files = ImageEncoderFiles::open(adapter_path("image_encoder"))?;
    let change = |change: &dyn Fn(&mut ClipVisionConfig)| {
        let mut config = files.config.clone();
        change(&mut config);
        ImageEncoder::new(config, &*files.tensors, DType::F32, &Device::Cpu).err()
    };
    assert!(change(&|_| ()).is_none());
    let changes: [&dyn Fn(&mut ClipVisionConfig); 9] = [
        &|c| c.image_size = 0,
        &|c| c.image_size = usize::MAX,
        &|c| c.patch_size = 0,
        &|c| c.patch_size = 33,
        &|c| c.num_attention_heads = 0,
        &|c| c.num_attention_heads = 5,
        &|c| c.num_channels = 4,
        &|c| c.num_hidden_layers = 0,
        &|c| c.num_hidden_layers = 1 << 24,
    ];
    for (i, spoil) in changes.into_iter().enumerate() {
        let error = change(spoil).ok_or_else(|| format!("change {i} did not matter"))?;
        let kind = error.kind();
        let is_right = matches!(kind, ErrorKind::InvalidArgument | ErrorKind::Weights);
        assert!(is_right, "change {i}: {error}");
    }
    let encoder = files.load(DType::F32, &Device::Cpu)?;
    for shape in [[1, 3, 32, 31], [1, 4, 32, 32], [0, 3, 32, 32]] {
        let pixels = Tensor::zeros(&shape, DType::F32, &Device::Cpu)?;
        let error = encoder.forward(&pixels).expect_err("another shape");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    Ok(())
}

#[test]
fn what_is_no_image_encoder_is_refused() -> TestResult {
    for (path, kind) in [
        (model_path("sd15").join("unet"), ErrorKind::Format),
        (model_path("sd15").join("text_encoder"), ErrorKind::Format),
        (model_path("sd15"), ErrorKind::NotFound),
        (model_path("sd15").join("nothing"), ErrorKind::NotFound),
        (adapter_path("sd15.safetensors"), ErrorKind::Format),
        // Its width is no published model's, and a file alone does not say the rest.
        (
            adapter_path("image_encoder/model.safetensors"),
            ErrorKind::Unsupported,
        ),
    ] {
        let mut pipe = base()?;
        let error = pipe.load_image_encoder(&path).expect_err("no encoder");
        assert_eq!(error.kind(), kind, "{}: {error}", path.display());
    }
    let file = TensorFile::open(adapter_path("image_encoder/model.safetensors"))?;
    assert!(ClipVisionConfig::describes(&file) && !IpAdapterConfig::describes(&file));
    Ok(())
}
