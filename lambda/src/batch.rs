//! Continuous batching (Yu et al. 2022, "Orca"): all generations under way share each forward pass, which reads the weights once for
//! all of them. A generation joins when there is room and leaves when it ends; prompts are read in pieces beside it (Agrawal et al. 2023,
//! "SARATHI"), so that nobody's answer stands still while a long prompt is read.
//!
//! Who shares a pass with whom changes no bit of anybody's result (ARCHITECTURE.md, "The arithmetic").

use crate::{
    job::{Job, Work},
    logprobs::TokenLogprob,
    metrics::Counters,
    observed::surprise,
    prefix_cache::{PrefixCache, known_len},
};
use fledgling_core::{
    cpu::{CpuEngine, EngineError, Feed, Session},
    generate::Scores,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering::Relaxed,
};

/// Prompt tokens of one pass: what the engine takes through the layers together when nobody waits for a token, and less when
/// somebody does.
const PROMPT_TOKENS: usize = 128;
const PROMPT_TOKENS_BESIDE: usize = 64;
/// Rows of a pass in which several draft, each the same: the engine multiplies so many from registers.
const DRAFTING_ROWS: usize = 4;
/// A prompt waits for another that begins alike when so many tokens are won by it.
const WORTH_WAITING: usize = 16;
/// Positions beyond its prompt that a generation is expected to need at least.
const EXPECTED_ANSWER: usize = 64;

/// What becomes of the logits of one position, on the thread that has them. [V]
pub(crate) type Reduce<'a> = dyn Fn(usize, usize, &[f32]) -> Row + Sync + 'a;

/// What is kept of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    scores: Scores,
    /// Of the token of the prompt that stands there.
    known: Option<TokenLogprob>,
    /// Surprise of the likeliest token, where nothing else is kept and it is observed.
    nats: Option<f64>,
}

/// Computes: the CPU engine, or a stand-in in tests.
pub(crate) trait Forward: Send + 'static {
    /// The engine whose sessions are fed.
    fn engine(&self) -> &CpuEngine;

    /// See [`CpuEngine::forward_batch`].
    ///
    /// # Errors
    /// Those of the engine; no session has changed then.
    fn forward(
        &mut self,
        feeds: &mut [Feed<'_>],
        reduce: &Reduce<'_>,
    ) -> Result<Vec<Row>, EngineError>;
}

impl Forward for CpuEngine {
    fn engine(&self) -> &CpuEngine {
        self
    }

    fn forward(
        &mut self,
        feeds: &mut [Feed<'_>],
        reduce: &Reduce<'_>,
    ) -> Result<Vec<Row>, EngineError> {
        self.forward_batch(feeds, reduce)
    }
}

/// How much may be under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) n_ctx: usize,
    pub(crate) max_running: usize,
    /// Bytes of keys and values, of what runs and what is kept.
    pub(crate) kv_bytes: usize,
}

/// A job under way.
#[derive(Debug)]
struct Sequence {
    job: Job,
    session: Session,
}

/// What is fed to one sequence in the next pass.
#[derive(Debug)]
struct Plan {
    /// Number of the sequence.
    idx: usize,
    tokens: Vec<u32>,
    /// How many of them are a draft.
    n_drafted: usize,
    wanted_from: usize,
}

/// The jobs under way, in the order in which they came, and what is known of former ones.
#[derive(Debug)]
pub(crate) struct Batch<F> {
    forward: F,
    limits: Limits,
    sequences: Vec<Sequence>,
    cache: PrefixCache,
}

impl<F: Forward> Batch<F> {
    pub(crate) fn new(forward: F, limits: Limits) -> Self {
        // One generation of any length must fit.
        let whole_context = limits
            .n_ctx
            .saturating_mul(forward.engine().position_bytes());
        let limits = Limits {
            kv_bytes: limits.kv_bytes.max(whole_context),
            ..limits
        };
        Self {
            forward,
            limits,
            sequences: Vec::new(),
            cache: PrefixCache::default(),
        }
    }

    /// Jobs under way.
    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether `job` can join now.
    pub(crate) fn has_room_for(&self, job: &Job) -> bool {
        let n_positions = (job.context().len() + EXPECTED_ANSWER).min(self.limits.n_ctx);
        let bytes = n_positions * self.forward.engine().position_bytes();
        self.sequences.is_empty()
            || (self.sequences.len() < self.limits.max_running
                && self.running_bytes() + bytes <= self.limits.kv_bytes)
    }

    /// Lets a job join.
    pub(crate) fn join(&mut self, mut job: Job) {
        job.start();
        if let Work::Answer(answer) = &job.work
            && answer.generation.finished().is_some()
            && !answer.scores_prompt
        {
            return job.end();
        }
        match self.session_for(&job) {
            Ok(session) => {
                job.n_cached = job.n_cached.max(session.tokens().len());
                self.sequences.push(Sequence { job, session });
            }
            Err(error) => job.fail(&error.to_string()),
        }
    }

    fn session_for(&mut self, job: &Job) -> Result<Session, EngineError> {
        if job.needs_every_position() {
            return self.forward.engine().growing_session(self.limits.n_ctx);
        }
        match self.cache.take(job.context())? {
            Some(session) => Ok(session),
            None => self.forward.engine().growing_session(self.limits.n_ctx),
        }
    }

    /// Gives up everything under way: a fault of this module's.
    pub(crate) fn fail_all(&mut self) {
        for mut sequence in self.sequences.drain(..) {
            sequence.job.fail("panic");
        }
        self.cache = PrefixCache::default();
    }

    /// One forward pass for all that are under way. Gives back jobs that had to make room for others, the latest to come first.
    pub(crate) fn step(&mut self, counters: &Counters) -> Vec<Job> {
        self.drop_abandoned();
        self.end_late();
        let made_room = self.make_room();
        self.share_prefixes();
        let plans = self.plan();
        if !plans.is_empty() {
            counters.forward_passes.add(1);
            let ended = self.run(&plans, counters);
            self.leave(&ended);
        }
        let bytes = self.running_bytes();
        self.cache
            .shrink_to(self.limits.kv_bytes.saturating_sub(bytes));
        let kv_bytes = (bytes + self.cache.bytes()) as u64;
        counters.kv_bytes.store(kv_bytes, Relaxed);
        made_room
    }

    fn running_bytes(&self) -> usize {
        let sessions = self.sequences.iter();
        sessions
            .map(|sequence| sequence.session.reserved_bytes())
            .sum()
    }

    fn drop_abandoned(&mut self) {
        let ended: Vec<usize> = self.which(Job::is_abandoned);
        self.leave(&ended);
    }

    fn end_late(&mut self) {
        let ended: Vec<usize> = self.which(Job::is_late);
        for &i in &ended {
            self.sequences[i].job.end();
        }
        self.leave(&ended);
    }

    fn which(&self, is_so: impl Fn(&Job) -> bool) -> Vec<usize> {
        let n = self.sequences.len();
        (0..n).filter(|&i| is_so(&self.sequences[i].job)).collect()
    }

    /// Takes sequences out, by ascending number, and keeps what is known of them.
    fn leave(&mut self, ended: &[usize]) {
        for &i in ended.iter().rev() {
            let sequence = self.sequences.remove(i);
            self.cache.keep(sequence.session);
        }
    }

    /// Sends the latest back to the queue while those under way take more memory than there is. What they said stays said: they will
    /// read it again.
    fn make_room(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        while self.running_bytes() > self.limits.kv_bytes && self.sequences.len() > 1 {
            jobs.extend(self.sequences.pop().map(|sequence| sequence.job));
        }
        jobs
    }

    /// Copies what others under way have computed of the same beginning.
    fn share_prefixes(&mut self) {
        for i in 0..self.sequences.len() {
            let Sequence { job, session } = &self.sequences[i];
            let (context, n_fed) = (job.context(), session.tokens().len());
            let is_worth_it = context.len() - n_fed >= WORTH_WAITING;
            if !is_worth_it || job.needs_every_position() || self.waits_for_another(i) {
                continue;
            }
            let others = self.sequences.iter().enumerate().filter(|(j, _)| *j != i);
            let best = others.map(|(_, other)| (known_len(&other.session, context), other));
            let Some((len, other)) = best.max_by_key(|(len, _)| *len) else {
                continue;
            };
            if len < n_fed + WORTH_WAITING {
                continue;
            }
            // Without the memory for a copy it is computed again.
            if let Ok(fork) = other.session.fork(len) {
                let Sequence { job, session } = &mut self.sequences[i];
                *session = fork;
                job.n_cached = job.n_cached.max(len);
            }
        }
    }

    /// Whether one that came before is about to compute what this one needs.
    fn waits_for_another(&self, i: usize) -> bool {
        let Sequence { job, session } = &self.sequences[i];
        let (context, n_fed) = (job.context(), session.tokens().len());
        !job.needs_every_position()
            && self.sequences[..i].iter().any(|other| {
                let both = other.job.context().iter().zip(context);
                let n_common = both.take_while(|(a, b)| a == b).count();
                let n_common = n_common.min(context.len() - 1);
                n_common >= n_fed + WORTH_WAITING && other.session.tokens().len() < n_common
            })
    }

    fn plan(&mut self) -> Vec<Plan> {
        let n_pending =
            |sequence: &Sequence| sequence.job.context().len() - sequence.session.tokens().len();
        let (mut decoding, mut reading) = (Vec::new(), Vec::new());
        for (i, sequence) in self.sequences.iter().enumerate() {
            match n_pending(sequence) {
                1 => decoding.push(i),
                _ if self.waits_for_another(i) => {}
                n => reading.push((n, i)),
            }
        }
        let max_draft = match decoding.len() {
            0 => 0,
            _ if !reading.is_empty() => 0,
            // What one alone drafts is for its operator to say.
            1 => usize::MAX,
            n => (DRAFTING_ROWS / n).saturating_sub(1),
        };
        let mut left = if decoding.is_empty() {
            PROMPT_TOKENS
        } else {
            PROMPT_TOKENS_BESIDE
        };
        let mut plans = Vec::new();
        for idx in decoding {
            plans.push(self.sequences[idx].next_token(idx, max_draft));
        }
        // Equal shares; what a short prompt leaves over goes to the longer ones.
        reading.sort_unstable();
        let n_reading = reading.len();
        for (n_before, (n, idx)) in reading.into_iter().enumerate() {
            let share = left / (n_reading - n_before);
            let n = n.min(share.max(1));
            left = left.saturating_sub(n);
            plans.push(self.sequences[idx].piece_of_prompt(idx, n));
        }
        plans.sort_unstable_by_key(|plan| plan.idx);
        plans
    }

    /// Feeds what is planned; the numbers of the sequences that ended by it, ascending.
    fn run(&mut self, plans: &[Plan], counters: &Counters) -> Vec<usize> {
        let mut ended = Vec::new();
        let (embeds, answers): (Vec<&Plan>, Vec<&Plan>) = plans
            .iter()
            .partition(|plan| matches!(self.sequences[plan.idx].job.work, Work::Embed { .. }));
        match self.forward(&answers) {
            Ok(rows) => self.accept(&answers, rows, counters, &mut ended),
            // Whose fault it is shows when each runs by itself.
            Err(_) => {
                for plan in answers {
                    match self.forward(&[plan]) {
                        Ok(rows) => self.accept(&[plan], rows, counters, &mut ended),
                        Err(reason) => self.fail(plan.idx, &reason, &mut ended),
                    }
                }
            }
        }
        for plan in embeds {
            match self.embed(plan) {
                Ok(true) => ended.push(plan.idx),
                Ok(false) => {}
                Err(reason) => self.fail(plan.idx, &reason, &mut ended),
            }
        }
        ended.sort_unstable();
        ended
    }

    fn fail(&mut self, idx: usize, reason: &str, ended: &mut Vec<usize>) {
        let Sequence { job, session } = &mut self.sequences[idx];
        job.fail(reason);
        // Nothing of it is kept.
        session.rewind(0);
        ended.push(idx);
    }

    /// Feeds the plans' tokens in one pass. On an error or a panic all sessions are as they were.
    fn forward(&mut self, plans: &[&Plan]) -> Result<Vec<Row>, String> {
        if plans.is_empty() {
            return Ok(Vec::new());
        }
        let lens: Vec<usize> = (self.sequences.iter())
            .map(|sequence| sequence.session.tokens().len())
            .collect();
        let Self {
            forward, sequences, ..
        } = self;
        let mut jobs = Vec::with_capacity(plans.len());
        let mut feeds = Vec::with_capacity(plans.len());
        let mut planned = plans.iter().peekable();
        for (i, sequence) in sequences.iter_mut().enumerate() {
            let Some(plan) = planned.next_if(|plan| plan.idx == i) else {
                continue;
            };
            let Sequence { job, session } = sequence;
            jobs.push((&*job, session.tokens().len()));
            feeds.push(Feed {
                session,
                tokens: &plan.tokens,
                wanted_from: plan.wanted_from,
            });
        }
        let reduce = |feed: usize, t: usize, logits: &[f32]| {
            let (job, n_fed) = jobs[feed];
            job.row(n_fed + t, logits)
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| forward.forward(&mut feeds, &reduce)));
        let failure = match outcome {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "panic".to_owned(),
        };
        for (sequence, len) in self.sequences.iter_mut().zip(lens) {
            sequence.session.rewind(len);
        }
        Err(failure)
    }

    /// Hands the rows of a pass to their jobs.
    fn accept(
        &mut self,
        plans: &[&Plan],
        rows: Vec<Row>,
        counters: &Counters,
        ended: &mut Vec<usize>,
    ) {
        let mut rows = rows.into_iter();
        for plan in plans {
            let n_rows = plan.tokens.len() - plan.wanted_from;
            let rows: Vec<Row> = rows.by_ref().take(n_rows).collect();
            counters.drafted_tokens.add(plan.n_drafted);
            let sequence = &mut self.sequences[plan.idx];
            let (goes_on, n_accepted) = sequence.accept(plan, rows);
            counters.accepted_tokens.add(n_accepted);
            if !goes_on {
                ended.push(plan.idx);
            }
        }
    }

    /// Feeds a piece of an input; whether it was the last.
    fn embed(&mut self, plan: &Plan) -> Result<bool, String> {
        let Sequence { job, session } = &mut self.sequences[plan.idx];
        let Work::Embed { tokens, sums } = &mut job.work else {
            return Ok(true);
        };
        let mut each = |_: usize, hidden: &[f32]| {
            for (sum, x) in sums.iter_mut().zip(hidden) {
                *sum += f64::from(*x);
            }
        };
        let engine = self.forward.engine();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            engine.forward_hidden(session, &plan.tokens, &mut each)
        }));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("panic".to_owned()),
        }
        let is_whole = session.tokens().len() == tokens.len();
        if is_whole {
            job.embedded();
        }
        Ok(is_whole)
    }
}

impl Sequence {
    /// The last token, and a draft of what may follow it.
    fn next_token(&self, idx: usize, max_draft: usize) -> Plan {
        let context = self.job.context();
        let draft = match &self.job.work {
            Work::Answer(answer) => {
                let room = answer.generation.draft_room().min(max_draft);
                answer.lookup.draft(context, room)
            }
            Work::Embed { .. } => Vec::new(),
        };
        let tokens = [&context[context.len() - 1..], &draft].concat();
        Plan {
            idx,
            tokens,
            n_drafted: draft.len(),
            wanted_from: 0,
        }
    }

    /// The next `n` tokens of the prompt. Logits are wanted of the last one, and of all where the prompt is scored.
    fn piece_of_prompt(&self, idx: usize, n: usize) -> Plan {
        let (context, n_fed) = (self.job.context(), self.session.tokens().len());
        let is_last = n_fed + n == context.len();
        let wanted_from = match &self.job.work {
            Work::Answer(answer) if answer.scores_prompt => 0,
            Work::Answer(answer)
                if self.job.observed.is_on() && answer.generation.tokens().is_empty() =>
            {
                let from = self.job.observed.wanted_from(context.len());
                from.saturating_sub(n_fed).min(n)
            }
            Work::Answer(_) if is_last => n - 1,
            _ => n,
        };
        Plan {
            idx,
            tokens: context[n_fed..n_fed + n].to_vec(),
            n_drafted: 0,
            wanted_from,
        }
    }

    /// Takes what came of the plan; whether the job goes on, and how many tokens of the draft were right.
    fn accept(&mut self, plan: &Plan, mut rows: Vec<Row>) -> (bool, usize) {
        let n_context = self.job.context().len();
        let n_fed = self.session.tokens().len();
        let Work::Answer(answer) = &mut self.job.work else {
            return (false, 0);
        };
        for known in rows.iter_mut().filter_map(|row| row.known.take()) {
            self.job.observed.prompt(-f64::from(known.logprob));
            if answer.scores_prompt {
                answer.prompt_logprobs.push(known);
            }
        }
        if n_fed < n_context {
            return (true, 0);
        }
        // What is wanted of a prompt that is scored and now read is its last row.
        let n_skipped = rows.len() - 1 - plan.n_drafted;
        self.job.prefilled();
        if self.job.finished() {
            self.job.end();
            return (false, 0);
        }
        let draft = &plan.tokens[plan.tokens.len() - plan.n_drafted..];
        let mut n_accepted = 0;
        let mut goes_on = true;
        for (i, row) in rows.into_iter().skip(n_skipped).enumerate() {
            let Some((token, again)) = self.job.take(row.scores, row.nats) else {
                break;
            };
            goes_on = again;
            if !goes_on || draft.get(i) != Some(&token) {
                break;
            }
            n_accepted += 1;
        }
        self.session.rewind(n_context + n_accepted);
        if let Work::Answer(answer) = &mut self.job.work {
            let n_context = answer.generation.context().len();
            answer.lookup.checked(plan.n_drafted, n_accepted, n_context);
        }
        (goes_on, n_accepted)
    }
}

impl Job {
    /// Whether the positions of its prompt are all to be computed, whatever is known of it.
    fn needs_every_position(&self) -> bool {
        match &self.work {
            Work::Answer(answer) => answer.scores_prompt,
            Work::Embed { .. } => true,
        }
    }

    /// What it needs of the logits behind its token number `position`.
    fn row(&self, position: usize, logits: &[f32]) -> Row {
        let Work::Answer(answer) = &self.work else {
            return Row::default();
        };
        if let Some(&next) = answer.generation.prompt().get(position + 1) {
            let n_top = answer.logprobs.unwrap_or(0);
            return Row {
                known: Some(TokenLogprob::of(next, logits, n_top)),
                ..Row::default()
            };
        }
        let best_is_enough = answer.generation.is_argmax() && answer.logprobs.is_none();
        let scores = Scores::of(logits, best_is_enough);
        // Of the likeliest token nothing else is kept.
        let nats = match scores {
            Scores::Best(token) if self.observed.is_on() => Some(surprise(logits, token)),
            _ => None,
        };
        Row {
            scores,
            known: None,
            nats,
        }
    }

    fn finished(&self) -> bool {
        matches!(&self.work, Work::Answer(answer) if answer.generation.finished().is_some())
    }

    /// Picks the next token and passes it on; the token, and whether the answer goes on.
    fn take(&mut self, scores: Scores, nats: Option<f64>) -> Option<(u32, bool)> {
        let Work::Answer(answer) = &mut self.work else {
            return None;
        };
        let raw = match (&scores, answer.logprobs) {
            (Scores::All(logits), Some(n_top)) => Some((logits.clone(), n_top)),
            _ => None,
        };
        let observed = match &scores {
            Scores::All(logits) if self.observed.is_on() => Some(logits.clone()),
            _ => None,
        };
        let step = answer.generation.take(scores);
        let token = step.token;
        if let Some(nats) = observed.map(|logits| surprise(&logits, token)).or(nats) {
            self.observed.answer(nats);
        }
        let logprob = raw.map(|(logits, n_top)| TokenLogprob::of(token, &logits, n_top));
        Some((token, self.step(step, logprob)))
    }
}
