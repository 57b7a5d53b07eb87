//! Where a model comes from, as keys of its file (docs/gguf-keys.md): the base, how and on what it was trained, how it was
//! exported, and the figures of the training data that drift is measured against.

use crate::{
    cache::Cache,
    model::Model,
    output::note,
    profile::Profile,
    report::{history::History, text::date},
    run::{self, CONFIG_FILE, METRICS_FILE, Record},
    sums::sha256_hex,
};
use anyhow::{Context, Result};
use fledgling_core::gguf::{Array, Metadata, Value};
use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// How the keys begin that are Fledgling's own.
pub const PREFIX: &str = "fledgling.";
/// Optimiser steps that the recorded training loss is the mean of.
const N_LAST_STEPS: usize = 10;
/// What a run's metadata say of its base, and stays.
const OF_TRAINING: [&str; 2] = ["fledgling.base_model", crate::export::QAT_KEY];
/// What is true of one file only, and never of one made from it.
const OF_ONE_FILE: [&str; 3] = ["fledgling.export.", "fledgling.eval.", "fledgling.probe."];

/// How a file is made.
#[derive(Debug, Clone, Default)]
pub struct Export {
    /// The recipe's name.
    pub recipe: String,
    /// Exceptions, `PATTERN=TYPE`.
    pub overrides: Vec<String>,
    /// What the types were chosen for, where they were: a size or a divergence.
    pub limit: Option<String>,
    /// `feedback`, `search` or `nearest`.
    pub rounding: &'static str,
    /// SHA-256 of the importance matrix, where there was one.
    pub importance_sha256: Option<String>,
    /// When, in seconds since 1970: [`export_time`].
    pub unix_seconds: u64,
}

/// The time that a file says it was made at: `SOURCE_DATE_EPOCH` where it is set, so that an export can be repeated to the bit on another
/// day (reproducible-builds.org), else now.
pub fn export_time() -> u64 {
    let asked = std::env::var("SOURCE_DATE_EPOCH").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs())
    })
}

/// Completes the keys of a file that is made of `model`; `run` is the folder of the run whose weights or LoRA these are.
///
/// # Errors
/// When a file of the run is broken.
pub fn complete(
    metadata: &mut Metadata,
    model: &Model,
    run: Option<&Path>,
    export: &Export,
) -> Result<()> {
    let kept = |key: &str| match run {
        // What the base's file says of its own training is not of this one.
        Some(_) => !key.starts_with(PREFIX) || OF_TRAINING.contains(&key),
        None => !OF_ONE_FILE.iter().any(|prefix| key.starts_with(prefix)),
    };
    for key in keys(metadata).into_iter().filter(|key| !kept(key)) {
        metadata.remove(&key);
    }
    general(metadata, model);
    if let Some(folder) = run {
        let record = run::read_record(folder)?;
        of_base(metadata, &record);
        of_run(metadata, folder, &record)?;
    }
    metadata.set("fledgling.version", env!("CARGO_PKG_VERSION"));
    metadata.set("fledgling.export.recipe", export.recipe.as_str());
    metadata.set("fledgling.export.rounding", export.rounding);
    if !export.overrides.is_empty() {
        let overrides = export.overrides.iter().collect();
        metadata.set("fledgling.export.overrides", Array::String(overrides));
    }
    if let Some(limit) = &export.limit {
        metadata.set("fledgling.export.limit", limit.as_str());
    }
    if let Some(sum) = &export.importance_sha256 {
        metadata.set("fledgling.export.importance_sha256", sum.as_str());
    }
    // The day: two exports of one day are the same to the bit.
    let date = date(export.unix_seconds as f64);
    let day = date.split(' ').next().unwrap_or_default();
    metadata.set("fledgling.export.date", day);
    Ok(())
}

fn keys(metadata: &Metadata) -> Vec<String> {
    metadata.iter().map(|(key, _)| key.to_owned()).collect()
}

fn set_missing(metadata: &mut Metadata, key: &str, value: impl Into<Value>) {
    if metadata.get(key).is_none() {
        metadata.set(key, value);
    }
}

/// What every tool shows.
fn general(metadata: &mut Metadata, model: &Model) {
    set_missing(metadata, "general.type", "model");
    set_missing(metadata, "general.name", model.info.name.as_str());
    let tensors = &model.gguf.header().tensors;
    let n_parameters = tensors
        .iter()
        .map(|info| info.shape.iter().product::<u64>())
        .sum();
    set_missing(metadata, "general.size_label", size_label(n_parameters));
}

/// `135M`, `1.5B`: two digits at least, as llama.cpp's converter has it (`gguf-py/gguf/utility.py`).
fn size_label(n_parameters: u64) -> String {
    let n = n_parameters as f64;
    let (scaled, unit) = match n_parameters {
        1_000_000_000_000.. => (n / 1e12, "T"),
        1_000_000_000.. => (n / 1e9, "B"),
        1_000_000.. => (n / 1e6, "M"),
        _ => (n / 1e3, "K"),
    };
    let digits = usize::from(scaled.round() < 10.0);
    format!("{scaled:.digits$}{unit}")
}

/// The model that a run started from; from scratch there is none.
fn of_base(metadata: &mut Metadata, record: &Record) {
    if record.mode == "scratch" {
        return;
    }
    metadata.set("fledgling.base_model.sha256", record.base.sha256.as_str());
    // The base's own name, where its file gives one.
    let name = metadata.str("fledgling.base_model").map(str::to_owned);
    let name = name.unwrap_or_else(|| record.base.name.clone());
    for key in keys(metadata) {
        if key.starts_with("general.base_model.") {
            metadata.remove(&key);
        }
    }
    metadata.set("general.base_model.count", 1_u32);
    metadata.set("general.base_model.0.name", name);
    let entry = Cache::open()
        .ok()
        .and_then(|cache| cache.find(&record.base.name));
    let repo = entry.as_ref().and_then(|entry| {
        let repo = entry.source.strip_prefix("hf:")?;
        repo.split_once('/')
    });
    if let Some((owner, repo)) = repo {
        // `REPO@REVISION/FILE.gguf`
        let repo = repo.split(['@', '/']).next().unwrap_or(repo);
        metadata.set("general.base_model.0.organization", owner);
        let url = format!("https://huggingface.co/{owner}/{repo}");
        metadata.set("general.base_model.0.repo_url", url);
    }
}

/// How a run trained, and on what.
fn of_run(metadata: &mut Metadata, folder: &Path, record: &Record) -> Result<()> {
    metadata.set("fledgling.run.name", record.name.as_str());
    metadata.set("fledgling.run.mode", record.mode.as_str());
    metadata.set("fledgling.run.step", record.step);
    if let Some(device) = &record.device {
        metadata.set("fledgling.run.device", device.as_str());
    }
    if let Some(lora) = record.lora {
        metadata.set("fledgling.train.lora_rank", lora.rank as u32);
        metadata.set("fledgling.train.lora_alpha", lora.alpha);
    }
    let data = of_config(metadata, &folder.join(CONFIG_FILE))?;
    if let Some(loss) = last_loss(&folder.join(METRICS_FILE), record.step) {
        metadata.set("fledgling.train.loss", loss);
    }
    for (key, perplexity) in [
        (
            "fledgling.train.valid_loss_before",
            record.valid_perplexity_before,
        ),
        ("fledgling.train.valid_loss", record.valid_perplexity),
    ] {
        if let Some(perplexity) = perplexity {
            metadata.set(key, perplexity.ln());
        }
    }
    match Profile::of_run(folder, &data) {
        Ok(Some(profile)) => of_data(metadata, &profile),
        Ok(None) => {}
        // A model is worth exporting without them, too.
        Err(error) => note(format!(
            "the file will have no figures of the training data: {error:#}"
        )),
    }
    Ok(())
}

/// The main settings, and the SHA-256 of all of them. The paths of the training data.
fn of_config(metadata: &mut Metadata, path: &Path) -> Result<Vec<PathBuf>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let config: toml::Table = text
        .parse()
        .with_context(|| format!("{} is broken", path.display()))?;
    metadata.set("fledgling.train.config_sha256", sha256_hex(text.as_bytes()));
    let section = |name: &str| config.get(name).and_then(toml::Value::as_table);
    let train = section("train");
    let settings = [
        "epochs",
        "steps",
        "batch",
        "accumulate",
        "optimizer",
        "lr",
        "schedule",
        "weight_decay",
        "dtype",
    ]
    .map(|key| (key, train.and_then(|train| train.get(key))));
    let others = [
        ("seed", config.get("seed")),
        (
            "max_tokens",
            section("data").and_then(|data| data.get("max_tokens")),
        ),
    ];
    for (key, value) in settings.into_iter().chain(others) {
        let key = format!("fledgling.train.{key}");
        match value {
            Some(toml::Value::Integer(n)) => metadata.set(key, *n),
            Some(toml::Value::Float(x)) => metadata.set(key, *x),
            Some(toml::Value::String(text)) => metadata.set(key, text.as_str()),
            _ => {}
        }
    }
    let paths = section("data").and_then(|data| data.get("train")?.as_array());
    let paths = paths.into_iter().flatten().filter_map(toml::Value::as_str);
    Ok(paths.map(PathBuf::from).collect())
}

/// The mean loss of the last steps up to `step`.
fn last_loss(path: &Path, step: u64) -> Option<f64> {
    let history = History::read(path).ok()?;
    let steps = history.steps.iter().map(|at| at.event);
    let losses: Vec<f64> = steps
        .filter(|event| event.step <= step && event.loss.is_finite())
        .map(|event| event.loss)
        .collect();
    let last = &losses[losses.len().saturating_sub(N_LAST_STEPS)..];
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}

fn of_data(metadata: &mut Metadata, profile: &Profile) {
    for (key, sum) in [
        ("fledgling.data.train_sha256", &profile.train_sha256),
        ("fledgling.data.valid_sha256", &profile.valid_sha256),
    ] {
        if let Some(sum) = sum {
            metadata.set(key, sum.as_str());
        }
    }
    metadata.set("fledgling.data.rows", profile.rows);
    metadata.set("fledgling.data.rows_seen", profile.rows_seen);
    metadata.set("fledgling.data.tokens", profile.tokens);
    metadata.set("fledgling.data.counted", profile.counted);
    let (ids, counts): (Vec<u32>, Vec<u64>) = profile.ids.iter().copied().unzip();
    metadata.set("fledgling.data.histogram.ids", ids);
    metadata.set("fledgling.data.histogram.counts", counts);
    metadata.set("fledgling.data.histogram.other", profile.other);
    for (key, lengths) in [
        ("fledgling.data.prompt_lengths", &profile.prompt_lengths),
        ("fledgling.data.answer_lengths", &profile.answer_lengths),
    ] {
        if !lengths.is_empty() {
            metadata.set(key, lengths.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_called_as_llama_cpp_calls_them() {
        for (n, label) in [
            (134_515_008, "135M"),
            (1_543_714_304, "1.5B"),
            (7_241_732_096, "7.2B"),
            (70_553_706_496, "71B"),
            (269_000, "269K"),
            (1_200_000_000_000, "1.2T"),
        ] {
            assert_eq!(size_label(n), label);
        }
    }

    #[test]
    fn a_run_says_how_it_trained() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let record = r#"{"format":1,"name":"mine","mode":"lora","base":{"name":"a-base","path":"/gone","sha256":"00ff"},
            "lora":{"rank":8,"alpha":16.0},"step":30,"valid_perplexity_before":4.0,"valid_perplexity":2.0}"#;
        write(run::RECORD_FILE, record);
        let config = "seed = 5\n[data]\ntrain = [\"gone.jsonl\"]\nmax_tokens = 256\n[train]\nlr = 0.001\nbatch = 8\noptimizer = \"adamw\"\n";
        write(CONFIG_FILE, config);
        let step = |step: u64, loss: f64| {
            format!("{{\"time\":1.0,\"event\":\"step\",\"step\":{step},\"loss\":{loss}}}\n")
        };
        write(
            METRICS_FILE,
            &(1..=40).map(|n| step(n, n as f64)).collect::<String>(),
        );
        let profile = Profile {
            tokens: 9,
            ids: vec![(7, 5), (3, 4)],
            prompt_lengths: vec![0, 1],
            ..Profile::default()
        };
        std::fs::write(
            dir.path().join(crate::profile::PROFILE_FILE),
            profile.to_json().unwrap(),
        )
        .unwrap();

        let mut metadata = Metadata::new();
        metadata.set("fledgling.base_model", "Its Own Name");
        let record = run::read_record(dir.path()).unwrap();
        of_base(&mut metadata, &record);
        of_run(&mut metadata, dir.path(), &record).unwrap();
        let text = |key: &str| metadata.str(key).unwrap_or_default().to_owned();
        let float = |key: &str| metadata.f64(key).unwrap_or(f64::NAN);
        assert_eq!(text("general.base_model.0.name"), "Its Own Name");
        assert_eq!(text("fledgling.base_model.sha256"), "00ff");
        assert_eq!(text("fledgling.run.mode"), "lora");
        assert_eq!(text("fledgling.train.optimizer"), "adamw");
        assert_eq!(
            text("fledgling.train.config_sha256"),
            sha256_hex(config.as_bytes())
        );
        assert_eq!(metadata.u64("fledgling.train.seed"), Some(5));
        assert_eq!(metadata.u64("fledgling.train.lora_rank"), Some(8));
        assert!((float("fledgling.train.lr") - 0.001).abs() < 1e-12);
        // Of the steps 21 to 30, where the weights are of.
        assert!((float("fledgling.train.loss") - 25.5).abs() < 1e-12);
        assert!((float("fledgling.train.valid_loss") - 2.0_f64.ln()).abs() < 1e-12);
        assert_eq!(
            metadata.ints("fledgling.data.histogram.ids"),
            Some(vec![7, 3])
        );
        assert_eq!(
            metadata.ints("fledgling.data.histogram.counts"),
            Some(vec![5, 4])
        );
        assert_eq!(
            metadata.ints("fledgling.data.prompt_lengths"),
            Some(vec![0, 1])
        );
        assert_eq!(metadata.get("fledgling.data.answer_lengths"), None);
    }
}
