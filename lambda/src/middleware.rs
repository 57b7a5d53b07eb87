//! What happens to every request: an id, one log line, the key, CORS, and a net under panics.

use crate::{error::ApiError, state::ApiState};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{
    any::Any,
    fmt::Write,
    time::{Duration, Instant},
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, in its answer's `x-request-id` and in the log.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Gives the request an id, or keeps the client's own where it is a plain word; logs method, path and status.
pub(crate) async fn identify(mut request: Request, next: Next) -> Result<Response, ApiError> {
    let started = Instant::now();
    let id = match client_id(request.headers()) {
        Some(id) => id.to_owned(),
        None => format!("req_{}", nonce()?),
    };
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    tracing::info!(
        request_id = id,
        method = method.as_str(),
        path,
        status = response.status().as_u16(),
        headers_ms = started.elapsed().as_millis() as u64,
        "request"
    );
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    Ok(response)
}

fn client_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let plain = id
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    (plain && (1..=128).contains(&id.len())).then_some(id)
}

/// 24 random hexadecimal digits.
///
/// # Errors
/// When the operating system gives no random numbers.
pub(crate) fn nonce() -> Result<String, ApiError> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(ApiError::no_randomness)?;
    Ok(bytes
        .iter()
        .fold(String::with_capacity(24), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }))
}

/// Lets a request through when it carries one of the keys, or the server has none.
pub(crate) async fn authorize(
    State(state): State<ApiState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = bearer(request.headers());
    if state.admits(key) {
        return Ok(next.run(request).await);
    }
    Err(ApiError::unauthorized(if key.is_none() {
        "this server needs an API key, in the header `authorization: Bearer KEY`"
    } else {
        "the API key is not one of this server's"
    }))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// The answer to a request whose handler panicked. The panic hook has told the log where.
pub(crate) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::internal().into_response()
}

/// CORS for `origins`, which [`ApiState`] has checked; `None` when there are none. A browser may send any header: the
/// official JavaScript client adds a dozen of its own.
pub(crate) fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allow = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        )
    };
    Some(
        CorsLayer::new()
            .allow_origin(allow)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([X_REQUEST_ID, header::RETRY_AFTER])
            .max_age(Duration::from_hours(1)),
    )
}
