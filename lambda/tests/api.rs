//! The API over a tiny model with random weights: OpenAI's shapes, and the same text as core's own generation.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{api, api_with, call, chunks, get, json, load, post, reference, send, text};
use fledgling_core::{chat::Message, generate::FinishReason, sampler::SamplerParams, spec::Family};
use fledgling_lambda::{ApiOptions, ApiState, router};
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time";

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

#[tokio::test]
async fn a_completion_is_the_text_that_core_generates() {
    for family in [Family::Llama, Family::Gpt2] {
        let (info, engine) = load(family);
        let prompt = info.encode_prompt(PROMPT);
        let id = info.name.clone();
        let api = router(ApiState::new(info, engine, ApiOptions::default()).unwrap());
        let (ids, expected, finish) = reference(family, &prompt, 32, SamplerParams::default(), &[]);
        let body = json!({"model": id, "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "return_token_ids": true});
        let (status, answer) = call(&api, "/v1/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], expected);
        assert_eq!(choice["token_ids"], json!(ids));
        assert_eq!(choice["prompt_token_ids"], json!(prompt));
        assert_eq!(choice["finish_reason"], finish_name(finish));
        assert_eq!(choice["index"], 0);
        assert_eq!(answer["object"], "text_completion");
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
        assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], prompt.len());
        assert_eq!(usage["completion_tokens"], ids.len());
        assert_eq!(usage["total_tokens"], prompt.len() + ids.len());
    }
}

#[tokio::test]
async fn a_chat_is_the_text_that_core_generates() {
    let (info, _) = load(Family::Llama);
    let message = Message {
        role: "user".into(),
        content: "Who are you?".into(),
    };
    let prompt = info.encode_chat(&[message]).unwrap();
    let (ids, expected, finish) =
        reference(Family::Llama, &prompt, 16, SamplerParams::default(), &[]);
    let contents = [
        json!("Who are you?"),
        json!([{"type": "text", "text": "Who are you?"}]),
    ];
    for content in contents {
        let body = json!({"messages": [{"role": "user", "content": content}], "max_completion_tokens": 16});
        let (status, answer) = call(&api(), "/v1/chat/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["object"], "chat.completion");
        assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!(choice["message"]["content"], expected);
        assert_eq!(choice["finish_reason"], finish_name(finish));
        assert_eq!(answer["usage"]["completion_tokens"], ids.len());
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
    }
}

#[tokio::test]
async fn a_streamed_chat_has_the_frame_that_clients_expect() {
    let api = api();
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12});
    let (_, whole) = call(&api, "/v1/chat/completions", &body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = send(&api, post("/v1/chat/completions", &body)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    let chunks = chunks(&text(response).await);

    let first = &chunks[0];
    assert_eq!(
        first["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for key in ["id", "created", "model"] {
            assert_eq!(chunk[key], first[key], "{chunk}");
        }
        assert_eq!(chunk["model"], whole["model"]);
    }
    let (usage, answer) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(
        usage["usage"]["total_tokens"],
        whole["usage"]["total_tokens"]
    );
    assert!(
        answer.iter().all(|chunk| chunk["usage"].is_null()),
        "usage: null before the last"
    );
    let (last, pieces) = answer.split_last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(
        last["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert!(
        pieces
            .iter()
            .all(|chunk| chunk["choices"][0]["finish_reason"].is_null())
    );
    let streamed: String = pieces
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(streamed, whole["choices"][0]["message"]["content"]);
}

#[tokio::test]
async fn a_streamed_completion_is_the_whole_one_in_pieces() {
    let api = api();
    let mut body = json!({"prompt": PROMPT, "max_tokens": 40, "return_token_ids": true});
    let (_, whole) = call(&api, "/v1/completions", &body).await;
    body["stream"] = json!(true);
    let stream = text(send(&api, post("/v1/completions", &body)).await).await;
    let chunks = chunks(&stream);
    assert!(
        chunks.iter().all(|chunk| chunk.get("usage").is_none()),
        "no usage unasked"
    );
    let pieces: String = chunks
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(pieces, whole["choices"][0]["text"]);
    let ids: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["token_ids"].as_array().unwrap().clone())
        .collect();
    assert_eq!(json!(ids), whole["choices"][0]["token_ids"]);
    assert_eq!(
        chunks[0]["choices"][0]["prompt_token_ids"],
        whole["choices"][0]["prompt_token_ids"]
    );
    assert!(chunks[1]["choices"][0].get("prompt_token_ids").is_none());
}

#[tokio::test]
async fn the_known_beginning_of_a_prompt_changes_no_text() {
    let api = api();
    let ask = |prompt: &str| json!({"prompt": prompt, "max_tokens": 24});
    let longer = format!("{PROMPT} there was");
    let (_, first) = call(&api, "/v1/completions", &ask(PROMPT)).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let (_, again) = call(&api, "/v1/completions", &ask(PROMPT)).await;
    assert_eq!(again["choices"][0]["text"], first["choices"][0]["text"]);
    let n_prompt = again["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"],
        n_prompt - 1
    );

    let (_, warm) = call(&api, "/v1/completions", &ask(&longer)).await;
    assert!(
        warm["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            > 0
    );
    let (_, cold) = call(&common::api(), "/v1/completions", &ask(&longer)).await;
    assert_eq!(warm["choices"][0]["text"], cold["choices"][0]["text"]);
}

#[tokio::test]
async fn every_form_of_a_prompt_means_the_same() {
    let api = api();
    let (info, _) = load(Family::Llama);
    let ids = info.encode_prompt(PROMPT);
    let (_, expected) = call(&api, "/v1/completions", &json!({"prompt": PROMPT})).await;
    assert_eq!(
        expected["usage"]["completion_tokens"]
            .as_u64()
            .map(|n| n <= 16),
        Some(true)
    );
    for prompt in [json!([PROMPT]), json!(ids), json!([ids])] {
        let (status, answer) = call(&api, "/v1/completions", &json!({"prompt": prompt})).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["text"], expected["choices"][0]["text"]);
    }
    let (status, answer) = call(&api, "/v1/completions", &json!({"prompt": ""})).await;
    assert_eq!(
        status, 200,
        "an empty prompt starts from the model's own start: {answer}"
    );
}

#[tokio::test]
async fn a_seed_repeats_its_text_as_core_has_it() {
    let api = api();
    let (info, _) = load(Family::Llama);
    let prompt = info.encode_prompt(PROMPT);
    for seed in [3_u64, u64::MAX] {
        let sampler = SamplerParams {
            temperature: 0.9,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.01,
            seed,
            ..SamplerParams::default()
        };
        let (ids, expected, _) = reference(Family::Llama, &prompt, 24, sampler, &[]);
        let body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0.9, "top_k": 40, "top_p": 0.95,
            "min_p": 0.01, "seed": seed, "return_token_ids": true});
        let (_, answer) = call(&api, "/v1/completions", &body).await;
        assert_eq!(answer["choices"][0]["token_ids"], json!(ids));
        assert_eq!(answer["choices"][0]["text"], expected);
    }
    // -1 is the same 64 bits as u64::MAX.
    let ask = |seed: Value| json!({"prompt": PROMPT, "temperature": 1, "seed": seed});
    let (_, negative) = call(&api, "/v1/completions", &ask(json!(-1))).await;
    let (_, positive) = call(&api, "/v1/completions", &ask(json!(u64::MAX))).await;
    assert_eq!(
        negative["choices"][0]["text"],
        positive["choices"][0]["text"]
    );
    // Without a seed each request draws its own: five equal texts of 16 random tokens would be a wonder.
    let mut texts = Vec::new();
    for _ in 0..5 {
        let body = json!({"prompt": PROMPT, "temperature": 1.5});
        texts.push(call(&api, "/v1/completions", &body).await.1["choices"][0]["text"].to_string());
    }
    assert!(texts.iter().any(|text| *text != texts[0]), "{texts:?}");
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_before_it() {
    let api = api();
    let (_, free) = call(
        &api,
        "/v1/completions",
        &json!({"prompt": PROMPT, "max_tokens": 40}),
    )
    .await;
    let free = free["choices"][0]["text"].as_str().unwrap();
    let middle = free.char_indices().nth(free.chars().count() / 2).unwrap().0;
    let stop: String = free[middle..].chars().take(2).collect();
    let expected = &free[..free.find(&stop).unwrap()];
    for stop in [json!(stop), json!(["\u{1}never", stop])] {
        let body = json!({"prompt": PROMPT, "max_tokens": 40, "stop": stop});
        let (_, answer) = call(&api, "/v1/completions", &body).await;
        assert_eq!(answer["choices"][0]["text"], expected);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn an_answer_ends_with_the_context() {
    let body = json!({"prompt": PROMPT, "max_tokens": 100_000, "ignore_eos": true});
    let (status, answer) = call(&api(), "/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let total = answer["usage"]["total_tokens"].as_u64().unwrap();
    assert!(
        (100..=129).contains(&total),
        "{total} tokens in a context of 128"
    );
}

#[tokio::test]
async fn the_operators_limit_caps_an_answer() {
    let api = api_with(ApiOptions {
        max_tokens: Some(5),
        ..ApiOptions::default()
    });
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": true});
    let (_, answer) = call(&api, "/v1/chat/completions", &body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn the_model_is_listed_and_answers_to_its_names() {
    let options = ApiOptions {
        model_id: Some("org/tiny".into()),
        aliases: vec!["gpt-4o".into()],
        created_unix_s: Some(1_700_000_000),
        ..ApiOptions::default()
    };
    let api = api_with(options);
    let list = json(send(&api, get("/v1/models")).await).await;
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(model["id"], "org/tiny");
    assert_eq!(model["object"], "model");
    assert_eq!(model["created"], 1_700_000_000);
    assert_eq!(model["owned_by"], "fledgling");
    assert_eq!(model["max_model_len"], 128);
    for name in ["org/tiny", "gpt-4o"] {
        let one = json(send(&api, get(&format!("/v1/models/{name}"))).await).await;
        assert_eq!(one, *model);
        let (status, answer) = call(
            &api,
            "/v1/completions",
            &json!({"model": name, "prompt": "x"}),
        )
        .await;
        assert_eq!(status, 200);
        assert_eq!(answer["model"], "org/tiny");
    }
    let missing = send(&api, get("/v1/models/other")).await;
    assert_eq!(missing.status(), 404);
    assert_eq!(json(missing).await["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn tokens_go_to_text_and_back() {
    let api = api();
    let (info, _) = load(Family::Llama);
    let (status, answer) = call(&api, "/v1/tokenize", &json!({"prompt": "né 😀"})).await;
    assert_eq!(status, 200);
    assert_eq!(answer["tokens"], json!(info.encode_prompt("né 😀")));
    assert_eq!(answer["count"], answer["tokens"].as_array().unwrap().len());
    assert_eq!(answer["max_model_len"], 128);
    let plain = json!({"prompt": "né 😀", "add_special_tokens": false});
    let (_, plain) = call(&api, "/v1/tokenize", &plain).await;
    let (_, back) = call(&api, "/v1/detokenize", &json!({"tokens": plain["tokens"]})).await;
    assert_eq!(back["prompt"], "né 😀");

    let messages = json!([{"role": "user", "content": "Hi"}]);
    let (_, chat) = call(&api, "/v1/tokenize", &json!({"messages": messages})).await;
    let message = Message {
        role: "user".into(),
        content: "Hi".into(),
    };
    assert_eq!(chat["tokens"], json!(info.encode_chat(&[message]).unwrap()));
}

#[tokio::test]
async fn health_needs_no_key() {
    let api = api_with(ApiOptions {
        api_keys: vec!["k".into()],
        ..ApiOptions::default()
    });
    let response = send(&api, get("/healthz")).await;
    assert_eq!(response.status(), 200);
    let body = json(response).await;
    assert_eq!(body["status"], "ok");
    assert_eq!(body["running"], 0);
}
