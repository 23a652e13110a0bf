//! ControlNets and T2I-Adapters against diffusers: both dialects, forward passes and whole runs.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use diffusion_core::model::{TextTime, UNetInput, UNetResiduals};
use diffusion_core::nn::{Activation, TensorSource};
use diffusion_core::pipeline::{ControlImage, ControlModel};
use diffusion_core::weights::{Checkpoint, ComponentKind, Dialect, Family};
use diffusion_core::{
    Conditioning, Control, ControlNet, DType, Device, GenerateRequest, Pipeline, RgbImage,
    T2iAdapter, Tensor, media,
};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, assert_close, golden_json, golden_path, model_path,
};
use serde_json::{Value, json};

/// The bound for the latents of these runs of six steps.
const LATENTS_TOLERANCE: f64 = 1e-4;

fn path(name: &str) -> std::path::PathBuf {
    golden_path(&format!("controls/{name}"))
}

fn open_net(name: &str) -> TestResult<ControlNet> {
    Ok(ControlNet::open(path(name), DType::F32, &Device::Cpu)?)
}

fn open_adapter(name: &str) -> TestResult<T2iAdapter> {
    Ok(T2iAdapter::open(path(name), DType::F32, &Device::Cpu)?)
}

/// The ControlNet with another setting.
fn configured(name: &str, settings: &Value) -> TestResult<ControlNet> {
    let mut checkpoint = Checkpoint::open(path(name))?;
    checkpoint.configure(ComponentKind::ControlNet, settings)?;
    let (dtype, device) = (DType::F32, &Device::Cpu);
    Ok(ControlNet::from_checkpoint(&checkpoint, dtype, device)?)
}

fn open_pipeline(model: &str) -> TestResult<Pipeline> {
    Ok(Pipeline::builder().weights(model_path(model)).build()?)
}

/// The arguments of a forward pass, and the pictures beside it.
struct Case {
    golden: Golden,
    name: String,
    prefix: String,
    timesteps: Vec<f64>,
    text_time: Option<TextTime>,
}

impl Case {
    fn open(name: &str, case: &str) -> TestResult<Self> {
        let golden = Golden::open(&format!("controls/{name}_golden"))?;
        let prefix = format!("{case}.");
        let tensor = |key: &str| golden.tensor(&format!("{prefix}{key}"));
        let has_sizes = golden.contains(&format!("{prefix}time_ids"));
        let text_time = has_sizes.then(|| -> TestResult<TextTime> {
            Ok(TextTime {
                text_embeds: tensor("text_embeds")?,
                time_ids: tensor("time_ids")?,
            })
        });
        Ok(Self {
            text_time: text_time.transpose()?,
            timesteps: golden.values(&format!("{prefix}timesteps"))?,
            name: format!("{name} {case}"),
            golden,
            prefix,
        })
    }

    fn tensor(&self, key: &str) -> TestResult<Tensor> {
        self.golden.tensor(&format!("{}{key}", self.prefix))
    }

    /// `(2, channels, height, width)` in `[0, 1]`.
    fn images(&self) -> TestResult<Tensor> {
        let pixels = self.tensor("pixels")?.permute((0, 3, 1, 2))?;
        Ok((pixels.contiguous()? / 255.0)?)
    }

    fn with_input<T>(&self, run: impl FnOnce(&UNetInput<'_>) -> TestResult<T>) -> TestResult<T> {
        let (sample, text) = (
            self.tensor("sample")?,
            self.tensor("encoder_hidden_states")?,
        );
        run(&UNetInput {
            text_time: self.text_time.as_ref(),
            ..UNetInput::new(&sample, &self.timesteps, &text)
        })
    }

    fn assert_close(&self, key: &str, ours: &Tensor) -> TestResult {
        let what = format!("{} {key}", self.name);
        assert_close(&what, ours, &self.tensor(key)?, TOLERANCE)
    }

    fn assert_activation(&self, key: &str, ours: &Activation) -> TestResult {
        self.assert_close(key, &ours.to_nchw()?)
    }

    /// Residuals and the UNet's output with them, in one of the ways that a ControlNet works.
    fn assert_net(&self, net: &ControlNet, pipe: &Pipeline, mode: &str) -> TestResult {
        let hint = net.embed(&self.images()?)?;
        self.with_input(|input| {
            let control = net.forward(input, &hint, 0.7, mode == "guess")?;
            for (i, residual) in control.down.iter().enumerate() {
                self.assert_activation(&format!("{mode}.down.{i}"), residual)?;
            }
            let more = format!("{}{mode}.down.{}", self.prefix, control.down.len());
            assert!(!self.golden.contains(&more), "{} {mode}", self.name);
            self.assert_activation(&format!("{mode}.mid"), &control.mid)?;
            let residuals = UNetResiduals {
                control: Some(control),
                ..UNetResiduals::default()
            };
            let output = pipe.unet().forward(&UNetInput {
                residuals: Some(&residuals),
                ..*input
            })?;
            self.assert_close(&format!("{mode}.out"), &output)
        })
    }
}

#[test]
fn residuals_and_unets_with_them() -> TestResult {
    let pooled = json!({"global_pool_conditions": true});
    for (name, model) in [("a", "sd15"), ("xl", "sdxl")] {
        let pipe = open_pipeline(model)?;
        let (net, pools) = (open_net(name)?, configured(name, &pooled)?);
        for case in ["wide", "odd"] {
            let case = Case::open(name, case)?;
            case.assert_net(&net, &pipe, "plain")?;
            case.assert_net(&net, &pipe, "guess")?;
            case.assert_net(&pools, &pipe, "pooled")?;
        }
    }
    // Weights in a pickle, a picture with blue first, and attention without transformer blocks.
    Case::open("b", "wide")?.assert_net(&open_net("b")?, &open_pipeline("sd15")?, "plain")
}

#[test]
fn features_and_unets_with_them() -> TestResult {
    for (name, model) in [("full", "sd15"), ("light", "sd21"), ("full_xl", "sdxl")] {
        let pipe = open_pipeline(model)?;
        let adapter = open_adapter(name)?;
        adapter.check_unet(pipe.unet(), 8)?;
        for case in ["wide", "odd"] {
            let case = Case::open(name, case)?;
            let features = adapter.forward(&case.images()?)?;
            assert_eq!(features.len(), adapter.config().features().len());
            for (i, feature) in features.iter().enumerate() {
                case.assert_activation(&format!("feature.{i}"), feature)?;
            }
            let residuals = UNetResiduals {
                features,
                ..UNetResiduals::default()
            };
            case.with_input(|input| {
                let output = pipe.unet().forward(&UNetInput {
                    residuals: Some(&residuals),
                    ..*input
                })?;
                case.assert_close("out", &output)
            })?;
        }
    }
    Ok(())
}

fn flat(tensor: &Tensor) -> TestResult<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn assert_same_tensors(
    what: &str,
    a: &Checkpoint,
    b: &Checkpoint,
    kind: ComponentKind,
) -> TestResult {
    let (a, b) = (a.required(kind)?.tensors, b.required(kind)?.tensors);
    assert_eq!(a.tensor_names(), b.tensor_names(), "{what}");
    for name in a.tensor_names() {
        let load = |source: &dyn TensorSource| source.load(&name, DType::F32, &Device::Cpu);
        let (a, b) = (load(&a)?, load(&b)?);
        assert_eq!(a.dims(), b.dims(), "{what} {name}");
        assert_eq!(flat(&a)?, flat(&b)?, "{what} {name}");
    }
    Ok(())
}

/// What the shapes of tiny networks do not say.
fn unsaid(name: &str) -> Value {
    match name {
        "a" => json!({"attention_head_dim": 2, "norm_num_groups": 8}),
        "xl" => json!({
            "attention_head_dim": [2, 4, 4],
            "norm_num_groups": 8,
            "addition_time_embed_dim": 8,
        }),
        _ => json!({}),
    }
}

#[test]
fn original_names_are_the_same_networks() -> TestResult {
    use ComponentKind::{ControlNet as Net, T2iAdapter as Adapter};
    let folder = tempfile::tempdir()?;
    for (name, file, kind, dialect, family) in [
        (
            "a",
            "a.safetensors",
            Net,
            Dialect::CompVis,
            Some(Family::StableDiffusion1),
        ),
        (
            "xl",
            "xl.pth",
            Net,
            Dialect::CompVis,
            Some(Family::StableDiffusionXl),
        ),
        (
            "full",
            "full.safetensors",
            Adapter,
            Dialect::TencentArc,
            None,
        ),
        (
            "light",
            "light.safetensors",
            Adapter,
            Dialect::TencentArc,
            None,
        ),
        (
            "full_xl",
            "full_xl.safetensors",
            Adapter,
            Dialect::TencentArc,
            Some(Family::StableDiffusionXl),
        ),
    ] {
        let saved = Checkpoint::open(path(name))?;
        let mut original = Checkpoint::open(path(file))?;
        for (checkpoint, dialect) in [(&saved, Dialect::Diffusers), (&original, dialect)] {
            let description = checkpoint.description();
            assert_eq!(description.family, family, "{name}");
            assert_eq!(description.unused, [""; 0], "{name}");
            assert_eq!(description.leftovers, [""; 0], "{name}");
            let parts: Vec<_> = description
                .components
                .iter()
                .map(|c| (c.kind, c.dialect))
                .collect();
            assert_eq!(parts, [(kind, dialect)], "{name}");
        }
        assert_same_tensors(name, &saved, &original, kind)?;
        original.configure(kind, &unsaid(name))?;
        let published = saved.required(kind)?.config;
        let found = original.required(kind)?.config;
        for (key, value) in published.as_object().into_iter().flatten() {
            let Some(found) = found.get(key).filter(|_| !key.starts_with('_')) else {
                continue;
            };
            let same = match (found.as_f64(), value.as_f64()) {
                (Some(found), Some(value)) => found == value,
                _ => found == value,
            };
            assert!(same, "{name} {key}: {found}, published {value}");
        }
        match kind {
            Net => {
                let net = ControlNet::from_checkpoint(&original, DType::F32, &Device::Cpu)?;
                let model = if name == "xl" { "sdxl" } else { "sd15" };
                let pipe = open_pipeline(model)?;
                Case::open(name, "wide")?.assert_net(&net, &pipe, "plain")?;
            }
            _ => {
                let adapter = T2iAdapter::from_checkpoint(&original, DType::F32, &Device::Cpu)?;
                let case = Case::open(name, "wide")?;
                let features = adapter.forward(&case.images()?)?;
                case.assert_activation("feature.0", &features[0])?;
            }
        }

        // There and back through both of our writers.
        let (as_folder, as_file) = (
            folder.path().join(name),
            folder.path().join(format!("{name}.safetensors")),
        );
        original.save_diffusers(&as_folder)?;
        saved.save_single_file(&as_file)?;
        let config = diffusion_core::config::read_json(&as_folder.join("config.json"))?;
        assert_eq!(config["_class_name"], published["_class_name"]);
        for written in [as_folder, as_file] {
            let written = Checkpoint::open(written)?;
            assert_same_tensors(name, &saved, &written, kind)?;
        }
    }
    Ok(())
}

fn picture(golden: &Golden, name: &str) -> TestResult<RgbImage> {
    let pixels = golden.tensor(name)?.to_dtype(DType::U8)?;
    let (height, width, _) = pixels.dims3()?;
    let pixels = pixels.flatten_all()?.to_vec1()?;
    Ok(RgbImage::from_raw(width as u32, height as u32, pixels).ok_or("not a picture")?)
}

#[test]
fn pictures_are_resized_as_by_pillow() -> TestResult {
    let golden = Golden::open("controls/pictures")?;
    let source = picture(&golden, "picture0")?;
    for (width, height) in [(96, 64), (33, 17), (70, 128), (140, 50), (1, 1)] {
        let expected = picture(&golden, &format!("{width}x{height}"))?;
        let ours = media::resize(&source, width, height, media::Resampling::Lanczos);
        assert!(ours == expected, "{width} x {height}");
    }
    assert!(media::resize(&source, 70, 50, media::Resampling::Lanczos) == source);
    let grey: Vec<u8> = media::grey(&source)
        .pixels()
        .map(|pixel| pixel.0[0])
        .collect();
    let expected = golden.tensor("grey")?.to_dtype(DType::U8)?;
    assert_eq!(grey, expected.flatten_all()?.to_vec1::<u8>()?);
    Ok(())
}

/// Opens each network once.
struct Networks(HashMap<String, ControlModel>);

impl Networks {
    fn get(&mut self, control: &Value) -> TestResult<ControlModel> {
        let key = control.to_string();
        if let Some(model) = self.0.get(&key) {
            return Ok(model.clone());
        }
        let model = match (control["net"].as_str(), control["adapter"].as_str()) {
            (Some(net), _) if control["pooled"] == true => {
                configured(net, &json!({"global_pool_conditions": true}))?.into()
            }
            (Some(net), _) => open_net(net)?.into(),
            (None, Some(adapter)) => Arc::new(open_adapter(adapter)?).into(),
            (None, None) => return Err("neither net nor adapter".into()),
        };
        self.0.insert(key, ControlModel::clone(&model));
        Ok(model)
    }
}

fn image(golden: &Golden, name: &str) -> TestResult<ControlImage> {
    Ok(match name {
        "both" => {
            let each = |name| -> TestResult<Tensor> {
                let picture = picture(golden, name)?;
                Ok(media::to_unit_range(&picture, &Device::Cpu)?)
            };
            Tensor::cat(&[each("picture0")?, each("picture1")?], 0)?.into()
        }
        // The network takes one channel.
        "grey" => picture(golden, "picture1")?.into(),
        name => picture(golden, name)?.into(),
    })
}

fn request(case: &Value, golden: &Golden, networks: &mut Networks) -> TestResult<GenerateRequest> {
    let number = |key: &str| case[key].as_u64().ok_or_else(|| format!("no {key}"));
    let seeds: Vec<u64> = serde_json::from_value(case["seeds"].clone())?;
    let mut request = GenerateRequest::txt2img("two cats! on a red roof")
        .negative_prompt("blurry, dark")
        .size(number("width")? as usize, number("height")? as usize)
        .num_steps(number("steps")? as usize)
        .guidance_scale(case["guidance"].as_f64().ok_or("no guidance")?)
        .seed(seeds[0])
        .num_images(seeds.len())
        .batch_size(seeds.len());
    if let Some(class) = case["scheduler"].as_str() {
        request = request.scheduler_config(json!({"_class_name": class}));
    }
    for settings in case["controls"].as_array().ok_or("no controls")? {
        let name = settings["picture"].as_str().ok_or("no picture")?;
        let mut control = Control::new(networks.get(settings)?, image(golden, name)?)
            .guess_mode(settings["guess_mode"] == true);
        if let Some(scale) = settings["scale"].as_f64() {
            control = control.scale(scale);
        }
        if let Some(start) = settings["start"].as_f64() {
            control = control.start(start);
        }
        if let Some(end) = settings["end"].as_f64() {
            control = control.end(end);
        }
        request = request.control(control);
    }
    Ok(request)
}

fn conditioning(runs: &Golden, name: &str) -> TestResult<Option<Conditioning>> {
    let tensor = |key: &str| runs.tensor(&format!("{name}.{key}"));
    if !runs.contains(&format!("{name}.time_ids")) {
        return Ok(None);
    }
    let text_time = |pooled: &str| -> TestResult<TextTime> {
        Ok(TextTime {
            text_embeds: tensor(pooled)?,
            time_ids: tensor("time_ids")?,
        })
    };
    Ok(Some(Conditioning {
        prompt_embeds: tensor("prompt_embeds")?,
        negative_prompt_embeds: Some(tensor("negative_prompt_embeds")?),
        text_time: Some(text_time("pooled_prompt_embeds")?),
        negative_text_time: Some(text_time("negative_pooled_prompt_embeds")?),
        image_prompts: Vec::new(),
    }))
}

fn latents(
    pipe: &Pipeline,
    request: &GenerateRequest,
    conditioning: Option<&Conditioning>,
) -> TestResult<Tensor> {
    let mut go_on = |_: &diffusion_core::Progress<'_>| ControlFlow::Continue(());
    let sampled = match conditioning {
        Some(conditioning) => pipe.sample(conditioning, request, &mut go_on)?,
        None => pipe.generate_latents(request, &mut go_on)?,
    };
    Ok(sampled.latents)
}

#[test]
fn whole_runs() -> TestResult {
    let pictures = Golden::open("controls/pictures")?;
    let runs = Golden::open("controls/runs")?;
    let cases = golden_json("controls/runs.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert!(cases.len() >= 16, "{} runs", cases.len());
    let mut networks = Networks(HashMap::new());
    let mut pipelines: HashMap<&str, Pipeline> = HashMap::new();
    for case in cases {
        let name = case["name"].as_str().ok_or("no name")?;
        let model = case["model"].as_str().ok_or("no model")?;
        if !pipelines.contains_key(model) {
            pipelines.insert(model, open_pipeline(model)?);
        }
        let (pipe, reference) = (&pipelines[model], runs.tensor(&format!("{name}.latents"))?);
        let conditioning = conditioning(&runs, name)?;
        let request = request(case, &pictures, &mut networks)?;
        let together = latents(pipe, &request, conditioning.as_ref())?;
        assert_close(name, &together, &reference, LATENTS_TOLERANCE)?;
        // Pictures that each have a control of their own keep it when worked on one by one.
        let apart = latents(pipe, &request.batch_size(1), conditioning.as_ref())?;
        assert_close(name, &apart, &reference, LATENTS_TOLERANCE)?;
    }
    Ok(())
}

#[test]
fn a_network_at_the_start_of_its_training_changes_nothing() -> TestResult {
    let pictures = Golden::open("controls/pictures")?;
    let net = open_net("a")?;
    let zeroed: HashMap<String, Tensor> = net
        .weights()
        .tensors()
        .iter()
        .map(|(name, tensor)| {
            let is_zero = name.starts_with("controlnet_down_blocks.")
                || name.starts_with("controlnet_mid_block.");
            let tensor = if is_zero {
                tensor.zeros_like()?
            } else {
                tensor.clone()
            };
            Ok((name.clone(), tensor))
        })
        .collect::<diffusion_core::Result<_>>()?;
    let fresh = ControlNet::new(net.config().clone(), &zeroed, DType::F32, &Device::Cpu)?;
    let pipe = open_pipeline("sd15")?;
    let base = GenerateRequest::txt2img("two cats!")
        .size(96, 64)
        .num_steps(3)
        .seed(7);
    let control = |model: ControlModel| -> TestResult<Control> {
        Ok(Control::new(model, picture(&pictures, "picture0")?))
    };
    let bits = |request: &GenerateRequest| -> TestResult<Vec<u32>> {
        let values = flat(&latents(&pipe, request, None)?)?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    };
    let expected = bits(&base)?;
    let net: Arc<ControlNet> = net.into();
    for nothing in [
        control(Arc::new(fresh).into())?,
        control(net.clone().into())?.scale(0.0),
        control(net.clone().into())?.start(0.4).end(0.5),
    ] {
        assert!(bits(&base.clone().control(nothing))? == expected);
    }
    assert!(bits(&base.clone().control(control(net.into())?))? != expected);
    Ok(())
}
