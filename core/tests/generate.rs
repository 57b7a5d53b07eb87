//! The generation state machine with a real tokenizer and no engine.
#![allow(clippy::unwrap_used, reason = "a test")]

use fledgling_core::generate::{FinishReason, GenerateError, GenerateParams, Generation};
use fledgling_core::sampler::SamplerParams;
use fledgling_core::tokenizer::Tokenizer;
use std::sync::Arc;

fn tokenizer() -> Arc<Tokenizer> {
    let json = include_bytes!("fixtures/tokenizer/gpt2.json");
    let config = br#"{"eos_token":"<|im_end|>"}"#;
    Arc::new(Tokenizer::from_hf_json(json, Some(config)).unwrap())
}

/// Feeds the tokens of `answer` and gathers the texts.
fn feed(
    params: &GenerateParams,
    n_ctx: usize,
    answer: &[u32],
) -> (Vec<String>, Option<FinishReason>, Generation) {
    let tokenizer = tokenizer();
    let prompt = tokenizer.encode("Hi", false, true);
    let mut generation = Generation::new(tokenizer, &prompt, n_ctx, params).unwrap();
    let mut texts = Vec::new();
    for &token in answer {
        if generation.finished().is_some() {
            break;
        }
        let step = generation.accept(token);
        assert_eq!((step.token, step.finish), (token, generation.finished()));
        texts.push(step.text);
    }
    let finished = generation.finished();
    (texts, finished, generation)
}

fn stop_at(stops: &[&str]) -> GenerateParams {
    GenerateParams {
        stop: stops.iter().map(ToString::to_string).collect(),
        ..GenerateParams::default()
    }
}

#[test]
fn an_end_token_ends_and_is_no_part_of_the_answer() {
    let tokenizer = tokenizer();
    let answer = tokenizer.encode("the<|im_end|>the", false, true);
    let (texts, finished, generation) = feed(&GenerateParams::default(), 99, &answer);
    assert_eq!(
        (texts.concat().as_str(), finished),
        ("the", Some(FinishReason::Stop))
    );
    assert_eq!(generation.tokens(), &answer[..answer.len() - 2]);
    assert_eq!(generation.prompt(), tokenizer.encode("Hi", false, true));
    let params = GenerateParams {
        ignore_end: true,
        ..GenerateParams::default()
    };
    let (texts, finished, _) = feed(&params, 99, &answer);
    assert_eq!((texts.concat().as_str(), finished), ("thethe", None));
}

#[test]
fn length_is_max_tokens_or_the_context() {
    let answer = tokenizer().encode(" and the and the", false, true);
    for (max_tokens, n_ctx, want) in [
        (Some(2), 99, 2),
        (None, 5, 3),
        (Some(9), 4, 2),
        (Some(1), 99, 1),
    ] {
        let params = GenerateParams {
            max_tokens,
            ..GenerateParams::default()
        };
        let n_prompt = 2;
        assert_eq!(tokenizer().encode("Hi", false, true).len(), n_prompt);
        let (_, finished, generation) = feed(&params, n_ctx, &answer);
        assert_eq!(
            (generation.tokens().len(), finished),
            (want, Some(FinishReason::Length))
        );
    }
    let params = GenerateParams {
        max_tokens: Some(0),
        ..GenerateParams::default()
    };
    let (texts, finished, _) = feed(&params, 99, &answer);
    assert_eq!((texts.len(), finished), (0, Some(FinishReason::Length)));
}

#[test]
fn a_stop_text_may_span_tokens_and_never_leaks() {
    let tokenizer = tokenizer();
    let answer = tokenizer.encode("say zqxj and go", false, true);
    let stop = stop_at(&["qxj a"]);
    let (texts, finished, _) = feed(&stop, 99, &answer);
    assert!(answer.len() > 6, "the stop text spans tokens");
    assert_eq!(
        (texts.concat().as_str(), finished),
        ("say z", Some(FinishReason::Stop))
    );
    // One that does not come is all there in the end.
    let max_tokens = Some(answer.len());
    let (texts, finished, _) = feed(
        &GenerateParams {
            max_tokens,
            ..stop_at(&["and goo", "\n"])
        },
        99,
        &answer,
    );
    assert_eq!(
        (texts.concat().as_str(), finished),
        ("say zqxj and go", Some(FinishReason::Length))
    );
    // Completed by the token that would also reach the limit.
    let (texts, finished, _) = feed(
        &GenerateParams {
            max_tokens,
            ..stop_at(&["and go"])
        },
        99,
        &answer,
    );
    assert_eq!(
        (texts.concat().as_str(), finished),
        ("say zqxj ", Some(FinishReason::Stop))
    );
}

#[test]
fn half_a_character_waits_and_becomes_a_replacement_at_the_end() {
    let answer = tokenizer().encode("a😀b", false, true);
    let (texts, _, _) = feed(&GenerateParams::default(), 99, &answer);
    assert_eq!(texts.concat(), "a😀b");
    assert!(texts.iter().filter(|text| text.is_empty()).count() >= 2);
    let params = GenerateParams {
        max_tokens: Some(2),
        ..GenerateParams::default()
    };
    let (texts, _, _) = feed(&params, 99, &answer);
    assert_eq!(texts.concat(), "a\u{FFFD}");
}

#[test]
fn what_cannot_start_says_why() {
    let start = |prompt: &[u32], n_ctx, params: &GenerateParams| {
        Generation::new(tokenizer(), prompt, n_ctx, params)
            .map(|_| ())
            .unwrap_err()
    };
    let params = GenerateParams::default();
    assert_eq!(start(&[], 9, &params), GenerateError::EmptyPrompt);
    assert_eq!(
        start(&[1, 2, 3], 3, &params),
        GenerateError::PromptTooLong {
            prompt: 3,
            n_ctx: 3
        }
    );
    let params = GenerateParams {
        sampler: SamplerParams {
            top_p: 2.0,
            ..SamplerParams::default()
        },
        ..params
    };
    assert_eq!(
        start(&[1], 9, &params).to_string(),
        "top_p is 2, it must be above 0 and at most 1"
    );
}
