//! What a model's own text is like: fixed prompts, written by each model, and figures of repetition.

use crate::{
    score::{Model, Sequence, check, score},
    stats::{Clustered, Estimate},
    task::{prompt_ids, write},
};
use anyhow::{Context, Result, ensure};
use fledgling_core::generate::GenerateParams;
use fledgling_data::control::{Control, Quiet, Unit};
use serde::Serialize;
use std::collections::HashSet;

/// Prompts where none are given: beginnings that models go on from.
pub const PROMPTS: [&str; 8] = [
    "Once upon a time, in a small village by the sea,",
    "The most important thing to know about the human heart is",
    "To bake bread at home, you first",
    "The meeting ended at noon. Afterwards",
    "In 1969, the first man",
    "Dear Anna,\n\nthank you for your letter. I",
    "The difference between a virus and a bacterium is",
    "Three reasons why cities need trees:\n1.",
];

/// Prompts where none are given and the chat template is used.
pub const CHAT_PROMPTS: [&str; 8] = [
    "Tell me a short story about a lighthouse.",
    "What should I know about the human heart?",
    "How do I bake bread at home?",
    "Write a polite e-mail that declines an invitation.",
    "Who was the first man on the moon, and when?",
    "What is the difference between a virus and a bacterium?",
    "Give me three reasons why cities need trees.",
    "Explain to a child why the sky is blue.",
];

/// n of the n-grams whose repetition is counted, as Welleck et al. 2020 ("Neural text generation with unlikelihood training") have it.
const REPEAT_N: usize = 4;
/// Longer texts are not searched for their longest repeat beyond so many words.
const MOST_WORDS: usize = 2000;

/// How text is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The prompts.
    pub prompts: Vec<String>,
    /// By the chat template.
    pub chat: bool,
    /// How tokens are picked and where texts end; the defaults are greedy, up to the end of the context.
    pub params: GenerateParams,
}

/// What a model wrote, and what it is like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Text {
    /// The prompt.
    pub prompt: String,
    /// What the model wrote.
    pub text: String,
    /// Tokens of it.
    pub tokens: usize,
    /// Words of it.
    pub words: usize,
    /// Distinct 1-, 2- and 3-grams of words, by all of them; `None` where there are none.
    pub distinct: [Option<f64>; 3],
    /// Share of its 4-grams that stood there before.
    pub repetition: f64,
    /// Words of the longest run that occurs twice.
    pub longest_repeat: usize,
    /// Its perplexity by the model that wrote it.
    pub self_perplexity: Option<f64>,
}

/// The figures of all texts: means over texts, with their standard errors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// The model.
    pub model: String,
    /// Distinct words by words.
    pub distinct_1: Estimate,
    /// The same of pairs.
    pub distinct_2: Estimate,
    /// The same of triples.
    pub distinct_3: Estimate,
    /// Share of 4-grams that stood there before.
    pub repetition: Estimate,
    /// Words of the longest run that occurs twice.
    pub longest_repeat: Estimate,
    /// Tokens of a text.
    pub tokens: Estimate,
    /// Words of a text.
    pub words: Estimate,
    /// Perplexity of all texts by the model itself; very low where it repeats itself.
    pub self_perplexity: Option<Estimate>,
    /// The texts, in the order of the prompts.
    pub texts: Vec<Text>,
}

/// Lets a model write to each prompt, and measures what it wrote. Progress counts prompts.
///
/// # Errors
/// A prompt that does not fit; those of the engine; somebody's wish to stop.
pub fn write_all(model: &Model<'_>, setting: &Setting, control: &dyn Control) -> Result<Quality> {
    ensure!(!setting.prompts.is_empty(), "there are no prompts");
    control.begin(
        model.name,
        Unit::Documents,
        Some(setting.prompts.len() as u64),
    );
    let mut session = model.engine.writing()?.session(model.info.spec.n_ctx)?;
    let mut texts = Vec::new();
    let mut sequences = Vec::new();
    for prompt in &setting.prompts {
        check(control)?;
        let ids = prompt_ids(model, prompt, setting.chat)?;
        let written = write(model, &mut session, &ids, &setting.params, control)
            .with_context(|| format!("the prompt {prompt:?}"))?;
        let n_prompt = ids.len();
        let all = [ids, written.ids].concat();
        let n_tokens = all.len() - n_prompt;
        // One token more than the context holds is never fed, so what was written fits.
        let sequence = Sequence::within(all, n_prompt, model.info.spec.n_ctx).ok();
        sequences.push(sequence.into_iter().collect::<Vec<_>>());
        texts.push(Text::new(prompt, written.text, n_tokens));
        control.advance(1);
    }
    let scored = score(model.engine, &sequences, &Quiet, "")?;
    let mut nll = Clustered::default();
    for (text, scored) in texts.iter_mut().zip(&scored) {
        for scored in scored {
            let tokens = &scored.tokens;
            text.self_perplexity = Some((-scored.log_prob() / tokens.len() as f64).exp());
            nll.add(tokens.iter().map(|token| -token.log_prob));
        }
    }
    let any = scored.iter().any(|scored| !scored.is_empty());
    let self_perplexity = any.then(|| nll.mean().0.exp());
    Ok(Quality::new(model.name, texts, self_perplexity))
}

impl Text {
    fn new(prompt: &str, text: String, tokens: usize) -> Self {
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        Self {
            prompt: prompt.to_owned(),
            tokens,
            words: words.len(),
            distinct: [1, 2, 3].map(|n| distinct(&words, n)),
            repetition: distinct(&words, REPEAT_N).map_or(0.0, |distinct| 1.0 - distinct),
            longest_repeat: longest_repeat(&words[..words.len().min(MOST_WORDS)]),
            self_perplexity: None,
            text,
        }
    }
}

/// Distinct n-grams by all n-grams.
fn distinct(words: &[&str], n: usize) -> Option<f64> {
    let all = words.windows(n);
    let n_all = all.len();
    (n_all > 0).then(|| all.collect::<HashSet<_>>().len() as f64 / n_all as f64)
}

/// Length of the longest run of words that begins at two places; the two may overlap.
fn longest_repeat(words: &[&str]) -> usize {
    // lens[j]: length of the longest common end of words[..i] and words[..j], for j < i.
    let mut lens = vec![0; words.len() + 1];
    let mut longest = 0;
    for i in 1..=words.len() {
        for j in (1..i).rev() {
            lens[j] = if words[i - 1] == words[j - 1] {
                lens[j - 1] + 1
            } else {
                0
            };
            longest = longest.max(lens[j]);
        }
    }
    longest
}

impl Quality {
    fn new(model: &str, texts: Vec<Text>, self_perplexity: Option<Estimate>) -> Self {
        let mean = |value: &dyn Fn(&Text) -> Option<f64>| {
            Estimate::of_mean(&texts.iter().filter_map(value).collect::<Vec<_>>())
        };
        Self {
            model: model.to_owned(),
            distinct_1: mean(&|text| text.distinct[0]),
            distinct_2: mean(&|text| text.distinct[1]),
            distinct_3: mean(&|text| text.distinct[2]),
            repetition: mean(&|text| Some(text.repetition)),
            longest_repeat: mean(&|text| Some(text.longest_repeat as f64)),
            tokens: mean(&|text| Some(text.tokens as f64)),
            words: mean(&|text| Some(text.words as f64)),
            self_perplexity,
            texts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Engine, testing::tiny};
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn repetition_is_counted_in_words() {
        let text = Text::new(
            "",
            "The cat sat. the cat sat. THE cat sat. on".to_owned(),
            10,
        );
        // Ten words, of which the, cat, sat., on are distinct.
        assert_eq!(text.words, 10);
        assert_eq!(text.distinct[0], Some(0.4));
        // "the cat sat. the", "cat sat. the cat", "sat. the cat sat.", again the first three, "cat sat. on": 7 in all, 4 distinct.
        assert!(
            (text.repetition - (1.0 - 4.0 / 7.0)).abs() < 1e-12,
            "{}",
            text.repetition
        );
        assert_eq!(text.longest_repeat, 6);
        let empty = Text::new("", String::new(), 0);
        assert_eq!((empty.distinct[0], empty.longest_repeat), (None, 0));
        assert!(empty.repetition.abs() < 1e-12);
    }

    #[test]
    fn a_model_writes_to_each_prompt() {
        let (info, engine) = tiny();
        let model = Model {
            name: "tiny",
            info: &info,
            engine: Engine::Cpu(&engine),
        };
        let setting = Setting {
            prompts: vec!["the".to_owned(), "and of".to_owned()],
            chat: false,
            params: GenerateParams {
                max_tokens: Some(12),
                ..GenerateParams::default()
            },
        };
        let quality = write_all(&model, &setting, &Quiet).unwrap();
        assert_eq!(quality.texts.len(), 2);
        assert!(
            quality
                .texts
                .iter()
                .all(|text| text.tokens == 12 && text.self_perplexity.is_some())
        );
        // What greedy decoding writes is likelier than most text.
        let own = quality.self_perplexity.unwrap().value;
        assert!((1.0..300.0).contains(&own), "{own}");
        let chat = Setting {
            chat: true,
            ..setting
        };
        assert_ne!(
            write_all(&model, &chat, &Quiet).unwrap().texts,
            quality.texts
        );
    }

    proptest! {
        #[test]
        fn the_longest_repeat_is_that_of_a_naive_search(words in vec(0_u8..3, 0..14)) {
            let texts: Vec<String> = words.iter().map(ToString::to_string).collect();
            let words: Vec<&str> = texts.iter().map(String::as_str).collect();
            let occurs_twice = |len: &usize| {
                let runs: Vec<_> = words.windows(*len).collect();
                runs.iter().collect::<HashSet<_>>().len() < runs.len()
            };
            let naive = (1..words.len()).rev().find(occurs_twice).unwrap_or(0);
            prop_assert_eq!(longest_repeat(&words), naive);
        }
    }
}
