//! Stopping a run from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::GenerateRequest;
use crate::error::{Error, Result};

/// Stops the runs whose requests have a clone of it, from any thread, within one of their steps.
///
/// # Example
/// ```
/// use diffusion_core::{CancelToken, GenerateRequest};
///
/// let token = CancelToken::default();
/// let request = GenerateRequest::txt2img("a red heart").cancel_token(token.clone());
/// std::thread::spawn(move || token.cancel());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Stops the runs. Those that begin later end at once.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl GenerateRequest {
    /// What stops the run from another thread; it ends with [`Error::Cancelled`]. Default: nothing.
    pub fn cancel_token(mut self, token: CancelToken) -> Self {
        self.cancel_token = Some(token);
        self
    }

    /// Whether a run that is cancelled among its steps gives what it has come to, with
    /// [`Warning::Cancelled`](super::Warning::Cancelled), in place of an error: the pictures as the last step
    /// estimates them. Default: no.
    pub fn keep_cancelled(mut self, keep: bool) -> Self {
        self.keep_cancelled = keep;
        self
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel_token
            .as_ref()
            .is_some_and(CancelToken::is_cancelled)
    }

    /// An error if the run shall stop before its steps.
    pub(super) fn check_cancelled(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::Cancelled {
                step: 0,
                num_steps: self.num_steps,
            }),
            false => Ok(()),
        }
    }
}
