//! The router over a stand-in for the engine, for what a real engine does not do on demand: panic, fail, be slow, and
//! write a word byte by byte.
#![allow(clippy::unwrap_used, reason = "a test")]

use crate::{
    ApiOptions, ApiState,
    batch::{Forward, Reduce, Row},
    router,
};
use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, EngineError, Feed},
    gguf::Gguf,
    model::ModelInfo,
    quant::DType,
    spec::Family,
    testing::tiny_model,
    tokenizer::Tokenizer,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread::sleep,
    time::{Duration, Instant},
};
use tower::ServiceExt;

const N_CTX: usize = 128;

/// The engine, but that a script says which token follows a context, or fails.
struct Scripted<F> {
    engine: CpuEngine,
    script: F,
    /// Feeds of the fullest pass.
    fullest: Arc<AtomicUsize>,
}

impl<F> Forward for Scripted<F>
where
    F: FnMut(&[u32]) -> Result<u32, EngineError> + Send + 'static,
{
    fn engine(&self) -> &CpuEngine {
        &self.engine
    }

    fn forward(
        &mut self,
        feeds: &mut [Feed<'_>],
        reduce: &Reduce<'_>,
    ) -> Result<Vec<Row>, EngineError> {
        self.fullest.fetch_max(feeds.len(), Relaxed);
        let mut rows = Vec::new();
        for (i, feed) in feeds.iter().enumerate() {
            let context = [feed.session.tokens(), feed.tokens].concat();
            let n_past = feed.session.tokens().len();
            for t in feed.wanted_from..feed.tokens.len() {
                let token = (self.script)(&context[..=n_past + t])?;
                let mut logits = vec![0.0; self.engine.spec().vocab_size];
                logits[token as usize] = 9.0;
                rows.push(reduce(i, t, &logits));
            }
        }
        self.engine.forward_batch(feeds, &|_, _, _| ())?;
        Ok(rows)
    }
}

fn load() -> (ModelInfo, CpuEngine) {
    let gguf = Gguf::parse(tiny_model(Family::Llama, DType::F32, 1).into()).unwrap();
    let info = ModelInfo::from_header(gguf.header()).unwrap();
    (info, CpuEngine::new(&gguf, &CpuOptions::default()).unwrap())
}

fn info() -> ModelInfo {
    load().0
}

fn state_with(
    options: ApiOptions,
    script: impl FnMut(&[u32]) -> Result<u32, EngineError> + Send + 'static,
) -> (ApiState, Arc<AtomicUsize>) {
    let (info, engine) = load();
    let fullest = Arc::new(AtomicUsize::new(0));
    let scripted = Scripted {
        engine,
        script,
        fullest: Arc::clone(&fullest),
    };
    let state = ApiState::with_forward(info, scripted, N_CTX, options).unwrap();
    (state, fullest)
}

/// A server of one generation at a time.
fn state(
    max_queue: usize,
    script: impl FnMut(&[u32]) -> Result<u32, EngineError> + Send + 'static,
) -> ApiState {
    let options = ApiOptions {
        max_queue,
        max_running: 1,
        ..ApiOptions::default()
    };
    state_with(options, script).0
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

/// Says `text` byte by byte behind a prompt of one token, then the end token.
fn saying(text: &str) -> impl Fn(&[u32]) -> u32 + Send + 'static {
    let tokenizer = info().tokenizer;
    let (tokens, end) = (byte_tokens(&tokenizer, text), tokenizer.eos().unwrap());
    move |context| tokens.get(context.len() - 1).copied().unwrap_or(end)
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
    let next = saying(text);
    let state = state(1, move |context| Ok(next(context)));
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
    let next = saying("well");
    let state = state(1, move |context| {
        assert!(context[0] != 10, "secret of the inside");
        Ok(next(context))
    });
    let (status, headers, body) = send(&state, &json!({"prompt": [10]})).await;
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
    let next = saying("abc");
    let state = state(1, move |context| match context.len() {
        1 => Ok(next(context)),
        _ => Err(EngineError::Thread("secret of the inside".into())),
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

/// Requests whose prompts are one token each, one after the other in the queue.
async fn queue_up(
    state: &ApiState,
    tokens: &[u32],
) -> Vec<tokio::task::JoinHandle<(StatusCode, String)>> {
    let mut requests = Vec::new();
    for &token in tokens {
        let (of_request, body) = (state.clone(), json!({"prompt": [token]}));
        requests.push(tokio::spawn(async move {
            let (status, _, body) = send(&of_request, &body).await;
            (status, body)
        }));
        until("a place in the queue", || {
            let stats = state.stats();
            stats.running + stats.waiting == requests.len()
        })
        .await;
    }
    requests
}

#[tokio::test]
async fn a_full_queue_is_429_and_turns_come_in_order() {
    let (release, gate) = mpsc::channel::<()>();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (next, seen) = (saying("ok"), Arc::clone(&order));
    let state = state(2, move |context| {
        if context.len() == 1 {
            gate.recv().unwrap();
            seen.lock().unwrap().push(context[0]);
        }
        Ok(next(context))
    });
    let requests = queue_up(&state, &[10, 11, 12]).await;
    let (status, headers, body) = send(&state, &json!({"prompt": [13]})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["error"]["code"],
        "queue_full"
    );
    let readyz = Request::get("/readyz").body(Body::empty()).unwrap();
    let readyz = router(state.clone()).oneshot(readyz).await.unwrap();
    assert_eq!(readyz.status(), StatusCode::SERVICE_UNAVAILABLE);

    for _ in 0..3 {
        release.send(()).unwrap();
    }
    for request in requests {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(*order.lock().unwrap(), [10, 11, 12]);
    assert_eq!(state.stats().rejected, 1);
}

#[tokio::test]
async fn a_waiting_client_that_leaves_gives_its_place_back() {
    let (release, gate) = mpsc::channel::<()>();
    let next = saying("ok");
    let state = state(1, move |context| {
        if context.len() == 1 {
            gate.recv().unwrap();
        }
        Ok(next(context))
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

/// Those that share a pass with one that panics or fails in its middle hear nothing of it.
#[tokio::test]
async fn a_fault_in_a_shared_pass_is_its_own_alone() {
    let (release, gate) = mpsc::channel::<()>();
    let mut is_held = true;
    let next = saying("all is well");
    let (state, fullest) = state_with(ApiOptions::default(), move |context| {
        if std::mem::replace(&mut is_held, false) {
            gate.recv().unwrap();
        }
        assert!(context[0] != 11 || context.len() < 3, "secret");
        if context[0] == 12 && context.len() == 4 {
            return Err(EngineError::NoThreads);
        }
        Ok(next(context))
    });
    let requests = queue_up(&state, &[10, 11, 12, 13]).await;
    release.send(()).unwrap();
    let mut statuses = Vec::new();
    for request in requests {
        let (status, body) = request.await.unwrap();
        statuses.push(status.as_u16());
        assert_eq!(
            body.contains("all is well"),
            status == StatusCode::OK,
            "{body}"
        );
    }
    assert_eq!(statuses, [200, 500, 500, 200]);
    assert_eq!(fullest.load(Relaxed), 4, "all four shared a pass");
    assert_eq!((state.stats().failed, state.stats().completed), (2, 2));
}

#[tokio::test]
async fn no_more_run_than_may() {
    let (release, gate) = mpsc::channel::<()>();
    let mut is_held = true;
    let next = saying("well");
    let options = ApiOptions {
        max_running: 2,
        ..ApiOptions::default()
    };
    let (state, fullest) = state_with(options, move |context| {
        if std::mem::replace(&mut is_held, false) {
            gate.recv().unwrap();
        }
        Ok(next(context))
    });
    let requests = queue_up(&state, &[10, 11, 12, 13, 14]).await;
    release.send(()).unwrap();
    for request in requests {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(fullest.load(Relaxed), 2);
}

#[tokio::test]
async fn an_answer_that_takes_too_long_ends_with_what_it_has() {
    let options = ApiOptions {
        timeout: Some(Duration::from_millis(200)),
        ..ApiOptions::default()
    };
    let token = byte_tokens(&info().tokenizer, "a")[0];
    let (state, _) = state_with(options, move |_| {
        sleep(Duration::from_millis(10));
        Ok(token)
    });
    let body = json!({"prompt": "x", "max_tokens": 100, "stop": "aaab"});
    let (status, _, body) = send(&state, &body).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_str(&body).unwrap();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let n = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((2..60).contains(&n), "{n}");
    // What might have begun a stop text is part of it.
    assert_eq!(choice["text"].as_str().unwrap().len() as u64, n);
}

/// A server on a socket whose model takes 10 ms a token and never ends by itself.
async fn slow_server() -> (ApiState, SocketAddr) {
    let token = byte_tokens(&info().tokenizer, "a")[0];
    let state = state(1, move |_| {
        sleep(Duration::from_millis(10));
        Ok(token)
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
