//! What a file says of how its model computes, so that anybody can do it again: a probe (two prompts and the greedy tokens
//! after them), and an evaluation over a stated text, beside the parent that was quantised.
//!
//! The engine's arithmetic is defined to the bit (ARCHITECTURE.md, "The arithmetic"), so what is recorded is reproduced exactly or
//! something is broken. Both stand in the header, before the weights they are made with: export reserves places of their size,
//! and fills them when the tensors are written.

use crate::{data::Bars, files::human_bytes, model::Model, sums::sha256_hex};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{
    cpu::CpuEngine,
    gguf::{Array, Metadata},
    model::ModelInfo,
    sampler::argmax,
};
use fledgling_eval::{
    perplexity::{self, Pieces, Windows},
    reference, score,
};
use std::path::Path;

const PROMPTS: &str = "fledgling.probe.prompts";
const PROMPT_IDS: &str = "fledgling.probe.prompt_ids";
const N_PROMPT_IDS: &str = "fledgling.probe.n_prompt_ids";
const TOKEN_IDS: &str = "fledgling.probe.token_ids";
const N_TOKEN_IDS: &str = "fledgling.probe.n_token_ids";

const TEXT_NAME: &str = "fledgling.eval.text.name";
const TEXT_SHA256: &str = "fledgling.eval.text.sha256";
const PARENT: &str = "fledgling.eval.parent";
const MAX_TOKENS: &str = "fledgling.eval.max_tokens";
const WINDOW: &str = "fledgling.eval.window";
const N_WINDOWS: &str = "fledgling.eval.windows";
const N_TOKENS: &str = "fledgling.eval.tokens";
const PERPLEXITY: &str = "fledgling.eval.perplexity";
const PERPLEXITY_STDERR: &str = "fledgling.eval.perplexity_stderr";
const PARENT_PERPLEXITY: &str = "fledgling.eval.parent_perplexity";
const KL: &str = "fledgling.eval.kl";
const KL_STDERR: &str = "fledgling.eval.kl_stderr";
const KL_P99: &str = "fledgling.eval.kl_p99";
const TOP1: &str = "fledgling.eval.top1_agreement";

/// What a probe is asked: prose, and something that looks back.
const PROBE_PROMPTS: [&str; 2] = ["Once upon a time", "one, two, three, four, five, six,"];
/// Greedy tokens of each, the end of a text among them like any other.
const N_PROBE_TOKENS: usize = 16;
/// Tokens of a window, where the model has as many positions.
const EVAL_WINDOW: usize = 512;

/// Prompts and what the model makes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The texts.
    pub prompts: Vec<String>,
    /// Their ids, BOS where the model wants it.
    pub prompt_ids: Vec<Vec<u32>>,
    /// The greedy ids after each.
    pub token_ids: Vec<Vec<u32>>,
}

impl Probe {
    /// The prompts of a model that was not asked yet: ids of the size that they will have.
    pub fn plan(info: &ModelInfo) -> Self {
        let n_ctx = info.spec.n_ctx;
        let encode = |prompt: &str| {
            let mut ids = info.encode_prompt(prompt);
            ids.truncate(n_ctx - 1);
            ids
        };
        let prompt_ids = PROBE_PROMPTS.map(encode).to_vec();
        let blank = |ids: &Vec<u32>| vec![0; N_PROBE_TOKENS.min(n_ctx - ids.len())];
        Self {
            prompts: PROBE_PROMPTS.map(str::to_owned).to_vec(),
            token_ids: prompt_ids.iter().map(blank).collect(),
            prompt_ids,
        }
    }

    /// Asks the model.
    ///
    /// # Errors
    /// Those of the engine: numbers that are not finite.
    pub fn fill(&mut self, engine: &CpuEngine) -> Result<()> {
        for (prompt, ids) in self.prompt_ids.iter().zip(&mut self.token_ids) {
            *ids = greedy(engine, prompt, ids.len())?;
        }
        Ok(())
    }

    /// Its keys.
    pub fn to_metadata(&self) -> Metadata {
        let lens =
            |lists: &[Vec<u32>]| -> Vec<u32> { lists.iter().map(|ids| ids.len() as u32).collect() };
        let mut metadata = Metadata::new();
        let prompts = self.prompts.iter().collect();
        metadata.set(PROMPTS, Array::String(prompts));
        metadata.set(PROMPT_IDS, self.prompt_ids.concat());
        metadata.set(N_PROMPT_IDS, lens(&self.prompt_ids));
        metadata.set(TOKEN_IDS, self.token_ids.concat());
        metadata.set(N_TOKEN_IDS, lens(&self.token_ids));
        metadata
    }

    /// What a file has recorded, if anything.
    ///
    /// # Errors
    /// When its keys contradict each other.
    pub fn read(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(prompts) = metadata.strings(PROMPTS) else {
            return Ok(None);
        };
        let lists = |ids: &str, lens: &str| -> Option<Vec<Vec<u32>>> {
            let (ids, lens) = (metadata.ints(ids)?, metadata.ints(lens)?);
            let mut ids = ids.into_iter();
            let list = |len: i64| -> Option<Vec<u32>> {
                let list: Vec<i64> = ids.by_ref().take(usize::try_from(len).ok()?).collect();
                let whole = list.len() as i64 == len;
                let list = list.into_iter().map(|id| u32::try_from(id).ok());
                list.collect::<Option<_>>().filter(|_| whole)
            };
            let found: Option<Vec<_>> = lens.into_iter().map(list).collect();
            found.filter(|lists| lists.len() == prompts.len() && ids.next().is_none())
        };
        let read = |ids: &str, lens: &str| {
            lists(ids, lens).with_context(|| format!("the recorded probe is broken (`{ids}`)"))
        };
        Ok(Some(Self {
            prompts: prompts.iter().map(str::to_owned).collect(),
            prompt_ids: read(PROMPT_IDS, N_PROMPT_IDS)?,
            token_ids: read(TOKEN_IDS, N_TOKEN_IDS)?,
        }))
    }

    /// Asks the model again. How many tokens are as recorded.
    ///
    /// # Errors
    /// The first that is not, with what it should be.
    pub fn reproduce(&self, info: &ModelInfo, engine: &CpuEngine) -> Result<usize> {
        let cases = self
            .prompts
            .iter()
            .zip(&self.prompt_ids)
            .zip(&self.token_ids);
        for ((prompt, prompt_ids), expected) in cases {
            let mut ids = info.encode_prompt(prompt);
            ids.truncate(info.spec.n_ctx - 1);
            ensure!(
                ids == *prompt_ids,
                "the recorded probe is not reproduced: the tokenizer makes {ids:?} of {prompt:?}, and the file says {prompt_ids:?}"
            );
            let found = greedy(engine, prompt_ids, expected.len())?;
            if let Some(at) = (0..expected.len()).find(|i| found[*i] != expected[*i]) {
                let text = |ids: &[u32]| info.tokenizer.decode(ids, true);
                bail!(
                    "the recorded probe is not reproduced: after {prompt:?} token {} is {} instead of {}; it should go on {:?}, and goes on {:?}: the weights were changed since the export",
                    at + 1,
                    found[at],
                    expected[at],
                    text(expected),
                    text(&found)
                );
            }
        }
        Ok(self.token_ids.iter().map(Vec::len).sum())
    }
}

/// The likeliest tokens one by one, ties to the lowest id.
fn greedy(engine: &CpuEngine, prompt: &[u32], n: usize) -> Result<Vec<u32>> {
    let n_ctx = prompt.len() + n;
    let mut session = engine.session(n_ctx)?;
    let mut logits = engine.forward(&mut session, prompt)?;
    let mut ids = Vec::with_capacity(n);
    while ids.len() < n {
        let top = argmax(&logits);
        ids.push(top);
        if ids.len() < n {
            logits = engine.forward(&mut session, &[top])?;
        }
    }
    Ok(ids)
}

/// A text to evaluate on, read once.
#[derive(Debug)]
pub struct Text {
    content: String,
    /// Name of its file.
    name: String,
    sha256: String,
}

impl Text {
    /// Reads a text file.
    ///
    /// # Errors
    /// When it cannot be read, or is no UTF-8.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {} (it must be UTF-8)", path.display()))?;
        let name = path.file_name().unwrap_or_default();
        Ok(Self {
            sha256: sha256_hex(text.as_bytes()),
            name: name.to_string_lossy().into_owned(),
            content: text,
        })
    }
}

/// How a file's model does on a text, and what quantising took from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Name of the text's file.
    pub text_name: String,
    /// The text's SHA-256.
    pub text_sha256: String,
    /// The parent: its name and types.
    pub parent: String,
    /// Tokens of the text that were taken, from its beginning.
    pub max_tokens: u64,
    /// Tokens of a window; windows are disjoint.
    pub window: u64,
    /// Windows.
    pub n_windows: u64,
    /// Tokens that were scored.
    pub n_tokens: u64,
    /// Perplexity, and its standard error over windows.
    pub perplexity: (f64, f64),
    /// The parent's over the same tokens.
    pub parent_perplexity: f64,
    /// Mean KL divergence from the parent in nats, and its standard error.
    pub kl: (f64, f64),
    /// 99 of 100 positions are below.
    pub kl_p99: f64,
    /// Share of positions at which both hold the same token for the likeliest.
    pub top1_agreement: f64,
}

impl Evaluation {
    /// An evaluation to be made: its figures have their size, and no value yet.
    ///
    /// # Errors
    /// When the text is too short to tell.
    pub fn plan(
        text: &Text,
        parent: &Model,
        parent_types: &str,
        max_tokens: usize,
    ) -> Result<Self> {
        let window = EVAL_WINDOW.min(parent.info.spec.n_ctx);
        let planned = Self {
            text_name: text.name.clone(),
            text_sha256: text.sha256.clone(),
            parent: format!("{} ({parent_types})", parent.info.name),
            max_tokens: max_tokens as u64,
            window: window as u64,
            n_windows: 0,
            n_tokens: 0,
            perplexity: (0.0, 0.0),
            parent_perplexity: 0.0,
            kl: (0.0, 0.0),
            kl_p99: 0.0,
            top1_agreement: 0.0,
        };
        let n_windows = planned.pieces(text, &parent.info)?.len() as u64;
        ensure!(
            n_windows > 0,
            "{}: a text of at least two tokens is needed to evaluate on ({})",
            text.name,
            human_bytes(text.content.len() as u64)
        );
        Ok(Self {
            n_windows,
            ..planned
        })
    }

    fn pieces<'a>(&self, text: &Text, info: &'a ModelInfo) -> Result<Pieces<'a>> {
        let window = self.window as usize;
        let cut = Windows {
            window,
            stride: window,
        };
        Pieces::of_text(
            info,
            &text.content,
            cut,
            (self.max_tokens / self.window).max(1) as usize,
        )
    }

    /// Measures the model and its parent.
    ///
    /// # Errors
    /// Those of the engines.
    pub fn fill(
        &mut self,
        text: &Text,
        model: score::Model<'_>,
        parent: score::Model<'_>,
    ) -> Result<()> {
        let pieces = self.pieces(text, model.info)?;
        let compared = reference::compare(&parent, &[model], &pieces, &Bars::without_end())?;
        let compared = compared.first().context("nothing was compared")?;
        // A single token has no standard error.
        let stderr = |estimate: fledgling_eval::stats::Estimate| {
            (estimate.value, estimate.stderr.unwrap_or(0.0))
        };
        self.n_tokens = compared.tokens;
        self.perplexity = stderr(compared.perplexity);
        self.parent_perplexity = compared.reference_perplexity.value;
        self.kl = stderr(compared.kl.mean);
        self.kl_p99 = compared.kl.p99;
        self.top1_agreement = compared.top1_agreement.value;
        Ok(())
    }

    /// Its keys.
    pub fn to_metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set(TEXT_NAME, self.text_name.as_str());
        metadata.set(TEXT_SHA256, self.text_sha256.as_str());
        metadata.set(PARENT, self.parent.as_str());
        for (key, n) in [
            (MAX_TOKENS, self.max_tokens),
            (WINDOW, self.window),
            (N_WINDOWS, self.n_windows),
            (N_TOKENS, self.n_tokens),
        ] {
            metadata.set(key, n);
        }
        for (key, x) in [
            (PERPLEXITY, self.perplexity.0),
            (PERPLEXITY_STDERR, self.perplexity.1),
            (PARENT_PERPLEXITY, self.parent_perplexity),
            (KL, self.kl.0),
            (KL_STDERR, self.kl.1),
            (KL_P99, self.kl_p99),
            (TOP1, self.top1_agreement),
        ] {
            metadata.set(key, x);
        }
        metadata
    }

    /// What a file has recorded, if anything.
    ///
    /// # Errors
    /// When a key is missing or wrong.
    pub fn read(metadata: &Metadata) -> Result<Option<Self>> {
        if metadata.get(PERPLEXITY).is_none() {
            return Ok(None);
        }
        let broken = |key: &str| format!("the recorded evaluation is broken (`{key}`)");
        let text = |key| {
            metadata
                .str(key)
                .map(str::to_owned)
                .with_context(|| broken(key))
        };
        let n = |key| metadata.u64(key).with_context(|| broken(key));
        let x = |key| metadata.f64(key).with_context(|| broken(key));
        let window = n(WINDOW)?;
        ensure!(window >= 2, broken(WINDOW));
        Ok(Some(Self {
            text_name: text(TEXT_NAME)?,
            text_sha256: text(TEXT_SHA256)?,
            parent: text(PARENT)?,
            max_tokens: n(MAX_TOKENS)?,
            window,
            n_windows: n(N_WINDOWS)?,
            n_tokens: n(N_TOKENS)?,
            perplexity: (x(PERPLEXITY)?, x(PERPLEXITY_STDERR)?),
            parent_perplexity: x(PARENT_PERPLEXITY)?,
            kl: (x(KL)?, x(KL_STDERR)?),
            kl_p99: x(KL_P99)?,
            top1_agreement: x(TOP1)?,
        }))
    }

    /// Measures the model again: what it says must be what is recorded, to the bit.
    ///
    /// # Errors
    /// When the text is another one, or a figure differs, with both.
    pub fn reproduce(&self, text: &Text, model: score::Model<'_>) -> Result<()> {
        ensure!(
            text.sha256 == self.text_sha256,
            "{} is not the text of the recorded evaluation: its SHA-256 is {}, that of {} was {}",
            text.name,
            text.sha256,
            self.text_name,
            self.text_sha256
        );
        let found = perplexity::measure(
            &model,
            &self.pieces(text, model.info)?,
            &Bars::without_end(),
        )?;
        for (what, expected, got) in [
            ("windows", self.n_windows, found.windows as u64),
            ("tokens", self.n_tokens, found.tokens),
        ] {
            ensure!(
                expected == got,
                "the recorded evaluation is not reproduced: {got} {what} instead of {expected}; the tokenizer was changed since the export"
            );
        }
        ensure!(
            found.perplexity.value.to_bits() == self.perplexity.0.to_bits(),
            "the recorded evaluation is not reproduced: the perplexity is {} instead of {}; the weights were changed since the export",
            found.perplexity.value,
            self.perplexity.0
        );
        Ok(())
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        format!(
            "perplexity {:.4} ± {:.4} (parent {:.4}), KL {:.6} ± {:.6}, top-1 {:.4} over {} tokens of {}",
            self.perplexity.0,
            self.perplexity.1,
            self.parent_perplexity,
            self.kl.0,
            self.kl.1,
            self.top1_agreement,
            self.n_tokens,
            self.text_name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{
        cpu::{CpuOptions, KvDType},
        gguf::{Gguf, Layout},
        quant::DType,
        spec::Family,
        testing::tiny_model,
    };
    use fledgling_eval::engine::Engine;

    fn tiny(dtype: DType, seed: u64) -> (ModelInfo, CpuEngine) {
        let gguf = Gguf::parse(tiny_model(Family::Llama, dtype, seed).into()).unwrap();
        let options = CpuOptions {
            n_threads: 1,
            isa: None,
            kv: KvDType::F16,
        };
        let info = ModelInfo::from_header(gguf.header()).unwrap();
        (info, CpuEngine::new(&gguf, &options).unwrap())
    }

    #[test]
    fn a_probe_is_read_as_it_was_written() {
        let (info, engine) = tiny(DType::Q8_0, 1);
        let mut probe = Probe::plan(&info);
        let planned = Layout::new(probe.to_metadata(), []).unwrap();
        probe.fill(&engine).unwrap();
        let filled = planned.with_values(probe.to_metadata()).unwrap();
        let read = Probe::read(&filled.header().metadata).unwrap().unwrap();
        assert_eq!(read, probe);
        assert_eq!(read.reproduce(&info, &engine).unwrap(), 32);
        assert_eq!(Probe::read(&Metadata::new()).unwrap(), None);
    }

    #[test]
    fn a_probe_tells_other_weights_and_another_tokenizer() {
        let (info, engine) = tiny(DType::Q8_0, 1);
        let mut probe = Probe::plan(&info);
        probe.fill(&engine).unwrap();
        let (_, other) = tiny(DType::Q8_0, 2);
        let error = probe.reproduce(&info, &other).unwrap_err().to_string();
        assert!(error.contains("the weights were changed"), "{error}");
        probe.prompt_ids[1][0] ^= 1;
        let error = probe.reproduce(&info, &engine).unwrap_err().to_string();
        assert!(error.contains("the tokenizer makes"), "{error}");

        for (key, value) in [
            (N_TOKEN_IDS, vec![16_u32, 17]),
            (N_TOKEN_IDS, vec![16]),
            (N_PROMPT_IDS, vec![1, 1]),
            (TOKEN_IDS, vec![]),
        ] {
            let mut metadata = probe.to_metadata();
            metadata.set(key, value);
            let error = Probe::read(&metadata).unwrap_err().to_string();
            assert!(error.contains("probe is broken"), "{error}");
        }
    }

    #[test]
    fn an_evaluation_is_reproduced_to_the_bit_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        std::fs::write(&path, "the cat and the hat and the other thing ".repeat(30)).unwrap();
        let text = Text::read(&path).unwrap();
        let (info, engine) = tiny(DType::Q4_0, 1);
        let (parent_info, parent_engine) = tiny(DType::F32, 1);
        let model = score::Model {
            name: "model",
            info: &info,
            engine: Engine::Cpu(&engine),
        };
        let parent = score::Model {
            name: "parent",
            info: &parent_info,
            engine: Engine::Cpu(&parent_engine),
        };
        let mut evaluation = Evaluation {
            text_name: text.name.clone(),
            text_sha256: text.sha256.clone(),
            parent: "tiny (F32)".to_owned(),
            max_tokens: 128,
            window: 32,
            n_windows: 4,
            n_tokens: 0,
            perplexity: (0.0, 0.0),
            parent_perplexity: 0.0,
            kl: (0.0, 0.0),
            kl_p99: 0.0,
            top1_agreement: 0.0,
        };
        let planned = Layout::new(evaluation.to_metadata(), []).unwrap();
        evaluation.fill(&text, model, parent).unwrap();
        assert_eq!(evaluation.n_tokens, 4 * 31);
        let apart = evaluation.perplexity.0 - evaluation.parent_perplexity;
        assert!(evaluation.kl.0 > 0.0 && apart.abs() > 1e-6);
        let filled = planned.with_values(evaluation.to_metadata()).unwrap();
        let read = Evaluation::read(&filled.header().metadata)
            .unwrap()
            .unwrap();
        assert_eq!(read, evaluation);
        read.reproduce(&text, model).unwrap();

        let error = read.reproduce(&text, parent).unwrap_err().to_string();
        assert!(error.contains("the weights were changed"), "{error}");
        std::fs::write(&path, "another text").unwrap();
        let error = read
            .reproduce(&Text::read(&path).unwrap(), model)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not the text"), "{error}");
        let mut metadata = read.to_metadata();
        metadata.set(WINDOW, 1_u64);
        assert!(Evaluation::read(&metadata).is_err());
    }
}
