//! Cancelled and failed runs leave nothing behind. A process of its own, so that its memory can be read.

use std::fs;
use std::ops::ControlFlow;

use diffusion_core::{CancelToken, ErrorKind, GenerateRequest, Pipeline};
use diffusion_tests::{TestResult, model_path};

/// Resident bytes of this process.
#[cfg(target_os = "linux")]
fn resident() -> TestResult<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS")?.parse::<f64>()? * 1024.0)
}

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("two cats! on a red roof")
        .size(64, 64)
        .num_steps(4)
        .seed(1)
}

fn cancelled(pipe: &Pipeline, i: usize) -> TestResult {
    let token = CancelToken::default();
    let request = request().cancel_token(token.clone());
    let ended = pipe.generate_with(&request, &mut |_| match i % 2 {
        0 => ControlFlow::Break(()),
        _ => {
            token.cancel();
            ControlFlow::Continue(())
        }
    });
    let error = ended.err().ok_or("it went on")?;
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_cancelled_and_a_hundred_failed_runs() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let before = pipe.generate(&request())?.images;
    let rest = |runs: std::ops::Range<usize>| -> TestResult {
        for i in runs {
            cancelled(&pipe, i)?;
            if i % 10 == 0 {
                let wrong = request().eta(7.0);
                assert!(pipe.generate(&wrong).is_err());
            }
        }
        Ok(())
    };
    // The allocator's pools fill first.
    rest(0..1000)?;
    let filled = resident()?;
    rest(1000..2100)?;
    let after = resident()?;
    assert!(
        after < filled * 1.02,
        "{filled} bytes before, {after} after"
    );
    assert!(pipe.generate(&request())?.images == before);
    Ok(())
}
