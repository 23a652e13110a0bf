//! Ctrl-C while something is downloaded.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use diffusion_core::weights::HubOptions;
use pyo3::prelude::*;

/// Remembers what a signal raised, until the stopped download has come back.
#[derive(Default)]
pub(crate) struct Interrupt(Arc<Mutex<Option<PyErr>>>);

impl Interrupt {
    /// The hub as the environment says, with downloads that a signal stops.
    pub(crate) fn hub(&self) -> HubOptions {
        let raised = self.0.clone();
        HubOptions::from_env().progress(move |_| match Python::attach(|py| py.check_signals()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(exception) => {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(exception);
                ControlFlow::Break(())
            }
        })
    }

    /// What was raised, if anything.
    pub(crate) fn check(&self) -> PyResult<()> {
        let mut raised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        raised.take().map_or(Ok(()), Err)
    }
}
