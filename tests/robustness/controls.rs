//! ControlNets and T2I-Adapters of other families, damaged ones, and settings out of range.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use diffusion_core::denoise::{Denoiser, Estimate};
use diffusion_core::nn::{NamedTensors, TensorSource};
use diffusion_core::rng::ImageRngs;
use diffusion_core::scheduler::{self, Sampler, StepReport};
use diffusion_core::weights::{Checkpoint, ComponentKind, OpenOptions, TensorFile};
use diffusion_core::{
    Control, ControlNet, DType, Device, Error, ErrorKind, GenerateRequest, NoiseSchedule, Pipeline,
    Result, RgbImage, T2iAdapter, Tensor,
};
use diffusion_tests::{TestResult, golden_path, model_path};
use serde_json::json;

fn path(name: &str) -> PathBuf {
    golden_path(&format!("controls/{name}"))
}

fn open_net(path: PathBuf) -> Result<ControlNet> {
    ControlNet::open(path, DType::F32, &Device::Cpu)
}

fn open_adapter(path: PathBuf) -> Result<T2iAdapter> {
    T2iAdapter::open(path, DType::F32, &Device::Cpu)
}

fn pipeline(model: &str) -> Result<Pipeline> {
    Pipeline::builder().weights(model_path(model)).build()
}

fn request(control: Control) -> GenerateRequest {
    GenerateRequest::txt2img("two cats!")
        .size(96, 64)
        .num_steps(2)
        .guidance_scale(1.0)
        .seed(0)
        .control(control)
}

fn assert_refused(pipe: &Pipeline, request: &GenerateRequest, kind: ErrorKind, part: &str) {
    match pipe.generate(request) {
        Ok(_) => panic!("{part}: it ran"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{part}: {error}");
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn networks_of_another_family() -> TestResult {
    let picture = || RgbImage::new(9, 9);
    for (model, net, part) in [
        ("sd15", "xl", "cross_attention_dim 32"),
        ("sdxl", "a", "cross_attention_dim 40"),
        ("sd21", "a", "channels of skips"),
    ] {
        let control = Control::new(open_net(path(net))?, picture());
        let kind = ErrorKind::InvalidArgument;
        assert_refused(&pipeline(model)?, &request(control), kind, part);
    }
    for (model, adapter) in [("sd15", "full_xl"), ("sdxl", "light"), ("sd21", "full")] {
        let control = Control::new(open_adapter(path(adapter))?, picture());
        let part = "a T2I-Adapter of the UNet's family";
        let kind = ErrorKind::InvalidArgument;
        assert_refused(&pipeline(model)?, &request(control), kind, part);
    }
    Ok(())
}

#[test]
fn settings_out_of_range() -> TestResult {
    let pipe = pipeline("sd15")?;
    let net = Arc::new(open_net(path("a"))?);
    let control = || Control::new(net.clone(), RgbImage::new(9, 9));
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let of_tensor = |tensor: Tensor| Control::new(net.clone(), tensor);
    let nan = (tensor(&[1, 3, 8, 8])? * f64::NAN)?;
    for (control, part) in [
        (control().scale(f64::NAN), "control scale"),
        (control().scale(f64::NEG_INFINITY), "control scale"),
        (control().scale(1e7), "control scale"),
        (control().start(-0.1), "control start"),
        (control().start(f64::NAN), "control start"),
        (control().start(0.6).end(0.5), "control end"),
        (control().end(1.5), "control end"),
        (control().end(f64::NAN), "control end"),
        (
            Control::new(net.clone(), RgbImage::new(0, 0)),
            "control image",
        ),
        (
            Control::new(net.clone(), RgbImage::new(0, 9)),
            "control image",
        ),
        (of_tensor(nan), "finite values"),
        (of_tensor(tensor(&[3, 8, 8])?), "control image"),
        (of_tensor(tensor(&[1, 3, 0, 8])?), "control image"),
        (of_tensor(tensor(&[0, 3, 8, 8])?), "control image"),
        (of_tensor(tensor(&[2, 3, 8, 8])?), "control image"),
        (of_tensor(tensor(&[1, 1, 8, 8])?), "3 channels"),
        (of_tensor(tensor(&[1, 1 << 20, 1, 1])?), "3 channels"),
    ] {
        assert_refused(&pipe, &request(control), ErrorKind::InvalidArgument, part);
    }
    let windowed = request(control().end(0.5)).scheduler_name("dpm_adaptive");
    assert_refused(
        &pipe,
        &windowed,
        ErrorKind::Unsupported,
        "finds its steps itself",
    );

    let adapter = Arc::new(open_adapter(path("full"))?);
    let guessing = Control::new(adapter.clone(), RgbImage::new(9, 9)).guess_mode(true);
    assert_refused(
        &pipe,
        &request(guessing),
        ErrorKind::Unsupported,
        "guess mode",
    );

    // What is small or at the edge of a range runs.
    for control in [
        control().scale(-0.5),
        control().start(1.0),
        control().start(0.5).end(0.5),
        Control::new(net.clone(), RgbImage::new(1, 1)),
        Control::new(net.clone(), RgbImage::new(2000, 1)),
        of_tensor(tensor(&[1, 3, 1, 1])?),
        Control::new(adapter, RgbImage::new(1, 1)),
    ] {
        pipe.generate(&request(control))?;
    }
    Ok(())
}

/// Notes the steps that it is told, and how often it is asked in each.
#[derive(Default)]
struct Listener {
    steps: Vec<(usize, usize)>,
    evaluations: Vec<usize>,
}

impl Denoiser for Listener {
    fn begin_step(&mut self, index: usize, num_steps: usize) {
        self.steps.push((index, num_steps));
        self.evaluations.push(0);
    }

    fn denoise(&mut self, latents: &Tensor, _sigma: f64, _timestep: f64) -> Result<Estimate> {
        *self
            .evaluations
            .last_mut()
            .ok_or("no step began")
            .map_err(Error::custom)? += 1;
        Ok(Estimate {
            denoised: latents.zeros_like()?,
            unconditional: None,
        })
    }
}

#[test]
fn a_denoiser_is_told_each_step_once() -> TestResult {
    let schedule = NoiseSchedule::from_json(&json!({"beta_schedule": "scaled_linear"}))?;
    let mut noise = ImageRngs::new(&[0], &[4, 2, 2], &Device::Cpu);
    for (name, start, expected) in [
        ("euler", 0, vec![1, 1, 1, 1]),
        ("heun", 0, vec![2, 2, 2, 1]),
        ("heun", 1, vec![2, 2, 1]),
    ] {
        let scheduler = scheduler::from_name(name, &json!({}))?;
        let sampler = Sampler {
            scheduler: &scheduler,
            schedule: &schedule,
            num_steps: 4,
            eta: None,
        };
        let latents = noise.draw()?;
        let mut listener = Listener::default();
        let mut go_on = |_: &StepReport<'_>| ControlFlow::Continue(());
        sampler.run_steps(start..4, &latents, &mut listener, &mut noise, &mut go_on)?;
        let num_steps = 4 - start;
        let steps: Vec<_> = (0..num_steps).map(|index| (index, num_steps)).collect();
        assert_eq!(listener.steps, steps, "{name} from {start}");
        assert_eq!(listener.evaluations, expected, "{name} from {start}");
    }
    Ok(())
}

#[test]
fn pictures_of_sides_that_an_adapter_cannot_take() -> TestResult {
    let adapter = open_adapter(path("full_xl"))?;
    for shape in [[1, 3, 24, 32], [1, 3, 32, 8], [1, 3, 0, 0]] {
        let error = adapter.forward(&Tensor::zeros(&shape, DType::F32, &Device::Cpu)?);
        match error.err() {
            Some(error @ Error::InvalidArgument { .. }) => {
                assert!(error.to_string().contains("a multiple of 16"), "{error}");
            }
            other => return Err(format!("{shape:?}: {other:?}").into()),
        }
    }
    Ok(())
}

#[test]
fn files_that_are_cut_off_or_of_something_else() -> TestResult {
    let folder = tempfile::tempdir()?;
    for (name, file) in [("a.safetensors", "net.safetensors"), ("xl.pth", "net.pth")] {
        let whole = fs::read(path(name))?;
        let cut = folder.path().join(file);
        for part in 0..64 {
            fs::write(&cut, &whole[..whole.len() * part / 64])?;
            let kind = open_net(cut.clone()).err().map(|error| error.kind());
            let is_typed = matches!(
                kind,
                Some(ErrorKind::Format | ErrorKind::Io | ErrorKind::Unsupported)
            );
            assert!(is_typed, "{name} {part}: {kind:?}");
        }
    }
    for other in [
        golden_path("rng.safetensors"),
        path("full.safetensors"),
        folder.path().join("nothing"),
    ] {
        let kind = open_net(other.clone()).err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::NotFound), "{}", other.display());
    }
    let kind = open_adapter(path("a")).err().map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::NotFound));

    // A folder without weights, of another class, and with a configuration that is not one.
    let config = folder.path().join("config.json");
    fs::write(
        &config,
        json!({"_class_name": "ControlNetModel"}).to_string(),
    )?;
    let kind = |path: &std::path::Path| open_net(path.into()).err().map(|error| error.kind());
    fs::remove_file(folder.path().join("net.safetensors"))?;
    assert_eq!(kind(folder.path()), Some(ErrorKind::NotFound));
    let weights = "diffusion_pytorch_model.safetensors";
    fs::copy(path("a").join(weights), folder.path().join(weights))?;
    for (text, expected) in [
        (
            r#"{"_class_name": "ControlNetUnionModel"}"#,
            ErrorKind::Unsupported,
        ),
        ("{", ErrorKind::Format),
        (r#"{"block_out_channels": []}"#, ErrorKind::InvalidArgument),
        (
            r#"{"conditioning_embedding_out_channels": [0]}"#,
            ErrorKind::InvalidArgument,
        ),
        (r#"{"layers_per_block": 9999999}"#, ErrorKind::Weights),
        (r#"{"layers_per_block": 1e30}"#, ErrorKind::Format),
        (
            r#"{"controlnet_conditioning_channel_order": "grb"}"#,
            ErrorKind::Format,
        ),
    ] {
        fs::write(&config, text)?;
        assert_eq!(kind(folder.path()), Some(expected), "{text}");
    }
    Ok(())
}

/// The tensors of a file, those in `changes` replaced or left out.
fn opened(
    name: &str,
    changes: &[(&str, Option<Vec<usize>>)],
) -> Result<(Checkpoint, ComponentKind)> {
    let file = TensorFile::open(path(name))?;
    let mut tensors = NamedTensors::new();
    for name in file.tensor_names() {
        tensors.insert(name.clone(), file.load(&name, DType::F32, &Device::Cpu)?);
    }
    for (name, shape) in changes {
        match shape {
            Some(shape) => {
                let tensor = Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?;
                tensors.insert((*name).to_owned(), tensor);
            }
            None => _ = tensors.remove(*name),
        }
    }
    let sources: Vec<Box<dyn TensorSource>> = vec![Box::new(tensors)];
    let mut checkpoint = Checkpoint::from_sources(name, sources, &OpenOptions::default())?;
    let kind = match name {
        "a.safetensors" => ComponentKind::ControlNet,
        _ => ComponentKind::T2iAdapter,
    };
    if kind == ComponentKind::ControlNet {
        let settings = json!({"norm_num_groups": 8, "attention_head_dim": 2});
        checkpoint.configure(kind, &settings)?;
    }
    Ok((checkpoint, kind))
}

fn built(name: &str, changes: &[(&str, Option<Vec<usize>>)]) -> Result<()> {
    let (checkpoint, kind) = opened(name, changes)?;
    assert!(!checkpoint.description().to_string().is_empty());
    match kind {
        ComponentKind::ControlNet => {
            ControlNet::from_checkpoint(&checkpoint, DType::F32, &Device::Cpu).map(|_| ())
        }
        _ => T2iAdapter::from_checkpoint(&checkpoint, DType::F32, &Device::Cpu).map(|_| ()),
    }
}

#[test]
fn a_missing_tensor_is_named() -> TestResult {
    built("a.safetensors", &[])?;
    for (file, original, diffusers) in [
        (
            "a.safetensors",
            "control_model.zero_convs.2.0.bias",
            "controlnet_down_blocks.2.bias",
        ),
        (
            "a.safetensors",
            "control_model.input_hint_block.4.weight",
            "controlnet_cond_embedding",
        ),
        (
            "full.safetensors",
            "body.1.block2.bias",
            "adapter.body.0.resnets.1.block2.bias",
        ),
        (
            "light.safetensors",
            "body.2.out_conv.bias",
            "adapter.body.2.out_conv.bias",
        ),
    ] {
        let error = built(file, &[(original, None)]).err().ok_or("it opened")?;
        assert_eq!(error.kind(), ErrorKind::Weights, "{error}");
        assert!(error.to_string().contains(diffusers), "{original}: {error}");
    }
    Ok(())
}

#[test]
fn any_shape_in_any_place_is_an_error_or_a_network() -> TestResult {
    let strange: [Option<Vec<usize>>; 4] =
        [None, Some(vec![]), Some(vec![0, 0]), Some(vec![5, 7, 1])];
    let mut errors: HashMap<&str, usize> = HashMap::new();
    for name in ["a.safetensors", "full.safetensors", "light.safetensors"] {
        let mut names = TensorFile::open(path(name))?.tensor_names();
        names.sort();
        for (i, tensor) in names.iter().enumerate() {
            let change = (tensor.as_str(), strange[i % strange.len()].clone());
            *errors.entry(name).or_default() += usize::from(built(name, &[change]).is_err());
        }
        assert_eq!(errors[name], names.len(), "{name}");
    }
    Ok(())
}
