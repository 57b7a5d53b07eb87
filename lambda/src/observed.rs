//! What is kept of a request: a [`Record`] on one line, and no text.
//!
//! The hook: a job owns an [`Observed`]. The runner tells it what the prompt's and the answer's tokens cost the model ([`Observed::prompt`],
//! [`Observed::answer`], both from logits that are there), and the end of the job writes the line ([`Observed::close`]), once, before the client
//! hears of the end: Lambda freezes the process then. Requests that never become a job are written by the layer [`refused`].

use crate::state::{ApiState, now_unix_ms};
use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use fledgling_core::{cpu::math::exp, tokenizer::Tokenizer};
use fledgling_monitor::{
    record::{Record, VERSION, is_refusal, language, repetition},
    sketch::Sketch,
};
use std::{
    fmt,
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Tokens at the end of a prompt whose surprise is measured. Each costs a row of the output matrix, about a quarter of what a token of a
/// small model costs in all, so that a long prompt costs no more than a short one.
const MOST_SCORED: usize = 32;
/// Tokens at the end of a prompt whose language is looked at.
const LANGUAGE_TOKENS: usize = 256;

/// Whether a request is the first of this process.
static COLD: AtomicBool = AtomicBool::new(true);

/// Where records go. `Default` is nowhere, and costs nothing.
#[derive(Clone, Default)]
pub struct Records(Option<Arc<Mutex<Sink>>>);

struct Sink {
    out: Box<dyn Write + Send>,
    /// A line was written in part: the next one begins on a line of its own.
    is_torn: bool,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Records").field(&self.is_on()).finish()
    }
}

impl Records {
    /// Writes a line a request. A full disk or a closed pipe loses lines and is said in the log; it harms neither answers nor other lines.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        let sink = Sink {
            out: Box::new(out),
            is_torn: false,
        };
        Self(Some(Arc::new(Mutex::new(sink))))
    }

    /// Whether they go anywhere.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn write(&self, record: &Record) {
        let Some(sink) = &self.0 else { return };
        let line = record.to_line();
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let start = if sink.is_torn { "\n" } else { "" };
        // One call, so that lines of several processes on one file do not mix.
        let whole = format!("{start}{line}\n");
        let written = sink
            .out
            .write_all(whole.as_bytes())
            .and_then(|()| sink.out.flush());
        if let Err(error) = &written
            && !sink.is_torn
        {
            tracing::warn!(%error, "a request's record could not be written");
        }
        sink.is_torn = written.is_err();
    }
}

/// What all requests share.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    records: Records,
    model: String,
    tokenizer: Arc<Tokenizer>,
}

impl Observer {
    pub(crate) fn new(records: Records, model: String, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            records,
            model,
            tokenizer,
        }
    }

    /// Begins a request's record.
    pub(crate) fn observe(&self, request_id: &str, choice: usize, arrived: Instant) -> Observed {
        let request_id = match choice {
            0 => request_id.to_owned(),
            // Each choice has a record; the first counts as the request.
            choice => format!("{request_id}#{choice}"),
        };
        Observed {
            observer: self.records.is_on().then(|| self.clone()),
            request_id,
            is_first: choice == 0,
            arrived,
            prompt: Sum::default(),
            answer: Sum::default(),
        }
    }

    fn record(&self, request_id: &str, outcome: &str) -> Record {
        Record {
            version: VERSION,
            time_ms: now_unix_ms(),
            model: self.model.clone(),
            request_id: Some(request_id.to_owned()),
            outcome: outcome.to_owned(),
            requests: 1,
            cold_starts: u32::from(COLD.swap(false, Relaxed)),
            ..Record::default()
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    nats: f64,
    n: u64,
}

impl Sum {
    fn mean(self) -> Option<f64> {
        (self.n > 0).then(|| self.nats / self.n as f64)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Observed {
    /// None where records go nowhere.
    observer: Option<Observer>,
    request_id: String,
    is_first: bool,
    arrived: Instant,
    prompt: Sum,
    answer: Sum,
}

/// What a job knows at its end.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    /// `stop`, `length`, `cancelled` or `failed`.
    pub(crate) outcome: &'a str,
    pub(crate) prompt: &'a [u32],
    pub(crate) n_cached: usize,
    /// Without an end token.
    pub(crate) answer: &'a [u32],
    pub(crate) started: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
}

impl Observed {
    pub(crate) fn is_on(&self) -> bool {
        self.observer.is_some()
    }

    /// Of a prompt of `n` tokens, the position from which on logits are wanted: `n - 1` where only the answer needs them.
    pub(crate) fn wanted_from(&self, n: usize) -> usize {
        n.saturating_sub(if self.is_on() { MOST_SCORED } else { 1 })
    }

    /// A token of the prompt cost the model so much ([`surprise`]).
    pub(crate) fn prompt(&mut self, nats: f64) {
        self.prompt.nats += nats;
        self.prompt.n += 1;
    }

    /// A token of the answer, an end token included.
    pub(crate) fn answer(&mut self, nats: f64) {
        self.answer.nats += nats;
        self.answer.n += 1;
    }

    /// Writes the record.
    pub(crate) fn close(&mut self, ended: &Ended<'_>) {
        let Some(observer) = self.observer.take() else {
            return;
        };
        let now = Instant::now();
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
        let since = |to: Instant| ms(to.duration_since(self.arrived));
        let n_answer = ended.answer.len();
        let speed = ended.first_token.filter(|_| n_answer > 1).map(|first| {
            // Of the tokens after the first.
            (n_answer - 1) as f64 / now.duration_since(first).as_secs_f64().max(1e-6)
        });
        let decoded = |ids: &[u32]| observer.tokenizer.decode(ids, true);
        let n_prompt = ended.prompt.len();
        let tail = &ended.prompt[n_prompt.saturating_sub(LANGUAGE_TOKENS)..];
        let start = &ended.answer[..n_answer.min(LANGUAGE_TOKENS)];
        let record = Record {
            requests: u32::from(self.is_first),
            errors: u32::from(ended.outcome == "failed"),
            prompt_tokens: n_prompt as u64,
            cached_tokens: ended.n_cached as u64,
            completion_tokens: n_answer as u64,
            queue_ms: ended.started.map(since),
            first_token_ms: ended.first_token.map(since),
            total_ms: Some(since(now)),
            tokens_per_s: speed,
            prompt_surprise: self.prompt.mean(),
            prompt_scored: self.prompt.n,
            answer_surprise: self.answer.mean(),
            answer_scored: self.answer.n,
            language: language(&decoded(tail)).map(str::to_owned),
            refusals: u32::from(is_refusal(&decoded(start))),
            repetition: repetition(ended.answer),
            // Which row is filled is as good as chance; the request's id decides, so that nothing can fail.
            sketch: Some(Sketch::of(
                chance(&self.request_id),
                ended.prompt,
                ended.answer,
            )),
            ..observer.record(&self.request_id, ended.outcome)
        };
        observer.records.write(&record);
    }
}

/// FNV-1a, its halves folded.
fn chance(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    hash ^ (hash >> 32)
}

/// `-ln p(token)` by a row of finite logits, in nats. [V]
pub(crate) fn surprise(logits: &[f32], token: u32) -> f64 {
    let Some(logit) = logits.get(token as usize) else {
        return 0.0;
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut total = 0.0;
    // Lanes in f32 over stretches so short that nothing is lost.
    for stretch in chunks.chunks(64) {
        let mut lanes = [0.0_f32; 16];
        for chunk in stretch {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += exp(x - max);
            }
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    total += rest.iter().map(|x| f64::from(exp(x - max))).sum::<f64>();
    // A rounding below 0 is 0.
    (total.ln() - f64::from(logit - max)).max(0.0)
}

/// A layer that writes the records of requests which are refused before they become a job.
pub(crate) async fn refused(
    State(state): State<ApiState>,
    request: Request,
    next: Next,
) -> Response {
    let is_post = request.method() == Method::POST;
    let id = request
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let observer = state.observer();
    // What is our fault became a job, and that has its record; what is not found is no request to the model.
    let is_ours = status.is_server_error() || status == StatusCode::NOT_FOUND;
    if is_post && status.as_u16() >= 400 && !is_ours && observer.records.is_on() {
        let outcome = format!("http_{}", status.as_u16());
        let record = Record {
            errors: 1,
            ..observer.record(&id, &outcome)
        };
        observer.records.write(&record);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn surprise_is_that_of_f64() {
        let logits: Vec<f32> = (0..50_003)
            .map(|i| 8.0 * ((i * 37 % 1009) as f32 / 1009.0 - 0.5))
            .collect();
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for token in [0, 1, 777, 50_002] {
            let want = sum.ln() - f64::from(logits[token as usize]);
            assert!((surprise(&logits, token) - want).abs() < 1e-5);
        }
        assert!(surprise(&[50.0, -50.0], 0) < 1e-9);
    }

    /// Takes `left` bytes, then fails until it is given more.
    struct Full(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let n = bytes.len().min(disk.0);
            if n == 0 {
                return Err(io::Error::other("no space left"));
            }
            disk.0 -= n;
            disk.1.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_tears_one_line_and_no_other() {
        let disk = Arc::new(Mutex::new((600, Vec::new())));
        let records = Records::to(Full(Arc::clone(&disk)));
        let record = Record {
            version: VERSION,
            time_ms: 1_790_000_000_000,
            model: "m".to_owned(),
            ..Record::default()
        };
        records.write(&record);
        records.write(&record);
        disk.lock().unwrap().0 = 100_000;
        records.write(&record);
        records.write(&record);
        let text = String::from_utf8(disk.lock().unwrap().1.clone()).unwrap();
        let whole = text
            .lines()
            .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
            .count();
        assert_eq!((text.lines().count(), whole), (4, 3), "{text}");
    }
}
