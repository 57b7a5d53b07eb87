//! Keys, values and tokens of one conversation.

use super::{EngineError, KvDType, kernels::KvRows};
use crate::spec::ModelSpec;
use half::{f16, slice::HalfFloatSliceExt};
use std::ops::Range;

/// Positions by which a session's memory grows beyond what is needed, beside a quarter of what it has.
const GROWTH: usize = 64;

/// Keys, values and tokens of one conversation. [`Self::fork`] copies it, [`Self::rewind`] forgets its end, and
/// [`super::CpuEngine::save_session`] makes bytes of it. What follows has the same bits as if the tokens had just been fed.
#[derive(Debug, Clone)]
pub struct Session {
    pub(super) tokens: Vec<u32>,
    n_ctx: usize,
    pub(super) kv: KvDType,
    n_kv_head: usize,
    pub(super) head_dim: usize,
    /// One for each layer and head: `layer * n_kv_head + head`.
    pub(super) k: Vec<HeadCache>,
    pub(super) v: Vec<HeadCache>,
}

/// Keys or values of one head in one layer; grows within the reserved memory. [n, D]
#[derive(Debug, Clone)]
pub(super) enum HeadCache {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Session {
    /// Reserves the memory of `n_reserved` positions, of `n_ctx` that there may be.
    pub(crate) fn new(
        spec: &ModelSpec,
        n_ctx: usize,
        n_reserved: usize,
        kv: KvDType,
    ) -> Result<Self, EngineError> {
        let mut session = Self {
            tokens: Vec::new(),
            n_ctx,
            kv,
            n_kv_head: spec.n_kv_head,
            head_dim: spec.head_dim,
            k: vec![HeadCache::new(kv); spec.n_layer * spec.n_kv_head],
            v: vec![HeadCache::new(kv); spec.n_layer * spec.n_kv_head],
        };
        session.reserve(n_reserved)?;
        Ok(session)
    }

    /// A copy of the first `len` tokens with their keys and values, which goes its own way. It takes memory for those and grows with
    /// what is fed.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// When there are fewer than `len` tokens.
    pub fn fork(&self, len: usize) -> Result<Self, EngineError> {
        let mut copy = Self {
            tokens: self.tokens[..len].to_vec(),
            k: vec![HeadCache::new(self.kv); self.k.len()],
            v: vec![HeadCache::new(self.kv); self.v.len()],
            ..*self
        };
        copy.reserve(len)?;
        let from = self.k.iter().chain(&self.v);
        for (to, from) in copy.k.iter_mut().chain(&mut copy.v).zip(from) {
            to.extend_from(from, len * self.head_dim);
        }
        Ok(copy)
    }

    /// Bytes of memory that are reserved for keys and values; the operating system provides them as they are used.
    pub fn reserved_bytes(&self) -> usize {
        let caches = self.k.iter().chain(&self.v);
        caches.map(HeadCache::capacity).sum::<usize>() * self.kv.size_bytes()
    }

    /// The tokens fed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions there are.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// How many of the first tokens of `tokens` are already here: after [`Self::rewind`] to it, only the rest needs to be fed.
    ///
    /// A prompt that is here as a whole still needs its last token fed again for its logits: rewind to one less.
    pub fn common_prefix_len(&self, tokens: &[u32]) -> usize {
        self.tokens
            .iter()
            .zip(tokens)
            .take_while(|(a, b)| a == b)
            .count()
    }

    /// Forgets all but the first `len` tokens; what follows is as if the others had never been fed.
    pub fn rewind(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.truncate_cache(len);
        }
    }

    /// Makes sure that `n_positions` fit without another allocation.
    pub(crate) fn reserve(&mut self, n_positions: usize) -> Result<(), EngineError> {
        let caches = self.k.iter().chain(&self.v);
        let n_held = caches.map(HeadCache::capacity).min().unwrap_or(0) / self.head_dim;
        if n_positions <= n_held {
            return Ok(());
        }
        // Growing by a share keeps the copies that growing costs in proportion to the length.
        let n_positions = match n_held {
            0 => n_positions,
            _ => n_positions.max((n_held + n_held / 4 + GROWTH).min(self.n_ctx)),
        };
        let n_elements = n_positions.saturating_mul(self.head_dim);
        let mut caches = self.k.iter_mut().chain(&mut self.v);
        if caches.all(|cache| cache.try_reserve(n_elements)) {
            return Ok(());
        }
        let n_caches = self.k.len() + self.v.len();
        let bytes = n_elements
            .saturating_mul(n_caches)
            .saturating_mul(self.kv.size_bytes());
        Err(EngineError::OutOfMemory { bytes, n_positions })
    }

    /// Appends the keys and values of one token in one layer, rounded to the cache's type. [K D], [K D]
    pub(crate) fn push(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let heads = self.heads(layer);
        for (cache, row) in self.k[heads.clone()]
            .iter_mut()
            .zip(k.chunks_exact(self.head_dim))
        {
            cache.push(row);
        }
        for (cache, row) in self.v[heads].iter_mut().zip(v.chunks_exact(self.head_dim)) {
            cache.push(row);
        }
    }

    /// Keys and values of one head for the first `n` positions. [n, D], [n, D]
    pub(crate) fn head(&self, layer: usize, kv_head: usize, n: usize) -> (KvRows<'_>, KvRows<'_>) {
        let i = layer * self.n_kv_head + kv_head;
        let len = n * self.head_dim;
        (self.k[i].rows(len), self.v[i].rows(len))
    }

    /// Counts tokens as fed, once all layers hold them.
    pub(crate) fn commit(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Drops what layers hold beyond the first `len` positions.
    pub(crate) fn truncate_cache(&mut self, len: usize) {
        for cache in self.k.iter_mut().chain(&mut self.v) {
            cache.truncate(len * self.head_dim);
        }
    }

    /// Whether it was made for a model of this shape.
    pub(crate) fn fits(&self, spec: &ModelSpec, kv: KvDType) -> bool {
        let shape = (spec.n_kv_head, spec.head_dim, spec.n_layer * spec.n_kv_head);
        (self.n_kv_head, self.head_dim, self.k.len()) == shape && self.kv == kv
    }

    fn heads(&self, layer: usize) -> Range<usize> {
        layer * self.n_kv_head..(layer + 1) * self.n_kv_head
    }
}

impl HeadCache {
    fn new(kv: KvDType) -> Self {
        match kv {
            KvDType::F16 => Self::F16(Vec::new()),
            KvDType::F32 => Self::F32(Vec::new()),
        }
    }

    /// Room for `n` elements in all; false when the memory cannot be had.
    fn try_reserve(&mut self, n: usize) -> bool {
        let more = |len: usize| n.saturating_sub(len);
        match self {
            Self::F16(rows) => rows.try_reserve_exact(more(rows.len())).is_ok(),
            Self::F32(rows) => rows.try_reserve_exact(more(rows.len())).is_ok(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::F16(rows) => rows.capacity(),
            Self::F32(rows) => rows.capacity(),
        }
    }

    /// Appends the first `len` elements of another of the same type.
    fn extend_from(&mut self, other: &Self, len: usize) {
        match (self, other) {
            (Self::F16(to), Self::F16(from)) => to.extend_from_slice(&from[..len]),
            (Self::F32(to), Self::F32(from)) => to.extend_from_slice(&from[..len]),
            _ => unreachable!("all caches of a session are of one type"),
        }
    }

    /// Appends the elements to `out`, little-endian.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        match self {
            Self::F16(rows) => {
                out.resize(start + 2 * rows.len(), 0);
                for (bytes, x) in out[start..].chunks_exact_mut(2).zip(rows) {
                    bytes.copy_from_slice(&x.to_le_bytes());
                }
            }
            Self::F32(rows) => {
                out.resize(start + 4 * rows.len(), 0);
                for (bytes, x) in out[start..].chunks_exact_mut(4).zip(rows) {
                    bytes.copy_from_slice(&x.to_le_bytes());
                }
            }
        }
    }

    /// Appends the elements that [`Self::write_to`] wrote; false when one is not finite.
    pub(super) fn read_from(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::F16(rows) => {
                let values = bytes
                    .chunks_exact(2)
                    .map(|x| f16::from_le_bytes([x[0], x[1]]));
                rows.extend(values);
                rows.iter().fold(true, |finite, x| finite & x.is_finite())
            }
            Self::F32(rows) => {
                let values = bytes.chunks_exact(4);
                rows.extend(values.map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])));
                rows.iter().fold(true, |finite, x| finite & x.is_finite())
            }
        }
    }

    fn push(&mut self, row: &[f32]) {
        match self {
            Self::F16(rows) => {
                let len = rows.len();
                rows.resize(len + row.len(), f16::ZERO);
                rows[len..].convert_from_f32_slice(row);
            }
            Self::F32(rows) => rows.extend_from_slice(row),
        }
    }

    fn rows(&self, len: usize) -> KvRows<'_> {
        match self {
            Self::F16(rows) => KvRows::F16(&rows[..len]),
            Self::F32(rows) => KvRows::F32(&rows[..len]),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::F16(rows) => rows.truncate(len),
            Self::F32(rows) => rows.truncate(len),
        }
    }
}
