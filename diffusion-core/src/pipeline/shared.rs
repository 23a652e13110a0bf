//! One pipeline for several threads, changed between their runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Pipeline;
use crate::error::Result;

/// A pipeline that threads share and that any of them may change: its LoRAs, its words, its IP-Adapters.
///
/// A run goes on with what it began with. A change is made to a copy, which shares the memory of all weights that
/// stay, and takes the place of the one before when it is complete; the next run has it. So no run waits for
/// a change, nor a change for a run, and an observer of a run may make one; only changes wait for each other.
#[derive(Debug)]
pub struct SharedPipeline {
    current: Mutex<Arc<Pipeline>>,
    /// Held by the one change that is under way.
    change: Mutex<()>,
}

impl SharedPipeline {
    /// A pipeline, to be shared.
    pub fn new(pipeline: Pipeline) -> Self {
        Self {
            current: Mutex::new(Arc::new(pipeline)),
            change: Mutex::default(),
        }
    }

    /// The pipeline as it is now; later changes do not reach it.
    pub fn current(&self) -> Arc<Pipeline> {
        lock(&self.current).clone()
    }

    /// Changes the pipeline, as by [`Pipeline::set_loras`]. If `change` fails all is as before.
    ///
    /// # Errors
    /// As `change`.
    pub fn change<T>(&self, change: impl FnOnce(&mut Pipeline) -> Result<T>) -> Result<T> {
        let _one_at_a_time = lock(&self.change);
        let mut pipeline = Pipeline::clone(&self.current());
        let answer = change(&mut pipeline)?;
        // The one before may be large and is released when others can go on.
        let _before = std::mem::replace(&mut *lock(&self.current), Arc::new(pipeline));
        Ok(answer)
    }
}

/// Both locks guard what is whole at any time, so a panic under them leaves nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
