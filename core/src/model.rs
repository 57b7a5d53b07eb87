//! A model file's meaning without its weights: spec, tokenizer, chat template, names. Every runtime starts here.

use crate::{
    chat::{ChatError, ChatTemplate, Message},
    gguf::{Header, split},
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
        if let Some(count) = split::n_parts(metadata) {
            let no = split::part_no(metadata).unwrap_or(0);
            return Err(ModelError::Part { no, count });
        }
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
    let text = id.and_then(|id| tokenizer.token_text(id));
    text.unwrap_or_default().to_owned()
}

/// Why a header is no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A part of a model that lies in several files.
    #[error("this is part {no} of a model in {count} files: open all of them together")]
    Part {
        /// Number of the part, from 1.
        no: u64,
        /// How many there are.
        count: u64,
    },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gguf::Value,
        quant::DType,
        spec::Family,
        testing::{CHATML, tiny_model},
    };

    fn read(change: impl Fn(&mut Header)) -> Result<ModelInfo, ModelError> {
        let file = tiny_model(Family::Llama, DType::Q8_0, 1);
        let mut header = Header::parse(&file).expect("a valid header");
        change(&mut header);
        ModelInfo::from_header(&header)
    }

    fn hello() -> [Message; 1] {
        [Message {
            role: "user".into(),
            content: "hello".into(),
        }]
    }

    #[test]
    fn what_the_header_says() {
        let info = read(|_| ()).expect("a valid model");
        assert_eq!((info.name.as_str(), info.spec.n_layer), ("tiny-llama", 2));
        let info = read(|header| {
            header.metadata.remove("general.name");
        });
        assert_eq!(info.expect("a valid model").name, "llama");
        let bare = read(|header| {
            for key in ["model", "tokens", "merges"] {
                header.metadata.remove(&format!("tokenizer.ggml.{key}"));
            }
        });
        assert!(matches!(bare, Err(ModelError::Tokenizer(_))));
        let small = read(|header| {
            for info in header
                .tensors
                .iter_mut()
                .filter(|info| info.shape == [64, 299])
            {
                info.shape = vec![64, 298];
            }
        });
        let error = small.expect_err("an id without a row").to_string();
        assert_eq!(
            error,
            "the tokenizer has 299 tokens, and the embedding only 298 rows"
        );
    }

    #[test]
    fn a_chat_is_the_template_in_ids() {
        let info = read(|_| ()).expect("a valid model");
        let ids = info.encode_chat(&hello()).expect("a valid chat");
        let text = info.tokenizer.decode(&ids, false);
        assert_eq!(
            text,
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            ids[0],
            info.tokenizer
                .token_id("<|im_start|>")
                .expect("a special token")
        );
    }

    #[test]
    fn bos_stands_once() {
        let bos_at = |ids: &[u32], bos: u32| {
            let places = ids.iter().enumerate().filter(|(_, id)| **id == bos);
            places.map(|(i, _)| i).collect::<Vec<_>>()
        };
        for template in [CHATML.to_owned(), format!("{{{{ bos_token }}}}{CHATML}")] {
            let info = read(|header| {
                header.metadata.set("tokenizer.ggml.add_bos_token", true);
                header
                    .metadata
                    .set("tokenizer.chat_template", template.as_str());
            });
            let info = info.expect("a valid model");
            let bos = info.tokenizer.bos().expect("a BOS");
            let ids = info.encode_chat(&hello()).expect("a valid chat");
            assert_eq!(bos_at(&ids, bos), [0], "{template}");
            assert_eq!(bos_at(&info.encode_prompt("hello"), bos), [0]);
            assert_eq!(info.encode_prompt(""), [bos]);
        }
        let info = read(|_| ()).expect("a valid model");
        let bos = info.tokenizer.bos().expect("a BOS");
        assert!(!info.encode_prompt("hello").contains(&bos));
        assert_eq!(info.encode_prompt(""), [bos], "something to start from");
    }

    #[test]
    fn without_a_template_there_is_no_chat() {
        let info = read(|header| {
            header.metadata.remove("tokenizer.chat_template");
        });
        let info = info.expect("a valid model");
        assert_eq!(info.encode_chat(&hello()), Err(ModelError::NoChatTemplate));
        let broken = Value::from("{% for message in %}");
        let info = read(|header| {
            header
                .metadata
                .set("tokenizer.chat_template", broken.clone());
        });
        let info = info.expect("plain prompts work all the same");
        assert!(matches!(
            info.encode_chat(&hello()),
            Err(ModelError::Chat(ChatError::Syntax(_)))
        ));
        assert!(!info.encode_prompt("hello").is_empty());
    }
}
