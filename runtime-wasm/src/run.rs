//! One generation on either engine: core's state machine, fed with what the engine computes.

use crate::{
    engine::{Fed, GpuEngine, TokenRead},
    error::RuntimeError,
};
use fledgling_core::{
    cpu::{CpuEngine, Session},
    generate::{Generation, Step},
};
use std::collections::VecDeque;

/// Steps under way on the GPU: the one whose token is awaited, and one ahead of it.
const STEPS_AHEAD: usize = 2;
/// Tokens of a prompt between two pauses on the CPU, so that a stop is heeded while a long prompt is read.
const CPU_CHUNK: usize = 16;

/// What computes.
#[derive(Debug)]
pub enum Engine {
    /// WebGPU.
    Gpu(Box<GpuEngine>),
    /// Core's CPU engine with its cache.
    Cpu(Box<CpuRuntime>),
}

/// The CPU engine and the conversation in its cache.
#[derive(Debug)]
pub struct CpuRuntime {
    /// The engine.
    pub engine: CpuEngine,
    /// Its cache.
    pub session: Session,
}

/// A generation under way.
#[derive(Debug)]
pub struct Run {
    generation: Generation,
    /// Tokens that may still be asked of the engine.
    wanted: usize,
    started: bool,
    finished: bool,
    last: u32,
    ahead: VecDeque<TokenRead>,
}

impl Run {
    /// A run of `generation`, which was made with the same `max_tokens`.
    pub fn new(generation: Generation, max_tokens: Option<usize>) -> Self {
        let wanted = max_tokens.unwrap_or(usize::MAX);
        Self {
            generation,
            wanted,
            started: false,
            finished: false,
            last: 0,
            ahead: VecDeque::new(),
        }
    }

    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        self.generation.prompt()
    }

    /// Computes the next token; `None` after the last, or when `cancelled` says so. `pause` is awaited now and then while
    /// the CPU reads a long prompt.
    ///
    /// # Errors
    /// When the engine fails; the run is over then.
    pub async fn next(
        &mut self,
        engine: &mut Engine,
        cancelled: &dyn Fn() -> bool,
        pause: &impl AsyncFn(),
    ) -> Result<Option<Step>, RuntimeError> {
        if self.finished || cancelled() {
            self.end();
            return Ok(None);
        }
        let step = match engine {
            Engine::Gpu(engine) => self.gpu_step(engine, cancelled).await,
            Engine::Cpu(cpu) => self.cpu_step(cpu, cancelled, pause).await,
        };
        self.started = true;
        if let Ok(Some(step)) = &step {
            self.last = step.token;
            self.wanted = self.wanted.saturating_sub(1);
        }
        if !matches!(&step, Ok(Some(step)) if step.finish.is_none()) {
            self.end();
        }
        step
    }

    fn end(&mut self) {
        self.finished = true;
        self.ahead.clear();
    }

    async fn gpu_step(
        &mut self,
        engine: &mut GpuEngine,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Step>, RuntimeError> {
        let pick = self.generation.is_argmax();
        if !self.started {
            let kept = engine.keep_prefix(self.generation.prompt());
            match engine
                .feed(&self.generation.prompt()[kept..], pick, cancelled)
                .await?
            {
                Fed::Cancelled => return Ok(None),
                Fed::Picked(read) => self.ahead.push_back(read),
                Fed::Logits => {}
            }
        } else if !pick {
            engine.feed(&[self.last], false, cancelled).await?;
        }
        if !pick {
            let mut logits = engine.read_logits().await?;
            return Ok(Some(self.generation.sample(&mut logits)));
        }
        while self.ahead.len() < STEPS_AHEAD.min(self.wanted) && engine.has_room() {
            self.ahead.push_back(engine.decode_ahead());
        }
        let read = self
            .ahead
            .pop_front()
            .ok_or_else(|| RuntimeError::Internal("no step is under way".to_owned()))?;
        let token = engine.finish_token_read(read).await?;
        Ok(Some(self.generation.accept(token)))
    }

    async fn cpu_step(
        &mut self,
        cpu: &mut CpuRuntime,
        cancelled: &dyn Fn() -> bool,
        pause: &impl AsyncFn(),
    ) -> Result<Option<Step>, RuntimeError> {
        let CpuRuntime { engine, session } = cpu;
        let failed = |e: fledgling_core::cpu::EngineError| RuntimeError::Internal(e.to_string());
        let mut logits = Vec::new();
        if self.started {
            logits = engine.forward(session, &[self.last]).map_err(failed)?;
        } else {
            let prompt = self.generation.prompt();
            let kept = session.common_prefix_len(prompt).min(prompt.len() - 1);
            session.rewind(kept);
            for (i, chunk) in prompt[kept..].chunks(CPU_CHUNK).enumerate() {
                if i > 0 {
                    pause().await;
                }
                if cancelled() {
                    return Ok(None);
                }
                logits = engine.forward(session, chunk).map_err(failed)?;
            }
        }
        Ok(Some(self.generation.sample(&mut logits)))
    }
}
