//! Picks the next token. Seeded, and defined on the bits: the same logits and seed pick the same token on every
//! target, so `exp` comes from `libm` and the generator is our own.
//!
//! The order of steps is llama.cpp's and transformers': the repetition penalty on the raw logits, then the presence and frequency
//! penalties and the bias of single tokens (as OpenAI's API defines them, on what was sampled here and not on the prompt), then
//! top-k, top-p and min-p, each on the probabilities of what the one before has left, then the draw. Temperature divides the logits
//! before top-k, as in transformers, so that top-p and min-p see the distribution that is drawn from. Candidates stand
//! in the order (logit descending, id ascending) throughout.
//!
//! A NaN logit counts as minus infinity, so it is never picked while anything else is there; when all logits are minus
//! infinity or NaN the lowest id is picked. Plus infinity takes all of the probability.

use std::{cmp::Ordering, collections::BTreeMap};

/// How to pick. The defaults are greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least this share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divide (multiply when negative) the logits of tokens seen in the last `repetition_window`; 1 is off.
    pub repetition_penalty: f32,
    /// How many tokens back the penalty looks.
    pub repetition_window: usize,
    /// Subtracted from the logits of tokens that were picked before; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that it was picked before; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the generator.
    pub seed: u64,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerParams {
    fn check(&self) -> Result<(), SamplerError> {
        let check = |param, value: f32, is_in: bool, range| {
            if is_in {
                Ok(())
            } else {
                Err(SamplerError {
                    param,
                    value: value.into(),
                    range,
                })
            }
        };
        let temperature = self.temperature;
        check(
            "temperature",
            temperature,
            temperature.is_finite() && temperature >= 0.0,
            "a number from 0",
        )?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "above 0 and at most 1",
        )?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "from 0 to 1",
        )?;
        let penalty = self.repetition_penalty;
        check(
            "repetition_penalty",
            penalty,
            penalty.is_finite() && penalty > 0.0,
            "a number above 0 (1 is off)",
        )?;
        for (param, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            check(param, value, value.is_finite(), "a finite number")?;
        }
        let wrong = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite());
        let bias = wrong.map_or(0.0, |(_, bias)| *bias);
        check("logit_bias", bias, wrong.is_none(), "a finite number")
    }
}

/// A sampler with its generator's state.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplerParams,
    random: Random,
    /// How often each token was picked; filled only where a penalty asks for it.
    n_picked: BTreeMap<u32, u32>,
    /// Kept between calls for its memory.
    candidates: Vec<Candidate>,
}

/// A token that may be picked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    logit: f32,
    id: u32,
    /// Probability relative to the likeliest's.
    weight: f32,
}

/// Logit descending, id ascending. No logit is NaN here.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the sorts call it so")]
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// NaN counts as minus infinity, and minus zero as zero, so that `total_cmp` orders as the numbers do.
fn defined(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::NEG_INFINITY
    } else {
        logit + 0.0
    }
}

impl Sampler {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`SamplerError`] naming the parameter and its range.
    pub fn new(params: SamplerParams) -> Result<Self, SamplerError> {
        params.check()?;
        Ok(Self {
            random: Random::new(params.seed),
            params,
            n_picked: BTreeMap::new(),
            candidates: Vec::new(),
        })
    }

    /// Picks a token; `history` is prompt and answer so far. Ties go to the lowest id. `logits` is scratch afterwards. [V]
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> u32 {
        self.penalize_repetition(logits, history);
        self.penalize_picked(logits);
        for &(id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        let token = self.pick(logits);
        if !self.picked_are_free() {
            *self.n_picked.entry(token).or_default() += 1;
        }
        token
    }

    /// Picks from logits that are as they should be. [V]
    fn pick(&mut self, logits: &[f32]) -> u32 {
        if self.params.temperature <= 0.0 || self.params.top_k == 1 {
            return argmax(logits);
        }
        self.gather(logits);
        let Some(best) = self.candidates.iter().copied().min_by(by_rank) else {
            return 0;
        };
        if !best.logit.is_finite() {
            return best.id;
        }
        let total = self.weigh(best.logit);
        self.candidates.retain(|c| c.weight >= self.params.min_p);
        if self.params.top_p < 1.0 {
            self.keep_top_p(total);
        }
        self.draw().unwrap_or(best.id)
    }

    /// Whether `sample` is plain argmax, so that an engine may do it where its logits are.
    pub fn is_argmax(&self) -> bool {
        let is_greedy = self.params.temperature <= 0.0 || self.params.top_k == 1;
        is_greedy
            && self.penalty_is_off()
            && self.picked_are_free()
            && self.params.logit_bias.is_empty()
    }

    #[allow(clippy::float_cmp, reason = "exactly 1 is the documented off")]
    fn penalty_is_off(&self) -> bool {
        self.params.repetition_penalty == 1.0 || self.params.repetition_window == 0
    }

    #[allow(clippy::float_cmp, reason = "exactly 0 is the documented off")]
    fn picked_are_free(&self) -> bool {
        self.params.presence_penalty == 0.0 && self.params.frequency_penalty == 0.0
    }

    /// `logit - n * frequency - (n > 0) * presence` (OpenAI, "Frequency and presence penalties").
    fn penalize_picked(&self, logits: &mut [f32]) {
        for (&id, &n) in &self.n_picked {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= n as f32 * self.params.frequency_penalty + self.params.presence_penalty;
            }
        }
    }

    fn penalize_repetition(&self, logits: &mut [f32], history: &[u32]) {
        if self.penalty_is_off() {
            return;
        }
        let recent = &history[history.len().saturating_sub(self.params.repetition_window)..];
        for (i, &id) in recent.iter().enumerate() {
            // Once a token, however often it was seen.
            let Some(logit) = logits
                .get_mut(id as usize)
                .filter(|_| !recent[..i].contains(&id))
            else {
                continue;
            };
            let penalty = self.params.repetition_penalty;
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }

    /// All tokens in order of their ids, or the k likeliest in order.
    fn gather(&mut self, logits: &[f32]) {
        let candidate = |(id, &logit): (usize, &f32)| Candidate {
            logit: defined(logit),
            id: id as u32,
            weight: 0.0,
        };
        self.candidates.clear();
        self.candidates
            .extend(logits.iter().enumerate().map(candidate));
        let k = self.params.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, by_rank);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by(by_rank);
        }
    }

    /// Fills in the weights and sums them, in f64 and the candidates' order. Weights are relative to the likeliest, so a
    /// temperature near 0 underflows to greedy and never to NaN.
    fn weigh(&mut self, best: f32) -> f64 {
        let mut total = 0.0;
        for candidate in &mut self.candidates {
            let x = (candidate.logit - best) / self.params.temperature;
            // Below this, exp is 0 in f32.
            candidate.weight = if x < -104.0 { 0.0 } else { libm::expf(x) };
            total += f64::from(candidate.weight);
        }
        total
    }

    /// Keeps the likeliest whose weights reach the share `top_p` of `total`.
    fn keep_top_p(&mut self, total: f64) {
        let enough = total * f64::from(self.params.top_p);
        let mut sum = 0.0;
        let kept = self.ranked_until(|weight| {
            sum += weight;
            sum >= enough
        });
        self.candidates
            .truncate(kept.unwrap_or(self.candidates.len()));
    }

    /// Draws by the weights; `None` only where rounding leaves the sum at the target.
    fn draw(&mut self) -> Option<u32> {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let target = self.random.unit() * total;
        let mut sum = 0.0;
        let n_passed = self.ranked_until(|weight| {
            sum += weight;
            sum > target
        });
        n_passed.map(|n| self.candidates[n - 1].id)
    }

    /// Walks the candidates from the likeliest until `done` says so; how many that took. Only those are put in order:
    /// sorting a vocabulary for each token would cost more than a tenth of a small model's time.
    fn ranked_until(&mut self, mut done: impl FnMut(f64) -> bool) -> Option<usize> {
        let n = self.candidates.len();
        let (mut sorted, mut chunk) = (0, 64);
        while sorted < n {
            let end = n.min(sorted + chunk);
            if end < n {
                self.candidates[sorted..].select_nth_unstable_by(end - sorted - 1, by_rank);
            }
            self.candidates[sorted..end].sort_unstable_by(by_rank);
            if let Some(found) = self.candidates[sorted..end]
                .iter()
                .position(|c| done(f64::from(c.weight)))
            {
                return Some(sorted + found + 1);
            }
            (sorted, chunk) = (end, chunk * 4);
        }
        None
    }
}

/// The token with the highest logit, the lowest id among equals. [V]
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}

/// PCG32 (`pcg_setseq_64_xsh_rr_32`, M. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good
/// Algorithms for Random Number Generation", 2014) on the stream of its reference demo, 54.
#[derive(Debug, Clone)]
struct Random {
    state: u64,
}

impl Random {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
    const INCREMENT: u64 = 54 << 1 | 1;

    fn new(seed: u64) -> Self {
        let mut random = Self { state: 0 };
        random.next();
        random.state = random.state.wrapping_add(seed);
        random.next();
        random
    }

    fn next(&mut self) -> u32 {
        let old = self.state;
        self.state = old
            .wrapping_mul(Self::MULTIPLIER)
            .wrapping_add(Self::INCREMENT);
        ((((old >> 18) ^ old) >> 27) as u32).rotate_right((old >> 59) as u32)
    }

    /// A number from 0 to below 1 with 53 random bits.
    fn unit(&mut self) -> f64 {
        let (high, low) = (u64::from(self.next() >> 5), u64::from(self.next() >> 6));
        (high << 26 | low) as f64 / (1_u64 << 53) as f64
    }
}

/// A parameter out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{param} is {value}, it must be {range}")]
pub struct SamplerError {
    /// The parameter's name as in OpenAI's API.
    pub param: &'static str,
    /// What was given.
    pub value: f64,
    /// What is allowed, in words.
    pub range: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(change: impl FnOnce(&mut SamplerParams)) -> Sampler {
        let mut params = SamplerParams {
            temperature: 1.0,
            ..SamplerParams::default()
        };
        change(&mut params);
        Sampler::new(params).unwrap()
    }

    #[test]
    fn the_generator_is_pcg32() {
        // First outputs of pcg-c-basic's demo with seed 42 and stream 54.
        let mut random = Random::new(42);
        let want = [
            0xA15C_02B7,
            0x7B47_F409,
            0xBA1D_3330,
            0x83D2_F293,
            0xBFA4_784B,
            0xCBED_606E,
        ];
        assert_eq!(want.map(|_| random.next()), want);
        let mut random = Random::new(7);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens_everywhere() {
        let mut sampler = sampler(|p| {
            p.seed = 1;
            p.temperature = 0.8;
            p.top_k = 20;
            p.top_p = 0.95;
            p.min_p = 0.01;
            p.repetition_penalty = 1.1;
        });
        let mut history = Vec::new();
        for _ in 0..16 {
            let mut logits: Vec<f32> = (0..50).map(|i| ((i * 37 % 50) as f32) * 0.1).collect();
            history.push(sampler.sample(&mut logits, &history));
        }
        assert_eq!(history, SAME_EVERYWHERE);
    }

    /// Committed from this code; a change of it is a change of every seeded answer.
    const SAME_EVERYWHERE: [u32; 16] =
        [39, 47, 12, 12, 27, 8, 16, 16, 47, 35, 8, 31, 31, 12, 39, 20];

    #[test]
    fn draws_follow_the_distribution() {
        let mut sampler = sampler(|p| p.seed = 3);
        let probabilities: [f32; 4] = [0.5, 0.3, 0.15, 0.05];
        let mut counts = [0_u32; 4];
        for _ in 0..100_000 {
            let mut logits = probabilities.map(f32::ln);
            counts[sampler.sample(&mut logits, &[]) as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip(probabilities) {
            // Five standard deviations of a binomial count.
            let limit = 5.0 * (100_000.0 * p * (1.0 - p)).sqrt();
            assert!((count as f32 - 100_000.0 * p).abs() < limit, "{counts:?}");
        }
    }

    /// The tokens that 2,000 draws bring.
    fn support(mut sampler: Sampler, logits: &[f32]) -> Vec<u32> {
        let mut drawn: Vec<u32> = (0..2000)
            .map(|_| sampler.sample(&mut logits.to_vec(), &[]))
            .collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let logits: Vec<f32> = [0.1_f32, 0.4, 0.2, 0.3].map(f32::ln).to_vec();
        assert_eq!(support(sampler(|_| ()), &logits), [0, 1, 2, 3]);
        assert_eq!(support(sampler(|p| p.top_k = 2), &logits), [1, 3]);
        assert_eq!(support(sampler(|p| p.top_k = 9), &logits), [0, 1, 2, 3]);
        assert_eq!(support(sampler(|p| p.top_p = 0.69), &logits), [1, 3]);
        assert_eq!(support(sampler(|p| p.top_p = 0.71), &logits), [1, 2, 3]);
        assert_eq!(support(sampler(|p| p.top_p = 0.01), &logits), [1]);
        assert_eq!(support(sampler(|p| p.min_p = 0.6), &logits), [1, 3]);
        assert_eq!(support(sampler(|p| p.min_p = 1.0), &logits), [1]);
        assert_eq!(support(sampler(|p| p.temperature = 1e-6), &logits), [1]);
        // Equals: the lowest ids stay.
        assert_eq!(support(sampler(|p| p.top_k = 2), &[1.0; 5]), [0, 1]);
    }

    #[test]
    fn penalty_is_once_a_token_and_within_the_window() {
        let mut greedy = sampler(|p| {
            p.temperature = 0.0;
            p.repetition_penalty = 2.0;
            p.repetition_window = 3;
        });
        let mut logits = [3.0, -1.0, 2.0, 1.0];
        assert_eq!(greedy.sample(&mut logits, &[2, 0, 0, 1, 77]), 2);
        assert_eq!(
            logits.map(f32::to_bits),
            [1.5_f32, -2.0, 2.0, 1.0].map(f32::to_bits)
        );
        assert!(
            !greedy.is_argmax()
                && sampler(|p| p.temperature = 0.0).is_argmax()
                && !sampler(|_| ()).is_argmax()
        );
    }

    #[test]
    fn what_was_picked_is_penalized_by_how_often() {
        let mut greedy = sampler(|p| {
            p.temperature = 0.0;
            p.presence_penalty = 0.5;
            p.frequency_penalty = 0.25;
        });
        assert!(!greedy.is_argmax());
        // 3.0, then 3.0 - 0.75, 3.0 - 1.0, then token 2 is ahead; the prompt's tokens cost nothing.
        let mut pick = || {
            let mut logits = [3.0, -1.0, 2.1, 1.0];
            let id = greedy.sample(&mut logits, &[0, 0, 2, 2]);
            (id, logits.map(f32::to_bits))
        };
        let bits = |logits: [f32; 4]| logits.map(f32::to_bits);
        assert_eq!(pick(), (0, bits([3.0, -1.0, 2.1, 1.0])));
        assert_eq!(pick(), (0, bits([2.25, -1.0, 2.1, 1.0])));
        assert_eq!(pick(), (2, bits([2.0, -1.0, 2.1, 1.0])));
        assert_eq!(pick(), (0, bits([2.0, -1.0, 2.1 - 0.75, 1.0])));
    }

    #[test]
    fn a_bias_forces_and_bans() {
        let biased = |temperature, bias: &[(u32, f32)]| {
            let mut sampler = sampler(|p| {
                p.temperature = temperature;
                p.logit_bias = bias.to_vec();
            });
            assert!(!sampler.is_argmax());
            sampler.sample(&mut [3.0, -1.0, 2.0, 1.0], &[])
        };
        for temperature in [0.0, 1.0] {
            assert_eq!(biased(temperature, &[(1, 100.0)]), 1);
            assert_eq!(
                biased(temperature, &[(0, -100.0), (2, -100.0), (1, -100.0)]),
                3
            );
        }
        assert_eq!(
            biased(0.0, &[(2, 1.5), (9, 100.0)]),
            2,
            "an id of no token is none"
        );
    }

    #[test]
    fn nan_and_infinities_are_defined() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for temperature in [0.0, 1.0] {
            let pick = |logits: &[f32]| {
                sampler(|p| p.temperature = temperature).sample(&mut logits.to_vec(), &[])
            };
            assert_eq!(pick(&[nan, -5.0, nan]), 1);
            assert_eq!(pick(&[nan, nan]), 0);
            assert_eq!(pick(&[-inf, -inf]), 0);
            assert_eq!(pick(&[1.0, inf, inf]), 1);
            assert_eq!(pick(&[]), 0);
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        for (params, name) in [
            (
                SamplerParams {
                    temperature: -1.0,
                    ..SamplerParams::default()
                },
                "temperature",
            ),
            (
                SamplerParams {
                    temperature: f32::NAN,
                    ..SamplerParams::default()
                },
                "temperature",
            ),
            (
                SamplerParams {
                    top_p: 0.0,
                    ..SamplerParams::default()
                },
                "top_p",
            ),
            (
                SamplerParams {
                    top_p: 1.5,
                    ..SamplerParams::default()
                },
                "top_p",
            ),
            (
                SamplerParams {
                    min_p: -0.1,
                    ..SamplerParams::default()
                },
                "min_p",
            ),
            (
                SamplerParams {
                    repetition_penalty: 0.0,
                    ..SamplerParams::default()
                },
                "repetition_penalty",
            ),
            (
                SamplerParams {
                    presence_penalty: f32::NAN,
                    ..SamplerParams::default()
                },
                "presence_penalty",
            ),
            (
                SamplerParams {
                    logit_bias: vec![(1, 1.0), (2, f32::INFINITY)],
                    ..SamplerParams::default()
                },
                "logit_bias",
            ),
        ] {
            assert_eq!(Sampler::new(params).unwrap_err().param, name);
        }
    }

    proptest! {
        #[test]
        fn what_is_drawn_is_among_the_k_likeliest(
            logits in prop::collection::vec(prop_oneof![any::<f32>(), -5.0..5.0_f32], 1..60),
            top_k in 1..10_usize, top_p in 0.01..=1.0_f32, min_p in 0.0..=1.0_f32, temperature in 0.0..3.0_f32, seed in any::<u64>(),
        ) {
            let params = SamplerParams { temperature, top_k, top_p, min_p, seed, ..SamplerParams::default() };
            let picked = Sampler::new(params).unwrap().sample(&mut logits.clone(), &[]);
            let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
            ranked.sort_by(|&a, &b| defined(logits[b as usize]).total_cmp(&defined(logits[a as usize])));
            prop_assert!(ranked.iter().position(|&id| id == picked).is_some_and(|rank| rank < top_k));
        }
    }
}
