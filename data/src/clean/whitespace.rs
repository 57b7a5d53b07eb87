//! Lines and spaces. What code needs stays: spaces and tabs at the start of a line, and runs of them inside it.

/// Which ends of a text are ends of what is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edges {
    start: bool,
    end: bool,
}

impl Edges {
    pub(super) const BOTH: Self = Self {
        start: true,
        end: true,
    };
    pub(super) const START: Self = Self {
        start: true,
        end: false,
    };
    pub(super) const END: Self = Self {
        start: false,
        end: true,
    };
}

/// Blank lines one after the other at most.
const MOST_BLANK: usize = 2;

/// With `\n` for every form of line end and a space for every other space, where there are others.
pub(super) fn plain(text: &str) -> Option<String> {
    let first = text.find(|c| is_line_end(c) || is_space(c))?;
    let mut new = String::with_capacity(text.len());
    new.push_str(&text[..first]);
    let mut chars = text[first..].chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' if chars.peek() == Some(&'\n') => {}
            c if is_line_end(c) => new.push('\n'),
            c if is_space(c) => new.push(' '),
            c => new.push(c),
        }
    }
    Some(new)
}

fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\r' | '\x0b' | '\x0c' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

fn is_space(c: char) -> bool {
    c > '\x7f'
        && matches!(
            c,
            '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}'
        )
}

/// Without spaces at line ends, without blank lines at the edges, with two blank lines together at most; where that
/// changes anything. One line end at the end stays.
pub(super) fn tidied(text: &str, edges: Edges) -> Option<String> {
    if is_tidy(text, edges) {
        return None;
    }
    let mut new = String::with_capacity(text.len());
    let mut n_blank = 0;
    let mut lines = text.split('\n').enumerate().peekable();
    while let Some((i, line)) = lines.next() {
        let is_last = lines.peek().is_none();
        let line = if is_last && !edges.end {
            line
        } else {
            line.trim_end_matches([' ', '\t'])
        };
        let is_inner = i > 0 || edges.start;
        n_blank = if line.is_empty() && is_inner {
            n_blank + 1
        } else {
            0
        };
        let is_leading = edges.start && new.is_empty() && line.is_empty();
        // The last piece is blank where the text ends with a line end.
        if n_blank > MOST_BLANK && !is_last || is_leading {
            continue;
        }
        new.push_str(line);
        if !is_last {
            new.push('\n');
        }
    }
    if edges.end {
        let text = new.trim_end_matches('\n').len();
        let is_blank = edges.start && text == 0;
        new.truncate(if is_blank { 0 } else { new.len().min(text + 1) });
    }
    Some(new)
}

fn is_tidy(text: &str, edges: Edges) -> bool {
    let bytes = text.as_bytes();
    if edges.start && bytes.first() == Some(&b'\n') || edges.end && bytes.ends_with(b"\n\n") {
        return false;
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    if edges.end && bytes.last().is_some_and(is_blank) {
        return false;
    }
    let mut n_ends = 0;
    let mut next = 0;
    for (at, _) in text.match_indices('\n') {
        // `n_ends` line ends one after the other are one blank line fewer.
        n_ends = if at == next { n_ends + 1 } else { 1 };
        next = at + 1;
        if n_ends > MOST_BLANK + 1 || at > 0 && is_blank(&bytes[at - 1]) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_line_end_and_space_has_one_form() {
        for (text, expect) in [
            (
                "a\r\nb\rc\x0bd\x0ce\u{85}f\u{2028}g\u{2029}h",
                "a\nb\nc\nd\ne\nf\ng\nh",
            ),
            ("1\u{a0}000\u{202f}€\u{3000}x\u{2003}y", "1 000 € x y"),
        ] {
            assert_eq!(plain(text).as_deref(), Some(expect));
        }
        assert_eq!(plain("  code\t  stays\nas it is é"), None);
    }

    #[test]
    fn code_keeps_its_indentation_and_runs_of_spaces() {
        let code = "def f(x):\n    if x:\n\treturn  x   # why\n\n\n    y = 1\n";
        assert_eq!(tidied(code, Edges::BOTH), None);
        assert_eq!(tidied("    first\n  x", Edges::BOTH), None);
    }

    #[test]
    fn ends_of_lines_and_blank_lines_are_tidied() {
        for (text, expect) in [
            ("a  \nb\t\n", "a\nb\n"),
            ("a \t", "a"),
            ("\n \n  a", "  a"),
            ("a\n\n\n\nb", "a\n\n\nb"),
            ("a\n \n\t\n  \n\nb", "a\n\n\nb"),
            ("a\n\n\n", "a\n"),
            ("a\n  ", "a\n"),
            ("\n", ""),
            (" \n ", ""),
        ] {
            assert_eq!(
                tidied(text, Edges::BOTH).as_deref(),
                Some(expect),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_stands_between_prompt_and_completion_stays() {
        assert_eq!(tidied("Answer: ", Edges::START), None);
        assert_eq!(
            tidied("a \nAnswer:\n\n", Edges::START).as_deref(),
            Some("a\nAnswer:\n\n")
        );
        assert_eq!(tidied("\n\n yes", Edges::END), None);
        assert_eq!(
            tidied("\n\n yes \n\n", Edges::END).as_deref(),
            Some("\n\n yes\n")
        );
    }

    proptest! {
        #[test]
        fn tidying_twice_is_tidying_once_and_what_is_tidy_is_not_copied(text in "[a \t\n]{0,30}", which in 0..3) {
            let edges = [Edges::BOTH, Edges::START, Edges::END][which as usize];
            let once = tidied(&text, edges);
            if let Some(once) = &once {
                prop_assert_ne!(once, &text);
                prop_assert_eq!(tidied(once, edges), None);
            }
        }
    }
}
