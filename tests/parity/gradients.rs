//! Gradients of whole networks against torch: no layer cuts the graph, and none adds up wrongly.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Var;
use candle_core::backprop::GradStore;
use diffusion_core::model::{UNetConfig, UNetInput, Vae};
use diffusion_core::weights::{Component, DiffusersFolder};
use diffusion_core::{DType, Device, Tensor, TextEncoder, UNet};
use diffusion_tests::{Golden, TOLERANCE, TestResult, assert_close, model_path};

/// A component of the tiny SD 1.5, its tensors as variables.
fn variables(component: &str, file: &str) -> TestResult<(Component, HashMap<String, Tensor>)> {
    let part = DiffusersFolder::open(model_path("sd15"), None)?.required(component)?;
    let tensors = candle_core::safetensors::load(part.path.join(file), &Device::Cpu)?;
    let variables = tensors
        .into_iter()
        .filter(|(_, tensor)| tensor.dtype().is_float())
        .map(|(name, tensor)| {
            Ok((
                name,
                Var::from_tensor(&tensor.to_dtype(DType::F32)?)?.into_inner(),
            ))
        })
        .collect::<candle_core::Result<_>>()?;
    Ok((part, variables))
}

struct Case {
    name: &'static str,
    golden: Golden,
    gradients: GradStore,
}

impl Case {
    fn new(name: &'static str, output: &Tensor) -> TestResult<Self> {
        let golden = Golden::open("gradients")?;
        let expected = golden.tensor(&format!("{name}.out"))?;
        assert_close(name, output, &expected, TOLERANCE)?;
        let weighted = (output * golden.tensor(&format!("{name}.probe"))?)?;
        let gradients = weighted.sum_all()?.backward()?;
        Ok(Self {
            name,
            golden,
            gradients,
        })
    }

    fn assert_gradient(&self, what: &str, of: &Tensor) -> TestResult {
        let name = format!("{}.{what}", self.name);
        let ours = self
            .gradients
            .get(of)
            .ok_or_else(|| format!("{name}: no gradient"))?;
        assert_close(&name, ours, &self.golden.tensor(&name)?, TOLERANCE)
    }

    /// `find` gives the variable of a parameter, by the reference's name.
    fn assert_parameters<'a>(&self, find: impl Fn(&str) -> Option<&'a Tensor>) -> TestResult {
        let prefix = format!("{}.parameter.", self.name);
        let names: Vec<_> = self
            .golden
            .names()
            .filter_map(|name| name.strip_prefix(&prefix))
            .collect();
        assert!(names.len() >= 5, "{names:?}");
        for name in names {
            let variable = find(name).ok_or_else(|| format!("no parameter {name}"))?;
            self.assert_gradient(&format!("parameter.{name}"), variable)?;
        }
        Ok(())
    }
}

#[test]
fn unet_at_an_odd_size() -> TestResult {
    let (part, weights) = variables("unet", "diffusion_pytorch_model.safetensors")?;
    let config = UNetConfig::from_json(&part.config_path, &part.config)?;
    let unet = UNet::new(config, &weights, DType::F32, &Device::Cpu)?;
    let inputs = Golden::open("unet_sd15")?;
    let sample = Var::from_tensor(&inputs.tensor("odd.sample")?)?;
    let context = Var::from_tensor(&inputs.tensor("odd.encoder_hidden_states")?)?;
    let timesteps = inputs.values("odd.timesteps")?;
    let output = unet.forward(&UNetInput::new(&sample, &timesteps, &context))?;
    let case = Case::new("unet", &output)?;
    case.assert_gradient("input.sample", &sample)?;
    case.assert_gradient("input.encoder_hidden_states", &context)?;
    case.assert_parameters(|name| weights.get(name))
}

#[test]
fn autoencoder_there_and_back() -> TestResult {
    let (part, weights) = variables("vae", "diffusion_pytorch_model.safetensors")?;
    let vae = Vae::new(
        &part.config_path,
        &part.config,
        &weights,
        DType::F32,
        &Device::Cpu,
    )?;
    let image = Var::from_tensor(&Golden::open("vae_sd15")?.tensor("image")?)?;
    let output = vae.decode(vae.encode(&image)?.mode())?;
    let case = Case::new("vae", &output)?;
    case.assert_gradient("input.image", &image)?;
    // This file has the old names of attention.
    case.assert_parameters(|name| weights.get(&name.replace("to_v", "value")))
}

#[test]
fn text_encoder() -> TestResult {
    let (part, weights) = variables("text_encoder", "model.safetensors")?;
    let config = TextEncoder::parse_config(Path::new("config.json"), &part.config)?;
    let encoder = TextEncoder::new(config, &weights, DType::F32, &Device::Cpu)?;
    let ids = Golden::open("clip_sd15")?
        .tensor("input_ids")?
        .to_vec2::<f32>()?;
    let ids: Vec<Vec<u32>> = ids
        .into_iter()
        .map(|row| row.into_iter().map(|id| id as u32).collect())
        .collect();
    let case = Case::new("clip", &encoder.forward(&ids)?.last_hidden_state)?;
    case.assert_parameters(|name| weights.get(&format!("text_model.{name}")))
}
