//! Requests that share the engine: each says what it says alone, and what they have in common is computed once.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{api, api_with, call, chunks, get, load, post, reference, send, text};
use fledgling_core::{sampler::SamplerParams, spec::Family};
use fledgling_lambda::{ApiOptions, ApiState, router};
use serde_json::{Value, json};
use std::time::Duration;

const LONG: &str =
    "Once upon a time there was a small bird who lived in a large tree by the sea and sang";

/// Texts of the choices, in the order of their index.
fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    for (idx, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], idx);
    }
    choices
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect()
}

fn cached(answer: &Value) -> u64 {
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap()
}

/// Requests of all kinds.
fn requests() -> Vec<Value> {
    let mut requests: Vec<Value> = (0..12)
        .map(|i| json!({"prompt": format!("{i} {LONG}"), "max_tokens": 8 + 4 * i, "ignore_eos": i % 2 == 0}))
        .collect();
    requests[1]["temperature"] = json!(0.9);
    requests[1]["seed"] = json!(3);
    requests[2]["stop"] = json!("e");
    requests[3] = json!({"prompt": "x", "max_tokens": 120});
    requests[4]["repetition_penalty"] = json!(1.3);
    requests[5]["frequency_penalty"] = json!(0.7);
    requests[5]["presence_penalty"] = json!(0.2);
    requests[6] = requests[7].clone();
    requests
}

async fn alone(requests: &[Value]) -> Vec<Value> {
    let mut answers = Vec::new();
    for body in requests {
        let (status, answer) = call(&api(), "/v1/completions", body).await;
        assert_eq!(status, 200, "{answer}");
        answers.push(answer);
    }
    answers
}

async fn together(options: ApiOptions, requests: &[Value]) -> (Vec<Value>, ApiState) {
    let (info, engine) = load(Family::Llama);
    let state = ApiState::new(info, engine, options).unwrap();
    let running: Vec<_> = (requests.iter())
        .map(|body| {
            let (api, body) = (router(state.clone()), body.clone());
            tokio::spawn(async move { call(&api, "/v1/completions", &body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for running in running {
        let (status, answer) = running.await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answers.push(answer);
    }
    (answers, state)
}

fn assert_same(together: &[Value], alone: &[Value]) {
    for (i, (together, alone)) in together.iter().zip(alone).enumerate() {
        assert_eq!(together["choices"], alone["choices"], "request {i}");
        let n = |answer: &Value| answer["usage"]["completion_tokens"].clone();
        assert_eq!(n(together), n(alone), "request {i}");
    }
}

#[tokio::test]
async fn what_runs_together_says_what_it_says_alone() {
    let requests = requests();
    let alone = alone(&requests).await;
    let (answers, state) = together(ApiOptions::default(), &requests).await;
    assert_same(&answers, &alone);
    let stats = state.stats();
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (12, 0, 0));
    let figures = state.prometheus();
    let generated: u64 = alone
        .iter()
        .map(|answer| answer["usage"]["completion_tokens"].as_u64().unwrap())
        .sum();
    // End tokens are generated too.
    assert!(
        (generated..=generated + 12).contains(&stats.generated_tokens),
        "{stats:?}"
    );
    let passes: u64 = figures
        .lines()
        .find_map(|line| line.strip_prefix("fledgling_forward_passes_total "))
        .and_then(|n| n.parse().ok())
        .unwrap();
    assert!(
        passes < generated / 2,
        "{passes} passes for {generated} tokens"
    );
}

#[tokio::test]
async fn without_memory_for_all_they_take_turns_and_say_the_same() {
    let requests: Vec<Value> = (0..6)
        .map(|i| json!({"prompt": format!("{i} {LONG}"), "max_tokens": 60, "ignore_eos": true, "temperature": 1, "seed": i}))
        .collect();
    let alone = alone(&requests).await;
    // As much as one whole context takes.
    let options = ApiOptions {
        kv_bytes: 0,
        ..ApiOptions::default()
    };
    let (answers, state) = together(options, &requests).await;
    assert_same(&answers, &alone);
    assert_eq!(state.stats().failed, 0);
}

#[tokio::test]
async fn drafts_change_no_text() {
    let mut requests = requests();
    requests.push(
        json!({"prompt": "a b c d a b c d a b c d a b", "max_tokens": 90, "ignore_eos": true}),
    );
    requests.push(
        json!({"prompt": "a b c d a b c d a b", "max_tokens": 90, "temperature": 0.5, "seed": 9}),
    );
    let alone = alone(&requests).await;
    let options = || ApiOptions {
        speculate: Some(8),
        ..ApiOptions::default()
    };
    let (answers, _) = together(options(), &requests).await;
    assert_same(&answers, &alone);
    let mut n_accepted = 0;
    for (body, alone) in requests.iter().zip(&alone) {
        let (answers, state) = together(options(), std::slice::from_ref(body)).await;
        assert_same(&answers, std::slice::from_ref(alone));
        let figures = state.prometheus();
        let line = figures
            .lines()
            .find_map(|line| line.strip_prefix("fledgling_accepted_tokens_total "));
        n_accepted += line.unwrap().parse::<u64>().unwrap();
    }
    assert!(n_accepted > 0, "some drafts were right");
}

#[tokio::test]
async fn a_shared_beginning_is_computed_once() {
    let ask = |end: &str| json!({"prompt": format!("{LONG} {end}"), "max_tokens": 8});
    let requests: Vec<Value> = ["of", "and", "the", "x"].map(ask).to_vec();
    let alone = alone(&requests).await;
    let (answers, state) = together(ApiOptions::default(), &requests).await;
    assert_same(&answers, &alone);
    let (info, _) = load(Family::Llama);
    let n_common = info.encode_prompt(LONG).len() as u64;
    let n_sharing = answers
        .iter()
        .filter(|answer| cached(answer) + 1 >= n_common)
        .count();
    assert_eq!(n_sharing, 3, "all but the first: {answers:?}");
    // And the next one, when all have ended; and a conversation that goes on from an answer.
    let api = router(state);
    let mut body = ask("again");
    body["return_token_ids"] = json!(true);
    let (_, later) = call(&api, "/v1/completions", &body).await;
    assert!(cached(&later) + 1 >= n_common, "{later}");
    let ids = |key: &str| later["choices"][0][key].as_array().unwrap().clone();
    let prompt = [
        ids("prompt_token_ids"),
        ids("token_ids"),
        vec![json!(5), json!(6)],
    ]
    .concat();
    let body = json!({"prompt": prompt, "max_tokens": 8});
    let (_, longer) = call(&api, "/v1/completions", &body).await;
    assert_eq!(cached(&longer) as usize, prompt.len() - 3, "{longer}");
    let (_, cold) = call(&common::api(), "/v1/completions", &body).await;
    assert_same(&[longer], &[cold]);
}

#[tokio::test]
async fn several_answers_are_those_of_several_requests() {
    let api = api();
    let body =
        json!({"prompt": ["Once", LONG], "n": 3, "temperature": 1, "seed": 5, "max_tokens": 12});
    let (status, answer) = call(&api, "/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    let mut expected = Vec::new();
    let mut n_prompt = 0;
    for prompt in ["Once", LONG] {
        for seed in 5..8 {
            let body = json!({"prompt": prompt, "temperature": 1, "seed": seed, "max_tokens": 12});
            let (_, one) = call(&common::api(), "/v1/completions", &body).await;
            expected.push(one["choices"][0]["text"].as_str().unwrap().to_owned());
            if seed == 5 {
                n_prompt += one["usage"]["prompt_tokens"].as_u64().unwrap();
            }
        }
    }
    assert_eq!(texts(&answer), expected);
    assert_eq!(
        answer["usage"]["prompt_tokens"], n_prompt,
        "a prompt counts once"
    );

    let mut body = body;
    body["stream"] = json!(true);
    let chunks = chunks(&text(send(&api, post("/v1/completions", &body)).await).await);
    let mut streamed = vec![String::new(); 6];
    let mut n_ends = 0;
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let idx = choice["index"].as_u64().unwrap() as usize;
        streamed[idx] += choice["text"].as_str().unwrap();
        n_ends += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!((streamed, n_ends), (expected, 6));
}

#[tokio::test]
async fn chats_have_several_choices_too() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "n": 2, "max_tokens": 6});
    let (_, answer) = call(&api(), "/v1/chat/completions", &body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    assert_eq!(choices[0]["message"], choices[1]["message"], "greedy");
    let mut body = body;
    body["stream"] = json!(true);
    let stream = text(send(&api(), post("/v1/chat/completions", &body)).await).await;
    let roles = chunks(&stream)
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"]["role"] == "assistant")
        .count();
    assert_eq!(roles, 2);
}

#[tokio::test]
async fn a_timeout_that_is_not_reached_changes_nothing() {
    let api = api_with(ApiOptions {
        timeout: Some(Duration::from_mins(10)),
        ..ApiOptions::default()
    });
    let (info, _) = load(Family::Llama);
    let prompt = info.encode_prompt(LONG);
    let (_, expected, _) = reference(Family::Llama, &prompt, 8, SamplerParams::default(), &[]);
    let (_, answer) = call(
        &api,
        "/v1/completions",
        &json!({"prompt": LONG, "max_tokens": 8}),
    )
    .await;
    assert_eq!(texts(&answer), [expected]);
}

#[tokio::test]
async fn readiness_needs_no_key() {
    let api = api_with(ApiOptions {
        api_keys: vec!["k".into()],
        ..ApiOptions::default()
    });
    assert_eq!(send(&api, get("/readyz")).await.status(), 200);
}
