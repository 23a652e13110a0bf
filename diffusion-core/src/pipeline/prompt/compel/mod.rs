//! Prompts in compel's syntax, read by the text encoders.

mod parse;

use std::f64::consts::FRAC_PI_2;
use std::ops::RangeInclusive;

use candle_core::{DType, Tensor};

use super::limits::{ChunkBudget, check_length};
use super::reader::{Read, Reader, side_by_side};
use super::{PromptEmbeds, Texts};
use crate::error::Result;
use crate::model::Tokenizer;
use parse::{Fragment, Part, parse};

/// The smallest weight: at 0 the prompt without the words would count infinitely.
const MIN_WEIGHT: f64 = 1e-5;

/// Tokens that a long prompt is cut behind: at best those of the first list.
const ENDS: [&[&str]; 2] = [&[".</w>"], &[".</w>", ",</w>", ";</w>", ":</w>"]];

/// Reads a prompt of any length.
///
/// Source: compel 2.5, `CompelForSD` and `CompelForSDXL`.
pub(super) fn read(readers: &[Reader<'_>], texts: &Texts<'_>) -> Result<PromptEmbeds> {
    let mut budget = ChunkBudget::new();
    let mut reads = Vec::with_capacity(readers.len());
    for reader in readers {
        let text = reader.text(texts);
        check_length(text)?;
        let empty = reader.read(&reader.tokenizer.framed(&[]))?.embeds;
        let mut side = Side {
            reader,
            empty,
            budget: &mut budget,
        };
        let embeds = side.prompt(text)?;
        // compel's pooled vector is of the text with its syntax.
        let pooled = reader.read(&reader.tokenizer.encode(text)?.ids)?.pooled;
        reads.push((Read { embeds, pooled }, side.empty));
    }
    let lengths = reads.iter().map(|(read, _)| read.embeds.dim(1));
    let longest = lengths.collect::<candle_core::Result<Vec<_>>>()?;
    let longest = longest.into_iter().max().unwrap_or(0);
    let padded = reads.into_iter().map(|(read, empty)| {
        Ok(Read {
            embeds: padded(&read.embeds, &empty, longest)?,
            ..read
        })
    });
    side_by_side(padded.collect::<Result<_>>()?)
}

/// One text encoder at work.
struct Side<'a> {
    reader: &'a Reader<'a>,
    /// `(1, tokens, dim)`: the empty prompt.
    empty: Tensor,
    budget: &'a mut ChunkBudget,
}

/// A prompt's ids in chunks with start, end and padding.
struct Tokens {
    /// The ids of each chunk, and the weight of each id.
    chunks: Vec<(Vec<u32>, Vec<f32>)>,
    /// Where fragments of a weight below 1 lie in all chunks together, and that weight.
    weakened: Vec<(RangeInclusive<usize>, f64)>,
}

impl Side<'_> {
    /// The parts one behind the other.
    fn prompt(&mut self, text: &str) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (part, weight) in parse(text)? {
            let embeds = match part {
                Part::Prompt(fragments) => self.fragments(&fragments)?,
                Part::Blend {
                    prompts,
                    is_normalized,
                } => self.blend(&prompts, is_normalized)?,
            };
            parts.push(match weight == 1.0 {
                true => embeds,
                false => {
                    let empty = padded(&self.empty, &self.empty, embeds.dim(1)?)?;
                    (&empty + ((embeds - &empty)? * weight)?)?
                }
            });
        }
        Ok(Tensor::cat(&parts, 1)?)
    }

    fn blend(&mut self, prompts: &[(Vec<Fragment>, f64)], is_normalized: bool) -> Result<Tensor> {
        let mut embeds = Vec::with_capacity(prompts.len());
        for (fragments, weight) in prompts {
            embeds.push((self.fragments(fragments)?, *weight));
        }
        let lengths = embeds.iter().map(|(embeds, _)| embeds.dim(1));
        let longest = lengths.collect::<candle_core::Result<Vec<_>>>()?;
        let longest = longest.into_iter().max().unwrap_or(0);
        for (embeds, _) in &mut embeds {
            *embeds = padded(embeds, &self.empty, longest)?;
        }
        mixed(&embeds, is_normalized)
    }

    /// Words above weight 1 lie further from the empty prompt. Those below lie nearer, and the prompt is mixed with
    /// the same in which nothing looks at them.
    fn fragments(&mut self, fragments: &[Fragment]) -> Result<Tensor> {
        let tokens = tokens(self.reader.tokenizer, fragments)?;
        self.budget
            .take(tokens.chunks.len() * (1 + tokens.weakened.len()))?;
        let mut embeds = vec![(self.weighted(&tokens, None)?, 1.0)];
        for (unseen, weight) in &tokens.weakened {
            let share = ((1.0 - weight.max(MIN_WEIGHT)) * FRAC_PI_2).tan();
            embeds.push((self.weighted(&tokens, Some(unseen))?, share));
        }
        mixed(&embeds, true)
    }

    /// All chunks, where nothing looks at the ids of a range.
    fn weighted(&self, tokens: &Tokens, unseen: Option<&RangeInclusive<usize>>) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(tokens.chunks.len());
        for (i, (ids, weights)) in tokens.chunks.iter().enumerate() {
            let length = ids.len();
            let is_unseen =
                |at: &usize| unseen.is_some_and(|range| range.contains(&(i * length + at)));
            // Start and end of a chunk are always seen.
            let unseen: Vec<usize> = (1..length - 1).filter(is_unseen).collect();
            let embeds = self.reader.read_unseen(ids, &unseen)?.embeds;
            parts.push(match weights.iter().all(|weight| *weight == 1.0) {
                true => embeds,
                false => {
                    let (dtype, tokens) = (embeds.dtype(), weights.len());
                    let (embeds, empty) = (
                        embeds.to_dtype(DType::F32)?,
                        self.empty.to_dtype(DType::F32)?,
                    );
                    let more: Vec<f32> = weights.iter().map(|weight| weight - 1.0).collect();
                    let more = Tensor::from_vec(more, (1, tokens, 1), embeds.device())?;
                    let difference = (&embeds - &empty)?.broadcast_mul(&more)?;
                    (embeds + difference)?.to_dtype(dtype)?
                }
            });
        }
        Ok(Tensor::cat(&parts, 1)?)
    }
}

/// Fragments in chunks, which end behind a sentence, else a phrase, else a word.
fn tokens(tokenizer: &Tokenizer, fragments: &[Fragment]) -> Result<Tokens> {
    let room = tokenizer.room();
    // The ids with their fragments, and whether a chunk may end behind them.
    let mut ids = Vec::new();
    for (i, fragment) in fragments.iter().enumerate() {
        for token in tokenizer.tokens(&fragment.text)? {
            let last = token.ids.end - 1;
            ids.extend(token.ids.map(|id| (id, i, id == last)));
        }
    }
    let mut tokens = Tokens {
        chunks: Vec::new(),
        weakened: Vec::new(),
    };
    let mut places: Vec<Option<(usize, usize)>> = vec![None; fragments.len()];
    let mut rest = &ids[..];
    loop {
        let (chunk, more) = rest.split_at(end_of_chunk(tokenizer, rest, room));
        let start = tokens.chunks.len() * tokenizer.max_length() + 1;
        let mut weights = vec![1.0; tokenizer.max_length()];
        for (at, (_, i, _)) in chunk.iter().enumerate() {
            weights[at + 1] = fragments[*i].weight as f32;
            let (first, _) = places[*i].unwrap_or((start + at, 0));
            places[*i] = Some((first, start + at));
        }
        let chunk: Vec<u32> = chunk.iter().map(|(id, _, _)| *id).collect();
        tokens.chunks.push((tokenizer.framed(&chunk), weights));
        rest = more;
        if rest.is_empty() || room == 0 {
            break;
        }
    }
    for (place, fragment) in places.into_iter().zip(fragments) {
        if let (Some((first, last)), true) = (place, fragment.weight < 1.0) {
            tokens.weakened.push((first..=last, fragment.weight));
        }
    }
    Ok(tokens)
}

/// How many of the ids the next chunk has.
fn end_of_chunk(tokenizer: &Tokenizer, ids: &[(u32, usize, bool)], room: usize) -> usize {
    if ids.len() <= room {
        return ids.len();
    }
    let spelled: Vec<String> = ids[..room]
        .iter()
        .map(|(id, _, _)| tokenizer.spelling(*id).unwrap_or_default())
        .collect();
    let last = |ends: &dyn Fn(&str) -> bool| spelled.iter().rposition(|token| ends(token));
    let best = ENDS
        .iter()
        .find_map(|ends| last(&|token| ends.contains(&token)))
        .or_else(|| last(&|token| token.ends_with("</w>")))
        .or_else(|| ids[..room].iter().rposition(|(_, _, is_whole)| *is_whole));
    best.map_or(room, |at| at + 1)
}

/// The sum of embeddings times weights, of a sum of 1 if wanted.
fn mixed(embeds: &[(Tensor, f64)], is_normalized: bool) -> Result<Tensor> {
    if let [(embeds, 1.0)] = embeds {
        return Ok(embeds.clone());
    }
    let total = match is_normalized {
        true => embeds.iter().map(|(_, weight)| weight).sum(),
        false => 1.0,
    };
    let mut sum: Option<Tensor> = None;
    for (embeds, weight) in embeds {
        let term = (embeds * (weight / total))?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let none = || crate::error::Error::argument("prompt", "something to blend", "nothing");
    sum.ok_or_else(none)
}

/// With empty prompts behind, up to a number of tokens.
fn padded(embeds: &Tensor, empty: &Tensor, tokens: usize) -> Result<Tensor> {
    let mut all = vec![embeds.clone()];
    let mut length = embeds.dim(1)?;
    while length < tokens {
        all.push(empty.clone());
        length += empty.dim(1)?;
    }
    Ok(Tensor::cat(&all, 1)?)
}
