//! `metrics.jsonl`: one event a line.

use super::Sink;
use crate::{
    files::write_whole,
    report::events::{Event, Line},
};
use anyhow::{Context, Result};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// The file of metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Opens the file: empty, or with what happened up to the step `resumed`. Later lines are of steps that are done again, and go.
    pub(super) fn open(path: &Path, resumed: Option<u64>) -> Result<Self> {
        if let Some(step) = resumed {
            let bytes = std::fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let keep =
                |line: &&str| Line::parse(line).is_some_and(|line| before(&line.event, step));
            let kept: String = text
                .lines()
                .filter(keep)
                .flat_map(|line| [line, "\n"])
                .collect();
            write_whole(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(resumed.is_some())
            .write(true)
            .truncate(resumed.is_none())
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }
}

/// Whether an event happened in the run that goes on after `step`.
fn before(event: &Event, step: u64) -> bool {
    event.step() <= step
}

impl Sink for Metrics {
    fn event(&mut self, line: &Line) -> Result<()> {
        // One write, so that a killed process leaves at most its last line torn.
        let text = serde_json::to_string(line)? + "\n";
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::events::Step;

    fn step(step: u64) -> Line {
        Line::now(Event::Step(Step {
            step,
            ..Step::default()
        }))
    }

    #[test]
    fn a_resumed_run_loses_later_and_torn_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, None).unwrap();
        for i in 1..=4 {
            metrics.event(&step(i)).unwrap();
        }
        metrics.file.write_all(b"{\"step\":5,\"lo\xff").unwrap();
        let mut metrics = Metrics::open(&path, Some(2)).unwrap();
        metrics.event(&step(3)).unwrap();
        let steps = || -> Vec<_> {
            std::fs::read_to_string(&path)
                .unwrap()
                .lines()
                .map(|line| Line::parse(line).unwrap().event.step())
                .collect()
        };
        assert_eq!(steps(), [1, 2, 3]);
        drop(Metrics::open(&path, None).unwrap());
        assert_eq!(steps(), [0; 0]);
    }
}
