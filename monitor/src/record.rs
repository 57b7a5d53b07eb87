//! What a server says of a request: one line of JSON, and no text.
//!
//! The line is also an event of `CloudWatch`'s embedded metric format (AWS, "Specification: Embedded metric format"): its member `_aws` names
//! those figures that `CloudWatch` makes metrics of when the line is printed within Lambda. Elsewhere it is one more member.

use crate::sketch::Sketch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Version of the record's form, in its member `fledgling_record`.
pub const VERSION: u32 = 1;
/// Where `CloudWatch` files the metrics.
pub const NAMESPACE: &str = "Fledgling";
/// An answer is repetitive when more of its 4-grams than this stood in it before.
pub const REPETITIVE: f64 = 0.5;

/// Names of a record's figures that become metrics, and their units.
const METRICS: [(&str, &str); 13] = [
    ("requests", "Count"),
    ("errors", "Count"),
    ("cold_starts", "Count"),
    ("queue_ms", "Milliseconds"),
    ("first_token_ms", "Milliseconds"),
    ("total_ms", "Milliseconds"),
    ("tokens_per_s", "Count/Second"),
    ("prompt_tokens", "Count"),
    ("completion_tokens", "Count"),
    ("prompt_surprise", "None"),
    ("answer_surprise", "None"),
    ("refusals", "Count"),
    ("repetition", "None"),
];

/// A request. Absent is what is not known: a refused request has no tokens, a prompt of one token no surprise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    #[serde(rename = "fledgling_record")]
    pub version: u32,
    /// When it was answered, in milliseconds since 1970.
    pub time_ms: u64,
    /// The model's id in the API.
    pub model: String,
    /// The request's id, as in `x-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// `stop`, `length`, `cancelled`, or the error's code.
    pub outcome: String,
    /// 1; a sum of it counts requests.
    #[serde(default)]
    pub requests: u32,
    /// 1 where it ended with an error.
    #[serde(default)]
    pub errors: u32,
    /// 1 for the first request of a process.
    #[serde(default)]
    pub cold_starts: u32,
    /// Tokens of the prompt, template included.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Those of them that were still known from a request before.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Milliseconds in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
    /// Milliseconds from arrival to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<f64>,
    /// Milliseconds from arrival to the last token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    /// Tokens a second after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Mean of `-ln p(token)` over the prompt's tokens that were scored, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_surprise: Option<f64>,
    /// How many were.
    #[serde(default)]
    pub prompt_scored: u64,
    /// The same of the answer, by the model's own probabilities before the sampler changes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_surprise: Option<f64>,
    /// How many tokens of the answer were scored.
    #[serde(default)]
    pub answer_scored: u64,
    /// ISO 639-3 code of the prompt's language, where that is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// 1 where the answer begins like a refusal ([`is_refusal`]).
    #[serde(default)]
    pub refusals: u32,
    /// Share of the answer's 4-grams that stood in it before ([`repetition`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition: Option<f64>,
    /// How often tokens stand in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sketch: Option<Sketch>,
}

/// Why a line that says it is a record is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Of a later program.
    #[error("the record is of version {0}, this program knows {VERSION}")]
    Version(u32),
    /// A member is missing or of another type.
    #[error("not a record: {0}")]
    Shape(String),
    /// A figure cannot be true.
    #[error("`{0}` is out of range")]
    Range(&'static str),
}

impl Record {
    /// The line of a log, without its end.
    pub fn to_line(&self) -> String {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            // A record of ours is an object, and JSON has no other way to fail than keys that are no text.
            _ => Map::new(),
        };
        let metrics: Vec<Value> = METRICS
            .iter()
            // CloudWatch refuses a metric whose member is missing or no number.
            .filter(|(name, _)| fields.get(*name).is_some_and(Value::is_number))
            .map(|(name, unit)| json!({"Name": name, "Unit": unit}))
            .collect();
        let directive = json!({
            "Timestamp": self.time_ms,
            "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [["model"]], "Metrics": metrics}],
        });
        fields.insert("_aws".to_owned(), directive);
        Value::Object(fields).to_string()
    }

    /// Reads a foreign object.
    ///
    /// # Errors
    /// When it is no record of this version, or a figure cannot be true.
    pub fn from_value(value: Value) -> Result<Self, RecordError> {
        let version = value.get("fledgling_record").and_then(Value::as_u64);
        if let Some(version) = version
            && version != u64::from(VERSION)
        {
            return Err(RecordError::Version(version.min(u64::from(u32::MAX)) as u32));
        }
        let record: Self =
            serde_json::from_value(value).map_err(|error| RecordError::Shape(error.to_string()))?;
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), RecordError> {
        const MOST_TOKENS: u64 = 1 << 32;
        // From 2020 to 2200: seconds or microseconds in place of milliseconds would make thousands of empty days.
        let times = 1_577_836_800_000..7_258_118_400_000;
        // A probability in f32 is not below e^-104.
        let surprise =
            |value: Option<f64>| value.is_none_or(|value| (0.0..=200.0).contains(&value));
        let positive =
            |value: Option<f64>| value.is_none_or(|value| value >= 0.0 && value.is_finite());
        let checks = [
            ("time_ms", times.contains(&self.time_ms)),
            ("prompt_tokens", self.prompt_tokens <= MOST_TOKENS),
            ("completion_tokens", self.completion_tokens <= MOST_TOKENS),
            ("prompt_surprise", surprise(self.prompt_surprise)),
            ("answer_surprise", surprise(self.answer_surprise)),
            ("queue_ms", positive(self.queue_ms)),
            ("first_token_ms", positive(self.first_token_ms)),
            ("total_ms", positive(self.total_ms)),
            ("tokens_per_s", positive(self.tokens_per_s)),
            (
                "repetition",
                self.repetition
                    .is_none_or(|value| (0.0..=1.0).contains(&value)),
            ),
            ("sketch", self.sketch.as_ref().is_none_or(Sketch::is_sound)),
        ];
        match checks.into_iter().find(|(_, holds)| !holds) {
            Some((name, _)) => Err(RecordError::Range(name)),
            None => Ok(()),
        }
    }
}

/// The language of a text's beginning, where it is certain (`whatlang`: trigrams and scripts).
pub fn language(text: &str) -> Option<&'static str> {
    const PREFIX_CHARS: usize = 2000;
    let end = text
        .char_indices()
        .nth(PREFIX_CHARS)
        .map_or(text.len(), |(at, _)| at);
    let info = whatlang::detect(&text[..end])?;
    info.is_reliable().then(|| info.lang().code())
}

/// Whether an answer begins as refusals do. Words alone decide, so a story whose hero apologises counts too: the share is to be
/// compared with the share of other days, not read by itself.
pub fn is_refusal(answer: &str) -> bool {
    const PREFIX_CHARS: usize = 160;
    const SIGNS: [&str; 18] = [
        "i can't",
        "i cannot",
        "i can not",
        "i'm not able to",
        "i am not able to",
        "i'm unable to",
        "i am unable to",
        "i'm sorry, but",
        "i am sorry, but",
        "as an ai",
        "i won't",
        "i do not have the ability",
        "ich kann nicht",
        "ich kann ihnen nicht",
        "es tut mir leid, aber",
        "je ne peux pas",
        "lo siento, pero",
        "no puedo",
    ];
    let start: String = answer.trim_start().chars().take(PREFIX_CHARS).collect();
    let start = start.to_lowercase().replace('\u{2019}', "'");
    SIGNS.iter().any(|sign| start.contains(sign))
}

/// Share of the 4-grams of tokens that stood in the answer before (Welleck et al., 2020, "Neural text generation with unlikelihood
/// training"); `None` below 8 tokens.
pub fn repetition(answer: &[u32]) -> Option<f64> {
    if answer.len() < 8 {
        return None;
    }
    let mut seen = HashSet::new();
    let n_grams = answer.len() - 3;
    let n_repeated = answer.windows(4).filter(|gram| !seen.insert(*gram)).count();
    Some(n_repeated as f64 / n_grams as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            version: VERSION,
            time_ms: 1_790_000_000_000,
            model: "m".to_owned(),
            outcome: "stop".to_owned(),
            requests: 1,
            prompt_tokens: 12,
            prompt_surprise: Some(3.25),
            sketch: Some(Sketch::of(1, &[1, 2, 3], &[4])),
            ..Record::default()
        }
    }

    #[test]
    fn a_line_comes_back_and_names_its_metrics() {
        let line = record().to_line();
        assert!(!line.contains('\n'));
        let value: Value = serde_json::from_str(&line).unwrap();
        let directive = &value["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(value["_aws"]["Timestamp"], 1_790_000_000_000_u64);
        assert_eq!(directive["Namespace"], "Fledgling");
        // The specification: every dimension is a text at the root, every metric a number there.
        for name in directive["Dimensions"][0].as_array().unwrap() {
            assert!(value[name.as_str().unwrap()].is_string());
        }
        let metrics = directive["Metrics"].as_array().unwrap();
        assert!(
            metrics
                .iter()
                .all(|metric| value[metric["Name"].as_str().unwrap()].is_number())
        );
        assert!(
            metrics
                .iter()
                .any(|metric| metric["Name"] == "prompt_surprise")
        );
        assert!(
            !metrics
                .iter()
                .any(|metric| metric["Name"] == "first_token_ms")
        );
        assert_eq!(Record::from_value(value).unwrap(), record());
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        let with = |name: &str, value: Value| {
            let mut fields = serde_json::to_value(record()).unwrap();
            fields[name] = value;
            Record::from_value(fields).unwrap_err()
        };
        assert_eq!(with("fledgling_record", json!(2)), RecordError::Version(2));
        assert_eq!(
            with("time_ms", json!(1_790_000_000)),
            RecordError::Range("time_ms")
        );
        assert_eq!(
            with("prompt_surprise", json!(-1.0)),
            RecordError::Range("prompt_surprise")
        );
        assert_eq!(
            with("tokens_per_s", json!(-1)),
            RecordError::Range("tokens_per_s")
        );
        assert_eq!(
            with("sketch", json!({"row": 0, "prompt": [600, 1]})),
            RecordError::Range("sketch")
        );
        assert!(matches!(with("model", json!(3)), RecordError::Shape(_)));
        assert!(matches!(
            with("prompt_tokens", json!(-3)),
            RecordError::Shape(_)
        ));
    }

    #[test]
    fn flags_of_answers() {
        assert!(is_refusal("I\u{2019}m sorry, but I cannot help with that."));
        assert!(is_refusal("  As an AI language model, …"));
        assert!(!is_refusal("A borrow cannot outlive its owner."));
        assert_eq!(repetition(&[1, 2, 3]), None);
        assert_eq!(repetition(&[7; 8]), Some(0.8));
        assert_eq!(repetition(&[1, 2, 3, 4, 5, 6, 7, 8]), Some(0.0));
        assert_eq!(
            language("The quick brown fox jumps over the lazy dog and runs away from the hunters."),
            Some("eng")
        );
        assert_eq!(language("x"), None);
    }
}
