//! The spec in a Hugging Face `config.json` (transformers' `GPT2Config`, `LlamaConfig`, `Qwen2Config` and
//! `Qwen3Config`).
//!
//! Rotary settings are read in both forms: `rope_theta` and `rope_scaling` of transformers 4, and `rope_parameters`
//! of transformers 5.

use super::{Family, ModelSpec, Pairing, Position, SpecError};
use serde_json::{Map, Value, json};
use std::f64::consts::TAU;

impl ModelSpec {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn from_hf_config(config: &Value) -> Result<Self, SpecError> {
        let model_type = config.get("model_type").and_then(Value::as_str);
        let config = Config(config);
        let name = model_type.ok_or_else(|| missing("model_type", "a string"))?;
        let spec = match Family::of_name(name) {
            Some(Family::Gpt2) => gpt2(&config)?,
            Some(family) => llama(&config, family)?,
            None => return Err(SpecError::UnknownArchitecture(name.to_owned())),
        };
        spec.validate()?;
        Ok(spec)
    }

    /// The `config.json` that transformers reads.
    pub fn to_hf_config(&self) -> Value {
        match self.family {
            Family::Gpt2 => json!({
                "architectures": [self.family.hf_class()],
                "model_type": self.family.name(),
                "n_layer": self.n_layer,
                "n_head": self.n_head,
                "n_embd": self.n_embd,
                "n_inner": self.n_ff,
                "n_positions": self.n_ctx,
                "n_ctx": self.n_ctx,
                "vocab_size": self.vocab_size,
                "layer_norm_epsilon": short(self.norm_eps),
                "activation_function": "gelu_new",
                "tie_word_embeddings": self.tied_embedding,
            }),
            Family::Llama | Family::Qwen2 | Family::Qwen3 => {
                let (rope_theta, rope_scaling) = self.rope_json();
                let mut config = json!({
                    "architectures": [self.family.hf_class()],
                    "model_type": self.family.name(),
                    "num_hidden_layers": self.n_layer,
                    "num_attention_heads": self.n_head,
                    "num_key_value_heads": self.n_kv_head,
                    "head_dim": self.head_dim,
                    "hidden_size": self.n_embd,
                    "intermediate_size": self.n_ff,
                    "max_position_embeddings": self.n_ctx,
                    "vocab_size": self.vocab_size,
                    "rms_norm_eps": short(self.norm_eps),
                    "hidden_act": "silu",
                    "rope_theta": rope_theta,
                    "rope_scaling": rope_scaling,
                    "tie_word_embeddings": self.tied_embedding,
                });
                let constants: &[_] = match self.family {
                    Family::Qwen2 => &["use_sliding_window"],
                    Family::Qwen3 => &["use_sliding_window", "attention_bias"],
                    _ => &["attention_bias", "mlp_bias"],
                };
                for key in constants {
                    config[key] = false.into();
                }
                config
            }
        }
    }

    /// `rope_theta` and `rope_scaling`. Divisors that differ are written as the `llama3` that makes them, or else as
    /// `longrope`, the one type of transformers that takes them as a list; with an attention factor of 1 it computes just
    /// that.
    fn rope_json(&self) -> (Value, Value) {
        let Position::Rope {
            base, freq_factors, ..
        } = &self.position
        else {
            return (Value::Null, Value::Null);
        };
        let scaling = match (self.rope_freqs_tensor(), freq_factors.first()) {
            (Some(factors), _) => {
                llama3_json(*base, factors).unwrap_or_else(|| listed_json(factors, self.n_ctx))
            }
            (None, Some(factor)) => json!({ "rope_type": "linear", "factor": short(*factor) }),
            (None, None) => Value::Null,
        };
        (short(*base).into(), scaling)
    }
}

/// The `rope_scaling` of type `llama3` that makes these divisors: with the bounds that all of Llama 3 has, and an old context
/// of a power of two.
fn llama3_json(base: f32, factors: &[f32]) -> Option<Value> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    (3..24)
        .map(|exponent| 1_u32 << exponent)
        .find_map(|old_ctx| {
            let scaling = json!({
                "rope_type": "llama3",
                "factor": short(factor),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": old_ctx,
            });
            let made = Config(&scaling)
                .llama3_factors(base.into(), 2 * factors.len())
                .ok()?;
            let close = |(made, given): (&f32, &f32)| (made - given).abs() <= 1e-5 * given;
            made.iter().zip(factors).all(close).then_some(scaling)
        })
}

fn listed_json(factors: &[f32], n_ctx: usize) -> Value {
    let factors: Vec<f64> = factors.iter().map(|x| short(*x)).collect();
    json!({
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": n_ctx,
    })
}

impl Family {
    /// The class of transformers.
    fn hf_class(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// The f64 that prints like the f32: 1e-5 and not 0.000009999999747378752.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}

fn gpt2(config: &Config) -> Result<ModelSpec, SpecError> {
    let family = Family::Gpt2;
    let (n_head, n_embd) = (config.count("n_head")?, config.count("n_embd")?);
    config.must_be(
        "activation_function",
        "gelu_new",
        &["gelu_new", "gelu_pytorch_tanh"],
    )?;
    config.must_be_bool("scale_attn_weights", true)?;
    config.must_be_bool("scale_attn_by_inverse_layer_idx", false)?;
    config.must_be_bool("add_cross_attention", false)?;
    Ok(ModelSpec {
        family,
        n_layer: config.count("n_layer")?,
        n_head,
        n_kv_head: n_head,
        head_dim: n_embd / n_head.max(1),
        n_embd,
        n_ff: config
            .optional_count("n_inner")?
            .unwrap_or(n_embd.saturating_mul(4)),
        n_ctx: config.count("n_positions")?,
        vocab_size: config.count("vocab_size")?,
        norm: family.norm(),
        norm_eps: config.optional_float("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
        position: Position::Learned,
        mlp: family.mlp(),
        bias: family.bias(),
        qk_norm: family.qk_norm(),
        tied_embedding: config.optional_bool("tie_word_embeddings")?.unwrap_or(true),
    })
}

/// Llama, and the families that differ from it in a few places.
fn llama(config: &Config, family: Family) -> Result<ModelSpec, SpecError> {
    let (n_head, n_embd) = (
        config.count("num_attention_heads")?,
        config.count("hidden_size")?,
    );
    let head_dim = match (config.optional_count("head_dim")?, family) {
        (Some(head_dim), _) => head_dim,
        // The default of Qwen3Config, whatever the width.
        (None, Family::Qwen3) => 128,
        (None, _) => n_embd / n_head.max(1),
    };
    let n_ctx = config.count("max_position_embeddings")?;
    config.must_be_bool("use_sliding_window", false)?;
    config.must_be_full_attention()?;
    config.must_be("hidden_act", "silu", &["silu", "swish"])?;
    config.must_be_bool("attention_bias", false)?;
    config.must_be_bool("mlp_bias", false)?;
    Ok(ModelSpec {
        family,
        n_layer: config.count("num_hidden_layers")?,
        n_head,
        n_kv_head: config
            .optional_count("num_key_value_heads")?
            .unwrap_or(n_head),
        head_dim,
        n_embd,
        n_ff: config.count("intermediate_size")?,
        n_ctx,
        vocab_size: config.count("vocab_size")?,
        norm: family.norm(),
        norm_eps: config.optional_float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        position: config.rope(family, head_dim, n_ctx)?,
        mlp: family.mlp(),
        bias: family.bias(),
        qk_norm: family.qk_norm(),
        tied_embedding: config
            .optional_bool("tie_word_embeddings")?
            .unwrap_or(false),
    })
}

fn missing(key: &str, expected: &'static str) -> SpecError {
    SpecError::MissingKey {
        key: key.to_owned(),
        expected,
    }
}

fn unsupported(key: &str, value: &impl ToString) -> SpecError {
    SpecError::Unsupported {
        key: key.to_owned(),
        value: value.to_string(),
    }
}

/// Typed access to the keys of one JSON object; `null` is as good as absent.
struct Config<'a>(&'a Value);

impl<'a> Config<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, SpecError> {
        let value = self
            .get(key)
            .map(|value| read(value).ok_or_else(|| missing(key, expected)));
        value.transpose()
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>, SpecError> {
        let read = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.optional(key, "a non-negative integer", read)
    }

    fn count(&self, key: &str) -> Result<usize, SpecError> {
        self.optional_count(key)?
            .ok_or_else(|| missing(key, "a non-negative integer"))
    }

    fn optional_float(&self, key: &str) -> Result<Option<f64>, SpecError> {
        self.optional(key, "a number", Value::as_f64)
    }

    fn float(&self, key: &str) -> Result<f64, SpecError> {
        self.optional_float(key)?
            .ok_or_else(|| missing(key, "a number"))
    }

    fn positive(&self, key: &str) -> Result<f64, SpecError> {
        let value = self.float(key)?;
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(SpecError::BadValue {
            key: key.to_owned(),
            value: value.to_string(),
            expected: "positive".to_owned(),
        })
    }

    fn optional_bool(&self, key: &str) -> Result<Option<bool>, SpecError> {
        self.optional(key, "a bool", Value::as_bool)
    }

    fn must_be(&self, key: &str, default: &'a str, allowed: &[&str]) -> Result<(), SpecError> {
        let value = self
            .optional(key, "a string", Value::as_str)?
            .unwrap_or(default);
        if allowed.contains(&value) {
            Ok(())
        } else {
            Err(unsupported(key, &value))
        }
    }

    fn must_be_bool(&self, key: &str, wanted: bool) -> Result<(), SpecError> {
        match self.optional_bool(key)? {
            Some(value) if value != wanted => Err(unsupported(key, &value)),
            _ => Ok(()),
        }
    }

    /// That no layer looks at a window only.
    fn must_be_full_attention(&self) -> Result<(), SpecError> {
        let Some(types) = self.get("layer_types") else {
            return Ok(());
        };
        let types = types
            .as_array()
            .ok_or_else(|| missing("layer_types", "a list"))?;
        match types
            .iter()
            .find(|kind| kind.as_str() != Some("full_attention"))
        {
            Some(other) => Err(unsupported("layer_types", other)),
            None => Ok(()),
        }
    }

    fn rope(&self, family: Family, head_dim: usize, n_ctx: usize) -> Result<Position, SpecError> {
        let empty = Value::Object(Map::new());
        let new_form = Config(self.get("rope_parameters").unwrap_or(&empty));
        let scaling = Config(
            self.get("rope_parameters")
                .or(self.get("rope_scaling"))
                .unwrap_or(&empty),
        );
        let base = match new_form.optional_float("rope_theta")? {
            Some(base) => Some(base),
            None => self.optional_float("rope_theta")?,
        };
        let base = base.unwrap_or(10_000.0);
        for config in [self, &new_form] {
            let share = config.optional_float("partial_rotary_factor")?;
            if let Some(share) = share.filter(|share| *share != 1.0) {
                return Err(unsupported("partial_rotary_factor", &share));
            }
        }
        // `validate` names these; here they only must not lead to a large table.
        let dim = head_dim.min(super::validate::MAX_HEAD_DIM);
        let freq_factors = scaling.freq_factors(base, dim, n_ctx)?;
        Ok(Position::Rope {
            base: base as f32,
            dim: head_dim,
            pairing: family.pairing().unwrap_or(Pairing::Neighbours),
            freq_factors,
        })
    }

    /// Of a `rope_scaling` or `rope_parameters` object.
    fn freq_factors(&self, base: f64, dim: usize, n_ctx: usize) -> Result<Vec<f32>, SpecError> {
        let rope_type = match self.optional("rope_type", "a string", Value::as_str)? {
            Some(rope_type) => rope_type,
            None => self
                .optional("type", "a string", Value::as_str)?
                .unwrap_or("default"),
        };
        match rope_type {
            "default" => Ok(Vec::new()),
            "linear" => match self.positive("factor")? {
                1.0 => Ok(Vec::new()),
                factor => Ok(vec![factor as f32; dim / 2]),
            },
            "llama3" => self.llama3_factors(base, dim),
            "longrope" => self.listed_factors(dim, n_ctx),
            other => Err(unsupported(
                "rope_scaling.rope_type",
                &format!(
                    "{other} (default, linear and llama3 are; take `rope_scaling` out of config.json to run the model within \
                     the context that it was first trained for)"
                ),
            )),
        }
    }

    /// transformers' `_compute_llama3_parameters`: long wavelengths are divided by the factor, short ones stay, and
    /// those between are blended.
    fn llama3_factors(&self, base: f64, dim: usize) -> Result<Vec<f32>, SpecError> {
        let factor = self.positive("factor")?;
        let low = self.positive("low_freq_factor")?;
        let high = self.positive("high_freq_factor")?;
        let old_ctx = self.positive("original_max_position_embeddings")?;
        let divisor = |i: usize| {
            let wavelength = TAU * libm::pow(base, 2.0 * i as f64 / dim as f64);
            if wavelength < old_ctx / high {
                1.0
            } else if wavelength > old_ctx / low {
                factor
            } else {
                let smooth = (old_ctx / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Ok((0..dim / 2).map(|i| divisor(i) as f32).collect())
    }

    /// `longrope` as [`ModelSpec::to_hf_config`] writes it; with two lists, or an attention factor, it is another thing.
    fn listed_factors(&self, dim: usize, n_ctx: usize) -> Result<Vec<f32>, SpecError> {
        let key = "rope_scaling.rope_type";
        let plain = self.get("short_factor") == self.get("long_factor")
            && self.optional_float("attention_factor")? == Some(1.0)
            && self
                .optional_count("original_max_position_embeddings")?
                .is_none_or(|n| n == n_ctx);
        if !plain {
            return Err(unsupported(
                key,
                &"longrope with lists that differ or an attention factor",
            ));
        }
        let list = self.optional("long_factor", "a list of numbers", |value| {
            let factors = value
                .as_array()?
                .iter()
                .map(|x| x.as_f64().map(|x| x as f32));
            factors.collect::<Option<Vec<f32>>>()
        })?;
        let list = list.ok_or_else(|| missing("long_factor", "a list of numbers"))?;
        if list.len() == dim / 2 && list.iter().all(|x| x.is_finite() && *x > 0.0) {
            return Ok(list);
        }
        Err(SpecError::BadValue {
            key: "long_factor".to_owned(),
            value: format!("{} numbers long, or not positive everywhere", list.len()),
            expected: format!("{} positive numbers", dim / 2),
        })
    }
}
