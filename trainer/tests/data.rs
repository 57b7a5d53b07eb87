//! `fledgling data` and `fledgling tokenizer` on the command line, and `train` on what they wrote.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::Place;
use fledgling_core::{quant::DType, spec::Family};
use serde_json::json;

fn rows(n: usize) -> String {
    let row = |i: usize| {
        let (a, b) = (i * 7919 % 1000, i * 104_729 % 1000);
        json!({"prompt": format!("what is {a} and {b}"), "completion": format!("it is {i} of course")})
    };
    (0..n).map(|i| row(i).to_string() + "\n").collect()
}

#[test]
fn documents_become_a_dataset_that_inspect_shows() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let rows = place.write("rows.jsonl", rows(60));
    let text = place.write(
        "more/page.html",
        "<html><body><p>A page &amp; more</p></body></html>",
    );
    let out = place.path("out");
    let out = out.to_str().unwrap();
    let folder = std::path::Path::new(&text).parent().unwrap();
    let args = [
        "data",
        "prepare",
        &rows,
        folder.to_str().unwrap(),
        "--tokenizer",
        &model,
        "--out",
        out,
        "--context",
        "128",
        "--set",
        "split.valid=0.2",
        "--json",
    ];
    let first = place.run(&args).json();
    assert_eq!(first["up_to_date"], false);
    assert_eq!(first["sources"][0]["documents"], 60);
    assert_eq!(first["sources"][1]["kept"], 1);
    assert_eq!(place.run(&args).json()["up_to_date"], true);
    let inspected = place
        .run(&["data", "inspect", out, "--verify", "--json"])
        .json();
    assert_eq!(inspected["context"], 128);
    assert!(inspected["splits"]["train"]["rows"].as_u64().unwrap() > 0);
    assert!(inspected["splits"]["valid"]["rows"].as_u64().unwrap() > 0);
    let row = place
        .run(&["data", "inspect", out, "--row", "0", "--tokenizer", &model])
        .ok();
    assert!(row.contains('⟦') && row.contains("of course"), "{row}");
    place
        .run(&[
            "data",
            "inspect",
            out,
            "--row",
            "100000",
            "--tokenizer",
            &model,
        ])
        .fails(1, &["--row 100000", "rows"]);
}

#[test]
fn a_config_is_read_and_flags_override_it() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let rows = place.write("rows.jsonl", rows(20));
    let leak = place.write(
        "leak.jsonl",
        "{\"prompt\": \"what is 0 and 0\", \"completion\": \"it is 0 of course\"}\n",
    );
    let out = place.path("out").display().to_string();
    let config = place.write(
        "data.toml",
        format!(
            "out = '{out}'\ntokenizer = '{model}'\nsplit.valid = 0.0\n[[source]]\npath = '{rows}'\n"
        ),
    );
    let kept = |extra: &[&str]| {
        let args = [&["data", "prepare", &config, "--json"], extra].concat();
        place.run(&args).json()["sources"][0]["kept"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(kept(&[]), 20);
    assert_eq!(kept(&["--decontaminate", &leak]), 19);
    place
        .run(&["data", "prepare", &config, "--set", "dedupe.treshold=1"])
        .fails(1, &["dedupe.treshold", "did you mean `threshold`?"]);
    place
        .run(&["data", "prepare", &config, "--set", "oops"])
        .fails(2, &["key=value"]);
    place
        .run(&["data", "prepare", &rows])
        .fails(1, &["--tokenizer"]);
    place
        .run(&["data", "prepare", &config, &rows])
        .fails(1, &["give one config alone"]);
}

#[test]
fn a_broken_line_ends_it_unless_it_is_to_be_counted() {
    let place = Place::new();
    let model = place.tiny("tiny.gguf", Family::Llama, DType::F32);
    let rows = place.write("rows.jsonl", rows(5) + "{\"prompt\": \"a\"\n");
    let out = place.path("out").display().to_string();
    let args = [
        "data",
        "prepare",
        &rows,
        "--tokenizer",
        &model,
        "--out",
        &out,
        "--json",
    ];
    place.run(&args).fails(1, &["rows.jsonl:6", "--skip-bad"]);
    assert!(
        place
            .list("out")
            .iter()
            .all(|name| !name.contains("manifest"))
    );
    let result = place.run(&[&args[..], &["--skip-bad"]].concat()).json();
    assert_eq!(result["steps"]["skip_bad"], 1);
}

#[test]
fn a_tokenizer_of_ones_own_serves_a_run_from_scratch() {
    let place = Place::new();
    let text = place.write(
        "text.txt",
        "the quick brown fox jumps over the lazy dog. ".repeat(200),
    );
    let folder = place.path("tokenizer").display().to_string();
    let made = place
        .run(&[
            "tokenizer",
            "train",
            &text,
            "--out",
            &folder,
            "--vocab-size",
            "300",
            "--special",
            "<|x|>",
            "--json",
        ])
        .json();
    let tokenizer = made["path"].as_str().unwrap().to_owned();
    let vocab_size = made["vocab_size"].as_u64().unwrap();
    assert!((258..=300).contains(&vocab_size), "{vocab_size}");
    let out = place.path("out").display().to_string();
    let source = place.write("rows.jsonl", rows(40));
    let prepared = place
        .run(&[
            "data",
            "prepare",
            &source,
            "--tokenizer",
            &tokenizer,
            "--out",
            &out,
            "--context",
            "64",
            "--set",
            "split.valid=0.2",
            "--json",
        ])
        .json();
    assert_eq!(prepared["splits"][0]["split"], "train");
    if cfg!(feature = "train") {
        let runs = place.path("runs").display().to_string();
        let config = place.write(
            "run.toml",
            format!(
                "name = 'own'\nmode = 'scratch'\nbase = '{tokenizer}'\nruns_dir = '{runs}'\n[data]\ntrain = ['{out}', '{out}']\nweights = [1.0, 0.5]\nvalid = ['{out}']\n\
                 max_tokens = 64\n[train]\nsteps = 2\nbatch = 4\n[model]\nfamily = 'llama'\nlayers = 1\nwidth = 32\nheads = 2\nctx = 64\n"
            ),
        );
        place.run(&["train", &config]).ok();
        let run = format!("{runs}/own");
        let answer = place
            .run(&[
                "generate",
                &run,
                "--prompt",
                "the quick",
                "--max-tokens",
                "3",
                "--ignore-end",
                "--json",
            ])
            .json();
        assert_eq!(answer["token_ids"].as_array().unwrap().len(), 3);
    }
}
