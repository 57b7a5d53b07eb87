//! What a client may ask for: OpenAI's parameters, checked. Fields that nobody knows are ignored, as OpenAI ignores
//! them; fields that we know and do not act on are refused, so that nobody believes they had an effect.

use crate::{
    error::ApiError,
    fields::{Fields, wrong_type},
};
use fledgling_core::{chat::Message, generate::GenerateParams, sampler::SamplerParams};
use serde_json::Value;

/// A completion without `max_tokens` has this many, as at OpenAI.
const COMPLETION_MAX_TOKENS: usize = 16;
/// Stop texts of one request. OpenAI takes 4.
const MAX_STOPS: usize = 16;
/// Choices of one request, of all its prompts together.
const MAX_CHOICES: usize = 16;
/// Inputs of one request for embeddings.
const MAX_INPUTS: usize = 64;
/// Likeliest tokens at one place, as at OpenAI.
const MAX_TOP_LOGPROBS: usize = 20;
/// Tokens that one request may bias, as at OpenAI.
const MAX_BIASES: usize = 1024;
/// Bytes of one stop text: each token's text is searched for each of them.
const MAX_STOP_BYTES: usize = 1000;

/// Where an answer starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Chat(Vec<Message>),
}

impl Prompt {
    /// The parameter it came in by.
    pub(crate) fn param(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Tokens(_) => "prompt",
            Self::Chat(_) => "messages",
        }
    }
}

/// A checked request for an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    pub(crate) prompts: Vec<Prompt>,
    /// Choices for each prompt.
    pub(crate) n: usize,
    pub(crate) params: GenerateParams,
    pub(crate) stream: bool,
    /// `stream_options.include_usage`.
    pub(crate) include_usage: bool,
    /// vLLM's extension: token ids beside the text.
    pub(crate) return_token_ids: bool,
    /// Log-probabilities of the tokens, and of so many of the likeliest at their places.
    pub(crate) logprobs: Option<usize>,
    /// The prompt before the answer.
    pub(crate) echo: bool,
}

impl Ask {
    /// Reads the body of `/v1/completions`.
    ///
    /// # Errors
    /// With the parameter that is missing, wrong or unsupported.
    pub(crate) fn completion(mut fields: Fields) -> Result<Self, ApiError> {
        for (param, harmless) in COMPLETION_ONLY {
            refuse(&fields, param, *harmless)?;
        }
        let prompt = fields
            .take("prompt")
            .ok_or_else(|| ApiError::invalid("prompt", "`prompt` is missing"))?;
        let echo = fields.bool("echo")?.unwrap_or(false);
        let least_tokens = usize::from(!echo);
        let prompts = completion_prompts(prompt, MAX_CHOICES)?;
        let mut ask = Self::new(&fields, prompts, least_tokens)?;
        ask.params.max_tokens.get_or_insert(COMPLETION_MAX_TOKENS);
        ask.logprobs = fields.count_in("logprobs", 0..=MAX_TOP_LOGPROBS)?;
        ask.echo = echo;
        if echo && ask.stream {
            return Err(ApiError::unsupported(
                "echo",
                "`echo` does not go with `stream: true` here",
            ));
        }
        match fields.count("best_of", 1)? {
            Some(best_of) if best_of != ask.n => Err(ApiError::unsupported(
                "best_of",
                "this server returns all that it generates: `best_of` must be `n`",
            )),
            _ => Ok(ask),
        }
    }

    /// Reads the body of `/v1/chat/completions`.
    ///
    /// # Errors
    /// With the parameter that is missing, wrong or unsupported.
    pub(crate) fn chat(mut fields: Fields) -> Result<Self, ApiError> {
        for (param, harmless) in CHAT_ONLY {
            refuse(&fields, param, *harmless)?;
        }
        let messages = fields
            .take("messages")
            .ok_or_else(|| ApiError::invalid("messages", "`messages` is missing"))?;
        let prompts = vec![Prompt::Chat(chat_messages(messages)?)];
        let mut ask = Self::new(&fields, prompts, 1)?;
        let n_top = fields.count_in("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
        ask.logprobs = match (fields.bool("logprobs")?.unwrap_or(false), n_top) {
            (true, n_top) => Some(n_top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(ApiError::invalid(
                    "top_logprobs",
                    "`top_logprobs` needs `logprobs: true`",
                ));
            }
        };
        Ok(ask)
    }

    fn new(fields: &Fields, prompts: Vec<Prompt>, least_tokens: usize) -> Result<Self, ApiError> {
        let stream = fields.bool("stream")?.unwrap_or(false);
        let n = fields.count_in("n", 1..=MAX_CHOICES)?.unwrap_or(1);
        if n * prompts.len() > MAX_CHOICES {
            return Err(ApiError::invalid(
                "n",
                format!("`n` times the number of prompts must be at most {MAX_CHOICES}"),
            ));
        }
        Ok(Self {
            prompts,
            n,
            params: generate_params(fields, least_tokens)?,
            stream,
            include_usage: include_usage(fields, stream)?,
            return_token_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            logprobs: None,
            echo: false,
        })
    }

    /// The parameters of one choice: each draws with a seed of its own.
    pub(crate) fn params_of(&self, choice: usize) -> GenerateParams {
        let mut params = self.params.clone();
        params.sampler.seed = params.sampler.seed.wrapping_add((choice % self.n) as u64);
        params
    }

    /// Whether it is a conversation.
    pub(crate) fn is_chat(&self) -> bool {
        matches!(self.prompts[..], [Prompt::Chat(_)])
    }
}

/// Reads `prompt` or `messages` of `/v1/tokenize`.
///
/// # Errors
/// When neither or both are there, or the given one is wrong.
pub(crate) fn tokenize_prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    match (fields.take("prompt"), fields.take("messages")) {
        (Some(Value::String(text)), None) => Ok(Prompt::Text(text)),
        (Some(_), None) => Err(wrong_type("prompt", "a string")),
        (None, Some(messages)) => Ok(Prompt::Chat(chat_messages(messages)?)),
        _ => Err(ApiError::invalid(
            "prompt",
            "give either `prompt` or `messages`",
        )),
    }
}

/// A parameter that we do not act on, and whether a value of it asks for nothing.
type Unsupported = (&'static str, fn(&Value) -> bool);

const COMPLETION_ONLY: &[Unsupported] = &[("suffix", is_empty)];

const CHAT_ONLY: &[Unsupported] = &[
    ("tools", is_empty),
    ("functions", is_empty),
    ("tool_choice", |v| {
        matches!(v.as_str(), Some("none" | "auto"))
    }),
    ("function_call", |v| {
        matches!(v.as_str(), Some("none" | "auto"))
    }),
    ("response_format", |v| v["type"] == "text"),
    ("modalities", |v| *v == serde_json::json!(["text"])),
    ("audio", never),
    ("web_search_options", never),
];

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn never(_: &Value) -> bool {
    false
}

fn refuse(
    fields: &Fields,
    param: &'static str,
    harmless: fn(&Value) -> bool,
) -> Result<(), ApiError> {
    match fields.get(param) {
        Some(value) if !harmless(value) => Err(ApiError::unsupported(
            param,
            format!(
                "this server does not support this value of `{param}`; leave the parameter out"
            ),
        )),
        _ => Ok(()),
    }
}

/// How to generate. Nothing given is greedy, as in the terminal and in the browser; OpenAI's default is
/// `temperature` 1. Without a seed, sampling differs from request to request.
fn generate_params(fields: &Fields, least_tokens: usize) -> Result<GenerateParams, ApiError> {
    let default = SamplerParams::default();
    let temperature = fields.number_in("temperature", 0.0..=2.0)?;
    let seed = fields.seed("seed")?;
    let sampler = SamplerParams {
        temperature: temperature.unwrap_or(default.temperature),
        top_k: top_k(fields)?.unwrap_or(default.top_k),
        // OpenAI takes 0, which keeps the likeliest token alone; so does the smallest share above it.
        top_p: fields
            .number_in("top_p", 0.0..=1.0)?
            .map_or(default.top_p, |share| share.max(f32::MIN_POSITIVE)),
        min_p: fields
            .number_in("min_p", 0.0..=1.0)?
            .unwrap_or(default.min_p),
        repetition_penalty: fields
            .number("repetition_penalty")?
            .unwrap_or(default.repetition_penalty),
        presence_penalty: penalty(fields, "presence_penalty")?,
        frequency_penalty: penalty(fields, "frequency_penalty")?,
        logit_bias: logit_bias(fields)?,
        seed: match seed {
            Some(seed) => seed,
            None => random_u64()?,
        },
        ..default
    };
    let max_tokens = fields.count("max_tokens", least_tokens)?;
    Ok(GenerateParams {
        max_tokens: fields
            .count("max_completion_tokens", least_tokens)?
            .or(max_tokens),
        sampler,
        stop: stop_texts(fields)?,
        ignore_end: fields.bool("ignore_eos")?.unwrap_or(false),
    })
}

fn penalty(fields: &Fields, name: &'static str) -> Result<f32, ApiError> {
    Ok(fields.number_in(name, -2.0..=2.0)?.unwrap_or(0.0))
}

/// `{"token id": bias}`; ids are checked against the vocabulary later.
fn logit_bias(fields: &Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let expected = "an object from token ids to numbers from -100 to 100";
    let map = match fields.get("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_BIASES => map,
        Some(Value::Object(_)) => {
            let most = format!("an object of at most {MAX_BIASES} token ids");
            return Err(wrong_type("logit_bias", &most));
        }
        Some(_) => return Err(wrong_type("logit_bias", expected)),
    };
    let bias = |(id, bias): (&String, &Value)| {
        let bias = bias
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id.parse().ok()?, bias as f32))
    };
    let biases: Option<Vec<_>> = map.iter().map(bias).collect();
    biases.ok_or_else(|| wrong_type("logit_bias", expected))
}

/// `top_k`; -1 is all, as vLLM has it.
fn top_k(fields: &Fields) -> Result<Option<usize>, ApiError> {
    match fields.get("top_k").and_then(Value::as_i64) {
        Some(-1) => Ok(Some(0)),
        _ => fields.count("top_k", 0),
    }
}

fn random_u64() -> Result<u64, ApiError> {
    getrandom::u64().map_err(ApiError::no_randomness)
}

fn stop_texts(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let expected = "a string or a list of strings";
    let texts: Vec<String> = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| wrong_type("stop", expected))?,
        Some(_) => return Err(wrong_type("stop", expected)),
    };
    if texts.len() > MAX_STOPS {
        return Err(wrong_type("stop", &format!("at most {MAX_STOPS} texts")));
    }
    if texts
        .iter()
        .any(|text| text.is_empty() || text.len() > MAX_STOP_BYTES)
    {
        return Err(wrong_type(
            "stop",
            &format!("texts of 1 to {MAX_STOP_BYTES} bytes"),
        ));
    }
    Ok(texts)
}

fn include_usage(fields: &Fields, stream: bool) -> Result<bool, ApiError> {
    match fields.get("stream_options") {
        None => Ok(false),
        Some(_) if !stream => Err(ApiError::invalid(
            "stream_options",
            "`stream_options` is only allowed with `stream: true`",
        )),
        Some(Value::Object(options)) => match options.get("include_usage") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(include)) => Ok(*include),
            Some(_) => Err(ApiError::invalid(
                "stream_options.include_usage",
                "`stream_options.include_usage` must be true or false",
            )),
        },
        Some(_) => Err(wrong_type("stream_options", "an object")),
    }
}

/// A text, token ids, or a list of texts and lists of token ids.
fn completion_prompts(value: Value, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of token ids, or a list of such";
    let one = |value: Value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if !ids.is_empty() => token_ids("prompt", &ids).map(Prompt::Tokens),
        _ => Err(wrong_type("prompt", expected)),
    };
    match value {
        Value::Array(items) if items.is_empty() => Err(wrong_type("prompt", expected)),
        Value::Array(items) if !items.iter().all(Value::is_number) => {
            if items.len() > most {
                let most = format!("a list of at most {most}");
                return Err(wrong_type("prompt", &most));
            }
            items.into_iter().map(one).collect()
        }
        value => Ok(vec![one(value)?]),
    }
}

/// What `/v1/embeddings` is asked for.
#[derive(Debug)]
pub(crate) struct EmbedAsk {
    pub(crate) inputs: Vec<Prompt>,
    /// Base64 of little-endian f32 instead of a list of numbers; the official Python client asks for it.
    pub(crate) base64: bool,
    pub(crate) dimensions: Option<usize>,
}

impl EmbedAsk {
    /// Reads the body of `/v1/embeddings`.
    ///
    /// # Errors
    /// With the parameter that is missing or wrong.
    pub(crate) fn new(mut fields: Fields) -> Result<Self, ApiError> {
        let input = fields
            .take("input")
            .ok_or_else(|| ApiError::invalid("input", "`input` is missing"))?;
        let inputs = completion_prompts(input, MAX_INPUTS).map_err(ApiError::in_input)?;
        let base64 = match fields.str("encoding_format")? {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                return Err(wrong_type("encoding_format", "`float` or `base64`"));
            }
        };
        Ok(Self {
            inputs,
            base64,
            dimensions: fields.count("dimensions", 1)?,
        })
    }
}

/// Reads a list of token ids; whether the vocabulary has them is checked later.
///
/// # Errors
/// When one is no id.
pub(crate) fn token_ids(param: &'static str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| wrong_type(param, "a list of token ids"))
}

fn chat_messages(value: Value) -> Result<Vec<Message>, ApiError> {
    match value {
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .enumerate()
            .map(|(idx, item)| chat_message(idx, item))
            .collect(),
        _ => Err(wrong_type("messages", "a list of at least one message")),
    }
}

fn chat_message(idx: usize, value: &Value) -> Result<Message, ApiError> {
    let wrong = |field: &str, message: &str| {
        let param = format!("messages[{idx}]{field}");
        let message = format!("`{param}` {message}");
        ApiError::invalid(param, message)
    };
    let Value::Object(fields) = value else {
        return Err(wrong("", "must be an object with `role` and `content`"));
    };
    let role = match fields.get("role").and_then(Value::as_str) {
        Some(role @ ("system" | "user" | "assistant")) => role,
        // The name that newer clients give to the system message.
        Some("developer") => "system",
        _ => {
            return Err(wrong(
                ".role",
                "must be `system`, `developer`, `user` or `assistant`",
            ));
        }
    };
    if fields
        .get("tool_calls")
        .is_some_and(|calls| !calls.is_null() && !is_empty(calls))
    {
        return Err(wrong(
            ".tool_calls",
            "is not supported: this server runs no tools",
        ));
    }
    let content = fields
        .get("content")
        .and_then(content_text)
        .ok_or_else(|| {
            wrong(
                ".content",
                "must be a string or a list of parts `{\"type\": \"text\", \"text\": …}`",
            )
        })?;
    Ok(Message {
        role: role.to_owned(),
        content,
    })
}

/// A string, or text parts joined by line ends, as llama.cpp and vLLM join them.
fn content_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .map(|part| match part["type"].as_str() {
                    Some("text") => part["text"].as_str(),
                    _ => None,
                })
                .collect::<Option<_>>()?;
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}
