//! Tokens that stand in the text as a whole: found before the text is cut into words.

use super::{unicode::is_word, vocab::Arena};
use std::{borrow::Cow, ops::Range};

/// How an added token is found. Flags as in `tokenizer.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "tokenizer.json's own independent flags"
)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Only where no word character stands beside it.
    pub(super) single_word: bool,
    /// Takes the white space before it along.
    pub(super) lstrip: bool,
    /// Takes the white space after it along.
    pub(super) rstrip: bool,
    /// Looked for in the normalised text.
    pub(super) normalized: bool,
    /// Left out when decoding, and only found on request.
    pub(super) special: bool,
}

/// Finds the leftmost, then longest of a set of texts.
#[derive(Debug, Clone, Default)]
pub(super) struct Matcher {
    /// Sorted by text, so that a growing prefix narrows a range. Parallel to `tokens`.
    texts: Arena,
    /// Index into the list of added tokens.
    tokens: Vec<u32>,
    /// Range of `texts` by first byte.
    first: Vec<Range<u32>>,
}

impl Matcher {
    /// Looks for `texts`; each comes with the index of its token.
    pub(super) fn new<'a>(texts: impl Iterator<Item = (Cow<'a, str>, usize)>) -> Self {
        let mut sorted: Vec<_> = texts.filter(|(text, _)| !text.is_empty()).collect();
        sorted.sort_unstable();
        sorted.dedup_by(|(a, _), (b, _)| a == b);
        let mut matcher = Self::default();
        if sorted.is_empty() {
            return matcher;
        }
        matcher.first = (0..=255)
            .map(|byte: u8| {
                let at = |bound: u16| {
                    sorted.partition_point(|(text, _)| u16::from(text.as_bytes()[0]) < bound) as u32
                };
                at(u16::from(byte))..at(u16::from(byte) + 1)
            })
            .collect();
        for (text, token) in sorted {
            matcher.texts.push(text.as_bytes());
            matcher.tokens.push(token as u32);
        }
        matcher
    }

    /// The next match at or after `from`: its range in `text` and the token's index.
    pub(super) fn find(&self, text: &str, from: usize) -> Option<(Range<usize>, usize)> {
        if self.first.is_empty() {
            return None;
        }
        let bytes = text.as_bytes();
        (from..bytes.len()).find_map(|start| {
            let range = &self.first[bytes[start] as usize];
            if range.is_empty() {
                return None;
            }
            self.longest_at(&bytes[start..], range)
                .map(|(len, token)| (start..start + len, token))
        })
    }

    fn longest_at(&self, bytes: &[u8], first: &Range<u32>) -> Option<(usize, usize)> {
        let text = |i: usize| self.texts.get(i).unwrap_or_default();
        let (mut low, mut high) = (first.start as usize, first.end as usize);
        let mut found = None;
        // All of low..high begin with bytes[..len]; the shortest of them comes first.
        for len in 1..=bytes.len() {
            if text(low).len() == len {
                found = Some((len, self.tokens[low] as usize));
                low += 1;
            }
            let Some(&next) = bytes.get(len) else { break };
            let bound = |limit: u16| {
                let (mut a, mut b) = (low, high);
                while a < b {
                    let middle = usize::midpoint(a, b);
                    if u16::from(text(middle)[len]) < limit {
                        a = middle + 1;
                    } else {
                        b = middle;
                    }
                }
                a
            };
            (low, high) = (bound(u16::from(next)), bound(u16::from(next) + 1));
            if low == high {
                break;
            }
        }
        found
    }
}

/// A stretch of text between added tokens, or one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Cuts `text` at the added tokens that `matcher` finds; special ones only when `parse_special`.
pub(super) fn segments<'a>(
    matcher: &Matcher,
    tokens: &[AddedToken],
    text: &'a str,
    parse_special: bool,
    each: &mut dyn FnMut(Segment<'a>),
) {
    let (mut done, mut from) = (0, 0);
    while let Some((range, idx)) = matcher.find(text, from) {
        from = range.end;
        let token = &tokens[idx];
        if (token.special && !parse_special) || (token.single_word && !is_single_word(text, &range))
        {
            continue;
        }
        let before = &text[..range.start];
        // White space that the token before has taken stays with it.
        let start = if token.lstrip {
            before.trim_end().len().max(done)
        } else {
            range.start
        };
        if done < start {
            each(Segment::Text(&text[done..start]));
        }
        each(Segment::Token(token.id));
        let after = &text[range.end..];
        done = if token.rstrip {
            text.len() - after.trim_start().len()
        } else {
            range.end
        };
    }
    if done < text.len() {
        each(Segment::Text(&text[done..]));
    }
}

fn is_single_word(text: &str, range: &Range<usize>) -> bool {
    let before = text[..range.start].chars().next_back();
    let after = text[range.end..].chars().next();
    !before.is_some_and(is_word) && !after.is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[AddedToken], text: &str, parse_special: bool, want: &[Segment]) {
        let matcher = Matcher::new(
            tokens
                .iter()
                .enumerate()
                .map(|(i, t)| (t.content.as_str().into(), i)),
        );
        let mut got = Vec::new();
        segments(&matcher, tokens, text, parse_special, &mut |s| got.push(s));
        assert_eq!(got, want, "{text:?}");
    }
    fn token(id: u32, content: &str) -> AddedToken {
        AddedToken {
            id,
            content: content.into(),
            ..AddedToken::default()
        }
    }

    #[test]
    fn leftmost_then_longest() {
        use Segment::{Text, Token};
        let tokens = [
            token(0, "<a>"),
            token(1, "<a>b"),
            token(2, "a>bc"),
            token(3, "é"),
            token(4, "<"),
        ];
        check(
            &tokens,
            "x<a>bc<a>é<",
            true,
            &[Text("x"), Token(1), Text("c"), Token(0), Token(3), Token(4)],
        );
        check(&tokens, "", true, &[]);
        check(&[], "abc", true, &[Text("abc")]);
    }

    #[test]
    fn flags() {
        use Segment::{Text, Token};
        let strip = AddedToken {
            lstrip: true,
            rstrip: true,
            ..token(0, "<m>")
        };
        check(
            std::slice::from_ref(&strip),
            "a  <m> \n <m>b",
            true,
            &[Text("a"), Token(0), Token(0), Text("b")],
        );
        let word = AddedToken {
            single_word: true,
            ..token(0, "ab")
        };
        check(
            &[word],
            "ab cab abé ab",
            true,
            &[Token(0), Text(" cab abé "), Token(0)],
        );
        let special = AddedToken {
            special: true,
            ..token(0, "<s>")
        };
        check(
            std::slice::from_ref(&special),
            "a<s>",
            false,
            &[Text("a<s>")],
        );
        check(&[special], "a<s>", true, &[Text("a"), Token(0)]);
    }
}
