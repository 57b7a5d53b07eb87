//! `fledgling train --continue-from`: a new run begins with the weights, the config and the advice of another.

#![cfg(feature = "train")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::{Place, Ran};
use fledgling::run;
use fledgling_core::{quant::DType, spec::Family};
use serde_json::{Value, json};
use std::{fs, path::Path};

const ROWS: &str = r#"{"prompt":"what is in the hat","completion":"another hat"}
{"prompt":"who","completion":"the man on the hill"}
{"prompt":"where","completion":"here and there"}
{"prompt":"add one and one","completion":"two"}
"#;

/// A place with a model, rows, and a config of a run.
fn place(mode: &str, more: &str) -> Place {
    let place = Place::new();
    place.tiny("base.gguf", Family::Llama, DType::F32);
    place.write("rows.jsonl", ROWS);
    place.write(
        "mine.toml",
        format!(
            "name='mine'\nmode='{mode}'\nbase='base.gguf'\nseed=7\ndevice='cpu'\nthreads=1\n[data]\ntrain=['rows.jsonl']\nvalid=['rows.jsonl']\n\
             max_tokens=64\n[train]\nbatch=2\nsteps=8\neval_every=2\nlr=1e-3\n{more}"
        ),
    );
    place
}

fn train(place: &Place, args: &[&str]) -> Ran {
    place.run(&[&["train"], args].concat())
}

/// A dry run's plan.
fn plan(place: &Place, args: &[&str]) -> Value {
    let more = ["--dry-run", "--no-trial", "--json"];
    train(place, &[args, &more].concat()).json()
}

/// Before and now of a key that a plan changes.
fn change<'a>(plan: &'a Value, key: &str) -> Option<[&'a Value; 3]> {
    let changes = plan["continuation"]["changes"].as_array().unwrap();
    let found = changes.iter().find(|change| change["key"] == key)?;
    Some([&found["before"], &found["now"], &found["why"]])
}

/// Replaces what a run says of its own course.
fn write_curves(place: &Place, run: &str, training: &[f64], held_out: &[f64]) {
    let path = place.path(run).join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let of = |kind: &str| {
        let line = text
            .lines()
            .find(|line| line.contains(&format!("\"event\":\"{kind}\"")));
        serde_json::from_str::<Value>(line.unwrap()).unwrap()
    };
    let mut lines = vec![of("begin")];
    for (i, loss) in held_out.iter().enumerate() {
        let mut line = of("validation");
        (line["step"], line["valid_loss"]) = (json!(2 * i), json!(loss));
        lines.push(line);
    }
    for (i, loss) in training.iter().enumerate() {
        let mut line = of("step");
        (line["step"], line["loss"], line["lr"]) = (json!(i + 1), json!(loss), json!(6e-3));
        lines.push(line);
    }
    lines.push(of("end"));
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

const OVERFIT: [&[f64]; 2] = [
    &[3.0, 2.5, 2.0, 1.5, 1.2, 1.0, 0.7, 0.5],
    &[3.0, 2.4, 2.2, 2.6, 2.9],
];

fn write_overfit(place: &Place, run: &str) {
    write_curves(place, run, OVERFIT[0], OVERFIT[1]);
}

fn record(place: &Place, run: &str) -> run::Record {
    run::read_record(&place.path(run)).unwrap()
}

/// All values of the model that a run is.
fn values(place: &Place, run: &str) -> Vec<f32> {
    let run = run::load_run(&place.path(run)).unwrap();
    let tensors = run.tensors().map(|tensor| tensor.unwrap().1);
    tensors.flatten().collect()
}

/// The held-out perplexity before the first step of a run.
fn perplexity_before(place: &Place, run: &str) -> f64 {
    record(place, run).valid_perplexity_before.unwrap()
}

#[test]
fn a_run_goes_on_from_the_best_weights_of_another_in_every_mode() {
    for mode in ["full", "lora"] {
        let place = place(mode, "");
        train(&place, &["mine.toml", "--quiet"]).ok();
        let old = record(&place, "runs/mine");
        let ran = train(
            &place,
            &["--continue-from", "runs/mine", "--no-advice", "--quiet"],
        );
        assert!(
            ran.stderr.contains("another order of the rows"),
            "{}",
            ran.stderr
        );
        ran.ok();
        // The new run begins where the kept weights of the old one are, to the bits of a loss.
        let (before, kept) = (
            perplexity_before(&place, "runs/mine-2"),
            old.valid_perplexity.unwrap(),
        );
        assert_eq!(before.to_bits(), kept.to_bits(), "{mode}");
        let new = record(&place, "runs/mine-2");
        let from = new.continued_from.unwrap();
        assert_eq!(
            from.run,
            place.path("runs/mine").canonicalize().unwrap(),
            "{mode}"
        );
        assert_eq!((from.step, from.advised), (old.step, Vec::new()));
        assert_eq!(from.sha256, run::identity(&from.run).unwrap());
        assert_ne!(values(&place, "runs/mine"), values(&place, "runs/mine-2"));
        assert_eq!(new.lora, old.lora, "{mode}");
        // A LoRA goes on over its own base; all weights are a base themselves.
        let base = if mode == "lora" { "base.gguf" } else { "mine" };
        assert!(new.base.path.ends_with(base), "{}", new.base.path.display());

        // And so it goes on, also from a checkpoint.
        let plan = plan(&place, &["--continue-from", "runs/mine-2@step-6"]);
        assert!(plan["run"].as_str().unwrap().ends_with("mine-3"), "{plan}");
        assert_eq!(plan["continuation"]["step"], 6);
        assert_eq!(change(&plan, "seed").unwrap()[1], "9");
        assert!(
            !place.path("runs/mine-3").exists(),
            "a plan leaves nothing behind"
        );
    }
}

#[test]
fn a_run_from_scratch_goes_on_with_its_weights() {
    let place = place(
        "scratch",
        "[model]\nfamily='gpt2'\nlayers=1\nwidth=16\nheads=2\nctx=64\n",
    );
    train(&place, &["mine.toml", "--quiet"]).ok();
    let kept = record(&place, "runs/mine").valid_perplexity.unwrap();
    // Its own config beside it changes nothing.
    let args = ["mine.toml", "--continue-from", "runs/mine", "--no-advice"];
    train(&place, &[&args[..], &["--quiet"]].concat()).ok();
    assert_eq!(record(&place, "runs/mine-2").mode, "full");
    let before = perplexity_before(&place, "runs/mine-2");
    assert_eq!(before.to_bits(), kept.to_bits());
    let fails = |set: &str, parts: &[&str]| {
        train(&place, &[&args[..], &["--set", set]].concat()).fails(2, parts);
    };
    fails("model.width=32", &["`model.width`", "its shape"]);
    fails("mode=scratch", &["begins with random weights"]);
}

#[test]
fn a_lora_of_another_size_is_put_on_the_merged_model() {
    let place = place("lora", "[lora]\nrank=4\n");
    train(&place, &["mine.toml", "--quiet"]).ok();
    let kept = record(&place, "runs/mine").valid_perplexity.unwrap();
    let ran = train(
        &place,
        &[
            "--continue-from",
            "runs/mine",
            "--no-advice",
            "--quiet",
            "--set",
            "lora.rank=2",
            "--set",
            "name=small",
        ],
    );
    assert!(
        ran.stderr.contains("with its LoRA merged"),
        "{}",
        ran.stderr
    );
    ran.ok();
    let new = record(&place, "runs/small");
    assert_eq!(new.lora.unwrap().rank, 2);
    assert!(new.base.path.ends_with("runs/mine"));
    // Merging rounds each weight once more.
    let before = perplexity_before(&place, "runs/small");
    assert!((before / kept - 1.0).abs() < 1e-5, "{before} {kept}");

    // Of a LoRA all weights can be trained on.
    let plan = plan(
        &place,
        &["--continue-from", "runs/mine", "--set", "mode=full"],
    );
    assert_eq!(plan["continuation"]["taken"], "merged");
    assert_eq!(plan["trained_parameters"], plan["parameters"]);
}

#[test]
fn advice_is_taken_up_unless_somebody_says_otherwise() {
    let place = place("lora", "");
    train(&place, &["mine.toml", "--quiet"]).ok();
    write_overfit(&place, "runs/mine");
    let args = ["--continue-from", "runs/mine"];
    let with = |more: &[&str]| plan(&place, &[&args[..], more].concat());

    let advised = with(&[]);
    // A third of the rate that it was trained at, says its file of metrics.
    let lr = change(&advised, "train.lr").unwrap();
    assert_eq!((lr[0], lr[1]), (&json!("0.001"), &json!("0.002")));
    for (key, now) in [("train.patience", "3"), ("lora.dropout", "0.1")] {
        let change = change(&advised, key).unwrap();
        assert_eq!(change[1], now);
        let why = change[2].as_str().unwrap();
        assert!(
            why.contains("overfits: after step 4")
                && why.contains("held-out loss 2.200 at step 4, 2.900 at step 8"),
            "{why}"
        );
    }
    assert_eq!(advised["steps"], 8);

    // What is asked for is stronger, in a file or on the command line; advice that is against it is left.
    place.write("more.toml", "[train]\nlr = 5e-4\n[data]\nmax_tokens = 64\n");
    let mixed = with(&["--set", "lora.dropout=0.3"]);
    assert_eq!(
        change(&mixed, "lora.dropout").unwrap()[1..],
        ["0.3", "--set"]
    );
    assert_eq!(change(&mixed, "train.patience").unwrap()[1], "3");
    let filed = plan(&place, &[&["more.toml"], &args[..]].concat());
    assert_eq!(
        change(&filed, "train.lr").unwrap()[1..],
        ["0.0005", "more.toml"]
    );
    assert_eq!(change(&filed, "data.max_tokens"), None);
    let quantised = with(&["--set", "qat.format=q4_0"]);
    assert_eq!(change(&quantised, "train.patience"), None);
    let left = &quantised["continuation"]["left"][0];
    assert!(left["why"].as_str().unwrap().contains("lora.dropout = 0.1"));
    let without = with(&["--no-advice"]);
    assert_eq!(change(&without, "train.patience"), None);

    // For people, and in what the run says of itself.
    let text = train(&place, &[&args[..], &["--dry-run", "--no-trial"]].concat()).ok();
    assert!(
        text.contains("train.patience: 0 -> 3: The model overfits"),
        "{text}"
    );
    train(&place, &[&args[..], &["--quiet"]].concat()).ok();
    let advised = record(&place, "runs/mine-2")
        .continued_from
        .unwrap()
        .advised;
    assert_eq!(
        advised,
        ["train.lr=2.0e-3", "train.patience=3", "lora.dropout=0.1"]
    );
}

#[test]
fn an_evaluation_leaves_its_advice_with_the_run() {
    let place = place("full", "");
    train(&place, &["mine.toml", "--quiet"]).ok();
    let fine = [3.0, 2.0, 1.9, 1.9, 1.9];
    write_curves(&place, "runs/mine", &fine, &[3.0, 2.1, 2.0, 2.0, 2.0]);
    place
        .run(&["export", "runs/mine", "--quant", "q4_0", "-o", "q4.gguf"])
        .ok();
    let text = place.write("text.txt", "the man is here and there. ".repeat(60));
    let eval = |model: &str, more: &[&str]| {
        let args = [
            "eval", model, "--text", &text, "--window", "32", "--stride", "32",
        ];
        place.run(&[&args[..], more].concat())
    };
    assert_eq!(
        change(
            &plan(&place, &["--continue-from", "runs/mine"]),
            "qat.format"
        ),
        None
    );
    let ran = eval("q4.gguf", &["--reference", "runs/mine", "--json"]);
    let advice = serde_json::from_str::<Value>(&ran.stdout).unwrap()["advice"].clone();
    assert_eq!(advice[0]["continuing"], json!(["qat.format=q4_0"]));
    assert!(ran.stderr.contains("--continue-from"), "{}", ran.stderr);
    let planned = plan(&place, &["--continue-from", "runs/mine"]);
    let format = change(&planned, "qat.format").unwrap();
    assert_eq!(format[1], "\"q4_0\"");
    assert!(format[2].as_str().unwrap().contains("q4_0 lost more"));

    // An evaluation of other weights of the run says nothing of these.
    let path = place.path("runs/mine/advice.json");
    let old = fs::read_to_string(&path).unwrap();
    let step = format!("\"step\":{}", record(&place, "runs/mine").step);
    assert!(old.contains(&step), "{old}");
    fs::write(&path, old.replace(&step, "\"step\":1")).unwrap();
    let planned = plan(&place, &["--continue-from", "runs/mine"]);
    assert_eq!(change(&planned, "qat.format"), None);
    fs::write(&path, "no JSON").unwrap();
    train(&place, &["--continue-from", "runs/mine", "--dry-run"])
        .fails(1, &["advice.json", "remove it"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = place("full", "");
    let refused = |args: &[&str], status: i32, parts: &[&str]| {
        train(&place, &[args, &["--dry-run"]].concat()).fails(status, parts);
    };
    refused(&[], 2, &["CONFIG.toml"]);
    refused(
        &["--continue-from", "runs/mine"],
        2,
        &["there is no file, folder"],
    );
    refused(
        &["--continue-from", "base.gguf"],
        2,
        &["no run's folder", "`base`"],
    );
    train(&place, &["mine.toml", "--quiet", "--until", "3"]);
    refused(
        &["--continue-from", "runs/mine"],
        1,
        &[
            "is not over",
            "step 3 of 8",
            "runs/mine/config.toml --resume",
        ],
    );
    // A checkpoint that is asked for by name is a beginning like any other.
    plan(&place, &["--continue-from", "runs/mine@last"]);
    // The way that the message shows.
    let config = place.path("runs/mine/config.toml");
    train(&place, &[config.to_str().unwrap(), "--resume", "--quiet"]).ok();

    place.tiny("other.gguf", Family::Gpt2, DType::F32);
    let args = ["--continue-from", "runs/mine", "--set"];
    let with = |set: &str, status: i32, parts: &[&str]| {
        refused(&[&args[..], &[set]].concat(), status, parts);
    };
    with("base=other.gguf", 2, &["`base`", "tokenizer", "base.gguf"]);
    with("lora.init=x", 2, &["`lora.init`", "the run's"]);
    with("name=mine", 2, &["would replace"]);
    with("train.lr=-1", 1, &["train.lr = -1"]);
    with("train.larning=1", 1, &["unknown key", "train.larning"]);
    with("data.max_tokens=100000", 1, &["data.max_tokens"]);
    place.write("more.toml", "[train\n");
    refused(
        &["more.toml", "--continue-from", "runs/mine"],
        1,
        &["more.toml"],
    );
    refused(
        &["--continue-from", "runs/mine", "--resume"],
        2,
        &["cannot be used with"],
    );

    // A run that failed has weights to go on from.
    let metrics = place.path("runs/mine/metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, text.replace("\"finished\"", "\"failed\"")).unwrap();
    plan(&place, &["--continue-from", "runs/mine"]);
    // One without weights has not.
    fs::remove_file(place.path("runs/mine/run.json")).unwrap();
    let run: &Path = &place.path("runs/mine");
    assert!(run.join("config.toml").is_file());
    refused(
        &["--continue-from", "runs/mine"],
        1,
        &["before it kept weights", "--resume"],
    );
}
