//! Token texts and the way from text to id.

use super::TokenizerError;

/// What a token is, in the numbers of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    pub(super) fn from_ggml(number: i64) -> Option<Self> {
        // 0 is `undefined`, which llama.cpp treats as a token without attributes.
        Some(match number {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// Byte strings one after another in one allocation.
#[derive(Debug, Clone, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Arena {
    pub(super) fn push(&mut self, item: &[u8]) {
        self.bytes.extend_from_slice(item);
        self.ends.push(self.bytes.len() as u32);
    }
    pub(super) fn get(&self, idx: usize) -> Option<&[u8]> {
        let end = *self.ends.get(idx)? as usize;
        let start = if idx == 0 {
            0
        } else {
            self.ends[idx - 1] as usize
        };
        Some(&self.bytes[start..end])
    }
}

/// Token texts by id, and ids by text through open addressing.
#[derive(Debug, Clone)]
pub(super) struct Vocab {
    texts: String,
    /// Where each token's text ends.
    ends: Vec<u32>,
    /// Id + 1, or 0 where the slot is free; a power of two long.
    slots: Vec<u32>,
}

impl Vocab {
    /// `texts[id]`; an empty text is an id that nothing has.
    ///
    /// # Errors
    /// A text that stands twice, or more of them than ids can count.
    pub(super) fn new<S: AsRef<str>>(
        texts: impl ExactSizeIterator<Item = S>,
    ) -> Result<Self, TokenizerError> {
        let n = texts.len();
        if n > MAX_TOKENS {
            return Err(TokenizerError::TooLarge {
                what: "tokens",
                count: n,
            });
        }
        let mut vocab = Self {
            texts: String::new(),
            ends: Vec::with_capacity(n),
            slots: vec![0; (n * 2).next_power_of_two().max(2)],
        };
        for (id, text) in texts.enumerate() {
            let text = text.as_ref();
            if vocab.texts.len() + text.len() > u32::MAX as usize {
                return Err(TokenizerError::TooLarge {
                    what: "bytes of token text",
                    count: vocab.texts.len(),
                });
            }
            vocab.texts.push_str(text);
            vocab.ends.push(vocab.texts.len() as u32);
            if text.is_empty() {
                continue;
            }
            let slot = vocab.slot(text.as_bytes());
            if vocab.slots[slot] != 0 {
                let first = vocab.slots[slot] - 1;
                return Err(TokenizerError::DuplicateToken {
                    token: text.to_owned(),
                    first,
                    second: id as u32,
                });
            }
            vocab.slots[slot] = id as u32 + 1;
        }
        Ok(vocab)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = if id == 0 {
            0
        } else {
            self.ends[id as usize - 1] as usize
        };
        Some(&self.texts[start..end])
    }

    #[inline]
    pub(super) fn id(&self, text: &[u8]) -> Option<u32> {
        self.slots[self.slot(text)].checked_sub(1)
    }

    /// The slot that holds `text`, or the free one where it would go.
    #[inline]
    fn slot(&self, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(text) as usize & mask;
        while let Some(id) = self.slots[slot].checked_sub(1) {
            if self.text(id).map(str::as_bytes) == Some(text) {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// Vocabularies today end at 2^18; this bounds what a hostile file can make us allocate.
const MAX_TOKENS: usize = 1 << 24;

/// Odd 64-bit constant with well-mixed bits (2^64 / golden ratio).
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Whole words of the text, the last one overlapping the one before: no copy of a variable length.
#[inline]
fn hash(text: &[u8]) -> u64 {
    let n = text.len();
    let word = |at: usize| u64::from_le_bytes(text[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| {
        u64::from(u32::from_le_bytes(
            text[at..at + 4].try_into().expect("4 bytes"),
        ))
    };
    let last = match n {
        0 => 0,
        1..4 => u64::from(text[0]) | u64::from(text[n / 2]) << 8 | u64::from(text[n - 1]) << 16,
        4..8 => half(0) | half(n - 4) << 32,
        _ => word(n - 8),
    };
    let mut state = n as u64;
    for at in (0..n.saturating_sub(8)).step_by(8) {
        state = mix(state ^ word(at));
    }
    mix(state ^ last)
}

/// Multiplies to 128 bits and folds the halves.
#[inline]
pub(super) fn mix(x: u64) -> u64 {
    let product = u128::from(x ^ MIX) * u128::from(MIX);
    (product >> 64) as u64 ^ product as u64
}
