//! One TOML file describes how data is prepared. Each step has a table; a step that is off costs nothing.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// How data is prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the shards are written: a folder of their own.
    pub out: PathBuf,
    /// Whose tokenizer and chat template: a model (as for `train`) or a `tokenizer.json`.
    pub tokenizer: String,
    /// Tokens in a row at most.
    #[serde(default = "default_context")]
    pub context: usize,
    /// Changes which documents go to which split.
    #[serde(default)]
    pub seed: u64,
    /// Threads; 0 takes all cores. Never changes the result.
    #[serde(default)]
    pub threads: usize,
    /// Count documents that cannot be read or parsed, and go on, instead of ending at the first.
    #[serde(default)]
    pub skip_bad: bool,
    /// Where documents come from.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
    /// What is mended and filtered.
    #[serde(default)]
    pub clean: CleanConfig,
    /// What counts as the same.
    #[serde(default)]
    pub dedupe: DedupeConfig,
    /// What is held out.
    #[serde(default)]
    pub split: SplitConfig,
    /// How rows are made.
    #[serde(default)]
    pub pack: PackConfig,
}

fn default_context() -> usize {
    512
}

/// One place where documents come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A file, a folder (all files of known endings in it and below it), a glob (`**` too), `-` for standard input, or an
    /// `http(s)://` address. Each may be compressed (gzip, zstd) or an archive (zip, tar); hidden files are left out.
    pub path: String,
    /// What its files are; told from their names and first bytes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Which columns or keys hold what; found by their usual names when absent.
    #[serde(default)]
    pub fields: Fields,
    /// The split of all its documents, when they are not to be divided by hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// Name in the report; the path when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Source {
    /// All that is found at `path`, by usual names.
    pub fn of(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..Self::default()
        }
    }
}

/// What a file is, once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One document.
    Txt,
    /// One document, kept as it is but for front matter.
    Md,
    /// One document: the text of the page.
    Html,
    /// A document a line.
    Jsonl,
    /// An array of documents, or an object with one.
    Json,
    /// A document a record, with a header.
    Csv,
    /// The same with tabs.
    Tsv,
    /// A document a row.
    Parquet,
}

/// Names of columns or keys. Either `text`, or `prompt` and `completion`, or `messages`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// Plain text. Default: `text`, else `content`, `body`, `document`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What is asked. Default: `prompt`, `question`, `instruction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// More of it, put below the prompt when it is not empty. Default: `input` (alpaca), `context`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// What is to be learnt. Default: `completion`, `answer`, `output`, `response`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// A conversation (OpenAI's or `ShareGPT`'s form; in a table, as JSON in a string). Default: `messages`, `conversations`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Prompt and completion become a conversation of two messages, rendered by the chat template, or stay as they are.
    /// Default: a conversation, where the tokenizer has a chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat: Option<bool>,
}

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To learn from.
    Train,
    /// To steer by.
    Valid,
    /// To be looked at last.
    Test,
}

impl Split {
    /// The split of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Train, Self::Valid, Self::Test]
            .into_iter()
            .find(|split| split.name() == name)
    }

    /// `train`, `valid` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// What is mended and filtered, in this order but for two steps: normal forms follow the control characters (characters that
/// one parted may compose), and masks come before `lowercase`, which leaves them as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of a file, each with a name there"
)]
pub struct CleanConfig {
    /// Unicode normalisation.
    pub unicode: Unicode,
    /// Take out control characters, byte order marks and zero-width characters but the joiners that scripts need.
    pub control: bool,
    /// `\r\n` to `\n`, other spaces to a space, spaces at line ends off, more than two blank lines to two.
    pub whitespace: bool,
    /// All letters small.
    pub lowercase: bool,
    /// Nothing but letters, digits, spaces and common punctuation.
    pub strip_symbols: bool,
    /// Replace e-mail addresses, telephone numbers and keys by `<EMAIL>`, `<PHONE>`, `<KEY>`.
    pub mask: Mask,
    /// Take out lines of plain texts that stand in so many of them or more; 0 is off.
    pub boilerplate_docs: u32,
    /// Fewest and most characters of a document; 0 is no limit.
    pub min_chars: usize,
    /// See `min_chars`.
    pub max_chars: usize,
    /// The quality rules of Gopher (Rae et al., 2021, table A1) for prose.
    pub gopher: bool,
    /// Keep documents in these languages only (ISO 639-3: `eng`, `deu`); empty keeps all.
    pub languages: Vec<String>,
    /// How sure the detection must be before a document is dropped for its language.
    pub language_confidence: f64,
}

impl Default for CleanConfig {
    fn default() -> Self {
        Self {
            unicode: Unicode::Nfc,
            control: true,
            whitespace: true,
            lowercase: false,
            strip_symbols: false,
            mask: Mask::default(),
            boilerplate_docs: 0,
            min_chars: 1,
            max_chars: 0,
            gopher: false,
            languages: Vec::new(),
            language_confidence: 0.8,
        }
    }
}

/// Unicode normalisation forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unicode {
    /// As it is.
    Off,
    /// Composed.
    Nfc,
    /// Composed, and compatibility characters replaced (ligatures, full-width letters, superscripts).
    Nfkc,
}

/// What is masked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mask {
    /// E-mail addresses.
    pub email: bool,
    /// Telephone numbers.
    pub phone: bool,
    /// Keys and tokens of well-known services, and private keys.
    pub keys: bool,
}

/// What counts as the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DedupeConfig {
    /// Keep one of the documents that are equal but for case, spaces and punctuation.
    pub exact: bool,
    /// Keep one of each group of documents that are joined by a similarity of `threshold` or more.
    pub near: bool,
    /// Jaccard similarity of the sets of `ngram` words.
    pub threshold: f64,
    /// Words in a shingle; a shorter document is one shingle.
    pub ngram: usize,
    /// Drop training documents that share a run of so many words with a held-out one; 0 is off.
    pub leak_ngram: usize,
    /// Files whose texts must not be trained on (any format that a source may have), by the same rule.
    pub decontaminate: Vec<String>,
}

impl Default for DedupeConfig {
    fn default() -> Self {
        Self {
            exact: true,
            near: false,
            threshold: 0.8,
            ngram: 5,
            leak_ngram: 13,
            decontaminate: Vec::new(),
        }
    }
}

impl DedupeConfig {
    /// The files to be kept out, as sources.
    pub fn outside(&self) -> Vec<Source> {
        let paths = self.decontaminate.iter();
        paths.map(|path| Source::of(path)).collect()
    }
}

/// What is held out, as shares of all documents, chosen by each document's hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitConfig {
    /// Share for validation.
    pub valid: f64,
    /// Share for the test.
    pub test: f64,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self {
            valid: 0.05,
            test: 0.0,
        }
    }
}

/// How rows are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackConfig {
    /// What a row may hold.
    pub mode: PackMode,
    /// Tokens in a shard.
    pub shard_tokens: usize,
}

impl Default for PackConfig {
    fn default() -> Self {
        Self {
            mode: PackMode::Segments,
            shard_tokens: 1 << 26,
        }
    }
}

/// What a row may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackMode {
    /// Several documents, which do not see each other. Conversations and completions are placed whole (best fit).
    Segments,
    /// Documents one after the other, with the end token between them, in which attention runs on (GPT-2's way).
    Concat,
    /// One document, or a window of it.
    One,
}

/// Counts by name, in the order of names.
pub type Counts = BTreeMap<String, u64>;
