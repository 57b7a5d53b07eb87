//! From the worker's events to an answer: whole, or as server-sent events.

use crate::{
    error::{ApiError, json_response},
    reply::{Reply, Usage},
    worker::Event,
};
use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use fledgling_core::generate::{FinishReason, Step};
use futures_util::stream::unfold;
use serde_json::Value;
use std::{collections::VecDeque, convert::Infallible};
use tokio::sync::mpsc::UnboundedReceiver;

/// Waits for the end of a generation and answers in one object.
///
/// # Errors
/// When the generation failed.
pub(crate) async fn whole(
    reply: &Reply,
    mut events: UnboundedReceiver<Event>,
) -> Result<Response, ApiError> {
    let mut progress = Progress::default();
    let mut text = String::new();
    let mut token_ids = Vec::new();
    loop {
        let Some(piece) = progress.take(events.recv().await)? else {
            continue;
        };
        text.push_str(&piece.text);
        token_ids.extend(piece.token_id);
        if let Some(finish) = piece.finish {
            let body = reply.whole(&text, &token_ids, finish, progress.usage);
            return Ok(json_response(StatusCode::OK, &body));
        }
    }
}

/// Answers at once and sends each piece of text as it comes. Dropping the response cancels the generation.
pub(crate) fn chunks(reply: Reply, events: UnboundedReceiver<Event>) -> Response {
    let chunks = Chunks {
        ready: reply
            .opening()
            .into_iter()
            .map(|chunk| data(&chunk))
            .collect(),
        reply,
        events,
        progress: Progress::default(),
        held_ids: Vec::new(),
        is_first: true,
        is_over: false,
    };
    let stream = unfold(chunks, async |mut chunks| {
        let event = chunks.next().await?;
        Some((Ok::<_, Infallible>(event), chunks))
    });
    // The comments of the keep-alive also tell proxies that a request that waits in the queue is not dead.
    let mut response = Sse::new(stream)
        .keep_alive(KeepAlive::default())
        .into_response();
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// What one step brings to the client.
#[derive(Debug)]
struct Piece {
    text: String,
    /// None for an end token, which is not part of the answer.
    token_id: Option<u32>,
    finish: Option<FinishReason>,
}

/// Counts that build up over the events.
#[derive(Debug, Default)]
struct Progress {
    usage: Usage,
}

impl Progress {
    /// Takes an event in; `None` when it brings nothing to the client.
    fn take(&mut self, event: Option<Event>) -> Result<Option<Piece>, ApiError> {
        match event {
            Some(Event::Prefilled { n_cached }) => {
                self.usage.n_cached = n_cached;
                Ok(None)
            }
            Some(Event::Step { step, n_tokens }) => {
                let Step {
                    token,
                    text,
                    finish,
                } = step;
                let token_id = (n_tokens > self.usage.n_completion).then_some(token);
                self.usage.n_completion = n_tokens;
                Ok(Some(Piece {
                    text,
                    token_id,
                    finish,
                }))
            }
            Some(Event::Failed) | None => Err(ApiError::internal()),
        }
    }
}

struct Chunks {
    reply: Reply,
    events: UnboundedReceiver<Event>,
    progress: Progress,
    ready: VecDeque<sse::Event>,
    /// Ids of tokens whose text is still uncertain; they go out with the next text.
    held_ids: Vec<u32>,
    is_first: bool,
    is_over: bool,
}

impl Chunks {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            let event = self.events.recv().await;
            match self.progress.take(event) {
                Ok(Some(piece)) => self.piece(&piece),
                Ok(None) => {}
                Err(error) => {
                    // The status is out already, so the error comes as an event, as OpenAI's clients expect it.
                    self.ready.push_back(data(&error.to_json()));
                    self.is_over = true;
                }
            }
        }
    }

    fn piece(&mut self, piece: &Piece) {
        self.held_ids.extend(piece.token_id);
        if !piece.text.is_empty() {
            let ids = std::mem::take(&mut self.held_ids);
            let is_first = std::mem::replace(&mut self.is_first, false);
            self.ready
                .push_back(data(&self.reply.piece(&piece.text, &ids, is_first)));
        }
        if let Some(finish) = piece.finish {
            let ending = self.reply.ending(&self.held_ids, finish, self.is_first);
            self.ready.push_back(data(&ending));
            if self.reply.include_usage {
                self.ready
                    .push_back(data(&self.reply.usage_chunk(self.progress.usage)));
            }
            self.ready.push_back(sse::Event::default().data("[DONE]"));
            self.is_over = true;
        }
    }
}

/// JSON has no line ends outside its strings' escapes, so it is one `data:` line.
fn data(value: &Value) -> sse::Event {
    sse::Event::default().data(value.to_string())
}
