//! The router over a stand-in for the engine, for what a real engine does not do on demand: panic, fail, be slow, and
//! write a word byte by byte.
#![allow(clippy::unwrap_used, reason = "a test")]

use crate::{
    ApiOptions, ApiState, router,
    worker::{Job, Runner},
};
use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use fledgling_core::{
    gguf::Gguf, model::ModelInfo, quant::DType, spec::Family, testing::tiny_model,
    tokenizer::Tokenizer,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread::sleep,
    time::{Duration, Instant},
};
use tower::ServiceExt;

const N_CTX: usize = 128;

struct Scripted<F>(F);

impl<F: FnMut(&mut Job) -> Result<(), String> + Send + 'static> Runner for Scripted<F> {
    fn run(&mut self, job: &mut Job) -> Result<(), String> {
        (self.0)(job)
    }
}

fn info() -> ModelInfo {
    let file = tiny_model(Family::Llama, DType::F32, 1);
    ModelInfo::from_header(Gguf::parse(file.into()).unwrap().header()).unwrap()
}

fn state(
    max_queue: usize,
    script: impl FnMut(&mut Job) -> Result<(), String> + Send + 'static,
) -> ApiState {
    let options = ApiOptions {
        max_queue,
        ..ApiOptions::default()
    };
    ApiState::with_runner(info(), Scripted(script), N_CTX, options).unwrap()
}

/// The ids of `text`, one for each byte.
fn byte_tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let id_of = |byte: u8| {
        (0..tokenizer.vocab_size() as u32)
            .find(|&id| tokenizer.token_bytes(id) == [byte])
            .unwrap()
    };
    text.bytes().map(id_of).collect()
}

/// Says `text` byte by byte, then the end token.
fn say(job: &mut Job, tokenizer: &Tokenizer, text: &str) {
    job.prefilled(0);
    let end = tokenizer.eos().unwrap();
    for token in byte_tokens(tokenizer, text).into_iter().chain([end]) {
        let step = job.generation.accept(token);
        if !job.step(step) {
            return;
        }
    }
}

fn ask(body: &Value) -> Request<Body> {
    Request::post("/v1/completions")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

async fn send(state: &ApiState, body: &Value) -> (StatusCode, HeaderMap, String) {
    let response = router(state.clone()).oneshot(ask(body)).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, headers, String::from_utf8(bytes.to_vec()).unwrap())
}

fn events(body: &str) -> Vec<&str> {
    body.split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "never came: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_character_is_never_split_between_chunks() {
    let text = "né 日本 😀!";
    let tokenizer = info().tokenizer;
    let state = state(1, move |job| {
        say(job, &tokenizer, text);
        Ok(())
    });
    let body = json!({"prompt": "x", "max_tokens": 100, "stream": true, "return_token_ids": true});
    let (_, _, body) = send(&state, &body).await;
    let chunks: Vec<Value> = events(&body)
        .iter()
        .filter(|e| **e != "[DONE]")
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    let pieces: Vec<&str> = chunks
        .iter()
        .map(|c| c["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(pieces.concat(), text);
    assert!(pieces.len() > 5, "it came in pieces: {pieces:?}");
    assert!(
        pieces.iter().all(|piece| !piece.contains('\u{FFFD}')),
        "{pieces:?}"
    );
    let n_ids: usize = chunks
        .iter()
        .map(|c| c["choices"][0]["token_ids"].as_array().unwrap().len())
        .sum();
    assert_eq!(
        n_ids,
        text.len(),
        "the ids of held back bytes go out with their character"
    );
}

#[tokio::test]
async fn a_panic_ends_one_request_and_tells_the_client_nothing() {
    let tokenizer = info().tokenizer;
    let mut n_jobs = 0;
    let state = state(1, move |job| {
        n_jobs += 1;
        assert!(n_jobs != 1, "secret of the inside");
        say(job, &tokenizer, "well");
        Ok(())
    });
    let (status, headers, body) = send(&state, &json!({"prompt": "x"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(headers.contains_key("x-request-id"));
    assert!(!body.contains("secret"), "{body}");
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(error["error"]["type"], "server_error");

    let (status, _, body) = send(&state, &json!({"prompt": "x"})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("well"), "{body}");
    assert_eq!(state.stats().failed, 1);
}

#[tokio::test]
async fn a_failure_after_the_headers_is_an_event_and_no_done() {
    let tokenizer = info().tokenizer;
    let state = state(1, move |job| {
        job.prefilled(0);
        let step = job.generation.accept(byte_tokens(&tokenizer, "a")[0]);
        job.step(step);
        Err("secret of the inside".to_owned())
    });
    let (status, _, body) = send(&state, &json!({"prompt": "x", "stream": true})).await;
    assert_eq!(status, StatusCode::OK);
    let events = events(&body);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "internal_error");
    assert!(
        !body.contains("secret") && !body.contains("[DONE]"),
        "{body}"
    );
}

#[tokio::test]
async fn a_full_queue_is_429_and_turns_come_in_order() {
    let (release, gate) = mpsc::channel::<()>();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (tokenizer, seen) = (info().tokenizer, Arc::clone(&order));
    let state = state(2, move |job| {
        gate.recv().unwrap();
        seen.lock().unwrap().push(job.generation.prompt().to_vec());
        say(job, &tokenizer, "ok");
        Ok(())
    });
    let mut requests = Vec::new();
    for (idx, token) in [10, 11, 12].into_iter().enumerate() {
        let (of_request, body) = (state.clone(), json!({"prompt": [token]}));
        requests.push(tokio::spawn(async move { send(&of_request, &body).await }));
        until("a place in the queue", || {
            let stats = state.stats();
            (stats.running, stats.waiting) == (1, idx)
        })
        .await;
    }
    let (status, headers, body) = send(&state, &json!({"prompt": [13]})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["error"]["code"],
        "queue_full"
    );

    for _ in 0..3 {
        release.send(()).unwrap();
    }
    for request in requests {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(*order.lock().unwrap(), [[10], [11], [12]]);
    assert_eq!(state.stats().rejected, 1);
}

#[tokio::test]
async fn a_waiting_client_that_leaves_gives_its_place_back() {
    let (release, gate) = mpsc::channel::<()>();
    let tokenizer = info().tokenizer;
    let state = state(1, move |job| {
        gate.recv().unwrap();
        say(job, &tokenizer, "ok");
        Ok(())
    });
    let request = |token: u32| {
        let (state, body) = (state.clone(), json!({"prompt": [token]}));
        tokio::spawn(async move { send(&state, &body).await.0 })
    };
    let first = request(10);
    until("the first runs", || state.stats().running == 1).await;
    let second = request(11);
    until("the second waits", || state.stats().waiting == 1).await;
    second.abort();
    until("the second has left", || state.stats().waiting == 0).await;
    let third = request(12);
    until("the third waits", || state.stats().waiting == 1).await;
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert_eq!(first.await.unwrap(), StatusCode::OK);
    assert_eq!(third.await.unwrap(), StatusCode::OK);
    assert_eq!(state.stats().completed, 2, "the second never ran");
    assert_eq!(state.stats().cancelled, 1);
}

/// A server on a socket whose model takes 10 ms a token and never ends by itself.
async fn slow_server() -> (ApiState, SocketAddr) {
    let tokenizer = info().tokenizer;
    let state = state(1, move |job| {
        job.prefilled(0);
        let token = byte_tokens(&tokenizer, "a")[0];
        loop {
            sleep(Duration::from_millis(10));
            let step = job.generation.accept(token);
            if !job.step(step) {
                return Ok(());
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router(state.clone())).into_future());
    (state, addr)
}

fn request_on_socket(addr: SocketAddr, stream: bool) -> TcpStream {
    let body = json!({"prompt": "x", "max_tokens": 100, "stream": stream}).to_string();
    let mut socket = TcpStream::connect(addr).unwrap();
    write!(
        socket,
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_stops_a_streamed_answer() {
    let (state, addr) = slow_server().await;
    let mut socket = request_on_socket(addr, true);
    until("it generates", || state.stats().generated_tokens > 2).await;
    let mut some = [0; 64];
    assert!(socket.read(&mut some).unwrap() > 0);
    drop(socket);
    until("the generation was cancelled", || {
        state.stats().cancelled == 1
    })
    .await;
    assert!(state.stats().generated_tokens < 50, "{:?}", state.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_stops_a_whole_answer() {
    let (state, addr) = slow_server().await;
    let socket = request_on_socket(addr, false);
    until("it generates", || state.stats().generated_tokens > 2).await;
    drop(socket);
    until("the generation was cancelled", || {
        state.stats().cancelled == 1
    })
    .await;
    assert!(state.stats().generated_tokens < 50, "{:?}", state.stats());
}
