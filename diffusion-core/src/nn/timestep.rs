//! Embeddings of numbers: timesteps, sizes, guidance.

use candle_core::{DType, Device, Tensor};

use super::{Activation, ActivationFunction, Linear, Params};
use crate::error::Result;

/// Sinusoidal embedding of real numbers, fractional ones included.
///
/// The arithmetic is f32 step by step, as in PyTorch: at timestep 1000 the angle itself carries an
/// f32's rounding. Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
/// after Vaswani et al., 2017, section 3.5.
///
/// # Shapes
/// `values`: `n` numbers; returns `(n, dim)`, f32.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if the device fails.
pub fn sinusoidal_embedding(
    values: &[f64],
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    device: &Device,
) -> Result<Tensor> {
    let half = dim / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-10000f64.ln() as f32 * i as f32 / (half as f64 - freq_shift) as f32).exp())
        .collect();
    let mut embedding = Vec::with_capacity(values.len() * dim);
    for &value in values {
        let sines = frequencies.iter().map(|f| (value as f32 * f).sin());
        let cosines = frequencies.iter().map(|f| (value as f32 * f).cos());
        if flip_sin_to_cos {
            embedding.extend(cosines.chain(sines));
        } else {
            embedding.extend(sines.chain(cosines));
        }
        embedding.extend((2 * half..dim).map(|_| 0.0));
    }
    Ok(Tensor::from_vec(embedding, (values.len(), dim), device)?)
}

/// The embedding of a guidance scale that distilled models (LCM) take in place of a second half.
///
/// Source: Meng et al., "On Distillation of Guided Diffusion Models", 2022; the constants are those of
/// the published code, where the input is `(guidance_scale - 1) * 1000`.
///
/// # Shapes
/// Returns `(batch, dim)`, f32.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if the device fails.
pub fn guidance_embedding(
    guidance_scale: f64,
    batch: usize,
    dim: usize,
    device: &Device,
) -> Result<Tensor> {
    let values = vec![(guidance_scale - 1.0) * 1000.0; batch];
    sinusoidal_embedding(&values, dim, false, 1.0, device)
}

/// Two linear layers that turn an embedding into the vector that residual blocks take.
#[derive(Debug, Clone)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    cond_proj: Option<Linear>,
    function: ActivationFunction,
}

impl TimestepEmbedding {
    /// Reads `linear_1`, `linear_2` and, where `cond_dim` is given, `cond_proj`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(
        params: Params<'_>,
        input: usize,
        output: usize,
        cond_dim: Option<usize>,
        function: ActivationFunction,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: params.at("linear_1", |p| Linear::new(p, input, output, true))?,
            linear_2: params.at("linear_2", |p| Linear::new(p, output, output, true))?,
            cond_proj: cond_dim
                .map(|dim| params.at("cond_proj", |p| Linear::new(p, dim, input, false)))
                .transpose()?,
            function,
        })
    }

    /// # Shapes
    /// `x`: `(batch, input)`, `cond`: `(batch, cond_dim)`; returns `(batch, output)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Tensor, cond: Option<&Tensor>, dtype: DType) -> Result<Activation> {
        let mut x = Activation::new(x.to_dtype(dtype)?);
        if let (Some(projection), Some(cond)) = (&self.cond_proj, cond) {
            x = x.add(&projection.forward(&Activation::new(cond.to_dtype(dtype)?))?)?;
        }
        let hidden = self.function.apply(&self.linear_1.forward(&x)?)?;
        self.linear_2.forward(&hidden)
    }
}
