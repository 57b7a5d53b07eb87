//! The spec in GGUF metadata (key names: ggml's `docs/gguf.md` and llama.cpp's `llama-arch.cpp`).

use super::{Bias, Family, Mlp, ModelSpec, Norm, Pairing, Position, SpecError};
use crate::gguf::{Gguf, Header, Metadata};

/// The tensor that holds Llama 3's divisors of the rotary frequencies. It is no weight and not in the table.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// What llama.cpp takes when `rope.freq_base` is absent.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

impl Family {
    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl ModelSpec {
    /// Reads the spec out of GGUF metadata (`general.architecture`, `llama.block_count`, …).
    /// `tied_embedding` and `vocab_size` come from the tensors, so the header is needed.
    ///
    /// Where the file keeps frequency divisors in the tensor [`ROPE_FREQS`], `freq_factors` holds zeros until
    /// [`Self::set_rope_freqs`] brings them; [`Self::from_gguf`] does both.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn from_header(header: &Header) -> Result<Self, SpecError> {
        let metadata = &header.metadata;
        let family = family(metadata)?;
        let keys = Keys {
            metadata,
            arch: family.name(),
        };
        let n_embd = keys.count("embedding_length")?;
        let n_head = keys.count("attention.head_count")?;
        let head_dim = keys.optional_count("attention.key_length")?;
        let head_dim = head_dim.unwrap_or(n_embd / n_head.max(1));
        let spec = Self {
            family,
            n_layer: keys.count("block_count")?,
            n_head,
            n_kv_head: keys
                .optional_count("attention.head_count_kv")?
                .unwrap_or(n_head),
            head_dim,
            n_embd,
            n_ff: keys.count("feed_forward_length")?,
            n_ctx: keys.count("context_length")?,
            vocab_size: vocab_size(header)?,
            norm: family.norm(),
            norm_eps: keys.float(family.norm_eps_key())? as f32,
            position: keys.position(family, head_dim, header)?,
            mlp: family.mlp(),
            bias: family.bias(),
            qk_norm: family.qk_norm(),
            tied_embedding: header.tensor("output.weight").is_none(),
        };
        keys.refuse_variants(head_dim)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Reads the spec of a whole file, frequency divisors included.
    ///
    /// # Errors
    /// [`SpecError`] naming the key or tensor.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, SpecError> {
        let mut spec = Self::from_header(gguf.header())?;
        if gguf.header().tensor(ROPE_FREQS).is_some() {
            let missing = |_| SpecError::MissingTensor(ROPE_FREQS.to_owned());
            spec.set_rope_freqs(&gguf.tensor_f32(ROPE_FREQS).map_err(missing)?)?;
        }
        Ok(spec)
    }

    /// Takes the values of the tensor [`ROPE_FREQS`].
    ///
    /// # Errors
    /// When the model has no rotary positions, or the values are not `dim / 2` positive numbers.
    pub fn set_rope_freqs(&mut self, values: &[f32]) -> Result<(), SpecError> {
        let bad = |value: String, expected: String| SpecError::BadValue {
            key: ROPE_FREQS.to_owned(),
            value,
            expected,
        };
        let Position::Rope {
            dim, freq_factors, ..
        } = &mut self.position
        else {
            return Err(SpecError::UnexpectedTensor(ROPE_FREQS.to_owned()));
        };
        if values.len() != *dim / 2 {
            return Err(bad(
                format!("{} values long", values.len()),
                (*dim / 2).to_string(),
            ));
        }
        if let Some(x) = values.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return Err(bad(
                format!("{x} somewhere"),
                "positive everywhere".to_owned(),
            ));
        }
        *freq_factors = values.to_vec();
        Ok(())
    }

    /// The architecture keys to write to a GGUF file. Frequency divisors that are not all the same go into the
    /// tensor [`ROPE_FREQS`]: see [`Self::rope_freqs_tensor`].
    pub fn to_metadata(&self) -> Metadata {
        let arch = self.family.name();
        let key = |name: &str| format!("{arch}.{name}");
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", arch);
        metadata.set(key("block_count"), self.n_layer as u32);
        metadata.set(key("context_length"), self.n_ctx as u32);
        metadata.set(key("embedding_length"), self.n_embd as u32);
        metadata.set(key("feed_forward_length"), self.n_ff as u32);
        metadata.set(key("attention.head_count"), self.n_head as u32);
        metadata.set(key("attention.head_count_kv"), self.n_kv_head as u32);
        metadata.set(key(self.family.norm_eps_key()), self.norm_eps);
        metadata.set(key("vocab_size"), self.vocab_size as u32);
        if let Position::Rope { base, dim, .. } = &self.position {
            metadata.set(key("attention.key_length"), self.head_dim as u32);
            metadata.set(key("attention.value_length"), self.head_dim as u32);
            metadata.set(key("rope.dimension_count"), *dim as u32);
            metadata.set(key("rope.freq_base"), *base);
        }
        if let Some(factor) = self.linear_rope_factor() {
            metadata.set(key("rope.scaling.type"), "linear");
            metadata.set(key("rope.scaling.factor"), factor);
        }
        metadata
    }

    /// The values of the tensor [`ROPE_FREQS`], when the file must have it.
    pub fn rope_freqs_tensor(&self) -> Option<&[f32]> {
        match &self.position {
            Position::Rope { freq_factors, .. }
                if !freq_factors.is_empty() && self.linear_rope_factor().is_none() =>
            {
                Some(freq_factors)
            }
            _ => None,
        }
    }

    /// The one divisor of all frequencies.
    fn linear_rope_factor(&self) -> Option<f32> {
        let Position::Rope { freq_factors, .. } = &self.position else {
            return None;
        };
        let first = *freq_factors.first()?;
        freq_factors.iter().all(|x| *x == first).then_some(first)
    }
}

fn family(metadata: &Metadata) -> Result<Family, SpecError> {
    let key = "general.architecture";
    let name = metadata.str(key).ok_or_else(|| SpecError::MissingKey {
        key: key.to_owned(),
        expected: "a string",
    })?;
    Family::of_name(name).ok_or_else(|| SpecError::UnknownArchitecture(name.to_owned()))
}

fn vocab_size(header: &Header) -> Result<usize, SpecError> {
    let name = "token_embd.weight";
    let missing = || SpecError::MissingTensor(name.to_owned());
    let info = header.tensor(name).ok_or_else(missing)?;
    let rows = if info.shape.len() == 2 {
        info.shape[1]
    } else {
        0
    };
    usize::try_from(rows).map_err(|_| SpecError::BadValue {
        key: name.to_owned(),
        value: format!("{rows} rows high"),
        expected: "smaller".to_owned(),
    })
}

/// The rows of the table of families.
impl Family {
    /// The family of a `general.architecture`; `config.json` has the same names as `model_type`.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }
    /// Normalisation.
    pub fn norm(self) -> Norm {
        match self {
            Self::Gpt2 => Norm::LayerNorm,
            Self::Llama | Self::Qwen2 | Self::Qwen3 => Norm::RmsNorm,
        }
    }
    /// MLP.
    pub fn mlp(self) -> Mlp {
        match self {
            Self::Gpt2 => Mlp::Gelu,
            Self::Llama | Self::Qwen2 | Self::Qwen3 => Mlp::SwiGlu,
        }
    }
    /// Biases.
    pub fn bias(self) -> Bias {
        match self {
            Self::Gpt2 => Bias::All,
            Self::Qwen2 => Bias::Qkv,
            Self::Llama | Self::Qwen3 => Bias::None,
        }
    }
    /// Whether heads of q and k are normalised.
    pub fn qk_norm(self) -> bool {
        self == Self::Qwen3
    }
    /// What RoPE turns together; `None` where positions are learned.
    pub fn pairing(self) -> Option<Pairing> {
        match self {
            Self::Gpt2 => None,
            Self::Llama => Some(Pairing::Neighbours),
            Self::Qwen2 | Self::Qwen3 => Some(Pairing::Halves),
        }
    }
    fn norm_eps_key(self) -> &'static str {
        match self.norm() {
            Norm::LayerNorm => "attention.layer_norm_epsilon",
            Norm::RmsNorm => "attention.layer_norm_rms_epsilon",
        }
    }
}

/// The keys under one architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn missing(&self, name: &str, expected: &'static str) -> SpecError {
        SpecError::MissingKey {
            key: self.key(name),
            expected,
        }
    }

    fn unsupported(&self, name: &str, value: &impl ToString) -> SpecError {
        SpecError::Unsupported {
            key: self.key(name),
            value: value.to_string(),
        }
    }

    fn count(&self, name: &str) -> Result<usize, SpecError> {
        let n = self.metadata.u64(&self.key(name));
        let n = n.and_then(|n| usize::try_from(n).ok());
        n.ok_or_else(|| self.missing(name, "a non-negative integer"))
    }

    fn optional_count(&self, name: &str) -> Result<Option<usize>, SpecError> {
        match self.metadata.get(&self.key(name)) {
            Some(_) => self.count(name).map(Some),
            None => Ok(None),
        }
    }

    fn float(&self, name: &str) -> Result<f64, SpecError> {
        let x = self.metadata.f64(&self.key(name));
        x.ok_or_else(|| self.missing(name, "a number"))
    }

    fn optional_float(&self, name: &str) -> Result<Option<f64>, SpecError> {
        match self.metadata.get(&self.key(name)) {
            Some(_) => self.float(name).map(Some),
            None => Ok(None),
        }
    }

    fn position(
        &self,
        family: Family,
        head_dim: usize,
        header: &Header,
    ) -> Result<Position, SpecError> {
        let Some(pairing) = family.pairing() else {
            return Ok(Position::Learned);
        };
        let base = self
            .optional_float("rope.freq_base")?
            .unwrap_or(DEFAULT_ROPE_BASE) as f32;
        let dim = self
            .optional_count("rope.dimension_count")?
            .unwrap_or(head_dim);
        if dim != head_dim {
            return Err(self.unsupported("rope.dimension_count", &format!("{dim} of {head_dim}")));
        }
        let factor = self.linear_factor()?;
        let freq_factors = match header.tensor(ROPE_FREQS) {
            Some(_) if factor != 1.0 => {
                return Err(self.unsupported(
                    "rope.scaling.factor",
                    &format!("{factor} beside `{ROPE_FREQS}`"),
                ));
            }
            // A hostile header must not make us allocate; `validate` bounds dim afterwards.
            Some(info)
                if info.shape == [dim as u64 / 2] && dim <= super::validate::MAX_HEAD_DIM =>
            {
                vec![0.0; dim / 2]
            }
            Some(info) => {
                return Err(SpecError::WrongShape {
                    tensor: ROPE_FREQS.to_owned(),
                    expected: vec![dim / 2],
                    got: info.shape.clone(),
                });
            }
            None if factor == 1.0 => Vec::new(),
            None => vec![factor; dim.min(super::validate::MAX_HEAD_DIM) / 2],
        };
        Ok(Position::Rope {
            base,
            dim,
            pairing,
            freq_factors,
        })
    }

    /// As llama.cpp: `linear` unless said otherwise, and an absent or zero factor is 1.
    fn linear_factor(&self) -> Result<f32, SpecError> {
        match self.metadata.str(&self.key("rope.scaling.type")) {
            Some("none") => return Ok(1.0),
            Some("linear") | None => {}
            Some(other) => return Err(self.unsupported("rope.scaling.type", &other)),
        }
        let factor = match self.optional_float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.optional_float("rope.scale_linear")?,
        };
        match factor {
            None | Some(0.0) => Ok(1.0),
            Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor as f32),
            Some(factor) => Err(SpecError::BadValue {
                key: self.key("rope.scaling.factor"),
                value: factor.to_string(),
                expected: "positive".to_owned(),
            }),
        }
    }

    /// Variants of the architecture that would compute something else.
    fn refuse_variants(&self, head_dim: usize) -> Result<(), SpecError> {
        if let Some(n) = self.optional_count("expert_count")?.filter(|n| *n > 0) {
            return Err(self.unsupported("expert_count", &n));
        }
        // What llama.cpp multiplies the scores by beside a longer context.
        let factor = self.optional_float("rope.scaling.attn_factor")?;
        if let Some(factor) = factor.filter(|factor| ![0.0, 1.0].contains(factor)) {
            return Err(self.unsupported("rope.scaling.attn_factor", &factor));
        }
        // Models that embed texts look at what follows, too.
        if self.metadata.bool(&self.key("attention.causal")) == Some(false) {
            return Err(self.unsupported("attention.causal", &false));
        }
        let value_length = self.optional_count("attention.value_length")?;
        if let Some(n) = value_length.filter(|n| *n != head_dim) {
            return Err(self.unsupported("attention.value_length", &n));
        }
        Ok(())
    }
}
