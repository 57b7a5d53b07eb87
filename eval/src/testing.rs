//! A tiny model for the tests, and what the fuzz target `task` does.

use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    gguf::Gguf,
    model::ModelInfo,
    quant::DType,
    spec::Family,
    testing::tiny_model,
};

/// A random Llama of two layers.
#[cfg(test)]
pub(crate) fn tiny() -> (ModelInfo, CpuEngine) {
    tiny_of(DType::F32, 5)
}

/// The same with other weights.
#[cfg(test)]
pub(crate) fn tiny_of(dtype: DType, seed: u64) -> (ModelInfo, CpuEngine) {
    let gguf = Gguf::parse(tiny_model(Family::Llama, dtype, seed).into()).unwrap();
    let info = ModelInfo::from_header(gguf.header()).unwrap();
    let options = CpuOptions {
        n_threads: 2,
        ..CpuOptions::default()
    };
    let engine = CpuEngine::new(&gguf, &options).unwrap();
    (info, engine)
}
