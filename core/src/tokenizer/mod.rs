//! Text to token ids and back, the same on every target.
//!
//! A [`Tokenizer`] comes out of `tokenizer.huggingface.json` in the GGUF metadata, or else is rebuilt from
//! `tokenizer.ggml.*`. Ids equal those of the Hugging Face `tokenizers` library.

use crate::gguf::Metadata;

/// A byte-level BPE (GPT-2, SmolLM, Llama 3) or SentencePiece-style BPE (Llama 2) tokenizer.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// When there is none, or it is of a kind we do not run.
    pub fn from_metadata(_metadata: &Metadata) -> Result<Self, TokenizerError> {
        todo!()
    }
    /// Reads a Hugging Face `tokenizer.json`; special tokens may be completed by `tokenizer_config.json`.
    ///
    /// # Errors
    /// When it is no JSON of this kind, or uses a component we do not run (named).
    pub fn from_hf_json(_tokenizer_json: &[u8], _tokenizer_config_json: Option<&[u8]>) -> Result<Self, TokenizerError> {
        todo!()
    }
    /// The `tokenizer.*` keys to write to a GGUF file, such that both llama.cpp and we read it back.
    pub fn to_metadata(&self) -> Metadata {
        todo!()
    }
    /// Ids of `text`. Special tokens such as `<|im_start|>` in the text become their ids when `parse_special`;
    /// BOS is added when `add_bos`.
    pub fn encode(&self, _text: &str, _add_bos: bool, _parse_special: bool) -> Vec<u32> {
        todo!()
    }
    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD, special tokens are left out when `skip_special`.
    pub fn decode(&self, _ids: &[u32], _skip_special: bool) -> String {
        todo!()
    }
    /// The bytes that a token stands for (empty for special tokens and unknown ids).
    pub fn token_bytes(&self, _id: u32) -> &[u8] {
        todo!()
    }
    /// The id of a token by its text, special tokens included.
    pub fn token_id(&self, _token: &str) -> Option<u32> {
        todo!()
    }
    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    /// Begin-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        todo!()
    }
    /// End-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        todo!()
    }
    /// Whether this token ends a generation (EOS, end of turn: `<|im_end|>`, `<|eot_id|>`, `<|endoftext|>`).
    pub fn is_end(&self, _id: u32) -> bool {
        todo!()
    }
    /// Whether the model wants BOS before a text (`tokenizer.ggml.add_bos_token`).
    pub fn adds_bos(&self) -> bool {
        todo!()
    }
}

/// Turns a stream of tokens into text and never emits half a UTF-8 character.
#[derive(Debug, Default, Clone)]
pub struct StreamDecoder {}

impl StreamDecoder {
    /// The text that became certain with this token, maybe none.
    pub fn push(&mut self, _tokenizer: &Tokenizer, _id: u32) -> String {
        todo!()
    }
    /// What is left at the end; incomplete bytes become U+FFFD.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}

/// Why a tokenizer could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Neither `tokenizer.huggingface.json` nor `tokenizer.ggml.tokens` is there.
    #[error("the file carries no tokenizer: neither `tokenizer.huggingface.json` nor `tokenizer.ggml.tokens` is there")]
    Missing,
    // … the owner of this module adds the rest
}
