//! Where a tensor lies in a file.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::element::Element;
use super::floats::Floats;
use super::storage::Storage;
use crate::error::{Error, Result};

/// A tensor's place in a file; its numbers are read when it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    element: Element,
    shape: Vec<usize>,
    /// In elements; `None` if they lie side by side with the last dimension first.
    strides: Option<Vec<usize>>,
    bytes: Range<usize>,
}

impl StoredTensor {
    /// A tensor whose elements lie side by side from byte `start` on.
    ///
    /// The error is what is wrong; `end` bounds the bytes that it may have.
    pub(super) fn contiguous(
        element: Element,
        shape: Vec<usize>,
        start: usize,
        end: usize,
    ) -> Result<Self, String> {
        let needed = element_count(&shape).and_then(|count| element.byte_count(count));
        let needed =
            needed.ok_or_else(|| format!("{element:?} does not come in the shape {shape:?}"))?;
        match start.checked_add(needed) {
            Some(stop) if stop <= end => Ok(Self {
                element,
                shape,
                strides: None,
                bytes: start..stop,
            }),
            _ => Err(format!(
                "{shape:?} of {element:?} needs {needed} bytes at byte {start}, and {} are there",
                end.saturating_sub(start)
            )),
        }
    }

    /// A tensor of steps through the elements that lie from byte `start` to byte `end`, beginning with
    /// element `offset`.
    pub(super) fn strided(
        element: Element,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        storage: Range<usize>,
    ) -> Result<Self, String> {
        let size = element.size().ok_or("blocks have no strides")?;
        let begin = offset
            .checked_mul(size)
            .and_then(|skip| skip.checked_add(storage.start))
            .filter(|&begin| begin <= storage.end)
            .ok_or_else(|| format!("it begins at element {offset}, outside of its storage"))?;
        if is_contiguous(&shape, &strides) {
            return Self::contiguous(element, shape, begin, storage.end);
        }
        let count = element_count(&shape).ok_or_else(|| format!("{shape:?} is too large"))?;
        let reach = shape.iter().zip(&strides).try_fold(0usize, |sum, (n, s)| {
            sum.checked_add(n.saturating_sub(1).checked_mul(*s)?)
        });
        let needed = reach
            .and_then(|last| last.checked_add(1)?.checked_mul(size))
            .and_then(|bytes| bytes.checked_add(begin))
            .filter(|&stop| stop <= storage.end)
            .ok_or_else(|| format!("{shape:?} with strides {strides:?} leaves its storage"))?;
        // Expanded tensors repeat elements: a small file could ask for any amount of memory.
        if count > storage.len() / size {
            return Err(format!(
                "{shape:?} with strides {strides:?} repeats the elements of a smaller storage; save a \
                 contiguous() copy"
            ));
        }
        Ok(Self {
            element,
            shape,
            strides: Some(strides),
            bytes: begin..needed,
        })
    }

    /// The type of its numbers in the file.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Reads it from its file; with `channels_last` preferably in that order.
    pub(super) fn decode(
        &self,
        path: &Path,
        storage: &Storage,
        dtype: DType,
        channels_last: bool,
    ) -> Result<Tensor> {
        let read = || {
            let bytes = storage.read(self.bytes.clone());
            bytes.map_err(|e| Error::io(path, e))
        };
        let gathered = match (&self.strides, self.element.size()) {
            (Some(strides), Some(size)) => {
                let bytes = gather(&read()?, &self.shape, strides, size);
                Some(Storage::Bytes(bytes))
            }
            _ => None,
        };
        let floats = Floats {
            path,
            storage: gathered.as_ref().unwrap_or(storage),
            start: gathered.as_ref().map_or(self.bytes.start, |_| 0),
            element: self.element,
            shape: &self.shape,
        };
        if let Some(tensor) = floats.read(dtype, channels_last) {
            return tensor;
        }
        match &gathered {
            Some(bytes) => self.element.decode(bytes.as_ref(), &self.shape, dtype),
            None => self.element.decode(&read()?, &self.shape, dtype),
        }
    }
}

/// How many elements a shape has. `None` as well where empty dimensions hide ones whose product is too
/// large for anybody who multiplies in another order.
fn element_count(shape: &[usize]) -> Option<usize> {
    let product = |least: usize| {
        shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n.max(least)))
    };
    product(1).and(product(0))
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected = expected.saturating_mul(n);
            fits
        })
}

/// Copies elements to where the last dimension comes first.
fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut copy = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    let mut element = 0;
    for _ in 0..count {
        copy.extend_from_slice(&bytes[element * size..(element + 1) * size]);
        for axis in (0..shape.len()).rev() {
            if index[axis] + 1 < shape[axis] {
                index[axis] += 1;
                element += strides[axis];
                break;
            }
            element -= strides[axis] * index[axis];
            index[axis] = 0;
        }
    }
    copy
}
