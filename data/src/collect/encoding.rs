//! Which encoding bytes are in, and whether they are text at all.
//!
//! A byte order mark decides; else UTF-16 shows by its zero bytes, UTF-8 by being valid, and the rest is guessed as
//! browsers do (chardetng). JSON is UTF-8 by definition (RFC 8259), so nothing is guessed there.

use super::bytes::{Peek, Stream};
use crate::config::Format;
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};
use encoding_rs_io::DecodeReaderBytesBuilder;
use std::io::Read;

/// How much of a stream is looked at.
const SAMPLE_BYTES: usize = 1 << 20;
/// How much of it where only binary files and UTF-16 are to be told.
const JSON_SAMPLE_BYTES: usize = 1 << 16;
/// More zero bytes than one in so many are no slip in a text.
const BYTES_A_NUL: usize = 1024;
/// As many valid characters of more bytes than one stand against an invalid byte in a UTF-8 text with a few slips.
const VALID_TO_INVALID: usize = 8;
/// Chardetng reads so much, from a little before the first byte that is not UTF-8.
const GUESS_BYTES: usize = 1 << 22;

/// A stream of UTF-8 without byte order mark. Bytes that break UTF-8 stay in it where the stream is UTF-8 itself.
pub(super) fn utf8_stream(mut peek: Peek, format: Format) -> Result<Stream, String> {
    let json = matches!(format, Format::Json | Format::Jsonl);
    let len = if json {
        JSON_SAMPLE_BYTES
    } else {
        SAMPLE_BYTES
    };
    let n = peek.head(len).len();
    let whole = peek.is_whole();
    let sample = peek.head(n);
    let encoding = match encoding_of_text(sample)? {
        Some(encoding) => encoding,
        None if json || starts_as_utf8(sample, whole) => UTF_8,
        None => guess(sample, format),
    };
    if encoding == UTF_8 {
        let bom_len = Encoding::for_bom(sample).map_or(0, |(_, len)| len);
        let mut bom = [0; 3];
        // The bytes are in the head, so this cannot fail.
        let _ = peek.read(&mut bom[..bom_len]);
        return Ok(Box::new(peek));
    }
    let mut builder = DecodeReaderBytesBuilder::new();
    builder.encoding(Some(encoding)).strip_bom(true);
    Ok(Box::new(builder.build(peek)))
}

/// A whole document.
pub(super) fn decode(bytes: Vec<u8>, format: Format) -> Result<String, String> {
    let sample = &bytes[..bytes.len().min(SAMPLE_BYTES)];
    if let Some(encoding) = encoding_of_text(sample)? {
        return Ok(encoding.decode_with_bom_removal(&bytes).0.into_owned());
    }
    String::from_utf8(bytes).or_else(|error| {
        let bytes = error.as_bytes();
        let start = error.utf8_error().valid_up_to().saturating_sub(1 << 16);
        let end = bytes.len().min(start + GUESS_BYTES);
        let encoding = guess(&bytes[start..end], format);
        Ok(encoding.decode_without_bom_handling(bytes).0.into_owned())
    })
}

/// The encoding where it is certain; none where the bytes may be any that keeps ASCII.
fn encoding_of_text(sample: &[u8]) -> Result<Option<&'static Encoding>, String> {
    if let Some((encoding, _)) = Encoding::for_bom(sample) {
        return Ok(Some(encoding));
    }
    let n_nul = sample.split(|&byte| byte == 0).count() - 1;
    if n_nul == 0 {
        return Ok(None);
    }
    if let Some(encoding) = utf16_without_bom(sample) {
        return Ok(Some(encoding));
    }
    if n_nul * BYTES_A_NUL > sample.len() {
        return Err("is a binary file, not text".to_owned());
    }
    Ok(None)
}

fn starts_as_utf8(sample: &[u8], whole: bool) -> bool {
    match std::str::from_utf8(sample) {
        Ok(_) => true,
        // Cut in the middle of a character.
        Err(error) => !whole && error.error_len().is_none(),
    }
}

/// UTF-16 when nearly everything is letters, digits, spaces and punctuation that way, and some of it ASCII.
fn utf16_without_bom(sample: &[u8]) -> Option<&'static Encoding> {
    let share = |encoding: &'static Encoding| {
        let even = &sample[..sample.len() / 2 * 2];
        let mut text = String::with_capacity(even.len() * 2 + 16);
        let mut decoder = encoding.new_decoder_without_bom_handling();
        let (result, _) = decoder.decode_to_string_without_replacement(even, &mut text, false);
        if matches!(result, DecoderResult::Malformed(..)) {
            return None;
        }
        let (mut n, mut n_usual, mut n_ascii) = (0_u32, 0_u32, 0_u32);
        for c in text.chars() {
            let usual = c.is_alphanumeric() || c.is_whitespace() || is_punctuation(c);
            n += 1;
            n_usual += u32::from(usual);
            n_ascii += u32::from(usual && c.is_ascii());
        }
        // The wrong order of bytes turns ASCII into Chinese, never the other way round.
        (n_usual * 10 >= n * 9 && n_ascii > 0).then_some((n_ascii, encoding))
    };
    let both = [UTF_16LE, UTF_16BE].into_iter().filter_map(share);
    both.max_by_key(|(n_ascii, _)| *n_ascii)
        .map(|(_, encoding)| encoding)
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(c, '\u{80}'..='\u{ff}' | '\u{2010}'..='\u{203e}' | '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ff65}')
}

fn guess(bytes: &[u8], format: Format) -> &'static Encoding {
    let declared = (format == Format::Html).then(|| charset_of_html(bytes));
    if let Some(encoding) = declared.flatten().filter(|encoding| *encoding != UTF_8) {
        return encoding;
    }
    if is_utf8_with_slips(bytes) {
        return UTF_8;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    detector.guess(None, Utf8Detection::Deny)
}

/// A long text in UTF-8 with a broken character is not to be read as another encoding altogether.
fn is_utf8_with_slips(bytes: &[u8]) -> bool {
    let (mut n_valid, mut n_invalid) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        n_valid += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        n_invalid += usize::from(!chunk.invalid().is_empty());
    }
    n_valid > n_invalid * VALID_TO_INVALID
}

/// `<meta charset>` and its older form, among the first bytes as the HTML standard has it.
fn charset_of_html(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = bytes[..bytes.len().min(1024)].to_ascii_lowercase();
    let at = head.windows(8).position(|window| window == b"charset=")?;
    let label = head[at + 8..]
        .split(|byte| !byte.is_ascii_alphanumeric() && !b"-_:".contains(byte))
        .find(|label| !label.is_empty())?;
    Encoding::for_label(label)
}
