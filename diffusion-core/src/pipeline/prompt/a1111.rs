//! Prompts in A1111's syntax, read by the text encoders.

use std::collections::{BTreeSet, HashMap};

use super::chunks::chunks;
use super::limits::{ChunkBudget, check_length};
use super::plan::{Prompt, Scheduled};
use super::reader::{Reader, Weighted, side_by_side};
use super::schedule::{Entry, schedule};
use super::{Texts, composition, emphasis};
use crate::error::{Error, Result};

/// Reads a prompt of any length. Only positive ones are composed.
pub(super) fn read(readers: &[Reader<'_>], texts: &Texts<'_>, num_steps: usize) -> Result<Prompt> {
    check_length(texts.first)?;
    check_length(texts.second)?;
    let split = |text| match texts.negative {
        true => Ok(vec![(text, 1.0)]),
        false => composition::split(text),
    };
    let (first, second) = (split(texts.first)?, split(texts.second)?);
    let count = first.len().max(second.len());
    let is_for_each = |parts: &[_]| parts.len() == count || parts.len() == 1;
    if !(is_for_each(&first) && is_for_each(&second)) {
        let expected = format!("one prompt, or {count} between AND, as the other has");
        let found = first.len().min(second.len());
        return Err(Error::argument("prompt_2", expected, found));
    }
    let mut budget = ChunkBudget::new();
    let part = |i: usize| {
        let of = |parts: &[(_, f64)]| parts[i.min(parts.len() - 1)];
        let ((first_text, first_weight), (second_text, second_weight)) = (of(&first), of(&second));
        let weight = match first.len() == count {
            true => first_weight,
            false => second_weight,
        };
        let texts = Texts {
            first: first_text,
            second: second_text,
            ..*texts
        };
        Ok((
            read_schedule(readers, &texts, num_steps, &mut budget)?,
            weight,
        ))
    };
    let parts = (0..count).map(part).collect::<Result<_>>()?;
    Ok(Prompt { parts })
}

/// The texts of a schedule are as long as its longest one, and share the mean that weights are measured by: A1111
/// reads them as one batch.
fn read_schedule(
    readers: &[Reader<'_>],
    texts: &Texts<'_>,
    num_steps: usize,
    budget: &mut ChunkBudget,
) -> Result<Scheduled> {
    let first = schedule(texts.first, num_steps);
    let second = match texts.first == texts.second {
        true => first.clone(),
        false => schedule(texts.second, num_steps),
    };
    let ends: BTreeSet<usize> = first.iter().chain(&second).map(|e| e.last_step).collect();
    // The different pairs of texts, and how many times A1111's batch has each.
    let mut pairs: Vec<((&str, &str), usize)> = Vec::new();
    let mut known = HashMap::new();
    let mut steps = Vec::with_capacity(num_steps);
    for &end in &ends {
        let pair = (text_at(&first, end), text_at(&second, end));
        let index = *known.entry(pair).or_insert_with(|| {
            pairs.push((pair, 0));
            pairs.len() - 1
        });
        pairs[index].1 += 1;
        steps.resize(end, index);
    }
    let mut weighted = Vec::with_capacity(readers.len());
    for reader in readers {
        let mut texts_of_reader = Vec::with_capacity(pairs.len());
        for &((first, second), times) in &pairs {
            let negative = texts.negative;
            let text = reader.text(&Texts {
                first,
                second,
                negative,
            });
            let chunks = chunks(&emphasis::parse(text)?, reader.tokenizer, budget)?;
            texts_of_reader.push(Weighted { chunks, times });
        }
        weighted.push(texts_of_reader);
    }
    let lengths = weighted.iter().flatten().map(|text| text.chunks.len());
    let count = lengths.max().unwrap_or(1);
    let reads = readers.iter().zip(&weighted);
    let reads = reads.map(|(reader, texts)| reader.read_weighted(texts, count));
    let reads = reads.collect::<Result<Vec<_>>>()?;
    let embeds = (0..pairs.len()).map(|i| {
        let reads = reads.iter().map(|of_reader| of_reader[i].clone());
        side_by_side(reads.collect())
    });
    Ok(Scheduled {
        embeds: embeds.collect::<Result<_>>()?,
        steps,
    })
}

fn text_at(entries: &[Entry], step: usize) -> &str {
    let entry = entries.iter().find(|entry| step <= entry.last_step);
    entry.or(entries.last()).map_or("", |entry| &entry.text)
}
