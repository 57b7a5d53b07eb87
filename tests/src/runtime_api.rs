//! A stand-in for AWS Lambda's Runtime API (AWS, "Using the Lambda runtime API for custom runtimes"), so that the
//! function's binary runs here as it runs there: it long-polls for events and posts answers, whole or streamed.
//!
//! It holds the function to the rules that an emulator lets pass: one invocation at a time, an answer to the
//! invocation that is under way and to no other, and the prelude of a streamed answer. What breaks them is refused as
//! Lambda refuses it, and kept in [`RuntimeApi::violations`].

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{self, Read},
    net::SocketAddr,
    path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Notify, oneshot};

/// Between the prelude of a streamed answer and its body.
const DELIMITER: [u8; 8] = [0; 8];
/// How long a caller waits for the function before it gives up.
const PATIENCE: Duration = Duration::from_mins(2);

/// The API, on a port of its own of 127.0.0.1. Dropping it closes the port.
#[derive(Debug)]
pub struct RuntimeApi {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Book>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Book {
    waiting: VecDeque<Invocation>,
    under_way: Option<UnderWay>,
    n_invocations: u64,
    first_next: Option<Instant>,
    violations: Vec<String>,
    init_error: Option<Value>,
}

#[derive(Debug)]
struct Invocation {
    id: String,
    event: String,
    parts: mpsc::Sender<Part>,
}

#[derive(Debug)]
struct UnderWay {
    id: String,
    /// Taken when the answer begins.
    parts: Option<mpsc::Sender<Part>>,
}

#[derive(Debug)]
enum Part {
    Head { head: Value, is_streamed: bool },
    Chunk(Instant, Vec<u8>),
    Failed(Value),
}

impl RuntimeApi {
    /// Opens the port.
    ///
    /// # Errors
    /// When there is no port or no thread to be had.
    pub fn start() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route(
                "/2018-06-01/runtime/invocation/{id}/response",
                post(response),
            )
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .with_state(Arc::clone(&shared));
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name("runtime-api".into())
            .spawn(move || {
                runtime.block_on(async {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    // Answers go out at once, as from the real API: Nagle's algorithm would hold them back.
                    let listener = listener.tap_io(|socket| {
                        let _ = socket.set_nodelay(true);
                    });
                    tokio::select! {
                        _ = axum::serve(listener, router).into_future() => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            addr,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens: the value of `AWS_LAMBDA_RUNTIME_API`.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Queues an event. The answer is read from the result, in any order of invocations.
    pub fn invoke(&self, event: &Value) -> Pending {
        let (parts, receiver) = mpsc::channel();
        let mut book = self.shared.book();
        book.n_invocations += 1;
        let id = format!("00000000-0000-0000-0000-{:012}", book.n_invocations);
        book.waiting.push_back(Invocation {
            id: id.clone(),
            event: event.to_string(),
            parts,
        });
        drop(book);
        self.shared.arrived.notify_one();
        Pending {
            id,
            parts: receiver,
        }
    }

    /// When the function first asked for an event, which ends its initialisation.
    pub fn first_next(&self) -> Option<Instant> {
        self.shared.book().first_next
    }

    /// What the function did against the rules.
    pub fn violations(&self) -> Vec<String> {
        self.shared.book().violations.clone()
    }

    /// The function's report that it cannot start, if it made one.
    pub fn init_error(&self) -> Option<Value> {
        self.shared.book().init_error.clone()
    }

    /// Starts `binary` as a function of `memory_mb` with only Lambda's variables and `vars` in its environment.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(
        &self,
        binary: &path::Path,
        memory_mb: u32,
        vars: &[(&str, &str)],
    ) -> io::Result<Function> {
        let spawned = Instant::now();
        let mut child = Command::new(binary)
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", self.addr.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "fledgling")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_mb.to_string())
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = child.stderr.take();
        // Read all the time, so that a full pipe never stops the function.
        let log = thread::spawn(move || {
            let mut log = Vec::new();
            if let Some(stderr) = &mut stderr {
                let _ = stderr.read_to_end(&mut log);
            }
            String::from_utf8_lossy(&log).into_owned()
        });
        Ok(Function {
            child,
            log: Some(log),
            spawned,
        })
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the sender of the invocation that is under way, when it is `id`.
    fn claim(&self, id: &str, what: &str) -> Option<mpsc::Sender<Part>> {
        let mut book = self.book();
        let parts = book
            .under_way
            .as_mut()
            .filter(|under_way| under_way.id == id)
            .and_then(|under_way| under_way.parts.take());
        if parts.is_none() {
            book.violations
                .push(format!("{what} for {id}, which is not under way"));
        }
        parts
    }

    fn finished(&self) {
        self.book().under_way = None;
    }
}

fn refused(status: StatusCode, kind: &str) -> Response {
    (
        status,
        json!({"errorMessage": kind, "errorType": kind}).to_string(),
    )
        .into_response()
}

async fn next(State(shared): State<Arc<Shared>>) -> Response {
    loop {
        {
            let mut book = shared.book();
            book.first_next.get_or_insert_with(Instant::now);
            if let Some(under_way) = &book.under_way {
                let violation = format!("asked for an event while {} is under way", under_way.id);
                book.violations.push(violation);
                return refused(StatusCode::FORBIDDEN, "InvalidStateTransition");
            }
            if let Some(Invocation { id, event, parts }) = book.waiting.pop_front() {
                book.under_way = Some(UnderWay {
                    id: id.clone(),
                    parts: Some(parts),
                });
                let headers = [
                    ("content-type", "application/json".to_owned()),
                    ("lambda-runtime-aws-request-id", id),
                    ("lambda-runtime-deadline-ms", deadline_ms().to_string()),
                    (
                        "lambda-runtime-invoked-function-arn",
                        "arn:aws:lambda:eu-west-1:123456789012:function:fledgling".to_owned(),
                    ),
                    (
                        "lambda-runtime-trace-id",
                        "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700".to_owned(),
                    ),
                ];
                return (axum::response::AppendHeaders(headers), event).into_response();
            }
        }
        shared.arrived.notified().await;
    }
}

fn deadline_ms() -> u128 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now + Duration::from_mins(15)).as_millis()
}

async fn response(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some(parts) = shared.claim(&id, "response") else {
        return refused(StatusCode::BAD_REQUEST, "InvalidRequestID");
    };
    let is_streamed = headers
        .get("lambda-runtime-function-response-mode")
        .is_some_and(|mode| mode == "streaming");
    let outcome = if is_streamed {
        streamed(body, &parts).await
    } else {
        whole(body, &parts).await
    };
    shared.finished();
    match outcome {
        Ok(()) => (StatusCode::ACCEPTED, r#"{"status":"OK"}"#).into_response(),
        Err(violation) => {
            shared.book().violations.push(violation);
            refused(StatusCode::BAD_REQUEST, "InvalidResponse")
        }
    }
}

/// A prelude, eight zero bytes, and the body in as many pieces as the function wrote.
async fn streamed(mut body: Body, parts: &mpsc::Sender<Part>) -> Result<(), String> {
    let mut before: Option<Vec<u8>> = Some(Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the answer broke off: {error}"))?;
        if let Ok(trailers) = frame.trailers_ref().ok_or(()) {
            if trailers.contains_key("lambda-runtime-function-error-type") {
                let _ = parts.send(Part::Failed(json!(format!("{trailers:?}"))));
            }
            continue;
        }
        let mut chunk = frame
            .into_data()
            .map_err(|_| "neither data nor trailers")?
            .to_vec();
        if let Some(mut prelude) = before.take() {
            prelude.append(&mut chunk);
            let Some(end) = prelude.windows(8).position(|window| window == DELIMITER) else {
                before = Some(prelude);
                continue;
            };
            chunk = prelude.split_off(end + DELIMITER.len());
            prelude.truncate(end);
            let head =
                serde_json::from_slice(&prelude).map_err(|error| format!("prelude: {error}"))?;
            let _ = parts.send(Part::Head {
                head,
                is_streamed: true,
            });
        }
        if !chunk.is_empty() {
            let _ = parts.send(Part::Chunk(Instant::now(), chunk));
        }
    }
    match before {
        None => Ok(()),
        Some(_) => Err("a streamed answer without a prelude".to_owned()),
    }
}

/// API Gateway's proxy answer: `{"statusCode", "headers", "body", "isBase64Encoded"}`.
async fn whole(body: Body, parts: &mpsc::Sender<Part>) -> Result<(), String> {
    let body = body
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    let head: Value = serde_json::from_slice(&body).map_err(|error| format!("answer: {error}"))?;
    if head["isBase64Encoded"] == true {
        return Err("text was sent as base64".to_owned());
    }
    let text = head["body"]
        .as_str()
        .unwrap_or_default()
        .as_bytes()
        .to_vec();
    let _ = parts.send(Part::Head {
        head,
        is_streamed: false,
    });
    let _ = parts.send(Part::Chunk(Instant::now(), text));
    Ok(())
}

async fn error(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    body: String,
) -> Response {
    let Some(parts) = shared.claim(&id, "error") else {
        return refused(StatusCode::BAD_REQUEST, "InvalidRequestID");
    };
    let _ = parts.send(Part::Failed(
        serde_json::from_str(&body).unwrap_or(Value::String(body)),
    ));
    shared.finished();
    StatusCode::ACCEPTED.into_response()
}

async fn init_error(State(shared): State<Arc<Shared>>, body: String) -> StatusCode {
    shared.book().init_error = Some(serde_json::from_str(&body).unwrap_or(Value::String(body)));
    StatusCode::ACCEPTED
}

/// An invocation whose answer may still be to come.
#[derive(Debug)]
pub struct Pending {
    /// Lambda's request id.
    pub id: String,
    parts: mpsc::Receiver<Part>,
}

impl Pending {
    /// Waits for the beginning of the answer.
    ///
    /// # Errors
    /// The function's own report of a failure, or that it did not answer in time.
    pub fn answer(self) -> Result<Answer, String> {
        match self.parts.recv_timeout(PATIENCE) {
            Ok(Part::Head { head, is_streamed }) => Ok(Answer {
                head,
                is_streamed,
                parts: self.parts,
            }),
            Ok(Part::Failed(report)) => Err(report.to_string()),
            Ok(Part::Chunk(..)) => Err("a body before its head".to_owned()),
            Err(error) => Err(format!("no answer: {error}")),
        }
    }
}

/// The head of an answer, and its body while it comes in.
#[derive(Debug)]
pub struct Answer {
    head: Value,
    /// Whether the function streamed it.
    pub is_streamed: bool,
    parts: mpsc::Receiver<Part>,
}

impl Answer {
    /// The HTTP status.
    pub fn status(&self) -> u64 {
        self.head["statusCode"].as_u64().unwrap_or_default()
    }

    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let single = self.head["headers"][name].as_str();
        single.or_else(|| self.head["multiValueHeaders"][name][0].as_str())
    }

    /// Pieces of the body with the time of their arrival, until the end.
    pub fn chunks(&self) -> impl Iterator<Item = (Instant, Vec<u8>)> {
        std::iter::from_fn(|| match self.parts.recv_timeout(PATIENCE) {
            Ok(Part::Chunk(at, bytes)) => Some((at, bytes)),
            _ => None,
        })
    }

    /// The whole body as text.
    pub fn text(self) -> String {
        let bytes: Vec<u8> = self.chunks().flat_map(|(_, bytes)| bytes).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The whole body as JSON; null when it is none.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.text()).unwrap_or_default()
    }
}

/// A running function. Dropping it ends the process.
#[derive(Debug)]
pub struct Function {
    child: Child,
    log: Option<thread::JoinHandle<String>>,
    /// When it was started.
    pub spawned: Instant,
}

impl Function {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process and gives what it wrote to its log.
    pub fn into_log(mut self) -> String {
        let _ = self.child.kill();
        self.read_log()
    }

    /// Waits for the process to end by itself; gives its exit status and its log.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait(mut self) -> io::Result<(ExitStatus, String)> {
        let status = self.child.wait()?;
        Ok((status, self.read_log()))
    }

    fn read_log(&mut self) -> String {
        self.log
            .take()
            .and_then(|log| log.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The event of a function URL or an HTTP API (payload version 2.0). A body of `Err(base64)` is marked as such.
pub fn url_event(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Result<&str, &str>>,
) -> Value {
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": header_map("abcdefgh.lambda-url.eu-west-1.on.aws", headers),
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "abcdefgh",
            "domainName": "abcdefgh.lambda-url.eu-west-1.on.aws",
            "domainPrefix": "abcdefgh",
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "test"},
            "requestId": "e1506fd5-9e7b-434f-bd42-4f8fa224b599",
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1_583_348_638_390_u64,
        },
    });
    set_body(&mut event, body);
    event
}

/// The event of a REST API (payload version 1.0) with the stage `prod`. A body of `Err(base64)` is marked as such.
pub fn rest_event(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Result<&str, &str>>,
) -> Value {
    let headers = header_map("abcdefgh.execute-api.eu-west-1.amazonaws.com", headers);
    let multi: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.clone(), json!([value])))
        .collect();
    let mut event = json!({
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": multi,
        "queryStringParameters": null,
        "multiValueQueryStringParameters": null,
        "pathParameters": {"proxy": path.trim_start_matches('/')},
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdefgh",
            "domainName": "abcdefgh.execute-api.eu-west-1.amazonaws.com",
            "domainPrefix": "abcdefgh",
            "httpMethod": method,
            "identity": {"sourceIp": "192.0.2.1", "userAgent": "test"},
            "path": format!("/prod{path}"),
            "protocol": "HTTP/1.1",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "requestTimeEpoch": 1_428_582_896_000_u64,
            "resourceId": "123456",
            "resourcePath": "/{proxy+}",
            "stage": "prod",
        },
    });
    set_body(&mut event, body);
    event
}

fn header_map(host: &str, headers: &[(&str, &str)]) -> serde_json::Map<String, Value> {
    let host = [("host", host), ("x-forwarded-proto", "https")];
    host.iter()
        .chain(headers)
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect()
}

fn set_body(event: &mut Value, body: Option<Result<&str, &str>>) {
    let (text, is_base64) = match body {
        None => (Value::Null, false),
        Some(Ok(text)) => (json!(text), false),
        Some(Err(base64)) => (json!(base64), true),
    };
    event["body"] = text;
    event["isBase64Encoded"] = json!(is_base64);
}
