//! Rules for single characters: normal forms (Unicode Standard Annex 15), control and invisible characters, symbols.

use crate::config::Unicode;
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, char::is_combining_mark, is_nfc_quick, is_nfkc_quick,
};

/// Which kinds of bytes a text holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Classes(u8);

/// Of a character beyond ASCII.
pub(super) const NOT_ASCII: u8 = 1;
/// `\r`, the vertical tab and the form feed.
pub(super) const LINE_FORM: u8 = 2;
/// Other ASCII control characters but `\n` and `\t`.
pub(super) const CONTROL: u8 = 4;
/// ASCII capitals.
pub(super) const CAPITAL: u8 = 8;

const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'\n' | b'\t' => 0,
            b'\r' | 0x0b | 0x0c => LINE_FORM,
            0..0x20 | 0x7f => CONTROL,
            b'A'..=b'Z' => CAPITAL,
            0x80.. => NOT_ASCII,
            _ => 0,
        };
        byte += 1;
    }
    table
};

impl Classes {
    pub(super) fn has(self, classes: u8) -> bool {
        self.0 & classes != 0
    }
}

pub(super) fn classes(text: &str) -> Classes {
    // Four sums, so that a byte need not wait for the one before it.
    let (fours, rest) = text.as_bytes().as_chunks::<4>();
    let mut sums = [0; 4];
    for four in fours {
        for (sum, byte) in sums.iter_mut().zip(four) {
            *sum |= CLASS[*byte as usize];
        }
    }
    let rest = rest.iter().fold(0, |sum, byte| sum | CLASS[*byte as usize]);
    Classes(sums.iter().fold(rest, |a, b| a | b))
}

/// The normal form, where the text is not in it.
pub(super) fn normalized(text: &str, form: Unicode) -> Option<String> {
    let quick = match form {
        Unicode::Off => IsNormalized::Yes,
        Unicode::Nfc => is_nfc_quick(text.chars()),
        Unicode::Nfkc => is_nfkc_quick(text.chars()),
    };
    if quick == IsNormalized::Yes {
        return None;
    }
    let new: String = match form {
        Unicode::Nfkc => text.nfkc().collect(),
        _ => text.nfc().collect(),
    };
    (new != text).then_some(new)
}

/// The text without control and invisible characters, where it has any.
pub(super) fn without_control(text: &str) -> Option<String> {
    let is_suspect = |c: char| is_control(c) || is_joiner(c);
    let first = text.find(is_suspect)?;
    let mut new = String::with_capacity(text.len());
    new.push_str(&text[..first]);
    for c in text[first..].chars() {
        if !is_control(c) && (!is_joiner(c) || needs_joiner(&new)) {
            new.push(c);
        }
    }
    (new.len() < text.len()).then_some(new)
}

/// `\r` is not among them: it ends lines, which is another rule's business.
fn is_control(c: char) -> bool {
    match c {
        '\n' | '\t' | '\r' => false,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => true,
        ..'\u{ad}' => false,
        _ => matches!(c,
            '\u{ad}' // soft hyphen
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' // bidirectional marks and embeddings
            | '\u{2066}'..='\u{206f}' // bidirectional isolates and deprecated format characters
            | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2064}' // zero-width spaces, word joiner, invisible operators
            | '\u{feff}' // byte order mark
            | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'), // annotations, noncharacters
    }
}

fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// Joiners belong after characters of scripts beyond Latin, Greek and Cyrillic (Persian, Indic scripts) and of emoji. Common
/// accents are looked through: normalisation may put one between the character and its joiner.
fn needs_joiner(before: &str) -> bool {
    let mut before = before.chars().rev();
    before
        .find(|c| !('\u{300}'..='\u{36f}').contains(c))
        .is_some_and(|c| c >= '\u{590}' && !is_joiner(c))
}

/// Letters with their marks, digits, white space and common punctuation only.
pub(super) fn without_symbols(text: &str) -> String {
    let mut new = String::with_capacity(text.len());
    for c in text.chars() {
        let stays = c.is_alphanumeric()
            || c.is_whitespace()
            || is_punctuation(c)
            || is_combining_mark(c)
                && !matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{20d0}'..='\u{20ff}')
            || is_joiner(c)
                && new
                    .chars()
                    .next_back()
                    .is_some_and(|c| c.is_alphanumeric() || is_combining_mark(c));
        if stays {
            new.push(c);
        }
    }
    new
}

fn is_punctuation(c: char) -> bool {
    matches!(c,
        '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '"' | '(' | ')' | '-' | '/' | '%' | '&'
        | '¿' | '¡' | '«' | '»' | '·'
        | '\u{2010}'..='\u{2015}' | '\u{2018}'..='\u{201f}' | '…' | '‹' | '›' // dashes, quotes
        | '،' | '؛' | '؟' | '।' | '॥' | '။' | '።' // Arabic, Indic, Burmese, Ethiopic
        | '、' | '。' | '〈'..='】' | '〜' | '・' // Chinese, Japanese
        | '！' | '（' | '）' | '，' | '：' | '；' | '？')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        let nfc = |text| normalized(text, Unicode::Nfc);
        assert_eq!(nfc("Cafe\u{301}").as_deref(), Some("Café"));
        for text in [
            "plain",
            "Café",
            "ﬁ ² Ａ",
            "한국어",
            "हिन्दी",
            "e\u{323}\u{302}".nfc().collect::<String>().as_str(),
        ] {
            assert_eq!(nfc(text), None, "{text}");
        }
        let nfkc = |text| normalized(text, Unicode::Nfkc);
        assert_eq!(nfkc("ﬁ ² Ａ").as_deref(), Some("fi 2 A"));
        assert_eq!(normalized("e\u{301}", Unicode::Off), None);
    }

    #[test]
    fn control_characters_go_and_needed_joiners_stay() {
        for (text, expect) in [
            ("a\0b\x1b[0m\x7f\u{85}c", "ab[0mc"),
            (
                "\u{feff}head\u{200b}less co\u{ad}op\u{2060}",
                "headless coop",
            ),
            ("\u{202e}evil\u{202c} \u{2066}x\u{2069}\u{200e}", "evil x"),
            ("La\u{200d}tin \u{200c}x", "Latin x"),
        ] {
            assert_eq!(without_control(text).as_deref(), Some(expect), "{text:?}");
        }
        for text in [
            "tab\tline\n\r\n",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "👩\u{200d}👩\u{200d}👧",
            "❤\u{fe0f}\u{200d}🔥",
            "naïve \u{a0}",
        ] {
            assert_eq!(without_control(text), None, "{text:?}");
        }
    }

    #[test]
    fn symbols_go_and_words_of_all_scripts_stay() {
        for (text, expect) in [
            ("a → b ★ 5€ #tag @x {y}", "a  b  5 tag x y"),
            ("\"Don't\" – (why?) 50%;", "\"Don't\" – (why?) 50%;"),
            (
                "हिन्दी می\u{200c}خواهم 中文。",
                "हिन्दी می\u{200c}خواهم 中文。",
            ),
            ("ok ❤\u{fe0f}\u{200d}🔥 1\u{fe0f}\u{20e3}", "ok  1"),
        ] {
            assert_eq!(without_symbols(text), expect);
        }
    }

    #[test]
    fn classes_are_those_of_the_bytes() {
        let of = |text: &str| classes(text).0;
        assert_eq!(of("plain text, tab\t and\n"), 0);
        assert_eq!(of("abcdefg\r"), LINE_FORM);
        assert_eq!(of("abcdé Z\x01"), NOT_ASCII | CAPITAL | CONTROL);
    }
}
