//! Scaled dot-product attention, the one entry point of every model.

use candle_core::{D, DType, Tensor};

use super::Activation;
use crate::error::{Error, Result};

/// The most elements that one block of attention scores has. Longer sequences are worked off in
/// blocks of queries, so that memory grows with the sequence and not with its square.
const MAX_SCORES: usize = 1 << 24;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask<'a> {
    /// All of them.
    None,
    /// Those up to its own position, as CLIP's text model.
    Causal,
    /// The same without those at some positions, of which the first must not be one.
    CausalBut(&'a [usize]),
}

/// `softmax(q k^T / sqrt(d)) v` over `heads` heads of width `d`.
///
/// `upcast` computes scores and softmax in f32 whatever the activations are. Source: Vaswani et al.,
/// "Attention Is All You Need", 2017, equation 1.
///
/// # Shapes
/// `q`: `(batch, queries, heads * d)`, `k` and `v`: `(batch, keys, heads * d)`; returns the shape of `q`.
///
/// # Errors
/// [`Error::InvalidArgument`] if `heads` does not divide the width, [`Error::Tensor`] if the shapes do
/// not fit.
pub fn attention(
    q: &Activation,
    k: &Activation,
    v: &Activation,
    heads: usize,
    mask: Mask<'_>,
    upcast: bool,
) -> Result<Activation> {
    let (batch, queries, width) = q.tensor().dims3()?;
    let keys = k.tensor().dim(1)?;
    if heads == 0 || width % heads != 0 {
        return Err(Error::argument(
            "attention heads",
            format!("a divisor of {width}"),
            heads,
        ));
    }
    let dtype = q.dtype();
    let scores_dtype = if upcast { DType::F32 } else { dtype };
    let scale = ((width / heads) as f64).sqrt().recip();
    let q = (split_heads(q, heads)?.to_dtype(scores_dtype)? * scale)?;
    let k = split_heads(k, heads)?.to_dtype(scores_dtype)?.t()?;
    let v = split_heads(v, heads)?;

    let block = (MAX_SCORES / (batch * heads * keys).max(1)).clamp(1, queries.max(1));
    let blocks = (0..queries)
        .step_by(block)
        .map(|start| {
            let len = block.min(queries - start);
            let mut scores = q.narrow(2, start, len)?.contiguous()?.matmul(&k)?;
            let unseen = match mask {
                Mask::None => None,
                Mask::Causal => Some(&[][..]),
                Mask::CausalBut(unseen) => Some(unseen),
            };
            if let Some(unseen) = unseen {
                let bias = causal_bias(start, len, keys, unseen, &scores)?;
                scores = scores.broadcast_add(&bias)?;
            }
            Ok(softmax(&scores)?.to_dtype(dtype)?.matmul(&v)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let joined = Tensor::cat(&blocks, 2)?;
    Ok(Activation::new(
        joined.transpose(1, 2)?.reshape((batch, queries, width))?,
    ))
}

/// `(batch, tokens, heads * d)` to `(batch, heads, tokens, d)`.
fn split_heads(x: &Activation, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.tensor().dims3()?;
    let split = x.tensor().reshape((batch, tokens, heads, width / heads))?;
    Ok(split.transpose(1, 2)?.contiguous()?)
}

/// Candle's fused softmax has no gradient and says nothing, so it serves only where none is wanted.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    Ok(if scores.track_op() {
        candle_nn::ops::softmax(scores, D::Minus1)?
    } else {
        candle_nn::ops::softmax_last_dim(scores)?
    })
}

fn causal_bias(
    start: usize,
    queries: usize,
    keys: usize,
    unseen: &[usize],
    like: &Tensor,
) -> Result<Tensor> {
    let mut bias: Vec<f32> = (start..start + queries)
        .flat_map(|query| {
            (0..keys).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    for row in bias.chunks_mut(keys) {
        for &key in unseen {
            row[key] = f32::NEG_INFINITY;
        }
    }
    Ok(Tensor::from_vec(bias, (queries, keys), like.device())?.to_dtype(like.dtype())?)
}
