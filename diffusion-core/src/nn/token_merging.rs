//! Self-attention over fewer tokens.

use candle_core::{D, DType, Tensor};

use super::{Activation, Linear};
use crate::error::Result;

/// The most similarities that are held at once.
const MAX_SIMILARITIES: usize = 1 << 24;

/// Which tokens of each picture of a batch go together for attention.
///
/// One token of each 2 x 2 stays, the first; of the others those that are most similar to one that stays are averaged
/// with it, and afterwards get what it found. Source: Bolya and Hoffman, "Token Merging for Fast Stable Diffusion",
/// 2023, section 3, without randomness, as A1111 has it.
#[derive(Debug)]
pub(super) struct MergedTokens {
    images: Vec<Groups>,
}

/// The groups of one picture's tokens.
#[derive(Debug)]
struct Groups {
    /// `(tokens)`: the group of each.
    of_tokens: Tensor,
    /// `(groups, 1)`: one over how many there are in each.
    shares: Tensor,
}

impl MergedTokens {
    /// Groups of the tokens of `x`, of pictures of a height and width, such that `ratio` of all have gone into others,
    /// or as many as may. `None` where none does.
    ///
    /// # Shapes
    /// `x`: `(batch, height * width, channels)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shape is another.
    pub(super) fn find(
        x: &Activation,
        (height, width): (usize, usize),
        ratio: f64,
    ) -> Result<Option<Self>> {
        let stays = |token: &u32| {
            let (row, column) = (*token as usize / width, *token as usize % width);
            row % 2 == 0 && column % 2 == 0 && row + 1 < height && column + 1 < width
        };
        let (staying, others): (Vec<u32>, Vec<u32>) = (0..(height * width) as u32).partition(stays);
        let count = ((height * width) as f64 * ratio) as usize;
        let count = count.min(others.len());
        if staying.is_empty() || count == 0 {
            return Ok(None);
        }
        let x = x.to_tensor()?.detach();
        let squares = x.to_dtype(DType::F32)?.sqr()?.sum_keepdim(D::Minus1)?;
        let lengths = squares.sqrt()?.to_dtype(x.dtype())?;
        let directions = x.broadcast_div(&lengths)?;
        let images = (0..x.dim(0)?).map(|image| {
            let directions = directions.get(image)?;
            let (best, nearest) = similar(&directions, &staying, &others)?;
            let mut order: Vec<usize> = (0..others.len()).collect();
            order.sort_by(|&a, &b| best[b].total_cmp(&best[a]));
            let mut groups = vec![0; height * width];
            for (group, &token) in (0..).zip(&staying) {
                groups[token as usize] = group;
            }
            for &other in &order[..count] {
                groups[others[other] as usize] = nearest[other];
            }
            for (group, &other) in (staying.len() as u32..).zip(&order[count..]) {
                groups[others[other] as usize] = group;
            }
            Groups::new(groups, height * width - count, &x)
        });
        let images = images.collect::<Result<_>>()?;
        Ok(Some(Self { images }))
    }

    /// `(batch, tokens, channels)` to the means of groups, `(batch, groups, channels)`.
    pub(super) fn merge(&self, x: &Activation) -> Result<Activation> {
        self.each(x, |image, x| {
            let (groups, _) = image.shares.dims2()?;
            let sums = Tensor::zeros((groups, x.dim(1)?), x.dtype(), x.device())?;
            let sums = sums.index_add(&image.of_tokens, x, 0)?;
            Ok(sums.broadcast_mul(&image.shares)?)
        })
    }

    /// The inverse: each token gets what its group has.
    pub(super) fn unmerge(&self, x: &Activation) -> Result<Activation> {
        self.each(x, |image, x| Ok(x.index_select(&image.of_tokens, 0)?))
    }

    fn each(
        &self,
        x: &Activation,
        change: impl Fn(&Groups, &Tensor) -> Result<Tensor>,
    ) -> Result<Activation> {
        let x = x.to_tensor()?;
        let images = self.images.iter().enumerate();
        let changed = images.map(|(i, image)| change(image, &x.get(i)?));
        let changed = changed.collect::<Result<Vec<_>>>()?;
        Ok(Activation::new(Tensor::stack(&changed, 0)?))
    }
}

impl Groups {
    /// `like` has the device and number format of what is merged.
    fn new(of_tokens: Vec<u32>, groups: usize, like: &Tensor) -> Result<Self> {
        let mut counts = vec![0f32; groups];
        for &group in &of_tokens {
            counts[group as usize] += 1.0;
        }
        let shares = counts.iter().map(|count| count.recip()).collect();
        let shares = Tensor::from_vec(shares, (groups, 1), like.device())?;
        let tokens = of_tokens.len();
        Ok(Self {
            of_tokens: Tensor::from_vec(of_tokens, tokens, like.device())?,
            shares: shares.to_dtype(like.dtype())?,
        })
    }
}

/// For each of `others` the greatest cosine with one of `staying`, and with which.
///
/// `directions`: `(tokens, channels)`, each token of length 1.
fn similar(directions: &Tensor, staying: &[u32], others: &[u32]) -> Result<(Vec<f32>, Vec<u32>)> {
    let device = directions.device();
    let of = |tokens: &[u32]| {
        let tokens = Tensor::from_slice(tokens, tokens.len(), device)?;
        directions.index_select(&tokens, 0)
    };
    let products = Linear::of_matrix(of(staying)?);
    let (mut best, mut nearest) = (Vec::new(), Vec::new());
    for others in others.chunks((MAX_SIMILARITIES / staying.len()).max(1)) {
        let cosines = products
            .forward(&Activation::new(of(others)?))?
            .to_tensor()?;
        let greatest = cosines.max(D::Minus1)?.to_dtype(DType::F32)?;
        best.extend(greatest.to_vec1::<f32>()?);
        nearest.extend(cosines.argmax(D::Minus1)?.to_vec1::<u32>()?);
    }
    Ok((best, nearest))
}
