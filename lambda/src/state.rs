//! What all requests share: the model's header, the worker that owns the engine, and what the operator decided.

use crate::{
    batch::{Forward, Limits},
    error::ApiError,
    job::{Answer, Event, Work},
    metrics::Stats,
    observed::{Observer, Records},
    request::{Ask, Prompt},
    worker::Worker,
};
use fledgling_core::{
    cpu::{CpuEngine, EngineError},
    generate::{GenerateParams, Generation},
    model::ModelInfo,
    speculate::PromptLookup,
};
use sha2::{Digest, Sha256};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc::UnboundedReceiver;

/// What the operator of a server decides. `Default` is an open server for one machine.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// The model's id in the API; `None` makes one of the model's name: `SmolLM2 135M` is `smollm2-135m`.
    pub model_id: Option<String>,
    /// Other names that requests may call the model by.
    pub aliases: Vec<String>,
    /// When the model was made, in Unix seconds (the file's time); `None` is now.
    pub created_unix_s: Option<u64>,
    /// Positions of the context; `None` is what the model was made for.
    pub n_ctx: Option<usize>,
    /// Generations that share the engine, at least 1.
    pub max_running: usize,
    /// Generations that may wait behind those that run; requests beyond are refused with 429.
    pub max_queue: usize,
    /// Bytes of keys and values in memory: of what runs, and of what was said before and may come again. One generation of the whole
    /// context fits in any case.
    pub kv_bytes: usize,
    /// Tokens that prompt look-up drafts at most; 0 drafts none, and `None` as many as are cheap to check. The text is the same.
    pub speculate: Option<usize>,
    /// An answer that is not whole after this time ends with what it has, as by `max_tokens`.
    pub timeout: Option<Duration>,
    /// Tokens of one answer at most, whatever the request asks for; `None` is as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Bytes of one request's body at most.
    pub max_body_bytes: usize,
    /// Keys that a request to `/v1` may carry as `Authorization: Bearer KEY`; none leaves the server open.
    pub api_keys: Vec<String>,
    /// Web origins whose pages may call the API (CORS): `https://example.org`, or `*` for all; none for only its own.
    pub allow_origins: Vec<String>,
    /// Where a record of each request goes; it has no text.
    pub records: Records,
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self {
            model_id: None,
            aliases: Vec::new(),
            created_unix_s: None,
            n_ctx: None,
            max_running: 16,
            max_queue: 64,
            kv_bytes: 512 << 20,
            speculate: None,
            timeout: None,
            max_tokens: None,
            max_body_bytes: 1 << 20,
            api_keys: Vec::new(),
            allow_origins: Vec::new(),
            records: Records::default(),
        }
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The context cannot be had.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A context of no or one position holds no answer.
    #[error(
        "a context of {0} positions is too small: it must hold a prompt and an answer, 2 at least"
    )]
    ContextTooSmall(usize),
    /// An empty key would let everybody in.
    #[error("an API key is empty")]
    EmptyKey,
    /// Not an origin.
    #[error("`{0}` is no web origin such as `https://example.org`, nor `*`")]
    BadOrigin(String),
    /// No thread for the generation.
    #[error("cannot start the generation thread: {0}")]
    Thread(#[from] io::Error),
}

/// The state of [`crate::router`]. Clones share it; the engine is freed with the last one.
#[derive(Debug, Clone)]
pub struct ApiState {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    info: ModelInfo,
    id: String,
    created_unix_s: u64,
    n_ctx: usize,
    max_draft: usize,
    options: ApiOptions,
    /// SHA-256 of each key, so that comparing takes the same time for any length.
    keys: Vec<[u8; 32]>,
    worker: Worker,
    observer: Observer,
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Running {
    /// Of each prompt.
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) events: UnboundedReceiver<Event>,
}

impl ApiState {
    /// Puts a loaded model to work: starts the generation thread.
    ///
    /// # Errors
    /// When the context cannot be had or an option makes no sense.
    pub fn new(
        info: ModelInfo,
        engine: CpuEngine,
        options: ApiOptions,
    ) -> Result<Self, StateError> {
        let n_ctx = options.n_ctx.unwrap_or(info.spec.n_ctx);
        if n_ctx < 2 {
            return Err(StateError::ContextTooSmall(n_ctx));
        }
        // A context too large fails now and not at the first request.
        engine.growing_session(n_ctx)?;
        Self::with_forward(info, engine, n_ctx, options)
    }

    pub(crate) fn with_forward(
        info: ModelInfo,
        forward: impl Forward,
        n_ctx: usize,
        options: ApiOptions,
    ) -> Result<Self, StateError> {
        if options.api_keys.iter().any(String::is_empty) {
            return Err(StateError::EmptyKey);
        }
        if let Some(origin) = options
            .allow_origins
            .iter()
            .find(|origin| !is_origin(origin))
        {
            return Err(StateError::BadOrigin(origin.clone()));
        }
        let limits = Limits {
            n_ctx,
            max_running: options.max_running.max(1),
            kv_bytes: options.kv_bytes,
        };
        let cheap = forward.engine().cheap_rows() - 1;
        let max_draft = options.speculate.unwrap_or(cheap);
        let worker = Worker::spawn(forward, limits, options.max_queue, options.timeout)?;
        let id = options.model_id.clone().unwrap_or_else(|| slug(&info.name));
        let tokenizer = Arc::clone(&info.tokenizer);
        let observer = Observer::new(options.records.clone(), id.clone(), tokenizer);
        Ok(Self {
            inner: Arc::new(Inner {
                id,
                created_unix_s: options.created_unix_s.unwrap_or_else(now_unix_s),
                n_ctx,
                max_draft,
                keys: options.api_keys.iter().map(|key| sha256(key)).collect(),
                worker,
                observer,
                info,
                options,
            }),
        })
    }

    /// The model's id in the API.
    pub fn model_id(&self) -> &str {
        &self.inner.id
    }

    /// Positions of the context.
    pub fn n_ctx(&self) -> usize {
        self.inner.n_ctx
    }

    /// The model's header.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Counters, for metrics.
    pub fn stats(&self) -> Stats {
        self.inner.worker.stats()
    }

    /// Counters, gauges and histograms in Prometheus' text format.
    pub fn prometheus(&self) -> String {
        self.inner.worker.prometheus()
    }

    /// Whether another request would be taken now.
    pub(crate) fn is_ready(&self) -> bool {
        self.inner.worker.is_ready()
    }

    pub(crate) fn created_unix_s(&self) -> u64 {
        self.inner.created_unix_s
    }

    pub(crate) fn observer(&self) -> &Observer {
        &self.inner.observer
    }

    pub(crate) fn options(&self) -> &ApiOptions {
        &self.inner.options
    }

    /// Whether a request may name the model so.
    pub(crate) fn answers_to(&self, name: &str) -> bool {
        let inner = &self.inner;
        name == inner.id
            || name == inner.info.name
            || inner.options.aliases.iter().any(|a| a == name)
    }

    /// Whether `key` is one of the keys, or none is needed.
    pub(crate) fn admits(&self, key: Option<&str>) -> bool {
        if self.inner.keys.is_empty() {
            return true;
        }
        let Some(given) = key.map(sha256) else {
            return false;
        };
        // Looks at all keys, so that the time says nothing about which one came close.
        let matches = |known: &[u8; 32]| known.ct_eq(&given);
        let any = self.inner.keys.iter().map(matches).reduce(|a, b| a | b);
        any.is_some_and(bool::from)
    }

    /// Encodes the prompts off the async threads, checks them against the context, and queues the generations.
    pub(crate) async fn start(&self, ask: &Ask, request_id: String) -> Result<Running, ApiError> {
        let worker = &self.inner.worker;
        worker.check_room().map_err(ApiError::queue_full)?;
        let (state, ask) = (self.clone(), ask.clone());
        let (prompts, works) = off_thread(move || state.answers(&ask)).await?;
        let events = self.submit(works, request_id)?;
        Ok(Running { prompts, events })
    }

    /// Queues the jobs of a request.
    pub(crate) fn submit(
        &self,
        works: Vec<Work>,
        request_id: String,
    ) -> Result<UnboundedReceiver<Event>, ApiError> {
        let submitted = self
            .inner
            .worker
            .submit(works, request_id, self.inner.observer.clone());
        submitted.map_err(ApiError::queue_full)
    }

    /// Encodes a prompt off the async threads; without `add_special`, a text gets no BOS before it.
    pub(crate) async fn encode(
        &self,
        prompt: Prompt,
        add_special: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let state = self.clone();
        off_thread(move || match prompt {
            Prompt::Text(text) if !add_special => {
                Ok(state.inner.info.tokenizer.encode(&text, false, true))
            }
            prompt => state.encode_now(&prompt),
        })
        .await
    }

    /// The prompts' tokens, and `n` generations of each.
    fn answers(&self, ask: &Ask) -> Result<(Vec<Vec<u32>>, Vec<Work>), ApiError> {
        let biased: Vec<u32> = ask
            .params
            .sampler
            .logit_bias
            .iter()
            .map(|(id, _)| *id)
            .collect();
        self.check_vocabulary("logit_bias", &biased)?;
        let mut prompts = Vec::with_capacity(ask.prompts.len());
        let mut works = Vec::with_capacity(ask.n * ask.prompts.len());
        for prompt in &ask.prompts {
            let tokens = self.encode_now(prompt)?;
            for choice in 0..ask.n {
                let mut params = ask.params_of(choice);
                if let Some(limit) = self.inner.options.max_tokens {
                    let asked = params.max_tokens.unwrap_or(limit);
                    params.max_tokens = Some(asked.min(limit));
                }
                let generation = self.generation(&tokens, &params, prompt.param())?;
                works.push(Work::Answer(Box::new(Answer {
                    generation,
                    lookup: PromptLookup::new(self.inner.max_draft),
                    logprobs: ask.logprobs,
                    scores_prompt: ask.echo && ask.logprobs.is_some(),
                    prompt_logprobs: Vec::new(),
                })));
            }
            prompts.push(tokens);
        }
        Ok((prompts, works))
    }

    fn generation(
        &self,
        tokens: &[u32],
        params: &GenerateParams,
        param: &'static str,
    ) -> Result<Generation, ApiError> {
        let tokenizer = Arc::clone(&self.inner.info.tokenizer);
        Generation::new(tokenizer, tokens, self.inner.n_ctx, params)
            .map_err(|error| ApiError::from_generate(&error, param))
    }

    fn encode_now(&self, prompt: &Prompt) -> Result<Vec<u32>, ApiError> {
        let info = &self.inner.info;
        Ok(match prompt {
            Prompt::Text(text) => info.encode_prompt(text),
            Prompt::Chat(messages) => info.encode_chat(messages)?,
            Prompt::Tokens(tokens) => {
                self.check_vocabulary("prompt", tokens)?;
                tokens.clone()
            }
        })
    }

    /// Refuses ids that the model does not have.
    pub(crate) fn check_vocabulary(
        &self,
        param: &'static str,
        tokens: &[u32],
    ) -> Result<(), ApiError> {
        let n_vocab = self.inner.info.spec.vocab_size;
        match tokens.iter().find(|&&token| token as usize >= n_vocab) {
            None => Ok(()),
            Some(token) => Err(ApiError::invalid(
                param,
                format!("token id {token} is outside the vocabulary of {n_vocab}"),
            )),
        }
    }
}

/// Runs `work` where it holds up no other request; a panic in it is an internal error.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            tracing::error!(%error, "encoding failed");
            Err(ApiError::internal())
        })
}

/// Now, in Unix seconds.
pub(crate) fn now_unix_s() -> u64 {
    now_unix_ms() / 1000
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |duration| duration.as_millis() as u64)
}

fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn is_origin(origin: &str) -> bool {
    let host = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"));
    origin == "*"
        || host.is_some_and(|host| {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c))
        })
}

/// A name as an id that needs no escaping in a URL.
fn slug(name: &str) -> String {
    let mut slug = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            _ if c.is_ascii_alphanumeric() || "._".contains(c) => slug.push(c.to_ascii_lowercase()),
            _ if slug.is_empty() || slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() {
        "model".to_owned()
    } else {
        slug.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_of_names() {
        assert_eq!(slug("SmolLM2 135M Instruct"), "smollm2-135m-instruct");
        assert_eq!(slug(" a//b_c.v1 (new) "), "a-b_c.v1-new");
        assert_eq!(slug("日本"), "model");
    }

    #[test]
    fn origins_are_checked() {
        for good in [
            "*",
            "https://example.org",
            "http://127.0.0.1:8080",
            "http://[::1]:80",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "example.org",
            "https://",
            "https://a/b",
            "https://a\r\nx: y",
            "null",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
