//! Scaled dot-product attention, the one entry point of every model.

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use super::{Activation, engine};
use crate::error::{Error, Result};

/// The most elements that one block of attention scores has, if [`MIN_QUERIES`] allow it. Longer sequences are
/// worked off in blocks of queries, and blocks of heads, so that memory grows with the sequence and not with its
/// square.
const MAX_SCORES: usize = 1 << 24;

/// Queries that a block may always have. Products of 64 rows and fewer are summed in another order on the CPU;
/// of more than this, halves have enough for the bits to be those of one block.
const MIN_QUERIES: usize = 130;

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

/// The most elements of one block of scores over `keys` keys.
pub(crate) fn scores_at_once(keys: u64) -> u64 {
    keys.saturating_mul(MIN_QUERIES as u64)
        .max(MAX_SCORES as u64)
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
    let width = q.channels();
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(Error::argument(
            "attention heads",
            format!("a divisor of {width}"),
            heads,
        ));
    }
    if let Some(found) = engine::attention([q, k, v], heads, mask, upcast)? {
        return Ok(found);
    }
    let (q, k, v) = (q.to_tensor()?, k.to_tensor()?, v.to_tensor()?);
    let (batch, queries, _) = q.dims3()?;
    let keys = k.dim(1)?;
    let dtype = q.dtype();
    let scores_dtype = if upcast { DType::F32 } else { dtype };
    let scale = ((width / heads) as f64).sqrt().recip();
    let q = (split_heads(&q, heads)?.to_dtype(scores_dtype)? * scale)?;
    let k = split_heads(&k, heads)?.to_dtype(scores_dtype)?.t()?;
    let v = split_heads(&v, heads)?;

    let unseen = match mask {
        Mask::None => None,
        Mask::Causal => Some(&[][..]),
        Mask::CausalBut(unseen) => Some(unseen),
    };
    let blocks = Blocks::new(MAX_SCORES, batch * heads, queries, keys);
    let joined = blocks.run(|planes, start, len| {
        let of = |x: &Tensor| x.narrow(0, planes.start, planes.len());
        let mut scores = of(&q)?
            .narrow(1, start, len)?
            .contiguous()?
            .matmul(&of(&k)?)?;
        if let Some(unseen) = unseen {
            let bias = causal_bias(start, len, keys, unseen, &scores)?;
            scores = scores.broadcast_add(&bias)?;
        }
        Ok(softmax(&scores)?.to_dtype(dtype)?.matmul(&of(&v)?)?)
    })?;
    let joined = joined.reshape((batch, heads, queries, width / heads))?;
    Ok(Activation::new(
        joined.transpose(1, 2)?.reshape((batch, queries, width))?,
    ))
}

/// Scores in portions: of some planes (a head of an image each) and some queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    planes: usize,
    planes_at_once: usize,
    queries: usize,
    /// Portions of queries, each as large as the next or one larger.
    query_blocks: usize,
}

impl Blocks {
    fn new(max_scores: usize, planes: usize, queries: usize, keys: usize) -> Self {
        let rows = max_scores / keys.max(1);
        let planes_at_once = (rows / queries.clamp(1, MIN_QUERIES)).clamp(1, planes.max(1));
        let most = (rows / planes_at_once).max(MIN_QUERIES);
        Self {
            planes,
            planes_at_once,
            queries,
            query_blocks: queries.div_ceil(most).max(1),
        }
    }

    /// Calls `block` with each range of planes, the first query and the number of queries, and joins the answers.
    fn run(&self, block: impl Fn(Range<usize>, usize, usize) -> Result<Tensor>) -> Result<Tensor> {
        let start_of = |i: usize| i * self.queries / self.query_blocks;
        let starts = (0..self.planes).step_by(self.planes_at_once);
        let groups = starts.map(|first| {
            let planes = first..self.planes.min(first + self.planes_at_once);
            let blocks = (0..self.query_blocks).map(|i| {
                let start = start_of(i);
                block(planes.clone(), start, start_of(i + 1) - start)
            });
            Ok(Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)?)
        });
        Ok(Tensor::cat(&groups.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// `(batch, tokens, heads * d)` to `(batch * heads, tokens, d)`.
fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let split = x.reshape((batch, tokens, heads, width / heads))?;
    Ok(split.transpose(1, 2)?.contiguous()?.flatten(0, 1)?)
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::rng::TorchRng;

    fn random(dims: [usize; 3], seed: u64) -> Result<Tensor> {
        let values = TorchRng::new(seed).randn(dims.iter().product());
        Ok(Tensor::from_vec(values, &dims, &Device::Cpu)?)
    }

    /// Scores of `planes` heads in portions of at most `max_scores`.
    fn in_blocks(q: &Tensor, k: &Tensor, v: &Tensor, max_scores: usize) -> Result<Tensor> {
        let (planes, queries, _) = q.dims3()?;
        Blocks::new(max_scores, planes, queries, k.dim(1)?).run(|planes, start, len| {
            let of = |x: &Tensor| x.narrow(0, planes.start, planes.len());
            let scores = of(q)?.narrow(1, start, len)?.contiguous()?;
            Ok(softmax(&scores.matmul(&of(k)?.t()?)?)?.matmul(&of(v)?)?)
        })
    }

    #[test]
    fn blocks_of_any_size_have_the_bits_of_one() -> Result<()> {
        for (queries, keys, width) in [(400, 300, 40), (263, 77, 64), (131, 530, 72)] {
            let (q, k, v) = (
                random([3, queries, width], 1)?,
                random([3, keys, width], 2)?,
                random([3, keys, width], 3)?,
            );
            let bits = |max_scores: usize| -> Result<Vec<u32>> {
                let found = in_blocks(&q, &k, &v, max_scores)?.flatten_all()?;
                let values = found.to_vec1::<f32>()?;
                Ok(values.into_iter().map(f32::to_bits).collect())
            };
            let whole = bits(usize::MAX)?;
            for rows in [1, 131, 263, 801] {
                assert!(bits(rows * keys)? == whole, "{queries} x {keys}: {rows}");
            }
        }
        Ok(())
    }

    #[test]
    fn blocks_are_no_larger_than_asked() {
        for (planes, queries, keys) in [(16, 4096, 4096), (2, 65536, 65536), (20, 16384, 77)] {
            let blocks = Blocks::new(MAX_SCORES, planes, queries, keys);
            let rows = blocks.planes_at_once * queries.div_ceil(blocks.query_blocks);
            assert!(rows * keys <= MAX_SCORES, "{blocks:?}");
            assert!(
                rows * keys * 2 > MAX_SCORES.min(planes * queries * keys),
                "{blocks:?}"
            );
        }
        // Beyond, memory grows with the keys alone.
        let blocks = Blocks::new(MAX_SCORES, 2, 1 << 18, 1 << 18);
        assert_eq!(blocks.planes_at_once, 1);
        assert!((1usize << 18).div_ceil(blocks.query_blocks) <= MIN_QUERIES);
    }

    #[test]
    fn gradients_flow_through_blocks() -> Result<()> {
        let (queries, keys) = (300, 140);
        let variables = [queries, keys, keys]
            .into_iter()
            .zip(1..)
            .map(|(tokens, seed)| Ok(Var::from_tensor(&random([2, tokens, 8], seed)?)?))
            .collect::<Result<Vec<_>>>()?;
        let [q, k, v] = variables.as_slice() else {
            return Err(Error::custom("three variables"));
        };
        let mut all = Vec::new();
        for max_scores in [usize::MAX, 140 * keys] {
            let gradients = in_blocks(q, k, v, max_scores)?
                .sqr()?
                .sum_all()?
                .backward()?;
            let of = |x: &Var| {
                let found = gradients.get(x).cloned();
                found.ok_or_else(|| Error::custom("no gradient"))
            };
            all.push([of(q)?, of(k)?, of(v)?]);
        }
        for (whole, blocks) in all[0].iter().zip(&all[1]) {
            let apart = (whole - blocks)?.abs()?.max_all()?.to_scalar::<f32>()?;
            let largest = whole.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(
                largest > 0.0 && apart <= 1e-5 * largest,
                "{apart} of {largest}"
            );
        }
        Ok(())
    }
}
