//! The importance matrix: how large the inputs of each column of each matrix are on text that matters to the user.
//!
//! A product's squared error is `Σ (w - ŵ)² x²` where inputs do not correlate, so the mean of x² is what a column's rounding
//! errors weigh. Kept in llama.cpp's GGUF form (`tools/imatrix`): `NAME.in_sum2` and `NAME.counts`.

use super::DType;
use crate::gguf::{Gguf, GgufError, Layout, Metadata, StringArray, TensorDecl};
use std::collections::BTreeMap;

/// Sums of squared inputs by tensor name. Gathered by [`crate::cpu::CpuEngine::watch_inputs`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    tensors: BTreeMap<String, Sums>,
}

/// Of one matrix.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sums {
    /// `Σ x²` of each column. [K]
    squares: Vec<f64>,
    /// Rows of input that were added.
    n_rows: u64,
}

/// Why a file is no importance matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportanceError {
    /// The file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Another kind of GGUF file.
    #[error(
        "this is no importance matrix: its general.type is {0}, not `imatrix`; make one with --calibrate or llama-imatrix"
    )]
    NotImatrix(String),
    /// A tensor without its counterpart, or of another shape than the format has.
    #[error("the importance matrix is damaged at `{tensor}`: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Importance {
    /// Adds rows of inputs that some matrices read. [T, K]
    ///
    /// # Panics
    /// When `n_cols` is another number than before for one of them.
    pub fn add(&mut self, names: &[&str], rows: &[f32], n_cols: usize) {
        let Some((&first, others)) = names.split_first() else {
            return;
        };
        if !self.tensors.contains_key(first) {
            self.tensors.insert(first.to_owned(), Sums::default());
        }
        let sums = self.tensors.get_mut(first).expect("it was inserted");
        sums.squares.resize(sums.squares.len().max(n_cols), 0.0);
        assert_eq!(
            sums.squares.len(),
            n_cols,
            "{first}: the width of the matrix"
        );
        for row in rows.chunks_exact(n_cols) {
            for (sum, x) in sums.squares.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
            sums.n_rows += 1;
        }
        let sums = sums.clone();
        for &name in others {
            self.tensors.insert(name.to_owned(), sums.clone());
        }
    }

    /// The mean of x² of each column of a tensor, when it was seen. [K]
    pub fn means(&self, name: &str) -> Option<Vec<f32>> {
        let sums = self.tensors.get(name).filter(|sums| sums.n_rows > 0)?;
        let mean = |sum: &f64| (sum / sums.n_rows as f64) as f32;
        Some(sums.squares.iter().map(mean).collect())
    }

    /// Names of the tensors that were seen.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Rows of input of the tensor that saw the most: the tokens of the text.
    pub fn n_rows(&self) -> u64 {
        let rows = self.tensors.values().map(|sums| sums.n_rows);
        rows.max().unwrap_or(0)
    }

    /// As a file of llama.cpp's: `datasets` names the texts, `chunk_size` is the length of the windows they were fed in.
    ///
    /// # Errors
    /// When a name is none that GGUF allows.
    ///
    /// # Panics
    /// Never: memory takes all that is written.
    pub fn to_gguf(&self, datasets: &[&str], chunk_size: u32) -> Result<Vec<u8>, GgufError> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", "imatrix");
        metadata.set("imatrix.datasets", datasets.iter().collect::<StringArray>());
        let n_chunks = self.n_rows().div_ceil(u64::from(chunk_size.max(1)));
        metadata.set("imatrix.chunk_count", n_chunks as u32);
        metadata.set("imatrix.chunk_size", chunk_size);
        let tensors = self.tensors.iter().flat_map(|(name, sums)| {
            let squares: Vec<f32> = sums.squares.iter().map(|sum| *sum as f32).collect();
            [
                (format!("{name}{SUMS}"), squares),
                (format!("{name}{COUNTS}"), vec![sums.n_rows as f32]),
            ]
        });
        let tensors: Vec<_> = tensors.collect();
        let decls = tensors.iter().map(|(name, values)| TensorDecl {
            name: name.clone(),
            dtype: DType::F32,
            shape: vec![1, values.len()],
        });
        let layout = Layout::new(metadata, decls)?;
        let mut writer = layout.write_to(Vec::new()).expect("a Vec takes all bytes");
        for (name, values) in &tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            writer
                .write_tensor(name, &bytes)
                .expect("tensors come in the layout's order");
        }
        Ok(writer.finish().expect("all tensors came"))
    }

    /// Reads a file of ours or of llama.cpp's.
    ///
    /// # Errors
    /// What is missing, by tensor. Sums that are negative or no numbers are refused.
    pub fn from_gguf(file: &Gguf) -> Result<Self, ImportanceError> {
        let header = file.header();
        let kind = header.metadata.str("general.type").unwrap_or("not given");
        if kind != "imatrix" {
            return Err(ImportanceError::NotImatrix(kind.to_owned()));
        }
        let mut tensors = BTreeMap::new();
        for info in &header.tensors {
            let Some(name) = info.name.strip_suffix(SUMS) else {
                continue;
            };
            let damaged = |reason| ImportanceError::Tensor {
                tensor: info.name.clone(),
                reason,
            };
            let counts = file
                .tensor_f32(&format!("{name}{COUNTS}"))
                .map_err(|_| damaged("its counts are missing"))?;
            let squares = file.tensor_f32(&info.name)?;
            // Mixtures of experts have a row of sums for each expert.
            let &[count] = counts.as_slice() else {
                return Err(damaged("it is of a mixture of experts"));
            };
            if !(count >= 0.0 && count.is_finite())
                || squares.iter().any(|x| !(*x >= 0.0 && x.is_finite()))
            {
                return Err(damaged("it holds a sum that is negative or no number"));
            }
            let sums = Sums {
                squares: squares.into_iter().map(f64::from).collect(),
                n_rows: count as u64,
            };
            tensors.insert(name.to_owned(), sums);
        }
        Ok(Self { tensors })
    }
}

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered() -> Importance {
        let mut importance = Importance::default();
        importance.add(&["b.weight"], &[1.0, 2.0, 3.0, -4.0], 2);
        importance.add(&["b.weight"], &[0.0, 0.5], 2);
        importance.add(&["a.weight"], &[3.0, 0.0, 1.0], 3);
        importance
    }

    fn opened(bytes: Vec<u8>) -> Result<Importance, ImportanceError> {
        Importance::from_gguf(&Gguf::parse(bytes.into()).expect("a valid file"))
    }

    #[test]
    fn means_are_of_squares() {
        let importance = gathered();
        let expected = vec![10.0 / 3.0, 20.25 / 3.0];
        assert_eq!(importance.means("b.weight"), Some(expected));
        assert_eq!(importance.means("c.weight"), None);
        assert_eq!(importance.n_rows(), 3);
    }

    #[test]
    fn files_there_and_back() {
        let importance = gathered();
        let bytes = importance.to_gguf(&["a text"], 2).expect("a valid file");
        assert_eq!(opened(bytes.clone()), Ok(importance));
        let file = Gguf::parse(bytes.into()).expect("a valid file");
        let header = file.header();
        assert_eq!(header.metadata.u64("imatrix.chunk_count"), Some(2));
        let shape = |name: &str| header.tensor(name).map(|info| info.shape.clone());
        assert_eq!(shape("a.weight.in_sum2"), Some(vec![3, 1]));
        assert_eq!(shape("a.weight.counts"), Some(vec![1, 1]));
    }

    #[test]
    fn other_files_are_refused() {
        let model = crate::testing::tiny_model(crate::spec::Family::Llama, DType::F32, 1);
        let error = opened(model).expect_err("a model is no importance matrix");
        assert!(error.to_string().contains("general.type is not given"));
        let file = |name: &str, value: f32| {
            let mut metadata = Metadata::new();
            metadata.set("general.type", "imatrix");
            let decl = |name: &str| TensorDecl {
                name: name.to_owned(),
                dtype: DType::F32,
                shape: vec![1, 1],
            };
            let layout = Layout::new(metadata, [decl("a.in_sum2"), decl(name)]);
            let mut writer = layout.expect("valid").write_to(Vec::new()).expect("a Vec");
            writer
                .write_tensor("a.in_sum2", &value.to_le_bytes())
                .expect("in order");
            writer
                .write_tensor(name, &1.0_f32.to_le_bytes())
                .expect("in order");
            opened(writer.finish().expect("complete"))
        };
        assert!(file("a.counts", 4.0).is_ok());
        for (name, value) in [
            ("b.counts", 4.0),
            ("a.counts", -1.0),
            ("a.counts", f32::NAN),
        ] {
            let error = file(name, value)
                .expect_err("it must be refused")
                .to_string();
            assert!(error.contains("damaged at `a.in_sum2`"), "{error}");
        }
    }
}
