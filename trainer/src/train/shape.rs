//! The shape of a model from scratch: the keys of `[model]`, and the table of published sizes by name.
//!
//! Sources: Radford et al. 2019 and the released checkpoints (GPT-2); Brown et al. 2020, Table 2.1 (GPT-3); the
//! `config.json` of each repository (the others).

use crate::pull::source::nearest;
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::spec::{Family, ModelSpec, Position};
use serde::{Deserialize, Serialize};

/// Architecture of a model from scratch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Keys")]
pub struct ModelConfig {
    /// A size of [`PRESETS`], which gives all keys that are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// `gpt2`, `llama`, `qwen2` or `qwen3`.
    pub family: FamilyName,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads (not `gpt2`); as many as `heads` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of a head (not `gpt2`); width / heads when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Inner width of the MLP; 4 × width (`gpt2`) or 8/3 × width to the next multiple of 32 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ff: Option<usize>,
    /// Positions.
    pub ctx: usize,
    /// Base of the rotary frequencies (not `gpt2`); 10000 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_base: Option<f64>,
    /// Added to the variance in a norm; 1e-5 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    /// Whether the output matrix is the token embedding; it is when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
}

/// Families that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FamilyName {
    /// GPT-2.
    Gpt2,
    /// Llama.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::Gpt2 => Self::Gpt2,
            FamilyName::Llama => Self::Llama,
            FamilyName::Qwen2 => Self::Qwen2,
            FamilyName::Qwen3 => Self::Qwen3,
        }
    }
}

/// What `[model]` may hold; `preset` or the five first keys must be there.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    preset: Option<String>,
    family: Option<FamilyName>,
    layers: Option<usize>,
    width: Option<usize>,
    heads: Option<usize>,
    ctx: Option<usize>,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    ff: Option<usize>,
    rope_base: Option<f64>,
    norm_eps: Option<f64>,
    tied: Option<bool>,
}

impl TryFrom<Keys> for ModelConfig {
    type Error = anyhow::Error;

    fn try_from(keys: Keys) -> Result<Self> {
        let base = keys.preset.as_deref().map(preset).transpose()?;
        let base = base.map(Preset::config);
        let base = base.as_ref();
        let needed = |value: Option<usize>, name: &str, of: fn(&Self) -> usize| {
            value.or(base.map(of)).with_context(|| missing(name))
        };
        Ok(Self {
            family: keys
                .family
                .or(base.map(|base| base.family))
                .with_context(|| missing("family"))?,
            layers: needed(keys.layers, "layers", |base| base.layers)?,
            width: needed(keys.width, "width", |base| base.width)?,
            heads: needed(keys.heads, "heads", |base| base.heads)?,
            ctx: needed(keys.ctx, "ctx", |base| base.ctx)?,
            kv_heads: keys.kv_heads.or(base.and_then(|base| base.kv_heads)),
            head_dim: keys.head_dim.or(base.and_then(|base| base.head_dim)),
            ff: keys.ff.or(base.and_then(|base| base.ff)),
            rope_base: keys.rope_base.or(base.and_then(|base| base.rope_base)),
            norm_eps: keys.norm_eps.or(base.and_then(|base| base.norm_eps)),
            tied: keys.tied.or(base.and_then(|base| base.tied)),
            preset: keys.preset,
        })
    }
}

fn missing(name: &str) -> String {
    format!(
        "`{name}` is missing: give family, layers, width, heads and ctx, or a preset such as \"gpt2-124m\""
    )
}

impl ModelConfig {
    /// A shape with the family's defaults.
    pub fn new(family: FamilyName, layers: usize, width: usize, heads: usize, ctx: usize) -> Self {
        Self {
            preset: None,
            family,
            layers,
            width,
            heads,
            kv_heads: None,
            head_dim: None,
            ff: None,
            ctx,
            rope_base: None,
            norm_eps: None,
            tied: None,
        }
    }

    /// The architecture with a vocabulary of this size.
    pub fn spec(&self, vocab_size: usize) -> ModelSpec {
        let family = Family::from(self.family);
        let head_dim = self.head_dim.unwrap_or(self.width / self.heads);
        let default_ff = match family {
            Family::Gpt2 => 4 * self.width,
            _ => (self.width * 8).div_ceil(3).next_multiple_of(32),
        };
        let rotary = |pairing| Position::Rope {
            base: self.rope_base.unwrap_or(10_000.0) as f32,
            dim: head_dim,
            pairing,
            freq_factors: Vec::new(),
        };
        ModelSpec {
            family,
            n_layer: self.layers,
            n_head: self.heads,
            n_kv_head: self.kv_heads.unwrap_or(self.heads),
            head_dim,
            n_embd: self.width,
            n_ff: self.ff.unwrap_or(default_ff),
            n_ctx: self.ctx,
            vocab_size,
            norm: family.norm(),
            norm_eps: self.norm_eps.unwrap_or(1e-5) as f32,
            position: family.pairing().map_or(Position::Learned, rotary),
            mlp: family.mlp(),
            bias: family.bias(),
            qk_norm: family.qk_norm(),
            tied_embedding: self.tied.unwrap_or(true),
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Naming the key.
    pub fn check(&self) -> Result<()> {
        for (key, value, most) in [
            ("layers", Some(self.layers), 512),
            ("width", Some(self.width), 65_536),
            ("heads", Some(self.heads), 1024),
            ("kv_heads", self.kv_heads, 1024),
            ("head_dim", self.head_dim, 4096),
            ("ff", self.ff, 524_288),
            ("ctx", Some(self.ctx), 1_048_576),
        ] {
            let value = value.unwrap_or(1);
            ensure!(
                (1..=most).contains(&value),
                "model.{key} = {value}: 1 to {most}"
            );
        }
        ensure!(self.ctx >= 2, "model.ctx = 1: 2 at least");
        ensure!(
            self.head_dim.is_some() || self.width.is_multiple_of(self.heads),
            "model.heads = {}: must divide width = {}",
            self.heads,
            self.width
        );
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        ensure!(
            self.heads.is_multiple_of(kv_heads),
            "model.kv_heads = {kv_heads}: must divide heads = {}",
            self.heads
        );
        let eps = self.norm_eps.unwrap_or(1e-5);
        ensure!(
            (0.0..=0.1).contains(&eps),
            "model.norm_eps = {eps}: 0 to 0.1"
        );
        if self.family == FamilyName::Gpt2 {
            return self.check_gpt2();
        }
        let base = self.rope_base.unwrap_or(10_000.0);
        ensure!(
            (1.0..=1e12).contains(&base),
            "model.rope_base = {base}: 1 to 1e12"
        );
        let head_dim = self.head_dim.unwrap_or(self.width / self.heads);
        ensure!(
            head_dim.is_multiple_of(2),
            "heads of width {head_dim}: rotary positions need an even number"
        );
        Ok(())
    }

    fn check_gpt2(&self) -> Result<()> {
        let others = [
            ("kv_heads", self.kv_heads.is_some_and(|n| n != self.heads)),
            (
                "head_dim",
                self.head_dim.is_some_and(|d| d * self.heads != self.width),
            ),
            ("rope_base", self.rope_base.is_some()),
        ];
        match others.iter().find(|(_, given)| *given) {
            Some((key, _)) => {
                bail!("model.{key} is for the other families: GPT-2 has nothing of the kind")
            }
            None => Ok(()),
        }
    }
}

/// A published size.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Its name in `preset`.
    pub name: &'static str,
    /// Family.
    pub family: FamilyName,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads, key and value heads, width of a head.
    pub heads: [usize; 3],
    /// Inner width of the MLP.
    pub ff: usize,
    /// Positions.
    pub ctx: usize,
    /// Base of the rotary frequencies; 0 where positions are learned.
    pub rope_base: f64,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Whether the output matrix is the token embedding.
    pub tied: bool,
    /// Tokens of the published model. A run has those of its tokenizer.
    pub vocab_size: usize,
}

const GPT2: Preset = Preset {
    name: "",
    family: FamilyName::Gpt2,
    layers: 0,
    width: 0,
    heads: [0; 3],
    ff: 0,
    ctx: 1024,
    rope_base: 0.0,
    norm_eps: 1e-5,
    tied: true,
    vocab_size: 50_257,
};

const GPT3: Preset = Preset { ctx: 2048, ..GPT2 };

const LLAMA: Preset = Preset {
    family: FamilyName::Llama,
    ctx: 8192,
    rope_base: 100_000.0,
    vocab_size: 49_152,
    ..GPT2
};

const QWEN: Preset = Preset {
    rope_base: 1e6,
    norm_eps: 1e-6,
    vocab_size: 151_936,
    ..GPT2
};

/// The published sizes. GPT-3's table has two sizes whose numbers do not fit each other: 1.3B has 24 heads of 128 at width 2048
/// there (16 here), 13B the width 5140 with 40 heads of 128 (5120 here).
#[rustfmt::skip]
pub const PRESETS: &[Preset] = &[
    Preset { name: "gpt2-124m", layers: 12, width: 768, heads: [12, 12, 64], ff: 3072, ..GPT2 },
    Preset { name: "gpt2-355m", layers: 24, width: 1024, heads: [16, 16, 64], ff: 4096, ..GPT2 },
    Preset { name: "gpt2-774m", layers: 36, width: 1280, heads: [20, 20, 64], ff: 5120, ..GPT2 },
    Preset { name: "gpt2-1558m", layers: 48, width: 1600, heads: [25, 25, 64], ff: 6400, ..GPT2 },
    Preset { name: "gpt3-125m", layers: 12, width: 768, heads: [12, 12, 64], ff: 3072, ..GPT3 },
    Preset { name: "gpt3-350m", layers: 24, width: 1024, heads: [16, 16, 64], ff: 4096, ..GPT3 },
    Preset { name: "gpt3-760m", layers: 24, width: 1536, heads: [16, 16, 96], ff: 6144, ..GPT3 },
    Preset { name: "gpt3-1.3b", layers: 24, width: 2048, heads: [16, 16, 128], ff: 8192, ..GPT3 },
    Preset { name: "gpt3-2.7b", layers: 32, width: 2560, heads: [32, 32, 80], ff: 10_240, ..GPT3 },
    Preset { name: "gpt3-6.7b", layers: 32, width: 4096, heads: [32, 32, 128], ff: 16_384, ..GPT3 },
    Preset { name: "gpt3-13b", layers: 40, width: 5120, heads: [40, 40, 128], ff: 20_480, ..GPT3 },
    Preset { name: "smollm2-135m", layers: 30, width: 576, heads: [9, 3, 64], ff: 1536, ..LLAMA },
    Preset { name: "smollm2-360m", layers: 32, width: 960, heads: [15, 5, 64], ff: 2560, ..LLAMA },
    Preset { name: "smollm2-1.7b", layers: 24, width: 2048, heads: [32, 32, 64], ff: 8192, rope_base: 130_000.0, ..LLAMA },
    Preset { name: "tinyllama-1.1b", layers: 22, width: 2048, heads: [32, 4, 64], ff: 5632, ctx: 2048, rope_base: 10_000.0, tied: false, vocab_size: 32_000, ..LLAMA },
    Preset { name: "llama3.2-1b", layers: 16, width: 2048, heads: [32, 8, 64], ff: 8192, rope_base: 500_000.0, vocab_size: 128_256, ..LLAMA },
    Preset { name: "qwen2.5-0.5b", family: FamilyName::Qwen2, layers: 24, width: 896, heads: [14, 2, 64], ff: 4864, ctx: 32_768, ..QWEN },
    Preset { name: "qwen3-0.6b", family: FamilyName::Qwen3, layers: 28, width: 1024, heads: [16, 8, 128], ff: 3072, ctx: 40_960, ..QWEN },
];

/// The size of this name.
///
/// # Errors
/// When there is none, with the nearest and all there are.
pub fn preset(name: &str) -> Result<&'static Preset> {
    let found = PRESETS.iter().find(|preset| preset.name == name);
    found.with_context(|| {
        let names = || PRESETS.iter().map(|preset| preset.name);
        let near = nearest(name, names())
            .map(|near| format!(" did you mean `{near}`?"))
            .unwrap_or_default();
        let all: Vec<_> = names().collect();
        format!(
            "there is no preset `{name}`:{near} The names are {}",
            all.join(", ")
        )
    })
}

impl Preset {
    /// All keys of `[model]`.
    pub fn config(&self) -> ModelConfig {
        let [heads, kv_heads, head_dim] = self.heads;
        let rotary = self.family != FamilyName::Gpt2;
        ModelConfig {
            preset: Some(self.name.to_owned()),
            kv_heads: rotary.then_some(kv_heads),
            // Only where it does not follow, so that a smaller width or fewer heads need no other key.
            head_dim: (heads * head_dim != self.width).then_some(head_dim),
            ff: (self.ff != 4 * self.width || rotary).then_some(self.ff),
            rope_base: rotary.then_some(self.rope_base),
            norm_eps: Some(self.norm_eps),
            tied: Some(self.tied),
            ..ModelConfig::new(self.family, self.layers, self.width, heads, self.ctx)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig> {
        let table = toml::from_str(text)?;
        let config: ModelConfig = fledgling_data::toml_config::read(table)?;
        config.check()?;
        Ok(config)
    }

    /// Parameters as the repositories of the released weights count them.
    #[test]
    fn sizes_have_the_published_parameters() {
        for (name, parameters) in [
            ("gpt2-124m", 124_439_808),
            ("gpt2-355m", 354_823_168),
            ("gpt2-774m", 774_030_080),
            ("gpt2-1558m", 1_557_611_200),
            ("smollm2-135m", 134_515_008),
            ("smollm2-360m", 361_821_120),
            ("smollm2-1.7b", 1_711_376_384),
            ("tinyllama-1.1b", 1_100_048_384),
            ("llama3.2-1b", 1_235_814_400),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-0.6b", 596_049_920),
        ] {
            let preset = preset(name).unwrap();
            let spec = preset.config().spec(preset.vocab_size);
            assert_eq!(spec.n_parameters(), parameters, "{name}");
        }
        // GPT-3's table rounds, and 1.3B and 13B do not fit their own numbers.
        for (name, millions) in [
            ("gpt3-125m", 125.0),
            ("gpt3-350m", 350.0),
            ("gpt3-760m", 760.0),
            ("gpt3-1.3b", 1300.0),
            ("gpt3-2.7b", 2700.0),
            ("gpt3-6.7b", 6700.0),
            ("gpt3-13b", 13_000.0),
        ] {
            let preset = preset(name).unwrap();
            let spec = preset.config().spec(preset.vocab_size);
            let ratio = spec.n_parameters() as f64 / 1e6 / millions;
            assert!((ratio - 1.0).abs() < 0.02, "{name}: {ratio}");
        }
    }

    #[test]
    fn every_size_is_whole_and_survives_its_own_text() {
        for preset in PRESETS {
            let config = parse(&format!("preset = '{}'", preset.name)).unwrap();
            assert_eq!(config, preset.config());
            let spec = config.spec(preset.vocab_size);
            spec.validate().unwrap();
            assert_eq!(
                [spec.n_head, spec.n_kv_head, spec.head_dim],
                preset.heads,
                "{}",
                preset.name
            );
            assert_eq!((spec.n_ff, spec.n_ctx), (preset.ff, preset.ctx));
            assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn keys_override_the_preset() {
        let config = parse("preset = 'gpt2-124m'\nlayers = 4\nwidth = 384\nheads = 6").unwrap();
        let spec = config.spec(1000);
        assert_eq!(
            (
                spec.n_layer,
                spec.n_embd,
                spec.n_ff,
                spec.head_dim,
                spec.n_ctx
            ),
            (4, 384, 1536, 64, 1024)
        );
        let config = parse("preset = 'qwen3-0.6b'\nctx = 512\ntied = false").unwrap();
        let spec = config.spec(1000);
        assert_eq!(
            (spec.n_ctx, spec.tied_embedding, spec.head_dim, spec.qk_norm),
            (512, false, 128, true)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let small = "layers = 2\nwidth = 64\nheads = 4\nctx = 32\n";
        for (text, expect) in [
            ("preset = 'gpt2-124'", "did you mean `gpt2-124m`?"),
            ("preset = 'gpt3-13'", "did you mean `gpt3-13b`?"),
            ("preset = 'x'", "The names are gpt2-124m, gpt2-355m"),
            ("family = 'gpt2'\nlayers = 2", "`width` is missing"),
            (small, "`family` is missing"),
            ("preset = 'gpt2-124m'\nlayer = 3", "did you mean `layers`?"),
            ("preset = 'gpt2-124m'\nkv_heads = 3", "model.kv_heads"),
            ("preset = 'gpt2-124m'\nrope_base = 1e4", "model.rope_base"),
            ("preset = 'gpt2-124m'\nwidth = 0", "model.width = 0"),
            ("preset = 'gpt2-124m'\nwidth = 770", "model.heads = 12"),
            (
                "preset = 'smollm2-135m'\nkv_heads = 2",
                "model.kv_heads = 2",
            ),
            ("preset = 'smollm2-135m'\nhead_dim = 63", "even number"),
            ("preset = 'smollm2-135m'\nnorm_eps = 1", "model.norm_eps"),
            ("preset = 'smollm2-135m'\nrope_base = -1", "model.rope_base"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
