//! Which part of the data a document belongs to.
//!
//! The part follows from a hash of the document's normalised words ([`identity`](crate::words::identity)) and the seed
//! alone, so more documents move none of those that were there before, nor does their order or their number. Call it with
//! the document that stands for its group. The one exception: where an added document joins a group and comes to stand for
//! it (it is longer), or joins two groups into one, the group goes where the new one goes.

use crate::config::{Split, SplitConfig};
use anyhow::{Result, ensure};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Checks the shares.
///
/// # Errors
/// When one is negative, or nothing is left to train on.
pub fn check(config: &SplitConfig) -> Result<()> {
    for (name, share) in [("valid", config.valid), ("test", config.test)] {
        ensure!(
            (0.0..1.0).contains(&share),
            "split.{name} is {share}; it is a share of all documents, from 0 to below 1"
        );
    }
    let held_out = config.valid + config.test;
    ensure!(
        held_out < 1.0,
        "split.valid and split.test are {held_out} together, which leaves nothing to train on"
    );
    Ok(())
}

/// The part for a document with this [`identity`](crate::words::identity). The `fixed` split of its source wins.
pub fn split_of(identity: u128, seed: u64, fixed: Option<Split>, config: &SplitConfig) -> Split {
    if let Some(split) = fixed {
        return split;
    }
    let hash = xxh3_64_with_seed(&identity.to_le_bytes(), seed);
    let share = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    // From both ends, so that a change of one share does not move what the other holds out.
    if share < config.valid {
        Split::Valid
    } else if share >= 1.0 - config.test {
        Split::Test
    } else {
        Split::Train
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{document::Body, words::identity};

    const CONFIG: SplitConfig = SplitConfig {
        valid: 0.05,
        test: 0.1,
    };

    fn splits(n: usize, seed: u64, config: &SplitConfig) -> Vec<Split> {
        (0..n)
            .map(|i| {
                let body = Body::Text(format!("document number {i}"));
                split_of(identity(&body), seed, None, config)
            })
            .collect()
    }

    #[test]
    fn shares_are_met_within_four_standard_deviations() {
        let n = 20_000;
        let splits = splits(n, 1, &CONFIG);
        for (split, share) in [
            (Split::Valid, 0.05),
            (Split::Test, 0.1),
            (Split::Train, 0.85),
        ] {
            let count = splits.iter().filter(|one| **one == split).count() as f64;
            let (mean, deviation) = (n as f64 * share, (n as f64 * share * (1.0 - share)).sqrt());
            assert!(
                (count - mean).abs() < 4.0 * deviation,
                "{split:?}: {count} of {mean}"
            );
        }
    }

    #[test]
    fn more_documents_move_none_and_another_seed_moves_many() {
        let few = splits(1000, 7, &CONFIG);
        assert_eq!(few, splits(5000, 7, &CONFIG)[..1000]);
        assert_ne!(few, splits(1000, 8, &CONFIG));
        let more_test = SplitConfig {
            valid: 0.05,
            test: 0.3,
        };
        let moved = splits(1000, 7, &more_test);
        let pairs = || few.iter().zip(&moved);
        assert!(
            pairs().all(|(a, b)| (*a == Split::Valid) == (*b == Split::Valid)),
            "a larger test split takes nothing from validation"
        );
    }

    #[test]
    fn the_split_of_a_source_wins_and_none_is_held_out_by_zero() {
        let id = identity(&Body::Text("x".into()));
        assert_eq!(split_of(id, 0, Some(Split::Test), &CONFIG), Split::Test);
        let none = SplitConfig {
            valid: 0.0,
            test: 0.0,
        };
        assert!(splits(1000, 0, &none).iter().all(|s| *s == Split::Train));
    }

    #[test]
    fn shares_that_leave_nothing_are_refused() {
        let error = |valid, test| check(&SplitConfig { valid, test }).unwrap_err().to_string();
        assert!(error(0.5, 0.5).contains("leaves nothing to train on"));
        assert!(error(-0.1, 0.0).starts_with("split.valid is -0.1"));
        assert!(error(0.1, f64::NAN).starts_with("split.test is NaN"));
        check(&CONFIG).unwrap();
    }
}
