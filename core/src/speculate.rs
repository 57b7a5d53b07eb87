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
/// What checking one more token costs, in passes of a single token (LOG.md, "shared passes, drafts, sessions").
const COST: f32 = 0.2;
/// Forward passes that may be lost before it pauses, and saved ones that are remembered.
const CREDIT: f32 = 1.0;
const MAX_CREDIT: f32 = 4.0;
/// Tokens of the first pause; each one that follows is twice as long.
const FIRST_PAUSE: usize = 16;
const LONGEST_PAUSE: usize = 1024;

/// Drafts tokens, and none for a while when they do not pay.
#[derive(Debug, Clone)]
pub struct PromptLookup {
    max_draft: usize,
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
            credit: CREDIT,
            paused_until: 0,
            next_pause: FIRST_PAUSE,
        }
    }

    /// What may follow `context`, at most `room` tokens; mostly nothing.
    pub fn draft(&self, context: &[u32], room: usize) -> Vec<u32> {
        let len = self.max_draft.min(room);
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
        let saved = n_accepted as f32 - COST * n_drafted as f32;
        self.credit = (self.credit + saved).min(MAX_CREDIT);
        if self.credit < 0.0 {
            self.paused_until = n_context + self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
            self.credit = 0.0;
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
        PromptLookup::new(max).draft(context, usize::MAX)
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
        assert_eq!(draft(&[7, 7, 7], 3), [7, 7, 7]);
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
    fn drafts_pause_when_they_do_not_pay() {
        let n_drafts = |is_right: &dyn Fn(usize) -> bool| {
            let mut lookup = PromptLookup::new(3);
            let mut n_drafts = 0;
            for n_context in 3..2000 {
                let n = lookup.draft(&[7; 2000][..n_context], 99).len();
                let n_accepted = if is_right(n_drafts) { n } else { 0 };
                lookup.checked(n, n_accepted, n_context + 1);
                n_drafts += usize::from(n > 0);
            }
            n_drafts
        };
        assert_eq!(n_drafts(&|_| true), 1997);
        assert_eq!(n_drafts(&|i| i % 3 == 0), 1997, "one in three pays");
        // Where nothing is ever right, less than half a percent of 2,000 passes is lost.
        let n = n_drafts(&|_| false);
        assert!((5..15).contains(&n), "{n}");
        // And where it becomes right later, that is noticed.
        assert!(n_drafts(&|i| i > 6) > 500);
    }
}
