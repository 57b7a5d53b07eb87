//! The second stage: which documents are kept, and in which split each is.

use super::gather::CLEAN;
use crate::{
    collect,
    config::{Config, Source, Split},
    control::{Control, Unit},
    dedupe::{self, Groups, Same, leaks},
    document::Document,
    report::{Example, N_EXAMPLES, NearReport, Report, StepReport},
    split::split_of,
    spool::Spool,
    words::identity,
};
use anyhow::{Result, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Groups of near-duplicates shown, and documents of each.
const SHOWN: usize = 5;

/// What becomes of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fate {
    Dropped,
    Kept(Split),
}

/// What the stage decides.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Chosen {
    /// One a document of the spool.
    pub(super) fates: Vec<Fate>,
    pub(super) near: NearReport,
    pub(super) steps: Vec<StepReport>,
}

/// Runs the stage on the spool in `folder`.
pub(super) fn run(config: &Config, folder: &Path, control: &dyn Control) -> Result<Chosen> {
    let spool = Spool::<Document>::open(folder, CLEAN)?;
    if spool.is_empty() {
        bail!(
            "nothing is left after cleaning: loosen [clean], or look whether the sources hold what they should"
        );
    }
    let splits = splits(config, &spool, control)?;
    let mut groups = dedupe::groups(&spool, &config.dedupe, folder, control)?;
    prefer_held_out(&mut groups, &splits, &config.sources);
    let mut chosen = decide(&spool, &groups, &splits)?;
    drop_leaks(config, &spool, folder, &mut chosen, control)?;
    Ok(chosen)
}

/// The split of each document, were it kept, and whether its source says so.
struct Wanted {
    split: Vec<Split>,
    fixed: Vec<bool>,
}

fn splits(config: &Config, spool: &Spool, control: &dyn Control) -> Result<Wanted> {
    control.begin("splitting", Unit::Documents, Some(spool.len() as u64));
    let of = |document: &Document| {
        let fixed = config.sources[document.place.source as usize].split;
        let split = split_of(identity(&document.body), config.seed, fixed, &config.split);
        (split, fixed.is_some())
    };
    let parts: Vec<Vec<(Split, bool)>> = spool
        .chunks(1 << 20, 1 << 14)?
        .into_par_iter()
        .map(|(start, end)| {
            control.check()?;
            control.advance((end - start) as u64);
            Ok(spool.read_range(start, end)?.iter().map(of).collect())
        })
        .collect::<Result<_>>()?;
    let (split, fixed) = parts.into_iter().flatten().unzip();
    Ok(Wanted { split, fixed })
}

/// Of a group that reaches into a held-out source, the held-out document stays: a test set given by hand loses nothing to
/// the training data. The first in order stands for the group then.
fn prefer_held_out(groups: &mut Groups, wanted: &Wanted, sources: &[Source]) {
    if sources.iter().all(|source| source.split.is_none()) {
        return;
    }
    let rank = |idx: usize| match (wanted.fixed[idx], wanted.split[idx]) {
        (true, Split::Test) => 2,
        (true, Split::Valid) => 1,
        _ => 0,
    };
    let mut best = BTreeMap::new();
    for (idx, &representative) in groups.representative.iter().enumerate() {
        let representative = representative as usize;
        if rank(idx) > 0 && rank(idx) > rank(*best.get(&representative).unwrap_or(&representative))
        {
            best.insert(representative, idx);
        }
    }
    for idx in 0..groups.representative.len() {
        let old = groups.representative[idx] as usize;
        if let Some(&new) = best.get(&old) {
            groups.representative[idx] = new as u32;
        }
    }
    for (old, new) in best {
        groups.kind[old] = std::mem::replace(&mut groups.kind[new], Same::Unique);
    }
}

fn decide(spool: &Spool, groups: &Groups, wanted: &Wanted) -> Result<Chosen> {
    let mut report = Report::default();
    let mut sizes: BTreeMap<u32, u64> = BTreeMap::new();
    let mut fates = Vec::with_capacity(spool.len());
    for (idx, &representative) in groups.representative.iter().enumerate() {
        if representative as usize == idx {
            fates.push(Fate::Kept(wanted.split[idx]));
            continue;
        }
        fates.push(Fate::Dropped);
        let name = match groups.kind[idx] {
            Same::Near => {
                *sizes.entry(representative).or_insert(1) += 1;
                "dedupe.near"
            }
            _ => "dedupe.exact",
        };
        let step = report.step(name);
        let example = if step.examples.len() < N_EXAMPLES {
            let like = spool.read(representative as usize)?.place;
            Example::new(&spool.read(idx)?, format!("like {like}"))
        } else {
            Example::default()
        };
        step.add(|| example);
    }
    Ok(Chosen {
        near: near(spool, groups, &sizes)?,
        steps: report.steps,
        fates,
    })
}

fn near(spool: &Spool, groups: &Groups, sizes: &BTreeMap<u32, u64>) -> Result<NearReport> {
    let mut largest: Vec<_> = sizes.iter().map(|(&idx, &size)| (size, idx)).collect();
    largest.sort_unstable_by_key(|&(size, idx)| (std::cmp::Reverse(size), idx));
    let mut examples = Vec::new();
    for &(_, representative) in largest.iter().take(SHOWN) {
        let mut group = vec![Example::new(&spool.read(representative as usize)?, "kept")];
        let others = groups
            .representative
            .iter()
            .enumerate()
            .filter(|&(idx, &other)| other == representative && idx != representative as usize);
        for (idx, _) in others.take(SHOWN - 1) {
            group.push(Example::new(&spool.read(idx)?, "dropped"));
        }
        examples.push(group);
    }
    Ok(NearReport {
        groups: sizes.len() as u64,
        documents: sizes.values().sum(),
        largest: largest.first().map_or(0, |&(size, _)| size),
        examples,
    })
}

/// Takes out of the training split what shares a run of words with a held-out document.
fn drop_leaks(
    config: &Config,
    spool: &Spool,
    folder: &Path,
    chosen: &mut Chosen,
    control: &dyn Control,
) -> Result<()> {
    let outside = config.dedupe.outside();
    let documents = collect::all(&outside)?;
    let fates = &chosen.fates;
    let held_out = |idx: usize| matches!(fates[idx], Fate::Kept(Split::Valid | Split::Test));
    let kept = |idx: usize| fates[idx] != Fate::Dropped;
    let found = leaks::leaks(
        spool,
        &held_out,
        &kept,
        documents,
        leaks::Limits {
            n: config.dedupe.leak_ngram,
            n_grams: leaks::MOST_GRAMS,
        },
        folder,
        control,
    )?;
    let mut report = Report::default();
    for leak in found {
        chosen.fates[leak.doc as usize] = Fate::Dropped;
        let step = report.step("dedupe.leak_ngram");
        let example = if step.examples.len() < N_EXAMPLES {
            let why = format!("shares a run of words with {}", leak.with);
            Example::new(&spool.read(leak.doc as usize)?, why)
        } else {
            Example::default()
        };
        step.add(|| example);
    }
    chosen.steps.append(&mut report.steps);
    Ok(())
}
