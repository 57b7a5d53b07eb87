//! Perplexity: of a text in windows, of documents one by one, of token shards, of the assistant's tokens in chat rows.
//!
//! A text is cut into windows of `window` tokens that begin every `stride` tokens (equal, they are disjoint); the first token of a window
//! is not scored, nor one that an earlier window scored. Only whole windows count, as in llama.cpp; a text shorter than one window is a
//! single shorter window. BOS stands before the text when the model's metadata asks for it.
//!
//! Documents are measured as lm-evaluation-harness does it (`loglikelihood_rolling`): each token of each document once, the first after BOS
//! or EOS, in pieces as long as the model's context.

use crate::{
    engine::Text,
    score::{Model, Scored, TokenScore, check, prefix_token},
    stats::{Clustered, Estimate, Over},
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{model::ModelInfo, tokenizer::Tokenizer};
use fledgling_data::{
    collect,
    config::{Source, Split},
    control::{Control, Unit},
    encode::Encoder,
    shards::{Shards, SplitShards},
};
use serde::Serialize;
use std::{ops::Range, path::Path};

/// Pieces go through the engine together up to so many tokens.
const BATCH_TOKENS: usize = 1024;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, at least 2.
    pub window: usize,
    /// Tokens between the beginnings of two windows, 1 to `window`.
    pub stride: usize,
}

/// Tokens that are fed from an empty context, and which of them are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whether each is scored; the first never is.
    pub counted: Vec<bool>,
    /// Words that begin in what is scored.
    pub n_words: u64,
    /// Bytes of what is scored.
    pub n_bytes: u64,
    /// Which window, row or document it is of; pieces of one document follow each other.
    pub cluster: usize,
}

/// What perplexity is measured of, as a model's tokenizer sees it; pieces are made when they are needed.
#[derive(Debug)]
pub struct Pieces<'a> {
    info: &'a ModelInfo,
    kind: Kind,
    /// Rows left out because the model's context does not hold them.
    pub n_too_long: usize,
    /// Whether a text is shorter than the window asked for, so that its one window is.
    pub is_short: bool,
}

#[derive(Debug)]
enum Kind {
    Text {
        ids: Vec<u32>,
        windows: Vec<(Range<usize>, Range<usize>)>,
    },
    Ready(Vec<Piece>),
    Shards {
        split: SplitShards,
        segments: Vec<(usize, Range<usize>)>,
    },
}

/// Perplexity, in all its units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp(nll)`; its standard error is `perplexity * stderr(nll)` (the delta method).
    pub perplexity: Estimate,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: Estimate,
    /// What the standard errors are over.
    pub stderr_over: Over,
    /// `exp` of the negative log-likelihood of a word, where there are words.
    pub word_perplexity: Option<Estimate>,
    /// The same of a byte.
    pub byte_perplexity: Option<Estimate>,
    /// Negative log-likelihood of a byte, in bits.
    pub bits_per_byte: Option<Estimate>,
    /// Share of the scored tokens that were the likeliest.
    pub token_accuracy: Estimate,
    /// Tokens that were scored.
    pub tokens: u64,
    /// Windows, rows or documents.
    pub windows: usize,
    /// Words that begin in what was scored (white space parts them).
    pub words: u64,
    /// Bytes of what was scored.
    pub bytes: u64,
    /// Rows that were left out because they are longer than the model's context.
    pub too_long: usize,
}

impl<'a> Pieces<'a> {
    /// A text in windows, the first `most` of them.
    ///
    /// # Errors
    /// When a window is longer than the model's context, or the sizes are none.
    pub fn of_text(info: &'a ModelInfo, text: &str, cut: Windows, most: usize) -> Result<Self> {
        let Windows { window, stride } = cut;
        ensure!(
            window >= 2 && (1..=window).contains(&stride),
            "a window of {window} tokens every {stride}: a window has at least 2, and is as long as the stride at least"
        );
        ensure!(
            window <= info.spec.n_ctx,
            "a window of {window} tokens: {} was made for {} positions; give a smaller window and stride",
            info.name,
            info.spec.n_ctx
        );
        let ids = info
            .tokenizer
            .encode(text, info.tokenizer.adds_bos(), false);
        let is_short = ids.len() < window;
        let mut windows = windows(ids.len(), window, stride);
        windows.truncate(most);
        Ok(Self {
            info,
            kind: Kind::Text { ids, windows },
            n_too_long: 0,
            is_short,
        })
    }

    /// Documents by themselves, in pieces as long as the model's context.
    ///
    /// # Errors
    /// When the tokenizer has no token to stand before a text.
    pub fn of_documents<S: AsRef<str>>(info: &'a ModelInfo, texts: &[S]) -> Result<Self> {
        let prefix = prefix_token(info)?[0];
        let mut pieces = Vec::new();
        for (cluster, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            let ids = info.tokenizer.encode(text, false, false);
            let mut counts = (text.split_whitespace().count() as u64, text.len() as u64);
            for (ids, from) in rolling(prefix, &ids, info.spec.n_ctx) {
                let (n_words, n_bytes) = std::mem::take(&mut counts);
                pieces.push(Piece {
                    counted: (0..ids.len()).map(|t| t >= from).collect(),
                    ids,
                    n_words,
                    n_bytes,
                    cluster,
                });
            }
        }
        Ok(Self {
            info,
            kind: Kind::Ready(pieces),
            n_too_long: 0,
            is_short: false,
        })
    }

    /// Chat rows, or prompts and completions, in any file that `fledgling data prepare` reads: what the assistant says is scored, with the
    /// token that ends its turn. The first `most` rows.
    ///
    /// # Errors
    /// What is wrong with a row, with its place.
    pub fn of_chat(info: &'a ModelInfo, source: &Source, most: usize) -> Result<Self> {
        let encoder = Encoder::from_model(info);
        let mut n_too_long = 0;
        let mut pieces = Vec::new();
        let documents = collect::all(std::slice::from_ref(source))?;
        for (cluster, document) in documents.take(most).enumerate() {
            let document = document?;
            let place = document.place.to_string();
            let encoded = encoder.encode(&document.body.into_chat()).context(place)?;
            let all = || vec![true; encoded.tokens.len()];
            let counted = encoded.counted.unwrap_or_else(all);
            match row(&info.tokenizer, encoded.tokens, counted, cluster) {
                Some(piece) if piece.ids.len() > info.spec.n_ctx + 1 => n_too_long += 1,
                piece => pieces.extend(piece),
            }
        }
        Ok(Self {
            info,
            kind: Kind::Ready(pieces),
            n_too_long,
            is_short: false,
        })
    }

    /// The segments of prepared token shards, the first `most`: of `split`, or of the first of valid, test and train that is there.
    ///
    /// # Errors
    /// When they cannot be read, or were made for another tokenizer.
    pub fn of_shards(
        info: &'a ModelInfo,
        folder: &Path,
        split: Option<Split>,
        most: usize,
    ) -> Result<Self> {
        let shards = Shards::open(folder)?;
        shards.check_tokenizer(&Encoder::from_model(info))?;
        let there = |split: &Split| shards.split(*split).is_some();
        let usual = [Split::Valid, Split::Test, Split::Train];
        let wanted = split.or_else(|| usual.into_iter().find(there));
        let split = wanted.and_then(|split| shards.into_split(split));
        let split = split
            .with_context(|| format!("{} has no rows of the split asked for", folder.display()))?;
        split.check_ids()?;
        let mut n_too_long = 0;
        let mut segments = Vec::new();
        for idx in 0..split.n_rows() {
            for range in split.segments(idx) {
                if range.len() > info.spec.n_ctx + 1 {
                    n_too_long += 1;
                } else if segments.len() < most && split.n_counted_in(idx, range.clone()) > 0 {
                    segments.push((idx, range));
                }
            }
        }
        Ok(Self {
            info,
            kind: Kind::Shards { split, segments },
            n_too_long,
            is_short: false,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Text { windows, .. } => windows.len(),
            Kind::Ready(pieces) => pieces.len(),
            Kind::Shards { segments, .. } => segments.len(),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    ///
    /// # Errors
    /// When a shard holds an id that is none.
    pub fn get(&self, idx: usize) -> Result<Piece> {
        let tokenizer = &self.info.tokenizer;
        Ok(match &self.kind {
            Kind::Ready(pieces) => pieces[idx].clone(),
            Kind::Text { ids, windows } => {
                let (range, scored) = &windows[idx];
                let counted = (0..range.len()).map(|t| scored.contains(&t)).collect();
                counting(tokenizer, ids[range.clone()].to_vec(), counted, idx)
            }
            Kind::Shards { split, segments } => {
                let (row, range) = &segments[idx];
                let row = split.segment(*row, range.clone())?;
                counting(tokenizer, row.tokens, row.counted, idx)
            }
        })
    }
}

/// A piece of a row, up to its last counted token; `None` where none counts.
fn row(
    tokenizer: &Tokenizer,
    mut ids: Vec<u32>,
    mut counted: Vec<bool>,
    cluster: usize,
) -> Option<Piece> {
    if let Some(first) = counted.first_mut() {
        *first = false;
    }
    let last = counted.iter().rposition(|&counted| counted)?;
    ids.truncate(last + 1);
    counted.truncate(last + 1);
    Some(counting(tokenizer, ids, counted, cluster))
}

/// Counts the bytes, and the words that begin, in the counted tokens.
fn counting(tokenizer: &Tokenizer, ids: Vec<u32>, counted: Vec<bool>, cluster: usize) -> Piece {
    let (mut n_words, mut n_bytes, mut in_word) = (0, 0, false);
    for (&id, &counted) in ids.iter().zip(&counted) {
        for byte in tokenizer.token_bytes(id) {
            let is_space = byte.is_ascii_whitespace();
            n_words += u64::from(counted && !is_space && !in_word);
            n_bytes += u64::from(counted);
            in_word = !is_space;
        }
    }
    Piece {
        ids,
        counted,
        n_words,
        n_bytes,
        cluster,
    }
}

/// The windows of a text of `n_tokens`, each with the positions in it that are scored.
pub fn windows(n_tokens: usize, window: usize, stride: usize) -> Vec<(Range<usize>, Range<usize>)> {
    if n_tokens < 2 {
        return Vec::new();
    }
    if n_tokens < window {
        return vec![(0..n_tokens, 1..n_tokens)];
    }
    let starts = (0..=n_tokens - window).step_by(stride);
    let scored_from = |start| match start {
        0 => 1,
        _ => (window - stride).max(1),
    };
    starts
        .map(|start| (start..start + window, scored_from(start)..window))
        .collect()
}

/// The pieces of a document, each with its first scored token: `get_rolling_token_windows` of lm-evaluation-harness with a context of 1.
fn rolling(prefix: u32, ids: &[u32], n_ctx: usize) -> Vec<(Vec<u32>, usize)> {
    let mut pieces = Vec::new();
    let mut n_done = ids.len().min(n_ctx);
    if n_done > 0 {
        let first = [&[prefix], &ids[..n_done]].concat();
        pieces.push((first, 1));
    }
    while n_done < ids.len() {
        let end = (n_done + n_ctx).min(ids.len());
        // The last one looks back as far as the context reaches.
        let start = end - n_ctx - 1;
        pieces.push((ids[start..end].to_vec(), n_done - start));
        n_done = end;
    }
    pieces
}

/// Measures the perplexity of a model. Progress counts pieces.
///
/// # Errors
/// Those of the engine, nothing to score, or somebody's wish to stop.
pub fn measure(
    model: &Model<'_>,
    pieces: &Pieces<'_>,
    control: &dyn Control,
) -> Result<Perplexity> {
    control.begin(model.name, Unit::Documents, Some(pieces.len() as u64));
    let mut gathered = Gathered::default();
    let mut next = 0;
    while next < pieces.len() {
        check(control)?;
        let mut batch = Vec::new();
        let mut n_tokens = 0;
        while next < pieces.len() && n_tokens < BATCH_TOKENS {
            let piece = pieces.get(next)?;
            n_tokens += piece.ids.len();
            batch.push(piece);
            next += 1;
        }
        let scores = score_pieces(model, &batch)?;
        control.advance(batch.len() as u64);
        for (piece, scored) in batch.iter().zip(scores) {
            gathered.add(piece, scored);
        }
    }
    gathered.finish(model.name, pieces.n_too_long)
}

/// The scores of the counted tokens of each piece.
fn score_pieces(model: &Model<'_>, pieces: &[Piece]) -> Result<Vec<Scored>> {
    let texts = pieces.iter().map(|piece| Text {
        tokens: &piece.ids[..piece.ids.len() - 1],
        wanted_from: first_counted(piece) - 1,
    });
    let texts: Vec<Text<'_>> = texts.collect();
    let scores = model.engine.forward(&texts, &|text, t, logits| {
        let piece = &pieces[text];
        let target = t + 1;
        piece.counted[target].then(|| TokenScore::of(logits, piece.ids[target]))
    })?;
    let mut scores = scores.into_iter();
    let mut take = |piece: &Piece| {
        let n = piece.ids.len() - first_counted(piece);
        scores.by_ref().take(n).flatten().collect()
    };
    Ok(pieces
        .iter()
        .map(|piece| Scored {
            tokens: take(piece),
        })
        .collect())
}

/// The first counted token of a piece, which has one.
pub(crate) fn first_counted(piece: &Piece) -> usize {
    let first = piece.counted.iter().position(|&counted| counted);
    first.unwrap_or(1).max(1)
}

/// Scores by cluster.
#[derive(Debug, Default)]
struct Gathered {
    cluster: usize,
    open: Vec<TokenScore>,
    nll: Clustered,
    hits: Clustered,
    n_tokens: u64,
    n_clusters: usize,
    n_words: u64,
    n_bytes: u64,
}

impl Gathered {
    fn add(&mut self, piece: &Piece, scored: Scored) {
        if piece.cluster != self.cluster {
            self.close();
            self.cluster = piece.cluster;
        }
        self.open.extend(scored.tokens);
        self.n_words += piece.n_words;
        self.n_bytes += piece.n_bytes;
    }

    fn close(&mut self) {
        self.n_clusters += usize::from(!self.open.is_empty());
        self.n_tokens += self.open.len() as u64;
        self.nll.add(self.open.iter().map(|token| -token.log_prob));
        let hits = self
            .open
            .iter()
            .map(|token| f64::from(u8::from(token.is_top)));
        self.hits.add(hits);
        self.open.clear();
    }

    fn finish(mut self, name: &str, too_long: usize) -> Result<Perplexity> {
        self.close();
        if self.n_tokens == 0 {
            let left_out = match too_long {
                0 => String::new(),
                n => format!("; {n} rows are longer than the model's context"),
            };
            bail!(
                "{name}: no token to score: a text needs at least two tokens, chat rows need an assistant's message{left_out}"
            );
        }
        let (nll, stderr_over) = self.nll.mean();
        let per = |n: u64| (n > 0).then(|| self.nll.per(n as f64));
        Ok(Perplexity {
            perplexity: nll.exp(),
            nll,
            stderr_over,
            word_perplexity: per(self.n_words).map(Estimate::exp),
            byte_perplexity: per(self.n_bytes).map(Estimate::exp),
            bits_per_byte: per(self.n_bytes).map(|nats| nats.times(std::f64::consts::LOG2_E)),
            token_accuracy: self.hits.mean().0,
            tokens: self.n_tokens,
            windows: self.n_clusters,
            words: self.n_words,
            bytes: self.n_bytes,
            too_long,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Engine,
        testing::{Plain, tiny},
    };
    use fledgling_data::control::Quiet;
    use proptest::prelude::*;

    fn naive(model: &Model<'_>, ids: &[u32], from: usize) -> Vec<f64> {
        let engine = model.engine.writing().unwrap();
        let mut session = engine.session(ids.len()).unwrap();
        let mut out = Vec::new();
        engine
            .forward_all(&mut session, &ids[..ids.len() - 1], &mut |t, logits| {
                if t + 1 >= from {
                    out.push(-TokenScore::of(logits, ids[t + 1]).log_prob);
                }
            })
            .unwrap();
        out
    }

    #[test]
    fn a_text_in_windows() {
        let (info, engine) = tiny();
        let model = Model {
            name: "tiny",
            info: &info,
            engine: Engine::Cpu(&engine),
        };
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(12);
        let cut = Windows {
            window: 32,
            stride: 16,
        };
        let pieces = Pieces::of_text(&info, &text, cut, usize::MAX).unwrap();
        let got = measure(&model, &pieces, &Quiet).unwrap();
        let plain = Plain(&engine);
        let whole = Model {
            engine: Engine::Whole(&plain),
            ..model
        };
        assert_eq!(measure(&whole, &pieces, &Quiet).unwrap(), got);
        let ids = info.tokenizer.encode(&text, false, false);
        let mut nlls = Vec::new();
        for (range, scored) in windows(ids.len(), 32, 16) {
            nlls.extend(naive(&model, &ids[range], scored.start));
        }
        let mean = nlls.iter().sum::<f64>() / nlls.len() as f64;
        assert_eq!(got.tokens, nlls.len() as u64);
        assert!((got.nll.value - mean).abs() < 1e-12);
        assert!((got.perplexity.value - mean.exp()).abs() < 1e-9);
        assert_eq!(got.stderr_over, Over::Windows);
        // From the second token to the end of the last whole window.
        let scored = &text[info.tokenizer.token_bytes(ids[0]).len()..][..got.bytes as usize];
        assert_eq!(
            info.tokenizer.encode(&text, false, false)[1..=nlls.len()].to_vec(),
            ids[1..=nlls.len()]
        );
        let n_words = scored.split_whitespace().count() as u64;
        // A word that the first token begins is not counted.
        assert!(n_words - got.words <= 1, "{n_words} {}", got.words);
        let bits = got.bits_per_byte.unwrap().value;
        let want = nlls.iter().sum::<f64>() / got.bytes as f64 / std::f64::consts::LN_2;
        assert!((bits - want).abs() < 1e-9);
    }

    #[test]
    fn documents_are_scored_whole() {
        let (info, engine) = tiny();
        let model = Model {
            name: "tiny",
            info: &info,
            engine: Engine::Cpu(&engine),
        };
        let texts = ["one two  three".to_owned(), "the and of to in ".repeat(60)];
        let pieces = Pieces::of_documents(&info, &texts).unwrap();
        assert!(pieces.len() > 2, "the long one is in pieces");
        let got = measure(&model, &pieces, &Quiet).unwrap();
        let n_tokens = texts
            .iter()
            .map(|text| info.tokenizer.encode(text, false, false).len());
        assert_eq!(got.tokens, n_tokens.sum::<usize>() as u64);
        assert_eq!((got.words, got.windows), (303, 2));
        assert_eq!(
            got.bytes,
            texts.iter().map(|text| text.len() as u64).sum::<u64>()
        );
    }

    #[test]
    fn rows_and_shards_count_what_is_masked() {
        use fledgling_data::{
            config::PackMode,
            pack::Row,
            shards::{About, DatasetWriter, Layout},
        };
        let (info, engine) = tiny();
        let model = Model {
            name: "tiny",
            info: &info,
            engine: Engine::Cpu(&engine),
        };
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("rows.jsonl");
        let row = r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"the cat"}]}"#;
        std::fs::write(&file, format!("{row}\n{row}\n")).unwrap();
        let source = Source::of(&file.to_string_lossy());
        let rows = Pieces::of_chat(&info, &source, usize::MAX).unwrap();
        let measured = measure(&model, &rows, &Quiet).unwrap();
        let piece = rows.get(0).unwrap();
        let first = first_counted(&piece);
        let want = naive(&model, &piece.ids, first);
        let n_counted = piece.counted.iter().filter(|counted| **counted).count();
        assert_eq!(measured.tokens as usize, 2 * n_counted);
        assert_eq!(n_counted, want.len(), "a reply is in one piece");
        let mean = want.iter().sum::<f64>() / want.len() as f64;
        assert!((measured.nll.value - mean).abs() < 1e-9);
        assert_eq!(Pieces::of_chat(&info, &source, 1).unwrap().len(), 1);

        let folder = place.path().join("shards");
        let layout = Layout {
            tokenizer: Encoder::from_model(&info).id(false),
            context: 64,
            mode: PackMode::Segments,
            shard_tokens: 1000,
        };
        let mut writer = DatasetWriter::create(&folder, layout).unwrap();
        let row = Row {
            tokens: [piece.ids.clone(), piece.ids.clone()].concat(),
            counted: [piece.counted.clone(), piece.counted.clone()].concat(),
            segments: vec![piece.ids.len() as u32; 2],
        };
        writer.push(Split::Valid, &row).unwrap();
        writer.finish(About::default()).unwrap();
        let shards = Pieces::of_shards(&info, &folder, None, usize::MAX).unwrap();
        let same = measure(&model, &shards, &Quiet).unwrap();
        assert_eq!((same.tokens, same.windows), (measured.tokens, 2));
        assert!((same.nll.value - measured.nll.value).abs() < 1e-12);
        let error = Pieces::of_shards(&info, &folder, Some(Split::Test), 1);
        assert!(error.unwrap_err().to_string().contains("has no rows"));
    }

    #[test]
    fn nothing_to_score_is_an_error() {
        let (info, engine) = tiny();
        let model = Model {
            name: "tiny",
            info: &info,
            engine: Engine::Cpu(&engine),
        };
        let cut = Windows {
            window: 8,
            stride: 8,
        };
        let pieces = Pieces::of_text(&info, "", cut, usize::MAX).unwrap();
        let error = measure(&model, &pieces, &Quiet).unwrap_err().to_string();
        assert!(error.contains("no token to score"), "{error}");
        let cut = Windows {
            window: 512,
            stride: 512,
        };
        let error = Pieces::of_text(&info, "a b", cut, 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("128 positions"), "{error}");
    }

    proptest! {
        #[test]
        fn windows_score_each_token_once(n in 0_usize..300, window in 2_usize..40, stride in 1_usize..40) {
            let stride = stride.min(window);
            let mut scored = vec![0; n];
            for (range, positions) in windows(n, window, stride) {
                prop_assert!(range.end <= n && positions.end == range.len());
                for position in positions {
                    scored[range.start + position] += 1;
                }
            }
            // Disjoint windows leave out the first token of each.
            let most = if stride == window { 0..=1 } else { 1..=1 };
            let end = scored.iter().rposition(|&k| k > 0).map_or(0, |last| last + 1);
            prop_assert!(scored.iter().take(end).skip(1).all(|k| most.contains(k)));
        }

        #[test]
        fn rolling_windows_score_each_token_once(n in 0_usize..200, n_ctx in 1_usize..40) {
            let ids: Vec<u32> = (0..n as u32).collect();
            let mut scored = Vec::new();
            for (piece, from) in rolling(9999, &ids, n_ctx) {
                prop_assert!(piece.len() <= n_ctx + 1 && from >= 1);
                scored.extend_from_slice(&piece[from..]);
            }
            prop_assert_eq!(scored, ids);
        }
    }
}
