//! Quantisation measured, without the command: importance, files, and the divergence from their parent.
//!
//! ```sh
//! alias q='cargo run --release -p fledgling-core --example quantize --'
//! q expand MODEL.gguf F32.gguf [NOISE]                 # NOISE: steps of Q4_1 to spread values by, so that no grid shows
//! q importance F32.gguf TEXT N_TOKENS OUT.imatrix
//! q write F32.gguf RECIPE OUT.gguf [IMATRIX] [nearest|large]  # large: large weights count even more
//! q compare F32.gguf TEXT SKIP N_TOKENS MODEL.gguf...  # KL(parent, model), top-1 agreement, perplexity
//! q errors F32.gguf IMATRIX MODEL.gguf...              # square errors of the weights
//! ```

use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    gguf::{Gguf, Layout, TensorDecl},
    model::ModelInfo,
    quant::{DType, Importance, Method, Recipe, quantize_row},
};
use std::{collections::BTreeMap, error::Error, fs, time::Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const WINDOW: usize = 512;
const N_THREADS: usize = 2;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["expand", model, out] => expand(model, out, 0.0),
        ["expand", model, out, noise] => expand(model, out, noise.parse()?),
        ["importance", model, text, n, out] => importance(model, text, n.parse()?, out),
        ["write", model, recipe, out, rest @ ..] => write(model, recipe, out, rest),
        ["compare", parent, text, skip, n, models @ ..] => {
            compare(parent, text, skip.parse()?, n.parse()?, models)
        }
        ["errors", parent, imatrix, models @ ..] => errors(parent, imatrix, models),
        _ => Err("see the head of this example for its arguments".into()),
    }
}

fn open(path: &str) -> Result<Gguf> {
    Ok(Gguf::parse(fs::read(path)?.into())?)
}

fn engine(gguf: &Gguf) -> Result<CpuEngine> {
    let options = CpuOptions {
        n_threads: N_THREADS,
        ..CpuOptions::default()
    };
    Ok(CpuEngine::new(gguf, &options)?)
}

fn tokens(gguf: &Gguf, text: &str, skip: usize, n: usize) -> Result<Vec<u32>> {
    let info = ModelInfo::from_header(gguf.header())?;
    let text = fs::read_to_string(text)?;
    let ids = info.tokenizer.encode(&text, false, false);
    Ok(ids.into_iter().skip(skip).take(n).collect())
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

fn importance(model: &str, text: &str, n: usize, out: &str) -> Result<()> {
    let gguf = open(model)?;
    let (engine, ids) = (engine(&gguf)?, tokens(&gguf, text, 0, n)?);
    let (mut importance, started) = (Importance::default(), Instant::now());
    for window in ids.chunks(WINDOW) {
        let mut session = engine.session(window.len())?;
        engine.gather_importance(&mut session, window, &mut importance)?;
    }
    println!("{} tokens in {:?}", ids.len(), started.elapsed());
    fs::write(out, importance.to_gguf(&[text], WINDOW as u32)?)?;
    Ok(())
}

fn write(model: &str, recipe: &str, out: &str, rest: &[&str]) -> Result<()> {
    let method = if rest.contains(&"nearest") {
        Method::Nearest
    } else {
        Method::Search
    };
    let large = rest.contains(&"large");
    let imatrix = rest.iter().find(|arg| !["nearest", "large"].contains(arg));
    let importance = match imatrix {
        Some(path) => Importance::from_gguf(&open(path)?)?,
        None => Importance::default(),
    };
    let gguf = open(model)?;
    let info = ModelInfo::from_header(gguf.header())?;
    let recipe = Recipe::from_name(recipe)?;
    let plan = recipe.plan(&info.spec)?;
    let decls = plan.iter().map(|planned| TensorDecl {
        name: planned.entry.gguf.clone(),
        dtype: planned.dtype,
        shape: planned.entry.shape.clone(),
    });
    let mut metadata = gguf.header().metadata.clone();
    metadata.set("general.file_type", recipe.file_type());
    let mut writer = Layout::new(metadata, decls)?.write_to(fs::File::create(out)?)?;
    let (mut seconds, mut n_values) = (BTreeMap::new(), BTreeMap::new());
    for planned in &plan {
        let values = gguf.tensor_f32(&planned.entry.gguf)?;
        let means = importance.means(&planned.entry.gguf);
        let n_cols = *planned.entry.shape.last().ok_or("a tensor without axes")?;
        let started = Instant::now();
        let bytes = quantize(
            planned.dtype,
            &values,
            n_cols,
            means.as_deref(),
            method,
            large,
        );
        *seconds.entry(planned.dtype.name()).or_insert(0.0) += started.elapsed().as_secs_f64();
        *n_values.entry(planned.dtype.name()).or_insert(0) += values.len();
        writer.write_tensor(&planned.entry.gguf, &bytes)?;
    }
    writer.finish()?;
    for (name, seconds) in seconds {
        let n = n_values[name];
        println!("{name}: {n} values in {seconds:.2} s");
    }
    Ok(())
}

/// Rows over threads.
fn quantize(
    dtype: DType,
    values: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    method: Method,
    large: bool,
) -> Vec<u8> {
    let n_rows = values.len() / n_cols;
    let part = n_rows.div_ceil(N_THREADS) * n_cols;
    let quantize_part = |part: &[f32]| {
        let mut out = Vec::new();
        for row in part.chunks_exact(n_cols) {
            let weights = large.then(|| emphasised(row, importance));
            let weights = weights.as_deref().or(importance);
            quantize_row(dtype, row, weights, method, &mut out);
        }
        out
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = values
            .chunks(part)
            .map(|part| scope.spawn(move || quantize_part(part)))
            .collect();
        let parts = threads
            .into_iter()
            .map(|t| t.join().expect("a thread of ours"));
        parts.collect::<Vec<_>>().concat()
    })
}

/// Importance times `sqrt(mean x² + x²)`, which is in the search once already.
fn emphasised(row: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
    let weight =
        |(i, x): (usize, &f32)| importance.map_or(1.0, |w| w[i]) * (mean_square + x * x).sqrt();
    row.iter().enumerate().map(weight).collect()
}

/// Log-probabilities. [V] -> [V]
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    logits.iter().map(|x| f64::from(*x) - log_sum).collect()
}

fn argmax(values: &[f64]) -> usize {
    let larger = |a: usize, b: usize| if values[b] > values[a] { b } else { a };
    (0..values.len()).fold(0, larger)
}

/// Of one model.
#[derive(Default)]
struct Divergence {
    kl: Vec<f64>,
    n_same: usize,
    loss: f64,
}

fn compare(parent: &str, text: &str, skip: usize, n: usize, models: &[&str]) -> Result<()> {
    let parent = open(parent)?;
    let ids = tokens(&parent, text, skip, n)?;
    let parent = engine(&parent)?;
    let engines = models
        .iter()
        .map(|path| engine(&open(path)?))
        .collect::<Result<Vec<_>>>()?;
    let mut found: Vec<Divergence> = models.iter().map(|_| Divergence::default()).collect();
    for window in ids.chunks(WINDOW) {
        let mut expected: Vec<Vec<f32>> = Vec::new();
        parent.forward_all(
            &mut parent.session(window.len())?,
            window,
            &mut |_, logits| {
                expected.push(logits.to_vec());
            },
        )?;
        for (engine, found) in engines.iter().zip(&mut found) {
            engine.forward_all(
                &mut engine.session(window.len())?,
                window,
                &mut |t, logits| {
                    let (p, q) = (log_softmax(&expected[t]), log_softmax(logits));
                    let kl = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                    found.kl.push(kl);
                    found.n_same += usize::from(argmax(&p) == argmax(&q));
                    if let Some(next) = window.get(t + 1) {
                        found.loss -= q[*next as usize];
                    }
                },
            )?;
        }
    }
    let n_scored = ids.len() - ids.len().div_ceil(WINDOW);
    println!("| file | bytes | KL | ± | top-1 | perplexity |\n|---|---|---|---|---|---|");
    for (path, found) in models.iter().zip(&found) {
        let n = found.kl.len() as f64;
        let mean = found.kl.iter().sum::<f64>() / n;
        let variance = found.kl.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / n;
        println!(
            "| {path} | {} | {mean:.6} | {:.6} | {:.4} | {:.4} |",
            fs::metadata(path)?.len(),
            (variance / n).sqrt(),
            found.n_same as f64 / n,
            (found.loss / n_scored as f64).exp()
        );
    }
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
