//! Matrix products of a training step: GFLOP/s on the threads of `RAYON_NUM_THREADS`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fledgling_kernels::gemm::{Start, Strided, gemm};

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gemm");
    group.sample_size(10);
    for [m, n, k] in [
        [2048, 1536, 384],
        [2048, 384, 1536],
        [1536, 384, 2048],
        [512, 8192, 384],
        [512, 8, 576],
    ] {
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (a, b, mut c) = (vec![0.5; m * k], vec![0.25; k * n], vec![0.0; m * n]);
        let id = |layout| BenchmarkId::new(layout, format!("{m}x{n}x{k}"));
        group.bench_function(id("x·wᵀ"), |bencher| {
            bencher.iter(|| {
                gemm(
                    m,
                    n,
                    k,
                    &Strided::rows(&a, k),
                    &Strided::rows(&b, k),
                    Start::Zero,
                    &mut c,
                );
            });
        });
        group.bench_function(id("dy·w"), |bencher| {
            bencher.iter(|| {
                gemm(
                    m,
                    n,
                    k,
                    &Strided::rows(&a, k),
                    &Strided::columns(&b, n),
                    Start::Zero,
                    &mut c,
                );
            });
        });
        group.bench_function(id("dyᵀ·x"), |bencher| {
            bencher.iter(|| {
                gemm(
                    m,
                    n,
                    k,
                    &Strided::columns(&a, m),
                    &Strided::columns(&b, n),
                    Start::Zero,
                    &mut c,
                );
            });
        });
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
