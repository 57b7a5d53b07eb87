//! Decoding with drafts says what decoding without says, and draws from the same distribution.

use crate::{
    cpu::{CpuEngine, CpuOptions, Session},
    generate::{GenerateParams, Generation, Scores, advance, rewind_to_common},
    gguf::Gguf,
    model::ModelInfo,
    quant::DType,
    sampler::SamplerParams,
    spec::Family,
    speculate::PromptLookup,
    testing::tiny_model,
};
use std::ops::ControlFlow;

fn load(family: Family) -> (ModelInfo, CpuEngine) {
    let gguf = Gguf::parse(tiny_model(family, DType::Q8_0, 7).into()).unwrap();
    let info = ModelInfo::from_header(gguf.header()).unwrap();
    (info, CpuEngine::new(&gguf, &CpuOptions::default()).unwrap())
}

/// A text that repeats itself.
fn prompt() -> Vec<u32> {
    [5, 6, 7, 8, 9, 10].repeat(4)
}

struct Run {
    tokens: Vec<u32>,
    session: Session,
    n_passes: usize,
}

fn run((info, engine): &(ModelInfo, CpuEngine), params: &GenerateParams, max_draft: usize) -> Run {
    let prompt = prompt();
    let mut session = engine.session(100).unwrap();
    let mut generation = Generation::new(info.tokenizer.clone(), &prompt, 100, params).unwrap();
    let mut lookup = PromptLookup::new(max_draft);
    rewind_to_common(&mut session, &prompt);
    let mut n_passes = 0;
    let mut texts = String::new();
    loop {
        n_passes += 1;
        let flow = advance(engine, &mut session, &mut generation, &mut lookup, |step| {
            texts += &step.text;
            ControlFlow::Continue(())
        });
        if let ControlFlow::Break(finish) = flow.unwrap() {
            assert_eq!(finish, generation.finished());
            let tokens = generation.tokens().to_vec();
            return Run {
                tokens,
                session,
                n_passes,
            };
        }
    }
}

#[test]
fn drafts_change_neither_tokens_nor_the_session() {
    for family in Family::ALL {
        let model = load(family);
        let mut n_saved = 0;
        for (temperature, max_tokens) in
            [(0.0, None), (0.0, Some(40)), (0.3, None), (1.0, Some(33))]
        {
            let params = GenerateParams {
                max_tokens,
                sampler: SamplerParams {
                    temperature,
                    repetition_penalty: if temperature > 0.5 { 1.1 } else { 1.0 },
                    seed: 3,
                    ..SamplerParams::default()
                },
                ignore_end: true,
                ..GenerateParams::default()
            };
            let plain = run(&model, &params, 0);
            assert_eq!(plain.n_passes, plain.tokens.len());
            for max_draft in [1, 3, 16] {
                let mut drafted = run(&model, &params, max_draft);
                assert_eq!(
                    drafted.tokens, plain.tokens,
                    "{family:?} {temperature} {max_draft}"
                );
                n_saved += plain.n_passes - drafted.n_passes;
                assert_eq!(drafted.session.tokens(), plain.session.tokens());
                // What stands in the caches is the same too, so that a conversation can go on.
                let len = plain.session.tokens().len();
                drafted.session.rewind(len - 1);
                let mut fork = plain.session.fork(len - 1).unwrap();
                let next = |session: &mut Session| model.1.forward(session, &[1]).unwrap();
                let (a, b) = (next(&mut fork), next(&mut drafted.session));
                assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
        assert!(n_saved > 0, "{family:?}: some drafts were right");
    }
}

/// Over many seeds the first token, which is drafted, and the one behind a right draft come as often as the model has it.
#[test]
fn drafts_keep_the_distribution() {
    const SEEDS: usize = 3000;
    let (info, engine) = load(Family::Llama);
    let prompt = prompt();
    let mut session = engine.session(100).unwrap();
    assert_eq!(PromptLookup::new(2).draft(&prompt, 9), [5, 6]);
    let logits_behind = |context: &[u32]| {
        let mut session = engine.session(100).unwrap();
        engine.forward(&mut session, context).unwrap()
    };
    let (after_prompt, after_draft) = (
        logits_behind(&prompt),
        logits_behind(&[&prompt[..], &[5]].concat()),
    );
    // The drafted tokens are made as likely as all others together: both ways are often taken.
    let as_all_others = |logits: &[f32], id: u32| {
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        (id, sum.ln() as f32 - logits[id as usize])
    };
    let logit_bias = vec![
        as_all_others(&after_prompt, 5),
        as_all_others(&after_draft, 6),
    ];
    let probabilities = |logits: &[f32]| {
        let biased = |(id, x): (usize, &f32)| {
            let bias = logit_bias.iter().find(|(other, _)| *other == id as u32);
            f64::from(x + bias.map_or(0.0, |(_, bias)| *bias)).exp()
        };
        let weights: Vec<f64> = logits.iter().enumerate().map(biased).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect::<Vec<f64>>()
    };
    let (first, second) = (probabilities(&after_prompt), probabilities(&after_draft));
    let mut counts = [vec![0_u32; first.len()], vec![0_u32; first.len()]];
    for seed in 0..SEEDS {
        let params = GenerateParams {
            max_tokens: Some(8),
            sampler: SamplerParams {
                temperature: 1.0,
                seed: seed as u64,
                logit_bias: logit_bias.clone(),
                ..SamplerParams::default()
            },
            ignore_end: true,
            ..GenerateParams::default()
        };
        let mut generation =
            Generation::new(info.tokenizer.clone(), &prompt, 100, &params).unwrap();
        let mut lookup = PromptLookup::new(2);
        rewind_to_common(&mut session, &prompt);
        let mut tokens = Vec::new();
        let on_step = |step: &crate::generate::Step| {
            tokens.push(step.token);
            ControlFlow::Continue(())
        };
        let flow = advance(&engine, &mut session, &mut generation, &mut lookup, on_step);
        assert!(flow.unwrap().is_continue());
        counts[0][tokens[0] as usize] += 1;
        assert_eq!(
            tokens.len() > 1,
            tokens[0] == 5,
            "one more token only behind a right draft"
        );
        if let Some(&token) = tokens.get(1) {
            counts[1][token as usize] += 1;
        }
    }
    let mut n_compared = 0;
    for (counts, expected) in counts.iter().zip([first, second]) {
        let n = f64::from(counts.iter().sum::<u32>());
        assert!(n > 100.0, "{n}");
        for (count, p) in counts.iter().zip(expected) {
            // Five standard deviations of a binomial count, where that says something.
            if n * p > 5.0 {
                n_compared += 1;
                let limit = 5.0 * (n * p * (1.0 - p)).sqrt();
                assert!(
                    (f64::from(*count) - n * p).abs() < limit,
                    "{count} {}",
                    n * p
                );
            }
        }
    }
    assert!(n_compared > 5, "{n_compared}");
}

#[test]
fn scores_keep_what_is_needed() {
    assert_eq!(Scores::of(&[1.0, 3.0, 3.0], true), Scores::Best(1));
    assert_eq!(Scores::of(&[1.0, 3.0], false), Scores::All(vec![1.0, 3.0]));
}
