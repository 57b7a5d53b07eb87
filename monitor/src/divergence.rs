//! How far two distributions lie apart, and how far they would lie apart by chance alone.
//!
//! - **Population stability index** `Σ (p - q) ln(p / q)` over groups, as credit scoring has it (Siddiqi, 2006: below 0.1 stable, above 0.25
//!   shifted), which is the symmetric Kullback-Leibler divergence in nats.
//! - **Jensen-Shannon divergence** (Lin, 1991) in bits: 0 the same, 1 nothing in common.
//!
//! Both are above 0 for two samples of one distribution: to second order by `Σ v / q` and `Σ v / (8 m ln 2)`, where `v` is the variance of a
//! share. Tokens of a request are not independent, so `v` is taken between requests (ratio estimator of cluster samples: Cochran, 1977, § 3.12).
//! What chance explains is subtracted; what is left is compared with a threshold.

use crate::sketch::{N_ROWS, WIDTH};
use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;

/// Groups that PSI is taken over: cells in the order of their share, cut into parts of about the same share.
const N_GROUPS: usize = 20;
/// A share that a sample did not have is taken for this much of a token or request.
const UNSEEN: f64 = 0.5;
/// A finding must be above chance by so many of its standard deviations.
const SIGMAS: f64 = 3.0;

/// Sums over the requests of one row of the sketch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Row {
    requests: u64,
    /// `Σ n` and `Σ n²` of the requests' tokens.
    tokens: [f64; 2],
    /// By cell: `Σ c`, `Σ c²` and `Σ c n` of the requests' counts; empty where there are none.
    cells: Vec<[f64; 3]>,
}

/// Tokens by cell, and how they scatter between requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    rows: [Row; N_ROWS],
}

impl Counts {
    /// Adds a request that filled `row`.
    pub fn add(&mut self, row: u8, cells: impl Iterator<Item = (usize, u32)> + Clone) {
        let n: f64 = cells.clone().map(|(_, count)| f64::from(count)).sum();
        let Some(row) = self.rows.get_mut(usize::from(row)).filter(|_| n > 0.0) else {
            return;
        };
        row.cells.resize(WIDTH, [0.0; 3]);
        row.requests += 1;
        row.tokens[0] += n;
        row.tokens[1] += n * n;
        for (cell, count) in cells {
            let count = f64::from(count);
            if let Some([sum, squares, products]) = row.cells.get_mut(cell) {
                *sum += count;
                *squares += count * count;
                *products += count * n;
            }
        }
    }

    /// Adds all requests of another.
    pub fn merge(&mut self, other: &Self) {
        for (row, more) in self.rows.iter_mut().zip(&other.rows) {
            row.requests += more.requests;
            row.tokens[0] += more.tokens[0];
            row.tokens[1] += more.tokens[1];
            row.cells
                .resize(row.cells.len().max(more.cells.len()), [0.0; 3]);
            for (sums, more) in row.cells.iter_mut().zip(&more.cells) {
                for (sum, more) in sums.iter_mut().zip(more) {
                    *sum += more;
                }
            }
        }
    }

    /// Tokens in all.
    pub fn tokens(&self) -> u64 {
        self.rows.iter().map(|row| row.tokens[0]).sum::<f64>() as u64
    }

    /// Whether every figure can be one; for what was read from a file.
    pub fn is_sound(&self) -> bool {
        let good = |x: &f64| x.is_finite() && *x >= 0.0;
        self.rows.iter().all(|row| {
            (row.cells.is_empty() || row.cells.len() == WIDTH)
                && row.tokens.iter().all(good)
                && row.cells.iter().flatten().all(good)
                && (row.requests == 0) == row.cells.is_empty()
        })
    }

    /// Shares and their variances; a row is empty where no request filled it.
    pub fn shares(&self) -> Shares {
        Shares {
            rows: self.rows.each_ref().map(Row::shares),
        }
    }
}

impl Row {
    fn shares(&self) -> Vec<Share> {
        let [n, squares] = self.tokens;
        let requests = self.requests as f64;
        // One request says nothing of how requests scatter: its tokens are taken for independent.
        let spread = (self.requests > 1).then(|| requests / (requests - 1.0));
        let share = |&[sum, sum_squares, products]: &[f64; 3]| {
            let share = sum / n;
            let variance = match spread {
                Some(spread) => {
                    spread * (sum_squares - 2.0 * share * products + share * share * squares)
                        / (n * n)
                }
                None => share * (1.0 - share) / n,
            };
            Share {
                share,
                variance: variance.max(0.0),
            }
        };
        self.cells.iter().map(share).collect()
    }
}

/// A cell's share of all tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// 0 to 1.
    pub share: f64,
    /// Of the estimate; 0 where it is none.
    pub variance: f64,
}

/// The shares of all cells, by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    /// Rows of [`WIDTH`] cells, or empty ones.
    pub rows: [Vec<Share>; N_ROWS],
}

/// A distance, and what of it chance explains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Distance {
    /// What is left of it without chance, at least 0.
    pub value: f64,
    /// What chance brings on average; already subtracted.
    pub chance: f64,
    /// Standard deviation of that.
    pub sd: f64,
}

impl Distance {
    /// Whether it is above `threshold` and chance does not explain that.
    pub fn exceeds(&self, threshold: f64) -> bool {
        self.value >= threshold && self.value > SIGMAS * self.sd
    }
}

/// Distances of rows as one, each by its weight.
#[derive(Default)]
struct Mean {
    weight: f64,
    raw: f64,
    chance: f64,
    variance: f64,
}

impl Mean {
    fn add(&mut self, weight: f64, raw: f64, chance: f64, n_free: usize) {
        self.weight += weight;
        self.raw += weight * raw;
        self.chance += weight * chance;
        // A sum of squares with so many degrees of freedom: chi-square's variance is twice its mean.
        self.variance += (weight * chance).powi(2) * 2.0 / (n_free.max(1) as f64);
    }

    fn distance(&self) -> Option<Distance> {
        (self.weight > 0.0).then(|| Distance {
            value: ((self.raw - self.chance) / self.weight).max(0.0),
            chance: self.chance / self.weight,
            sd: self.variance.sqrt() / self.weight,
        })
    }
}

/// PSI and JSD of `counts` against `baseline`; `None` where they have no row in common.
pub fn compare(baseline: &Shares, counts: &Counts) -> Option<(Distance, Distance)> {
    let (mut psi, mut jsd) = (Mean::default(), Mean::default());
    let now = counts.shares();
    for ((q, p), row) in baseline.rows.iter().zip(&now.rows).zip(&counts.rows) {
        if q.is_empty() || p.is_empty() {
            continue;
        }
        let n = row.tokens[0];
        let groups = groups(q);
        let (mut raw, mut chance) = (0.0, 0.0);
        for group in &groups {
            let sum = |shares: &[Share], value: fn(&Share) -> f64| {
                group.iter().map(|&i| value(&shares[i])).sum::<f64>()
            };
            let least = UNSEEN / n;
            let (p_share, q_share) = (
                sum(p, |s| s.share).max(least),
                sum(q, |s| s.share).max(least),
            );
            raw += (p_share - q_share) * (p_share / q_share).ln();
            chance += (sum(p, |s| s.variance) + sum(q, |s| s.variance)) / q_share;
        }
        psi.add(n, raw, chance, groups.len() - 1);
        let (raw, chance) = divergence(p, q);
        jsd.add(n, raw, chance, WIDTH - 1);
    }
    Some((psi.distance()?, jsd.distance()?))
}

/// JSD of two rows in bits, and what chance brings. A cell in which a small sample has nothing shows no variance of its own, so the variance of
/// all cells together is shared out as it would be if both were samples of their mean; no cell brings more than its share.
fn divergence(p: &[Share], q: &[Share]) -> (f64, f64) {
    let middles = || {
        p.iter()
            .zip(q)
            .map(|(p, q)| f64::midpoint(p.share, q.share))
    };
    let variance: f64 = p.iter().chain(q).map(|share| share.variance).sum();
    let whole: f64 = middles().map(|m| m * (1.0 - m)).sum();
    let (mut raw, mut chance) = (0.0, 0.0);
    for ((p, q), middle) in p
        .iter()
        .zip(q)
        .zip(middles())
        .filter(|(_, middle)| *middle > 0.0)
    {
        let part = |x: f64| {
            if x > 0.0 {
                x * (x / middle).log2()
            } else {
                0.0
            }
        };
        raw += f64::midpoint(part(p.share), part(q.share));
        let of_cell = variance * (1.0 - middle) / whole.max(f64::MIN_POSITIVE);
        chance += (of_cell / (8.0 * LN_2)).min(middle);
    }
    (raw, chance)
}

/// Cells by falling share, in groups of about the same share; a cell that has more is a group.
fn groups(shares: &[Share]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&a, &b| shares[b].share.total_cmp(&shares[a].share));
    collect_groups(order, 1.0 / N_GROUPS as f64, |i| shares[i].share)
}

/// Neighbours together until they have `least` of the whole.
fn collect_groups(order: Vec<usize>, least: f64, share: impl Fn(usize) -> f64) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut sum = f64::INFINITY;
    for i in order {
        if sum >= least {
            groups.push(Vec::new());
            sum = 0.0;
        }
        sum += share(i);
        if let Some(group) = groups.last_mut() {
            group.push(i);
        }
    }
    // A rest joins the last group.
    if sum < least
        && groups.len() > 1
        && let Some(rest) = groups.pop()
        && let Some(last) = groups.last_mut()
    {
        last.extend(rest);
    }
    groups
}

/// PSI of counts of requests by class (lengths in their order, languages), classes below a twentieth of the baseline joined to their
/// neighbours; `None` where one side is empty.
pub fn compare_classes(baseline: &[u64], now: &[u64]) -> Option<Distance> {
    let n_classes = baseline.len().max(now.len());
    let of = |counts: &[u64], i: usize| counts.get(i).copied().unwrap_or(0) as f64;
    let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (m, n) = (total(baseline), total(now));
    if m == 0.0 || n == 0.0 {
        return None;
    }
    let groups = collect_groups((0..n_classes).collect(), 0.05, |i| of(baseline, i) / m);
    let k = groups.len() as f64;
    let mut raw = 0.0;
    for group in &groups {
        let share = |counts: &[u64], total: f64| {
            (group.iter().map(|&i| of(counts, i)).sum::<f64>() + UNSEEN) / (total + UNSEEN * k)
        };
        let (p, q) = (share(now, n), share(baseline, m));
        raw += (p - q) * (p / q).ln();
    }
    let mut mean = Mean::default();
    mean.add(1.0, raw, (k - 1.0) * (1.0 / m + 1.0 / n), groups.len() - 1);
    mean.distance()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::Sketch;
    use proptest::prelude::*;

    /// Numbers that look random, the same ones for ever.
    fn random(state: &mut u64) -> f64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Requests of 20 to 60 tokens of a Zipf-like distribution over 3000 ids; each has a few favourites, so tokens are not independent.
    fn requests(n: usize, first_id: u32, seed: u64) -> Counts {
        let mut state = seed;
        let mut counts = Counts::default();
        for i in 0..n {
            let len = 20 + (40.0 * random(&mut state)) as usize;
            let zipf = |state: &mut u64| first_id + (3000.0_f64.powf(random(state)) as u32);
            let favourite = zipf(&mut state);
            let ids: Vec<u32> = (0..len)
                .map(|_| {
                    if random(&mut state) < 0.1 {
                        favourite
                    } else {
                        zipf(&mut state)
                    }
                })
                .collect();
            let sketch = Sketch::of(i as u64, &ids, &[]);
            counts.add(
                sketch.row,
                sketch.prompt_cells().collect::<Vec<_>>().into_iter(),
            );
        }
        counts
    }

    #[test]
    fn two_samples_of_one_distribution_are_not_apart_and_two_distributions_are() {
        let baseline = requests(20_000, 0, 1).shares();
        let mut largest = 0.0_f64;
        for seed in 2..40 {
            // Chance alone brings more than what is left.
            let (psi, jsd) = compare(&baseline, &requests(200, 0, seed)).unwrap();
            assert!((0.008..0.03).contains(&psi.chance), "{psi:?}");
            assert!(jsd.value < 0.02, "{jsd:?}");
            largest = largest.max(psi.value);
        }
        assert!(largest < 0.1, "{largest}");
        let (psi, jsd) = compare(&baseline, &requests(200, 9000, 3)).unwrap();
        assert!(psi.exceeds(0.25) && jsd.exceeds(0.1), "{psi:?} {jsd:?}");
    }

    #[test]
    fn figures_of_a_small_table() {
        // By hand: q = (0.5, 0.3, 0.2), p = (0.4, 0.3, 0.3): Σ (p-q) ln(p/q) = 0.1 ln 1.25 + 0.1 ln 1.5 = 0.062861.
        let found = compare_classes(&[50_000, 30_000, 20_000], &[40_000, 30_000, 30_000]).unwrap();
        assert!(
            (found.value + found.chance - 0.062_861).abs() < 1e-5,
            "{found:?}"
        );
        assert!((found.chance - 2.0 * (1e-5 + 1e-5)).abs() < 1e-12);
        assert_eq!(compare_classes(&[], &[1]), None);
        assert_eq!(compare_classes(&[1], &[0]), None);
    }

    #[test]
    fn variance_is_that_between_requests() {
        // Requests of two tokens each, both the same: the share's variance is that of n/2 independent draws.
        let mut counts = Counts::default();
        for i in 0..100 {
            counts.add(0, [(i % 2, 2)].into_iter());
        }
        let share = counts.shares().rows[0][0];
        assert!((share.share - 0.5).abs() < 1e-12);
        assert!((share.variance - 0.25 / 99.0).abs() < 1e-12, "{share:?}");
    }

    #[test]
    fn distance_of_nothing_in_common_is_one_bit() {
        let (mut a, mut b) = (Counts::default(), Counts::default());
        for _ in 0..1000 {
            a.add(0, [(1, 10)].into_iter());
            b.add(0, [(2, 10)].into_iter());
        }
        let (_, jsd) = compare(&a.shares(), &b).unwrap();
        assert!((jsd.value - 1.0).abs() < 1e-9, "{jsd:?}");
        assert!(compare(&Shares::default(), &b).is_none());
    }

    proptest! {
        #[test]
        fn merging_is_adding(n in 1_usize..40, m in 1_usize..40) {
            let (mut a, b) = (requests(n, 0, 7), requests(m, 5, 9));
            let tokens = a.tokens() + b.tokens();
            a.merge(&b);
            prop_assert_eq!(a.tokens(), tokens);
            prop_assert!(a.is_sound());
            for row in a.shares().rows.iter().filter(|row| !row.is_empty()) {
                let sum: f64 = row.iter().map(|share| share.share).sum();
                prop_assert!((sum - 1.0).abs() < 1e-9);
            }
        }
    }
}
