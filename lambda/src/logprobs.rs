//! Log-probabilities of tokens: of the model's own distribution, before penalties, bias and temperature (vLLM's `raw_logprobs`).

use fledgling_core::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// A token with its log-probability, and the likeliest at its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    /// The likeliest first.
    pub(crate) top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// Of `token` and the `n_top` likeliest, by the logits of its place. [V]
    pub(crate) fn of(token: u32, logits: &[f32], n_top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // In f64, or the many small terms of a large vocabulary are lost.
        let sum: f64 = logits.iter().map(|x| f64::from(*x - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        Self {
            token,
            logprob: logits
                .get(token as usize)
                .map_or(f32::NEG_INFINITY, |x| logprob(*x)),
            top: likeliest(logits, n_top)
                .into_iter()
                .map(|id| (id, logprob(logits[id as usize])))
                .collect(),
        }
    }
}

/// Ids of the `n` highest logits in order, the lowest id first among equals.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    let mut least = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if n == 0 || (best.len() == n && logit <= least) {
            continue;
        }
        let at = best.partition_point(|&other| logits[other as usize] >= logit);
        best.insert(at, id as u32);
        best.truncate(n);
        least = best.last().map_or(least, |&id| logits[id as usize]);
    }
    best
}

/// `logprobs` of a chat's choice.
pub(crate) fn of_chat(tokenizer: &Tokenizer, tokens: &[TokenLogprob]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = bytes_of(tokenizer, id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut object = entry(token.token, token.logprob);
            let top: Vec<Value> = token.top.iter().map(|&(id, p)| entry(id, p)).collect();
            object["top_logprobs"] = json!(top);
            object
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// `logprobs` of a completion's choice. `first` tokens have none, because nothing stands before them; `offset` counts the characters
/// of the text before.
pub(crate) fn of_completion(
    tokenizer: &Tokenizer,
    first: &[u32],
    tokens: &[TokenLogprob],
    mut offset: usize,
) -> (Value, usize) {
    let n = first.len() + tokens.len();
    let (mut texts, mut offsets) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for id in first.iter().copied().chain(tokens.iter().map(|t| t.token)) {
        offsets.push(offset);
        offset += String::from_utf8_lossy(&bytes_of(tokenizer, id))
            .chars()
            .count();
        texts.push(name_of(tokenizer, id));
    }
    let none = first.iter().map(|_| Value::Null);
    let logprobs = tokens.iter().map(|t| json!(finite(t.logprob)));
    let top = tokens.iter().map(|token| {
        let named = token
            .top
            .iter()
            .map(|&(id, p)| (name_of(tokenizer, id), json!(finite(p))));
        Value::Object(named.collect())
    });
    let object = json!({
        "tokens": texts,
        "token_logprobs": none.clone().chain(logprobs).collect::<Vec<_>>(),
        "top_logprobs": none.chain(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    });
    (object, offset)
}

/// JSON has no infinity; OpenAI's API says -9999 for what has no probability.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// The bytes that a token is in the text; a special token's are its name.
fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    tokenizer.token_bytes(id).to_vec()
}

/// The text of a token, or its bytes spelled out where they are half a character, as OpenAI has it.
fn name_of(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(bytes_of(tokenizer, id)).unwrap_or_else(|error| {
        let hex = error
            .into_bytes()
            .into_iter()
            .map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", hex.collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_likeliest_come_first() {
        let logits = [1.0, 3.0, -2.0, 3.0, f32::NEG_INFINITY];
        let all = TokenLogprob::of(1, &logits, 5);
        let sum: f64 = all.top.iter().map(|(_, p)| f64::from(*p).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        let ids: Vec<u32> = all.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3, 0, 2, 4]);
        // -ln(2 + e^-2 + e^-5).
        assert!((all.logprob + 0.761_774).abs() < 1e-5, "{}", all.logprob);
        assert!(TokenLogprob::of(4, &logits, 0).logprob.is_infinite());
        assert_eq!(finite(f32::NEG_INFINITY).to_bits(), (-9999.0_f32).to_bits());
        assert_eq!(TokenLogprob::of(0, &logits, 2).top.len(), 2);
    }

    #[test]
    fn a_shift_of_all_logits_changes_nothing() {
        let logits: Vec<f32> = (0..300).map(|i| ((i * 37) % 101) as f32 * 0.25).collect();
        let shifted: Vec<f32> = logits.iter().map(|x| x + 64.0).collect();
        assert_eq!(
            TokenLogprob::of(5, &logits, 3),
            TokenLogprob::of(5, &shifted, 3)
        );
    }
}
