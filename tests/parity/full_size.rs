//! The names and shapes of full-size models, without their weights: each tensor has a place and each
//! parameter a tensor, in one file and in a folder.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;

use diffusion_core::model::{ControlNetConfig, T2iAdapterConfig, UNetConfig, Vae};
use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{Checkpoint, ComponentKind, Family, OpenOptions, Task};
use diffusion_core::{
    ControlNet, DType, Device, Error, Result, T2iAdapter, Tensor, TextEncoder, UNet,
};
use diffusion_tests::{TestResult, golden_path};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

type Shapes = BTreeMap<String, Vec<usize>>;

#[derive(Deserialize)]
struct Model {
    file: Shapes,
    leftovers: Vec<String>,
    parts: BTreeMap<String, Part>,
}

#[derive(Deserialize)]
struct Part {
    config: Value,
    tensors: Shapes,
}

/// Shapes without numbers.
struct Names(Shapes);

impl TensorSource for Names {
    fn name(&self) -> String {
        "names".into()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
    }

    fn load(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(Error::custom(format!("{name} has no numbers")))
    }
}

/// The same with an odd dimension more, so that a model reports each tensor that it asks for, with the shape
/// that it expects, and reads none.
struct Odd<'a>(&'a dyn TensorSource);

const ODD: usize = 7;

impl TensorSource for Odd<'_> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.0.tensor_names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let mut shape = self.0.shape(name)?;
        shape.push(ODD);
        Some(shape)
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.load(name, dtype, device)
    }
}

fn read<T: DeserializeOwned>(name: &str) -> TestResult<HashMap<String, T>> {
    let file = File::open(golden_path(name))?;
    Ok(serde_json::from_reader(GzDecoder::new(file))?)
}

fn models() -> TestResult<HashMap<String, Model>> {
    read("full_size_names.json.gz")
}

/// The shapes that a component's model asks for, or what else went wrong.
fn asked_for(kind: ComponentKind, config: &Value, source: &dyn TensorSource) -> TestResult<Shapes> {
    let path = std::path::Path::new("config.json");
    let (odd, dtype, device) = (Odd(source), DType::F32, &Device::Cpu);
    let error = match kind {
        ComponentKind::UNet => {
            let config = UNetConfig::from_json(path, config)?;
            UNet::new(config, &odd, dtype, device).err()
        }
        ComponentKind::Vae => Vae::new(path, config, &odd, dtype, device).err(),
        ComponentKind::TextEncoder | ComponentKind::TextEncoder2 => {
            let config = TextEncoder::parse_config(path, config)?;
            TextEncoder::new(config, &odd, dtype, device).err()
        }
        ComponentKind::ControlNet => {
            let config = ControlNetConfig::from_json(path, config)?;
            ControlNet::new(config, &odd, dtype, device).err()
        }
        ComponentKind::T2iAdapter => {
            let config = T2iAdapterConfig::from_json(path, config)?;
            T2iAdapter::new(config, &odd, dtype, device).err()
        }
    };
    let Some(Error::Weights(report)) = error else {
        return Err(format!("{kind}: {error:?}").into());
    };
    assert_eq!(report.missing, [""; 0], "{kind}");
    assert_eq!(report.unexpected, [""; 0], "{kind}");
    let asked = report.misshapen.into_iter();
    Ok(asked.map(|tensor| (tensor.name, tensor.expected)).collect())
}

fn shapes(source: &dyn TensorSource) -> Shapes {
    let names = source.tensor_names().into_iter();
    names
        .filter_map(|name| Some((name.clone(), source.shape(&name)?)))
        .collect()
}

#[test]
fn every_tensor_has_a_place_and_every_parameter_a_tensor() -> TestResult {
    use Family::{StableDiffusion1 as Sd1, StableDiffusion2 as Sd2, StableDiffusionXl as Xl};
    let refiner = Family::StableDiffusionXlRefiner;
    let expected = [
        ("sd15", Sd1, Task::TextToImage, None),
        ("sd15_inpaint", Sd1, Task::Inpainting, None),
        ("sd21", Sd2, Task::TextToImage, None),
        ("sdxl_base", Xl, Task::TextToImage, None),
        ("refiner", refiner, Task::TextToImage, None),
        ("ssd_1b", Xl, Task::TextToImage, Some("SSD-1B")),
        ("segmind_vega", Xl, Task::TextToImage, Some("Segmind Vega")),
        (
            "small_sd",
            Sd1,
            Task::TextToImage,
            Some("BK-SDM-Small or small-sd"),
        ),
    ];
    let models = models()?;
    assert_eq!(models.len(), expected.len());
    for (name, family, task, distillation) in expected {
        let model = &models[name];
        let source = Box::new(Names(model.file.clone()));
        let checkpoint = Checkpoint::from_sources(name, vec![source], &OpenOptions::default())?;
        let description = checkpoint.description();
        assert_eq!((description.family, description.task), (Some(family), task));
        assert_eq!(description.distillation, distillation, "{name}");
        assert_eq!(description.unused, [""; 0], "{name}");
        let leftovers = model.leftovers.iter();
        let known: Vec<_> = leftovers.filter(|n| !n.starts_with("model_ema.")).collect();
        assert_eq!(
            description.leftovers.iter().collect::<Vec<_>>(),
            known,
            "{name}"
        );
        assert_eq!(checkpoint.components().count(), model.parts.len(), "{name}");
        for kind in checkpoint.components() {
            let part = &model.parts[kind.folder()];
            let found = checkpoint.required(kind)?;
            // One file, with the configuration that its shapes gave.
            assert_eq!(shapes(&found.tensors), part.tensors, "{name} {kind}");
            assert_eq!(asked_for(kind, found.config, &found.tensors)?, part.tensors);
            // A folder, with the published configuration.
            let folder = Names(part.tensors.clone());
            let mut published = part.config.clone();
            published["_class_name"] = found.config["_class_name"].clone();
            published["architectures"] = found.config["architectures"].clone();
            assert_eq!(asked_for(kind, &published, &folder)?, part.tensors);
            assert_same_settings(&format!("{name} {kind}"), found.config, &part.config);
        }
    }
    Ok(())
}

#[test]
fn inputs_beside_the_latents_are_named() -> TestResult {
    use Family::{StableDiffusion1 as Sd1, StableDiffusion2 as Sd2, StableDiffusionXl as Xl};
    let models = models()?;
    for (name, family, channels, task) in [
        ("sd21", Sd2, 5, Task::DepthToImage),
        ("sd21", Sd2, 7, Task::Upscaling),
        ("sd21", Sd2, 9, Task::Inpainting),
        ("sd15", Sd1, 6, Task::Unknown),
        ("sd15", Sd1, 8, Task::InstructPix2Pix),
        ("sdxl_base", Xl, 9, Task::Inpainting),
        ("sdxl_base", Xl, 3, Task::Unknown),
    ] {
        let mut file = models[name].file.clone();
        let input = file.get_mut("model.diffusion_model.input_blocks.0.0.weight");
        input.ok_or("no input")?[1] = channels;
        let options = OpenOptions::default();
        let checkpoint = Checkpoint::from_sources(name, vec![Box::new(Names(file))], &options)?;
        let found = checkpoint.description();
        assert_eq!(
            (found.family, found.task),
            (Some(family), task),
            "{channels}"
        );
    }
    Ok(())
}

#[test]
fn variations_of_pictures_are_not_sdxl() -> TestResult {
    // unCLIP of SD 2.1 is told a picture where SDXL is told sizes.
    let mut file = models()?.remove("sd21").ok_or("no model")?.file;
    for (name, shape) in [
        ("0.0.weight", vec![1280, 2048]),
        ("0.0.bias", vec![1280]),
        ("0.2.weight", vec![1280, 1280]),
        ("0.2.bias", vec![1280]),
    ] {
        file.insert(format!("model.diffusion_model.label_emb.{name}"), shape);
    }
    let unet = file.iter().filter(|(name, _)| name.starts_with("model."));
    let unet: Shapes = unet.map(|(k, v)| (k.clone(), v.clone())).collect();
    for file in [file, unet] {
        let options = OpenOptions::default();
        let checkpoint = Checkpoint::from_sources("x", vec![Box::new(Names(file))], &options)?;
        let found = checkpoint.description();
        assert_eq!(found.family, Some(Family::StableDiffusion2));
        assert_eq!(found.task, Task::ImageVariation);
        assert_eq!(found.unused, [""; 0]);
        let part = checkpoint.required(ComponentKind::UNet)?;
        let error = UNetConfig::from_json(part.config_path, part.config).err();
        assert!(
            matches!(error, Some(Error::Unsupported { .. })),
            "{error:?}"
        );
    }
    Ok(())
}

#[test]
fn a_text_encoder_alone_is_told_by_its_width() -> TestResult {
    use ComponentKind::{TextEncoder, TextEncoder2};
    let models = models()?;
    // SD 2 never runs its last layer; SDXL's second encoder, of the same names, has all and its projection.
    for (name, prefix, kind) in [
        ("sdxl_base", "conditioner.embedders.1.model.", TextEncoder2),
        ("sd21", "cond_stage_model.model.", TextEncoder),
    ] {
        let model = &models[name];
        let alone = model.file.iter().filter_map(|(name, shape)| {
            Some((name.strip_prefix(prefix)?.to_owned(), shape.clone()))
        });
        let source = Box::new(Names(alone.collect()));
        let checkpoint = Checkpoint::from_sources(name, vec![source], &OpenOptions::default())?;
        assert_eq!(checkpoint.components().collect::<Vec<_>>(), [kind]);
        assert_eq!(checkpoint.description().unused, [""; 0]);
        let found = checkpoint.required(kind)?;
        let expected = &model.parts[kind.folder()].tensors;
        assert_eq!(shapes(&found.tensors), *expected, "{name}");
        assert_eq!(asked_for(kind, found.config, &found.tensors)?, *expected);
    }
    Ok(())
}

/// What the published configuration says and the shapes gave must be the same, however it is written.
fn assert_same_settings(what: &str, ours: &Value, published: &Value) {
    // Named by another class, or without a meaning for the picture.
    let unlike = [
        "_class_name",
        "sample_size",
        "force_upcast",
        "upcast_attention",
        "scaling_factor",
    ];
    let mut compared = 0;
    for (key, value) in published.as_object().into_iter().flatten() {
        let Some(found) = ours.get(key).filter(|_| !unlike.contains(&key.as_str())) else {
            continue;
        };
        let same = match (found, value) {
            // The refiner's 4 in all levels; levels without attention say nothing.
            (Value::Array(levels), Value::Number(_)) => levels.iter().skip(1).all(|n| n == value),
            (found, value) if found.is_number() => found.as_f64() == value.as_f64(),
            (found, value) => found == value,
        };
        assert!(same, "{what} {key}: {found}, published {value}");
        compared += 1;
    }
    assert!(compared >= 5, "{what}: {compared} settings");
}

/// A network beside a model: its names in both dialects.
#[derive(Deserialize)]
struct Addition {
    config: Value,
    tensors: Shapes,
    file: Shapes,
}

#[test]
fn control_nets_and_adapters_have_a_place_for_every_tensor() -> TestResult {
    use Family::{StableDiffusion1 as Sd1, StableDiffusion2 as Sd2, StableDiffusionXl as Xl};
    let models: HashMap<String, Addition> = read("full_size_controls.json.gz")?;
    let expected = [
        ("control_sd15", ComponentKind::ControlNet, Some(Sd1)),
        ("control_sd21", ComponentKind::ControlNet, Some(Sd2)),
        ("control_sdxl", ComponentKind::ControlNet, Some(Xl)),
        ("control_sdxl_mid", ComponentKind::ControlNet, Some(Xl)),
        ("control_sdxl_small", ComponentKind::ControlNet, Some(Xl)),
        ("t2i_full", ComponentKind::T2iAdapter, None),
        ("t2i_full_grey", ComponentKind::T2iAdapter, None),
        ("t2i_light", ComponentKind::T2iAdapter, None),
        ("t2i_full_xl", ComponentKind::T2iAdapter, Some(Xl)),
    ];
    assert_eq!(models.len(), expected.len());
    for (name, kind, family) in expected {
        let Addition {
            config,
            tensors,
            file,
        } = &models[name];
        for names in [file, tensors] {
            let source = Box::new(Names(names.clone()));
            let checkpoint = Checkpoint::from_sources(name, vec![source], &OpenOptions::default())?;
            let description = checkpoint.description();
            assert_eq!(description.family, family, "{name}");
            assert_eq!(description.unused, [""; 0], "{name}");
            assert_eq!(checkpoint.components().collect::<Vec<_>>(), [kind]);
            let found = checkpoint.required(kind)?;
            assert_eq!(&shapes(&found.tensors), tensors, "{name}");
            assert_eq!(&asked_for(kind, found.config, &found.tensors)?, tensors);
            assert_same_settings(name, found.config, config);
        }
        let folder = Names(tensors.clone());
        assert_eq!(&asked_for(kind, config, &folder)?, tensors, "{name}");
    }
    Ok(())
}

#[test]
fn a_tensor_too_many_or_too_few_is_noticed() -> TestResult {
    let model = models()?.remove("sd15").ok_or("no sd15")?;
    let mut file = model.file;
    file.insert(
        "model.diffusion_model.input_blocks.99.0.op.weight".into(),
        vec![1],
    );
    file.remove("first_stage_model.encoder.mid.attn_1.q.bias");
    let source = Box::new(Names(file));
    let checkpoint = Checkpoint::from_sources("sd15", vec![source], &OpenOptions::default())?;
    let unused = checkpoint.description().unused;
    assert_eq!(
        unused,
        ["model.diffusion_model.input_blocks.99.0.op.weight"]
    );
    let part = checkpoint.required(ComponentKind::Vae)?;
    let path = part.config_path;
    let odd = Odd(&part.tensors);
    match Vae::new(path, part.config, &odd, DType::F32, &Device::Cpu).err() {
        Some(Error::Weights(report)) => {
            assert_eq!(report.missing, ["encoder.mid_block.attentions.0.to_q.bias"]);
        }
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}
