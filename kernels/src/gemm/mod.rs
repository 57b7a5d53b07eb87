//! Matrix products: packed panels and register tiles (Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication", 2008; van Zee and van de Geijn, "BLIS", 2015).
//!
//! `C[i, j] += Σ_p A[i, p] · B[p, j]`. In f32 every element is a chain of fused multiply-adds over p in order, cut into
//! pieces of at most [`Precision::depth`], each from 0 and then added to C. This holds for every instruction set, tile and
//! number of threads, so that all give the same bits. In bf16 the factors are rounded first and products are summed in
//! pairs, in f32; there the bits are those of the CPU.

mod pack;
mod tile;

pub use pack::{Behind, Operand, Strided};
pub use tile::{Isa, Pair};

use crate::threads;
use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};
use tile::{Edge, Tile, Value, with_tile};

/// Bytes of the panels of B that are packed at a time: they lie in the third-level cache.
const B_BYTES: usize = 8 << 20;
/// Bytes of a task's panels of A: they lie in the second-level cache.
const A_BYTES: usize = 512 << 10;
/// Products below this size are done by the calling thread.
const SERIAL_FLOPS: usize = 1 << 20;
/// Tasks for each thread, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 8;

/// What factors are rounded to before they are multiplied. Sums are f32 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bfloat16, 8 bits of mantissa, to the nearest even; subnormal numbers become 0.
    Bf16,
}

static IN_BF16: AtomicBool = AtomicBool::new(false);

impl Precision {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Whether this CPU has instructions for it.
    pub fn is_native(self) -> bool {
        match self {
            Self::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => Isa::best() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }

    /// What [`gemm`] and [`product`] compute in, in this process.
    pub fn current() -> Self {
        if IN_BF16.load(Ordering::Relaxed) {
            Self::Bf16
        } else {
            Self::F32
        }
    }

    /// Sets what [`gemm`] and [`product`] compute in from now on.
    pub fn make_current(self) {
        IN_BF16.store(self == Self::Bf16, Ordering::Relaxed);
    }

    /// The longest piece of a sum, and of the packed panels.
    pub fn depth(self) -> usize {
        match self {
            Self::F32 => 640,
            Self::Bf16 => 1280,
        }
    }

    /// The pieces of a sum of `k` products: as few as there can be, of about the same length.
    fn pieces(self, k: usize) -> impl Iterator<Item = Range<usize>> {
        let n = k.div_ceil(self.depth()).max(1);
        let len = k.div_ceil(n).next_multiple_of(16);
        (0..k)
            .step_by(len)
            .map(move |from| from..(from + len).min(k))
    }
}

/// What happens to the values that C had.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start<'a> {
    /// The product is added to them.
    Add,
    /// They are overwritten.
    Zero,
    /// They are overwritten by the product plus one row for all. [n]
    Row(&'a [f32]),
}

thread_local! {
    static A_PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static B_PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static UNROUNDED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `f` with a buffer that the thread keeps. The content is whatever was there.
fn with_buffer<V: Value, R>(
    cell: &'static std::thread::LocalKey<Cell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [V]) -> R,
) -> R {
    // Taken out and put back: a thread that waits for others may begin another product meanwhile.
    let mut buffer = cell.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(V::of(&mut buffer[..len]));
    cell.set(buffer);
    result
}

/// `C = start + A · B` with C `[m, n]` in rows, A `[m, k]`, B `[k, n]`; the lanes of `a` are rows of A, those of `b`
/// columns of B.
///
/// # Panics
/// When `c` or the row of `start` has another size.
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    a: &impl Operand,
    b: &impl Operand,
    start: Start,
    c: &mut [f32],
) {
    let how = How {
        isa: Isa::best(),
        precision: Precision::current(),
        parallel: true,
    };
    gemm_on(how, [m, n, k], a, b, start, (c, n));
}

/// `A · B`, plus one row for all where there is one. -> [m, n]
///
/// # Panics
/// When the row has another size.
pub fn product(
    [m, n, k]: [usize; 3],
    a: &impl Operand,
    b: &impl Operand,
    row: Option<&[f32]>,
) -> Vec<f32> {
    let mut c = Vec::with_capacity(m * n);
    let start = row.map_or(Start::Zero, Start::Row);
    let how = How {
        isa: Isa::best(),
        precision: Precision::current(),
        parallel: true,
    };
    // SAFETY: there is room for m rows of n values.
    unsafe { into(how, [m, n, k], a, b, start, (c.as_mut_ptr(), n)) };
    // SAFETY: neither start adds to what was there, so that every value was written.
    unsafe { c.set_len(m * n) };
    c
}

/// `C = start + A · B` in f32 on the calling thread alone, into rows of C that are `ldc` apart: for products within
/// attention, whose scores and probabilities lose too much in bf16.
///
/// # Panics
/// When `c` is too short.
pub fn gemm_serial(
    size: [usize; 3],
    a: &impl Operand,
    b: &impl Operand,
    start: Start,
    c: &mut [f32],
    ldc: usize,
) {
    let how = How {
        isa: Isa::best(),
        precision: Precision::F32,
        parallel: false,
    };
    gemm_on(how, size, a, b, start, (c, ldc));
}

/// How a product is computed.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// The instructions.
    pub isa: Isa,
    /// What the factors are rounded to. Plain Rust where the CPU has no instructions for it.
    pub precision: Precision,
    /// On all threads.
    pub parallel: bool,
}

/// [`gemm`] in a given way.
///
/// # Panics
/// When `c` is too short, or the CPU lacks the instructions.
pub fn gemm_on(
    how: How,
    [m, n, k]: [usize; 3],
    a: &impl Operand,
    b: &impl Operand,
    start: Start,
    (c, ldc): (&mut [f32], usize),
) {
    assert!(
        m == 0 || n == 0 || (ldc >= n && c.len() >= (m - 1) * ldc + n),
        "C is too short"
    );
    // SAFETY: C has the rows, and is borrowed mutably.
    unsafe { into(how, [m, n, k], a, b, start, (c.as_mut_ptr(), ldc)) };
}

/// [`gemm_on`] into memory that need not hold values yet, but where it is added to.
///
/// # Safety
/// C has m rows of n values that are `ldc` apart, and nobody else uses them.
unsafe fn into(
    how: How,
    [m, n, k]: [usize; 3],
    a: &impl Operand,
    b: &impl Operand,
    start: Start,
    (c, ldc): (*mut f32, usize),
) {
    assert!(
        how.isa.is_available(),
        "the CPU has no {:?}, which was asked for",
        how.isa
    );
    if m == 0 || n == 0 {
        return;
    }
    if let Start::Row(row) = start {
        assert_eq!(row.len(), n, "the row that is added has another size");
    }
    let n_threads = if how.parallel && 2 * m * n * k >= SERIAL_FLOPS {
        threads::n_threads()
    } else {
        1
    };
    let job = Job {
        m,
        n,
        k,
        a,
        b,
        start,
        c,
        ldc,
        n_threads,
        precision: how.precision,
    };
    if k == 0 {
        return job.without_products();
    }
    with_tile!(how, n, |T| job.run::<T>());
}

struct Job<'a, A, B> {
    m: usize,
    n: usize,
    k: usize,
    a: &'a A,
    b: &'a B,
    start: Start<'a>,
    /// m rows of n values, `ldc` apart.
    c: *mut f32,
    ldc: usize,
    n_threads: usize,
    precision: Precision,
}

// SAFETY: nobody else uses C as long as the job runs, and its tasks write different elements.
unsafe impl<A: Operand, B: Operand> Sync for Job<'_, A, B> {}

/// Parts `0..n_parts` of `0..n`, of about the same size.
fn part(n: usize, n_parts: usize, idx: usize) -> Range<usize> {
    idx * n / n_parts..(idx + 1) * n / n_parts
}

impl<A: Operand, B: Operand> Job<'_, A, B> {
    fn without_products(&self) {
        for i in 0..self.m {
            for j in 0..self.n {
                let value = match self.start {
                    Start::Add => continue,
                    Start::Zero => 0.0,
                    Start::Row(values) => values[j],
                };
                // SAFETY: C has this row and column, and no task runs.
                unsafe { self.c.add(i * self.ldc + j).write(value) };
            }
        }
    }

    fn run<T: Tile>(&self) {
        for depth in self.precision.pieces(self.k) {
            let panel = T::COLUMNS * T::Value::depths(depth.len());
            let together = (B_BYTES / size_of::<T::Value>() / panel).max(1) * T::COLUMNS;
            for first in (0..self.n).step_by(together) {
                let columns = first..(first + together).min(self.n);
                let n_panels = columns.len().div_ceil(T::COLUMNS);
                with_buffer(&B_PANELS, n_panels * panel, |panels: &mut [T::Value]| {
                    self.pack_b::<T>(&columns, &depth, panels, panel);
                    self.tasks::<T>(&columns, &depth, panels, panel);
                });
            }
        }
    }

    fn each(&self, n: usize, f: impl Fn(usize) + Sync) {
        if self.n_threads > 1 {
            threads::each(n, f);
        } else {
            (0..n).for_each(f);
        }
    }

    fn pack_b<T: Tile>(
        &self,
        columns: &Range<usize>,
        depth: &Range<usize>,
        panels: &mut [T::Value],
        panel: usize,
    ) {
        let one = |idx: usize, panel: &mut [T::Value]| {
            let first = columns.start + idx * T::COLUMNS;
            let lanes = first..(first + T::COLUMNS).min(columns.end);
            T::Value::pack(self.b, lanes, depth.clone(), T::COLUMNS, panel);
        };
        if self.n_threads > 1 {
            threads::each_part(threads::split_mut(panels, panel), one);
        } else {
            for (idx, panel) in panels.chunks_mut(panel).enumerate() {
                one(idx, panel);
            }
        }
    }

    /// Blocks of C: bands of rows, and where these are too few for all threads, parts of their columns.
    fn tasks<T: Tile>(
        &self,
        columns: &Range<usize>,
        depth: &Range<usize>,
        panels: &[T::Value],
        panel: usize,
    ) {
        let (n_tiles, n_panels) = (self.m.div_ceil(T::ROWS), columns.len().div_ceil(T::COLUMNS));
        let a_panel = T::ROWS * T::Value::depths(depth.len());
        let most = (A_BYTES / size_of::<T::Value>() / a_panel).max(1);
        let wanted = if self.n_threads > 1 {
            self.n_threads * TASKS_PER_THREAD
        } else {
            1
        };
        let n_bands = n_tiles.div_ceil(most).max(wanted.min(n_tiles.div_ceil(2)));
        let n_parts = wanted.div_ceil(n_bands).min(n_panels);
        self.each(n_bands * n_parts, |task| {
            let tiles = part(n_tiles, n_bands, task / n_parts);
            let of_band = part(n_panels, n_parts, task % n_parts);
            let rows = tiles.start * T::ROWS..(tiles.end * T::ROWS).min(self.m);
            let columns = columns.start + of_band.start * T::COLUMNS
                ..(columns.start + of_band.end * T::COLUMNS).min(columns.end);
            let panels = &panels[of_band.start * panel..of_band.end * panel];
            self.block::<T>(rows, &columns, depth, panels, panel);
        });
    }

    /// Some rows and columns of C; `panels` are those of the columns.
    fn block<T: Tile>(
        &self,
        rows: Range<usize>,
        columns: &Range<usize>,
        depth: &Range<usize>,
        panels: &[T::Value],
        panel: usize,
    ) {
        let n_tiles = rows.len().div_ceil(T::ROWS);
        let len = T::ROWS * T::Value::depths(depth.len());
        with_buffer(&A_PANELS, n_tiles * len, |a_panels: &mut [T::Value]| {
            for (idx, panel) in a_panels.chunks_mut(len).enumerate() {
                let first = rows.start + idx * T::ROWS;
                let lanes = first..(first + T::ROWS).min(rows.end);
                T::Value::pack(self.a, lanes, depth.clone(), T::ROWS, panel);
            }
            let first_piece = depth.start == 0;
            for (j, b) in panels.chunks(panel).enumerate() {
                let first = columns.start + j * T::COLUMNS;
                let n_columns = T::COLUMNS.min(columns.end - first);
                for (i, a) in a_panels.chunks(len).enumerate() {
                    let row = rows.start + i * T::ROWS;
                    let edge = Edge {
                        n_rows: T::ROWS.min(rows.end - row),
                        n_columns,
                        ldc: self.ldc,
                        start: match self.start {
                            Start::Row(values) if first_piece => {
                                Start::Row(&values[first..first + n_columns])
                            }
                            Start::Zero if first_piece => Start::Zero,
                            _ => Start::Add,
                        },
                    };
                    // SAFETY: `into` has asserted that the CPU has the instructions; C has these rows and columns, which no
                    // other task has.
                    unsafe { T::add(a, b, self.c.add(row * self.ldc + first), edge) };
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
