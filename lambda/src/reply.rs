//! OpenAI's answer objects, whole and in chunks, for completions and for chats.

use crate::{request::Ask, request::Prompt, state::ApiState, state::now_unix_s};
use fledgling_core::generate::FinishReason;
use serde_json::{Map, Value, json};

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
    /// Set when the client asked for token ids.
    prompt_token_ids: Option<Vec<u32>>,
    n_prompt: usize,
}

/// What an answer cost, beside its prompt.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) n_cached: usize,
    pub(crate) n_completion: usize,
}

impl Reply {
    /// The frame of the answer to `ask`, named after the request.
    pub(crate) fn new(state: &ApiState, ask: &Ask, prompt_tokens: Vec<u32>, nonce: &str) -> Self {
        let is_chat = matches!(ask.prompt, Prompt::Chat(_));
        Self {
            id: format!("{}-{nonce}", if is_chat { "chatcmpl" } else { "cmpl" }),
            created_unix_s: now_unix_s(),
            model: state.model_id().to_owned(),
            is_chat,
            include_usage: ask.include_usage,
            n_prompt: prompt_tokens.len(),
            prompt_token_ids: ask.return_token_ids.then_some(prompt_tokens),
        }
    }

    /// The whole answer in one object.
    pub(crate) fn whole(
        &self,
        text: &str,
        token_ids: &[u32],
        finish: FinishReason,
        usage: Usage,
    ) -> Value {
        let content = if self.is_chat {
            (
                "message",
                json!({"role": "assistant", "content": text, "refusal": null}),
            )
        } else {
            ("text", json!(text))
        };
        let object = if self.is_chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let choice = self.choice(content, token_ids, Some(finish), true);
        let mut whole = self.object(object, vec![choice], true);
        whole.insert("usage".into(), self.usage(usage));
        Value::Object(whole)
    }

    /// The chunk that opens a chat with the role. Completions have none.
    pub(crate) fn opening(&self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        self.is_chat
            .then(|| self.chunk(("delta", delta), &[], None, true))
    }

    /// A piece of text.
    pub(crate) fn piece(&self, text: &str, token_ids: &[u32], is_first: bool) -> Value {
        let content = if self.is_chat {
            ("delta", json!({"content": text}))
        } else {
            ("text", json!(text))
        };
        self.chunk(content, token_ids, None, is_first && !self.is_chat)
    }

    /// The chunk that says why it ended.
    pub(crate) fn ending(&self, token_ids: &[u32], finish: FinishReason, is_first: bool) -> Value {
        let content = if self.is_chat {
            ("delta", json!({}))
        } else {
            ("text", json!(""))
        };
        self.chunk(content, token_ids, Some(finish), is_first && !self.is_chat)
    }

    /// The last chunk of `stream_options.include_usage`: no choice, only the counts.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut chunk = self.object(self.chunk_object(), Vec::new(), false);
        chunk.insert("usage".into(), self.usage(usage));
        Value::Object(chunk)
    }

    fn chunk(
        &self,
        content: (&str, Value),
        token_ids: &[u32],
        finish: Option<FinishReason>,
        is_first: bool,
    ) -> Value {
        let choice = self.choice(content, token_ids, finish, is_first);
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
        if let (Some(ids), true, true) = (&self.prompt_token_ids, self.is_chat, is_first) {
            map.insert("prompt_token_ids".into(), json!(ids));
        }
        map
    }

    fn choice(
        &self,
        (key, content): (&str, Value),
        token_ids: &[u32],
        finish: Option<FinishReason>,
        is_first: bool,
    ) -> Value {
        let mut map = Map::new();
        map.insert("index".into(), json!(0));
        map.insert(key.into(), content);
        map.insert("logprobs".into(), Value::Null);
        map.insert("finish_reason".into(), json!(finish.map(finish_name)));
        if let Some(prompt_ids) = &self.prompt_token_ids {
            map.insert("token_ids".into(), json!(token_ids));
            if is_first && !self.is_chat {
                map.insert("prompt_token_ids".into(), json!(prompt_ids));
            }
        }
        Value::Object(map)
    }

    fn usage(&self, usage: Usage) -> Value {
        json!({
            "prompt_tokens": self.n_prompt,
            "completion_tokens": usage.n_completion,
            "total_tokens": self.n_prompt + usage.n_completion,
            "prompt_tokens_details": {"cached_tokens": usage.n_cached},
        })
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
