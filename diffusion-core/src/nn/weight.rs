//! Weights of layers, as they are held.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::TensorSource;
use crate::error::{Error, Result};

/// How layers hold their weights in fewer bits than tensors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantization {
    /// Whole numbers of eight bits, from -127 to 127, and a scale for each output channel. Layers that read or write
    /// latents or timesteps keep their precision, and so do biases, norms and tables.
    Int8,
}

impl std::str::FromStr for Quantization {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "int8" => Ok(Self::Int8),
            _ => Err(Error::argument("quantize", "int8", name)),
        }
    }
}

/// Parts of names of the layers that a picture depends on most.
const SENSITIVE: [&str; 5] = [
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "class_embedding",
];
/// What is smaller than this is not worth it.
const FEWEST: usize = 1024;

impl Quantization {
    /// Whether a layer's weight is held so.
    pub(super) fn takes(self, layer: &str, shape: &[usize]) -> bool {
        let is_sensitive = layer.split('.').any(|part| SENSITIVE.contains(&part));
        !is_sensitive && shape.iter().product::<usize>() >= FEWEST
    }
}

/// A layer's weight: a tensor, or whole numbers with a scale for each output channel.
#[derive(Debug, Clone)]
pub struct Weight {
    /// `(output, ...)`, f32, f16 or bf16, or the bits of signed bytes.
    values: Tensor,
    /// `(output)`, f32.
    scales: Option<Tensor>,
}

impl Weight {
    /// A tensor as it is.
    pub fn new(values: Tensor) -> Self {
        let scales = None;
        Self { values, scales }
    }

    /// A tensor `(output, ...)` in fewer bits, each value to the nearest, in the same order in memory. What is no
    /// number makes its whole channel none.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the tensor cannot be read.
    pub fn quantized(tensor: &Tensor, quantization: Quantization) -> Result<Self> {
        let Quantization::Int8 = quantization;
        let device = tensor.device();
        // Kernels are held with their input last.
        let rows = match tensor.rank() {
            4 => tensor.permute((0, 2, 3, 1))?,
            _ => tensor.clone(),
        };
        let dims = rows.dims().to_vec();
        let rows = rows.flatten_from(1)?.to_device(&Device::Cpu)?;
        let rows = rows.to_dtype(DType::F32)?;
        let (outputs, inputs) = rows.dims2()?;
        let rows = rows.flatten_all()?.to_vec1::<f32>()?;
        let mut bytes = vec![0; rows.len()];
        let channels = rows.par_chunks(inputs.max(1));
        let scales: Vec<f32> = channels
            .zip(bytes.par_chunks_mut(inputs.max(1)))
            .map(|(channel, bytes)| quantize(channel, bytes))
            .collect();
        let mut values = Tensor::from_vec(bytes, dims, device)?;
        if values.rank() == 4 {
            values = values.permute((0, 3, 1, 2))?;
        }
        let scales = Tensor::from_vec(scales, outputs, device)?;
        Ok(Self::from_parts(values, scales))
    }

    /// Whole numbers and their scales.
    pub(super) fn from_parts(values: Tensor, scales: Tensor) -> Self {
        let scales = Some(scales);
        Self { values, scales }
    }

    /// The tensor, or the bits of whole numbers.
    pub(super) fn values(&self) -> &Tensor {
        &self.values
    }

    /// What whole numbers are multiplied by.
    pub(super) fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// The weight as numbers of a format.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device has no memory for it.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        let Some(scales) = &self.scales else {
            return Ok(self.values.to_dtype(dtype)?);
        };
        let bits = self.values.to_dtype(DType::F32)?;
        // The upper half of the bytes are the negative numbers.
        let is_negative = bits.ge(128.0)?.to_dtype(DType::F32)?;
        let signed = (bits - (is_negative * 256.0)?)?;
        let mut shape = vec![1; self.values.rank()];
        shape[0] = scales.elem_count();
        Ok(signed
            .broadcast_mul(&scales.reshape(shape)?)?
            .to_dtype(dtype)?)
    }

    /// A kernel of one pixel `(output, input, 1, 1)` as a matrix `(output, input)`.
    pub(super) fn squeezed(&self) -> Result<Self> {
        Ok(Self {
            values: self.values.squeeze(3)?.squeeze(2)?,
            scales: self.scales.clone(),
        })
    }
}

/// Writes the bits of a channel's whole numbers. Returns what they are to be multiplied by.
fn quantize(channel: &[f32], bytes: &mut [u8]) -> f32 {
    let largest = channel.iter().fold(0f32, |most, x| most.max(x.abs()));
    let scale = match channel.iter().all(|x| x.is_finite()) {
        true => largest / 127.0,
        false => f32::NAN,
    };
    // Zeros divide by nothing.
    let factor = if largest > 0.0 { scale.recip() } else { 0.0 };
    for (byte, x) in bytes.iter_mut().zip(channel) {
        *byte = ((x * factor).round() as i8).cast_unsigned();
    }
    scale
}

/// A source whose layers' weights are to be held in fewer bits.
pub struct Quantized<'a> {
    source: &'a dyn TensorSource,
    quantization: Quantization,
}

impl<'a> Quantized<'a> {
    /// Takes tensors from another source.
    pub fn new(source: &'a dyn TensorSource, quantization: Quantization) -> Self {
        Self {
            source,
            quantization,
        }
    }
}

impl TensorSource for Quantized<'_> {
    fn name(&self) -> String {
        self.source.name()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.source.tensor_names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.source.load(name, dtype, device)
    }

    fn load_channels_last(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.source.load_channels_last(name, dtype, device)
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.source.dtype(name)
    }

    fn quantization(&self) -> Option<Quantization> {
        Some(self.quantization)
    }

    fn low_rank(&self, layer: &str) -> Vec<super::LowRank> {
        self.source.low_rank(layer)
    }

    fn seamless(&self) -> super::Seamless {
        self.source.seamless()
    }

    fn metadata(&self) -> std::collections::BTreeMap<String, String> {
        self.source.metadata()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::{Activation, Conv2d, Conv2dConfig, Linear, NamedTensors, Params};
    use super::*;

    fn random(shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 1f32, shape, &Device::Cpu)?)
    }

    #[test]
    fn values_are_half_a_step_away_at_most() -> Result<()> {
        for shape in [&[5, 40][..], &[3, 7, 3, 3], &[4, 6, 1, 1]] {
            let tensor = random(shape)?;
            let rows = tensor.flatten_from(1)?.to_vec2::<f32>()?;
            let weight = Weight::quantized(&tensor, Quantization::Int8)?;
            assert_eq!(weight.values().dims(), shape);
            let back = weight.to_dtype(DType::F32)?.flatten_from(1)?;
            for (row, back) in rows.iter().zip(back.to_vec2::<f32>()?) {
                let step = row.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
                for (x, back) in row.iter().zip(back) {
                    assert!((x - back).abs() <= 0.5001 * step, "{x}, {back}, {step}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn zeros_stay_and_what_is_no_number_stays_none() -> Result<()> {
        let rows = [
            [0.0f32, 0.0],
            [1.0, f32::NAN],
            [f32::INFINITY, 1.0],
            [2.0, -2.0],
        ];
        let tensor = Tensor::new(&rows, &Device::Cpu)?;
        let weight = Weight::quantized(&tensor, Quantization::Int8)?;
        let back = weight.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        assert_eq!((&back[0], &back[3]), (&vec![0.0, 0.0], &vec![2.0, -2.0]));
        assert!(back[1..3].iter().flatten().all(|x| x.is_nan()));
        Ok(())
    }

    #[test]
    fn sensitive_and_small_layers_are_left() {
        let takes = |name| Quantization::Int8.takes(name, &[320, 320]);
        assert!(takes("mid_block.resnets.0.conv1.weight"));
        for name in [
            "conv_in.weight",
            "conv_out.weight",
            "time_embedding.linear_1.weight",
        ] {
            assert!(!takes(name), "{name}");
        }
        assert!(!Quantization::Int8.takes("mid_block.resnets.0.conv1.weight", &[8, 8]));
    }

    /// Layers by kernels and by tensors, which a gradient asks for, work with the same weights; and the input's
    /// gradient is that of these weights.
    #[test]
    fn both_ways_and_the_gradient_are_those_of_the_weights() -> Result<()> {
        let (matrix, kernels) = (random(&[64, 96])?, random(&[32, 64, 3, 3])?);
        let tensors = NamedTensors::from([
            ("linear.weight".into(), matrix),
            ("conv.weight".into(), kernels),
        ]);
        let build = |source: &dyn TensorSource| {
            Params::build(source, DType::F32, &Device::Cpu, &[], |params| {
                let conv = Conv2dConfig::same(3).without_bias();
                let layers = (
                    params.at("linear", |p| Linear::new(p, 96, 64, false))?,
                    params.at("conv", |p| Conv2d::new(p, 64, 32, conv))?,
                );
                Ok((layers, params.weights()))
            })
        };
        let (layers, weights) = build(&Quantized::new(&tensors, Quantization::Int8))?;
        let dequantized = ["linear.weight", "conv.weight"].map(|name| -> Result<_> {
            assert_eq!(weights.tensors()[name].dtype(), DType::U8);
            let tensor = weights.tensor(name, DType::F32)?;
            Ok((
                name.to_owned(),
                tensor.unwrap_or(Tensor::zeros(1, DType::F32, &Device::Cpu)?),
            ))
        });
        let plain: NamedTensors = dequantized.into_iter().collect::<Result<_>>()?;
        let (plain, _) = build(&plain)?;
        // A model that is built anew from another's weights holds the same numbers.
        let (again, _) = build(&weights)?;

        let x = random(&[1, 5, 6, 96])?;
        let run = |(linear, conv): &(Linear, Conv2d), x: Tensor| {
            conv.forward(&linear.forward(&Activation::new(x))?)?
                .to_tensor()
        };
        let (found, expected) = (run(&layers, x.clone())?, run(&plain, x.clone())?);
        let apart = |a: &Tensor, b: &Tensor| -> Result<f32> {
            let largest = b.abs()?.max_all()?.to_scalar::<f32>()?;
            Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? / largest)
        };
        assert!(apart(&found, &expected)? < 1e-2);
        assert_eq!(apart(&run(&again, x.clone())?, &found)?, 0.0);

        let x = Var::from_tensor(&x)?;
        let gradient = |layers| -> Result<Tensor> {
            let y = run(layers, x.as_tensor().clone())?;
            let gradients = (y.sqr()?.sum_all()?).backward()?;
            Ok(gradients.get(&x).cloned().unwrap_or(x.zeros_like()?))
        };
        assert!(run(&layers, x.as_tensor().clone())?.track_op());
        assert!(apart(&gradient(&layers)?, &gradient(&plain)?)? < 1e-5);
        Ok(())
    }
}
