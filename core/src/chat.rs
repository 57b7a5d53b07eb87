//! Chat messages to a prompt, by the model's own Jinja template (`tokenizer.chat_template`), rendered by minijinja.

use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the token texts that templates refer to.
    ///
    /// # Errors
    /// With the line of the template's mistake.
    pub fn new(_source: &str, _bos: &str, _eos: &str) -> Result<Self, ChatError> {
        todo!()
    }
    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant begins.
    ///
    /// # Errors
    /// When the template refuses the messages (`raise_exception`), with its own words.
    pub fn render(
        &self,
        _messages: &[Message],
        _add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        todo!()
    }
    /// The template's text.
    pub fn source(&self) -> &str {
        todo!()
    }
}

/// Why a template failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template does not compile.
    #[error("the chat template does not compile: {0}")]
    Syntax(String),
    /// The template refused these messages.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
}
