//! What JavaScript asks for and what it is told, as data: JSON in, JSON out.

use crate::{error::RuntimeError, loader::Loaded};
use fledgling_core::{
    generate::{FinishReason, GenerateParams, Step},
    gguf::Value,
    sampler::SamplerParams,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

/// Texts beyond this are not shown as metadata: a whole `tokenizer.json` may be among them.
const METADATA_TEXT_BYTES: usize = 16 << 10;

/// `OptionsJson` of the browser boundary. Nothing given is greedy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
}

impl Options {
    /// Reads a JSON text; an empty one or `null` is nothing given.
    ///
    /// # Errors
    /// [`RuntimeError::BadOption`] with the place.
    pub fn parse(json: &str) -> Result<Self, RuntimeError> {
        if json.is_empty() || json == "null" {
            return Ok(Self::default());
        }
        serde_json::from_str(json)
            .map_err(|e| RuntimeError::BadOption(format!("the options are not understood: {e}")))
    }

    /// New tokens at most.
    pub fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// The parameters for core.
    pub fn params(&self) -> GenerateParams {
        let default = SamplerParams::default();
        GenerateParams {
            max_tokens: self.max_tokens,
            sampler: SamplerParams {
                temperature: self.temperature.unwrap_or(default.temperature),
                top_k: self.top_k.unwrap_or(default.top_k),
                top_p: self.top_p.unwrap_or(default.top_p),
                min_p: self.min_p.unwrap_or(default.min_p),
                repetition_penalty: self
                    .repetition_penalty
                    .unwrap_or(default.repetition_penalty),
                seed: self.seed.unwrap_or(default.seed),
                ..default
            },
            stop: self.stop.clone().unwrap_or_default(),
            ignore_end: false,
        }
    }
}

/// `StepJson`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StepJson<'a> {
    token: u32,
    text: &'a str,
    finish_reason: Option<&'static str>,
}

/// A step as JSON.
pub fn step_json(step: &Step) -> String {
    let finish_reason = step.finish.map(|reason| match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    });
    json!(StepJson {
        token: step.token,
        text: &step.text,
        finish_reason
    })
    .to_string()
}

/// `ModelInfoJson`.
pub fn info_json(loaded: &Loaded) -> String {
    let spec = &loaded.info.spec;
    json!({
        "name": loaded.info.name,
        "architecture": spec.family.name(),
        "nLayer": spec.n_layer,
        "nEmbd": spec.n_embd,
        "nCtx": loaded.n_ctx,
        "vocabSize": spec.vocab_size,
        "chat": loaded.info.chat_template.is_some(),
        "fileBytes": loaded.file_bytes,
        "metadata": scalars(loaded),
    })
    .to_string()
}

/// `Model.device`.
pub fn device_json(loaded: &Loaded) -> String {
    let kind = match loaded.engine {
        crate::run::Engine::Gpu(_) => "webgpu",
        crate::run::Engine::Cpu(_) => "cpu",
    };
    json!({ "kind": kind, "name": loaded.device_name, "reason": loaded.reason }).to_string()
}

fn scalars(loaded: &Loaded) -> Map<String, serde_json::Value> {
    let scalar = |value: &Value| match value {
        Value::String(text) => (text.len() <= METADATA_TEXT_BYTES).then(|| json!(text)),
        Value::Array(_) => None,
        Value::Bool(v) => Some(json!(v)),
        Value::F32(v) => Some(json!(v)),
        Value::F64(v) => Some(json!(v)),
        Value::U8(v) => Some(json!(v)),
        Value::I8(v) => Some(json!(v)),
        Value::U16(v) => Some(json!(v)),
        Value::I16(v) => Some(json!(v)),
        Value::U32(v) => Some(json!(v)),
        Value::I32(v) => Some(json!(v)),
        Value::U64(v) => Some(json!(v)),
        Value::I64(v) => Some(json!(v)),
    };
    loaded
        .header
        .metadata
        .iter()
        .filter_map(|(key, value)| Some((key.to_owned(), scalar(value)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_camel_case_and_greedy_by_default() {
        let given = Options::parse(r#"{"maxTokens":3,"topK":40,"stop":["\n"]}"#).unwrap();
        assert_eq!(given.max_tokens(), Some(3));
        assert_eq!(given.params().sampler.top_k, 40);
        assert_eq!(given.params().stop, ["\n"]);
        assert_eq!(
            Options::parse("").unwrap().params().sampler,
            SamplerParams::default()
        );
    }

    #[test]
    fn an_option_nobody_knows_is_named() {
        let error = Options::parse(r#"{"temprature":1}"#).unwrap_err();
        assert_eq!(error.code(), "bad-option");
        assert!(error.to_string().contains("temprature"), "{error}");
        assert_eq!(
            Options::parse(r#"{"maxTokens":-1}"#).unwrap_err().code(),
            "bad-option"
        );
    }
}
