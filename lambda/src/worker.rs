//! The thread that runs all jobs together, and the bounded queue before it.
//!
//! Who finds the queue full is refused at once and can try elsewhere. A client that goes away takes its jobs with it: those that wait are
//! dropped, those under way end before the next forward pass. A panic ends the job that it is of, alone.

use crate::{
    batch::{Batch, Forward, Limits},
    job::{Caller, Event, Job, Work},
    metrics::{Counters, Stats, prometheus},
    observed::Observer,
};
use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueFull {
    /// Jobs under way.
    pub(crate) n_running: usize,
    /// Jobs that wait.
    pub(crate) n_waiting: usize,
    /// When it is worth another try.
    pub(crate) retry_after_s: u32,
}

/// The thread's handle. Dropping it ends the thread after the jobs under way.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    limits: Limits,
    max_waiting: usize,
    timeout: Option<Duration>,
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
    n_running: usize,
    closed: bool,
}

impl Worker {
    /// Starts the thread; at most `max_waiting` jobs wait behind those that run. Answers end after `timeout` with what they have.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(
        forward: impl Forward,
        limits: Limits,
        max_waiting: usize,
        timeout: Option<Duration>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("generation".into())
            .spawn(move || of_thread.run(forward, limits))?;
        Ok(Self {
            shared,
            limits,
            max_waiting,
            timeout,
        })
    }

    /// Whether a request would be taken now. Cheap; lets it fail before its prompt is encoded.
    ///
    /// # Errors
    /// When it would not.
    pub(crate) fn check_room(&self) -> Result<(), QueueFull> {
        let mut queue = self.shared.lock();
        self.room(&mut queue)
    }

    /// Puts the jobs of a request at the end of the queue, all or none. Dropping the receiver cancels them.
    ///
    /// A request is taken while there is one place: its number of choices is bounded, and it would never be taken otherwise.
    ///
    /// # Errors
    /// When the queue is full.
    pub(crate) fn submit(
        &self,
        works: Vec<Work>,
        request_id: String,
        observer: Observer,
    ) -> Result<UnboundedReceiver<Event>, QueueFull> {
        // Unbounded, so that a client that reads slowly does not hold up the others; the context bounds it.
        let (events, receiver) = unbounded_channel();
        let now = Instant::now();
        let caller = Arc::new(Caller {
            request_id,
            observer,
            events,
            counters: Arc::clone(&self.shared.counters),
            enqueued: now,
            deadline: self.timeout.map(|timeout| now + timeout),
        });
        let mut queue = self.shared.lock();
        self.room(&mut queue)?;
        let jobs = works.into_iter().enumerate();
        let jobs = jobs.map(|(choice, work)| Job::new(choice, work, Arc::clone(&caller)));
        queue.waiting.extend(jobs);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(receiver)
    }

    /// Reads the counters.
    pub(crate) fn stats(&self) -> Stats {
        let queue = self.shared.lock();
        let waiting = queue.waiting.iter().filter(|job| !job.is_abandoned());
        Stats::of(&self.shared.counters, queue.n_running, waiting.count())
    }

    /// All figures as Prometheus reads them.
    pub(crate) fn prometheus(&self) -> String {
        prometheus(self.stats(), &self.shared.counters)
    }

    /// Whether another request would be taken, without counting it as refused.
    pub(crate) fn is_ready(&self) -> bool {
        let queue = self.shared.lock();
        !queue.closed && queue.waiting.len() < self.places(&queue)
    }

    /// A job that waits for an idle worker is about to run: it takes no place in the queue.
    fn places(&self, queue: &Queue) -> usize {
        self.max_waiting + self.limits.max_running.saturating_sub(queue.n_running)
    }

    fn room(&self, queue: &mut Queue) -> Result<(), QueueFull> {
        drop_abandoned(queue);
        let n_waiting = queue.waiting.len();
        if n_waiting < self.places(queue) {
            return Ok(());
        }
        let counters = &self.shared.counters;
        counters.rejected.add(1);
        Err(QueueFull {
            n_running: queue.n_running,
            n_waiting,
            retry_after_s: counters.wait_s(n_waiting + 1, self.limits.max_running),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// Gives back the places of clients that have gone.
fn drop_abandoned(queue: &mut Queue) {
    queue.waiting.retain(|job| !job.is_abandoned());
}

impl Shared {
    /// The queue is consistent at every point where a panic can happen, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, forward: impl Forward, limits: Limits) {
        let mut batch = Batch::new(forward, limits);
        // A panic of the engine stays in its job; one of the batch itself costs those under way.
        while catch_unwind(AssertUnwindSafe(|| self.work(&mut batch))).is_err() {
            batch.fail_all();
        }
    }

    /// Runs until the handle is gone.
    fn work<F: Forward>(&self, batch: &mut Batch<F>) {
        while self.admit(batch) {
            let made_room = batch.step(&self.counters);
            if !made_room.is_empty() {
                let mut queue = self.lock();
                for job in made_room {
                    queue.waiting.push_front(job);
                }
            }
        }
    }

    /// Lets jobs join while there is room, and waits for one when none is under way; false when the handle is gone.
    fn admit<F: Forward>(&self, batch: &mut Batch<F>) -> bool {
        let mut queue = self.lock();
        loop {
            queue.n_running = batch.len();
            drop_abandoned(&mut queue);
            let is_next = |job: &Job| batch.has_room_for(job);
            if queue.waiting.front().is_some_and(is_next) && !queue.closed {
                let Some(job) = queue.waiting.pop_front() else {
                    continue;
                };
                queue.n_running += 1;
                drop(queue);
                batch.join(job);
                queue = self.lock();
            } else if batch.len() > 0 {
                return true;
            } else if queue.closed {
                return false;
            } else {
                let woken = self.changed.wait(queue);
                queue = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
