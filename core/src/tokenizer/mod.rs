//! Text to token ids and back, the same on every target.
//!
//! A [`Tokenizer`] comes out of `tokenizer.huggingface.json` in the GGUF metadata, or else is rebuilt from
//! `tokenizer.ggml.*`. Ids equal those of the Hugging Face `tokenizers` library, which the fixtures under
//! `tests/fixtures/tokenizer` hold to for every Unicode character; a component that we do not run is an error that
//! names it. The way of a text: added tokens are cut out ([`added`]), the rest is rewritten ([`normalize`]), cut into
//! words ([`pretokenize`]) and merged ([`bpe`]).

mod added;
mod bpe;
mod byte_level;
mod ggml;
mod hf;
mod hf_write;
mod normal_forms;
mod normalize;
mod pretokenize;
mod stream;
mod unicode;
mod unicode_table;
mod vocab;

pub use stream::StreamDecoder;

use crate::gguf::Metadata;
use added::{AddedToken, Matcher, Segment, segments};
use bpe::{Merges, Scratch};
use normalize::{Metaspace, Normalize, normalize};
use pretokenize::{Step, split};
use std::{collections::BTreeMap, sync::Arc};
use vocab::{Arena, Kind, Vocab};

/// A byte-level BPE (GPT-2, SmolLM, Llama 3) or SentencePiece-style BPE (Llama 2) tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    def: Definition,
    /// Finds the added tokens that are not normalised.
    raw_matcher: Matcher,
    /// Finds the others, in the normalised text.
    normalized_matcher: Matcher,
    /// What each token stands for; empty for special ones.
    bytes: Arena,
    /// Added tokens that the normalizer rewrites; they are decoded as rewritten.
    rewritten: BTreeMap<u32, String>,
    /// Ids that end a generation, sorted.
    ends: Vec<u32>,
}

/// What the file says; the rest follows from it.
#[derive(Debug, Clone)]
struct Definition {
    vocab: Vocab,
    /// One a token.
    kinds: Vec<Kind>,
    merges: Merges,
    alphabet: Alphabet,
    /// A word that is a token as a whole is not merged (Llama 3).
    ignore_merges: bool,
    normalizer: Vec<Normalize>,
    metaspace: Option<Metaspace>,
    steps: Vec<Step>,
    added: Vec<AddedToken>,
    /// Whether decoding takes away the space that encoding put before the text (Llama 2).
    strip_leading_space: bool,
    special: SpecialIds,
    adds_bos: bool,
    /// Score of each token where the file has them (SentencePiece).
    scores: Vec<f32>,
    /// The `tokenizer.json` that this was read from.
    hf_json: Option<Arc<str>>,
}

/// How words become the first symbols.
#[derive(Debug, Clone)]
enum Alphabet {
    /// One token a byte, [`NONE`] where the vocabulary has none.
    Bytes(Box<[u32; 256]>, Unknown),
    /// One token a character; characters that the vocabulary lacks fall back to the tokens of their bytes.
    Chars(Box<[u32; 256]>, Unknown),
}

/// What stands for a symbol that the vocabulary lacks; without a token it is dropped.
#[derive(Debug, Clone, Copy, Default)]
struct Unknown {
    id: Option<u32>,
    /// One token for a run of them.
    fuse: bool,
}

const NONE: u32 = u32::MAX;

/// Ids with a role of their own.
#[derive(Debug, Clone, Default)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

/// Control tokens of these texts end a generation in every family that has them.
const END_TEXTS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
];

impl From<Definition> for Tokenizer {
    fn from(def: Definition) -> Self {
        let of = |normalized| {
            def.added
                .iter()
                .enumerate()
                .filter(move |(_, token)| token.normalized == normalized)
        };
        let raw_matcher =
            Matcher::new(of(false).map(|(i, token)| (token.content.as_str().into(), i)));
        let normalized_matcher = Matcher::new(
            of(true).map(|(i, token)| (normalize(&def.normalizer, &token.content), i)),
        );
        let rewritten: BTreeMap<u32, String> = of(true)
            .map(|(_, token)| {
                (
                    token.id,
                    normalize(&def.normalizer, &token.content),
                    &token.content,
                )
            })
            .filter(|(_, text, content)| text != *content)
            .map(|(id, text, _)| (id, text.into_owned()))
            .collect();
        let mut bytes = Arena::default();
        let mut buffer = Vec::new();
        let SpecialIds { eos, eot, eom, .. } = def.special;
        let mut ends: Vec<u32> = [eos, eot, eom].into_iter().flatten().collect();
        for (id, &kind) in def.kinds.iter().enumerate() {
            let text = def.vocab.text(id as u32).unwrap_or_default();
            let shown = rewritten.get(&(id as u32)).map_or(text, String::as_str);
            buffer.clear();
            match kind {
                Kind::Control if END_TEXTS.contains(&text) => ends.push(id as u32),
                Kind::Control | Kind::Unknown | Kind::Unused => {}
                _ => def.alphabet.decode_into(shown, &mut buffer),
            }
            bytes.push(&buffer);
        }
        ends.sort_unstable();
        ends.dedup();
        Self {
            def,
            raw_matcher,
            normalized_matcher,
            bytes,
            rewritten,
            ends,
        }
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// When there is none, or it is of a kind we do not run.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        ggml::read(metadata)
    }
    /// Reads a Hugging Face `tokenizer.json`; special tokens may be completed by `tokenizer_config.json`.
    ///
    /// # Errors
    /// When it is no JSON of this kind, or uses a component we do not run (named).
    pub fn from_hf_json(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
    ) -> Result<Self, TokenizerError> {
        hf::read(tokenizer_json, tokenizer_config_json)
    }
    /// The `tokenizer.*` keys to write to a GGUF file, such that both llama.cpp and we read it back.
    pub fn to_metadata(&self) -> Metadata {
        self.to_metadata_with_rows(self.vocab_size())
    }
    /// The same for an embedding of more rows than there are tokens: llama.cpp wants as many tokens as rows, so unused
    /// ones are added to its list.
    pub fn to_metadata_with_rows(&self, n_rows: usize) -> Metadata {
        ggml::write(&self.def, n_rows)
    }
    /// The Hugging Face `tokenizer.json`: the one this was read from, or else one that means the same.
    pub fn to_hf_json(&self) -> String {
        hf_write::json(&self.def)
    }
    /// Ids of `text`. Special tokens such as `<|im_start|>` in the text become their ids when `parse_special`;
    /// BOS is added when `add_bos`.
    pub fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.def.special.bos.filter(|_| add_bos));
        let mut scratch = Scratch::default();
        segments(
            &self.raw_matcher,
            &self.def.added,
            text,
            parse_special,
            &mut |segment| match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(stretch) => {
                    let at_start = std::ptr::eq(stretch.as_ptr(), text.as_ptr());
                    self.encode_stretch(stretch, at_start, parse_special, &mut scratch, &mut ids);
                }
            },
        );
        ids
    }
    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD, special tokens are left out when `skip_special`,
    /// and so are unknown ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoder = StreamDecoder::default();
        let mut text = String::new();
        let mut special = Vec::new();
        for &id in ids {
            let kind = self.def.kinds.get(id as usize);
            let bytes = if !skip_special && matches!(kind, Some(Kind::Control | Kind::Unknown)) {
                special.clear();
                let shown = self
                    .rewritten
                    .get(&id)
                    .map(String::as_str)
                    .or(self.token_text(id));
                self.def
                    .alphabet
                    .decode_into(shown.unwrap_or_default(), &mut special);
                &special
            } else {
                self.token_bytes(id)
            };
            text.push_str(&decoder.push_bytes(self, bytes));
        }
        text.push_str(&decoder.finish());
        text
    }
    /// The bytes that a token stands for (empty for special tokens and unknown ids).
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).unwrap_or_default()
    }
    /// A token as the vocabulary spells it: `Ġthe`, `<|im_end|>`.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.def.vocab.text(id)
    }
    /// The id of a token by its text, special tokens included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.def.vocab.id(token.as_bytes())
    }
    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.def.vocab.len()
    }
    /// Begin-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.def.special.bos
    }
    /// End-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.def.special.eos
    }
    /// Whether this token ends a generation (EOS, end of turn: `<|im_end|>`, `<|eot_id|>`, `<|endoftext|>`).
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }
    /// Whether the model wants BOS before a text (`tokenizer.ggml.add_bos_token`).
    pub fn adds_bos(&self) -> bool {
        self.def.adds_bos
    }

    fn strips_leading_space(&self) -> bool {
        self.def.strip_leading_space
    }

    fn encode_stretch(
        &self,
        text: &str,
        at_start: bool,
        parse_special: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let text = normalize(&self.def.normalizer, text);
        segments(
            &self.normalized_matcher,
            &self.def.added,
            &text,
            parse_special,
            &mut |segment| match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(stretch) => {
                    let at_start = at_start && std::ptr::eq(stretch.as_ptr(), text.as_ptr());
                    let marked = self
                        .def
                        .metaspace
                        .map(|metaspace| metaspace.apply(stretch, at_start));
                    split(
                        &self.def.steps,
                        marked.as_deref().unwrap_or(stretch),
                        &mut |word| self.encode_word(word, scratch, ids),
                    );
                }
            },
        );
    }

    fn encode_word(&self, word: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if self.def.ignore_merges
            && let Some(id) = self.whole_word(word, &mut scratch.text)
        {
            ids.push(id);
            return;
        }
        let mut symbols = std::mem::take(&mut scratch.symbols);
        symbols.clear();
        self.first_symbols(word, &mut symbols);
        self.def.merges.apply(&mut symbols, scratch);
        ids.extend_from_slice(&symbols);
        scratch.symbols = symbols;
    }

    fn whole_word(&self, word: &str, text: &mut Vec<u8>) -> Option<u32> {
        if matches!(self.def.alphabet, Alphabet::Chars(..)) {
            return self.def.vocab.id(word.as_bytes());
        }
        text.clear();
        let mut utf8 = [0; 4];
        for byte in word.bytes() {
            text.extend_from_slice(byte_level::char_of(byte).encode_utf8(&mut utf8).as_bytes());
        }
        self.def.vocab.id(text)
    }

    fn first_symbols(&self, word: &str, symbols: &mut Vec<u32>) {
        match &self.def.alphabet {
            Alphabet::Bytes(of_byte, unknown) => {
                let mut pending = false;
                for byte in word.bytes() {
                    unknown.add(
                        symbols,
                        Some(of_byte[byte as usize]).filter(|&id| id != NONE),
                        &mut pending,
                    );
                }
                unknown.flush(symbols, &mut pending);
            }
            Alphabet::Chars(of_byte, unknown) => {
                let mut pending = false;
                let mut utf8 = [0; 4];
                for c in word.chars() {
                    let bytes = c.encode_utf8(&mut utf8).as_bytes();
                    let id = self.def.vocab.id(bytes);
                    if id.is_none() && bytes.iter().all(|&byte| of_byte[byte as usize] != NONE) {
                        symbols.extend(bytes.iter().map(|&byte| of_byte[byte as usize]));
                    } else {
                        unknown.add(symbols, id, &mut pending);
                    }
                }
                unknown.flush(symbols, &mut pending);
            }
        }
    }
}

impl Alphabet {
    /// The bytes that a token's text stands for.
    fn decode_into(&self, text: &str, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(..) => byte_level::decode_into(text, out),
            Self::Chars(..) => match byte_token(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.replace(SPACE_MARK, " ").as_bytes()),
            },
        }
    }
}

/// SentencePiece's character for a space.
const SPACE_MARK: char = '▁';

/// The byte of a token like `<0x0A>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

impl Unknown {
    /// Adds a symbol, or notes that one was unknown. In the Hugging Face library an unknown one is only written when
    /// the next known one comes, after the bytes of those that fell back in between.
    fn add(self, symbols: &mut Vec<u32>, id: Option<u32>, pending: &mut bool) {
        if let Some(id) = id {
            self.flush(symbols, pending);
            symbols.push(id);
        } else {
            if !self.fuse {
                self.flush(symbols, pending);
            }
            *pending = self.id.is_some();
        }
    }
    fn flush(self, symbols: &mut Vec<u32>, pending: &mut bool) {
        symbols.extend(self.id.filter(|_| std::mem::take(pending)));
    }
}

/// Why a tokenizer could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Neither `tokenizer.huggingface.json` nor `tokenizer.ggml.tokens` is there.
    #[error(
        "the file carries no tokenizer: neither `tokenizer.huggingface.json` nor `tokenizer.ggml.tokens` is there"
    )]
    Missing,
    /// A key that the tokenizer needs is missing or of another type.
    #[error("the metadata key `{key}` must hold {expected}")]
    Key {
        /// The key.
        key: &'static str,
        /// What it must hold.
        expected: &'static str,
    },
    /// Two keys that describe the same tokens differ in length.
    #[error("`{key}` has {got} entries, `tokenizer.ggml.tokens` has {expected}")]
    Length {
        /// The key.
        key: &'static str,
        /// Its entries.
        got: usize,
        /// The tokens.
        expected: usize,
    },
    /// `tokenizer.ggml.model` names another algorithm.
    #[error(
        "the tokenizer model `{0}` is not supported: this build runs `gpt2` (byte-level BPE) and `llama` (SentencePiece-style BPE)"
    )]
    UnknownModel(String),
    /// `tokenizer.ggml.pre` names a pre-tokenizer we do not know.
    #[error(
        "the pre-tokenizer `{0}` (`tokenizer.ggml.pre`) is not supported, and guessing another would give wrong tokens"
    )]
    UnknownPre(String),
    /// A component of `tokenizer.json` that we do not run.
    #[error("tokenizer.json uses {0}, which is not supported")]
    Unsupported(String),
    /// `tokenizer.json` is broken.
    #[error("tokenizer.json cannot be read: {0}")]
    Json(String),
    /// One text for two ids.
    #[error("the token {token:?} stands twice in the vocabulary, as {first} and as {second}")]
    DuplicateToken {
        /// The text.
        token: String,
        /// First id.
        first: u32,
        /// Second id.
        second: u32,
    },
    /// An id beyond the vocabulary.
    #[error("{what} is {id}, the vocabulary has {vocab_size} tokens")]
    IdOutOfRange {
        /// Whose id.
        what: String,
        /// The id.
        id: u64,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// A line of merges that is no pair.
    #[error("merge {rank} is {text:?}, not two tokens with a space between")]
    BadMerge {
        /// Its place, from 0.
        rank: usize,
        /// Its text.
        text: String,
    },
    /// A merge whose parts or result the vocabulary lacks.
    #[error("merge {rank} needs the token {token:?}, which the vocabulary lacks")]
    MergeOfUnknownToken {
        /// Its place, from 0.
        rank: usize,
        /// The token.
        token: String,
    },
    /// More than a vocabulary can have.
    #[error("the tokenizer has {count} {what}, more than can be right")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
    },
}
