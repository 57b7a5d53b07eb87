//! Training runs on tiny models: rows, loss, checkpoints, resume, and the way to a GGUF file.

#![cfg(feature = "train")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use burn::tensor::Device;
use fledgling::{
    model, run,
    train::{
        config::{Config, LoraConfig},
        data::{self, Row},
        fit::Outcome,
        loss,
        model::{Batch, LoraSpec, Transformer, to_vec},
        open_base, prepare, start,
    },
};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, Isa, KvDType},
    quant::DType,
    spec::Family,
    testing::tiny_model,
};
use std::fs;
use tempfile::TempDir;

const CHATS: &str = r#"{"messages":[{"role":"user","content":"the other thing"},{"role":"assistant","content":"is here and there"}]}
{"prompt":"what is in the hat","completion":"another hat"}

{"question":"who","answer":"the man on the hill"}
{"instruction":"add","input":"one and one","output":"two"}
"#;

/// A folder with a tiny model, rows, and a config.
struct Place {
    folder: TempDir,
    family: Family,
}

impl Place {
    fn new(family: Family) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(
            folder.path().join("base.gguf"),
            tiny_model(family, DType::F32, 7),
        )
        .unwrap();
        fs::write(folder.path().join("rows.jsonl"), CHATS).unwrap();
        fs::write(
            folder.path().join("text.txt"),
            "the cat and the hat ".repeat(40),
        )
        .unwrap();
        Self { folder, family }
    }

    fn config(&self, name: &str, mode: &str, more: &[&str]) -> Config {
        let at = |file: &str| self.folder.path().join(file).to_str().unwrap().to_owned();
        let family = self.family.name();
        let kv_heads = if self.family == Family::Gpt2 { 4 } else { 2 };
        let model = if mode == "scratch" {
            format!(
                "[model]\nfamily='{family}'\nlayers=2\nwidth=32\nheads=4\nkv_heads={kv_heads}\nctx=128\n"
            )
        } else {
            String::new()
        };
        let text = format!(
            "name='{name}'\nmode='{mode}'\nbase='{}'\nruns_dir='{}'\n[data]\ntrain=['{rows}']\nvalid=['{rows}']\nmax_tokens=64\n\
             [train]\nbatch=2\naccumulate=2\nsteps=6\nwarmup=2\nlr=1e-2\n{model}",
            at("base.gguf"),
            at("runs"),
            rows = at("rows.jsonl"),
        );
        let overrides: Vec<_> = more.iter().map(ToString::to_string).collect();
        Config::parse(&text, &overrides).unwrap()
    }

    fn rows(&self, file: &str, max_tokens: usize) -> anyhow::Result<data::Rows> {
        let base = model::open(self.folder.path().join("base.gguf").to_str().unwrap())?;
        data::read(&[self.folder.path().join(file)], &base.info, max_tokens)
    }
}

fn train(config: Config, resume: bool, until: Option<u64>) -> anyhow::Result<Outcome> {
    let base = model::open(&config.base)?;
    prepare(config, &base)?.train(resume, until)
}

#[test]
fn chats_count_the_answer_and_its_end_and_prompts_are_what_a_chat_sends() {
    let place = Place::new(Family::Llama);
    let base = model::open(place.folder.path().join("base.gguf").to_str().unwrap()).unwrap();
    let rows = place.rows("rows.jsonl", 100).unwrap();
    let counted = |row: &Row| {
        let ids: Vec<_> = row
            .tokens
            .iter()
            .zip(&row.counted)
            .filter(|(_, counted)| **counted)
            .map(|(id, _)| *id)
            .collect();
        base.info.tokenizer.decode(&ids, false)
    };
    let texts: Vec<_> = rows.rows.iter().map(counted).collect();
    assert_eq!(
        texts,
        [
            "is here and there<|im_end|>",
            "another hat<|im_end|>",
            "the man on the hill<|im_end|>",
            "two<|im_end|>"
        ]
    );
    let whole = base.info.tokenizer.decode(&rows.rows[0].tokens, false);
    assert!(whole.ends_with("<|im_start|>user\nthe other thing<|im_end|>\n<|im_start|>assistant\nis here and there<|im_end|>\n"), "{whole}");
    assert!(
        rows.rows[1].place.ends_with("rows.jsonl:2")
            && rows.rows[2].place.ends_with("rows.jsonl:4")
    );
}

#[test]
fn text_windows_predict_every_token_once() {
    let place = Place::new(Family::Gpt2);
    let rows = place.rows("text.txt", 16).unwrap().rows;
    let base = model::open(place.folder.path().join("base.gguf").to_str().unwrap()).unwrap();
    let tokens = base.info.tokenizer.encode(
        &"the cat and the hat ".repeat(40),
        base.info.tokenizer.adds_bos(),
        false,
    );
    let targets: Vec<_> = rows
        .iter()
        .flat_map(|row| row.tokens[1..].to_vec())
        .collect();
    assert_eq!(targets, tokens[1..]);
    assert!(
        rows.iter()
            .all(|row| row.tokens.len() <= 17 && row.n_counted() == row.tokens.len() - 1)
    );
}

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let place = Place::new(Family::Llama);
    let check = |text: &str, expect: &str| {
        fs::write(place.folder.path().join("bad.jsonl"), text).unwrap();
        let error = format!("{:#}", place.rows("bad.jsonl", 64).unwrap_err());
        assert!(error.contains(expect), "{error}");
    };
    check(
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n{oops\n",
        "bad.jsonl:2: invalid JSON",
    );
    check("{\"foo\":\"a\"}\n", "bad.jsonl:1");
    check("{\"foo\":\"a\"}\n", "foo");
    check(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n",
        "no message has the role `assistant`",
    );
    check(
        "{\"prompt\":\"a\",\"completion\":\"\"}\n",
        "an answer is empty",
    );
    assert!(
        format!("{:#}", place.rows("missing.jsonl", 64).unwrap_err()).contains("missing.jsonl")
    );
    assert!(format!("{:#}", place.rows("base.gguf", 64).unwrap_err()).contains("base.gguf"));
}

#[test]
fn a_tokenizer_alone_is_the_base_of_a_run_from_scratch_and_of_no_other() {
    let place = Place::new(Family::Gpt2);
    let base = model::open(place.folder.path().join("base.gguf").to_str().unwrap()).unwrap();
    let path = place.folder.path().join("tokenizer.json");
    fs::write(&path, base.info.tokenizer.to_hf_json()).unwrap();
    let base_key = format!("base='{}'", path.display());
    let rows = place.folder.path().join("plain.jsonl");
    fs::write(
        &rows,
        "{\"prompt\":\"what is in the hat\",\"completion\":\" another hat\"}\n",
    )
    .unwrap();
    let (train_key, valid_key) = (
        format!("data.train=['{}']", rows.display()),
        format!("data.valid=['{}']", rows.display()),
    );
    let more = [&base_key, "train.steps=2", &train_key, &valid_key];
    let config = place.config("own", "scratch", &more);
    let base = open_base(&config).unwrap();
    let outcome = prepare(config, &base).unwrap().train(false, None).unwrap();
    assert_eq!(outcome.step, 2);
    let run = place.folder.path().join("runs/own");
    let opened = model::open(run.to_str().unwrap()).unwrap();
    let text = "The quick brown fox";
    let ids =
        |tokenizer: &fledgling_core::tokenizer::Tokenizer| tokenizer.encode(text, false, false);
    assert_eq!(ids(&opened.info.tokenizer), ids(&base.info.tokenizer));
    let error = open_base(&place.config("no", "full", &[&base_key])).unwrap_err();
    assert!(
        format!("{error:#}").contains("mode = \"scratch\" only"),
        "{error:#}"
    );
}

#[test]
fn every_mode_learns_its_rows_and_leaves_a_run_that_opens() {
    for family in [Family::Gpt2, Family::Llama, Family::Qwen3] {
        let place = Place::new(family);
        for mode in ["lora", "full", "scratch"] {
            let more: &[&str] = if mode == "lora" {
                &["lora.rank=4", "train.steps=30"]
            } else {
                &["train.steps=30"]
            };
            let outcome = train(place.config(mode, mode, more), false, None).unwrap();
            let (before, after) = (
                outcome.valid_perplexity_before.unwrap(),
                outcome.valid_perplexity.unwrap(),
            );
            assert!(
                after < before / 2.0,
                "{family:?} {mode}: {before} -> {after}"
            );
            let opened = model::open(outcome.run.to_str().unwrap()).unwrap();
            assert_eq!(opened.info.name, mode);
            assert!(opened.info.chat_template.is_some());
        }
    }
}

/// The same model by Burn with its LoRA, and by the scalar engine with the LoRA merged into f32 weights: what differs
/// is the rounding of the merged weights and the order of sums.
#[test]
fn a_merged_lora_computes_what_it_computed_in_training() {
    for family in Family::ALL {
        let place = Place::new(family);
        let config = place.config("merge", "lora", &["lora.rank=4", "lora.alpha=8"]);
        let outcome = train(config.clone(), false, None).unwrap();
        let base = model::open(&config.base).unwrap();
        let spec = base.info.spec.clone();
        let adapter = fs::read(outcome.run.join(run::ADAPTER_FILE)).unwrap();
        let mut values = start::parameters_of(&base.gguf, &spec).unwrap();
        let entries = start::lora_entries(&spec, &LoraConfig::default()).unwrap();
        values.extend(
            start::adapter_parameters(&run::safetensors_contents(&adapter).unwrap().0, &entries, 4)
                .unwrap(),
        );
        let lora = LoraSpec {
            size: run::LoraSize {
                rank: 4,
                alpha: 8.0,
                rslora: false,
            },
            dropout: 0.0,
        };
        let burn =
            Transformer::new(&spec, values, Some(&lora), &Device::flex().autodiff()).unwrap();
        let tokens: Vec<u32> = (5..25).collect();
        let n = tokens.len() as u32;
        let batch = Batch {
            tokens: tokens.clone(),
            n_rows: 1,
            n_tokens: 20,
            counted: (0..n).collect(),
            targets: vec![0; 20],
        };
        let expected = to_vec(loss::logits(&burn, &batch));

        let merged = model::open(outcome.run.to_str().unwrap()).unwrap();
        let options = CpuOptions {
            n_threads: 1,
            isa: Some(Isa::Scalar),
            kv: KvDType::F32,
        };
        let engine = CpuEngine::new(&merged.gguf, &options).unwrap();
        let mut got = Vec::new();
        let mut session = engine.session(32).unwrap();
        engine
            .forward_all(&mut session, &tokens, &mut |_, logits| {
                got.extend_from_slice(logits);
            })
            .unwrap();
        let largest = got
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(largest < 1e-4, "{family:?}: {largest}");
        // And it is not simply the base.
        let base_values = base.gguf.tensor_f32("blk.0.ffn_up.weight").unwrap();
        assert_ne!(
            merged.gguf.tensor_f32("blk.0.ffn_up.weight").unwrap(),
            base_values
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = Place::new(Family::Llama);
    let fails = |config: Config, resume: bool, expect: &str| {
        let error = format!("{:#}", train(config, resume, None).unwrap_err());
        assert!(error.contains(expect), "{error}");
    };
    fails(
        place.config("a", "lora", &["lora.targets=['attn_x']"]),
        false,
        "no matrix is called `attn_x`",
    );
    fails(
        place.config("a", "lora", &["data.max_tokens=500"]),
        false,
        "the model has 128 positions only",
    );
    fails(place.config("a", "lora", &[]), true, "cannot resume");
    train(place.config("a", "lora", &[]), false, Some(1)).unwrap();
    fails(
        place.config("a", "lora", &["train.lr=1e-3"]),
        true,
        "train.lr was 0.01 and is 0.001",
    );
    fails(
        place.config(
            "b",
            "full",
            &[
                "train.lr=10",
                "train.warmup=0",
                "train.clip=0",
                "train.weight_decay=1",
                "train.steps=100",
            ],
        ),
        false,
        "lower train.lr",
    );
}

#[test]
fn a_preset_is_a_model_from_scratch_and_keys_change_it() {
    let place = Place::new(Family::Llama);
    let base = model::open(place.folder.path().join("base.gguf").to_str().unwrap()).unwrap();
    let mut config = place.config("preset", "full", &[]);
    let shape = "preset = 'qwen3-0.6b'\nlayers = 2\nwidth = 64\nheads = 4\nkv_heads = 2\nhead_dim = 32\nff = 96\nctx = 128";
    config.mode = fledgling::train::config::Mode::Scratch;
    config.model = Some(toml::from_str(shape).unwrap());
    let plan = prepare(config.clone(), &base).unwrap().plan(false).unwrap();
    // Embedding, two blocks (q and output, k and v, the MLP, four norms), and the last norm.
    let vocab_size = base.info.tokenizer.vocab_size();
    let block = 2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 96 + 2 * 64 + 2 * 32;
    assert_eq!(plan.parameters, vocab_size * 64 + 2 * block + 64);
    assert_eq!(plan.architecture, "qwen3");
    let outcome = train(config, false, None).unwrap();
    let opened = model::open(outcome.run.to_str().unwrap()).unwrap();
    let spec = opened.info.spec;
    assert_eq!(
        (spec.head_dim, spec.qk_norm, spec.norm_eps),
        (32, true, 1e-6)
    );
    let saved = fs::read_to_string(outcome.run.join("config.toml")).unwrap();
    assert!(
        saved.contains("preset = \"qwen3-0.6b\"") && saved.contains("ff = 96"),
        "{saved}"
    );
}
