//! Status codes, and the text of the last error.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use diffusion_core::{Error, ErrorKind};

/// How a call ended. The values stay; later versions may add some.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum dfn_status {
    /// It worked.
    DFN_OK = 0,
    /// An argument is out of range, NULL, not UTF-8 or does not fit the model.
    DFN_INVALID_ARGUMENT = 1,
    /// A path, file or component does not exist.
    DFN_NOT_FOUND = 2,
    /// Reading or writing failed.
    DFN_IO = 3,
    /// A file is damaged or not what its name says.
    DFN_FORMAT = 4,
    /// The tensors of a checkpoint do not fit its configuration.
    DFN_WEIGHTS = 5,
    /// A model or option that this version does not know.
    DFN_UNSUPPORTED = 6,
    /// The run would not fit into memory.
    DFN_OUT_OF_MEMORY = 7,
    /// The progress function stopped the run.
    DFN_CANCELLED = 8,
    /// The tensor layer or the device failed.
    DFN_DEVICE = 9,
    /// Any other failure.
    DFN_CUSTOM = 10,
    /// A fault in the library itself. It was caught: the process and its other pipelines can go on.
    DFN_PANIC = 11,
}

use dfn_status::*;

/// The name of a status, such as "DFN_NOT_FOUND"; "unknown status" for a number that is none. Static
/// text.
#[unsafe(no_mangle)]
pub extern "C" fn dfn_status_name(status: i32) -> *const c_char {
    // A number and not the enum: C may pass any.
    let names = [
        (DFN_OK, c"DFN_OK"),
        (DFN_INVALID_ARGUMENT, c"DFN_INVALID_ARGUMENT"),
        (DFN_NOT_FOUND, c"DFN_NOT_FOUND"),
        (DFN_IO, c"DFN_IO"),
        (DFN_FORMAT, c"DFN_FORMAT"),
        (DFN_WEIGHTS, c"DFN_WEIGHTS"),
        (DFN_UNSUPPORTED, c"DFN_UNSUPPORTED"),
        (DFN_OUT_OF_MEMORY, c"DFN_OUT_OF_MEMORY"),
        (DFN_CANCELLED, c"DFN_CANCELLED"),
        (DFN_DEVICE, c"DFN_DEVICE"),
        (DFN_CUSTOM, c"DFN_CUSTOM"),
        (DFN_PANIC, c"DFN_PANIC"),
    ];
    let name = names.iter().find(|(known, _)| *known as i32 == status);
    name.map_or(c"unknown status", |(_, name)| name).as_ptr()
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// What went wrong in this thread's last failed call: what was expected, what was found, what to do.
/// Never NULL; empty before the first failure. The text is valid until the next failing call on this
/// thread or the thread's end; calls that succeed leave it alone.
#[unsafe(no_mangle)]
pub extern "C" fn dfn_last_error() -> *const c_char {
    // A thread that is ending may have dropped it already.
    LAST_ERROR
        .try_with(|text| text.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Why a call fails: its status and its text.
#[derive(Debug)]
pub(crate) struct Failure {
    status: dfn_status,
    message: String,
}

impl Failure {
    pub(crate) fn argument(name: &str, expected: impl Display, found: impl Display) -> Self {
        Self {
            status: DFN_INVALID_ARGUMENT,
            message: format!("{name}: expected {expected}, found {found}"),
        }
    }

    fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self {
            status: DFN_PANIC,
            message: format!(
                "the library has a fault, please report it: {}",
                text.unwrap_or("no message")
            ),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidArgument => DFN_INVALID_ARGUMENT,
            ErrorKind::NotFound => DFN_NOT_FOUND,
            ErrorKind::Io => DFN_IO,
            ErrorKind::Format => DFN_FORMAT,
            ErrorKind::Weights => DFN_WEIGHTS,
            ErrorKind::Unsupported => DFN_UNSUPPORTED,
            ErrorKind::OutOfMemory => DFN_OUT_OF_MEMORY,
            ErrorKind::Cancelled => DFN_CANCELLED,
            ErrorKind::Device => DFN_DEVICE,
            _ => DFN_CUSTOM,
        };
        Self {
            status,
            message: error.to_string(),
        }
    }
}

/// Runs the body of an entry: failures and panics become a status and this thread's last error.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> dfn_status {
    // What an entry changes beside its own locals is written in one go at its end, so nothing half-done
    // can be seen after a panic.
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(Failure::panic(&*payload)));
    match result {
        Ok(()) => DFN_OK,
        Err(Failure { status, message }) => {
            let text = c_text(&message);
            // If the thread is ending there is nobody left to ask for the text.
            let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = text);
            status
        }
    }
}

/// Text for C. A NUL inside, as a file may have brought it into a message, would cut the rest off.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: `dfn_last_error` returns text that ends in NUL and lives until the next failing call.
        let text = unsafe { CStr::from_ptr(dfn_last_error()) };
        text.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn panics_become_a_status() {
        assert_eq!(guard(|| panic!("index {} of 3", 7)), DFN_PANIC);
        assert!(last_error().ends_with("please report it: index 7 of 3"));
        assert_eq!(guard(|| std::panic::panic_any(1)), DFN_PANIC);
        assert!(last_error().ends_with("no message"));
        assert_eq!(guard(|| Ok(())), DFN_OK);
        assert!(last_error().ends_with("no message"));
    }

    #[test]
    fn errors_of_the_core_keep_kind_and_text() {
        let custom = || Err(Failure::from(Error::custom("a\0b")));
        assert_eq!(guard(custom), DFN_CUSTOM);
        assert_eq!(last_error(), "a\u{fffd}b");
        let device = || {
            let failed = diffusion_core::Tensor::zeros(
                1,
                diffusion_core::DType::F32,
                &diffusion_core::Device::Cpu,
            )
            .and_then(|tensor| tensor.reshape(2));
            failed.map(|_| ()).map_err(|e| Error::from(e).into())
        };
        assert_eq!(guard(device), DFN_DEVICE);
    }
}
