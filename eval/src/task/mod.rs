//! Tasks: questions with right answers, as lm-evaluation-harness asks and counts them.
//!
//! A task is a TOML file ([`TaskConfig`]); the built-in ones are such files too. [`Items::read`] makes questions of rows, [`run`] asks
//! a model.

pub mod answers;
mod config;
mod confusion;
mod items;
mod template;
#[cfg(test)]
mod tests;

pub use config::{Kind, List, TaskConfig, builtin_names};
pub use confusion::{Class, Confusion};
pub use items::{Ask, Item, Items};

use crate::{
    perplexity::{self, Perplexity, Pieces},
    score::{Model, Scored, Sequence, check, score},
    stats::{Clustered, Estimate},
};
use anyhow::{Context, Result};
use fledgling_core::{
    chat::Message,
    cpu::Session,
    generate::{self, GenerateParams, Generation},
};
use fledgling_data::control::{Control, Unit};
use serde::Serialize;
use std::{ops::ControlFlow, sync::Arc};

/// How a model did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// Its kind.
    pub kind: Kind,
    /// Questions.
    pub items: usize,
    /// Questions that lost their beginning because the model's context does not hold them.
    pub truncated: usize,
    /// The accuracy of guessing, where there are choices.
    pub chance: Option<f64>,
    /// Figures by name, those that the task asks for.
    pub metrics: Vec<(&'static str, Estimate)>,
    /// What was taken for what, for `classify`.
    pub confusion: Option<Confusion>,
    /// In all units, for `perplexity`.
    pub perplexity: Option<Perplexity>,
    /// Each question.
    pub answers: Vec<Answered>,
}

/// A question as it was answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answered {
    /// File and row.
    pub place: String,
    /// What was right.
    pub right: String,
    /// What the model said: by `acc` where there are choices.
    pub said: String,
    /// Summed log-probability of each choice, or of the last word.
    pub log_probs: Vec<f64>,
    /// Right or not, or F1.
    pub score: f64,
    /// The same by `acc_norm`.
    pub score_norm: Option<f64>,
}

impl TaskResult {
    /// A figure by its name.
    pub fn metric(&self, name: &str) -> Option<Estimate> {
        let found = self.metrics.iter().find(|(known, _)| *known == name);
        found.map(|(_, estimate)| *estimate)
    }

    fn new(task: &TaskConfig, items: &Items) -> Self {
        Self {
            task: task.name.clone(),
            kind: task.kind,
            items: items.items.len(),
            truncated: 0,
            chance: None,
            metrics: Vec::new(),
            confusion: None,
            perplexity: None,
            answers: Vec::new(),
        }
    }
}

/// Asks a model the questions of a task. Progress counts questions.
///
/// # Errors
/// A question that cannot be asked, with its place; those of the engine; somebody's wish to stop.
pub fn run(
    model: &Model<'_>,
    task: &TaskConfig,
    items: &Items,
    control: &dyn Control,
) -> Result<TaskResult> {
    let mut result = TaskResult::new(task, items);
    match task.kind {
        Kind::MultipleChoice | Kind::Classify => choices(model, task, items, control, &mut result)?,
        Kind::LastWord => last_words(model, items, control, &mut result)?,
        Kind::Generate => written(model, task, items, control, &mut result)?,
        Kind::Perplexity => texts(model, items, control, &mut result)?,
    }
    result.metrics.retain(|(name, _)| task.wants(name));
    Ok(result)
}

/// The first of the greatest, as `argmax` has it; what is not a number is never it.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

/// The sequences of each question, one for each choice.
fn sequences(model: &Model<'_>, task: &TaskConfig, items: &Items) -> Result<Vec<Vec<Sequence>>> {
    let of_item = |item: &Item| {
        let Ask::Choice {
            contexts, choices, ..
        } = &item.ask
        else {
            return Ok(Vec::new());
        };
        let n = contexts.len().max(choices.len());
        let pick = |texts: &'_ [String], i: usize| texts[i.min(texts.len() - 1)].clone();
        let sequence = |i| {
            let context = format!("{}{}", items.header, pick(contexts, i));
            let continuation = format!("{}{}", task.delimiter, pick(choices, i));
            Sequence::of_pair(model.info, &context, &continuation)
        };
        let sequences = (0..n).map(sequence).collect::<Result<Vec<_>>>();
        sequences.with_context(|| item.place.clone())
    };
    items.items.iter().map(of_item).collect()
}

fn choices(
    model: &Model<'_>,
    task: &TaskConfig,
    items: &Items,
    control: &dyn Control,
    result: &mut TaskResult,
) -> Result<()> {
    let groups = sequences(model, task, items)?;
    result.truncated = n_truncated(&groups);
    let scored = score(model.engine, &groups, control, &task.name)?;
    let (mut hits, mut hits_norm, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    let mut chance = 0.0;
    for (item, scored) in items.items.iter().zip(&scored) {
        let Ask::Choice {
            choices,
            answer,
            contexts,
        } = &item.ask
        else {
            continue;
        };
        let log_probs: Vec<f64> = scored.iter().map(Scored::log_prob).collect();
        let n_chars = |i: usize| choices[i.min(choices.len() - 1)].chars().count() as f64;
        let best = argmax(log_probs.iter().copied());
        let best_norm = argmax(
            log_probs
                .iter()
                .enumerate()
                .map(|(i, sum)| sum / n_chars(i)),
        );
        let hit = |said: usize| f64::from(u8::from(said == *answer));
        hits.push(hit(best));
        hits_norm.push(hit(best_norm));
        pairs.push((*answer, best));
        chance += 1.0 / log_probs.len() as f64;
        let names = if choices.len() > 1 { choices } else { contexts };
        result.answers.push(Answered {
            place: item.place.clone(),
            right: names[*answer].clone(),
            said: names[best].clone(),
            log_probs,
            score: hit(best),
            score_norm: Some(hit(best_norm)),
        });
    }
    result.chance = Some(chance / hits.len() as f64);
    result.metrics.push(("acc", Estimate::of_mean(&hits)));
    result
        .metrics
        .push(("acc_norm", Estimate::of_mean(&hits_norm)));
    if task.kind == Kind::Classify {
        let confusion = Confusion::new(items.labels.clone(), &pairs);
        result.metrics.push(("macro_f1", confusion.macro_f1));
        result.confusion = Some(confusion);
    }
    Ok(())
}

fn n_truncated(groups: &[Vec<Sequence>]) -> usize {
    let is_cut = |group: &&Vec<Sequence>| group.iter().any(|sequence| sequence.truncated);
    groups.iter().filter(is_cut).count()
}

fn last_words(
    model: &Model<'_>,
    items: &Items,
    control: &dyn Control,
    result: &mut TaskResult,
) -> Result<()> {
    let of_item = |item: &Item| {
        let Ask::LastWord { context, target } = &item.ask else {
            return Ok(Vec::new());
        };
        let context = format!("{}{context}", items.header);
        let sequence = Sequence::of_pair(model.info, &context, target);
        Ok(vec![sequence.with_context(|| item.place.clone())?])
    };
    let groups: Vec<Vec<Sequence>> = items.items.iter().map(of_item).collect::<Result<_>>()?;
    result.truncated = n_truncated(&groups);
    let scored = score(model.engine, &groups, control, &result.task)?;
    let (mut hits, mut nlls, mut tokens) = (Vec::new(), Vec::new(), Clustered::default());
    for (item, scored) in items.items.iter().zip(&scored) {
        let (Ask::LastWord { target, .. }, [scored]) = (&item.ask, scored.as_slice()) else {
            continue;
        };
        let is_right = f64::from(u8::from(scored.is_greedy()));
        hits.push(is_right);
        nlls.push(-scored.log_prob());
        let tops = scored
            .tokens
            .iter()
            .map(|token| f64::from(u8::from(token.is_top)));
        tokens.add(tops);
        result.answers.push(Answered {
            place: item.place.clone(),
            right: target.trim_start().to_owned(),
            said: if scored.is_greedy() {
                target.trim_start().to_owned()
            } else {
                String::new()
            },
            log_probs: vec![scored.log_prob()],
            score: is_right,
            score_norm: None,
        });
    }
    result.metrics.push(("acc", Estimate::of_mean(&hits)));
    result
        .metrics
        .push(("perplexity", Estimate::of_mean(&nlls).exp()));
    result.metrics.push(("token_accuracy", tokens.mean().0));
    Ok(())
}

fn written(
    model: &Model<'_>,
    task: &TaskConfig,
    items: &Items,
    control: &dyn Control,
    result: &mut TaskResult,
) -> Result<()> {
    control.begin(&task.name, Unit::Documents, Some(items.items.len() as u64));
    let params = GenerateParams {
        max_tokens: Some(task.max_tokens),
        stop: task.stop.clone(),
        ..GenerateParams::default()
    };
    let mut session = model.engine.writing()?.session(model.info.spec.n_ctx)?;
    let (mut exact, mut f1s) = (Vec::new(), Vec::new());
    for item in &items.items {
        check(control)?;
        let Ask::Generate {
            question,
            references,
        } = &item.ask
        else {
            continue;
        };
        let prompt = prompt_ids(model, &format!("{}{question}", items.header), task.chat)
            .with_context(|| item.place.clone())?;
        let (prompt, is_cut) = within(&prompt, model.info.spec.n_ctx, task.max_tokens);
        result.truncated += usize::from(is_cut);
        let written = write(model, &mut session, prompt, &params, control)
            .with_context(|| item.place.clone())?;
        let is_exact = answers::exact_match(&written.text, references);
        let score = answers::f1(&written.text, references);
        exact.push(f64::from(u8::from(is_exact)));
        f1s.push(score);
        result.answers.push(Answered {
            place: item.place.clone(),
            right: references[0].clone(),
            said: written.text,
            log_probs: Vec::new(),
            score,
            score_norm: None,
        });
        control.advance(1);
    }
    result
        .metrics
        .push(("exact_match", Estimate::of_mean(&exact)));
    result.metrics.push(("f1", Estimate::of_mean(&f1s)));
    Ok(())
}

/// A prompt that leaves room for an answer: its end, where it is too long, and whether it was cut.
fn within(prompt: &[u32], n_ctx: usize, max_tokens: usize) -> (&[u32], bool) {
    let room = n_ctx
        .saturating_sub(max_tokens)
        .max(1)
        .min(n_ctx.saturating_sub(1));
    let start = prompt.len().saturating_sub(room);
    (&prompt[start..], start > 0)
}

/// Ids of a prompt, by the chat template or as it is.
pub(crate) fn prompt_ids(model: &Model<'_>, text: &str, chat: bool) -> Result<Vec<u32>> {
    if !chat {
        return Ok(model.info.encode_prompt(text));
    }
    let message = Message {
        role: "user".to_owned(),
        content: text.to_owned(),
    };
    Ok(model.info.encode_chat(&[message])?)
}

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
}

/// Lets a model write; what the session has in common with the prompt is not computed again.
pub(crate) fn write(
    model: &Model<'_>,
    session: &mut Session,
    prompt: &[u32],
    params: &GenerateParams,
    control: &dyn Control,
) -> Result<Written> {
    let tokenizer = Arc::clone(&model.info.tokenizer);
    let mut generation = Generation::new(tokenizer, prompt, model.info.spec.n_ctx, params)?;
    let mut text = String::new();
    generate::run(model.engine.writing()?, session, &mut generation, |step| {
        text.push_str(&step.text);
        if control.cancelled() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    check(control)?;
    Ok(Written {
        text,
        ids: generation.tokens().to_vec(),
    })
}

fn texts(
    model: &Model<'_>,
    items: &Items,
    control: &dyn Control,
    result: &mut TaskResult,
) -> Result<()> {
    let texts = items.items.iter().map(|item| match &item.ask {
        Ask::Text(text) => text.as_str(),
        _ => "",
    });
    let pieces = Pieces::of_documents(model.info, &texts.collect::<Vec<_>>())?;
    let measured = perplexity::measure(model, &pieces, control)?;
    let optional = [
        ("word_perplexity", measured.word_perplexity),
        ("byte_perplexity", measured.byte_perplexity),
        ("bits_per_byte", measured.bits_per_byte),
    ];
    result.metrics.push(("perplexity", measured.perplexity));
    let optional = optional.into_iter();
    result
        .metrics
        .extend(optional.filter_map(|(name, estimate)| Some((name, estimate?))));
    result
        .metrics
        .push(("token_accuracy", measured.token_accuracy));
    result.perplexity = Some(measured);
    Ok(())
}
