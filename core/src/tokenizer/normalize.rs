//! Rewriting the text before it is cut: the normalizers that today's model families use.

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
}

/// `text` after all steps.
pub(super) fn normalize<'a>(steps: &[Normalize], text: &'a str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for step in steps {
        match step {
            Normalize::Prepend(prefix) if !text.is_empty() => {
                text = Cow::Owned(format!("{prefix}{text}"))
            }
            Normalize::Replace(from, to) if text.contains(from.as_str()) => {
                text = Cow::Owned(text.replace(from.as_str(), to))
            }
            Normalize::Lowercase => {
                text = Cow::Owned(text.chars().flat_map(char::to_lowercase).collect())
            }
            Normalize::Prepend(_) | Normalize::Replace(..) => {}
        }
    }
    text
}
