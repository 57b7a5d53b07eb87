//! Rows to train on, and their batches.
//!
//! Chats (`.jsonl`) go through the model's own template, and only what the assistant says counts, up to and with the
//! token that ends its turn, so that the model learns to stop. Prompts are tokenised exactly as they are when the model
//! is asked. Text (`.txt`) is cut into windows in which everything counts.

use super::model::Batch;
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{chat::Message, model::ModelInfo};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Batches are sorted by length within this many batches, so that rows of a batch need little padding.
const SORT_WINDOW_BATCHES: usize = 32;

/// One row: token t+1 is to be predicted from tokens 0..=t where `counted[t + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether each token counts in the loss; the first cannot.
    pub counted: Vec<bool>,
    /// `file:line`, for messages.
    pub place: String,
}

impl Row {
    /// Positions in the loss.
    pub fn n_counted(&self) -> usize {
        self.counted
            .iter()
            .skip(1)
            .filter(|&&counted| counted)
            .count()
    }
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// The rows in file order.
    pub rows: Vec<Row>,
    /// Chats that lost their end to `max_tokens`.
    pub n_truncated: usize,
    /// Chats left out because nothing of an answer was left within `max_tokens`.
    pub n_dropped: usize,
}

impl Rows {
    /// Positions in the loss.
    pub fn n_counted(&self) -> usize {
        self.rows.iter().map(Row::n_counted).sum()
    }
}

/// The shapes of a line of `.jsonl` that are understood.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Chat {
        messages: Vec<Message>,
    },
    Completion {
        prompt: String,
        completion: String,
    },
    Question {
        question: String,
        answer: String,
    },
    Alpaca {
        instruction: String,
        #[serde(default)]
        input: String,
        output: String,
    },
}

impl Line {
    fn into_messages(self) -> Vec<Message> {
        let pair = |user: String, assistant: String| {
            vec![
                Message {
                    role: "user".to_owned(),
                    content: user,
                },
                Message {
                    role: "assistant".to_owned(),
                    content: assistant,
                },
            ]
        };
        match self {
            Self::Chat { messages } => messages,
            Self::Completion { prompt, completion } => pair(prompt, completion),
            Self::Question { question, answer } => pair(question, answer),
            Self::Alpaca {
                instruction,
                input,
                output,
            } if input.is_empty() => pair(instruction, output),
            Self::Alpaca {
                instruction,
                input,
                output,
            } => pair(format!("{instruction}\n\n{input}"), output),
        }
    }
}

/// Reads files for the model `info`; rows have at most `max_tokens` inputs.
///
/// # Errors
/// With the file and line.
pub fn read(paths: &[PathBuf], info: &ModelInfo, max_tokens: usize) -> Result<Rows> {
    let mut out = Rows::default();
    for path in paths {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the data file {}", path.display()))?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => read_chats(&text, path, info, max_tokens, &mut out)?,
            Some("txt") => read_text(&text, path, info, max_tokens, &mut out),
            _ => bail!(
                "{}: what kind of data this is shows by its ending: .jsonl (chats) or .txt (text)",
                path.display()
            ),
        }
    }
    Ok(out)
}

fn read_chats(
    text: &str,
    path: &Path,
    info: &ModelInfo,
    max_tokens: usize,
    out: &mut Rows,
) -> Result<()> {
    for (line_idx, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let place = format!("{}:{}", path.display(), line_idx + 1);
        let mut row = chat_row(line, info, place.clone()).context(place)?;
        if row.tokens.len() > max_tokens + 1 {
            row.tokens.truncate(max_tokens + 1);
            row.counted.truncate(max_tokens + 1);
            out.n_truncated += 1;
        }
        if row.n_counted() == 0 {
            out.n_dropped += 1;
            continue;
        }
        out.rows.push(row);
    }
    Ok(())
}

fn chat_row(line: &str, info: &ModelInfo, place: String) -> Result<Row> {
    serde_json::from_str::<serde_json::Value>(line).context("this line is no JSON")?;
    let messages = serde_json::from_str::<Line>(line)
        .ok()
        .context(
            "this line is none of {\"messages\": [{\"role\", \"content\"}]}, {\"prompt\", \"completion\"}, {\"question\", \"answer\"}, \
             {\"instruction\", \"input\", \"output\"} with strings as values",
        )?
        .into_messages();
    ensure!(
        messages.iter().any(|message| message.role == "assistant"),
        "no message has the role `assistant`, so there is nothing to learn"
    );
    let template = info.chat_template.as_ref().context(
        "the base model has no usable chat template, so chats cannot be rendered for it: take an instruct model as base, or train on .txt files",
    )?;
    let (mut tokens, mut counted, mut done) = (Vec::new(), Vec::new(), String::new());
    for (idx, message) in messages
        .iter()
        .enumerate()
        .filter(|(_, message)| message.role == "assistant")
    {
        let prompt = template.render(&messages[..idx], true)?;
        let whole = template.render(&messages[..=idx], false)?;
        let (Some(asked), Some(answer)) = (prompt.strip_prefix(&done), whole.strip_prefix(&prompt))
        else {
            bail!(
                "the chat template does not keep earlier messages as they were, so the answers cannot be told from the rest"
            );
        };
        tokens.extend(if done.is_empty() {
            info.encode_chat(&messages[..idx])?
        } else {
            info.tokenizer.encode(asked, false, true)
        });
        counted.resize(tokens.len(), false);
        ensure!(!message.content.is_empty(), "an answer is empty");
        add_answer(answer, info, &mut tokens, &mut counted);
        done = whole;
    }
    Ok(Row {
        tokens,
        counted,
        place,
    })
}

/// Adds the assistant's turn: it counts up to its end token, what the template writes after that does not.
fn add_answer(answer: &str, info: &ModelInfo, tokens: &mut Vec<u32>, counted: &mut Vec<bool>) {
    let mut ids = info.tokenizer.encode(answer, false, true);
    if !ids.iter().any(|&id| info.tokenizer.is_end(id)) {
        ids.extend(info.tokenizer.eos());
    }
    let end = ids
        .iter()
        .position(|&id| info.tokenizer.is_end(id))
        .map_or(ids.len(), |idx| idx + 1);
    counted.extend((0..ids.len()).map(|idx| idx < end));
    tokens.extend(ids);
}

fn read_text(text: &str, path: &Path, info: &ModelInfo, max_tokens: usize, out: &mut Rows) {
    let tokens = info
        .tokenizer
        .encode(text, info.tokenizer.adds_bos(), false);
    // Windows share one token: the last of one is the first input of the next, so that each is predicted once.
    let mut start = 0;
    while start + 1 < tokens.len() {
        let window = &tokens[start..(start + max_tokens + 1).min(tokens.len())];
        let place = format!("{}, token {start}", path.display());
        out.rows.push(Row {
            tokens: window.to_vec(),
            counted: vec![true; window.len()],
            place,
        });
        start += max_tokens;
    }
}

/// The batches of one pass over the rows, as row indices: shuffled by `seed` and `epoch`, rows of like length together.
pub fn epoch_batches(rows: &[Row], batch: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch + 1);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    shuffle(&mut order, &mut rng);
    for window in order.chunks_mut(batch * SORT_WINDOW_BATCHES) {
        window.sort_by_key(|&idx| rows[idx].tokens.len());
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch).map(<[usize]>::to_vec).collect();
    shuffle(&mut batches, &mut rng);
    batches
}

/// All rows in batches by length, for validation.
pub fn sorted_batches(rows: &[Row], batch: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&idx| rows[idx].tokens.len());
    order.chunks(batch).map(<[usize]>::to_vec).collect()
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], rng: &mut impl Rng) {
    for i in (1..items.len()).rev() {
        // The bias of the remainder is below 2^-40 for any number of rows that fits in memory.
        items.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
}

/// Puts rows under each other, padded on the right with `pad`.
pub fn collate(rows: &[Row], indices: &[usize], pad: u32) -> Batch {
    let n_tokens = indices
        .iter()
        .map(|&idx| rows[idx].tokens.len() - 1)
        .max()
        .unwrap_or(0);
    let mut batch = Batch {
        tokens: Vec::new(),
        n_rows: indices.len(),
        n_tokens,
        counted: Vec::new(),
        targets: Vec::new(),
    };
    for &idx in indices {
        let row = &rows[idx];
        let start = batch.tokens.len();
        let inputs = &row.tokens[..row.tokens.len() - 1];
        for (t, _) in row
            .counted
            .iter()
            .skip(1)
            .enumerate()
            .filter(|&(_, &counted)| counted)
        {
            batch.counted.push((start + t) as u32);
            batch.targets.push(row.tokens[t + 1]);
        }
        batch.tokens.extend_from_slice(inputs);
        batch.tokens.resize(start + n_tokens, pad);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lengths: &[usize]) -> Vec<Row> {
        let row = |(idx, &len): (usize, &usize)| Row {
            tokens: (0..len as u32).map(|t| t + 10 * idx as u32).collect(),
            counted: (0..len).map(|t| t >= 2).collect(),
            place: idx.to_string(),
        };
        lengths.iter().enumerate().map(row).collect()
    }

    #[test]
    fn a_batch_holds_inputs_padding_and_what_follows_the_counted_positions() {
        let batch = collate(&rows(&[4, 3]), &[1, 0], 99);
        assert_eq!(batch.tokens, [10, 11, 99, 0, 1, 2]);
        assert_eq!((batch.n_rows, batch.n_tokens), (2, 3));
        assert_eq!(batch.counted, [1, 4, 5]);
        assert_eq!(batch.targets, [12, 2, 3]);
    }

    #[test]
    fn an_epoch_has_every_row_once_in_an_order_of_its_own() {
        let rows = rows(&[5; 23]);
        let order = |seed, epoch| epoch_batches(&rows, 4, seed, epoch).concat();
        let mut sorted = order(1, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..23).collect::<Vec<_>>());
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }
}
