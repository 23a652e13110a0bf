//! Tensors, storages and numpy scalars: what the functions that a pickle names would have made.

use super::globals::Global;
use super::machine::Machine;
use super::value::{NumpyType, Span, Value};
use crate::error::Result;
use crate::weights::Element;

/// More dimensions than any tensor of a model has.
const MAX_DIMS: usize = 16;

/// A storage as the pickle states it; where its bytes are is the container's business.
pub(super) struct RawStorage {
    pub(super) key: Span,
    /// `None` for plain bytes.
    pub(super) element: Option<Element>,
    pub(super) len: usize,
    /// Legacy files have storages that are parts of others: where they begin and how long they are.
    pub(super) part: Option<(usize, usize)>,
}

/// A tensor on a [`RawStorage`].
pub(super) struct RawTensor {
    pub(super) storage: u32,
    pub(super) element: Element,
    /// In elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Machine<'_> {
    /// A storage by its persistent id: `("storage", class, key, device, length)`, and in legacy files
    /// `None` or `(key, offset, length)` of a part of it.
    pub(super) fn storage(&mut self, id: Value) -> Result<Value> {
        let misfit = |machine: &Self| machine.reader.error("a persistent id is not a storage's");
        let Value::Tuple(id) = id else {
            return Err(misfit(self));
        };
        let (element, key, len, part) = match *self.heap.tuple(id) {
            [
                Value::Text(kind),
                Value::Global(Global::Storage(element)),
                Value::Text(key),
                _,
                len,
            ] if kind.of(self.pickle) == b"storage" => (element, key, len, Value::None),
            [
                Value::Text(kind),
                Value::Global(Global::Storage(element)),
                Value::Text(key),
                _,
                len,
                part,
            ] if kind.of(self.pickle) == b"storage" => (element, key, len, part),
            _ => return Err(misfit(self)),
        };
        self.name(key.of(self.pickle))?;
        let part = match part {
            Value::None => None,
            Value::Tuple(part) => match *self.heap.tuple(part) {
                [_, offset, len] => Some((self.size(offset)?, self.size(len)?)),
                _ => return Err(misfit(self)),
            },
            _ => return Err(misfit(self)),
        };
        let len = self.size(len)?;
        self.budget.spend(&self.reader, size_of::<RawStorage>())?;
        self.storages.push(RawStorage {
            key,
            element,
            len,
            part,
        });
        Ok(Value::Storage(self.storages.len() as u32 - 1))
    }

    /// A tensor of `(storage, offset, shape, strides)` and things that do not matter here; from the third
    /// version on, the seventh is its type.
    pub(super) fn tensor(&mut self, version: u8, arguments: &[Value]) -> Result<Value> {
        let &[
            Value::Storage(storage),
            offset,
            shape,
            strides,
            ref rest @ ..,
        ] = arguments
        else {
            return Err(self.misused("torch._utils._rebuild_tensor"));
        };
        let element = match (version, rest) {
            (3, &[_, _, Value::Global(Global::Element(element)), ..]) => Some(element),
            (3, _) => None,
            _ => self.storages[storage as usize].element,
        };
        let Some(element) = element else {
            return Err(self.misused("torch._utils._rebuild_tensor"));
        };
        let shape = self.sizes(shape)?;
        let strides = self.sizes(strides)?;
        if shape.len() != strides.len() {
            return Err(self.reader.error(format!(
                "a tensor of shape {shape:?} with strides {strides:?}"
            )));
        }
        let size = size_of::<RawTensor>() + 2 * size_of_val(shape.as_slice());
        // It becomes a stored tensor in the end, and both are there for a moment.
        self.budget.spend(&self.reader, 2 * size)?;
        let offset = self.size(offset)?;
        self.tensors.push(RawTensor {
            storage,
            element,
            offset,
            shape,
            strides,
        });
        Ok(Value::Tensor(self.tensors.len() as u32 - 1))
    }

    fn size(&self, value: Value) -> Result<usize> {
        let size = match value {
            Value::Int(value) => usize::try_from(value).ok(),
            _ => None,
        };
        size.ok_or_else(|| {
            self.reader
                .error(format!("expected a size from 0 on, found {value:?}"))
        })
    }

    fn sizes(&self, value: Value) -> Result<Vec<usize>> {
        match self.heap.items(value) {
            Some(items) if items.len() <= MAX_DIMS => {
                items.iter().map(|&item| self.size(item)).collect()
            }
            Some(items) => Err(self.reader.error(format!(
                "a tensor of {} dimensions, at most {MAX_DIMS} were expected",
                items.len()
            ))),
            None => Err(self.misused("torch._utils._rebuild_tensor")),
        }
    }

    /// `numpy.dtype("f8", ..)`.
    pub(super) fn numpy_type(&self, arguments: &[Value]) -> Result<Value> {
        let name = match arguments {
            [Value::Text(name), ..] => name.of(self.pickle),
            _ => return Err(self.misused("numpy.dtype")),
        };
        match *name {
            [kind, size @ b'1'..=b'9'] => Ok(Value::NumpyType(NumpyType {
                kind,
                size: size - b'0',
            })),
            _ => Ok(Value::NumpyType(NumpyType { kind: 0, size: 0 })),
        }
    }

    /// The state of a `numpy.dtype` says its byte order second.
    pub(super) fn check_byte_order(&self, state: Value) -> Result<()> {
        let order = self.heap.items(state).and_then(|state| state.get(1));
        match order {
            Some(Value::Text(order)) if matches!(order.of(self.pickle), b"<" | b"|" | b"=") => {
                Ok(())
            }
            _ => Err(self.reader.unsupported(
                "a big-endian numpy value",
                "save it on a little-endian machine",
            )),
        }
    }

    /// `scalar(dtype, bytes)`.
    pub(super) fn numpy_scalar(&self, arguments: &[Value]) -> Result<Value> {
        let (kind, bytes) = match *arguments {
            [Value::NumpyType(kind), bytes] => (kind, self.short_bytes(bytes)),
            _ => return Err(self.misused("numpy's scalar")),
        };
        let size = usize::from(kind.size);
        let bytes = bytes.filter(|(_, len)| *len == size);
        let Some((bytes, _)) = bytes else {
            return Err(self.misused("numpy's scalar"));
        };
        // Zeros stand above the number, so narrow natural numbers are wide ones.
        let wide = u64::from_le_bytes(bytes);
        let shift = 64 - 8 * size as u32;
        Ok(match (kind.kind, size) {
            (b'f', 8) => Value::Float(f64::from_bits(wide)),
            (b'f', 4) => Value::Float(f32::from_bits(wide as u32).into()),
            (b'f', 2) => Value::Float(half::f16::from_bits(wide as u16).into()),
            (b'i', 1 | 2 | 4 | 8) => Value::Int(((wide << shift) as i64) >> shift),
            (b'u', 1 | 2 | 4) => Value::Int(wide as i64),
            (b'b', 1) => Value::Bool(wide != 0),
            _ => {
                let what = format!("a numpy scalar of type {:?}{size}", char::from(kind.kind));
                let hint = "floats, integers and truth values are";
                return Err(self.reader.unsupported(what, hint));
            }
        })
    }

    /// Up to eight bytes, written as bytes or as a text.
    fn short_bytes(&self, value: Value) -> Option<([u8; 8], usize)> {
        let mut bytes = [0; 8];
        let mut len = 0;
        let mut put = |byte: u8| {
            *bytes.get_mut(len)? = byte;
            len += 1;
            Some(())
        };
        match value {
            Value::Bytes(span) => {
                span.of(self.pickle)
                    .iter()
                    .try_for_each(|&byte| put(byte))?;
            }
            Value::Latin1(span) => {
                let text = span.of(self.pickle);
                // Two bytes a character at most.
                let text = std::str::from_utf8(&text[..text.len().min(17)]).ok()?;
                text.chars()
                    .try_for_each(|c| put(u8::try_from(u32::from(c)).ok()?))?;
            }
            _ => return None,
        }
        Some((bytes, len))
    }
}
