//! Which type each tensor of a model gets. The named mixtures follow llama.cpp's `llama_tensor_get_type`
//! (`llama-quant.cpp`), so that a file called `q4_k_m` is here what it is there.

use super::{DType, fitting};
use crate::spec::{ModelSpec, Role, TensorEntry, tensor_table};

/// A named way to give types to tensors, and exceptions from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    base: Base,
    overrides: Vec<(String, DType)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Uniform(DType),
    /// `Q4_K` or `Q5_K`, with more bits where they help the most; small or medium.
    Mixed {
        dtype: DType,
        medium: bool,
    },
}

/// Names of the mixtures.
const MIXTURES: [(&str, Base); 4] = [
    ("q4_k_s", mixed(DType::Q4K, false)),
    ("q4_k_m", mixed(DType::Q4K, true)),
    ("q5_k_s", mixed(DType::Q5K, false)),
    ("q5_k_m", mixed(DType::Q5K, true)),
];

const fn mixed(dtype: DType, medium: bool) -> Base {
    Base::Mixed { dtype, medium }
}

/// A tensor and its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The tensor.
    pub entry: TensorEntry,
    /// What it gets.
    pub dtype: DType,
    /// What it would have got were its rows whole blocks of it: equal to `dtype` but where that is a fallback.
    pub wanted: DType,
}

/// Why a recipe does not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// No such recipe.
    #[error("there is no recipe `{name}`; choose one of {}", names().join(", "))]
    UnknownRecipe {
        /// What was asked for.
        name: String,
    },
    /// An override that is no `PATTERN=TYPE`.
    #[error("`{text}` is no override: write PATTERN=TYPE, as in `blk.*.ffn_down.weight=q6_k`, with a type of {}", type_names().join(", "))]
    BadOverride {
        /// What was given.
        text: String,
    },
    /// A pattern that matches no tensor, or none that earlier patterns had left.
    #[error(
        "the pattern `{pattern}` matches no tensor that is left for it; names are like `blk.0.attn_q.weight`, and the first pattern that matches wins"
    )]
    UnusedPattern {
        /// The pattern.
        pattern: String,
    },
    /// A pattern that matches only tensors that stay exact.
    #[error(
        "the pattern `{pattern}` matches `{tensor}`, which stays in f32: only matrices are quantised"
    )]
    NotQuantizable {
        /// The pattern.
        pattern: String,
        /// The first tensor that it matches.
        tensor: String,
    },
    /// An override to a type whose blocks the tensor's rows are no multiple of.
    #[error(
        "`{tensor}` cannot be {dtype}: its rows have {n_cols} elements, which are no multiple of {}",
        dtype.block_len()
    )]
    RowLength {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        dtype: DType,
        /// Elements of a row.
        n_cols: usize,
    },
}

/// Names of all recipes: each type, and the mixtures.
pub fn names() -> Vec<String> {
    let mixtures = MIXTURES.iter().map(|(name, _)| (*name).to_owned());
    type_names().into_iter().chain(mixtures).collect()
}

fn type_names() -> Vec<String> {
    DType::ALL.map(|dtype| dtype.name().to_lowercase()).to_vec()
}

impl Recipe {
    /// One type for all matrices. The matrix that makes the logits gets more bits where the type has less than six:
    /// `Q8_0` beside `Q4_0` and `Q4_1` (which WebGPU runs), `Q6_K` beside the others.
    pub fn uniform(dtype: DType) -> Self {
        Self {
            base: Base::Uniform(dtype),
            overrides: Vec::new(),
        }
    }

    /// The recipe of a name, in either case: a type, or one of `q4_k_s`, `q4_k_m`, `q5_k_s` and `q5_k_m`.
    ///
    /// # Errors
    /// [`RecipeError::UnknownRecipe`].
    pub fn from_name(name: &str) -> Result<Self, RecipeError> {
        if let Some(dtype) = DType::from_name(name) {
            return Ok(Self::uniform(dtype));
        }
        let mixture = MIXTURES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        match mixture {
            Some(&(_, base)) => Ok(Self {
                base,
                overrides: Vec::new(),
            }),
            None => Err(RecipeError::UnknownRecipe {
                name: name.to_owned(),
            }),
        }
    }

    /// The name, in lower case.
    pub fn name(&self) -> String {
        match self.base {
            Base::Uniform(dtype) => dtype.name().to_lowercase(),
            mixture @ Base::Mixed { .. } => {
                let known = MIXTURES.iter().find(|(_, base)| *base == mixture);
                known
                    .map(|(name, _)| (*name).to_owned())
                    .unwrap_or_default()
            }
        }
    }

    /// Gives tensors whose GGUF name matches `pattern` another type. `*` stands for any text, `?` for any character.
    /// The first pattern that matches wins.
    #[must_use]
    pub fn with_override(mut self, pattern: impl Into<String>, dtype: DType) -> Self {
        self.overrides.push((pattern.into(), dtype));
        self
    }

    /// As [`Self::with_override`], of a text `PATTERN=TYPE`.
    ///
    /// # Errors
    /// [`RecipeError::BadOverride`].
    pub fn with_override_text(self, text: &str) -> Result<Self, RecipeError> {
        let parts = text.rsplit_once('=');
        let parsed = parts.and_then(|(pattern, name)| Some((pattern, DType::from_name(name)?)));
        match parsed.filter(|(pattern, _)| !pattern.is_empty()) {
            Some((pattern, dtype)) => Ok(self.with_override(pattern, dtype)),
            None => Err(RecipeError::BadOverride {
                text: text.to_owned(),
            }),
        }
    }

    /// `general.file_type`: llama.cpp's `llama_ftype`.
    pub fn file_type(&self) -> u32 {
        match self.base {
            Base::Uniform(dtype) => match dtype {
                DType::F32 => 0,
                DType::F16 => 1,
                DType::Q4_0 => 2,
                DType::Q4_1 => 3,
                DType::Q8_0 => 7,
                DType::Q5_0 => 8,
                DType::Q5_1 => 9,
                DType::Q4K => 14,
                DType::Q5K => 16,
                DType::Q6K => 18,
                DType::BF16 => 32,
            },
            Base::Mixed { dtype, medium } => {
                let small = if dtype == DType::Q4K { 14 } else { 16 };
                small + u32::from(medium)
            }
        }
    }

    /// The type of every tensor of a model, in file order.
    ///
    /// # Errors
    /// An override that matches nothing, or does not fit a tensor, which is named.
    pub fn plan(&self, spec: &ModelSpec) -> Result<Vec<Planned>, RecipeError> {
        let table = tensor_table(spec);
        let mut used = vec![false; self.overrides.len()];
        let planned = table
            .iter()
            .map(|entry| self.plan_one(spec, entry, &mut used))
            .collect::<Result<_, _>>()?;
        for ((pattern, _), used) in self.overrides.iter().zip(used) {
            if !used {
                return Err(unused(pattern, &table));
            }
        }
        Ok(planned)
    }

    fn plan_one(
        &self,
        spec: &ModelSpec,
        entry: &TensorEntry,
        used: &mut [bool],
    ) -> Result<Planned, RecipeError> {
        let planned = |dtype, wanted| Planned {
            entry: entry.clone(),
            dtype,
            wanted,
        };
        let Some(&n_cols) = entry.shape.last().filter(|_| entry.quantizable) else {
            return Ok(planned(DType::F32, DType::F32));
        };
        let by_pattern = self
            .overrides
            .iter()
            .position(|(pattern, _)| matches(pattern, &entry.gguf));
        if let Some(i) = by_pattern {
            used[i] = true;
            let dtype = self.overrides[i].1;
            if dtype.row_bytes(n_cols).is_none() {
                return Err(RecipeError::RowLength {
                    tensor: entry.gguf.clone(),
                    dtype,
                    n_cols,
                });
            }
            return Ok(planned(dtype, dtype));
        }
        let wanted = self.base.type_of(spec, entry);
        Ok(planned(fitting(wanted, n_cols), wanted))
    }
}

impl Base {
    fn type_of(self, spec: &ModelSpec, entry: &TensorEntry) -> DType {
        let is_tied = entry.role == Role::TokenEmbd && spec.tied_embedding;
        if entry.role == Role::Output || is_tied {
            return self.type_of_logits();
        }
        let Self::Mixed { dtype, medium } = self else {
            return self.dtype();
        };
        let (layer, n_layer) = (entry.layer.unwrap_or(0), spec.n_layer);
        // The first and last eighth of the blocks, and every third between them.
        let gets_more =
            layer < n_layer / 8 || layer >= 7 * n_layer / 8 || (layer - n_layer / 8) % 3 == 2;
        match entry.role {
            Role::AttnV | Role::FfnDown if medium && gets_more => DType::Q6K,
            Role::AttnV if !medium && dtype == DType::Q4K && layer < 4 => DType::Q5K,
            Role::FfnDown if !medium && dtype == DType::Q4K && layer < n_layer / 8 => DType::Q5K,
            Role::AttnQkv if medium && dtype == DType::Q4K => DType::Q5K,
            Role::AttnQkv if medium => DType::Q6K,
            _ => dtype,
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::Uniform(dtype) | Self::Mixed { dtype, .. } => dtype,
        }
    }

    fn type_of_logits(self) -> DType {
        match self.dtype() {
            DType::Q4_0 | DType::Q4_1 => DType::Q8_0,
            DType::Q5_0 | DType::Q5_1 | DType::Q4K | DType::Q5K => DType::Q6K,
            other => other,
        }
    }
}

/// Why no tensor took a pattern.
fn unused(pattern: &str, table: &[TensorEntry]) -> RecipeError {
    let pattern = pattern.to_owned();
    let mut matching = table.iter().filter(|entry| matches(&pattern, &entry.gguf));
    match matching.next() {
        Some(entry) if !entry.quantizable && matching.all(|entry| !entry.quantizable) => {
            let tensor = entry.gguf.clone();
            RecipeError::NotQuantizable { pattern, tensor }
        }
        _ => RecipeError::UnusedPattern { pattern },
    }
}

/// Whether a pattern of `*` and `?` matches the whole name. Linear in either length for one `*` after another.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // The last `*`, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else {
                    return false;
                };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        spec::Family,
        testing::{tiny_spec, wide_spec},
    };
    use std::collections::BTreeMap;

    fn types(recipe: &Recipe, spec: &ModelSpec) -> BTreeMap<String, DType> {
        let plan = recipe.plan(spec).expect("a recipe that fits");
        plan.into_iter().map(|p| (p.entry.gguf, p.dtype)).collect()
    }

    fn recipe(name: &str) -> Recipe {
        Recipe::from_name(name).expect("a known recipe")
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("blk.*.ffn_down.weight", "blk.12.ffn_down.weight", true),
            ("blk.*.ffn_down.weight", "blk.12.ffn_up.weight", false),
            ("blk.?.ffn_down.weight", "blk.12.ffn_down.weight", false),
            ("*attn*", "blk.0.attn_q.weight", true),
            ("*.weight*", "a.weight", true),
            ("a*b*c", "a.b.b.c", true),
            ("a*b*c", "a.b.b.d", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn names_there_and_back() {
        for name in names() {
            assert_eq!(recipe(&name).name(), name);
            assert_eq!(recipe(&name.to_uppercase()).name(), name);
        }
        let error = Recipe::from_name("q3_k_m")
            .expect_err("unknown")
            .to_string();
        assert!(error.contains("`q3_k_m`") && error.contains("q4_k_m"));
    }

    /// What llama.cpp writes for `q4_k_m` with 16 layers: more bits in layers 0 and 1, 4, 7, 10 and 13, 14 and 15.
    #[test]
    fn mixtures_are_llama_cpps() {
        let mut spec = wide_spec(Family::Llama);
        spec.n_layer = 16;
        let more = [0, 1, 4, 7, 10, 13, 14, 15];
        for (name, base) in [("q4_k_m", DType::Q4K), ("q5_k_m", DType::Q5K)] {
            let types = types(&recipe(name), &spec);
            for layer in 0..16 {
                let of = |tensor: &str| types[&format!("blk.{layer}.{tensor}.weight")];
                let expected = if more.contains(&layer) {
                    DType::Q6K
                } else {
                    base
                };
                assert_eq!(
                    (of("attn_v"), of("ffn_down")),
                    (expected, expected),
                    "{name} {layer}"
                );
                assert_eq!(
                    (of("attn_q"), of("ffn_up"), of("attn_norm")),
                    (base, base, DType::F32)
                );
            }
            assert_eq!(types["output.weight"], DType::Q6K);
            assert_eq!(types["token_embd.weight"], base);
        }
        let small = types(&recipe("q4_k_s"), &spec);
        assert_eq!(small["blk.3.attn_v.weight"], DType::Q5K);
        assert_eq!(small["blk.4.attn_v.weight"], DType::Q4K);
        assert_eq!(small["blk.1.ffn_down.weight"], DType::Q5K);
        assert_eq!(small["blk.2.ffn_down.weight"], DType::Q4K);
        let gpt2 = types(&recipe("q4_k_m"), &wide_spec(Family::Gpt2));
        assert_eq!(gpt2["blk.0.attn_qkv.weight"], DType::Q5K);
        assert_eq!(gpt2["token_embd.weight"], DType::Q6K, "it makes the logits");
        assert_eq!(gpt2["position_embd.weight"], DType::F32);
    }

    #[test]
    fn rows_that_are_no_super_blocks_fall_back() {
        let plan = recipe("q5_k_m").plan(&tiny_spec(Family::Gpt2));
        let plan = plan.expect("a recipe that fits");
        let of = |name: &str| {
            plan.iter()
                .find(|p| p.entry.gguf == name)
                .expect("it is there")
        };
        // 64 columns, and 256 of ffn_down.
        let up = of("blk.0.ffn_up.weight");
        assert_eq!((up.dtype, up.wanted), (DType::Q5_1, DType::Q5K));
        assert_eq!(of("blk.0.attn_qkv.weight").dtype, DType::Q8_0);
        assert_eq!(of("blk.0.ffn_down.weight").dtype, DType::Q5K);
        let mut odd = tiny_spec(Family::Gpt2);
        odd.n_ff = 100;
        let types = types(&recipe("q4_0"), &odd);
        assert_eq!(types["blk.0.ffn_down.weight"], DType::F16);
        assert_eq!(types["blk.0.ffn_up.weight"], DType::Q4_0);
        assert_eq!(types["token_embd.weight"], DType::Q8_0);
    }

    #[test]
    fn overrides_win_in_their_order() {
        let recipe = recipe("q4_k_m")
            .with_override_text("blk.0.*=q8_0")
            .and_then(|recipe| recipe.with_override_text("*ffn_down*=F16"))
            .expect("valid overrides");
        let types = types(&recipe, &wide_spec(Family::Llama));
        assert_eq!(types["blk.0.ffn_down.weight"], DType::Q8_0);
        assert_eq!(types["blk.0.attn_norm.weight"], DType::F32);
        assert_eq!(types["blk.1.ffn_down.weight"], DType::F16);
        assert_eq!(types["blk.1.ffn_up.weight"], DType::Q4K);
    }

    #[test]
    fn bad_overrides_are_named() {
        let plan = |pattern: &str, dtype| {
            let recipe = recipe("q8_0").with_override(pattern, dtype);
            let error = recipe.plan(&tiny_spec(Family::Llama));
            error.expect_err("it must be refused").to_string()
        };
        assert!(plan("blk.7.*", DType::F16).contains("`blk.7.*` matches no tensor"));
        assert!(
            plan("*norm*", DType::F16).contains("`blk.0.attn_norm.weight`, which stays in f32")
        );
        let error = plan("blk.1.ffn_down.weight", DType::Q6K);
        assert!(error.contains("`blk.1.ffn_down.weight` cannot be Q6_K") && error.contains("160"));
        for text in ["no-type", "a=q9", "=q8_0"] {
            let error = recipe("q8_0").with_override_text(text);
            let error = error.expect_err("no override").to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
