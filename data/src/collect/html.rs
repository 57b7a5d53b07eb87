//! The text of a page, from its tags as the HTML standard splits them (html5ever's tokenizer).
//!
//! No tree is built, so that neither depth nor length of a hostile page costs more than its bytes. Links keep their text
//! alone, lines are not wrapped, and what is not shown (scripts, styles, the head) or not said (controls) is left out.

use html5ever::{
    buffer_queue::BufferQueue,
    tendril::StrTendril,
    tokenizer::{
        Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
        states::RawKind::{Rawtext, Rcdata, ScriptData},
    },
};
use std::{cell::RefCell, mem};

/// Deeper lists are not indented further.
const MOST_INDENTS: usize = 8;

/// What a reader of the page sees, with an empty line between paragraphs.
pub(super) fn to_text(html: &str) -> String {
    let tokenizer = Tokenizer::new(Sink::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    let mut text = tokenizer.sink.0.into_inner().text;
    text.truncate(text.trim_end().len());
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

#[derive(Default)]
struct Sink(RefCell<Page>);

/// The text so far, and what must stand before more of it.
#[derive(Default)]
struct Page {
    text: String,
    n_breaks: usize,
    space: bool,
    prefix: String,
    /// Depth in elements that are left out, and in preformatted ones.
    hidden: usize,
    pre: usize,
    pre_begins: bool,
    /// The number of the next item of each open list; none where they are not numbered.
    lists: Vec<Option<u32>>,
    row_begun: bool,
}

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut page = self.0.borrow_mut();
        match token {
            Token::CharacterTokens(text) => page.text(&text),
            Token::TagToken(tag) => {
                let name: &str = &tag.name;
                let begins = tag.kind == TagKind::StartTag;
                page.tag(&tag, name, begins);
                if begins {
                    return content_model(name);
                }
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// Elements whose content has no tags in it.
fn content_model(name: &str) -> TokenSinkResult<()> {
    match name {
        "script" => TokenSinkResult::RawData(ScriptData),
        "style" | "xmp" | "iframe" | "noembed" | "noframes" => TokenSinkResult::RawData(Rawtext),
        "title" | "textarea" => TokenSinkResult::RawData(Rcdata),
        "plaintext" => TokenSinkResult::Plaintext,
        _ => TokenSinkResult::Continue,
    }
}

impl Page {
    fn tag(&mut self, tag: &Tag, name: &str, begins: bool) {
        match name {
            "script" | "style" | "iframe" | "noembed" | "noframes" | "title" | "textarea"
            | "head" | "noscript" | "template" | "svg" | "object" | "canvas" | "select"
            | "button" | "audio" | "video" => {
                // Only foreign elements close themselves.
                if begins && !(tag.self_closing && name == "svg") {
                    self.hidden += 1;
                } else if !begins {
                    self.hidden = self.hidden.saturating_sub(1);
                }
            }
            // Ends a head that was not closed.
            "body" if begins => self.hidden = 0,
            "br" => self.n_breaks = (self.n_breaks + 1).min(2),
            "p" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "blockquote" | "table" | "hr"
            | "dl" | "section" | "article" | "figure" => self.block(2),
            "pre" => self.preformatted(begins),
            "ul" | "ol" => self.list(name, begins),
            "li" => self.item(begins),
            "tr" => {
                self.block(1);
                self.row_begun = false;
            }
            "td" | "th" if begins => self.cell(),
            "div" | "main" | "header" | "footer" | "nav" | "aside" | "address" | "form"
            | "fieldset" | "details" | "summary" | "dt" | "dd" | "caption" | "figcaption"
            | "option" | "body" => self.block(1),
            _ => {}
        }
    }

    fn block(&mut self, n_breaks: usize) {
        self.n_breaks = self.n_breaks.max(n_breaks);
        self.space = false;
    }

    fn preformatted(&mut self, begins: bool) {
        self.block(2);
        self.pre_begins = begins;
        if begins {
            self.pre += 1;
        } else {
            self.pre = self.pre.saturating_sub(1);
            self.text.truncate(self.text.trim_end().len());
        }
    }

    fn list(&mut self, name: &str, begins: bool) {
        if !begins {
            self.lists.pop();
        }
        self.block(if self.lists.is_empty() { 2 } else { 1 });
        if begins {
            self.lists.push((name == "ol").then_some(1));
        }
    }

    fn item(&mut self, begins: bool) {
        self.block(1);
        self.prefix.clear();
        if !begins {
            return;
        }
        let depth = self.lists.len().saturating_sub(1).min(MOST_INDENTS);
        self.prefix = "  ".repeat(depth);
        match self.lists.last_mut() {
            Some(Some(n)) => {
                self.prefix.push_str(&format!("{n}. "));
                *n = n.saturating_add(1);
            }
            _ => self.prefix.push_str("- "),
        }
    }

    fn cell(&mut self) {
        self.space = false;
        if mem::replace(&mut self.row_begun, true) {
            self.n_breaks = 0;
            " | ".clone_into(&mut self.prefix);
        }
    }

    fn text(&mut self, text: &str) {
        if self.hidden > 0 {
            return;
        }
        if self.pre > 0 {
            self.verbatim(text);
            return;
        }
        for word in text.split_inclusive(|c: char| c.is_ascii_whitespace()) {
            let shown = word.trim_ascii_end();
            if !shown.is_empty() {
                self.before_text();
                self.text.push_str(shown);
            }
            self.space |= shown.len() < word.len();
        }
    }

    fn verbatim(&mut self, mut text: &str) {
        if mem::take(&mut self.pre_begins) {
            // The line break right after `<pre>` is not shown.
            text = text.strip_prefix('\n').unwrap_or(text);
        }
        if !text.is_empty() {
            self.before_text();
            self.text.push_str(text);
        }
    }

    /// Puts the breaks, the item's mark or the space that are due.
    fn before_text(&mut self) {
        let n_breaks = mem::take(&mut self.n_breaks);
        let space = mem::take(&mut self.space);
        if n_breaks > 0 && !self.text.is_empty() {
            self.text.extend(std::iter::repeat_n('\n', n_breaks));
        } else if space
            && self.prefix.is_empty()
            && !self.text.ends_with(['\n', ' '])
            && !self.text.is_empty()
        {
            self.text.push(' ');
        }
        self.text.push_str(&self.prefix);
        self.prefix.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(html: &str, expected: &str) {
        assert_eq!(to_text(html), expected, "{html}");
    }

    #[test]
    fn headings_paragraphs_and_inline_elements() {
        let long = "word ".repeat(100);
        check(
            &format!(
                "<!doctype html><html><head><title>T</title><style>p{{}}</style></head><body><h1>A  <em>b</em></h1>\n<p>{long}</p><p>c&amp;d <a href='x'>link</a>,<br>e</body>"
            ),
            &format!("A b\n\n{}\n\nc&d link,\ne\n", long.trim()),
        );
        check("<p>one<b>two</b> <i> three</i>", "onetwo three\n");
        check("a<!-- b --><script>if (a < b) '</p>'</script>c", "ac\n");
        check("", "");
    }

    #[test]
    fn lists_tables_and_preformatted_text() {
        check(
            "<p>x</p><ul><li>a<li>b<ol><li>c</li><li>d</li></ol></li></ul>y",
            "x\n\n- a\n- b\n  1. c\n  2. d\n\ny\n",
        );
        check(
            "<table><tr><th>a</th> <th>b</th></tr><tr><td>1</td><td>2</td></tr></table>",
            "a | b\n1 | 2\n",
        );
        check(
            "x<pre>\nfn a() {\n    b\n}\n</pre>y",
            "x\n\nfn a() {\n    b\n}\n\ny\n",
        );
    }

    #[test]
    fn a_hostile_page_costs_no_more_than_its_bytes() {
        let text = to_text(&"<ul><li>a".repeat(20_000));
        assert_eq!(text.matches("- a").count(), 20_000);
        assert_eq!(to_text(&"<div><b>".repeat(100_000)), "");
        check("<script>never closed <p>a", "");
        check("</ul></pre></script>a</li>", "a\n");
    }
}
