//! Means with their standard errors, percentiles, and a seeded generator for what is drawn.

use serde::Serialize;

/// A figure and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error; `None` where a single observation does not tell.
    pub stderr: Option<f64>,
}

impl Estimate {
    /// The mean of independent observations; its standard error is the sample's standard deviation by `sqrt(n)`, as
    /// lm-evaluation-harness has it. NaN for none.
    pub fn of_mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - value).powi(2)).sum();
        let stderr = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Self { value, stderr }
    }

    /// `exp` of it, with the standard error by the delta method: `d exp(x) = exp(x) dx`.
    #[must_use]
    pub fn exp(self) -> Self {
        let value = libm::exp(self.value);
        let stderr = self.stderr.map(|stderr| value * stderr);
        Self { value, stderr }
    }

    /// It times a constant.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            stderr: self.stderr.map(|stderr| stderr * factor.abs()),
        }
    }
}

/// What a standard error was estimated over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Windows, rows or documents, whose tokens are not independent of each other: the honest one, where there are several.
    Windows,
    /// Tokens, as if they were independent: all that a single window allows.
    Tokens,
}

/// A mean over units (tokens) that come in clusters (windows), gathered one cluster at a time.
#[derive(Debug, Clone, Default)]
pub struct Clustered {
    /// Sum and number of units of each cluster.
    clusters: Vec<(f64, f64)>,
    squares: f64,
}

impl Clustered {
    /// Adds a cluster by its values; one without any is left out.
    pub fn add(&mut self, values: impl IntoIterator<Item = f64>) {
        let (mut sum, mut n) = (0.0, 0.0);
        for value in values {
            sum += value;
            n += 1.0;
            self.squares += value * value;
        }
        if n > 0.0 {
            self.clusters.push((sum, n));
        }
    }

    /// Sum of all values.
    pub fn sum(&self) -> f64 {
        self.clusters.iter().map(|(sum, _)| sum).sum()
    }

    /// The sum divided by another total (words, bytes) that the values are spread over, with the standard error of the mean in
    /// proportion.
    pub fn per(&self, total: f64) -> Estimate {
        let n: f64 = self.clusters.iter().map(|(_, n)| n).sum();
        self.mean().0.times(n / total)
    }

    /// The mean of all units, and what its standard error is over: with `S_w` and `n_w` a cluster's sum and units and `m` the mean, it is
    /// `sqrt(W / (W - 1) * Σ (S_w - m n_w)²) / Σ n_w` (the ratio estimator; Cochran, "Sampling Techniques", 1977, 6.3).
    pub fn mean(&self) -> (Estimate, Over) {
        let n: f64 = self.clusters.iter().map(|(_, n)| n).sum();
        let value = self.sum() / n;
        let w = self.clusters.len() as f64;
        if self.clusters.len() > 1 {
            let residuals = self
                .clusters
                .iter()
                .map(|(sum, n)| (sum - value * n).powi(2));
            let stderr = (w / (w - 1.0) * residuals.sum::<f64>()).sqrt() / n;
            let stderr = Some(stderr);
            return (Estimate { value, stderr }, Over::Windows);
        }
        let variance = (self.squares - n * value * value).max(0.0) / (n - 1.0);
        let stderr = (n > 1.0).then(|| (variance / n).sqrt());
        (Estimate { value, stderr }, Over::Tokens)
    }
}

/// The value below which a share of sorted values lies, between neighbours in proportion. NaN for none.
pub fn percentile(sorted: &[f32], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = share * last as f64;
    let low = f64::from(sorted[at.floor() as usize]);
    let high = f64::from(sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Debug, Clone)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `n`, which is not 0; the bias of 2^-64 n is of no matter here.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Shuffles (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The standard deviation of a figure over `n_draws` samples drawn with replacement (Efron, 1979), always the same ones.
pub fn bootstrap(n: usize, n_draws: usize, figure: impl Fn(&[usize]) -> f64) -> Option<f64> {
    if n < 2 {
        return None;
    }
    let mut rng = SplitMix64(0x5eed);
    let mut drawn = vec![0; n];
    let figures: Vec<f64> = (0..n_draws)
        .map(|_| {
            drawn.fill_with(|| rng.below(n));
            figure(&drawn)
        })
        .collect();
    let draws = Estimate::of_mean(&figures);
    // The deviation of one draw, not of their mean.
    draws.stderr.map(|stderr| stderr * (n_draws as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a} {b}");
    }

    #[test]
    fn means_and_their_errors() {
        let mean = Estimate::of_mean(&[1.0, 0.0, 0.0, 1.0, 1.0]);
        close(mean.value, 0.6);
        // sqrt(0.3 / 5), by hand.
        close(mean.stderr.unwrap(), 0.244_948_974_278_317_8);
        assert_eq!(Estimate::of_mean(&[2.0]).stderr, None);
        let exp = mean.exp();
        close(exp.stderr.unwrap(), 0.6_f64.exp() * mean.stderr.unwrap());
    }

    #[test]
    fn clusters_of_one_size_are_as_a_mean_of_means() {
        let mut clustered = Clustered::default();
        for cluster in [[1.0, 3.0], [2.0, 6.0], [5.0, 5.0]] {
            clustered.add(cluster);
        }
        clustered.add([]);
        let (mean, over) = clustered.mean();
        let means = Estimate::of_mean(&[2.0, 4.0, 5.0]);
        assert_eq!(over, Over::Windows);
        close(mean.value, means.value);
        close(mean.stderr.unwrap(), means.stderr.unwrap());
        close(clustered.per(11.0).value, 2.0);
        let mut single = Clustered::default();
        single.add([1.0, 0.0, 0.0, 1.0, 1.0]);
        let (mean, over) = single.mean();
        assert_eq!(over, Over::Tokens);
        close(mean.stderr.unwrap(), 0.244_948_974_278_317_8);
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        close(percentile(&[1.0, 2.0, 3.0, 5.0], 0.5), 2.5);
        close(percentile(&[1.0, 2.0, 3.0, 5.0], 1.0), 5.0);
        close(percentile(&[7.0], 0.9), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_bootstrap_of_a_mean_is_near_its_formula() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 7)).collect();
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| values[i]).sum::<f64>() / 400.0;
        let drawn = bootstrap(400, 1000, mean).unwrap();
        let formula = Estimate::of_mean(&values).stderr.unwrap();
        assert!((drawn / formula - 1.0).abs() < 0.1, "{drawn} {formula}");
        assert_eq!(bootstrap(1, 10, |_| 0.0), None);
    }

    proptest! {
        #[test]
        fn a_shuffle_keeps_all(seed: u64, n in 0_usize..50) {
            let mut items: Vec<usize> = (0..n).collect();
            SplitMix64(seed).shuffle(&mut items);
            items.sort_unstable();
            prop_assert_eq!(items, (0..n).collect::<Vec<_>>());
        }
    }
}
