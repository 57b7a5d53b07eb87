//! Log-likelihoods of texts, many at once, with what they share computed once.
//!
//! A batch of groups goes through the engine in three steps: what all of its sequences share (few-shot examples), what the sequences of
//! each group share (a question), and what is each one's own (its choices). The numbers are those of each sequence by itself, because
//! the engine's are the same in any batch.

use crate::{
    engine::{Engine, Text},
    logits::Distribution,
};
use anyhow::{Result, bail, ensure};
use fledgling_core::{
    cpu::{CpuEngine, EngineError, Feed, Session},
    model::ModelInfo,
};
use fledgling_data::control::{Control, Unit};

/// A batch has about so many tokens of its own: several of the engine's chunks, so that the last one, which may be small, is of no weight.
const BATCH_TOKENS: usize = 1024;

/// A model and what runs it.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// What the user called it.
    pub name: &'a str,
    /// Tokenizer and chat template.
    pub info: &'a ModelInfo,
    /// The engine.
    pub engine: Engine<'a>,
}

/// Tokens, and where those begin that are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// The tokens: at least two.
    pub ids: Vec<u32>,
    /// The first that is scored; what stands before it is given. At least 1.
    pub from: usize,
    /// Whether the beginning was left out, because the model's context does not hold it.
    pub truncated: bool,
}

/// What a model says of a sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// Of each scored token in order.
    pub tokens: Vec<TokenScore>,
}

/// What a model says of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenScore {
    /// Its log-probability, in nats.
    pub log_prob: f64,
    /// Whether it was the likeliest.
    pub is_top: bool,
}

impl TokenScore {
    /// Of a token after the logits. [V]
    pub fn of(logits: &[f32], token: u32) -> Self {
        let distribution = Distribution::new(logits);
        Self {
            log_prob: distribution.log_prob(token),
            is_top: distribution.top() == token,
        }
    }
}

impl Scored {
    /// Summed log-probability, in nats.
    pub fn log_prob(&self) -> f64 {
        self.tokens.iter().map(|token| token.log_prob).sum()
    }

    /// Whether greedy decoding would have written all of it.
    pub fn is_greedy(&self) -> bool {
        self.tokens.iter().all(|token| token.is_top)
    }
}

impl Sequence {
    /// A continuation after a context, as lm-evaluation-harness encodes it: whitespace at the context's end moves to the continuation, both are encoded
    /// together and parted after as many tokens as the context has by itself; after an empty context stands BOS, or EOS where there is none.
    ///
    /// What is too long for the model's context loses its beginning.
    ///
    /// # Errors
    /// When the continuation makes no token, or is longer than the model's context.
    pub fn of_pair(info: &ModelInfo, context: &str, continuation: &str) -> Result<Self> {
        let tokenizer = &info.tokenizer;
        let trimmed = context.trim_end();
        let whole = format!("{context}{continuation}");
        let (ids, from) = if trimmed.is_empty() {
            let mut ids: Vec<u32> = prefix_token(info)?.into();
            ids.extend(tokenizer.encode(&whole, false, false));
            (ids, 1)
        } else {
            let from = tokenizer.encode(trimmed, tokenizer.adds_bos(), false).len();
            (tokenizer.encode(&whole, tokenizer.adds_bos(), false), from)
        };
        Self::within(ids, from.max(1), info.spec.n_ctx)
    }

    /// Tokens of which those from `from` on are scored; what is too long for `n_ctx` positions loses its beginning.
    ///
    /// # Errors
    /// When there is nothing to score, or it is longer than the context.
    pub fn within(mut ids: Vec<u32>, mut from: usize, n_ctx: usize) -> Result<Self> {
        ensure!(from < ids.len(), "there is no token to score");
        // The last token is not fed: it predicts nothing that is known.
        let n_over = (ids.len() - 1).saturating_sub(n_ctx);
        if n_over >= from {
            bail!(
                "{} tokens are to be scored, and the model's context holds {n_ctx}",
                ids.len() - from
            );
        }
        ids.drain(..n_over);
        from -= n_over;
        Ok(Self {
            ids,
            from,
            truncated: n_over > 0,
        })
    }

    /// What is fed.
    fn fed(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    /// Tokens that come before the first logits that are wanted.
    fn n_given(&self) -> usize {
        self.from - 1
    }
}

/// The token that stands before a text that has nothing before it: BOS, or else EOS.
///
/// # Errors
/// When the tokenizer has neither.
pub fn prefix_token(info: &ModelInfo) -> Result<[u32; 1]> {
    let tokenizer = &info.tokenizer;
    match tokenizer.bos().or(tokenizer.eos()) {
        Some(id) => Ok([id]),
        None => bail!("the tokenizer has no BOS and no EOS token to stand before a text"),
    }
}

/// Scores groups of sequences; those of a group share their beginning. One result for each sequence, in order. Progress counts groups.
///
/// # Errors
/// Those of the engine, or somebody's wish to stop.
pub fn score(
    engine: Engine<'_>,
    groups: &[Vec<Sequence>],
    control: &dyn Control,
    stage: &str,
) -> Result<Vec<Vec<Scored>>> {
    control.begin(stage, Unit::Documents, Some(groups.len() as u64));
    let mut scorer = match engine {
        Engine::Cpu(engine) => Some(Scorer::new(engine, groups)?),
        Engine::Whole(_) => None,
    };
    let mut results = Vec::with_capacity(groups.len());
    let mut rest = groups;
    while !rest.is_empty() {
        check(control)?;
        let (batch, after) = rest.split_at(batch_len(rest));
        results.extend(match &mut scorer {
            Some(scorer) => scorer.batch(batch)?,
            None => whole(engine, batch)?,
        });
        control.advance(batch.len() as u64);
        rest = after;
    }
    Ok(results)
}

/// Somebody wished to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

/// Ends a job when somebody wishes so.
///
/// # Errors
/// [`Stopped`] when somebody does.
pub fn check(control: &dyn Control) -> Result<()> {
    if control.cancelled() {
        bail!(Stopped);
    }
    Ok(())
}

/// How many of the first groups make a batch.
fn batch_len(groups: &[Vec<Sequence>]) -> usize {
    let mut n_tokens = 0;
    for (i, group) in groups.iter().enumerate() {
        let n_shared = shared_len(group.iter());
        let own = group.iter().map(|sequence| sequence.fed().len() - n_shared);
        n_tokens += n_shared + own.sum::<usize>();
        if n_tokens >= BATCH_TOKENS {
            return i + 1;
        }
    }
    groups.len()
}

/// How many tokens some sequences begin with together, before the first that is scored in any.
fn shared_len<'a>(mut sequences: impl Iterator<Item = &'a Sequence>) -> usize {
    let Some(first) = sequences.next() else {
        return 0;
    };
    let given = &first.ids[..first.n_given()];
    sequences.fold(given.len(), |len, sequence| {
        let pairs = given[..len].iter().zip(&sequence.ids[..sequence.n_given()]);
        pairs.take_while(|(a, b)| a == b).count()
    })
}

/// Scores each sequence from its beginning.
fn whole(engine: Engine<'_>, groups: &[Vec<Sequence>]) -> Result<Vec<Vec<Scored>>> {
    let sequences: Vec<&Sequence> = groups.iter().flatten().collect();
    let texts = sequences.iter().map(|sequence| Text {
        tokens: sequence.fed(),
        wanted_from: sequence.n_given(),
    });
    let scores = engine.forward(&texts.collect::<Vec<_>>(), &|text, t, logits| {
        TokenScore::of(logits, sequences[text].ids[t + 1])
    })?;
    Ok(by_group(groups, scores))
}

/// The scores of all sequences in order, parted.
fn by_group(groups: &[Vec<Sequence>], scores: Vec<TokenScore>) -> Vec<Vec<Scored>> {
    let mut scores = scores.into_iter();
    let mut take = |sequence: &Sequence| Scored {
        tokens: scores
            .by_ref()
            .take(sequence.ids.len() - sequence.from)
            .collect(),
    };
    groups
        .iter()
        .map(|group| group.iter().map(&mut take).collect())
        .collect()
}

struct Scorer<'a> {
    engine: &'a CpuEngine,
    /// Holds what the sequences of the last batch began with together.
    root: Session,
}

impl<'a> Scorer<'a> {
    fn new(engine: &'a CpuEngine, groups: &[Vec<Sequence>]) -> Result<Self> {
        let n_longest = groups.iter().flatten().map(|sequence| sequence.fed().len());
        let n_ctx = n_longest.max().unwrap_or(1).max(1);
        let root = engine.session(n_ctx)?;
        Ok(Self { engine, root })
    }

    fn batch(&mut self, groups: &[Vec<Sequence>]) -> Result<Vec<Vec<Scored>>, EngineError> {
        let n_root = shared_len(groups.iter().flatten());
        let first = groups.iter().flatten().next();
        let root_ids = first.map_or(&[][..], |sequence| &sequence.ids[..n_root]);
        self.root.rewind(self.root.common_prefix_len(root_ids));
        let n_there = self.root.tokens().len();
        if n_there < n_root {
            let feed = (&mut self.root, &root_ids[n_there..]);
            feed_given(self.engine, vec![feed])?;
        }
        // What the sequences of each group share; a single one shares nothing that the root has not.
        let lens = groups.iter().map(|group| match group.len() {
            0 | 1 => n_root,
            _ => shared_len(group.iter()),
        });
        let lens: Vec<usize> = lens.collect();
        let mut shared = vec![self.root.clone(); groups.len()];
        let parts = shared.iter_mut().zip(groups).zip(&lens);
        let parts = parts.filter(|(_, len)| **len > n_root);
        let parts = parts.map(|((session, group), len)| (session, &group[0].ids[n_root..*len]));
        feed_given(self.engine, parts.collect())?;
        self.own(groups, shared, &lens)
    }

    /// Feeds what is each sequence's own after the `lens` first tokens, which `shared` holds.
    fn own(
        &self,
        groups: &[Vec<Sequence>],
        shared: Vec<Session>,
        lens: &[usize],
    ) -> Result<Vec<Vec<Scored>>, EngineError> {
        let mut sessions = Vec::new();
        let mut sequences = Vec::new();
        for ((group, session), &len) in groups.iter().zip(shared).zip(lens) {
            if group.is_empty() {
                continue;
            }
            sequences.extend(group.iter().map(|sequence| (sequence, len)));
            // The last one takes what the others copy.
            sessions.extend((1..group.len()).map(|_| session.clone()));
            sessions.push(session);
        }
        let feeds = sessions.iter_mut().zip(&sequences);
        let mut feeds: Vec<Feed<'_>> = feeds
            .map(|(session, &(sequence, len))| Feed {
                session,
                tokens: &sequence.fed()[len..],
                wanted_from: sequence.n_given() - len,
            })
            .collect();
        let scores = self.engine.forward_batch(&mut feeds, &|feed, t, logits| {
            let (sequence, len) = sequences[feed];
            TokenScore::of(logits, sequence.ids[len + t + 1])
        })?;
        Ok(by_group(groups, scores))
    }
}

/// Feeds tokens whose logits nobody wants.
fn feed_given(engine: &CpuEngine, parts: Vec<(&mut Session, &[u32])>) -> Result<(), EngineError> {
    let feeds = parts.into_iter().map(|(session, tokens)| Feed {
        session,
        tokens,
        wanted_from: tokens.len(),
    });
    engine.forward_batch(&mut feeds.collect::<Vec<_>>(), &|_, _, _| ())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Plain, tiny};
    use fledgling_data::control::Quiet;
    use proptest::{collection::vec, prelude::*};

    /// Each sequence by itself, token by token.
    fn alone(engine: &CpuEngine, sequence: &Sequence) -> Scored {
        let mut session = engine.session(sequence.ids.len()).unwrap();
        let mut tokens = Vec::new();
        for (t, id) in sequence.ids[..sequence.ids.len() - 1].iter().enumerate() {
            let logits = engine.forward(&mut session, &[*id]).unwrap();
            if t + 1 >= sequence.from {
                tokens.push(TokenScore::of(&logits, sequence.ids[t + 1]));
            }
        }
        Scored { tokens }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_grouping_scores_as_each_by_itself(
            header in vec(0_u32..4, 0..5),
            groups in vec((vec(0_u32..3, 1..6), vec(vec(0_u32..3, 1..6), 0..4)), 1..7),
        ) {
            let (info, engine) = tiny();
            let groups: Vec<Vec<Sequence>> = groups
                .into_iter()
                .map(|(context, choices)| {
                    let context: Vec<u32> = header.iter().chain(&context).copied().collect();
                    let of = |choice: Vec<u32>| {
                        let ids = context.iter().chain(&choice).copied().collect();
                        Sequence::within(ids, context.len(), info.spec.n_ctx).unwrap()
                    };
                    choices.into_iter().map(of).collect()
                })
                .collect();
            let got = score(Engine::Cpu(&engine), &groups, &Quiet, "test").unwrap();
            let want: Vec<Vec<Scored>> = groups
                .iter()
                .map(|group| group.iter().map(|sequence| alone(&engine, sequence)).collect())
                .collect();
            prop_assert_eq!(&got, &want);
            let plain = Plain(&engine);
            prop_assert_eq!(score(Engine::Whole(&plain), &groups, &Quiet, "test").unwrap(), want);
        }
    }

    #[test]
    fn spaces_move_to_the_continuation() {
        let (info, _) = tiny();
        let a = Sequence::of_pair(&info, "the answer ", "is").unwrap();
        let b = Sequence::of_pair(&info, "the answer", " is").unwrap();
        assert_eq!(a, b);
        assert_eq!(info.tokenizer.decode(&a.ids[a.from..], false), " is");
        let empty = Sequence::of_pair(&info, "", "is").unwrap();
        assert_eq!(
            (empty.from, empty.ids[0]),
            (1, info.tokenizer.bos().unwrap())
        );
    }

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let ids: Vec<u32> = (0..12).collect();
        let cut = Sequence::within(ids.clone(), 9, 8).unwrap();
        assert_eq!((cut.ids[0], cut.from, cut.truncated), (3, 6, true));
        assert_eq!(cut.fed().len(), 8);
        assert!(!Sequence::within(ids.clone(), 9, 11).unwrap().truncated);
        let error = Sequence::within(ids.clone(), 2, 8).unwrap_err().to_string();
        assert!(error.contains("10 tokens"), "{error}");
        assert!(Sequence::within(ids, 12, 20).is_err());
    }

    #[test]
    fn a_wish_to_stop_is_heard() {
        struct Stop;
        impl Control for Stop {
            fn begin(&self, _: &str, _: Unit, _: Option<u64>) {}
            fn advance(&self, _: u64) {}
            fn note(&self, _: &str) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let (_, engine) = tiny();
        let sequence = Sequence::within(vec![1, 2], 1, 8).unwrap();
        let error = score(Engine::Cpu(&engine), &[vec![sequence]], &Stop, "test").unwrap_err();
        assert!(error.is::<Stopped>());
    }
}
