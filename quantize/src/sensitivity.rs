//! What each type of each matrix costs: the divergence of the model with that matrix alone in that type.
//!
//! One type of a matrix, the smallest, is measured in the model. The others follow from the errors of its outputs, because for
//! small errors the divergence is quadratic in them, and the constant is the matrix's own.

use anyhow::{Result, ensure};
use bytes::Bytes;
use fledgling_core::{
    cpu::{CpuEngine, EngineError, Feed},
    quant::DType,
};
use fledgling_eval::logits::Distribution;

/// A model whose matrices are exchanged one by one, and what it said before. Holds `4 V` bytes a token.
#[derive(Debug)]
pub struct Probe {
    engine: CpuEngine,
    windows: Vec<Vec<u32>>,
    /// Logits of the model as it came, window by window. [windows][T][V]
    reference: Vec<Vec<Vec<f32>>>,
}

impl Probe {
    /// Remembers what the model says of some windows of tokens.
    ///
    /// # Errors
    /// The engine's, and when there is no token.
    pub fn new(engine: CpuEngine, windows: Vec<Vec<u32>>) -> Result<Self> {
        ensure!(
            windows.iter().any(|window| !window.is_empty()),
            "there is no token to measure sensitivity on"
        );
        let reference = windows
            .iter()
            .map(|window| run(&engine, window, &|_, logits| logits.to_vec()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            engine,
            windows,
            reference,
        })
    }

    /// The mean divergence `Σ p (log p - log q)` of the model as it came from the model as it is now, in nats.
    ///
    /// # Errors
    /// The engine's.
    pub fn divergence(&self) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0);
        for (window, reference) in self.windows.iter().zip(&self.reference) {
            let kls = run(&self.engine, window, &|t, logits| {
                Distribution::new(&reference[t]).kl(&Distribution::new(logits))
            })?;
            sum += kls.iter().sum::<f64>();
            n += kls.len();
        }
        Ok(sum / n as f64)
    }

    /// Puts a matrix in another type in the place of one; returns the former.
    ///
    /// # Errors
    /// When there is no such matrix.
    pub fn replace(
        &mut self,
        name: &str,
        dtype: DType,
        bytes: &Bytes,
    ) -> Result<(DType, Bytes), EngineError> {
        self.engine.replace_matrix(name, dtype, bytes)
    }

    /// The divergence that one matrix makes by itself.
    ///
    /// # Errors
    /// When there is no such matrix, or the engine's.
    pub fn divergence_of(&mut self, name: &str, dtype: DType, bytes: &Bytes) -> Result<f64> {
        let (own, own_bytes) = self.replace(name, dtype, bytes)?;
        let divergence = self.divergence();
        self.replace(name, own, &own_bytes)?;
        divergence
    }
}

fn run<R: Clone + Default + Send>(
    engine: &CpuEngine,
    window: &[u32],
    reduce: &(dyn Fn(usize, &[f32]) -> R + Sync),
) -> Result<Vec<R>, EngineError> {
    let mut session = engine.session(window.len())?;
    let feed = Feed {
        session: &mut session,
        tokens: window,
        wanted_from: 0,
    };
    engine.forward_batch(&mut [feed], &|_, t, logits| reduce(t, logits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{
        cpu::CpuOptions, gguf::Gguf, quant::quantize, spec::Family, testing::tiny_model,
    };

    #[test]
    fn a_matrix_by_itself_costs_what_the_model_with_it_diverges() {
        let file =
            |dtype| Gguf::parse(tiny_model(Family::Llama, dtype, 1).into()).expect("a model");
        let engine = |file: &Gguf| CpuEngine::new(file, &CpuOptions::default()).expect("a model");
        let exact = file(DType::F32);
        let windows: Vec<Vec<u32>> = vec![(0..40).collect(), (20..31).collect()];
        let mut probe = Probe::new(engine(&exact), windows).expect("there are tokens");
        assert!(probe.divergence().expect("it runs") < 1e-7, "itself");
        let name = "blk.1.ffn_up.weight";
        let in_type = |dtype| {
            let mut bytes = Vec::new();
            quantize(
                dtype,
                &exact.tensor_f32(name).expect("it is there"),
                &mut bytes,
            );
            Bytes::from(bytes)
        };
        let mut of = |dtype| {
            probe
                .divergence_of(name, dtype, &in_type(dtype))
                .expect("it runs")
        };
        let (four, eight) = (of(DType::Q4_0), of(DType::Q8_0));
        assert!(four > 10.0 * eight && eight > 0.0, "{four} {eight}");
        assert!(probe.divergence().expect("it runs") < 1e-7, "put back");
        assert!(Probe::new(engine(&exact), vec![Vec::new()]).is_err());
    }
}
