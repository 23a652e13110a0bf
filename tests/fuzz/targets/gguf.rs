#![no_main]

//! Files with the magic number of GGUF.

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if !bytes.starts_with(b"GGUF") {
        return Corpus::Reject;
    }
    diffusion_fuzz::open(bytes);
    Corpus::Keep
});
