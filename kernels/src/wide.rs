//! Plain loops compiled for wide vectors.

use crate::Isa;

/// Calls `f`, compiled for the widest vectors of this CPU where it is inlined (give it `#[inline(always)]`). The results
/// are the same bits: the compiler neither reorders sums nor fuses multiplications with additions.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "the loops in `f` must meet the target features"
)]
pub fn wide<R>(f: impl FnOnce() -> R) -> R {
    match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `best` is available.
        Isa::Avx512 => unsafe { x86::avx512(f) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::avx2(f) },
        _ => f(),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}
