//! Tokens to text, one at a time.

use super::Tokenizer;

/// Turns a stream of tokens into text and never emits half a UTF-8 character.
///
/// All pieces together are what [`Tokenizer::decode`] gives for all ids without special tokens.
#[derive(Debug, Default, Clone)]
pub struct StreamDecoder {
    /// Bytes that do not make a character yet.
    pending: Vec<u8>,
    /// Whether text has begun, so that a Llama-2 leading space is text and not the tokenizer's own.
    begun: bool,
}

impl StreamDecoder {
    /// A decoder for tokens that go on after `prompt`. Vocabularies of Llama 2's kind put a space before every
    /// text and take it away when decoding; only a text's first token loses it.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        let begun = prompt
            .iter()
            .any(|&id| !tokenizer.token_bytes(id).is_empty());
        Self {
            pending: Vec::new(),
            begun,
        }
    }
    /// The text that became certain with this token, maybe none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(tokenizer, tokenizer.token_bytes(id))
    }
    /// What is left at the end; incomplete bytes become U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    pub(super) fn push_bytes(&mut self, tokenizer: &Tokenizer, mut bytes: &[u8]) -> String {
        if bytes.is_empty() {
            return String::new();
        }
        if !std::mem::replace(&mut self.begun, true) && tokenizer.strips_leading_space() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_tail(&self.pending);
        let rest = self.pending.split_off(self.pending.len() - keep);
        let certain = std::mem::replace(&mut self.pending, rest);
        match String::from_utf8(certain) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }
}

/// How many bytes at the end begin a character that more bytes could complete.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for tail in 1..=bytes.len().min(3) {
        let at = bytes.len() - tail;
        if bytes[at] & 0xC0 != 0x80 {
            let incomplete = std::str::from_utf8(&bytes[at..])
                .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
            return if incomplete { tail } else { 0 };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::incomplete_tail;

    #[test]
    fn only_what_can_still_become_a_character_is_held_back() {
        for (bytes, want) in [
            (&b""[..], 0),
            (b"a", 0),
            (b"a\xC3", 1),
            ("é".as_bytes(), 0),
            (b"\xE2\x82", 2),
            (b"\xF0\x9F\x98", 3),
            ("😀".as_bytes(), 0),
            (b"\xFF", 0),
            (b"\x80\x80\x80", 0),
            (b"\xE0\x80", 0),
            (b"\xED\xA0", 0),
            (b"\xC3\xC3", 1),
        ] {
            assert_eq!(incomplete_tail(bytes), want, "{bytes:x?}");
        }
    }
}
