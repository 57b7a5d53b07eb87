//! Register tiles: `C[rows, columns] += a panel of A · a panel of B`.

/// Instruction sets that have a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: what the compiler makes of it.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Isa {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The widest that this CPU has.
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| {
            let available = |isa: &Self| isa.is_available();
            Self::ALL
                .into_iter()
                .rev()
                .find(available)
                .unwrap_or(Self::Scalar)
        })
    }
}

/// What of a tile is C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
    /// The product takes the place of C's values.
    pub(super) overwrites: bool,
}

/// A register tile.
pub(super) trait Tile {
    const ROWS: usize;
    const COLUMNS: usize;

    /// Adds the product of two panels to the first rows and columns of a tile of C.
    fn add(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, edge: Edge);
}

/// Rows and columns in plain Rust, each element a chain of its own.
pub(super) struct Plain;

impl Tile for Plain {
    const ROWS: usize = 4;
    const COLUMNS: usize = 16;

    fn add(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, edge: Edge) {
        let mut sums = [[0.0_f32; 16]; 4];
        for (a, b) in a.as_chunks::<4>().0.iter().zip(b.as_chunks::<16>().0) {
            for (sums, a) in sums.iter_mut().zip(a) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
        }
        for (row, sums) in c.chunks_mut(ldc).zip(&sums).take(edge.n_rows) {
            for (c, sum) in row.iter_mut().zip(sums).take(edge.n_columns) {
                *c = if edge.overwrites { *sum } else { *c + sum };
            }
        }
    }
}

/// Chooses the tile for an instruction set and a number of columns.
macro_rules! with_tile {
    ($isa:expr, $n:expr, |$tile:ident| $body:expr) => {{
        use tile::*;
        match $isa {
            Isa::Scalar => {
                type $tile = Plain;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                type $tile = x86::Avx2;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if $n <= 16 => {
                type $tile = x86::Avx512Narrow;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                type $tile = x86::Avx512;
                $body
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("availability was checked"),
        }
    }};
}
pub(super) use with_tile;

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    //! The tiles for x86-64.

    use super::{Edge, Tile};
    use std::arch::x86_64::{
        __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };

    /// 14 rows by two vectors: 28 sums, two vectors of B, and A from memory fill the 32 registers.
    pub(in super::super) struct Avx512;
    /// 28 rows by one vector, for narrow products.
    pub(in super::super) struct Avx512Narrow;
    /// 6 rows by two vectors: 12 sums of 16 registers.
    pub(in super::super) struct Avx2;

    impl Tile for Avx512 {
        const ROWS: usize = 14;
        const COLUMNS: usize = 32;

        fn add(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, edge: Edge) {
            // SAFETY: `gemm_on` has asserted that the CPU has the instructions.
            unsafe { add_avx512::<14, 2, 32>(a, b, c, ldc, edge) }
        }
    }

    impl Tile for Avx512Narrow {
        const ROWS: usize = 28;
        const COLUMNS: usize = 16;

        fn add(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, edge: Edge) {
            // SAFETY: as above.
            unsafe { add_avx512::<28, 1, 16>(a, b, c, ldc, edge) }
        }
    }

    impl Tile for Avx2 {
        const ROWS: usize = 6;
        const COLUMNS: usize = 16;

        fn add(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, edge: Edge) {
            // SAFETY: as above.
            unsafe { add_avx2(a, b, c, ldc, edge) }
        }
    }

    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
    fn add_avx512<const ROWS: usize, const VECTORS: usize, const COLUMNS: usize>(
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
        ldc: usize,
        edge: Edge,
    ) {
        let mut sums: [[__m512; VECTORS]; ROWS] = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLUMNS>().0);
        for (a, b) in a.iter().zip(b) {
            let b: [__m512; VECTORS] = std::array::from_fn(|v| {
                // SAFETY: `b` has COLUMNS = 16 * VECTORS values.
                unsafe { _mm512_loadu_ps(b.as_ptr().add(16 * v)) }
            });
            for (sums, a) in sums.iter_mut().zip(a) {
                let a = _mm512_set1_ps(*a);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (row, sums) in c.chunks_mut(ldc).zip(&sums).take(edge.n_rows) {
            let row = &mut row[..edge.n_columns];
            for (v, sum) in sums.iter().enumerate() {
                let lanes = edge.n_columns.saturating_sub(16 * v).min(16);
                if lanes == 0 {
                    break;
                }
                let mask = (0xFFFF_u32 >> (16 - lanes)) as u16;
                // SAFETY: the mask keeps to the `lanes` values that the row has from 16 * v on.
                unsafe {
                    let at = row.as_mut_ptr().add(16 * v);
                    let value = if edge.overwrites {
                        *sum
                    } else {
                        _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), *sum)
                    };
                    _mm512_mask_storeu_ps(at, mask, value);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn add_avx2(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, edge: Edge) {
        let mut sums: [[__m256; 2]; 6] = [[_mm256_setzero_ps(); 2]; 6];
        let (a, b) = (a.as_chunks::<6>().0, b.as_chunks::<16>().0);
        for (a, b) in a.iter().zip(b) {
            let b: [__m256; 2] = std::array::from_fn(|v| {
                // SAFETY: `b` has 16 values.
                unsafe { _mm256_loadu_ps(b.as_ptr().add(8 * v)) }
            });
            for (sums, a) in sums.iter_mut().zip(a) {
                let a = _mm256_set1_ps(*a);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm256_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (row, sums) in c.chunks_mut(ldc).zip(&sums).take(edge.n_rows) {
            if let Some(row) = row.first_chunk_mut::<16>().filter(|_| edge.n_columns == 16) {
                for (v, sum) in sums.iter().enumerate() {
                    // SAFETY: `row` has 16 values.
                    unsafe {
                        let at = row.as_mut_ptr().add(8 * v);
                        let value = if edge.overwrites {
                            *sum
                        } else {
                            _mm256_add_ps(_mm256_loadu_ps(at), *sum)
                        };
                        _mm256_storeu_ps(at, value);
                    }
                }
                continue;
            }
            let mut values = [0.0_f32; 16];
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `values` has 16.
                unsafe { _mm256_storeu_ps(values.as_mut_ptr().add(8 * v), *sum) };
            }
            for (c, value) in row[..edge.n_columns].iter_mut().zip(values) {
                *c = if edge.overwrites { value } else { *c + value };
            }
        }
    }
}
