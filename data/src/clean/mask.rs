//! E-mail addresses, telephone numbers and keys become `<EMAIL>`, `<PHONE>`, `<KEY>`.
//!
//! Telephone numbers are told by their form only: with a country code (`+49 30 1234567`), North American ones
//! (`(415) 555-2671`), and those with a leading zero and separators (`030 1234567`). What has no separators, or is the form
//! of a date, an IP address or an ISBN, is none.

use super::{Changes, Mended};
use crate::config::Mask;
use anyhow::Result;
use regex::Regex;

const EMAIL: &str =
    r"[0-9A-Za-z][0-9A-Za-z._%+\-]*@(?:[0-9A-Za-z](?:[0-9A-Za-z\-]*[0-9A-Za-z])?\.)+[A-Za-z]{2,24}";

const PHONE: &str = concat!(
    r"\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){1,6}",
    r"|(?:1[ .\-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .\-])[2-9]\d\d[ .\-]\d{4}",
    r"|\(?0[1-9]\d{0,3}\)?[ /\-]\d{2,8}(?:[ \-]\d{2,8}){0,4}",
);

const KEY: &str = concat!(
    r"(?:AKIA|ASIA)[0-9A-Z]{16}",                                // AWS
    r"|gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Z_a-z]{22,}", // GitHub
    r"|glpat-[0-9A-Za-z_\-]{20,}",                               // GitLab
    r"|sk-[0-9A-Za-z_\-]{20,}",                                  // OpenAI, Anthropic
    r"|[rs]k_(?:live|test)_[0-9A-Za-z]{16,}",                    // Stripe
    r"|xox[abeoprs]-[0-9A-Za-z\-]{10,}",                         // Slack
    r"|AIza[0-9A-Za-z_\-]{35}",                                  // Google
    r"|hf_[A-Za-z]{34}|npm_[0-9A-Za-z]{36}",                     // Hugging Face, npm
    r"|eyJ[0-9A-Za-z_\-]{10,}\.eyJ[0-9A-Za-z_\-]{10,}\.[0-9A-Za-z_\-]{10,}", // JSON web tokens
);

/// Endings of files that look like addresses: `icon@2x.png`.
const FILES: [&str; 14] = [
    "png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "html", "json", "pdf", "txt",
    "xml",
];

/// Compiled rules.
#[derive(Debug)]
pub(super) struct Masker {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    what: Mended,
    mask: &'static str,
    regex: Regex,
    /// Whether the text around (before, match, after) makes it one.
    accepts: fn(&str, &str, &str) -> bool,
}

impl Masker {
    pub(super) fn new(mask: Mask) -> Result<Self> {
        type Row = (
            bool,
            Mended,
            &'static str,
            &'static str,
            fn(&str, &str, &str) -> bool,
        );
        // Keys first: digits in them may look like telephone numbers.
        let rows: [Row; 3] = [
            (mask.keys, Mended::Keys, "<KEY>", KEY, is_key),
            (mask.email, Mended::Email, "<EMAIL>", EMAIL, is_email),
            (mask.phone, Mended::Phone, "<PHONE>", PHONE, is_phone),
        ];
        let rule = |(_, what, mask, regex, accepts): Row| {
            Ok(Rule {
                what,
                mask,
                regex: Regex::new(regex)?,
                accepts,
            })
        };
        let asked = rows.into_iter().filter(|row| row.0);
        Ok(Self {
            rules: asked.map(rule).collect::<Result<_>>()?,
        })
    }

    /// Masks what is asked for.
    pub(super) fn mask(&self, text: &mut String, changes: &mut Changes) {
        for rule in &self.rules {
            if rule.what == Mended::Email && !text.contains('@') {
                continue;
            }
            if rule.what == Mended::Keys
                && let Some(new) = without_private_keys(text, rule.mask)
            {
                *text = new;
                changes.add(rule.what);
            }
            if let Some(new) = rule.masked(text) {
                *text = new;
                changes.add(rule.what);
            }
        }
    }

    /// Changes what stands around masks.
    pub(super) fn around_masks(&self, text: &str, change: impl Fn(&str) -> String) -> String {
        let mut new = String::with_capacity(text.len());
        let mut rest = text;
        let next = |rest: &str| {
            let found = self
                .rules
                .iter()
                .filter_map(|rule| Some((rest.find(rule.mask)?, rule.mask)));
            found.min()
        };
        while let Some((at, mask)) = next(rest) {
            new.push_str(&change(&rest[..at]));
            new.push_str(mask);
            rest = &rest[at + mask.len()..];
        }
        new + &change(rest)
    }
}

impl Rule {
    fn masked(&self, text: &str) -> Option<String> {
        let mut new = String::new();
        let (mut done, mut from) = (0, 0);
        while let Some(found) = self.regex.find_at(text, from) {
            let (start, end) = (found.start(), found.end());
            if (self.accepts)(&text[..start], found.as_str(), &text[end..]) {
                new.push_str(&text[done..start]);
                new.push_str(self.mask);
                (done, from) = (end, end);
            } else {
                // Matches begin with an ASCII character. A match that is none may hide one that begins later, but not
                // within the same run of letters and digits, which all rules refuse to begin in.
                let run = found
                    .as_str()
                    .bytes()
                    .take_while(u8::is_ascii_alphanumeric)
                    .count();
                from = start + run.max(1);
            }
        }
        (done > 0).then(|| new + &text[done..])
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with private keys in PEM form (RFC 7468) masked, where it has any. One that is cut off ends at a blank line.
fn without_private_keys(text: &str, mask: &str) -> Option<String> {
    const BEGIN: &str = "-----BEGIN ";
    let mut new = String::new();
    let mut rest = text;
    let mut is_changed = false;
    while let Some(start) = rest.find(BEGIN) {
        let after = &rest[start + BEGIN.len()..];
        let label = after.split_once("-----").map_or("", |(label, _)| label);
        let is_key = label.len() < 40 && label.contains("PRIVATE KEY") && !label.contains('\n');
        new.push_str(&rest[..start]);
        if !is_key {
            new.push_str(BEGIN);
            rest = after;
            continue;
        }
        let end = format!("-----END {label}-----");
        let len = match after.find(&end) {
            Some(at) => at + end.len(),
            None => after.find("\n\n").unwrap_or(after.len()),
        };
        new.push_str(mask);
        rest = &after[len..];
        is_changed = true;
    }
    is_changed.then(|| new + rest)
}

fn is_key(before: &str, key: &str, after: &str) -> bool {
    let is_apart = |c: Option<char>| !c.is_some_and(is_word);
    if !is_apart(before.chars().next_back()) || !is_apart(after.chars().next()) {
        return false;
    }
    // `sk-` and `xox.-` begin class names too (`sk-estimator-doc-link`); keys are random letters and digits.
    let has = |of: fn(&u8) -> bool| key.bytes().skip(5).any(|byte| of(&byte));
    match key.as_bytes() {
        [b's', b'k', b'-', ..] => {
            !before.ends_with('-')
                && has(u8::is_ascii_digit)
                && has(u8::is_ascii_lowercase)
                && has(u8::is_ascii_uppercase)
        }
        [b'x', b'o', b'x', ..] => has(u8::is_ascii_digit),
        _ => true,
    }
}

fn is_email(before: &str, address: &str, after: &str) -> bool {
    let ending = address.rsplit('.').next().unwrap_or_default();
    let goes_on = |c: char| is_word(c) || c == '@';
    !before.chars().next_back().is_some_and(is_word)
        && !after.starts_with(goes_on)
        && !FILES.iter().any(|file| ending.eq_ignore_ascii_case(file))
}

fn is_phone(before: &str, number: &str, after: &str) -> bool {
    let is_inner =
        |c: char| is_word(c) || matches!(c, '-' | '.' | '/' | '#' | '+' | '$' | '€' | '£');
    if before.chars().next_back().is_some_and(is_inner) || goes_on(after) {
        return false;
    }
    let groups: Vec<&str> = number
        .split(|c: char| !c.is_ascii_digit())
        .filter(|group| !group.is_empty())
        .collect();
    let n_digits: usize = groups.iter().map(|group| group.len()).sum();
    let has = |c: char| number.contains(c);
    match number.trim_start_matches('(').as_bytes() {
        [b'+', ..] => {
            // Signed numbers: `+1.25 3.75`, `+12 345 678`.
            let fewest = if groups.len() == 1 { 10 } else { 9 };
            (fewest..=15).contains(&n_digits) && !(has('.') && has(' '))
        }
        [b'0', ..] => {
            let lens: Vec<usize> = groups.iter().map(|group| group.len()).collect();
            let is_date = lens.starts_with(&[2, 2, 4]);
            // Five pairs are a French number; other long rows of numbers are tables.
            let goes_before = before.trim_end().ends_with(|c: char| c.is_ascii_digit());
            let is_table = goes_before || lens.len() > 4 && lens != [2; 5];
            (9..=12).contains(&n_digits) && !is_date && !is_table
        }
        // Three numbers with spaces between them (`256 512 1024`) are a table as likely.
        _ => has('-') || has('.') || has('('),
    }
}

/// Whether the number goes on after the match: `-12`, `.5`, `:30`, a letter.
fn goes_on(after: &str) -> bool {
    let mut chars = after.chars();
    match chars.next() {
        Some('-' | '.' | '/' | ':' | ',') => chars.next().is_some_and(|c| c.is_ascii_digit()),
        Some(c) => is_word(c),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let all = Mask {
            email: true,
            phone: true,
            keys: true,
        };
        let mut text = text.to_owned();
        let mut changes = Changes::default();
        let before = text.clone();
        Masker::new(all).unwrap().mask(&mut text, &mut changes);
        assert_eq!(changes.is_empty(), before == text);
        text
    }

    #[test]
    fn addresses_are_masked() {
        for (text, expect) in [
            ("Mail jane.doe+x@mail.example.co.uk.", "Mail <EMAIL>."),
            ("<a_b@example.org>, c@d-e.de", "<<EMAIL>>, <EMAIL>"),
            (
                "mailto:info@example.com?subject=x",
                "mailto:<EMAIL>?subject=x",
            ),
        ] {
            assert_eq!(masked(text), expect);
        }
        for text in [
            "icon@2x.png",
            "@decorator.name",
            "a @ b.com",
            "user@localhost",
            "foo@1.2.3",
            "x@y.c",
            "f@@g.com",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn telephone_numbers_are_masked() {
        for text in [
            "+1 415 555 2671",
            "+14155552671",
            "+49 (0)30 123456-78",
            "+44 20 7946 0958",
            "(415) 555-2671",
            "415-555-2671",
            "415.555.2671",
            "1-800-555-0199",
            "030 12345678",
            "0171/1234567",
            "01 42 68 53 00",
            "(030) 1234567",
            "020-7946-0958",
            "0123 456789",
            "+33 1 42 68 53 00",
        ] {
            assert_eq!(masked(text), "<PHONE>", "{text}");
            assert_eq!(masked(&format!("call {text}, or")), "call <PHONE>, or");
            assert_eq!(masked(&format!("tel:{text}.")), "tel:<PHONE>.");
        }
    }

    #[test]
    fn other_numbers_are_no_telephone_numbers() {
        for text in [
            "2023-09-01",
            "01-02-2023",
            "01/02/2023 1030",
            "01.02.2023",
            "2023-09-01 08-15-30",
            "12:30:45",
            "2024-01-02T03:04:05+0100",
            "192.168.100.100",
            "10.0.0.1:8080",
            "212.200.200.123",
            "978-3-16-148410-0",
            "ISBN 0-306-40615-2",
            "ISBN 0 19 853453 1",
            "9783161484100",
            "0306406152",
            "1234567890",
            "12345678901234567890",
            "256 512 1024",
            "200 300 4000",
            "4111 1111 1111 1111",
            "3.14159265358979",
            "1,234,567,890",
            "+12.5 +13.25",
            "+1.25 3.75 2.25 4.5",
            "+12 345 678",
            "123-45-6789",
            "v1.415.555.2671",
            "00 01 02 03 04",
            "01 02 03 04 05 06 07",
            "415-555-2671-88",
            "a0171-1234567",
            "x = 0x0171 1234567",
            "$415.555.2671",
            "550e8400-e29b-41d4-a716-446655440000",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    /// Put together here, so that no scanner takes this file for a leak.
    #[test]
    fn keys_are_masked() {
        let (a36, random) = (
            "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
            "T3BlbkFJabcDEF123456xyz",
        );
        for key in [
            format!("AKIA{}", "IOSFODNN7EXAMPLE"),
            format!("ghp_{a36}"),
            format!("github_pat_{a36}_{a36}"),
            format!("sk-{random}"),
            format!("sk-ant-api03-{random}-{random}"),
            format!("sk-proj-{random}"),
            format!("xoxb-{}", "123456789012-abcdefABCDEF"),
            format!("AIza{}", &a36[1..]),
            format!("hf_{}", "abcdefghijklmnopqrstuvwxyzABCDEFGH"),
            format!("sk_live_{random}"),
            format!("eyJ{random}.eyJ{random}.{random}"),
        ] {
            assert_eq!(
                masked(&format!("key = \"{key}\";")),
                "key = \"<KEY>\";",
                "{key}"
            );
        }
        for text in [
            "sk-estimator-doc-link-fitted-and-more",
            "AKIAIOSFODNN7EXAMPLEX7",
            "ghp_short",
            "eyJust a word",
            "task-T3BlbkFJabcDEF123456xyz",
            "xoxo-kisses-and-hugs",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn private_keys_are_masked_whole_and_public_ones_stay() {
        let pem =
            |label: &str| format!("-----BEGIN {label}-----\nMIIB\nAbc=\n-----END {label}-----");
        for label in [
            "PRIVATE KEY",
            "RSA PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
            "PGP PRIVATE KEY BLOCK",
        ] {
            assert_eq!(masked(&format!("a\n{}\nb", pem(label))), "a\n<KEY>\nb");
        }
        let cut = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n\nText.";
        assert_eq!(masked(cut), "<KEY>\n\nText.");
        for label in ["PUBLIC KEY", "CERTIFICATE"] {
            assert_eq!(masked(&pem(label)), pem(label));
        }
    }
}
