//! One generation at a time, first come first served, on a thread of its own.
//!
//! The queue is bounded: who finds it full is refused at once and can try elsewhere. A client that goes away takes its
//! job with it: a waiting job is dropped, a running one ends within a token. A panic inside a job ends that job alone.

use fledgling_core::generate::{FinishReason, Generation, Step};
use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What a client hears of its job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The prompt is read; so many of its tokens were still known from the job before.
    Prefilled { n_cached: usize },
    /// A token; `n_tokens` of the answer so far, without an end token.
    Step { step: Step, n_tokens: usize },
    /// The job failed. The log says why.
    Failed,
}

/// Runs jobs: the CPU engine, or a stand-in in tests.
pub(crate) trait Runner: Send + 'static {
    /// Runs `job` until it finishes or nobody listens any more.
    ///
    /// # Errors
    /// What the log should say.
    fn run(&mut self, job: &mut Job) -> Result<(), String>;
}

/// A generation and the client that waits for it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) generation: Generation,
    request_id: String,
    events: UnboundedSender<Event>,
    counters: Arc<Counters>,
    enqueued: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    n_cached: usize,
    finished: bool,
}

impl Job {
    /// Whether the client has gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Says that the prompt is read.
    pub(crate) fn prefilled(&mut self, n_cached: usize) {
        self.n_cached = n_cached;
        // A client that has gone is noticed at the next step.
        let _ = self.events.send(Event::Prefilled { n_cached });
    }

    /// Passes a step on; false when there is nobody to go on for.
    pub(crate) fn step(&mut self, step: Step) -> bool {
        self.first_token.get_or_insert_with(Instant::now);
        self.counters.generated_tokens.fetch_add(1, Relaxed);
        let finish = step.finish;
        if let Some(finish) = finish {
            // Before the client hears of it: Lambda freezes the process once the answer is complete.
            self.finished = true;
            self.log(match finish {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
            });
        }
        let n_tokens = self.generation.tokens().len();
        let heard = self.events.send(Event::Step { step, n_tokens }).is_ok();
        heard && finish.is_none()
    }

    fn fail(&self, reason: &str) {
        tracing::error!(request_id = self.request_id, reason, "generation failed");
        self.counters.failed.fetch_add(1, Relaxed);
        let _ = self.events.send(Event::Failed);
    }

    /// One line a job; never a word of the prompt or the answer.
    fn log(&self, outcome: &str) {
        let ms = |to: Option<Instant>, from: Instant| {
            to.map(|to| to.duration_since(from).as_millis() as u64)
        };
        tracing::info!(
            request_id = self.request_id,
            outcome,
            prompt_tokens = self.generation.prompt().len(),
            cached_tokens = self.n_cached,
            completion_tokens = self.generation.tokens().len(),
            queue_ms = ms(self.started, self.enqueued),
            first_token_ms = ms(self.first_token, self.enqueued),
            total_ms = ms(Some(Instant::now()), self.enqueued),
            "generation"
        );
    }
}

/// What the worker has done since it started.
#[derive(Debug, Default)]
struct Counters {
    generated_tokens: AtomicU64,
    completed: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    rejected: AtomicU64,
}

/// A reading of the server's counters, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Generations under way: 0 or 1.
    pub running: usize,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Generations that came to their end.
    pub completed: u64,
    /// Generations that ended because their client went away.
    pub cancelled: u64,
    /// Generations that failed by our fault.
    pub failed: u64,
    /// Requests refused because the queue was full.
    pub rejected: u64,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueFull {
    /// Jobs that wait.
    pub(crate) n_waiting: usize,
}

/// The thread's handle. Dropping it ends the thread after the job under way.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    max_waiting: usize,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running: bool,
    closed: bool,
}

impl Worker {
    /// Starts the thread; at most `max_waiting` jobs wait behind the one that runs.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(runner: impl Runner, max_waiting: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("generation".into())
            .spawn(move || of_thread.work(runner))?;
        Ok(Self {
            shared,
            max_waiting,
        })
    }

    /// Whether a job would be taken now. Cheap; lets a request fail before its prompt is encoded.
    ///
    /// # Errors
    /// When it would not.
    pub(crate) fn check_room(&self) -> Result<(), QueueFull> {
        let mut queue = self.shared.lock();
        self.room(&mut queue)
    }

    /// Puts a generation at the end of the queue. Dropping the receiver cancels it.
    ///
    /// # Errors
    /// When the queue is full.
    pub(crate) fn submit(
        &self,
        generation: Generation,
        request_id: String,
    ) -> Result<UnboundedReceiver<Event>, QueueFull> {
        // Unbounded, so that a client that reads slowly does not hold up the others; the context bounds it.
        let (events, receiver) = unbounded_channel();
        let job = Job {
            generation,
            request_id,
            events,
            counters: Arc::clone(&self.shared.counters),
            enqueued: Instant::now(),
            started: None,
            first_token: None,
            n_cached: 0,
            finished: false,
        };
        let mut queue = self.shared.lock();
        self.room(&mut queue)?;
        queue.waiting.push_back(job);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(receiver)
    }

    /// Reads the counters.
    pub(crate) fn stats(&self) -> Stats {
        let queue = self.shared.lock();
        let counters = &self.shared.counters;
        Stats {
            running: usize::from(queue.running),
            waiting: queue
                .waiting
                .iter()
                .filter(|job| !job.is_abandoned())
                .count(),
            generated_tokens: counters.generated_tokens.load(Relaxed),
            completed: counters.completed.load(Relaxed),
            cancelled: counters.cancelled.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            rejected: counters.rejected.load(Relaxed),
        }
    }

    fn room(&self, queue: &mut Queue) -> Result<(), QueueFull> {
        self.shared.drop_abandoned(queue);
        let n_waiting = queue.waiting.len();
        // A job that waits for an idle worker is about to run: it takes no place in the queue.
        let places = self.max_waiting + usize::from(!queue.running);
        if n_waiting >= places {
            self.shared.counters.rejected.fetch_add(1, Relaxed);
            return Err(QueueFull { n_waiting });
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// The queue is consistent at every point where a panic can happen, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back the places of clients that have gone.
    fn drop_abandoned(&self, queue: &mut Queue) {
        queue.waiting.retain(|job| {
            let is_abandoned = job.is_abandoned();
            if is_abandoned {
                self.cancelled(job);
            }
            !is_abandoned
        });
    }

    fn cancelled(&self, job: &Job) {
        self.counters.cancelled.fetch_add(1, Relaxed);
        job.log("cancelled");
    }

    fn work(&self, mut runner: impl Runner) {
        while let Some(mut job) = self.next() {
            job.started = Some(Instant::now());
            // After a panic the runner starts over from a state that it did not lend to the job.
            let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(&mut job)));
            match outcome {
                Ok(Ok(())) if job.finished => {
                    self.counters.completed.fetch_add(1, Relaxed);
                }
                Ok(Ok(())) => self.cancelled(&job),
                Ok(Err(reason)) => job.fail(&reason),
                Err(_) => job.fail("panic"),
            }
        }
    }

    /// Waits for the next job whose client is still there; `None` when the handle is gone.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        queue.running = false;
        loop {
            if queue.closed {
                return None;
            }
            self.drop_abandoned(&mut queue);
            match queue.waiting.pop_front() {
                Some(job) => {
                    queue.running = true;
                    return Some(job);
                }
                None => {
                    queue = self
                        .changed
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}
