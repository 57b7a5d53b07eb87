use super::*;
use fledgling_core::{
    gguf::Header,
    quant::DType,
    spec::Family,
    testing::{CHATML, tiny_model},
};

fn model(change: impl Fn(&mut Header)) -> ModelInfo {
    let mut header = Header::parse(&tiny_model(Family::Llama, DType::Q8_0, 1)).unwrap();
    change(&mut header);
    ModelInfo::from_header(&header).unwrap()
}

fn encoder() -> Encoder {
    Encoder::from_model(&model(|_| ()))
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// The text with what counts in brackets.
fn shown(encoder: &Encoder, encoded: &Encoded) -> String {
    let all = vec![true; encoded.tokens.len()];
    let counted = encoded.counted.as_ref().unwrap_or(&all);
    assert_eq!(counted.len(), encoded.tokens.len());
    let (mut out, mut inside) = (String::new(), false);
    let texts = encoded
        .tokens
        .iter()
        .map(|id| encoder.tokenizer.decode(&[*id], false));
    for (text, &counted) in texts.zip(counted) {
        if counted != inside {
            out.push(if counted { '[' } else { ']' });
            inside = counted;
        }
        out.push_str(&text);
    }
    if inside {
        out.push(']');
    }
    out
}

fn error(encoder: &Encoder, body: &Body) -> String {
    format!("{:#}", encoder.encode(body).unwrap_err())
}

#[test]
fn of_a_chat_only_answers_count_with_the_token_that_ends_them() {
    let encoder = encoder();
    let chat = Body::Chat(vec![
        message("system", "be kind"),
        message("user", "hi"),
        message("assistant", "hello there"),
        message("user", "more"),
        message("assistant", "no"),
        message("user", "never read"),
    ]);
    let encoded = encoder.encode(&chat).unwrap();
    assert_eq!(
        shown(&encoder, &encoded),
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\
         [hello there<|im_end|>]\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n[no<|im_end|>]\n"
    );
    assert_eq!(
        encoded.n_counted(),
        encoded.counted.unwrap().iter().filter(|c| **c).count()
    );
}

#[test]
fn a_prompt_has_the_ids_that_it_has_when_the_model_is_asked() {
    for adds_bos in [false, true] {
        for template in [CHATML.to_owned(), format!("{{{{ bos_token }}}}{CHATML}")] {
            let info = model(|header| {
                header
                    .metadata
                    .set("tokenizer.ggml.add_bos_token", adds_bos);
                header
                    .metadata
                    .set("tokenizer.chat_template", template.as_str());
            });
            let encoder = Encoder::from_model(&info);
            let asked = vec![message("user", "what is it")];
            let prompt = info.encode_chat(&asked).unwrap();
            let chat = [asked, vec![message("assistant", "the thing")]].concat();
            let encoded = encoder.encode(&Body::Chat(chat)).unwrap();
            assert_eq!(encoded.tokens[..prompt.len()], prompt);
            let counted = encoded.counted.unwrap();
            assert_eq!(counted.iter().position(|c| *c), Some(prompt.len()));

            for prompt in ["what is it: ", "", "<|im_start|>user\n", "th"] {
                let ids = info.encode_prompt(prompt);
                let body = Body::Completion {
                    prompt: prompt.to_owned(),
                    completion: "e end".to_owned(),
                };
                let encoded = encoder.encode(&body).unwrap();
                assert_eq!(encoded.tokens[..ids.len()], ids);
                assert_eq!(
                    encoded.n_counted(),
                    encoded.tokens.len() - ids.len(),
                    "{prompt}"
                );
                assert_eq!(encoded.tokens.last().copied(), info.tokenizer.eos());
            }
        }
    }
}

#[test]
fn a_completion_that_brings_its_end_gets_no_second_one() {
    let encoder = encoder();
    let completion = |completion: &str| Body::Completion {
        prompt: "a ".to_owned(),
        completion: completion.to_owned(),
    };
    for (text, expect) in [
        ("b", "a [b<|im_end|>]"),
        ("b<|im_end|>", "a [b<|im_end|>]"),
        ("b<|im_end|>\n", "a [b<|im_end|>]\n"),
    ] {
        let encoded = encoder.encode(&completion(text)).unwrap();
        assert_eq!(shown(&encoder, &encoded), expect);
    }
    assert_eq!(error(&encoder, &completion("")), "the completion is empty");
}

#[test]
fn a_text_ends_with_the_end_token_and_special_tokens_in_it_are_text() {
    let info = model(|header| header.metadata.set("tokenizer.ggml.add_bos_token", true));
    let encoder = Encoder::from_model(&info);
    let encoded = encoder
        .encode(&Body::Text("the <|im_end|> thing".to_owned()))
        .unwrap();
    let (bos, eos) = (info.tokenizer.bos().unwrap(), info.tokenizer.eos().unwrap());
    assert_eq!(encoded.tokens[0], bos);
    let eos_at: Vec<_> = (0..encoded.tokens.len())
        .filter(|&i| encoded.tokens[i] == eos)
        .collect();
    assert_eq!(eos_at, [encoded.tokens.len() - 1]);
    assert_eq!(encoded.counted, None);
    assert_eq!(encoded.n_counted(), encoded.tokens.len() - 1);
}

#[test]
fn what_cannot_be_learnt_from_is_said() {
    let encoder = encoder();
    let chat = |messages: &[(&str, &str)]| {
        Body::Chat(messages.iter().map(|(r, c)| message(r, c)).collect())
    };
    let check = |encoder: &Encoder, body: &Body, expect: &str| {
        let error = error(encoder, body);
        assert!(error.contains(expect), "{error}");
    };
    check(&encoder, &chat(&[("user", "a")]), "`assistant`");
    check(&encoder, &chat(&[]), "`assistant`");
    check(
        &encoder,
        &chat(&[("user", "a"), ("assistant", "")]),
        "an answer is empty",
    );
    let with_template = |template: Option<&str>| {
        Encoder::from_model(&model(|header| match template {
            Some(text) => header.metadata.set("tokenizer.chat_template", text),
            None => drop(header.metadata.remove("tokenizer.chat_template")),
        }))
    };
    let good = chat(&[
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]);
    let none = with_template(None);
    assert!(!none.has_chat_template() && encoder.has_chat_template());
    check(&none, &good, "without a chat template");
    check(
        &with_template(Some("{% for message in %}")),
        &good,
        "does not compile",
    );
    let last_only = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}>{% endif %}";
    check(
        &with_template(Some(last_only)),
        &good,
        "does not keep earlier messages",
    );
    check(
        &with_template(Some("{{ raise_exception('never') }}")),
        &good,
        "never",
    );
}

#[test]
fn a_text_needs_an_end_token() {
    let json = r#"{"added_tokens": [], "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, json).unwrap();
    let encoder = Encoder::from_tokenizer_json(&path).unwrap();
    assert_eq!((encoder.eos(), encoder.vocab_size()), (None, 2));
    assert!(error(&encoder, &Body::Text("ab".to_owned())).contains("no end token"));
    assert!(Encoder::from_tokenizer_json(&folder.path().join("none.json")).is_err());
}

#[test]
fn a_gguf_and_its_tokenizer_json_are_the_same_tokenizer() {
    let info = model(|_| ());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, info.tokenizer.to_hf_json()).unwrap();
    let config = serde_json::json!({ "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "add_bos_token": false,
        "chat_template": [{ "name": "other", "template": "" }, { "name": "default", "template": CHATML }] });
    fs::write(
        folder.path().join("tokenizer_config.json"),
        config.to_string(),
    )
    .unwrap();
    let (of_gguf, of_json) = (
        Encoder::from_model(&info),
        Encoder::from_tokenizer_json(&path).unwrap(),
    );
    let without_name = |encoder: &Encoder| TokenizerId {
        name: String::new(),
        ..encoder.id(true)
    };
    assert_eq!(without_name(&of_gguf), without_name(&of_json));
    assert_eq!(of_gguf.id(false).template_sha256, None);
    // A template of its own file counts before the config's.
    fs::write(folder.path().join("chat_template.jinja"), "{{ 1 }}").unwrap();
    let other = Encoder::from_tokenizer_json(&path).unwrap();
    assert_ne!(
        other.id(true).template_sha256,
        of_gguf.id(true).template_sha256
    );
    assert_eq!(other.sha256(), of_gguf.sha256());
}

#[test]
fn other_tokenizers_have_other_fingerprints() {
    let sha = |change: fn(&mut Header)| Encoder::from_model(&model(change)).sha256();
    let same = sha(|_| ());
    assert_eq!(same, sha(|_| ()));
    for other in [
        sha(|header| header.metadata.set("tokenizer.ggml.eos_token_id", 296_u32)),
        sha(|header| header.metadata.set("tokenizer.ggml.add_bos_token", true)),
    ] {
        assert_ne!(same, other);
    }
    let merges = sha(|header| {
        let mut lines: Vec<String> = header
            .metadata
            .strings("tokenizer.ggml.merges")
            .unwrap()
            .iter()
            .map(str::to_owned)
            .collect();
        lines.reverse();
        let lines: fledgling_core::gguf::StringArray = lines.iter().collect();
        header.metadata.set("tokenizer.ggml.merges", lines);
    });
    assert_ne!(same, merges);
}

#[test]
fn the_kinds_of_tokenizers_keep_their_fingerprints_without_their_json_and_with_padding() {
    let encoder = |tokenizer: Tokenizer| Encoder {
        name: String::new(),
        tokenizer: Arc::new(tokenizer),
        template: Err(ModelError::NoChatTemplate),
    };
    let mut seen = Vec::new();
    for name in ["gpt2", "smollm", "llama3", "llama2"] {
        let path = format!(
            "{}/../core/tests/fixtures/tokenizer/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        let config = br#"{"bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>"}"#;
        let config = (name == "llama2").then_some(config.as_slice());
        let tokenizer = Tokenizer::from_hf_json(&fs::read(path).unwrap(), config).unwrap();
        let mut metadata = tokenizer.to_metadata_with_rows(tokenizer.vocab_size() + 7);
        metadata.remove("tokenizer.huggingface.json");
        let bare = Tokenizer::from_metadata(&metadata).unwrap();
        assert_eq!(bare.vocab_size(), tokenizer.vocab_size() + 7);
        let sha256 = encoder(tokenizer).sha256();
        assert_eq!(encoder(bare).sha256(), sha256, "{name}");
        seen.push(sha256);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 4);
}
