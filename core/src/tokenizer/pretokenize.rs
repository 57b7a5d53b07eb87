//! Cutting text into the pieces that BPE works on.
//!
//! The families' regexes are written out as scanners: no regex engine in the browser, and several times its speed.
//! Each scanner takes a text that is not empty and returns the length of its first piece. Classes are those of
//! the Hugging Face library, which tests over every Unicode character hold to it.

use super::SPACE_MARK;
use super::unicode::{Class, LETTER, NUMBER, PUNCTUATION, SPACE, class};

/// One splitting step; steps apply in order, each within the pieces of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A space before each piece that has none (`ByteLevel` with `add_prefix_space`).
    PrefixSpace,
    /// GPT-2's pattern.
    Gpt2,
    /// The pattern of Llama 3 (numbers of up to 3 digits) and Qwen 2 (1 digit).
    Cl100k {
        /// Digits a piece at most.
        max_digits: usize,
    },
    /// Every `char::is_numeric` by itself (`Digits` with `individual_digits`).
    EachDigit,
    /// Runs of `char::is_numeric` (`Digits` without).
    DigitRuns,
    /// Runs of up to so many `\p{N}`.
    Numbers {
        /// Characters a piece at most.
        max: usize,
    },
    /// Runs of punctuation and ``$+<=>^~|``, llama.cpp's `default`; with the backtick, its `falcon`.
    PunctuationRuns {
        /// Whether the backtick belongs to them.
        backtick: bool,
    },
    /// ASCII digits by threes (`[0-9][0-9][0-9]`).
    AsciiTriples,
    /// Before each `▁` (`Metaspace` that splits).
    BeforeSpaceMark,
}

/// The regexes of `tokenizer.json` that we have scanners for.
pub(super) const PATTERNS: [(&str, Step); 9] = [
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        Step::Gpt2,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Step::Cl100k { max_digits: 3 },
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Step::Cl100k { max_digits: 1 },
    ),
    (r"\p{N}", Step::Numbers { max: 1 }),
    (r"\p{N}{1,3}", Step::Numbers { max: 3 }),
    (r"\p{N}+", Step::Numbers { max: usize::MAX }),
    (r"[0-9][0-9][0-9]", Step::AsciiTriples),
    (
        r"[\p{P}\$\+<=>\^~\|]+",
        Step::PunctuationRuns { backtick: false },
    ),
    (
        r"[\p{P}\$\+<=>\^~\|`]+",
        Step::PunctuationRuns { backtick: true },
    ),
];

impl Step {
    /// The step of a regex that splits, and isolates or keeps what it matches.
    pub(super) fn of_pattern(regex: &str) -> Option<Self> {
        PATTERNS
            .iter()
            .find(|(pattern, _)| *pattern == regex)
            .map(|(_, step)| *step)
    }
    /// The regex of a step that is one.
    pub(super) fn pattern(self) -> Option<&'static str> {
        PATTERNS
            .iter()
            .find(|(_, step)| *step == self)
            .map(|(pattern, _)| *pattern)
    }
    /// Whether the regex matches everything, so that nothing stands between its matches.
    pub(super) fn covers_all(self) -> bool {
        matches!(self, Self::Gpt2 | Self::Cl100k { .. })
    }
}

/// Calls `each` with every piece of `text`.
pub(super) fn split(steps: &[Step], text: &str, each: &mut dyn FnMut(&str)) {
    let Some((step, rest)) = steps.split_first() else {
        if !text.is_empty() {
            each(text);
        }
        return;
    };
    if *step == Step::PrefixSpace {
        if text.is_empty() || text.starts_with(' ') {
            return split(rest, text, each);
        }
        return split(rest, &format!(" {text}"), each);
    }
    let mut text = text;
    while !text.is_empty() {
        let (piece, tail) = text.split_at(first_piece(*step, text));
        if rest.is_empty() {
            each(piece);
        } else {
            split(rest, piece, each);
        }
        text = tail;
    }
}

fn first_piece(step: Step, text: &str) -> usize {
    match step {
        Step::PrefixSpace => text.len(),
        Step::Gpt2 => gpt2(text),
        Step::Cl100k { max_digits } => cl100k(text, max_digits),
        Step::EachDigit => isolate(text, char::is_numeric, 1),
        Step::DigitRuns => isolate(text, char::is_numeric, usize::MAX),
        Step::Numbers { max } => isolate(text, |c| class(c) & NUMBER != 0, max),
        Step::PunctuationRuns { backtick } => {
            let is_in =
                |c| class(c) & PUNCTUATION != 0 || "$+<=>^~|".contains(c) || (backtick && c == '`');
            isolate(text, is_in, usize::MAX)
        }
        Step::AsciiTriples => ascii_triples(text),
        Step::BeforeSpaceMark => {
            let after = text.chars().next().map_or(0, char::len_utf8);
            text[after..]
                .find(SPACE_MARK)
                .map_or(text.len(), |at| after + at)
        }
    }
}

/// The class and byte length of the character at `at`, if any.
#[inline]
fn peek(text: &str, at: usize) -> Option<(Class, usize)> {
    let c = text[at..].chars().next()?;
    Some((class(c), c.len_utf8()))
}

/// Where the run of characters that `belongs` accepts, starting at `at`, ends.
#[inline]
fn run_end(text: &str, at: usize, belongs: impl Fn(Class) -> bool) -> usize {
    let mut end = at;
    while let Some((class, len)) = peek(text, end) {
        if !belongs(class) {
            break;
        }
        end += len;
    }
    end
}

const fn is_other(class: Class) -> bool {
    class & (SPACE | LETTER | NUMBER) == 0
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2(text: &str) -> usize {
    let bytes = text.as_bytes();
    if bytes[0] == b'\'' {
        match bytes.get(1..) {
            Some([b's' | b't' | b'm' | b'd', ..]) => return 2,
            Some([b'r' | b'v', b'e', ..] | [b'l', b'l', ..]) => return 3,
            _ => {}
        }
    }
    let start = usize::from(bytes[0] == b' ');
    match peek(text, start) {
        Some((class, len)) if class & LETTER != 0 => {
            run_end(text, start + len, |c| c & LETTER != 0)
        }
        Some((class, len)) if class & NUMBER != 0 => {
            run_end(text, start + len, |c| c & NUMBER != 0)
        }
        Some((class, len)) if is_other(class) => run_end(text, start + len, is_other),
        _ => white_space(text),
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn cl100k(text: &str, max_digits: usize) -> usize {
    let bytes = text.as_bytes();
    if bytes[0] == b'\''
        && let Some(len) = contraction_any_case(&bytes[1..])
    {
        return 1 + len;
    }
    let (first, first_len) = peek(text, 0).unwrap_or_default();
    if first & LETTER != 0 {
        return run_end(text, first_len, |c| c & LETTER != 0);
    }
    if first & NUMBER != 0 {
        return text
            .chars()
            .take(max_digits)
            .take_while(|&c| class(c) & NUMBER != 0)
            .map(char::len_utf8)
            .sum();
    }
    let second = peek(text, first_len);
    if let Some((class, len)) = second
        && class & LETTER != 0
        && !matches!(bytes[0], b'\r' | b'\n')
    {
        return run_end(text, first_len + len, |c| c & LETTER != 0);
    }
    let marks = if is_other(first) {
        Some(first_len)
    } else {
        second
            .filter(|&(class, _)| bytes[0] == b' ' && is_other(class))
            .map(|(_, len)| first_len + len)
    };
    if let Some(at) = marks {
        let end = run_end(text, at, is_other);
        return end
            + bytes[end..]
                .iter()
                .take_while(|b| matches!(b, b'\r' | b'\n'))
                .count();
    }
    let spaces = run_end(text, 0, |c| c & SPACE != 0);
    match bytes[..spaces]
        .iter()
        .rposition(|b| matches!(b, b'\r' | b'\n'))
    {
        Some(newline) => newline + 1,
        None => white_space(text),
    }
}

/// Length of what follows an apostrophe in a contraction. The long s folds to s, as it does in Oniguruma.
fn contraction_any_case(after: &[u8]) -> Option<usize> {
    let lower = |i: usize| after.get(i).map(u8::to_ascii_lowercase);
    match (lower(0)?, lower(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(2),
        _ => after.starts_with("ſ".as_bytes()).then_some("ſ".len()),
    }
}

/// `\s+(?!\S)|\s+`: all white space but the last character when something follows.
fn white_space(text: &str) -> usize {
    let (mut end, mut last) = (0, 0);
    while let Some((class, len)) = peek(text, end) {
        if class & SPACE == 0 {
            return if last > 0 { last } else { end };
        }
        last = end;
        end += len;
    }
    end
}

/// The text before the first character that `is_in`, or else up to `at_most` such characters.
fn isolate(text: &str, is_in: impl Fn(char) -> bool, at_most: usize) -> usize {
    let run: usize = text
        .chars()
        .take(at_most)
        .take_while(|&c| is_in(c))
        .map(char::len_utf8)
        .sum();
    if run > 0 {
        run
    } else {
        text.find(is_in).unwrap_or(text.len())
    }
}

fn ascii_triples(text: &str) -> usize {
    let is_triple = |w: &[u8]| w.iter().all(u8::is_ascii_digit);
    match text.as_bytes().windows(3).position(is_triple) {
        Some(0) => 3,
        Some(at) => at,
        None => text.len(),
    }
}
