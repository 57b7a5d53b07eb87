//! `fledgling deploy`: the files that put a model on AWS Lambda, into a container, or on a static host.

use crate::{
    bench,
    files::human_bytes,
    model,
    output::{note, print, print_json},
    page::find_page,
};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use fledgling_core::gguf::split::PartName;
use fledgling_deploy::{
    aws::{self, Arch},
    container,
    cost::{Cost, Load, PRICES},
    site,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write the files that put a model on AWS Lambda, into a container, or on a static host
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Target {
    Aws(AwsArgs),
    Container(ContainerArgs),
    Static(StaticArgs),
}

/// What all targets take.
#[derive(Debug, clap::Args)]
struct Common {
    /// A GGUF file, or a pulled model's name
    model: String,
    /// The folder to write (default: deploy-NAME)
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// The name in the cloud (default: the file's)
    #[arg(long)]
    name: Option<String>,
    /// Write the folder anew when this command wrote it before
    #[arg(long)]
    force: bool,
    /// Print {"folder":…,"files":[…],"costs":…}
    #[arg(long)]
    json: bool,
}

/// A Lambda function behind a URL: a template for AWS SAM, the package, and what it will cost
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling deploy aws model.gguf && cd deploy-model && sam deploy --guided\n  \
    fledgling deploy aws model.gguf --arch arm64 --bootstrap target/lambda/fledgling-lambda/bootstrap --concurrency 5\n\n\
    The function's program is found beside this command as `fledgling-lambda` or `bootstrap`; it is built with `cargo lambda build --release -p fledgling-lambda`."
)]
struct AwsArgs {
    #[command(flatten)]
    common: Common,
    /// The function's program
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// Which processor the program is built for
    #[arg(long, value_parser = ["x86_64", "arm64"], default_value = "x86_64")]
    arch: String,
    /// Memory, which brings CPUs: 1769 MB is one (default: two CPUs, or what the model needs)
    #[arg(long, value_name = "MB")]
    memory: Option<u64>,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Requests that run at once at most, which bounds the bill
    #[arg(long, value_name = "N")]
    concurrency: Option<u64>,
    /// Days that logs are kept
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    retention: u64,
    /// No key: everybody who knows the URL may use it
    #[arg(long)]
    open: bool,
    /// A web origin whose pages may call it; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// A zip in place of a folder
    #[arg(long)]
    zip: bool,
    /// Measured speeds for the cost, PREFILL,DECODE in tokens a second of one CPU (default: measured now)
    #[arg(long, value_name = "P,D", value_parser = speeds)]
    speed: Option<(f64, f64)>,
    /// Tokens of a prompt and of an answer that the cost is of
    #[arg(long, value_name = "P,A", value_parser = tokens, default_value = "200,100")]
    tokens: (u64, u64),
}

/// An image with the command and the model, and manifests for Cloud Run, Azure Container Apps and Kubernetes
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling deploy container model.gguf --image registry.example.org/mine:1 && docker build -t registry.example.org/mine:1 deploy-model"
)]
struct ContainerArgs {
    #[command(flatten)]
    common: Common,
    /// The image's name (default: NAME:latest)
    #[arg(long)]
    image: Option<String>,
    /// The image it is made on; its C library must be at least as new as this machine's
    #[arg(long, default_value = "debian:13-slim")]
    base: String,
    /// The command for the image, built for Linux (default: this one)
    #[arg(long, value_name = "FILE")]
    command: Option<PathBuf>,
    /// CPUs of an instance
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u64,
    /// Instances at most
    #[arg(long, value_name = "N", default_value_t = 4)]
    max_instances: u64,
    /// No key: everybody who reaches it may use it
    #[arg(long)]
    open: bool,
}

/// The page with its model as plain files, for S3 with CloudFront or any static host
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling deploy static model.gguf && deploy-model/upload.sh s3://my-bucket"
)]
struct StaticArgs {
    #[command(flatten)]
    common: Common,
    /// The folder of the built page (default: found beside the command or in web/dist)
    #[arg(long, value_name = "DIR")]
    page: Option<PathBuf>,
    /// A web origin whose pages may load the model; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// The host's limit of one file, where it has one (Cloudflare Pages: 25)
    #[arg(long, value_name = "MIB")]
    max_file: Option<u64>,
}

fn pair<T: std::str::FromStr + PartialOrd + Default>(text: &str) -> Option<(T, T)> {
    let (a, b) = text.split_once(',')?;
    let both = (a.trim().parse().ok()?, b.trim().parse().ok()?);
    (both.0 > T::default() && both.1 > T::default()).then_some(both)
}

fn speeds(text: &str) -> Result<(f64, f64), String> {
    pair(text)
        .filter(|(a, b): &(f64, f64)| a.is_finite() && b.is_finite())
        .ok_or_else(|| "give two numbers above 0, for example 700,150".to_owned())
}

fn tokens(text: &str) -> Result<(u64, u64), String> {
    pair(text).ok_or_else(|| "give two numbers above 0, for example 200,100".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When the model or a program is not there, the target would refuse it, or the folder cannot be written.
pub fn run(args: &Args) -> Result<()> {
    match &args.target {
        Target::Aws(args) => to_aws(args),
        Target::Container(args) => to_container(args),
        Target::Static(args) => to_static(args),
    }
}

/// The model's file, its length and the name of what is deployed.
fn located(common: &Common) -> Result<(PathBuf, u64, String)> {
    let path = model::locate(&common.model)?;
    let len_bytes = std::fs::metadata(&path)
        .with_context(|| path.display().to_string())?
        .len();
    ensure!(
        path.is_file(),
        "{}: this is a folder; export it first (`fledgling export {} -o model.gguf`)",
        common.model,
        common.model
    );
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    ensure!(
        PartName::parse(&file_name).is_none(),
        "{file_name}: this is a part of a model; export it as one file"
    );
    // Whatever is deployed must open.
    model::open_gguf(&path)?;
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok((path, len_bytes, common.name.clone().unwrap_or(stem)))
}

fn folder(common: &Common, name: &str) -> PathBuf {
    let ours = || {
        PathBuf::from(format!(
            "deploy-{}",
            fledgling_deploy::bundle::resource_name(name)
        ))
    };
    common.output.clone().unwrap_or_else(ours)
}

fn to_aws(args: &AwsArgs) -> Result<()> {
    let (path, model_bytes, name) = located(&args.common)?;
    let bootstrap = bootstrap(args.bootstrap.as_deref())?;
    let bootstrap_bytes = bootstrap
        .metadata()
        .with_context(|| bootstrap.display().to_string())?
        .len();
    let speed = match args.speed {
        Some(speed) => speed,
        None => bench::one_thread(&args.common.model)?,
    };
    let options = aws::Options {
        name: name.clone(),
        model: path,
        model_bytes,
        bootstrap,
        bootstrap_bytes,
        arch: if args.arch == "arm64" {
            Arch::Arm64
        } else {
            Arch::X86_64
        },
        memory_mb: args.memory,
        timeout_s: args.timeout,
        concurrency: args.concurrency,
        retention_days: args.retention,
        has_key: !args.open,
        allow_origins: args.allow_origin.clone(),
        is_zipped: args.zip,
        load: Some(Load {
            prefill_tokens_per_s: speed.0,
            decode_tokens_per_s: speed.1,
            threads: 1,
            prompt_tokens: args.tokens.0,
            answer_tokens: args.tokens.1,
        }),
    };
    let made = aws::deploy(&options)?;
    let folder = folder(&args.common, &name);
    made.bundle.write(&folder, args.common.force)?;
    if args.common.json {
        let files: Vec<_> = made.bundle.files.keys().collect();
        return print_json(
            &json!({"folder": folder, "files": files, "name": made.name, "memory_mb": made.memory_mb, "costs": made.costs, "prices": PRICES}),
        );
    }
    print(&format!(
        "{}\n{} with {} of model, {} MB of memory\n{}next: cd {} && sam deploy --guided\n",
        folder.display(),
        made.name,
        human_bytes(model_bytes),
        made.memory_mb,
        costs(&made.costs, &options),
        folder.display()
    ))
}

fn costs(costs: &[Cost], options: &aws::Options) -> String {
    let Some(load) = options.load else {
        return String::new();
    };
    let mut text = format!(
        "{} tokens of prompt and {} of answer at {:.0} and {:.0} tokens a second of one CPU, prices of {} as of {}, no free tier:\n",
        load.prompt_tokens,
        load.answer_tokens,
        load.prefill_tokens_per_s,
        load.decode_tokens_per_s,
        PRICES.region,
        PRICES.date
    );
    for cost in costs {
        text += &format!(
            "{:>11} requests of {:.2} s: ${:.4}\n",
            cost.requests, cost.seconds, cost.total
        );
    }
    text
}

/// The function's program: the one that was named, or one beside this command.
fn bootstrap(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        ensure!(
            path.is_file(),
            "--bootstrap {}: there is no such file",
            path.display()
        );
        return Ok(path.to_owned());
    }
    let command = std::env::current_exe().context("cannot find this command's own folder")?;
    let beside = command.parent().unwrap_or(Path::new("."));
    let places = ["fledgling-lambda", "bootstrap"].map(|name| beside.join(name));
    match places.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "the function's program is not in {}: build it with `cargo lambda build --release -p fledgling-lambda` (or `cargo build --release -p fledgling-lambda`) and name it with --bootstrap",
            beside.display()
        ),
    }
}

fn to_container(args: &ContainerArgs) -> Result<()> {
    let (path, model_bytes, name) = located(&args.common)?;
    let command = match &args.command {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("cannot find this command's own file")?,
    };
    if cfg!(not(target_os = "linux")) && args.command.is_none() {
        note("this command is not built for Linux: name one that is with --command");
    }
    let resource = fledgling_deploy::bundle::resource_name(&name);
    let bundle = container::deploy(&container::Options {
        name: name.clone(),
        model: path,
        model_bytes,
        command,
        image: args
            .image
            .clone()
            .unwrap_or_else(|| format!("{resource}:latest")),
        base: args.base.clone(),
        cpus: args.cpus,
        max_instances: args.max_instances,
        has_key: !args.open,
    })?;
    finish(
        &bundle,
        &folder(&args.common, &name),
        &args.common,
        "its README.md says how it is built and run",
    )
}

fn to_static(args: &StaticArgs) -> Result<()> {
    let (path, _, name) = located(&args.common)?;
    let Some(page) = find_page(args.page.as_deref())? else {
        bail!(
            "the page is not built: build it with `cargo xtask web`, or name its folder with --page"
        );
    };
    let bundle = site::deploy(&site::Options {
        name: name.clone(),
        model: path,
        page,
        allow_origins: args.allow_origin.clone(),
        max_file_bytes: args.max_file.map(|mib| mib << 20),
    })?;
    finish(
        &bundle,
        &folder(&args.common, &name),
        &args.common,
        "upload site/, or run upload.sh s3://BUCKET",
    )
}

fn finish(
    bundle: &fledgling_deploy::bundle::Bundle,
    folder: &Path,
    common: &Common,
    next: &str,
) -> Result<()> {
    bundle.write(folder, common.force)?;
    if common.json {
        let files: Vec<_> = bundle.files.keys().collect();
        return print_json(&json!({"folder": folder, "files": files}));
    }
    print(&format!("{}\n{next}\n", folder.display()))
}
