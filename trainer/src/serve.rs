//! `fledgling serve`: the page, the model file for it, and the HTTP API of `fledgling-lambda`, on one port.

use crate::{
    generate::SpeculationArgs,
    inspect::scalars_json,
    interrupt::Graceful,
    model::{self, EngineArgs, Model},
    output::{UsageError, note, print, print_json},
    page::find_page,
};
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    http::{HeaderName, HeaderValue, header},
    routing::get,
};
use fledgling_lambda::{ApiOptions, ApiState, Records};
use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::Notify};
use tower_http::{
    services::{ServeDir, ServeFile},
    set_header::SetResponseHeaderLayer,
};

/// After Ctrl-C, answers under way have this long to end.
const GRACE: Duration = Duration::from_secs(10);

/// Serve a model: the page at /, the OpenAI-compatible API at /v1
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling serve smollm2-135m-instruct\n  fledgling serve model.gguf --port 9000 --api-key-env MY_KEY\n  \
    curl http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' -d '{\"prompt\":\"Once upon\",\"max_tokens\":16}'"
)]
pub struct Args {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// The address to listen on; 0.0.0.0 is every address of this machine
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The folder of the built page (default: found beside the command or in web/dist)
    #[arg(long, value_name = "DIR", conflicts_with = "no_page")]
    page: Option<PathBuf>,
    /// The API only
    #[arg(long)]
    no_page: bool,
    /// Requests to /v1 must carry the key in this environment variable
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// Positions of the context (default: the model's)
    #[arg(long, value_name = "N", value_parser = crate::generate::positive)]
    ctx: Option<usize>,
    /// Tokens of one answer at most, whatever a request asks for
    #[arg(long, value_name = "N", value_parser = crate::generate::positive)]
    max_tokens: Option<usize>,
    /// Answers that are generated at the same time, in shared passes
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = crate::generate::positive)]
    max_running: usize,
    /// Answers that may wait; requests beyond are refused with 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_queue: usize,
    /// Memory for keys and values: of running answers, and of prompts that may come again
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    kv_memory: usize,
    /// Answers end after so many seconds with what they have
    #[arg(long, value_name = "S", value_parser = crate::generate::positive)]
    timeout: Option<usize>,
    /// A web origin whose pages may call the API, or *; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Append a line of figures a request to this file, for `fledgling monitor`; it has no text
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print {"url":…} when ready, instead of the address alone
    #[arg(long)]
    json: bool,
}

/// Runs the command until Ctrl-C.
///
/// # Errors
/// When the model does not load, the key is not set, the page is not there, or the port is in use.
pub fn run(args: &Args) -> Result<()> {
    log_to_stderr();
    let api_keys = api_keys(args)?;
    let page = if args.no_page {
        None
    } else {
        find_page(args.page.as_deref())?
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    runtime.block_on(async {
        // The port first: it costs nothing, the model may cost seconds.
        let listener = listen(&args.host, args.port).await?;
        let model = model::open(&args.model)?;
        let shelf = shelf(&model);
        let state = api_state(args, &model, api_keys)?;
        if page.is_none() && !args.no_page {
            note("the page is not built: serving the API only (build it with `cargo xtask web`, or name its folder with --page)");
        }
        if model.files.len() > 1 && page.is_some() {
            note("the page cannot load a model in several files yet: it uses the API (export it as one file for the browser)");
        }
        serve(listener, app(state, shelf, &model.files, page.as_deref()), args.json).await
    })
}

/// One line a request, and one a generation.
fn log_to_stderr() {
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    // A process has one; the first stays.
    let _ = subscriber
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}

fn api_keys(args: &Args) -> Result<Vec<String>> {
    let Some(name) = &args.api_key_env else {
        if !is_loopback(&args.host) {
            note(format!(
                "anybody who reaches {} may use this server: set a key with --api-key-env",
                args.host
            ));
        }
        return Ok(Vec::new());
    };
    match std::env::var(name) {
        Ok(key) if !key.is_empty() => Ok(vec![key]),
        _ => Err(UsageError(format!(
            "--api-key-env {name}: the environment variable {name} is not set; set it to the key"
        ))
        .into()),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn listen(host: &str, port: u16) -> Result<TcpListener> {
    TcpListener::bind((host, port)).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "port {port} is in use: choose another one with --port (0 takes a free one)"
            ),
            std::io::ErrorKind::PermissionDenied => format!(
                "port {port} is not allowed for this user: choose one above 1023 with --port"
            ),
            _ => format!("cannot listen on {host}:{port}: check --host and --port"),
        };
        anyhow::Error::new(error).context(advice)
    })
}

fn api_state(args: &Args, model: &Model, api_keys: Vec<String>) -> Result<ApiState> {
    let engine = args.engine.load(model)?;
    let n_ctx = model::context_len(model, args.ctx, model.info.spec.n_ctx)?;
    let info = fledgling_core::model::ModelInfo::from_header(model.gguf.header())?;
    let options = ApiOptions {
        aliases: vec![model.name.clone()],
        n_ctx: Some(n_ctx),
        max_running: args.max_running,
        max_queue: args.max_queue,
        kv_bytes: args.kv_memory.saturating_mul(1 << 20),
        speculate: args.speculation.speculate,
        timeout: args.timeout.map(|s| Duration::from_secs(s as u64)),
        max_tokens: args.max_tokens,
        api_keys,
        allow_origins: args.allow_origin.clone(),
        records: records(args.log.as_deref())?,
        ..ApiOptions::default()
    };
    Ok(ApiState::new(info, engine, options)?)
}

fn file_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What the page is offered: a model in one file, with what it says of itself.
fn shelf(model: &Model) -> serde_json::Value {
    let [file] = &model.files[..] else {
        return serde_json::json!([]);
    };
    let name = file_name(file);
    let size_bytes = std::fs::metadata(file).map(|metadata| metadata.len()).ok();
    let metadata = scalars_json(&model.gguf.header().metadata);
    serde_json::json!([{"name": name, "url": format!("models/{}", escape(&name)), "sizeBytes": size_bytes, "metadata": metadata}])
}

/// The page's files first, then the API. `files` are the model's, and can be fetched; `shelf` is what the page is offered of them.
fn app(
    state: ApiState,
    shelf: serde_json::Value,
    files: &[PathBuf],
    page: Option<&Path>,
) -> Router {
    let metrics = state.clone();
    let api = fledgling_lambda::router(state);
    let mut own = Router::new()
        .route(
            "/models.json",
            get(move || std::future::ready(Json(shelf.clone()))),
        )
        .route(
            "/metrics",
            get(move || std::future::ready(metrics.prometheus())),
        );
    for file in files {
        let route = format!("/models/{}", escape(&file_name(file)));
        own = own.route_service(&route, ServeFile::new(file));
    }
    let app = match page {
        Some(page) => own.fallback_service(
            ServeDir::new(page)
                .call_fallback_on_method_not_allowed(true)
                .fallback(api),
        ),
        None => own
            .route("/", get(|| std::future::ready(NO_PAGE)))
            .fallback_service(api),
    };
    // Shared memory, and with it threads, is only given to isolated pages. Files are asked for anew when they changed.
    app.layer(header_layer("cross-origin-opener-policy", "same-origin"))
        .layer(header_layer("cross-origin-embedder-policy", "require-corp"))
        .layer(header_layer("cross-origin-resource-policy", "same-origin"))
        .layer(header_layer(header::CACHE_CONTROL.as_str(), "no-cache"))
}

const NO_PAGE: &str = "The API is at /v1. The page is not built here: build it with `cargo xtask web`, or name its folder with --page.\n";

fn header_layer(name: &'static str, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

/// A file name as one segment of a URL.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn records(path: Option<&Path>) -> Result<Records> {
    let Some(path) = path else {
        return Ok(Records::default());
    };
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let file = file.with_context(|| format!("--log {}: cannot append to it", path.display()))?;
    Ok(Records::to(file))
}

async fn serve(listener: TcpListener, app: Router, json: bool) -> Result<()> {
    let url = url_of(listener.local_addr()?);
    let stop = Arc::new(Notify::new());
    let stopping = Arc::clone(&stop);
    let _interrupt = Graceful::with(move || stopping.notify_waiters());
    if json {
        print_json(&serde_json::json!({"url": url}))?;
    } else {
        print(&format!("{url}\n"))?;
    }
    let (asked, ended) = (Arc::clone(&stop), Arc::clone(&stop));
    let server =
        axum::serve(listener, app).with_graceful_shutdown(async move { asked.notified().await });
    let out_of_patience = async move {
        ended.notified().await;
        note("ending (Ctrl-C again ends at once)");
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server => ended.context("the server failed"),
        () = out_of_patience => Ok(()),
    }
}

fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}
