//! Picks the next token. Seeded, and defined on the bits: the same logits and seed pick the same token on every
//! target, so `exp` comes from `libm` and the generator is our own.

/// How to pick. The defaults are greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least this share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divide (multiply when negative) the logits of tokens seen in the last `repetition_window`; 1 is off.
    pub repetition_penalty: f32,
    /// How many tokens back the penalty looks.
    pub repetition_window: usize,
    /// Seed of the generator.
    pub seed: u64,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, repetition_window: 64, seed: 0 }
    }
}

/// A sampler with its generator's state.
#[derive(Debug, Clone)]
pub struct Sampler {}

impl Sampler {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`SamplerError`] naming the parameter and its range.
    pub fn new(_params: SamplerParams) -> Result<Self, SamplerError> {
        todo!()
    }
    /// Picks a token; `history` is prompt and answer so far. Ties go to the lowest id. `logits` is scratch afterwards. [V]
    pub fn sample(&mut self, _logits: &mut [f32], _history: &[u32]) -> u32 {
        todo!()
    }
    /// Whether `sample` is plain argmax, so that an engine may do it where its logits are.
    pub fn is_argmax(&self) -> bool {
        todo!()
    }
}

/// A parameter out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{param} is {value}, it must be {range}")]
pub struct SamplerError {
    /// The parameter's name as in OpenAI's API.
    pub param: &'static str,
    /// What was given.
    pub value: f64,
    /// What is allowed, in words.
    pub range: &'static str,
}
