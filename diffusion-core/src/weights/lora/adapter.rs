//! What an adapter does to one module's weight.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::keys::Slot;
use crate::nn::LowRank;

/// Why an adapter's tensors make no sense, or do not fit a weight.
pub(super) type Reason = String;

/// An adapter of one module. Convolutions are matrices here too, `(output, input * height * width)`.
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    change: Option<Change>,
    /// `alpha / rank`.
    scale: f64,
    dora: Option<Dora>,
    bias: Option<Tensor>,
}

/// DoRA's lengths: of each output's kernel, `(output, ...)`, or of each input's, `(1, input, ...)`. The two
/// programs that write them differ in what the strength scales.
///
/// Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, equation 5.
#[derive(Debug, Clone)]
enum Dora {
    /// The low-rank change, in front of the norm.
    Peft(Tensor),
    /// The whole change, also in ComfyUI.
    Lycoris(Tensor),
}

/// The change of a weight `(output, input)`.
#[derive(Debug, Clone)]
enum Change {
    /// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
    Lora(Product),
    /// Two products multiplied element by element. Source: Hyeon-Woo et al., "FedPara", 2021.
    Loha(Product, Product),
    /// The Kronecker product of two factors. Source: Yeh et al., "Navigating Text-To-Image Customization",
    /// 2023, section 3.
    Lokr(Factor, Factor),
    /// The change itself.
    Full(Tensor),
}

/// `left right`, of `(output, rank)` and `(rank, input)`; or, as a Tucker decomposition of kernels, with a core
/// `(rank, rank, height, width)` between them.
#[derive(Debug, Clone)]
struct Product {
    left: Tensor,
    core: Option<Tensor>,
    right: Tensor,
}

/// One factor of LoKr.
#[derive(Debug, Clone)]
enum Factor {
    Whole(Tensor),
    Product(Product),
}

/// How an adapter's scale follows from its rank where the file has no `alpha`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DefaultAlpha {
    pub(super) alpha: f64,
    /// The rank of adapters whose tensors have none, since they are not decomposed.
    pub(super) rank: Option<f64>,
    /// PEFT's rank-stabilised scale `alpha / sqrt(rank)`.
    pub(super) rank_stabilised: bool,
}

impl DefaultAlpha {
    fn scale(&self, rank: Option<f64>) -> f64 {
        match (rank.or(self.rank), self.rank_stabilised) {
            (Some(rank), true) => self.alpha / rank.sqrt(),
            (Some(rank), false) => self.alpha / rank,
            (None, _) => 1.0,
        }
    }
}

impl Adapter {
    /// Joins the tensors of a module, all f32. `default_alpha` stands in for a missing `alpha`; without
    /// either the scale is 1.
    pub(super) fn new(
        mut slots: HashMap<Slot, Tensor>,
        default_alpha: Option<DefaultAlpha>,
    ) -> Result<Self, Reason> {
        let alpha = slots.remove(&Slot::Alpha).map(|t| number(&t)).transpose()?;
        let per_output = slots.remove(&Slot::Magnitude).map(|t| t.flatten_all());
        let dora = match per_output.transpose().map_err(|e| e.to_string())? {
            Some(lengths) => Some(Dora::Peft(lengths)),
            None => slots.remove(&Slot::DoraScale).map(Dora::Lycoris),
        };
        let bias = slots.remove(&Slot::DiffBias);
        let change = Change::new(&mut slots)?;
        if !slots.is_empty() {
            return Err(format!(
                "tensors without those that belong to them: {:?}",
                slots.keys()
            ));
        }
        if dora.is_some() && change.is_none() {
            return Err("a DoRA scale without an adapter".into());
        }
        let rank = change
            .as_ref()
            .and_then(Change::rank)
            .map(|rank| rank as f64);
        let scale = match (rank, alpha, default_alpha) {
            (Some(rank), Some(alpha), _) => alpha / rank,
            (rank, None, Some(default)) => default.scale(rank),
            _ => 1.0,
        };
        match scale.is_finite() {
            true => Ok(Self {
                change,
                scale,
                dora,
                bias,
            }),
            false => Err(format!("its scale is {scale}")),
        }
    }

    /// The width of the input of the layer that it was made for, if it changes a weight.
    pub(super) fn input_width(&self) -> Option<usize> {
        self.change.as_ref().map(|change| change.size().1)
    }

    /// What people call it.
    pub(super) fn kind(&self) -> &'static str {
        match (&self.change, &self.dora) {
            (Some(_), Some(_)) => "DoRA",
            (Some(Change::Lora(_)), None) => "LoRA",
            (Some(Change::Loha(..)), None) => "LoHa",
            (Some(Change::Lokr(..)), None) => "LoKr",
            (Some(Change::Full(_)) | None, _) => "differences of weights",
        }
    }

    /// Whether there is anything to it but numbers beside missing tensors.
    pub(super) fn does_something(&self) -> bool {
        self.change.is_some() || self.bias.is_some()
    }

    /// What it adds, at the strength `scale`, to a module's weight `(output, input, ...)`, f32.
    pub(super) fn weight_delta(
        &self,
        base: Option<&Tensor>,
        scale: f64,
    ) -> Result<Option<Tensor>, Reason> {
        let Some((change, base)) = self.change.as_ref().zip(base) else {
            return Ok(None);
        };
        let dims = base.dims();
        change.check_size(dims)?;
        let delta = change
            .matrix(base.device())
            .and_then(|delta| delta.reshape(dims)? * self.scale)
            .map_err(|e| e.to_string())?;
        let scaled = |delta: Tensor| (delta * scale).map_err(|e| e.to_string());
        match &self.dora {
            None => scaled(delta),
            Some(Dora::Peft(lengths)) => decompose(base, &scaled(delta)?, lengths),
            Some(Dora::Lycoris(lengths)) => scaled(decompose(base, &delta, lengths)?),
        }
        .map(Some)
    }

    /// The same as matrices beside the weight, if it is nothing but a product of two.
    pub(super) fn low_rank(&self, weight: &Tensor, scale: f64) -> Result<Option<LowRank>, Reason> {
        let Self {
            change: Some(change @ Change::Lora(product)),
            dora: None,
            bias: None,
            ..
        } = self
        else {
            return Ok(None);
        };
        change.check_size(weight.dims())?;
        if product.core.is_some() {
            return Ok(None);
        }
        let matrices = || -> candle_core::Result<LowRank> {
            let mut kernels = weight.dims().to_vec();
            kernels[0] = product.rank();
            let device = weight.device();
            Ok(LowRank {
                down: product.right.to_device(device)?.reshape(kernels)?,
                up: (product.left.to_device(device)? * (self.scale * scale))?,
            })
        };
        matrices().map(Some).map_err(|e| e.to_string())
    }

    /// What it adds to a module's bias `(output)`, f32.
    pub(super) fn bias_delta(
        &self,
        base: Option<&Tensor>,
        scale: f64,
    ) -> Result<Option<Tensor>, Reason> {
        let Some(bias) = &self.bias else {
            return Ok(None);
        };
        let expected = base.map(Tensor::dims);
        match base {
            Some(base) if bias.dims() == base.dims() => {
                let delta = bias.to_device(base.device()).and_then(|bias| bias * scale);
                delta.map(Some).map_err(|e| e.to_string())
            }
            _ => Err(format!(
                "changes a bias of {:?}, the model's has {expected:?}",
                bias.dims()
            )),
        }
    }
}

/// DoRA: the changed kernels, each brought to its learned length, less the base.
fn decompose(base: &Tensor, delta: &Tensor, magnitude: &Tensor) -> Result<Tensor, Reason> {
    let dims = base.dims();
    let (output, input) = (dims[0], dims.get(1).copied().unwrap_or(1));
    let by_input = magnitude.rank() > 1 && magnitude.dims()[0] == 1 && output != 1;
    let mut shape = vec![1; dims.len()];
    // Older files of LyCORIS have a length for each input channel.
    let kept = usize::from(by_input);
    shape[kept] = if by_input { input } else { output };
    if magnitude.elem_count() != shape[kept] {
        let found = magnitude.dims();
        return Err(format!(
            "has DoRA scales of {found:?}, the model's weight has {dims:?}"
        ));
    }
    let decomposed = || -> candle_core::Result<Tensor> {
        let changed = (base + delta)?;
        let mut squares = changed.sqr()?;
        for dim in (0..dims.len()).filter(|&dim| dim != kept) {
            squares = squares.sum_keepdim(dim)?;
        }
        let magnitude = magnitude.to_device(base.device())?.reshape(shape)?;
        // Kernels of zeros stay zeros.
        let factor = magnitude.div(&(squares.sqrt()? + f64::from(f32::EPSILON))?)?;
        changed.broadcast_mul(&factor)? - base
    };
    decomposed().map_err(|e| e.to_string())
}

impl Change {
    fn new(slots: &mut HashMap<Slot, Tensor>) -> Result<Option<Self>, Reason> {
        if let Some(diff) = slots.remove(&Slot::Diff) {
            return Ok(Some(Self::Full(matrix(&diff)?)));
        }
        if let Some(lora) = Product::new(slots, Slot::Up, Some(Slot::Mid), Slot::Down)? {
            return Ok(Some(Self::Lora(lora)));
        }
        let loha = (
            Product::new(slots, Slot::Hada1A, Some(Slot::Hada1Core), Slot::Hada1B)?,
            Product::new(slots, Slot::Hada2A, Some(Slot::Hada2Core), Slot::Hada2B)?,
        );
        let lokr = (
            Factor::new(slots, Slot::Kron1, (Slot::Kron1A, None, Slot::Kron1B))?,
            Factor::new(
                slots,
                Slot::Kron2,
                (Slot::Kron2A, Some(Slot::Kron2Core), Slot::Kron2B),
            )?,
        );
        match (loha, lokr) {
            ((None, None), (None, None)) => Ok(None),
            ((Some(first), Some(second)), (None, None)) if first.size() == second.size() => {
                Ok(Some(Self::Loha(first, second)))
            }
            ((None, None), (Some(first), Some(second))) => Ok(Some(Self::Lokr(first, second))),
            _ => Err("its two halves are not there or do not fit together".into()),
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Self::Lora(product) | Self::Loha(product, _) => Some(product.rank()),
            Self::Lokr(_, Factor::Product(product)) | Self::Lokr(Factor::Product(product), _) => {
                Some(product.rank())
            }
            Self::Lokr(Factor::Whole(_), Factor::Whole(_)) | Self::Full(_) => None,
        }
    }

    /// `(output, input)`, before anything of this size is computed.
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Lora(product) | Self::Loha(product, _) => product.size(),
            Self::Lokr(first, second) => {
                let ((a, b), (c, d)) = (first.size(), second.size());
                (a.saturating_mul(c), b.saturating_mul(d))
            }
            Self::Full(diff) => size(diff),
        }
    }

    fn check_size(&self, dims: &[usize]) -> Result<(), Reason> {
        let (output, input) = self.size();
        match dims.first() == Some(&output) && dims.iter().skip(1).product::<usize>() == input {
            true => Ok(()),
            false => Err(format!(
                "changes {output} x {input} numbers, the model's weight has {dims:?}"
            )),
        }
    }

    fn matrix(&self, device: &Device) -> candle_core::Result<Tensor> {
        match self {
            Self::Lora(product) => product.matrix(device),
            Self::Loha(first, second) => first.matrix(device)? * second.matrix(device)?,
            Self::Lokr(first, second) => kronecker(&first.matrix(device)?, &second.matrix(device)?),
            Self::Full(diff) => diff.to_device(device),
        }
    }
}

impl Product {
    /// Takes the tensors of a product out of `slots`, if they are there.
    fn new(
        slots: &mut HashMap<Slot, Tensor>,
        left: Slot,
        core: Option<Slot>,
        right: Slot,
    ) -> Result<Option<Self>, Reason> {
        let is_lora = left == Slot::Up;
        let (Some(left), Some(right)) = (slots.remove(&left), slots.remove(&right)) else {
            return Ok(None);
        };
        let core = core.and_then(|core| slots.remove(&core));
        let (mut left, right) = (matrix(&left)?, matrix(&right)?);
        if core.is_some() && !is_lora {
            // LyCORIS writes the left side of a core with the rank first.
            left = left.t().map_err(|e| e.to_string())?;
        }
        let (left_rank, right_rank) = (size(&left).1, size(&right).0);
        let fits = match &core {
            Some(core) => core.rank() == 4 && core.dims()[..2] == [left_rank, right_rank],
            None => left_rank == right_rank,
        };
        match fits && right_rank > 0 {
            true => Ok(Some(Self { left, core, right })),
            false => {
                let core = core.as_ref().map(Tensor::dims);
                Err(format!(
                    "its ranks do not fit: {left_rank} and {right_rank}, core {core:?}"
                ))
            }
        }
    }

    fn rank(&self) -> usize {
        size(&self.right).0
    }

    fn size(&self) -> (usize, usize) {
        let kernel: usize = self
            .core
            .iter()
            .flat_map(|core| &core.dims()[2..])
            .product();
        (
            size(&self.left).0,
            size(&self.right).1.saturating_mul(kernel),
        )
    }

    fn matrix(&self, device: &Device) -> candle_core::Result<Tensor> {
        let (left, right) = (self.left.to_device(device)?, self.right.to_device(device)?);
        let Some(core) = &self.core else {
            return left.matmul(&right);
        };
        let (left_rank, right_rank, height, width) = core.dims4()?;
        let (output, input, kernel) = (left.dim(0)?, right.dim(1)?, height * width);
        let core = core.to_device(device)?;
        // The cheaper side first: the numbers in between are then no more than the result's or the core's.
        let from_left = output as u128 * right_rank as u128 <= left_rank as u128 * input as u128;
        let kernels = match from_left {
            true => left
                .contiguous()?
                .matmul(&core.flatten_from(1)?)?
                .reshape((output, right_rank, kernel))?
                .transpose(1, 2)?
                .reshape((output * kernel, right_rank))?
                .matmul(&right)?
                .reshape((output, kernel, input))?,
            false => {
                let inner = core
                    .reshape((left_rank, right_rank, kernel))?
                    .transpose(1, 2)?
                    .reshape((left_rank * kernel, right_rank))?
                    .matmul(&right)?
                    .reshape((left_rank, kernel * input))?;
                let kernels = left.contiguous()?.matmul(&inner)?;
                kernels.reshape((output, kernel, input))?
            }
        };
        kernels.transpose(1, 2)?.reshape((output, input * kernel))
    }
}

impl Factor {
    fn new(
        slots: &mut HashMap<Slot, Tensor>,
        whole: Slot,
        (left, core, right): (Slot, Option<Slot>, Slot),
    ) -> Result<Option<Self>, Reason> {
        match slots.remove(&whole) {
            Some(whole) => Ok(Some(Self::Whole(matrix(&whole)?))),
            None => Ok(Product::new(slots, left, core, right)?.map(Self::Product)),
        }
    }

    fn size(&self) -> (usize, usize) {
        match self {
            Self::Whole(whole) => size(whole),
            Self::Product(product) => product.size(),
        }
    }

    fn matrix(&self, device: &Device) -> candle_core::Result<Tensor> {
        match self {
            Self::Whole(whole) => whole.to_device(device),
            Self::Product(product) => product.matrix(device),
        }
    }
}

/// Every element of `a` times all of `b`.
fn kronecker(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let ((a_rows, a_columns), (b_rows, b_columns)) = (a.dims2()?, b.dims2()?);
    a.reshape((a_rows, 1, a_columns, 1))?
        .broadcast_mul(&b.reshape((1, b_rows, 1, b_columns))?)?
        .reshape((a_rows * b_rows, a_columns * b_columns))
}

/// A weight `(output, ...)` as `(output, everything else)`.
fn matrix(weight: &Tensor) -> Result<Tensor, Reason> {
    let matrix = match weight.rank() {
        0 => return Err("a tensor without dimensions where a weight should be".into()),
        1 => weight.unsqueeze(1),
        _ => weight.flatten_from(1),
    };
    matrix.map_err(|e| e.to_string())
}

/// Rows and columns of what [`matrix`] made.
fn size(matrix: &Tensor) -> (usize, usize) {
    (matrix.dims()[0], matrix.dims()[1])
}

fn number(tensor: &Tensor) -> Result<f64, Reason> {
    match tensor
        .flatten_all()
        .and_then(|t| t.to_vec1::<f32>())
        .as_deref()
    {
        Ok([value]) => Ok(f64::from(*value)),
        _ => Err(format!(
            "its alpha has the shape {:?}, expected one number",
            tensor.dims()
        )),
    }
}
