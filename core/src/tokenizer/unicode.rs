//! Character classes, exactly as the regexes of the Hugging Face `tokenizers` library see them.

use super::unicode_table::{BLOCK, BLOCKS, INDEX};

/// One bit a class.
pub(super) type Class = u16;
/// `\s`: the `White_Space` property.
pub(super) const SPACE: Class = 1;
/// `\p{N}`.
pub(super) const NUMBER: Class = DECIMAL | 1 << 8;
/// `\p{Nd}`.
const DECIMAL: Class = 1 << 1;
/// `\p{L}`: upper and title case, lower case, modifiers and others.
pub(super) const LETTER: Class = 1 << 2 | 1 << 3 | 1 << 4;
/// `\p{M}`.
const MARK: Class = 1 << 5;
/// `\p{P}`.
pub(super) const PUNCTUATION: Class = 1 << 6;

static ASCII: [Class; 128] = {
    let mut table = [0; 128];
    let mut c = 0;
    while c < 128 {
        table[c as usize] = lookup(c);
        c += 1;
    }
    table
};

/// The class of a character; 0 for controls, format characters and unassigned ones.
#[inline]
pub(super) fn class(c: char) -> Class {
    let code = c as u32;
    if code < 128 {
        ASCII[code as usize]
    } else {
        lookup(code)
    }
}

const fn lookup(code: u32) -> Class {
    if matches!(code, 0x9..=0xD | 0x20 | 0x85 | 0xA0 | 0x1680 | 0x2000..=0x200A | 0x2028 | 0x2029 | 0x202F | 0x205F | 0x3000)
    {
        return SPACE;
    }
    let row = (code / BLOCK) as usize;
    if row >= INDEX.len() {
        // Variation selectors are the only classified characters beyond the table.
        return if code >= 0xE_0100 && code < 0xE_01F0 {
            MARK
        } else {
            0
        };
    }
    let pair = BLOCKS[INDEX[row] as usize][(code % BLOCK / 2) as usize];
    let number = (pair >> (code % 2 * 4)) & 15;
    if number == 0 { 0 } else { 1 << number }
}

/// `\w` of the regex crate: what separates a `single_word` added token from its neighbours.
pub(super) fn is_word(c: char) -> bool {
    let connects = matches!(
        c,
        '_' | '\u{200C}' | '\u{200D}' | '\u{203F}' | '\u{2040}' | '\u{2054}'
    ) || matches!(
        c,
        '\u{FE33}' | '\u{FE34}' | '\u{FE4D}'..='\u{FE4F}' | '\u{FF3F}'
    );
    connects || c.is_alphabetic() || class(c) & (DECIMAL | MARK) != 0
}
