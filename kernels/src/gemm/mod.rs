//! Matrix products: packed panels and register tiles (Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication", 2008; van Zee and van de Geijn, "BLIS", 2015).
//!
//! `C[i, j] += Σ_p A[i, p] · B[p, j]`. Every element is a chain of fused multiply-adds over p in order, cut into pieces
//! of [`DEPTH`], each from 0 and then added to C. This holds for every instruction set, tile and number of threads, so
//! that all give the same bits.

mod pack;
mod tile;

pub use pack::{Operand, Strided};
pub use tile::Isa;

use rayon::prelude::*;
use std::{cell::Cell, ops::Range};
use tile::{Edge, Tile, with_tile};

/// Length of a piece of the chains, and of the packed panels.
pub const DEPTH: usize = 256;
/// Columns whose panels are packed at a time: with [`DEPTH`] 4 MiB, which lie in the third-level cache.
const COLUMNS: usize = 4096;
/// Rows that one task takes at most: with [`DEPTH`] they lie in the second-level cache.
const ROWS: usize = 224;
/// Products below this size are done by the calling thread.
const SERIAL_FLOPS: usize = 1 << 21;

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
}

/// Runs `f` with a buffer that the thread keeps. The content is whatever was there.
fn with_buffer<R>(
    cell: &'static std::thread::LocalKey<Cell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    // Taken out and put back: a thread that waits for others may begin another product meanwhile.
    let mut buffer = cell.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
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
    gemm_on(Isa::best(), true, [m, n, k], a, b, start, (c, n));
}

/// [`gemm`] on the calling thread alone, into rows of C that are `ldc` apart.
///
/// # Panics
/// When `c` is too short.
pub fn gemm_serial(
    [m, n, k]: [usize; 3],
    a: &impl Operand,
    b: &impl Operand,
    start: Start,
    c: &mut [f32],
    ldc: usize,
) {
    gemm_on(Isa::best(), false, [m, n, k], a, b, start, (c, ldc));
}

/// [`gemm`] on a given instruction set.
///
/// # Panics
/// When `c` is too short, or the CPU lacks the instructions.
pub fn gemm_on(
    isa: Isa,
    parallel: bool,
    [m, n, k]: [usize; 3],
    a: &impl Operand,
    b: &impl Operand,
    start: Start,
    (c, ldc): (&mut [f32], usize),
) {
    assert!(
        isa.is_available(),
        "the CPU has no {isa:?}, which was asked for"
    );
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "C is too short");
    if let Start::Row(row) = start {
        assert_eq!(row.len(), n, "the row that is added has another size");
    }
    let rows = c.len().min(m * ldc);
    let c = &mut c[..rows];
    let parallel = parallel && 2 * m * n * k >= SERIAL_FLOPS;
    let job = Job {
        m,
        n,
        k,
        a,
        b,
        start,
        ldc,
        parallel,
    };
    with_tile!(isa, n, |T| job.run::<T>(c));
}

struct Job<'a, A, B> {
    m: usize,
    n: usize,
    k: usize,
    a: &'a A,
    b: &'a B,
    start: Start<'a>,
    ldc: usize,
    parallel: bool,
}

impl<A: Operand, B: Operand> Job<'_, A, B> {
    fn run<T: Tile>(&self, c: &mut [f32]) {
        if self.k == 0 {
            for row in c.chunks_mut(self.ldc) {
                match self.start {
                    Start::Add => {}
                    Start::Zero => row[..self.n].fill(0.0),
                    Start::Row(values) => row[..self.n].copy_from_slice(values),
                }
            }
            return;
        }
        for first in (0..self.n).step_by(COLUMNS) {
            let columns = first..(first + COLUMNS).min(self.n);
            for from in (0..self.k).step_by(DEPTH) {
                let depth = from..(from + DEPTH).min(self.k);
                let n_panels = columns.len().div_ceil(T::COLUMNS);
                with_buffer(&B_PANELS, n_panels * T::COLUMNS * depth.len(), |panels| {
                    self.pack_b::<T>(&columns, &depth, panels);
                    self.rows::<T>(&columns, &depth, panels, c);
                });
            }
        }
    }

    fn pack_b<T: Tile>(&self, columns: &Range<usize>, depth: &Range<usize>, panels: &mut [f32]) {
        let one = |(idx, panel): (usize, &mut [f32])| {
            let first = columns.start + idx * T::COLUMNS;
            let lanes = first..(first + T::COLUMNS).min(columns.end);
            self.b.pack(lanes, depth.clone(), T::COLUMNS, panel);
        };
        let len = T::COLUMNS * depth.len();
        if self.parallel {
            panels.par_chunks_mut(len).enumerate().for_each(one);
        } else {
            panels.chunks_mut(len).enumerate().for_each(one);
        }
    }

    fn rows<T: Tile>(
        &self,
        columns: &Range<usize>,
        depth: &Range<usize>,
        panels: &[f32],
        c: &mut [f32],
    ) {
        let threads = if self.parallel {
            rayon::current_num_threads()
        } else {
            1
        };
        // At least four tasks a thread, so that none waits long for the last.
        let rows = self
            .m
            .div_ceil(4 * threads)
            .next_multiple_of(T::ROWS)
            .min(ROWS.next_multiple_of(T::ROWS));
        let one = |(idx, c): (usize, &mut [f32])| {
            let block = idx * rows..(idx * rows + rows).min(self.m);
            self.block::<T>(block, columns, depth, panels, c);
        };
        if threads > 1 {
            c.par_chunks_mut(rows * self.ldc).enumerate().for_each(one);
        } else {
            c.chunks_mut(rows * self.ldc).enumerate().for_each(one);
        }
    }

    /// Some rows of C, `c` from the first of them on.
    fn block<T: Tile>(
        &self,
        rows: Range<usize>,
        columns: &Range<usize>,
        depth: &Range<usize>,
        panels: &[f32],
        c: &mut [f32],
    ) {
        let n_tiles = rows.len().div_ceil(T::ROWS);
        let len = T::ROWS * depth.len();
        with_buffer(&A_PANELS, n_tiles * len, |a_panels| {
            for (idx, panel) in a_panels.chunks_mut(len).enumerate() {
                let first = rows.start + idx * T::ROWS;
                let lanes = first..(first + T::ROWS).min(rows.end);
                self.a.pack(lanes, depth.clone(), T::ROWS, panel);
            }
            let first_piece = depth.start == 0;
            for (j, b) in panels.chunks(T::COLUMNS * depth.len()).enumerate() {
                let first = columns.start + j * T::COLUMNS;
                let tile_columns = first..(first + T::COLUMNS).min(columns.end);
                for (i, a) in a_panels.chunks(len).enumerate() {
                    let n_rows = T::ROWS.min(rows.len() - i * T::ROWS);
                    let c = &mut c[i * T::ROWS * self.ldc..];
                    if let (true, Start::Row(values)) = (first_piece, self.start) {
                        for row in c.chunks_mut(self.ldc).take(n_rows) {
                            row[tile_columns.clone()]
                                .copy_from_slice(&values[tile_columns.clone()]);
                        }
                    }
                    let edge = Edge {
                        n_rows,
                        n_columns: tile_columns.len(),
                        overwrites: first_piece && self.start == Start::Zero,
                    };
                    T::add(a, b, &mut c[first..], self.ldc, edge);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
