//! A model file's meaning without its weights: spec, tokenizer, chat template, names. Every runtime starts here.

use crate::{chat::{ChatError, ChatTemplate, Message}, gguf::Header, spec::{ModelSpec, SpecError}, tokenizer::{Tokenizer, TokenizerError}};
use std::sync::Arc;

/// What the header of a file says.
#[derive(Debug)]
pub struct ModelInfo {
    /// `general.name`, or the architecture when absent.
    pub name: String,
    /// The architecture.
    pub spec: ModelSpec,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, when the file has one.
    pub chat_template: Option<ChatTemplate>,
}

impl ModelInfo {
    /// Reads a header.
    ///
    /// # Errors
    /// What is missing or not understood, by key.
    pub fn from_header(_header: &Header) -> Result<Self, ModelError> {
        todo!()
    }
    /// Ids of a raw prompt: BOS when the model wants it, special tokens parsed; BOS (or EOS) alone for an empty text.
    pub fn encode_prompt(&self, _text: &str) -> Vec<u32> {
        todo!()
    }
    /// Ids of a conversation, ready for the assistant's turn (BOS not doubled when the template writes it).
    ///
    /// # Errors
    /// When the file has no chat template or it refuses the messages.
    pub fn encode_chat(&self, _messages: &[Message]) -> Result<Vec<u32>, ModelError> {
        todo!()
    }
}

/// Why a header is no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The architecture.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A chat was asked of a model without a template.
    #[error("the model has no chat template; use a plain prompt")]
    NoChatTemplate,
}
