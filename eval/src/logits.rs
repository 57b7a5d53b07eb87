//! What is read out of a row of logits, before the next one takes its place.

use fledgling_kernels::exp;

const LANES: usize = 16;

fn max(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(x);
        }
    }
    let all = lanes.iter().chain(rest);
    all.copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `Σ exp(x - max)`: lanes in f32 over stretches so short that nothing is lost, these in f64.
fn sum_exp(values: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    for stretch in values.chunks(1024) {
        let (chunks, rest) = stretch.as_chunks::<LANES>();
        let mut lanes = [0.0_f32; LANES];
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp(x - max);
            }
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        total += rest.iter().map(|&x| f64::from(exp(x - max))).sum::<f64>();
    }
    total
}

/// A row of finite logits as a distribution. [V]
#[derive(Debug, Clone, Copy)]
pub struct Distribution<'a> {
    logits: &'a [f32],
    max: f32,
    /// `log Σ exp(logit - max)`.
    log_sum: f64,
}

impl<'a> Distribution<'a> {
    /// # Panics
    /// When there are none.
    pub fn new(logits: &'a [f32]) -> Self {
        assert!(!logits.is_empty(), "a vocabulary has tokens");
        let max = max(logits);
        Self {
            logits,
            max,
            // Of one library everywhere: what is recorded of a model is compared to the bit.
            log_sum: libm::log(sum_exp(logits, max)),
        }
    }

    /// `log p(token)`, in nats.
    pub fn log_prob(&self, token: u32) -> f64 {
        f64::from(self.logits[token as usize] - self.max) - self.log_sum
    }

    /// The likeliest token, the lowest id of several.
    pub fn top(&self) -> u32 {
        let found = self.logits.iter().position(|&logit| logit >= self.max);
        found.unwrap_or(0) as u32
    }

    /// `Σ p (log p - log q)` of this distribution `p` against another, in nats: 0 where they are the same, never below.
    pub fn kl(&self, q: &Distribution<'_>) -> f64 {
        let mut sum = 0.0;
        for (p_part, q_part) in self.logits.chunks(1024).zip(q.logits.chunks(1024)) {
            let (p_chunks, p_rest) = p_part.as_chunks::<LANES>();
            let (q_chunks, q_rest) = q_part.as_chunks::<LANES>();
            let term =
                |p: f32, q_logit: f32| exp(p - self.max) * ((p - self.max) - (q_logit - q.max));
            let mut lanes = [0.0_f32; LANES];
            for (p, q) in p_chunks.iter().zip(q_chunks) {
                for i in 0..LANES {
                    lanes[i] += term(p[i], q[i]);
                }
            }
            sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
            let rest = p_rest.iter().zip(q_rest);
            sum += rest.map(|(&p, &q)| f64::from(term(p, q))).sum::<f64>();
        }
        (sum / libm::exp(self.log_sum) - self.log_sum + q.log_sum).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn log_probs(logits: &[f32]) -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
        logits
            .iter()
            .map(|&x| f64::from(x - max) - sum.ln())
            .collect()
    }

    proptest! {
        #[test]
        fn figures_are_those_of_f64(p in vec(-30.0_f32..30.0, 1..3000), seed in -1.0_f32..1.0) {
            let q: Vec<f32> = p.iter().enumerate().map(|(i, x)| x + seed * (i as f32).sin()).collect();
            let (p_logs, q_logs) = (log_probs(&p), log_probs(&q));
            let (one, two) = (Distribution::new(&p), Distribution::new(&q));
            for (i, want) in p_logs.iter().enumerate() {
                prop_assert!((one.log_prob(i as u32) - want).abs() < 1e-5);
            }
            let best = p_logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let first = p_logs.iter().position(|&x| x >= best).unwrap();
            prop_assert_eq!(one.top() as usize, first);
            let kl: f64 = p_logs.iter().zip(&q_logs).map(|(p, q)| p.exp() * (p - q)).sum();
            prop_assert!((one.kl(&two) - kl).abs() < 1e-5, "{} {}", one.kl(&two), kl);
            prop_assert!(one.kl(&one) < 1e-6);
        }
    }
}
