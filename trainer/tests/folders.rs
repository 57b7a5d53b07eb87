//! Folders as models: safetensors as the hub has them, and runs. All become the GGUF file that everything else knows.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::{Place, Ran, hub_files, server::Server};
use fledgling_core::{gguf::Gguf, quant::DType, spec::Family, testing::tiny_model};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FAMILIES: [Family; 4] = Family::ALL;

/// The greedy answer of a model.
fn answer(place: &Place, model: &str) -> Value {
    let args = [
        "generate",
        model,
        "--prompt",
        "Hello there",
        "--max-tokens",
        "12",
        "--json",
    ];
    place.run(&args).json()["token_ids"].clone()
}

fn write_folder(place: &Place, name: &str, files: &[(&'static str, Vec<u8>)]) -> String {
    for (file, bytes) in files {
        place.write(&format!("{name}/{file}"), bytes);
    }
    place.path(name).to_str().unwrap().to_owned()
}

#[test]
fn a_repository_of_safetensors_becomes_the_same_model() {
    for family in FAMILIES {
        let (place, server) = (Place::new(), Server::start());
        server.put_repo("owner/repo", &hub_files(family));
        Ran::of(
            place
                .command()
                .env("HF_ENDPOINT", &server.url)
                .args(["pull", "hf:owner/repo"]),
        )
        .ok();
        assert_eq!(
            place.list("home/models/owner--repo"),
            ["fledgling.json", "owner--repo.gguf"]
        );
        let original = place.tiny("original.gguf", family, DType::F32);
        assert_eq!(answer(&place, "hf:owner/repo"), answer(&place, &original));
        let ids = |model: &str| {
            place
                .run(&[
                    "tokenize",
                    model,
                    "--text",
                    "Hello, größe <|im_end|>",
                    "--json",
                ])
                .ok()
        };
        assert_eq!(ids("owner--repo"), ids(&original));
        place
            .run(&[
                "generate",
                "owner--repo",
                "--chat",
                "--prompt",
                "Hi",
                "--max-tokens",
                "2",
            ])
            .ok();
    }
}

#[test]
fn shards_and_a_missing_prefix_make_no_difference() {
    let place = Place::new();
    for (family, prefix) in [(Family::Gpt2, "transformer."), (Family::Llama, "model.")] {
        let mut files = hub_files(family);
        let (_, whole) = files.pop().unwrap();
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let mut shards = [Vec::new(), Vec::new()];
        let mut map = BTreeMap::new();
        for (i, (name, view)) in tensors.iter().enumerate() {
            let name = name.strip_prefix(prefix).unwrap_or(name).to_owned();
            map.insert(
                name.clone(),
                format!("model-0000{}-of-00002.safetensors", i % 2 + 1),
            );
            shards[i % 2].push((name, view));
        }
        for (i, shard) in shards.into_iter().enumerate() {
            let name = [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ][i];
            files.push((name, safetensors::serialize(shard, None).unwrap()));
        }
        files.push((
            "model.safetensors.index.json",
            json!({"weight_map": map}).to_string().into_bytes(),
        ));
        let folder = write_folder(&place, prefix, &files);
        let original = place.tiny("original.gguf", family, DType::F32);
        assert_eq!(answer(&place, &folder), answer(&place, &original));
    }
}

#[test]
fn an_incomplete_folder_says_what_is_missing() {
    let place = Place::new();
    let files = hub_files(Family::Llama);
    let without = |name: &str| {
        files
            .iter()
            .filter(|(file, _)| *file != name)
            .cloned()
            .collect::<Vec<_>>()
    };
    let with =
        |name: &'static str, bytes: &[u8]| [without(name), vec![(name, bytes.to_vec())]].concat();
    let mut half = files[3].1.clone();
    half.truncate(half.len() / 2);
    let mut config: Value = serde_json::from_slice(&files[0].1).unwrap();
    config["intermediate_size"] = json!(96);
    let wide = config.to_string();
    config["architectures"] = json!(["MambaForCausalLM"]);
    config["model_type"] = json!("mamba");
    let unknown = config.to_string();
    let cases: [(&str, Vec<_>, &[&str]); 7] = [
        (
            "no-tokenizer",
            without("tokenizer.json"),
            &["tokenizer.json", "save_pretrained"],
        ),
        ("no-config", without("config.json"), &["config.json"]),
        (
            "no-weights",
            without("model.safetensors"),
            &["model.safetensors"],
        ),
        (
            "half-weights",
            with("model.safetensors", &half),
            &["model.safetensors", "broken"],
        ),
        (
            "wrong-shape",
            with("config.json", wide.as_bytes()),
            &["tensor", "shape", "config.json makes it"],
        ),
        (
            "unknown",
            with("config.json", unknown.as_bytes()),
            &["mamba"],
        ),
        (
            "broken-config",
            with("config.json", b"{"),
            &["config.json", "no JSON"],
        ),
    ];
    for (name, files, says) in cases {
        let folder = write_folder(&place, name, &files);
        place.run(&["pull", &folder]).fails(1, says);
        place
            .run(&["generate", name, "--prompt", "a"])
            .fails(1, says);
        assert_eq!(
            place.list(&format!("home/models/{name}")),
            [""; 0],
            "nothing half-written is left of {name}"
        );
    }
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    place
        .run(&["generate", empty.to_str().unwrap(), "--prompt", "a"])
        .fails(1, &["holds no model"]);
}

/// A finished run with the weights of a tiny model.
fn write_run(place: &Place, name: &str, family: Family) -> String {
    let gguf = Gguf::parse(tiny_model(family, DType::F32, 7).into()).unwrap();
    let header = gguf.header();
    let spec = fledgling_core::spec::ModelSpec::from_header(header).unwrap();
    let mut metadata = header.metadata.clone();
    metadata.set("fledgling.base_model", "the-base");
    let record = json!({"format": 1, "name": name, "mode": "full", "base": {"name": "b", "path": "/nowhere", "sha256": ""}, "step": 3});
    place.write(&format!("{name}/run.json"), record.to_string());
    place.write(
        &format!("{name}/header.gguf"),
        fledgling::run::header_bytes(&spec, metadata).unwrap(),
    );
    let weights =
        fledgling::run::model_bytes(&spec, |entry| Ok(gguf.tensor_f32(&entry.gguf)?)).unwrap();
    place.write(&format!("{name}/model.safetensors"), weights);
    place.path(name).to_str().unwrap().to_owned()
}

#[test]
fn a_run_is_a_model_everywhere() {
    let place = Place::new();
    for family in FAMILIES {
        let run = write_run(&place, "run", family);
        let original = place.tiny("original.gguf", family, DType::F32);
        assert_eq!(answer(&place, &run), answer(&place, &original));
        place
            .run(&[
                "export", &run, "--quant", "q8_0", "-o", "run.gguf", "--force",
            ])
            .ok();
        place
            .run(&[
                "export",
                &original,
                "--quant",
                "q8_0",
                "-o",
                "direct.gguf",
                "--force",
            ])
            .ok();
        assert_eq!(answer(&place, "run.gguf"), answer(&place, "direct.gguf"));
        let inspected = place.run(&["inspect", "run.gguf", "--json"]).json();
        assert_eq!(inspected["metadata"]["fledgling.base_model"], "the-base");
    }
    std::fs::remove_file(place.path("run/model.safetensors")).unwrap();
    place
        .run(&["generate", "run", "--prompt", "a"])
        .fails(1, &["run", "no weights yet", "--resume"]);
    place.write("run/run.json", "{");
    place
        .run(&["generate", "run", "--prompt", "a"])
        .fails(1, &["run.json", "broken"]);
}

#[test]
fn a_folder_for_transformers_is_the_same_model() {
    let place = Place::new();
    for family in FAMILIES {
        let name = family.name();
        let original = place.tiny(&format!("{name}.gguf"), family, DType::F32);
        let folder = place.path(name).to_str().unwrap().to_owned();
        let args = [
            "export",
            &original,
            "--format",
            "safetensors",
            "-o",
            &folder,
        ];
        let report = place.run(&[&args[..], &["--json"]].concat()).json();
        assert_eq!(report["quant"], "F32", "what the model has");
        assert_eq!(
            place.list(name),
            [
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
        assert_eq!(answer(&place, &folder), answer(&place, &original));
        let config: Value =
            serde_json::from_slice(&std::fs::read(place.path(name).join("config.json")).unwrap())
                .unwrap();
        assert_eq!(
            (&config["model_type"], &config["dtype"]),
            (&json!(name), &json!("float32"))
        );
        place.run(&args).fails(1, &["is there already", "--force"]);
        std::fs::write(place.path(name).join("README.md"), "mine").unwrap();
        place
            .run(&[&args[..], &["--force", "--quant", "bf16"]].concat())
            .ok();
        assert!(place.list(name).contains(&"README.md".to_owned()));
        let weights = std::fs::read(place.path(name).join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&weights).unwrap();
        assert!(
            tensors
                .iter()
                .all(|(_, view)| view.dtype() == safetensors::Dtype::BF16)
        );
        place
            .run(&[
                "generate",
                &folder,
                "--chat",
                "--prompt",
                "Hi",
                "--max-tokens",
                "2",
            ])
            .ok();
    }
}

#[test]
fn large_models_are_written_in_shards() {
    let place = Place::new();
    let original = place.tiny("original.gguf", Family::Qwen3, DType::F32);
    let model = fledgling::model::open(&original).unwrap();
    let folder = place.path("sharded");
    let written = fledgling::hf_folder::write(&model, &folder, DType::F32, 200_000, false).unwrap();
    let shards = written
        .files
        .iter()
        .filter(|file| file.ends_with(".safetensors"));
    assert!(shards.clone().count() > 2, "{:?}", written.files);
    for shard in shards {
        let len_bytes = folder.join(shard).metadata().unwrap().len();
        assert!(len_bytes < 210_000, "{shard} has {len_bytes} bytes");
    }
    let index = std::fs::read(folder.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], written.len_bytes);
    let path = folder.to_str().unwrap().to_owned();
    assert_eq!(answer(&place, &path), answer(&place, &original));

    // A model of one file over it: the old shards must not be left behind.
    fledgling::hf_folder::write(&model, &folder, DType::F16, u64::MAX, true).unwrap();
    assert!(
        !place
            .list("sharded")
            .iter()
            .any(|file| file.contains("-of-"))
    );
    assert!(
        !place
            .list("sharded")
            .contains(&"model.safetensors.index.json".to_owned())
    );
    answer(&place, &path);
}

#[test]
fn what_cannot_be_written_says_so() {
    let place = Place::new();
    let original = place.tiny("original.gguf", Family::Gpt2, DType::F32);
    let out = place.path("out").to_str().unwrap().to_owned();
    let export = |more: &[&str]| place.run(&[&["export", &original, "-o", &out], more].concat());
    export(&[]).fails(2, &["--quant q8_0"]);
    export(&["--format", "safetensors", "--quant", "q4_0"]).fails(2, &["--format gguf"]);
    assert!(!place.path("out").exists());
    place.write("out", b"a file");
    export(&["--format", "safetensors", "--force"]).fails(1, &["is no folder"]);
}

#[test]
fn scaled_rotary_frequencies_go_there_and_back() {
    let place = Place::new();
    let scaling = json!({
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let mut files = hub_files(Family::Llama);
    let mut config: Value = serde_json::from_slice(&files[0].1).unwrap();
    config["rope_theta"] = json!(100.0);
    config["rope_scaling"] = scaling.clone();
    files[0].1 = config.to_string().into_bytes();
    let folder = write_folder(&place, "scaled", &files);
    let spec = fledgling::model::open(&folder).unwrap().info.spec;
    let factors = spec.rope_freqs_tensor().expect("divisors that differ");
    assert!(factors[0] < 1.01 && factors[7] > 3.9, "{factors:?}");

    let (gguf, back) = (place.path("scaled.gguf"), place.path("back"));
    let (gguf, back) = (gguf.to_str().unwrap(), back.to_str().unwrap());
    place
        .run(&["export", &folder, "--quant", "f32", "-o", gguf])
        .ok();
    place
        .run(&["export", gguf, "--format", "safetensors", "-o", back])
        .ok();
    let config = std::fs::read(place.path("back").join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["rope_scaling"], scaling);
    let expected = answer(&place, &folder);
    assert_eq!(answer(&place, gguf), expected);
    assert_eq!(answer(&place, back), expected);
}

/// A tokenizer for the fixtures' 96 tokens: the bytes that stand for themselves.
fn tokenizer_of_bytes() -> Vec<u8> {
    let vocab: BTreeMap<String, usize> = ('!'..='~')
        .chain(['\u{120}', '\u{10a}'])
        .enumerate()
        .map(|(id, c)| (c.to_string(), id))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": null, "truncation": null, "padding": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    })
    .to_string()
    .into_bytes()
}

/// What torch.save wrote is the same model from a folder and from the hub.
#[test]
fn files_of_pytorch_are_models() {
    for name in ["pytorch-one", "pytorch-shards"] {
        let (place, server) = (Place::new(), Server::start());
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures")
            .join(name);
        let mut files = vec![("tokenizer.json", tokenizer_of_bytes())];
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.push((file.leak(), std::fs::read(&path).unwrap()));
        }
        server.put_repo("owner/repo", &files);
        Ran::of(
            place
                .command()
                .env("HF_ENDPOINT", &server.url)
                .args(["pull", "hf:owner/repo"]),
        )
        .ok();
        let folder = write_folder(&place, name, &files);
        let ids = |model: &str| {
            let args = [
                "generate",
                model,
                "--prompt",
                "Hello",
                "--max-tokens",
                "8",
                "--json",
            ];
            place.run(&args).json()["token_ids"].clone()
        };
        assert_eq!(ids(&folder).as_array().unwrap().len(), 8);
        assert_eq!(ids(&folder), ids("owner--repo"));

        let (_, weights) = files
            .iter_mut()
            .find(|(file, _)| file.starts_with("pytorch_model") && !file.contains("index"))
            .unwrap();
        weights.truncate(weights.len() / 2);
        let broken = write_folder(&place, "broken", &files);
        place
            .run(&["generate", &broken, "--prompt", "x"])
            .fails(1, &["pytorch_model", "broken"]);
    }
}
