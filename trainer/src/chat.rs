//! `fledgling chat`: a conversation in the terminal, with line editing there and line by line in a pipe.

use crate::{
    cache,
    generate::{SamplingArgs, SpeculationArgs, Talk, positive},
    model::{self, EngineArgs, Model, context_len},
    output::{note, print, print_json},
};
use anyhow::{Context, Result};
use fledgling_core::{chat::Message, cpu::CpuEngine, cpu::Session, generate::Generation};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::json;
use std::{
    io::{IsTerminal, stdin},
    path::PathBuf,
    time::Instant,
};

/// Positions of a conversation unless asked otherwise: enough for some twenty turns, and little memory.
const DEFAULT_CTX: usize = 4096;
const HELP: &str =
    "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer";

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling chat smollm2-135m-instruct\n  fledgling chat runs/mine --system \"Answer in one sentence.\" --temperature 0.7\n  \
    printf 'Hello\\n/exit\\n' | fledgling chat model.gguf --json\n\nIn the conversation: /reset forgets it, /exit ends it, Ctrl-C stops an answer."
)]
pub struct Args {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// A system message that the conversation begins with
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens of one answer at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Positions of the context (default: 4096, or the model's when it has fewer)
    #[arg(long, value_name = "N", value_parser = positive)]
    ctx: Option<usize>,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// One line of JSON for each answer
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the model does not load or has no chat template, or a parameter is out of range.
pub fn run(args: &Args) -> Result<()> {
    let model = model::open(&args.model)?;
    let mut conversation = Conversation::new(args, &model)?;
    let n_ctx = context_len(&model, args.ctx, DEFAULT_CTX)?;
    let engine = args.engine.load(&model)?;
    let mut session = engine.session(n_ctx)?;
    let mut lines = Lines::open(&model.info.name)?;
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => conversation.reset(),
            "/help" => note(HELP),
            command if command.starts_with('/') && !command.contains(' ') => {
                note(format!("`{command}` is not known. {HELP}"));
            }
            text => conversation.turn(text, &engine, &mut session)?,
        }
    }
    lines.save();
    Ok(())
}

/// The messages so far.
struct Conversation<'a> {
    args: &'a Args,
    model: &'a Model,
    messages: Vec<Message>,
}

impl<'a> Conversation<'a> {
    fn new(args: &'a Args, model: &'a Model) -> Result<Self> {
        // A missing or broken template, or one that refuses the system message, is told before the first line.
        let mut conversation = Self {
            args,
            model,
            messages: Vec::new(),
        };
        conversation.reset();
        let mut hello = conversation.messages.clone();
        hello.push(Message {
            role: "user".into(),
            content: "Hello".into(),
        });
        model
            .info
            .encode_chat(&hello)
            .with_context(|| format!("{} cannot chat; try `fledgling generate`", model.name))?;
        Ok(conversation)
    }

    fn reset(&mut self) {
        let system = self.args.system.iter().map(|content| Message {
            role: "system".into(),
            content: content.clone(),
        });
        self.messages = system.collect();
    }

    fn turn(&mut self, text: &str, engine: &CpuEngine, session: &mut Session) -> Result<()> {
        let started = Instant::now();
        self.messages.push(Message {
            role: "user".into(),
            content: text.to_owned(),
        });
        let prompt = self.fitting_prompt(session.n_ctx())?;
        let params = self.args.sampling.params(Some(self.args.max_tokens), false);
        let generation = match Generation::new(
            self.model.info.tokenizer.clone(),
            &prompt,
            session.n_ctx(),
            &params,
        ) {
            Ok(generation) => generation,
            Err(error @ fledgling_core::generate::GenerateError::PromptTooLong { .. }) => {
                self.messages.pop();
                note(format!("{error}; the message was not sent"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut talk = Talk {
            engine,
            session,
            speculate: self.args.speculation.speculate,
        };
        let answer = talk.answer(generation, started, |text| {
            if self.args.json { Ok(()) } else { print(text) }
        })?;
        if self.args.json {
            print_json(
                &json!({"role": "assistant", "content": answer.text, "finish_reason": answer.finish_reason, "tokens_per_s": answer.tokens_per_s}),
            )?;
        } else {
            print("\n")?;
            if answer.finish_reason != "stop" {
                note(answer.summary());
            }
        }
        self.messages.push(Message {
            role: "assistant".into(),
            content: answer.text,
        });
        Ok(())
    }

    /// The conversation's ids; the oldest turns are left out when they leave no room for an answer.
    fn fitting_prompt(&mut self, n_ctx: usize) -> Result<Vec<u32>> {
        let room = self.args.max_tokens.min(n_ctx / 4);
        let n_system = self
            .messages
            .iter()
            .take_while(|message| message.role == "system")
            .count();
        let mut n_dropped = 0;
        loop {
            let prompt = self.model.info.encode_chat(&self.messages)?;
            if prompt.len() + room <= n_ctx || self.messages.len() < n_system + 3 {
                if n_dropped > 0 {
                    note(format!(
                        "the context of {n_ctx} tokens is full: the oldest {n_dropped} messages were left out"
                    ));
                }
                return Ok(prompt);
            }
            self.messages.drain(n_system..n_system + 2);
            n_dropped += 2;
        }
    }
}

/// Where the user's lines come from.
enum Lines {
    Terminal {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
    },
    Pipe,
}

impl Lines {
    fn open(model_name: &str) -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        note(format!("{model_name}. {HELP}"));
        let mut editor =
            DefaultEditor::new().context("the terminal cannot be set up for line editing")?;
        let history = cache::home().ok().map(|home| home.join("chat_history"));
        if let Some(history) = history.as_ref().filter(|history| history.exists()) {
            // A history that cannot be read is no reason not to talk.
            let _ = editor.load_history(history);
        }
        Ok(Self::Terminal {
            editor: Box::new(editor),
            history,
        })
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Pipe => {
                let mut line = String::new();
                let n_read = stdin()
                    .read_line(&mut line)
                    .context("standard input cannot be read (it must be UTF-8)")?;
                Ok((n_read > 0).then_some(line))
            }
            Self::Terminal { editor, .. } => match editor.readline("> ") {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error).context("the terminal cannot be read"),
            },
        }
    }

    fn save(&mut self) {
        if let Self::Terminal {
            editor,
            history: Some(history),
        } = self
        {
            // Losing the history loses no work.
            let _ = std::fs::create_dir_all(crate::files::folder_of(history));
            let _ = editor.save_history(history);
        }
    }
}
