//! What happens in a run: the lines of `metrics.jsonl`.
//!
//! A line is a JSON object with `event`, `time` (unix seconds) and the fields of the event. Fields are only ever added, and those that an
//! older or newer version lacks get their default, so that every version reads the files of every other.

use super::environment::Environment;
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, in unix seconds; 0 in files of versions that did not write it.
    #[serde(default)]
    pub time: f64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happens in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// Training starts or goes on.
    Begin(Box<Begin>),
    /// An optimiser step is done.
    Step(Step),
    /// The held-out rows were measured.
    Validation(Validation),
    /// The model went on with a prompt.
    Sample(Sample),
    /// A checkpoint was written.
    Checkpoint(Checkpoint),
    /// Something to tell a person.
    Note(Note),
    /// Training is over, for now or for good.
    End(End),
}

/// Training starts or goes on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Begin {
    /// Steps done before.
    pub step: u64,
    /// Steps planned.
    pub steps: u64,
    /// Steps of a pass over the rows.
    pub steps_per_epoch: f64,
    /// Name of the run.
    pub run: String,
    /// `scratch`, `full`, `lora`, …
    pub mode: String,
    /// The model it starts from.
    pub base: String,
    /// Where it computes.
    pub device: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Those that are trained.
    pub trained_parameters: u64,
    /// What it is trained and measured on.
    pub data: Vec<DataFile>,
    /// The machine and the program.
    pub environment: Environment,
}

/// Rows of one part of the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataFile {
    /// `train` or `valid`.
    pub part: String,
    /// The files or folders.
    pub paths: Vec<PathBuf>,
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that count in the loss.
    pub counted: u64,
}

/// An optimiser step is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// Mean loss over the counted tokens of the step.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Norm of the gradients before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Positions computed in a second, padding and prompts included.
    #[serde(deserialize_with = "number")]
    pub tokens_per_s: f64,
    /// Tokens that count in the loss.
    pub tokens: u64,
    /// The most memory that the process has held; filled in by the reporter where the trainer does not know better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

/// The held-out rows were measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Validation {
    /// Steps done before.
    pub step: u64,
    /// Mean loss over the counted tokens.
    #[serde(deserialize_with = "number")]
    pub valid_loss: f64,
    /// Its exponential.
    #[serde(deserialize_with = "number")]
    pub valid_perplexity: f64,
}

/// The model went on with a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Steps done before.
    pub step: u64,
    /// What it was given.
    pub prompt: String,
    /// How it went on.
    pub text: String,
}

/// A checkpoint was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// Steps done before.
    pub step: u64,
    /// Where: a path or a URL.
    pub path: String,
}

/// Something to tell a person.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// Steps done before.
    pub step: u64,
    /// What.
    pub text: String,
}

/// Training is over, for now or for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Steps done.
    #[serde(default)]
    pub step: u64,
    /// How it ended.
    pub state: EndState,
    /// Why, where that says more than the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The most memory that the process has held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The outcome, as `fledgling train --json` prints it; `null` after a failure.
    #[serde(default)]
    pub outcome: serde_json::Value,
}

/// How training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndState {
    /// All steps are done.
    Finished,
    /// Ctrl-C, or `--until`: `--resume` goes on.
    Interrupted,
    /// The held-out loss no longer fell.
    StoppedEarly,
    /// An error.
    Failed,
}

/// JSON has no NaN and no infinity: they are written as `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Event {
    /// Steps done when it happened.
    pub fn step(&self) -> u64 {
        match self {
            Self::Begin(begin) => begin.step,
            Self::Step(step) => step.step,
            Self::Validation(validation) => validation.step,
            Self::Sample(sample) => sample.step,
            Self::Checkpoint(checkpoint) => checkpoint.step,
            Self::Note(note) => note.step,
            Self::End(end) => end.step,
        }
    }
}

impl Line {
    /// An event that happens now.
    pub fn now(event: Event) -> Self {
        Self {
            time: unix_seconds(),
            event,
        }
    }

    /// Reads a line; `None` where it is torn or of a kind that this version does not know.
    pub fn parse(text: &str) -> Option<Self> {
        let mut value: serde_json::Value = serde_json::from_str(text).ok()?;
        let fields = value.as_object_mut()?;
        if !fields.contains_key("event") {
            let event = if fields.contains_key("valid_loss") {
                "validation"
            } else if fields.contains_key("loss") {
                "step"
            } else {
                return None;
            };
            fields.insert("event".to_owned(), event.into());
        }
        serde_json::from_value(value).ok()
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were_written() {
        let events = [
            Event::Begin(Box::new(Begin {
                run: "a".to_owned(),
                steps: 7,
                ..Begin::default()
            })),
            Event::Step(Step {
                step: 3,
                loss: 1.5,
                peak_bytes: Some(9),
                ..Step::default()
            }),
            Event::Sample(Sample {
                step: 3,
                prompt: "a\nb".to_owned(),
                text: "</script>".to_owned(),
            }),
            Event::End(End {
                step: 3,
                state: EndState::StoppedEarly,
                reason: None,
                peak_bytes: None,
                outcome: serde_json::Value::Null,
            }),
        ];
        for event in events {
            let line = Line { time: 12.25, event };
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(Line::parse(&text), Some(line), "{text}");
        }
    }

    #[test]
    fn lines_of_older_versions_torn_and_unknown_ones() {
        let step =
            Line::parse(r#"{"step":2,"loss":3.5,"lr":1e-3,"grad_norm":null,"tokens_per_s":10.0}"#);
        let Some(Line {
            time,
            event: Event::Step(step),
        }) = step
        else {
            panic!("no step")
        };
        assert!(time.abs() < 1e-9 && step.step == 2 && step.grad_norm.is_nan());
        let validation = Line::parse(r#"{"step":2,"valid_loss":3.5,"valid_perplexity":33.1}"#);
        assert!(matches!(
            validation.map(|line| line.event),
            Some(Event::Validation(Validation { step: 2, .. }))
        ));
        for bad in [
            "",
            "{\"step\":2,\"lo",
            "[]",
            "3",
            "{\"event\":\"later\"}",
            "{\"event\":\"step\",\"loss\":\"x\"}",
        ] {
            assert_eq!(Line::parse(bad), None, "{bad}");
        }
    }
}
