//! Prompts with syntax, against A1111's formulas and compel.

use std::collections::HashMap;
use std::ops::ControlFlow;

use diffusion_core::weights::Embedding;
use diffusion_core::{GenerateRequest, Pipeline, PromptSyntax};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, golden_json, golden_path,
    model_path,
};
use serde::Deserialize;

/// Steps of the runs whose schedules were recorded.
const STEPS: usize = 10;

#[derive(Deserialize)]
struct Case {
    model: String,
    prompt: String,
    clip_skip: Option<usize>,
    /// The last steps of a schedule's texts.
    ends: Option<Vec<usize>>,
    /// Which of the recorded embeddings each text has.
    rows: Vec<usize>,
}

fn open(name: &str) -> TestResult<Pipeline> {
    let mut builder = Pipeline::builder().weights(model_path(name));
    if name == "sd15" {
        for word in ["cat-toy", "worst-thing", "pairs"] {
            let path = golden_path(&format!("embeddings/{word}.safetensors"));
            builder = builder.embedding(Embedding::open(path, None)?);
        }
    }
    Ok(builder.build()?)
}

fn compare(name: &str, syntax: PromptSyntax) -> TestResult<usize> {
    let golden = Golden::open(name)?;
    let cases: Vec<Case> = serde_json::from_value(golden_json(&format!("{name}.json"))?)?;
    let mut pipes: HashMap<String, Pipeline> = HashMap::new();
    for (i, case) in cases.iter().enumerate() {
        if !pipes.contains_key(&case.model) {
            pipes.insert(case.model.clone(), open(&case.model)?);
        }
        let pipe = &pipes[&case.model];
        let mut request = GenerateRequest::txt2img(&case.prompt)
            .prompt_syntax(syntax)
            .guidance_scale(1.0)
            .num_steps(STEPS);
        if let Some(layer) = case.clip_skip {
            request = request.clip_skip(layer);
        }
        let (plan, warnings) = pipe.encode_plan(&request)?;
        assert!(warnings.is_empty(), "{}: {warnings:?}", case.prompt);
        let at = |step: usize| &plan.prompts[plan.steps[step.min(plan.steps.len() - 1)]].parts;
        let ends = case.ends.clone().unwrap_or(vec![STEPS]);
        let mut start = 0;
        for (end, row) in ends.into_iter().zip(&case.rows) {
            for step in start..end {
                let [(conditioning, 1.0)] = &at(step)[..] else {
                    return Err(format!("{}: not one prompt", case.prompt).into());
                };
                let what = format!("{i}, {} {:?}, step {step}", case.model, case.prompt);
                let reference = golden.tensor(&format!("{i}.{row}.embeds"))?;
                assert_close(&what, &conditioning.prompt_embeds, &reference, TOLERANCE)?;
                let pooled = conditioning
                    .text_time
                    .as_ref()
                    .map(|time| &time.text_embeds);
                let name = format!("{i}.{row}.pooled");
                assert_eq!(pooled.is_some(), golden.contains(&name), "{what}");
                if let Some(pooled) = pooled {
                    assert_close(&what, pooled, &golden.tensor(&name)?, TOLERANCE)?;
                }
            }
            start = end;
        }
    }
    Ok(cases.len())
}

#[test]
fn a1111() -> TestResult {
    let count = compare("prompts_a1111", PromptSyntax::A1111)?;
    assert!(count >= 30, "{count}");
    Ok(())
}

#[test]
fn compel() -> TestResult {
    let count = compare("prompts_compel", PromptSyntax::Compel)?;
    assert!(count >= 30, "{count}");
    Ok(())
}

#[test]
fn schedules_and_compositions_in_a_run() -> TestResult {
    #[derive(Deserialize)]
    struct Run {
        prompt: String,
        negative_prompt: String,
        guidance_scale: f64,
    }
    let golden = Golden::open("prompts_a1111")?;
    let runs: Vec<Run> = serde_json::from_value(golden_json("prompts_runs.json")?)?;
    let pipe = open("sd15")?;
    for (i, run) in runs.iter().enumerate() {
        let request = GenerateRequest::txt2img(&run.prompt)
            .negative_prompt(&run.negative_prompt)
            .guidance_scale(run.guidance_scale)
            .scheduler_name("euler")
            .num_steps(6)
            .seed(3);
        let reference = golden.tensor(&format!("run.{i}"))?;
        // The second time from memory.
        for _ in 0..2 {
            let sampled = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
            assert_close(&run.prompt, &sampled.latents, &reference, RUN_TOLERANCE)?;
        }
        // A batch of two has the same first picture.
        let request = request.num_images(2).batch_size(2);
        let sampled = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
        let first = sampled.latents.narrow(0, 0, 1)?;
        assert_close(&run.prompt, &first, &reference, RUN_TOLERANCE)?;
    }
    Ok(())
}
