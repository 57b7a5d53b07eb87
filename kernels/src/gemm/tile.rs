//! Register tiles: `C[rows, columns] += a panel of A · a panel of B`.

use super::{Operand, Start};
use std::ops::Range;

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

/// What of a tile is C, and what becomes of the values that are there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge<'a> {
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
    /// Values from one row of C to the next.
    pub(super) ldc: usize,
    /// A row that is added has `n_columns` values.
    pub(super) start: Start<'a>,
}

/// What panels hold.
pub(super) trait Value: Copy + Send + Sync + 'static {
    /// A buffer as values.
    fn of(buffer: &mut [f32]) -> &mut [Self];
    /// How many values a lane has for `depth` elements.
    fn depths(depth: usize) -> usize;
    /// [`Operand::pack`] in these values.
    fn pack(
        operand: &impl Operand,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Self],
    );
}

impl Value for f32 {
    fn of(buffer: &mut [f32]) -> &mut [Self] {
        buffer
    }
    fn depths(depth: usize) -> usize {
        depth
    }
    fn pack(
        operand: &impl Operand,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Self],
    ) {
        operand.pack(lanes, depth, width, panel);
    }
}

/// The bf16 values of a lane at two depths that follow each other, the first in the low half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pair(pub u32);

impl Value for Pair {
    fn of(buffer: &mut [f32]) -> &mut [Self] {
        // SAFETY: both are 32 bits of which every value is valid, with the same alignment.
        unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), buffer.len()) }
    }
    fn depths(depth: usize) -> usize {
        depth.div_ceil(2)
    }
    fn pack(
        operand: &impl Operand,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Self],
    ) {
        operand.pack_pairs(lanes, depth, width, panel);
    }
}

/// Pairs of two depths; `high` is empty behind the last.
pub(super) fn pairs(low: &[f32], high: &[f32], out: &mut [Pair]) {
    #[cfg(target_arch = "x86_64")]
    if super::Precision::Bf16.is_native() {
        // SAFETY: the CPU has the instructions.
        unsafe { x86::pairs(low, high, out) };
        return;
    }
    for (i, out) in out.iter_mut().enumerate() {
        let high = high.get(i).map_or(0, |high| bf16(*high));
        *out = Pair(u32::from(bf16(low[i])) | u32::from(high) << 16);
    }
}

/// The bits of the nearest bf16, ties to even; subnormal numbers become 0, and every NaN a quiet one (Intel's manual,
/// `VCVTNEPS2BF16`).
pub(super) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    if x.is_subnormal() {
        return (bits >> 16) as u16 & 0x8000;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// A register tile.
pub(super) trait Tile {
    /// What its panels hold.
    type Value: Value;
    const ROWS: usize;
    const COLUMNS: usize;

    /// Adds the product of two panels to the first rows and columns of a tile of C.
    ///
    /// # Safety
    /// The CPU has the instructions; `c` has the rows and columns of `edge`, which hold values where it is added to them,
    /// and nobody else uses them.
    unsafe fn add(a: &[Self::Value], b: &[Self::Value], c: *mut f32, edge: Edge);
}

/// Rows and columns in plain Rust, each element a chain of its own.
pub(super) struct Plain;
/// As [`Plain`], of rounded factors: the sum of each pair's second product and then its first (Intel's manual,
/// `VDPBF16PS`).
pub(super) struct PlainBf16;

const PLAIN: (usize, usize) = (4, 16);

impl Tile for Plain {
    type Value = f32;
    const ROWS: usize = PLAIN.0;
    const COLUMNS: usize = PLAIN.1;

    unsafe fn add(a: &[f32], b: &[f32], c: *mut f32, edge: Edge) {
        // SAFETY: the caller's promise.
        unsafe { add_plain(a, b, c, edge, |sum, a, b| a.mul_add(b, sum)) }
    }
}

impl Tile for PlainBf16 {
    type Value = Pair;
    const ROWS: usize = PLAIN.0;
    const COLUMNS: usize = PLAIN.1;

    unsafe fn add(a: &[Pair], b: &[Pair], c: *mut f32, edge: Edge) {
        let high = |x: Pair| f32::from_bits(x.0 & 0xFFFF_0000);
        let low = |x: Pair| f32::from_bits(x.0 << 16);
        let add = |sum, a, b| low(a).mul_add(low(b), high(a).mul_add(high(b), sum));
        // SAFETY: the caller's promise.
        unsafe { add_plain(a, b, c, edge, add) }
    }
}

/// # Safety
/// That of [`Tile::add`].
unsafe fn add_plain<V: Copy>(
    a: &[V],
    b: &[V],
    c: *mut f32,
    edge: Edge,
    add: impl Fn(f32, V, V) -> f32,
) {
    let mut sums = [[0.0_f32; PLAIN.1]; PLAIN.0];
    for (a, b) in a
        .as_chunks::<{ PLAIN.0 }>()
        .0
        .iter()
        .zip(b.as_chunks::<{ PLAIN.1 }>().0)
    {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = add(*sum, *a, *b);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate().take(edge.n_rows) {
        // SAFETY: the caller's promise.
        unsafe { leave(c.add(i * edge.ldc), sums, &edge) };
    }
}

/// Writes the sums of a row of a tile.
///
/// # Safety
/// `row` has the columns of `edge`, which hold values where it is added to them.
unsafe fn leave(row: *mut f32, sums: &[f32], edge: &Edge) {
    for (j, sum) in sums.iter().enumerate().take(edge.n_columns) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = row.add(j);
            at.write(match edge.start {
                Start::Zero => *sum,
                Start::Add => *at + sum,
                Start::Row(values) => values[j] + sum,
            });
        }
    }
}

/// Chooses the tile for a way of computing and a number of columns.
macro_rules! with_tile {
    ($how:expr, $n:expr, |$tile:ident| $body:expr) => {{
        use tile::*;
        match ($how.isa, $how.precision) {
            (Isa::Scalar, Precision::F32) => {
                type $tile = Plain;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Precision::Bf16) if Precision::Bf16.is_native() => {
                if $n <= 16 {
                    type $tile = x86::Bf16Narrow;
                    $body
                } else {
                    type $tile = x86::Bf16;
                    $body
                }
            }
            (_, Precision::Bf16) => {
                type $tile = PlainBf16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => {
                type $tile = x86::Avx2;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, _) if $n <= 16 => {
                type $tile = x86::Avx512Narrow;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, _) => {
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

    use super::{Edge, Pair, Start, Tile, leave};
    use std::arch::x86_64::{
        __m256, __m256bh, __m256i, __m512, __m512bh, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_cvtepu16_epi32,
        _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_or_si512,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    };

    /// 14 rows by two vectors: 28 sums, two vectors of B, and A from memory fill the 32 registers.
    pub(in super::super) struct Avx512;
    /// 28 rows by one vector, for narrow products.
    pub(in super::super) struct Avx512Narrow;
    /// [`Avx512`] in bf16.
    pub(in super::super) struct Bf16;
    /// [`Avx512Narrow`] in bf16.
    pub(in super::super) struct Bf16Narrow;
    /// 6 rows by two vectors: 12 sums of 16 registers.
    pub(in super::super) struct Avx2;

    impl Tile for Avx512 {
        type Value = f32;
        const ROWS: usize = 14;
        const COLUMNS: usize = 32;

        unsafe fn add(a: &[f32], b: &[f32], c: *mut f32, edge: Edge) {
            // SAFETY: the caller's promise.
            unsafe { add_avx512::<14, 2, 32>(a, b, c, edge) }
        }
    }

    impl Tile for Avx512Narrow {
        type Value = f32;
        const ROWS: usize = 28;
        const COLUMNS: usize = 16;

        unsafe fn add(a: &[f32], b: &[f32], c: *mut f32, edge: Edge) {
            // SAFETY: as above.
            unsafe { add_avx512::<28, 1, 16>(a, b, c, edge) }
        }
    }

    impl Tile for Bf16 {
        type Value = Pair;
        const ROWS: usize = 14;
        const COLUMNS: usize = 32;

        unsafe fn add(a: &[Pair], b: &[Pair], c: *mut f32, edge: Edge) {
            // SAFETY: as above.
            unsafe { add_bf16::<14, 2, 32>(a, b, c, edge) }
        }
    }

    impl Tile for Bf16Narrow {
        type Value = Pair;
        const ROWS: usize = 28;
        const COLUMNS: usize = 16;

        unsafe fn add(a: &[Pair], b: &[Pair], c: *mut f32, edge: Edge) {
            // SAFETY: as above.
            unsafe { add_bf16::<28, 1, 16>(a, b, c, edge) }
        }
    }

    impl Tile for Avx2 {
        type Value = f32;
        const ROWS: usize = 6;
        const COLUMNS: usize = 16;

        unsafe fn add(a: &[f32], b: &[f32], c: *mut f32, edge: Edge) {
            // SAFETY: as above.
            unsafe { add_avx2(a, b, c, edge) }
        }
    }

    /// # Safety
    /// That of [`Tile::add`].
    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
    unsafe fn add_avx512<const ROWS: usize, const VECTORS: usize, const COLUMNS: usize>(
        a: &[f32],
        b: &[f32],
        c: *mut f32,
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
        // SAFETY: the caller's promise.
        unsafe { store(&sums, c, edge) };
    }

    /// # Safety
    /// That of [`Tile::add`].
    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn add_bf16<const ROWS: usize, const VECTORS: usize, const COLUMNS: usize>(
        a: &[Pair],
        b: &[Pair],
        c: *mut f32,
        edge: Edge,
    ) {
        let mut sums: [[__m512; VECTORS]; ROWS] = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLUMNS>().0);
        for (a, b) in a.iter().zip(b) {
            let b: [__m512bh; VECTORS] = std::array::from_fn(|v| {
                // SAFETY: `b` has COLUMNS = 16 * VECTORS pairs, and every bit pattern is a vector.
                unsafe { std::mem::transmute(_mm512_loadu_si512(b.as_ptr().add(16 * v).cast())) }
            });
            for (sums, a) in sums.iter_mut().zip(a) {
                // SAFETY: every bit pattern is a vector.
                let a: __m512bh =
                    unsafe { std::mem::transmute(_mm512_set1_epi32(a.0.cast_signed())) };
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { store(&sums, c, edge) };
    }

    /// Writes the sums of a tile.
    ///
    /// # Safety
    /// That of [`Tile::add`].
    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    #[inline]
    unsafe fn store<const VECTORS: usize>(sums: &[[__m512; VECTORS]], c: *mut f32, edge: Edge) {
        for (i, sums) in sums.iter().enumerate().take(edge.n_rows) {
            for (v, sum) in sums.iter().enumerate() {
                let lanes = edge.n_columns.saturating_sub(16 * v).min(16);
                if lanes == 0 {
                    break;
                }
                let mask = (0xFFFF_u32 >> (16 - lanes)) as u16;
                // SAFETY: the mask keeps to the `lanes` values that the row, and a row that is added, has from 16 * v on.
                unsafe {
                    let at = c.add(i * edge.ldc + 16 * v);
                    let value = match edge.start {
                        Start::Zero => *sum,
                        Start::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), *sum),
                        Start::Row(row) => {
                            let row = _mm512_maskz_loadu_ps(mask, row.as_ptr().add(16 * v));
                            _mm512_add_ps(row, *sum)
                        }
                    };
                    _mm512_mask_storeu_ps(at, mask, value);
                }
            }
        }
    }

    /// # Safety
    /// That of [`Tile::add`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_avx2(a: &[f32], b: &[f32], c: *mut f32, edge: Edge) {
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
        for (i, sums) in sums.iter().enumerate().take(edge.n_rows) {
            let mut values = [0.0_f32; 16];
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `values` has 16.
                unsafe { _mm256_storeu_ps(values.as_mut_ptr().add(8 * v), *sum) };
            }
            // SAFETY: the caller's promise.
            unsafe { leave(c.add(i * edge.ldc), &values, &edge) };
        }
    }

    /// The pairs of two depths; `high` has the length of `low`, or none.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn pairs(low: &[f32], high: &[f32], out: &mut [Pair]) {
        assert!(low.len() >= out.len() && (high.is_empty() || high.len() >= out.len()));
        for first in (0..out.len()).step_by(16) {
            let lanes = (out.len() - first).min(16);
            let mask = (0xFFFF_u32 >> (16 - lanes)) as u16;
            // SAFETY: the mask keeps to the `lanes` values that each has from `first` on; every bit pattern is a vector.
            unsafe {
                let rounded = |values: &[f32]| {
                    let values = _mm512_maskz_loadu_ps(mask, values.as_ptr().add(first));
                    let values = _mm512_cvtneps_pbh(values);
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(values))
                };
                let mut pairs = rounded(low);
                if !high.is_empty() {
                    pairs = _mm512_or_si512(pairs, _mm512_slli_epi32::<16>(rounded(high)));
                }
                _mm512_mask_storeu_epi32(out.as_mut_ptr().add(first).cast(), mask, pairs);
            }
        }
    }
}
