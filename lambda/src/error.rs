//! The one mapping from what can go wrong to a status and an OpenAI error object:
//! `{"error": {"message", "type", "param", "code"}}`. Nothing of the inside of the server reaches a client.

use crate::worker::QueueFull;
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fledgling_core::{generate::GenerateError, model::ModelError, sampler::SamplerError};
use serde_json::{Value, json};
use std::borrow::Cow;

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<Cow<'static, str>>,
    pub(crate) code: Option<&'static str>,
    retry_after_s: Option<u32>,
}

const INVALID: &str = "invalid_request_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The request as a whole cannot be read.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A parameter is missing, of the wrong type or out of range.
    pub(crate) fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::bad_request(message)
            .param(param)
            .code("invalid_value")
    }

    /// A parameter of OpenAI's that this server does not act on, so that it must not seem to.
    pub(crate) fn unsupported(param: &'static str, message: impl Into<String>) -> Self {
        Self::bad_request(message)
            .param(param)
            .code("unsupported_parameter")
    }

    /// The prompt leaves no room for an answer.
    pub(crate) fn prompt_too_long(param: &'static str, prompt: usize, n_ctx: usize) -> Self {
        Self::bad_request(format!(
            "the context of this model is {n_ctx} tokens, and the prompt has {prompt}: shorten it so that at least one token fits behind it"
        ))
        .param(param)
        .code("context_length_exceeded")
    }

    /// What is to be embedded does not fit the context.
    pub(crate) fn input_too_long(input: usize, n_ctx: usize) -> Self {
        Self::bad_request(format!(
            "the context of this model is {n_ctx} tokens, and an input has {input}: shorten it"
        ))
        .param("input")
        .code("context_length_exceeded")
    }

    /// The error of a prompt that came in as `input`.
    pub(crate) fn in_input(mut self) -> Self {
        self.message = self.message.replace("`prompt`", "`input`");
        self.param = self.param.map(|_| "input".into());
        self
    }

    pub(crate) fn body_too_large(limit_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            format!("the request body is larger than {limit_bytes} bytes"),
        )
        .code("body_too_large")
    }

    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message).code("invalid_api_key")
    }

    pub(crate) fn unknown_model(asked: &str, ours: &str) -> Self {
        let asked: String = asked.chars().take(100).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID,
            format!("the model `{asked}` does not exist here; this server has `{ours}`"),
        )
        .param("model")
        .code("model_not_found")
    }

    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(100).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID,
            format!("there is nothing at {method} {path}"),
        )
        .code("unknown_url")
    }

    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID,
            format!(
                "{path} does not answer to {method}; the `allow` header says what it answers to"
            ),
        )
        .code("method_not_allowed")
    }

    /// The bounded queue is full.
    pub(crate) fn queue_full(full: QueueFull) -> Self {
        let QueueFull {
            n_running,
            n_waiting,
            retry_after_s,
        } = full;
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            format!("{n_running} generations run and {n_waiting} wait, which is all this server takes: try again later"),
        )
        .code("queue_full");
        error.retry_after_s = Some(retry_after_s);
        error
    }

    /// A load balancer asks, and may ask another server instead.
    pub(crate) fn not_ready() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            "the queue of this server is full",
        )
        .code("not_ready")
    }

    /// Our fault; the log has the details, the client has not.
    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "the server failed on this request; its log says why, under this x-request-id",
        )
        .code("internal_error")
    }

    /// The operating system gives no random numbers for a seed or an id.
    pub(crate) fn no_randomness(error: getrandom::Error) -> Self {
        tracing::error!(%error, "the operating system gives no random numbers");
        Self::internal()
    }

    /// The error of a prompt that came in under `param`.
    pub(crate) fn from_generate(error: &GenerateError, param: &'static str) -> Self {
        match error {
            GenerateError::PromptTooLong { prompt, n_ctx } => {
                Self::prompt_too_long(param, *prompt, *n_ctx)
            }
            GenerateError::Sampler(error) => error.into(),
            other => Self::invalid(param, other.to_string()),
        }
    }

    /// The error object.
    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<&SamplerError> for ApiError {
    fn from(error: &SamplerError) -> Self {
        Self::invalid(error.param, error.to_string())
    }
}

impl From<ModelError> for ApiError {
    /// What encoding a conversation can fail on.
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        match error {
            ModelError::NoChatTemplate => Self::bad_request(message).code("no_chat_template"),
            ModelError::Chat(_) => Self::invalid("messages", message),
            _ => {
                tracing::error!(error = %message, "a loaded model failed to encode a conversation");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON body with its content type.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
