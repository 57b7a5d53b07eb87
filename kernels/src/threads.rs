//! The threads that the kernels share: one pool for the process, started by the first kernel that wants it.
//!
//! A kernel runs on the calling thread and the pool's workers. When the pool is taken, by another thread or by the
//! kernel that this one is a part of, the calling thread does the work alone; the results are the same.

use fledgling_pool::Pool;
use std::{
    marker::PhantomData,
    mem::MaybeUninit,
    sync::{
        LazyLock, Mutex, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

static POOL: Mutex<Option<Pool>> = Mutex::new(None);
/// 0 until it is set: as many as the machine has cores.
static N_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Sets how many threads kernels use from now on, the calling one among them; 0 takes as many as there are cores.
pub fn set_threads(n: usize) {
    N_THREADS.store(n, Ordering::Relaxed);
    *POOL.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// How many threads kernels use.
pub fn n_threads() -> usize {
    // Asked once: the system reads files for the answer, which at a call for each product took 5 % of a step.
    static N_CORES: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    match N_THREADS.load(Ordering::Relaxed) {
        0 => *N_CORES,
        n => n,
    }
}

/// Runs `f(i)` for every `i` below `n`, each once, on all threads. Returns when all are done.
///
/// # Panics
/// When `f` does.
pub fn each(n: usize, f: impl Fn(usize) + Sync) {
    if n < 2 || n_threads() == 1 {
        return (0..n).for_each(f);
    }
    let guard = match POOL.try_lock() {
        Ok(guard) => Some(guard),
        // What panicked was a kernel's piece, and the pool is whole.
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let Some(mut guard) = guard else {
        return (0..n).for_each(f);
    };
    if guard.is_none() {
        // Without threads the work is still done.
        *guard = Pool::new(n_threads()).or_else(|_| Pool::new(1)).ok();
    }
    match &mut *guard {
        Some(pool) => pool.run(n, &|_, i| f(i)),
        None => (0..n).for_each(f),
    }
}

/// Runs `f(i, part)` for every part, on all threads. [`split`] and [`split_mut`] make parts, and tuples of them are taken
/// side by side.
///
/// # Panics
/// When the members of a tuple have different numbers of parts, or `f` panics.
#[expect(
    clippy::needless_pass_by_value,
    reason = "what is borrowed for writing is given away for the call"
)]
pub fn each_part<P: Parts>(parts: P, f: impl Fn(usize, P::Part) + Sync) {
    each(parts.count(), |i| {
        // SAFETY: `each` takes every number below `count` once, and `parts` outlives the call.
        f(i, unsafe { parts.part(i) });
    });
}

/// `f(i)` for every `i` below `n`, in order, made on all threads.
///
/// # Panics
/// When `f` does.
pub fn map<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut results = Vec::with_capacity(n);
    let places: &mut [MaybeUninit<R>] = &mut results.spare_capacity_mut()[..n];
    each_part(split_mut(places, 1), |i, place| {
        place[0].write(f(i));
    });
    // SAFETY: every place was written; had a part panicked, we would not be here.
    unsafe { results.set_len(n) };
    results
}

/// What falls into parts that threads may take at the same time.
///
/// # Safety
/// Parts with different numbers share no memory that one of them may write.
pub unsafe trait Parts: Sync {
    /// What one call gets.
    type Part;
    /// How many there are.
    fn count(&self) -> usize;
    /// A part.
    ///
    /// # Safety
    /// `i` is below [`Self::count`], and no part is taken twice while the first is in use.
    unsafe fn part(&self, i: usize) -> Self::Part;
}

/// Chunks of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a, T>(&'a [T], usize);

/// Chunks of a slice, to be written.
#[derive(Debug)]
pub struct SplitMut<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    slice: PhantomData<&'a mut [T]>,
}

/// Chunks of `len`, the last of which may be shorter.
///
/// # Panics
/// When `len` is 0.
pub fn split<T: Sync>(slice: &[T], len: usize) -> Split<'_, T> {
    assert!(len > 0, "chunks have a length");
    Split(slice, len)
}

/// As [`split`], to be written.
///
/// # Panics
/// When `len` is 0.
pub fn split_mut<T: Send>(slice: &mut [T], len: usize) -> SplitMut<'_, T> {
    assert!(len > 0, "chunks have a length");
    SplitMut {
        start: slice.as_mut_ptr(),
        len: slice.len(),
        chunk: len,
        slice: PhantomData,
    }
}

// SAFETY: through a shared `SplitMut` one gets chunks that do not overlap, each once (see `Parts`).
unsafe impl<T: Send> Sync for SplitMut<'_, T> {}

// SAFETY: nothing is written.
unsafe impl<'a, T: Sync> Parts for Split<'a, T> {
    type Part = &'a [T];
    fn count(&self) -> usize {
        self.0.len().div_ceil(self.1)
    }
    unsafe fn part(&self, i: usize) -> &'a [T] {
        let start = i * self.1;
        &self.0[start..self.0.len().min(start + self.1)]
    }
}

// SAFETY: chunks do not overlap.
unsafe impl<'a, T: Send> Parts for SplitMut<'a, T> {
    type Part = &'a mut [T];
    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }
    unsafe fn part(&self, i: usize) -> &'a mut [T] {
        let start = i * self.chunk;
        assert!(start < self.len, "there is no part {i}");
        let len = self.chunk.min(self.len - start);
        // SAFETY: the range lies within the slice that is borrowed for 'a, and nobody else has it by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

macro_rules! tuples {
    ($($first:ident $($other:ident)*;)*) => {$(
        // SAFETY: as for each member.
        unsafe impl<$first: Parts, $($other: Parts),*> Parts for ($first, $($other),*) {
            type Part = ($first::Part, $($other::Part),*);
            #[expect(non_snake_case, reason = "members are named by their types")]
            fn count(&self) -> usize {
                let ($first, $($other),*) = self;
                let n = $first.count();
                $(assert_eq!(n, $other.count(), "the slices have different numbers of parts");)*
                n
            }
            #[expect(non_snake_case, reason = "as above")]
            unsafe fn part(&self, i: usize) -> Self::Part {
                let ($first, $($other),*) = self;
                // SAFETY: the caller's promise, for each.
                unsafe { ($first.part(i), $($other.part(i)),*) }
            }
        }
    )*};
}
tuples! {
    A B;
    A B C;
    A B C D;
    A B C D E;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_taken_once_with_its_neighbours() {
        for n in [0, 1, 7, 64, 1000] {
            let from: Vec<usize> = (0..n).collect();
            let (mut to, mut owner) = (vec![0; n], vec![usize::MAX; n]);
            each_part(
                (
                    split_mut(&mut to, 7),
                    split(&from, 7),
                    split_mut(&mut owner, 7),
                ),
                |i, (to, from, owner)| {
                    to.copy_from_slice(from);
                    owner.fill(i);
                },
            );
            assert_eq!(to, from);
            assert!(owner.iter().enumerate().all(|(at, &i)| i == at / 7));
        }
    }

    #[test]
    fn results_are_in_order_also_within_a_part_of_another_kernel() {
        let nested = map(9, |i| map(5, |j| format!("{i}{j}")));
        for (i, row) in nested.iter().enumerate() {
            assert_eq!(*row, (0..5).map(|j| format!("{i}{j}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_leaves_working_threads() {
        let panics = std::panic::catch_unwind(|| each(16, |i| assert_ne!(i, 11, "on purpose")));
        assert!(panics.is_err());
        assert_eq!(map(16, |i| i), (0..16).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "different numbers of parts")]
    fn slices_that_do_not_fit_each_other_are_refused() {
        each_part((split(&[1, 2, 3], 1), split(&[1, 2], 1)), |_, _| {});
    }
}
