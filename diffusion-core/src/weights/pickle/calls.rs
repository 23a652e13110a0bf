//! What stands where Python would call a function, make an object or set its state.

use super::globals::Global;
use super::machine::Machine;
use super::value::{Span, Value};
use crate::error::{Error, Result};

/// No function that is known here looks at more arguments.
const MAX_ARGUMENTS: usize = 8;

impl Machine<'_> {
    /// Replaces the function or class on the stack by what it makes of the arguments.
    pub(super) fn reduce(&mut self, arguments: Value) -> Result<()> {
        let made = match (self.pop()?, arguments) {
            (Value::Global(global), Value::Tuple(arguments)) => {
                let arguments = self.arguments(arguments);
                self.call(global, &arguments)?
            }
            _ => return Err(self.reader.error("the pickle calls what is no function")),
        };
        self.push(made)
    }

    /// The first members of a tuple; a long one may be recalled many times.
    fn arguments(&self, tuple: u32) -> Vec<Value> {
        let members = self.heap.tuple(tuple);
        members[..members.len().min(MAX_ARGUMENTS)].to_vec()
    }

    /// Gives the object on the stack the state above it. States of no interest are dropped.
    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match self.top()? {
            Value::Dict(index) => self.parameters(index, state),
            Value::NumpyType(_) => self.check_byte_order(state),
            Value::Opaque(_) | Value::Tensor(_) => Ok(()),
            _ => Err(self
                .reader
                .error("the pickle sets the state of a plain value")),
        }
    }

    /// A `ParameterDict` is an object whose state holds its entries; the state of other dicts holds none.
    fn parameters(&mut self, index: u32, state: Value) -> Result<()> {
        let entries = self.heap.entries(state).unwrap_or_default();
        // A module's state begins with these; a long state may be recalled many times.
        let found = entries.iter().take(16).find(|(key, _)| match key {
            Value::Text(span) => span.of(self.pickle) == b"_parameters",
            _ => false,
        });
        let Some(entries) = found.and_then(|&(_, value)| self.heap.entries(value)) else {
            return Ok(());
        };
        self.budget.spend(&self.reader, size_of_val(entries))?;
        let entries = entries.to_vec();
        self.heap.dicts[index as usize].extend(entries);
        Ok(())
    }

    fn call(&mut self, global: Global, arguments: &[Value]) -> Result<Value> {
        match global {
            Global::Dict => self.dict(arguments),
            Global::Size => match arguments {
                [list @ (Value::Tuple(_) | Value::List(_))] => Ok(*list),
                _ => Err(self.misused("torch.Size")),
            },
            Global::Tensor(version) => self.tensor(version, arguments),
            Global::Parameter => match arguments {
                [tensor @ Value::Tensor(_), ..] => Ok(*tensor),
                _ => Err(self.misused("torch._utils._rebuild_parameter")),
            },
            Global::FromType => match arguments {
                [
                    Value::Global(inner @ Global::Tensor(_)),
                    _,
                    Value::Tuple(arguments),
                    ..,
                ] => {
                    let arguments = self.arguments(*arguments);
                    self.call(*inner, &arguments)
                }
                _ => Err(self.misused("torch._tensor._rebuild_from_type_v2")),
            },
            Global::Encode => match arguments {
                [Value::Text(text), Value::Text(encoding)]
                    if encoding.of(self.pickle) == b"latin1" =>
                {
                    Ok(Value::Latin1(*text))
                }
                [] => Ok(Value::Bytes(Span { start: 0, len: 0 })),
                _ => Err(self.misused("_codecs.encode")),
            },
            Global::NumpyType => self.numpy_type(arguments),
            Global::NumpyScalar => self.numpy_scalar(arguments),
            Global::Opaque(class) => Ok(Value::Opaque(class)),
            Global::Storage(_) | Global::Element(_) => Err(self.misused("a torch type")),
        }
    }

    fn dict(&mut self, arguments: &[Value]) -> Result<Value> {
        let entries = match arguments {
            // Python 2 wrote the items as one list.
            [Value::List(pairs)] => {
                let pairs = &self.heap.lists[*pairs as usize];
                self.budget
                    .spend(&self.reader, pairs.len() * size_of::<(Value, Value)>())?;
                let entry = |&pair: &Value| match self.heap.items(pair) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => Err(self.misused("collections.OrderedDict")),
                };
                pairs.iter().map(entry).collect::<Result<_>>()?
            }
            [Value::Dict(index)] => {
                let entries = &self.heap.dicts[*index as usize];
                self.budget
                    .spend(&self.reader, size_of_val(entries.as_slice()))?;
                entries.clone()
            }
            // A defaultdict names the class of its defaults.
            [] | [Value::Global(_) | Value::None] => Vec::new(),
            _ => return Err(self.misused("collections.OrderedDict")),
        };
        self.new_dict(entries)
    }

    pub(super) fn misused(&self, function: &str) -> Error {
        self.reader.error(format!(
            "the pickle calls {function} with arguments that it does not take"
        ))
    }
}
