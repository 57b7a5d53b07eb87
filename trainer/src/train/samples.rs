//! Answers of the model in training to fixed prompts, so that one reads what it has learnt.
//!
//! Each token is a whole forward pass of all prompts, without a cache of keys and values: that needs no second copy of the
//! weights, and short samples are cheap beside an evaluation.

use super::{
    config::SamplesConfig,
    loss,
    model::{Batch, Transformer, to_vec},
};
use anyhow::{Context, Result, ensure};
use burn::module::Module;
use fledgling_core::{
    chat::Message,
    generate::{GenerateParams, Generation},
    model::ModelInfo,
    sampler::SamplerParams,
    tokenizer::Tokenizer,
};
use std::sync::Arc;

/// The prompts of a run, ready to be answered.
#[derive(Debug)]
pub struct Samples {
    prompts: Vec<Prompt>,
    tokenizer: Arc<Tokenizer>,
    params: GenerateParams,
    n_ctx: usize,
}

#[derive(Debug)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
}

impl Samples {
    /// Encodes the prompts, through the chat template where it is wanted.
    ///
    /// # Errors
    /// A prompt that does not fit, by number, or a chat without a template.
    pub fn new(config: &SamplesConfig, info: &ModelInfo, n_ctx: usize) -> Result<Self> {
        let chat = config.chat.unwrap_or(info.chat_template.is_some());
        let params = GenerateParams {
            max_tokens: Some(config.max_tokens),
            sampler: SamplerParams {
                temperature: config.temperature,
                seed: config.seed,
                ..SamplerParams::default()
            },
            ..GenerateParams::default()
        };
        let mut prompts = Vec::new();
        for (i, text) in config.prompts.iter().enumerate() {
            let ids = if chat {
                let message = Message {
                    role: "user".into(),
                    content: text.clone(),
                };
                info.encode_chat(&[message])
                    .context("samples.chat = true needs a chat template")?
            } else {
                info.encode_prompt(text)
            };
            ensure!(
                ids.len() + config.max_tokens <= n_ctx,
                "samples.prompts[{i}] has {} tokens; with samples.max_tokens = {} that is more than the model's {n_ctx} positions",
                ids.len(),
                config.max_tokens
            );
            // Says what is wrong with the parameters before anything is trained.
            Generation::new(info.tokenizer.clone(), &ids, n_ctx, &params)
                .with_context(|| format!("samples.prompts[{i}]"))?;
            prompts.push(Prompt {
                text: text.clone(),
                ids,
            });
        }
        Ok(Self {
            prompts,
            tokenizer: info.tokenizer.clone(),
            params,
            n_ctx,
        })
    }

    /// The prompts with the model's answers; `stop` is asked before each token, and ends them where they are.
    ///
    /// # Errors
    /// Never for prompts that were accepted.
    pub fn answer(
        &self,
        model: &Transformer,
        stop: impl Fn() -> bool,
    ) -> Result<Vec<(&str, String)>> {
        let model = model.valid();
        let mut answers = vec![String::new(); self.prompts.len()];
        let begin = |prompt: &Prompt| {
            Generation::new(
                self.tokenizer.clone(),
                &prompt.ids,
                self.n_ctx,
                &self.params,
            )
        };
        let mut generations = self
            .prompts
            .iter()
            .map(begin)
            .collect::<Result<Vec<_>, _>>()?;
        loop {
            let active: Vec<usize> = (0..generations.len())
                .filter(|&i| generations[i].finished().is_none())
                .collect();
            if active.is_empty() || stop() {
                break;
            }
            let last = |&i: &usize| {
                let context = generations[i].context();
                (context, context.len() - 1)
            };
            let contexts: Vec<_> = active.iter().map(last).collect();
            let logits = to_vec(loss::logits(&model, &Batch::of_texts(&contexts)));
            let width = logits.len() / active.len();
            for (&i, row) in active.iter().zip(logits.chunks_exact(width)) {
                answers[i] += &generations[i].sample(&mut row.to_vec()).text;
            }
        }
        let texts = self.prompts.iter().map(|prompt| prompt.text.as_str());
        Ok(texts.zip(answers).collect())
    }
}
