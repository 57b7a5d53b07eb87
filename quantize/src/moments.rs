//! Second moments of activations: `X^T X` of what every matrix reads, the Hessian of the squared error of its product
//! (Frantar et al., "GPTQ", 2022, section 3), with every row of X scaled to length 1.
//!
//! Unscaled, a few tokens with activations of a thousand times the others' size (the first of a text, mostly) are all that
//! counts, although a norm takes their size away again: outputs then err three times less, and the model diverges more (LOG.md).

use anyhow::Result;
use fledgling_core::{cpu::CpuEngine, quant::Importance};
use fledgling_data::control::{Control, Unit};
use fledgling_kernels::{
    Precision, Strided,
    gemm::{How, Isa, Start, gemm_on},
};
use std::collections::HashMap;

/// What some matrices read.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Width of a row. (K)
    pub n_cols: usize,
    /// Rows that were added. (T)
    pub n_rows: u64,
    /// `Σ x x^T / |x|²`. [K, K]
    pub sums: Vec<f32>,
}

/// Of all matrices of a model, or of some.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    inputs: Vec<Input>,
    by_name: HashMap<String, usize>,
}

impl Moments {
    /// Feeds a text in windows and adds up the moments of the matrices that are `wanted` by name, and the importance of all
    /// columns. Memory is `4 K²` bytes for each input; matrices that read the same share one.
    ///
    /// # Errors
    /// The engine's; somebody's wish to stop.
    pub fn gather(
        engine: &CpuEngine,
        tokens: &[u32],
        window: usize,
        wanted: &dyn Fn(&str) -> bool,
        control: &dyn Control,
    ) -> Result<(Self, Importance)> {
        let (mut moments, mut importance) = (Self::default(), Importance::default());
        let n_windows = tokens.len().div_ceil(window) as u64;
        control.begin("calibration", Unit::Documents, Some(n_windows));
        for tokens in tokens.chunks(window) {
            control.check()?;
            let mut session = engine.session(tokens.len())?;
            engine.watch_inputs(&mut session, tokens, &mut |names, rows, n_cols| {
                importance.add(names, rows, n_cols);
                if names.iter().any(|name| wanted(name)) {
                    moments.add(names, rows, n_cols);
                }
            })?;
            control.advance(1);
        }
        Ok((moments, importance))
    }

    /// Adds rows that the matrices of these names read. [T, K]
    ///
    /// # Panics
    /// When they were of another width before.
    pub fn add(&mut self, names: &[&str], rows: &[f32], n_cols: usize) {
        let Some(first) = names.first() else {
            return;
        };
        let idx = match self.by_name.get(*first) {
            Some(idx) => *idx,
            None => {
                let idx = self.inputs.len();
                self.inputs.push(Input {
                    n_cols,
                    n_rows: 0,
                    sums: vec![0.0; n_cols * n_cols],
                });
                self.by_name
                    .extend(names.iter().map(|name| ((*name).to_owned(), idx)));
                idx
            }
        };
        let input = &mut self.inputs[idx];
        assert_eq!(input.n_cols, n_cols, "{first}: the width of its input");
        let n_rows = rows.len() / n_cols;
        let rows = &unit_rows(rows, n_cols);
        let columns = Strided::columns(rows, n_cols);
        let size = [n_cols, n_cols, n_rows];
        // [K, T] @ [T, K]
        gemm_on(
            exactly(),
            size,
            &columns,
            &columns,
            Start::Add,
            (&mut input.sums, n_cols),
        );
        input.n_rows += n_rows as u64;
    }

    /// What a matrix reads, when it was wanted and seen: the number of the input, which others may share, and the input.
    pub fn of(&self, name: &str) -> Option<(usize, &Input)> {
        let idx = *self.by_name.get(name)?;
        Some((idx, &self.inputs[idx]))
    }
}

/// The rows, each of length 1; zeros stay.
fn unit_rows(rows: &[f32], n_cols: usize) -> Vec<f32> {
    let mut unit = rows.to_vec();
    for row in unit.chunks_exact_mut(n_cols) {
        let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        if square > 0.0 {
            let scale = 1.0 / square.sqrt();
            for x in row {
                *x = (f64::from(*x) * scale) as f32;
            }
        }
    }
    unit
}

/// On all threads, in f32 whatever the process trains in.
pub(crate) fn exactly() -> How {
    How {
        isa: Isa::best(),
        precision: Precision::F32,
        parallel: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{
        cpu::CpuOptions, gguf::Gguf, quant::DType, spec::Family, testing::tiny_model,
    };
    use fledgling_data::control::Quiet;

    #[test]
    fn moments_are_sums_of_products() {
        let mut moments = Moments::default();
        moments.add(&["a", "b"], &[1.0, 2.0, 3.0, -1.0], 2);
        moments.add(&["a", "b"], &[0.5, 0.0], 2);
        let (idx, input) = moments.of("b").expect("it was added");
        assert_eq!((idx, input.n_rows), (0, 3));
        let expected = [
            1.0 / 5.0 + 9.0 / 10.0 + 1.0,
            2.0 / 5.0 - 3.0 / 10.0,
            4.0 / 5.0 + 1.0 / 10.0,
        ];
        for (i, want) in [
            (0, expected[0]),
            (1, expected[1]),
            (2, expected[1]),
            (3, expected[2]),
        ] {
            assert!((input.sums[i] - want).abs() < 1e-6, "{:?}", input.sums);
        }
        let mut zeros = Moments::default();
        zeros.add(&["a"], &[0.0, 0.0], 2);
        assert_eq!(zeros.of("a").expect("it was added").1.sums, [0.0; 4]);
        assert!(moments.of("c").is_none());
    }

    #[test]
    fn every_row_counts_alike_in_all_that_is_wanted() {
        for family in [Family::Gpt2, Family::Llama] {
            let gguf = Gguf::parse(tiny_model(family, DType::F32, 1).into()).expect("a model");
            let engine = CpuEngine::new(&gguf, &CpuOptions::default()).expect("a model");
            let tokens: Vec<u32> = (0..100).map(|i| i * 7 % 64).collect();
            let wanted = |name: &str| !name.contains("ffn_down");
            let (moments, importance) = Moments::gather(&engine, &tokens, 48, &wanted, &Quiet)
                .expect("tokens of the model");
            let mut n_found = 0;
            for name in importance.names() {
                let Some((_, input)) = moments.of(name) else {
                    assert!(!wanted(name), "{name}");
                    continue;
                };
                n_found += 1;
                let n = input.n_cols;
                assert_eq!((input.n_rows, input.sums.len()), (100, n * n));
                let trace: f32 = (0..n).map(|i| input.sums[i * (n + 1)]).sum();
                assert!((trace / 100.0 - 1.0).abs() < 1e-4, "{name}: {trace}");
            }
            assert!(n_found > 4, "{n_found}");
        }
    }
}
