//! Configs in TOML, with overrides of the command line, and mistakes named by their key.

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a file and the overrides (`section.key=value`) of the command line.
///
/// # Errors
/// With the file, the key, and what is allowed.
pub fn load<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the config {}", path.display()))?;
    parse(&text, overrides).with_context(|| format!("in the config {}", path.display()))
}

/// Reads the text of a config.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(text: &str, overrides: &[String]) -> Result<T> {
    let mut table: toml::Table = toml::from_str(text)?;
    for item in overrides {
        set(&mut table, item)?;
    }
    read(table)
}

/// What a table says.
///
/// # Errors
/// With the key, and what is allowed there.
pub fn read<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    serde_path_to_error::deserialize(table).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner().message())
    })
}

/// Puts `section.key=value` in; a value that is no TOML is taken as a string.
///
/// # Errors
/// When it is not of that form, or goes through something that is no section.
pub fn set(table: &mut toml::Table, item: &str) -> Result<()> {
    let Some((path, text)) = item.split_once('=') else {
        bail!("--set {item}: give it as key=value, for example train.lr=1e-3");
    };
    let value = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let (sections, key) = match path.trim().rsplit_once('.') {
        Some((sections, key)) => (sections.split('.').collect(), key),
        None => (Vec::new(), path.trim()),
    };
    let mut place = table;
    for section in sections {
        let entry = place
            .entry(section)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        place = entry
            .as_table_mut()
            .with_context(|| format!("--set {item}: `{section}` is no section"))?;
    }
    place.insert(key.to_owned(), value);
    Ok(())
}

/// serde's message with the path, and for an unknown key the nearest known one.
fn explain(path: &str, message: &str) -> anyhow::Error {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some(&unknown), true) = (names.first(), message.starts_with("unknown field")) else {
        return match path {
            "." => anyhow!("{message}"),
            _ => anyhow!("{path}: {message}"),
        };
    };
    let known = &names[1..];
    let nearest = known
        .iter()
        .map(|key| (strsim::jaro_winkler(unknown, key), key))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, key)) if similarity > 0.7 => {
            anyhow!("unknown key `{path}`: did you mean `{key}`?")
        }
        _ => anyhow!(
            "unknown key `{path}`; the keys here are {}",
            known.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only its name matters")]
        name: String,
        #[serde(default)]
        train: Inner,
        #[serde(default)]
        source: Vec<Inner>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        lr: f64,
        warmup: u64,
    }

    #[test]
    fn overrides_win_and_may_be_bare_words() {
        let overrides = ["train.lr=2e-3".to_owned(), "name=a/b.txt".to_owned()];
        let config: Outer =
            parse("name = 'x'\n[train]\nlr = 1.0\nwarmup = 3\n", &overrides).unwrap();
        assert!((config.train.lr - 2e-3).abs() < 1e-12);
        assert_eq!(config.train.warmup, 3);
        assert!(config.source.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, overrides: &[&str], expect: &str| {
            let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
            let error = parse::<Outer>(text, &overrides).unwrap_err();
            assert!(format!("{error:#}").contains(expect), "{error:#}");
        };
        check(
            "name='a'\n[train]\nwarm_up=1",
            &[],
            "unknown key `train.warm_up`: did you mean `warmup`?",
        );
        check(
            "name='a'\n[trian]\n",
            &[],
            "unknown key `trian`: did you mean `train`?",
        );
        check(
            "name='a'\nzzz=1",
            &[],
            "the keys here are name, train, source",
        );
        check(
            "name='a'\n[[source]]\nlr='x'",
            &[],
            "source[0].lr: invalid type",
        );
        check("[train]", &[], "missing field `name`");
        check("name='a'", &["oops"], "key=value");
        check("name='a'", &["name.x=1"], "`name` is no section");
    }
}
