//! Requests with values out of range, and those at the edge of it.

use std::ops::ControlFlow;

use diffusion_core::media::is_finite;
use diffusion_core::nn::{NamedTensors, TensorSource};
use diffusion_core::rng::ImageRngs;
use diffusion_core::weights::TensorFile;
use diffusion_core::{
    Conditioning, DType, Ddim, Device, Error, ErrorKind, GenerateRequest, Pipeline, Progress,
    PromptSyntax, Tensor, Vae, Warning, WithLevels,
};
use diffusion_tests::{TestResult, emoji_pipeline, model_path};
use serde_json::json;

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("a red heart, flat style")
        .num_steps(1)
        .seed(0)
}

#[test]
fn values_out_of_range() -> TestResult {
    use ErrorKind::{InvalidArgument, OutOfMemory, Unsupported};
    let pipe = emoji_pipeline()?;
    let tensor = |shape: [usize; 4]| Tensor::zeros(&shape, DType::F32, &Device::Cpu);
    let nan = (tensor([1, 4, 16, 16])? * f64::NAN)?;
    for (request, kind, part) in [
        (
            request().size(0, 128),
            InvalidArgument,
            "width: expected a multiple of 8",
        ),
        (
            request().size(128, 100),
            InvalidArgument,
            "height: expected a multiple of 8",
        ),
        (request().size(1 << 16, 1 << 16), OutOfMemory, "MiB"),
        (
            request().size(usize::MAX - 7, 8),
            InvalidArgument,
            "from 8 to 65536",
        ),
        (
            request().num_images(1 << 20).batch_size(1 << 20),
            OutOfMemory,
            "MiB",
        ),
        (
            request().num_steps(0),
            InvalidArgument,
            "num_steps: expected 1 to 1000",
        ),
        (request().num_steps(1001), InvalidArgument, "found 1001"),
        (
            request().num_steps(usize::MAX),
            InvalidArgument,
            "num_steps",
        ),
        (request().num_images(0), InvalidArgument, "num_images"),
        (
            request().num_images(usize::MAX),
            InvalidArgument,
            "num_images",
        ),
        (request().batch_size(0), InvalidArgument, "batch_size"),
        (
            request().guidance_scale(f64::NAN),
            InvalidArgument,
            "guidance_scale",
        ),
        (
            request().guidance_scale(1e39),
            InvalidArgument,
            "guidance_scale",
        ),
        (
            request().guidance_scale(-1.0),
            InvalidArgument,
            "guidance_scale",
        ),
        (request().eta(1.5), InvalidArgument, "eta"),
        (request().eta(f64::NAN), InvalidArgument, "eta"),
        (
            request().scheduler_name("euler_z"),
            Unsupported,
            "did you mean",
        ),
        (request().scheduler_name(""), Unsupported, "did you mean"),
        (
            request().scheduler_config(json!([])),
            InvalidArgument,
            "a JSON object",
        ),
        (
            request().scheduler_config(json!({"_class_name": "X"})),
            Unsupported,
            "\"X\"",
        ),
        (
            request().scheduler_config(json!({"timestep_spacing": "sideways"})),
            ErrorKind::Format,
            "sideways",
        ),
        (
            request().scheduler_config(
                json!({"lambda_min_clipped": -5.1, "_class_name": "DPMSolverMultistepScheduler"}),
            ),
            Unsupported,
            "lambda_min_clipped",
        ),
        (
            request().scheduler_config(json!({"num_train_timesteps": 0})),
            InvalidArgument,
            "num_train_timesteps",
        ),
        (
            request().latents(tensor([1, 4, 16, 15])?).size(128, 128),
            InvalidArgument,
            "latents",
        ),
        (
            request().latents(tensor([2, 4, 16, 16])?),
            InvalidArgument,
            "[1, 4, 16, 16]",
        ),
        (request().latents(nan), InvalidArgument, "finite"),
        (request().denoising_end(f64::NAN), InvalidArgument, "0 to 1"),
        (
            request().denoising_end(0.0),
            InvalidArgument,
            "leaves steps to do",
        ),
        (
            request().denoising_start(0.5),
            InvalidArgument,
            "the latents that a run with denoising_end left",
        ),
        (
            request()
                .denoising_start(1.0)
                .latents(tensor([1, 4, 16, 16])?),
            InvalidArgument,
            "leaves steps to do",
        ),
        (request().aesthetic_score(10.5), InvalidArgument, "0 to 10"),
    ] {
        let Err(error) = pipe.generate(&request) else {
            return Err(format!("no error: {request:?}").into());
        };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    Ok(())
}

#[test]
fn conditioning_has_a_row_for_all_pictures_or_one_for_each() -> TestResult {
    let pipe = emoji_pipeline()?;
    let (one, _) = pipe.encode_prompt(&request().prompt("a red heart, flat style"))?;
    let (other, _) = pipe.encode_prompt(&request().prompt("blue circle, flat style"))?;
    let rows = [&one.prompt_embeds, &other.prompt_embeds, &one.prompt_embeds];
    let each = Conditioning {
        prompt_embeds: Tensor::cat(&rows, 0)?,
        ..one.clone()
    };
    let mut go_on = |_: &Progress<'_>| ControlFlow::Continue(());
    let several = request().num_images(3).batch_size(2);
    let sampled = pipe.sample(&each, &several, &mut go_on)?;
    let second = pipe.sample(&other, &request().seed(1), &mut go_on)?;
    let difference = (sampled.latents.narrow(0, 1, 1)? - second.latents)?.abs()?;
    assert!(difference.max_all()?.to_scalar::<f32>()? < 1e-4);

    let two = Conditioning {
        prompt_embeds: Tensor::cat(&rows[..2], 0)?,
        ..one.clone()
    };
    let narrow = Conditioning {
        prompt_embeds: one.prompt_embeds.narrow(2, 0, 8)?,
        ..one.clone()
    };
    let without_negative = Conditioning {
        negative_prompt_embeds: None,
        ..one
    };
    for conditioning in [two, narrow, without_negative] {
        let error = pipe
            .sample(&conditioning, &several, &mut go_on)
            .expect_err("does not fit");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    Ok(())
}

#[test]
fn schedulers_of_the_registry_serve_as_values() -> TestResult {
    let pipe = emoji_pipeline()?;
    let config = json!({"use_karras_sigmas": true, "solver_type": "bh2", "algorithm_type": "deis"});
    let dpm = diffusion_core::scheduler::from_name("dpmpp_2m", &config)?;
    pipe.generate(&request().scheduler(dpm).num_steps(2))?;
    // diffusers' DDIM knows no Karras sigmas, whatever a configuration holds.
    let ddim = diffusion_core::scheduler::from_name("ddim", &config)?;
    let plain = diffusion_core::scheduler::from_name("ddim", &json!({}))?;
    let noise = pipe.noise_schedule();
    assert_eq!(ddim.sigmas(noise, 5)?, plain.sigmas(noise, 5)?);
    Ok(())
}

#[test]
fn a_configuration_that_is_silent_on_noise_keeps_the_model_s() -> TestResult {
    let pipe = emoji_pipeline()?;
    let latents = |config| {
        let request = request().num_steps(3).scheduler_config(config);
        pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))
    };
    let silent = latents(json!({"_class_name": "EulerDiscreteScheduler"}))?;
    let filled = latents(json!({
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "epsilon",
        "beta_schedule": "linear",
        "_use_default_values": ["prediction_type", "beta_schedule"],
    }))?;
    let spoken =
        latents(json!({"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}))?;
    let sum = |tensor: &Tensor| tensor.sum_all()?.to_scalar::<f32>();
    assert_eq!(sum(&silent.latents)?, sum(&filled.latents)?);
    assert_ne!(sum(&silent.latents)?, sum(&spoken.latents)?);
    Ok(())
}

#[test]
fn finite_pictures_at_every_edge() -> TestResult {
    let pipe = emoji_pipeline()?;
    for request in [
        request().size(8, 8),
        request().size(8, 24).num_steps(3),
        request().guidance_scale(0.0),
        request().guidance_scale(1.0),
        request().guidance_scale(1e6),
        request().eta(1.0).num_steps(3),
        request().seed(u64::MAX).num_images(2),
        request().scheduler_name("euler").num_steps(2),
        request().scheduler_name("dpmpp_2m_karras").num_steps(2),
        request().scheduler(Ddim::default().karras()).num_steps(2),
    ] {
        let sampled = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
        let sum = sampled.latents.abs()?.sum_all()?.to_scalar::<f32>()?;
        assert!(sum.is_finite(), "{request:?}");
    }
    Ok(())
}

#[test]
fn empty_long_and_odd_prompts() -> TestResult {
    let pipe = emoji_pipeline()?;
    for prompt in [
        "",
        " ",
        "\0",
        "\u{1f600}\u{200d}\u{fe0f}",
        "<|endoftext|>",
        "中文 é e\u{301}",
    ] {
        let output = pipe.generate(&GenerateRequest::txt2img(prompt).num_steps(1))?;
        assert!(
            output.warnings.is_empty(),
            "{prompt:?}: {:?}",
            output.warnings
        );
    }
    let long = "heart ".repeat(31);
    let request = request().negative_prompt(&long);
    assert!(pipe.generate(&request)?.warnings.is_empty());
    let output = pipe.generate(&request.prompt_syntax(PromptSyntax::Plain))?;
    let dropped = "heart ".to_owned();
    assert_eq!(
        output.warnings,
        [Warning::PromptTruncated {
            negative: true,
            limit: 30,
            dropped
        }]
    );
    assert!(
        output.warnings[0]
            .to_string()
            .contains("negative prompt is longer than 30 tokens")
    );
    Ok(())
}

#[test]
fn builders_without_parts() {
    let error = Pipeline::builder().build().expect_err("nothing was given");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = Pipeline::builder()
        .weights(model_path("emoji"))
        .dtype(DType::U8)
        .build()
        .expect_err("not a float");
    assert!(
        matches!(error, Error::InvalidArgument { name: "dtype", .. }),
        "{error}"
    );
}

#[test]
fn latents_of_another_shape_are_not_decoded() -> TestResult {
    let pipe = emoji_pipeline()?;
    for shape in [
        &[1, 3, 16, 16][..],
        &[4, 16, 16],
        &[0, 4, 16, 16],
        &[1, 4, 0, 16],
    ] {
        let latents = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let error = pipe.decode(&latents).expect_err("another shape");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    Ok(())
}

/// An autoencoder whose activations pass 65504, the largest number of f16.
fn overflowing_vae() -> TestResult<Vae> {
    let folder = model_path("sdxl").join("vae");
    let source = TensorFile::open(folder.join("diffusion_pytorch_model.safetensors"))?;
    let mut tensors = NamedTensors::new();
    for name in source.tensor_names() {
        let tensor = source.load(&name, DType::F32, &Device::Cpu)?;
        let scale = if name == "decoder.conv_in.weight" {
            2e5
        } else {
            1.0
        };
        tensors.insert(name, (tensor * scale)?);
    }
    let path = folder.join("config.json");
    let config = serde_json::from_slice(&std::fs::read(&path)?)?;
    Ok(Vae::new(
        &path,
        &config,
        &tensors,
        DType::F32,
        &Device::Cpu,
    )?)
}

#[test]
fn an_autoencoder_that_overflows_is_asked_again() -> TestResult {
    let vae = overflowing_vae()?;
    let half = vae.with_compute_dtype(DType::F16);
    let latents = ImageRngs::new(&[1, 2], &[4, 4, 6], &Device::Cpu).draw()?;
    assert!(!is_finite(&half.decode(&latents)?)?);
    let pipe = |vae| {
        Pipeline::builder()
            .weights(model_path("sdxl"))
            .vae(vae)
            .build()
    };
    let (expected, none) = pipe(vae)?.decode(&latents)?;
    assert!(none.is_empty(), "{none:?}");
    let pipe = pipe(half)?;
    let (pictures, warnings) = pipe.decode(&latents)?;
    assert_eq!(pictures, expected);
    assert_eq!(warnings, [Warning::DecodedInF32]);
    assert!(warnings[0].to_string().contains("f32"));

    let request = request().num_images(2).guidance_scale(1.0).size(48, 32);
    let generated = pipe.generate(&request)?;
    assert_eq!(generated.warnings, [Warning::DecodedInF32]);
    Ok(())
}
