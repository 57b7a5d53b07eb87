//! Log-probabilities, penalties, biases and embeddings against the engine's own numbers.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{api, call, chunks, load, post, send, text};
use fledgling_core::spec::Family;
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time";

/// Log-probabilities of all tokens at each position of `tokens`. [T, V]
fn distributions(tokens: &[u32]) -> Vec<Vec<f64>> {
    let (info, engine) = load(Family::Llama);
    let mut session = engine.session(info.spec.n_ctx).unwrap();
    let mut rows = Vec::new();
    let mut each = |_: usize, logits: &[f32]| {
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        rows.push(logits.iter().map(|x| f64::from(*x) - sum.ln()).collect());
    };
    engine.forward_all(&mut session, tokens, &mut each).unwrap();
    rows
}

fn near(got: &Value, want: f64) -> bool {
    (got.as_f64().unwrap() - want).abs() < 1e-4
}

fn ids(value: &Value) -> Vec<u32> {
    let items = value.as_array().unwrap().iter();
    items.map(|id| id.as_u64().unwrap() as u32).collect()
}

#[tokio::test]
async fn logprobs_of_a_completion_are_the_models() {
    // A temperature and a bias must not show.
    let body = json!({"prompt": PROMPT, "max_tokens": 6, "logprobs": 3, "temperature": 0.7, "seed": 1,
        "logit_bias": {"70": 3}, "return_token_ids": true, "ignore_eos": true});
    let (status, answer) = call(&api(), "/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let (prompt, tokens) = (ids(&choice["prompt_token_ids"]), ids(&choice["token_ids"]));
    let rows = distributions(&[&prompt[..], &tokens].concat());
    let logprobs = &choice["logprobs"];
    for (i, &token) in tokens.iter().enumerate() {
        let row = &rows[prompt.len() - 1 + i];
        assert!(near(&logprobs["token_logprobs"][i], row[token as usize]));
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(top.len(), 3);
        assert!(top.values().any(|p| near(p, best)));
    }
    for key in ["tokens", "text_offset", "token_logprobs", "top_logprobs"] {
        assert_eq!(logprobs[key].as_array().unwrap().len(), 6, "{key}");
    }
    assert_eq!(logprobs["text_offset"][0], 0);

    let mut body = body;
    body["stream"] = json!(true);
    let stream = text(send(&api(), post("/v1/completions", &body)).await).await;
    let mut streamed: [Vec<Value>; 2] = Default::default();
    for chunk in chunks(&stream) {
        let logprobs = &chunk["choices"][0]["logprobs"];
        for (key, all) in ["token_logprobs", "text_offset"]
            .into_iter()
            .zip(&mut streamed)
        {
            all.extend(logprobs[key].as_array().cloned().unwrap_or_default());
        }
    }
    assert_eq!(json!(streamed[0]), logprobs["token_logprobs"]);
    assert_eq!(json!(streamed[1]), logprobs["text_offset"]);
}

#[tokio::test]
async fn logprobs_of_a_chat_have_bytes_and_the_likeliest() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "logprobs": true,
        "top_logprobs": 2, "ignore_eos": true});
    let (status, answer) = call(&api(), "/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    let content = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(content.len(), 5);
    let mut bytes = Vec::new();
    for token in content {
        bytes.extend(ids(&token["bytes"]).into_iter().map(|byte| byte as u8));
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy: the token is the likeliest.
        assert_eq!(top[0]["logprob"], token["logprob"]);
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
    }
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
    let without = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5});
    let (_, without) = call(&api(), "/v1/chat/completions", &without).await;
    assert!(without["choices"][0]["logprobs"].is_null());
}

/// What evaluation harnesses ask for: the prompt scored, and nothing or one token generated.
#[tokio::test]
async fn an_echo_scores_the_prompt() {
    let (info, _) = load(Family::Llama);
    let long = format!("{PROMPT} {}", "and then again ".repeat(12));
    for (prompt, max_tokens) in [(PROMPT, 0), (PROMPT, 2), (&long, 1)] {
        let tokens = info.encode_prompt(prompt);
        let rows = distributions(&tokens);
        let api = api();
        let body = json!({"prompt": prompt, "max_tokens": max_tokens, "echo": true, "logprobs": 1, "ignore_eos": true});
        // The second time the prompt is known, and is computed all the same.
        for _ in 0..2 {
            let (status, answer) = call(&api, "/v1/completions", &body).await;
            assert_eq!(status, 200, "{answer}");
            let choice = &answer["choices"][0];
            assert!(choice["text"].as_str().unwrap().starts_with(prompt));
            let logprobs = &choice["logprobs"];
            let scores = logprobs["token_logprobs"].as_array().unwrap();
            assert_eq!(scores.len(), tokens.len() + max_tokens);
            assert!(scores[0].is_null() && logprobs["top_logprobs"][0].is_null());
            for (t, &token) in tokens.iter().enumerate().skip(1) {
                assert!(near(&scores[t], rows[t - 1][token as usize]), "{t}");
            }
            assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
        }
    }
    let body = json!({"prompt": PROMPT, "max_tokens": 0, "echo": true});
    let (_, answer) = call(&api(), "/v1/completions", &body).await;
    assert_eq!(answer["choices"][0]["text"], PROMPT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_bias_and_penalties_reach_the_sampler() {
    let ask = |extra: Value| {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 6, "return_token_ids": true, "ignore_eos": true});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let (_, forced) = call(
        &api(),
        "/v1/completions",
        &ask(json!({"logit_bias": {"77": 100}})),
    )
    .await;
    assert_eq!(ids(&forced["choices"][0]["token_ids"]), [77; 6]);
    // With a penalty on each repetition and the bias gone from the top, all are different.
    let body = ask(json!({"logit_bias": {"77": 2}, "frequency_penalty": 2, "presence_penalty": 2}));
    let (_, varied) = call(&api(), "/v1/completions", &body).await;
    let mut tokens = ids(&varied["choices"][0]["token_ids"]);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 6);
}

#[tokio::test]
async fn an_embedding_is_the_mean_of_the_hidden_states() {
    let (info, engine) = load(Family::Llama);
    let inputs = [PROMPT.to_owned(), "and then again ".repeat(8)];
    let body = json!({"input": inputs});
    let (status, answer) = call(&api(), "/v1/embeddings", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "list");
    let mut n_tokens = 0;
    for (idx, input) in inputs.iter().enumerate() {
        let tokens = info.encode_prompt(input);
        n_tokens += tokens.len();
        let mut mean = vec![0.0; info.spec.n_embd];
        let mut each = |_: usize, hidden: &[f32]| {
            for (sum, x) in mean.iter_mut().zip(hidden) {
                *sum += f64::from(*x);
            }
        };
        let mut session = engine.session(128).unwrap();
        engine
            .forward_hidden(&mut session, &tokens, &mut each)
            .unwrap();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let data = &answer["data"][idx];
        assert_eq!(
            (&data["index"], &data["object"]),
            (&json!(idx), &json!("embedding"))
        );
        let values = data["embedding"].as_array().unwrap();
        assert_eq!(values.len(), mean.len());
        for (got, want) in values.iter().zip(&mean) {
            assert!((got.as_f64().unwrap() - want / length).abs() < 1e-6);
        }
    }
    assert_eq!(answer["usage"]["prompt_tokens"], n_tokens);
    let ids = json!({"input": info.encode_prompt(PROMPT)});
    let (_, by_ids) = call(&api(), "/v1/embeddings", &ids).await;
    assert_eq!(
        by_ids["data"][0]["embedding"],
        answer["data"][0]["embedding"]
    );
    let body = json!({"input": PROMPT, "encoding_format": "base64"});
    let (_, base64) = call(&api(), "/v1/embeddings", &body).await;
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (4 * info.spec.n_embd).div_ceil(3) * 4);
}
