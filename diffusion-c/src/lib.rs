//! C ABI of `diffusion-core`: an opaque pipeline, structs that know their size, status codes.
//!
//! The names are C's and the docs of public items become the comments of `include/diffusion.h`, so they
//! speak to C programmers.

#![allow(unsafe_code, reason = "a C ABI takes raw pointers")]
#![deny(clippy::undocumented_unsafe_blocks)]
#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(
    clippy::missing_safety_doc,
    reason = "to C every function is unsafe; the docs, which become the header, say the rules in their text"
)]

mod abi;
mod layout;

// Apart from each other so that rustfmt leaves the order, which is the header's.
pub mod status;

pub mod pipeline;

pub mod changes;

mod networks;
pub mod params;
mod pictures;

pub mod generate;

pub mod files;

use std::ffi::{CStr, c_char};

/// The version of this header's ABI: it changes where old callers would break. Compare it with
/// dfn_abi_version() where the library is loaded at run time.
pub const DFN_ABI_VERSION: u32 = 1;

/// The ABI version of the library in use.
#[unsafe(no_mangle)]
pub extern "C" fn dfn_abi_version() -> u32 {
    DFN_ABI_VERSION
}

/// The version of the library in use, such as "0.1.0". Static text.
#[unsafe(no_mangle)]
pub extern "C" fn dfn_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("the version has a NUL inside"),
        };
    VERSION.as_ptr()
}
