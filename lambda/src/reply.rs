//! OpenAI's answer objects, whole and in chunks, for completions and for chats.

use crate::{
    logprobs::{self, TokenLogprob},
    request::{Ask, Prompt},
    state::{ApiState, now_unix_s},
    stream::Choice,
};
use fledgling_core::{generate::FinishReason, tokenizer::Tokenizer};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Tells clients which software answered, so that they know when the same seed may give another text.
const FINGERPRINT: &str = concat!("fledgling-", env!("CARGO_PKG_VERSION"));

/// What all objects of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    id: String,
    created_unix_s: u64,
    model: String,
    is_chat: bool,
    pub(crate) include_usage: bool,
    /// The prompts' tokens.
    prompts: Vec<Vec<u32>>,
    /// The prompts' texts, where the client wants them before the answers.
    echoes: Option<Vec<String>>,
    /// Choices for each prompt.
    n: usize,
    return_token_ids: bool,
    has_logprobs: bool,
    tokenizer: Arc<Tokenizer>,
}

impl Reply {
    /// The frame of the answer to `ask`, named after the request.
    pub(crate) fn new(state: &ApiState, ask: &Ask, prompts: Vec<Vec<u32>>, nonce: &str) -> Self {
        let is_chat = ask.is_chat();
        let tokenizer = Arc::clone(&state.info().tokenizer);
        let echo = |(prompt, tokens): (&Prompt, &Vec<u32>)| match prompt {
            Prompt::Text(text) => text.clone(),
            _ => tokenizer.decode(tokens, false),
        };
        let echoes = ask
            .echo
            .then(|| ask.prompts.iter().zip(&prompts).map(echo).collect());
        Self {
            id: format!("{}-{nonce}", if is_chat { "chatcmpl" } else { "cmpl" }),
            created_unix_s: now_unix_s(),
            model: state.model_id().to_owned(),
            is_chat,
            include_usage: ask.include_usage,
            prompts,
            echoes,
            n: ask.n,
            return_token_ids: ask.return_token_ids,
            has_logprobs: ask.logprobs.is_some(),
            tokenizer,
        }
    }

    /// Choices of all prompts.
    pub(crate) fn n_choices(&self) -> usize {
        self.n * self.prompts.len()
    }

    /// The whole answer in one object.
    pub(crate) fn whole(&self, choices: &[Choice]) -> Value {
        let object = if self.is_chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let objects = choices.iter().enumerate().map(|(idx, choice)| {
            let text = match &self.echoes {
                Some(echoes) => format!("{}{}", echoes[idx / self.n], choice.text),
                None => choice.text.clone(),
            };
            let content = if self.is_chat {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                ("message", message)
            } else {
                ("text", json!(text))
            };
            let (logprobs, _) = self.logprobs(idx, choice);
            self.choice(idx, content, logprobs, choice, choice.finish)
        });
        let mut whole = self.object(object, objects.collect(), true);
        whole.insert("usage".into(), self.usage(choices));
        Value::Object(whole)
    }

    /// The chunks that open each choice of a chat with the role. Completions have none.
    pub(crate) fn openings(&self) -> Vec<Value> {
        if !self.is_chat {
            return Vec::new();
        }
        let opening = |idx| {
            let delta = json!({"role": "assistant", "content": ""});
            let choice = Choice::default();
            let object = self.choice(idx, ("delta", delta), Value::Null, &choice, None);
            self.chunk(object, true)
        };
        (0..self.n_choices()).map(opening).collect()
    }

    /// A chunk of what has come of a choice, which is taken out; with why it ended once the text is out.
    pub(crate) fn piece(
        &self,
        idx: usize,
        choice: &mut Choice,
        finish: Option<FinishReason>,
    ) -> Value {
        let (logprobs, offset) = if choice.logprobs.is_empty() {
            (Value::Null, choice.offset)
        } else {
            self.logprobs(idx, choice)
        };
        let content = match (self.is_chat, finish) {
            (true, Some(_)) => ("delta", json!({})),
            (true, None) => ("delta", json!({"content": choice.text})),
            (false, _) => ("text", json!(choice.text)),
        };
        let object = self.choice(idx, content, logprobs, choice, finish);
        let is_first = !choice.has_begun && !self.is_chat;
        (choice.has_begun, choice.offset) = (true, offset);
        choice.text.clear();
        choice.token_ids.clear();
        choice.logprobs.clear();
        self.chunk(object, is_first)
    }

    /// The last chunk of `stream_options.include_usage`: no choice, only the counts.
    pub(crate) fn usage_chunk(&self, choices: &[Choice]) -> Value {
        let mut chunk = self.object(self.chunk_object(), Vec::new(), false);
        chunk.insert("usage".into(), self.usage(choices));
        Value::Object(chunk)
    }

    fn chunk(&self, choice: Value, is_first: bool) -> Value {
        let mut chunk = self.object(self.chunk_object(), vec![choice], is_first);
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        Value::Object(chunk)
    }

    fn chunk_object(&self) -> &'static str {
        if self.is_chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        }
    }

    /// The frame around the choices. A chat's prompt ids stand here, a completion's in its choice, as vLLM has it.
    fn object(&self, object: &str, choices: Vec<Value>, is_first: bool) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), json!(self.id));
        map.insert("object".into(), json!(object));
        map.insert("created".into(), json!(self.created_unix_s));
        map.insert("model".into(), json!(self.model));
        map.insert("system_fingerprint".into(), json!(FINGERPRINT));
        map.insert("choices".into(), Value::Array(choices));
        if self.return_token_ids && self.is_chat && is_first {
            map.insert("prompt_token_ids".into(), json!(self.prompts[0]));
        }
        map
    }

    fn choice(
        &self,
        idx: usize,
        (key, content): (&str, Value),
        logprobs: Value,
        choice: &Choice,
        finish: Option<FinishReason>,
    ) -> Value {
        let mut map = Map::new();
        map.insert("index".into(), json!(idx));
        map.insert(key.into(), content);
        map.insert("logprobs".into(), logprobs);
        map.insert("finish_reason".into(), json!(finish.map(finish_name)));
        if self.return_token_ids {
            map.insert("token_ids".into(), json!(choice.token_ids));
            if !self.is_chat && !choice.has_begun {
                let prompt = &self.prompts[idx / self.n];
                map.insert("prompt_token_ids".into(), json!(prompt));
            }
        }
        Value::Object(map)
    }

    /// `logprobs` of what is there of a choice, and the characters up to its end.
    fn logprobs(&self, idx: usize, choice: &Choice) -> (Value, usize) {
        if !self.has_logprobs {
            return (Value::Null, 0);
        }
        if self.is_chat {
            return (logprobs::of_chat(&self.tokenizer, &choice.logprobs), 0);
        }
        let tokens: Vec<TokenLogprob> = (choice.prompt_logprobs.iter())
            .chain(&choice.logprobs)
            .cloned()
            .collect();
        let prompt = &self.prompts[idx / self.n];
        let first = &prompt[..usize::from(self.echoes.is_some())];
        logprobs::of_completion(&self.tokenizer, first, &tokens, choice.offset)
    }

    fn usage(&self, choices: &[Choice]) -> Value {
        let n_prompt: usize = self.prompts.iter().map(Vec::len).sum();
        let n_completion: usize = choices.iter().map(|choice| choice.n_tokens).sum();
        // A prompt counts once, however many answers it has.
        let first_choices = choices.iter().step_by(self.n);
        let n_cached: usize = first_choices.map(|choice| choice.n_cached).sum();
        json!({
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
            "prompt_tokens_details": {"cached_tokens": n_cached},
        })
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
