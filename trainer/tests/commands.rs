//! Each command on tiny models: the shape of its JSON, and what it does with bad input.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::{Place, Ran};
use fledgling_core::{quant::DType, spec::Family};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
};

const FAMILIES: [Family; 2] = [Family::Gpt2, Family::Llama];

fn ids(value: &Value) -> Vec<u64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect()
}

#[test]
fn generate_gives_the_same_answer_for_the_same_seed_and_any_threads() {
    let place = Place::new();
    for family in FAMILIES {
        let model = place.tiny("tiny.gguf", family, DType::Q8_0);
        let ask = |extra: &[&str]| {
            let args = [
                &[
                    "generate",
                    &model,
                    "--prompt",
                    "Hello",
                    "--max-tokens",
                    "12",
                    "--ignore-end",
                    "--json",
                ],
                extra,
            ]
            .concat();
            place.run(&args).json()
        };
        let greedy = ask(&["--threads", "1"]);
        assert_eq!(ids(&greedy["token_ids"]).len(), 12);
        assert!(!ids(&greedy["prompt_token_ids"]).is_empty());
        assert_eq!(greedy["finish_reason"], "length");
        assert!(greedy["text"].is_string());
        assert!(greedy["time_to_first_token_ms"].as_f64().unwrap() > 0.0);
        assert!(greedy["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(ask(&["--threads", "3"])["token_ids"], greedy["token_ids"]);
        let warm = |seed| ask(&["--temperature", "1", "--seed", seed])["token_ids"].clone();
        assert_eq!(warm("5"), warm("5"));
        assert_ne!(warm("5"), warm("6"));
    }
}

#[test]
fn generate_streams_the_text_that_its_json_holds() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let args = ["generate", &model, "--prompt", "Hello", "--max-tokens", "8"];
    let json = place.run(&[&args[..], &["--json"]].concat()).json();
    let streamed = place.run(&args).ok();
    assert_eq!(streamed, format!("{}\n", json["text"].as_str().unwrap()));
}

#[test]
fn generate_reads_the_prompt_from_a_pipe_or_a_file() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Gpt2, DType::F32);
    let prompt = place.write("prompt.txt", "Hello");
    let direct = place
        .run(&[
            "generate",
            &model,
            "--prompt",
            "Hello",
            "--max-tokens",
            "4",
            "--json",
        ])
        .json();
    let file = place
        .run(&[
            "generate",
            &model,
            "--prompt-file",
            &prompt,
            "--max-tokens",
            "4",
            "--json",
        ])
        .json();
    let piped = piped(
        &place,
        &["generate", &model, "--max-tokens", "4", "--json"],
        "Hello\n",
    )
    .json();
    assert_eq!(direct["token_ids"], file["token_ids"]);
    assert_eq!(direct["token_ids"], piped["token_ids"]);
    assert_eq!(direct["prompt_token_ids"], piped["prompt_token_ids"]);
}

fn piped(place: &Place, args: &[&str], input: &str) -> Ran {
    let mut child = place
        .command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    Ran::from_output(child.wait_with_output().unwrap())
}

#[test]
fn generate_refuses_what_cannot_be() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let long = "word ".repeat(2000);
    place
        .run(&["generate", &model, "--prompt", &long])
        .fails(1, &["the prompt has", "context"]);
    place
        .run(&["generate", &model, "--prompt", "a", "--temperature", "-1"])
        .fails(1, &["temperature"]);
    place
        .run(&["generate", &model, "--prompt", "a", "--top-p", "7"])
        .fails(1, &["top_p"]);
    place
        .run(&["generate", &model, "--prompt", "a", "--ctx", "999999"])
        .fails(2, &["--ctx 999999", "positions"]);
    place
        .run(&["generate", &model, "--prompt", "a", "--ctx", "0"])
        .fails(2, &["at least 1"]);
    place
        .run(&["generate", &model, "--prompt", "a", "--threads", "0"])
        .fails(2, &["--threads"]);
    place
        .run(&["generate", &model, "--prompt-file", "nothing.txt"])
        .fails(1, &["nothing.txt"]);
    place.run(&["generate"]).fails(2, &["MODEL"]);
}

#[test]
fn a_model_that_is_not_there_is_answered_with_what_is() {
    let place = Place::new();
    place
        .run(&["generate", "smollm2-135m-instruct", "--prompt", "a"])
        .fails(2, &["fledgling pull smollm2-135m-instruct"]);
    place
        .run(&["generate", "smollm2-135m-instuct", "--prompt", "a"])
        .fails(2, &["did you mean `smollm2-135m-instruct`"]);
    place
        .run(&["generate", "nothing/like.it", "--prompt", "a"])
        .fails(2, &["pulled models: none yet"]);
    let model = place.tiny("some-model.gguf", Family::Llama, DType::F32);
    place.run(&["pull", &model]).ok();
    place
        .run(&["generate", "some-modle", "--prompt", "a"])
        .fails(
            2,
            &["did you mean `some-model`", "pulled models: some-model"],
        );
    place
        .run(&[
            "generate",
            "some-model",
            "--prompt",
            "a",
            "--max-tokens",
            "2",
        ])
        .ok();
}

#[test]
fn broken_files_get_one_clear_error_at_every_door() {
    let place = Place::new();
    let whole = fledgling_core::testing::tiny_model(Family::Llama, DType::Q8_0, 7);
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "truncated.gguf",
            whole[..whole.len() - 100].to_vec(),
            &["truncated.gguf", "truncated"],
        ),
        (
            "header.gguf",
            whole[..200].to_vec(),
            &["header.gguf", "truncated"],
        ),
        (
            "foreign.gguf",
            b"PK\x03\x04 this is a zip file, not a model".to_vec(),
            &["foreign.gguf", "not a GGUF file"],
        ),
        ("empty.gguf", Vec::new(), &["empty.gguf", "empty"]),
        (
            "text.gguf",
            b"<!doctype html><html>".to_vec(),
            &["text.gguf", "not a GGUF file"],
        ),
    ];
    for (name, bytes, says) in cases {
        let path = place.write(name, bytes);
        for args in [
            &["generate", &path, "--prompt", "a"][..],
            &["eval", &path, "--text", &path],
            &["inspect", &path],
            &["tokenize", &path, "--text", "a"],
            &["export", &path, "--quant", "f32", "-o", "out.gguf"],
            &["bench", "cpu", &path],
            &["chat", &path],
            &["serve", &path, "--port", "0"],
            &["pull", &path],
        ] {
            place.run(args).fails(1, says);
        }
    }
    let unknown = place.write(
        "unknown.gguf",
        replaced(
            "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0llama",
            "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0mamba",
        ),
    );
    place
        .run(&["generate", &unknown, "--prompt", "a"])
        .fails(1, &["unknown architecture `mamba`", "gpt2", "llama"]);
    place.run(&["inspect", &unknown, "--json"]).json();
    let missing = place.write(
        "missing.gguf",
        replaced("blk.1.attn_q.weight", "blk.1.attn_x.weight"),
    );
    place
        .run(&["generate", &missing, "--prompt", "a"])
        .fails(1, &["missing.gguf", "blk.1.attn_q.weight"]);
    assert!(!place.path("out.gguf").exists());
}

#[test]
fn inspect_shows_what_a_file_holds() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::Q4_0);
    let json = place.run(&["inspect", &model, "--json"]).json();
    assert_eq!(json["architecture"], "llama");
    assert_eq!(json["metadata"]["llama.block_count"], 2);
    let tensors = json["tensors"].as_array().unwrap();
    let q = tensors
        .iter()
        .find(|tensor| tensor["name"] == "blk.0.attn_q.weight")
        .unwrap();
    assert_eq!(
        (&q["type"], &q["shape"]),
        (&"Q4_0".into(), &serde_json::json!([64, 64]))
    );
    let tokens = &json["metadata"]["tokenizer.ggml.tokens"];
    let full = place.run(&["inspect", &model, "--json", "--full"]).json();
    assert_eq!(
        tokens["len"].as_u64().unwrap() as usize,
        full["metadata"]["tokenizer.ggml.tokens"]
            .as_array()
            .unwrap()
            .len()
    );
    assert!(
        place
            .run(&["inspect", &model])
            .ok()
            .contains("blk.0.attn_q.weight")
    );
}

#[test]
fn tokenize_agrees_with_generate() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Gpt2, DType::F32);
    let text = place.write("text.txt", "Hello, größe 🐦");
    let from_file = place
        .run(&["tokenize", &model, "--file", &text, "--json"])
        .json();
    let from_text = place
        .run(&["tokenize", &model, "--text", "Hello, größe 🐦", "--json"])
        .json();
    assert_eq!(from_file, from_text);
    assert!(!ids(&from_file["token_ids"]).is_empty());
    let special = |extra: &[&str]| {
        ids(&place
            .run(
                &[
                    &["tokenize", &model, "--text", "<|im_end|>", "--json"],
                    extra,
                ]
                .concat(),
            )
            .json()["token_ids"])
        .len()
    };
    assert_eq!(special(&["--parse-special"]), 1);
    assert!(special(&[]) > 1, "a text is letters unless asked otherwise");
    let latin1 = place.write("latin1.txt", [0xff, 0xfe]);
    place
        .run(&["tokenize", &model, "--file", &latin1])
        .fails(1, &["latin1.txt", "UTF-8"]);
}

#[test]
fn eval_scores_whole_windows_of_several_models() {
    let place = Place::new();
    let f32 = place.tiny("f32.gguf", Family::Llama, DType::F32);
    let q8 = place.tiny("q8.gguf", Family::Llama, DType::Q8_0);
    let text = place.write(
        "text.txt",
        "The quick brown fox jumps over the lazy dog. ".repeat(40),
    );
    let n_tokens = ids(&place
        .run(&["tokenize", &f32, "--file", &text, "--json"])
        .json()["token_ids"])
    .len() as u64;
    let json = place
        .run(&[
            "eval", &f32, &q8, "--text", &text, "--window", "32", "--stride", "32", "--json",
        ])
        .json();
    let rows = json["models"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["tokens"].as_u64().unwrap(), n_tokens / 32 * 31);
        // Random weights know nothing: the perplexity is near the size of the vocabulary.
        let perplexity = row["perplexity"].as_f64().unwrap();
        assert!((50.0..5000.0).contains(&perplexity), "{perplexity}");
    }
    let (a, b) = (
        rows[0]["perplexity"].as_f64().unwrap(),
        rows[1]["perplexity"].as_f64().unwrap(),
    );
    assert!((1e-9..0.05).contains(&(a / b - 1.0).abs()), "{a} {b}");
    let overlapping = place
        .run(&[
            "eval", &f32, "--text", &text, "--window", "32", "--stride", "16", "--json",
        ])
        .json();
    let n_windows = (n_tokens - 32) / 16 + 1;
    assert_eq!(
        overlapping["models"][0]["tokens"].as_u64().unwrap(),
        31 + (n_windows - 1) * 16
    );
}

#[test]
fn eval_scores_the_assistant_in_chat_rows() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let row =
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#;
    let one = place.write("one.jsonl", format!("{row}\n\n"));
    let two = place.write("two.jsonl", format!("{row}\n{row}\n"));
    let eval = |rows: &str| {
        place
            .run(&["eval", &model, "--chat", rows, "--json"])
            .json()["models"][0]
            .clone()
    };
    let (one, two) = (eval(&one), eval(&two));
    assert_eq!(
        2 * one["tokens"].as_u64().unwrap(),
        two["tokens"].as_u64().unwrap()
    );
    assert!(
        (one["perplexity"].as_f64().unwrap() / two["perplexity"].as_f64().unwrap() - 1.0).abs()
            < 1e-9
    );
    let broken = place.write("broken.jsonl", format!("{row}\n{{\"prompt\":1}}\n"));
    place
        .run(&["eval", &model, "--chat", &broken])
        .fails(1, &["broken.jsonl:2", "prompt"]);
    let silent = place.write(
        "silent.jsonl",
        r#"{"messages":[{"role":"user","content":"Hi"}]}"#,
    );
    place
        .run(&["eval", &model, "--chat", &silent])
        .fails(1, &["silent.jsonl:1", "assistant"]);
}

#[test]
fn eval_asks_tasks_compares_with_a_reference_and_writes_a_report() {
    let place = Place::new();
    let f32 = place.tiny("f32.gguf", Family::Llama, DType::F32);
    let q4 = place.tiny("q4.gguf", Family::Llama, DType::Q4_0);
    let text = place.write(
        "text.txt",
        "The quick brown fox jumps over the lazy dog. ".repeat(40),
    );
    let rows = place.write(
        "rows.jsonl",
        "{\"q\": \"the\", \"c\": [\"cat\", \"dog\"], \"a\": 0}\n{\"q\": \"a\", \"c\": [\"cat\", \"dog\"], \"a\": 1}\n",
    );
    let task = place.write(
        "mine.toml",
        "kind = 'multiple_choice'\nquestion = '{{ q }}'\nchoices = 'c'\nanswer = 'a'\n",
    );
    let report = place.write("report.html", "");
    let with_rows = format!("{task}={rows}");
    let json = place
        .run(&[
            "eval",
            &f32,
            &q4,
            "--text",
            &text,
            "--window",
            "32",
            "--stride",
            "32",
            "--task",
            &with_rows,
            "--reference",
            &f32,
            "--write",
            "--max-tokens",
            "8",
            "--report",
            &report,
            "--json",
        ])
        .json();
    let (one, two) = (&json["models"][0], &json["models"][1]);
    for model in [one, two] {
        assert!((0.0..=1.0).contains(&model["acc"].as_f64().unwrap()));
        assert_eq!(model["tasks"]["mine"]["items"], 2);
        assert!(model["perplexity_stderr"].as_f64().unwrap() > 0.0);
        assert!(model["quality"]["distinct_1"].as_f64().unwrap() > 0.0);
    }
    assert!(one["reference"]["kl"].as_f64().unwrap() < 1e-6);
    assert!(two["reference"]["kl"].as_f64().unwrap() > 1e-4);
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("Against the reference"));
    place
        .run(&["eval", &f32, "--task", &task])
        .fails(2, &["give the file of its rows"]);
    place
        .run(&["eval", &f32, "--task", "hellasweg"])
        .fails(1, &["there is no task `hellasweg`", "hellaswag"]);
    let bad = place.write(
        "bad.jsonl",
        "{\"q\": \"the\", \"c\": [\"x\", \"y\"], \"a\": 7}\n",
    );
    let with_bad = format!("{task}={bad}");
    place
        .run(&["eval", &f32, "--task", &with_bad])
        .fails(1, &["bad.jsonl:1", "0 to 1"]);
    place
        .run(&["eval", &f32, "--task", &with_rows, "--reference", &f32])
        .fails(2, &["--reference compares over a text"]);
}

#[test]
fn eval_refuses_what_cannot_be() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Gpt2, DType::F32);
    let text = place.write("text.txt", "The quick brown fox. ".repeat(40));
    let empty = place.write("empty.txt", "");
    place.run(&["eval", &model]).fails(2, &["--text"]);
    place
        .run(&[
            "eval", &model, "--text", &empty, "--window", "32", "--stride", "32",
        ])
        .fails(1, &["no token to score"]);
    place
        .run(&["eval", &model, "--text", &text])
        .fails(1, &["--window 512", "128 positions"]);
    place
        .run(&["eval", &model, "--text", &text, "--window", "16"])
        .fails(2, &["--stride 512 is larger"]);
    place
        .run(&["eval", &model, "--text", "nothing.txt"])
        .fails(1, &["nothing.txt"]);
}

#[test]
fn export_round_trips_through_every_type() {
    let place = Place::new();
    for family in FAMILIES {
        let source = place.tiny("source.gguf", family, DType::F32);
        for (quant, file_type, matrix, embedding) in [
            ("f32", 0, "F32", "F32"),
            ("f16", 1, "F16", "F16"),
            ("bf16", 32, "BF16", "BF16"),
            ("q8_0", 7, "Q8_0", "Q8_0"),
            ("q4_0", 2, "Q4_0", ""),
            ("q4_1", 3, "Q4_1", ""),
        ] {
            let out = place.path(&format!("{quant}.gguf"));
            let out = out.to_str().unwrap();
            let json = place
                .run(&[
                    "export", &source, "--quant", quant, "-o", out, "--json", "--force",
                ])
                .json();
            assert_eq!(
                json["len_bytes"].as_u64().unwrap(),
                std::fs::metadata(out).unwrap().len()
            );
            let inspected = place.run(&["inspect", out, "--json"]).json();
            assert_eq!(inspected["metadata"]["general.file_type"], file_type);
            let type_of = |name: &str| {
                inspected["tensors"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|tensor| tensor["name"] == name)
                    .map(|tensor| tensor["type"].clone())
            };
            assert_eq!(type_of("blk.1.ffn_down.weight").unwrap(), matrix);
            assert_eq!(type_of("blk.1.attn_norm.weight").unwrap(), "F32");
            if embedding.is_empty() {
                // What makes the logits keeps 8 bits.
                assert_eq!(
                    type_of("output.weight")
                        .unwrap_or_else(|| type_of("token_embd.weight").unwrap()),
                    "Q8_0"
                );
            } else {
                assert_eq!(type_of("token_embd.weight").unwrap(), embedding);
            }
            let answer = place
                .run(&[
                    "generate",
                    out,
                    "--prompt",
                    "Hello",
                    "--max-tokens",
                    "4",
                    "--ignore-end",
                    "--json",
                ])
                .json();
            assert_eq!(ids(&answer["token_ids"]).len(), 4);
        }
        let answer = |model: &str| {
            place
                .run(&[
                    "generate",
                    model,
                    "--prompt",
                    "Hello",
                    "--max-tokens",
                    "8",
                    "--ignore-end",
                    "--json",
                ])
                .json()["token_ids"]
                .clone()
        };
        assert_eq!(
            answer(&source),
            answer(place.path("f32.gguf").to_str().unwrap()),
            "f32 is exact"
        );
    }
}

#[test]
fn export_takes_recipes_and_exceptions() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let export = |out: &str, more: &[&str]| {
        let args = [&["export", &source, "-o", out, "--force"], more].concat();
        place.run(&args)
    };
    let size = |out: &str| std::fs::metadata(place.path(out)).unwrap().len();
    let names = [
        "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q5_k", "q4_k",
    ];
    for name in names {
        let ran = export(name, &["--quant", name]);
        if name.contains("_k") {
            // Rows of the tiny model are no blocks of 256.
            assert!(ran.stderr.contains("take the next type"), "{}", ran.stderr);
        }
        ran.ok();
        assert!(size(name) < size("source.gguf"));
        place
            .run(&["generate", name, "--prompt", "a", "--max-tokens", "3"])
            .ok();
    }
    assert!(size("q4_k_m") < size("q6_k"));

    let types = |out: &str| -> Vec<(String, String)> {
        let inspected = place.run(&["inspect", out, "--json"]).json();
        let tensors = inspected["tensors"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        tensors
            .map(|tensor| (text(&tensor["name"]), text(&tensor["type"])))
            .collect()
    };
    export(
        "mixed",
        &[
            "--quant",
            "q4_0",
            "--tensor",
            "blk.1.ffn_*=q8_0",
            "--tensor",
            "*.attn_q.weight=f16",
        ],
    )
    .ok();
    for (name, found) in types("mixed") {
        let expected = match &name[..] {
            "blk.1.ffn_norm.weight" => "F32",
            _ if name.starts_with("blk.1.ffn_") => "Q8_0",
            _ if name.ends_with("attn_q.weight") => "F16",
            "blk.0.ffn_up.weight" => "Q4_0",
            _ => continue,
        };
        assert_eq!(found, expected, "{name}");
    }
    export("x", &["--quant", "q4_0", "--tensor", "blk.9.*=q8_0"]).fails(1, &["blk.9.*"]);
    export("x", &["--quant", "q4_0", "--tensor", "blk.9.*"]).fails(2, &["PATTERN=TYPE"]);
}

#[test]
fn export_takes_a_text_and_an_importance_matrix() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let export = |out: &str, more: &[&str]| {
        let args = [&["export", &source, "-o", out, "--force"], more].concat();
        place.run(&args)
    };
    let text = place.write(
        "text.txt",
        "the cat and the hat and the other thing ".repeat(40),
    );
    let calibrated = [
        "--quant",
        "q4_0",
        "--calibrate",
        &text,
        "--write-imatrix",
        "own.imatrix",
    ];
    export("fed_back", &calibrated).ok();
    let searched = [&calibrated[..], &["--rounding", "search"]].concat();
    export("calibrated", &searched).ok();
    export("again", &["--quant", "q4_0", "--imatrix", "own.imatrix"]).ok();
    export("plain", &["--quant", "q4_0"]).ok();
    let bytes = |out: &str| std::fs::read(place.path(out)).unwrap();
    assert!(
        bytes("calibrated") == bytes("again"),
        "a kept matrix gives other bytes"
    );
    assert!(
        bytes("calibrated") != bytes("plain"),
        "importance changes nothing"
    );
    assert!(
        bytes("calibrated") != bytes("fed_back"),
        "feedback changes nothing"
    );
    export("x", &["--quant", "q4_0", "--rounding", "feedback"]).fails(2, &["--calibrate"]);

    place.tiny("gpt2.gguf", Family::Gpt2, DType::F32);
    let args = [
        "export",
        "gpt2.gguf",
        "--quant",
        "q4_0",
        "-o",
        "x",
        "--imatrix",
        "own.imatrix",
    ];
    place.run(&args).fails(1, &["own.imatrix", "another model"]);
    export("x", &["--quant", "q4_0", "--imatrix", "source.gguf"])
        .fails(1, &["source.gguf", "imatrix"]);
    let empty = place.write("empty.txt", "");
    export("x", &["--quant", "q4_0", "--calibrate", &empty])
        .fails(1, &["empty.txt", "--calibrate"]);
    assert!(!place.path("x").exists());
}

#[test]
fn export_meets_a_size_or_a_divergence() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let text = place.write(
        "text.txt",
        "the cat and the hat and the other thing ".repeat(40),
    );
    let export = |more: &[&str]| {
        let args = ["export", &source, "-o", "out.gguf", "--force", "--json"];
        place.run(&[&args[..], more].concat())
    };
    let calibrated = |more: &[&str]| export(&[&["--calibrate", &text], more].concat());
    let of_type = |name: &str| {
        export(&["--quant", name]).json()["len_bytes"]
            .as_u64()
            .unwrap()
    };
    let (smallest, middle, largest) = (of_type("q4_0"), of_type("q5_0"), of_type("f16"));

    let mut last = f64::INFINITY;
    for limit in [smallest + 2000, middle, largest + 4000] {
        let made = calibrated(&["--target-size", &limit.to_string()]).json();
        let divergence = made["divergence"].as_f64().unwrap();
        assert!(made["len_bytes"].as_u64().unwrap() <= limit, "{made}");
        assert!(
            divergence < last,
            "{made}: more bytes, less lost than {last}"
        );
        last = divergence;
        place
            .run(&["generate", "out.gguf", "--prompt", "a", "--max-tokens", "3"])
            .ok();
    }
    let best = last;
    let mut last = u64::MAX;
    for limit in [1e-4, 1e-3, 1e-2] {
        let made = calibrated(&["--max-kl", &limit.to_string()]).json();
        assert!(made["divergence"].as_f64().unwrap() <= limit, "{made}");
        let len_bytes = made["len_bytes"].as_u64().unwrap();
        assert!(len_bytes <= last, "{made}: a wider limit, no larger file");
        last = len_bytes;
    }
    calibrated(&["--max-kl", "0.001", "--types", "q8_0,f16"]).ok();
    let types = place.run(&["inspect", "out.gguf", "--json"]).json();
    for tensor in types["tensors"].as_array().unwrap() {
        let kind = tensor["type"].as_str().unwrap();
        assert!(["F32", "F16", "Q8_0"].contains(&kind), "{tensor}");
    }

    calibrated(&["--target-size", "12kB"]).fails(1, &["--target-size", "12.00 kB", "smallest"]);
    calibrated(&["--target-size", "5000"]).fails(1, &["--target-size", "stay exact"]);
    let strict = format!("{:e}", best / 1e6);
    calibrated(&["--max-kl", &strict, "--types", "q4_0"]).fails(1, &["--max-kl", "the best"]);
    export(&["--target-size", "90MB"]).fails(2, &["--calibrate"]);
    calibrated(&["--target-size", "much"]).fails(2, &["40MB"]);
    calibrated(&["--quant", "q4_0", "--max-kl", "0.1"]).fails(2, &["--max-kl"]);
    calibrated(&["--quant", "q4_0", "--types", "q4_0"]).fails(2, &["--types"]);
}

#[test]
fn verify_finds_what_is_wrong_with_a_file() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let args = [
        "export",
        &source,
        "--quant",
        "q8_0",
        "--manifest",
        "-o",
        "out.gguf",
    ];
    place.run(&args).ok();
    place.run(&args).fails(1, &["--force"]);
    let verified = place.run(&["verify", "out.gguf", "--json"]).json();
    assert_eq!(verified["sum"], "equal");
    assert!(verified["parameters"].as_u64().unwrap() > 1000);
    let sum = verified["sha256"].as_str().unwrap().to_owned();
    let line = std::fs::read_to_string(place.path("out.gguf.sha256")).unwrap();
    assert_eq!(line, format!("{sum}  out.gguf\n"));
    assert_eq!(
        place.run(&["verify", &source, "--json"]).json()["sum"],
        "unknown"
    );
    place
        .run(&["verify", "out.gguf", "--sha256", &sum.to_uppercase()])
        .ok();
    place
        .run(&[
            "verify",
            "out.gguf",
            "--sha256",
            &sum.replace(&sum[..1], "x"),
        ])
        .fails(2, &["64 hexadecimal digits"]);
    let other = "0".repeat(64);
    place
        .run(&["verify", "out.gguf", "--sha256", &other])
        .fails(1, &[&sum, &other, "damaged"]);

    // A byte in the last tensor: only the sum sees it, or a value that is no number.
    let path = place.path("out.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    place
        .run(&["verify", "out.gguf"])
        .fails(1, &["out.gguf.sha256", "damaged"]);
    std::fs::remove_file(place.path("out.gguf.sha256")).unwrap();
    place.run(&["verify", "out.gguf"]).ok();
    let mut bytes = std::fs::read(&source).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("nan.gguf", &bytes);
    place
        .run(&["verify", "nan.gguf"])
        .fails(1, &["nan.gguf", "NaN", "broken"]);
    place.write("short.gguf", &bytes[..at]);
    place
        .run(&["verify", "short.gguf"])
        .fails(1, &["short.gguf"]);
    place.write("out.gguf.sha256", "something else\n");
    place
        .run(&["verify", "out.gguf"])
        .fails(1, &["out.gguf.sha256", "no line for out.gguf"]);
}

#[test]
fn export_leaves_what_is_there_alone() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let there = place.write("there.gguf", "precious");
    place
        .run(&["export", &source, "--quant", "q8_0", "-o", &there])
        .fails(1, &["there.gguf", "--force"]);
    assert_eq!(std::fs::read(&there).unwrap(), b"precious");
    place
        .run(&[
            "export",
            &source,
            "--quant",
            "q8_0",
            "-o",
            "/proc/nothing/out.gguf",
        ])
        .fails(1, &["/proc/nothing"]);
    place
        .run(&["export", &source, "--quant", "q3_k", "-o", "out.gguf"])
        .fails(2, &["q3_k", "q8_0"]);
    place
        .run(&["export", &source, "--quant", "f16", "-o", "/dev/full"])
        .fails(1, &["not a regular file"]);
    assert_eq!(
        place.list("."),
        ["home", "source.gguf", "there.gguf"]
            .into_iter()
            .filter(|name| place.path(name).exists())
            .collect::<Vec<_>>()
    );
    // The source itself may be replaced: it stays mapped until the new file stands.
    place
        .run(&[
            "export", &source, "--quant", "q8_0", "-o", &source, "--force",
        ])
        .ok();
    place
        .run(&["generate", &source, "--prompt", "a", "--max-tokens", "2"])
        .ok();
}

#[test]
fn chat_answers_line_by_line_in_a_pipe() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let said = piped(
        &place,
        &["chat", &model, "--max-tokens", "4", "--json"],
        "Hi\n/nonsense\n/reset\nHi\n/exit\nnot read\n",
    );
    let lines: Vec<Value> = said
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["role"], "assistant");
    assert_eq!(
        lines[0]["content"], lines[1]["content"],
        "after /reset the same question has the same answer"
    );
    assert!(said.stderr.contains("/nonsense"), "{}", said.stderr);
}

#[test]
fn bench_reports_every_figure() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::Q8_0);
    let json = place
        .run(&[
            "bench",
            "cpu",
            &model,
            "--threads",
            "1",
            "--prefill",
            "16",
            "--decode",
            "8",
            "--runs",
            "1",
            "--json",
        ])
        .json();
    for figure in [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "decode_at_depth_tokens_per_s",
    ] {
        assert!(json[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    assert!(json["peak_rss_mib"].is_null() || json["peak_rss_mib"].as_f64().unwrap() > 1.0);
    place
        .run(&["bench", "cpu", &model, "--prefill", "5000"])
        .fails(2, &["5128 tokens"]);
}

#[test]
fn doctor_reports_this_machine() {
    let place = Place::new();
    let json = place.run(&["doctor", "--json"]).json();
    assert!(json["threads"].as_u64().unwrap() >= 1);
    assert_eq!(json["models"], serde_json::json!([]));
    assert!(json["model_cache_problem"].is_null(), "{json}");
    assert!(place.run(&["doctor"]).ok().contains("model cache"));
}

#[test]
fn a_result_that_cannot_be_written_is_told() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let ran = Ran::of(
        place
            .command()
            .args(["inspect", &model, "--json"])
            .stdout(full),
    );
    // `Ran::of` collects nothing of a redirected output.
    ran.fails(1, &["standard output", "No space left"]);
    // A reader that has enough is no failure.
    let mut child = place
        .command()
        .args(["inspect", &model, "--json", "--full"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// One exchange with a server; returns the answer with its head.
fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(address: &str, path: &str, headers: &str) -> String {
    http(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n"),
    )
}

#[test]
fn serve_gives_the_page_the_file_and_the_api() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::Q8_0);
    place.write("page/index.html", "<title>Fledgling</title>");
    let mut child = place
        .command()
        .args([
            "serve",
            &model,
            "--port",
            "0",
            "--page",
            "page",
            "--api-key-env",
            "TEST_KEY",
        ])
        .env("TEST_KEY", "secret")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().to_owned();
    let whole = std::fs::read(&model).unwrap();

    let page = get(&address, "/", "");
    assert!(
        page.starts_with("HTTP/1.1 200") && page.contains("<title>Fledgling</title>"),
        "{page}"
    );
    assert!(
        page.to_lowercase()
            .contains("cross-origin-opener-policy: same-origin"),
        "{page}"
    );
    let shelf = get(&address, "/models.json", "");
    let shelf: serde_json::Value =
        serde_json::from_str(shelf.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(shelf[0]["name"], "tiny.gguf");
    assert_eq!(shelf[0]["url"], "models/tiny.gguf");
    assert_eq!(shelf[0]["sizeBytes"], whole.len());
    assert_eq!(shelf[0]["metadata"]["general.architecture"], "llama");
    assert_eq!(shelf[0]["metadata"].get("tokenizer.ggml.tokens"), None);
    let part = get(&address, "/models/tiny.gguf", "range: bytes=0-3\r\n");
    assert!(
        part.starts_with("HTTP/1.1 206") && part.ends_with("GGUF"),
        "{part}"
    );
    assert!(get(&address, "/healthz", "").starts_with("HTTP/1.1 200"));
    assert!(get(&address, "/metrics", "").contains("fledgling_completed_total 0"));
    assert!(get(&address, "/v1/models", "").starts_with("HTTP/1.1 401"));
    assert!(
        get(&address, "/v1/models", "authorization: Bearer secret\r\n").starts_with("HTTP/1.1 200")
    );
    assert!(get(&address, "/models/../tiny.gguf", "").starts_with("HTTP/1.1 404"));

    let body = r#"{"prompt":"Hello","max_tokens":6,"temperature":0}"#;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = http(&address, &request);
    let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let generated = place
        .run(&[
            "generate",
            &model,
            "--prompt",
            "Hello",
            "--max-tokens",
            "6",
            "--json",
        ])
        .json();
    assert_eq!(
        answer["choices"][0]["text"], generated["text"],
        "the server and the terminal say the same"
    );

    end(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Asks a child to end, as a service manager does.
fn end(child: &std::process::Child) {
    let status = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn serve_says_what_is_in_the_way() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    place
        .run(&["serve", &model, "--port", &port])
        .fails(1, &[&format!("port {port} is in use"), "--port"]);
    place
        .run(&["serve", &model, "--port", "0", "--page", "nowhere"])
        .fails(1, &["--page nowhere", "index.html"]);
    place
        .run(&[
            "serve",
            &model,
            "--port",
            "0",
            "--api-key-env",
            "NOT_SET_ANYWHERE",
        ])
        .fails(2, &["NOT_SET_ANYWHERE"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_answer_ends_well_with_the_text_so_far() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let mut child = place
        .command()
        .args(["chat", &model, "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // `wait` would close it, and the end of the input is a reason of its own to end.
    let stdin = child.stdin.take();
    // The command waits for a line: Ctrl-C (here TERM) ends it at once, with the status that shells expect.
    std::thread::sleep(std::time::Duration::from_millis(500));
    end(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
}
