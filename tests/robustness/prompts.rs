//! Prompts of any kind: an answer or a typed error, soon, and within bounds.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use diffusion_core::pipeline::PromptPlan;
use diffusion_core::weights::{Embedding, Lora, LoraMode};
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline, PromptEmbeds, PromptSyntax, Tensor};
use diffusion_tests::{TestResult, golden_path, model_path};

const SYNTAXES: [PromptSyntax; 3] = [
    PromptSyntax::Plain,
    PromptSyntax::A1111,
    PromptSyntax::Compel,
];

/// What syntax is made of, and what is none.
const ATOMS: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    "\"",
    "+",
    "-",
    "=",
    ".",
    ",",
    " ",
    "\n",
    "\0",
    "1.3",
    "0.5",
    "7",
    "-1",
    "1e9",
    "BREAK",
    " AND ",
    "cat",
    "é",
    "世界",
    "😀",
    "\u{301}",
    "<|endoftext|>",
    ".and(",
    ".blend(",
    ".swap(",
    ".attend(",
    "withLora(",
    "inf",
    "nan",
];

fn open(name: &str) -> TestResult<Pipeline> {
    Ok(Pipeline::builder().weights(model_path(name)).build()?)
}

fn plan(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Option<PromptPlan>> {
    match pipe.encode_plan(request) {
        Ok((plan, _)) => Ok(Some(plan)),
        Err(error) => match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::Unsupported => Ok(None),
            _ => Err(error.into()),
        },
    }
}

fn values(tensor: &Tensor) -> TestResult<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn latents(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Vec<f32>> {
    let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
    values(&sampled.latents)
}

#[test]
fn arbitrary_strings() -> TestResult {
    let pipe = open("sd15")?;
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut answered = 0;
    for _ in 0..400 {
        let length = 1 + next(14);
        let prompt: String = (0..length).map(|_| ATOMS[next(ATOMS.len())]).collect();
        for syntax in SYNTAXES {
            let request = GenerateRequest::txt2img(&prompt)
                .negative_prompt(&prompt)
                .prompt_syntax(syntax)
                .num_steps(4);
            let Some(plan) = plan(&pipe, &request)? else {
                continue;
            };
            answered += 1;
            for (conditioning, _) in plan.prompts.iter().flat_map(|prompt| &prompt.parts) {
                let sum = conditioning
                    .prompt_embeds
                    .abs()?
                    .sum_all()?
                    .to_scalar::<f32>()?;
                assert!(sum.is_finite(), "{prompt:?}");
            }
        }
    }
    assert!(answered > 800, "{answered} of 1200");
    Ok(())
}

#[test]
fn long_and_deep_strings_end_soon() -> TestResult {
    let pipe = open("sd15")?;
    let deep = ["(", "[", ")", "\"", "\\"].map(|atom| (atom, 100_000));
    let long = [
        "(a", "[a|", "[a:b:", "(a:", "(\"", "a AND ", "BREAK ", "+", "(a)+", "(a)- b ", "a =",
    ];
    let long = long
        .into_iter()
        .flat_map(|atom| [(atom, 3_000), (atom, 20_000)]);
    for (atom, length) in deep.into_iter().chain(long) {
        for syntax in SYNTAXES {
            let request = GenerateRequest::txt2img(atom.repeat(length / atom.len()))
                .guidance_scale(1.0)
                .prompt_syntax(syntax)
                .num_steps(4);
            let start = Instant::now();
            plan(&pipe, &request)?;
            let time = start.elapsed();
            println!("{atom:?} {length} {syntax:?}: {time:?}");
            assert!(
                time < Duration::from_secs(60),
                "{atom} {length} {syntax:?}: {time:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn alternations_within_each_other_stay_few() -> TestResult {
    let pipe = open("sd15")?;
    let nested =
        |depth: usize| (0..depth).fold("x".to_owned(), |inner, _| format!("[a{inner}|b{inner}]"));
    let request = GenerateRequest::txt2img(nested(8))
        .negative_prompt("[c|d|e]")
        .num_steps(12);
    let plan = plan(&pipe, &request)?.ok_or("refused")?;
    assert_eq!(plan.steps.len(), 12);
    assert!(plan.prompts.len() <= 12);
    Ok(())
}

#[test]
fn what_was_read_before_is_the_same() -> TestResult {
    let mut pipe = open("sd15")?;
    let request = GenerateRequest::txt2img("a (cat:1.2) [on|under] a pairs roof")
        .negative_prompt("dark")
        .num_steps(3)
        .seed(1);
    let first = latents(&pipe, &request)?;
    assert_eq!(latents(&pipe, &request)?, first);
    assert_eq!(latents(&open("sd15")?, &request)?, first, "without memory");
    let before = pipe.clone();
    pipe.add_embedding(&Embedding::open(
        golden_path("embeddings/pairs.safetensors"),
        None,
    )?)?;
    let with_word = latents(&pipe, &request)?;
    assert_ne!(with_word, first);
    assert_eq!(
        latents(&before, &request)?,
        first,
        "a clone keeps what it has"
    );
    let lora = Lora::open(golden_path("loras/several_a.safetensors"))?;
    pipe.set_loras_as(LoraMode::Merged, &[(&lora, 1.0)])?;
    let with_lora = latents(&pipe, &request)?;
    assert_ne!(with_lora, with_word);
    pipe.clear_loras();
    assert_eq!(latents(&pipe, &request)?, with_word);
    for other in [
        request.clone().clip_skip(2),
        request.clone().prompt_syntax(PromptSyntax::Plain),
        request.clone().negative_prompt("light"),
        request.clone().num_steps(4),
    ] {
        assert_ne!(latents(&pipe, &other)?, with_word);
    }
    Ok(())
}

#[test]
fn embeddings_in_place_of_prompts() -> TestResult {
    let pipe = open("sdxl")?;
    let base = GenerateRequest::txt2img("a cat, ".repeat(40))
        .prompt_2("a dog")
        .negative_prompt("dark")
        .num_steps(2)
        .seed(1);
    let (conditioning, _) = pipe.encode_prompt(&base)?;
    let pooled = |time: Option<diffusion_core::model::TextTime>| time.map(|time| time.text_embeds);
    let positive = PromptEmbeds {
        embeds: conditioning.prompt_embeds.clone(),
        pooled: pooled(conditioning.text_time),
    };
    let negative = PromptEmbeds {
        embeds: conditioning.negative_prompt_embeds.ok_or("no negative")?,
        pooled: pooled(conditioning.negative_text_time),
    };
    assert_eq!(positive.embeds.dims(), negative.embeds.dims());
    assert!(positive.embeds.dim(1)? > 77);
    let given = base
        .clone()
        .prompt("not read")
        .negative_prompt("not read")
        .prompt_embeds(positive.clone())
        .negative_prompt_embeds(negative);
    assert_eq!(latents(&pipe, &given)?, latents(&pipe, &base)?);
    // A shorter negative prompt is filled up; zeros are of the same length as the prompt.
    let embeds = base.clone().prompt_embeds(positive.clone());
    assert_eq!(latents(&pipe, &embeds)?, latents(&pipe, &base)?);
    let refused = |embeds: Tensor, pooled: Option<Tensor>| {
        let request = base.clone().prompt_embeds(PromptEmbeds { embeds, pooled });
        latents(&pipe, &request).is_err()
    };
    let PromptEmbeds { embeds, pooled } = positive;
    assert!(refused(embeds.clone(), None), "without pooled vector");
    assert!(
        refused(embeds.squeeze(0)?, pooled.clone()),
        "without pictures"
    );
    assert!(
        refused(embeds.narrow(1, 0, 80)?, pooled.clone()),
        "80 tokens"
    );
    assert!(
        refused(embeds.narrow(2, 0, 8)?, pooled.clone()),
        "8 channels"
    );
    assert!(refused(embeds.repeat((3, 1, 1))?, pooled.clone()), "3 rows");
    assert!(refused((embeds * f64::NAN)?, pooled), "no numbers");
    Ok(())
}

#[test]
fn what_does_not_fit_says_so() -> TestResult {
    let message = |pipe: &Pipeline, request: GenerateRequest| match latents(pipe, &request) {
        Ok(_) => Err("accepted".to_owned()),
        Err(error) => Ok(error.to_string()),
    };
    let sd15 = open("sd15")?;
    let prompt = |text: &str| GenerateRequest::txt2img(text).num_steps(1);
    for layer in [0, 4, usize::MAX] {
        assert!(message(&sd15, prompt("a").clip_skip(layer))?.contains("clip_skip"));
    }
    assert!(message(&sd15, prompt("(a:1000000)"))?.contains("weights from"));
    assert!(message(&sd15, prompt(&"a ".repeat(80_000)))?.contains("bytes"));
    assert!(message(&sd15, prompt(&"BREAK ".repeat(2000)))?.contains("1024 chunks"));
    let compel = |text: &str| prompt(text).prompt_syntax(PromptSyntax::Compel);
    assert!(message(&sd15, compel("a cat.swap(dog)"))?.contains(".swap()"));
    assert!(message(&sd15, compel("withLora(style, 0.5) a"))?.contains("set_loras"));
    assert!(message(&sd15, compel(r#"("a", "b").and(1)"#))?.contains("weights"));
    assert!(message(&sd15, compel(r#"("a", "b").blend(1, -1)"#))?.contains("no_normalize"));
    assert!(message(&sd15, compel(r#"("a", "b").and(1, 1) c"#))?.contains("behind .and()"));
    let sdxl = open("sdxl")?;
    let two = prompt("a AND b AND c").prompt_2("d AND e");
    assert!(message(&sdxl, two)?.contains("3 between AND"));
    assert!(message(&open("lcm")?, prompt("a AND b"))?.contains("distilled"));
    assert!(sd15.encode_prompt(&prompt("a AND b")).is_err());
    assert!(sd15.encode_prompt(&prompt("[a|b]").num_steps(2)).is_err());
    assert!(
        sd15.encode_prompt(&prompt("[a:b:5]")).is_ok(),
        "one step has one prompt"
    );
    Ok(())
}
