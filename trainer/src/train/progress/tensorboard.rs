//! Events for TensorBoard (feature `tensorboard`), in `tensorboard/` in the run's folder.
//!
//! The file is a row of records (`TFRecord`: length, masked CRC-32C of the length, bytes, masked CRC-32C of the bytes), each an `Event` of
//! tensorflow/core/util/event.proto. The messages here hold the fields that are written, under their numbers there.

use super::Sink;
use crate::report::events::{Event as E, Line, Sample};
use anyhow::{Context, Result};
use prost::Message;
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

/// Name of the folder in a run's.
pub(super) const FOLDER: &str = "tensorboard";
/// `DT_STRING` of tensorflow/core/framework/types.proto.
const DT_STRING: i32 = 7;
/// `SessionLog.START`: what an earlier file has from this step on no longer counts.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    scalar: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

fn scalar(tag: &str, value: f64) -> Value {
    Value {
        tag: tag.to_owned(),
        scalar: Some(value as f32),
        ..Value::default()
    }
}

/// A text as the text plugin takes it: a tensor with one string. Indented, so that its Markdown shows it as it is.
fn text(tag: String, sample: &Sample) -> Value {
    let whole = format!("{}{}", sample.prompt, sample.text);
    let lines: Vec<_> = whole.lines().map(|line| format!("    {line}\n")).collect();
    Value {
        tag,
        tensor: Some(Tensor {
            dtype: DT_STRING,
            shape: Some(Shape {
                dim: vec![Dim { size: 1 }],
            }),
            string_val: vec![lines.concat().into_bytes()],
        }),
        metadata: Some(Metadata {
            plugin_data: Some(PluginData {
                plugin_name: "text".to_owned(),
            }),
        }),
        ..Value::default()
    }
}

/// CRC-32C, turned and moved as the format wants it, so that a checksum over checksums is none.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// A record of the file.
fn record(bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [
        &len,
        &masked_crc(&len).to_le_bytes(),
        bytes,
        &masked_crc(bytes).to_le_bytes(),
    ];
    parts.concat()
}

/// The file of events.
#[derive(Debug)]
pub(super) struct TensorBoard {
    file: File,
    path: PathBuf,
    prompts: Vec<String>,
}

impl TensorBoard {
    /// Begins a file; those of earlier starts stay, up to `resumed`. A run from the beginning has none.
    pub(super) fn open(folder: &Path, resumed: Option<u64>, now: f64) -> Result<Self> {
        let folder = folder.join(FOLDER);
        let cannot = || format!("cannot write in {}", folder.display());
        if resumed.is_none() && folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(cannot)?;
        }
        std::fs::create_dir_all(&folder).with_context(cannot)?;
        // Readers go through the files by name, so the time comes first.
        let name = format!(
            "events.out.tfevents.{:010}.fledgling.{}.{}",
            now as u64,
            std::process::id(),
            resumed.unwrap_or(0)
        );
        let path = folder.join(name);
        let file = File::create(&path).with_context(cannot)?;
        let mut this = Self {
            file,
            path,
            prompts: Vec::new(),
        };
        this.write(&Event {
            wall_time: now,
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::default()
        })?;
        if let Some(step) = resumed {
            this.write(&Event {
                wall_time: now,
                step: step as i64 + 1,
                session_log: Some(SessionLog { status: START }),
                ..Event::default()
            })?;
        }
        Ok(this)
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        self.file
            .write_all(&record(&event.encode_to_vec()))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn values(&mut self, event: &E) -> Vec<Value> {
        match event {
            E::Step(step) => {
                let mut values = vec![
                    scalar("loss/train", step.loss),
                    scalar("lr", step.lr),
                    scalar("grad_norm", step.grad_norm),
                    scalar("throughput/tokens_per_s", step.tokens_per_s),
                ];
                let mib = step.peak_bytes.map(|bytes| bytes as f64 / 1_048_576.0);
                values.extend(mib.map(|mib| scalar("memory/peak_mib", mib)));
                values
            }
            E::Validation(validation) => vec![
                scalar("loss/valid", validation.valid_loss),
                scalar("perplexity/valid", validation.valid_perplexity),
            ],
            E::Sample(sample) => {
                let known = self
                    .prompts
                    .iter()
                    .position(|prompt| *prompt == sample.prompt);
                let idx = known.unwrap_or_else(|| {
                    self.prompts.push(sample.prompt.clone());
                    self.prompts.len() - 1
                });
                vec![text(format!("sample/{}", idx + 1), sample)]
            }
            _ => Vec::new(),
        }
    }
}

impl Sink for TensorBoard {
    fn event(&mut self, line: &Line) -> Result<()> {
        let value = self.values(&line.event);
        if value.is_empty() {
            return Ok(());
        }
        self.write(&Event {
            wall_time: line.time,
            step: line.event.step() as i64,
            summary: Some(Summary { value }),
            ..Event::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::events::Validation;

    /// Two hexadecimal digits a byte.
    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.chars().filter(|c| !c.is_whitespace()).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap())
            .collect()
    }

    #[test]
    fn records_are_those_of_the_python_package() {
        // tensorboard 2.20: `RecordWriter(file).write(Event(…).SerializeToString())`
        let expected = [
            "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110",
            "0f000000000000006d532b090900002040fc54d94110043a0208017c7bef07",
            "39000000000000008b0737f10900005040fc54d94110072a2c0a110a0a6c6f73732f76616c696415000000400a170a10706572706c65786974792f76616c6964150000\
             00001e5bd455",
            "3d000000000000006049f1ec0900008040fc54d94110082a300a2e0a0873616d706c652f3142180807120412020801420e20202020610a2020202062c3a90a4a080a06\
             0a0474657874ce291aac",
        ];
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join(FOLDER).join("events.out.tfevents.1");
        std::fs::create_dir_all(folder.path().join(FOLDER)).unwrap();
        std::fs::write(&stale, "of the run that was replaced").unwrap();
        drop(TensorBoard::open(folder.path(), None, 1_600_000_000.0).unwrap());
        assert!(!stale.exists());
        let mut board = TensorBoard::open(folder.path(), Some(3), 1_700_000_000.5).unwrap();
        let validation = Validation {
            step: 7,
            valid_loss: 2.0,
            valid_perplexity: 0.0,
        };
        let sample = Sample {
            step: 8,
            prompt: "a\n".to_owned(),
            text: "bé".to_owned(),
        };
        for (time, event) in [
            (1_700_000_001.25, E::Validation(validation)),
            (
                1_700_000_001.5,
                E::Note(crate::report::events::Note::default()),
            ),
            (1_700_000_002.0, E::Sample(sample)),
        ] {
            board.event(&Line { time, event }).unwrap();
        }
        let written = std::fs::read(&board.path).unwrap();
        assert_eq!(written, bytes(&expected.concat()));
    }
}
