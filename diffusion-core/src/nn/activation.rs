//! The value that flows between layers.

use candle_core::{DType, Tensor};

use crate::error::Result;

/// Activations inside a model: `(batch, height, width, channels)` for pictures and
/// `(batch, tokens, channels)` for sequences, channels last in both.
///
/// Models use the methods below and the layers of [`nn`](crate::nn), and never name a device.
/// Today the value is a candle tensor; a CPU buffer from a pool of our own can stand beside it
/// without a change to any model.
#[derive(Debug, Clone)]
pub struct Activation {
    tensor: Tensor,
}

impl Activation {
    /// Takes a tensor that is channels-last already, or has no spatial layout.
    pub fn new(tensor: Tensor) -> Self {
        Self { tensor }
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
        Ok(self.tensor.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// The tensor as it is laid out here.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The tensor as it is laid out here.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// The dimensions as laid out here.
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
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
        let (_, height, width, _) = self.tensor.dims4()?;
        Ok((height, width))
    }

    /// The number format of the values.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// The same values in another number format.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device cannot convert.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self::new(self.tensor.to_dtype(dtype)?))
    }

    /// A picture as a sequence of its pixels: `(batch, height * width, channels)`. Free of cost.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if this is not a picture.
    pub fn to_tokens(&self) -> Result<Self> {
        let (batch, height, width, channels) = self.tensor.dims4()?;
        Ok(Self::new(self.tensor.reshape((
            batch,
            height * width,
            channels,
        ))?))
    }

    /// The inverse of [`to_tokens`](Self::to_tokens).
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the number of tokens is not `height * width`.
    pub fn to_picture(&self, height: usize, width: usize) -> Result<Self> {
        let (batch, _, channels) = self.tensor.dims3()?;
        Ok(Self::new(
            self.tensor.reshape((batch, height, width, channels))?,
        ))
    }

    /// The element-wise sum with a value of the same shape.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes differ.
    pub fn add(&self, other: &Self) -> Result<Self> {
        Ok(Self::new((&self.tensor + &other.tensor)?))
    }

    /// The sum with a value of any number format that has one image for all, one pixel for each image, or the
    /// same shape.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn broadcast_add(&self, other: &Self) -> Result<Self> {
        let other = other.tensor.to_dtype(self.dtype())?;
        Ok(Self::new(self.tensor.broadcast_add(&other)?))
    }

    /// `factor * x + offset`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device fails.
    pub fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        Ok(Self::new(self.tensor.affine(factor, offset)?))
    }

    /// Adds one vector an image to each of its pixels.
    ///
    /// # Shapes
    /// `self`: `(batch, height, width, channels)`, `vectors`: `(batch, channels)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn add_vectors(&self, vectors: &Self) -> Result<Self> {
        Ok(Self::new(self.tensor.broadcast_add(&vectors.per_pixel()?)?))
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
        let halves = scale_shift.per_pixel()?.chunk(2, candle_core::D::Minus1)?;
        let scaled = self.tensor.broadcast_mul(&(&halves[0] + 1.0)?)?;
        Ok(Self::new(scaled.broadcast_add(&halves[1])?))
    }

    fn per_pixel(&self) -> Result<Tensor> {
        let (batch, channels) = self.tensor.dims2()?;
        Ok(self.tensor.reshape((batch, 1, 1, channels))?)
    }

    /// Joins two values along their channels.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the other dimensions differ.
    pub fn cat_channels(&self, other: &Self) -> Result<Self> {
        Ok(Self::new(Tensor::cat(
            &[&self.tensor, &other.tensor],
            candle_core::D::Minus1,
        )?))
    }
}
