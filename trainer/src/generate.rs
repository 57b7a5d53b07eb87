//! `fledgling generate`: one answer, streamed or as JSON. [`Talk`] is the loop that `chat` shares.

use crate::{
    files,
    interrupt::Graceful,
    model::{self, EngineArgs, Model, context_len},
    output::{UsageError, note, print, print_json},
};
use anyhow::{Context, Result};
use fledgling_core::{
    chat::Message,
    cpu::{CpuEngine, Session},
    generate::{FinishReason, GenerateParams, Generation, Step, advance, rewind_to_common},
    sampler::SamplerParams,
    speculate::PromptLookup,
};
use serde_json::json;
use std::{
    io::Read,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

/// Tokens of a prompt that are fed at once: Ctrl-C is heard between two chunks. The chunks do not change the numbers.
const PREFILL_CHUNK: usize = 128;

/// Continue a prompt
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling generate smollm2-135m-instruct --chat --prompt \"Why is the sky blue?\"\n  \
    fledgling generate model.gguf --prompt \"Once upon a time\" --max-tokens 64 --temperature 0.8 --seed 7\n  \
    fledgling generate model.gguf --session tale --prompt \" and then\"\n  \
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
    /// Go on from what this file keeps of an earlier call, and keep prompt and answer there; with --chat the prompt is whole, and what
    /// the file knows of its beginning is not computed again
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one line of JSON at the end instead of streaming the text
    #[arg(long)]
    json: bool,
}

/// Drafts, which change no text.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SpeculationArgs {
    /// Draft up to N tokens where the text repeats what stood before, and check them together; the text stays the same (default:
    /// as many as are cheap to check here; 0 drafts none)
    #[arg(long, value_name = "N")]
    pub speculate: Option<usize>,
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
    let kept = args
        .session
        .as_deref()
        .map(read_kept)
        .transpose()?
        .flatten();
    let own_prompt = prompt_ids(&model, args, kept.is_some())?;
    let n_wanted = match args.session {
        Some(_) => model.info.spec.n_ctx,
        None => own_prompt.len() + args.max_tokens,
    };
    let n_ctx = context_len(&model, args.ctx, n_wanted)?;
    let params = args.sampling.params(Some(args.max_tokens), args.ignore_end);
    let tokenizer = || model.info.tokenizer.clone();
    if kept.is_none() {
        // A wrong parameter is told before the engine is set up.
        Generation::new(tokenizer(), &own_prompt, n_ctx, &params)?;
    }
    let engine = args.engine.load(&model)?;
    let mut session = match &kept {
        Some(bytes) => engine
            .restore_session(bytes, n_ctx)
            .context("--session: it cannot go on from this file; remove it or name another one")?,
        None if args.session.is_some() => engine.growing_session(n_ctx)?,
        None => engine.session(n_ctx)?,
    };
    let prompt = if args.chat {
        own_prompt
    } else {
        [session.tokens(), &own_prompt].concat()
    };
    let generation = Generation::new(tokenizer(), &prompt, n_ctx, &params)?;
    let answer = Talk {
        engine: &engine,
        session: &mut session,
        speculate: args.speculation.speculate,
    }
    .answer(generation, started, |text| {
        if args.json { Ok(()) } else { print(text) }
    })?;
    if let Some(path) = &args.session {
        keep(
            &engine,
            &mut session,
            &[&prompt[..], &answer.tokens].concat(),
            path,
        )?;
    }
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

/// The session file's bytes, when there is one.
fn read_kept(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes the session with all of `tokens`, of which it may lack the last.
fn keep(engine: &CpuEngine, session: &mut Session, tokens: &[u32], path: &Path) -> Result<()> {
    let n_common = session.common_prefix_len(tokens);
    session.rewind(n_common);
    let n_fitting = tokens.len().min(session.n_ctx());
    if n_common < n_fitting {
        engine.forward(session, &tokens[n_common..n_fitting])?;
    }
    files::write_whole(path, &engine.save_session(session)?)
}

/// The prompt of this call; behind a kept one, without the token that a text begins with.
fn prompt_ids(model: &Model, args: &Args, goes_on: bool) -> Result<Vec<u32>> {
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the prompt {}", path.display()))?,
        (None, None) => read_stdin()?,
    };
    if !args.chat && goes_on {
        return Ok(model.info.tokenizer.encode(&text, false, true));
    }
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
    /// Tokens that are drafted at most; `None` is as many as are cheap to check.
    pub speculate: Option<usize>,
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
        let cheap = self.engine.cheap_rows() - 1;
        let mut lookup = PromptLookup::new(self.speculate.unwrap_or(cheap));
        let mut text = String::new();
        let mut first = None;
        let mut finish = generation.finished();
        let mut emitted = Ok(());
        let mut goes_on = finish.is_none() && self.read_most(generation.context(), &interrupt)?;
        while goes_on {
            let on_step = |step: &Step| {
                first.get_or_insert_with(Instant::now);
                text.push_str(&step.text);
                emitted = emit(&step.text);
                if emitted.is_err() || interrupt.asked() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let Self {
                engine, session, ..
            } = self;
            let flow = advance(engine, session, &mut generation, &mut lookup, on_step)?;
            if let ControlFlow::Break(reason) = flow {
                (finish, goes_on) = (reason, false);
            }
        }
        emitted?;
        let finish_reason = finish.map_or("interrupted", name_of);
        // The first token is of the prompt's pass.
        let n_decoded = generation.tokens().len().saturating_sub(1);
        let tokens_per_s = first
            .filter(|_| n_decoded > 0)
            .map(|first: Instant| n_decoded as f64 / first.elapsed().as_secs_f64());
        Ok(Answer {
            tokens: generation.tokens().to_vec(),
            text,
            finish_reason,
            first_token_ms: first.map(|first| 1e3 * (first - started).as_secs_f64()),
            tokens_per_s,
        })
    }

    /// Feeds what of `prompt` the session does not hold yet, but for a last piece. False after Ctrl-C.
    fn read_most(&mut self, prompt: &[u32], interrupt: &Graceful) -> Result<bool> {
        rewind_to_common(self.session, prompt);
        loop {
            if interrupt.asked() {
                return Ok(false);
            }
            let rest = &prompt[self.session.tokens().len()..];
            if rest.len() <= PREFILL_CHUNK {
                return Ok(true);
            }
            self.engine.forward(self.session, &rest[..PREFILL_CHUNK])?;
        }
    }
}

fn name_of(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
