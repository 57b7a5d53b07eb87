//! The command line: which commands there are, and what an error becomes.

use crate::{
    bench, chat, data, deploy, doctor, eval, export, generate, inspect, interrupt, monitor,
    output::{StdoutClosed, UsageError, note},
    pull, runs, serve, tokenize, tokenizer, verify,
};
use anyhow::{Error, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Fine-tune a small GPT, evaluate it, export one GGUF file, and run it anywhere
#[derive(Debug, Parser)]
#[command(name = "fledgling", version, max_term_width = 120)]
#[command(
    after_help = "Example:\n  fledgling pull smollm2-135m-instruct\n  fledgling chat smollm2-135m-instruct\n\n\
    Exit status: 0 fine, 1 failed, 2 wrong use, 3 alarm (monitor), 130 ended by Ctrl-C. Results go to standard output, all else to standard error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Doctor(doctor::Args),
    Pull(pull::Args),
    Data(data::Args),
    #[cfg(feature = "train")]
    Train(crate::train::TrainArgs),
    Runs(runs::Args),
    Eval(eval::Args),
    Export(export::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Serve(serve::Args),
    Deploy(deploy::Args),
    Monitor(monitor::Args),
    Tokenize(tokenize::Args),
    Tokenizer(tokenizer::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Bench(bench::Args),
}

/// Parses the command line, runs the command, and says what its exit status is.
pub fn main() -> ExitCode {
    // clap ends wrong use itself, with status 2.
    let cli = Cli::parse();
    #[cfg(feature = "train")]
    crate::train::probe::this_is_the_command();
    if let Err(error) = interrupt::install() {
        note(format!("Ctrl-C will not clean up: {error}"));
    }
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Doctor(args) => doctor::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Data(args) => data::run(args),
        #[cfg(feature = "train")]
        Command::Train(args) => crate::train::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Export(args) => export::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Deploy(args) => deploy::run(args),
        Command::Monitor(args) => monitor::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Bench(args) => bench::run(args),
    }
}

/// `key=value`, for `--set`.
///
/// # Errors
/// When there is no `=`.
pub fn key_value(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("give it as key=value, for example train.lr=1e-3".to_owned()),
    }
}

fn report(error: &Error) -> ExitCode {
    if error.is::<StdoutClosed>() {
        return ExitCode::SUCCESS;
    }
    if error.is::<monitor::Alarmed>() {
        return ExitCode::from(3);
    }
    note(format!("error: {error:#}"));
    if error.chain().any(<dyn std::error::Error>::is::<UsageError>) {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &clap::Command) {
            assert!(
                command.get_about().is_some(),
                "{} says what it does",
                command.get_name()
            );
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
            } else {
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    help.contains("Example"),
                    "{} shows an example",
                    command.get_name()
                );
            }
        }
        let command = Cli::command();
        command.clone().debug_assert();
        check(&command);
    }
}
