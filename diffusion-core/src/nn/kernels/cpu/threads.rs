//! Work on all threads of a pool.

use std::cell::RefCell;
use std::sync::Arc;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

thread_local! {
    /// The pool that this thread hands its work to.
    static CURRENT: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

/// The threads that layers on the CPU work on. By default those that the whole program shares, one for each
/// processor, or as many as the environment's `RAYON_NUM_THREADS` says.
#[derive(Debug, Clone, Default)]
pub struct Threads(Option<Arc<ThreadPool>>);

impl Threads {
    /// Threads of one's own. Pictures are the same on any number of them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless they are 1 to 1024, or if the system does not give them.
    pub fn new(count: usize) -> Result<Self> {
        if !(1..=1024).contains(&count) {
            return Err(Error::argument("num_threads", "1 to 1024", count));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("diffusion-{i}"))
            .build();
        let pool = pool
            .map_err(|error| Error::argument("num_threads", "as many as the system has", error))?;
        Ok(Self(Some(pool.into())))
    }

    /// Lets the calling thread hand its layers' work to these until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered {
        Entered(CURRENT.replace(self.0.clone()))
    }
}

/// While it lives, layers of this thread work on some [`Threads`]. It holds those from before.
pub(crate) struct Entered(Option<Arc<ThreadPool>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Runs parallel work on the threads of the caller.
pub(super) fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match CURRENT.with_borrow(Clone::clone) {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// How many of them there are.
pub(super) fn count() -> usize {
    CURRENT.with_borrow(|pool| match pool {
        Some(pool) => pool.current_num_threads(),
        None => rayon::current_num_threads(),
    })
}

/// Calls `task` with each number below `tasks`, on any thread and in any order.
pub(super) fn for_each(tasks: usize, task: impl Fn(usize) + Sync + Send) {
    match tasks {
        0 => {}
        1 => task(0),
        _ => on_pool(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task)),
    }
}

/// Calls `task` with portions of `len` things, each of about `portion` of them.
pub(super) fn for_portions(
    len: usize,
    portion: usize,
    task: impl Fn(std::ops::Range<usize>) + Sync + Send,
) {
    let portion = portion.max(1);
    for_each(len.div_ceil(portion), |i| {
        task(i * portion..len.min((i + 1) * portion));
    });
}

/// A place that tasks write to, each elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);

// SAFETY: whoever reads or writes there sees to it that no two threads do so at the same place.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// Values that are read alone.
    pub(super) fn reading(values: *const f32) -> Self {
        Self(values.cast_mut())
    }

    /// # Safety
    /// `offset` must be within the values, and no other thread may use what is written through it.
    pub(super) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}
