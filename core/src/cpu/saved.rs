//! A [`Session`] as bytes, and back. All numbers are little-endian.
//!
//! | at | |
//! |--:|---|
//! | 0 | `FLDGKV01` |
//! | 8 | u64: XXH64 of all that follows |
//! | 16 | u64: fingerprint of the model, XXH64 of its architecture and weights |
//! | 24 | u32: type of the cache, 0 for F32, 1 for F16 |
//! | 28 | u32: tokens, T |
//! | 32 | u32 [T]: the tokens |
//! | | keys [T, D] of each head in each layer, then values [T, D] of each |

use super::{CpuEngine, EngineError, KvDType, Session};
use crate::xxh64::xxh64;

const MAGIC: [u8; 8] = *b"FLDGKV01";
const HEADER_BYTES: usize = 32;
/// Where the sum and what it is of lie.
const SUM_AT: usize = 8;
const SUMMED_FROM: usize = 16;

impl CpuEngine {
    /// Tells this model from others: of its architecture and all its weights, which are read for it.
    pub fn fingerprint(&self) -> u64 {
        xxh64(format!("{:?}", self.spec).as_bytes(), self.weights.hash())
    }

    /// The tokens of a session with their keys and values, for [`Self::restore_session`] of an engine of the same model.
    ///
    /// # Errors
    /// When the session is not this engine's.
    pub fn save_session(&self, session: &Session) -> Result<Vec<u8>, EngineError> {
        if !session.fits(&self.spec, self.kv) {
            return Err(EngineError::ForeignSession);
        }
        let n_tokens = session.tokens.len();
        let mut out = Vec::with_capacity(self.saved_bytes(n_tokens));
        out.extend(MAGIC);
        out.extend([0; SUMMED_FROM - SUM_AT]);
        out.extend(self.fingerprint().to_le_bytes());
        out.extend(kv_code(self.kv).to_le_bytes());
        out.extend((n_tokens as u32).to_le_bytes());
        out.extend(session.tokens.iter().flat_map(|id| id.to_le_bytes()));
        for cache in session.k.iter().chain(&session.v) {
            cache.write_to(&mut out);
        }
        let sum = xxh64(&out[SUMMED_FROM..], 0);
        out[SUM_AT..SUMMED_FROM].copy_from_slice(&sum.to_le_bytes());
        Ok(out)
    }

    /// The session that [`Self::save_session`] made bytes of, in a context of `n_ctx` positions. What follows has the same bits.
    /// Its memory grows with what is fed, as that of [`Self::growing_session`].
    ///
    /// Nothing is allocated before the bytes are known to be whole and of this model.
    ///
    /// # Errors
    /// Bytes that are no session, are cut or damaged, or are of another model or type of cache; a context that cannot be had or does
    /// not hold the tokens.
    pub fn restore_session(
        &self,
        bytes: &[u8],
        n_ctx: usize,
    ) -> Result<Session, SavedSessionError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(SavedSessionError::NoSession);
        }
        let cut = |expected| SavedSessionError::Length {
            expected,
            found: bytes.len(),
        };
        let header = bytes.get(..HEADER_BYTES).ok_or(cut(HEADER_BYTES))?;
        let n_tokens = u32_at(header, 28) as usize;
        let expected = self.saved_bytes(n_tokens);
        if u64_at(header, 16) != self.fingerprint() {
            return Err(SavedSessionError::OtherModel);
        }
        if u32_at(header, 24) != kv_code(self.kv) {
            return Err(SavedSessionError::OtherCache);
        }
        if bytes.len() != expected {
            return Err(cut(expected));
        }
        if u64_at(header, SUM_AT) != xxh64(&bytes[SUMMED_FROM..], 0) {
            return Err(SavedSessionError::Damaged);
        }
        if n_tokens > n_ctx {
            return Err(SavedSessionError::TooLong { n_tokens, n_ctx });
        }
        let mut session = self.session_with(n_ctx, n_tokens)?;
        let (tokens, caches) = bytes[HEADER_BYTES..].split_at(4 * n_tokens);
        session.tokens = tokens.chunks_exact(4).map(|id| u32_at(id, 0)).collect();
        let vocab_size = self.spec.vocab_size;
        if let Some(&id) = session.tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(EngineError::TokenId { id, vocab_size }.into());
        }
        let cache_bytes = n_tokens * session.head_dim * self.kv.size_bytes();
        let mut all_finite = true;
        for (i, cache) in session.k.iter_mut().chain(&mut session.v).enumerate() {
            all_finite &= cache.read_from(&caches[i * cache_bytes..][..cache_bytes]);
        }
        if all_finite {
            Ok(session)
        } else {
            Err(SavedSessionError::Damaged)
        }
    }

    /// Bytes of a saved session of `n_tokens`; as many as there can be when a number of tokens from a file overflows.
    fn saved_bytes(&self, n_tokens: usize) -> usize {
        let per_token = self.position_bytes().saturating_add(4);
        n_tokens
            .saturating_mul(per_token)
            .saturating_add(HEADER_BYTES)
    }
}

/// The type's number in GGUF.
fn kv_code(kv: KvDType) -> u32 {
    match kv {
        KvDType::F32 => 0,
        KvDType::F16 => 1,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Why bytes are not a session of this engine.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SavedSessionError {
    /// Other bytes.
    #[error("this is no saved session of this version")]
    NoSession,
    /// Cut, or something was appended.
    #[error(
        "a saved session of {expected} bytes was expected, these are {found}: it was not written to its end"
    )]
    Length {
        /// Bytes that its header asks for.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A byte changed.
    #[error(
        "the saved session is damaged: it does not match its own checksum, or holds numbers that are not finite"
    )]
    Damaged,
    /// Keys and values mean something to one model only.
    #[error("the saved session is of another model: the architecture or a weight differs")]
    OtherModel,
    /// F16 and F32 give different bits.
    #[error("the saved session has another type of cache than this engine")]
    OtherCache,
    /// The context is too small for it.
    #[error(
        "the saved session has {n_tokens} tokens, and the context holds {n_ctx}: take a larger context"
    )]
    TooLong {
        /// Tokens saved.
        n_tokens: usize,
        /// Positions there are.
        n_ctx: usize,
    },
    /// What a new session can fail on too.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
