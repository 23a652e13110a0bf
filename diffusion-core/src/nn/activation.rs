//! The value that flows between layers.

use candle_core::{DType, Tensor};

use super::array::Array;
use super::engine;
use crate::error::{Error, Result};

/// Activations inside a model: `(batch, height, width, channels)` for pictures and
/// `(batch, tokens, channels)` for sequences, channels last in both.
///
/// Models use the methods below and the layers of [`nn`](crate::nn), and never name a device. On the CPU the layers
/// turn a tensor of f32 into memory of their own, which comes back to them when it is dropped, unless a gradient is
/// asked for: where the input or a weight is a variable, or made of one, all that follows is a tensor.
#[derive(Debug, Clone)]
pub struct Activation {
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Tensor(Tensor),
    Array(Array),
}

impl Activation {
    /// Takes a tensor that is channels-last already, or has no spatial layout.
    pub fn new(tensor: Tensor) -> Self {
        Self {
            value: Value::Tensor(tensor),
        }
    }

    pub(super) fn from_array(array: Array) -> Self {
        Self {
            value: Value::Array(array),
        }
    }

    /// Memory of the layers' own, if this is that or may become it.
    pub(super) fn array(&self) -> Result<Option<Array>> {
        match &self.value {
            Value::Array(array) => Ok(Some(array.clone())),
            Value::Tensor(tensor) => Array::from_tensor(tensor),
        }
    }

    /// Memory of the layers' own, if this is that.
    pub(super) fn array_mut(&mut self) -> Option<&mut Array> {
        match &mut self.value {
            Value::Array(array) => Some(array),
            Value::Tensor(_) => None,
        }
    }

    /// From the public layout.
    ///
    /// # Shapes
    /// `images`: `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the tensor has another rank.
    pub fn from_nchw(images: &Tensor) -> Result<Self> {
        Ok(Self::new(images.permute((0, 2, 3, 1))?.contiguous()?))
    }

    /// To the public layout, `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if this is not a picture.
    pub fn to_nchw(&self) -> Result<Tensor> {
        Ok(self.to_tensor()?.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// As a tensor, laid out as here.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if there is no memory for a copy.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.value {
            Value::Tensor(tensor) => Ok(tensor.clone()),
            Value::Array(array) => array.to_tensor(),
        }
    }

    /// The dimensions as laid out here.
    pub fn dims(&self) -> &[usize] {
        match &self.value {
            Value::Tensor(tensor) => tensor.dims(),
            Value::Array(array) => array.dims(),
        }
    }

    /// The number of channels, the last dimension.
    pub fn channels(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// `(height, width)` of a picture.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if this is not a picture.
    pub fn size(&self) -> Result<(usize, usize)> {
        match self.dims() {
            [_, height, width, _] => Ok((*height, *width)),
            found => Err(rank(4, found)),
        }
    }

    /// The number format of the values.
    pub fn dtype(&self) -> DType {
        match &self.value {
            Value::Tensor(tensor) => tensor.dtype(),
            Value::Array(_) => DType::F32,
        }
    }

    /// The same values in another number format.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device cannot convert.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        match &self.value {
            Value::Array(_) if dtype == DType::F32 => Ok(self.clone()),
            _ => Ok(Self::new(self.to_tensor()?.to_dtype(dtype)?)),
        }
    }

    /// A picture as a sequence of its pixels: `(batch, height * width, channels)`. Free of cost.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if this is not a picture.
    pub fn to_tokens(&self) -> Result<Self> {
        match self.dims() {
            [batch, height, width, channels] => {
                self.reshape(vec![*batch, height * width, *channels])
            }
            found => Err(rank(4, found)),
        }
    }

    /// The inverse of [`to_tokens`](Self::to_tokens).
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the number of tokens is not `height * width`.
    pub fn to_picture(&self, height: usize, width: usize) -> Result<Self> {
        match self.dims() {
            [batch, _, channels] => self.reshape(vec![*batch, height, width, *channels]),
            found => Err(rank(3, found)),
        }
    }

    fn reshape(&self, dims: Vec<usize>) -> Result<Self> {
        match &self.value {
            Value::Array(array) if array.len() == dims.iter().product::<usize>() => {
                Ok(Self::from_array(array.reshaped(dims)))
            }
            _ => Ok(Self::new(self.to_tensor()?.reshape(dims)?)),
        }
    }

    /// Some images of the batch.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if they are not there.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self::new(self.to_tensor()?.narrow(0, start, len)?))
    }

    /// Joins batches.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the other dimensions differ, or there are none.
    pub fn cat(parts: &[Self]) -> Result<Self> {
        let parts: Vec<Tensor> = parts.iter().map(Self::to_tensor).collect::<Result<_>>()?;
        Ok(Self::new(Tensor::cat(&parts, 0)?))
    }

    /// The element-wise sum with a value of the same shape.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes differ.
    pub fn add(&self, other: &Self) -> Result<Self> {
        if let Some(sum) = engine::add(self, other)? {
            return Ok(sum);
        }
        Ok(Self::new((self.to_tensor()? + other.to_tensor()?)?))
    }

    /// The sum with a value of any number format that has one image for all, one pixel for each image, or the
    /// same shape.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn broadcast_add(&self, other: &Self) -> Result<Self> {
        let other = other.to_tensor()?.to_dtype(self.dtype())?;
        Ok(Self::new(self.to_tensor()?.broadcast_add(&other)?))
    }

    /// `factor * x + offset`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device fails.
    pub fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        Ok(Self::new(self.to_tensor()?.affine(factor, offset)?))
    }

    /// Adds one vector an image to each of its pixels.
    ///
    /// # Shapes
    /// `self`: `(batch, height, width, channels)`, `vectors`: `(batch, channels)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn add_vectors(&self, vectors: &Self) -> Result<Self> {
        if let Some(sum) = engine::add_vectors(self, vectors)? {
            return Ok(sum);
        }
        let vectors = per_pixel(vectors)?;
        Ok(Self::new(self.to_tensor()?.broadcast_add(&vectors)?))
    }

    /// `x * (1 + scale) + shift` with one scale and one shift a channel of each image.
    ///
    /// # Shapes
    /// `self`: `(batch, height, width, channels)`, `scale_shift`: `(batch, 2 * channels)`, the
    /// scales first.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn modulate(&self, scale_shift: &Self) -> Result<Self> {
        let halves = per_pixel(scale_shift)?.chunk(2, candle_core::D::Minus1)?;
        let scaled = self.to_tensor()?.broadcast_mul(&(&halves[0] + 1.0)?)?;
        Ok(Self::new(scaled.broadcast_add(&halves[1])?))
    }

    /// Joins two values along their channels.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the other dimensions differ.
    pub fn cat_channels(&self, other: &Self) -> Result<Self> {
        if let Some(joined) = engine::cat_channels(self, other)? {
            return Ok(joined);
        }
        Ok(Self::new(Tensor::cat(
            &[self.to_tensor()?, other.to_tensor()?],
            candle_core::D::Minus1,
        )?))
    }
}

fn per_pixel(vectors: &Activation) -> Result<Tensor> {
    let tensor = vectors.to_tensor()?;
    let (batch, channels) = tensor.dims2()?;
    Ok(tensor.reshape((batch, 1, 1, channels))?)
}

fn rank(expected: usize, found: &[usize]) -> Error {
    candle_core::Error::UnexpectedNumberOfDims {
        expected,
        got: found.len(),
        shape: found.into(),
    }
    .into()
}
