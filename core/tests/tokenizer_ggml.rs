//! The tokenizer's way through a GGUF file's metadata, and what hostile metadata gives.

#![allow(clippy::unwrap_used, reason = "a test")]

use fledgling_core::gguf::{Array, Metadata, StringArray, Value};
use fledgling_core::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;

const HF_JSON: &str = "tokenizer.huggingface.json";
const TEXTS: [&str; 8] = [
    "Hello world, it's 12345 o'clock.\r\n\n  WE'RE here",
    "<|im_start|>user\nWas kostet das? 3,50 €<|im_end|>",
    "  two  spaces and\ttabs \n",
    "日本語 한국어 العربية हिन्दी 😀👨‍👩‍👧",
    "a",
    "",
    " ",
    "<s> x</s>▁y <0x41>",
];

fn family(name: &str) -> Tokenizer {
    let path = format!(
        "{}/tests/fixtures/tokenizer/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    // Llama 2's special ids have defaults in GGUF, so the tokenizer must have them to come back the same.
    let config = br#"{"bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>"}"#;
    Tokenizer::from_hf_json(
        &std::fs::read(path).unwrap(),
        (name == "llama2").then_some(config),
    )
    .unwrap()
}

fn assert_same(a: &Tokenizer, b: &Tokenizer) {
    for text in TEXTS {
        for parse_special in [true, false] {
            let ids = a.encode(text, true, parse_special);
            assert_eq!(b.encode(text, true, parse_special), ids, "{text:?}");
            for skip_special in [true, false] {
                assert_eq!(
                    b.decode(&ids, skip_special),
                    a.decode(&ids, skip_special),
                    "{text:?}"
                );
            }
        }
    }
    assert_eq!(
        (a.vocab_size(), a.bos(), a.eos(), a.adds_bos()),
        (b.vocab_size(), b.bos(), b.eos(), b.adds_bos())
    );
    assert!(
        (0..a.vocab_size() as u32)
            .all(|id| a.is_end(id) == b.is_end(id) && a.token_bytes(id) == b.token_bytes(id))
    );
}

#[test]
fn metadata_brings_the_same_tokenizer_back() {
    for name in [
        "gpt2",
        "smollm",
        "llama3",
        "qwen2",
        "prefix",
        "default",
        "llama2",
        "metaspace",
        "unknown",
    ] {
        let tokenizer = family(name);
        assert_same(
            &tokenizer,
            &Tokenizer::from_metadata(&tokenizer.to_metadata()).unwrap(),
        );
    }
}

#[test]
fn the_ggml_keys_alone_bring_it_back_too() {
    for (name, model, pre) in [
        ("smollm", "gpt2", Some("smollm")),
        ("llama3", "gpt2", Some("llama-bpe")),
        ("llama2", "llama", None),
    ] {
        let tokenizer = family(name);
        let mut metadata = tokenizer.to_metadata();
        metadata.remove(HF_JSON);
        assert_eq!(
            (
                metadata.str("tokenizer.ggml.model"),
                metadata.str("tokenizer.ggml.pre")
            ),
            (Some(model), pre)
        );
        let rebuilt = Tokenizer::from_metadata(&metadata).unwrap();
        assert_same(&tokenizer, &rebuilt);
        // And from there to a tokenizer.json that means the same.
        assert_same(
            &rebuilt,
            &Tokenizer::from_metadata(&rebuilt.to_metadata()).unwrap(),
        );
    }
}

#[test]
fn names_that_llama_cpp_does_not_have_are_ones_it_refuses() {
    let metadata = family("prefix").to_metadata();
    assert_eq!(metadata.str("tokenizer.ggml.pre"), Some("custom"));
    assert_eq!(
        family("qwen2").to_metadata().str("tokenizer.ggml.pre"),
        Some("qwen2")
    );
}

#[test]
fn rows_beyond_the_vocabulary_become_unused_tokens() {
    let tokenizer = family("gpt2");
    let n = tokenizer.vocab_size();
    let metadata = tokenizer.to_metadata_with_rows(n + 3);
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!(
        (tokens.len(), &tokens[n]),
        (n + 3, format!("[PAD{n}]").as_str())
    );
    assert_eq!(metadata.ints("tokenizer.ggml.token_type").unwrap()[n], 5);
    assert_eq!(Tokenizer::from_metadata(&metadata).unwrap().vocab_size(), n);
}

/// A vocabulary of single bytes and a few merges.
fn tiny() -> Metadata {
    let mut metadata = Metadata::new();
    let tokens = ["a", "b", "c", "ab", "abc", "<|im_end|>"];
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", "gpt-2");
    metadata.set(
        "tokenizer.ggml.tokens",
        tokens.into_iter().collect::<StringArray>(),
    );
    metadata.set("tokenizer.ggml.token_type", vec![1_i32, 1, 1, 1, 1, 3]);
    metadata.set(
        "tokenizer.ggml.merges",
        ["a b", "ab c"].into_iter().collect::<StringArray>(),
    );
    metadata
}

fn error_with(key: &str, value: impl Into<Value>) -> TokenizerError {
    let mut metadata = tiny();
    metadata.set(key, value);
    Tokenizer::from_metadata(&metadata).unwrap_err()
}

fn strings(items: &[&str]) -> StringArray {
    items.iter().collect()
}

#[test]
fn what_is_wrong_is_named() {
    let tokenizer = Tokenizer::from_metadata(&tiny()).unwrap();
    assert_eq!(tokenizer.encode("abcab<|im_end|>", false, true), [4, 3, 5]);
    assert!(tokenizer.is_end(5) && !tokenizer.is_end(4));

    assert_eq!(
        Tokenizer::from_metadata(&Metadata::new()).unwrap_err(),
        TokenizerError::Missing
    );
    let message = |error: TokenizerError| error.to_string();
    for (error, words) in [
        (error_with("tokenizer.ggml.model", "bert"), "`bert`"),
        (error_with("tokenizer.ggml.pre", "tekken-9"), "`tekken-9`"),
        (
            error_with("tokenizer.ggml.merges", strings(&["a b", "b x"])),
            "merge 1 needs the token \"x\"",
        ),
        (
            error_with("tokenizer.ggml.merges", strings(&["b c"])),
            "merge 0 needs the token \"bc\"",
        ),
        (
            error_with("tokenizer.ggml.merges", strings(&["ab"])),
            "merge 0 is \"ab\"",
        ),
        (
            error_with("tokenizer.ggml.merges", 1_u32),
            "tokenizer.ggml.merges",
        ),
        (
            error_with(
                "tokenizer.ggml.tokens",
                strings(&["a", "b", "c", "ab", "abc", "a"]),
            ),
            "\"a\" stands twice",
        ),
        (
            error_with("tokenizer.ggml.token_type", vec![1_i32]),
            "1 entries",
        ),
        (
            error_with("tokenizer.ggml.token_type", vec![9_i32; 6]),
            "token types",
        ),
        (
            error_with("tokenizer.ggml.eos_token_id", 6_u32),
            "eos_token_id is 6",
        ),
        (error_with(HF_JSON, "{"), "tokenizer.json cannot be read"),
        (
            error_with("tokenizer.ggml.model", "llama"),
            "tokenizer.ggml.scores",
        ),
    ] {
        assert!(
            message(error.clone()).contains(words),
            "{error} should say {words}"
        );
    }
}

#[test]
fn components_we_do_not_run_are_named() {
    let json = |pre: &str, normalizer: &str, model: &str| {
        format!(
            r#"{{"added_tokens":[],"normalizer":{normalizer},"pre_tokenizer":{pre},"decoder":{{"type":"ByteLevel"}},"model":{model}}}"#
        )
    };
    let bpe = r#"{"type":"BPE","vocab":{"a":0},"merges":[]}"#;
    let byte_level =
        r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
    let read = |json: String| {
        Tokenizer::from_hf_json(json.as_bytes(), None)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(read(json(byte_level, "null", bpe)), Ok(()));
    for (text, words) in [
        (json(r#"{"type":"Whitespace"}"#, "null", bpe), "Whitespace"),
        (
            json(
                r#"{"type":"Split","pattern":{"Regex":"x+"},"behavior":"Isolated","invert":false}"#,
                "null",
                bpe,
            ),
            "x+",
        ),
        (
            json(byte_level, r#"{"type":"BertNormalizer"}"#, bpe),
            "BertNormalizer",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"Unigram","vocab":[["a",0.0]]}"#,
            ),
            "`Unigram`",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"WordPiece","vocab":{"a":0}}"#,
            ),
            "`WordPiece`",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.1}"#,
            ),
            "dropout",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"BPE","vocab":{"a":0},"merges":[],"end_of_word_suffix":"</w>"}"#,
            ),
            "end_of_word_suffix",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"BPE","vocab":{"a":4000000000},"merges":[]}"#,
            ),
            "4000000001",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}"#,
            ),
            "id 0",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"BPE","vocab":{"a":0},"merges":["a"]}"#,
            ),
            "merge",
        ),
        (
            json(
                byte_level,
                "null",
                r#"{"type":"BPE","vocab":{"a":0},"merges":[["a","b"]]}"#,
            ),
            "\"b\"",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(words), "{error} should say {words}");
    }
}

#[test]
fn tokenizer_config_names_the_special_tokens() {
    let json = std::fs::read(format!(
        "{}/tests/fixtures/tokenizer/gpt2.json",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap();
    let config = br#"{"bos_token":{"content":"<|im_start|>","special":true},"eos_token":"<|im_end|>","pad_token":null,"add_bos_token":true,"model_max_length":1e30}"#;
    let tokenizer = Tokenizer::from_hf_json(&json, Some(config)).unwrap();
    let id = |text| tokenizer.token_id(text);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos()),
        (id("<|im_start|>"), id("<|im_end|>"))
    );
    assert!(tokenizer.adds_bos() && tokenizer.is_end(id("<|endoftext|>").unwrap()));
    let unknown = Tokenizer::from_hf_json(&json, Some(br#"{"eos_token":"<nope>"}"#)).unwrap_err();
    assert!(unknown.to_string().contains("<nope>"));
}

#[test]
fn a_million_characters_without_a_space_do_not_go_quadratic() {
    for name in ["gpt2", "llama2"] {
        let tokenizer = family(name);
        let text = "abcdefgh".repeat(1 << 17);
        let ids = tokenizer.encode(&text, false, true);
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
}

proptest! {
    #[test]
    fn any_text_comes_back(text in any::<String>(), parse_special in any::<bool>()) {
        for name in ["gpt2", "llama3"] {
            let tokenizer = family(name);
            // The stripping added token takes white space along, by its definition.
            if !text.contains("[STRIP]") {
                prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false, parse_special), false), text.clone());
            }
        }
    }

    #[test]
    fn any_tokens_and_merges_are_read_or_refused(
        tokens in prop::collection::vec("[abĠ ]{0,4}", 0..20),
        merges in prop::collection::vec("[abĠ ]{0,5}", 0..20),
        kinds in prop::collection::vec(-1..8_i32, 0..20),
        scores in prop::collection::vec(any::<f32>(), 0..20),
        is_llama in any::<bool>(),
        id in any::<u32>(),
        text in "[abĠ ]{0,40}",
    ) {
        let mut metadata = tiny();
        let n = tokens.len();
        metadata.set("tokenizer.ggml.model", if is_llama { "llama" } else { "gpt2" });
        metadata.set("tokenizer.ggml.tokens", tokens.iter().collect::<StringArray>());
        metadata.set("tokenizer.ggml.merges", merges.iter().collect::<StringArray>());
        metadata.set("tokenizer.ggml.token_type", kinds.into_iter().cycle().take(n).collect::<Vec<i32>>());
        metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores.into_iter().cycle().take(n).collect())));
        metadata.set("tokenizer.ggml.bos_token_id", id % 30);
        if let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) {
            let ids = tokenizer.encode(&text, true, true);
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            let _ = tokenizer.decode(&ids, false);
            prop_assert!(Tokenizer::from_metadata(&tokenizer.to_metadata()).is_ok());
        }
    }
}
