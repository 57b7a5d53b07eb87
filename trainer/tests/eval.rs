//! `fledgling eval --device flex`: the figures are those of the CPU engine.

#![cfg(feature = "train")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::Place;
use fledgling_core::{quant::DType, spec::Family};
use serde_json::Value;

const TASK: &str = "kind = 'multiple_choice'\nquestion = '{{ q }}'\nchoices = 'c'\nanswer = 'a'\n";
const ROWS: &str = r#"{"q": "the", "c": ["cat", "a dog in the house", "it"], "a": 0}
{"q": "a man was in the", "c": ["cat", "dog"], "a": 1}
{"q": "who is in", "c": ["there", "hat", "and here and there"], "a": 2}
"#;

/// Figures agree to this share of themselves: the engines order their f32 sums differently.
const TOLERANCE: f64 = 2e-5;

#[track_caller]
fn nearly(a: &Value, b: &Value, what: &str) {
    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
    assert!((a - b).abs() <= TOLERANCE * a.abs(), "{what}: {a} {b}");
}

/// Log-probabilities of all choices of all questions.
fn log_probs(place: &Place, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(place.path(file)).unwrap();
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["log_probs"].as_array().unwrap().clone()
    });
    lines.flatten().collect()
}

#[test]
fn burn_measures_what_the_cpu_engine_measures() {
    let place = Place::new();
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(40);
    place.write("text.txt", text);
    place.write("rows.jsonl", ROWS);
    place.write("mine.toml", TASK);
    place.write("words.toml", "kind = 'last_word'\ntext = '{{ q }} there'\n");
    for family in [Family::Llama, Family::Gpt2, Family::Qwen3] {
        place.tiny("a.gguf", family, DType::F32);
        // In blocks Burn multiplies with the values of the weights, the engine with rounded activations also.
        place.tiny("b.gguf", family, DType::Q8_0);
        let eval = |answers: &str, device: &[&str]| {
            let args = [
                "eval",
                "a.gguf",
                "--text",
                "text.txt",
                "--window",
                "48",
                "--stride",
                "24",
                "--task",
                "mine.toml=rows.jsonl",
                "--task",
                "words.toml=rows.jsonl",
                "--answers",
                answers,
                "--reference",
                "b.gguf",
                "--kv-f32",
                "--json",
            ];
            place.run(&[&args[..], device].concat()).json()["models"][0].clone()
        };
        let engine = eval("engine.jsonl", &[]);
        let burn = eval("burn.jsonl", &["--device", "flex"]);
        for figure in ["perplexity", "perplexity_stderr", "byte_perplexity"] {
            nearly(&engine[figure], &burn[figure], figure);
        }
        assert_eq!(engine["tokens"], burn["tokens"]);
        assert_eq!(engine["tasks"]["mine"]["acc"], burn["tasks"]["mine"]["acc"]);
        assert_eq!(
            engine["tasks"]["words"]["acc"],
            burn["tasks"]["words"]["acc"]
        );
        let (a, b) = (
            log_probs(&place, "engine.jsonl"),
            log_probs(&place, "burn.jsonl"),
        );
        assert_eq!((a.len(), b.len()), (11, 11));
        for (a, b) in a.iter().zip(&b) {
            nearly(a, b, "log-probability");
        }
        // The reference is quantised: the engine's activations have 13 bits there, Burn's are f32.
        let kl = |model: &Value| model["reference"]["kl"].as_f64().unwrap();
        assert!(kl(&burn) > 0.0);
        assert!((kl(&burn) / kl(&engine) - 1.0).abs() < 0.05, "{family:?}");
    }
}

#[test]
fn what_burn_does_not_do_is_said() {
    let place = Place::new();
    place.tiny("a.gguf", Family::Llama, DType::F32);
    place.write("rows.jsonl", ROWS);
    let task = "kind = 'generate'\nquestion = '{{ q }}'\nanswer = 'q'\n";
    place.write("mine.toml", task);
    for writes in [&["--write"][..], &["--task", "mine.toml=rows.jsonl"]] {
        let args = ["eval", "a.gguf", "--device", "flex"];
        place
            .run(&[&args[..], writes].concat())
            .fails(2, &["only the CPU engine writes", "leave --device out"]);
    }
    place
        .run(&["eval", "a.gguf", "--write", "--device", "tpu"])
        .fails(2, &["cpu, flex, gpu, gpu:N or auto"]);
}
