//! Memory that comes back: buffers return to a pool when they are dropped, so that the steps of a run after the
//! first ask the system for none. Clearing fresh pages is a fifth of the time otherwise.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A cache line, to which buffers are aligned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

const LANES: usize = 16;

/// Lines that are kept for later at most, 256 MiB: what the steps of usual sizes hand on to each other. An autoencoder's
/// largest values would otherwise be kept beside those that it works on.
const MOST_FREE: usize = 1 << 22;

#[derive(Default)]
struct Pool {
    /// By their number of lines.
    free: BTreeMap<usize, Vec<Vec<Line>>>,
    /// Lines of all of them.
    num_free: usize,
    leases: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    free: BTreeMap::new(),
    num_free: 0,
    leases: 0,
});

impl Pool {
    /// A block of so many lines; a larger one if not much of it is wasted.
    fn take(&mut self, lines: usize) -> Option<Vec<Line>> {
        let mut fitting = self.free.range_mut(lines..=lines + lines / 4);
        let block = fitting.find_map(|(_, blocks)| blocks.pop())?;
        self.num_free -= block.len();
        Some(block)
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    // Nothing panics while it is locked; and whatever it holds is memory of any content.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While one lives, buffers that are dropped are kept for the next ones. With the last the memory goes back to
/// the system; and after each run, so that runs of other sizes at the same time do not pile it up.
#[derive(Debug)]
pub(crate) struct Lease {
    is_run: bool,
}

impl Lease {
    /// For one evaluation of a model.
    pub(crate) fn of_evaluation() -> Self {
        Self::new(false)
    }

    /// For many.
    pub(crate) fn of_run() -> Self {
        Self::new(true)
    }

    fn new(is_run: bool) -> Self {
        pool().leases += 1;
        Self { is_run }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut pool = pool();
        pool.leases -= 1;
        if pool.leases == 0 || self.is_run {
            let free = std::mem::take(&mut pool.free);
            pool.num_free = 0;
            // Giving much memory back takes time, in which others want some.
            drop(pool);
            drop(free);
        }
    }
}

/// Some f32 values, of any content at first.
#[derive(Debug)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        let lines = len.div_ceil(LANES);
        let found = pool().take(lines);
        let lines = found.unwrap_or_else(|| vec![Line([0.0; LANES]); lines]);
        Self { lines, len }
    }

    pub(crate) fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::new(values.len());
        buffer.as_mut().copy_from_slice(values);
        buffer
    }
}

impl AsRef<[f32]> for Buffer {
    fn as_ref(&self) -> &[f32] {
        // SAFETY: lines are 16 f32 each without padding, and there are enough of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl AsMut<[f32]> for Buffer {
    fn as_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut pool = pool();
        let num_free = pool.num_free + lines.len();
        if pool.leases > 0 && !lines.is_empty() && num_free <= MOST_FREE {
            pool.num_free = num_free;
            pool.free.entry(lines.len()).or_default().push(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_and_as_many_as_asked() {
        let _memory = Lease::of_evaluation();
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut buffer = Buffer::new(len);
            buffer.as_mut().fill(1.0);
            assert_eq!(buffer.as_ref().len(), len);
            assert_eq!(buffer.as_ref().as_ptr() as usize % 64, 0);
            let copy = Buffer::from_slice(buffer.as_ref());
            assert_eq!(copy.as_ref(), buffer.as_ref());
        }
    }
}
