//! What the worker does for a request: answers, one for each of its choices, or an embedding.

use crate::{
    logprobs::TokenLogprob,
    metrics::{Counters, Outcome},
    observed::{Ended, Observed, Observer},
};
use fledgling_core::{
    generate::{FinishReason, Generation, Step},
    speculate::PromptLookup,
};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::UnboundedSender;

/// What a client hears of its request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The prompt of a choice is read; so many of its tokens were known from other requests.
    Prefilled { choice: usize, n_cached: usize },
    /// Log-probabilities of the prompt's tokens from the second on.
    Prompt {
        choice: usize,
        logprobs: Vec<TokenLogprob>,
    },
    /// A token; `n_tokens` of the answer so far, without an end token.
    Step {
        choice: usize,
        step: Step,
        n_tokens: usize,
        logprob: Option<TokenLogprob>,
    },
    /// A choice ended without another token: its time was over, or none was asked for.
    End {
        choice: usize,
        text: String,
        finish: FinishReason,
    },
    /// Mean of the hidden states of an input, of length 1. [C]
    Embedding { choice: usize, values: Vec<f32> },
    /// The request failed. The log says why.
    Failed,
}

/// What all jobs of a request have in common.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) request_id: String,
    pub(crate) observer: Observer,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) enqueued: Instant,
    /// When its answers end with what they have.
    pub(crate) deadline: Option<Instant>,
}

/// What a job is to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// Answer a prompt.
    Answer(Box<Answer>),
    /// Pool the hidden states of these tokens.
    Embed { tokens: Vec<u32>, sums: Vec<f64> },
}

/// A generation with what the client wants to know of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) generation: Generation,
    pub(crate) lookup: PromptLookup,
    /// Log-probabilities of the answer's tokens, with this many of the likeliest.
    pub(crate) logprobs: Option<usize>,
    /// Log-probabilities of the prompt's tokens too: they are all computed.
    pub(crate) scores_prompt: bool,
    /// Those that are.
    pub(crate) prompt_logprobs: Vec<TokenLogprob>,
}

/// One choice of a request, or one input of an embedding.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) choice: usize,
    pub(crate) work: Work,
    pub(crate) caller: Arc<Caller>,
    pub(crate) observed: Observed,
    /// Prompt tokens that were not computed.
    pub(crate) n_cached: usize,
    prefilled: bool,
    started: Option<Instant>,
    last_token: Option<Instant>,
    first_token: Option<Instant>,
    outcome: Option<Outcome>,
}

impl Job {
    pub(crate) fn new(choice: usize, work: Work, caller: Arc<Caller>) -> Self {
        let observed = caller
            .observer
            .observe(&caller.request_id, choice, caller.enqueued);
        Self {
            choice,
            work,
            caller,
            observed,
            n_cached: 0,
            prefilled: false,
            started: None,
            last_token: None,
            first_token: None,
            outcome: None,
        }
    }

    /// All tokens that a session must hold before the job's next result.
    pub(crate) fn context(&self) -> &[u32] {
        match &self.work {
            Work::Answer(answer) => answer.generation.context(),
            Work::Embed { tokens, .. } => tokens,
        }
    }

    /// Whether the client has gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.caller.events.is_closed()
    }

    /// Whether its time is over.
    pub(crate) fn is_late(&self) -> bool {
        self.caller.deadline.is_some_and(|at| Instant::now() >= at)
    }

    /// Its turn has come; again, when it had to make room.
    pub(crate) fn start(&mut self) {
        self.started.get_or_insert_with(Instant::now);
    }

    /// Says once that the prompt is read.
    pub(crate) fn prefilled(&mut self) {
        if std::mem::replace(&mut self.prefilled, true) {
            return;
        }
        let (choice, n_cached) = (self.choice, self.n_cached);
        let counters = &self.caller.counters;
        counters.prompt_tokens.add(self.context().len());
        counters.cached_tokens.add(n_cached);
        self.send(Event::Prefilled { choice, n_cached });
        if let Work::Answer(answer) = &mut self.work
            && answer.scores_prompt
        {
            let logprobs = std::mem::take(&mut answer.prompt_logprobs);
            self.send(Event::Prompt { choice, logprobs });
        }
    }

    /// Passes a step on; false when it was the last.
    pub(crate) fn step(&mut self, step: Step, logprob: Option<TokenLogprob>) -> bool {
        let now = Instant::now();
        let counters = Arc::clone(&self.caller.counters);
        counters.generated_tokens.add(1);
        match self.last_token.replace(now) {
            Some(last) => counters.between_tokens.record(now - last),
            None => {
                self.first_token = Some(now);
                counters.first_token.record(now - self.caller.enqueued);
            }
        }
        let finish = step.finish;
        if let Some(finish) = finish {
            // Before the client hears of it: Lambda freezes the process once the answer is complete.
            self.close(Outcome::Finished(finish));
        }
        let Work::Answer(answer) = &self.work else {
            return false;
        };
        let event = Event::Step {
            choice: self.choice,
            step,
            n_tokens: answer.generation.tokens().len(),
            logprob,
        };
        self.send(event);
        finish.is_none()
    }

    /// Ends it with what it has: its time is over, or no token was asked for.
    pub(crate) fn end(&mut self) {
        let finish = FinishReason::Length;
        let (choice, text) = match &mut self.work {
            Work::Answer(answer) => (self.choice, answer.generation.end(finish)),
            Work::Embed { .. } => return self.fail("the time of the request is over"),
        };
        self.prefilled();
        self.close(Outcome::Finished(finish));
        self.send(Event::End {
            choice,
            text,
            finish,
        });
    }

    /// Answers with the mean of what was summed up, scaled to length 1.
    pub(crate) fn embedded(&mut self) {
        let Work::Embed { sums, .. } = &self.work else {
            return;
        };
        let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        let values = sums.iter().map(|x| (x * scale) as f32).collect();
        let choice = self.choice;
        self.prefilled();
        self.close(Outcome::Finished(FinishReason::Stop));
        self.send(Event::Embedding { choice, values });
    }

    pub(crate) fn fail(&mut self, reason: &str) {
        tracing::error!(
            request_id = self.caller.request_id,
            reason,
            "the request failed"
        );
        self.close(Outcome::Failed);
        self.send(Event::Failed);
    }

    fn send(&self, event: Event) {
        // A client that has gone is noticed before the next forward pass.
        let _ = self.caller.events.send(event);
    }

    /// Counts and logs the end: one line a job, and never a word of the prompt or the answer.
    fn close(&mut self, outcome: Outcome) {
        if self.outcome.replace(outcome).is_some() {
            return;
        }
        let now = Instant::now();
        let since = |from: Option<Instant>| from.map(|from| now.duration_since(from));
        self.caller.counters.ended(outcome, since(self.started));
        let ms = |to: Option<Instant>| {
            to.map(|to| to.duration_since(self.caller.enqueued).as_millis() as u64)
        };
        let (prompt, answer) = match &self.work {
            Work::Answer(answer) => (answer.generation.prompt(), answer.generation.tokens()),
            Work::Embed { tokens, .. } => (&tokens[..], &[][..]),
        };
        let n_completion = answer.len();
        self.observed.close(&Ended {
            outcome: outcome.name(),
            prompt,
            n_cached: self.n_cached,
            answer,
            started: self.started,
            first_token: self.first_token,
        });
        tracing::info!(
            request_id = self.caller.request_id,
            choice = self.choice,
            outcome = outcome.name(),
            prompt_tokens = self.context().len() - n_completion,
            cached_tokens = self.n_cached,
            completion_tokens = n_completion,
            queue_ms = ms(self.started),
            first_token_ms = ms(self.first_token),
            total_ms = ms(Some(now)),
            "generation"
        );
    }
}

impl Drop for Job {
    /// Whatever ended neither well nor badly lost its client.
    fn drop(&mut self) {
        if self.outcome.is_none() {
            self.close(Outcome::Cancelled);
        }
    }
}
