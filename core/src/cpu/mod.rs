//! The CPU engine. Weights stay quantised and borrowed from the file; activations are quantised per block for
//! integer dot products; every instruction set gives the same bits as the scalar oracle (see ARCHITECTURE.md,
//! "The arithmetic").
//!
//! Start at [`forward`]; what it calls is defined in [`scalar`], and sped up in the module of each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod forward;
mod kernels;
pub mod math;
mod memory;
mod saved;
mod scalar;
mod session;
#[cfg(any(
    target_arch = "aarch64",
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod simd128;
#[cfg(test)]
mod tests;
mod vector;
mod weights;

pub use memory::CpuMemory;
pub use saved::SavedSessionError;
pub use session::Session;

use crate::{
    gguf::Gguf,
    quant::DType,
    spec::{ModelSpec, check_tensors},
};
use bytes::Bytes;
use fledgling_pool::Pool;
use forward::{Row, Runner};
use kernels::Kernels;
use std::{
    fmt,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};
use weights::Weights;

/// Tokens that go through the layers together when a prompt is fed: so many that weights are read seldom, so few that
/// activations stay in the cache.
const CHUNK: usize = 128;
/// Positions whose logits, which are wider than all else, are held at once.
const LOGITS_CHUNK: usize = 32;

/// Instruction sets the engine has kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Portable Rust: the oracle.
    Scalar,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 (F, BW, VL, DQ) and its VNNI.
    Avx512,
    /// aarch64, which always has NEON.
    Neon,
    /// wasm32 compiled with simd128.
    Simd128,
}

impl Isa {
    /// All, the best first.
    pub const ALL: [Self; 5] = [
        Self::Avx512,
        Self::Avx2,
        Self::Neon,
        Self::Simd128,
        Self::Scalar,
    ];

    /// The best that this machine has.
    pub fn best() -> Self {
        Self::ALL
            .into_iter()
            .find(|isa| isa.is_available())
            .unwrap_or(Self::Scalar)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        Kernels::for_isa(self).is_some()
    }
}

impl fmt::Display for Isa {
    /// The name that [`str::parse`] reads: `avx512`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::Simd128 => "simd128",
        })
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;
    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let found = Self::ALL.into_iter().find(|isa| isa.to_string() == name);
        found.ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

/// No instruction set has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are no kernels called `{0}`: give avx512, avx2, neon, simd128 or scalar")]
pub struct UnknownIsa(String);

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
    /// Threads, at least 1. They do not change the result. On wasm32 there is always one.
    pub n_threads: usize,
    /// Instruction set; `None` picks the best that this CPU has.
    pub isa: Option<Isa>,
    /// Cache type.
    pub kv: KvDType,
}

impl Default for CpuOptions {
    /// One thread, the best instruction set, an f16 cache.
    fn default() -> Self {
        Self {
            n_threads: 1,
            isa: None,
            kv: KvDType::F16,
        }
    }
}

/// A loaded model. Shared between sessions; one forward pass runs at a time.
#[derive(Debug)]
pub struct CpuEngine {
    spec: ModelSpec,
    weights: Weights,
    isa: Isa,
    kv: KvDType,
    runner: Mutex<Runner>,
}

impl CpuEngine {
    /// Binds the file's tensors (no copy of the weights).
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type, by name.
    pub fn new(gguf: &Gguf, options: &CpuOptions) -> Result<Self, EngineError> {
        if options.n_threads == 0 {
            return Err(EngineError::NoThreads);
        }
        let isa = options.isa.unwrap_or_else(Isa::best);
        let kernels = Kernels::for_isa(isa).ok_or(EngineError::IsaNotAvailable(isa))?;
        let spec = ModelSpec::from_gguf(gguf)?;
        check_tensors(gguf.header(), &spec)?;
        let weights = Weights::bind(gguf, &spec)?;
        let pool = Pool::new(options.n_threads).map_err(|e| EngineError::Thread(e.to_string()))?;
        Ok(Self {
            spec,
            weights,
            isa,
            kv: options.kv,
            runner: Mutex::new(Runner::new(kernels, pool)),
        })
    }

    /// The architecture.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// An empty session of `n_ctx` positions.
    ///
    /// # Errors
    /// When the memory cannot be had, with the bytes needed, or `n_ctx` is beyond what the model's positions allow.
    pub fn session(&self, n_ctx: usize) -> Result<Session, EngineError> {
        self.session_with(n_ctx, n_ctx)
    }

    /// As [`Self::session`], but its memory is asked for as it fills, so that many of them fit.
    ///
    /// # Errors
    /// When `n_ctx` is beyond what the model's positions allow.
    pub fn growing_session(&self, n_ctx: usize) -> Result<Session, EngineError> {
        self.session_with(n_ctx, 0)
    }

    fn session_with(&self, n_ctx: usize, n_reserved: usize) -> Result<Session, EngineError> {
        if n_ctx == 0 || n_ctx > self.spec.n_ctx {
            return Err(EngineError::ContextSize {
                asked: n_ctx,
                limit: self.spec.n_ctx,
            });
        }
        Session::new(&self.spec, n_ctx, n_reserved, self.kv)
    }

    /// Tokens that a forward pass takes for little more than the cost of one, where its work is to read the weights: what a draft
    /// and the token before it may be. Measured (LOG.md, "shared passes, drafts, sessions"); 1 where nobody has.
    pub fn cheap_rows(&self) -> usize {
        match self.isa {
            Isa::Avx512 | Isa::Avx2 => 4,
            _ => 1,
        }
    }

    /// Bytes of the keys and values of one position.
    pub fn position_bytes(&self) -> usize {
        let n_caches = 2 * self.spec.n_layer * self.spec.n_kv_head;
        n_caches * self.spec.head_dim * self.kv.size_bytes()
    }

    /// Feeds `tokens` and returns the logits after the last. [T] -> [V]
    ///
    /// # Errors
    /// An id outside the vocabulary, no tokens, or a full context; logits that are not finite, with the first tensor at
    /// fault. The session is unchanged then.
    pub fn forward(&self, session: &mut Session, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let mut logits = Vec::new();
        let wanted_from = tokens.len().saturating_sub(1);
        let feed = Feed {
            session,
            tokens,
            wanted_from,
        };
        self.feed(&mut [feed], &mut logits, &mut |_, _, _| ())?;
        Ok(logits)
    }

    /// Feeds `tokens` and calls `each(t, logits)` for every position in order, holding only a chunk of logits. [T]
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_all(
        &self,
        session: &mut Session,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let feed = Feed {
            session,
            tokens,
            wanted_from: 0,
        };
        let vocab_size = self.spec.vocab_size;
        self.feed(&mut [feed], &mut Vec::new(), &mut |_, rows, logits| {
            for (row, logits) in rows.iter().zip(logits.chunks_exact(vocab_size)) {
                each(row.t, logits);
            }
        })
    }

    /// Feeds several conversations at once and makes a result of the logits at each position that is wanted, on all
    /// threads: `reduce(feed, t, logits)`, with `t` counted among the tokens of that feed. The results come feed by feed, in order.
    ///
    /// The numbers are those of [`Self::forward_all`] on each by itself; many short texts together run at the speed of a long one,
    /// and only a chunk of logits is held.
    ///
    /// # Errors
    /// As [`Self::forward`]; all sessions are unchanged then.
    pub fn forward_batch<R: Clone + Default + Send>(
        &self,
        feeds: &mut [Feed<'_>],
        reduce: &(dyn Fn(usize, usize, &[f32]) -> R + Sync),
    ) -> Result<Vec<R>, EngineError> {
        let mut results = Vec::new();
        let vocab_size = self.spec.vocab_size;
        self.feed(feeds, &mut Vec::new(), &mut |runner, rows, logits| {
            let start = results.len();
            results.resize(start + rows.len(), R::default());
            runner.reduce(logits, vocab_size, &mut results[start..], |i, logits| {
                reduce(rows[i].feed, rows[i].t, logits)
            });
        })?;
        Ok(results)
    }

    /// Feeds `tokens` and calls `each(t, hidden)` for every position in order with the state behind the last norm, which the output
    /// matrix would read. Logits are not made. [T], hidden [C]
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_hidden(
        &self,
        session: &mut Session,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let runner = &mut *self.runner();
        let feeds = &mut [Feed {
            session,
            tokens,
            wanted_from: tokens.len(),
        }];
        let rows = self.begin(feeds)?;
        for chunk in rows.chunks(CHUNK) {
            runner.layers(&self.spec, &self.weights, feeds, chunk, &mut None);
            let hidden = runner.hidden(&self.spec, &self.weights); // [T, C]
            if !all_finite(hidden) {
                rewind(feeds, &rows);
                return Err(self.find_not_finite(runner, feeds, &rows));
            }
            for (row, hidden) in chunk.iter().zip(hidden.chunks_exact(self.spec.n_embd)) {
                each(row.t, hidden);
            }
            commit(feeds, chunk);
        }
        Ok(())
    }

    /// Feeds `tokens` and shows what every matrix reads on the way, the output matrix too: `watch(names, rows, K)` with the names of
    /// all matrices that read the same rows. Logits are not made. [T], rows [T, K]
    ///
    /// # Errors
    /// As [`Self::forward`], but that numbers which are not finite go unseen.
    pub fn watch_inputs(
        &self,
        session: &mut Session,
        tokens: &[u32],
        watch: &mut WatchInputs<'_>,
    ) -> Result<(), EngineError> {
        let feed = Feed {
            session,
            tokens,
            wanted_from: tokens.len(),
        };
        let mut each = |_: &mut Runner, _: &[Row], _: &[f32]| ();
        self.feed_with(
            &mut self.runner(),
            &mut [feed],
            &mut Vec::new(),
            &mut each,
            &mut Some(watch),
        )
    }

    /// Puts another matrix of the same shape in the place of one, by its GGUF name, and returns the former one's type and bytes.
    ///
    /// # Errors
    /// When there is no such matrix, or the bytes are not its shape in this type.
    pub fn replace_matrix(
        &mut self,
        name: &str,
        dtype: DType,
        bytes: &Bytes,
    ) -> Result<(DType, Bytes), EngineError> {
        self.weights.replace(name, dtype, bytes)
    }

    /// Feeds tokens chunk by chunk, and calls `each` with some rows and their logits; on an error the sessions are as before.
    fn feed(
        &self,
        feeds: &mut [Feed<'_>],
        logits: &mut Vec<f32>,
        each: &mut Each<'_>,
    ) -> Result<(), EngineError> {
        self.feed_with(&mut self.runner(), feeds, logits, each, &mut None)
    }

    fn feed_with(
        &self,
        runner: &mut Runner,
        feeds: &mut [Feed<'_>],
        logits: &mut Vec<f32>,
        each: &mut Each<'_>,
        watch: &mut Option<&mut WatchInputs<'_>>,
    ) -> Result<(), EngineError> {
        let rows = self.begin(feeds)?;
        for chunk in rows.chunks(CHUNK) {
            runner.layers(&self.spec, &self.weights, feeds, chunk, watch);
            let is_wanted = |&i: &usize| chunk[i].t >= feeds[chunk[i].feed].wanted_from;
            let wanted: Vec<usize> = (0..chunk.len()).filter(is_wanted).collect();
            for wanted in wanted.chunks(LOGITS_CHUNK) {
                runner.logits(&self.spec, &self.weights, wanted, logits);
                if !all_finite(logits) {
                    rewind(feeds, &rows);
                    return Err(self.find_not_finite(runner, feeds, &rows));
                }
                let wanted: Vec<Row> = wanted.iter().map(|&i| chunk[i]).collect();
                each(runner, &wanted, logits);
            }
            commit(feeds, chunk);
        }
        Ok(())
    }

    /// Checks the feeds and makes room for them; all their tokens, each with its place.
    fn begin(&self, feeds: &mut [Feed<'_>]) -> Result<Vec<Row>, EngineError> {
        for feed in &mut *feeds {
            self.check_input(feed.session, feed.tokens)?;
            let start = feed.session.tokens().len();
            // What a call that panicked may have left.
            feed.session.truncate_cache(start);
            feed.session.reserve(start + feed.tokens.len())?;
        }
        Ok(rows_of(feeds))
    }

    fn check_input(&self, session: &Session, tokens: &[u32]) -> Result<(), EngineError> {
        if !session.fits(&self.spec, self.kv) {
            return Err(EngineError::ForeignSession);
        }
        if tokens.is_empty() {
            return Err(EngineError::NoTokens);
        }
        let vocab_size = self.spec.vocab_size;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(EngineError::TokenId { id, vocab_size });
        }
        let (used, n_ctx) = (session.tokens().len(), session.n_ctx());
        if tokens.len() > n_ctx - used {
            return Err(EngineError::ContextFull {
                used,
                fed: tokens.len(),
                n_ctx,
            });
        }
        Ok(())
    }

    /// Feeds the tokens once more, looking at every step, and names the first whose result is not finite.
    fn find_not_finite(
        &self,
        runner: &mut Runner,
        feeds: &mut [Feed<'_>],
        rows: &[Row],
    ) -> EngineError {
        runner.begin_trace();
        for chunk in rows.chunks(LOGITS_CHUNK) {
            runner.layers(&self.spec, &self.weights, feeds, chunk, &mut None);
            let all: Vec<usize> = (0..chunk.len()).collect();
            runner.logits(&self.spec, &self.weights, &all, &mut Vec::new());
            commit(feeds, chunk);
        }
        rewind(feeds, rows);
        let place = runner
            .end_trace()
            .unwrap_or_else(|| "the logits".to_owned());
        EngineError::NotFinite { place }
    }

    fn runner(&self) -> MutexGuard<'_, Runner> {
        // A forward pass that panicked leaves only scratch behind, which the next one overwrites.
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the names of matrices, the rows that they read, and the width of a row.
pub type WatchInputs<'a> = dyn FnMut(&[&str], &[f32], usize) + 'a;

/// Takes some rows and their logits. [wanted], [wanted, V]
type Each<'a> = dyn FnMut(&mut Runner, &[Row], &[f32]) + 'a;

/// One conversation's share of a batch.
#[derive(Debug)]
pub struct Feed<'a> {
    /// Where the tokens go.
    pub session: &'a mut Session,
    /// What is fed, at least one token.
    pub tokens: &'a [u32],
    /// Logits are wanted from this one of `tokens` on: 0 wants all, the length none.
    pub wanted_from: usize,
}

/// All tokens of all feeds, each with its place.
fn rows_of(feeds: &[Feed<'_>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (i, feed) in feeds.iter().enumerate() {
        let past = feed.session.tokens().len();
        rows.extend((0..feed.tokens.len()).map(|t| Row {
            feed: i,
            t,
            position: past + t,
        }));
    }
    rows
}

/// Counts the rows' tokens as fed.
fn commit(feeds: &mut [Feed<'_>], rows: &[Row]) {
    for row in rows {
        let feed = &mut feeds[row.feed];
        feed.session.commit(&feed.tokens[row.t..=row.t]);
    }
}

/// Makes the sessions forget all rows, of which they may hold some.
fn rewind(feeds: &mut [Feed<'_>], rows: &[Row]) {
    for row in rows.iter().filter(|row| row.t == 0) {
        let session = &mut *feeds[row.feed].session;
        session.rewind(row.position);
        session.truncate_cache(row.position);
    }
}

fn all_finite(values: &[f32]) -> bool {
    values
        .chunks(1024)
        .all(|chunk| chunk.iter().fold(true, |finite, x| finite & x.is_finite()))
}

/// Why the engine could not load or run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// The architecture, or a tensor that does not fit it.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// `n_threads` is 0.
    #[error("the engine needs at least one thread")]
    NoThreads,
    /// The operating system refused a thread.
    #[error("no thread could be started ({0}); run with fewer threads")]
    Thread(String),
    /// This machine has not got the instruction set asked for.
    #[error("this machine cannot run the {0} kernels; leave the choice to the engine")]
    IsaNotAvailable(Isa),
    /// A context of no positions, or of more than the model was made for.
    #[error("a context of {asked} positions was asked for; this model allows 1 to {limit}")]
    ContextSize {
        /// Positions asked for.
        asked: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// The cache does not fit in memory.
    #[error(
        "the key and value cache of {n_positions} positions needs {bytes} bytes, which this machine has not got; take a smaller context"
    )]
    OutOfMemory {
        /// Bytes of the cache.
        bytes: usize,
        /// Positions it would hold.
        n_positions: usize,
    },
    /// A session of another model, or with another type of cache.
    #[error("the session was made by an engine of another shape")]
    ForeignSession,
    /// Nothing to feed.
    #[error("there are no tokens to feed")]
    NoTokens,
    /// An id outside the vocabulary.
    #[error(
        "token id {id} is outside the vocabulary of {vocab_size}; is the tokenizer this model's own?"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// The tokens do not fit.
    #[error("{fed} tokens do not fit in the context: {used} of {n_ctx} positions are used")]
    ContextFull {
        /// Positions used.
        used: usize,
        /// Tokens given.
        fed: usize,
        /// Positions there are.
        n_ctx: usize,
    },
    /// No matrix of this name takes these bytes.
    #[error("the model has no matrix `{name}` of {len_bytes} bytes in {dtype}")]
    NoMatrix {
        /// The name asked for.
        name: String,
        /// The type of the bytes.
        dtype: DType,
        /// How many they are.
        len_bytes: usize,
    },
    /// Weights are NaN or infinite, or numbers overflow.
    #[error(
        "the numbers are not finite after {place}: the weights are damaged, or overflowed in training"
    )]
    NotFinite {
        /// The first tensor after whose use they were not.
        place: String,
    },
}
