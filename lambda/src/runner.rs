//! Runs jobs on the CPU engine. The session of the last job is kept: a conversation that goes on, or a prompt with
//! the same beginning, is read from where the two part. That changes no result: every chunking gives the same bits.

use crate::worker::{Job, Runner};
use fledgling_core::cpu::{CpuEngine, EngineError, Session};

/// Prompt tokens between two looks at whether the client is still there.
const PREFILL_CHUNK: usize = 32;

/// The engine and the session of the last job.
#[derive(Debug)]
pub(crate) struct CpuRunner {
    engine: CpuEngine,
    n_ctx: usize,
    session: Option<Session>,
}

impl CpuRunner {
    /// Takes the engine; the session's memory is asked for now, so that a context too large fails at the start.
    ///
    /// # Errors
    /// Those of [`CpuEngine::session`].
    pub(crate) fn new(engine: CpuEngine, n_ctx: usize) -> Result<Self, EngineError> {
        let session = engine.session(n_ctx)?;
        Ok(Self {
            engine,
            n_ctx,
            session: Some(session),
        })
    }

    fn generate(&self, session: &mut Session, job: &mut Job) -> Result<(), EngineError> {
        let prompt = job.generation.prompt().to_vec();
        let n_cached = common_prefix(session.tokens(), &prompt);
        session.rewind(n_cached);
        let mut logits = Vec::new();
        for chunk in prompt[n_cached..].chunks(PREFILL_CHUNK) {
            if job.is_abandoned() {
                return Ok(());
            }
            logits = self.engine.forward(session, chunk)?;
        }
        job.prefilled(n_cached);
        loop {
            let step = job.generation.sample(&mut logits);
            let token = step.token;
            if !job.step(step) {
                return Ok(());
            }
            logits = self.engine.forward(session, &[token])?;
        }
    }
}

impl Runner for CpuRunner {
    fn run(&mut self, job: &mut Job) -> Result<(), String> {
        // Taken out, so that a panic or an error costs the session and the next job starts from an empty one.
        let session = self
            .session
            .take()
            .map_or_else(|| self.engine.session(self.n_ctx), Ok);
        let mut session = session.map_err(|error| error.to_string())?;
        self.generate(&mut session, job)
            .map_err(|error| error.to_string())?;
        self.session = Some(session);
        Ok(())
    }
}

/// How many tokens of `prompt` are known; never all, because the last one's logits are needed.
fn common_prefix(known: &[u32], prompt: &[u32]) -> usize {
    let n_same = known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    n_same.min(prompt.len().saturating_sub(1))
}
