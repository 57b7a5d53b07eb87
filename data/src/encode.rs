//! Documents to tokens, with a mask of what counts in the loss. The only place where masks are made.
//!
//! Prompts are tokenised exactly as they are when the model is asked, and what is to be learnt is tokenised apart from
//! them. An answer counts up to and with the token that ends its turn, so that the model learns to stop.

use crate::document::Body;
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{
    chat::{ChatTemplate, Message},
    model::{ModelError, ModelInfo},
    tokenizer::Tokenizer,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{fs, path::Path, sync::Arc};

/// A document in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether each token is to be learnt. `None` for plain text, in which all are, and which may be cut anywhere.
    pub counted: Option<Vec<bool>>,
}

impl Encoded {
    /// Tokens to be learnt. The first one is not: nothing stands before it.
    pub fn n_counted(&self) -> usize {
        match &self.counted {
            None => self.tokens.len().saturating_sub(1),
            Some(counted) => counted.iter().skip(1).filter(|counted| **counted).count(),
        }
    }
}

/// Which tokenizer made the ids, for those who read them later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerId {
    /// For messages.
    pub name: String,
    /// Number of ids.
    pub vocab_size: usize,
    /// [`Encoder::sha256`].
    pub sha256: String,
    /// SHA-256 of the chat template's text, where it was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_sha256: Option<String>,
}

/// A tokenizer and its chat template. Shared between threads.
#[derive(Debug)]
pub struct Encoder {
    name: String,
    tokenizer: Arc<Tokenizer>,
    template: Result<ChatTemplate, ModelError>,
}

impl Encoder {
    /// Those of a model.
    pub fn from_model(info: &ModelInfo) -> Self {
        let template = match &info.chat_template {
            Some(template) => compile(&info.tokenizer, template.source()),
            // Asked for a chat, the model says why it has none.
            None => Err(info
                .encode_chat(&[])
                .err()
                .unwrap_or(ModelError::NoChatTemplate)),
        };
        Self {
            name: info.name.clone(),
            tokenizer: info.tokenizer.clone(),
            template,
        }
    }

    /// Those of a `tokenizer.json`, and of `tokenizer_config.json` and `chat_template.jinja` beside it.
    ///
    /// # Errors
    /// When the tokenizer cannot be read, or uses something that we do not run. A chat template that does not compile is
    /// an error only where a chat is encoded.
    pub fn from_tokenizer_json(path: &Path) -> Result<Self> {
        let (tokenizer, source) = read_tokenizer(path)?;
        Ok(Self {
            name: path.display().to_string(),
            template: source.map_or(Err(ModelError::NoChatTemplate), |source| {
                compile(&tokenizer, &source)
            }),
            tokenizer: Arc::new(tokenizer),
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's name, or the path of the `tokenizer.json`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether chats can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_ok()
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.tokenizer.eos()
    }

    /// Tokens of a document, and what counts.
    ///
    /// Text: BOS where the tokenizer adds one, the text in which special tokens are but text, EOS.
    /// Completion: the prompt as when the model is asked (special tokens are parsed), then the completion up to and with
    /// EOS, which is added where the completion does not end with an end token itself.
    /// Chat: what the template renders; only what the assistant says counts.
    ///
    /// # Errors
    /// What is wrong with the document or with the tokenizer for such documents; the place is for the caller to add.
    pub fn encode(&self, body: &Body) -> Result<Encoded> {
        match body {
            Body::Text(text) => self.encode_text(text),
            Body::Completion { prompt, completion } => self.encode_completion(prompt, completion),
            Body::Chat(messages) => self.encode_chat(messages),
        }
    }

    fn encode_text(&self, text: &str) -> Result<Encoded> {
        let eos = self.tokenizer.eos().context(NO_EOS)?;
        let mut tokens = self
            .tokenizer
            .encode(text, self.tokenizer.adds_bos(), false);
        tokens.push(eos);
        Ok(Encoded {
            tokens,
            counted: None,
        })
    }

    fn encode_completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        ensure!(!completion.is_empty(), "the completion is empty");
        ensure!(self.tokenizer.eos().is_some(), NO_EOS);
        let tokenizer = &self.tokenizer;
        let mut tokens = tokenizer.encode(prompt, tokenizer.adds_bos(), true);
        if tokens.is_empty() {
            // What a generation from nothing starts with (`ModelInfo::encode_prompt`).
            tokens.extend(tokenizer.bos().or(tokenizer.eos()));
        }
        let mut counted = vec![false; tokens.len()];
        self.add_answer(completion, &mut tokens, &mut counted);
        Ok(Encoded {
            tokens,
            counted: Some(counted),
        })
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Encoded> {
        ensure!(
            messages.iter().any(|message| message.role == "assistant"),
            "no message has the role `assistant`, so there is nothing to learn"
        );
        let template = self.template.as_ref().map_err(Clone::clone).context(
            "chats cannot be rendered without a chat template: take an instruct model, or train on plain text",
        )?;
        let (mut tokens, mut counted, mut done) = (Vec::new(), Vec::new(), String::new());
        for (idx, message) in messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.role == "assistant")
        {
            ensure!(!message.content.is_empty(), "an answer is empty");
            let prompt = template.render(&messages[..idx], true)?;
            let whole = template.render(&messages[..=idx], false)?;
            let (Some(asked), Some(answer)) =
                (prompt.strip_prefix(&done), whole.strip_prefix(&prompt))
            else {
                bail!(
                    "the chat template does not keep earlier messages as they were, so the answers cannot be told from the rest"
                );
            };
            let add_bos = done.is_empty() && self.lacks_bos(&prompt);
            tokens.extend(self.tokenizer.encode(asked, add_bos, true));
            counted.resize(tokens.len(), false);
            self.add_answer(answer, &mut tokens, &mut counted);
            done = whole;
        }
        Ok(Encoded {
            tokens,
            counted: Some(counted),
        })
    }

    /// Whether a rendered prompt still needs its BOS (`ModelInfo::encode_chat`).
    fn lacks_bos(&self, prompt: &str) -> bool {
        let bos = text_of(&self.tokenizer, self.tokenizer.bos());
        self.tokenizer.adds_bos() && (bos.is_empty() || !prompt.starts_with(bos))
    }

    /// Adds what is to be learnt: it counts up to its end token, what a template writes after that does not.
    fn add_answer(&self, answer: &str, tokens: &mut Vec<u32>, counted: &mut Vec<bool>) {
        let mut ids = self.tokenizer.encode(answer, false, true);
        let is_end = |id: &u32| self.tokenizer.is_end(*id);
        if !ids.iter().any(is_end) {
            ids.extend(self.tokenizer.eos());
        }
        let end = ids.iter().position(is_end);
        let n_counted = end.map_or(ids.len(), |idx| idx + 1);
        counted.extend((0..ids.len()).map(|idx| idx < n_counted));
        tokens.extend(ids);
    }

    /// Who made the tokens. With `uses_template` the chat template is part of it: for data with chats.
    pub fn id(&self, uses_template: bool) -> TokenizerId {
        let template = self.template.as_ref().ok().filter(|_| uses_template);
        TokenizerId {
            name: self.name.clone(),
            vocab_size: self.vocab_size(),
            sha256: self.sha256(),
            template_sha256: template
                .map(|template| format!("{:x}", Sha256::digest(template.source()))),
        }
    }

    /// Fingerprint of the tokenizer: the same for a GGUF and for the `tokenizer.json` that it was made of.
    ///
    /// The two say the same in different words, so what they do is hashed rather than what they say: each id's bytes, the
    /// merges, the ids of each token's text and of texts that tell pre-tokenizers apart, BOS where it is added, and what
    /// ends a text.
    pub fn sha256(&self) -> String {
        let tokenizer = &self.tokenizer;
        let mut hasher = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let add_ids = |add: &mut dyn FnMut(&[u8]), ids: &[u32]| {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            add(&bytes);
        };
        for id in (0..tokenizer.vocab_size() as u32).filter(|&id| !is_padding(tokenizer, id)) {
            let bytes = tokenizer.token_bytes(id);
            add(&id.to_le_bytes());
            add(bytes);
            match std::str::from_utf8(bytes) {
                Ok(text) if !text.is_empty() => {
                    add_ids(&mut add, &tokenizer.encode(text, false, false));
                }
                _ => add(tokenizer.token_text(id).unwrap_or_default().as_bytes()),
            }
            add(&[u8::from(tokenizer.is_end(id))]);
        }
        if let Some(merges) = tokenizer.to_metadata().strings("tokenizer.ggml.merges") {
            merges.iter().for_each(|merge| add(merge.as_bytes()));
        }
        for text in PROBES {
            add_ids(&mut add, &tokenizer.encode(text, false, true));
        }
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        for id in [bos, tokenizer.eos()] {
            add_ids(&mut add, id.as_slice());
        }
        format!("{:x}", hasher.finalize())
    }
}

/// Texts that known pre-tokenizers and normalizers cut and write differently.
const PROBES: [&str; 6] = [
    "Hello world! It's 12345 o'clock, they'LL say; WE'D don't.",
    "  two spaces\t\ttabs\r\n\r\nlines \n end   ",
    "naïve café ﬁ Å e\u{301} ½ ² ٣٤ 東京 ひらがな हिन्दी 🦀👩‍👩‍👧",
    "snake_case(x)[0] += 1;//ok `code` $5.99 50% a.b@c.de #tag",
    " leading, UPPER lower CamelCase",
    "\u{a0}\u{2009}\u{3000}x\u{200b}y\u{0}",
];

const NO_EOS: &str = "the tokenizer has no end token (EOS), so a model could not learn where a text ends: \
     name one in tokenizer_config.json (`eos_token`)";

/// A token that only fills up rows of the embedding (llama.cpp's converter and ours write such).
fn is_padding(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer.token_bytes(id).is_empty()
        && tokenizer
            .token_text(id)
            .is_none_or(|text| text.is_empty() || text == format!("[PAD{id}]"))
}

fn compile(tokenizer: &Tokenizer, source: &str) -> Result<ChatTemplate, ModelError> {
    let (bos, eos) = (
        text_of(tokenizer, tokenizer.bos()),
        text_of(tokenizer, tokenizer.eos()),
    );
    Ok(ChatTemplate::new(source, bos, eos)?)
}

fn text_of(tokenizer: &Tokenizer, id: Option<u32>) -> &str {
    id.and_then(|id| tokenizer.token_text(id))
        .unwrap_or_default()
}

/// A `tokenizer.json`, completed by the `tokenizer_config.json` beside it, and the chat template: `chat_template.jinja` beside
/// it, or the config's key, which is a text or a list of which `default` counts.
///
/// # Errors
/// When a file cannot be read or is not what it should be, or the tokenizer uses something that we do not run.
pub fn read_tokenizer(path: &Path) -> Result<(Tokenizer, Option<String>)> {
    let json = fs::read(path).with_context(|| {
        format!(
            "cannot read {}: save the tokenizer beside the model (`tokenizer.save_pretrained(…)` writes it)",
            path.display()
        )
    })?;
    let config = beside(path, "tokenizer_config.json")?;
    let tokenizer = Tokenizer::from_hf_json(&json, config.as_deref())
        .with_context(|| path.display().to_string())?;
    let template = match beside(path, "chat_template.jinja")? {
        Some(source) => {
            Some(String::from_utf8(source).context("chat_template.jinja is no text in UTF-8")?)
        }
        None => config.as_deref().map_or(Ok(None), template_of)?,
    };
    Ok((tokenizer, template))
}

/// The file `name` in the folder of `path`, where there is one.
fn beside(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = path.with_file_name(name);
    path.is_file()
        .then(|| fs::read(&path).with_context(|| format!("cannot read {}", path.display())))
        .transpose()
}

fn template_of(config: &[u8]) -> Result<Option<String>> {
    let config: Value =
        serde_json::from_slice(config).context("tokenizer_config.json is no JSON")?;
    Ok(match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(templates) => templates
            .iter()
            .find(|row| row["name"] == "default")
            .and_then(|row| row["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
