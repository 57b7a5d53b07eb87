//! A Lambda function behind a URL, as a template for AWS SAM: `sam deploy`, or `aws cloudformation package` and `deploy`.

use crate::{
    bundle::{Bundle, Source, resource_name},
    cost::{Cost, Load, PRICES, Prices, cpus, estimate},
};
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use std::path::PathBuf;

/// A package and its layers, unpacked (AWS, "Lambda quotas").
const MAX_UNPACKED: u64 = 250 << 20;
/// Seconds a function may run.
const MAX_TIMEOUT_S: u64 = 900;

/// Which processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Arch {
    /// Intel and AMD.
    #[serde(rename = "x86_64")]
    X86_64,
    /// Graviton.
    #[serde(rename = "arm64")]
    Arm64,
}

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct Options {
    /// The function's name; [`resource_name`] makes it one.
    pub name: String,
    /// The model's file.
    pub model: PathBuf,
    /// Its bytes.
    pub model_bytes: u64,
    /// The function's program, `fledgling-lambda` built for [`Options::arch`].
    pub bootstrap: PathBuf,
    /// Its bytes.
    pub bootstrap_bytes: u64,
    /// For which processor.
    pub arch: Arch,
    /// Memory, which brings CPUs; `None` is what the model needs.
    pub memory_mb: Option<u64>,
    /// Seconds that a request may take.
    pub timeout_s: u64,
    /// Environments at once, which bounds the bill; `None` leaves it to the account.
    pub concurrency: Option<u64>,
    /// Days that logs are kept.
    pub retention_days: u64,
    /// A key in Secrets Manager, without which nobody is answered.
    pub has_key: bool,
    /// Origins whose pages may call it.
    pub allow_origins: Vec<String>,
    /// Write a zip beside the template in place of a folder.
    pub is_zipped: bool,
    /// What was measured; `None` leaves the cost out.
    pub load: Option<Load>,
}

/// What the template is made of.
#[derive(Debug, Serialize)]
struct Template<'a> {
    name: &'a str,
    arch: Arch,
    memory_mb: u64,
    timeout_s: u64,
    slow_ms: u64,
    concurrency: Option<u64>,
    retention_days: u64,
    has_key: bool,
    allow_origins: &'a [String],
    code: &'a str,
    version: &'static str,
    costs: &'a [Cost],
    load: Option<Load>,
    prices: Prices,
    cpus: String,
}

/// The files, and what requests will cost.
#[derive(Debug)]
pub struct Deployment {
    /// The files.
    pub bundle: Bundle,
    /// Of 1,000 and of 1,000,000 requests.
    pub costs: Vec<Cost>,
    /// Memory of the function.
    pub memory_mb: u64,
    /// Its name.
    pub name: String,
}

/// Makes the files: `template.yaml`, the package, `samconfig.toml`.
///
/// # Errors
/// When Lambda would refuse it: too large, a timeout or memory out of range.
pub fn deploy(options: &Options) -> Result<Deployment> {
    let unpacked = options.model_bytes + options.bootstrap_bytes;
    if unpacked > MAX_UNPACKED {
        bail!(
            "the model and the program are {} MB, a Lambda package may have {}: quantise it further (`fledgling export --quant q4_0`), or deploy it as a container",
            unpacked >> 20,
            MAX_UNPACKED >> 20
        );
    }
    ensure!(
        (1..=MAX_TIMEOUT_S).contains(&options.timeout_s),
        "--timeout {}: Lambda allows 1 to {MAX_TIMEOUT_S} seconds",
        options.timeout_s
    );
    ensure!(
        options.concurrency != Some(0),
        "--concurrency 0 would answer nobody"
    );
    ensure!(
        RETENTIONS.contains(&options.retention_days),
        "--retention {}: CloudWatch keeps logs for one of these numbers of days: {RETENTIONS:?}",
        options.retention_days
    );
    let memory_mb = options
        .memory_mb
        .unwrap_or_else(|| memory(options.model_bytes));
    ensure!(
        (128..=10_240).contains(&memory_mb),
        "--memory {memory_mb}: Lambda has 128 to 10240 MB"
    );
    ensure!(
        memory_mb << 20 > options.model_bytes + (64 << 20),
        "--memory {memory_mb}: the model alone has {} MB; {} are enough",
        options.model_bytes >> 20,
        memory(options.model_bytes)
    );
    let name = resource_name(&options.name);
    let is_arm = options.arch == Arch::Arm64;
    let costs: Vec<Cost> = options
        .load
        .iter()
        .flat_map(|load| [1000, 1_000_000].map(|n| estimate(load, memory_mb, is_arm, n)))
        .collect();
    let mut bundle = Bundle::default();
    let code = if options.is_zipped {
        let entries = vec![
            ("bootstrap".to_owned(), options.bootstrap.clone(), true),
            ("model.gguf".to_owned(), options.model.clone(), false),
        ];
        bundle
            .files
            .insert("function.zip".to_owned(), Source::Zip(entries));
        "function.zip"
    } else {
        bundle.copy("function/bootstrap", &options.bootstrap);
        bundle.executables.push("function/bootstrap".to_owned());
        bundle.copy("function/model.gguf", &options.model);
        "function/"
    };
    let template = Template {
        name: &name,
        arch: options.arch,
        memory_mb,
        timeout_s: options.timeout_s,
        slow_ms: options.timeout_s * 800,
        concurrency: options.concurrency,
        retention_days: options.retention_days,
        has_key: options.has_key,
        allow_origins: &options.allow_origins,
        code,
        version: env!("CARGO_PKG_VERSION"),
        costs: &costs,
        load: options.load,
        prices: PRICES,
        cpus: format!("{:.1}", cpus(memory_mb)),
    };
    bundle.template(
        "template.yaml",
        include_str!("templates/aws.yaml"),
        &template,
    )?;
    bundle.template(
        "samconfig.toml",
        include_str!("templates/samconfig.toml"),
        &template,
    )?;
    bundle.template("README.md", include_str!("templates/aws.md"), &template)?;
    Ok(Deployment {
        bundle,
        costs,
        memory_mb,
        name,
    })
}

/// Days that `CloudWatch` knows (AWS, `PutRetentionPolicy`).
const RETENTIONS: [u64; 22] = [
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922,
    3288, 3653,
];

/// Two CPUs for what fits beside them, and room for keys and values: the model, as much again up to 512 MB.
fn memory(model_bytes: u64) -> u64 {
    const TWO_CPUS_MB: u64 = 3538;
    let model_mb = model_bytes.div_ceil(1 << 20);
    (model_mb + model_mb.clamp(256, 512)).max(TWO_CPUS_MB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_yaml_ng::Value;
    use std::{fs, process::Command};

    fn options(folder: &std::path::Path) -> Options {
        fs::write(folder.join("m.gguf"), "GGUF").unwrap();
        fs::write(folder.join("b"), "#!").unwrap();
        Options {
            name: "My \"Model\": 1".to_owned(),
            model: folder.join("m.gguf"),
            model_bytes: 100 << 20,
            bootstrap: folder.join("b"),
            bootstrap_bytes: 5 << 20,
            arch: Arch::X86_64,
            memory_mb: None,
            timeout_s: 60,
            concurrency: Some(10),
            retention_days: 30,
            has_key: true,
            allow_origins: vec!["https://example.org".to_owned()],
            is_zipped: false,
            load: Some(Load {
                prefill_tokens_per_s: 1500.0,
                decode_tokens_per_s: 200.0,
                threads: 2,
                prompt_tokens: 200,
                answer_tokens: 100,
            }),
        }
    }

    fn variants(folder: &std::path::Path) -> Vec<Options> {
        let first = options(folder);
        vec![
            first.clone(),
            Options {
                has_key: false,
                concurrency: None,
                allow_origins: Vec::new(),
                is_zipped: true,
                load: None,
                arch: Arch::Arm64,
                ..first
            },
        ]
    }

    #[test]
    fn the_template_is_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let made = deploy(&options(dir.path())).unwrap();
        made.bundle.write(&folder, false).unwrap();
        let text = fs::read_to_string(folder.join("template.yaml")).unwrap();
        let template: Value = serde_yaml_ng::from_str(&text).unwrap();
        let function = &template["Resources"]["Function"]["Properties"];
        assert_eq!(function["FunctionName"], "my-model-1");
        assert_eq!(function["MemorySize"], 3538);
        assert_eq!(function["ReservedConcurrentExecutions"], 10);
        assert_eq!(
            function["Environment"]["Variables"]["FLEDGLING_ALLOW_ORIGINS"],
            "https://example.org"
        );
        assert_eq!(
            template["Resources"]["Url"]["Properties"]["InvokeMode"],
            "RESPONSE_STREAM"
        );
        // The role may write the function's own log and nothing else.
        let statements = template["Resources"]["Role"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"].as_sequence().unwrap();
        assert_eq!(statements.len(), 1);
        assert!(
            !serde_yaml_ng::to_string(statements)
                .unwrap()
                .contains("'*'")
        );
        let body = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
            .as_str()
            .unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["widgets"].as_array().unwrap().len() >= 4);
        assert!(folder.join("function/model.gguf").is_file());
        let config = fs::read_to_string(folder.join("samconfig.toml")).unwrap();
        assert!(config.contains("stack_name = \"my-model-1\""));
        let readme = fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(
            readme.contains("1000000") && readme.contains(PRICES.date),
            "{readme}"
        );
        assert_eq!(made.costs.len(), 2);
    }

    #[test]
    fn without_a_key_there_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let made = deploy(&variants(dir.path())[1]).unwrap();
        made.bundle.write(&folder, false).unwrap();
        let template: Value =
            serde_yaml_ng::from_str(&fs::read_to_string(folder.join("template.yaml")).unwrap())
                .unwrap();
        assert!(template["Resources"].get("ApiKey").is_none());
        assert!(
            template["Resources"]["Function"]["Properties"]
                .get("ReservedConcurrentExecutions")
                .is_none()
        );
        let mut zip =
            zip::ZipArchive::new(fs::File::open(folder.join("function.zip")).unwrap()).unwrap();
        let entry = zip.by_name("bootstrap").unwrap();
        assert_eq!(entry.unix_mode().unwrap() & 0o777, 0o755);
        drop(entry);
        assert_eq!(
            zip.by_name("model.gguf").unwrap().compression(),
            zip::CompressionMethod::Stored
        );
    }

    /// AWS's own linter, where it is installed (`pip install cfn-lint`).
    #[test]
    fn cfn_lint_finds_nothing() {
        let found = Command::new("cfn-lint").arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            eprintln!("cfn-lint is not installed: not checked");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (i, options) in variants(dir.path()).iter().enumerate() {
            let folder = dir.path().join(i.to_string());
            deploy(options)
                .unwrap()
                .bundle
                .write(&folder, false)
                .unwrap();
            let output = Command::new("cfn-lint")
                .arg(folder.join("template.yaml"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.trim().is_empty(), "{said}");
        }
    }

    #[test]
    fn what_lambda_would_refuse_is_refused_here() {
        let dir = tempfile::tempdir().unwrap();
        let error = |change: &dyn Fn(&mut Options)| {
            let mut options = options(dir.path());
            change(&mut options);
            deploy(&options).unwrap_err().to_string()
        };
        assert!(error(&|o| o.model_bytes = 260 << 20).contains("container"));
        assert!(error(&|o| o.timeout_s = 901).contains("--timeout"));
        assert!(error(&|o| o.memory_mb = Some(64)).contains("--memory"));
        assert!(error(&|o| o.memory_mb = Some(150)).contains("3538 are enough"));
        assert!(error(&|o| o.concurrency = Some(0)).contains("--concurrency"));
        assert!(error(&|o| o.retention_days = 31).contains("--retention"));
    }
}
