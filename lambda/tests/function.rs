//! The Lambda function as a process behind a Runtime API: what Lambda's own events make of the router, streamed and
//! in one piece, and how it fails when it cannot start.
#![allow(clippy::unwrap_used, reason = "a test")]
#![cfg(feature = "aws")]

mod common;
#[path = "../../tests/src/runtime_api.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is a module of the crate fledgling-tests, which this crate does not depend on: that one pulls in Burn"
)]
mod runtime_api;

use common::{chunks, load, model_file, reference};
use fledgling_core::{sampler::SamplerParams, spec::Family};
use runtime_api::{Answer, Function, RuntimeApi, rest_event, url_event};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_fledgling-lambda");
const JSON: (&str, &str) = ("content-type", "application/json");

/// A package with a model in it, and the function started from it.
fn start(api: &RuntimeApi, vars: &[(&str, &str)]) -> (TempDir, Function) {
    let package = tempfile::tempdir().unwrap();
    std::fs::write(package.path().join("model.gguf"), model_file(Family::Llama)).unwrap();
    let root = package.path().to_str().unwrap().to_owned();
    let mut all = vec![("LAMBDA_TASK_ROOT", root.as_str())];
    all.extend(vars);
    let function = api.spawn(Path::new(BINARY), 1769, &all).unwrap();
    (package, function)
}

fn ask(api: &RuntimeApi, event: &Value) -> Answer {
    api.invoke(event).answer().unwrap()
}

/// What core says to `prompt` in 12 tokens.
fn expected(prompt: &str) -> String {
    let (info, _) = load(Family::Llama);
    let prompt = info.encode_prompt(prompt);
    reference(Family::Llama, &prompt, 12, SamplerParams::default(), &[]).1
}

#[test]
fn a_function_url_streams_the_text_of_core() {
    let api = RuntimeApi::start().unwrap();
    let (_package, function) = start(&api, &[]);
    let expected = expected("Hello");
    let body = json!({"prompt": "Hello", "max_tokens": 12, "stream": true}).to_string();
    let answer = ask(
        &api,
        &url_event("POST", "/v1/completions", &[JSON], Some(Ok(&body))),
    );
    assert!(answer.is_streamed);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(
        answer.header("x-request-id"),
        Some("00000000-0000-0000-0000-000000000001")
    );
    let streamed: String = chunks(&answer.text())
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(streamed, expected);

    // The same environment goes on with the next invocation, here with a body in base64.
    let base64 = "eyJwcm9tcHQiOiAiSGVsbG8iLCAibWF4X3Rva2VucyI6IDEyfQ==";
    let whole = ask(
        &api,
        &url_event("POST", "/v1/completions", &[JSON], Some(Err(base64))),
    );
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.header("content-type"), Some("application/json"));
    assert_eq!(whole.json()["choices"][0]["text"], expected);

    assert_eq!(api.violations(), Vec::<String>::new());
    let log = function.into_log();
    assert!(
        log.contains("\"ready\"") && log.contains("\"generation\""),
        "{log}"
    );
    assert!(
        !log.contains("Hello") && !log.contains(expected.as_str()),
        "no text in the log: {log}"
    );
    assert!(
        log.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "JSON lines: {log}"
    );
}

#[test]
fn invocations_queue_one_after_another() {
    let api = RuntimeApi::start().unwrap();
    let (_package, _function) = start(&api, &[]);
    let body = json!({"prompt": "Hello", "max_tokens": 12}).to_string();
    let event = url_event("POST", "/v1/completions", &[JSON], Some(Ok(&body)));
    let pending: Vec<_> = (0..5).map(|_| api.invoke(&event)).collect();
    let expected = expected("Hello");
    for pending in pending {
        assert_eq!(
            pending.answer().unwrap().json()["choices"][0]["text"],
            expected
        );
    }
    assert_eq!(api.violations(), Vec::<String>::new());
}

#[test]
fn refusals_reach_the_client_and_the_function_lives_on() {
    let api = RuntimeApi::start().unwrap();
    let (_package, _function) = start(&api, &[("FLEDGLING_API_KEYS", "secret-key")]);
    let key = ("authorization", "Bearer secret-key");
    let closed = ask(&api, &url_event("GET", "/v1/models", &[], None));
    assert_eq!(closed.status(), 401);
    assert_eq!(closed.json()["error"]["code"], "invalid_api_key");
    let lost = ask(&api, &url_event("GET", "/v1/nothing", &[key], None));
    assert_eq!(lost.status(), 404);
    let broken = ask(
        &api,
        &url_event("POST", "/v1/completions", &[key, JSON], Some(Ok("{"))),
    );
    assert_eq!(broken.status(), 400);
    // An event that is no HTTP request is an error of that invocation alone.
    assert!(api.invoke(&json!({"hello": 1})).answer().is_err());
    let models = ask(&api, &url_event("GET", "/v1/models", &[key], None));
    assert_eq!(models.status(), 200);
    assert_eq!(models.json()["object"], "list");
    assert_eq!(api.violations(), Vec::<String>::new());
}

#[test]
fn an_api_gateway_gets_whole_answers_where_it_cannot_stream() {
    let api = RuntimeApi::start().unwrap();
    let (_package, _function) = start(
        &api,
        &[
            ("FLEDGLING_INVOKE_MODE", "buffered"),
            ("FLEDGLING_N_CTX", "64"),
        ],
    );
    let expected = expected("Hello");
    let body = json!({"prompt": "Hello", "max_tokens": 12}).to_string();
    for event in [rest_event, url_event] {
        let answer = ask(
            &api,
            &event("POST", "/v1/completions", &[JSON], Some(Ok(&body))),
        );
        assert!(!answer.is_streamed);
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.json()["choices"][0]["text"], expected);
    }
    // Under an HTTP API's own stage the path begins with it.
    let mut event = url_event("GET", "/prod/v1/models", &[], None);
    event["requestContext"]["stage"] = json!("prod");
    let models = ask(&api, &event);
    assert_eq!(models.status(), 200);
    assert_eq!(models.json()["data"][0]["max_model_len"], 64);
    // A stream is a text like any other then.
    let body = json!({"prompt": "Hello", "max_tokens": 12, "stream": true}).to_string();
    let answer = ask(
        &api,
        &rest_event("POST", "/v1/completions", &[JSON], Some(Ok(&body))),
    );
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text: String = chunks(&answer.text())
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, expected);
    assert_eq!(api.violations(), Vec::<String>::new());
}

#[test]
fn a_rest_api_can_stream() {
    let api = RuntimeApi::start().unwrap();
    let (_package, _function) = start(&api, &[]);
    let answer = ask(&api, &rest_event("GET", "/v1/models", &[], None));
    assert!(answer.is_streamed);
    assert_eq!(answer.status(), 200);
    assert_eq!(api.violations(), Vec::<String>::new());
}

#[test]
fn what_it_cannot_start_with_is_one_line_and_an_exit_code() {
    let api = RuntimeApi::start().unwrap();
    let package = tempfile::tempdir().unwrap();
    let root = package.path().to_str().unwrap();
    let fails = |vars: &[(&str, &str)], reason: &str| {
        let mut all = vec![("LAMBDA_TASK_ROOT", root)];
        all.extend(vars);
        let (status, log) = api
            .spawn(Path::new(BINARY), 512, &all)
            .unwrap()
            .wait()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        let line: Value = serde_json::from_str(&log).unwrap();
        assert_eq!(line["level"], "ERROR");
        let error = line["fields"]["error"].as_str().unwrap();
        assert!(error.contains(reason), "{error}");
    };
    fails(&[], "model.gguf");
    std::fs::write(
        package.path().join("model.gguf"),
        b"GGML, not what it should be",
    )
    .unwrap();
    fails(&[], "model.gguf");
    std::fs::write(
        package.path().join("cut.gguf"),
        &model_file(Family::Llama)[..5000],
    )
    .unwrap();
    fails(&[("FLEDGLING_MODEL", "cut.gguf")], "cut.gguf");
    fails(&[("FLEDGLING_THREADS", "many")], "FLEDGLING_THREADS");
    assert_eq!(api.first_next(), None, "it never asked for an event");
}

#[test]
fn it_is_ready_soon() {
    let api = RuntimeApi::start().unwrap();
    let (_package, function) = start(&api, &[]);
    let answer = ask(&api, &url_event("GET", "/healthz", &[], None));
    assert_eq!(answer.status(), 200);
    let init = api.first_next().unwrap() - function.spawned;
    assert!(
        init < Duration::from_secs(10),
        "Lambda gives 10 s to initialise, it took {init:?}"
    );
}
