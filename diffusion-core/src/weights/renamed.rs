//! Tensors of other sources under new names, laid out as diffusers has them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::keys::Form;
use crate::error::{Error, Result};
use crate::nn::{TensorSource, channels_last, missing_tensor};

/// Where a tensor is and how it lies there.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Which of the checkpoint's sources has it.
    pub(super) source: usize,
    /// Its name there.
    pub(super) name: String,
    pub(super) form: Form,
    /// The tensor of one number that it is to be multiplied by, as ComfyUI has them beside float8.
    pub(super) scale: Option<String>,
}

impl Entry {
    pub(super) fn unchanged(source: usize, name: &str) -> Self {
        Self {
            source,
            name: name.to_owned(),
            form: Form::Same,
            scale: None,
        }
    }
}

/// One component of a [`Checkpoint`](super::Checkpoint) under diffusers' names. Nothing is read before it is
/// asked for.
pub struct RenamedTensors<'a> {
    pub(super) sources: &'a [Box<dyn TensorSource>],
    pub(super) entries: &'a BTreeMap<String, Entry>,
}

impl RenamedTensors<'_> {
    fn entry(&self, name: &str) -> Option<(&Entry, &dyn TensorSource)> {
        let entry = self.entries.get(name)?;
        Some((entry, self.sources.get(entry.source)?.as_ref()))
    }
}

impl TensorSource for RenamedTensors<'_> {
    fn name(&self) -> String {
        // The entries of a component are mostly of one source; TAESD's are of two.
        let mut used: Vec<usize> = self.entries.values().map(|entry| entry.source).collect();
        used.sort_unstable();
        used.dedup();
        let names: Vec<_> = used.iter().map(|&i| self.sources[i].name()).collect();
        names.join(", ")
    }

    fn tensor_names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (entry, source) = self.entry(name)?;
        Some(entry.form.shape(source.shape(&entry.name)?))
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let found = self.entry(name);
        let (entry, source) = found.ok_or_else(|| missing_tensor(self.name(), name))?;
        let Some(scale) = &entry.scale else {
            return entry.form.apply(source.load(&entry.name, dtype, device)?);
        };
        let place = source.name();
        if !source
            .dtype(&entry.name)
            .is_none_or(|dtype| dtype.is_float())
        {
            return Err(Error::unsupported(
                format!("{place}: {}, whole numbers with a scale", entry.name),
                "of scaled weights float8 is; take the model in it or in f16",
            ));
        }
        let factors = source.load(scale, DType::F64, &Device::Cpu)?;
        let [factor] = factors.flatten_all()?.to_vec1::<f64>()?[..] else {
            let found = factors.dims();
            let reason =
                format!("{scale}: expected one number for the whole weight, found {found:?}");
            return Err(Error::format(Path::new(&place), reason));
        };
        let scaled = (source.load(&entry.name, DType::F32, device)? * factor)?;
        entry.form.apply(scaled.to_dtype(dtype)?)
    }

    fn load_channels_last(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.entry(name) {
            Some((entry, source)) if entry.form == Form::Same && entry.scale.is_none() => {
                source.load_channels_last(&entry.name, dtype, device)
            }
            _ => channels_last(self.load(name, dtype, device)?),
        }
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        let (entry, source) = self.entry(name)?;
        source.dtype(&entry.name)
    }
}

impl Form {
    /// diffusers' shape of a tensor that has `original` in the original file.
    fn shape(self, mut original: Vec<usize>) -> Vec<usize> {
        match (self, original.as_mut_slice()) {
            (Self::Transposed, shape) => shape.reverse(),
            (Self::Pointwise, [_, _, rest @ ..]) if rest.iter().all(|&n| n == 1) => {
                original.truncate(2);
            }
            (Self::Third(_), [first, ..]) if first.is_multiple_of(3) => *first /= 3,
            _ => {}
        }
        original
    }

    fn apply(self, original: Tensor) -> Result<Tensor> {
        let shape = self.shape(original.dims().to_vec());
        Ok(match self {
            Self::Same => original,
            Self::Transposed => original.t()?.contiguous()?,
            Self::Pointwise => original.reshape(shape)?,
            // A copy, or each third would keep the memory of all three.
            Self::Third(index) => original
                .narrow(0, index * shape[0], shape[0])?
                .force_contiguous()?,
        })
    }

    /// The original file's shape of a tensor of diffusers'.
    pub(super) fn reverted_shape(self, mut shape: Vec<usize>) -> Vec<usize> {
        match (self, shape.as_mut_slice()) {
            (Self::Transposed, [_, _]) => shape.reverse(),
            (Self::Pointwise, [_, _]) => shape.extend([1, 1]),
            (Self::Third(_), [first, ..]) => *first = first.saturating_mul(3),
            _ => {}
        }
        shape
    }

    /// The original file's tensor of one of diffusers'; thirds are joined elsewhere.
    pub(super) fn revert(self, tensor: Tensor) -> Result<Tensor> {
        Ok(match (self, tensor.rank()) {
            (Self::Transposed, 2) => tensor.t()?.contiguous()?,
            (Self::Pointwise, 2) => tensor.unsqueeze(2)?.unsqueeze(3)?,
            _ => tensor,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_change_shape_and_numbers_alike() -> Result<()> {
        let matrix = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((6, 2))?;
        for form in [
            Form::Same,
            Form::Transposed,
            Form::Third(1),
            Form::Pointwise,
        ] {
            let applied = form.apply(matrix.clone())?;
            assert_eq!(applied.dims(), form.shape(vec![6, 2]));
        }
        let third = Form::Third(2).apply(matrix.clone())?;
        assert_eq!(third.to_vec2::<f32>()?, [[8.0, 9.0], [10.0, 11.0]]);
        let turned = Form::Transposed.apply(matrix.clone())?;
        let back = Form::Transposed.revert(turned)?;
        assert_eq!(back.to_vec2::<f32>()?, matrix.to_vec2::<f32>()?);
        let conv = Form::Pointwise.revert(matrix.clone())?;
        assert_eq!(conv.dims(), [6, 2, 1, 1]);
        assert_eq!(Form::Pointwise.apply(conv)?.dims(), [6, 2]);
        // What cannot be cut in three keeps its shape, which the model then reports.
        assert_eq!(Form::Third(0).shape(vec![7, 2]), [7, 2]);
        Ok(())
    }
}
