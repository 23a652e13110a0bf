#![no_main]

//! Prompts in each syntax, read by a tiny model.

use std::path::Path;
use std::sync::LazyLock;

use diffusion_core::{GenerateRequest, Pipeline, PromptSyntax, Result};
use libfuzzer_sys::fuzz_target;

static MODEL: LazyLock<Result<Pipeline>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/models/sd15");
    Pipeline::builder().weights(folder).build()
});

fuzz_target!(|prompt: &str| {
    let model = MODEL.as_ref().expect("the tiny model opens");
    for syntax in [
        PromptSyntax::Plain,
        PromptSyntax::A1111,
        PromptSyntax::Compel,
    ] {
        let request = GenerateRequest::txt2img(prompt)
            .negative_prompt(prompt)
            .prompt_syntax(syntax)
            .num_steps(3);
        let _ = model.encode_plan(&request);
    }
});
