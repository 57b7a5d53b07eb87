//! The Hugging Face hub: `/api/models/…` lists a repository, `/{owner}/{repo}/resolve/{revision}/{file}` has its files.
//!
//! The endpoint comes from `HF_ENDPOINT` and the token from `HF_TOKEN`, as in the hub's own tools.

use super::{
    http::{Client, Wanted},
    source::HubSource,
};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};

const SAFETENSORS: &str = "model.safetensors";
const ENDPOINT: &str = "https://huggingface.co";

/// A repository at one commit.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// The commit that the revision stands for.
    pub sha: String,
    #[serde(default)]
    siblings: Vec<RepoFile>,
}

#[derive(Debug, Clone, Deserialize)]
struct RepoFile {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// What a repository gave.
#[derive(Debug)]
pub enum Fetched {
    /// One GGUF file, ready.
    Gguf(PathBuf),
    /// A folder of weights, `config.json` and the tokenizer.
    Folder(PathBuf),
}

/// The hub, or a mirror of it.
#[derive(Debug)]
pub struct Hub {
    endpoint: String,
    client: Client,
}

impl Hub {
    /// The hub as the environment names it.
    pub fn from_env() -> Self {
        let set = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.trim().is_empty())
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            client: Client::new(set("HF_TOKEN")),
        }
    }

    /// Lists a repository.
    ///
    /// # Errors
    /// When the hub cannot be reached, or does not have or does not show the repository.
    pub fn list(&self, source: &HubSource) -> Result<Listing> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint, source.repo, source.revision
        );
        let listing = self.client.json(&url)?;
        serde_json::from_value(listing)
            .with_context(|| format!("{url}: this is no listing of a repository"))
    }

    /// Downloads what a model needs into `folder`; what is there already, checked, is not fetched again.
    ///
    /// # Errors
    /// When the repository holds no model that we read, or a download fails.
    pub fn fetch(&self, source: &HubSource, listing: &Listing, folder: &Path) -> Result<Fetched> {
        if let Some(file) = choose_gguf(source, listing)? {
            return Ok(Fetched::Gguf(
                self.fetch_file(source, listing, &file, folder)?,
            ));
        }
        for name in ["config.json", "tokenizer.json"] {
            self.fetch_file(source, listing, name, folder)?;
        }
        for name in ["tokenizer_config.json", "chat_template.jinja"] {
            if listing.file(name).is_some() {
                self.fetch_file(source, listing, name, folder)?;
            }
        }
        for name in self.weight_files(source, listing, folder)? {
            self.fetch_file(source, listing, &name, folder)?;
        }
        Ok(Fetched::Folder(folder.to_owned()))
    }

    fn weight_files(
        &self,
        source: &HubSource,
        listing: &Listing,
        folder: &Path,
    ) -> Result<Vec<String>> {
        for (file, index, ending) in [
            (SAFETENSORS, "model.safetensors.index.json", ".safetensors"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin"),
        ] {
            if listing.file(file).is_some() {
                return Ok(vec![file.to_owned()]);
            }
            if listing.file(index).is_some() {
                let path = self.fetch_file(source, listing, index, folder)?;
                return crate::convert::shards(&std::fs::read(&path)?, ending)
                    .with_context(|| format!("{}: {index}", source.repo));
            }
        }
        // None is there: the error says so.
        self.fetch_file(source, listing, SAFETENSORS, folder)?;
        Ok(Vec::new())
    }

    fn fetch_file(
        &self,
        source: &HubSource,
        listing: &Listing,
        name: &str,
        folder: &Path,
    ) -> Result<PathBuf> {
        let Some(file) = listing.file(name) else {
            bail!(
                "the repository {} has no `{name}`: it holds no model in a form that is read here (safetensors or pytorch_model.bin with tokenizer.json, or GGUF)",
                source.repo
            );
        };
        let target = folder.join(name.rsplit('/').next().unwrap_or(name));
        let lfs = file.lfs.as_ref();
        let len_bytes = lfs.and_then(|lfs| lfs.size).or(file.size);
        // Files get their final name only when they are whole and checked.
        if target
            .metadata()
            .is_ok_and(|found| Some(found.len()) == len_bytes)
        {
            return Ok(target);
        }
        let url = format!(
            "{}/{}/resolve/{}/{name}",
            self.endpoint, source.repo, listing.sha
        );
        let wanted = Wanted {
            url,
            what: name.to_owned(),
            sha256: lfs.and_then(|lfs| lfs.sha256.clone()),
            len_bytes,
        };
        self.client.download(&wanted, &target)?;
        Ok(target)
    }
}

impl Listing {
    fn file(&self, name: &str) -> Option<&RepoFile> {
        self.siblings.iter().find(|file| file.name == name)
    }
}

/// The GGUF file that was asked for, or the only one of a repository without safetensors.
fn choose_gguf(source: &HubSource, listing: &Listing) -> Result<Option<String>> {
    if source.file.is_some() {
        return Ok(source.file.clone());
    }
    let ending = |suffix: &'static str| {
        listing
            .siblings
            .iter()
            .filter(move |file| file.name.ends_with(suffix))
            .map(|file| file.name.as_str())
    };
    if ending(".safetensors").next().is_some() {
        return Ok(None);
    }
    let ggufs: Vec<_> = ending(".gguf").collect();
    match ggufs.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).to_owned())),
        several => bail!(
            "the repository {} holds several GGUF files; choose one, for example hf:{}/{}\n  {}",
            source.repo,
            source.repo,
            several[0],
            several.join("\n  ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| RepoFile {
            name: (*name).to_owned(),
            size: None,
            lfs: None,
        };
        Listing {
            sha: "abc".into(),
            siblings: names.iter().map(file).collect(),
        }
    }

    #[test]
    fn a_gguf_is_chosen_when_the_choice_is_clear() {
        let source = HubSource {
            repo: "a/b".into(),
            revision: "main".into(),
            file: None,
        };
        assert_eq!(
            choose_gguf(&source, &listing(&["README.md", "m.gguf"])).unwrap(),
            Some("m.gguf".into())
        );
        assert_eq!(
            choose_gguf(&source, &listing(&["model.safetensors", "m.gguf"])).unwrap(),
            None
        );
        let error = choose_gguf(&source, &listing(&["m-q4.gguf", "m-q8.gguf"])).unwrap_err();
        assert!(error.to_string().contains("hf:a/b/m-q4.gguf"), "{error}");
    }
}
