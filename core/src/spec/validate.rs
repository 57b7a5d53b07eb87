//! Numbers out of a file, held within bounds: what passes here cannot overflow a size computed from it.

use super::{ModelSpec, Position, SpecError};

/// Bounds far above any model of these families, far below an overflow.
pub(super) const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_WIDTH: usize = 1 << 17;
const MAX_FF: usize = 1 << 19;
const MAX_CTX: usize = 1 << 24;
const MAX_VOCAB: usize = 1 << 22;

impl ModelSpec {
    /// Checks the spec's numbers against bounds and each other.
    ///
    /// # Errors
    /// [`SpecError::BadValue`] naming the field.
    pub fn validate(&self) -> Result<(), SpecError> {
        for (field, value, max) in [
            ("n_layer", self.n_layer, MAX_LAYERS),
            ("n_head", self.n_head, MAX_HEADS),
            ("n_kv_head", self.n_kv_head, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("n_embd", self.n_embd, MAX_WIDTH),
            ("n_ff", self.n_ff, MAX_FF),
            ("n_ctx", self.n_ctx, MAX_CTX),
            ("vocab_size", self.vocab_size, MAX_VOCAB),
        ] {
            require(field, &value, (1..=max).contains(&value), || {
                format!("between 1 and {max}")
            })?;
        }
        let (n_head, n_kv_head) = (self.n_head, self.n_kv_head);
        require(
            "n_kv_head",
            &n_kv_head,
            n_head.is_multiple_of(n_kv_head),
            || format!("a divisor of n_head ({n_head})"),
        )?;
        let eps = self.norm_eps;
        require("norm_eps", &eps, eps.is_finite() && eps >= 0.0, || {
            "a small positive number".to_owned()
        })?;
        self.validate_position()
    }

    fn validate_position(&self) -> Result<(), SpecError> {
        let Position::Rope {
            base,
            dim,
            freq_factors,
            ..
        } = &self.position
        else {
            let (width, heads) = (self.n_head * self.head_dim, self.n_kv_head);
            require("n_head * head_dim", &width, width == self.n_embd, || {
                format!("n_embd ({})", self.n_embd)
            })?;
            return require("n_kv_head", &heads, heads == self.n_head, || {
                format!("n_head ({})", self.n_head)
            });
        };
        require("rope base", &base, base.is_finite() && *base > 0.0, || {
            "positive".to_owned()
        })?;
        let dim_fits = dim.is_multiple_of(2) && *dim <= self.head_dim;
        require("rope dim", &dim, dim_fits, || {
            format!("even, and at most head_dim ({})", self.head_dim)
        })?;
        let n = freq_factors.len();
        require("rope factors", &n, n == 0 || n == dim / 2, || {
            format!("none or {}", dim / 2)
        })
    }
}

fn require(
    field: &str,
    value: &impl ToString,
    holds: bool,
    expected: impl Fn() -> String,
) -> Result<(), SpecError> {
    if holds {
        return Ok(());
    }
    Err(SpecError::BadValue {
        key: field.to_owned(),
        value: value.to_string(),
        expected: expected(),
    })
}
