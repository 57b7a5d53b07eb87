//! From the worker's events to an answer: whole, or as server-sent events.

use crate::{
    error::{ApiError, json_response},
    job::Event,
    logprobs::TokenLogprob,
    reply::Reply,
};
use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use fledgling_core::generate::FinishReason;
use futures_util::stream::unfold;
use serde_json::Value;
use std::{collections::VecDeque, convert::Infallible};
use tokio::sync::mpsc::UnboundedReceiver;

/// What has come of a choice and was not sent yet, and what it took.
#[derive(Debug, Default, Clone)]
pub(crate) struct Choice {
    pub(crate) text: String,
    /// Of tokens whose text is still uncertain too: they go out with the next text.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) prompt_logprobs: Vec<TokenLogprob>,
    pub(crate) finish: Option<FinishReason>,
    /// Something was sent.
    pub(crate) has_begun: bool,
    /// Characters of the tokens that were sent.
    pub(crate) offset: usize,
    pub(crate) n_cached: usize,
    /// Tokens of the answer.
    pub(crate) n_tokens: usize,
}

/// The choices of a request.
#[derive(Debug)]
struct Progress {
    choices: Vec<Choice>,
}

impl Progress {
    fn new(n_choices: usize) -> Self {
        Self {
            choices: vec![Choice::default(); n_choices],
        }
    }

    /// Takes an event in; the number of its choice.
    fn take(&mut self, event: Option<Event>) -> Result<usize, ApiError> {
        match event {
            Some(Event::Prefilled { choice, n_cached }) => {
                self.choices[choice].n_cached = n_cached;
                Ok(choice)
            }
            Some(Event::Prompt { choice, logprobs }) => {
                self.choices[choice].prompt_logprobs = logprobs;
                Ok(choice)
            }
            Some(Event::Step {
                choice,
                step,
                n_tokens,
                logprob,
            }) => {
                let state = &mut self.choices[choice];
                state.text.push_str(&step.text);
                // An end token is not part of the answer.
                if n_tokens > state.n_tokens {
                    state.token_ids.push(step.token);
                    state.logprobs.extend(logprob);
                }
                (state.n_tokens, state.finish) = (n_tokens, step.finish);
                Ok(choice)
            }
            Some(Event::End {
                choice,
                text,
                finish,
            }) => {
                let state = &mut self.choices[choice];
                state.text.push_str(&text);
                state.finish = Some(finish);
                Ok(choice)
            }
            Some(Event::Embedding { .. } | Event::Failed) | None => Err(ApiError::internal()),
        }
    }

    fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }
}

/// Waits for the end of all choices and answers in one object.
///
/// # Errors
/// When the generation failed.
pub(crate) async fn whole(
    reply: &Reply,
    mut events: UnboundedReceiver<Event>,
) -> Result<Response, ApiError> {
    let mut progress = Progress::new(reply.n_choices());
    while !progress.is_over() {
        progress.take(events.recv().await)?;
    }
    let body = reply.whole(&progress.choices);
    Ok(json_response(StatusCode::OK, &body))
}

/// Answers at once and sends each piece of text as it comes. Dropping the response cancels the generation.
pub(crate) fn chunks(reply: Reply, events: UnboundedReceiver<Event>) -> Response {
    let chunks = Chunks {
        ready: reply.openings().iter().map(data).collect(),
        progress: Progress::new(reply.n_choices()),
        reply,
        events,
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

struct Chunks {
    reply: Reply,
    events: UnboundedReceiver<Event>,
    progress: Progress,
    ready: VecDeque<sse::Event>,
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
                Ok(idx) => self.send(idx),
                Err(error) => {
                    // The status is out already, so the error comes as an event, as OpenAI's clients expect it.
                    self.ready.push_back(data(&error.to_json()));
                    self.is_over = true;
                }
            }
        }
    }

    /// Makes chunks of what is certain of a choice.
    fn send(&mut self, idx: usize) {
        let Self {
            reply,
            progress,
            ready,
            ..
        } = self;
        let choice = &mut progress.choices[idx];
        let finish = choice.finish;
        if !choice.text.is_empty() {
            ready.push_back(data(&reply.piece(idx, choice, None)));
        }
        if finish.is_some() {
            ready.push_back(data(&reply.piece(idx, choice, finish)));
        }
        if finish.is_some() && progress.is_over() {
            if reply.include_usage {
                ready.push_back(data(&reply.usage_chunk(&progress.choices)));
            }
            ready.push_back(sse::Event::default().data("[DONE]"));
            self.is_over = true;
        }
    }
}

/// JSON has no line ends outside its strings' escapes, so it is one `data:` line.
fn data(value: &Value) -> sse::Event {
    sse::Event::default().data(value.to_string())
}
