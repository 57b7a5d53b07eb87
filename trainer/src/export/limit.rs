//! `--target-size` and `--max-kl`: the type of each tensor by what it costs in this model on this text.

use super::{
    Args,
    rounding::{Rounder, stopped},
};
use crate::{
    data::Bars,
    files::human_bytes,
    model::{EngineArgs, Model},
    output::UsageError,
};
use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use fledgling_core::{
    gguf::{TensorDecl, TensorInfo},
    quant::{DType, Recipe},
    spec::tensor_table,
};
use fledgling_data::control::{Control, Unit};
use fledgling_quantize::{
    select::{Choice, TargetError, under_bytes, under_damage},
    sensitivity::Probe,
};
use std::collections::HashMap;

/// Tokens that go through the model for each matrix, in windows.
const SENSITIVITY_TOKENS: usize = 256;
const WINDOW: usize = 128;
/// Rounds of choosing by a corrected estimate and measuring.
const ROUNDS: usize = 5;
/// A choice is close enough to its limit from this part of it on.
const CLOSE: f64 = 0.9;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// The whole file in so many bytes.
    Size(u64),
    /// A divergence from the parent, in nats.
    Divergence(f64),
}

/// `0.02`: nats.
pub(super) fn parse_divergence(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(nats) if nats > 0.0 && nats.is_finite() => Ok(nats),
        _ => Err("must be a divergence above 0 in nats, as in 0.02".to_owned()),
    }
}

/// `q4_0,q8_0`
pub(super) fn parse_type(text: &str) -> Result<DType, String> {
    DType::from_name(text).ok_or_else(|| {
        let names = DType::ALL.map(|dtype| dtype.name().to_lowercase());
        format!("must be of {}", names.join(", "))
    })
}

/// A matrix, and what it may become.
struct Candidate {
    name: String,
    choices: Vec<Choice>,
    bytes: HashMap<DType, Bytes>,
}

/// The types that were chosen, as a recipe, with the blocks that were made for them.
pub(super) struct Chosen {
    pub(super) recipe: Recipe,
    pub(super) bytes: HashMap<String, Bytes>,
    /// Measured on the held-out end of the text, in nats.
    pub(super) divergence: f64,
}

/// Chooses.
///
/// # Errors
/// When the target cannot be met, with the best that can.
pub(super) fn choose(
    args: &Args,
    limit: Limit,
    model: &Model,
    rounder: &mut Rounder<'_>,
    len_bytes: &dyn Fn(&[TensorDecl]) -> Result<u64>,
) -> Result<Chosen> {
    let Some(text) = &rounder.text else {
        return Err(UsageError(
            "--target-size and --max-kl measure on a text: give --calibrate FILE".to_owned(),
        )
        .into());
    };
    let windows: Vec<Vec<u32>> = text
        .held_out
        .chunks(WINDOW.min(model.info.spec.n_ctx))
        .map(<[u32]>::to_vec)
        .collect();
    let few = (SENSITIVITY_TOKENS / WINDOW).min(windows.len());
    let mut probe = Probe::new(EngineArgs::default().load(model)?, windows[..few].to_vec())?;
    let candidates = candidates(args, model, rounder, &mut probe)?;
    // The same engine, over all windows, with its matrices exchanged for good.
    drop(probe);
    let mut judge = Probe::new(EngineArgs::default().load(model)?, windows)?;
    let choices: Vec<_> = candidates.iter().map(|one| one.choices.clone()).collect();
    let (chosen, divergence) = match limit {
        Limit::Size(limit) => {
            let budget = matrix_budget(model, &candidates, limit, len_bytes)?;
            let chosen = under_bytes(&choices, budget).map_err(|error| match error {
                TargetError::TooSmall { least, .. } => {
                    let least = limit - budget + least;
                    anyhow::anyhow!(
                        "--target-size {}: with the smallest types the file takes {} ({least} bytes)",
                        human_bytes(limit),
                        human_bytes(least)
                    )
                }
                other => other.into(),
            })?;
            let divergence = measure(&mut judge, &candidates, &chosen)?;
            (chosen, divergence)
        }
        Limit::Divergence(limit) => within(&mut judge, &candidates, &choices, limit)?,
    };
    let mut recipe = Recipe::uniform(main_type(&candidates, &chosen));
    let mut bytes = HashMap::new();
    for (candidate, &i) in candidates.into_iter().zip(&chosen) {
        let dtype = candidate.choices[i].dtype;
        recipe = recipe.with_override(candidate.name.clone(), dtype);
        if let Some(blocks) = candidate.bytes.get(&dtype) {
            bytes.insert(candidate.name, blocks.clone());
        }
    }
    Ok(Chosen {
        recipe,
        bytes,
        divergence,
    })
}

/// Rounds every matrix to every type, and measures one of them.
fn candidates(
    args: &Args,
    model: &Model,
    rounder: &mut Rounder<'_>,
    probe: &mut Probe,
) -> Result<Vec<Candidate>> {
    let table = tensor_table(&model.info.spec);
    let matrices: Vec<_> = table.iter().filter(|entry| entry.quantizable).collect();
    let control = Bars::begin();
    control.begin("sensitivity", Unit::Documents, Some(matrices.len() as u64));
    let mut candidates = Vec::with_capacity(matrices.len());
    for entry in matrices {
        if control.cancelled() {
            control.clear();
            stopped();
        }
        let n_cols = entry.shape.last().copied().unwrap_or(1);
        let types = types(args).filter(|dtype| dtype.row_bytes(n_cols).is_some());
        let mut rounded = Vec::new();
        for dtype in types {
            let decl = TensorDecl {
                name: entry.gguf.clone(),
                dtype,
                shape: entry.shape.clone(),
            };
            let (bytes, error) = rounder.round(&decl)?;
            rounded.push((dtype, Bytes::from(bytes), error));
        }
        ensure!(
            !rounded.is_empty(),
            "no type of --types takes the rows of `{}`, which have {n_cols} elements; add f16",
            entry.gguf
        );
        let of_most_error = rounded.iter().max_by(|a, b| a.2.total_cmp(&b.2));
        let Some((dtype, bytes, largest)) = of_most_error else {
            continue;
        };
        let measured = probe.divergence_of(&entry.gguf, *dtype, bytes)?;
        let damage = |error: f64| {
            if *largest > 0.0 {
                measured * error / largest
            } else {
                0.0
            }
        };
        candidates.push(Candidate {
            name: entry.gguf.clone(),
            choices: rounded
                .iter()
                .map(|(dtype, bytes, error)| Choice {
                    dtype: *dtype,
                    len_bytes: bytes.len() as u64,
                    damage: damage(*error),
                })
                .collect(),
            bytes: rounded
                .into_iter()
                .map(|(dtype, bytes, _)| (dtype, bytes))
                .collect(),
        });
        control.advance(1);
    }
    control.clear();
    Ok(candidates)
}

/// What a matrix may become: `--types`, or all quantised types and f16.
fn types(args: &Args) -> impl Iterator<Item = DType> {
    let all = DType::ALL.into_iter();
    let given = args.types.clone();
    all.filter(move |dtype| {
        if given.is_empty() {
            dtype.is_quantized() || *dtype == DType::F16
        } else {
            given.contains(dtype)
        }
    })
}

/// Bytes that the matrices may take, of a file of `limit` bytes.
fn matrix_budget(
    model: &Model,
    candidates: &[Candidate],
    limit: u64,
    len_bytes: &dyn Fn(&[TensorDecl]) -> Result<u64>,
) -> Result<u64> {
    let header = model.gguf.header();
    let sizes: HashMap<_, _> = candidates
        .iter()
        .filter_map(|one| Some((one.name.as_str(), one.choices.last()?)))
        .collect();
    let decl = |info: &TensorInfo| TensorDecl {
        name: info.name.clone(),
        dtype: sizes
            .get(info.name.as_str())
            .map_or(DType::F32, |c| c.dtype),
        shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
    };
    let decls: Vec<_> = header.tensors.iter().map(decl).collect();
    let whole = len_bytes(&decls)?;
    let of_matrices: u64 = sizes.values().map(|choice| choice.len_bytes).sum();
    // Tensors begin at multiples of the alignment.
    let padding = header.alignment * header.tensors.len() as u64;
    let Some(budget) = limit.checked_sub(whole - of_matrices + padding) else {
        bail!(
            "--target-size {}: the header and the tensors that stay exact take {} alone",
            human_bytes(limit),
            human_bytes(whole - of_matrices + padding)
        );
    };
    Ok(budget)
}

/// The smallest choice whose measured divergence stays within the limit.
fn within(
    judge: &mut Probe,
    candidates: &[Candidate],
    choices: &[Vec<Choice>],
    limit: f64,
) -> Result<(Vec<usize>, f64)> {
    let len_bytes = |chosen: &[usize]| -> u64 {
        let chosen = choices.iter().zip(chosen);
        chosen.map(|(choices, i)| choices[*i].len_bytes).sum()
    };
    let predicted = |chosen: &[usize]| -> f64 {
        let chosen = choices.iter().zip(chosen);
        chosen.map(|(choices, i)| choices[*i].damage).sum()
    };
    let mut found: Option<(Vec<usize>, f64)> = None;
    let (mut allowed, mut least) = (limit, f64::INFINITY);
    for _ in 0..ROUNDS {
        let (chosen, is_best) = match under_damage(choices, allowed) {
            Ok(chosen) => (chosen, false),
            Err(TargetError::TooStrict { least, .. }) => (under_damage(choices, least)?, true),
            Err(other) => return Err(other.into()),
        };
        let divergence = measure(judge, candidates, &chosen)?;
        least = least.min(divergence);
        // Damages add up only roughly: the next round takes the ratio that this one showed.
        let ratio = divergence / predicted(&chosen).max(f64::MIN_POSITIVE);
        let smaller = found.as_ref();
        let smaller = smaller.is_none_or(|(best, _)| len_bytes(&chosen) < len_bytes(best));
        if divergence <= limit && smaller {
            found = Some((chosen, divergence));
        }
        if (divergence <= limit && divergence >= CLOSE * limit) || (is_best && divergence > limit) {
            break;
        }
        allowed = 0.97 * limit / ratio;
    }
    found.ok_or_else(|| {
        anyhow::anyhow!(
            "--max-kl {limit}: the best of the types makes a divergence of {least:.6}; add a wider type to --types, or allow more"
        )
    })
}

/// The divergence with all matrices in their chosen types.
fn measure(judge: &mut Probe, candidates: &[Candidate], chosen: &[usize]) -> Result<f64> {
    for (candidate, &i) in candidates.iter().zip(chosen) {
        let dtype = candidate.choices[i].dtype;
        if let Some(bytes) = candidate.bytes.get(&dtype) {
            judge.replace(&candidate.name, dtype, bytes)?;
        }
    }
    judge.divergence()
}

/// The type of most bytes, after which the file is called.
fn main_type(candidates: &[Candidate], chosen: &[usize]) -> DType {
    let mut bytes: HashMap<DType, u64> = HashMap::new();
    for (candidate, &i) in candidates.iter().zip(chosen) {
        let choice = candidate.choices[i];
        *bytes.entry(choice.dtype).or_default() += choice.len_bytes;
    }
    let most = bytes
        .into_iter()
        .max_by_key(|(dtype, n)| (*n, *dtype as u32));
    most.map_or(DType::F16, |(dtype, _)| dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences() {
        assert!(parse_divergence("0").is_err() && parse_divergence("nan").is_err());
        assert_eq!(parse_divergence("0.02"), Ok(0.02));
    }
}
