//! What a task is, as its TOML file says it. The built-in tasks are such files too.

use anyhow::{Context, Result, bail, ensure};
use fledgling_data::toml_config;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The tasks that are built in, by their names.
const BUILTIN: [(&str, &str); 9] = [
    ("arc_challenge", include_str!("builtin/arc_challenge.toml")),
    ("arc_easy", include_str!("builtin/arc_easy.toml")),
    ("boolq", include_str!("builtin/boolq.toml")),
    ("hellaswag", include_str!("builtin/hellaswag.toml")),
    ("lambada", include_str!("builtin/lambada.toml")),
    ("openbookqa", include_str!("builtin/openbookqa.toml")),
    ("piqa", include_str!("builtin/piqa.toml")),
    ("requests", include_str!("builtin/requests.toml")),
    ("winogrande", include_str!("builtin/winogrande.toml")),
];

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// How it is called; the file's name when absent.
    #[serde(default)]
    pub name: String,
    /// What is asked of the model.
    pub kind: Kind,
    /// Files of rows (jsonl, json, csv, tsv, parquet; compressed, or a glob), from the folder of the task's file.
    #[serde(default)]
    pub files: Vec<String>,
    /// A file with one answer a line, for rows that have none; `*` in its name stands for the name of the rows' file without its ending.
    pub answers_file: Option<String>,
    /// Expression: only the rows for which it is true.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// Expression: rows that follow each other with the same value are the choices of one question.
    pub group_by: Option<String>,
    /// Template: what stands before the choices, the answer or the label.
    pub question: Option<String>,
    /// Templates of contexts that differ, where the continuation is the same.
    pub questions: Option<Vec<String>>,
    /// Template of that continuation.
    pub continuation: Option<String>,
    /// The choices.
    pub choices: Option<List>,
    /// Template of a row's choice, with `group_by`.
    pub choice: Option<String>,
    /// What an answer may be called, in the order of the choices.
    pub choice_labels: Option<List>,
    /// Expression: the right answer, as one of the labels, as one of the choices, or as its number from 0; for `generate` a text, or a list
    /// of texts any of which is right.
    pub answer: Option<String>,
    /// Words that name the classes of `classify`; those that occur, in the order of the alphabet, when absent.
    pub labels: Option<Vec<String>>,
    /// Template of the text, for `last_word` and `perplexity`.
    pub text: Option<String>,
    /// What stands between the question and a choice.
    #[serde(default = "default_delimiter")]
    pub delimiter: String,
    /// A text before everything, examples too.
    #[serde(default)]
    pub description: String,
    /// Solved examples before each question.
    #[serde(default)]
    pub shots: usize,
    /// Where they come from.
    #[serde(default)]
    pub shots_files: Vec<String>,
    /// What stands between two of them.
    #[serde(default = "default_shots_delimiter")]
    pub shots_delimiter: String,
    /// Decides which examples.
    #[serde(default)]
    pub seed: u64,
    /// Render the question by the model's chat template (`generate`).
    #[serde(default)]
    pub chat: bool,
    /// Texts that end an answer (`generate`).
    #[serde(default)]
    pub stop: Vec<String>,
    /// Tokens of an answer at most (`generate`).
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// Which figures; all of the kind when empty.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Only so many questions.
    pub limit: Option<usize>,
    /// Where relative paths start.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Which of some continuations is the likeliest.
    MultipleChoice,
    /// The last word of a text.
    LastWord,
    /// A written answer.
    Generate,
    /// One of some labels.
    Classify,
    /// How likely a text is.
    Perplexity,
}

/// Several texts: an expression for a list of them, or a template for each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "an expression in a string, or an array of templates"
)]
pub enum List {
    /// An expression.
    Expression(String),
    /// Templates.
    Templates(Vec<String>),
}

fn default_delimiter() -> String {
    " ".to_owned()
}

fn default_shots_delimiter() -> String {
    "\n\n".to_owned()
}

fn default_max_tokens() -> usize {
    32
}

impl Kind {
    /// The figures of the kind.
    pub fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::MultipleChoice => &["acc", "acc_norm"],
            Self::LastWord => &["acc", "perplexity", "token_accuracy"],
            Self::Generate => &["exact_match", "f1"],
            Self::Classify => &["acc", "acc_norm", "macro_f1"],
            Self::Perplexity => &[
                "perplexity",
                "word_perplexity",
                "byte_perplexity",
                "bits_per_byte",
                "token_accuracy",
            ],
        }
    }
}

/// Names of the built-in tasks.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

impl TaskConfig {
    /// The task of a TOML file, or the built-in one of this name, with overrides (`key=value`).
    ///
    /// # Errors
    /// When there is none, with the names there are; what is wrong in it, by its key.
    pub fn open(name_or_path: &str, overrides: &[String]) -> Result<Self> {
        let builtin = BUILTIN.iter().find(|(name, _)| *name == name_or_path);
        let mut task = match builtin {
            Some((name, text)) => Self::parse(text, overrides, name),
            None => {
                let path = Path::new(name_or_path);
                if !path.is_file() {
                    let names: Vec<_> = builtin_names().collect();
                    bail!(
                        "there is no task `{name_or_path}`: give a TOML file, or one of {}",
                        names.join(", ")
                    );
                }
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the task {}", path.display()))?;
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                Self::parse(&text, overrides, &stem)
            }
        }
        .with_context(|| format!("in the task {name_or_path}"))?;
        if builtin.is_none() {
            let parent = Path::new(name_or_path).parent();
            parent.unwrap_or(Path::new("")).clone_into(&mut task.folder);
        }
        Ok(task)
    }

    /// Reads the text of a task; `name` is for one that has none.
    ///
    /// # Errors
    /// What is wrong in it, by its key; an unknown key with the nearest known one.
    pub fn parse(text: &str, overrides: &[String], name: &str) -> Result<Self> {
        let mut task: Self = toml_config::parse(text, overrides)?;
        if task.name.is_empty() {
            name.clone_into(&mut task.name);
        }
        task.check()?;
        Ok(task)
    }

    /// Whether the keys that the kind needs are there, and no others.
    fn check(&self) -> Result<()> {
        let present = [
            ("question", self.question.is_some()),
            ("questions", self.questions.is_some()),
            ("continuation", self.continuation.is_some()),
            ("choices", self.choices.is_some()),
            ("choice", self.choice.is_some()),
            ("choice_labels", self.choice_labels.is_some()),
            ("answer", self.answer.is_some()),
            ("labels", self.labels.is_some()),
            ("text", self.text.is_some()),
            ("group_by", self.group_by.is_some()),
            ("answers_file", self.answers_file.is_some()),
            ("shots_files", !self.shots_files.is_empty()),
            ("stop", !self.stop.is_empty()),
            ("chat", self.chat),
        ];
        let (needed, allowed): (&[&str], &[&str]) = match self.kind {
            Kind::MultipleChoice if self.questions.is_some() => (
                &["questions", "continuation", "answer"],
                &["choice_labels", "answers_file"],
            ),
            Kind::MultipleChoice if self.group_by.is_some() => {
                (&["group_by", "question", "choice", "answer"], &[])
            }
            Kind::MultipleChoice => (
                &["question", "choices", "answer"],
                &["choice_labels", "answers_file", "shots_files"],
            ),
            Kind::LastWord | Kind::Perplexity => (&["text"], &[]),
            Kind::Generate => (
                &["question", "answer"],
                &["answers_file", "shots_files", "stop", "chat"],
            ),
            Kind::Classify => (
                &["question", "answer"],
                &["labels", "answers_file", "shots_files"],
            ),
        };
        let kind = serde_json::to_string(&self.kind)?;
        for (key, is_there) in present {
            if needed.contains(&key) {
                ensure!(is_there, "a task of kind {kind} needs the key `{key}`");
            } else if is_there && !allowed.contains(&key) {
                bail!(
                    "the key `{key}` says nothing in this task of kind {kind}, which takes {}",
                    [needed, allowed].concat().join(", ")
                );
            }
        }
        ensure!(
            self.shots == 0 || !self.shots_files.is_empty(),
            "`shots = {}` needs `shots_files`, where the examples come from",
            self.shots
        );
        let known = self.kind.metrics();
        for metric in &self.metrics {
            ensure!(
                known.contains(&metric.as_str()),
                "metrics: there is no `{metric}` for the kind {kind}, but {}",
                known.join(", ")
            );
        }
        ensure!(self.limit != Some(0), "`limit = 0` leaves no question");
        ensure!(
            self.max_tokens > 0,
            "`max_tokens = 0` leaves no room for an answer"
        );
        Ok(())
    }

    /// Whether a figure is asked for.
    pub fn wants(&self, metric: &str) -> bool {
        self.metrics.is_empty() || self.metrics.iter().any(|name| name == metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_tasks_are_whole() {
        for name in builtin_names() {
            let task = TaskConfig::open(name, &[]).unwrap();
            assert_eq!(task.name, name);
            assert!(!task.metrics.is_empty());
        }
        let task = TaskConfig::open("piqa", &["limit=3".to_owned()]).unwrap();
        assert_eq!(task.limit, Some(3));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, expect: &str| {
            let error = TaskConfig::parse(text, &[], "mine").unwrap_err();
            assert!(format!("{error:#}").contains(expect), "{error:#}");
        };
        let mine = "kind='multiple_choice'\nquestion='q'\nchoices='c'\nanswer='a'\n";
        assert_eq!(TaskConfig::parse(mine, &[], "mine").unwrap().name, "mine");
        check(
            &format!("{mine}anwser='b'"),
            "unknown key `anwser`: did you mean `answer`?",
        );
        check(
            "kind='multiple'",
            "unknown variant `multiple`, expected one of",
        );
        check("kind='classify'\nquestion='q'", "needs the key `answer`");
        check(&format!("{mine}text='x'"), "the key `text` says nothing");
        check(&format!("{mine}shots=2"), "needs `shots_files`");
        check(&format!("{mine}metrics=['f1']"), "but acc, acc_norm");
        check(&format!("{mine}limit=0"), "leaves no question");
        check(&mine.replace("'c'", "3"), "an expression in a string");
        let error = TaskConfig::open("nothing", &[]).unwrap_err().to_string();
        assert!(error.contains("hellaswag"), "{error}");
    }
}
