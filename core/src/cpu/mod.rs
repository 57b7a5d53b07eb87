//! The CPU engine. Weights stay quantised and borrowed from the file; activations are quantised per block for
//! integer dot products; every instruction set gives the same bits as [`scalar`] (see ARCHITECTURE.md, "The arithmetic").

use crate::{gguf::Gguf, spec::ModelSpec};

/// Instruction sets the engine has kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Portable Rust: the oracle.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
}

/// Element type of the key and value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDType {
    /// Half precision, as llama.cpp keeps it.
    F16,
    /// Single precision, for comparison with PyTorch.
    F32,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads, at least 1. They do not change the result.
    pub n_threads: usize,
    /// Instruction set; `None` picks the best that this CPU has.
    pub isa: Option<Isa>,
    /// Cache type.
    pub kv: KvDType,
}

/// A loaded model. Shared between sessions; one forward pass runs at a time.
#[derive(Debug)]
pub struct CpuEngine {}

impl CpuEngine {
    /// Binds the file's tensors (no copy of the weights).
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type, by name.
    pub fn new(_gguf: &Gguf, _options: &CpuOptions) -> Result<Self, EngineError> {
        todo!()
    }
    /// The architecture.
    pub fn spec(&self) -> &ModelSpec {
        todo!()
    }
    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        todo!()
    }
    /// An empty session of `n_ctx` positions.
    ///
    /// # Errors
    /// When the memory cannot be had, with the bytes needed, or `n_ctx` is beyond what the model's positions allow.
    pub fn session(&self, _n_ctx: usize) -> Result<Session, EngineError> {
        todo!()
    }
    /// Feeds `tokens` and returns the logits after the last. [T] -> [V]
    ///
    /// # Errors
    /// An id outside the vocabulary, no tokens, or a full context; the session is unchanged then.
    pub fn forward(&self, _session: &mut Session, _tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        todo!()
    }
    /// Feeds `tokens` and calls `each(t, logits)` for every position in order, holding only a chunk of logits. [T]
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_all(&self, _session: &mut Session, _tokens: &[u32], _each: &mut dyn FnMut(usize, &[f32])) -> Result<(), EngineError> {
        todo!()
    }
}

/// Keys, values and tokens of one conversation.
#[derive(Debug, Clone)]
pub struct Session {}

impl Session {
    /// The tokens fed so far.
    pub fn tokens(&self) -> &[u32] {
        todo!()
    }
    /// Positions there are.
    pub fn n_ctx(&self) -> usize {
        todo!()
    }
    /// Forgets all but the first `len` tokens.
    pub fn rewind(&mut self, _len: usize) {
        todo!()
    }
}

/// Why the engine could not load or run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// The architecture.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    // … the owner of this module adds the rest
}
