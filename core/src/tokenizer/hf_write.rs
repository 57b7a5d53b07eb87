//! A `tokenizer.json` for a tokenizer that came without one.

use super::{
    AddedToken, Alphabet, Definition, Kind, Metaspace, Normalize, SPACE_MARK, Step, Unknown,
};
use serde_json::{Map, Value, json};

pub(super) fn json(def: &Definition) -> String {
    match &def.hf_json {
        Some(json) => json.to_string(),
        None => file(def).to_string(),
    }
}

fn file(def: &Definition) -> Value {
    let text = |id: u32| def.vocab.text(id).unwrap_or_default();
    let (is_byte_level, Unknown { id: unknown, fuse }) = match def.alphabet {
        Alphabet::Bytes(_, unknown) => (true, unknown),
        Alphabet::Chars(_, unknown) => (false, unknown),
    };
    let ids = (0..def.vocab.len() as u32).filter(|&id| !text(id).is_empty());
    let vocab: Map<String, Value> = ids.map(|id| (text(id).to_owned(), id.into())).collect();
    let merges: Vec<Value> = def
        .merges
        .in_order()
        .iter()
        .map(|&(left, right)| json!([text(left), text(right)]))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": def.added.iter().map(added_token).collect::<Vec<_>>(),
        "normalizer": sequence("normalizers", def.normalizer.iter().map(normalizer).collect()),
        "pre_tokenizer": sequence("pretokenizers", pre_tokenizers(def, is_byte_level)),
        "post_processor": post_processor(def),
        "decoder": decoder(def, is_byte_level),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.map(text),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": fuse,
            "byte_fallback": def.kinds.contains(&Kind::Byte),
            "ignore_merges": def.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

fn sequence(list: &str, mut parts: Vec<Value>) -> Value {
    match parts.len() {
        0 => Value::Null,
        1 => parts.remove(0),
        _ => json!({ "type": "Sequence", list: parts }),
    }
}

fn added_token(token: &AddedToken) -> Value {
    json!({
        "id": token.id, "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
        "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special,
    })
}

fn normalizer(step: &Normalize) -> Value {
    match step {
        Normalize::Prepend(text) => json!({ "type": "Prepend", "prepend": text }),
        Normalize::Replace(from, to) => {
            json!({ "type": "Replace", "pattern": { "String": from }, "content": to })
        }
        Normalize::Lowercase => json!({ "type": "Lowercase" }),
        Normalize::Nfc => json!({ "type": "NFC" }),
        Normalize::Nfd => json!({ "type": "NFD" }),
        Normalize::Nfkc => json!({ "type": "NFKC" }),
        Normalize::Nfkd => json!({ "type": "NFKD" }),
    }
}

fn pre_tokenizers(def: &Definition, is_byte_level: bool) -> Vec<Value> {
    let mut parts = Vec::new();
    if let Some(metaspace) = def.metaspace {
        let scheme = match metaspace {
            Metaspace::Always => "always",
            Metaspace::First => "first",
            Metaspace::Never => "never",
        };
        let split = def.steps.contains(&Step::BeforeSpaceMark);
        parts.push(json!({ "type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": scheme, "split": split }));
    }
    // ByteLevel comes last and brings its own regex, so GPT-2's pattern is a Split only where another step follows.
    let ends_with_gpt2 = is_byte_level && def.steps.last() == Some(&Step::Gpt2);
    let splits = &def.steps[..def.steps.len() - usize::from(ends_with_gpt2)];
    for step in splits {
        parts.extend(match step {
            Step::EachDigit => Some(json!({ "type": "Digits", "individual_digits": true })),
            Step::DigitRuns => Some(json!({ "type": "Digits", "individual_digits": false })),
            Step::PrefixSpace | Step::BeforeSpaceMark => None,
            _ => step.pattern().map(|regex| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })),
        });
    }
    if is_byte_level {
        let prefix = def.steps.contains(&Step::PrefixSpace);
        parts.push(json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": ends_with_gpt2 }));
    }
    parts
}

/// BOS, where the model wants it.
fn post_processor(def: &Definition) -> Value {
    let Some((id, text)) = def
        .special
        .bos
        .filter(|_| def.adds_bos)
        .and_then(|id| def.vocab.text(id).map(|text| (id, text)))
    else {
        return Value::Null;
    };
    let bos = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let sequence =
        |name: &str, type_id: u32| json!({ "Sequence": { "id": name, "type_id": type_id } });
    let second_bos = json!({ "SpecialToken": { "id": text, "type_id": 1 } });
    json!({
        "type": "TemplateProcessing",
        "single": [bos, sequence("A", 0)],
        "pair": [bos, sequence("A", 0), second_bos, sequence("B", 1)],
        "special_tokens": { text: { "id": text, "ids": [id], "tokens": [text] } },
    })
}

fn decoder(def: &Definition, is_byte_level: bool) -> Value {
    if is_byte_level {
        return json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    }
    let mut parts = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE_MARK }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if def.strip_leading_space {
        parts.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": parts })
}
