//! Where layers get their weights from.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{LowRank, LowRanks, Quantization, Seamless, Weight};
use crate::error::{Error, Result, ShapeMismatch, WeightsError};

/// A named set of tensors: a file, several files, or a map in memory.
pub trait TensorSource {
    /// What errors call this source: a file name or the like.
    fn name(&self) -> String;

    /// The names of all tensors.
    fn tensor_names(&self) -> Vec<String>;

    /// The shape of a tensor, or `None` if there is none of that name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Reads a tensor, converted to `dtype` and placed on `device`.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights) if there is no such tensor, or the reader's own.
    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor>;

    /// [`load`](Self::load) of a convolution's `(output, input, height, width)` with the input last in memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn load_channels_last(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        channels_last(self.load(name, dtype, device)?)
    }

    /// The number format that a tensor is stored in, where the source knows one that tensors can have.
    fn dtype(&self, _name: &str) -> Option<DType> {
        None
    }

    /// How the weights of layers are to be held. Default: as tensors.
    fn quantization(&self) -> Option<Quantization> {
        None
    }

    /// A weight that the source holds in fewer bits. Default: none.
    fn quantized(&self, _name: &str) -> Option<Weight> {
        None
    }

    /// What is added to a layer where it runs. Default: nothing.
    fn low_rank(&self, _layer: &str) -> Vec<LowRank> {
        Vec::new()
    }

    /// How convolutions treat the sides of pictures. Default: zeros are around them.
    fn seamless(&self) -> Seamless {
        Seamless::NONE
    }

    /// Free text that the source carries beside its tensors, by name. Default: none.
    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// The same tensor with its second dimension last in memory. Copies nothing where it is so already.
pub(crate) fn channels_last(weight: Tensor) -> Result<Tensor> {
    if weight.rank() != 4 {
        return Ok(weight);
    }
    let laid_out = weight.permute((0, 2, 3, 1))?.contiguous()?;
    Ok(laid_out.permute((0, 3, 1, 2))?)
}

/// Tensors by name.
pub type NamedTensors = HashMap<String, Tensor>;

/// What a model was built from: its tensors by the names of its checkpoint and in the checkpoint's shapes.
/// They share their memory with the layers, so a model can be built anew from them, some replaced, at no cost.
#[derive(Debug, Clone)]
pub struct Weights {
    tensors: Arc<NamedTensors>,
    /// Of the tensors that are whole numbers.
    scales: Arc<NamedTensors>,
    quantization: Option<Quantization>,
    low_rank: Arc<LowRanks>,
    seamless: Seamless,
    dtype: DType,
    device: Device,
}

impl Weights {
    /// Weights of a model that is not built.
    pub fn new(tensors: NamedTensors, dtype: DType, device: Device) -> Self {
        let tensors = Arc::new(tensors);
        Self {
            tensors,
            scales: Arc::default(),
            quantization: None,
            low_rank: Arc::default(),
            seamless: Seamless::NONE,
            dtype,
            device,
        }
    }

    /// The tensors. Those of layers that hold their weights in fewer bits are u8; see [`tensor`](Self::tensor).
    pub fn tensors(&self) -> &NamedTensors {
        &self.tensors
    }

    /// A tensor in numbers of a format.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no memory for it.
    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Option<Tensor>> {
        if let Some(weight) = self.quantized(name) {
            return weight.to_dtype(dtype).map(Some);
        }
        let found = self.tensors.get(name);
        Ok(found.map(|tensor| tensor.to_dtype(dtype)).transpose()?)
    }

    /// The number format that they are held in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What is added to layers where they run.
    pub fn low_rank(&self) -> &LowRanks {
        &self.low_rank
    }

    /// The same weights, for a model whose pictures go on at their opposite side.
    pub fn with_seamless(&self, seamless: Seamless) -> Self {
        Self {
            seamless,
            ..self.clone()
        }
    }

    /// The same weights with changes.
    pub fn changed(&self, changes: WeightChanges) -> Self {
        let mut changed = self.clone();
        if !changed.scales.is_empty() {
            let is_kept = |name: &String| !changes.tensors.contains_key(name);
            Arc::make_mut(&mut changed.scales).retain(|name, _| is_kept(name));
        }
        Arc::make_mut(&mut changed.tensors).extend(changes.tensors);
        Arc::make_mut(&mut changed.low_rank).extend(changes.low_rank);
        changed
    }
}

/// What a model shall have in place of its weights, or beside them.
#[derive(Debug, Clone, Default)]
pub struct WeightChanges {
    /// Weights in place of those of the same names and shapes.
    pub tensors: NamedTensors,
    /// What is added to layers where they run.
    pub low_rank: LowRanks,
}

impl From<NamedTensors> for WeightChanges {
    fn from(tensors: NamedTensors) -> Self {
        Self {
            tensors,
            ..Self::default()
        }
    }
}

impl TensorSource for Weights {
    fn name(&self) -> String {
        TensorSource::name(&*self.tensors)
    }

    fn tensor_names(&self) -> Vec<String> {
        self.tensors.tensor_names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.shape(name)
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.quantized(name) {
            Some(weight) => Ok(weight.to_dtype(dtype)?.to_device(device)?),
            None => self.tensors.load(name, dtype, device),
        }
    }

    fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    fn quantized(&self, name: &str) -> Option<Weight> {
        let values = self.tensors.get(name)?.clone();
        let scales = self.scales.get(name)?.clone();
        Some(Weight::from_parts(values, scales))
    }

    fn low_rank(&self, layer: &str) -> Vec<LowRank> {
        self.low_rank.get(layer).cloned().unwrap_or_default()
    }

    fn seamless(&self) -> Seamless {
        self.seamless
    }
}

/// Tensors in memory. Variables stay variables, so that a model built from them can be trained.
impl TensorSource for NamedTensors {
    fn name(&self) -> String {
        "tensors in memory".into()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.get(name).map(|tensor| tensor.dims().to_vec())
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self
            .get(name)
            .ok_or_else(|| missing(TensorSource::name(self), name))?;
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.get(name).map(Tensor::dtype)
    }
}

pub(crate) fn missing(source_name: String, name: &str) -> Error {
    let missing = vec![name.to_owned()];
    Error::Weights(Box::new(WeightsError {
        source_name,
        missing,
        ..Default::default()
    }))
}

/// As many tensors are missing where a configuration asks for absurdly many layers.
const MAX_MISSING: usize = 10_000;

/// What a model's construction asked for so far.
#[derive(Default)]
struct Record {
    used: BTreeSet<String>,
    loaded: NamedTensors,
    scales: NamedTensors,
    low_rank: LowRanks,
    report: WeightsError,
}

struct Root<'a> {
    source: &'a dyn TensorSource,
    dtype: DType,
    device: &'a Device,
    record: RefCell<Record>,
}

/// A place in a tree of weights, handed down while a model is built.
///
/// A tensor that is missing or misshapen does not stop the construction: it is noted, zeros stand in,
/// and [`build`](Params::build) reports all of them at once.
#[derive(Clone, Copy)]
pub struct Params<'a> {
    root: &'a Root<'a>,
    path: &'a str,
}

impl Params<'_> {
    /// Builds a model from all of `source`'s tensors.
    ///
    /// `ignored` names tensors, by their last part or a leading part that ends in a dot, which real
    /// checkpoints carry and no model reads.
    ///
    /// # Errors
    /// [`Error::Weights`] with every missing, misshapen and unexpected tensor, or what `model` returns.
    pub fn build<M>(
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
        ignored: &[&str],
        model: impl FnOnce(Params<'_>) -> Result<M>,
    ) -> Result<M> {
        let root = Root {
            source,
            dtype,
            device,
            record: RefCell::default(),
        };
        let built = model(Params {
            root: &root,
            path: "",
        })?;
        let Record {
            used, mut report, ..
        } = root.record.into_inner();
        let is_ignored = |name: &str| {
            ignored.iter().any(|part| {
                name == *part
                    || name.ends_with(&format!(".{part}"))
                    || (part.ends_with('.') && name.starts_with(part))
            })
        };
        report.unexpected = source
            .tensor_names()
            .into_iter()
            .filter(|name| !used.contains(name) && !is_ignored(name))
            .collect();
        report.unexpected.sort();
        if report.is_empty() {
            return Ok(built);
        }
        report.source_name = source.name();
        Err(Error::Weights(Box::new(report)))
    }

    /// Calls `build` with the place `name` below this one.
    pub fn at<T>(&self, name: impl std::fmt::Display, build: impl FnOnce(Params<'_>) -> T) -> T {
        let path = self.full_name(&name.to_string());
        build(Params {
            root: self.root,
            path: &path,
        })
    }

    /// The tensor `name` of this place.
    ///
    /// # Errors
    /// If reading fails, or if so much is missing that the configuration must be of another model; other
    /// missing or misshapen tensors are reported by [`build`](Params::build).
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.read(name, shape, |full| self.load(full, self.root.dtype))
    }

    fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.root.source.load(name, dtype, self.root.device)
    }

    /// The weight `name` of this place's layer: `(output, input)`, or `(output, input, height, width)`, on the CPU
    /// with the input last in memory. Held as the source's [`quantization`](TensorSource::quantization) says.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let root = self.root;
        let full = self.full_name(name);
        let held = root.source.quantized(&full);
        if let Some(held) = held.filter(|held| held.values().dims() == shape) {
            self.read(name, shape, |_| Ok(held.values().clone()))?;
            self.note_scales(full, &held);
            return Ok(held);
        }
        let quantization = root.source.quantization();
        let quantization = quantization.filter(|how| how.takes(&full, shape));
        let mut weight = None;
        let tensor = self.read(name, shape, |full| {
            let dtype = quantization.map_or(root.dtype, |_| DType::F32);
            let tensor = match (root.device, shape.len()) {
                (Device::Cpu, 4) => root.source.load_channels_last(full, dtype, root.device),
                _ => self.load(full, dtype),
            }?;
            let Some(quantization) = quantization else {
                return Ok(tensor);
            };
            let quantized = Weight::quantized(&tensor, quantization)?;
            Ok(weight.insert(quantized).values().clone())
        })?;
        Ok(match weight {
            Some(weight) => {
                self.note_scales(full, &weight);
                weight
            }
            None => Weight::new(tensor),
        })
    }

    fn note_scales(&self, name: String, weight: &Weight) {
        if let Some(scales) = weight.scales() {
            let mut record = self.root.record.borrow_mut();
            record.scales.insert(name, scales.clone());
        }
    }

    fn read(
        &self,
        name: &str,
        shape: &[usize],
        load: impl FnOnce(&str) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let full = self.full_name(name);
        let root = self.root;
        let found = root.source.shape(&full);
        let mut record = root.record.borrow_mut();
        record.used.insert(full.clone());
        match found {
            Some(found) if found == shape => {
                let tensor = load(&full)?;
                record.loaded.insert(full, tensor.clone());
                return Ok(tensor);
            }
            Some(found) => {
                let expected = shape.to_vec();
                record.report.misshapen.push(ShapeMismatch {
                    name: full,
                    expected,
                    found,
                });
            }
            None => record.report.missing.push(full),
        }
        if record.report.missing.len() > MAX_MISSING {
            let report = WeightsError {
                source_name: root.source.name(),
                ..record.report.clone()
            };
            return Err(Error::Weights(Box::new(report)));
        }
        self.stand_in(shape)
    }

    /// What is added to the layer of this place where it runs.
    pub fn low_rank(&self) -> Vec<LowRank> {
        let changes = self.root.source.low_rank(self.path);
        if !changes.is_empty() {
            let mut record = self.root.record.borrow_mut();
            record
                .low_rank
                .insert(self.path.to_owned(), changes.clone());
        }
        changes
    }

    /// How convolutions treat the sides of pictures.
    pub fn seamless(&self) -> Seamless {
        self.root.source.seamless()
    }

    /// A tensor without memory behind it; `build` fails before anybody reads it.
    fn stand_in(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::zeros((), self.root.dtype, self.root.device)?.broadcast_as(shape)?)
    }

    /// Whether this place has a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.root.source.shape(&self.full_name(name)).is_some()
    }

    /// All that was read so far, of this place and others: a model asks when it has read its last tensor.
    pub fn weights(&self) -> Weights {
        let record = self.root.record.borrow();
        Weights {
            tensors: Arc::new(record.loaded.clone()),
            scales: Arc::new(record.scales.clone()),
            quantization: self.root.source.quantization(),
            low_rank: Arc::new(record.low_rank.clone()),
            seamless: self.seamless(),
            dtype: self.root.dtype,
            device: self.root.device.clone(),
        }
    }

    /// Where this place is: the names on the way to it, joined by dots.
    pub fn path(&self) -> &str {
        self.path
    }

    /// The device that the weights go to.
    pub fn device(&self) -> &Device {
        self.root.device
    }

    /// The number format that the weights are held in.
    pub fn dtype(&self) -> DType {
        self.root.dtype
    }

    fn full_name(&self, name: &str) -> String {
        match self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }
}
