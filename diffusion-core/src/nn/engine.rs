//! Layers by the kernels of the CPU: values in memory that comes back, and weights as their tensors hold them.
//!
//! Every function answers `None` where its input is not for it, or a gradient is asked for; the layer then works with
//! candle's tensors, which also say what is wrong with a shape.

use candle_core::{DType, Device, Tensor};

use super::array::{Array, with_values};
use super::conv::Conv2dConfig;
use super::kernels::cpu::{
    self, Affine, Attention, Buffer, Epilogue, Function, Picture, Precision, Shape, Values,
};
use super::{Activation, ActivationFunction, LowRank, Mask, Seamless, Weight};
use crate::error::Result;

/// Calls `f` with a weight's values as they are held, the input of convolutions last.
fn with_weight<T>(weight: &Weight, f: impl FnOnce(Values<'_>) -> T) -> Result<T> {
    let scales = weight.scales().map(vector).transpose()?;
    let values = match weight.values().rank() {
        4 => &weight.values().permute((0, 2, 3, 1))?,
        _ => weight.values(),
    };
    with_values(values, &scales.unwrap_or_default(), f)
}

/// A vector of weights.
fn vector(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Whether weights are the CPU's and no gradient of them is asked for.
fn are_plain<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    let is_plain = |tensor: &Tensor| matches!(tensor.device(), Device::Cpu) && !tensor.track_op();
    tensors.into_iter().all(is_plain)
}

/// The tensors of a layer.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) weight: &'a Weight,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) low_rank: &'a [LowRank],
}

impl Layer<'_> {
    fn is_plain(&self) -> bool {
        let changes = self
            .low_rank
            .iter()
            .flat_map(|change| [&change.down, &change.up]);
        are_plain(
            [self.weight.values()]
                .into_iter()
                .chain(self.bias)
                .chain(changes),
        )
    }

    fn precision(&self) -> Precision {
        match self.weight.values().dtype() {
            DType::BF16 | DType::U8 => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    fn bias(&self) -> Result<Option<Vec<f32>>> {
        self.bias.map(vector).transpose()
    }
}

/// What is added to a layer's result: values of its shape.
enum Addend {
    Nothing,
    Beside(Array),
    /// In the memory that the result goes to.
    Within(Buffer),
}

impl Addend {
    /// `None` if this cannot be added here. Takes the memory of what nothing else has, if it may.
    fn new(add: Option<&mut Activation>, dims: &[usize], may_take: bool) -> Result<Option<Self>> {
        let Some(add) = add else {
            return Ok(Some(Self::Nothing));
        };
        let len = dims.iter().product::<usize>();
        if may_take
            && add.dims().iter().product::<usize>() == len
            && let Some(buffer) = add.array_mut().and_then(Array::take)
        {
            return Ok(Some(Self::Within(buffer)));
        }
        Ok(add
            .array()?
            .filter(|add| add.len() == len)
            .map(Self::Beside))
    }

    /// The epilogue that adds it, and where the result of `len` values goes.
    fn into_parts(self, len: usize) -> (Option<Array>, bool, Buffer) {
        match self {
            Self::Nothing => (None, false, Buffer::new(len)),
            Self::Beside(array) => (Some(array), false, Buffer::new(len)),
            Self::Within(buffer) => (None, true, buffer),
        }
    }
}

/// `x W^T + b`, and `add`. If `is_gated` the first half of the outputs times GELU of the second.
pub(super) fn linear(
    x: &Activation,
    layer: Layer<'_>,
    add: Option<&mut Activation>,
    is_gated: bool,
) -> Result<Option<Activation>> {
    let (outputs, inputs) = layer.weight.values().dims2()?;
    let is_fitting = x.channels() == inputs && (!is_gated || layer.low_rank.is_empty());
    if !is_fitting || !layer.is_plain() {
        return Ok(None);
    }
    let Some(x) = x.array()? else {
        return Ok(None);
    };
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = if is_gated { outputs / 2 } else { outputs };
    }
    let bias = layer.bias()?;
    let Some(add) = Addend::new(add, &dims, layer.low_rank.is_empty())? else {
        return Ok(None);
    };
    let (add, accumulates, buffer) = add.into_parts(dims.iter().product());
    let epilogue = Epilogue {
        bias: bias.as_deref(),
        add: add.as_ref().map(Array::values),
        accumulates,
        gated: is_gated,
    };
    let y = with_weight(layer.weight, |weight| {
        Array::build_in(buffer, dims, layer.precision(), |out| {
            cpu::linear(x.values(), weight, inputs, epilogue, out);
        })
    })??;
    raised(y, layer.low_rank, |change| {
        let down = Weight::new(change.down.flatten_from(1)?);
        let lower = Layer {
            weight: &down,
            bias: None,
            low_rank: &[],
        };
        linear(&Activation::from_array(x.clone()), lower, None, false)
    })
}

/// What low-rank changes add to a layer's result.
fn raised(
    mut y: Option<Activation>,
    changes: &[LowRank],
    lower: impl Fn(&LowRank) -> Result<Option<Activation>>,
) -> Result<Option<Activation>> {
    for change in changes {
        let (Some(sum), Some(lowered)) = (&mut y, lower(change)?) else {
            return Ok(None);
        };
        let raise = Layer {
            weight: &Weight::new(change.up.clone()),
            bias: None,
            low_rank: &[],
        };
        y = linear(&lowered, raise, Some(sum), false)?;
    }
    Ok(y)
}

/// A convolution of a picture, or of one whose pixels count twice in both directions, and `add`.
pub(super) fn convolve(
    x: &Activation,
    layer: Layer<'_>,
    config: Conv2dConfig,
    seamless: Seamless,
    add: Option<&mut Activation>,
    is_doubled: bool,
) -> Result<Option<Activation>> {
    let (outputs, inputs, ..) = layer.weight.values().dims4()?;
    let &[batch, height, width, channels] = x.dims() else {
        return Ok(None);
    };
    let Conv2dConfig {
        kernel,
        stride,
        padding,
        ..
    } = config;
    let scale = if is_doubled { 2 } else { 1 };
    let (padded_h, padded_w) = (
        scale * height + padding.top + padding.bottom,
        scale * width + padding.left + padding.right,
    );
    let is_fitting =
        channels == inputs && height * width > 0 && padded_h >= kernel.0 && padded_w >= kernel.1;
    if !is_fitting || !layer.is_plain() {
        return Ok(None);
    }
    let Some(x) = x.array()? else {
        return Ok(None);
    };
    let out = (
        (padded_h - kernel.0) / stride + 1,
        (padded_w - kernel.1) / stride + 1,
    );
    let dims = vec![batch, out.0, out.1, outputs];
    let bias = layer.bias()?;
    let Some(add) = Addend::new(add, &dims, layer.low_rank.is_empty())? else {
        return Ok(None);
    };
    let (add, accumulates, buffer) = add.into_parts(dims.iter().product());
    let shape = Shape {
        kernel,
        stride,
        padding: (padding.top, padding.left),
        out,
        wraps: (seamless.y, seamless.x),
        doubled: is_doubled,
    };
    let epilogue = Epilogue {
        bias: bias.as_deref(),
        add: add.as_ref().map(Array::values),
        accumulates,
        gated: false,
    };
    let picture = Picture {
        values: x.values(),
        batch,
        height,
        width,
        channels,
    };
    let y = with_weight(layer.weight, |weight| {
        Array::build_in(buffer, dims, layer.precision(), |out| {
            cpu::convolve(picture, weight, shape, epilogue, out);
        })
    })??;
    raised(y, layer.low_rank, |change| {
        let lower = Layer {
            weight: &Weight::new(change.down.clone()),
            bias: None,
            low_rank: &[],
        };
        let x = Activation::from_array(x.clone());
        convolve(&x, lower, config, seamless, None, is_doubled)
    })
}

/// Group normalisation, and SiLU if asked.
pub(super) fn group_norm(
    x: &Activation,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Option<Activation>> {
    let is_plain = are_plain([weight, bias]) && x.channels() == weight.elem_count();
    let Some(x) = is_plain.then(|| x.array()).transpose()?.flatten() else {
        return Ok(None);
    };
    let batch = x.dims().first().copied().unwrap_or(1);
    if x.len() == 0 {
        return Ok(None);
    }
    let (weight, bias) = (vector(weight)?, vector(bias)?);
    let affine = Affine {
        weight: &weight,
        bias: &bias,
        eps,
    };
    Array::build(x.dims().to_vec(), x.precision, |out| {
        cpu::group_norm(x.values(), batch, groups, affine, silu, out);
    })
}

/// The same in place, if nothing else has the values; else it does nothing and says so.
pub(super) fn group_norm_in_place(
    x: &mut Activation,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<bool> {
    let is_plain = are_plain([weight, bias]) && x.channels() == weight.elem_count();
    let batch = x.dims().first().copied().unwrap_or(1);
    let own = x.array_mut().filter(|x| is_plain && x.len() > 0);
    let Some(values) = own.and_then(Array::own_values) else {
        return Ok(false);
    };
    let (weight, bias) = (vector(weight)?, vector(bias)?);
    let affine = Affine {
        weight: &weight,
        bias: &bias,
        eps,
    };
    cpu::group_norm_in_place(values, batch, groups, affine, silu);
    Ok(true)
}

/// Layer normalisation.
pub(super) fn layer_norm(
    x: &Activation,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Option<Activation>> {
    let is_plain = are_plain([weight, bias]) && x.channels() == weight.elem_count();
    let Some(x) = is_plain.then(|| x.array()).transpose()?.flatten() else {
        return Ok(None);
    };
    let (weight, bias) = (vector(weight)?, vector(bias)?);
    let affine = Affine {
        weight: &weight,
        bias: &bias,
        eps,
    };
    Array::build(x.dims().to_vec(), x.precision, |out| {
        cpu::layer_norm(x.values(), affine, out);
    })
}

/// Scaled dot-product attention.
pub(super) fn attention(
    [q, k, v]: [&Activation; 3],
    heads: usize,
    mask: Mask<'_>,
    upcast: bool,
) -> Result<Option<Activation>> {
    let (&[batch, queries, width], &[.., keys, _]) = (q.dims(), k.dims()) else {
        return Ok(None);
    };
    let is_fitting = k.dims() == [batch, keys, width]
        && v.dims() == k.dims()
        && batch * queries * keys * width > 0
        && width.is_multiple_of(heads);
    if !is_fitting {
        return Ok(None);
    }
    let (Some(q), Some(k), Some(v)) = (q.array()?, k.array()?, v.array()?) else {
        return Ok(None);
    };
    let precision = if upcast { Precision::F32 } else { q.precision };
    let job = Attention {
        q: q.values(),
        k: k.values(),
        v: v.values(),
        batch,
        heads,
        width: width / heads,
        is_causal: mask != Mask::None,
        unseen: match mask {
            Mask::CausalBut(unseen) => unseen,
            Mask::None | Mask::Causal => &[],
        },
        precision,
    };
    Array::build(q.dims().to_vec(), q.precision, |out| {
        cpu::attention(job, out)
    })
}

/// An element-wise function.
pub(super) fn apply(function: ActivationFunction, x: &Activation) -> Result<Option<Activation>> {
    let Some(x) = x.array()? else {
        return Ok(None);
    };
    let function = match function {
        ActivationFunction::Silu => Function::Silu,
        ActivationFunction::QuickGelu => Function::QuickGelu,
        ActivationFunction::Gelu => Function::Gelu,
        ActivationFunction::GeluNew => Function::GeluTanh,
        ActivationFunction::Relu => Function::Relu,
    };
    Array::build(x.dims().to_vec(), x.precision, |out| {
        cpu::apply(function, x.values(), out)
    })
}

/// Two arrays, if both are or may be that.
fn both(a: &Activation, b: &Activation) -> Result<Option<(Array, Array)>> {
    Ok(match a.array()? {
        Some(a) => b.array()?.map(|b| (a, b)),
        None => None,
    })
}

/// The sum of values of the same shape.
pub(super) fn add(a: &Activation, b: &Activation) -> Result<Option<Activation>> {
    match both(a, b)? {
        Some((a, b)) if a.dims() == b.dims() => {
            Array::build(a.dims().to_vec(), a.precision, |out| {
                cpu::zip(a.values(), b.values(), out, |a, b| a + b);
            })
        }
        _ => Ok(None),
    }
}

/// One vector an image, added to all of its pixels.
pub(super) fn add_vectors(x: &Activation, vectors: &Activation) -> Result<Option<Activation>> {
    let Some((x, vectors)) = both(x, vectors)? else {
        return Ok(None);
    };
    let (&[batch, height, width, channels], &[rows, len]) = (x.dims(), vectors.dims()) else {
        return Ok(None);
    };
    if (rows, len) != (batch, channels) || x.len() == 0 {
        return Ok(None);
    }
    Array::build(x.dims().to_vec(), x.precision, |out| {
        cpu::rows(out, channels, |row, out| {
            let pixel = &x.values()[row * channels..(row + 1) * channels];
            let image = row / (height * width);
            let vector = &vectors.values()[image * channels..(image + 1) * channels];
            for ((out, x), v) in out.iter_mut().zip(pixel).zip(vector) {
                *out = x + v;
            }
        });
    })
}

/// Channels of both.
pub(super) fn cat_channels(a: &Activation, b: &Activation) -> Result<Option<Activation>> {
    let Some((a, b)) = both(a, b)? else {
        return Ok(None);
    };
    let (left, right) = (a.channels(), b.channels());
    let (Some((_, dims)), Some((_, others))) = (a.dims().split_last(), b.dims().split_last())
    else {
        return Ok(None);
    };
    if dims != others || a.len() == 0 || b.len() == 0 {
        return Ok(None);
    }
    let mut dims = dims.to_vec();
    dims.push(left + right);
    Array::build(dims, a.precision, |out| {
        cpu::rows(out, left + right, |row, out| {
            out[..left].copy_from_slice(&a.values()[row * left..(row + 1) * left]);
            out[left..].copy_from_slice(&b.values()[row * right..(row + 1) * right]);
        });
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::nn::attention;

    fn random(shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::rand(-1f32, 1f32, shape, &Device::Cpu)?)
    }

    #[test]
    fn no_gradient_is_cut() -> Result<()> {
        let (x, weight) = (random(&[2, 5, 8])?, Weight::new(random(&[6, 8])?));
        let layer = |weight| Layer {
            weight,
            bias: None,
            low_rank: &[],
        };
        let plain = linear(&Activation::new(x.clone()), layer(&weight), None, false)?;
        assert!(plain.is_some_and(|y| !y.to_tensor().is_ok_and(|y| y.track_op())));
        // A variable, and what is made of one, in each place that a value can come from.
        let of_variable = |tensor: &Tensor| -> Result<Tensor> {
            Ok((Var::from_tensor(tensor)?.as_tensor() * 2.0)?)
        };
        let tracked = of_variable(&x)?;
        assert!(linear(&Activation::new(tracked), layer(&weight), None, false)?.is_none());
        let tracked = Weight::new(of_variable(weight.values())?);
        assert!(linear(&Activation::new(x.clone()), layer(&tracked), None, false)?.is_none());
        let mut tracked = Activation::new(of_variable(&random(&[2, 5, 6])?)?);
        let x = Activation::new(x);
        assert!(linear(&x, layer(&weight), Some(&mut tracked), false)?.is_none());
        let (plain, tracked) = (random(&[1, 3, 4])?, of_variable(&random(&[1, 3, 4])?)?);
        for place in 0..3 {
            let of = |i: usize| {
                Activation::new(if i == place {
                    tracked.clone()
                } else {
                    plain.clone()
                })
            };
            let found = attention(&of(0), &of(1), &of(2), 2, Mask::None, false)?;
            assert!(found.to_tensor()?.track_op(), "attention, {place}");
        }
        let (a, b) = (Activation::new(plain), Activation::new(tracked));
        for sum in [a.add(&b)?, b.add(&a)?, a.cat_channels(&b)?] {
            assert!(sum.to_tensor()?.track_op());
        }
        Ok(())
    }
}
