//! A document: what it says and where it stands.

use fledgling_core::chat::Message;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a document stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Index of the source in the config.
    pub source: u32,
    /// The file (inside an archive: `archive.zip/inner.txt`), or the URL.
    pub file: String,
    /// Line (jsonl: of the file; csv: where the record begins), element (json) or row (parquet), from 1; 0 where the file
    /// is one document.
    pub row: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            0 => f.write_str(&self.file),
            row => write!(f, "{}:{row}", self.file),
        }
    }
}

/// What a document says, in one of three shapes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Plain text: every token counts in the loss.
    Text(String),
    /// A prompt and what shall follow it: only the completion counts. It is not rendered by a chat template.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// A conversation, rendered by the model's chat template: only what the assistant says counts.
    Chat(Vec<Message>),
}

impl Body {
    /// The texts in it, in order.
    pub fn parts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::Completion { prompt, completion } => vec![prompt, completion],
            Self::Chat(messages) => messages
                .iter()
                .map(|message| message.content.as_str())
                .collect(),
        }
    }

    /// The texts in it, to be changed.
    pub fn parts_mut(&mut self) -> Vec<&mut String> {
        match self {
            Self::Text(text) => vec![text],
            Self::Completion { prompt, completion } => vec![prompt, completion],
            Self::Chat(messages) => messages
                .iter_mut()
                .map(|message| &mut message.content)
                .collect(),
        }
    }

    /// A prompt and its completion as a conversation of two messages; every other shape as it is.
    #[must_use]
    pub fn into_chat(self) -> Self {
        let message = |role: &str, content| Message {
            role: role.to_owned(),
            content,
        };
        match self {
            Self::Completion { prompt, completion } => Self::Chat(vec![
                message("user", prompt),
                message("assistant", completion),
            ]),
            other => other,
        }
    }

    /// Length of all texts together.
    pub fn len_bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// One document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub body: Body,
}
