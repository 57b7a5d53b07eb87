//! Sixteen rows of blocks, unpacked with a row in each 32-bit lane.

use crate::{
    cpu::kernels::{BLOCK, Digits},
    quant::{
        Block, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    },
};
use std::{arch::x86_64::*, mem::offset_of, ops::Range};

/// Rows of weights that one step takes.
pub(super) const ROWS: usize = 16;

/// The same block of sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<W> {
    /// Of rows 0, 4, 8 and 12: few pointers, from which the others are an address away.
    fourths: [*const W; 4],
    row_bytes: usize,
}

impl<W: Block> Rows<W> {
    /// The first blocks of sixteen rows from `first`, `row_bytes` apart.
    pub(super) fn new(first: *const u8, row_bytes: usize) -> Self {
        let fourth = |i: usize| first.wrapping_add(4 * i * row_bytes).cast();
        Self {
            fourths: [fourth(0), fourth(1), fourth(2), fourth(3)],
            row_bytes,
        }
    }

    /// The blocks behind these.
    pub(super) fn next(self) -> Self {
        let [a, b, c, d] = self.fourths;
        Self {
            fourths: [
                a.wrapping_add(1),
                b.wrapping_add(1),
                c.wrapping_add(1),
                d.wrapping_add(1),
            ],
            row_bytes: self.row_bytes,
        }
    }

    /// The block of row `i`, by its bytes.
    #[inline(always)]
    fn row(&self, i: usize) -> *const u8 {
        let fourth = self.fourths[i / 4].cast::<u8>();
        fourth.wrapping_add(i % 4 * self.row_bytes)
    }
}

/// A quantised type that products read, in parts of 32 elements.
///
/// # Safety
/// The functions use the table's instructions; `rows` are blocks that may be read, and `s` is below [`Self::PARTS`].
pub(super) trait Weight: Block {
    /// Parts of a block.
    const PARTS: usize = Self::LEN / BLOCK;
    /// Whether a part has a minimum that is added (`Q4_1`).
    const HAS_MIN: bool;
    /// What is subtracted from each integer as it is unpacked (`Q4_0`: 8).
    const OFFSET: i32 = 0;
    /// What the parts' scales are made of.
    type Scales: Copy;
    /// Reads them.
    unsafe fn scales(rows: &Rows<Self>) -> Self::Scales;
    /// The scales of part `s`.
    unsafe fn scale(scales: &Self::Scales, s: usize) -> __m512;
    /// What is added to part `s`, where [`Self::HAS_MIN`].
    unsafe fn min(scales: &Self::Scales, s: usize) -> __m512;
    /// The integers of part `s`, not negative: vector j has elements 4j to 4j + 3, a row in each 32-bit lane.
    unsafe fn bytes(rows: &Rows<Self>, s: usize) -> Bytes;
    /// The same as i16: vector p has elements 2p and 2p + 1.
    #[inline(always)]
    unsafe fn pairs(rows: &Rows<Self>, _: &Self::Scales, s: usize) -> Pairs {
        // SAFETY: passed on.
        unsafe { widen(Self::bytes(rows, s)) }
    }
    /// The block sums of part `s` from its bytes: of [`Self::pairs`] less [`Self::OFFSET`], with `x`.
    #[inline(always)]
    unsafe fn isum(bytes: &Bytes, _: &Self::Scales, _: usize, x: &Digits) -> __m512i {
        // SAFETY: passed on.
        unsafe {
            let sum = dot(bytes, x, 0..BLOCK / 4);
            _mm512_sub_epi32(sum, _mm512_set1_epi32(Self::OFFSET * x.sum))
        }
    }
}

/// Sums of products of bytes with the same elements of `x`, for dwords `range`.
#[inline(always)]
unsafe fn dot(bytes: &Bytes, x: &Digits, range: Range<usize>) -> __m512i {
    // SAFETY: the instructions by the caller; four bytes of 32.
    unsafe {
        let four = |digits: &[i8; BLOCK], j: usize| {
            let four = digits.as_ptr().add(4 * j).cast::<[i8; 4]>().read();
            _mm512_set1_epi32(bytemuck::cast(four))
        };
        let mut high = _mm512_setzero_si512();
        let mut low = _mm512_setzero_si512();
        for j in range {
            high = _mm512_dpbusd_epi32(high, bytes[j], four(&x.high, j));
            low = _mm512_dpbusd_epi32(low, bytes[j], four(&x.low, j));
        }
        _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
    }
}

/// 32 elements of sixteen rows as i16. [pair, row, 2]
pub(super) type Pairs = [__m512i; BLOCK / 2];

/// The same as bytes. [element / 4, row, 4]
pub(super) type Bytes = [__m512i; BLOCK / 4];

/// `_mm*_setr_*` of a value of each row.
macro_rules! each_row {
    ($set:ident, $value:expr) => {
        $set(
            $value(0),
            $value(1),
            $value(2),
            $value(3),
            $value(4),
            $value(5),
            $value(6),
            $value(7),
            $value(8),
            $value(9),
            $value(10),
            $value(11),
            $value(12),
            $value(13),
            $value(14),
            $value(15),
        )
    };
}

/// The f16 at `offset` of each row's block.
#[inline(always)]
unsafe fn halves<W: Block>(rows: &Rows<W>, offset: usize) -> __m512 {
    // SAFETY: within the blocks by the caller.
    unsafe {
        let half = |i| rows.row(i).add(offset).cast::<i16>().read_unaligned();
        _mm512_cvtph_ps(each_row!(_mm256_setr_epi16, half))
    }
}

/// The 32 bits at `offset` of each row's block.
#[inline(always)]
unsafe fn words<W: Block>(rows: &Rows<W>, offset: usize) -> __m512i {
    // SAFETY: within the blocks by the caller.
    unsafe {
        let word = |i| rows.row(i).add(offset).cast::<i32>().read_unaligned();
        each_row!(_mm512_setr_epi32, word)
    }
}

/// The sixteen bytes at `offset` of each row's block, four to a vector. [4, row, 4]
#[inline(always)]
unsafe fn sixteen<W: Block>(rows: &Rows<W>, offset: usize) -> [__m512i; 4] {
    // SAFETY: within the blocks by the caller.
    unsafe {
        let [a, b, c, d] = [
            lanes(rows, 0, offset),
            lanes(rows, 1, offset),
            lanes(rows, 2, offset),
            lanes(rows, 3, offset),
        ];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ef, gh),
            _mm512_unpackhi_epi64(ef, gh),
        ]
    }
}

/// Sixteen bytes of rows i, i + 4, i + 8 and i + 12.
#[inline(always)]
unsafe fn lanes<W: Block>(rows: &Rows<W>, i: usize, offset: usize) -> __m512i {
    // SAFETY: within the blocks by the caller.
    unsafe {
        let a = _mm_loadu_si128(rows.row(i).add(offset).cast());
        let b = _mm_loadu_si128(rows.row(i + 4).add(offset).cast());
        let c = _mm_loadu_si128(rows.row(i + 8).add(offset).cast());
        let d = _mm_loadu_si128(rows.row(i + 12).add(offset).cast());
        let ab = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
        let abc = _mm512_inserti32x4::<2>(_mm512_castsi256_si512(ab), c);
        _mm512_inserti32x4::<3>(abc, d)
    }
}

/// The 32 bytes at `offset` of each row's block.
#[inline(always)]
unsafe fn thirty_two<W: Block>(rows: &Rows<W>, offset: usize) -> Bytes {
    // SAFETY: passed on.
    unsafe {
        let [a, b, c, d] = sixteen(rows, offset);
        let [e, f, g, h] = sixteen(rows, offset + 16);
        [a, b, c, d, e, f, g, h]
    }
}

/// The nibbles of the sixteen bytes at `offset`: low ones are elements 0..16, high ones 16..32.
#[inline(always)]
unsafe fn nibbles<W: Block>(rows: &Rows<W>, offset: usize) -> Bytes {
    // SAFETY: passed on.
    unsafe {
        let [a, b, c, d] = sixteen(rows, offset);
        [
            low(a),
            low(b),
            low(c),
            low(d),
            high(a),
            high(b),
            high(c),
            high(d),
        ]
    }
}

/// The low nibble of each byte.
#[inline(always)]
unsafe fn low(bytes: __m512i) -> __m512i {
    // SAFETY: the instructions by the caller.
    unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
}

/// The high nibble of each byte.
#[inline(always)]
unsafe fn high(bytes: __m512i) -> __m512i {
    // SAFETY: the instructions by the caller.
    unsafe { low(_mm512_srli_epi16::<4>(bytes)) }
}

/// Unsigned bytes to i16.
#[inline(always)]
unsafe fn widen(bytes: Bytes) -> Pairs {
    // SAFETY: the instructions by the caller.
    unsafe {
        // An index with its highest bit set gives zero.
        let first = _mm512_set4_epi32(
            0x800d_800c_u32 as i32,
            0x8009_8008_u32 as i32,
            0x8005_8004_u32 as i32,
            0x8001_8000_u32 as i32,
        );
        let second = _mm512_or_si512(first, _mm512_set1_epi16(2));
        let mut pairs = [_mm512_setzero_si512(); BLOCK / 2];
        for (i, bytes) in bytes.into_iter().enumerate() {
            pairs[2 * i] = _mm512_shuffle_epi8(bytes, first);
            pairs[2 * i + 1] = _mm512_shuffle_epi8(bytes, second);
        }
        pairs
    }
}

/// Sets the fifth bit of element i where bit i of the word at `offset` is set.
#[inline(always)]
unsafe fn add_fifths<W: Block>(mut nibbles: Bytes, rows: &Rows<W>, offset: usize) -> Bytes {
    // SAFETY: passed on.
    unsafe {
        let word = words(rows, offset);
        let (even, odd) = (
            _mm512_set1_epi32(0x0804_0201),
            _mm512_set1_epi32(0x8040_2010_u32 as i32),
        );
        let byte_of_word = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
        for (i, nibbles) in nibbles.iter_mut().enumerate() {
            let at = _mm512_add_epi8(byte_of_word, _mm512_set1_epi8(i as i8 / 2));
            let is_set = _mm512_test_epi8_mask(
                _mm512_shuffle_epi8(word, at),
                if i % 2 == 0 { even } else { odd },
            );
            *nibbles = _mm512_mask_add_epi8(*nibbles, is_set, *nibbles, _mm512_set1_epi8(16));
        }
        nibbles
    }
}

/// Types of blocks of 32, by their scale and, where there is one, their minimum.
macro_rules! blocks_of_32 {
    ($($name:ident, offset $offset:expr, min $min:expr, |$rows:ident| $unpack:expr;)*) => {$(
        impl Weight for $name {
            const HAS_MIN: bool = $min.is_some();
            const OFFSET: i32 = $offset;
            type Scales = (__m512, __m512);
            #[inline(always)]
            unsafe fn scales(rows: &Rows<Self>) -> (__m512, __m512) {
                // SAFETY: passed on.
                unsafe {
                    let d = halves(rows, offset_of!(Self, d));
                    let min: Option<usize> = $min;
                    (d, min.map_or(d, |min| halves(rows, min)))
                }
            }
            #[inline(always)]
            unsafe fn scale(&(d, _): &(__m512, __m512), _: usize) -> __m512 {
                d
            }
            #[inline(always)]
            unsafe fn min(&(_, m): &(__m512, __m512), _: usize) -> __m512 {
                m
            }
            #[inline(always)]
            unsafe fn bytes($rows: &Rows<Self>, _: usize) -> Bytes {
                // SAFETY: passed on.
                unsafe { $unpack }
            }
        }
    )*};
}

/// No minimum.
const NO: Option<usize> = None;

blocks_of_32! {
    BlockQ8_0, offset 128, min NO, |rows| unsigned(thirty_two(rows, offset_of!(Self, qs)));
    BlockQ4_0, offset 8, min NO, |rows| nibbles(rows, offset_of!(Self, qs));
    BlockQ4_1, offset 0, min Some(offset_of!(Self, m)), |rows| nibbles(rows, offset_of!(Self, qs));
    BlockQ5_0, offset 16, min NO, |rows| add_fifths(nibbles(rows, offset_of!(Self, qs)), rows, offset_of!(Self, qh));
    BlockQ5_1, offset 0, min Some(offset_of!(Self, m)), |rows| {
        add_fifths(nibbles(rows, offset_of!(Self, qs)), rows, offset_of!(Self, qh))
    };
}

/// Signed bytes plus 128.
#[inline(always)]
unsafe fn unsigned(mut bytes: Bytes) -> Bytes {
    for bytes in &mut bytes {
        // SAFETY: the instructions by the caller.
        *bytes = unsafe { _mm512_xor_si512(*bytes, _mm512_set1_epi8(-128)) };
    }
    bytes
}

/// Scales and minima of super-blocks.
#[derive(Clone, Copy)]
pub(super) struct SuperScales {
    d: __m512,
    /// Minus `dmin`.
    min: __m512,
    /// Scales of parts 0..4 and 4..8, a byte each.
    scales: [__m512i; 2],
    /// Minima of the same.
    mins: [__m512i; 2],
}

impl SuperScales {
    /// `get_scale_min_k4` for four parts at a time. Offsets are those of the fields.
    #[inline(always)]
    unsafe fn new<W: Block>(rows: &Rows<W>, d: usize, dmin: usize, scales: usize) -> Self {
        // SAFETY: passed on.
        unsafe {
            let (a, b, c) = (
                words(rows, scales),
                words(rows, scales + 4),
                words(rows, scales + 8),
            );
            let six = _mm512_set1_epi32(0x3f3f_3f3f);
            // The upper two of eight bits, as bits four and five.
            let top = _mm512_set1_epi32(0x3030_3030);
            let (top_a, top_b) = (
                _mm512_and_si512(_mm512_srli_epi32::<2>(a), top),
                _mm512_and_si512(_mm512_srli_epi32::<2>(b), top),
            );
            Self {
                d: halves(rows, d),
                min: _mm512_xor_ps(halves(rows, dmin), _mm512_set1_ps(-0.0)),
                scales: [_mm512_and_si512(a, six), _mm512_or_si512(low(c), top_a)],
                mins: [_mm512_and_si512(b, six), _mm512_or_si512(high(c), top_b)],
            }
        }
    }

    /// Byte `s` of eight, in each row.
    #[inline(always)]
    unsafe fn byte(words: [__m512i; 2], s: usize) -> __m512 {
        // SAFETY: the instructions by the caller.
        unsafe {
            let shifted = _mm512_srl_epi32(words[s / 4], _mm_cvtsi32_si128(8 * (s as i32 % 4)));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff)))
        }
    }
}

/// The K types with scales and minima of six bits.
macro_rules! super_scales {
    ($($name:ident, |$rows:ident, $s:ident| $unpack:expr;)*) => {$(
        impl Weight for $name {
            const HAS_MIN: bool = true;
            type Scales = SuperScales;
            #[inline(always)]
            unsafe fn scales(rows: &Rows<Self>) -> SuperScales {
                // SAFETY: passed on.
                unsafe {
                    SuperScales::new(rows, offset_of!(Self, d), offset_of!(Self, dmin), offset_of!(Self, scales))
                }
            }
            #[inline(always)]
            unsafe fn scale(x: &SuperScales, s: usize) -> __m512 {
                // SAFETY: passed on.
                unsafe { _mm512_mul_ps(x.d, SuperScales::byte(x.scales, s)) }
            }
            #[inline(always)]
            unsafe fn min(x: &SuperScales, s: usize) -> __m512 {
                // SAFETY: passed on.
                unsafe { _mm512_mul_ps(x.min, SuperScales::byte(x.mins, s)) }
            }
            #[inline(always)]
            unsafe fn bytes($rows: &Rows<Self>, $s: usize) -> Bytes {
                // SAFETY: passed on.
                unsafe { $unpack }
            }
        }
    )*};
}

super_scales! {
    BlockQ4K, |rows, s| four_bits(rows, offset_of!(Self, qs) + 32 * (s / 2), 4 * (s % 2));
    BlockQ5K, |rows, s| {
        let nibbles = four_bits(rows, offset_of!(Self, qs) + 32 * (s / 2), 4 * (s % 2));
        add_bits(nibbles, rows, offset_of!(Self, qh), s, 1)
    };
}

/// Four bits, from `bit` on, of each of the 32 bytes at `offset`.
#[inline(always)]
unsafe fn four_bits<W: Block>(rows: &Rows<W>, offset: usize, bit: usize) -> Bytes {
    // SAFETY: passed on.
    unsafe {
        let mut bytes = thirty_two(rows, offset);
        let bit = _mm_cvtsi32_si128(bit as i32);
        for bytes in &mut bytes {
            *bytes = low(_mm512_srl_epi16(*bytes, bit));
        }
        bytes
    }
}

/// Puts the bits of `mask`, from `bit` on, of each of the 32 bytes at `offset` above the four bits that are there.
#[inline(always)]
unsafe fn add_bits<W: Block>(
    mut four: Bytes,
    rows: &Rows<W>,
    offset: usize,
    bit: usize,
    mask: i8,
) -> Bytes {
    // SAFETY: passed on.
    unsafe {
        let bit = _mm_cvtsi32_si128(bit as i32);
        for (four, bytes) in four.iter_mut().zip(thirty_two(rows, offset)) {
            let bits = _mm512_and_si512(_mm512_srl_epi16(bytes, bit), _mm512_set1_epi8(mask));
            // Bits stay within their byte.
            *four = _mm512_or_si512(*four, _mm512_slli_epi16::<4>(bits));
        }
        four
    }
}

/// Scale, and the scales of sub-blocks of sixteen: four to a vector, a byte each.
pub(super) type SixteenScales = (__m512, [__m512i; 4]);

impl Weight for BlockQ6K {
    const HAS_MIN: bool = false;
    type Scales = SixteenScales;
    #[inline(always)]
    unsafe fn scales(rows: &Rows<Self>) -> SixteenScales {
        // SAFETY: passed on.
        unsafe {
            let scales = sixteen(rows, offset_of!(Self, scales));
            (halves(rows, offset_of!(Self, d)), scales)
        }
    }
    #[inline(always)]
    unsafe fn scale(&(d, _): &SixteenScales, _: usize) -> __m512 {
        d
    }
    #[inline(always)]
    unsafe fn min(&(d, _): &SixteenScales, _: usize) -> __m512 {
        d
    }
    /// Six bits, without what is subtracted.
    #[inline(always)]
    unsafe fn bytes(rows: &Rows<Self>, s: usize) -> Bytes {
        let (half, k) = (s / 4, s % 4);
        // SAFETY: passed on.
        unsafe {
            let low = four_bits(
                rows,
                offset_of!(Self, ql) + 64 * half + 32 * (k % 2),
                4 * (k / 2),
            );
            add_bits(low, rows, offset_of!(Self, qh) + 32 * half, 2 * k, 3)
        }
    }
    /// Times the scales of the sub-blocks.
    #[inline(always)]
    unsafe fn pairs(rows: &Rows<Self>, (_, scales): &SixteenScales, s: usize) -> Pairs {
        // SAFETY: passed on.
        unsafe {
            let mut pairs = widen(Self::bytes(rows, s));
            for (i, pair) in pairs.iter_mut().enumerate() {
                let scale = sub_scale(scales, 2 * s + i / 8);
                let q = _mm512_sub_epi16(*pair, _mm512_set1_epi16(32));
                *pair = _mm512_mullo_epi16(q, scale);
            }
            pairs
        }
    }
    #[inline(always)]
    unsafe fn isum(bytes: &Bytes, (_, scales): &SixteenScales, s: usize, x: &Digits) -> __m512i {
        // SAFETY: passed on.
        unsafe {
            let first = sub_sum(dot(bytes, x, 0..4), x.first_sum, scales, 2 * s);
            let second = sub_sum(dot(bytes, x, 4..8), x.sum - x.first_sum, scales, 2 * s + 1);
            _mm512_add_epi32(first, second)
        }
    }
}

/// The sum of products of sub-block `u` times its scale, from the sum with the bytes and the sum of x.
#[inline(always)]
unsafe fn sub_sum(dot: __m512i, sum: i32, scales: &[__m512i; 4], u: usize) -> __m512i {
    // SAFETY: passed on.
    unsafe {
        let q = _mm512_sub_epi32(dot, _mm512_set1_epi32(32 * sum));
        _mm512_mullo_epi32(q, _mm512_srai_epi32::<16>(sub_scale(scales, u)))
    }
}

/// The signed byte `u` of sixteen of each row, twice as i16.
#[inline(always)]
unsafe fn sub_scale(scales: &[__m512i; 4], u: usize) -> __m512i {
    // SAFETY: the instructions by the caller.
    unsafe {
        let index = _mm512_set4_epi32(0x0c80_0c80, 0x0880_0880, 0x0480_0480, 0x0080_0080);
        // Byte u of the word, above a zero.
        let index = _mm512_add_epi8(index, _mm512_set1_epi16((u as i16 % 4) << 8));
        _mm512_srai_epi16::<8>(_mm512_shuffle_epi8(scales[u / 4], index))
    }
}
