//! Why a model cannot be run.

use crate::quant::DType;

/// Why a spec could not be read, or a file does not hold what its spec asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A family we do not know.
    #[error("unknown architecture `{0}`; this build runs `gpt2`, `llama`, `qwen2` and `qwen3`")]
    UnknownArchitecture(String),
    /// A key that must be there is not, or holds something else than a number or text as it should.
    #[error("`{key}` is missing, or is not {expected}")]
    MissingKey {
        /// The key, of GGUF metadata or of `config.json`.
        key: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A value we cannot work with.
    #[error("`{key}` is {value}, it must be {expected}")]
    BadValue {
        /// The key, of GGUF metadata or of `config.json`.
        key: String,
        /// What is there.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// A feature of the model that the engines do not have.
    #[error("`{key}` is {value}, which this build does not support")]
    Unsupported {
        /// The key, of GGUF metadata or of `config.json`.
        key: String,
        /// What is there.
        value: String,
    },
    /// A tensor of the model is not in the file.
    #[error("tensor `{0}` is missing from the file")]
    MissingTensor(String),
    /// A tensor has another shape than the spec gives it.
    #[error("tensor `{tensor}` has the shape {got:?}, it must be {expected:?} (row-major)")]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// Row-major shape by the spec.
        expected: Vec<usize>,
        /// Row-major shape in the file.
        got: Vec<u64>,
    },
    /// A tensor that the machine cannot address.
    #[error(
        "tensor `{0}` is too large for this machine's addresses; use a smaller model or a 64-bit build"
    )]
    TooLarge(String),
    /// A tensor has a type that its role does not allow.
    #[error("tensor `{tensor}` has the type {got}, it must be {expected}")]
    WrongType {
        /// The tensor.
        tensor: String,
        /// Its type.
        got: DType,
        /// What is allowed.
        expected: &'static str,
    },
    /// A tensor that the model's family does not have: leaving it out would compute something else.
    #[error(
        "tensor `{0}` is not part of this architecture; the file holds a variant that this build does not support"
    )]
    UnexpectedTensor(String),
}
