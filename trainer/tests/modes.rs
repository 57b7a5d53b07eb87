//! LoRA, LoRA over blocks, and training for a quantisation: what is trained is what is exported.

#![cfg(feature = "train")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use common::{Place, hub_files};
use fledgling::{
    adapter, model, run,
    train::{
        config::{Config, LoraConfig},
        data,
        dropout::{Draw, Moment},
        fit::{self, Outcome},
        frozen::Frozen,
        lora::{LoraProduct, Tensors},
        model::{Transformer, to_vec},
        ops, prepare, start,
    },
};
use fledgling_core::{
    quant::{self, DType},
    spec::Family,
};
use serde_json::Value;
use std::{fs, path::Path};

const CHATS: &str = r#"{"messages":[{"role":"user","content":"the other thing"},{"role":"assistant","content":"is here and there"}]}
{"prompt":"what is in the hat","completion":"another hat"}
{"question":"who","answer":"the man on the hill"}
{"instruction":"add","input":"one and one","output":"two"}
"#;

/// A run's config in a place with `base.gguf` or whatever `more` names.
fn config(place: &Place, name: &str, mode: &str, more: &[&str]) -> Config {
    let rows = place.write("rows.jsonl", CHATS);
    let at = |file: &str| place.path(file).to_str().unwrap().to_owned();
    let text = format!(
        "name='{name}'\nmode='{mode}'\nbase='{}'\nruns_dir='{}'\n[data]\ntrain=['{rows}']\nvalid=['{rows}']\nmax_tokens=64\n\
         [train]\nbatch=2\naccumulate=2\nsteps=6\nwarmup=2\nlr=1e-2\n",
        at("base.gguf"),
        at("runs"),
    );
    let overrides: Vec<_> = more.iter().map(ToString::to_string).collect();
    Config::parse(&text, &overrides).unwrap()
}

fn train_until(config: Config, resume: bool, until: Option<u64>) -> anyhow::Result<Outcome> {
    let base = model::open(&config.base)?;
    prepare(config, &base)?.train(resume, until)
}

fn train(config: Config) -> Outcome {
    train_until(config, false, None).unwrap()
}

fn fails(config: Config, parts: &[&str]) {
    let error = format!("{:#}", train_until(config, false, None).unwrap_err());
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

fn matrix(values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn nearly(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!(
            (a - b).abs() <= 1e-5 * (1.0 + b.abs()),
            "{a} instead of {b}"
        );
    }
}

#[test]
fn products_with_blocks_are_those_with_the_dequantised_matrix() {
    // More than one piece of depth and one row of panels in both directions, and ragged ends.
    for dtype in DType::ALL {
        let shape = [4200, if dtype.block_len() > 32 { 768 } else { 320 }];
        let frozen = Frozen::quantize(dtype, &wave(shape[0] * shape[1], 0.37), shape);
        let weight = matrix(frozen.values(), shape);
        let x = || matrix(wave(3 * shape[1], 0.11), [3, shape[1]]).require_grad();
        let gradient = matrix(wave(3 * shape[0], 0.23), [3, shape[0]]);
        let (x1, x2) = (x(), x());
        let dense = ops::product(x1.clone(), weight, [false, true]);
        let blocks = ops::frozen_product(x2.clone(), &frozen, false);
        assert_eq!(
            bits(to_vec(blocks.clone().inner())),
            bits(to_vec(dense.clone().inner()))
        );
        let dx = |x: &Tensor<2>, y: Tensor<2>| {
            let gradients = (y * gradient.clone()).sum().backward();
            to_vec(x.grad(&gradients).unwrap())
        };
        assert_eq!(bits(dx(&x2, blocks)), bits(dx(&x1, dense)), "{dtype}");
    }
}

#[test]
fn a_lora_over_blocks_trains_as_over_their_values() {
    for (family, dtype) in [
        (Family::Llama, DType::Q8_0),
        (Family::Llama, DType::Q4_1),
        (Family::Gpt2, DType::Q4_0),
        (Family::Gpt2, DType::F16),
    ] {
        let place = Place::new();
        place.tiny("base.gguf", family, dtype);
        let blocks = train(config(&place, "blocks", "lora", &[]));
        let values = train(config(&place, "values", "lora", &["lora.base='f32'"]));
        let (a, b) = (blocks.train_loss.unwrap(), values.train_loss.unwrap());
        assert!((a - b).abs() < 1e-5, "{family:?} {dtype}: {a}, {b}");
        let (a, b) = (blocks.valid_loss.unwrap(), values.valid_loss.unwrap());
        assert!((a - b).abs() < 1e-5, "{family:?} {dtype}: {a}, {b}");
        assert!(blocks.valid_loss < blocks.valid_loss_before);
    }
}

#[test]
fn a_base_can_be_quantised_for_training_and_is_counted_once() {
    let place = Place::new();
    place.tiny("base.gguf", Family::Llama, DType::F32);
    let plan = |more: &[&str]| {
        let config = config(&place, "plan", "lora", more);
        let base = model::open(&config.base).unwrap();
        prepare(config, &base).unwrap().plan(false).unwrap()
    };
    let (file, small) = (plan(&[]), plan(&["lora.base='q4_0'"]));
    assert_eq!(file.parameters, small.parameters);
    assert_eq!(file.trained_parameters, small.trained_parameters);
    assert!(small.memory.weights < file.memory.weights);
    let outcome = train(config(&place, "small", "lora", &["lora.base='q4_0'"]));
    assert!(outcome.valid_loss < outcome.valid_loss_before);
}

/// The draws of a layer of 16 inputs.
fn mask(moment: Moment, layer: u64, p: f64, n: usize) -> Vec<f32> {
    Draw::new(&moment, layer, 16, p).mask(n)
}

#[test]
fn dropout_leaves_out_its_share_and_keeps_the_mean() {
    let moment = Moment {
        seed: 1,
        step: 3,
        first_row: 0,
        n_tokens: 50,
    };
    for p in [0.05, 0.5] {
        let drawn = mask(moment, 2, p, 4000);
        let kept = (1.0 / (1.0 - p)) as f32;
        assert!(drawn.iter().all(|&v| v == 0.0 || (v - kept).abs() < 1e-6));
        let share = drawn.iter().filter(|&&v| v == 0.0).count() as f64 / drawn.len() as f64;
        // Four standard deviations of 64,000 draws.
        assert!(
            (share - p).abs() < 4.0 * (p * (1.0 - p) / 64_000.0).sqrt(),
            "{share}"
        );
    }
}

#[test]
fn draws_depend_on_seed_step_layer_and_row_and_not_on_the_batch() {
    let moment = Moment {
        seed: 1,
        step: 3,
        first_row: 0,
        n_tokens: 10,
    };
    let whole = mask(moment, 2, 0.5, 40);
    assert_eq!(whole, mask(moment, 2, 0.5, 40));
    assert_ne!(whole, mask(Moment { seed: 2, ..moment }, 2, 0.5, 40));
    assert_ne!(whole, mask(Moment { step: 4, ..moment }, 2, 0.5, 40));
    assert_ne!(whole, mask(moment, 3, 0.5, 40));
    // Rows 2 and 3 of the step in a batch of their own.
    let later = mask(
        Moment {
            first_row: 2,
            ..moment
        },
        2,
        0.5,
        20,
    );
    assert_eq!(whole[20 * 16..], later);
    // Rows and positions differ among themselves.
    let parts: Vec<_> = whole.chunks(16).collect();
    assert_ne!(parts[0], parts[1]);
    assert_ne!(parts[0], parts[10]);
}

#[test]
fn a_layer_with_a_lora_has_the_values_and_gradients_of_its_formula() {
    const N: usize = 8;
    const IN: usize = 32;
    const OUT: usize = 24;
    const RANK: usize = 3;
    let moment = Moment {
        seed: 5,
        step: 0,
        first_row: 0,
        n_tokens: 4,
    };
    let weight = wave(OUT * IN, 0.11);
    let blocks = Frozen::quantize(DType::Q8_0, &weight, [OUT, IN]);
    let gradient = matrix(wave(N * OUT, 0.9), [N, OUT]);
    for case in 0..16 {
        let [drops, has_bias, is_frozen, is_merged] = [1, 2, 4, 8].map(|bit| case & bit != 0);
        let draw = drops.then(|| Draw::new(&moment, 1, IN, 0.4));
        let leaves = || {
            let leaf =
                |n: usize, c: usize, step: f32| matrix(wave(n * c, step), [n, c]).require_grad();
            [leaf(N, IN, 0.3), leaf(RANK, IN, 0.7), leaf(OUT, RANK, 0.5)]
        };
        let results = |y: Tensor<2>, leaves: &[Tensor<2>; 3]| {
            let values = to_vec(y.clone().inner());
            let gradients = (y * gradient.clone()).sum().backward();
            let of_leaves = leaves
                .each_ref()
                .map(|x| to_vec(x.grad(&gradients).unwrap()));
            [vec![values], of_leaves.into()].concat()
        };
        let values = if is_frozen {
            blocks.values()
        } else {
            weight.clone()
        };
        let bias = has_bias.then(|| {
            Tensor::<1>::from_data(
                TensorData::new(wave(OUT, 0.2), [OUT]),
                &Device::flex().autodiff(),
            )
        });
        let fused = {
            let leaves = leaves();
            let [x, a, b] = leaves.clone();
            let product = LoraProduct {
                matrix: is_frozen.then(|| blocks.clone()),
                has_bias,
                rank: RANK,
                scale: 0.5,
                draw,
                is_merged,
            };
            let tensors = Tensors {
                x,
                a,
                b,
                weight: (!is_frozen).then(|| matrix(values.clone(), [OUT, IN])),
                bias: None,
            };
            results(ops::lora_product(product, tensors, bias.clone()), &leaves)
        };
        let plain = {
            let leaves = leaves();
            let [x, a, b] = leaves.clone();
            let mut y = x.clone().matmul(matrix(values, [OUT, IN]).transpose());
            if let Some(bias) = bias {
                y = y + bias.unsqueeze();
            }
            let x = if is_merged { x.detach() } else { x };
            let x = match draw {
                Some(draw) => x * matrix(draw.mask(N), [N, IN]),
                None => x,
            };
            let low = x.matmul(a.transpose()).mul_scalar(0.5);
            let addition = low.matmul(b.transpose());
            y = if is_merged {
                y + (addition.clone() - addition.detach())
            } else {
                y + addition
            };
            results(y, &leaves)
        };
        for (fused, plain) in fused.iter().zip(&plain) {
            nearly(fused, plain);
        }
    }
}

#[test]
fn a_resumed_run_with_dropout_ends_with_the_bits_of_one_that_was_not_interrupted() {
    let place = Place::new();
    place.tiny("base.gguf", Family::Llama, DType::Q8_0);
    let more = &["lora.dropout=0.3"];
    let straight = train(config(&place, "straight", "lora", more));
    train_until(config(&place, "broken", "lora", more), false, Some(2)).unwrap();
    let last = train_until(config(&place, "broken", "lora", more), true, None).unwrap();
    let adapter = |outcome: &Outcome| {
        let bytes = fs::read(outcome.run.join(run::ADAPTER_FILE)).unwrap();
        let values = run::safetensors_contents(&bytes).unwrap().0.into_iter();
        values
            .map(|(name, values)| (name, bits(values)))
            .collect::<Vec<_>>()
    };
    assert!(adapter(&straight) == adapter(&last), "other bits");
    // Dropout did something, and not when it was measured.
    let without = train(config(&place, "without", "lora", &[]));
    assert!(adapter(&straight) != adapter(&without), "the same bits");
    assert_eq!(straight.valid_loss_before, without.valid_loss_before);
}

#[test]
fn targets_are_names_of_either_kind_parts_of_them_or_patterns() {
    let place = Place::new();
    let matched = |family: Family, targets: &[&str]| -> anyhow::Result<Vec<String>> {
        let base = place.tiny("base.gguf", family, DType::F32);
        let lora = LoraConfig {
            targets: targets.iter().map(ToString::to_string).collect(),
            ..LoraConfig::default()
        };
        let entries = start::lora_entries(&model::open(&base)?.info.spec, &lora)?;
        Ok(entries
            .into_iter()
            .map(|entry| entry.gguf.trim_end_matches(".weight").to_owned())
            .collect())
    };
    let llama = |targets: &[&str]| matched(Family::Llama, targets).unwrap();
    assert_eq!(llama(&["*q_proj"]), ["blk.0.attn_q", "blk.1.attn_q"]);
    assert_eq!(llama(&["q_proj"]), llama(&["attn_q"]));
    assert_eq!(llama(&["blk.[1-9].ffn_up"]), ["blk.1.ffn_up"]);
    assert_eq!(llama(&["model.layers.0.mlp.*"]).len(), 3);
    assert_eq!(llama(&["layers.0.mlp.*"]), llama(&["blk.0.ffn_*"]));
    assert_eq!(llama(&["*.attn_*"]).len(), 8);
    assert_eq!(llama(&["blk.{0,1}.attn_{q,k}.weight"]).len(), 4);
    assert_eq!(llama(&[]).len(), 14);
    let gpt2 = matched(Family::Gpt2, &["h.0.*c_proj"]).unwrap();
    assert_eq!(gpt2, ["blk.0.attn_output", "blk.0.ffn_down"]);
    let refused = |targets: &[&str]| format!("{:#}", matched(Family::Llama, targets).unwrap_err());
    let error = refused(&["attn_q", "*.atn_*"]);
    for part in [
        "`*.atn_*`",
        "attn_output",
        "self_attn.q_proj",
        "blocks 0 to 1",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(refused(&["blk.[0.*"]).contains("is no pattern"));
    assert!(refused(&[""]).contains("empty"));
}

/// Every tensor of two files.
fn same_tensors(a: &Path, b: &Path) {
    let (a, b) = (model::open(text(a)).unwrap(), model::open(text(b)).unwrap());
    for info in &a.gguf.header().tensors {
        let values = |model: &model::Model| model.gguf.tensor_f32(&info.name).unwrap();
        assert_eq!(values(&a), values(&b), "{}", info.name);
    }
}

#[test]
fn an_adapter_is_merged_into_its_base_as_much_as_is_asked() {
    for family in [Family::Gpt2, Family::Llama] {
        let place = Place::new();
        let base = place.tiny("base.gguf", family, DType::Q8_0);
        let outcome = train(config(&place, "a", "lora", &["lora.rslora=true"]));
        let run_dir = text(&outcome.run).to_owned();
        // What PEFT needs, without what only a run has.
        let peft = place.path("peft");
        fs::create_dir(&peft).unwrap();
        for file in [adapter::WEIGHTS_FILE, adapter::CONFIG_FILE] {
            fs::copy(outcome.run.join(file), peft.join(file)).unwrap();
        }
        let export = |name: &str, args: &[&str]| {
            let out = place.path(name);
            let mut all = vec!["export", "--quant", "f32", "-o", text(&out)];
            all.extend(args);
            place.run(&all).ok();
            out
        };
        let whole = export("whole.gguf", &[&run_dir]);
        same_tensors(
            &whole,
            &export("peft.gguf", &[&base, "--adapter", text(&peft)]),
        );
        same_tensors(&whole, &export("own.gguf", &[&base, "--adapter", &run_dir]));
        same_tensors(&whole, &export("one.gguf", &[&run_dir, "--scale", "1"]));
        let none = export("none.gguf", &[&run_dir, "--scale", "0"]);
        same_tensors(Path::new(&base), &none);
        let half = export(
            "half.gguf",
            &[&base, "--adapter", &run_dir, "--scale", "0.5"],
        );
        let name = "blk.0.ffn_up.weight";
        let of = |path: &Path| {
            let model = model::open(text(path)).unwrap();
            model.gguf.tensor_f32(name).unwrap()
        };
        let (base_values, whole, half) = (of(Path::new(&base)), of(&whole), of(&half));
        assert_ne!(base_values, whole);
        for ((b, w), h) in base_values.iter().zip(&whole).zip(&half) {
            assert!(((b + w) / 2.0 - h).abs() < 1e-6);
        }
        let config: Value =
            serde_json::from_slice(&fs::read(peft.join(adapter::CONFIG_FILE)).unwrap()).unwrap();
        assert_eq!(
            (&config["r"], &config["lora_alpha"]),
            (&8.into(), &16.0.into())
        );
        assert_eq!(config["use_rslora"], true);
        let modules = config["target_modules"].as_array().unwrap();
        let expected = if family == Family::Gpt2 {
            ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].to_vec()
        } else {
            let own = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"];
            let attn = [
                "self_attn.k_proj",
                "self_attn.o_proj",
                "self_attn.q_proj",
                "self_attn.v_proj",
            ];
            [own.as_slice(), &attn].concat()
        };
        assert_eq!(modules, &expected);
    }
}

#[test]
fn an_adapter_of_another_base_or_kind_is_refused_by_name() {
    let place = Place::new();
    let llama = place.tiny("base.gguf", Family::Llama, DType::F32);
    let outcome = train(config(&place, "a", "lora", &[]));
    let gpt2 = place.tiny("gpt2.gguf", Family::Gpt2, DType::F32);
    let other = place.write(
        "other.gguf",
        fledgling_core::testing::tiny_model(Family::Llama, DType::F32, 8),
    );
    let peft = |name: &str, change: &dyn Fn(&mut Value)| {
        let source = outcome.run.join(adapter::CONFIG_FILE);
        let mut config: Value = serde_json::from_slice(&fs::read(source).unwrap()).unwrap();
        change(&mut config);
        place.write(
            &format!("{name}/{}", adapter::WEIGHTS_FILE),
            fs::read(outcome.run.join(adapter::WEIGHTS_FILE)).unwrap(),
        );
        let path = place.write(
            &format!("{name}/{}", adapter::CONFIG_FILE),
            config.to_string(),
        );
        text(Path::new(&path).parent().unwrap()).to_owned()
    };
    let refused = |base: &str, adapter: &str, status: i32, parts: &[&str]| {
        let out = place.path("no.gguf");
        let args = [
            "export",
            base,
            "--adapter",
            adapter,
            "--quant",
            "f32",
            "-o",
            text(&out),
        ];
        place.run(&args).fails(status, parts);
        assert!(!out.exists());
    };
    let plain = peft("plain", &|_| {});
    refused(
        &gpt2,
        &plain,
        1,
        &["`model.layers.0.mlp.down_proj`", "another base"],
    );
    refused(
        &other,
        text(&outcome.run),
        1,
        &["was trained on", "not the same model"],
    );
    refused(
        &llama,
        &peft("rank", &|c| c["r"] = 4.into()),
        1,
        &["rank is 8", "makes it 4"],
    );
    refused(
        &llama,
        &peft("dora", &|c| c["use_dora"] = true.into()),
        1,
        &["DoRA"],
    );
    refused(
        &llama,
        &peft("bias", &|c| c["bias"] = "all".into()),
        1,
        &["biases"],
    );
    refused(
        &llama,
        &peft("ia3", &|c| c["peft_type"] = "IA3".into()),
        1,
        &["IA3"],
    );
    refused(
        &llama,
        text(&place.path("none")),
        1,
        &["none: there is no such", adapter::CONFIG_FILE],
    );
    let out = place.path("no.gguf");
    let scaled = |base: &str, scale: &str| {
        let scale = format!("--scale={scale}");
        place.run(&["export", base, &scale, "--quant", "f32", "-o", text(&out)])
    };
    scaled(&llama, "0.5").fails(2, &["--scale is for a LoRA"]);
    scaled(text(&outcome.run), "NaN").fails(2, &["-100 to 100"]);
}

#[test]
fn training_goes_on_from_an_adapter() {
    let place = Place::new();
    place.tiny("base.gguf", Family::Llama, DType::F32);
    let small = &["lora.rank=4", "lora.targets=['*_proj']", "lora.alpha=4"];
    let first = train(config(&place, "first", "lora", small));
    let init = format!("lora.init='{}'", first.run.display());
    let second = train(config(&place, "second", "lora", &[&init]));
    assert_eq!(second.valid_loss_before, first.valid_loss);
    assert!(second.valid_loss < first.valid_loss);
    let record = run::read_record(&second.run).unwrap();
    assert_eq!(record.lora.unwrap().rank, 4);
    fails(
        config(&place, "no", "lora", &[&init, "lora.rank=8"]),
        &["lora.init", "rank 4", "leave rank"],
    );
    fails(
        config(&place, "no", "lora", &[&init, "lora.targets=['attn_q']"]),
        &["lora.init", "leave targets out"],
    );
    place.tiny("base.gguf", Family::Gpt2, DType::F32);
    fails(
        config(&place, "no", "lora", &[&init]),
        &["lora.init", "not the model that `base` names"],
    );
}

#[test]
fn a_lora_lies_on_a_folder_of_the_hub_or_on_a_run() {
    let place = Place::new();
    place.tiny("base.gguf", Family::Llama, DType::F32);
    for (name, bytes) in hub_files(Family::Llama) {
        place.write(&format!("hub/{name}"), bytes);
    }
    let on = |name: &str, base: &Path| {
        let key = format!("base='{}'", base.display());
        config(&place, name, "lora", &[&key])
    };
    let over_file = train(config(&place, "over-file", "lora", &[]));
    let over_hub = train(on("over-hub", &place.path("hub")));
    assert_eq!(over_hub.valid_loss, over_file.valid_loss);
    same_tensors(&over_hub.run, &over_file.run);
    // A LoRA on a LoRA begins where that ended.
    let second = train(on("second", &over_file.run));
    let (before, after) = (
        second.valid_loss_before.unwrap(),
        over_file.valid_loss.unwrap(),
    );
    assert!((before - after).abs() < 1e-5, "{before}, {after}");
    assert!(second.valid_loss < second.valid_loss_before);
    assert!(model::open(text(&second.run)).is_ok());
    // And on a run that trained all weights.
    let full = train(config(&place, "full", "full", &[]));
    let third = train(on("third", &full.run));
    assert_eq!(third.valid_loss_before, full.valid_loss);
    // A base that has changed is named.
    fs::copy(
        third.run.join(run::ADAPTER_FILE),
        over_file.run.join(run::ADAPTER_FILE),
    )
    .unwrap();
    let error = format!("{:#}", run::load_run(&second.run).unwrap_err());
    assert!(
        error.contains("is not the model that this LoRA was trained on"),
        "{error}"
    );
}

/// The held-out loss of the file that export writes, by the trainer's own arithmetic on its dequantised values.
fn loss_of_export(place: &Place, outcome: &Outcome, quant: &str) -> f64 {
    let out = place.path(&format!("{quant}.gguf"));
    let args = [
        "export",
        text(&outcome.run),
        "--quant",
        quant,
        "--force",
        "-o",
        text(&out),
    ];
    place.run(&args).ok();
    let exported = model::open(text(&out)).unwrap();
    let spec = &exported.info.spec;
    let values = start::parameters_of(&exported.gguf, spec).unwrap();
    let model = Transformer::new(spec, values, None, &Device::flex().autodiff()).unwrap();
    let rows = data::read(&[place.path("rows.jsonl")], &exported.info, 64).unwrap();
    let pad = exported.info.tokenizer.eos().unwrap_or(0);
    fit::validate(&model, &rows, 2, pad, || false).unwrap()
}

#[test]
fn what_is_trained_for_a_quantisation_is_what_is_exported() {
    let scratch = "[model]\nfamily='gpt2'\nlayers=2\nwidth=32\nheads=4\nctx=128\n";
    for (family, base_type, mode, quant) in [
        (Family::Llama, DType::F32, "full", "q4_0"),
        (Family::Gpt2, DType::F32, "full", "q4_1"),
        (Family::Gpt2, DType::F32, "scratch", "q8_0"),
        (Family::Llama, DType::F32, "lora", "q4_0"),
        (Family::Gpt2, DType::Q8_0, "lora", "q4_0"),
    ] {
        let place = Place::new();
        place.tiny("base.gguf", family, base_type);
        let format = format!("qat.format='{quant}'");
        let more = [format.as_str(), "train.steps=12"];
        let config = if mode == "scratch" {
            let mut text = config(&place, "qat", "full", &more).to_toml().unwrap();
            text = text.replace("\"full\"", "\"scratch\"") + scratch;
            Config::parse(&text, &[]).unwrap()
        } else {
            config(&place, "qat", mode, &more)
        };
        let outcome = train(config);
        let what = format!("{family:?} {mode} {quant}");
        assert!(outcome.valid_loss < outcome.valid_loss_before, "{what}");
        let (measured, exported) = (
            outcome.valid_loss.unwrap(),
            loss_of_export(&place, &outcome, quant),
        );
        // The weights have the same bits; products with blocks and with values may sum in another order.
        assert!(
            (measured - exported).abs() < 1e-6,
            "{what}: {measured}, {exported}"
        );
        // It is the loss of the quantised model, and not of the weights that are kept.
        let exact = loss_of_export(&place, &outcome, "f32");
        assert!((measured - exact).abs() > 1e-6, "{what}: {exact}");
        assert_eq!(
            run::read_record(&outcome.run).unwrap().qat.as_deref(),
            Some(quant)
        );
    }
}

#[test]
fn the_quantised_view_has_the_bits_of_the_export() {
    use fledgling::{
        export::Quant,
        train::{model::visit_parameters, qat::Qat},
    };
    let place = Place::new();
    for family in [Family::Gpt2, Family::Llama] {
        place.tiny("base.gguf", family, DType::F32);
        let more = ["qat.format='q4_0'", "train.steps=3"];
        let outcome = train(config(&place, "bits", "full", &more));
        let kept = model::open(text(&outcome.run)).unwrap();
        let spec = &kept.info.spec;
        let values = start::parameters_of(&kept.gguf, spec).unwrap();
        let model = Transformer::new(spec, values, None, &Device::flex().autodiff()).unwrap();
        let view = Qat::new(spec, Quant::Q4_0).unwrap().view(&model);
        loss_of_export(&place, &outcome, "q4_0");
        let exported = model::open(text(&place.path("q4_0.gguf"))).unwrap();
        let mut expected = start::parameters_of(&exported.gguf, spec).unwrap();
        visit_parameters(&view, |name, value, trained| {
            assert!(trained, "{name}");
            let expected = expected.remove(name).unwrap();
            assert_eq!(bits(to_vec(value)), bits(expected), "{name}");
        });
        assert!(expected.is_empty());
        fs::remove_dir_all(outcome.run).unwrap();
    }
}

#[test]
fn before_its_first_step_nothing_is_quantised_in_training() {
    let place = Place::new();
    place.tiny("base.gguf", Family::Llama, DType::F32);
    let weights = |name: &str, more: &[&str]| {
        let outcome = train(config(&place, name, "full", more));
        let bytes = fs::read(outcome.run.join(run::MODEL_FILE)).unwrap();
        run::safetensors_contents(&bytes).unwrap().0
    };
    let short = ["train.steps=2", "train.schedule='constant'"];
    let plain = weights("plain", &short);
    let later = [short[0], short[1], "qat.format='q4_0'", "qat.start_step=2"];
    assert!(weights("later", &later) == plain, "other weights");
    assert!(weights("now", &later[..3]) != plain, "the same weights");
}

#[test]
fn a_rank_of_more_than_a_matrix_has_is_mentioned() {
    let place = Place::new();
    let base = place.tiny("base.gguf", Family::Llama, DType::F32);
    let rows = place.write("rows.jsonl", CHATS);
    let path = place.write(
        "run.toml",
        format!("name='a'\nmode='lora'\nbase='{base}'\n[data]\ntrain=['{rows}']\nmax_tokens=64\n[lora]\nrank=64\n"),
    );
    let ran = place.run(&["train", &path, "--dry-run", "--json"]);
    assert!(
        ran.stderr
            .contains("lora.rank = 64: more than the smaller side"),
        "{}",
        ran.stderr
    );
    ran.json();
}

/// The bytes of a frozen matrix are what core's quantisation writes.
#[test]
fn quantising_by_parts_gives_the_whole() {
    let values = wave(5000 * 64, 0.41);
    let frozen = Frozen::quantize(DType::Q4_0, &values, [5000, 64]);
    let mut bytes = Vec::new();
    quant::quantize(DType::Q4_0, &values, &mut bytes);
    let mut expected = vec![0.0; values.len()];
    quant::dequantize(DType::Q4_0, &bytes, &mut expected);
    assert_eq!(frozen.len_bytes(), bytes.len());
    assert_eq!(frozen.values(), expected);
}
