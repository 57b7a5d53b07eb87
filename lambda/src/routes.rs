//! The routes and their handlers.

use crate::{
    embeddings,
    error::{ApiError, json_response},
    fields::{Fields, wrong_type},
    middleware::{self, RequestId},
    observed,
    reply::Reply,
    request::{Ask, EmbedAsk, token_ids, tokenize_prompt},
    state::{ApiState, off_thread},
    stream,
};
use axum::{
    Extension, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, FromRequest, OriginalUri, Path, Request, State, rejection::BytesRejection,
    },
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{from_fn, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

/// The API as a tower service. Routes and a fallback of one's own may be added to it: everything outside `/v1`,
/// `/healthz` and `/readyz` is free.
pub fn router(state: ApiState) -> Router {
    let v1 = Router::new()
        .route("/completions", post(completions))
        .route("/chat/completions", post(chat_completions))
        .route("/embeddings", post(embed))
        .route("/models", get(models))
        .route("/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(state.options().max_body_bytes))
        .layer(from_fn_with_state(state.clone(), middleware::authorize))
        .layer(from_fn_with_state(state.clone(), observed::refused));
    let router = Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn(middleware::identify));
    let router = match middleware::cors(&state.options().allow_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.with_state(state)
}

async fn completions(
    State(state): State<ApiState>,
    Extension(request_id): Extension<RequestId>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    check_model(&state, &fields)?;
    answer(state, request_id, Ask::completion(fields)?).await
}

async fn chat_completions(
    State(state): State<ApiState>,
    Extension(request_id): Extension<RequestId>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    check_model(&state, &fields)?;
    answer(state, request_id, Ask::chat(fields)?).await
}

async fn answer(
    state: ApiState,
    RequestId(request_id): RequestId,
    ask: Ask,
) -> Result<Response, ApiError> {
    let running = state.start(&ask, request_id).await?;
    let reply = Reply::new(&state, &ask, running.prompts, &middleware::nonce()?);
    if ask.stream {
        Ok(stream::chunks(reply, running.events))
    } else {
        stream::whole(&reply, running.events).await
    }
}

async fn embed(
    State(state): State<ApiState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    check_model(&state, &fields)?;
    embeddings::answer(&state, request_id, EmbedAsk::new(fields)?).await
}

async fn models(State(state): State<ApiState>) -> Response {
    let list = json!({"object": "list", "data": [model_object(&state)]});
    json_response(StatusCode::OK, &list)
}

async fn model(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if !state.answers_to(&id) {
        return Err(ApiError::unknown_model(&id, state.model_id()));
    }
    Ok(json_response(StatusCode::OK, &model_object(&state)))
}

fn model_object(state: &ApiState) -> Value {
    json!({
        "id": state.model_id(),
        "object": "model",
        "created": state.created_unix_s(),
        "owned_by": "fledgling",
        "max_model_len": state.n_ctx(),
    })
}

/// `{"prompt": text}` or `{"messages": […]}` to `{"tokens": […], "count", "max_model_len"}`.
async fn tokenize(
    State(state): State<ApiState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Response, ApiError> {
    check_model(&state, &fields)?;
    let prompt = tokenize_prompt(&mut fields)?;
    let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
    let tokens = state.encode(prompt, add_special).await?;
    let body = json!({"tokens": tokens, "count": tokens.len(), "max_model_len": state.n_ctx()});
    Ok(json_response(StatusCode::OK, &body))
}

/// `{"tokens": […]}` to `{"prompt": text}`, special tokens written out.
async fn detokenize(
    State(state): State<ApiState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Response, ApiError> {
    check_model(&state, &fields)?;
    let Some(Value::Array(items)) = fields.take("tokens") else {
        return Err(wrong_type("tokens", "a list of token ids"));
    };
    let tokens = token_ids("tokens", &items)?;
    state.check_vocabulary("tokens", &tokens)?;
    let text = off_thread(move || Ok(state.info().tokenizer.decode(&tokens, false))).await?;
    Ok(json_response(StatusCode::OK, &json!({"prompt": text})))
}

async fn healthz(State(state): State<ApiState>) -> Response {
    let stats = state.stats();
    let body = json!({
        "status": "ok",
        "model": state.model_id(),
        "running": stats.running,
        "waiting": stats.waiting,
    });
    json_response(StatusCode::OK, &body)
}

async fn readyz(State(state): State<ApiState>) -> Result<Response, ApiError> {
    if !state.is_ready() {
        return Err(ApiError::not_ready());
    }
    Ok(json_response(StatusCode::OK, &json!({"status": "ready"})))
}

async fn unknown_route(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::unknown_route(method.as_str(), uri.path())
}

async fn method_not_allowed(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::method_not_allowed(method.as_str(), uri.path())
}

/// A request without a model means the only one there is.
fn check_model(state: &ApiState, fields: &Fields) -> Result<(), ApiError> {
    match fields.str("model")? {
        Some(name) if !state.answers_to(name) => {
            Err(ApiError::unknown_model(name, state.model_id()))
        }
        _ => Ok(()),
    }
}

/// A JSON object as the body. The content type is required: a page of another origin cannot set it without asking
/// first (CORS), so it cannot make a visitor's browser talk to a server on that visitor's machine.
struct JsonBody(Fields);

impl FromRequest<ApiState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::bad_request(
                "the request needs the header `content-type: application/json`",
            ));
        }
        let body =
            Bytes::from_request(request, state)
                .await
                .map_err(|rejection| match rejection {
                    BytesRejection::FailedToBufferBody(error)
                        if error.status() == StatusCode::PAYLOAD_TOO_LARGE =>
                    {
                        ApiError::body_too_large(state.options().max_body_bytes)
                    }
                    _ => ApiError::bad_request("the request body could not be read to its end"),
                })?;
        Ok(Self(Fields::parse(&body)?))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        let essence = value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}
