//! What the API refuses, and that each refusal is an OpenAI error object that names its parameter.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use axum::{body::Body, http::Request};
use common::{api, api_with, call, get, json, post, send, text};
use fledgling_lambda::{ApiOptions, ApiState, StateError};
use serde_json::{Value, json};

fn error_of(body: &Value) -> (&str, Option<&str>, Option<&str>) {
    let error = &body["error"];
    assert_eq!(error.as_object().unwrap().len(), 4, "{body}");
    assert!(error["message"].as_str().unwrap().len() > 10, "{body}");
    (
        error["type"].as_str().unwrap(),
        error["param"].as_str(),
        error["code"].as_str(),
    )
}

async fn refused(path: &str, body: Value, param: &str, code: &str) {
    let (status, answer) = call(&api(), path, &body).await;
    assert_eq!(status, 400, "{body} -> {answer}");
    assert_eq!(
        error_of(&answer),
        ("invalid_request_error", Some(param), Some(code)),
        "{body} -> {answer}"
    );
}

#[tokio::test]
async fn wrong_values_name_their_parameter() {
    let wrong = [
        ("prompt", json!(null)),
        ("prompt", json!(7)),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!([[["x"]]])),
        ("prompt", json!([1, "x"])),
        ("prompt", json!([-1])),
        ("prompt", json!([1_000_000])),
        ("prompt", json!([4_294_967_296_u64])),
        ("prompt", json!([1.5])),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("10")),
        ("max_completion_tokens", json!(0)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.1)),
        ("top_p", json!(-0.1)),
        ("top_k", json!(-2)),
        ("top_k", json!(0.5)),
        ("min_p", json!(-1)),
        ("min_p", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(-1)),
        ("seed", json!("x")),
        ("seed", json!(0.5)),
        ("stop", json!(5)),
        ("stop", json!([5])),
        ("stop", json!("")),
        ("stop", json!(["a", ""])),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!("x".repeat(1001))),
        ("stream", json!("yes")),
        ("return_token_ids", json!(1)),
        ("ignore_eos", json!(1)),
        ("model", json!(5)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("n", json!("2")),
        ("prompt", json!(vec!["x"; 17])),
        ("prompt", json!(["x", 5])),
        ("logprobs", json!(21)),
        ("logprobs", json!(-1)),
        ("logprobs", json!(true)),
        ("echo", json!("yes")),
        ("presence_penalty", json!(2.1)),
        ("frequency_penalty", json!(-2.1)),
        ("logit_bias", json!([5])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"5": 101})),
        ("logit_bias", json!({"5": "1"})),
        ("logit_bias", json!({"1000000": 1})),
    ];
    for (param, value) in wrong {
        let mut body = json!({"prompt": "x"});
        body[param] = value;
        refused("/v1/completions", body, param, "invalid_value").await;
    }
}

#[tokio::test]
async fn values_at_the_edge_are_taken() {
    let good = [
        ("temperature", json!(2)),
        ("top_p", json!(1)),
        ("top_p", json!(0)),
        ("top_k", json!(-1)),
        ("min_p", json!(0)),
        ("repetition_penalty", json!(1.0)),
        ("seed", json!(i64::MIN)),
        ("stop", json!([])),
        ("n", json!(1)),
        ("n", json!(16)),
        ("best_of", json!(1)),
        ("echo", json!(false)),
        ("logprobs", json!(null)),
        ("logit_bias", json!({})),
        ("frequency_penalty", json!(2.0)),
        ("presence_penalty", json!(-2)),
        ("logprobs", json!(20)),
        ("logit_bias", json!({"5": -100, "6": 100})),
        ("presence_penalty", json!(null)),
        ("suffix", json!(null)),
        ("max_tokens", json!(u64::MAX)),
        ("user", json!("u-1")),
        ("no_such_field", json!({"deep": [1]})),
    ];
    for (param, value) in good {
        let mut body = json!({"prompt": "x"});
        body[param] = value;
        let (status, answer) = call(&api(), "/v1/completions", &body).await;
        assert_eq!(status, 200, "{body} -> {answer}");
    }
}

#[tokio::test]
async fn what_is_not_supported_is_not_ignored() {
    let completions = [("best_of", json!(3)), ("suffix", json!("end"))];
    for (param, value) in completions {
        let mut body = json!({"prompt": "x"});
        body[param] = value;
        refused("/v1/completions", body, param, "unsupported_parameter").await;
    }
    let chats = [
        ("tools", json!([{"type": "function"}])),
        ("functions", json!([{}])),
        ("tool_choice", json!("required")),
        ("response_format", json!({"type": "json_object"})),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
    ];
    for (param, value) in chats {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body[param] = value;
        refused("/v1/chat/completions", body, param, "unsupported_parameter").await;
    }
}

#[tokio::test]
async fn what_does_not_go_together_is_refused() {
    let body = json!({"prompt": "x", "echo": true, "stream": true});
    refused("/v1/completions", body, "echo", "unsupported_parameter").await;
    let body = json!({"prompt": ["x", "y", "z"], "n": 6});
    refused("/v1/completions", body, "n", "invalid_value").await;
    let body = json!({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2});
    refused(
        "/v1/chat/completions",
        body,
        "top_logprobs",
        "invalid_value",
    )
    .await;
}

#[tokio::test]
async fn wrong_inputs_of_embeddings_say_which() {
    let path = "/v1/embeddings";
    for input in [
        json!(null),
        json!(5),
        json!([]),
        json!([[]]),
        json!(vec!["x"; 65]),
        json!([-1]),
    ] {
        refused(path, json!({"input": input}), "input", "invalid_value").await;
    }
    refused(
        path,
        json!({"input": [1_000_000]}),
        "input",
        "invalid_value",
    )
    .await;
    let body = json!({"input": "x ".repeat(500)});
    refused(path, body, "input", "context_length_exceeded").await;
    let body = json!({"input": "x", "encoding_format": "int8"});
    refused(path, body, "encoding_format", "invalid_value").await;
    let body = json!({"input": "x", "dimensions": 5});
    refused(path, body, "dimensions", "unsupported_parameter").await;
}

#[tokio::test]
async fn wrong_messages_say_which() {
    let wrong = [
        ("messages", json!(null)),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages[0]", json!(["hi"])),
        ("messages[0].role", json!([{"content": "x"}])),
        (
            "messages[1].role",
            json!([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}]),
        ),
        ("messages[0].content", json!([{"role": "user"}])),
        (
            "messages[0].content",
            json!([{"role": "user", "content": 5}]),
        ),
        (
            "messages[0].content",
            json!([{"role": "user", "content": []}]),
        ),
        (
            "messages[0].content",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ),
        (
            "messages[0].tool_calls",
            json!([{"role": "assistant", "content": "", "tool_calls": [{}]}]),
        ),
    ];
    for (param, messages) in wrong {
        refused(
            "/v1/chat/completions",
            json!({"messages": messages}),
            param,
            "invalid_value",
        )
        .await;
    }
}

#[tokio::test]
async fn stream_options_belong_to_streams() {
    let body = json!({"prompt": "x", "stream_options": {"include_usage": true}});
    refused("/v1/completions", body, "stream_options", "invalid_value").await;
    let body = json!({"prompt": "x", "stream": true, "stream_options": {"include_usage": 1}});
    refused(
        "/v1/completions",
        body,
        "stream_options.include_usage",
        "invalid_value",
    )
    .await;
}

#[tokio::test]
async fn a_prompt_beyond_the_context_says_both_lengths() {
    let prompt = vec![5; 200];
    let (status, answer) = call(&api(), "/v1/completions", &json!({"prompt": prompt})).await;
    assert_eq!(status, 400);
    assert_eq!(
        error_of(&answer),
        (
            "invalid_request_error",
            Some("prompt"),
            Some("context_length_exceeded")
        )
    );
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("200") && message.contains("128"),
        "{message}"
    );

    let messages = json!([{"role": "user", "content": "long ".repeat(100)}]);
    let (_, answer) = call(
        &api(),
        "/v1/chat/completions",
        &json!({"messages": messages}),
    )
    .await;
    assert_eq!(error_of(&answer).1, Some("messages"));
}

#[tokio::test]
async fn a_body_must_be_json_and_small_enough() {
    let api = api_with(ApiOptions {
        max_body_bytes: 1000,
        ..ApiOptions::default()
    });
    let raw = |content_type: Option<&str>, body: &str| {
        let mut request = Request::post("/v1/completions");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(Body::from(body.to_owned())).unwrap()
    };
    let good = r#"{"prompt": "x"}"#;
    let cases = [
        (None, good, 400, None),
        (Some("text/plain"), good, 400, None),
        (Some("application/x-www-form-urlencoded"), good, 400, None),
        (Some("application/json"), "", 400, None),
        (Some("application/json"), "{\"prompt\": ", 400, None),
        (Some("application/json"), "[]", 400, None),
        (
            Some("application/json"),
            r#"{"prompt": "\ud800"}"#,
            400,
            None,
        ),
        (
            Some("application/json"),
            r#"{"prompt": "x", "temperature": 1e999}"#,
            400,
            None,
        ),
        (
            Some("application/json"),
            &format!("{{\"prompt\": \"{}\"}}", "x".repeat(1000)),
            413,
            Some("body_too_large"),
        ),
        (Some("application/json"), &"[".repeat(900), 400, None),
    ];
    for (content_type, body, status, code) in cases {
        let response = send(&api, raw(content_type, body)).await;
        assert_eq!(
            response.status().as_u16(),
            status,
            "{content_type:?} {body}"
        );
        assert_eq!(
            error_of(&json(response).await).2,
            code,
            "{content_type:?} {body}"
        );
    }
    for content_type in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.x+json",
    ] {
        assert_eq!(
            send(&api, raw(Some(content_type), good)).await.status(),
            200,
            "{content_type}"
        );
    }
    let not_utf8 = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .body(Body::from(&b"{\"prompt\": \"\xff\"}"[..]))
        .unwrap();
    assert_eq!(send(&api, not_utf8).await.status(), 400);
}

#[tokio::test]
async fn an_unknown_model_is_404() {
    let paths = [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/tokenize",
        "/v1/detokenize",
    ];
    for path in paths {
        let (status, answer) = call(&api(), path, &json!({"model": "gpt-5", "prompt": "x"})).await;
        assert_eq!(status, 404);
        assert_eq!(
            error_of(&answer),
            (
                "invalid_request_error",
                Some("model"),
                Some("model_not_found")
            )
        );
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_answer_in_the_same_shape() {
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/images",
        "/v2/completions",
        "/healthz/x",
    ] {
        let response = send(&api(), get(path)).await;
        assert_eq!(response.status(), 404, "{path}");
        assert!(response.headers().contains_key("x-request-id"));
        assert_eq!(error_of(&json(response).await).2, Some("unknown_url"));
    }
    let response = send(&api(), get("/v1/completions")).await;
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "POST");
    assert_eq!(
        error_of(&json(response).await).2,
        Some("method_not_allowed")
    );
    let response = send(&api(), post("/v1/models", &json!({}))).await;
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "GET,HEAD");
}

#[tokio::test]
async fn tokenize_wants_one_thing() {
    refused("/v1/tokenize", json!({}), "prompt", "invalid_value").await;
    refused(
        "/v1/tokenize",
        json!({"prompt": 5}),
        "prompt",
        "invalid_value",
    )
    .await;
    refused(
        "/v1/tokenize",
        json!({"prompt": "x", "messages": []}),
        "prompt",
        "invalid_value",
    )
    .await;
    refused("/v1/detokenize", json!({}), "tokens", "invalid_value").await;
    refused(
        "/v1/detokenize",
        json!({"tokens": [-1]}),
        "tokens",
        "invalid_value",
    )
    .await;
    refused(
        "/v1/detokenize",
        json!({"tokens": [999_999]}),
        "tokens",
        "invalid_value",
    )
    .await;
}

#[tokio::test]
async fn keys_guard_all_of_v1() {
    let keys = vec!["first-key".to_owned(), "second-key".to_owned()];
    let api = api_with(ApiOptions {
        api_keys: keys,
        ..ApiOptions::default()
    });
    let ask = |path: &str, authorization: Option<&str>| {
        let mut request = get(path);
        if let Some(value) = authorization {
            request
                .headers_mut()
                .insert("authorization", value.parse().unwrap());
        }
        request
    };
    for good in ["Bearer first-key", "bearer second-key", "Bearer  first-key"] {
        assert_eq!(
            send(&api, ask("/v1/models", Some(good))).await.status(),
            200,
            "{good}"
        );
    }
    let bad = [
        "Bearer first-ke",
        "Bearer first-key2",
        "Bearer",
        "Bearer ",
        "Basic first-key",
        "first-key",
    ];
    for path in ["/v1/models", "/v1/nothing"] {
        for bad in bad.into_iter().map(Some).chain([None]) {
            let response = send(&api, ask(path, bad)).await;
            assert_eq!(response.status(), 401, "{bad:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert_eq!(error_of(&json(response).await).2, Some("invalid_api_key"));
        }
    }
}

#[tokio::test]
async fn request_ids_come_back() {
    let own = send(&api(), get("/healthz")).await;
    assert!(
        own.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .starts_with("req_")
    );
    for (given, kept) in [
        ("my-id_1.2:3", true),
        ("two words", false),
        (&*"x".repeat(129), false),
    ] {
        let mut request = get("/healthz");
        request
            .headers_mut()
            .insert("x-request-id", given.parse().unwrap());
        let response = send(&api(), request).await;
        assert_eq!(
            response.headers()["x-request-id"] == *given,
            kept,
            "{given}"
        );
    }
}

#[tokio::test]
async fn pages_of_other_origins_need_leave() {
    let preflight = |origin: &str| {
        Request::options("/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,x-stainless-os",
            )
            .body(Body::empty())
            .unwrap()
    };
    let closed = send(&api(), preflight("https://a.example")).await;
    assert!(!closed.headers().contains_key("access-control-allow-origin"));

    let keys = vec!["k".to_owned()];
    let one = api_with(ApiOptions {
        allow_origins: vec!["https://a.example".into()],
        api_keys: keys,
        ..ApiOptions::default()
    });
    let allowed = send(&one, preflight("https://a.example")).await;
    assert_eq!(allowed.status(), 200, "a preflight carries no key");
    assert_eq!(
        allowed.headers()["access-control-allow-origin"],
        "https://a.example"
    );
    assert_eq!(
        allowed.headers()["access-control-allow-headers"],
        "authorization,x-stainless-os"
    );
    let other = send(&one, preflight("https://b.example")).await;
    assert!(!other.headers().contains_key("access-control-allow-origin"));

    let any = api_with(ApiOptions {
        allow_origins: vec!["*".into()],
        ..ApiOptions::default()
    });
    let mut request = post("/v1/completions", &json!({"model": "none"}));
    request
        .headers_mut()
        .insert("origin", "https://c.example".parse().unwrap());
    let response = send(&any, request).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    assert!(
        text(response).await.contains("model_not_found"),
        "errors can be read by the page too"
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let new = |options: ApiOptions| {
        let (info, engine) = common::load(fledgling_core::spec::Family::Llama);
        ApiState::new(info, engine, options).unwrap_err()
    };
    let options = ApiOptions::default;
    assert!(matches!(
        new(ApiOptions {
            api_keys: vec![String::new()],
            ..options()
        }),
        StateError::EmptyKey
    ));
    assert!(matches!(
        new(ApiOptions {
            n_ctx: Some(1),
            ..options()
        }),
        StateError::ContextTooSmall(1)
    ));
    let origins = vec!["example.org".to_owned()];
    assert!(matches!(
        new(ApiOptions {
            allow_origins: origins,
            ..options()
        }),
        StateError::BadOrigin(_)
    ));
}
