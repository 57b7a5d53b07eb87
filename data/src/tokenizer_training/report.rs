//! How well a tokenizer suits texts that it was not trained on.

use crate::control::Control;
use anyhow::Result;
use fledgling_core::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

/// Longest tokens that a report shows.
const N_LONGEST: usize = 20;

/// Figures of a tokenizer on some texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizerReport {
    /// Texts.
    pub texts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their words: what stands between spaces.
    pub words: u64,
    /// Their tokens.
    pub tokens: u64,
    /// The more, the shorter are the rows of a text. English in GPT-2's tokens has about 4.4.
    pub bytes_per_token: f64,
    /// The fewer, the more a token means. Says nothing for languages that write without spaces.
    pub tokens_per_word: f64,
    /// Share of the tokens that stand for one byte: where it is large, the tokenizer does not know the language.
    pub single_byte_share: f64,
    /// Tokens there are.
    pub vocab_size: usize,
    /// Tokens that occur.
    pub used_tokens: usize,
    /// Share of the tokens that occur. Low on much text means a vocabulary larger than the texts need.
    pub coverage: f64,
    /// The longest tokens that occur: where these are whole phrases, the texts it was trained on repeat themselves.
    pub longest: Vec<LongToken>,
}

/// A long token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongToken {
    /// Its id.
    pub id: u32,
    /// What it stands for.
    pub text: String,
    /// How often it occurs.
    pub count: u64,
}

/// Looks at texts through a tokenizer.
///
/// # Errors
/// Texts that cannot be read, or somebody's wish to stop.
pub fn report(
    tokenizer: &Tokenizer,
    texts: impl Iterator<Item = Result<String>>,
    control: &dyn Control,
) -> Result<TokenizerReport> {
    let mut counts = vec![0_u64; tokenizer.vocab_size()];
    let (mut n_texts, mut bytes, mut words) = (0, 0, 0);
    for text in texts {
        control.check()?;
        let text = text?;
        n_texts += 1;
        bytes += text.len() as u64;
        words += text.split_whitespace().count() as u64;
        for id in tokenizer.encode(&text, false, false) {
            counts[id as usize] += 1;
        }
    }
    let tokens = counts.iter().sum();
    let len = |id: usize| tokenizer.token_bytes(id as u32).len();
    let single: u64 = (0..counts.len())
        .filter(|id| len(*id) == 1)
        .map(|id| counts[id])
        .sum();
    let used_tokens = counts.iter().filter(|count| **count > 0).count();
    Ok(TokenizerReport {
        texts: n_texts,
        bytes,
        words,
        tokens,
        bytes_per_token: ratio(bytes, tokens),
        tokens_per_word: ratio(tokens, words),
        single_byte_share: ratio(single, tokens),
        vocab_size: counts.len(),
        used_tokens,
        coverage: ratio(used_tokens as u64, counts.len() as u64),
        longest: longest(tokenizer, &counts),
    })
}

/// 0 where there is nothing.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

fn longest(tokenizer: &Tokenizer, counts: &[u64]) -> Vec<LongToken> {
    let used = (0..counts.len() as u32).filter(|id| counts[*id as usize] > 0);
    let mut ids: Vec<u32> = used.collect();
    ids.sort_by_key(|id| (std::cmp::Reverse(tokenizer.token_bytes(*id).len()), *id));
    ids.truncate(N_LONGEST);
    let token = |id: u32| LongToken {
        id,
        text: String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned(),
        count: counts[id as usize],
    };
    ids.into_iter().map(token).collect()
}
