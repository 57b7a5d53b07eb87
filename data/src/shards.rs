//! Rows on disk: what `prepare` writes and training reads, memory-mapped.
//!
//! ```text
//! manifest.json          what there is, and whose tokenizer, config and sources it came from; [`Manifest`]
//! train-00000.tokens     ids, u16 where the vocabulary has at most 65,536, else u32
//! train-00000.mask       a bit a token, lowest bit first: whether it is to be learnt; not there when all are
//! train-00000.rows       a record a row: first token u64, first segment u64, tokens u32, segments u32
//! train-00000.segments   length of each segment, u32
//! ```
//!
//! All numbers are little-endian; a shard's rows and segments follow each other without gaps, and the first token of a
//! segment is never to be learnt, whatever the mask says. The same rows make the same bytes.
//!
//! All is written into `.new` within the folder, and moved to its place when it is whole, the manifest last. A folder
//! without a manifest is no dataset. So a full disk leaves the dataset that was there; only a crash within the moves,
//! which take milliseconds, leaves none.

#![deny(unsafe_code)]

mod manifest;
mod read;
mod write;

pub use manifest::{FileInfo, Manifest, ShardInfo, SplitInfo};
pub use read::{Shards, SplitShards};
pub use write::{About, DatasetWriter, Layout};

/// The file that makes a folder a dataset.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Bytes of a record in `.rows`.
const RECORD_BYTES: usize = 24;

/// Bytes of an id.
fn id_bytes(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// The place of a row within its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    first_token: u64,
    first_segment: u64,
    n_tokens: u32,
    n_segments: u32,
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.first_token.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_segment.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.n_tokens.to_le_bytes());
        bytes[20..].copy_from_slice(&self.n_segments.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let [a, b, c] = bytes.as_chunks::<8>().0 else {
            unreachable!("24 bytes are three times 8")
        };
        let [n_tokens, n_segments] = c.as_chunks::<4>().0 else {
            unreachable!("8 bytes are twice 4")
        };
        Self {
            first_token: u64::from_le_bytes(*a),
            first_segment: u64::from_le_bytes(*b),
            n_tokens: u32::from_le_bytes(*n_tokens),
            n_segments: u32::from_le_bytes(*n_segments),
        }
    }
}

#[cfg(test)]
mod tests;
