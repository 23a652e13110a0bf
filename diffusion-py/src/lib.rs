//! The native half of the Python package `diffusion_py`: plain bytes, shapes and numbers in and out.
//! What users call is in `python/diffusion_py`.

mod arrays;
mod error;
mod files;
#[cfg(feature = "hub")]
mod interrupt;
mod load;
mod networks;
mod pictures;
mod pipeline;
mod progress;
mod request;
mod safety;
mod start;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::files::{recall, save_animation, save_picture};
    #[pymodule_export]
    use super::pictures::NativeControlModel;
    #[pymodule_export]
    use super::pipeline::NativePipeline;
    #[pymodule_export]
    use super::progress::{NativeCancelToken, Progress};
    #[pymodule_export]
    use super::request::NativeRequest;
    #[pymodule_export]
    use super::safety::NativeSafetyChecker;

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// The names of the schedulers, for `Pipeline.generate`; each may be followed by a sigma schedule.
    #[pyfunction]
    fn schedulers() -> Vec<&'static str> {
        diffusion_core::scheduler::names().collect()
    }

    /// The names of the curves of noise levels, to follow the name of a scheduler.
    #[pyfunction]
    fn sigma_schedules() -> Vec<&'static str> {
        let named = diffusion_core::SigmaSchedule::NAMED.into_iter();
        named.map(|(name, _)| name).collect()
    }
}
