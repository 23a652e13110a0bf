//! Prompts of any length as chunks of the length that the text encoder takes.

use super::emphasis::Piece;
use super::limits::ChunkBudget;
use crate::error::Result;
use crate::model::{Token, Tokenizer};

/// How many tokens behind the last comma move to the next chunk, so that phrases stay together.
const MAX_MOVED: usize = 20;

/// The ids of a chunk without start, end and padding, and the weight of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Chunk {
    pub(super) ids: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

impl Chunk {
    fn push(&mut self, ids: impl Iterator<Item = u32>, weight: f64) {
        self.ids.extend(ids);
        self.weights.resize(self.ids.len(), weight as f32);
    }

    fn split_off(&mut self, at: usize) -> Self {
        Self {
            ids: self.ids.split_off(at),
            weights: self.weights.split_off(at),
        }
    }
}

/// A prompt in chunks, at least one. A chunk that is full ends behind a comma if there is one near its end; the
/// vectors of a learned word stay together.
///
/// Source: the chunks of AUTOMATIC1111's stable-diffusion-webui, with its padding back to the last comma.
pub(super) fn chunks(
    pieces: &[Piece],
    tokenizer: &Tokenizer,
    budget: &mut ChunkBudget,
) -> Result<Vec<Chunk>> {
    let mut filling = Filling {
        room: tokenizer.room(),
        done: Vec::new(),
        chunk: Chunk::default(),
        last_comma: None,
        budget,
    };
    if filling.room == 0 {
        return Ok(vec![Chunk::default()]);
    }
    let comma = tokenizer.id(",</w>");
    for piece in pieces {
        if piece.is_break() {
            filling.next()?;
            continue;
        }
        for token in tokenizer.tokens(&piece.text)? {
            let is_comma = comma.is_some_and(|id| token.ids == (id..id + 1));
            filling.add(&token, piece.weight, is_comma)?;
        }
    }
    if !filling.chunk.ids.is_empty() || filling.done.is_empty() {
        filling.next()?;
    }
    Ok(filling.done)
}

struct Filling<'a> {
    room: usize,
    done: Vec<Chunk>,
    chunk: Chunk,
    /// Where the last comma of the chunk is.
    last_comma: Option<usize>,
    budget: &'a mut ChunkBudget,
}

impl Filling<'_> {
    fn next(&mut self) -> Result<()> {
        self.budget.take(1)?;
        self.last_comma = None;
        self.done.push(std::mem::take(&mut self.chunk));
        Ok(())
    }

    fn add(&mut self, token: &Token, weight: f64, is_comma: bool) -> Result<()> {
        let length = self.chunk.ids.len();
        match self.last_comma {
            _ if is_comma => self.last_comma = Some(length),
            Some(comma) if length == self.room && length - comma <= MAX_MOVED => {
                let moved = self.chunk.split_off(comma + 1);
                self.next()?;
                self.chunk = moved;
            }
            _ => {}
        }
        if self.chunk.ids.len() == self.room {
            self.next()?;
        }
        if token.ids.len() <= self.room {
            if self.chunk.ids.len() + token.ids.len() > self.room {
                self.next()?;
            }
            self.chunk.push(token.ids.clone(), weight);
            return Ok(());
        }
        // A word that no chunk has room for.
        for id in token.ids.clone() {
            if self.chunk.ids.len() == self.room {
                self.next()?;
            }
            self.chunk.push(std::iter::once(id), weight);
        }
        Ok(())
    }
}
