//! What torch.save writes: a pickle and the numbers of its tensors.
//!
//! A pickle is a program, and Python's reader runs it with all that Python can do. Here it is data: a
//! small machine builds dicts, lists, texts, numbers and descriptions of tensors, and refuses every
//! opcode and every name that torch.save does not write for them.

mod archive;
mod budget;
mod calls;
mod flatten;
mod globals;
mod machine;
mod rebuild;
mod value;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use archive::Archive;
use budget::Budget;
use machine::{Machine, Program};
use rebuild::RawStorage;
pub(crate) use value::Pickle;
pub use value::PickleValue;
use value::Value;

use super::file::Contents;
use super::reader::Reader;
use super::stored::StoredTensor;
use crate::error::{Error, Result};

/// The number that a legacy file begins with, 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether a file begins as a pickle of protocol 2 or above.
pub(super) fn is_pickle(file: &[u8]) -> bool {
    matches!(file, [0x80, 2..=machine::MAX_PROTOCOL, ..])
}

/// Reads the zip form: `ROOT/data.pkl`, and each storage in `ROOT/data/KEY`.
pub(super) fn parse_zip(path: &Path, file: &[u8]) -> Result<Contents> {
    let archive = Archive::parse(path, file)?;
    let root = root_of(path, &archive)?;
    let entry = |name: &str| archive.find(&[root, name.as_bytes()].concat());
    if entry("constants.pkl")?.is_some() {
        let what = format!("{}: a TorchScript archive", path.display());
        let hint = "save the model's state_dict() with torch.save or as safetensors";
        return Err(Error::unsupported(what, hint));
    }
    if let Some(order) = entry("byteorder")?
        && &file[order] != b"little"
    {
        return Err(big_endian(path));
    }
    let Some(pickle) = entry("data.pkl")? else {
        return Err(no_pickle(path));
    };
    let start = pickle.start;
    let mut budget = Budget::of_file(file.len());
    let program = Machine::run(path, &file[pickle.clone()], &mut budget)?;
    let place = |storage: &RawStorage| {
        let key = storage.key.of(&file[pickle.clone()]);
        let found = archive.find(&[root, b"data/", key].concat())?;
        found.ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            Error::format(path, format!("the archive lacks the storage data/{key}"))
        })
    };
    finish(path, file, start, program, place, &mut budget)
}

/// What all names of the archive begin with, up to and with the slash.
fn root_of<'a>(path: &Path, archive: &Archive<'a>) -> Result<&'a [u8]> {
    let mut roots = archive
        .names()
        .filter_map(|name| name.strip_suffix(b"data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with(b"/"));
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err(no_pickle(path)),
        (Some(_), Some(_)) => Err(Error::format(path, "an archive with two data.pkl")),
    }
}

fn no_pickle(path: &Path) -> Error {
    Error::format(
        path,
        "a zip archive without data.pkl: it was not written by torch.save",
    )
}

fn big_endian(path: &Path) -> Error {
    let what = format!("{}: a file of a big-endian machine", path.display());
    Error::unsupported(what, "save it on a little-endian one")
}

/// Reads the legacy form: pickles of a magic number, a version, a description of the machine, the object
/// itself and a list of storage keys; then each storage's length and numbers in the order of the list.
pub(super) fn parse_legacy(path: &Path, file: &[u8]) -> Result<Contents> {
    let mut budget = Budget::of_file(file.len());
    let mut at = 0;
    let mut next = |budget: &mut Budget| {
        let start = at;
        let program = Machine::run(path, &file[start..], budget)?;
        at += program.len;
        Ok::<_, Error>((start, program))
    };
    let (_, magic) = next(&mut budget)?;
    if !matches!(magic.root, Value::Long(span) if span.of(file) == MAGIC) {
        let reason = "a pickle that torch.save did not write: its magic number is missing";
        return Err(Error::format(path, reason));
    }
    let (_, version) = next(&mut budget)?;
    if !matches!(version.root, Value::Int(1001)) {
        let reason = format!(
            "expected the protocol 1001 of torch.save, found {:?}",
            version.root
        );
        return Err(Error::format(path, reason));
    }
    let (start, machine) = next(&mut budget)?;
    if is_big_endian(&machine, &file[start..]) {
        return Err(big_endian(path));
    }
    let (start, program) = next(&mut budget)?;
    let (keys_start, keys) = next(&mut budget)?;
    let places = legacy_places(path, file, (start, &program), (keys_start, &keys), at)?;
    let place = |storage: &RawStorage| {
        let key = storage.key.of(&file[start..]);
        let found = places.get(key).cloned();
        found.ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            Error::format(path, format!("the file lacks the storage {key}"))
        })
    };
    finish(path, file, start, program, place, &mut budget)
}

fn is_big_endian(machine: &Program, pickle: &[u8]) -> bool {
    let entries = machine.heap.entries(machine.root).unwrap_or_default();
    entries.iter().any(|&(key, value)| {
        matches!(key, Value::Text(name) if name.of(pickle) == b"little_endian")
            && matches!(value, Value::Bool(false))
    })
}

/// Where the bytes of each storage are, by its key: behind the pickles, from byte `at` on.
fn legacy_places<'a>(
    path: &Path,
    file: &'a [u8],
    (start, program): (usize, &Program),
    (keys_start, keys): (usize, &Program),
    at: usize,
) -> Result<HashMap<&'a [u8], Range<usize>>> {
    let storages = program.storages.iter();
    let sizes: HashMap<&[u8], usize> = storages
        .map(|storage| (storage.key.of(&file[start..]), element_size(storage)))
        .collect();
    let mut reader = Reader::new(path, file);
    reader.seek(at as u64)?;
    let mut places = HashMap::new();
    for &key in keys.heap.items(keys.root).unwrap_or_default() {
        let Value::Text(key) = key else {
            return Err(reader.error("the key of a storage is not a text"));
        };
        let key = key.of(&file[keys_start..]);
        let Some(&size) = sizes.get(key) else {
            let key = String::from_utf8_lossy(&key[..key.len().min(machine::MAX_NAME)]);
            return Err(reader.error(format!("no tensor uses the storage {key}")));
        };
        let len = reader.u64()?.saturating_mul(size as u64);
        let start = reader.position();
        reader.take(len)?;
        places.insert(key, start..reader.position());
    }
    Ok(places)
}

fn element_size(storage: &RawStorage) -> usize {
    storage
        .element
        .and_then(|element| element.size())
        .unwrap_or(1)
}

/// The only text of a pickle that counts as the file's free text.
const NAME: &str = "name";

/// Gives every tensor its place in the file, and names to those that a model may ask for.
fn finish(
    path: &Path,
    file: &[u8],
    start: usize,
    program: Program,
    place: impl Fn(&RawStorage) -> Result<Range<usize>>,
    budget: &mut Budget,
) -> Result<Contents> {
    let storages = program.storages.iter().map(|storage| {
        let place = place(storage)?;
        let size = element_size(storage);
        let (skip, len) = storage.part.unwrap_or((0, storage.len));
        let begin = skip
            .checked_mul(size)
            .and_then(|n| n.checked_add(place.start));
        let end = len.checked_mul(size).and_then(|n| n.checked_add(begin?));
        match begin.zip(end).filter(|&(_, end)| end <= place.end) {
            Some((begin, end)) => Ok(begin..end),
            None => {
                let reason = format!(
                    "a storage of {len} elements has {} bytes; copy or download the file again",
                    place.len()
                );
                Err(Error::format(path, reason))
            }
        }
    });
    let storages: Vec<Range<usize>> = storages.collect::<Result<_>>()?;
    let tensors = program.tensors.into_iter().map(|raw| {
        let storage = storages[raw.storage as usize].clone();
        StoredTensor::strided(raw.element, raw.shape, raw.strides, raw.offset, storage)
            .map_err(|e| Error::format(path, format!("a tensor of the pickle: {e}")))
    });
    let pickle = Pickle {
        tensors: tensors.collect::<Result<_>>()?,
        heap: program.heap,
        root: program.root,
        start,
    };
    let root = pickle.root(file);
    // User interfaces write what a learned word is called beside its vectors.
    let name = root.get(NAME).and_then(|name| name.as_str());
    let metadata = name.map(|name| (NAME.to_owned(), name.to_owned()));
    Ok(Contents {
        tensors: flatten::state_dict(path, root, budget)?,
        metadata: metadata.into_iter().collect(),
        pickle: Some(pickle),
    })
}
