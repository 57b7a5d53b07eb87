//! The HTTP API of a model: OpenAI's shapes, so that its clients work unchanged, as one [`router`].
//!
//! `fledgling serve` puts it on a socket beside the page, and this crate's binary hands the same router to AWS Lambda.
//! This is the only crate that knows HTTP; clocks and random numbers live here, not in core.
//!
//! | route | |
//! |---|---|
//! | `POST /v1/completions`, `POST /v1/chat/completions` | an answer, whole or with `stream: true` as server-sent events |
//! | `GET /v1/models`, `GET /v1/models/{id}` | the one model |
//! | `POST /v1/tokenize`, `POST /v1/detokenize` | token ids of a text or a conversation, and back (vLLM's shapes) |
//! | `GET /healthz` | whether the server is up; needs no key |
//!
//! Where OpenAI leaves room, or a small model on one's own machine wants something else:
//! - Nothing given is **greedy**, as in the terminal and the browser; OpenAI's default is `temperature: 1`. With a
//!   temperature and no `seed`, each request draws its own.
//! - `model` may be left out; a name that is neither the id, the model's own name nor an alias is 404 `model_not_found`.
//! - `max_tokens` beyond the context is no error: the answer ends there with `finish_reason: "length"`.
//! - Beside OpenAI's parameters: `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `return_token_ids`.
//! - Parameters that we know and do not act on are refused with 400; unknown ones are ignored.
#![deny(unsafe_code)]

mod error;
mod fields;
mod mapped;
mod middleware;
mod model_files;
mod reply;
mod request;
mod routes;
mod runner;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

pub use mapped::mapped_file;
pub use model_files::{MappedModel, ModelFileError, first_parts, mapped_model};
pub use routes::router;
pub use state::{ApiOptions, ApiState, StateError};
pub use worker::Stats;
