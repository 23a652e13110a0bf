//! Memory that comes back: buffers return to a pool when they are dropped, so that the steps of a run after the
//! first ask the system for none. Clearing fresh pages is a fifth of the time otherwise.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

/// A cache line, to which buffers are aligned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

const LANES: usize = 16;

/// Memory of whole lines.
#[derive(Debug)]
enum Block {
    Heap(Vec<Line>),
    /// Of the system's, to which it goes back at once. An allocator would keep what is freed between blocks that live on,
    /// a tenth of a run's memory.
    Pages(MmapMut),
}

/// Lines from which on a block is of pages, 1 MiB.
const PAGES: usize = 1 << 14;

/// Zeroed memory straight from the system, or none where it refuses.
fn pages(lines: usize) -> Option<MmapMut> {
    let pages = MmapMut::map_anon(lines * size_of::<Line>()).ok()?;
    // A block of 2 MiB pages is made resident by 512 times fewer faults; a system that has none does as before.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    Some(pages)
}

impl Block {
    fn new(lines: usize) -> Self {
        match (lines >= PAGES).then(|| pages(lines)).flatten() {
            Some(pages) => Self::Pages(pages),
            None => Self::Heap(vec![Line([0.0; LANES]); lines]),
        }
    }

    /// Number of lines.
    fn len(&self) -> usize {
        match self {
            Self::Heap(lines) => lines.len(),
            Self::Pages(bytes) => bytes.len() / size_of::<Line>(),
        }
    }

    fn as_ptr(&self) -> *const f32 {
        match self {
            Self::Heap(lines) => lines.as_ptr().cast(),
            Self::Pages(bytes) => bytes.as_ptr().cast(),
        }
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        match self {
            Self::Heap(lines) => lines.as_mut_ptr().cast(),
            Self::Pages(bytes) => bytes.as_mut_ptr().cast(),
        }
    }
}

/// Lines that are kept for later at most, 256 MiB: what the steps of usual sizes hand on to each other. An autoencoder's
/// largest values would otherwise be kept beside those that it works on.
const MOST_FREE: usize = 1 << 22;

#[derive(Default)]
struct Pool {
    /// By their number of lines.
    free: BTreeMap<usize, Vec<Block>>,
    /// Lines of all of them.
    num_free: usize,
    leases: usize,
    /// How many of the leases are of autoencoders.
    autoencoders: usize,
}

/// Lines from which on a block is large, 16 MiB.
const LARGE: usize = 1 << 18;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    free: BTreeMap::new(),
    num_free: 0,
    leases: 0,
    autoencoders: 0,
});

impl Pool {
    /// A block of so many lines; a larger one if not much of it is wasted.
    fn take(&mut self, lines: usize) -> Option<Block> {
        let mut fitting = self.free.range_mut(lines..=lines + lines / 4);
        let block = fitting.find_map(|(_, blocks)| blocks.pop())?;
        self.num_free -= block.len();
        Some(block)
    }

    /// What there is, which the caller drops when the pool is no longer locked: giving much memory back takes time,
    /// in which others want some.
    #[must_use]
    fn drain(&mut self) -> BTreeMap<usize, Vec<Block>> {
        self.num_free = 0;
        std::mem::take(&mut self.free)
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    // Nothing panics while it is locked; and whatever it holds is memory of any content.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While one lives, memory of the CPU's layers is kept for the next ones. With the last it goes back to
/// the system; and after each run, so that runs of other sizes at the same time do not pile it up.
///
/// A [`Pipeline`](crate::Pipeline) holds one in each run. A loop of one's own over a [`UNet`](crate::UNet)'s
/// steps asks the system for less if it holds one too.
#[derive(Debug)]
pub struct Lease(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Evaluation,
    Run,
    Autoencoder,
}

impl Lease {
    /// For one evaluation of a model.
    pub(crate) fn of_evaluation() -> Self {
        Self::new(Kind::Evaluation)
    }

    /// For many evaluations.
    pub fn of_run() -> Self {
        Self::new(Kind::Run)
    }

    /// For an autoencoder, whose values are the largest of a run: neither what the steps left nor what its own
    /// levels leave, each of another size, is kept beside them.
    pub(crate) fn of_autoencoder() -> Self {
        let lease = Self::new(Kind::Autoencoder);
        let free = pool().drain();
        drop(free);
        give_back();
        lease
    }

    fn new(kind: Kind) -> Self {
        let mut pool = pool();
        pool.leases += 1;
        pool.autoencoders += usize::from(kind == Kind::Autoencoder);
        Self(kind)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut pool = pool();
        pool.leases -= 1;
        pool.autoencoders -= usize::from(self.0 == Kind::Autoencoder);
        if pool.leases == 0 || self.0 != Kind::Evaluation {
            let free = pool.drain();
            drop(pool);
            drop(free);
            if self.0 != Kind::Evaluation {
                give_back();
            }
        }
    }
}

/// Lets the allocator give the system what is free: small blocks, and what tensors were in. glibc's keeps up to 32 MiB
/// in one piece otherwise.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it may be called at any time, from any thread.
        unsafe { malloc_trim(0) };
    }
}

/// Some f32 values, of any content at first.
#[derive(Debug)]
pub(crate) struct Buffer {
    block: Block,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        let lines = len.div_ceil(LANES);
        let mut pool = pool();
        let found = pool.take(lines);
        let is_new_size = found.is_none() && pool.autoencoders > 0 && lines >= LARGE;
        let old = is_new_size.then(|| pool.drain());
        drop(pool);
        drop(old);
        let block = found.unwrap_or_else(|| Block::new(lines));
        Self { block, len }
    }

    pub(crate) fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::new(values.len());
        buffer.as_mut().copy_from_slice(values);
        buffer
    }
}

impl AsRef<[f32]> for Buffer {
    fn as_ref(&self) -> &[f32] {
        // SAFETY: lines are 16 f32 each without padding, aligned to them or to a page, all written or cleared by the
        // system, and there are enough of them.
        unsafe { std::slice::from_raw_parts(self.block.as_ptr(), self.len) }
    }
}

impl AsMut<[f32]> for Buffer {
    fn as_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_mut_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let block = std::mem::replace(&mut self.block, Block::Heap(Vec::new()));
        let mut pool = pool();
        let num_free = pool.num_free + block.len();
        if pool.leases > 0 && block.len() > 0 && num_free <= MOST_FREE {
            pool.num_free = num_free;
            pool.free.entry(block.len()).or_default().push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoencoder_keeps_no_other_sizes() {
        let _memory = Lease::of_autoencoder();
        drop(Buffer::new(LANES * LARGE));
        drop(Buffer::new(LANES * 2 * LARGE));
        let sizes: Vec<usize> = pool().free.keys().copied().collect();
        assert!(!sizes.contains(&LARGE), "{sizes:?}");
    }

    #[test]
    fn values_are_aligned_and_as_many_as_asked() {
        let _memory = Lease::of_evaluation();
        for len in [0, 1, 15, 16, 17, 1000, LANES * PAGES + 1] {
            let mut buffer = Buffer::new(len);
            buffer.as_mut().fill(1.0);
            assert_eq!(buffer.as_ref().len(), len);
            assert_eq!(buffer.as_ref().as_ptr() as usize % 64, 0);
            let copy = Buffer::from_slice(buffer.as_ref());
            assert_eq!(copy.as_ref(), buffer.as_ref());
        }
    }
}
