//! Generation as a state machine that knows no engine, so that the CPU engine (synchronous) and the WebGPU engine
//! (asynchronous) run the same one: logits in, token and text out, until a reason to finish.

use crate::{
    sampler::{SamplerError, SamplerParams},
    tokenizer::Tokenizer,
};
use std::sync::Arc;

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateParams {
    /// New tokens at most; `None` is as many as the context holds.
    pub max_tokens: Option<usize>,
    /// How tokens are picked.
    pub sampler: SamplerParams,
    /// Texts that end the generation; they are not part of the answer.
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

/// One generation under way.
#[derive(Debug)]
pub struct Generation {}

impl Generation {
    /// Starts after `prompt` in a context of `n_ctx` positions.
    ///
    /// # Errors
    /// An empty prompt, one that leaves no room for a token, or sampling parameters out of range.
    pub fn new(
        _tokenizer: Arc<Tokenizer>,
        _prompt: &[u32],
        _n_ctx: usize,
        _params: &GenerateParams,
    ) -> Result<Self, GenerateError> {
        todo!()
    }
    /// Picks from the logits of the last position and takes the token. `logits` is scratch afterwards. [V]
    pub fn sample(&mut self, _logits: &mut [f32]) -> Step {
        todo!()
    }
    /// Takes a token that the engine picked itself (argmax on the GPU).
    pub fn accept(&mut self, _token: u32) -> Step {
        todo!()
    }
    /// Whether the engine may pick by argmax.
    pub fn is_argmax(&self) -> bool {
        todo!()
    }
    /// The answer's tokens so far, without an end token.
    pub fn tokens(&self) -> &[u32] {
        todo!()
    }
    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        todo!()
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
