//! A tiny model behind the router, and core's own generation beside it to compare with.
#![allow(dead_code, reason = "each test file uses its part")]

use axum::{Router, body::Body, http::Request, response::Response};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, KvDType},
    generate::{FinishReason, GenerateParams, Generation},
    gguf::Gguf,
    model::ModelInfo,
    quant::DType,
    sampler::SamplerParams,
    spec::Family,
    testing::tiny_model,
};
use fledgling_lambda::{ApiOptions, ApiState, router};
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::Arc;
use tower::ServiceExt;

/// The model all tests of a family share.
pub(crate) fn model_file(family: Family) -> Vec<u8> {
    tiny_model(family, DType::Q8_0, 7)
}

/// Header and engine of [`model_file`].
pub(crate) fn load(family: Family) -> (ModelInfo, CpuEngine) {
    let gguf = Gguf::parse(model_file(family).into()).unwrap();
    let info = ModelInfo::from_header(gguf.header()).unwrap();
    let options = CpuOptions {
        n_threads: 1,
        isa: None,
        kv: KvDType::F16,
    };
    (info, CpuEngine::new(&gguf, &options).unwrap())
}

/// A router over the tiny Llama.
pub(crate) fn api_with(options: ApiOptions) -> Router {
    let (info, engine) = load(Family::Llama);
    router(ApiState::new(info, engine, options).unwrap())
}

pub(crate) fn api() -> Router {
    api_with(ApiOptions::default())
}

/// What core itself says: token ids, text and reason.
pub(crate) fn reference(
    family: Family,
    prompt: &[u32],
    max_tokens: usize,
    sampler: SamplerParams,
    stop: &[&str],
) -> (Vec<u32>, String, FinishReason) {
    let (info, engine) = load(family);
    let params = GenerateParams {
        max_tokens: Some(max_tokens),
        sampler,
        stop: stop.iter().map(ToString::to_string).collect(),
        ignore_end: false,
    };
    let mut session = engine.session(info.spec.n_ctx).unwrap();
    let mut generation = Generation::new(
        Arc::clone(&info.tokenizer),
        prompt,
        info.spec.n_ctx,
        &params,
    )
    .unwrap();
    let mut logits = engine.forward(&mut session, prompt).unwrap();
    let mut text = String::new();
    loop {
        let step = generation.sample(&mut logits);
        text += &step.text;
        if let Some(finish) = step.finish {
            return (generation.tokens().to_vec(), text, finish);
        }
        logits = engine.forward(&mut session, &[step.token]).unwrap();
    }
}

pub(crate) fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

pub(crate) async fn send(api: &Router, request: Request<Body>) -> Response {
    api.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) async fn json(response: Response) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// Status and body of a POST.
pub(crate) async fn call(api: &Router, path: &str, body: &Value) -> (u16, Value) {
    let response = send(api, post(path, body)).await;
    (response.status().as_u16(), json(response).await)
}

/// The JSON of each event of a stream that ends in `[DONE]`.
pub(crate) fn chunks(stream: &str) -> Vec<Value> {
    let mut events: Vec<&str> = stream
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| {
            event
                .strip_prefix("data: ")
                .expect("one data line an event")
        })
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{stream}");
    events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}
