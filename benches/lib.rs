//! Timings of diffusion-core. The benchmarks are in `stages.rs`, scripts for other libraries in `peers/`.
