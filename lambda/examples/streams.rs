//! Throughput of concurrent requests through the router, in one process: tokens a second of all streams together.
//!
//! ```sh
//! cargo run --release -p fledgling-lambda --example streams -- MODEL.gguf --threads 2 --streams 1,4,16 --tokens 64
//! ```

use axum::{body::Body, http::Request};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    model::ModelInfo,
};
use fledgling_lambda::{ApiOptions, ApiState, mapped_model, router};
use futures_util::{StreamExt, future::join_all};
use std::{error::Error, path::Path, time::Instant};
use tower::ServiceExt;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give a GGUF file")?;
    let (mut options, mut n_tokens, mut streams) = (CpuOptions::default(), 64, vec![1, 4, 16]);
    // Off unless asked for, so that one stream and many are compared.
    let mut speculate = 0;
    while let (Some(flag), Some(value)) = (args.next(), args.next()) {
        match flag.as_str() {
            "--threads" => options.n_threads = value.parse()?,
            "--speculate" => speculate = value.parse()?,
            "--tokens" => n_tokens = value.parse()?,
            "--streams" => {
                streams = value
                    .split(',')
                    .map(str::parse)
                    .collect::<std::result::Result<_, _>>()?;
            }
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let gguf = mapped_model(Path::new(&path))?.gguf;
    let info = ModelInfo::from_header(gguf.header())?;
    let engine = CpuEngine::new(&gguf, &options)?;
    let api = ApiOptions {
        speculate: Some(speculate),
        ..ApiOptions::default()
    };
    let state = ApiState::new(info, engine, api)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        stream(&state, "warm", 8).await?;
        for n in streams {
            let start = Instant::now();
            let prompts: Vec<String> = (0..n)
                .map(|i| format!("{i}{n} Tell me a story about the number {i}."))
                .collect();
            let running = prompts.iter().map(|prompt| stream(&state, prompt, n_tokens));
            let ends: Vec<(f64, f64)> = join_all(running).await.into_iter().collect::<Result<_>>()?;
            let seconds = start.elapsed().as_secs_f64();
            let first = ends.iter().map(|(first, _)| *first).fold(0.0, f64::max);
            let last = |pick: fn(f64, f64) -> f64, from| ends.iter().map(|(_, last)| *last).fold(from, pick);
            println!(
                "{n:3} streams: {:6.1} tokens/s, first token within {:4.0} ms, ended after {:.2} to {:.2} s",
                (n * n_tokens) as f64 / seconds,
                1e3 * first,
                last(f64::min, f64::INFINITY),
                last(f64::max, 0.0),
            );
        }
        Ok(())
    })
}

/// Seconds to the first and the last piece of an answer.
async fn stream(state: &ApiState, prompt: &str, n_tokens: usize) -> Result<(f64, f64)> {
    let start = Instant::now();
    let body = serde_json::json!({"prompt": prompt, "max_tokens": n_tokens, "ignore_eos": true, "stream": true});
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string()))?;
    let mut pieces = router(state.clone())
        .oneshot(request)
        .await?
        .into_body()
        .into_data_stream();
    let mut first = None;
    while let Some(piece) = pieces.next().await {
        piece?;
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
    }
    Ok((first.unwrap_or_default(), start.elapsed().as_secs_f64()))
}
