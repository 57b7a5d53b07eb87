//! The training loop on tiny models: accumulation, checkpoints, resume, early stopping, samples, and what looks without training.

#![cfg(feature = "train")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use burn::tensor::{Device, Tensor, TensorData};
use fledgling::{
    model, run,
    train::{
        checkpoints::Checkpoints,
        config::{Config, FamilyName, ModelConfig, TrainConfig},
        data::{Row, Rows},
        fit::Outcome,
        model::{Transformer, to_vec, trained_parameters},
        optim::{LearningRates, Muon, Optimizer, orthogonalize},
        prepare, start,
        steps::gradients_of,
    },
};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, KvDType},
    generate::{self, GenerateParams, Generation},
    quant::DType,
    spec::Family,
    testing::tiny_model,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const CHATS: &str = r#"{"messages":[{"role":"user","content":"the other thing"},{"role":"assistant","content":"is here and there"}]}
{"prompt":"what is in the hat","completion":"another hat"}
{"question":"who","answer":"the man on the hill"}
{"instruction":"add","input":"one and one","output":"two"}
{"prompt":"where","completion":"here"}
"#;

/// A folder with a tiny model, rows, and a config.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new(family: Family) -> Self {
        let folder = TempDir::new().unwrap();
        let place = Self { folder };
        place.write("base.gguf", &tiny_model(family, DType::F32, 7));
        place.write("rows.jsonl", CHATS.as_bytes());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn config(&self, name: &str, mode: &str, more: &[&str]) -> Config {
        let text = format!(
            "name='{name}'\nmode='{mode}'\nbase='{}'\nruns_dir='{}'\n[data]\ntrain=['{rows}']\nvalid=['{rows}']\nmax_tokens=64\n\
             [train]\nbatch=2\naccumulate=2\nsteps=6\nwarmup=2\nlr=1e-2\n",
            self.path("base.gguf").display(),
            self.path("runs").display(),
            rows = self.path("rows.jsonl").display(),
        );
        let overrides: Vec<_> = more.iter().map(ToString::to_string).collect();
        Config::parse(&text, &overrides).unwrap()
    }
}

fn train(config: Config, resume: bool, until: Option<u64>) -> anyhow::Result<Outcome> {
    let base = model::open(&config.base)?;
    prepare(config, &base)?.train(resume, until)
}

fn error_of(result: anyhow::Result<Outcome>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// Every tensor of every safetensors file in a folder, as bits.
fn bits(folder: &Path) -> BTreeMap<String, Vec<u32>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|ending| ending == "safetensors")
        {
            let (tensors, _) = run::safetensors_contents(&fs::read(&path).unwrap()).unwrap();
            for (name, values) in tensors {
                let file = path.file_name().unwrap().to_string_lossy();
                let bits = values.iter().map(|value| value.to_bits()).collect();
                all.insert(format!("{file} {name}"), bits);
            }
        }
    }
    assert!(!all.is_empty(), "{}", folder.display());
    all
}

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Step and loss of every step.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let lines = metrics(run);
    let steps = lines.iter().filter(|line| line["event"] == "step");
    steps
        .map(|line| {
            (
                line["step"].as_u64().unwrap(),
                line["loss"].as_f64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted() {
    let place = Place::new(Family::Llama);
    for (case, mode, more) in [
        ("full", "full", &[][..]),
        ("lora", "lora", &[]),
        (
            "muon",
            "full",
            &[
                "train.optimizer=muon",
                "train.schedule=wsd",
                "train.eval_every=2",
            ],
        ),
    ] {
        let config = |kind: &str| place.config(&format!("{case}-{kind}"), mode, more);
        let straight = train(config("straight"), false, None).unwrap();
        let first = train(config("broken"), false, Some(1)).unwrap();
        assert!(first.interrupted && first.step == 1);
        assert!(
            model::open(first.run.to_str().unwrap()).is_ok(),
            "an interrupted run has weights"
        );
        train(config("broken"), true, Some(5)).unwrap();
        let last = train(config("broken"), true, None).unwrap();
        assert!(!last.interrupted && last.step == 6);
        // Not a tolerance: the same bits.
        assert_eq!(bits(&straight.run), bits(&last.run), "{case}");
        let end = |run: &Path| bits(&run.join("checkpoints/step-6"));
        assert_eq!(end(&straight.run), end(&last.run), "{case}");
        assert_eq!(losses(&straight.run), losses(&last.run), "{case}");
        let again = train(config("broken"), true, None).unwrap();
        assert!(
            !again.interrupted && again.step == 6,
            "nothing is left to do"
        );
    }
}

#[test]
fn a_stable_run_is_made_longer_from_before_its_decay() {
    let place = Place::new(Family::Llama);
    let wsd = |name: &str, steps: &str| {
        let more = ["train.schedule=wsd", "train.decay_share=0.5", steps];
        place.config(name, "full", &more)
    };
    let long = train(wsd("long", "train.steps=8"), false, None).unwrap();
    train(wsd("short", "train.steps=6"), false, Some(3)).unwrap();
    let longer = train(wsd("short", "train.steps=8"), true, None).unwrap();
    assert_eq!(bits(&long.run), bits(&longer.run));
    let error = error_of(train(wsd("short", "train.steps=9"), true, None));
    assert!(error.contains("train.steps was 8 and is 9"), "{error}");
}

#[test]
fn the_last_checkpoints_are_kept_and_open_as_models() {
    let place = Place::new(Family::Llama);
    for mode in ["full", "lora"] {
        let more = ["train.eval_every=2", "train.keep_last=2"];
        let outcome = train(place.config(mode, mode, &more), false, None).unwrap();
        let run = outcome.run.to_str().unwrap();
        let steps: Vec<_> = Checkpoints::of(&outcome.run)
            .list()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [4, 6]);
        let weights = |name: &str| {
            let opened = model::open(name).unwrap();
            opened.gguf.tensor_f32("blk.1.ffn_up.weight").unwrap()
        };
        let [at_4, at_6] = [4, 6].map(|step| weights(&format!("{run}@step-{step}")));
        assert_ne!(at_4, at_6);
        assert_eq!(at_6, weights(&format!("{run}@last")));
        assert_eq!(at_6, weights(&format!("{run}/checkpoints/step-6")));
        assert_eq!(weights(run), weights(&format!("{run}@best")));
        let error = format!("{:#}", model::open(&format!("{run}@step-5")).unwrap_err());
        assert!(
            error.contains("it has step-4, step-6, last and best"),
            "{error}"
        );
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_gives_the_same_bits() {
    let place = Place::new(Family::Llama);
    let config = |name: &str| place.config(name, "full", &["train.save_every=1"]);
    let straight = train(config("straight"), false, None).unwrap();
    let broken = train(config("broken"), false, Some(4)).unwrap();
    let damaged = broken.run.join("checkpoints/step-4");
    let file = damaged.join("state.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let last = train(config("broken"), true, None).unwrap();
    assert!(broken.run.join("checkpoints/damaged-step-4").is_dir());
    assert_eq!(bits(&straight.run), bits(&last.run));
    for step in [5, 6] {
        fs::remove_file(
            broken
                .run
                .join(format!("checkpoints/step-{step}/model.safetensors")),
        )
        .unwrap();
    }
    let error = error_of(train(config("broken"), true, None));
    for expect in [
        "no checkpoint is whole",
        "step-5",
        "step-6: model.safetensors is missing",
    ] {
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn a_checkpoint_of_something_else_is_refused_by_name() {
    let place = Place::new(Family::Llama);
    train(place.config("a", "full", &[]), false, Some(2)).unwrap();
    let error = |more: &[&str]| error_of(train(place.config("a", "full", more), true, None));
    let message = error(&["train.lr=1e-3", "seed=9"]);
    assert!(
        message.contains("train.lr was 0.01 and is 0.001"),
        "{message}"
    );
    assert!(message.contains("seed was 1 and is 9"), "{message}");
    place.write("base.gguf", &tiny_model(Family::Llama, DType::F32, 8));
    let message = error(&[]);
    assert!(
        message.contains("the base model (base) (SHA-256"),
        "{message}"
    );
    place.write("base.gguf", &tiny_model(Family::Llama, DType::F32, 7));
    place.write("rows.jsonl", &CHATS.as_bytes()[..CHATS.len() / 2]);
    place.write(
        "rows.jsonl",
        CHATS.replace("another", "one other").as_bytes(),
    );
    let message = error(&[]);
    assert!(
        message.contains("the rows of data.train (SHA-256") && message.contains("data.valid"),
        "{message}"
    );
    // What an earlier version left: a state, and no checkpoints.
    fs::remove_dir_all(place.path("runs/a/checkpoints")).unwrap();
    place.write("runs/a/state.safetensors", b"old");
    let message = error(&[]);
    assert!(message.contains("an earlier version"), "{message}");
}

#[test]
fn a_run_stops_early_and_goes_on_with_more_patience() {
    let place = Place::new(Family::Llama);
    let config = |patience: &str| {
        let more = [
            "train.steps=40",
            "train.eval_every=2",
            "train.min_delta=100",
            patience,
        ];
        place.config("early", "lora", &more)
    };
    let first = train(config("train.patience=3"), false, None).unwrap();
    // The first evaluation is the best, three are not better by 100.
    assert!(first.stopped_early && !first.interrupted);
    assert_eq!((first.step, first.kept_step), (8, 8));
    let same = train(config("train.patience=3"), true, None).unwrap();
    assert!(same.stopped_early && same.step == 8);
    let more = train(config("train.patience=5"), true, None).unwrap();
    assert!(more.stopped_early && more.step == 12);
}

/// Of `text`, rows of one word; the other row comes when the loss is low.
#[test]
fn a_loss_that_jumps_stops_the_run_before_its_step_and_names_the_rows() {
    let place = Place::new(Family::Llama);
    let easy = "{\"prompt\":\"where\",\"completion\":\"here\"}\n";
    let odd = "{\"prompt\":\"who\",\"completion\":\"Zq8 ~~ %% 77 xkcd\"}\n";
    place.write("rows.jsonl", (easy.repeat(60) + odd).as_bytes());
    let config = |spike: &str| {
        let more = [
            "train.steps=61",
            "train.batch=1",
            "train.accumulate=1",
            "train.save_every=4",
            "data.valid=[]",
            "seed=3",
            spike,
        ];
        place.config("spike", "full", &more)
    };
    let error = error_of(train(config("train.spike=3"), false, None));
    for expect in [
        "the loss jumps to",
        "train.spike = 3",
        "rows.jsonl:61",
        "--resume",
    ] {
        assert!(error.contains(expect), "{error}");
    }
    let checkpoints = Checkpoints::of(&place.path("runs/spike")).list();
    let last_good = checkpoints.last().unwrap().0;
    let done = losses(&place.path("runs/spike")).last().unwrap().0;
    assert!(
        last_good <= done && done < last_good + 4,
        "{last_good} {done}"
    );
    // Told to, it goes on over the same row.
    let outcome = train(config("train.spike=0"), true, None).unwrap();
    assert_eq!(outcome.step, 61);
}

#[test]
fn samples_are_what_the_engine_makes_of_the_same_weights() {
    for family in [Family::Gpt2, Family::Llama] {
        let place = Place::new(family);
        let prompts = ["the cat", "who"];
        let more = [
            "train.eval_every=3",
            "samples.prompts=['the cat', 'who']",
            "samples.max_tokens=12",
            "samples.chat=false",
        ];
        let outcome = train(place.config("samples", "full", &more), false, None).unwrap();
        let lines = metrics(&outcome.run);
        let samples: Vec<_> = lines
            .iter()
            .filter(|line| line["event"] == "sample")
            .collect();
        let steps: Vec<_> = samples
            .iter()
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, [0, 0, 3, 3, 6, 6]);
        let opened = model::open(&format!("{}@step-6", outcome.run.display())).unwrap();
        let options = CpuOptions {
            n_threads: 1,
            isa: None,
            kv: KvDType::F32,
        };
        let engine = CpuEngine::new(&opened.gguf, &options).unwrap();
        for (prompt, sample) in prompts.iter().zip(&samples[4..]) {
            let mut session = engine.session(64).unwrap();
            let ids = opened.info.encode_prompt(prompt);
            let params = GenerateParams {
                max_tokens: Some(12),
                ..GenerateParams::default()
            };
            let tokenizer = opened.info.tokenizer.clone();
            let mut generation = Generation::new(tokenizer, &ids, 64, &params).unwrap();
            let mut text = String::new();
            generate::run(&engine, &mut session, &mut generation, |step| {
                text += &step.text;
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(sample["prompt"], *prompt);
            assert_eq!(sample["text"], text, "{family:?}");
        }
    }
    let place = Place::new(Family::Llama);
    let long = format!("samples.prompts=['{}']", "the cat and the hat ".repeat(20));
    let error = error_of(train(place.config("long", "full", &[&long]), false, None));
    assert!(error.contains("samples.prompts[0] has"), "{error}");
}

#[test]
fn looking_for_a_learning_rate_or_at_a_plan_leaves_nothing() {
    let place = Place::new(Family::Llama);
    let prepared = |more: &[&str]| {
        let config = place.config("look", "full", more);
        let base = model::open(&config.base).unwrap();
        prepare(config, &base).unwrap()
    };
    let sweep = prepared(&[]).find_lr(60).unwrap();
    let suggestion = sweep.suggestion.unwrap();
    assert!((1e-4..0.5).contains(&suggestion), "{suggestion}");
    assert!(suggestion < sweep.lowest.unwrap());
    assert!(sweep.points.windows(2).all(|pair| pair[0].lr < pair[1].lr));
    let plan = prepared(&["train.eval_every=2"]).plan(true).unwrap();
    // Five rows, four a step.
    assert_eq!((plan.steps, plan.steps_per_epoch, plan.rows), (6, 2, 5));
    let weights = 4 * plan.parameters as u64;
    assert_eq!(
        (
            plan.memory.weights,
            plan.memory.gradients,
            plan.memory.optimizer
        ),
        (weights, 2 * weights, 2 * weights)
    );
    let trial = plan.trial.unwrap();
    let seconds = plan.steps as f64 * plan.tokens_per_step / trial.tokens_per_s;
    assert!(trial.seconds > seconds && trial.step_ms > 0.0);
    let muon = prepared(&["train.optimizer=muon"]).plan(false).unwrap();
    assert!(muon.memory.optimizer < plan.memory.optimizer && muon.trial.is_none());
    assert!(!place.path("runs").exists());
}

/// Rows of all lengths, with prompts that do not count.
fn ragged_rows(n: usize) -> Rows {
    let row = |i: usize| {
        let len = 4 + i * 5 % 11;
        Row {
            tokens: (0..len).map(|t| ((i * 31 + t * 7) % 50) as u32).collect(),
            counted: (0..len).map(|t| t > i % 3 && t % 4 != 1).collect(),
            place: format!("rows:{i}"),
        }
    };
    let mut rows = Rows::default();
    rows.rows = (0..n).map(row).collect();
    rows
}

fn small_model() -> Transformer {
    let spec = ModelConfig::new(FamilyName::Llama, 2, 32, 4, 64).spec(50);
    let values = start::random_parameters(&spec, 3);
    Transformer::new(&spec, values, None, &Device::flex().autodiff()).unwrap()
}

#[test]
fn an_update_does_not_depend_on_how_its_rows_are_split() {
    // 32 rows, and a last window of 29.
    for n in [32, 29] {
        let rows = ragged_rows(n);
        let all: Vec<usize> = (0..n).collect();
        let update = |batch: usize| {
            let model = small_model();
            let before = trained_parameters(&model);
            let batches: Vec<_> = all.chunks(batch).map(<[usize]>::to_vec).collect();
            let mut found =
                gradients_of(&model, &rows, &batches, 0, false, (0, 0), || false).unwrap();
            let gradients: BTreeMap<_, _> = found
                .gradients
                .iter()
                .map(|(name, gradient)| (name.clone(), to_vec(gradient.clone())))
                .collect();
            let mut optimizer = Optimizer::new(&TrainConfig::default());
            let model = optimizer.step(model, &mut found.gradients, 1e-3);
            let updates: BTreeMap<_, Vec<f32>> = trained_parameters(&model)
                .into_iter()
                .map(|(name, values)| {
                    let old = &before[&name];
                    let update = values.iter().zip(old).map(|(new, old)| new - old);
                    (name, update.collect())
                })
                .collect();
            (found.loss, gradients, updates)
        };
        let (loss, gradients, updates) = update(32);
        for batch in [8, 1] {
            let (other_loss, other_gradients, other_updates) = update(batch);
            assert!((loss - other_loss).abs() < 1e-6, "{loss} {other_loss}");
            for (what, a, b) in [
                ("gradient", &gradients, &other_gradients),
                ("update", &updates, &other_updates),
            ] {
                for (name, a) in a {
                    let largest = a
                        .iter()
                        .zip(&b[name])
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f32::max);
                    assert!(
                        largest < 1e-6,
                        "{what} of {name}, {n} rows in {batch}: {largest}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_run_does_not_depend_on_how_its_steps_are_split() {
    let place = Place::new(Family::Llama);
    let run = |name: &str, batch: &str, accumulate: &str| {
        let more = [batch, accumulate, "train.lr=1e-3", "train.steps=4"];
        let outcome = train(place.config(name, "full", &more), false, None).unwrap();
        losses(&outcome.run)
    };
    let whole = run("whole", "train.batch=4", "train.accumulate=1");
    for (name, batch, accumulate) in [("two", 2, 2), ("four", 1, 4)] {
        let split = run(
            name,
            &format!("train.batch={batch}"),
            &format!("train.accumulate={accumulate}"),
        );
        for ((step, a), (_, b)) in whole.iter().zip(&split) {
            assert!((a - b).abs() < 1e-5, "step {step} of {name}: {a} {b}");
        }
    }
}

#[test]
fn recomputation_changes_no_bit_of_a_run() {
    let place = Place::new(Family::Gpt2);
    let run = |name: &str, recompute: &str| {
        train(place.config(name, "full", &[recompute]), false, None).unwrap()
    };
    let [with, without] = ["true", "false"].map(|on| run(on, &format!("train.recompute={on}")));
    assert_eq!(bits(&with.run), bits(&without.run));
}

/// `tests/fixtures/muon` has steps of `torch.optim.Muon`, as it is (bf16) and with its iteration in f32.
#[test]
fn muon_steps_as_pytorch_does() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/muon/expected.safetensors");
    let (tensors, notes) = run::safetensors_contents(&fs::read(path).unwrap()).unwrap();
    let number = |key: &str| notes[key].parse::<f64>().unwrap();
    let spec = ModelConfig {
        kv_heads: Some(2),
        ..ModelConfig::new(FamilyName::Llama, 1, 32, 4, 64)
    }
    .spec(50);
    let mut values = start::random_parameters(&spec, 3);
    let names = ["attn_q", "attn_k", "ffn_up", "ffn_down"];
    for name in names {
        let name = format!("blocks.0.{name}.weight");
        values.insert(name.clone(), tensors[&format!("start.{name}")].clone());
    }
    let mut model = Transformer::new(&spec, values, None, &Device::flex().autodiff()).unwrap();
    let config = TrainConfig {
        optimizer: fledgling::train::config::OptimizerName::Muon,
        weight_decay: number("weight_decay"),
        momentum: number("momentum"),
        ..TrainConfig::default()
    };
    let mut optimizer = Optimizer::new(&config);
    for step in 0..3 {
        let mut gradients: BTreeMap<_, _> = names
            .iter()
            .map(|name| {
                let name = format!("blocks.0.{name}.weight");
                let values = tensors[&format!("grad{step}.{name}")].clone();
                let n = values.len();
                (
                    name,
                    Tensor::<1>::from_data(TensorData::new(values, [n]), &Device::flex()),
                )
            })
            .collect();
        model = optimizer.step(model, &mut gradients, number("lr"));
    }
    let got = trained_parameters(&model);
    for name in names {
        let name = format!("blocks.0.{name}.weight");
        let difference = |kind: &str| {
            let expected = &tensors[&format!("{kind}.{name}")];
            let moved = expected.iter().zip(&tensors[&format!("start.{name}")]);
            let squares = |pairs: &mut dyn Iterator<Item = (f32, f32)>| -> f64 {
                pairs
                    .map(|(a, b)| f64::from(a - b).powi(2))
                    .sum::<f64>()
                    .sqrt()
            };
            let wrong = squares(&mut got[&name].iter().copied().zip(expected.iter().copied()));
            wrong / squares(&mut moved.map(|(a, b)| (*a, *b)))
        };
        let (f32_error, bf16_error) = (difference("f32"), difference("bf16"));
        assert!(f32_error < 1e-5, "{name}: {f32_error}");
        assert!(bf16_error < 2e-2, "{name}: {bf16_error}");
    }
    assert!(matches!(optimizer, Optimizer::Muon(Muon { ref means, .. }) if means.len() == 4));
}

#[test]
fn an_orthogonalised_matrix_has_singular_values_near_one() {
    for (rows, columns) in [(8, 8), (4, 12), (12, 4)] {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * i * 7 + i * 13) % 31) as f32 - 15.0)
            .collect();
        let matrix =
            Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &Device::flex());
        let q = orthogonalize(matrix);
        let q = if rows > columns { q.transpose() } else { q };
        // The eigenvalues of Q Qᵀ are the squares of the singular values: their mean is the trace's.
        let n = rows.min(columns);
        let gram = to_vec(q.clone().matmul(q.transpose()));
        let mean = (0..n).map(|i| gram[i * n + i]).sum::<f32>() / n as f32;
        assert!((0.49..1.45).contains(&mean), "{rows} x {columns}: {mean}");
    }
    let zero = orthogonalize(Tensor::<2>::zeros([3, 2], &Device::flex()));
    assert!(to_vec(zero).iter().all(|&value| value == 0.0));
}

#[test]
fn learning_rates_of_a_run_are_in_its_metrics() {
    let place = Place::new(Family::Llama);
    let more = [
        "train.schedule=linear",
        "train.warmup=0.5",
        "train.min_lr_ratio=0",
    ];
    let config = place.config("rates", "lora", &more);
    let rates = LearningRates::new(&config.train, 6);
    let outcome = train(config, false, None).unwrap();
    let lines = metrics(&outcome.run);
    let got: Vec<f64> = lines
        .iter()
        .filter_map(|line| line["lr"].as_f64())
        .collect();
    let expected: Vec<f64> = (0..6).map(|step| rates.at(step)).collect();
    assert_eq!(got, expected);
    assert!(
        (got[2] - 1e-2).abs() < 1e-12 && (got[5] - 1e-2 / 3.0).abs() < 1e-9,
        "{got:?}"
    );
}
