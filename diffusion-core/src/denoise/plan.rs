//! Conditioning that changes along a run, and several prompts at once.

use std::ops::Range;

use candle_core::Tensor;

use super::{Conditioning, Denoiser, Estimate, Guidance, Guided};
use crate::error::{Error, Result};

/// Several prompts at once, each with its weight. One alone of weight 1 is an ordinary prompt.
///
/// Source: Liu et al., "Compositional Visual Generation with Composable Diffusion Models", 2022, equation 11.
#[derive(Debug, Clone)]
pub struct ComposedPrompt {
    /// At least one. The negative prompt is the first one's.
    pub parts: Vec<(Conditioning, f64)>,
}

impl ComposedPrompt {
    /// Whether there is something to compose, for which the answer to the negative prompt is needed.
    pub fn is_composed(&self) -> bool {
        !matches!(self.parts[..], [(_, 1.0)])
    }
}

/// What a run is told of the wanted picture, step by step.
#[derive(Debug, Clone)]
pub struct PromptPlan {
    /// The different ones, at least one.
    pub prompts: Vec<ComposedPrompt>,
    /// Which of them each step has; the last goes on for all steps that follow. At least one.
    pub steps: Vec<usize>,
}

impl From<Conditioning> for PromptPlan {
    fn from(conditioning: Conditioning) -> Self {
        let parts = vec![(conditioning, 1.0)];
        Self {
            prompts: vec![ComposedPrompt { parts }],
            steps: vec![0],
        }
    }
}

impl PromptPlan {
    /// Whether any step has several prompts.
    pub fn is_composed(&self) -> bool {
        self.prompts.iter().any(ComposedPrompt::is_composed)
    }

    /// The conditioning of a plan that has one for all steps.
    pub fn into_conditioning(mut self) -> Option<Conditioning> {
        let is_plain = self.prompts.len() == 1 && !self.is_composed();
        let parts = self.prompts.pop().filter(|_| is_plain)?.parts;
        parts
            .into_iter()
            .next()
            .map(|(conditioning, _)| conditioning)
    }

    /// All of them.
    pub(crate) fn conditionings(&self) -> impl Iterator<Item = &Conditioning> {
        let parts = self.prompts.iter().flat_map(|prompt| &prompt.parts);
        parts.map(|(conditioning, _)| conditioning)
    }

    /// Checks that there is a prompt for each step, and one row in each, or one for each picture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if not.
    pub fn check(&self, num_images: usize) -> Result<()> {
        let is_there = |step: &usize| *step < self.prompts.len();
        let has_parts = |prompt: &ComposedPrompt| !prompt.parts.is_empty();
        let is_whole = self.steps.iter().all(is_there) && self.prompts.iter().all(has_parts);
        if self.steps.is_empty() || !is_whole {
            let expected = "a prompt of at least one part for each step";
            return Err(Error::argument("prompt plan", expected, "none"));
        }
        self.conditionings()
            .try_for_each(|conditioning| conditioning.check_rows(num_images))
    }

    /// The rows of some of `num_images` pictures.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the range does not fit.
    pub fn of_images(&self, images: &Range<usize>, num_images: usize) -> Result<Self> {
        let mut plan = self.clone();
        for (conditioning, _) in plan.prompts.iter_mut().flat_map(|p| &mut p.parts) {
            *conditioning = conditioning.of_images(images, num_images)?;
        }
        Ok(plan)
    }

    fn at_step(&self, index: usize) -> usize {
        let step = self.steps.get(index).or(self.steps.last());
        step.copied().unwrap_or(0)
    }
}

/// A denoiser that follows a plan: [`Guided`] under the prompt of the step, or several of them composed.
pub struct Planned<'a, F> {
    plan: &'a PromptPlan,
    guidance: &'a Guidance,
    guided: F,
    /// Which prompt the parts are for.
    current: Option<usize>,
    parts: Vec<(Guided<'a>, f64)>,
    step: Option<(usize, usize)>,
    wanted: usize,
}

impl<'a, F> Planned<'a, F>
where
    F: Fn(&Conditioning, Option<&Guidance>) -> Result<Guided<'a>>,
{
    /// `guided` makes the denoiser of a prompt, under guidance or for the prompt alone.
    pub fn new(plan: &'a PromptPlan, guidance: &'a Guidance, guided: F) -> Self {
        Self {
            plan,
            guidance,
            guided,
            current: None,
            parts: Vec::new(),
            step: None,
            wanted: plan.at_step(0),
        }
    }

    /// Prepares the prompt of the step, if it is another one than before.
    fn prepare(&mut self) -> Result<()> {
        if self.current == Some(self.wanted) {
            return Ok(());
        }
        let prompt = &self.plan.prompts[self.wanted];
        let guided = |(i, (conditioning, weight)): (usize, &(Conditioning, f64))| {
            let guidance = (i == 0).then_some(self.guidance);
            let mut guided = (self.guided)(conditioning, guidance)?;
            if let Some((index, num_steps)) = self.step {
                guided.begin_step(index, num_steps);
            }
            Ok((guided, *weight))
        };
        self.parts = prompt
            .parts
            .iter()
            .enumerate()
            .map(guided)
            .collect::<Result<_>>()?;
        self.current = Some(self.wanted);
        Ok(())
    }
}

impl<'a, F> Denoiser for Planned<'a, F>
where
    F: Fn(&Conditioning, Option<&Guidance>) -> Result<Guided<'a>>,
{
    fn begin_step(&mut self, index: usize, num_steps: usize) {
        self.step = Some((index, num_steps));
        self.wanted = self.plan.at_step(index);
        for (guided, _) in &mut self.parts {
            guided.begin_step(index, num_steps);
        }
    }

    /// `u + sum of w_i * scale * (c_i - u)`, with `u` the answer to the negative prompt.
    fn denoise(&mut self, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Estimate> {
        self.prepare()?;
        let is_composed = self.plan.prompts[self.wanted].is_composed();
        let mut parts = self.parts.iter_mut();
        let Some((first, weight)) = parts.next() else {
            return Err(Error::argument("prompt plan", "a prompt", "none"));
        };
        let estimate = first.denoise(latents, sigma, timestep)?;
        if !is_composed {
            return Ok(estimate);
        }
        let Some(unconditional) = estimate.unconditional else {
            return Err(Error::unsupported(
                "a composition of prompts with a model that has guidance distilled in",
                "give it one prompt",
            ));
        };
        let mut denoised = (&unconditional + ((estimate.denoised - &unconditional)? * *weight)?)?;
        for (part, weight) in parts {
            let prompted = part.denoise(latents, sigma, timestep)?.denoised;
            let scale = *weight * self.guidance.scale_at(self.step);
            denoised = (denoised + ((prompted - &unconditional)? * scale)?)?;
        }
        Ok(Estimate {
            denoised,
            unconditional: Some(unconditional),
        })
    }
}
