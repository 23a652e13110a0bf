//! A scheduler of one's own: `cargo run --release --example custom_scheduler` writes `out.png`.
//!
//! Third order with three evaluations a step: A. Ralston, "Runge-Kutta Methods with Minimum Error Bounds",
//! Mathematics of Computation 16, 1962, on the slope `(x - denoised) / sigma` of the probability flow.

use diffusion_core::scheduler::karras_sigmas;
use diffusion_core::{
    GenerateRequest, NoiseSchedule, Pipeline, Result, Scheduler, Solver, Step, Tensor,
};

/// Ralston's method over Karras's noise levels.
#[derive(Debug)]
pub struct Ralston;

impl Scheduler for Ralston {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let mut sigmas = karras_sigmas(noise.sigma_min(), noise.sigma_max(), num_steps)?;
        sigmas.push(0.0);
        Ok(sigmas)
    }

    /// A run's state would live in the closure; this method has none.
    fn solver(&self) -> Box<dyn Solver> {
        Box::new(|step: &mut Step<'_>, x: &Tensor| {
            let (from, to) = (step.sigma(), step.sigma_next());
            if to == 0.0 {
                // No slope is known at the end: straight to the clean latents.
                return step.denoise(x, from);
            }
            let h = to - from;
            let k1 = slope(step, x, from)?;
            let x2 = step.combine(&[(1.0, x), (h / 2.0, &k1)])?;
            let k2 = slope(step, &x2, from + h / 2.0)?;
            let x3 = step.combine(&[(1.0, x), (h * 0.75, &k2)])?;
            let k3 = slope(step, &x3, from + h * 0.75)?;
            let (w1, w2, w3) = (h * 2.0 / 9.0, h / 3.0, h * 4.0 / 9.0);
            step.combine(&[(1.0, x), (w1, &k1), (w2, &k2), (w3, &k3)])
        })
    }
}

fn slope(step: &mut Step<'_>, x: &Tensor, sigma: f64) -> Result<Tensor> {
    let denoised = step.denoise(x, sigma)?;
    step.combine(&[(sigma.recip(), x), (-sigma.recip(), &denoised)])
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji");
    let request = GenerateRequest::txt2img("a red heart, flat style")
        .num_steps(10)
        .guidance_scale(5.0)
        .seed(1)
        .scheduler(Ralston);
    let pipe = Pipeline::builder().weights(model).build()?;
    pipe.generate(&request)?.save(0, "out.png")?;
    Ok(())
}
