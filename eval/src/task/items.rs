//! From rows to questions.

use super::{
    config::{Kind, List, TaskConfig},
    template::{Row, Templates, text_of},
};
use crate::stats::SplitMix64;
use anyhow::{Context, Result, bail, ensure};
use fledgling_data::{
    collect::{self, Record},
    config::Source,
};
use minijinja::{Value, value::ValueKind};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Questions of a task, read and rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items {
    /// What stands before each: description and examples.
    pub header: String,
    /// The questions.
    pub items: Vec<Item>,
    /// The classes, for `classify`.
    pub labels: Vec<String>,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// File and row.
    pub place: String,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked, and what is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Which of the pairs of context and continuation is the likeliest.
    Choice {
        /// One for each choice, or one for all.
        contexts: Vec<String>,
        /// One for each choice, or one for all; without the delimiter.
        choices: Vec<String>,
        /// The right one.
        answer: usize,
    },
    /// The last word of a text.
    LastWord {
        /// What stands before it.
        context: String,
        /// A space, and the word.
        target: String,
    },
    /// A written answer.
    Generate {
        /// The question.
        question: String,
        /// Any of these is right.
        references: Vec<String>,
    },
    /// How likely a text is.
    Text(String),
}

/// A row's question before all rows are known.
struct Draft {
    place: String,
    row: Row,
}

impl Items {
    /// Reads a task's rows: from `files`, or else from those that the task names.
    ///
    /// # Errors
    /// When there are none; what is wrong with a row, with its file, line and field.
    pub fn read(task: &TaskConfig, files: &[PathBuf]) -> Result<Self> {
        let own: Vec<PathBuf> = task
            .files
            .iter()
            .map(|file| task.folder.join(file))
            .collect();
        let files = if files.is_empty() { &own } else { files };
        ensure!(
            !files.is_empty(),
            "the task {} needs the files of its rows",
            task.name
        );
        let reader = Reader::new(task)?;
        let mut items = reader.items(files)?;
        items.header = reader.header()?;
        ensure!(
            !items.items.is_empty(),
            "the task {} has no rows: {}",
            task.name,
            names(files)
        );
        Ok(items)
    }
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(", ")
}

struct Reader<'a> {
    task: &'a TaskConfig,
    templates: Templates,
}

impl<'a> Reader<'a> {
    fn new(task: &'a TaskConfig) -> Result<Self> {
        let templates = Templates::new();
        let single = [
            ("question", &task.question),
            ("continuation", &task.continuation),
            ("choice", &task.choice),
            ("text", &task.text),
        ];
        for (key, source) in single {
            if let Some(source) = source {
                templates.check_template(key, source)?;
            }
        }
        for source in task.questions.iter().flatten() {
            templates.check_template("questions", source)?;
        }
        let expressions = [
            ("where", &task.filter),
            ("group_by", &task.group_by),
            ("answer", &task.answer),
        ];
        for (key, source) in expressions {
            if let Some(source) = source {
                templates.check_expression(key, source)?;
            }
        }
        for (key, list) in [
            ("choices", &task.choices),
            ("choice_labels", &task.choice_labels),
        ] {
            match list {
                Some(List::Expression(source)) => templates.check_expression(key, source)?,
                Some(List::Templates(sources)) => {
                    for source in sources {
                        templates.check_template(key, source)?;
                    }
                }
                None => {}
            }
        }
        Ok(Self { task, templates })
    }

    /// The rows that the task's filter leaves, up to its limit.
    fn rows(
        &self,
        files: &[PathBuf],
        limit: usize,
        each: &mut dyn FnMut(Row) -> Result<usize>,
    ) -> Result<()> {
        for file in files {
            let answers = self.answers(file)?;
            let mut n_rows = 0;
            for record in collect::records(&Source::of(&file.to_string_lossy()))? {
                let record: Record = record?;
                let answer = answers.as_ref().map(|(path, lines)| {
                    let answer = lines.get(n_rows).map(String::as_str);
                    answer.with_context(|| {
                        format!(
                            "{}: {} has only {} lines",
                            record.place,
                            path.display(),
                            lines.len()
                        )
                    })
                });
                n_rows += 1;
                let row = Row::new(record, answer.transpose()?);
                let wanted = match &self.task.filter {
                    Some(filter) => self.templates.eval("where", filter, &row)?.is_true(),
                    None => true,
                };
                if wanted && each(row)? >= limit {
                    return Ok(());
                }
            }
            if let Some((path, lines)) = answers {
                ensure!(
                    lines.len() == n_rows,
                    "{} has {} lines for the {n_rows} rows of {}",
                    path.display(),
                    lines.len(),
                    file.display()
                );
            }
        }
        Ok(())
    }

    /// The answers that stand in a file of their own.
    fn answers(&self, file: &Path) -> Result<Option<(PathBuf, Vec<String>)>> {
        let Some(pattern) = &self.task.answers_file else {
            return Ok(None);
        };
        let path = match pattern.split_once('*') {
            Some((before, after)) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let stem = name.split('.').next().unwrap_or_default();
                let path = file.with_file_name(format!("{before}{stem}{after}"));
                if !path.exists() {
                    return Ok(None);
                }
                path
            }
            None => self.task.folder.join(pattern),
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the answers in {}", path.display()))?;
        let lines = text.lines().map(|line| line.trim().to_owned());
        Ok(Some((path, lines.collect())))
    }

    fn items(&self, files: &[PathBuf]) -> Result<Items> {
        let limit = self.task.limit.unwrap_or(usize::MAX);
        let labels = self.labels(files)?;
        let mut items = Vec::new();
        match &self.task.group_by {
            Some(group_by) => self.grouped(group_by, files, limit, &mut items)?,
            None => self.rows(files, limit, &mut |row| {
                items.push(self.item(&row, &labels)?);
                Ok(items.len())
            })?,
        }
        Ok(Items {
            header: String::new(),
            items,
            labels,
        })
    }

    /// The classes of `classify`: those that are given, or those that occur.
    fn labels(&self, files: &[PathBuf]) -> Result<Vec<String>> {
        if self.task.kind != Kind::Classify {
            return Ok(Vec::new());
        }
        if let Some(labels) = &self.task.labels {
            ensure!(labels.len() > 1, "`labels` needs two at least");
            return Ok(labels.clone());
        }
        let mut found = BTreeSet::new();
        self.rows(files, usize::MAX, &mut |row| {
            found.insert(self.answer_text(&row)?);
            Ok(0)
        })?;
        ensure!(
            found.len() > 1,
            "the rows have {} classes, and two are needed; name them in `labels`",
            found.len()
        );
        Ok(found.into_iter().collect())
    }

    fn answer(&self, row: &Row) -> Result<Value> {
        let answer = self.task.answer.as_deref().unwrap_or_default();
        self.templates.eval("answer", answer, row)
    }

    fn answer_text(&self, row: &Row) -> Result<String> {
        Ok(text_of(&self.answer(row)?).trim().to_owned())
    }

    fn template(&self, key: &str, source: Option<&String>, row: &Row) -> Result<String> {
        let source = source.map(String::as_str).unwrap_or_default();
        self.templates.render(key, source, row)
    }

    fn list(&self, key: &str, list: &List, row: &Row) -> Result<Vec<String>> {
        match list {
            List::Expression(source) => self.templates.texts(key, source, row),
            List::Templates(sources) => {
                let texts = sources
                    .iter()
                    .map(|source| self.templates.render(key, source, row));
                texts.collect()
            }
        }
    }

    fn item(&self, row: &Row, labels: &[String]) -> Result<Item> {
        let ask = match self.task.kind {
            Kind::MultipleChoice => self.choice(row)?,
            Kind::Classify => {
                let text = self.answer_text(row)?;
                let answer = labels.iter().position(|label| *label == text);
                let answer = answer.ok_or_else(|| {
                    row.error(format!(
                        "the answer `{text}` is none of the classes {}",
                        listed(labels)
                    ))
                })?;
                Ask::Choice {
                    contexts: vec![self.template("question", self.task.question.as_ref(), row)?],
                    choices: labels.to_vec(),
                    answer,
                }
            }
            Kind::LastWord => {
                last_word(&self.template("text", self.task.text.as_ref(), row)?, row)?
            }
            Kind::Generate => Ask::Generate {
                question: self.template("question", self.task.question.as_ref(), row)?,
                references: self.references(row)?,
            },
            Kind::Perplexity => Ask::Text(self.template("text", self.task.text.as_ref(), row)?),
        };
        Ok(Item {
            place: row.place.clone(),
            ask,
        })
    }

    fn references(&self, row: &Row) -> Result<Vec<String>> {
        let answer = self.answer(row)?;
        let references: Vec<String> = match answer.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                answer.try_iter()?.map(|item| text_of(&item)).collect()
            }
            _ => vec![text_of(&answer)],
        };
        row.ensure(!references.is_empty(), || {
            "`answer`: the list of right answers is empty".to_owned()
        })?;
        Ok(references)
    }

    fn choice(&self, row: &Row) -> Result<Ask> {
        let (contexts, choices) = match (&self.task.questions, &self.task.choices) {
            (Some(questions), _) => {
                let contexts = questions.iter();
                let contexts =
                    contexts.map(|source| self.templates.render("questions", source, row));
                let contexts = contexts.collect::<Result<Vec<_>>>()?;
                (
                    contexts,
                    vec![self.template("continuation", self.task.continuation.as_ref(), row)?],
                )
            }
            (None, Some(choices)) => (
                vec![self.template("question", self.task.question.as_ref(), row)?],
                self.list("choices", choices, row)?,
            ),
            (None, None) => bail!("a task of multiple choice has choices"),
        };
        let n = contexts.len().max(choices.len());
        row.ensure(n > 1, || {
            format!("`choices`: there are {n}, and two are needed at least")
        })?;
        row.ensure(choices.iter().all(|choice| !choice.is_empty()), || {
            "`choices`: one of them is empty".to_owned()
        })?;
        let labels = match &self.task.choice_labels {
            Some(labels) => self.list("choice_labels", labels, row)?,
            None => Vec::new(),
        };
        let names = if choices.len() == n {
            &choices
        } else {
            &labels
        };
        let answer = answer_among(&self.answer(row)?, &labels, names, n);
        let answer = answer.map_err(|reason| row.error(reason))?;
        Ok(Ask::Choice {
            contexts,
            choices,
            answer,
        })
    }

    /// Rows of the same group are the choices of one question.
    fn grouped(
        &self,
        group_by: &str,
        files: &[PathBuf],
        limit: usize,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let mut open: Option<(String, Vec<Draft>)> = None;
        self.rows(files, limit, &mut |row| {
            let group = text_of(&self.templates.eval("group_by", group_by, &row)?);
            let place = row.place.clone();
            let draft = Draft { place, row };
            match &mut open {
                Some((name, drafts)) if *name == group => drafts.push(draft),
                _ => {
                    if let Some((_, drafts)) = open.replace((group, vec![draft])) {
                        items.push(self.of_group(&drafts)?);
                    }
                }
            }
            Ok(items.len())
        })?;
        if let Some((_, drafts)) = open
            && items.len() < limit
        {
            items.push(self.of_group(&drafts)?);
        }
        Ok(())
    }

    fn of_group(&self, drafts: &[Draft]) -> Result<Item> {
        let row = &drafts[0].row;
        let mut contexts = Vec::new();
        let mut choices = Vec::new();
        for Draft { row, .. } in drafts {
            contexts.push(self.template("question", self.task.question.as_ref(), row)?);
            choices.push(self.template("choice", self.task.choice.as_ref(), row)?);
        }
        let n = drafts.len();
        row.ensure(n > 1, || {
            format!("the question has {n} choice, and two are needed at least")
        })?;
        row.ensure(choices.iter().all(|choice| !choice.is_empty()), || {
            "`choice`: one of them is empty".to_owned()
        })?;
        let answer = answer_among(&self.answer(row)?, &[], &choices, n);
        Ok(Item {
            place: drafts[0].place.clone(),
            ask: Ask::Choice {
                contexts,
                choices,
                answer: answer.map_err(|reason| row.error(reason))?,
            },
        })
    }

    /// Description and solved examples.
    fn header(&self) -> Result<String> {
        let TaskConfig {
            shots, description, ..
        } = self.task;
        let mut header = description.clone();
        if *shots == 0 {
            return Ok(header);
        }
        let files = self.task.shots_files.iter();
        let files: Vec<_> = files.map(|file| self.task.folder.join(file)).collect();
        let labels = self.labels(&files)?;
        let mut examples = Vec::new();
        self.rows(&files, usize::MAX, &mut |row| {
            examples.push(self.solved(&self.item(&row, &labels)?));
            Ok(0)
        })?;
        ensure!(
            examples.len() >= *shots,
            "`shots = {shots}`, but {} have only {} rows",
            names(&files),
            examples.len()
        );
        SplitMix64(self.task.seed).shuffle(&mut examples);
        for example in &examples[..*shots] {
            header.push_str(example);
            header.push_str(&self.task.shots_delimiter);
        }
        Ok(header)
    }

    /// A question with its answer.
    fn solved(&self, item: &Item) -> String {
        let of = |texts: &[String], answer: usize| texts[answer.min(texts.len() - 1)].clone();
        let (question, answer) = match &item.ask {
            Ask::Choice {
                contexts,
                choices,
                answer,
            } => (of(contexts, *answer), of(choices, *answer)),
            Ask::Generate {
                question,
                references,
            } => (question.clone(), references[0].clone()),
            Ask::LastWord { context, target } => return format!("{context}{target}"),
            Ask::Text(text) => return text.clone(),
        };
        format!("{question}{}{answer}", self.task.delimiter)
    }
}

/// What stands before the last space is given, as in the harness: `text.split(' ')`.
fn last_word(text: &str, row: &Row) -> Result<Ask> {
    match text.rsplit_once(' ') {
        Some((context, word)) if !context.trim().is_empty() && !word.is_empty() => {
            Ok(Ask::LastWord {
                context: context.to_owned(),
                target: format!(" {word}"),
            })
        }
        _ => Err(row.error("`text`: there is no last word after a space, and something before it")),
    }
}

/// Which of `n` choices an answer means: by its label, by the choice itself, or by its number.
fn answer_among(
    answer: &Value,
    labels: &[String],
    choices: &[String],
    n: usize,
) -> Result<usize, String> {
    let text = text_of(answer);
    let text = text.trim();
    let by_name = |names: &[String]| names.iter().position(|name| name.trim() == text);
    let number = match answer.kind() {
        ValueKind::Bool => Some(usize::from(answer.is_true())),
        _ => text.parse::<usize>().ok(),
    };
    let found = if labels.is_empty() {
        by_name(choices).filter(|_| number.is_none()).or(number)
    } else {
        by_name(labels)
    };
    match found {
        Some(answer) if answer < n => Ok(answer),
        _ if !labels.is_empty() => Err(format!(
            "`answer` is `{text}`, which is none of the labels {}",
            listed(labels)
        )),
        Some(answer) => Err(format!(
            "`answer` is {answer}, but the {n} choices have the numbers 0 to {}",
            n - 1
        )),
        None => Err(format!(
            "`answer` is `{text}`, which is none of the choices {}",
            listed(choices)
        )),
    }
}

fn listed(names: &[String]) -> String {
    let short = |name: &String| {
        let cut: String = name.chars().take(40).collect();
        format!("`{cut}`")
    };
    let mut list: Vec<String> = names.iter().take(12).map(short).collect();
    if names.len() > 12 {
        list.push(format!("{} more", names.len() - 12));
    }
    list.join(", ")
}
