//! What a pickle holds, as data.

use super::globals::Global;
use crate::weights::StoredTensor;

/// A part of the pickle's own bytes; texts are never copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

impl Span {
    pub(super) fn of(self, pickle: &[u8]) -> &[u8] {
        let start = self.start as usize;
        pickle
            .get(start..start + self.len as usize)
            .unwrap_or_default()
    }
}

/// One value. What has parts is an index into the [`Heap`], so values may share and contain each other
/// and still nothing recurses when they are dropped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Span),
    Bytes(Span),
    /// Bytes that are written as a text of the characters below 256.
    Latin1(Span),
    /// An integer of more than 64 bits.
    Long(Span),
    List(u32),
    Tuple(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
    NumpyType(NumpyType),
    Global(Global),
    /// An object that is of no interest; the span names its class.
    Opaque(Span),
}

/// The type of a numpy scalar, such as `f` and 8.
#[derive(Debug, Clone, Copy)]
pub(super) struct NumpyType {
    pub(super) kind: u8,
    pub(super) size: u8,
}

/// The values that have parts.
#[derive(Default)]
pub(super) struct Heap {
    pub(super) lists: Vec<Vec<Value>>,
    /// The members of all tuples, side by side.
    pub(super) members: Vec<Value>,
    /// Where in `members` a tuple begins and how many it has.
    pub(super) tuples: Vec<(u32, u32)>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
}

impl Heap {
    pub(super) fn tuple(&self, index: u32) -> &[Value] {
        let (start, len) = self.tuples[index as usize];
        &self.members[start as usize..][..len as usize]
    }

    /// The members of a list or a tuple.
    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::List(index) => Some(&self.lists[index as usize]),
            Value::Tuple(index) => Some(self.tuple(index)),
            _ => None,
        }
    }

    pub(super) fn entries(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(index) => Some(&self.dicts[index as usize]),
            _ => None,
        }
    }
}

/// A pickle that was read.
pub(crate) struct Pickle {
    pub(super) heap: Heap,
    pub(super) tensors: Vec<StoredTensor>,
    pub(super) root: Value,
    /// Where in the file the pickle begins.
    pub(super) start: usize,
}

impl Pickle {
    /// The outermost value; `file` is the whole file.
    pub(crate) fn root<'a>(&'a self, file: &'a [u8]) -> PickleValue<'a> {
        PickleValue {
            pickle: self,
            bytes: &file[self.start..],
            value: self.root,
        }
    }
}

/// A value in a pickle. Nothing of it was ever executed: objects of classes that are not plain data are
/// neither dicts nor lists nor anything else.
///
/// Values may contain themselves; bound the depth when walking them.
#[derive(Clone, Copy)]
pub struct PickleValue<'a> {
    pickle: &'a Pickle,
    bytes: &'a [u8],
    value: Value,
}

impl<'a> PickleValue<'a> {
    fn with(self, value: Value) -> Self {
        Self { value, ..self }
    }

    /// The keys and values of a dict.
    pub fn entries(self) -> Option<impl Iterator<Item = (Self, Self)>> {
        let entries = self.pickle.heap.entries(self.value)?;
        Some(
            entries
                .iter()
                .map(move |&(key, value)| (self.with(key), self.with(value))),
        )
    }

    /// The value of a dict's key; of several entries the last.
    pub fn get(self, key: &str) -> Option<Self> {
        let entries = self.pickle.heap.entries(self.value)?;
        let is_key = |value: Value| match value {
            Value::Text(span) => span.of(self.bytes) == key.as_bytes(),
            _ => false,
        };
        let found = entries.iter().rev().find(|&&(name, _)| is_key(name));
        Some(self.with(found?.1))
    }

    /// The members of a list or a tuple.
    pub fn items(self) -> Option<impl Iterator<Item = Self>> {
        let items = self.pickle.heap.items(self.value)?;
        Some(items.iter().map(move |&item| self.with(item)))
    }

    /// A text.
    pub fn as_str(self) -> Option<&'a str> {
        match self.value {
            Value::Text(span) => std::str::from_utf8(span.of(self.bytes)).ok(),
            _ => None,
        }
    }

    /// Bytes.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(span) => Some(span.of(self.bytes)),
            _ => None,
        }
    }

    /// An integer.
    pub fn as_int(self) -> Option<i64> {
        match self.value {
            Value::Int(value) => Some(value),
            _ => None,
        }
    }

    /// A float or an integer.
    pub fn as_float(self) -> Option<f64> {
        match self.value {
            Value::Float(value) => Some(value),
            Value::Int(value) => Some(value as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A tensor, which [`TensorFile::read`](crate::weights::TensorFile::read) reads.
    pub fn as_tensor(self) -> Option<&'a StoredTensor> {
        match self.value {
            Value::Tensor(index) => self.pickle.tensors.get(index as usize),
            _ => None,
        }
    }

    /// The class of a value that is a class or an object of no interest.
    pub fn class_name(self) -> Option<String> {
        match self.value {
            Value::Opaque(span) | Value::Global(Global::Opaque(span)) => {
                let name = String::from_utf8_lossy(span.of(self.bytes));
                Some(name.replace('\n', "."))
            }
            _ => None,
        }
    }
}
