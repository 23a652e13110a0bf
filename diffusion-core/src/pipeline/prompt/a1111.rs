//! Prompts in A1111's syntax, read by the text encoders.

use std::collections::{BTreeMap, HashMap};

use super::chunks::{Chunk, chunks};
use super::limits::{ChunkBudget, check_length};
use super::plan::{Prompt, Scheduled};
use super::reader::{Reader, Weighted, side_by_side};
use super::schedule::schedule;
use super::{PromptEmbeds, Texts, composition, emphasis};
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
    let ends: BTreeMap<usize, ()> = first
        .iter()
        .chain(&second)
        .map(|e| (e.last_step, ()))
        .collect();
    let at = |entries: &[super::schedule::Entry], step: usize| {
        let entry = entries.iter().position(|entry| step <= entry.last_step);
        entry.unwrap_or(entries.len() - 1)
    };
    let mut pairs: Vec<((&str, &str), usize)> = Vec::new();
    let mut known = HashMap::new();
    let mut steps = Vec::with_capacity(num_steps);
    for &end in ends.keys() {
        let pair = (
            first[at(&first, end)].text.as_str(),
            second[at(&second, end)].text.as_str(),
        );
        let index = *known.entry(pair).or_insert_with(|| {
            pairs.push((pair, 0));
            pairs.len() - 1
        });
        pairs[index].1 += 1;
        steps.resize(end, index);
    }
    let mut read = Vec::with_capacity(readers.len());
    for reader in readers {
        let mut of_reader = Vec::with_capacity(pairs.len());
        for ((first, second), _) in &pairs {
            let text = reader.text(&Texts {
                first,
                second,
                ..*texts
            });
            let pieces = emphasis::parse(text)?;
            of_reader.push(chunks(&pieces, reader.tokenizer, budget)?);
        }
        read.push(of_reader);
    }
    let count = read.iter().flatten().map(Vec::len).max().unwrap_or(1);
    let of_readers = readers.iter().zip(&read).map(|(reader, all)| {
        let weigh = |(chunks, (_, times)): (&'_ Vec<Chunk>, &(_, usize))| (chunks.clone(), *times);
        let all: Vec<_> = all.iter().zip(&pairs).map(weigh).collect();
        let texts: Vec<_> = all
            .iter()
            .map(|(chunks, times)| Weighted {
                chunks,
                times: *times,
            })
            .collect();
        reader.read_weighted(&texts, count)
    });
    let of_readers = of_readers.collect::<Result<Vec<_>>>()?;
    let embeds = (0..pairs.len()).map(|i| {
        let reads = of_readers.iter().map(|reads| reads[i].clone()).collect();
        side_by_side(reads)
    });
    Ok(Scheduled {
        embeds: embeds.collect::<Result<Vec<PromptEmbeds>>>()?,
        steps,
    })
}
