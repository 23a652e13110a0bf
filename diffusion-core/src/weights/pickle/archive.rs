//! The zip archives that torch.save writes: entries stored as they are, never compressed.
//!
//! Layout: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>, sections 4.3 and 4.5.3.
//! Checksums are not compared: reading all bytes to open a file would cost as much as loading it.

use std::ops::Range;
use std::path::Path;

use crate::error::Result;
use crate::weights::reader::Reader;

const LOCAL_HEADER: u32 = 0x0403_4b50;
const DIRECTORY_ENTRY: u32 = 0x0201_4b50;
const DIRECTORY_END: [u8; 4] = 0x0605_4b50u32.to_le_bytes();
const DIRECTORY_END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

/// The bytes of a directory entry without its texts.
const ENTRY_LEN: u64 = 46;

/// The bytes of the record at the end without its comment.
const END_LEN: usize = 22;

/// The bytes of the record that points to the larger one.
const LOCATOR_LEN: u64 = 20;

/// In these fields it means that the number is in the extra field of 64 bits.
const SEE_EXTRA: u64 = u32::MAX as u64;

/// The entries of an archive by name.
pub(super) struct Archive<'a> {
    path: &'a Path,
    /// Sorted by name.
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    name: &'a [u8],
    /// Where its own header begins.
    header: usize,
    data: Range<usize>,
    method: u16,
}

/// Where the directory is.
struct Directory {
    start: u64,
    len: u64,
    count: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory; entries must lie before it, apart from each other.
    pub(super) fn parse(path: &'a Path, file: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(path, file);
        let directory = find_directory(&mut reader, file)?;
        let end = directory.start.checked_add(directory.len);
        if end.is_none_or(|end| end > file.len() as u64)
            || directory.count > directory.len / ENTRY_LEN
        {
            return Err(reader.error("the directory of the archive lies outside of the file"));
        }
        let mut entries = Vec::with_capacity(directory.count as usize);
        let mut at = directory.start;
        for _ in 0..directory.count {
            reader.seek(at)?;
            entries.push(read_entry(&mut reader, directory.start)?);
            at = reader.position() as u64;
        }
        for entry in &mut entries {
            locate(&mut reader, entry, directory.start)?;
        }
        entries.sort_unstable_by_key(|entry| entry.header);
        let overlap = |pair: &[Entry<'_>]| pair[0].data.end > pair[1].header;
        if let Some(pair) = entries.windows(2).find(|pair| overlap(pair)) {
            let reason = format!(
                "the archive's entries {} and {} overlap",
                String::from_utf8_lossy(pair[0].name),
                String::from_utf8_lossy(pair[1].name)
            );
            return Err(reader.error(reason));
        }
        entries.sort_unstable_by_key(|entry| entry.name);
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let name = String::from_utf8_lossy(pair[0].name);
            return Err(reader.error(format!("two entries of the archive are called {name}")));
        }
        Ok(Self { path, entries })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        self.entries.iter().map(|entry| entry.name)
    }

    /// Where the bytes of an entry are, or `None` if there is none of that name.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Range<usize>>> {
        let Ok(index) = self.entries.binary_search_by_key(&name, |entry| entry.name) else {
            return Ok(None);
        };
        let entry = &self.entries[index];
        if entry.method != 0 {
            let reader = Reader::new(self.path, &[]);
            let what = format!(
                "the compressed entry {} (method {})",
                String::from_utf8_lossy(name),
                entry.method
            );
            let hint =
                "torch.save stores entries as they are; unpack the archive and pack it with zip -0";
            return Err(reader.unsupported(what, hint));
        }
        Ok(Some(entry.data.clone()))
    }
}

fn find_directory(reader: &mut Reader<'_>, file: &[u8]) -> Result<Directory> {
    // A comment of up to 65,535 bytes may follow, and must end where the file ends.
    let first = file.len().saturating_sub(END_LEN + usize::from(u16::MAX));
    let is_end = |at: &usize| {
        let record = &file[*at..];
        let comment = [record[END_LEN - 2], record[END_LEN - 1]];
        record.starts_with(&DIRECTORY_END)
            && END_LEN + usize::from(u16::from_le_bytes(comment)) == record.len()
    };
    let last = file.len().checked_sub(END_LEN);
    let at = last.and_then(|last| (first..=last).rev().find(is_end));
    let Some(at) = at else {
        return Err(reader.error(
            "an archive without its end; it is cut off or damaged: copy or download it again",
        ));
    };
    reader.seek(at as u64 + 10)?;
    let count = reader.u16()?.into();
    let len = reader.u32()?.into();
    let start = reader.u32()?.into();
    let small = Directory { start, len, count };
    let Some(locator) = (at as u64).checked_sub(LOCATOR_LEN) else {
        return Ok(small);
    };
    reader.seek(locator)?;
    if reader.u32()? != LOCATOR_64 {
        return Ok(small);
    }
    reader.u32()?;
    let end_64 = reader.u64()?;
    reader.seek(end_64)?;
    if reader.u32()? != DIRECTORY_END_64 {
        return Err(reader.error("the archive's 64-bit end is not where it should be"));
    }
    // Its own length, two versions and two numbers of disks.
    reader.take(8 + 4 + 8)?;
    reader.u64()?;
    let count = reader.u64()?;
    let len = reader.u64()?;
    let start = reader.u64()?;
    Ok(Directory { start, len, count })
}

/// Reads a directory entry and leaves the reader behind it. Its `data` are not placed yet: they begin
/// with 0.
fn read_entry<'a>(reader: &mut Reader<'a>, directory: u64) -> Result<Entry<'a>> {
    if reader.u32()? != DIRECTORY_ENTRY {
        return Err(reader.error("the directory of the archive is damaged"));
    }
    // Versions.
    reader.u32()?;
    let flags = reader.u16()?;
    let method = reader.u16()?;
    // Time, date and checksum.
    reader.u64()?;
    let mut packed: u64 = reader.u32()?.into();
    let mut unpacked: u64 = reader.u32()?.into();
    let name_len = reader.u16()?;
    let extra_len = reader.u16()?;
    let comment_len = reader.u16()?;
    // Disk and attributes.
    reader.u64()?;
    let mut header: u64 = reader.u32()?.into();
    let name = reader.take(name_len.into())?;
    let extra = reader.take(extra_len.into())?;
    reader.take(comment_len.into())?;
    let text = String::from_utf8_lossy;
    read_extra(extra, &mut [&mut unpacked, &mut packed, &mut header]);
    if flags & 1 != 0 {
        let what = format!("the encrypted entry {}", text(name));
        return Err(reader.unsupported(what, "unpack it with its password"));
    }
    if method == 0 && packed != unpacked {
        return Err(reader.error(format!("the entry {} states two lengths", text(name))));
    }
    let place = usize::try_from(packed)
        .ok()
        .zip(usize::try_from(header).ok())
        .filter(|_| packed <= directory && header <= directory);
    let Some((len, header)) = place else {
        return Err(reader.error(format!("the entry {} lies outside of the file", text(name))));
    };
    Ok(Entry {
        name,
        header,
        data: 0..len,
        method,
    })
}

/// Fills in the numbers that are in the 64-bit extra field, in its order.
fn read_extra(extra: &[u8], numbers: &mut [&mut u64]) {
    let mut rest = extra;
    while let [id_low, id_high, len_low, len_high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*len_low, *len_high]));
        let Some((field, next)) = tail.split_at_checked(len) else {
            return;
        };
        if u16::from_le_bytes([*id_low, *id_high]) == 1 {
            let (values, _) = field.as_chunks::<8>();
            let missing = numbers.iter_mut().filter(|number| ***number == SEE_EXTRA);
            for (number, &value) in missing.zip(values) {
                **number = u64::from_le_bytes(value);
            }
            return;
        }
        rest = next;
    }
}

/// Finds an entry's data, which follow its own header.
fn locate(reader: &mut Reader<'_>, entry: &mut Entry<'_>, directory: u64) -> Result<()> {
    let damaged = |reader: &Reader<'_>| {
        let name = String::from_utf8_lossy(entry.name);
        reader.error(format!(
            "the entry {name} is not where the archive's directory says"
        ))
    };
    reader.seek(entry.header as u64)?;
    if reader.u32()? != LOCAL_HEADER {
        return Err(damaged(reader));
    }
    // All that the directory has repeated.
    reader.take(22)?;
    let name_len = reader.u16()?;
    let extra_len = reader.u16()?;
    if reader.take(name_len.into())? != entry.name {
        return Err(damaged(reader));
    }
    reader.take(extra_len.into())?;
    let start = reader.position();
    let end = start.checked_add(entry.data.end);
    match end {
        Some(end) if end as u64 <= directory => entry.data = start..end,
        _ => return Err(damaged(reader)),
    }
    Ok(())
}
