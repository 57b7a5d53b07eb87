//! What the tests of the command share: a place of their own, tiny models, and the command itself.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

pub(crate) mod s3;
pub(crate) mod server;

use fledgling_core::{
    gguf::Gguf, model::ModelInfo, quant::DType, spec::Family, testing::tiny_model,
};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// A folder of its own with the model cache in it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file and returns its path as text.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A tiny model's file.
    pub(crate) fn tiny(&self, name: &str, family: Family, dtype: DType) -> String {
        self.write(name, tiny_model(family, dtype, 7))
    }

    /// The command, with nothing of this machine's settings in it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fledgling"));
        command
            .current_dir(self.dir.path())
            .env("FLEDGLING_HOME", self.path("home"))
            .stdin(Stdio::null());
        for name in [
            "HF_ENDPOINT",
            "HF_TOKEN",
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "all_proxy",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_ENDPOINT_URL",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command().args(args))
    }

    /// Files and folders below a folder of the place, by name.
    pub(crate) fn list(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        Self::from_output(command.output().unwrap())
    }

    pub(crate) fn from_output(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// It went well; returns what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "stderr: {}", self.stderr);
        self.stdout
    }

    /// It went well and printed one line of JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let stdout = self.ok();
        assert_eq!(stdout.lines().count(), 1, "one line: {stdout}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// It failed with this status, said each of `parts` in one error, and printed nothing.
    #[track_caller]
    pub(crate) fn fails(self, status: i32, parts: &[&str]) {
        assert_eq!(
            self.status, status,
            "stdout: {} stderr: {}",
            self.stdout, self.stderr
        );
        assert_eq!(self.stdout, "", "an error leaves standard output empty");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "`{part}` is not in: {}",
                self.stderr
            );
        }
    }
}

/// The files of the hub's repository of a tiny model: the same weights and tokenizer as [`Place::tiny`] in f32.
pub(crate) fn hub_files(family: Family) -> Vec<(&'static str, Vec<u8>)> {
    let gguf = Gguf::parse(tiny_model(family, DType::F32, 7).into()).unwrap();
    let info = ModelInfo::from_header(gguf.header()).unwrap();
    let eos = info.tokenizer.eos().unwrap();
    let tokenizer_config = serde_json::json!({
        "eos_token": info.tokenizer.decode(&[eos], false),
        "chat_template": gguf.header().metadata.str("tokenizer.chat_template").unwrap(),
    });
    let weights =
        fledgling::run::model_bytes(&info.spec, |entry| Ok(gguf.tensor_f32(&entry.gguf)?)).unwrap();
    vec![
        (
            "config.json",
            info.spec.to_hf_config().to_string().into_bytes(),
        ),
        ("tokenizer.json", info.tokenizer.to_hf_json().into_bytes()),
        (
            "tokenizer_config.json",
            tokenizer_config.to_string().into_bytes(),
        ),
        ("model.safetensors", weights),
    ]
}
