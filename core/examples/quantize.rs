//! What the command does not do: a parent to compare quantisations with where there is only a quantised file, and the errors of
//! weights.
//!
//! ```sh
//! alias q='cargo run --release -p fledgling-core --example quantize --'
//! q expand MODEL.gguf F32.gguf [NOISE]                 # NOISE: steps of Q4_1 to spread values by, so that no grid shows
//! q errors F32.gguf IMATRIX MODEL.gguf...              # square errors of the weights
//! ```

use fledgling_core::{
    gguf::{Gguf, Layout, TensorDecl},
    quant::{DType, Importance},
};
use std::{collections::BTreeMap, error::Error, fs};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["expand", model, out] => expand(model, out, 0.0),
        ["expand", model, out, noise] => expand(model, out, noise.parse()?),
        ["errors", parent, imatrix, models @ ..] => errors(parent, imatrix, models),
        _ => Err("see the head of this example for its arguments".into()),
    }
}

fn open(path: &str) -> Result<Gguf> {
    Ok(Gguf::parse(fs::read(path)?.into())?)
}

/// All matrices as F32.
fn expand(model: &str, out: &str, noise: f32) -> Result<()> {
    let gguf = open(model)?;
    let header = gguf.header();
    let decls = header.tensors.iter().map(|info| TensorDecl {
        name: info.name.clone(),
        dtype: DType::F32,
        shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
    });
    let mut metadata = header.metadata.clone();
    metadata.set("general.file_type", 0_u32);
    let layout = Layout::new(metadata, decls)?;
    let mut writer = layout.write_to(fs::File::create(out)?)?;
    let mut state = 1_u64;
    for info in &header.tensors {
        let mut values = gguf.tensor_f32(&info.name)?;
        if info.dtype.is_quantized() && noise > 0.0 {
            for block in values.chunks_mut(32) {
                let min = block.iter().copied().fold(f32::MAX, f32::min);
                let max = block.iter().copied().fold(f32::MIN, f32::max);
                for x in block {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    let unit = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
                    *x += unit * noise * (max - min) / 15.0;
                }
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_tensor(&info.name, &bytes)?;
    }
    writer.finish()?;
    Ok(())
}

/// `Σ w (x - x̂)² / Σ w x²` by type, with w of 1 and by importance.
fn errors(parent: &str, imatrix: &str, models: &[&str]) -> Result<()> {
    let (parent, importance) = (open(parent)?, Importance::from_gguf(&open(imatrix)?)?);
    for path in models {
        let model = open(path)?;
        let mut sums: BTreeMap<&str, [f64; 4]> = BTreeMap::new();
        for info in model
            .header()
            .tensors
            .iter()
            .filter(|i| i.dtype.is_quantized())
        {
            let (x, y) = (
                parent.tensor_f32(&info.name)?,
                model.tensor_f32(&info.name)?,
            );
            let n_cols = info.shape[0] as usize;
            let w = importance.means(&info.name).unwrap_or(vec![1.0; n_cols]);
            let mean = f64::from(w.iter().sum::<f32>()) / n_cols as f64;
            let sums = sums.entry(info.dtype.name()).or_default();
            for (i, (x, y)) in x.iter().zip(&y).enumerate() {
                let w = f64::from(w[i % n_cols]) / mean;
                let (error, size) = (f64::from(x - y).powi(2), f64::from(*x).powi(2));
                for (sum, term) in sums.iter_mut().zip([error, size, w * error, w * size]) {
                    *sum += term;
                }
            }
        }
        for (name, [error, size, w_error, w_size]) in sums {
            println!(
                "{path} {name}: {:.4e} weighted {:.4e}",
                error / size,
                w_error / w_size
            );
        }
    }
    Ok(())
}
