//! `fledgling tokenizer train`: a byte-level BPE tokenizer of one's own.

use crate::{
    data::Bars,
    files::human_bytes,
    output::{note, print, print_json},
};
use anyhow::{Result, ensure};
use fledgling_data::{
    collect,
    config::{Source, Split, SplitConfig},
    document::Document,
    split::split_of,
    tokenizer_training::{END_OF_TEXT, Options, TokenizerReport, report, train},
    words::identity,
};
use serde_json::json;
use std::path::PathBuf;

/// Train a tokenizer
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: TokenizerCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TokenizerCommand {
    Train(TrainArgs),
}

/// Train a byte-level BPE tokenizer (GPT-2's kind) on texts
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling tokenizer train corpus/ --vocab-size 8192 -o tokenizers/mine\n  fledgling tokenizer train notes.jsonl -o tokenizers/chat --special '<|im_start|>' \
    --special '<|im_end|>' --report\n\n\
    Writes tokenizer.json and tokenizer_config.json, which Hugging Face's libraries read too. Use it with `fledgling data prepare --tokenizer \
    tokenizers/mine/tokenizer.json`, and as `base` of a run with mode = \"scratch\"."
)]
struct TrainArgs {
    /// Files, folders, globs, `-` or http(s) addresses, as for `data prepare`
    #[arg(required = true)]
    sources: Vec<String>,
    /// The folder for the tokenizer's files
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Tokens, with the 256 of the bytes and the special ones
    #[arg(long, default_value_t = Options::default().vocab_size)]
    vocab_size: usize,
    /// A special token besides the one that ends a text; may be given several times
    #[arg(long, value_name = "TEXT")]
    special: Vec<String>,
    /// Pairs that occur less often are not merged
    #[arg(long, default_value_t = Options::default().min_frequency)]
    min_frequency: u64,
    /// Megabytes of text to look at; of more, pieces from everywhere are taken
    #[arg(long, default_value_t = Options::default().max_bytes >> 20)]
    max_mib: u64,
    /// Hold out a twentieth of the documents and say how well the tokenizer suits them
    #[arg(long)]
    report: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read or written, or options that do not fit each other.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        TokenizerCommand::Train(args) => run_train(args),
    }
}

fn run_train(args: &TrainArgs) -> Result<()> {
    let sources: Vec<Source> = args.sources.iter().map(|path| Source::of(path)).collect();
    ensure!(
        !args.report || args.sources.iter().all(|path| path != "-"),
        "--report reads the documents twice, which standard input does not allow"
    );
    let bars = Bars::begin();
    let options = Options {
        vocab_size: args.vocab_size,
        specials: std::iter::once(END_OF_TEXT.to_owned())
            .chain(args.special.iter().cloned())
            .collect(),
        min_frequency: args.min_frequency,
        max_bytes: args.max_mib << 20,
        total_bytes: total_bytes(&sources)?,
    };
    let held_out = |document: &Document| {
        let shares = SplitConfig {
            valid: if args.report { 0.05 } else { 0.0 },
            test: 0.0,
        };
        split_of(identity(&document.body), 0, None, &shares) == Split::Valid
    };
    let trained = train(
        texts(&sources, |document| !held_out(document))?,
        &options,
        &bars,
    )?;
    bars.clear();
    trained.write(&args.out)?;
    note(format!(
        "{} tokens from {} of text: {}",
        trained.vocab_size,
        human_bytes(trained.used_bytes),
        args.out.display()
    ));
    let report = if args.report {
        let texts = texts(&sources, held_out)?;
        Some(report(&trained.tokenizer()?, texts, &bars)?)
    } else {
        None
    };
    let path = args.out.join("tokenizer.json");
    if args.json {
        return print_json(&json!({
            "path": path, "vocab_size": trained.vocab_size, "used_bytes": trained.used_bytes, "report": report,
        }));
    }
    print(&format!("{}\n", path.display()))?;
    report.map_or(Ok(()), |report| print(&describe(&report)))
}

/// Bytes of all inputs where these tell how much text there is: stored as they are read.
fn total_bytes(sources: &[Source]) -> Result<Option<u64>> {
    let inputs = collect::find(sources)?.inputs;
    Ok(inputs.iter().map(|input| input.len_bytes).sum())
}

fn texts<'a>(
    sources: &'a [Source],
    wanted: impl Fn(&Document) -> bool + Send + 'a,
) -> Result<impl Iterator<Item = Result<String>> + Send + 'a> {
    let documents = collect::all(sources)?;
    Ok(documents.filter_map(move |document| match document {
        Ok(document) if wanted(&document) => Some(Ok(document.body.parts().join("\n"))),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }))
}

fn describe(report: &TokenizerReport) -> String {
    let longest: Vec<String> = report
        .longest
        .iter()
        .map(|token| format!("{:?}", token.text))
        .collect();
    format!(
        "held out: {} texts, {} words\n  bytes a token    {:8.3}\n  tokens a word    {:8.3}\n  single bytes     {:8.1} %\n  tokens that occur {:7.1} % of {}\n  longest          {}\n",
        report.texts,
        report.words,
        report.bytes_per_token,
        report.tokens_per_word,
        100.0 * report.single_byte_share,
        100.0 * report.coverage,
        report.vocab_size,
        longest.join(" ")
    )
}
