#![no_main]

//! Files whose header begins as JSON does.

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if bytes.get(8) != Some(&b'{') {
        return Corpus::Reject;
    }
    diffusion_fuzz::open(bytes);
    Corpus::Keep
});
