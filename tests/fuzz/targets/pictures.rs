#![no_main]

//! Files of pictures: their pixels, and what they say of themselves.

use diffusion_core::media::{self, Provenance};
use diffusion_core::pipeline::Recalled;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = media::decode_with_alpha(bytes);
    if let Ok(provenance) = Provenance::from_bytes(bytes) {
        let _ = Recalled::from_provenance(&provenance);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        Recalled::from_parameters(text);
        let _ = Recalled::from_record(text);
    }
});
