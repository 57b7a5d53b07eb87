//! A tiny model for the tests, and what the fuzz target `task` does.

#[cfg(test)]
use crate::engine::{Take, Text, WholeTexts};
use crate::task::{Ask, Items, TaskConfig};
#[cfg(test)]
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    gguf::Gguf,
    model::ModelInfo,
    quant::DType,
    spec::Family,
    testing::tiny_model,
};

/// Reads bytes as a task file and, after a line of three dashes, its rows as lines of JSON.
///
/// # Panics
/// When something is wrong with this crate.
pub fn exercise_task(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (toml, rows) = text.split_once("\n---\n").unwrap_or((text, ""));
    let mut task = match TaskConfig::parse(toml, &[], "fuzzed") {
        Ok(task) => task,
        Err(error) => return assert!(!format!("{error:#}").is_empty()),
    };
    // No other file is read, whatever the task says.
    (task.answers_file, task.shots) = (None, 0);
    let name = format!("fledgling-task-{}.jsonl", std::process::id());
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, rows).expect("a temporary file can be written");
    match Items::read(&task, &[file]) {
        Ok(items) => {
            let limit = task.limit.unwrap_or(usize::MAX);
            assert!(items.items.len() <= rows.lines().count().min(limit));
            items.items.iter().for_each(|item| check_ask(&item.ask));
        }
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
}

/// What every question promises to who asks it.
fn check_ask(ask: &Ask) {
    match ask {
        Ask::Choice {
            contexts,
            choices,
            answer,
        } => {
            let n = contexts.len().max(choices.len());
            assert!(n > 1 && *answer < n);
            assert!([1, n].contains(&contexts.len()) && [1, n].contains(&choices.len()));
            assert!(choices.iter().all(|choice| !choice.is_empty()));
        }
        Ask::LastWord { context, target } => {
            assert!(!context.trim().is_empty() && target.len() > 1);
        }
        Ask::Generate { references, .. } => assert!(!references.is_empty()),
        Ask::Text(_) => {}
    }
}

/// A random Llama of two layers.
#[cfg(test)]
pub(crate) fn tiny() -> (ModelInfo, CpuEngine) {
    tiny_of(DType::F32, 5)
}

/// The same with other weights.
#[cfg(test)]
pub(crate) fn tiny_of(dtype: DType, seed: u64) -> (ModelInfo, CpuEngine) {
    let gguf = Gguf::parse(tiny_model(Family::Llama, dtype, seed).into()).unwrap();
    let info = ModelInfo::from_header(gguf.header()).unwrap();
    let options = CpuOptions {
        n_threads: 2,
        ..CpuOptions::default()
    };
    let engine = CpuEngine::new(&gguf, &options).unwrap();
    (info, engine)
}

/// The CPU engine as one that computes whole texts: chunks of three rows, the last text first.
#[cfg(test)]
pub(crate) struct Plain<'a>(pub(crate) &'a CpuEngine);

#[cfg(test)]
impl WholeTexts for Plain<'_> {
    fn logits(&self, texts: &[Text<'_>], take: &mut Take<'_>) -> anyhow::Result<()> {
        let n_vocab = self.vocab_size();
        for (i, text) in texts.iter().enumerate().rev() {
            let mut session = self.0.session(text.tokens.len())?;
            let (mut places, mut rows) = (Vec::new(), Vec::new());
            self.0
                .forward_all(&mut session, text.tokens, &mut |t, logits| {
                    if t >= text.wanted_from {
                        places.push((i, t));
                        rows.extend_from_slice(logits);
                    }
                })?;
            for (places, rows) in places.chunks(3).zip(rows.chunks(3 * n_vocab)) {
                take(places, rows);
            }
        }
        Ok(())
    }

    fn vocab_size(&self) -> usize {
        self.0.spec().vocab_size
    }
}

/// The stored corpus of the fuzz target `task`.
#[test]
fn the_fuzz_corpus_of_tasks_is_replayed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/task");
    let mut n_files = 0;
    for entry in std::fs::read_dir(dir).expect("the corpus is in the repository") {
        exercise_task(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
        n_files += 1;
    }
    assert!(
        n_files >= 10,
        "the corpus in {dir} has only {n_files} files"
    );
}
