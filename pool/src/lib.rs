//! Threads for the forward pass of inference and for training's kernels, and the only places where they share mutable memory.
//!
//! Both are hundreds of short parallel steps, so workers spin between them and go to sleep only when nothing
//! has come for about a millisecond. Work is claimed piece by piece from a counter, and a worker that the operating
//! system is not running when a step begins is not waited for: the others take its pieces. Which thread takes which
//! piece never changes a result (see "The arithmetic" in ARCHITECTURE.md). On wasm32 there are no threads.
//!
//! The protocol is one word, [`Shared::gate`]: step number, whether the step is open, and how many workers are inside.
//! A worker enters by compare-and-swap while the step is open; the caller closes the step when no piece is left, then waits
//! until nobody is inside. So the borrowed closure outlives every call of it, also when a call panics.

use std::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

/// Polls before a worker sleeps: about a millisecond.
const SPINS_BEFORE_SLEEP: u32 = 30_000;
/// Polls of the caller before it offers its core to a worker that is inside but not running.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Pieces a thread takes from a large step, so that a slow one does not hold up the rest.
const PIECES_PER_THREAD: usize = 4;

/// The same of a step of many small chunks, whose cost may grow from the first to the last.
const CHUNK_PIECES_PER_THREAD: usize = 16;

/// `gate`: bits 0..31 workers inside, bit 31 open, bits 32.. number of the step.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

/// What one step runs: `(thread, piece)`.
pub type Job<'a> = &'a (dyn Fn(usize, usize) + Sync);

struct Shared {
    gate: AtomicU64,
    job: UnsafeCell<Option<Job<'static>>>,
    n_pieces: AtomicUsize,
    next_piece: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    n_sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is the only field that is not `Sync`. It is written by the thread that holds `&mut Pool` while the gate is
// closed with nobody inside, and read by workers only after they entered through the open gate (acquire after release).
unsafe impl Sync for Shared {}

/// Threads that run steps together. The thread that calls is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("n_threads", &self.n_threads())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts `n_threads - 1` workers.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            n_pieces: AtomicUsize::new(0),
            next_piece: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            n_sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
        };
        if cfg!(not(target_family = "wasm")) {
            for thread in 1..n_threads {
                let shared = Arc::clone(&pool.shared);
                let builder = std::thread::Builder::new().name(format!("fledgling-cpu-{thread}"));
                pool.workers
                    .push(builder.spawn(move || shared.work(thread))?);
            }
        }
        Ok(pool)
    }

    /// Threads that take part, the caller among them.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread, piece)` for every `piece` below `n_pieces`, each once, and returns when all are done.
    ///
    /// # Panics
    /// When a piece panicked, after all threads have left the step.
    pub fn run(&mut self, n_pieces: usize, job: Job<'_>) {
        if self.workers.is_empty() || n_pieces == 1 {
            return (0..n_pieces).for_each(|piece| job(0, piece));
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `Step::drop` closes the gate and waits for all workers before `job` can end.
        let job_static = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: the gate is closed and nobody is inside (the last `Step` was dropped), and `&mut self` keeps other callers out.
        unsafe { *shared.job.get() = Some(job_static) };
        shared.n_pieces.store(n_pieces, Ordering::Relaxed);
        shared.next_piece.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        let step = Step::open(shared);
        shared.take_pieces(0, job);
        drop(step);
        let panicked = shared.panicked.load(Ordering::Relaxed);
        assert!(!panicked, "a worker thread panicked; its message is above");
    }

    /// Splits the columns of `out` (`n_cols` wide) in ranges of whole `align`s and runs `f(range, columns, scratch)` for each;
    /// each thread has its own `scratch`.
    ///
    /// # Panics
    /// When `out` is no whole rows, there is not a scratch for each thread, or `f` panics.
    pub fn for_columns<S: Send>(
        &mut self,
        out: &mut [f32],
        n_cols: usize,
        align: usize,
        scratch: &mut [S],
        f: impl Fn(Range<usize>, Columns<'_>, &mut S) + Sync,
    ) {
        assert!(scratch.len() >= self.n_threads(), "scratch for each thread");
        let n_rows = out.len() / n_cols;
        assert_eq!(out.len(), n_rows * n_cols, "whole rows");
        let n_units = n_cols.div_ceil(align);
        // Nobody shares the work of a single thread, and a piece prepares what it reads anew.
        let n_pieces = match self.n_threads() {
            1 => 1,
            n => n_units.min(n * PIECES_PER_THREAD),
        };
        let (out, scratch) = (Exclusive(out.as_mut_ptr()), Exclusive(scratch.as_mut_ptr()));
        let bound = |piece: usize| (piece * n_units / n_pieces * align).min(n_cols);
        self.run(n_pieces, &|thread, piece| {
            let range = bound(piece)..bound(piece + 1);
            // SAFETY: the ranges of different pieces do not overlap and lie within `n_cols`; `out` is borrowed mutably for
            // the whole step, and each piece runs once.
            let columns =
                unsafe { Columns::new(out.get().add(range.start), n_rows, n_cols, range.len()) };
            // SAFETY: a thread runs one piece at a time, and no two threads have the same number.
            let scratch = unsafe { &mut *scratch.get().add(thread) };
            f(range, columns, scratch);
        });
    }

    /// Runs `f(i, chunk)` for every chunk of `chunk_len` elements.
    pub fn for_chunks<T: Send>(
        &mut self,
        out: &mut [T],
        chunk_len: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let mut scratch = vec![(); self.n_threads()];
        self.for_chunks_with(out, chunk_len, &mut scratch, |i, chunk, ()| f(i, chunk));
    }

    /// Runs `f(i, chunk, scratch)` for every chunk of `chunk_len` elements; each thread has its own `scratch`.
    ///
    /// # Panics
    /// When `out` is no whole chunks, there is not a scratch for each thread, or `f` panics.
    pub fn for_chunks_with<T: Send, S: Send>(
        &mut self,
        out: &mut [T],
        chunk_len: usize,
        scratch: &mut [S],
        f: impl Fn(usize, &mut [T], &mut S) + Sync,
    ) {
        assert_eq!(out.len() % chunk_len, 0, "whole chunks");
        assert!(scratch.len() >= self.n_threads(), "scratch for each thread");
        let n_chunks = out.len() / chunk_len;
        let n_pieces = n_chunks.min(self.n_threads() * CHUNK_PIECES_PER_THREAD);
        let (out, scratch) = (Exclusive(out.as_mut_ptr()), Exclusive(scratch.as_mut_ptr()));
        self.run(n_pieces, &|thread, piece| {
            // SAFETY: a thread runs one piece at a time, and no two threads have the same number.
            let scratch = unsafe { &mut *scratch.get().add(thread) };
            for i in piece * n_chunks / n_pieces..(piece + 1) * n_chunks / n_pieces {
                // SAFETY: chunk `i` is of one piece, which runs once, and lies within `out`, which is borrowed mutably for the whole
                // step.
                let chunk = unsafe {
                    std::slice::from_raw_parts_mut(out.get().add(i * chunk_len), chunk_len)
                };
                f(i, chunk, scratch);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its pieces, so it ends in order.
            let _ = worker.join();
        }
    }
}

/// An open step. Dropping it, also by a panic of the caller's own piece, closes the gate and waits for the workers inside.
struct Step<'a>(&'a Shared);

impl<'a> Step<'a> {
    fn open(shared: &'a Shared) -> Self {
        let number = shared.gate.load(Ordering::Relaxed) >> 32;
        // Sequentially consistent with the sleeper's own pair (see `Shared::sleep_until_open`): either it sees the open gate,
        // or we see that it sleeps.
        shared
            .gate
            .store((number.wrapping_add(1) << 32) | OPEN, Ordering::SeqCst);
        if shared.n_sleeping.load(Ordering::SeqCst) > 0 {
            shared.wake_all();
        }
        Self(shared)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        // After a panic of ours, nobody need take what is left.
        if std::thread::panicking() {
            self.0.next_piece.store(usize::MAX / 2, Ordering::Relaxed);
        }
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.gate.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, thread: usize) {
        let mut done = 0;
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let gate = self.gate.load(Ordering::Acquire);
            if gate & OPEN != 0 && gate >> 32 != done {
                if self
                    .gate
                    .compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                {
                    self.take_pieces_of_step(thread);
                    self.gate.fetch_sub(1, Ordering::Release);
                    (done, spins) = (gate >> 32, 0);
                }
            } else if spins < SPINS_BEFORE_SLEEP {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleep_until_open(done);
                spins = 0;
            }
        }
    }

    /// Runs the open step's job; the caller is inside the gate.
    fn take_pieces_of_step(&self, thread: usize) {
        // SAFETY: inside the gate, so the job was written before and is not changed until we leave.
        let job = unsafe { *self.job.get() };
        let Some(job) = job else { return };
        if catch_unwind(AssertUnwindSafe(|| self.take_pieces(thread, job))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    fn take_pieces(&self, thread: usize, job: Job<'_>) {
        let n_pieces = self.n_pieces.load(Ordering::Relaxed);
        loop {
            let piece = self.next_piece.fetch_add(1, Ordering::Relaxed);
            if piece >= n_pieces {
                return;
            }
            job(thread, piece);
        }
    }

    fn sleep_until_open(&self, done: u64) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.n_sleeping.fetch_add(1, Ordering::SeqCst);
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & OPEN != 0 && gate >> 32 != done || self.stop.load(Ordering::SeqCst) {
                break;
            }
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.n_sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_all(&self) {
        // Taken so that a worker between its look at the gate and its wait is not missed.
        let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.wake.notify_all();
    }
}

/// A pointer that threads may share because each uses its own part of what it points to.
struct Exclusive<T>(*mut T);

impl<T> Exclusive<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: the parts that threads use do not overlap (each use says why), and `T: Send` values may be used by another thread.
unsafe impl<T: Send> Sync for Exclusive<T> {}

/// Some columns of a row-major matrix, exclusively. [T, width]
pub struct Columns<'a> {
    start: *mut f32,
    n_rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

impl Columns<'_> {
    /// # Safety
    /// For each `t < n_rows`, the `width` elements from `start + t * stride` are valid and used by nobody else while this lives;
    /// `width <= stride`.
    unsafe fn new(start: *mut f32, n_rows: usize, stride: usize, width: usize) -> Self {
        Self {
            start,
            n_rows,
            stride,
            width,
            matrix: PhantomData,
        }
    }

    /// All columns of a matrix.
    pub fn all(matrix: &mut [f32], n_cols: usize) -> Columns<'_> {
        let n_rows = matrix.len() / n_cols;
        // SAFETY: the slice is borrowed as long and holds `n_rows` rows of `n_cols`.
        unsafe { Columns::new(matrix.as_mut_ptr(), n_rows, n_cols, n_cols) }
    }

    /// Row `t` of these columns. [width]
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_mut(&mut self, t: usize) -> &mut [f32] {
        assert!(t < self.n_rows, "row {t} of {}", self.n_rows);
        // SAFETY: by `new`, and `&mut self` keeps two rows from being borrowed at once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(t * self.stride), self.width) }
    }

    /// The columns `range` of these.
    ///
    /// # Panics
    /// When they are not all there.
    pub fn narrow(&mut self, range: Range<usize>) -> Columns<'_> {
        assert!(
            range.start <= range.end && range.end <= self.width,
            "columns {range:?} of {}",
            self.width
        );
        // SAFETY: a part of what is ours, borrowed from us.
        unsafe {
            Columns::new(
                self.start.add(range.start),
                self.n_rows,
                self.stride,
                range.len(),
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "whole numbers")]
mod tests {
    use super::*;
    use std::time::Duration;

    fn scratch(pool: &Pool) -> Vec<usize> {
        vec![0; pool.n_threads()]
    }

    #[test]
    fn every_piece_runs_once_in_every_step() {
        for n_threads in 1..5 {
            let mut pool = Pool::new(n_threads).unwrap();
            let mut counts = scratch(&pool);
            for step in 0..2000 {
                let mut out = vec![0usize; step % 37];
                pool.for_chunks_with(&mut out, 1, &mut counts, |i, chunk, mine| {
                    chunk[0] += i + 1;
                    *mine += 1;
                });
                assert!(
                    out.iter().enumerate().all(|(i, &x)| x == i + 1),
                    "step {step}: {out:?}"
                );
            }
            assert_eq!(
                counts.iter().sum::<usize>(),
                (0..2000).map(|s| s % 37).sum::<usize>()
            );
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let mut pool = Pool::new(3).unwrap();
        let mut counts = scratch(&pool);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(30));
            let mut out = [0u8; 3];
            // Each piece waits until all three are under way, which needs all three threads.
            let arrived = AtomicUsize::new(0);
            pool.for_chunks_with(&mut out, 1, &mut counts, |_, _, mine| {
                *mine += 1;
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
            });
        }
        assert_eq!(counts, [5, 5, 5]);
    }

    #[test]
    fn columns_are_split_without_gap_or_overlap() {
        let mut pool = Pool::new(3).unwrap();
        for n_cols in [1, 7, 8, 9, 64, 100, 1000] {
            let mut out = vec![0.0f32; 3 * n_cols];
            pool.for_columns(
                &mut out,
                n_cols,
                8,
                &mut [(); 3],
                |range, mut columns, ()| {
                    assert!(range.start % 8 == 0);
                    for t in 0..3 {
                        for (x, c) in columns.row_mut(t).iter_mut().zip(range.clone()) {
                            *x += (t * n_cols + c + 1) as f32;
                        }
                    }
                },
            );
            assert!(
                out.iter().enumerate().all(|(i, &x)| x == (i + 1) as f32),
                "{n_cols} columns"
            );
        }
    }

    #[test]
    fn narrowed_columns_are_the_named_ones() {
        let mut m: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let mut all = Columns::all(&mut m, 4);
        assert_eq!(all.narrow(1..3).row_mut(2), [9.0, 10.0]);
    }

    #[test]
    fn a_panic_in_any_piece_ends_the_step_and_leaves_a_working_pool() {
        let mut pool = Pool::new(3).unwrap();
        let mut counts = scratch(&pool);
        for bad in 0..6 {
            let mut out = [0u8; 6];
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.for_chunks_with(&mut out, 1, &mut counts, |i, _, _| {
                    assert_ne!(i, bad, "on purpose");
                });
            }));
            assert!(result.is_err());
            let mut fine = [0u8; 6];
            pool.for_chunks_with(&mut fine, 1, &mut counts, |_, chunk, _| chunk[0] = 1);
            assert_eq!(fine, [1; 6]);
        }
    }
}
