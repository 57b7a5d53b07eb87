//! The AWS Lambda function: loads the model while Lambda initialises the environment, then answers one request after
//! another with the router of this crate. Package it as `bootstrap` (runtime `provided.al2023`) with the model beside it.

mod config;
mod gateway;

use anyhow::{Context, Result};
use config::{Config, InvokeMode};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, KvDType},
    model::ModelInfo,
};
use fledgling_lambda::{ApiState, mapped_model, router};
use std::{
    path::Path,
    process::ExitCode,
    time::{Instant, UNIX_EPOCH},
};
use tower::ServiceBuilder;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    if let Err(error) = log_to_stderr() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: CloudWatch makes an entry of each.
            tracing::error!(error = format!("{error:#}"), "the function cannot start");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let started = Instant::now();
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let state = load(&config).with_context(|| format!("model {}", config.model.display()))?;
    tracing::info!(
        model = state.model_id(),
        n_ctx = state.n_ctx(),
        n_threads = config.n_threads,
        load_ms = started.elapsed().as_millis() as u64,
        "ready"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(serve(state, config.invoke_mode))
        .map_err(|error| anyhow::anyhow!("the Lambda runtime ended: {error}"))
}

async fn serve(state: ApiState, mode: InvokeMode) -> Result<(), lambda_http::Error> {
    let service = ServiceBuilder::new()
        .map_request(gateway::route)
        .service(router(state));
    match mode {
        InvokeMode::ResponseStream => lambda_http::run_with_streaming_response(service).await,
        InvokeMode::Buffered => lambda_http::run(service).await,
    }
}

fn load(config: &Config) -> Result<ApiState> {
    let gguf = mapped_model(&config.model)?.gguf;
    let info = ModelInfo::from_header(gguf.header())?;
    let options = CpuOptions {
        n_threads: config.n_threads,
        isa: config.isa,
        kv: KvDType::F16,
    };
    let engine = CpuEngine::new(&gguf, &options)?;
    let mut api = config.api.clone();
    api.created_unix_s = modified_unix_s(&config.model);
    Ok(ApiState::new(info, engine, api)?)
}

fn modified_unix_s(path: &Path) -> Option<u64> {
    let modified = path
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// JSON lines at the level of `FLEDGLING_LOG` (`info` when unset; `warn,fledgling_lambda=debug` works too), without the word `metrics`, which
/// is about records. The
/// runtime's trace level would log whole requests and stays off: prompts do not belong into a log.
fn log_to_stderr() -> Result<()> {
    let levels = config::log_levels(std::env::var("FLEDGLING_LOG").ok().as_deref());
    let levels: Targets = levels
        .parse()
        .with_context(|| format!("FLEDGLING_LOG={levels}"))?;
    let quiet = tracing::Level::INFO;
    let levels = levels
        .with_target("lambda_runtime", quiet)
        .with_target("lambda_http", quiet)
        .with_target("hyper", quiet);
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(lines)
        .with(levels)
        .try_init()?;
    // Only the place: a panic's message may quote a text.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "panic");
    }));
    Ok(())
}
