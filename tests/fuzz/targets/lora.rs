#![no_main]

//! Files of adapters and of learned words: their keys, and what becomes of them in a model.

use std::path::Path;
use std::sync::LazyLock;

use diffusion_core::weights::{Embedding, Lora, LoraMode, LoraScale, ModelPart, TensorFile, merge_loras};
use diffusion_core::{Pipeline, Result};
use libfuzzer_sys::{Corpus, fuzz_target};

static MODEL: LazyLock<Result<Pipeline>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/models/sdxl");
    Pipeline::builder().weights(folder).build()
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(file) = TensorFile::from_bytes("fuzz", bytes.to_vec()) else {
        return Corpus::Reject;
    };
    let _ = Embedding::read(&file, Some("word"));
    if let Ok(lora) = Lora::read(&file, &Default::default()) {
        let model = MODEL.as_ref().expect("the tiny model opens");
        let mut parts = vec![(ModelPart::UNet, model.unet().weights())];
        parts.extend(model.text_encoder().map(|t| (ModelPart::TextEncoder, t.weights())));
        parts.extend(model.text_encoder_2().map(|t| (ModelPart::TextEncoder2, t.weights())));
        for mode in [LoraMode::Merged, LoraMode::AtRunTime] {
            let _ = merge_loras(&parts, &[(&lora, &LoraScale::from(0.5))], mode);
        }
    }
    Corpus::Keep
});
