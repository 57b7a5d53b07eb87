//! What [`CpuMemory`] says, beside what an allocator counts.

use fledgling_core::{
    cpu::{CpuEngine, CpuMemory, CpuOptions, KvDType},
    gguf::Gguf,
    quant::DType,
    spec::{Family, ModelSpec},
    testing::{random_model, tiny_spec},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters are plain atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `ptr` came out of `alloc` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes on the heap at the peak of loading a model and feeding a prompt; the file itself lies elsewhere.
fn measured(file: Vec<u8>, n_ctx: usize, kv: KvDType, n_threads: usize) -> usize {
    let gguf = Gguf::parse(file.into()).expect("a valid file");
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let options = CpuOptions {
        n_threads,
        isa: None,
        kv,
    };
    let engine = CpuEngine::new(&gguf, &options).expect("a valid model");
    let mut session = engine.session(n_ctx).expect("memory");
    let ids: Vec<u32> = (0..n_ctx as u32 - 1).map(|i| i % 256).collect();
    engine.forward(&mut session, &ids).expect("finite logits");
    engine.forward(&mut session, &[1]).expect("finite logits");
    PEAK.load(Relaxed) - before
}

#[test]
fn the_estimate_is_what_is_allocated() {
    for family in [Family::Gpt2, Family::Llama, Family::Qwen3] {
        for (dtype, kv) in [(DType::Q8_0, KvDType::F16), (DType::F32, KvDType::F32)] {
            let spec = ModelSpec {
                n_layer: 3,
                n_embd: 256,
                n_ff: 1024,
                n_ctx: 512,
                n_head: 8,
                n_kv_head: if family == Family::Gpt2 { 8 } else { 4 },
                head_dim: 32,
                position: match tiny_spec(family).position {
                    fledgling_core::spec::Position::Rope {
                        base,
                        pairing,
                        freq_factors,
                        ..
                    } => fledgling_core::spec::Position::Rope {
                        base,
                        dim: 32,
                        pairing,
                        freq_factors,
                    },
                    learned => learned,
                },
                ..tiny_spec(family)
            };
            let file = random_model(&spec, dtype, 1);
            let types = |_: &fledgling_core::spec::TensorEntry| dtype;
            let estimate = CpuMemory::estimate(&spec, types, spec.n_ctx, kv, 2);
            let expected = estimate.total_bytes() - estimate.weights_bytes;
            let found = measured(file, spec.n_ctx, kv, 2) as u64;
            let ratio = found as f64 / expected as f64;
            assert!(
                (0.9..1.15).contains(&ratio),
                "{family:?} {dtype}: {found} bytes were allocated, {expected} estimated ({ratio:.3})"
            );
        }
    }
}
