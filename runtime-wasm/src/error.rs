//! One error type for the browser runtime; each failure has a stable code that JavaScript can act upon.

use fledgling_core::{
    cpu::EngineError, generate::GenerateError, gguf::GgufError, model::ModelError,
};

/// What can go wrong between a file's first byte and the last token.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The bytes are no GGUF file, or a broken one.
    #[error("this is no GGUF model file: {0}")]
    NotGguf(String),
    /// The bytes ended too early.
    #[error("the file is truncated: {have} bytes came, {need} are needed; download it again")]
    Truncated {
        /// Bytes that came.
        have: u64,
        /// Bytes that the header announces, or at least needs.
        need: u64,
    },
    /// A GGUF file that this runtime cannot run.
    #[error("{0}")]
    UnsupportedModel(String),
    /// No tokenizer that this runtime can read.
    #[error("{0}")]
    NoTokenizer(String),
    /// No adapter, or one that lacks something.
    #[error("WebGPU cannot be used: {0}")]
    NoWebGpu(String),
    /// The device went away.
    #[error("the GPU device was lost ({0}); load the model again, or use the CPU")]
    DeviceLost(String),
    /// Memory of the GPU or of the page.
    #[error("out of memory: {0}; use a smaller model or context")]
    OutOfMemory(String),
    /// No room for the prompt.
    #[error("{0}")]
    PromptTooLong(String),
    /// An option is out of range.
    #[error("{0}")]
    BadOption(String),
    /// A chat was asked of a model without a template.
    #[error("{0}")]
    NoChatTemplate(String),
    /// A second generation was started.
    #[error("the model is generating already: wait for it or cancel it")]
    Busy,
    /// The model was freed.
    #[error("the model was disposed of")]
    Disposed,
    /// A mistake of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl RuntimeError {
    /// The code that the JavaScript `Error` carries (ARCHITECTURE.md, "The browser boundary").
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotGguf(_) => "not-gguf",
            Self::Truncated { .. } => "truncated",
            Self::UnsupportedModel(_) => "unsupported-model",
            Self::NoTokenizer(_) => "no-tokenizer",
            Self::NoWebGpu(_) => "no-webgpu",
            Self::DeviceLost(_) => "device-lost",
            Self::OutOfMemory(_) => "out-of-memory",
            Self::PromptTooLong(_) => "prompt-too-long",
            Self::BadOption(_) => "bad-option",
            Self::NoChatTemplate(_) => "no-chat-template",
            Self::Busy => "busy",
            Self::Disposed => "disposed",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<&GgufError> for RuntimeError {
    fn from(error: &GgufError) -> Self {
        match *error {
            GgufError::Incomplete { have, need } | GgufError::Truncated { have, need } => {
                Self::Truncated { have, need }
            }
            GgufError::UnsupportedType { .. } | GgufError::MissingTensor(_) => {
                Self::UnsupportedModel(error.to_string())
            }
            _ => Self::NotGguf(error.to_string()),
        }
    }
}

impl From<&ModelError> for RuntimeError {
    fn from(error: &ModelError) -> Self {
        match error {
            ModelError::Tokenizer(_) => Self::NoTokenizer(error.to_string()),
            ModelError::NoChatTemplate => Self::NoChatTemplate(error.to_string()),
            ModelError::Chat(_) => Self::BadOption(error.to_string()),
            _ => Self::UnsupportedModel(error.to_string()),
        }
    }
}

impl From<&EngineError> for RuntimeError {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::Gguf(error) => error.into(),
            _ => Self::UnsupportedModel(error.to_string()),
        }
    }
}

impl From<&GenerateError> for RuntimeError {
    fn from(error: &GenerateError) -> Self {
        match error {
            GenerateError::PromptTooLong { .. } => Self::PromptTooLong(error.to_string()),
            _ => Self::BadOption(error.to_string()),
        }
    }
}
