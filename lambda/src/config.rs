//! What the function's environment variables say.

use anyhow::{Context, Result, anyhow, bail};
use fledgling_core::cpu::Isa;
use fledgling_lambda::{ApiOptions, Records};
use std::{
    num::NonZeroUsize, path::PathBuf, str::FromStr, thread::available_parallelism, time::Duration,
};

/// Memory in MB that brings one virtual CPU (AWS, "Configure Lambda function memory").
const MB_A_CPU: f64 = 1769.0;

/// Share of the memory for keys and values, of what runs and what is kept: the model and the rest need theirs.
const KV_SHARE: f64 = 0.25;

/// How the function's answers travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvokeMode {
    /// Piece by piece: function URLs with `RESPONSE_STREAM`, REST APIs that stream.
    ResponseStream,
    /// In one piece: HTTP APIs, function URLs with `BUFFERED`. `stream: true` then arrives at once at the end.
    Buffered,
}

/// A function's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) model: PathBuf,
    pub(crate) n_threads: usize,
    /// The best that the CPU has when `None`.
    pub(crate) isa: Option<Isa>,
    pub(crate) invoke_mode: InvokeMode,
    pub(crate) api: ApiOptions,
}

impl Config {
    /// Reads the variables through `var`.
    ///
    /// # Errors
    /// With the variable that is missing or makes no sense.
    pub(crate) fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        for name in ["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME"] {
            var(name).with_context(|| {
                format!("{name} is not set: this program is started by AWS Lambda; on your own machine use `fledgling serve`")
            })?;
        }
        let default = ApiOptions::default();
        let memory_mb: Option<f64> =
            var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").and_then(|mb| mb.parse().ok());
        let kv_mb =
            count(&var, "FLEDGLING_KV_MEMORY_MB")?.or(memory_mb.map(|mb| (mb * KV_SHARE) as usize));
        let timeout_s = count(&var, "FLEDGLING_TIMEOUT_S")?;
        let api = ApiOptions {
            model_id: var("FLEDGLING_MODEL_ID"),
            aliases: list(var("FLEDGLING_MODEL_ALIASES")),
            n_ctx: count(&var, "FLEDGLING_N_CTX")?,
            max_tokens: count(&var, "FLEDGLING_MAX_TOKENS")?,
            kv_bytes: kv_mb.map_or(default.kv_bytes, |mb| mb.saturating_mul(1 << 20)),
            timeout: timeout_s.map(|s| Duration::from_secs(s as u64)),
            api_keys: list(var("FLEDGLING_API_KEYS")),
            allow_origins: list(var("FLEDGLING_ALLOW_ORIGINS")),
            records: if writes_records(var("FLEDGLING_LOG").as_deref()) {
                Records::to(std::io::stdout())
            } else {
                Records::default()
            },
            ..default
        };
        Ok(Self {
            model: model_path(&var),
            n_threads: count(&var, "FLEDGLING_THREADS")?.unwrap_or_else(|| {
                threads(
                    memory_mb,
                    available_parallelism().map_or(1, NonZeroUsize::get),
                )
            }),
            isa: isa(&var)?,
            invoke_mode: invoke_mode(&var)?,
            api,
        })
    }
}

/// Whether each request leaves its record on standard output, where CloudWatch makes metrics of it: unless `FLEDGLING_LOG` says something else
/// than `metrics`.
fn writes_records(log: Option<&str>) -> bool {
    log.is_none_or(|log| log.split(',').any(|word| word.trim() == METRICS))
}

/// What `FLEDGLING_LOG` says of the levels of other lines: `info` where it says nothing.
pub(crate) fn log_levels(log: Option<&str>) -> String {
    let words = log.unwrap_or_default().split(',').map(str::trim);
    let levels: Vec<&str> = words
        .filter(|word| !word.is_empty() && *word != METRICS)
        .collect();
    if levels.is_empty() {
        "info".to_owned()
    } else {
        levels.join(",")
    }
}

const METRICS: &str = "metrics";

/// `FLEDGLING_MODEL`, relative to the function's package; `model.gguf` there when unset.
fn model_path(var: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let root = var("LAMBDA_TASK_ROOT").map_or_else(PathBuf::new, PathBuf::from);
    root.join(var("FLEDGLING_MODEL").unwrap_or_else(|| "model.gguf".to_owned()))
}

fn invoke_mode(var: &impl Fn(&str) -> Option<String>) -> Result<InvokeMode> {
    const NAME: &str = "FLEDGLING_INVOKE_MODE";
    match var(NAME).as_deref() {
        None | Some("response_stream") => Ok(InvokeMode::ResponseStream),
        Some("buffered") => Ok(InvokeMode::Buffered),
        Some(other) => bail!("{NAME} is `{other}`, it must be `response_stream` or `buffered`"),
    }
}

fn isa(var: &impl Fn(&str) -> Option<String>) -> Result<Option<Isa>> {
    const NAME: &str = "FLEDGLING_CPU";
    let parse = |name: String| name.parse().map_err(|error| anyhow!("{NAME}: {error}"));
    var(NAME).map(parse).transpose()
}

/// One thread for each virtual CPU that the memory brings: more would spin against each other on shares of one.
fn threads(memory_mb: Option<f64>, n_cpus: usize) -> usize {
    let n_paid = memory_mb.map_or(n_cpus, |mb| (mb / MB_A_CPU).round() as usize);
    n_paid.clamp(1, n_cpus.max(1))
}

fn count(var: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    let Some(value) = var(name) else {
        return Ok(None);
    };
    match NonZeroUsize::from_str(&value) {
        Ok(count) => Ok(Some(count.get())),
        Err(_) => bail!("{name} is `{value}`, it must be a whole number of at least 1"),
    }
}

/// Values separated by commas.
fn list(value: Option<String>) -> Vec<String> {
    let value = value.unwrap_or_default();
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Result<Config> {
        let lambda = [
            ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1"),
            ("AWS_LAMBDA_FUNCTION_NAME", "f"),
        ];
        let all: Vec<_> = vars.iter().chain(&lambda).copied().collect();
        Config::from_env(|name| {
            all.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn nothing_set_means_the_model_in_the_package() {
        let config = config(&[("LAMBDA_TASK_ROOT", "/var/task")]).unwrap();
        assert_eq!(config.model, PathBuf::from("/var/task/model.gguf"));
        assert_eq!(config.invoke_mode, InvokeMode::ResponseStream);
        assert_eq!(config.api.n_ctx, None);
        assert!(config.api.api_keys.is_empty());
    }

    #[test]
    fn an_absolute_path_stands_for_itself() {
        let config = config(&[
            ("LAMBDA_TASK_ROOT", "/var/task"),
            ("FLEDGLING_MODEL", "/mnt/m.gguf"),
        ]);
        assert_eq!(config.unwrap().model, PathBuf::from("/mnt/m.gguf"));
    }

    #[test]
    fn threads_follow_the_memory() {
        assert_eq!(threads(Some(512.0), 2), 1);
        assert_eq!(threads(Some(1769.0), 2), 1);
        assert_eq!(threads(Some(3008.0), 2), 2);
        assert_eq!(threads(Some(10_240.0), 6), 6);
        assert_eq!(threads(None, 4), 4);
    }

    #[test]
    fn records_are_written_unless_the_log_is_about_something_else() {
        for (log, records, levels) in [
            (None, true, "info"),
            (Some("metrics"), true, "info"),
            (Some("off"), false, "off"),
            (Some("warn, metrics"), true, "warn"),
            (Some("debug"), false, "debug"),
        ] {
            assert_eq!(writes_records(log), records, "{log:?}");
            assert_eq!(log_levels(log), levels, "{log:?}");
        }
    }

    #[test]
    fn keys_and_values_take_a_share_of_the_memory() {
        let kv_bytes = |vars: &[(&str, &str)]| config(vars).unwrap().api.kv_bytes;
        let memory = ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512");
        assert_eq!(kv_bytes(&[memory]), 128 << 20);
        assert_eq!(
            kv_bytes(&[memory, ("FLEDGLING_KV_MEMORY_MB", "64")]),
            64 << 20
        );
        assert_eq!(kv_bytes(&[]), ApiOptions::default().kv_bytes);
        let timeout = config(&[("FLEDGLING_TIMEOUT_S", "25")])
            .unwrap()
            .api
            .timeout;
        assert_eq!(timeout, Some(Duration::from_secs(25)));
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let config = config(&[("FLEDGLING_API_KEYS", "a, b,,")]).unwrap();
        assert_eq!(config.api.api_keys, ["a", "b"]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (name, value) in [
            ("FLEDGLING_THREADS", "0"),
            ("FLEDGLING_THREADS", "two"),
            ("FLEDGLING_N_CTX", "-1"),
            ("FLEDGLING_KV_MEMORY_MB", "0"),
            ("FLEDGLING_TIMEOUT_S", "1.5"),
            ("FLEDGLING_INVOKE_MODE", "stream"),
            ("FLEDGLING_CPU", "sse9"),
        ] {
            let error = config(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let error = Config::from_env(|_| None).unwrap_err().to_string();
        assert!(error.contains("fledgling serve"), "{error}");
    }
}
