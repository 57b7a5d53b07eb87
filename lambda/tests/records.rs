//! What a request leaves: figures that core confirms, one line each, and none of its text.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{call, load, post, send, text};
use fledgling_core::spec::Family;
use fledgling_lambda::{ApiOptions, ApiState, Records, router};
use fledgling_monitor::{record::Record, sketch::Sketch};
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn records(&self) -> Vec<Record> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let record = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap();
            assert!(value["_aws"]["CloudWatchMetrics"][0]["Metrics"].is_array());
            Record::from_value(value).unwrap()
        };
        text.lines().map(record).collect()
    }
}

fn api(log: &Log) -> axum::Router {
    let (info, engine) = load(Family::Llama);
    let options = ApiOptions {
        records: Records::to(log.clone()),
        ..ApiOptions::default()
    };
    router(ApiState::new(info, engine, options).unwrap())
}

/// Mean of `-ln p` of the tokens from `from` on, by core's logits in f64.
fn surprise(tokens: &[u32], from: usize) -> f64 {
    let (info, engine) = load(Family::Llama);
    let mut session = engine.session(info.spec.n_ctx).unwrap();
    let (mut nats, mut n) = (0.0, 0);
    let mut each = |t: usize, logits: &[f32]| {
        if t + 1 >= from
            && let Some(&next) = tokens.get(t + 1)
        {
            let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            nats += sum.ln() - f64::from(logits[next as usize]);
            n += 1;
        }
    };
    engine.forward_all(&mut session, tokens, &mut each).unwrap();
    nats / f64::from(n)
}

#[tokio::test]
async fn a_record_has_the_figures_of_its_request_and_not_its_text() {
    let log = Log::default();
    let api = api(&log);
    for (prompt, n_scored) in [
        ("Once upon a time", None),
        (&*"the cat sat on the mat and ".repeat(4), Some(31)),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": 12, "ignore_eos": true, "return_token_ids": true});
        let (status, answer) = call(&api, "/v1/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        let ids = |key: &str| -> Vec<u32> {
            serde_json::from_value(answer["choices"][0][key].clone()).unwrap()
        };
        let (prompt_ids, answer_ids) = (ids("prompt_token_ids"), ids("token_ids"));
        let record = log.records().pop().unwrap();
        assert_eq!(record.outcome, "length");
        assert_eq!((record.requests, record.errors), (1, 0));
        assert_eq!(record.prompt_tokens, prompt_ids.len() as u64);
        assert_eq!(record.completion_tokens, 12);
        // The first token of a prompt has nothing before it; of a long one, the last 32 positions but the last are scored.
        let n_scored = n_scored.unwrap_or(prompt_ids.len() - 1);
        assert_eq!(record.prompt_scored, n_scored as u64);
        let want = surprise(&prompt_ids, prompt_ids.len() - n_scored);
        assert!(
            (record.prompt_surprise.unwrap() - want).abs() < 1e-4,
            "{record:?} {want}"
        );
        let all = [prompt_ids.clone(), answer_ids.clone()].concat();
        let want = surprise(&all, prompt_ids.len());
        assert!(
            (record.answer_surprise.unwrap() - want).abs() < 1e-4,
            "{record:?} {want}"
        );
        assert_eq!(record.answer_scored, 12);
        let sketch = record.sketch.unwrap();
        assert_eq!(
            sketch,
            Sketch::of(u64::from(sketch.row), &prompt_ids, &answer_ids)
        );
        assert!(record.first_token_ms.unwrap() <= record.total_ms.unwrap());
        assert!(record.queue_ms.unwrap() <= record.first_token_ms.unwrap());
        assert!(record.tokens_per_s.unwrap() > 0.0);
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("upon") && !text.contains("mat"));
}

#[tokio::test]
async fn scoring_changes_no_answer() {
    let log = Log::default();
    let (info, engine) = load(Family::Llama);
    let quiet = router(ApiState::new(info, engine, ApiOptions::default()).unwrap());
    let body = json!({"prompt": "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h", "max_tokens": 16, "temperature": 0.8, "seed": 5});
    let (_, with) = call(&api(&log), "/v1/completions", &body).await;
    let (_, without) = call(&quiet, "/v1/completions", &body).await;
    assert_eq!(with["choices"], without["choices"]);
    assert_eq!(log.records().len(), 1);
}

#[tokio::test]
async fn streams_and_refusals_leave_one_too() {
    let log = Log::default();
    let api = api(&log);
    let response = send(&api, post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": true}))).await;
    assert!(text(response).await.contains("[DONE]"));
    let (status, _) = call(&api, "/v1/completions", &json!({"prompt": 7})).await;
    assert_eq!(status, 400);
    let records = log.records();
    let outcomes: Vec<&str> = records
        .iter()
        .map(|record| record.outcome.as_str())
        .collect();
    assert!(
        matches!(outcomes[..], ["length" | "stop", "http_400"]),
        "{outcomes:?}"
    );
    assert_eq!((records[1].errors, records[1].prompt_tokens), (1, 0));
    assert!(records[1].sketch.is_none());
}
