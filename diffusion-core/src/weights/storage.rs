//! The bytes behind a file of tensors.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// A file, or bytes in memory.
pub(super) enum Storage {
    /// The map serves headers. Numbers are read from the file: pages of a map would count as this process's
    /// memory for as long as it is there.
    File { file: File, map: Mmap },
    /// As a file that is in memory.
    Bytes(Vec<u8>),
}

impl AsRef<[u8]> for Storage {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::File { map, .. } => map,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Storage {
    pub(super) fn of_file(file: File) -> io::Result<Self> {
        let map = map(&file)?;
        Ok(Self::File { file, map })
    }

    /// Fills `buffer` with the bytes from `at` on.
    pub(super) fn read_into(&self, at: usize, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            #[cfg(unix)]
            Self::File { file, .. } => {
                std::os::unix::fs::FileExt::read_exact_at(file, buffer, at as u64)
            }
            _ => {
                let bytes = self.as_ref().get(at..at.saturating_add(buffer.len()));
                buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    pub(super) fn read(&self, range: Range<usize>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        self.read_into(range.start, &mut bytes)?;
        Ok(bytes)
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read only and private to this process. A file that another process cuts off or
    // overwrites while its header is read is outside of what any reader can guard against.
    unsafe { Mmap::map(file) }
}
