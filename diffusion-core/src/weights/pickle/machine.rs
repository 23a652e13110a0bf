//! The stack machine that a pickle is a program of: the opcodes of protocols 2 to 5.
//!
//! Opcodes: <https://github.com/python/cpython/blob/main/Lib/pickletools.py>. Those that would import,
//! call or set state only ever build values here, of the kinds that [`globals`](super::globals) lists.

use std::collections::HashMap;
use std::path::Path;

use super::budget::Budget;
use super::globals::lookup;
use super::rebuild::{RawStorage, RawTensor};
use super::value::{Heap, Span, Value};
use crate::error::{Error, Result};
use crate::weights::reader::Reader;

/// Names (of globals and storages, and keys that become names of tensors) that are longer are refused.
pub(super) const MAX_NAME: usize = 1024;

/// The highest protocol of pickles.
pub(super) const MAX_PROTOCOL: u8 = 5;

/// What a pickle built.
pub(super) struct Program {
    pub(super) heap: Heap,
    pub(super) storages: Vec<RawStorage>,
    pub(super) tensors: Vec<RawTensor>,
    pub(super) root: Value,
    /// How many bytes it has.
    pub(super) len: usize,
}

/// A machine and what it has built so far.
pub(super) struct Machine<'a> {
    pub(super) pickle: &'a [u8],
    pub(super) reader: Reader<'a>,
    pub(super) budget: &'a mut Budget,
    pub(super) heap: Heap,
    pub(super) storages: Vec<RawStorage>,
    pub(super) tensors: Vec<RawTensor>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    /// Runs the pickle at the beginning of `pickle` to its end.
    pub(super) fn run(path: &'a Path, pickle: &'a [u8], budget: &'a mut Budget) -> Result<Program> {
        let mut machine = Self {
            pickle,
            reader: Reader::new(path, pickle),
            budget,
            heap: Heap::default(),
            storages: Vec::new(),
            tensors: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let opcode = machine.reader.u8()?;
            if opcode == b'.' {
                break;
            }
            machine.step(opcode)?;
        }
        Ok(Program {
            root: machine.pop()?,
            len: machine.reader.position(),
            heap: machine.heap,
            storages: machine.storages,
            tensors: machine.tensors,
        })
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME
            0x80 => self.protocol(),
            0x95 => self.reader.u64().map(drop),
            // MARK, POP, POP_MARK, DUP
            b'(' => self.mark(),
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.reader.array()?);
                self.push(Value::Int(value.into()))
            }
            b'K' => {
                let value = self.reader.u8()?;
                self.push(Value::Int(value.into()))
            }
            b'M' => {
                let value = self.reader.u16()?;
                self.push(Value::Int(value.into()))
            }
            0x8a => {
                let len = self.reader.u8()?;
                self.long(len.into())
            }
            0x8b => {
                let len = self.reader.u32()?;
                self.long(len)
            }
            b'G' => {
                let value = f64::from_be_bytes(self.reader.array()?);
                self.push(Value::Float(value))
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8, and Python 2's SHORT_BINSTRING, BINSTRING
            0x8c | b'U' => {
                let len = self.reader.u8()?;
                self.text(len.into())
            }
            b'X' | b'T' => {
                let len = self.reader.u32()?;
                self.text(len.into())
            }
            0x8d => {
                let len = self.reader.u64()?;
                self.text(len)
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => {
                let len = self.reader.u8()?;
                self.bytes(len.into())
            }
            b'B' => {
                let len = self.reader.u32()?;
                self.bytes(len.into())
            }
            0x8e | 0x96 => {
                let len = self.reader.u64()?;
                self.bytes(len)
            }
            // EMPTY_LIST and EMPTY_SET, EMPTY_DICT
            b']' | 0x8f => {
                let list = self.new_list(Vec::new())?;
                self.push(list)
            }
            b'}' => {
                let dict = self.new_dict(Vec::new())?;
                self.push(dict)
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.tuple_from(self.stack.len()),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(count);
                let start = start.ok_or_else(|| self.underflow())?;
                self.tuple_from(start)
            }
            b't' => {
                let start = self.pop_mark_position()?;
                self.tuple_from(start)
            }
            // LIST and FROZENSET, DICT
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                let list = self.new_list(items)?;
                self.push(list)
            }
            b'd' => {
                let dict = self.new_dict(Vec::new())?;
                let items = self.pop_mark()?;
                self.push(dict)?;
                self.set_items(&items)
            }
            // APPEND, APPENDS and ADDITEMS, SETITEM, SETITEMS
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            // BINGET, LONG_BINGET, BINPUT, LONG_BINPUT, MEMOIZE
            b'h' => {
                let index = self.reader.u8()?;
                self.recall(index.into())
            }
            b'j' => {
                let index = self.reader.u32()?;
                self.recall(index)
            }
            b'q' => {
                let index = self.reader.u8()?;
                self.memoize(index.into())
            }
            b'r' => {
                let index = self.reader.u32()?;
                self.memoize(index)
            }
            0x94 => self.memoize(self.memo.len() as u32),
            // GLOBAL, STACK_GLOBAL
            b'c' => self.global(),
            0x93 => self.stack_global(),
            // REDUCE and NEWOBJ, NEWOBJ_EX, BUILD, BINPERSID
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                self.reduce(arguments)
            }
            0x92 => {
                self.pop()?;
                let arguments = self.pop()?;
                self.reduce(arguments)
            }
            b'b' => self.build(),
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)
            }
            _ => Err(self.unknown_opcode(opcode)),
        }
    }

    fn unknown_opcode(&self, opcode: u8) -> Error {
        let at = self.reader.position() - 1;
        let what = format!(
            "the opcode {opcode:#04x} ({:?}) at byte {at} of a pickle",
            char::from(opcode)
        );
        let hint =
            "torch.save writes none such; save the state_dict anew or convert it to safetensors";
        self.reader.unsupported(what, hint)
    }

    fn underflow(&self) -> Error {
        let at = self.reader.position();
        self.reader.error(format!(
            "byte {at} of the pickle takes a value that is not there"
        ))
    }

    fn protocol(&mut self) -> Result<()> {
        match self.reader.u8()? {
            2..=MAX_PROTOCOL => Ok(()),
            other => Err(self.reader.unsupported(
                format!("a pickle of protocol {other}"),
                "protocols 2 to 5 are; save the state_dict anew",
            )),
        }
    }

    pub(super) fn push(&mut self, value: Value) -> Result<()> {
        // The stack shrinks again, so its height counts and not how often it was pushed to.
        if self.stack.len() == self.stack.capacity() {
            self.budget
                .spend(&self.reader, self.stack.len() * size_of::<Value>())?;
        }
        self.stack.push(value);
        Ok(())
    }

    /// The lowest place that may be taken from, above the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> Result<Value> {
        match self.stack[self.floor()..].last() {
            Some(&value) => Ok(value),
            None => Err(self.underflow()),
        }
    }

    pub(super) fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn mark(&mut self) -> Result<()> {
        self.budget.spend(&self.reader, size_of::<usize>())?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop_mark_position(&mut self) -> Result<usize> {
        self.marks.pop().ok_or_else(|| self.underflow())
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let start = self.pop_mark_position()?;
        Ok(self.stack.drain(start..).collect())
    }

    fn span(&mut self, len: u64) -> Result<Span> {
        let start = self.reader.position();
        self.reader.take(len)?;
        match (u32::try_from(start), u32::try_from(len)) {
            (Ok(start), Ok(len)) => Ok(Span { start, len }),
            _ => Err(self.reader.error("a pickle of 4 GiB or more")),
        }
    }

    fn long(&mut self, len: u32) -> Result<()> {
        let span = self.span(len.into())?;
        let bytes = span.of(self.pickle);
        let value = match bytes.len() {
            0..=8 => {
                // Sign extension: the last byte's upper bit goes on.
                let fill = if bytes.last().is_some_and(|&b| b >= 0x80) {
                    0xff
                } else {
                    0
                };
                let mut wide = [fill; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            _ => Value::Long(span),
        };
        self.push(value)
    }

    fn text(&mut self, len: u64) -> Result<()> {
        let span = self.span(len)?;
        self.push(Value::Text(span))
    }

    fn bytes(&mut self, len: u64) -> Result<()> {
        let span = self.span(len)?;
        self.push(Value::Bytes(span))
    }

    fn new_list(&mut self, items: Vec<Value>) -> Result<Value> {
        self.budget.spend(
            &self.reader,
            size_of::<Vec<Value>>() + items.len() * size_of::<Value>(),
        )?;
        self.heap.lists.push(items);
        Ok(Value::List(self.heap.lists.len() as u32 - 1))
    }

    pub(super) fn new_dict(&mut self, entries: Vec<(Value, Value)>) -> Result<Value> {
        let size = size_of::<Vec<(Value, Value)>>() + entries.len() * size_of::<(Value, Value)>();
        self.budget.spend(&self.reader, size)?;
        self.heap.dicts.push(entries);
        Ok(Value::Dict(self.heap.dicts.len() as u32 - 1))
    }

    /// Makes the stack from `start` on a tuple.
    fn tuple_from(&mut self, start: usize) -> Result<()> {
        if start < self.floor() {
            return Err(self.underflow());
        }
        let len = self.stack.len() - start;
        self.budget.spend(
            &self.reader,
            size_of::<(u32, u32)>() + len * size_of::<Value>(),
        )?;
        let first = self.heap.members.len() as u32;
        self.heap.members.extend(self.stack.drain(start..));
        self.heap.tuples.push((first, len as u32));
        self.push(Value::Tuple(self.heap.tuples.len() as u32 - 1))
    }

    fn append(&mut self, items: &[Value]) -> Result<()> {
        match self.top()? {
            Value::List(index) => {
                self.budget.spend(&self.reader, size_of_val(items))?;
                self.heap.lists[index as usize].extend_from_slice(items);
                Ok(())
            }
            Value::Opaque(_) => Ok(()),
            _ => Err(self.reader.error("the pickle appends to what is no list")),
        }
    }

    /// Keys and values in turn.
    fn set_items(&mut self, items: &[Value]) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.top()? {
            Value::Dict(index) if rest.is_empty() => {
                self.budget.spend(&self.reader, size_of_val(items))?;
                let pairs = pairs.iter().map(|&[key, value]| (key, value));
                self.heap.dicts[index as usize].extend(pairs);
                Ok(())
            }
            Value::Opaque(_) => Ok(()),
            _ => Err(self
                .reader
                .error("the pickle sets items of what is no dict")),
        }
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        match self.memo.get(&index) {
            Some(&value) => self.push(value),
            None => Err(self.reader.error(format!(
                "the pickle recalls the value {index}, which it never kept"
            ))),
        }
    }

    fn memoize(&mut self, index: u32) -> Result<()> {
        self.budget.spend(&self.reader, size_of::<(u32, Value)>())?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn global(&mut self) -> Result<()> {
        let start = self.reader.position();
        let module = self.reader.line()?;
        let name = self.reader.line()?;
        // Both lines, without the last line feed.
        let (start, len) = (start as u32, self.reader.position() - start - 1);
        let span = Span {
            start,
            len: len as u32,
        };
        self.push_global(module, name, span)
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (Value::Text(name), Value::Text(module)) = (name, module) else {
            return Err(self.reader.error("the name of a global is not a text"));
        };
        self.push_global(module.of(self.pickle), name.of(self.pickle), name)
    }

    fn push_global(&mut self, module: &[u8], name: &[u8], span: Span) -> Result<()> {
        let module = self.name(module)?;
        let name = self.name(name)?;
        match lookup(module, name, span) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(self.reader.unsupported(
                format!("a pickle that names {module}.{name}"),
                "it is not executed; if a whole model was saved, save its state_dict() instead",
            )),
        }
    }

    /// A name as a text of moderate length.
    pub(super) fn name(&self, bytes: &'a [u8]) -> Result<&'a str> {
        if bytes.len() > MAX_NAME {
            let reason = format!(
                "a name of {} bytes, at most {MAX_NAME} were expected",
                bytes.len()
            );
            return Err(self.reader.error(reason));
        }
        std::str::from_utf8(bytes).map_err(|_| self.reader.error("a name is not UTF-8"))
    }
}
