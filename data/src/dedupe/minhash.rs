//! `MinHash` signatures and their bands.
//!
//! Broder, "On the resemblance and containment of documents" (1997): the chance that two sets have the same minimum under
//! a random order is their Jaccard similarity `J`. Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section
//! 3.4: `bands` bands of `rows` minima each make two sets candidates with a chance of `1 - (1 - J^rows)^bands`.

use crate::words::mix;

/// Chance at most that a pair at the threshold is no candidate.
const MISSED: f64 = 1e-3;
/// Minima in a signature at most. More rows a band mean fewer false candidates, and more bands, each a pass over its records.
const MOST_MINIMA: usize = 256;
/// Bands at most, each of them an open file while signatures are made.
const MOST_BANDS: usize = 128;

/// Bands and rows for a threshold, and the orders of the minima.
#[derive(Debug)]
pub(super) struct MinHash {
    pub(super) rows: usize,
    pub(super) bands: usize,
    // Multiply-shift over the two halves of a hash: `low * a + high * b + c` modulo 2^32, of which the highest bits decide.
    // All of 32 bits, in arrays, so that the compiler works on four or eight orders at once.
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<u32>,
}

impl MinHash {
    /// For a threshold above 0 and at most 1: the most rows with which the bands needed stay affordable.
    pub(super) fn new(threshold: f64) -> Self {
        let affordable = |rows: &usize| {
            let bands = bands_needed(threshold, *rows);
            (bands <= MOST_BANDS && bands * rows <= MOST_MINIMA).then_some((*rows, bands))
        };
        let (rows, bands) = (1..=16)
            .rev()
            .find_map(|rows| affordable(&rows))
            .unwrap_or((1, MOST_BANDS));
        let n = rows * bands;
        let numbers = |salt: u64, odd: u32| {
            (0..n as u64)
                .map(|i| mix(mix(salt).wrapping_add(i)) as u32 | odd)
                .collect()
        };
        Self {
            rows,
            bands,
            a: numbers(1, 1),
            b: numbers(2, 1),
            c: numbers(3, 0),
        }
    }

    /// The minima of a set of shingle hashes, band by band.
    pub(super) fn signature(&self, shingles: &[u64]) -> Vec<u32> {
        let mut minima = vec![u32::MAX; self.a.len()];
        let (fours, rest) = shingles.as_chunks::<4>();
        for four in fours {
            self.lower(&mut minima, *four);
        }
        for one in rest {
            self.lower(&mut minima, [*one]);
        }
        minima
    }

    /// Several hashes at once, so that each minimum is loaded and stored once for them.
    fn lower<const N: usize>(&self, minima: &mut [u32], hashes: [u64; N]) {
        let low = hashes.map(|hash| hash as u32);
        let high = hashes.map(|hash| (hash >> 32) as u32);
        let orders = self.a.iter().zip(&self.b).zip(&self.c);
        for (minimum, ((a, b), c)) in minima.iter_mut().zip(orders) {
            let mut least = *minimum;
            for i in 0..N {
                let place = low[i]
                    .wrapping_mul(*a)
                    .wrapping_add(high[i].wrapping_mul(*b));
                least = least.min(place.wrapping_add(*c));
            }
            *minimum = least;
        }
    }

    /// The hash of each band of a signature.
    pub(super) fn band_hashes<'a>(
        &'a self,
        signature: &'a [u32],
    ) -> impl Iterator<Item = u64> + 'a {
        signature.chunks_exact(self.rows).map(|band| {
            band.iter().fold(0, |hash, minimum| {
                mix(hash ^ u64::from(*minimum)).wrapping_add(1)
            })
        })
    }
}

/// Bands of so many rows with which a pair at the threshold is missed with a chance of [`MISSED`] at most.
fn bands_needed(threshold: f64, rows: usize) -> usize {
    let band_matches = threshold.powi(rows as i32);
    if band_matches >= 1.0 {
        return 1;
    }
    (MISSED.ln() / (-band_matches).ln_1p()).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_find_a_pair_at_the_threshold() {
        for (threshold, expect) in [
            (1.0, (16, 1)),
            (0.9, (12, 21)),
            (0.8, (7, 30)),
            (0.6, (4, 50)),
            (0.5, (3, 52)),
            (0.3, (2, 74)),
            (0.1, (1, 66)),
        ] {
            let hash = MinHash::new(threshold);
            assert_eq!((hash.rows, hash.bands), expect, "at {threshold}");
            let missed = (1.0 - threshold.powi(hash.rows as i32)).powi(hash.bands as i32);
            assert!(missed <= MISSED, "{missed} at {threshold}");
        }
        let hash = MinHash::new(0.001);
        assert_eq!(
            (hash.rows, hash.bands),
            (1, MOST_BANDS),
            "not affordable: the most"
        );
    }

    /// The share of equal minima is the similarity: over 200 pairs of sets with known ones, for small and large sets.
    #[test]
    fn equal_minima_are_as_many_as_the_similarity() {
        let hash = MinHash::new(0.6);
        for (n_shared, n_own) in [(10, 10), (30, 5), (400, 100), (5, 40)] {
            let expect = f64::from(n_shared) / f64::from(n_shared + 2 * n_own);
            let mut equal = 0;
            for pair in 0..200_u64 {
                let set = |own: u64| -> Vec<u64> {
                    let shared = (0..n_shared as u64).map(|i| mix(pair << 32 | i));
                    let own = (0..n_own as u64).map(|i| mix(pair << 32 | own << 16 | i));
                    shared.chain(own).collect()
                };
                let (a, b) = (hash.signature(&set(1)), hash.signature(&set(2)));
                equal += a.iter().zip(&b).filter(|(a, b)| a == b).count();
            }
            let n = (200 * hash.a.len()) as f64;
            let share = equal as f64 / n;
            let deviation = (expect * (1.0 - expect) / n).sqrt();
            assert!(
                (share - expect).abs() < 6.0 * deviation,
                "{share} for {expect}"
            );
        }
    }
}
