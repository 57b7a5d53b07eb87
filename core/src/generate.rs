//! Generation as a state machine that knows no engine, so that the CPU engine (synchronous) and the WebGPU engine
//! (asynchronous) run the same one: logits in, token and text out, until a reason to finish. [`run`] is the CPU's loop.

use crate::{
    cpu::{CpuEngine, EngineError, Feed, Session},
    sampler::{Sampler, SamplerError, SamplerParams, argmax},
    speculate::PromptLookup,
    tokenizer::{StreamDecoder, Tokenizer},
};
use std::{cmp::Reverse, ops::ControlFlow, ops::Range, sync::Arc};

/// What a caller asks for. The defaults are greedy, without a limit but the context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateParams {
    /// New tokens at most; `None` is as many as the context holds.
    pub max_tokens: Option<usize>,
    /// How tokens are picked.
    pub sampler: SamplerParams,
    /// Texts that end the generation; they are not part of the answer. Empty ones are ignored.
    pub stop: Vec<String>,
    /// Go on after end tokens (for benchmarks).
    pub ignore_end: bool,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end token or a stop text.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

/// What one token brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The token.
    pub token: u32,
    /// Text that is certain now: never half a character, never the beginning of a stop text.
    pub text: String,
    /// Set on the last step. The token of a `Stop` by end token is not part of [`Generation::tokens`].
    pub finish: Option<FinishReason>,
}

/// What a generation needs to know of the logits of a position.
#[derive(Debug, Clone, PartialEq)]
pub enum Scores {
    /// The likeliest token, where nothing else matters.
    Best(u32),
    /// All. [V]
    All(Vec<f32>),
}

impl Scores {
    /// Of logits, on whatever thread has them. [V]
    pub fn of(logits: &[f32], best_is_enough: bool) -> Self {
        if best_is_enough {
            Self::Best(argmax(logits))
        } else {
            Self::All(logits.to_vec())
        }
    }
}

impl Default for Scores {
    fn default() -> Self {
        Self::Best(0)
    }
}

/// One generation under way.
#[derive(Debug)]
pub struct Generation {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    decoder: StreamDecoder,
    stops: Stops,
    /// Prompt and answer.
    context: Vec<u32>,
    n_prompt: usize,
    /// Length of `context` at which to finish.
    max_context: usize,
    ignore_end: bool,
    finished: Option<FinishReason>,
}

impl Generation {
    /// Starts after `prompt` in a context of `n_ctx` positions. With `max_tokens` 0 it is finished before its first step.
    ///
    /// # Errors
    /// An empty prompt, one that leaves no room for a token, or sampling parameters out of range.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        n_ctx: usize,
        params: &GenerateParams,
    ) -> Result<Self, GenerateError> {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() >= n_ctx {
            return Err(GenerateError::PromptTooLong {
                prompt: prompt.len(),
                n_ctx,
            });
        }
        let max_tokens = params.max_tokens.unwrap_or(usize::MAX);
        Ok(Self {
            sampler: Sampler::new(params.sampler.clone())?,
            decoder: StreamDecoder::after(&tokenizer, prompt),
            stops: Stops::new(&params.stop),
            context: prompt.to_vec(),
            n_prompt: prompt.len(),
            max_context: n_ctx.min(prompt.len().saturating_add(max_tokens)),
            ignore_end: params.ignore_end,
            finished: (max_tokens == 0).then_some(FinishReason::Length),
            tokenizer,
        })
    }

    /// Picks from the logits of the last position and takes the token. `logits` is scratch afterwards. [V]
    pub fn sample(&mut self, logits: &mut [f32]) -> Step {
        let token = self.sampler.sample(logits, &self.context);
        self.accept(token)
    }

    /// Picks from what [`Scores::of`] kept of the logits; where [`Self::is_argmax`] does not hold, it must be all.
    pub fn take(&mut self, scores: Scores) -> Step {
        match scores {
            Scores::Best(token) => self.accept(token),
            Scores::All(mut logits) => self.sample(&mut logits),
        }
    }

    /// Ends it before its next token, and gives the text that was held back because a stop text might have come.
    pub fn end(&mut self, reason: FinishReason) -> String {
        if self.finished.is_some() {
            return String::new();
        }
        let mut text = std::mem::take(&mut self.stops.held);
        text.push_str(&self.decoder.finish());
        self.finished = Some(reason);
        text
    }

    /// Takes a token that the engine picked itself (argmax on the GPU). After the end, it changes nothing.
    pub fn accept(&mut self, token: u32) -> Step {
        if let Some(reason) = self.finished {
            return Step {
                token,
                text: String::new(),
                finish: Some(reason),
            };
        }
        let mut text = String::new();
        if self.tokenizer.is_end(token) && !self.ignore_end {
            self.finished = Some(FinishReason::Stop);
        } else {
            self.context.push(token);
            let decoded = self.decoder.push(&self.tokenizer, token);
            if self.stops.push(&decoded, &mut text) {
                return self.finish(token, text, FinishReason::Stop);
            }
            if self.context.len() >= self.max_context {
                self.finished = Some(FinishReason::Length);
            }
        }
        let Some(reason) = self.finished else {
            return Step {
                token,
                text,
                finish: None,
            };
        };
        let rest = self.decoder.finish();
        if self.stops.push(&rest, &mut text) {
            return self.finish(token, text, FinishReason::Stop);
        }
        text.push_str(&self.stops.held);
        self.finish(token, text, reason)
    }

    fn finish(&mut self, token: u32, text: String, reason: FinishReason) -> Step {
        self.finished = Some(reason);
        Step {
            token,
            text,
            finish: Some(reason),
        }
    }

    /// Whether the engine may pick by argmax.
    pub fn is_argmax(&self) -> bool {
        self.sampler.is_argmax()
    }
    /// The answer's tokens so far, without an end token.
    pub fn tokens(&self) -> &[u32] {
        &self.context[self.n_prompt..]
    }
    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        &self.context[..self.n_prompt]
    }
    /// Prompt and answer: what an engine must have seen before the next logits.
    pub fn context(&self) -> &[u32] {
        &self.context
    }
    /// Tokens that a draft may have: the token behind it must fit too.
    pub fn draft_room(&self) -> usize {
        self.max_context.saturating_sub(self.context.len() + 1)
    }
    /// Why it ended, once it has.
    pub fn finished(&self) -> Option<FinishReason> {
        self.finished
    }
}

/// Runs `generation` on the CPU until it finishes or `on_step` breaks, which takes effect before the next token.
/// The session may come from an earlier conversation: what it has in common with the prompt is not computed again.
/// Returns `None` when `on_step` broke.
///
/// # Errors
/// Those of the engine.
pub fn run(
    engine: &CpuEngine,
    session: &mut Session,
    generation: &mut Generation,
    mut on_step: impl FnMut(&Step) -> ControlFlow<()>,
) -> Result<Option<FinishReason>, EngineError> {
    if let Some(reason) = generation.finished() {
        return Ok(Some(reason));
    }
    rewind_to_common(session, generation.context());
    let mut no_drafts = PromptLookup::new(0);
    loop {
        let flow = advance(engine, session, generation, &mut no_drafts, &mut on_step)?;
        if let ControlFlow::Break(finish) = flow {
            return Ok(finish);
        }
    }
}

/// Makes the session forget what is not the beginning of `context`, and the last token of that in any case: its logits are what is
/// asked for.
pub fn rewind_to_common(session: &mut Session, context: &[u32]) {
    let n_common = session.common_prefix_len(context);
    session.rewind(n_common.min(context.len().saturating_sub(1)));
}

/// Feeds the session what it lacks of the generation's context, and takes the next token, or several where a draft is right. Breaks
/// with the reason when the generation has finished, and with `None` when `on_step` broke.
///
/// # Errors
/// Those of the engine.
///
/// # Panics
/// When the session holds something else than a beginning of the context: see [`rewind_to_common`].
pub fn advance(
    engine: &CpuEngine,
    session: &mut Session,
    generation: &mut Generation,
    lookup: &mut PromptLookup,
    mut on_step: impl FnMut(&Step) -> ControlFlow<()>,
) -> Result<ControlFlow<Option<FinishReason>>, EngineError> {
    let n_context = generation.context().len();
    let room = session.n_ctx().saturating_sub(n_context);
    let room = room.min(generation.draft_room());
    let draft = lookup.draft(generation.context(), room);
    let tokens = [&generation.context()[session.tokens().len()..], &draft].concat();
    let wanted_from = tokens.len() - 1 - draft.len();
    let best_is_enough = generation.is_argmax();
    let feed = Feed {
        session,
        tokens: &tokens,
        wanted_from,
    };
    let scores = engine.forward_batch(&mut [feed], &|_, _, logits| {
        Scores::of(logits, best_is_enough)
    })?;
    let mut flow = ControlFlow::Continue(());
    let mut n_accepted = 0;
    for (i, scores) in scores.into_iter().enumerate() {
        let step = generation.take(scores);
        let stopped = on_step(&step).is_break();
        if step.finish.is_some() || stopped {
            flow = ControlFlow::Break(step.finish);
        }
        if flow.is_break() || draft.get(i) != Some(&step.token) {
            break;
        }
        n_accepted += 1;
    }
    session.rewind(n_context + n_accepted);
    lookup.checked(draft.len(), n_accepted, generation.context().len());
    Ok(flow)
}

/// Holds text back while it could still be the beginning of a stop text.
#[derive(Debug)]
struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    fn new(stops: &[String]) -> Self {
        Self {
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .cloned()
                .collect(),
            held: String::new(),
        }
    }

    /// Takes more text, writes to `out` what is certain, and says whether a stop text was found, after which nothing
    /// is held. The stop text that is complete first counts, whatever tokens the text came in.
    fn push(&mut self, more: &str, out: &mut String) -> bool {
        self.held.push_str(more);
        if let Some(found) = self.first_complete() {
            out.push_str(&self.held[..found.start]);
            self.held.clear();
            return true;
        }
        let certain = self.held.len() - self.beginning_len();
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        false
    }

    /// The stop text that ends first, the longest of those.
    fn first_complete(&self) -> Option<Range<usize>> {
        let found = self.stops.iter().filter_map(|stop| {
            self.held
                .find(stop.as_str())
                .map(|start| start..start + stop.len())
        });
        found.min_by_key(|range| (range.end, Reverse(range.len())))
    }

    /// Length of the longest end of the held text that begins a stop text.
    fn beginning_len(&self) -> usize {
        let longest = |stop: &String| {
            let is_beginning =
                |len: &usize| stop.is_char_boundary(*len) && self.held.ends_with(&stop[..*len]);
            (1..stop.len().min(self.held.len() + 1))
                .rev()
                .find(is_beginning)
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

/// Why a generation could not start.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// No token to start from.
    #[error("the prompt is empty, and the model has no begin-of-sequence token to start from")]
    EmptyPrompt,
    /// No room.
    #[error(
        "the prompt has {prompt} tokens, and the context holds {n_ctx}: shorten the prompt or raise the context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions there are.
        n_ctx: usize,
    },
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut state = Stops::new(&stops.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut texts = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            let stopped = state.push(piece, &mut text);
            texts.push(text);
            if stopped {
                return (texts, true, state.held);
            }
        }
        (texts, false, state.held)
    }

    #[test]
    fn text_is_held_only_while_it_could_begin_a_stop() {
        let check = |stops: &[&str], pieces: &[&str], want: &[&str], stopped, held: &str| {
            assert_eq!(
                stream(stops, pieces),
                (
                    want.iter().map(ToString::to_string).collect(),
                    stopped,
                    held.to_owned()
                ),
                "{stops:?} {pieces:?}"
            );
        };
        check(&["END"], &["aE", "N", "x"], &["a", "", "ENx"], false, "");
        check(&["END"], &["aE", "N", "Dx"], &["a", "", ""], true, "");
        check(&["END"], &["xENDy"], &["x"], true, "");
        check(&["aab"], &["aaa", "ab"], &["a", "a"], true, "");
        check(&["abcd", "c"], &["abcd"], &["ab"], true, "");
        check(&["abc", "c"], &["xabc"], &["x"], true, "");
        check(&["é!"], &["caf", "é", "?"], &["caf", "", "é?"], false, "");
        check(
            &["\n\n"],
            &["a\n", "b\n", "\nc"],
            &["a", "\nb", ""],
            true,
            "",
        );
        check(&["", "x"], &["ab"], &["ab"], false, "");
        check(&[], &["a", "b"], &["a", "b"], false, "");
        check(&["stop"], &["st"], &[""], false, "st");
    }
}
