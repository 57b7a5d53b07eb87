//! What is mended in a document, and which documents are left out.
//!
//! [`Cleaner::mend`] changes texts, [`Cleaner::judge`] says which stay; between them stands, where it is asked for,
//! [`Cleaner::fix_lines`], which needs to have seen all documents ([`boilerplate`]). All three look at one document and can
//! be called from several threads. A text with nothing to mend is read a few times and not copied.

pub mod boilerplate;

mod characters;
mod gopher;
mod language;
mod mask;
mod whitespace;

use crate::{
    config::{CleanConfig, Unicode},
    document::Body,
};
use anyhow::{Result, ensure};
use boilerplate::Lines;
use language::Languages;
use mask::Masker;
use std::borrow::Cow;
use whitespace::Edges;

/// Mends and judges documents by one config.
#[derive(Debug)]
pub struct Cleaner {
    config: CleanConfig,
    masker: Masker,
    languages: Languages,
}

/// What was mended in a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes(u16);

/// One thing that is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mended {
    /// Characters brought to a normal form.
    Unicode,
    /// Control characters taken out.
    Control,
    /// Line ends and spaces.
    Whitespace,
    /// E-mail addresses masked.
    Email,
    /// Telephone numbers masked.
    Phone,
    /// Keys masked.
    Keys,
    /// Capitals made small.
    Lowercase,
    /// Symbols taken out.
    Symbols,
}

impl Mended {
    /// All, with their names in the config.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Unicode, "unicode"),
        (Self::Control, "control"),
        (Self::Whitespace, "whitespace"),
        (Self::Email, "mask.email"),
        (Self::Phone, "mask.phone"),
        (Self::Keys, "mask.keys"),
        (Self::Lowercase, "lowercase"),
        (Self::Symbols, "strip_symbols"),
    ];
}

impl Changes {
    /// Whether nothing was.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this was.
    pub fn has(self, what: Mended) -> bool {
        self.0 >> what as u8 & 1 == 1
    }

    /// The names of what was.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let was = move |(what, name)| self.has(what).then_some(name);
        Mended::ALL.into_iter().filter_map(was)
    }

    fn add(&mut self, what: Mended) {
        self.0 |= 1 << what as u8;
    }
}

/// Whether a document stays. `language` is the ISO 639-3 code where languages are asked for and one was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It stays.
    Keep {
        /// See above.
        language: Option<&'static str>,
    },
    /// It goes.
    Drop {
        /// Which rule says so.
        step: &'static str,
        /// A sentence with the number that decided.
        why: String,
        /// See above.
        language: Option<&'static str>,
    },
}

impl Cleaner {
    /// For a config.
    ///
    /// # Errors
    /// With the setting that makes no sense: an unknown language and the nearest known one, limits that contradict.
    pub fn new(config: &CleanConfig) -> Result<Self> {
        ensure!(
            config.max_chars == 0 || config.min_chars <= config.max_chars,
            "clean.min_chars is {} and clean.max_chars {}, between which no document is",
            config.min_chars,
            config.max_chars
        );
        ensure!(
            (0.0..=1.0).contains(&config.language_confidence),
            "clean.language_confidence is {}; it is from 0 to 1",
            config.language_confidence
        );
        Ok(Self {
            masker: Masker::new(config.mask)?,
            languages: Languages::new(&config.languages, config.language_confidence)?,
            config: config.clone(),
        })
    }

    /// Mends the texts in place.
    pub fn mend(&self, body: &mut Body) -> Changes {
        let mut changes = Changes::default();
        for (edges, text) in edged(body) {
            self.mend_text(text, edges, &mut changes);
        }
        changes
    }

    fn mend_text(&self, text: &mut String, edges: Edges, changes: &mut Changes) {
        let mut put = |text: &mut String, new: Option<String>, what: Mended| {
            if let Some(new) = new {
                *text = new;
                changes.add(what);
            }
        };
        let config = &self.config;
        let class = characters::classes(text);
        // Line ends first: some are control characters.
        if config.whitespace && class.has(characters::NOT_ASCII | characters::LINE_FORM) {
            put(text, whitespace::plain(text), Mended::Whitespace);
        }
        if config.control
            && class.has(characters::NOT_ASCII | characters::LINE_FORM | characters::CONTROL)
        {
            put(text, characters::without_control(text), Mended::Control);
        }
        // After them: what stood apart may compose now.
        if class.has(characters::NOT_ASCII) && config.unicode != Unicode::Off {
            put(
                text,
                characters::normalized(text, config.unicode),
                Mended::Unicode,
            );
        }
        if config.whitespace {
            put(text, whitespace::tidied(text, edges), Mended::Whitespace);
        }
        self.masker.mask(text, changes);
        if config.lowercase && class.has(characters::NOT_ASCII | characters::CAPITAL) {
            self.change_unmasked(text, Mended::Lowercase, changes, |piece| {
                piece.to_lowercase()
            });
        }
        if config.strip_symbols {
            self.change_unmasked(text, Mended::Symbols, changes, characters::without_symbols);
        }
    }

    fn change_unmasked(
        &self,
        text: &mut String,
        what: Mended,
        changes: &mut Changes,
        change: impl Fn(&str) -> String,
    ) {
        let new = self.masker.around_masks(text, change);
        if new != *text {
            *text = new;
            changes.add(what);
        }
    }

    /// Takes out the lines that stand in many documents; returns how many it took out.
    pub fn fix_lines(&self, body: &mut Body, lines: &Lines) -> u64 {
        let mut n_taken = 0;
        for (edges, text) in edged(body) {
            let (mut new, n) = lines.taken_from(text);
            if n == 0 {
                continue;
            }
            n_taken += n;
            if self.config.whitespace {
                // Blank lines around what is gone come together.
                new = whitespace::tidied(&new, edges).unwrap_or(new);
            }
            *text = new;
        }
        n_taken
    }

    /// Whether the document stays. Comes after all mending.
    pub fn judge(&self, body: &Body) -> Judgement {
        let language = self.languages.detect(body);
        let code = language.map(|(code, _)| code);
        let reason = (self.judge_length(body))
            .or_else(|| self.languages.judge(language))
            .or_else(|| self.config.gopher.then(|| gopher::judge(&joined(body)))?);
        match reason {
            None => Judgement::Keep { language: code },
            Some((step, why)) => Judgement::Drop {
                step,
                why,
                language: code,
            },
        }
    }

    fn judge_length(&self, body: &Body) -> Option<Reason> {
        let (min, max) = (self.config.min_chars, self.config.max_chars);
        if min == 0 && max == 0 {
            return None;
        }
        let n: usize = body.parts().iter().map(|part| part.chars().count()).sum();
        if n < min {
            return Some(("min_chars", format!("{n} characters are fewer than {min}")));
        }
        (max > 0 && n > max).then(|| ("max_chars", format!("{n} characters are more than {max}")))
    }
}

/// The ISO 639-3 code of a document's language, where one can tell it from its beginning.
pub fn language(body: &Body) -> Option<&'static str> {
    language::detect(body).map(|(code, _)| code)
}

/// The texts of a body with their edges. What stands between a prompt and its completion is no edge: it is learnt.
fn edged(body: &mut Body) -> impl Iterator<Item = (Edges, &mut String)> {
    let edges = match body {
        Body::Completion { .. } => [Edges::START, Edges::END],
        Body::Text(_) | Body::Chat(_) => [Edges::BOTH; 2],
    };
    edges.into_iter().cycle().zip(body.parts_mut())
}

/// The rule that drops a document, and a sentence.
type Reason = (&'static str, String);

/// All texts of a body, each on lines of its own.
fn joined(body: &Body) -> Cow<'_, str> {
    match body {
        Body::Text(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.parts().join("\n")),
    }
}

#[cfg(test)]
mod tests;
