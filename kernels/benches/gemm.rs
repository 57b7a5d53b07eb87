//! Matrix products of a training step, in f32 and bf16: GFLOP/s on all cores.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fledgling_kernels::{
    gemm::{How, Isa, Precision, Start, Strided, gemm_on},
    narrow,
};

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gemm");
    group.sample_size(10);
    let native = Precision::ALL.into_iter().filter(|it| it.is_native());
    for (precision, [m, n, k]) in native.flat_map(|precision| {
        [
            [2048, 1536, 384],
            [2048, 384, 1536],
            [1536, 384, 2048],
            [512, 8192, 384],
            [456, 1536, 576],
            [456, 576, 1536],
            [456, 576, 576],
            [456, 192, 576],
            [456, 8, 576],
            [456, 576, 8],
            [8, 576, 456],
        ]
        .map(|size| (precision, size))
    }) {
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (a, b, mut c) = (vec![0.5; m * k], vec![0.25; k * n], vec![0.0; m * n]);
        let how = How {
            isa: Isa::best(),
            precision,
            parallel: true,
        };
        for (layout, a, b) in [
            ("x·wᵀ", Strided::rows(&a, k), Strided::rows(&b, k)),
            ("dy·w", Strided::rows(&a, k), Strided::columns(&b, n)),
            ("dyᵀ·x", Strided::columns(&a, m), Strided::columns(&b, n)),
        ] {
            let id = BenchmarkId::new(format!("{precision:?} {layout}"), format!("{m}x{n}x{k}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| gemm_on(how, [m, n, k], &a, &b, Start::Zero, (&mut c, n)));
            });
        }
    }
    group.finish();
}

/// The products of a LoRA of rank 8.
fn narrow_products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("narrow");
    group.sample_size(10);
    for [n, k] in [[456, 576], [456, 1536]] {
        group.throughput(Throughput::Elements(2 * (n * 8 * k) as u64));
        let (x, b, d) = (vec![0.5; n * k], vec![0.25; 8 * k], vec![0.25; 8 * n]);
        group.bench_function(BenchmarkId::new("dots", format!("{n}x8x{k}")), |bencher| {
            bencher.iter(|| narrow::dots(&x, &b, k));
        });
        group.bench_function(BenchmarkId::new("outer", format!("8x{k}x{n}")), |bencher| {
            bencher.iter(|| narrow::outer(&d, &x, n));
        });
    }
    group.finish();
}

criterion_group!(benches, products, narrow_products);
criterion_main!(benches);
