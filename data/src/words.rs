//! Normalised words: the one idea of "the same text" that duplicates, leaks and splits share.
//!
//! A word is a run of Unicode letters and digits (`char::is_alphanumeric`) with the combining marks on them, lower-cased;
//! joiners and soft hyphens inside it are passed over. In scripts that are written without spaces (Chinese, Japanese, Thai,
//! Lao, Khmer, Burmese) each character is a word. Canonically equal texts must be brought to one form (NFC) before.
//!
//! Runs of `n` words are hashed by a polynomial over the words' hashes modulo 2^64 (Karp and Rabin, 1987), which rolls on by
//! one word with two multiplications, and are mixed by the finaliser of `MurmurHash3`.

use crate::document::Body;
use unicode_normalization::char::is_combining_mark;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Calls `visit` with each word. Allocates for words only that hold capital letters or are not ASCII, one buffer a call.
pub fn each_word(text: &str, mut visit: impl FnMut(&str)) {
    let bytes = text.as_bytes();
    let mut lowered = String::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at].is_ascii() {
            let (end, has_capital) = ascii_run(bytes, at);
            if end == at {
                at += 1;
                continue;
            }
            if bytes.get(end).is_none_or(u8::is_ascii) {
                if has_capital {
                    lowered.clear();
                    lowered.push_str(&text[at..end]);
                    lowered.make_ascii_lowercase();
                    visit(&lowered);
                } else {
                    visit(&text[at..end]);
                }
                at = end;
                continue;
            }
        }
        lowered.clear();
        at += unicode_word(&text[at..], &mut lowered);
        if !lowered.is_empty() {
            visit(&lowered);
        }
    }
}

/// Where the run of ASCII letters and digits that begins at `start` ends, and whether it holds a capital.
fn ascii_run(bytes: &[u8], start: usize) -> (usize, bool) {
    let mut has_capital = false;
    let mut end = start;
    while let Some(byte) = bytes.get(end).filter(|byte| byte.is_ascii_alphanumeric()) {
        has_capital |= byte.is_ascii_uppercase();
        end += 1;
    }
    (end, has_capital)
}

/// Appends the word at the start of `text` to `word` and returns how many bytes are done with; no word: one character.
fn unicode_word(text: &str, word: &mut String) -> usize {
    let mut alone = false;
    for (at, c) in text.char_indices() {
        if c.is_ascii_alphanumeric() && !alone {
            word.push(c.to_ascii_lowercase());
        } else if is_combining_mark(c) && !word.is_empty() {
            word.push(c);
        } else if c.is_alphanumeric() && !alone {
            if stands_alone(c) {
                if !word.is_empty() {
                    return at;
                }
                alone = true;
            }
            word.extend(c.to_lowercase());
        } else if word.is_empty() {
            return c.len_utf8();
        } else if !matches!(c, '\u{ad}' | '\u{200c}' | '\u{200d}') {
            return at;
        }
    }
    text.len()
}

/// Characters of scripts without spaces between words.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff // Thai, Lao
        | 0x1000..=0x109f | 0xaa60..=0xaa7f // Burmese
        | 0x1780..=0x17ff // Khmer
        | 0x3005..=0x3007 | 0x3040..=0x312f | 0x31a0..=0x31ff | 0xff66..=0xff9f // kana, bopomofo
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff) // Han
}

/// Hashes of all words of a body, in order, its parts one after the other.
pub fn word_hashes(body: &Body) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(body.len_bytes() / 5);
    for part in body.parts() {
        each_word(part, |word| hashes.push(xxh3_64(word.as_bytes())));
    }
    hashes
}

/// An odd number with bits in no order (the golden ratio's).
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Calls `visit` with the hash of each run of `n` words; never, where there are fewer.
pub fn each_gram(words: &[u64], n: usize, mut visit: impl FnMut(u64)) {
    if n == 0 || words.len() < n {
        return;
    }
    let top = (0..n).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = polynomial(&words[..n]);
    visit(mix(hash));
    for (old, new) in words.iter().zip(&words[n..]) {
        let rolled = hash.wrapping_mul(BASE).wrapping_add(*new);
        hash = rolled.wrapping_sub(old.wrapping_mul(top));
        visit(mix(hash));
    }
}

/// The hash of all words as one run, other than that of any of [`each_gram`]'s.
pub fn whole_gram(words: &[u64]) -> u64 {
    mix(polynomial(words) ^ mix(words.len() as u64))
}

fn polynomial(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0, |hash, word| hash.wrapping_mul(BASE).wrapping_add(*word))
}

/// A permutation of all 64-bit numbers after which each bit depends on all (`MurmurHash3`'s finaliser).
pub fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The same for two bodies of one shape (and, in a conversation, the same roles) whose words are the same. A body without
/// any word is known by its trimmed text.
pub fn identity(body: &Body) -> u128 {
    let mut normal = String::with_capacity(body.len_bytes() + 16);
    let mut has_words = false;
    each_part(body, |role, part| {
        normal.push_str(role);
        normal.push(PART);
        each_word(part, |word| {
            has_words = true;
            normal.push_str(word);
            normal.push(' ');
        });
    });
    if has_words {
        return xxh3_128_with_seed(normal.as_bytes(), shape(body));
    }
    normal.clear();
    each_part(body, |role, part| {
        normal.push_str(role);
        normal.push(PART);
        normal.push_str(part.trim());
    });
    xxh3_128_with_seed(normal.as_bytes(), shape(body) | 0x100)
}

/// A hash of all that the body says, to the letter.
pub fn text_hash(body: &Body) -> u128 {
    if let Body::Text(text) = body {
        return xxh3_128_with_seed(text.as_bytes(), shape(body));
    }
    let mut all = String::with_capacity(body.len_bytes() + 64);
    each_part(body, |role, part| {
        all.push_str(role);
        all.push(PART);
        all.push_str(part);
        all.push(PART);
    });
    xxh3_128_with_seed(all.as_bytes(), shape(body))
}

/// Stands between parts: the record separator, which no cleaned text holds.
const PART: char = '\u{1e}';

/// A number for each shape, so that a text and a conversation of the same words differ.
pub fn shape(body: &Body) -> u64 {
    match body {
        Body::Text(_) => 1,
        Body::Completion { .. } => 2,
        Body::Chat(_) => 3,
    }
}

fn each_part(body: &Body, mut visit: impl FnMut(&str, &str)) {
    match body {
        Body::Chat(messages) => {
            for message in messages {
                visit(&message.role, &message.content);
            }
        }
        other => {
            for part in other.parts() {
                visit("", part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::chat::Message;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each_word(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn words_are_lowered_runs_of_letters_and_digits() {
        for (text, expect) in [
            ("", vec![]),
            ("  -- !\u{2014}", vec![]),
            ("Hello, World2!", vec!["hello", "world2"]),
            ("don't", vec!["don", "t"]),
            ("ÄRGER naïve Straße", vec!["ärger", "naïve", "straße"]),
            ("naïVE", vec!["naïve"]),
            ("e\u{301}te", vec!["e\u{301}te"]),
            ("co\u{ad}operate", vec!["cooperate"]),
            ("हिन्दी भाषा", vec!["हिन्दी", "भाषा"]),
            ("GPT中文2字", vec!["gpt", "中", "文", "2", "字"]),
            ("กำ", vec!["ก", "ำ"]),
            (
                "日本語のテキスト",
                vec!["日", "本", "語", "の", "テ", "キ", "ス", "ト"],
            ),
            ("한국어 문장", vec!["한국어", "문장"]),
            ("😀a😀", vec!["a"]),
        ] {
            assert_eq!(words(text), expect, "{text}");
        }
    }

    #[test]
    fn equal_words_are_one_identity_but_shapes_and_roles_count() {
        let text = |text: &str| identity(&Body::Text(text.into()));
        assert_eq!(text("A cat, sat."), text("a  CAT\nsat"));
        assert_ne!(text("a cat sat"), text("a catsat"));
        assert_eq!(text(" !? "), text("!?"));
        assert_ne!(text("!?"), text("?!"));
        let chat = |role: &str| {
            identity(&Body::Chat(vec![Message {
                role: role.into(),
                content: "a cat sat".into(),
            }]))
        };
        assert_ne!(chat("user"), text("a cat sat"));
        assert_ne!(chat("user"), chat("assistant"));
        let completion = |prompt: &str, completion: &str| {
            identity(&Body::Completion {
                prompt: prompt.into(),
                completion: completion.into(),
            })
        };
        assert_ne!(completion("a cat", "sat"), completion("a", "cat sat"));
        assert_eq!(completion("A cat.", "sat"), completion("a cat", " sat!"));
    }

    proptest! {
        #[test]
        fn rolled_hashes_are_those_of_each_run(words in prop::collection::vec(any::<u64>(), 0..40), n in 1_usize..14) {
            let mut rolled = Vec::new();
            each_gram(&words, n, |hash| rolled.push(hash));
            let expect: Vec<u64> = words.windows(n).map(|run| mix(polynomial(run))).collect();
            prop_assert_eq!(rolled, expect);
        }

        #[test]
        fn any_text_is_taken_apart_and_lowering_changes_nothing(text in "\\PC*") {
            let lowered: String = text.chars().flat_map(char::to_lowercase).collect();
            prop_assert_eq!(words(&text), words(&lowered));
        }
    }
}
