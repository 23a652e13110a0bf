//! What runs underneath the layers, by device. The one place of `nn` with `unsafe` code.
#![allow(unsafe_code)]

pub(crate) mod cpu;
