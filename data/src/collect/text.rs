//! Files that are one document: plain text, Markdown, pages.

use super::{
    Flaw, Rows,
    bytes::{Peek, READ_BYTES},
    encoding, html,
};
use crate::{config::Format, document::Body};
use std::io::Read;

/// A larger file is an error: it is in memory as a whole.
pub(super) const MOST_DOCUMENT_BYTES: u64 = 1 << 30;

/// The one document that the stream is.
pub(super) fn rows(peek: Peek, format: Format) -> Rows {
    Box::new(std::iter::once_with(move || {
        let text = read(peek, format, MOST_DOCUMENT_BYTES);
        let text = text.map_err(|reason| Flaw::whole(0, reason))?;
        Ok((0, Body::Text(text)))
    }))
}

pub(super) fn read(mut peek: Peek, format: Format, most_bytes: u64) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(peek.head(READ_BYTES).len() + 1);
    let mut limited = (&mut peek).take(most_bytes + 1);
    let n = limited.read_to_end(&mut bytes);
    if n.map_err(|error| error.to_string())? as u64 > most_bytes {
        return Err(format!(
            "is one document of more than {most_bytes} bytes; cut it into several files, or give its documents as lines of a .jsonl file"
        ));
    }
    let text = encoding::decode(bytes, format)?;
    Ok(match format {
        Format::Html => html::to_text(&text),
        Format::Md => without_front_matter(text),
        _ => text,
    })
}

/// Takes off a block of YAML (between `---`) or TOML (between `+++`) at the very start.
fn without_front_matter(text: String) -> String {
    let mut lines = text.split_inclusive('\n');
    let Some(fence @ ("---" | "+++")) = lines.next().map(str::trim_end) else {
        return text;
    };
    let mut begun = false;
    for line in lines {
        let line_end = line.as_ptr() as usize - text.as_ptr() as usize + line.len();
        let content = line.trim_end();
        if content == fence || (fence == "---" && content == "...") {
            return text[line_end..].trim_start_matches(['\r', '\n']).to_owned();
        }
        // A rule above a text is no front matter: that begins with a key at once.
        if !begun
            && !content.starts_with('#')
            && !content.contains([':', '='])
            && !content.starts_with('[')
        {
            return text;
        }
        begun |= !content.starts_with('#');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_is_taken_off_and_a_rule_is_not() {
        let check = |text: &str, expected: &str| {
            assert_eq!(without_front_matter(text.to_owned()), expected);
        };
        check("---\ntitle: A\n---\n\n# A\n", "# A\n");
        check("---\r\n# who\r\ntitle: A\r\n---\r\nA", "A");
        check("+++\ntitle = \"A\"\n+++\nA\n", "A\n");
        check("---\n\nA\n\n---\n", "---\n\nA\n\n---\n");
        check("---\ntitle: A\n", "---\ntitle: A\n");
        check("# A\n---\nB\n---\n", "# A\n---\nB\n---\n");
        check("---\n---\nA", "A");
        check("", "");
    }
}
