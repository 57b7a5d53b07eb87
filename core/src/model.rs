//! A model file's meaning without its weights: spec, tokenizer, chat template, names. Every runtime starts here.

use crate::{
    chat::{ChatError, ChatTemplate, Message},
    gguf::Header,
    spec::{ModelSpec, SpecError, check_tensors},
    tokenizer::{Tokenizer, TokenizerError},
};
use std::sync::Arc;

/// What the header of a file says.
#[derive(Debug)]
pub struct ModelInfo {
    /// `general.name`, or the architecture when absent.
    pub name: String,
    /// The architecture. Llama 3's frequency divisors are not in a header: see [`ModelSpec::set_rope_freqs`].
    pub spec: ModelSpec,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, when the file has one that compiles.
    pub chat_template: Option<ChatTemplate>,
    /// Why it does not compile: plain prompts work all the same, a chat says this.
    chat_error: Option<ChatError>,
}

impl ModelInfo {
    /// Reads a header. What passes here, an engine can run: the tensors are checked too.
    ///
    /// # Errors
    /// What is missing or not understood, by key or tensor.
    pub fn from_header(header: &Header) -> Result<Self, ModelError> {
        let metadata = &header.metadata;
        let spec = ModelSpec::from_header(header)?;
        check_tensors(header, &spec)?;
        let tokenizer = Tokenizer::from_metadata(metadata)?;
        let (n_tokens, n_rows) = (tokenizer.vocab_size(), spec.vocab_size);
        if n_tokens > n_rows {
            return Err(ModelError::Vocabulary { n_tokens, n_rows });
        }
        let (chat_template, chat_error) = match metadata.str("tokenizer.chat_template") {
            None => (None, None),
            Some(source) => {
                let (bos, eos) = (
                    text_of(&tokenizer, tokenizer.bos()),
                    text_of(&tokenizer, tokenizer.eos()),
                );
                match ChatTemplate::new(source, &bos, &eos) {
                    Ok(template) => (Some(template), None),
                    Err(error) => (None, Some(error)),
                }
            }
        };
        let name = metadata.str("general.name").filter(|name| !name.is_empty());
        Ok(Self {
            name: name.unwrap_or(spec.family.name()).to_owned(),
            spec,
            tokenizer: Arc::new(tokenizer),
            chat_template,
            chat_error,
        })
    }

    /// Ids of a raw prompt: BOS when the model wants it, special tokens parsed; BOS (or EOS) alone for an empty text.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let tokenizer = &self.tokenizer;
        let ids = tokenizer.encode(text, tokenizer.adds_bos(), true);
        if ids.is_empty() {
            return tokenizer.bos().or(tokenizer.eos()).into_iter().collect();
        }
        ids
    }

    /// Ids of a conversation, ready for the assistant's turn (BOS not doubled when the template writes it).
    ///
    /// # Errors
    /// When the file has no chat template, it does not compile, or it refuses the messages.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, ModelError> {
        let template = match (&self.chat_template, &self.chat_error) {
            (Some(template), _) => template,
            (None, Some(error)) => return Err(error.clone().into()),
            (None, None) => return Err(ModelError::NoChatTemplate),
        };
        let prompt = template.render(messages, true)?;
        let bos = text_of(&self.tokenizer, self.tokenizer.bos());
        let writes_bos = !bos.is_empty() && prompt.starts_with(&bos);
        let add_bos = self.tokenizer.adds_bos() && !writes_bos;
        Ok(self.tokenizer.encode(&prompt, add_bos, true))
    }
}

/// The text of a special token, empty when the model has none.
fn text_of(tokenizer: &Tokenizer, id: Option<u32>) -> String {
    id.map_or_else(String::new, |id| tokenizer.decode(&[id], false))
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
    /// The tokenizer could make ids that the embedding has no row for.
    #[error("the tokenizer has {n_tokens} tokens, and the embedding only {n_rows} rows")]
    Vocabulary {
        /// Ids of the tokenizer.
        n_tokens: usize,
        /// Rows of the token embedding.
        n_rows: usize,
    },
    /// A chat was asked of a model without a template.
    #[error("the model has no chat template; use a plain prompt")]
    NoChatTemplate,
}
