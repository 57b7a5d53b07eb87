//! Rewriting the text before it is cut: the normalizers that today's model families use.

use super::{
    SPACE_MARK,
    normal_forms::{Decomposition, compose, decompose},
};
use std::borrow::Cow;

/// One rewriting step, in `tokenizer.json`'s words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Normalize {
    /// Puts a text before each stretch that is not empty.
    Prepend(String),
    /// Replaces every occurrence of a text.
    Replace(String, String),
    /// Unicode lower case, character by character.
    Lowercase,
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

/// `text` after all steps.
pub(super) fn normalize<'a>(steps: &[Normalize], text: &'a str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for step in steps {
        if let Some(changed) = step.apply(&text) {
            text = Cow::Owned(changed);
        }
    }
    text
}

impl Normalize {
    /// The rewritten text, or `None` where it stays as it is.
    fn apply(&self, text: &str) -> Option<String> {
        match self {
            Self::Prepend(prefix) => (!text.is_empty()).then(|| format!("{prefix}{text}")),
            Self::Replace(from, to) => text
                .contains(from.as_str())
                .then(|| text.replace(from.as_str(), to)),
            Self::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
            _ if text.is_ascii() => None,
            Self::Nfc => Some(compose(text, Decomposition::Canonical)),
            Self::Nfd => Some(decompose(text, Decomposition::Canonical)),
            Self::Nfkc => Some(compose(text, Decomposition::Compatible)),
            Self::Nfkd => Some(decompose(text, Decomposition::Compatible)),
        }
    }
}

/// The `Metaspace` pre-tokenizer's rewriting: spaces become `▁`, and one is put before the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metaspace {
    /// Before every stretch between added tokens.
    Always,
    /// Before the beginning of the whole text only.
    First,
    Never,
}

impl Metaspace {
    pub(super) fn apply(self, text: &str, at_start: bool) -> String {
        let prepends = self == Self::Always || (self == Self::First && at_start);
        let mut marked = String::with_capacity(text.len() + 8);
        if prepends && !text.starts_with([' ', SPACE_MARK]) && !text.is_empty() {
            marked.push(SPACE_MARK);
        }
        for (i, part) in text.split(' ').enumerate() {
            if i > 0 {
                marked.push(SPACE_MARK);
            }
            marked.push_str(part);
        }
        marked
    }
}
