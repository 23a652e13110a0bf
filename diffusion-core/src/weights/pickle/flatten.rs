//! From nested dicts to named tensors.

use std::collections::BTreeMap;
use std::path::Path;

use super::PickleValue;
use super::budget::Budget;
use super::machine::MAX_NAME;
use crate::error::Result;
use crate::weights::StoredTensor;
use crate::weights::reader::Reader;

/// Where trainers put the weights beside what else they save; averaged weights come before plain ones.
const WRAPPERS: [&str; 6] = [
    "state_dict",
    "params_ema",
    "params",
    "model_state_dict",
    "model",
    "module",
];

/// No state dict is nested as deeply.
const MAX_DEPTH: usize = 32;

/// What a tensor is called that a file holds alone.
const BARE: &str = "tensor";

/// The tensors of the state dict in a file, or all of them if there is none, with the names of nested
/// dicts joined by dots.
pub(super) fn state_dict(
    path: &Path,
    root: PickleValue<'_>,
    budget: &mut Budget,
) -> Result<BTreeMap<String, StoredTensor>> {
    let mut walk = Walk {
        reader: Reader::new(path, &[]),
        budget,
        name: String::new(),
        tensors: BTreeMap::new(),
    };
    walk.visit(unwrapped(root), 0)?;
    Ok(walk.tensors)
}

/// The dict of tensors that wrappers are around, or the root.
fn unwrapped(root: PickleValue<'_>) -> PickleValue<'_> {
    let mut inner = root;
    // No trainer wraps more often.
    for _ in 0..3 {
        let wrapped = WRAPPERS.iter().filter_map(|&name| inner.get(name));
        let Some(next) = wrapped.into_iter().find(|v| v.entries().is_some()) else {
            return root;
        };
        inner = next;
        let holds_tensors = |(_, value): (_, PickleValue<'_>)| value.as_tensor().is_some();
        if inner.entries().is_some_and(|mut e| e.any(holds_tensors)) {
            return inner;
        }
    }
    root
}

struct Walk<'a> {
    reader: Reader<'a>,
    budget: &'a mut Budget,
    /// Where the walk is.
    name: String,
    tensors: BTreeMap<String, StoredTensor>,
}

impl Walk<'_> {
    fn visit(&mut self, value: PickleValue<'_>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            let reason = format!("values nested more than {MAX_DEPTH} deep, or in themselves");
            return Err(self.reader.error(reason));
        }
        if let Some(tensor) = value.as_tensor() {
            return self.keep(tensor, depth);
        }
        if let Some(entries) = value.entries() {
            for (key, value) in entries {
                match (key.as_str(), key.as_int(), key.class_name()) {
                    (Some(name), ..) => self.enter(name, value, depth)?,
                    (_, Some(number), _) => self.enter(&number.to_string(), value, depth)?,
                    (.., Some(class)) => self.enter(&class, value, depth)?,
                    // Keys such as tuples name no tensor of a model.
                    _ => (),
                }
            }
        }
        if let Some(items) = value.items() {
            for (i, item) in items.enumerate() {
                self.enter(&i.to_string(), item, depth)?;
            }
        }
        Ok(())
    }

    fn enter(&mut self, key: &str, value: PickleValue<'_>, depth: usize) -> Result<()> {
        // Values that are reached on many ways are visited as often.
        self.budget.spend(&self.reader, 16 + key.len())?;
        if key.len() > MAX_NAME {
            let reason = format!(
                "a name of {} bytes, at most {MAX_NAME} were expected",
                key.len()
            );
            return Err(self.reader.error(reason));
        }
        let outer = self.name.len();
        if outer > 0 {
            self.name.push('.');
        }
        self.name.push_str(key);
        self.visit(value, depth + 1)?;
        self.name.truncate(outer);
        Ok(())
    }

    fn keep(&mut self, tensor: &StoredTensor, depth: usize) -> Result<()> {
        let name = match depth {
            0 => BARE,
            _ => &self.name,
        };
        let size = size_of::<(String, StoredTensor)>() + name.len() + 16 * tensor.shape().len();
        self.budget.spend(&self.reader, size)?;
        // As in Python's dicts, the last of several entries of one name counts.
        self.tensors.insert(name.to_owned(), tensor.clone());
        Ok(())
    }
}
