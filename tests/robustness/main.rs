//! Bad input is a typed error that says what was expected and found, never a panic.

mod arbitrary;
mod containers;
mod controls;
mod ip_adapters;
mod prompts;
mod requests;
mod schedulers;
mod settings;
mod single_files;
mod weights;
