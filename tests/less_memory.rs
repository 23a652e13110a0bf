//! Models that take less memory: layers in eight bits, and text encoders that are dropped.

use diffusion_core::weights::{Lora, LoraMode};
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline, Quantization};
use diffusion_tests::{TestResult, emoji_pipeline, golden_path, model_path, psnr};

#[test]
fn pictures_are_near_those_of_f32() -> TestResult {
    let quantized = Pipeline::builder()
        .weights(model_path("emoji"))
        .quantize(Quantization::Int8)
        .build()?;
    let full = emoji_pipeline()?;
    for prompt in ["a red heart, flat style", "cat face, flat style"] {
        let request = GenerateRequest::txt2img(prompt)
            .num_steps(10)
            .guidance_scale(5.0)
            .seed(1);
        let picture = |pipe: &Pipeline| -> TestResult<Vec<u8>> {
            Ok(pipe.generate(&request)?.images.remove(0).into_raw())
        };
        let (found, expected) = (picture(&quantized)?, picture(&full)?);
        assert_ne!(found, expected, "{prompt}: nothing was quantized");
        assert!(
            psnr(&found, &expected) > 28.0,
            "{prompt}: {}",
            psnr(&found, &expected)
        );
    }
    Ok(())
}

/// Prompts that were read are known on without the encoders, which is the other way to need less memory.
#[test]
fn prompts_are_known_without_their_encoders() -> TestResult {
    let mut pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let request = |prompt: &str| GenerateRequest::txt2img(prompt).num_steps(2).seed(2);
    let before = pipe.generate(&request("a cat"))?.images;
    let lora = Lora::open(golden_path("loras/kohya_a.safetensors"))?;
    pipe.drop_text_encoders();
    assert!(pipe.text_encoder().is_none());
    assert_eq!(pipe.generate(&request("a cat"))?.images, before);
    let unknown = pipe.generate(&request("a dog")).map(|_| ());
    assert_eq!(unknown.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
    // What changes the encoders makes all prompts unknown.
    pipe.set_loras(&[(&lora, 1.0)])?;
    assert!(pipe.generate(&request("a cat")).is_err());
    Ok(())
}

/// A LoRA beside the weights changes a picture about as one that is merged and quantised with them, and without it the
/// picture is the one from before.
#[test]
fn loras_merged_and_beside() -> TestResult {
    let lora = Lora::open(golden_path("loras/kohya_a.safetensors"))?;
    let mut pipe = Pipeline::builder()
        .weights(model_path("sd15"))
        .quantize(Quantization::Int8)
        .build()?;
    let request = GenerateRequest::txt2img("a cat").num_steps(3).seed(2);
    let picture = |pipe: &Pipeline| -> TestResult<Vec<u8>> {
        Ok(pipe.generate(&request)?.images.remove(0).into_raw())
    };
    let before = picture(&pipe)?;
    let mut with = Vec::new();
    for mode in [LoraMode::Merged, LoraMode::AtRunTime] {
        pipe.set_loras_as(mode, &[(&lora, 1.0)])?;
        with.push(picture(&pipe)?);
    }
    pipe.clear_loras();
    assert_eq!(picture(&pipe)?, before);
    assert_ne!(with[0], before);
    assert!(
        psnr(&with[0], &with[1]) > psnr(&with[0], &before),
        "{} {}",
        psnr(&with[0], &with[1]),
        psnr(&with[0], &before)
    );
    Ok(())
}
