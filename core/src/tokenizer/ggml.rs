//! The tokenizer in `tokenizer.ggml.*`, as llama.cpp writes and reads it (`src/llama-vocab.cpp`).

use super::{
    AddedToken, Alphabet, Definition, Kind, Merges, NONE, Normalize, SPACE_MARK, SpecialIds, Step,
    Tokenizer, TokenizerError, Unknown, Vocab, byte_level, hf, hf_write,
};
use crate::gguf::{Metadata, StringArray};
use std::borrow::Cow;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const HF_JSON: &str = "tokenizer.huggingface.json";
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
            Step::Numbers { max: usize::MAX },
            Step::AsciiTriples,
        ]),
        _ => None,
    }
}

pub(super) fn read(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    if let Some(json) = metadata.str(HF_JSON) {
        return hf::read(json.as_bytes(), None)
            .and_then(|tokenizer| with_ids_of(metadata, tokenizer));
    }
    let texts = metadata.strings(TOKENS).ok_or(TokenizerError::Missing)?;
    let model = metadata.str(MODEL).ok_or(TokenizerError::Key {
        key: MODEL,
        expected: "a string",
    })?;
    let vocab = Vocab::new(texts.iter().enumerate().map(|(id, text)| named(id, text)))?;
    let kinds = kinds(metadata, vocab.len())?;
    match model {
        "gpt2" => byte_level_bpe(metadata, vocab, kinds).map(Tokenizer::from),
        "llama" => sentence_piece(metadata, vocab, kinds).map(Tokenizer::from),
        _ => Err(TokenizerError::UnknownModel(model.to_owned())),
    }
}

/// A token without a text gets llama.cpp's name for it.
fn named(id: usize, text: &str) -> Cow<'_, str> {
    if text.is_empty() {
        format!("[EMPTY_{id}]").into()
    } else {
        text.into()
    }
}

/// What `tokenizer.json` does not say comes with the ggml keys.
fn with_ids_of(metadata: &Metadata, tokenizer: Tokenizer) -> Result<Tokenizer, TokenizerError> {
    let mut def = tokenizer.def;
    def.special = special_ids(metadata, def.vocab.len(), &def.special)?;
    def.adds_bos = metadata.bool(ADD_BOS).unwrap_or(def.adds_bos);
    Ok(def.into())
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
        special: special_ids(metadata, vocab.len(), &SpecialIds::default())?,
        adds_bos: metadata.bool(ADD_BOS).unwrap_or(pre.add_bos),
        metaspace: None,
        scores: Vec::new(),
        hf_json: None,
        kinds,
        vocab,
    })
}

/// Llama 2's kind: merges follow from the tokens' scores, characters fall back to bytes.
fn sentence_piece(
    metadata: &Metadata,
    vocab: Vocab,
    kinds: Vec<Kind>,
) -> Result<Definition, TokenizerError> {
    let scores = metadata.floats(SCORES).ok_or(TokenizerError::Key {
        key: SCORES,
        expected: "an array of numbers",
    })?;
    if scores.len() != vocab.len() {
        return Err(TokenizerError::Length {
            key: SCORES,
            got: scores.len(),
            expected: vocab.len(),
        });
    }
    let add_space_prefix = metadata.bool(ADD_SPACE_PREFIX).unwrap_or(true);
    let defaults = SpecialIds {
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..SpecialIds::default()
    };
    let special = special_ids(metadata, vocab.len(), &defaults)?;
    let pairs = merges_of_scores(&vocab, &kinds, &scores);
    let text = |id: u32| vocab.text(id).unwrap_or_default();
    let mut normalizer =
        Vec::from_iter(add_space_prefix.then(|| Normalize::Prepend(SPACE_MARK.into())));
    normalizer.push(Normalize::Replace(" ".into(), SPACE_MARK.into()));
    Ok(Definition {
        merges: Merges::new(
            &vocab,
            pairs.iter().map(|&(left, right)| (text(left), text(right))),
        )?,
        alphabet: Alphabet::Chars(
            byte_tokens(&vocab),
            Unknown {
                id: special.unknown,
                fuse: true,
            },
        ),
        ignore_merges: false,
        normalizer,
        metaspace: None,
        steps: Vec::new(),
        added: added_tokens(&vocab, &kinds),
        strip_leading_space: add_space_prefix,
        special,
        adds_bos: metadata.bool(ADD_BOS).unwrap_or(true),
        scores,
        hf_json: None,
        kinds,
        vocab,
    })
}

/// Every way to put a token together from two others, the highest score first, then the longest left part: the order
/// of transformers' conversion (`generate_merges`).
fn merges_of_scores(vocab: &Vocab, kinds: &[Kind], scores: &[f32]) -> Vec<(u32, u32)> {
    let part = |text: &str| {
        vocab
            .id(text.as_bytes())
            .filter(|&id| !is_special(kinds[id as usize]))
    };
    let mut merges = Vec::new();
    for (id, &score) in scores.iter().enumerate() {
        let text = vocab.text(id as u32).unwrap_or_default();
        if is_special(kinds[id]) || text.len() > MAX_MERGED_BYTES {
            continue;
        }
        for (n_left, (at, _)) in text.char_indices().enumerate().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(left), Some(right)) = (part(left), part(right)) {
                merges.push((score, n_left, id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
    merges
        .into_iter()
        .map(|(_, _, _, left, right)| (left, right))
        .collect()
}

/// Real pieces end at some 48 bytes; trying all splits of a hostile one is quadratic.
const MAX_MERGED_BYTES: usize = 1024;

fn is_special(kind: Kind) -> bool {
    matches!(kind, Kind::Control | Kind::Unknown | Kind::Byte)
}

/// The tokens `<0x00>` to `<0xFF>`.
pub(super) fn byte_tokens(vocab: &Vocab) -> Box<[u32; 256]> {
    let mut ids = Box::new([NONE; 256]);
    for (byte, id) in ids.iter_mut().enumerate() {
        *id = vocab
            .id(format!("<0x{byte:02X}>").as_bytes())
            .unwrap_or(NONE);
    }
    ids
}

/// A merge is two tokens with a space between; the first may begin with one.
fn split_merge(line: &str) -> Option<(&str, &str)> {
    let first = line.chars().next()?.len_utf8();
    let space = first + line.as_bytes()[first..].iter().position(|&b| b == b' ')?;
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
    defaults: &SpecialIds,
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

pub(super) fn write(def: &Definition, n_rows: usize) -> Metadata {
    let mut metadata = Metadata::new();
    let n = def.vocab.len().max(n_rows);
    let is_byte_level = matches!(def.alphabet, Alphabet::Bytes(..));
    metadata.set(MODEL, if is_byte_level { "gpt2" } else { "llama" });
    if is_byte_level {
        metadata.set(PRE, pre_name(def));
    }
    let text = |id: usize| def.vocab.text(id as u32).filter(|text| !text.is_empty());
    metadata.set(
        TOKENS,
        (0..n)
            .map(|id| text(id).map_or_else(|| format!("[PAD{id}]"), str::to_owned))
            .collect::<StringArray>(),
    );
    let kind = |id: usize| def.kinds.get(id).copied().unwrap_or(Kind::Unused);
    metadata.set(
        TOKEN_TYPE,
        (0..n).map(|id| kind(id) as i32).collect::<Vec<i32>>(),
    );
    let merges = def.merges.in_order();
    if is_byte_level {
        let line = |&(left, right): &(u32, u32)| {
            format!(
                "{} {}",
                text(left as usize).unwrap_or_default(),
                text(right as usize).unwrap_or_default()
            )
        };
        metadata.set(MERGES, merges.iter().map(line).collect::<StringArray>());
    } else {
        metadata.set(SCORES, scores(def, &merges, n));
        metadata.set(ADD_SPACE_PREFIX, def.strip_leading_space);
    }
    let special = &def.special;
    for (name, id) in [
        ("bos", special.bos),
        ("eos", special.eos),
        ("eot", special.eot),
        ("eom", special.eom),
        ("unknown", special.unknown),
        ("padding", special.padding),
    ] {
        if let Some(id) = id {
            metadata.set(format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    metadata.set(ADD_BOS, def.adds_bos);
    metadata.set(HF_JSON, hf_write::json(def));
    metadata
}

/// llama.cpp's name for how this tokenizer cuts. Where it has none the name is one that it refuses, for any other
/// would give wrong tokens there without a word.
fn pre_name(def: &Definition) -> &'static str {
    let plain =
        def.metaspace.is_none() && def.normalizer.iter().all(|step| *step == Normalize::Nfc);
    match (def.steps.as_slice(), def.ignore_merges) {
        _ if !plain => "custom",
        ([Step::Gpt2], false) => "gpt-2",
        ([Step::EachDigit | Step::Numbers { max: 1 }, Step::Gpt2], false) => "smollm",
        ([Step::Cl100k { max_digits: 3 }], true) => "llama-bpe",
        ([Step::Cl100k { max_digits: 3 }], false) => "dbrx",
        ([Step::Cl100k { max_digits: 1 }], false) => "qwen2",
        (
            [
                Step::PunctuationRuns { backtick: true },
                Step::Gpt2,
                Step::AsciiTriples,
            ],
            false,
        ) => "falcon",
        (
            [
                Step::PunctuationRuns { backtick: false },
                Step::Gpt2,
                Step::Numbers { max: usize::MAX },
                Step::AsciiTriples,
            ],
            false,
        ) => "default",
        _ => "custom",
    }
}

/// Scores that make llama.cpp merge in the order of the merges: the earlier a token's first merge, the higher.
fn scores(def: &Definition, merges: &[(u32, u32)], n: usize) -> Vec<f32> {
    let mut scores = def.scores.clone();
    if scores.is_empty() {
        scores = vec![-(merges.len() as f32); def.vocab.len()];
        for (rank, &(left, right)) in merges.iter().enumerate().rev() {
            if let Some(merged) = def.merges.merged(left, right) {
                scores[merged as usize] = -(rank as f32);
            }
        }
    }
    scores.resize(n, -(merges.len() as f32));
    scores
}
