#![no_main]

//! Both forms of torch.save: the first byte says which.

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if !matches!(bytes.first(), Some(0x80 | b'P')) {
        return Corpus::Reject;
    }
    diffusion_fuzz::open(bytes);
    Corpus::Keep
});
