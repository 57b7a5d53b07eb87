//! Byte-pair encoding: the pair of neighbours with the lowest rank merges first, the leftmost among equals.

use super::{
    TokenizerError,
    vocab::{Vocab, mix},
};
use std::{cmp::Reverse, collections::BinaryHeap};

/// Longer words merge through a heap: scanning for the minimum is quadratic, but faster for words of a usual length.
const SCAN_LIMIT: usize = 32;
const NO_RANK: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    rank: u32,
    merged: u32,
}

const FREE: Merge = Merge {
    left: u32::MAX,
    right: u32::MAX,
    rank: NO_RANK,
    merged: 0,
};

/// The merges by pair, through open addressing.
#[derive(Debug, Clone)]
pub(super) struct Merges {
    slots: Vec<Merge>,
}

impl Merges {
    /// `pairs` in order of rank; of a pair that stands twice the last counts, as in the Hugging Face library.
    ///
    /// # Errors
    /// A pair whose parts or whole are no token.
    pub(super) fn new<'a>(
        vocab: &Vocab,
        pairs: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TokenizerError> {
        let n = pairs.len();
        if n > MAX_MERGES {
            return Err(TokenizerError::TooLarge {
                what: "merges",
                count: n,
            });
        }
        let mut merges = Self {
            slots: vec![FREE; (n * 3 / 2).next_power_of_two().max(2)],
        };
        let mut whole = Vec::new();
        for (rank, (left, right)) in pairs.enumerate() {
            let id = |text: &[u8]| {
                let unknown = || String::from_utf8_lossy(text).into_owned();
                vocab
                    .id(text)
                    .ok_or_else(|| TokenizerError::MergeOfUnknownToken {
                        rank,
                        token: unknown(),
                    })
            };
            whole.clear();
            whole.extend_from_slice(left.as_bytes());
            whole.extend_from_slice(right.as_bytes());
            let merge = Merge {
                left: id(left.as_bytes())?,
                right: id(right.as_bytes())?,
                rank: rank as u32,
                merged: id(&whole)?,
            };
            let slot = merges.slot(merge.left, merge.right);
            merges.slots[slot] = merge;
        }
        Ok(merges)
    }

    /// All merges in order of rank, as ids.
    pub(super) fn in_order(&self) -> Vec<(u32, u32)> {
        let mut merges: Vec<_> = self.slots.iter().filter(|m| m.rank != NO_RANK).collect();
        merges.sort_unstable_by_key(|m| m.rank);
        merges.iter().map(|m| (m.left, m.right)).collect()
    }

    /// The token that a pair merges to.
    pub(super) fn merged(&self, left: u32, right: u32) -> Option<u32> {
        let (rank, merged) = self.get(left, right);
        (rank != NO_RANK).then_some(merged)
    }

    #[inline]
    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = mix(u64::from(left) << 32 | u64::from(right)) as usize & mask;
        loop {
            let at = &self.slots[slot];
            if (at.left == left && at.right == right) || at.rank == NO_RANK {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Rank and merged token of a pair; the rank is [`NO_RANK`] where the pair does not merge.
    #[inline]
    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let found = &self.slots[self.slot(left, right)];
        (found.rank, found.merged)
    }

    /// Merges `symbols` in place as far as it goes.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        if symbols.len() <= SCAN_LIMIT {
            self.apply_by_scan(symbols);
        } else {
            self.apply_by_heap(symbols, scratch);
        }
    }

    fn apply_by_scan(&self, symbols: &mut Vec<u32>) {
        let mut n = symbols.len();
        let mut pairs = [(NO_RANK, 0); SCAN_LIMIT];
        for i in 1..n {
            pairs[i - 1] = self.get(symbols[i - 1], symbols[i]);
        }
        while n > 1 {
            let mut best = 0;
            for i in 1..n - 1 {
                if pairs[i].0 < pairs[best].0 {
                    best = i;
                }
            }
            let (rank, merged) = pairs[best];
            if rank == NO_RANK {
                break;
            }
            symbols[best] = merged;
            symbols.copy_within(best + 2..n, best + 1);
            pairs.copy_within(best + 1..n - 1, best);
            n -= 1;
            if best > 0 {
                pairs[best - 1] = self.get(symbols[best - 1], merged);
            }
            if best + 1 < n {
                pairs[best] = self.get(merged, symbols[best + 1]);
            }
        }
        symbols.truncate(n);
    }

    fn apply_by_heap(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        let n = symbols.len();
        let Scratch {
            next, prev, heap, ..
        } = scratch;
        next.clear();
        next.extend(1..=n as u32);
        prev.clear();
        prev.extend((0..n as u32).map(|i| i.wrapping_sub(1)));
        heap.clear();
        let push = |heap: &mut BinaryHeap<_>, symbols: &[u32], left: u32, right: u32| {
            let (rank, _) = self.get(symbols[left as usize], symbols[right as usize]);
            if rank != NO_RANK {
                heap.push(Reverse((rank, left)));
            }
        };
        for right in 1..n as u32 {
            push(heap, symbols, right - 1, right);
        }
        while let Some(Reverse((rank, left))) = heap.pop() {
            let right = next[left as usize];
            if symbols[left as usize] == GONE || right as usize >= n {
                continue;
            }
            let (now, merged) = self.get(symbols[left as usize], symbols[right as usize]);
            if now != rank {
                continue; // the pair at this place has changed since
            }
            symbols[left as usize] = merged;
            symbols[right as usize] = GONE;
            let after = next[right as usize];
            next[left as usize] = after;
            if (after as usize) < n {
                prev[after as usize] = left;
                push(heap, symbols, left, after);
            }
            let before = prev[left as usize];
            if before != u32::MAX {
                push(heap, symbols, before, left);
            }
        }
        symbols.retain(|&symbol| symbol != GONE);
    }
}

/// Above any id: vocabularies are bounded well below.
const GONE: u32 = u32::MAX;
const MAX_MERGES: usize = 1 << 24;

/// Working memory that one encoding reuses from word to word.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Symbols of the current word.
    pub(super) symbols: Vec<u32>,
    /// Text of the current word in the vocabulary's alphabet.
    pub(super) text: Vec<u8>,
    next: Vec<u32>,
    prev: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, literally.
    fn by_definition(merges: &Merges, mut symbols: Vec<u32>) -> Vec<u32> {
        loop {
            let best = (1..symbols.len())
                .map(|i| (merges.get(symbols[i - 1], symbols[i]), i - 1))
                .min_by_key(|&((rank, _), i)| (rank, i));
            match best {
                Some(((rank, merged), i)) if rank != NO_RANK => {
                    symbols.splice(i..i + 2, [merged]);
                }
                _ => return symbols,
            }
        }
    }

    #[test]
    fn scan_and_heap_do_what_the_definition_says() {
        let tokens = [
            "a", "b", "aa", "ab", "ba", "aab", "aaaa", "abab", "baa", "bb",
        ];
        let vocab = Vocab::new(tokens.iter().copied()).unwrap();
        let pairs = [
            ("a", "b"),
            ("a", "a"),
            ("a", "ab"),
            ("aa", "aa"),
            ("ab", "ab"),
            ("b", "aa"),
            ("b", "b"),
            ("aa", "b"),
        ];
        let merges = Merges::new(&vocab, pairs.into_iter()).unwrap();
        let mut state = 1_u64;
        for len in 0..200 {
            let word: Vec<u32> = (0..len)
                .map(|_| {
                    state = mix(state);
                    (state >> 20) as u32 % 2
                })
                .collect();
            let want = by_definition(&merges, word.clone());
            let mut scratch = Scratch::default();
            let mut by_heap = word.clone();
            merges.apply_by_heap(&mut by_heap, &mut scratch);
            assert_eq!(by_heap, want);
            let mut short = word;
            short.truncate(SCAN_LIMIT);
            let want = by_definition(&merges, short.clone());
            merges.apply_by_scan(&mut short);
            assert_eq!(short, want);
        }
    }

    #[test]
    fn merge_of_an_unknown_token_is_named() {
        let vocab = Vocab::new(["a", "b"].into_iter()).unwrap();
        let error = Merges::new(&vocab, [("a", "b")].into_iter()).unwrap_err();
        assert_eq!(
            error,
            TokenizerError::MergeOfUnknownToken {
                rank: 0,
                token: "ab".into()
            }
        );
    }
}
