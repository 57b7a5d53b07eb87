//! A tokenizer of one's own: byte-level BPE with GPT-2's pattern (Radford et al., 2019, section 2.2), trained by the
//! Hugging Face `tokenizers` crate, and figures that tell how well one suits a text.
//!
//! What is written is a `tokenizer.json` as all tools read it; [`fledgling_core::tokenizer`] gives the same ids as the
//! crate that made it. Training streams the texts, and keeps each different word with its count and the places of its
//! pairs: 0.8 to 1 kB a word (measured: 62 MB for the 57 thousand words of 11 MB of documentation and code, 2.1 GB for 2.6
//! million random words). [`Options::max_bytes`] bounds it.

mod report;
mod sample;

pub use report::{LongToken, TokenizerReport, report};

use crate::control::{Control, Unit};
use anyhow::{Context, Error, Result, ensure};
use fledgling_core::tokenizer::Tokenizer;
use sample::Sample;
use serde_json::json;
use std::{collections::BTreeSet, fs, path::Path, sync::Mutex};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, OffsetReferential, OffsetType,
    PostProcessorWrapper, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
    TokenizerBuilder, Trainer as _,
    models::{
        ModelWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

/// The token that ends a text in GPT-2 and in most models since.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Tokens of the bytes: each text can be written in them.
const N_BYTES: usize = 256;

/// The crate counts pairs in an `i32`, and no pair is there more often than there are bytes.
const MAX_BYTES: u64 = i32::MAX as u64;

/// What is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Tokens, the special ones and those of the 256 bytes among them. Fewer come out when the texts are too few.
    pub vocab_size: usize,
    /// Special tokens; the first one ends a text (EOS).
    pub specials: Vec<String>,
    /// A pair that is there less often is not merged.
    pub min_frequency: u64,
    /// Text that is looked at, at most.
    pub max_bytes: u64,
    /// Bytes of all texts together, where known: if these are more than `max_bytes`, pieces from everywhere are taken.
    /// Where not known, the beginning.
    pub total_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vocab_size: 8192,
            specials: vec![END_OF_TEXT.to_owned()],
            min_frequency: 2,
            max_bytes: 1 << 28,
            total_bytes: None,
        }
    }
}

/// A new tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// `tokenizer.json`.
    pub tokenizer_json: String,
    /// `tokenizer_config.json`: which token is EOS.
    pub config_json: String,
    /// Tokens there are.
    pub vocab_size: usize,
    /// Bytes of text that came.
    pub seen_bytes: u64,
    /// Bytes of text that were looked at.
    pub used_bytes: u64,
}

impl Trained {
    /// The tokenizer.
    ///
    /// # Errors
    /// Never for what [`train`] returns.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let config = Some(self.config_json.as_bytes());
        Ok(Tokenizer::from_hf_json(
            self.tokenizer_json.as_bytes(),
            config,
        )?)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a folder, which is made.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        for (name, text) in [
            ("tokenizer_config.json", &self.config_json),
            ("tokenizer.json", &self.tokenizer_json),
        ] {
            let path = folder.join(name);
            let failed = || format!("cannot write {}", path.display());
            let file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
            fs::write(file.path(), text).with_context(failed)?;
            file.persist(&path).with_context(failed)?;
        }
        Ok(())
    }
}

/// Trains a tokenizer. The same texts in the same order give the same tokenizer.
///
/// # Errors
/// Options that do not fit each other, texts that cannot be read, no text at all, or somebody's wish to stop, which is
/// heard while texts are read, not while the pairs are merged.
pub fn train(
    texts: impl Iterator<Item = Result<String>> + Send,
    options: &Options,
    control: &dyn Control,
) -> Result<Trained> {
    check(options)?;
    let specials = options.specials.iter();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .special_tokens(specials.map(|text| AddedToken::from(text, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    control.begin("count words", Unit::Bytes, Some(expected_bytes(options)));
    let (seen_bytes, used_bytes) = count_words(&mut trainer, texts, options, control)?;
    control.note(&format!(
        "{} different words in {used_bytes} bytes; merging the most frequent pairs",
        trainer.get_word_count()
    ));
    control.begin("merge pairs", Unit::Documents, None);
    let mut model = BPE::default();
    let specials = trainer.train(&mut model).map_err(Error::from_boxed)?;
    let (tokenizer_json, vocab_size) = file(model, specials)?;
    if vocab_size < options.vocab_size {
        control.note(&format!(
            "the texts give {vocab_size} tokens only, not {}: no other pair is there {} times",
            options.vocab_size, options.min_frequency
        ));
    }
    let eos = &options.specials[0];
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "add_bos_token": false,
        "clean_up_tokenization_spaces": false,
    });
    let trained = Trained {
        tokenizer_json,
        config_json: serde_json::to_string_pretty(&config)?,
        vocab_size,
        seen_bytes,
        used_bytes,
    };
    trained
        .tokenizer()
        .context("the new tokenizer cannot be read back")?;
    Ok(trained)
}

fn check(options: &Options) -> Result<()> {
    let specials: BTreeSet<_> = options.specials.iter().collect();
    ensure!(
        !specials.is_empty() && specials.len() == options.specials.len(),
        "special tokens: at least one, each once; the first one ends a text"
    );
    ensure!(
        specials.iter().all(|text| text.chars().count() > 1),
        "a special token has two characters at least: it must not be mistaken for a byte's token"
    );
    let fewest = N_BYTES + specials.len();
    ensure!(
        (fewest..=1 << 20).contains(&options.vocab_size),
        "a vocabulary of {}: {fewest} (the bytes and the special tokens) to {}",
        options.vocab_size,
        1 << 20
    );
    ensure!(
        (1..=MAX_BYTES).contains(&options.max_bytes),
        "{} bytes to look at: 1 to {MAX_BYTES}, which is more than enough for any vocabulary",
        options.max_bytes
    );
    Ok(())
}

fn expected_bytes(options: &Options) -> u64 {
    options
        .total_bytes
        .map_or(options.max_bytes, |total| total.min(options.max_bytes))
}

/// Feeds the words of the sampled texts to the trainer.
fn count_words(
    trainer: &mut BpeTrainer,
    texts: impl Iterator<Item = Result<String>> + Send,
    options: &Options,
    control: &dyn Control,
) -> Result<(u64, u64)> {
    // The trainer wants an iterator that does not fail, so a failure ends it and is looked at afterwards.
    let failure = Mutex::new(None);
    let keep = |error: Error| {
        *failure
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
    };
    let mut sample = Sample::new(texts, options.max_bytes, options.total_bytes);
    let pieces = std::iter::from_fn(|| {
        let piece = control
            .check()
            .and_then(|()| sample.next().transpose())
            .unwrap_or_else(|error| {
                keep(error);
                None
            })?;
        control.advance(piece.len() as u64);
        Some(piece)
    });
    trainer.feed(pieces, words).map_err(Error::from_boxed)?;
    if let Some(error) = failure
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        return Err(error);
    }
    let (seen, used) = (sample.seen_bytes, sample.used_bytes);
    ensure!(used > 0, "there is no text to train a tokenizer on");
    if sample.is_cut {
        control.note(&format!(
            "the texts are longer than {} bytes: only the beginning was looked at",
            options.max_bytes
        ));
    } else if used < seen {
        control.note(&format!(
            "{used} of {seen} bytes of text were looked at, in pieces from everywhere"
        ));
    }
    Ok((seen, used))
}

fn byte_level() -> ByteLevel {
    ByteLevel::default().add_prefix_space(false)
}

/// The words of a text, in the alphabet of bytes.
fn words(text: &str) -> tokenizers::Result<Vec<String>> {
    let mut text = PreTokenizedString::from(text);
    byte_level().pre_tokenize(&mut text)?;
    let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(splits
        .into_iter()
        .map(|(word, ..)| word.to_owned())
        .collect())
}

/// The text of `tokenizer.json`, and how many tokens there are.
fn file(model: BPE, specials: Vec<AddedToken>) -> Result<(String, usize)> {
    let mut tokenizer = TokenizerBuilder::<
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(model.into())
    .with_pre_tokenizer(Some(byte_level().into()))
    .with_post_processor(Some(byte_level().trim_offsets(false).into()))
    .with_decoder(Some(byte_level().into()))
    .build()
    .map_err(Error::from_boxed)?;
    tokenizer
        .add_special_tokens(specials)
        .map_err(Error::from_boxed)?;
    let json = tokenizer.to_string(true).map_err(Error::from_boxed)?;
    Ok((json, tokenizer.get_vocab_size(true)))
}

#[cfg(test)]
mod tests;
