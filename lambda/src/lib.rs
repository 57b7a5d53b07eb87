//! The HTTP API of a model: OpenAI's shapes, so that its clients work unchanged, as one [`router`].
//!
//! `fledgling serve` puts it on a socket beside the page, and this crate's binary hands the same router to AWS Lambda.
//! This is the only crate that knows HTTP; clocks and random numbers live here, not in core.
//!
//! | route | |
//! |---|---|
//! | `POST /v1/completions`, `POST /v1/chat/completions` | an answer, whole or with `stream: true` as server-sent events |
//! | `POST /v1/embeddings` | the mean of the hidden states, scaled to length 1 |
//! | `GET /v1/models`, `GET /v1/models/{id}` | the one model |
//! | `POST /v1/tokenize`, `POST /v1/detokenize` | token ids of a text or a conversation, and back (vLLM's shapes) |
//! | `GET /healthz` | whether the server is up; needs no key |
//! | `GET /readyz` | whether it takes another request, or 503; needs no key |
//!
//! Requests share the engine: each forward pass is over all generations under way, and what prompts have in common is computed once
//! and kept for later ones, within [`ApiOptions::kv_bytes`]. Neither changes a bit of an answer.
//!
//! Where OpenAI leaves room, or a small model on one's own machine wants something else:
//! - Nothing given is **greedy**, as in the terminal and the browser; OpenAI's default is `temperature: 1`. With a
//!   temperature and no `seed`, each request draws its own.
//! - `model` may be left out; a name that is neither the id, the model's own name nor an alias is 404 `model_not_found`.
//! - `max_tokens` beyond the context is no error: the answer ends there with `finish_reason: "length"`.
//! - Beside OpenAI's parameters: `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `return_token_ids`.
//! - `n`, and a list as `prompt`, make at most 16 answers; each draws with a seed of its own, from `seed` on.
//! - `logprobs` are of the model's own distribution, before penalties, bias and temperature. `echo` with `logprobs` scores the prompt.
//! - The answer that outlasts [`ApiOptions::timeout`] ends there with `finish_reason: "length"`.
//! - Parameters that we know and do not act on are refused with 400; unknown ones are ignored.
#![deny(unsafe_code)]

mod batch;
mod embeddings;
mod error;
mod fields;
mod job;
mod logprobs;
mod mapped;
mod metrics;
mod middleware;
mod model_files;
mod observed;
mod prefix_cache;
mod reply;
mod request;
mod routes;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

pub use mapped::mapped_file;
pub use metrics::Stats;
pub use model_files::{MappedModel, ModelFileError, first_parts, mapped_model};
pub use observed::Records;
pub use routes::router;
pub use state::{ApiOptions, ApiState, StateError};
