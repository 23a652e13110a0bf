//! Each kind of block against diffusers.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::nn::{ActivationFunction, TensorSource, TimeScaleShift};

type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

struct Case {
    name: &'static str,
    tensors: HashMap<String, Tensor>,
}

impl Case {
    fn open(name: &'static str) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/unet_blocks.safetensors");
        let prefix = format!("{name}.");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?
            .into_iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?.to_owned(), tensor)))
            .collect();
        Ok(Self { name, tensors })
    }

    fn weights(&self) -> HashMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(key, tensor)| {
                Some((key.strip_prefix("weights.")?.to_owned(), tensor.clone()))
            })
            .collect()
    }

    fn build<B>(&self, block: impl FnOnce(Params<'_>) -> Result<B>) -> Result<B> {
        let weights = self.weights();
        let source: &dyn TensorSource = &weights;
        Params::build(source, DType::F32, &Device::Cpu, &[], block)
    }

    fn tensor(&self, key: &str) -> Result<Tensor> {
        let tensor = self.tensors.get(key);
        tensor
            .cloned()
            .ok_or_else(|| Error::custom(format!("{}: no {key}", self.name)))
    }

    fn picture(&self, key: &str) -> Result<Activation> {
        Activation::from_nchw(&self.tensor(key)?)
    }

    /// Calls `forward` with the block's input and conditioning.
    fn run<T>(
        &self,
        forward: impl FnOnce(&Activation, Conditioning<'_>) -> Result<T>,
    ) -> Result<T> {
        let temb = Activation::new(self.tensor("temb")?);
        let context = match self.tensors.get("encoder_hidden_states") {
            Some(context) => Activation::new(context.clone()),
            None => temb.clone(),
        };
        let cond = Conditioning {
            temb: &temb,
            context: Context::text(&context),
        };
        forward(&self.picture("hidden_states")?, cond)
    }

    fn assert_close(&self, ours: &Activation, key: &str) -> TestResult {
        let (ours, reference) = (ours.to_nchw()?, self.tensor(key)?);
        assert_eq!(ours.dims(), reference.dims(), "{} {key}", self.name);
        let max = |t: Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        let (difference, largest) = (max((&ours - &reference)?)?, max(reference)?);
        assert!(
            difference <= 1e-4 * largest,
            "{} {key}: {difference} of {largest}",
            self.name
        );
        Ok(())
    }
}

fn level(cross_attention: bool) -> LevelConfig {
    LevelConfig {
        resnet: ResnetConfig {
            input: 32,
            output: 32,
            temb: Some(32),
            groups: 4,
            eps: 1e-5,
            function: ActivationFunction::Silu,
            time_scale_shift: TimeScaleShift::Default,
            output_scale_factor: 1.0,
        },
        transformer: cross_attention.then_some(TransformerConfig {
            channels: 32,
            heads: 2,
            layers: 1,
            cross_attention_dim: 24,
            groups: 4,
            use_linear_projection: false,
            only_cross_attention: false,
            upcast_attention: false,
            merges_tokens: false,
        }),
    }
}

#[test]
fn down_blocks() -> TestResult {
    for (name, cross_attention) in [("DownBlock2D", false), ("CrossAttnDownBlock2D", true)] {
        let case = Case::open(name)?;
        let level = level(cross_attention);
        let block = case.build(|p| DownBlock::new(p, 16, &level, &[1, 1], Some(1)))?;
        let mut skips = Skips::default();
        let output = case.run(|x, cond| block.forward(x, cond, None, &mut skips))?;
        case.assert_close(&output, "out")?;
        let skips = skips.list;
        assert_eq!(skips.len(), 3);
        for (i, skip) in skips.iter().enumerate() {
            case.assert_close(skip, &format!("out_res.{i}"))?;
        }
    }
    Ok(())
}

#[test]
fn mid_block() -> TestResult {
    let case = Case::open("UNetMidBlock2DCrossAttn")?;
    let block = case.build(|p| MidBlock::new(p, &level(true), 1))?;
    case.assert_close(&case.run(|x, cond| block.forward(x, cond))?, "out")
}

#[test]
fn up_blocks() -> TestResult {
    for (name, cross_attention) in [("UpBlock2D", false), ("CrossAttnUpBlock2D", true)] {
        let case = Case::open(name)?;
        let level = level(cross_attention);
        let block = case.build(|p| UpBlock::new(p, 24, 16, &level, &[1, 1], true))?;
        let skips = vec![case.picture("res.0")?, case.picture("res.1")?];
        let output = case.run(|x, cond| block.forward(x, cond, &mut skips.clone()))?;
        case.assert_close(&output, "out")?;

        // The skip of the level above decides the size.
        let above = Activation::new(Tensor::zeros((2, 7, 11, 16), DType::F32, &Device::Cpu)?);
        let mut skips = [vec![above], skips].concat();
        let output = case.run(|x, cond| block.forward(x, cond, &mut skips))?;
        case.assert_close(&output, "sized.out")?;
        assert_eq!(skips.len(), 1);
    }
    Ok(())
}
