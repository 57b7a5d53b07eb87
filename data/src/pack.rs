//! Documents into rows.
//!
//! A row holds segments. Within a segment token `t + 1` is learnt from tokens `0..=t`, so a segment of `n` tokens takes
//! `n - 1` positions, and the positions of a row are at most the context. Where a document is cut, the two parts share
//! one token: the last target of the one is the first input of the other, so that each token is a target exactly once.
//!
//! Documents bring their own end tokens: none is added here, in no mode.
//!
//! Rows come out in an order that depends on the documents and their order only, and memory is bounded: at most
//! [`OPEN_ROWS`] rows are open.

use crate::{config::PackMode, encode::Encoded};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Rows in which best fit looks for room.
pub const OPEN_ROWS: usize = 256;

/// What is trained on at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// The tokens of all segments.
    pub tokens: Vec<u32>,
    /// Whether each token is to be learnt; the first of a segment never is.
    pub counted: Vec<bool>,
    /// Length of each segment, all together as long as `tokens`. Segments do not see each other.
    pub segments: Vec<u32>,
}

impl Row {
    /// Positions that are computed: inputs.
    pub fn n_positions(&self) -> usize {
        self.tokens.len() - self.segments.len()
    }

    /// Positions in the loss.
    pub fn n_counted(&self) -> usize {
        self.counted.iter().filter(|counted| **counted).count()
    }

    /// Adds a segment.
    fn add(&mut self, tokens: &[u32], counted: Option<&[bool]>) {
        debug_assert!(tokens.len() >= 2, "a segment has a position");
        let start = self.counted.len();
        self.tokens.extend_from_slice(tokens);
        match counted {
            Some(counted) => self.counted.extend_from_slice(counted),
            None => self.counted.resize(self.tokens.len(), true),
        }
        self.counted[start] = false;
        self.segments.push(tokens.len() as u32);
    }
}

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is in the rows.
    Placed,
    /// It lost its end to the context.
    Truncated,
    /// It is in no row: there is nothing to learn in it, or not within the context.
    Dropped,
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackStats {
    /// Documents that came.
    pub documents: u64,
    /// Documents that lost their end to the context.
    pub truncated: u64,
    /// Documents that are in no row.
    pub dropped: u64,
    /// Rows.
    pub rows: u64,
    /// Segments.
    pub segments: u64,
    /// Tokens in the rows.
    pub tokens: u64,
    /// Positions: tokens that serve as input.
    pub positions: u64,
    /// Positions in the loss.
    pub counted: u64,
}

impl PackStats {
    /// Share of the rows' positions that hold something; what is left would be padding.
    pub fn fill(&self, context: usize) -> f64 {
        match self.rows {
            0 => 0.0,
            rows => self.positions as f64 / (rows as f64 * context as f64),
        }
    }
}

/// Puts documents into rows.
#[derive(Debug)]
pub struct Packer {
    mode: PackMode,
    context: usize,
    /// The row that texts fill, or the stream of [`PackMode::Concat`] that is not in a row yet.
    text: Row,
    bins: Bins,
    done: VecDeque<Row>,
    stats: PackStats,
}

impl Packer {
    /// A packer for rows of at most `context` positions.
    ///
    /// # Panics
    /// When `context` is 0.
    pub fn new(mode: PackMode, context: usize) -> Self {
        assert!(context > 0, "a row has a position at least");
        Self {
            mode,
            context,
            text: Row::default(),
            bins: Bins::default(),
            done: VecDeque::new(),
            stats: PackStats::default(),
        }
    }

    /// Takes a document. [`Packer::pop`] what is finished before the next one.
    pub fn push(&mut self, document: &Encoded) -> Outcome {
        self.stats.documents += 1;
        let outcome = match (self.mode, &document.counted) {
            _ if document.n_counted() == 0 => Outcome::Dropped,
            (PackMode::Concat, _) => self.push_stream(document),
            (PackMode::Segments, None) => self.push_text(&document.tokens),
            (PackMode::One, None) => self.push_windows(&document.tokens),
            (PackMode::Segments | PackMode::One, Some(counted)) => {
                self.push_whole(&document.tokens, counted)
            }
        };
        match outcome {
            Outcome::Placed => {}
            Outcome::Truncated => self.stats.truncated += 1,
            Outcome::Dropped => self.stats.dropped += 1,
        }
        outcome
    }

    /// The next finished row.
    pub fn pop(&mut self) -> Option<Row> {
        self.done.pop_front()
    }

    /// Finishes all rows.
    pub fn finish(&mut self) {
        if self.mode == PackMode::Concat {
            self.cut_stream(1);
            self.text = Row::default();
        }
        let text = std::mem::take(&mut self.text);
        if !text.segments.is_empty() {
            self.emit(text);
        }
        while let Some(row) = self.bins.take_fullest() {
            self.emit(row);
        }
    }

    /// What was made so far.
    pub fn stats(&self) -> &PackStats {
        &self.stats
    }

    fn emit(&mut self, row: Row) {
        debug_assert!(row.n_positions() <= self.context);
        self.stats.rows += 1;
        self.stats.segments += row.segments.len() as u64;
        self.stats.tokens += row.tokens.len() as u64;
        self.stats.positions += row.n_positions() as u64;
        self.stats.counted += row.n_counted() as u64;
        self.done.push_back(row);
    }

    /// Fills the row of texts, and goes on in the next one.
    fn push_text(&mut self, tokens: &[u32]) -> Outcome {
        let mut start = 0;
        while start + 1 < tokens.len() {
            let room = self.context - self.text.n_positions();
            let end = (start + room + 1).min(tokens.len());
            self.text.add(&tokens[start..end], None);
            if self.text.n_positions() == self.context {
                let row = std::mem::take(&mut self.text);
                self.emit(row);
            }
            start = end - 1;
        }
        Outcome::Placed
    }

    fn push_windows(&mut self, tokens: &[u32]) -> Outcome {
        let mut start = 0;
        while start + 1 < tokens.len() {
            let end = (start + self.context + 1).min(tokens.len());
            let mut row = Row::default();
            row.add(&tokens[start..end], None);
            self.emit(row);
            start = end - 1;
        }
        Outcome::Placed
    }

    fn push_whole(&mut self, tokens: &[u32], counted: &[bool]) -> Outcome {
        let n = tokens.len().min(self.context + 1);
        let (kept, counted) = (&tokens[..n], &counted[..n]);
        if !counted[1..].contains(&true) {
            return Outcome::Dropped;
        }
        if self.mode == PackMode::One {
            let mut row = Row::default();
            row.add(kept, Some(counted));
            self.emit(row);
        } else if let Some(row) = self.bins.place(kept, counted, self.context) {
            self.emit(row);
        }
        if n < tokens.len() {
            return Outcome::Truncated;
        }
        Outcome::Placed
    }

    /// Adds to the stream. A document's first token is a target there, after the end of the document before.
    fn push_stream(&mut self, document: &Encoded) -> Outcome {
        self.text.tokens.extend_from_slice(&document.tokens);
        match &document.counted {
            Some(counted) => self.text.counted.extend_from_slice(counted),
            None => self.text.counted.resize(self.text.tokens.len(), true),
        }
        self.cut_stream(self.context);
        Outcome::Placed
    }

    /// Cuts rows off the stream while they have at least so many positions.
    fn cut_stream(&mut self, fewest: usize) {
        let stream = std::mem::take(&mut self.text);
        let mut start = 0;
        while start + fewest < stream.tokens.len() {
            let end = (start + self.context + 1).min(stream.tokens.len());
            // A window within a long prompt teaches nothing.
            if stream.counted[start + 1..end].contains(&true) {
                let mut row = Row::default();
                row.add(
                    &stream.tokens[start..end],
                    Some(&stream.counted[start..end]),
                );
                self.emit(row);
            }
            start = end - 1;
        }
        self.text.tokens = stream.tokens[start..].to_vec();
        self.text.counted = stream.counted[start..].to_vec();
    }
}

/// Open rows, for best fit: what comes goes where least room is left after it, the oldest row first.
#[derive(Debug, Default)]
struct Bins {
    rows: BTreeMap<u64, Row>,
    /// Room and number of each row.
    by_room: BTreeSet<(usize, u64)>,
    n_opened: u64,
}

impl Bins {
    /// Places a segment; gives a row back that is full, or that has to make place for another.
    fn place(&mut self, tokens: &[u32], counted: &[bool], context: usize) -> Option<Row> {
        let needed = tokens.len() - 1;
        let fitting = self.by_room.range((needed, 0)..).next().copied();
        let (room, number) = fitting.unwrap_or((context, self.n_opened));
        let mut row = if fitting.is_some() {
            self.by_room.remove(&(room, number));
            self.rows.remove(&number).unwrap_or_default()
        } else {
            self.n_opened += 1;
            Row::default()
        };
        row.add(tokens, Some(counted));
        if room == needed {
            return Some(row);
        }
        self.by_room.insert((room - needed, number));
        self.rows.insert(number, row);
        (self.rows.len() > OPEN_ROWS)
            .then(|| self.take_fullest())
            .flatten()
    }

    /// The row with least room.
    fn take_fullest(&mut self) -> Option<Row> {
        let (_, number) = self.by_room.pop_first()?;
        self.rows.remove(&number)
    }
}

#[cfg(test)]
mod tests;
