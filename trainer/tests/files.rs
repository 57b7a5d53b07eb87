//! Model files as the command writes, shows and checks them: parts, provenance, what they record of themselves.

mod common;

use common::Place;
use fledgling_core::{quant::DType, spec::Family};
use serde_json::Value;

/// A text that the tiny models have more than a window of.
fn text(place: &Place) -> String {
    place.write(
        "text.txt",
        "the cat and the hat and the other thing ".repeat(60),
    )
}

#[test]
fn a_model_in_parts_is_the_model() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let export = |more: &[&str]| {
        let args = [&["export", &source, "--quant", "q8_0", "--json"], more].concat();
        place.run(&args).json()
    };
    export(&["-o", "whole.gguf"]);
    let parts = export(&[
        "-o",
        "out/parts.gguf",
        "--max-shard-size",
        "40kB",
        "--manifest",
    ]);
    let files = parts["files"].as_array().unwrap();
    assert!(files.len() >= 3, "{parts}");
    assert_eq!(parts["path"], files[0]);
    let count = files.len();
    let first = format!("out/parts-00001-of-{count:05}.gguf");
    assert_eq!(parts["path"], first.as_str());
    for file in files {
        let len = std::fs::metadata(place.path(file.as_str().unwrap()))
            .unwrap()
            .len();
        assert!(len <= 40_000, "{file}: {len}");
    }
    let generate = |model: &str| {
        let args = [
            "generate",
            model,
            "--prompt",
            "the",
            "--max-tokens",
            "8",
            "--temperature",
            "0",
            "--json",
        ];
        place.run(&args).json()["token_ids"].clone()
    };
    let whole = generate("whole.gguf");
    let last = format!("out/parts-{count:05}-of-{count:05}.gguf");
    // The first, another one, the common name with and without its ending.
    for name in [&first, &last, "out/parts", "out/parts.gguf"] {
        assert_eq!(generate(name), whole, "{name}");
    }
    let text = text(&place);
    let evaluated = |model: &str| {
        let args = [
            "eval", model, "--text", &text, "--window", "64", "--stride", "64", "--json",
        ];
        place.run(&args).json()["models"][0]["perplexity"].clone()
    };
    assert_eq!(evaluated(&last), evaluated("whole.gguf"));
    let inspect = |model: &str| place.run(&["inspect", model, "--json"]).json();
    let (of_parts, of_whole) = (inspect(&last), inspect("whole.gguf"));
    assert_eq!(of_parts["files"].as_array().unwrap().len(), count);
    assert_eq!(of_parts["metadata"]["split.count"], Value::Null);
    assert_eq!(of_parts["n_parameters"], of_whole["n_parameters"]);
    assert_eq!(
        of_parts["memory"]["cpu"][0]["kv_bytes"],
        of_whole["memory"]["cpu"][0]["kv_bytes"]
    );
    // Put together again, it is what was exported at once.
    let args = ["export", &first, "--quant", "q8_0", "-o", "joined.gguf"];
    place.run(&args).ok();
    assert_eq!(generate("joined.gguf"), whole);
    assert_eq!(
        place
            .run(&["tokenize", &last, "--text", "the cat", "--json"])
            .json(),
        place
            .run(&["tokenize", "whole.gguf", "--text", "the cat", "--json"])
            .json()
    );

    let verified = place.run(&["verify", &last, "--json"]).json();
    assert_eq!(
        (&verified["sum"], &verified["probe"]),
        (&"equal".into(), &"equal".into())
    );
    assert_eq!(verified["files"].as_array().unwrap().len(), count);
    let sums = std::fs::read_to_string(place.path("out/parts.gguf.sha256")).unwrap();
    assert_eq!(sums.lines().count(), count);
    let zeros = "0".repeat(64);
    place
        .run(&["verify", &first, "--sha256", &zeros])
        .fails(2, &["--sha256 is for one file"]);
}

#[test]
fn parts_that_are_missing_damaged_or_of_another_model_are_named() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let export = |out: &str, quant: &str| {
        let args = [
            "export",
            &source,
            "--quant",
            quant,
            "-o",
            out,
            "--max-shard-size",
            "40kB",
            "--manifest",
            "--json",
        ];
        let parts = place.run(&args).json();
        parts["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| file.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let files = export("a.gguf", "q8_0");
    let count = files.len();
    let second = place.path(&files[1]);
    let bytes = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    for args in [
        &["generate", "a", "--prompt", "x"][..],
        &["inspect", "a.gguf"],
        &["verify", &files[2]],
        &["export", &files[0], "--quant", "q4_0", "-o", "out.gguf"],
        &["serve", &files[0], "--port", "0"],
    ] {
        place.run(args).fails(
            1,
            &[
                &format!("1 of the model's {count} parts are missing"),
                &files[1],
            ],
        );
    }
    let mut damaged = bytes.clone();
    let at = damaged.len() - 1;
    damaged[at] ^= 0x55;
    std::fs::write(&second, &damaged).unwrap();
    place
        .run(&["verify", "a"])
        .fails(1, &[&files[1], "a.gguf.sha256", "damaged"]);
    // Of an export whose header is another one, but that was cut alike.
    let args = [
        "export",
        &source,
        "--quant",
        "q8_0",
        "-o",
        "b.gguf",
        "--max-shard-size",
        "40kB",
        "--tensor",
        "output.weight=q8_0",
    ];
    place.run(&args).ok();
    std::fs::copy(place.path(&files[1].replace("a-", "b-")), &second).unwrap();
    place
        .run(&["generate", "a", "--prompt", "x"])
        .fails(1, &[&files[1], "another model"]);
    std::fs::write(&second, &bytes).unwrap();
    place.run(&["verify", "a"]).ok();
    std::fs::rename(place.path(&files[0]), place.path("first.gguf")).unwrap();
    place
        .run(&["inspect", "first.gguf"])
        .fails(1, &["first.gguf", "is not called so"]);
    // A second set beside it: the name alone does not tell.
    std::fs::copy(
        place.path("first.gguf"),
        place.path("a-00001-of-00099.gguf"),
    )
    .unwrap();
    place
        .run(&["inspect", "a"])
        .fails(2, &["split more than once", "a-00001-of-00099.gguf"]);
}

#[test]
fn parts_replace_parts_and_nothing_else() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let export = |size: &str, more: &[&str]| {
        let args = [
            &[
                "export",
                &source,
                "--quant",
                "q8_0",
                "-o",
                "out/m.gguf",
                "--max-shard-size",
                size,
            ],
            more,
        ]
        .concat();
        place.run(&args)
    };
    export("40kB", &[]).ok();
    let before = place.list("out");
    assert!(before.len() >= 3);
    export("50kB", &[]).fails(1, &["m-00001-of-", "--force"]);
    assert_eq!(place.list("out"), before);
    place.write("out/m-other.gguf", "of somebody else");
    export("60kB", &["--force"]).ok();
    let after = place.list("out");
    assert!(
        after.len() <= before.len() && after.contains(&"m-other.gguf".to_owned()),
        "{after:?}"
    );
    assert!(
        after.iter().all(|name| name == "m-other.gguf"
            || name.ends_with(&format!("-of-{:05}.gguf", after.len() - 1))),
        "{after:?}"
    );
    place
        .run(&["generate", "out/m", "--prompt", "a", "--max-tokens", "2"])
        .ok();
    // All in one file, which has the plain name.
    export("10MB", &["--force"]).ok();
    assert_eq!(place.list("out"), ["m-other.gguf", "m.gguf"]);

    let ran = export("20kB", &["--force"]);
    assert!(
        ran.stderr
            .contains("the tensor `token_embd.weight` alone makes a file of"),
        "{}",
        ran.stderr
    );
    ran.ok();
    export("40XB", &["--force"]).fails(2, &["40MB"]);
    let args = [
        "export",
        &source,
        "--quant",
        "q8_0",
        "-o",
        "out/m-00001-of-00002.gguf",
        "--max-shard-size",
        "1MB",
    ];
    place.run(&args).fails(2, &["without the numbers"]);
    let args = [
        "export",
        &source,
        "--format",
        "safetensors",
        "-o",
        "hf",
        "--max-shard-size",
        "1MB",
    ];
    place.run(&args).fails(2, &["--format gguf"]);
}

#[test]
fn a_file_reproduces_what_it_recorded_or_verify_says_what_differs() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let text = text(&place);
    let args = [
        "export",
        &source,
        "--quant",
        "q4_0",
        "-o",
        "m.gguf",
        "--evaluate",
        &text,
        "--evaluate-tokens",
        "512",
        "--json",
    ];
    let exported = place.run(&args).json();
    let kl = exported["evaluation"]["kl"].as_f64().unwrap();
    assert!(kl > 0.0, "{exported}");
    let verify = |more: &[&str]| place.run(&[&["verify", "m.gguf", "--json"], more].concat());
    let verified = verify(&[]).json();
    assert_eq!(
        (&verified["probe"], &verified["evaluation"]),
        (&"equal".into(), &"not repeated".into())
    );
    for threads in ["1", "3"] {
        let verified = verify(&["--text", &text, "--threads", threads]).json();
        assert_eq!(verified["evaluation"], "equal");
        assert_eq!(verified["perplexity"], exported["evaluation"]["perplexity"]);
    }
    // The window is the tiny model's context.
    let args = [
        "eval",
        "m.gguf",
        "--text",
        &text,
        "--window",
        "128",
        "--stride",
        "128",
        "--max-windows",
        "4",
        "--reference",
        &source,
        "--json",
    ];
    let evaluated = place.run(&args).json();
    assert_eq!(
        evaluated["models"][0]["perplexity"],
        exported["evaluation"]["perplexity"]
    );
    assert!(
        place
            .run(&["inspect", "m.gguf"])
            .ok()
            .contains("recorded: perplexity")
    );

    let other = place.write(
        "other.txt",
        "another text, with other words in it ".repeat(50),
    );
    verify(&["--text", &other]).fails(1, &["other.txt is not the text of the recorded evaluation"]);
    place
        .run(&["verify", &source, "--text", &text])
        .fails(2, &["no evaluation recorded", "--evaluate"]);
}

#[test]
fn a_file_whose_weights_were_changed_is_told_from_what_it_recorded() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    place
        .run(&["export", &source, "--quant", "q4_0", "-o", "m.gguf"])
        .ok();
    // Values of a norm, turned round and larger: all of them numbers, and another model.
    let path = place.path("m.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let inspected = place.run(&["inspect", "m.gguf", "--json"]).json();
    let tensors = inspected["tensors"].as_array().unwrap();
    let norm = tensors
        .iter()
        .find(|tensor| tensor["name"] == "blk.1.ffn_norm.weight")
        .unwrap();
    let start = norm["offset_bytes"].as_u64().unwrap() as usize;
    for i in 0..32 {
        let at = start + 4 * i;
        let value = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&(-3.0 * value).to_le_bytes());
    }
    std::fs::write(&path, &bytes).unwrap();
    place.run(&["verify", "m.gguf"]).fails(
        1,
        &[
            "m.gguf",
            "probe is not reproduced",
            "the weights were changed",
        ],
    );
}

#[test]
fn an_empty_text_records_nothing() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    let empty = place.write("empty.txt", "");
    let args = [
        "export",
        &source,
        "--quant",
        "q4_0",
        "-o",
        "x.gguf",
        "--evaluate",
        &empty,
    ];
    place
        .run(&args)
        .fails(1, &["empty.txt", "at least two tokens"]);
    assert!(!place.path("x.gguf").exists());
}

#[test]
fn exports_say_where_they_come_from_and_repeat_to_the_bit() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Gpt2, DType::F32);
    let export = |source: &str, out: &str, more: &[&str]| {
        let args = [&["export", source, "-o", out, "--quant"], more].concat();
        let mut command = place.command();
        let ran = command
            .args(&args)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    };
    export(&source, "a.gguf", &["q4_0", "--tensor", "blk.0.*=q8_0"]);
    export(&source, "b.gguf", &["q4_0", "--tensor", "blk.0.*=q8_0"]);
    let bytes = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert!(bytes("a.gguf") == bytes("b.gguf"), "two exports differ");
    let metadata =
        |name: &str| place.run(&["inspect", name, "--json", "--full"]).json()["metadata"].clone();
    let of_a = metadata("a.gguf");
    assert_eq!(of_a["fledgling.export.date"], "2023-11-14");
    assert_eq!(of_a["fledgling.export.recipe"], "q4_0");
    assert_eq!(of_a["fledgling.export.rounding"], "search");
    assert_eq!(
        of_a["fledgling.export.overrides"],
        serde_json::json!(["blk.0.*=q8_0"])
    );
    assert_eq!(of_a["general.type"], "model");
    assert!(of_a["general.size_label"].as_str().unwrap().ends_with('K'));
    assert_eq!(of_a["fledgling.probe.prompts"].as_array().unwrap().len(), 2);
    assert_eq!(
        of_a["fledgling.probe.n_token_ids"],
        serde_json::json!([16, 16])
    );
    // What is true of one file does not go into one made of it.
    export("a.gguf", "c.gguf", &["q8_0"]);
    let of_c = metadata("c.gguf");
    assert_eq!(of_c["fledgling.export.recipe"], "q8_0");
    assert_eq!(of_c["fledgling.export.overrides"], Value::Null);
    place.run(&["verify", "c.gguf"]).ok();
}

#[test]
fn inspect_shows_safetensors_and_folders() {
    let place = Place::new();
    let source = place.tiny("source.gguf", Family::Llama, DType::F32);
    place
        .run(&[
            "export",
            &source,
            "--format",
            "safetensors",
            "--quant",
            "f16",
            "-o",
            "hf",
        ])
        .ok();
    let inspect = |what: &str| place.run(&["inspect", what, "--json"]).json();
    let (folder, file, gguf) = (
        inspect("hf"),
        inspect("hf/model.safetensors"),
        inspect("source.gguf"),
    );
    assert_eq!(
        (&folder["format"], &folder["architecture"]),
        (&"safetensors".into(), &"llama".into())
    );
    assert_eq!(folder["n_parameters"], gguf["n_parameters"]);
    assert_eq!(
        folder["tokenizer"]["vocab_size"],
        gguf["tokenizer"]["vocab_size"]
    );
    assert_eq!(folder["tokenizer"]["chat_template"], true);
    assert_eq!(
        folder["parts"]["attention"]["parameters"],
        gguf["parts"]["attention"]["parameters"]
    );
    let tensor = |name: &str| {
        let tensors = folder["tensors"].as_array().unwrap();
        tensors
            .iter()
            .find(|tensor| tensor["name"] == name)
            .unwrap()
            .clone()
    };
    let down = tensor("model.layers.0.mlp.down_proj.weight");
    assert_eq!(
        (&down["type"], down["shape"].as_array().unwrap().len()),
        (&"F16".into(), 2)
    );
    assert_eq!(file["tensors"], folder["tensors"]);
    // The same matrices in half the bytes.
    let weights = |json: &Value| json["memory"]["cpu"][0]["weights_bytes"].as_u64().unwrap();
    assert_eq!(2 * weights(&folder), weights(&gguf));

    let alone = place.write(
        "alone.safetensors",
        std::fs::read(place.path("hf/model.safetensors")).unwrap(),
    );
    assert_eq!(inspect(&alone)["memory"], Value::Null);
    let bytes = std::fs::read(&alone).unwrap();
    let cut = place.write("cut.safetensors", &bytes[..bytes.len() - 10]);
    place.run(&["inspect", &cut]).fails(1, &["cut.safetensors"]);
    std::fs::create_dir(place.path("empty")).unwrap();
    place
        .run(&["inspect", "empty"])
        .fails(1, &["empty holds no model", "model.safetensors"]);

    let shown = place.run(&["inspect", "source.gguf"]).ok();
    for says in [
        "2 layers, 64 wide",
        "tokenizer: byte-level BPE",
        "with a chat template",
        "token embedding",
        "attention",
        "memory (estimate)",
        "CPU",
        "GPU",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    place
        .run(&["export", "source.gguf", "--quant", "q5_0", "-o", "q5.gguf"])
        .ok();
    assert_eq!(inspect("q5.gguf")["memory"]["gpu"], Value::Null);
    assert!(
        place
            .run(&["inspect", "q5.gguf"])
            .ok()
            .contains("no shaders")
    );
}
