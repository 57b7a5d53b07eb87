//! The tokenizer in `tokenizer.ggml.*`, as llama.cpp writes and reads it (`src/llama-vocab.cpp`).

use super::{
    AddedToken, Alphabet, Definition, Kind, Merges, NONE, SpecialIds, Step, Tokenizer,
    TokenizerError, Unknown, Vocab, byte_level,
};
use crate::gguf::Metadata;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";

/// What a name in `tokenizer.ggml.pre` stands for.
struct Pre {
    steps: &'static [Step],
    ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    add_bos: bool,
}

/// The names whose patterns we run, as llama.cpp maps them. `|\s+`, which its patterns lack, is what it does anyway.
fn pre_tokenizer(name: &str) -> Option<Pre> {
    let plain = |steps| {
        Some(Pre {
            steps,
            ignore_merges: false,
            add_bos: false,
        })
    };
    match name {
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" | "gigachat"
        | "a.x-4.0" | "mellum" | "modern-bert" | "exaone4" | "mpt" | "olmo" | "jais"
        | "trillion" | "granite-docling" => plain(&[Step::Gpt2]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => plain(&[Step::EachDigit, Step::Gpt2]),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" | "jina-v5-nano" => Some(Pre {
            steps: &[Step::Cl100k { max_digits: 3 }],
            ignore_merges: true,
            add_bos: true,
        }),
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => plain(&[Step::Cl100k { max_digits: 3 }]),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan"
        | "solar-open" | "grok-2" => plain(&[Step::Cl100k { max_digits: 1 }]),
        "falcon" => plain(&[
            Step::PunctuationRuns { backtick: true },
            Step::Gpt2,
            Step::AsciiTriples,
        ]),
        "default" => plain(&[
            Step::PunctuationRuns { backtick: false },
            Step::Gpt2,
            Step::NumberRuns,
            Step::AsciiTriples,
        ]),
        _ => None,
    }
}

pub(super) fn read(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let texts = metadata.strings(TOKENS).ok_or(TokenizerError::Missing)?;
    let model = metadata.str(MODEL).ok_or(TokenizerError::Key {
        key: MODEL,
        expected: "a string",
    })?;
    let vocab = Vocab::new(texts.iter())?;
    let kinds = kinds(metadata, vocab.len())?;
    match model {
        "gpt2" => byte_level_bpe(metadata, vocab, kinds).map(Tokenizer::from),
        _ => Err(TokenizerError::UnknownModel(model.to_owned())),
    }
}

fn byte_level_bpe(
    metadata: &Metadata,
    vocab: Vocab,
    kinds: Vec<Kind>,
) -> Result<Definition, TokenizerError> {
    // A file without the key is older than the key; llama.cpp takes `default` then, with a warning.
    let name = metadata
        .str(PRE)
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    let pre = pre_tokenizer(name).ok_or_else(|| TokenizerError::UnknownPre(name.to_owned()))?;
    let lines = metadata.strings(MERGES).ok_or(TokenizerError::Key {
        key: MERGES,
        expected: "an array of strings",
    })?;
    let mut pairs = Vec::with_capacity(lines.len());
    for (rank, line) in lines.iter().enumerate() {
        pairs.push(split_merge(line).ok_or_else(|| TokenizerError::BadMerge {
            rank,
            text: line.to_owned(),
        })?);
    }
    Ok(Definition {
        merges: Merges::new(&vocab, pairs.into_iter())?,
        alphabet: Alphabet::Bytes(byte_alphabet(&vocab), Unknown::default()),
        ignore_merges: pre.ignore_merges,
        normalizer: Vec::new(),
        steps: pre.steps.to_vec(),
        added: added_tokens(&vocab, &kinds),
        strip_leading_space: false,
        special: special_ids(metadata, vocab.len(), SpecialIds::default())?,
        adds_bos: metadata.bool(ADD_BOS).unwrap_or(pre.add_bos),
        kinds,
        vocab,
    })
}

/// A merge is two tokens with a space between; the first may begin with one.
fn split_merge(line: &str) -> Option<(&str, &str)> {
    let space = line.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
    Some((&line[..space], &line[space + 1..]))
}

/// The token of each byte in GPT-2's alphabet.
pub(super) fn byte_alphabet(vocab: &Vocab) -> Box<[u32; 256]> {
    let mut ids = Box::new([NONE; 256]);
    for byte in 0..=255 {
        let mut utf8 = [0; 4];
        ids[byte as usize] = vocab
            .id(byte_level::char_of(byte).encode_utf8(&mut utf8).as_bytes())
            .unwrap_or(NONE);
    }
    ids
}

fn kinds(metadata: &Metadata, n_tokens: usize) -> Result<Vec<Kind>, TokenizerError> {
    let bad = TokenizerError::Key {
        key: TOKEN_TYPE,
        expected: "an array of token types from 0 to 6",
    };
    if metadata.get(TOKEN_TYPE).is_none() {
        return Ok(vec![Kind::Normal; n_tokens]);
    }
    let Some(numbers) = metadata.ints(TOKEN_TYPE) else {
        return Err(bad);
    };
    if numbers.len() != n_tokens {
        return Err(TokenizerError::Length {
            key: TOKEN_TYPE,
            got: numbers.len(),
            expected: n_tokens,
        });
    }
    numbers
        .into_iter()
        .map(Kind::from_ggml)
        .collect::<Option<_>>()
        .ok_or(bad)
}

/// Control, unknown and user-defined tokens are found in the text as a whole; the first two on request only.
fn added_tokens(vocab: &Vocab, kinds: &[Kind]) -> Vec<AddedToken> {
    let is_added = |kind| matches!(kind, Kind::Control | Kind::Unknown | Kind::UserDefined);
    let ids = (0..vocab.len() as u32).filter(|&id| is_added(kinds[id as usize]));
    ids.map(|id| AddedToken {
        id,
        content: vocab.text(id).unwrap_or_default().to_owned(),
        special: kinds[id as usize] != Kind::UserDefined,
        ..AddedToken::default()
    })
    .collect()
}

/// The special ids of the metadata, over the `defaults` of the tokenizer's model.
fn special_ids(
    metadata: &Metadata,
    vocab_size: usize,
    defaults: SpecialIds,
) -> Result<SpecialIds, TokenizerError> {
    let id = |name: &str, default: Option<u32>| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match metadata.u64(&key) {
            None => Ok(default.filter(|&id| (id as usize) < vocab_size)),
            Some(id) if id < vocab_size as u64 => Ok(Some(id as u32)),
            Some(id) => Err(TokenizerError::IdOutOfRange {
                what: key,
                id,
                vocab_size,
            }),
        }
    };
    Ok(SpecialIds {
        bos: id("bos", defaults.bos)?,
        eos: id("eos", defaults.eos)?,
        eot: id("eot", defaults.eot)?,
        eom: id("eom", defaults.eom)?,
        unknown: id("unknown", defaults.unknown)?,
        padding: id("padding", defaults.padding)?,
    })
}
