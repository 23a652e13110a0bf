//! What a run writes into its pictures' files gives the same pictures again.

use std::path::Path;

use diffusion_core::media::{self, Provenance};
use diffusion_core::pipeline::{RecallWarning, Recalled};
use diffusion_core::weights::Lora;
use diffusion_core::{
    Control, ControlNet, DType, Device, DpmSolverMultistep, ErrorKind, Euler, GenerateRequest,
    Generated, Hires, Pipeline, RgbImage, Tensor, WithLevels,
};
use diffusion_tests::{TestResult, emoji_pipeline, golden_path, model_path};

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("cat face, \"flat\" style\n猫")
        .negative_prompt("blue, red")
        .size(64, 96)
        .num_steps(4)
        .guidance_scale(4.3)
        .num_images(2)
        .seed(7)
}

/// Writes a picture, reads its request and makes it again.
fn again(pipe: &Pipeline, output: &Generated, index: usize, path: &Path) -> TestResult<RgbImage> {
    output.save(index, path)?;
    let recalled = Recalled::read(path)?;
    assert_eq!(recalled.warnings, []);
    assert_eq!(recalled.model.as_deref(), Some("emoji"));
    let output = pipe.generate(&recalled.request)?;
    assert_eq!(output.images.len(), 1);
    Ok(output.images[0].clone())
}

#[test]
fn a_picture_comes_again_from_its_file() -> TestResult {
    let pipe = emoji_pipeline()?;
    let folder = tempfile::tempdir()?;
    let requests = [
        request(),
        request().scheduler(DpmSolverMultistep::default().karras()),
        request().scheduler_name("Euler a").eta(0.7),
        request().hires(Hires::new(96, 128)),
    ];
    // The second is of another default, which a record must not need.
    let other = Pipeline::builder()
        .weights(model_path("emoji"))
        .scheduler(Euler::default());
    let pipes = [emoji_pipeline()?, other.build()?];
    for request in &requests {
        let output = pipe.generate(request)?;
        assert_ne!(output.images[0], output.images[1]);
        for (pipe, name) in pipes.iter().zip(["one.png", "two.webp"]) {
            for (i, image) in output.images.iter().enumerate() {
                let path = folder.path().join(name);
                assert_eq!(again(pipe, &output, i, &path)?, *image);
                assert_eq!(media::read(&path)?, *image);
            }
        }
        assert!(again(&pipe, &output, 1, &folder.path().join("three.jpg"))? == output.images[1]);
        assert!(output.save(2, folder.path().join("four.png")).is_err());
    }
    Ok(())
}

#[test]
fn a_picture_comes_again_from_the_text_alone() -> TestResult {
    let pipe = emoji_pipeline()?;
    let output = pipe.generate(&request().scheduler_name("dpmpp_2m_karras"))?;
    let parameters = output.provenance(1)?.parameters.ok_or("no text")?;
    assert_eq!(
        parameters,
        format!(
            "cat face, \"flat\" style\n猫\nNegative prompt: blue, red\nSteps: 4, Sampler: DPM++ 2M, Schedule \
             type: Karras, CFG scale: 4.3, Seed: 8, Size: 64x96, Model: emoji, RNG: CPU, Version: diffusion-core {}",
            env!("CARGO_PKG_VERSION")
        )
    );
    let recalled = Recalled::from_parameters(&parameters);
    assert_eq!(recalled.warnings, []);
    assert_eq!(
        pipe.generate(&recalled.request)?.images[0],
        output.images[1]
    );
    Ok(())
}

#[test]
fn what_no_file_holds_is_named() -> TestResult {
    let pipe = emoji_pipeline()?;
    let noise = Tensor::randn(0f32, 1.0, (2, 4, 12, 8), &Device::Cpu)?;
    let run = |pipe: &Pipeline, noise: &Tensor| pipe.generate(&request().latents(noise.clone()));
    let output = run(&pipe, &noise)?;
    let recalled = Recalled::from_provenance(&output.provenance(1)?)?;
    let [RecallWarning::Needed { what, description }] = &recalled.warnings[..] else {
        return Err(format!("{:?}", recalled.warnings).into());
    };
    assert_eq!(what, "noise");
    assert!(description.contains("fnv1a64:") && description.contains("[1,4,12,8]"));
    let given = recalled.request.latents(noise.narrow(0, 1, 1)?);
    assert_eq!(pipe.generate(&given)?.images[0], output.images[1]);
    // Other noise has another name.
    let other = run(&pipe, &noise.neg()?)?;
    let other = Recalled::from_provenance(&other.provenance(1)?)?;
    assert_ne!(other.warnings, recalled.warnings);

    let (conditioning, _) = pipe.encode_prompt(&request())?;
    let sampled = pipe.sample(&conditioning, &request(), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })?;
    let needed = Recalled::from_provenance(&sampled.provenance(0)?)?.warnings;
    assert!(
        needed[0]
            .to_string()
            .starts_with("conditioning must be given again")
    );

    let mut pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    pipe.set_loras(&[(&Lora::open(golden_path("loras/kohya_a.safetensors"))?, 0.5)])?;
    let net = ControlNet::open(golden_path("controls/a"), DType::F32, &Device::Cpu)?;
    let control = Control::new(net, RgbImage::new(40, 24))
        .scale(0.75)
        .end(0.5);
    let output = pipe.generate(&request().num_images(1).control(control))?;
    let needed = Recalled::from_provenance(&output.provenance(0)?)?.warnings;
    let needed: Vec<String> = needed.iter().map(ToString::to_string).collect();
    assert_eq!(needed.len(), 2, "{needed:?}");
    let [control, lora] = [&needed[0], &needed[1]];
    assert!(
        control.contains("[40,24]") && control.contains("0.75"),
        "{control}"
    );
    assert!(lora.contains("kohya_a") && lora.contains("0.5"), "{lora}");
    Ok(())
}

#[test]
fn files_that_say_nothing_or_are_damaged() -> TestResult {
    let picture = RgbImage::new(8, 8);
    let none = Recalled::from_provenance(&Provenance::from_bytes(&media::to_png(&picture, None)?)?);
    assert_eq!(none.map_err(|e| e.kind()).err(), Some(ErrorKind::Format));
    let text = "a cat\nSteps: 3, Seed: 1, CFG scale: 2, RNG: CPU".to_owned();
    let damaged = Provenance::new(Some(text), Some("{".into()));
    let recalled = Recalled::from_provenance(&damaged)?;
    assert!(matches!(
        recalled.warnings[..],
        [RecallWarning::DamagedRecord { .. }]
    ));
    let missing = Recalled::read("no/such/picture.png");
    assert_eq!(
        missing.map_err(|e| e.kind()).err(),
        Some(ErrorKind::NotFound)
    );
    assert_eq!(
        Provenance::from_bytes(b"no picture")
            .map_err(|e| e.kind())
            .err(),
        Some(ErrorKind::Format)
    );
    Ok(())
}
