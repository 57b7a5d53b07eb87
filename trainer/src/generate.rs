//! `fledgling generate`: one answer, streamed or as JSON. [`Talk`] is the loop that `chat` shares.

use crate::{
    interrupt::Graceful,
    model::{self, EngineArgs, Model, context_len},
    output::{UsageError, note, print, print_json},
};
use anyhow::{Context, Result};
use fledgling_core::{
    chat::Message,
    cpu::{CpuEngine, Session},
    generate::{FinishReason, GenerateParams, Generation},
    sampler::SamplerParams,
};
use serde_json::json;
use std::{io::Read, path::PathBuf, time::Instant};

/// Tokens of a prompt that are fed at once: Ctrl-C is heard between two chunks. The chunks do not change the numbers.
const PREFILL_CHUNK: usize = 128;

/// Continue a prompt
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling generate smollm2-135m-instruct --chat --prompt \"Why is the sky blue?\"\n  \
    fledgling generate model.gguf --prompt \"Once upon a time\" --max-tokens 64 --temperature 0.8 --seed 7\n  \
    echo \"Once upon a time\" | fledgling generate model.gguf --json"
)]
pub struct Args {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// The prompt (default: standard input)
    #[arg(long, conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Put the prompt through the model's chat template, as one message of the user
    #[arg(long)]
    chat: bool,
    /// A system message before it (with --chat)
    #[arg(long, requires = "chat")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// New tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Positions of the context (default: what the answer needs, within the model's)
    #[arg(long, value_name = "N", value_parser = positive)]
    ctx: Option<usize>,
    /// Go on after the model's end token
    #[arg(long)]
    ignore_end: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one line of JSON at the end instead of streaming the text
    #[arg(long)]
    json: bool,
}

/// How tokens are picked; nothing given is greedy.
#[derive(Debug, Clone, clap::Args)]
pub struct SamplingArgs {
    /// 0 always takes the likeliest token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub top_p: f32,
    /// Keep tokens with at least this share of the likeliest one's probability
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub min_p: f32,
    /// Make tokens of the last 64 less likely; 1 is off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub repetition_penalty: f32,
    /// The same seed gives the same text, on every machine
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// End at this text, which is not part of the answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The parameters for core.
    pub fn params(&self, max_tokens: Option<usize>, ignore_end: bool) -> GenerateParams {
        let sampler = SamplerParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..SamplerParams::default()
        };
        GenerateParams {
            max_tokens,
            sampler,
            stop: self.stop.clone(),
            ignore_end,
        }
    }
}

/// A whole number of at least 1.
///
/// # Errors
/// Anything else.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Runs the command.
///
/// # Errors
/// When the model does not load, the prompt does not fit, or a parameter is out of range.
pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let model = model::open(&args.model)?;
    let prompt = prompt_ids(&model, args)?;
    let n_ctx = context_len(&model, args.ctx, prompt.len() + args.max_tokens)?;
    let params = args.sampling.params(Some(args.max_tokens), args.ignore_end);
    // A wrong parameter is told before the engine is set up.
    let generation = Generation::new(model.info.tokenizer.clone(), &prompt, n_ctx, &params)?;
    let engine = args.engine.load(&model)?;
    let mut session = engine.session(n_ctx)?;
    let answer = Talk {
        engine: &engine,
        session: &mut session,
    }
    .answer(generation, started, |text| {
        if args.json { Ok(()) } else { print(text) }
    })?;
    if args.json {
        return print_json(&json!({
            "prompt_token_ids": prompt,
            "token_ids": answer.tokens,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "time_to_first_token_ms": answer.first_token_ms,
            "tokens_per_s": answer.tokens_per_s,
        }));
    }
    print("\n")?;
    note(answer.summary());
    Ok(())
}

fn prompt_ids(model: &Model, args: &Args) -> Result<Vec<u32>> {
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the prompt {}", path.display()))?,
        (None, None) => read_stdin()?,
    };
    if !args.chat {
        return Ok(model.info.encode_prompt(&text));
    }
    let system = args.system.iter().map(|content| Message {
        role: "system".into(),
        content: content.clone(),
    });
    let messages: Vec<_> = system
        .chain([Message {
            role: "user".into(),
            content: text,
        }])
        .collect();
    Ok(model.info.encode_chat(&messages)?)
}

fn read_stdin() -> Result<String> {
    use std::io::IsTerminal;
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(UsageError(
            "no prompt: give --prompt TEXT or --prompt-file FILE, or pipe it in".to_owned(),
        )
        .into());
    }
    let mut text = String::new();
    stdin
        .read_to_string(&mut text)
        .context("the prompt on standard input cannot be read (it must be UTF-8)")?;
    // `echo` and editors end a text with a newline that nobody means.
    Ok(text
        .strip_suffix('\n')
        .map(|text| text.strip_suffix('\r').unwrap_or(text).to_owned())
        .unwrap_or(text))
}

/// A session that answers; what it was fed before is not fed again.
#[derive(Debug)]
pub struct Talk<'a> {
    /// The engine.
    pub engine: &'a CpuEngine,
    /// Keys and values so far.
    pub session: &'a mut Session,
}

/// An answer and how it went.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The tokens, without an end token.
    pub tokens: Vec<u32>,
    /// The text.
    pub text: String,
    /// `stop`, `length`, or `interrupted` after Ctrl-C.
    pub finish_reason: &'static str,
    /// From the start that the caller named to the first token.
    pub first_token_ms: Option<f64>,
    /// Tokens after the first, by the time after the first.
    pub tokens_per_s: Option<f64>,
}

impl Answer {
    /// One line for people.
    pub fn summary(&self) -> String {
        let speed = self
            .tokens_per_s
            .map(|speed| format!(", {speed:.1} tokens/s"))
            .unwrap_or_default();
        let first = self
            .first_token_ms
            .map(|ms| format!(", first after {ms:.0} ms"))
            .unwrap_or_default();
        format!(
            "[{} tokens, {}{first}{speed}]",
            self.tokens.len(),
            self.finish_reason
        )
    }
}

impl Talk<'_> {
    /// Runs a generation to its end, or to Ctrl-C, and hands out the text as it comes.
    ///
    /// # Errors
    /// Those of the engine and of `emit`.
    pub fn answer(
        &mut self,
        mut generation: Generation,
        started: Instant,
        mut emit: impl FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        let interrupt = Graceful::begin();
        let prompt = generation.prompt().to_vec();
        let mut text = String::new();
        let (mut first, mut n_decoded) = (None, 0_u32);
        let mut finish_reason = "interrupted";
        let mut logits = self.prefill(&prompt, &interrupt)?;
        while let Some(current) = &mut logits {
            let step = generation.sample(current);
            let first = first.get_or_insert_with(Instant::now);
            text.push_str(&step.text);
            emit(&step.text)?;
            if let Some(finish) = step.finish {
                finish_reason = name_of(finish);
                break;
            }
            if interrupt.asked() {
                break;
            }
            logits = Some(self.engine.forward(self.session, &[step.token])?);
            n_decoded += 1;
            let _ = first;
        }
        let tokens_per_s = first
            .filter(|_| n_decoded > 0)
            .map(|first: Instant| f64::from(n_decoded) / first.elapsed().as_secs_f64());
        Ok(Answer {
            tokens: generation.tokens().to_vec(),
            text,
            finish_reason,
            first_token_ms: first.map(|first| 1e3 * (first - started).as_secs_f64()),
            tokens_per_s,
        })
    }

    /// Feeds what of `prompt` the session does not hold yet. `None` after Ctrl-C.
    fn prefill(&mut self, prompt: &[u32], interrupt: &Graceful) -> Result<Option<Vec<f32>>> {
        let shared = self
            .session
            .tokens()
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count();
        // The last token is always fed: its logits are wanted.
        let keep = shared.min(prompt.len().saturating_sub(1));
        self.session.rewind(keep);
        let mut logits = None;
        for chunk in prompt[keep..].chunks(PREFILL_CHUNK) {
            if interrupt.asked() {
                return Ok(None);
            }
            logits = Some(self.engine.forward(self.session, chunk)?);
        }
        Ok(logits)
    }
}

fn name_of(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
