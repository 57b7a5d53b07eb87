//! What computes a model's logits: the CPU engine, or something that takes whole texts (Burn).

use anyhow::{Context, Result};
use fledgling_core::cpu::{CpuEngine, Feed, Session};
use fledgling_kernels::threads::map;
use std::ops::Range;

/// Bytes of logits of a reference that are held at most where every stretch of a text is computed from its beginning.
const HELD_BYTES: usize = 256 << 20;

/// A text, and where its logits are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// Its tokens, at least one, and no more than the model's context holds.
    pub tokens: &'a [u32],
    /// Logits are wanted from this one of `tokens` on: 0 wants all, the length none.
    pub wanted_from: usize,
}

/// Takes the logits of some positions: the text and the position of each, and a row for each. [n], [n, V]
pub type Take<'a> = dyn FnMut(&[(usize, usize)], &[f32]) + 'a;

/// An engine without memory: it computes texts from their beginning, many at once.
pub trait WholeTexts {
    /// Computes the logits at all wanted positions of all texts and gives them away by chunks, in any order, so that few are there
    /// at a time.
    ///
    /// # Errors
    /// What the engine fails on.
    fn logits(&self, texts: &[Text<'_>], take: &mut Take<'_>) -> Result<()>;

    /// Tokens in a vocabulary, V.
    fn vocab_size(&self) -> usize;
}

/// What computes a model's logits.
#[derive(Clone, Copy)]
pub enum Engine<'a> {
    /// The CPU engine: it keeps what texts begin with together, and it writes.
    Cpu(&'a CpuEngine),
    /// An engine of whole texts. It does not write.
    Whole(&'a dyn WholeTexts),
}

impl std::fmt::Debug for Engine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu(_) => "Cpu",
            Self::Whole(_) => "Whole",
        })
    }
}

impl<'a> Engine<'a> {
    /// The CPU engine, for what it alone can do.
    ///
    /// # Errors
    /// When it is another one.
    pub fn writing(self) -> Result<&'a CpuEngine> {
        match self {
            Self::Cpu(engine) => Some(engine),
            Self::Whole(_) => None,
        }
        .context("only the CPU engine writes text: leave --device out")
    }

    /// A result of the logits at each position that is wanted, `reduce(text, t, logits)`, text by text, in order.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn forward<R: Clone + Default + Send>(
        self,
        texts: &[Text<'_>],
        reduce: &(dyn Fn(usize, usize, &[f32]) -> R + Sync),
    ) -> Result<Vec<R>> {
        match self {
            Self::Cpu(engine) => {
                let sessions = texts.iter().map(|text| engine.session(text.tokens.len()));
                let mut sessions = sessions.collect::<Result<Vec<_>, _>>()?;
                let feeds = sessions.iter_mut().zip(texts);
                let feeds = feeds.map(|(session, text)| Feed {
                    session,
                    tokens: text.tokens,
                    wanted_from: text.wanted_from,
                });
                Ok(engine.forward_batch(&mut feeds.collect::<Vec<_>>(), reduce)?)
            }
            Self::Whole(engine) => reduced(engine, texts, reduce),
        }
    }

    /// A way through one text of `n_tokens`, stretch by stretch.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub(crate) fn begin(self, n_tokens: usize) -> Result<Way<'a>> {
        Ok(match self {
            Self::Cpu(engine) => Way::Cpu(engine, Box::new(engine.session(n_tokens)?)),
            Self::Whole(engine) => Way::Whole(engine),
        })
    }

    /// How many positions to take at a time where `least` would do.
    pub(crate) fn stretch(self, least: usize) -> usize {
        match self {
            Self::Cpu(_) => least,
            // As few beginnings again as memory allows.
            Self::Whole(engine) => (HELD_BYTES / 4 / engine.vocab_size()).max(least),
        }
    }
}

fn reduced<R: Clone + Default + Send>(
    engine: &dyn WholeTexts,
    texts: &[Text<'_>],
    reduce: &(dyn Fn(usize, usize, &[f32]) -> R + Sync),
) -> Result<Vec<R>> {
    let mut starts = Vec::with_capacity(texts.len());
    let mut n_wanted = 0;
    for text in texts {
        starts.push(n_wanted);
        n_wanted += text.tokens.len() - text.wanted_from;
    }
    let (mut results, n_vocab) = (vec![R::default(); n_wanted], engine.vocab_size());
    engine.logits(texts, &mut |places, logits| {
        let row = |i: usize| {
            let (text, t) = places[i];
            reduce(text, t, &logits[i * n_vocab..(i + 1) * n_vocab])
        };
        for (&(text, t), result) in places.iter().zip(map(places.len(), row)) {
            results[starts[text] + t - texts[text].wanted_from] = result;
        }
    })?;
    Ok(results)
}

/// See [`Engine::begin`].
pub(crate) enum Way<'a> {
    Cpu(&'a CpuEngine, Box<Session>),
    Whole(&'a dyn WholeTexts),
}

impl Way<'_> {
    /// Goes on with a stretch of `ids`, of which the positions `wanted` are reduced: `reduce(position, logits)`.
    pub(crate) fn go<R: Clone + Default + Send>(
        &mut self,
        ids: &[u32],
        stretch: &Range<usize>,
        wanted: &Range<usize>,
        reduce: &(dyn Fn(usize, &[f32]) -> R + Sync),
    ) -> Result<Vec<R>> {
        match self {
            Self::Cpu(engine, session) => {
                let feed = Feed {
                    session,
                    tokens: &ids[stretch.clone()],
                    wanted_from: wanted.start - stretch.start,
                };
                let of_row = |_, t, logits: &[f32]| reduce(stretch.start + t, logits);
                Ok(engine.forward_batch(&mut [feed], &of_row)?)
            }
            Self::Whole(_) if wanted.is_empty() => Ok(Vec::new()),
            Self::Whole(engine) => {
                let text = Text {
                    tokens: &ids[..stretch.end],
                    wanted_from: wanted.start,
                };
                reduced(*engine, &[text], &|_, t, logits| reduce(t, logits))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Plain, tiny};

    #[test]
    fn what_only_the_cpu_engine_does_is_said() {
        let (_, engine) = tiny();
        assert!(Engine::Cpu(&engine).writing().is_ok());
        let plain = Plain(&engine);
        let error = Engine::Whole(&plain).writing().unwrap_err().to_string();
        assert!(error.contains("leave --device out"), "{error}");
    }

    #[test]
    fn results_are_in_order_whatever_the_order_of_the_chunks() {
        let (_, engine) = tiny();
        let tokens: Vec<u32> = (1..20).collect();
        let texts = [(7, 2), (1, 0), (19, 19), (19, 0)].map(|(n, wanted_from)| Text {
            tokens: &tokens[..n],
            wanted_from,
        });
        let reduce = |text, t, logits: &[f32]| (text, t, logits.to_vec());
        let want = Engine::Cpu(&engine).forward(&texts, &reduce).unwrap();
        let plain = Plain(&engine);
        assert_eq!(
            Engine::Whole(&plain).forward(&texts, &reduce).unwrap(),
            want
        );
        assert_eq!(want.len(), 5 + 1 + 19);
    }
}
