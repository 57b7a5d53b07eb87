//! Pieces of texts, taken evenly when there is more than shall be looked at.

use anyhow::Result;

/// Longest piece: the pre-tokenizer needs many times its text.
const PIECE_BYTES: usize = 1 << 16;

/// An iterator over pieces of `texts`.
pub(super) struct Sample<I> {
    texts: I,
    max_bytes: u64,
    /// Known only where there is more than `max_bytes`.
    total_bytes: Option<u64>,
    text: String,
    start: usize,
    /// Bytes that came.
    pub(super) seen_bytes: u64,
    /// Bytes that were handed on.
    pub(super) used_bytes: u64,
    /// Whether the end was not reached.
    pub(super) is_cut: bool,
}

impl<I: Iterator<Item = Result<String>>> Sample<I> {
    pub(super) fn new(texts: I, max_bytes: u64, total_bytes: Option<u64>) -> Self {
        Self {
            texts,
            max_bytes,
            total_bytes: total_bytes.filter(|total| *total > max_bytes),
            text: String::new(),
            start: 0,
            seen_bytes: 0,
            used_bytes: 0,
            is_cut: false,
        }
    }

    /// The next piece of the texts, sampled or not.
    fn piece(&mut self) -> Option<Result<String>> {
        while self.start == self.text.len() {
            self.start = 0;
            match self.texts.next()? {
                Ok(text) => self.text = text,
                Err(error) => return Some(Err(error)),
            }
        }
        let rest = &self.text[self.start..];
        let piece = rest[..cut(rest, PIECE_BYTES)].to_owned();
        self.start += piece.len();
        self.seen_bytes += piece.len() as u64;
        Some(Ok(piece))
    }

    /// How much may have been used by now.
    fn allowed(&self) -> u64 {
        let share = |total: u64| {
            let seen = self.seen_bytes.min(total);
            (u128::from(seen) * u128::from(self.max_bytes) / u128::from(total)) as u64
        };
        self.total_bytes.map_or(self.max_bytes, share)
    }
}

impl<I: Iterator<Item = Result<String>>> Iterator for Sample<I> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        while !self.is_cut {
            let mut piece = match self.piece()? {
                Ok(piece) => piece,
                error => return Some(error),
            };
            let room = self.allowed() - self.used_bytes.min(self.allowed());
            if self.total_bytes.is_none() && piece.len() as u64 >= room {
                self.is_cut = piece.len() as u64 > room || self.text.len() > self.start;
                piece.truncate(cut(&piece, room as usize));
            } else if piece.len() as u64 > room {
                continue;
            }
            self.used_bytes += piece.len() as u64;
            return (!piece.is_empty()).then_some(Ok(piece));
        }
        None
    }
}

/// Where to cut a text of which at most `len_bytes` are wanted: before a space between words, where GPT-2's pattern cuts
/// too, or else between characters.
fn cut(text: &str, len_bytes: usize) -> usize {
    if text.len() <= len_bytes {
        return text.len();
    }
    let bytes = text.as_bytes();
    let is_between = |&i: &usize| {
        bytes[i] == b' '
            && !bytes[i - 1].is_ascii_whitespace()
            && !bytes[i + 1].is_ascii_whitespace()
    };
    let space = (len_bytes / 2 + 1..len_bytes).rev().find(is_between);
    space.unwrap_or_else(|| text.floor_char_boundary(len_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(texts: &[&str], max: u64, total: Option<u64>) -> (Vec<String>, u64, u64, bool) {
        let texts = texts.iter().map(|text| Ok((*text).to_owned()));
        let mut sample = Sample::new(texts, max, total);
        let pieces = sample.by_ref().map(Result::unwrap).collect();
        (pieces, sample.seen_bytes, sample.used_bytes, sample.is_cut)
    }

    #[test]
    fn all_is_taken_where_it_fits() {
        let text = "some words and more ".repeat(10_000);
        let (pieces, seen, used, is_cut) = sample(&[&text, "", "end"], 1 << 20, None);
        assert_eq!(pieces.concat(), format!("{text}end"));
        assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        assert!(pieces[1].starts_with(' '));
        assert_eq!((seen, used, is_cut), (200_003, 200_003, false));
    }

    #[test]
    fn pieces_from_everywhere_are_taken_where_the_total_is_known() {
        let texts: Vec<String> = (0..1000).map(|i| format!("text {i:04}.")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (pieces, seen, used, is_cut) = sample(&texts, 1000, Some(10_000));
        assert_eq!(
            (pieces.len(), seen, used, is_cut),
            (100, 10_000, 1000, false)
        );
        assert_eq!(
            (pieces[0].as_str(), pieces[99].as_str()),
            ("text 0009.", "text 0999.")
        );
    }

    #[test]
    fn the_beginning_is_taken_where_it_is_not() {
        let (pieces, _, used, is_cut) = sample(&["one two", " three four five", "six"], 19, None);
        assert_eq!(pieces, ["one two", " three four"]);
        assert_eq!((used, is_cut), (18, true));
        let (pieces, ..) = sample(&["ééé"], 3, None);
        assert_eq!(pieces, ["é"]);
    }
}
