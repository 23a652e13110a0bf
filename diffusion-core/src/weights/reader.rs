//! A cursor over a file's bytes that cannot leave them.

use std::path::Path;

use crate::error::{Error, Result};

/// Reads little-endian numbers and byte strings; every error names the file and the place.
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn seek(&mut self, at: u64) -> Result<()> {
        match usize::try_from(at) {
            Ok(at) if at <= self.bytes.len() => self.at = at,
            _ => return Err(self.cut_off(&format!("something at byte {at}"))),
        }
        Ok(())
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(count).ok().and_then(|n| rest.get(..n));
        let taken = taken.ok_or_else(|| self.cut_off(&format!("{count} bytes more")))?;
        self.at += taken.len();
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let found = self.bytes[self.at..].first_chunk::<N>().copied();
        let found = found.ok_or_else(|| self.cut_off(&format!("{N} bytes more")))?;
        self.at += N;
        Ok(found)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The bytes up to the next line feed, which is skipped.
    pub(super) fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n');
        let length = length.ok_or_else(|| self.cut_off("the end of a line"))?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    /// A damaged file.
    pub(super) fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::format(self.path, reason)
    }

    /// Something that no error of the file's makes readable.
    pub(super) fn unsupported(&self, what: impl std::fmt::Display, hint: &str) -> Error {
        Error::unsupported(format!("{}: {what}", self.path.display()), hint)
    }

    fn cut_off(&self, expected: &str) -> Error {
        self.error(format!(
            "cut off or damaged: expected {expected} at byte {} of {}; copy or download it again",
            self.at,
            self.bytes.len()
        ))
    }
}
