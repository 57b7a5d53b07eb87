//! Keys, values and tokens of one conversation.

use super::{EngineError, KvDType, kernels::KvRows};
use crate::spec::ModelSpec;
use half::{f16, slice::HalfFloatSliceExt};
use std::ops::Range;

/// Keys, values and tokens of one conversation. Cloning it forks the conversation.
#[derive(Debug, Clone)]
pub struct Session {
    tokens: Vec<u32>,
    n_ctx: usize,
    kv: KvDType,
    n_kv_head: usize,
    head_dim: usize,
    /// One for each layer and head: `layer * n_kv_head + head`.
    k: Vec<HeadCache>,
    v: Vec<HeadCache>,
}

/// Keys or values of one head in one layer; grows within the reserved memory. [n, D]
#[derive(Debug, Clone)]
enum HeadCache {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Session {
    /// Reserves the memory of all `n_ctx` positions (the operating system provides it when it is used).
    pub(crate) fn new(spec: &ModelSpec, n_ctx: usize, kv: KvDType) -> Result<Self, EngineError> {
        let mut session = Self {
            tokens: Vec::new(),
            n_ctx,
            kv,
            n_kv_head: spec.n_kv_head,
            head_dim: spec.head_dim,
            k: vec![HeadCache::new(kv); spec.n_layer * spec.n_kv_head],
            v: vec![HeadCache::new(kv); spec.n_layer * spec.n_kv_head],
        };
        session.reserve(n_ctx)?;
        Ok(session)
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

    /// Room for `n` elements in all (more after a fork, so that growing stays cheap); false when the memory cannot be had.
    fn try_reserve(&mut self, n: usize) -> bool {
        match self {
            Self::F16(rows) => rows.try_reserve(n.saturating_sub(rows.len())).is_ok(),
            Self::F32(rows) => rows.try_reserve(n.saturating_sub(rows.len())).is_ok(),
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
