//! The relative squared error of every matrix's outputs on a text, for quantisations of one parent: `tr(E H E^T) / tr(W H W^T)`
//! with `H = X^T X` of the text. What a rounding gains in the product that it was made for, and on a text that it has not seen.
//!
//! ```sh
//! cargo run --release -p fledgling-quantize --example output_errors -- PARENT.gguf TEXT N_TOKENS MODEL.gguf...
//! ```

use anyhow::{Context, Result};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    gguf::Gguf,
    model::ModelInfo,
};
use fledgling_data::control::Quiet;
use fledgling_kernels::{Strided, gemm::product};
use fledgling_quantize::Moments;
use std::{collections::BTreeMap, fs};

const WINDOW: usize = 512;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [parent, text, n_tokens, models @ ..] = args.as_slice() else {
        anyhow::bail!("see the head of this example for its arguments");
    };
    let open = |path: &String| -> Result<Gguf> { Ok(Gguf::parse(fs::read(path)?.into())?) };
    let parent = open(parent)?;
    let info = ModelInfo::from_header(parent.header())?;
    let options = CpuOptions {
        n_threads: 2,
        ..CpuOptions::default()
    };
    let engine = CpuEngine::new(&parent, &options)?;
    let mut tokens = info
        .tokenizer
        .encode(&fs::read_to_string(text)?, false, false);
    tokens.truncate(n_tokens.parse().context("N_TOKENS")?);
    let (moments, _) = Moments::gather(&engine, &tokens, WINDOW, &|_| true, &Quiet)?;
    for path in models {
        let model = open(path)?;
        let mut sums: BTreeMap<String, [f64; 2]> = BTreeMap::new();
        for tensor in &parent.header().tensors {
            let Some((_, input)) = moments.of(&tensor.name) else {
                continue;
            };
            let exact = parent.tensor_f32(&tensor.name)?;
            let mut lost = model.tensor_f32(&tensor.name)?;
            for (lost, exact) in lost.iter_mut().zip(&exact) {
                *lost -= exact;
            }
            let n = input.n_cols;
            let size = |values: &[f32]| -> f64 {
                let h = Strided::columns(&input.sums, n);
                let rows = values.len() / n;
                let by_h = product([rows, n, n], &Strided::rows(values, n), &h, None);
                let terms = by_h.iter().zip(values);
                terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let role = tensor.name.split('.').skip_while(|part| *part == "blk");
            let role: Vec<&str> = role.filter(|part| part.parse::<u32>().is_err()).collect();
            let sums = sums.entry(role.join(".")).or_default();
            sums[0] += size(&lost);
            sums[1] += size(&exact);
        }
        for (role, [lost, exact]) in sums {
            println!("{path} {role:24} {:.4e}", lost / exact);
        }
    }
    Ok(())
}
