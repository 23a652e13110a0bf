//! Bad input is a typed error that says what was expected and found, never a panic.

mod requests;
mod schedulers;
mod single_files;
mod weights;
