//! How much a pickle may build.

use crate::error::Result;
use crate::weights::reader::Reader;

/// What any file may build, however small it is.
const BASE: usize = 16 << 20;

/// The memory that the values of a file may take: as much as the file and a constant. A few bytes of a
/// pickle can ask for a copy of all that was built before; this ends it.
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn of_file(len: usize) -> Self {
        Self(len.saturating_add(BASE))
    }

    pub(super) fn spend(&mut self, reader: &Reader<'_>, bytes: usize) -> Result<()> {
        // Vectors grow by doubling: what is in use may be half of what is held.
        match bytes
            .checked_mul(2)
            .and_then(|twice| self.0.checked_sub(twice))
        {
            Some(rest) => self.0 = rest,
            None => {
                let reason = "the pickle builds more than its file has bytes; it is no checkpoint";
                return Err(reader.error(reason));
            }
        }
        Ok(())
    }
}
