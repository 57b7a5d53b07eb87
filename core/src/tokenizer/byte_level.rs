//! GPT-2's byte alphabet: every byte as one printable character, so that vocabularies are plain text.

/// The character that stands for `byte`.
pub(super) const fn char_of(byte: u8) -> char {
    let code = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => byte as u32,
        // The others follow in order from U+0100.
        0..=0x20 => 0x100 + byte as u32,
        0x7F..=0xA0 => 0x100 + 33 + (byte as u32 - 0x7F),
        0xAD => 0x100 + 67,
    };
    match char::from_u32(code) {
        Some(c) => c,
        None => unreachable!(),
    }
}

/// The byte that `c` stands for.
pub(super) const fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    Some(match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code as u8,
        0x100..=0x120 => (code - 0x100) as u8,
        0x121..=0x142 => (code - 0x121 + 0x7F) as u8,
        0x143 => 0xAD,
        _ => return None,
    })
}

/// The bytes that a token's text stands for. A text with a character outside the alphabet (an added token with a
/// space) stands for itself, as in the Hugging Face decoder.
pub(super) fn decode_into(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in text.chars() {
        let Some(byte) = byte_of(c) else {
            out.truncate(start);
            out.extend_from_slice(text.as_bytes());
            return;
        };
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_a_bijection_and_gpt2s() {
        for byte in 0..=255 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!(
            (char_of(b' '), char_of(b'\n'), char_of(0xAD), char_of(0x7F)),
            ('Ġ', 'Ċ', 'Ń', 'ġ')
        );
        assert_eq!(
            (0..0x1000)
                .filter_map(char::from_u32)
                .filter_map(byte_of)
                .count(),
            256
        );
    }

    #[test]
    fn text_outside_the_alphabet_stands_for_itself() {
        let mut out = Vec::new();
        decode_into("Ġa", &mut out);
        decode_into("Ġ b", &mut out);
        assert_eq!(out, " aĠ b".as_bytes());
    }
}
