//! `fledgling eval`: perplexity, of a text in windows or of the assistant's tokens in chat rows; models side by side.
//!
//! A text is cut into windows of `--window` tokens that begin every `--stride` tokens; the first token of a window is
//! not scored, nor one that an earlier window scored. Only whole windows count, as in llama.cpp; a text shorter than
//! one window is a single shorter window. BOS stands before the text when the model's metadata asks for it.

use crate::{
    model::{self, EngineArgs, Model},
    output::{UsageError, note, print, print_json, step_bar},
};
use anyhow::{Context, Result, bail};
use fledgling_core::cpu::{CpuEngine, EngineError};
use fledgling_data::{collect, config::Source, encode::Encoder};
use serde::Serialize;
use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

/// Measure the perplexity of models on a text or on chat rows
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling eval smollm2-135m-instruct --text wiki.txt\n  fledgling eval base.gguf runs/mine --chat valid.jsonl --json\n  \
    fledgling eval f16.gguf q8_0.gguf q4_0.gguf --text wiki.txt --max-windows 20\n\n\
    A row of --chat holds messages, or a prompt and its completion, in any file that `fledgling data prepare` reads; the assistant's tokens are scored, with \
    the token that ends a turn."
)]
pub struct Args {
    /// GGUF files, pulled models' names, or runs' folders
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// A text file
    #[arg(long, required_unless_present = "chat", conflicts_with = "chat")]
    text: Option<PathBuf>,
    /// Chat rows
    #[arg(long, value_name = "ROWS.jsonl")]
    chat: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::generate::positive)]
    window: usize,
    /// Tokens between the beginnings of two windows; equal to --window they are disjoint
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::generate::positive)]
    stride: usize,
    /// Only the first N windows (or chat rows)
    #[arg(long, value_name = "N", value_parser = crate::generate::positive)]
    max_windows: Option<usize>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print {"models":[{"model":…,"perplexity":…,"tokens":…}]}
    #[arg(long)]
    json: bool,
}

/// One model's result.
#[derive(Debug, Serialize)]
struct Scored {
    model: String,
    perplexity: f64,
    /// Mean negative log-likelihood of a token, in nats.
    nll: f64,
    /// Tokens that were scored.
    tokens: u64,
    windows: usize,
    tokens_per_s: f64,
}

/// A sum of negative log-likelihoods, in f64.
#[derive(Debug, Default)]
struct Total {
    nll: f64,
    n_tokens: u64,
}

/// Runs the command.
///
/// # Errors
/// When a model does not load, the text or the rows cannot be read, or nothing is left to score.
pub fn run(args: &Args) -> Result<()> {
    if args.window < 2 {
        return Err(UsageError(
            "--window must be at least 2: the first token of a window is not scored".to_owned(),
        )
        .into());
    }
    if args.stride > args.window {
        return Err(UsageError(format!(
            "--stride {} is larger than --window {}: tokens in between would be left out",
            args.stride, args.window
        ))
        .into());
    }
    let mut scored = Vec::new();
    for name in &args.models {
        let model = model::open(name)?;
        let engine = args.engine.load(&model)?;
        let started = Instant::now();
        let (total, n_windows) = match (&args.text, &args.chat) {
            (Some(path), _) => score_text(&model, &engine, path, args)?,
            (None, Some(path)) => score_chat(&model, &engine, path, args)?,
            (None, None) => bail!("give --text FILE or --chat ROWS.jsonl"),
        };
        scored.push(total.result(name, n_windows, started)?);
    }
    if args.json {
        return print_json(&serde_json::json!({"models": scored}));
    }
    let width = scored
        .iter()
        .map(|row| row.model.len())
        .max()
        .unwrap_or(0)
        .max(5);
    let mut table = format!(
        "{:width$}  {:>12}  {:>9}  {:>9}\n",
        "model", "perplexity", "tokens", "tokens/s"
    );
    for row in &scored {
        table.push_str(&format!(
            "{:width$}  {:12.4}  {:9}  {:9.1}\n",
            row.model, row.perplexity, row.tokens, row.tokens_per_s
        ));
    }
    print(&table)
}

impl Total {
    fn result(&self, model: &str, windows: usize, started: Instant) -> Result<Scored> {
        if self.n_tokens == 0 {
            bail!(
                "{model}: no token to score: the text needs at least two tokens, chat rows need an assistant's message"
            );
        }
        let nll = self.nll / self.n_tokens as f64;
        if !nll.is_finite() {
            bail!("{model}: the negative log-likelihood is {nll}: the weights are broken");
        }
        Ok(Scored {
            model: model.to_owned(),
            perplexity: nll.exp(),
            nll,
            tokens: self.n_tokens,
            windows,
            tokens_per_s: self.n_tokens as f64 / started.elapsed().as_secs_f64(),
        })
    }

    /// Feeds `ids` from an empty session and scores those at the positions for which `is_scored` holds, but the first.
    fn add(
        &mut self,
        engine: &CpuEngine,
        ids: &[u32],
        is_scored: impl Fn(usize) -> bool,
    ) -> Result<(), EngineError> {
        let mut session = engine.session(ids.len())?;
        // The last token predicts nothing that we know.
        engine.forward_all(&mut session, &ids[..ids.len() - 1], &mut |t, logits| {
            if is_scored(t + 1) {
                self.nll += negative_log_likelihood(logits, ids[t + 1]);
                self.n_tokens += 1;
            }
        })
    }
}

/// `log Σ exp(l) - l[target]`, in f64. [V]
fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - max).exp())
        .sum();
    sum.ln() - f64::from(logits[target as usize] - max)
}

/// The windows of a text of `n_tokens`, each with the positions in it that are scored.
fn windows(n_tokens: usize, window: usize, stride: usize) -> Vec<(Range<usize>, Range<usize>)> {
    if n_tokens < 2 {
        return Vec::new();
    }
    if n_tokens < window {
        return vec![(0..n_tokens, 1..n_tokens)];
    }
    let starts = (0..=n_tokens - window).step_by(stride);
    starts
        .map(|start| {
            (
                start..start + window,
                if start == 0 {
                    1
                } else {
                    (window - stride).max(1)
                }..window,
            )
        })
        .collect()
}

fn score_text(
    model: &Model,
    engine: &CpuEngine,
    path: &Path,
    args: &Args,
) -> Result<(Total, usize)> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} (it must be UTF-8)", path.display()))?;
    let ids = model
        .info
        .tokenizer
        .encode(&text, model.info.tokenizer.adds_bos(), false);
    drop(text);
    let window = args.window;
    if window > model.info.spec.n_ctx {
        bail!(
            "--window {window}: {} was made for {} positions; give a smaller --window (and --stride)",
            model.name,
            model.info.spec.n_ctx
        );
    }
    let mut windows = windows(ids.len(), window, args.stride);
    windows.truncate(args.max_windows.unwrap_or(usize::MAX));
    let bar = step_bar(&model.name, windows.len() as u64);
    let mut total = Total::default();
    for (range, scored) in &windows {
        total.add(engine, &ids[range.clone()], |t| scored.contains(&t))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((total, windows.len()))
}

fn score_chat(
    model: &Model,
    engine: &CpuEngine,
    path: &Path,
    args: &Args,
) -> Result<(Total, usize)> {
    let source = Source::of(&path.to_string_lossy());
    let documents = collect::all(std::slice::from_ref(&source))?;
    let documents = documents
        .take(args.max_windows.unwrap_or(usize::MAX))
        .collect::<Result<Vec<_>>>()?;
    let encoder = Encoder::from_model(&model.info);
    let bar = step_bar(&model.name, documents.len() as u64);
    let (mut total, mut n_scored, mut n_too_long) = (Total::default(), 0, 0);
    for document in documents {
        let place = document.place.to_string();
        let encoded = encoder.encode(&document.body.into_chat()).context(place)?;
        let counted = encoded
            .counted
            .unwrap_or_else(|| vec![true; encoded.tokens.len()]);
        // What stands behind the last counted token need not be computed.
        let end = counted
            .iter()
            .rposition(|&counted| counted)
            .map_or(0, |last| last + 1);
        if end > model.info.spec.n_ctx {
            n_too_long += 1;
        } else if end > 1 {
            total.add(engine, &encoded.tokens[..end], |t| counted[t])?;
            n_scored += 1;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if n_too_long > 0 {
        note(format!(
            "{}: {n_too_long} rows are longer than the context of {} tokens and were left out",
            model.name, model.info.spec.n_ctx
        ));
    }
    Ok((total, n_scored))
}
