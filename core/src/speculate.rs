//! Drafts for speculative decoding by prompt look-up (A. Saxena, "Prompt Lookup Decoding", 2023): where the last tokens stood before
//! in the context, what followed them there may follow again. Summaries, edits and answers with quotations repeat themselves so.
//!
//! Checking a draft is exact. All its positions are computed in one forward pass, in the bits that they would have had one by one; then
//! the sampler picks from each in order, and the draft counts as far as it picks the same. With a draft that is certain of its tokens
//! this is the acceptance rule of Leviathan et al. 2023 ("Fast Inference from Transformers via Speculative Decoding"): a token is
//! accepted with its probability p, and what is picked otherwise is distributed as p without it. It draws one random number a token, as
//! decoding without drafts does, so that a seed gives the same text with and without.

/// Tokens that must have stood before: the longest such end of the context is looked up.
const LONGEST_NGRAM: usize = 4;
const SHORTEST_NGRAM: usize = 2;
/// Tokens that are drafted at first.
const FIRST_DRAFT: usize = 2;
/// What checking one more token costs, as a share of a forward pass of one (LOG.md, "Speculative decoding").
const COST: f32 = 0.3;
/// Forward passes that may be lost before it pauses, and saved ones that are remembered.
const CREDIT: f32 = 1.0;
const MAX_CREDIT: f32 = 4.0;
/// Tokens of the first pause; each one that follows is twice as long.
const FIRST_PAUSE: usize = 16;
const LONGEST_PAUSE: usize = 1024;

/// Drafts tokens, more while they turn out right, and none for a while when they do not pay.
#[derive(Debug, Clone)]
pub struct PromptLookup {
    max_draft: usize,
    /// Tokens of the next draft.
    draft_len: usize,
    /// Forward passes saved and not yet lost.
    credit: f32,
    /// Length of the context up to which nothing is drafted.
    paused_until: usize,
    next_pause: usize,
}

impl PromptLookup {
    /// At most `max_draft` tokens a draft; 0 drafts nothing.
    pub fn new(max_draft: usize) -> Self {
        Self {
            max_draft,
            draft_len: FIRST_DRAFT.min(max_draft),
            credit: CREDIT,
            paused_until: 0,
            next_pause: FIRST_PAUSE,
        }
    }

    /// What may follow `context`, at most `room` tokens; mostly nothing.
    pub fn draft(&self, context: &[u32], room: usize) -> Vec<u32> {
        let len = self.draft_len.min(room);
        if len == 0 || context.len() < self.paused_until {
            return Vec::new();
        }
        let mut draft = Vec::with_capacity(len);
        if let Some(start) = followed(context) {
            // Behind the end of the context it goes on with itself: a text that goes in circles.
            for i in start..start + len {
                let token = context.get(i).copied();
                draft.push(token.unwrap_or_else(|| draft[i - context.len()]));
            }
        }
        draft
    }

    /// Learns how many tokens of a draft were right. `n_context` is the length of the context now.
    pub fn checked(&mut self, n_drafted: usize, n_accepted: usize, n_context: usize) {
        if n_drafted == 0 {
            return;
        }
        self.draft_len = if n_accepted == n_drafted {
            (2 * self.draft_len).min(self.max_draft)
        } else {
            (n_accepted + 1).min(self.max_draft)
        };
        let gain = n_accepted as f32 - COST * n_drafted as f32;
        self.credit = (self.credit + gain).min(MAX_CREDIT);
        if self.credit < 0.0 {
            self.paused_until = n_context + self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
            self.credit = COST;
        } else if self.credit >= MAX_CREDIT {
            self.next_pause = FIRST_PAUSE;
        }
    }
}

/// Where the tokens stand that followed the end of `context` the last time that it was there.
fn followed(context: &[u32]) -> Option<usize> {
    (SHORTEST_NGRAM..=LONGEST_NGRAM).rev().find_map(|n| {
        let (before, ngram) = context.split_at(context.len().checked_sub(n)?);
        // The occurrences may overlap with the end itself.
        let starts = (0..before.len()).rev();
        let mut found = starts.filter(|&i| context[i..i + n] == *ngram);
        found.next().map(|i| i + n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(context: &[u32], max: usize) -> Vec<u32> {
        let lookup = PromptLookup {
            draft_len: max,
            ..PromptLookup::new(max)
        };
        lookup.draft(context, usize::MAX)
    }

    #[test]
    fn what_followed_before_is_drafted() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 1, 2], 2), [3, 4]);
        assert_eq!(
            draft(&[1, 2, 3, 4, 5, 1, 2], 9),
            [3, 4, 5, 1, 2, 3, 4, 5, 1]
        );
        // The last occurrence, but a longer one before a shorter.
        assert_eq!(draft(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4]);
        assert_eq!(draft(&[9, 1, 2, 3, 1, 2, 4, 9, 1, 2], 1), [3]);
        assert_eq!(draft(&[7, 7, 7], 4), [7, 7, 7, 7]);
        // One token in common is too little, and so is nothing.
        for context in [&[1, 2, 3, 1][..], &[1, 2, 3], &[1], &[]] {
            assert_eq!(draft(context, 4), [0; 0], "{context:?}");
        }
        assert_eq!(
            PromptLookup::new(4).draft(&[7, 7, 7], 1),
            [7],
            "room for one"
        );
        assert_eq!(PromptLookup::new(0).draft(&[7, 7, 7], 9), [0; 0]);
    }

    #[test]
    fn drafts_grow_while_they_are_right_and_pause_when_they_are_not() {
        let context = [7; 64];
        let mut lookup = PromptLookup::new(10);
        let mut lens = Vec::new();
        for _ in 0..4 {
            let n = lookup.draft(&context, 99).len();
            lens.push(n);
            lookup.checked(n, n, 64);
        }
        assert_eq!(lens, [2, 4, 8, 10]);
        lookup.checked(10, 4, 64);
        assert_eq!(lookup.draft(&context, 99).len(), 5);

        let mut lookup = PromptLookup::new(10);
        let (mut n_drafted, mut n_drafts) = (0, 0);
        for n_context in 0..2000 {
            let n = lookup.draft(&[7; 2000][..n_context], 99).len();
            lookup.checked(n, 0, n_context + 1);
            (n_drafted, n_drafts) = (n_drafted + n, n_drafts + usize::from(n > 0));
        }
        assert!((5..25).contains(&n_drafts), "{n_drafts}");
        // Less than half a percent of 2,000 forward passes is lost where nothing is ever right.
        assert!((n_drafted as f32) * COST < 10.0, "{n_drafted}");
    }
}
