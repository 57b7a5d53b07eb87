//! What Ctrl-C (and a service manager's TERM) does, in one place, because a process has one handler.
//!
//! The first signal asks whoever holds a [`Graceful`] to come to a good end: a generation prints what it has, a
//! server finishes its answers, a training run writes its checkpoint. When nobody holds one, or at the second
//! signal, files under construction are removed and the process ends with status 130.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Exit status of a command ended by Ctrl-C, as shells have it (128 + SIGINT).
const INTERRUPTED: i32 = 130;

type Listener = Box<dyn Fn() + Send>;

#[derive(Default)]
struct State {
    next_id: u64,
    unfinished: BTreeMap<u64, PathBuf>,
    listeners: BTreeMap<u64, Listener>,
    at_exit: BTreeMap<u64, fn()>,
    asked: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    next_id: 0,
    unfinished: BTreeMap::new(),
    listeners: BTreeMap::new(),
    at_exit: BTreeMap::new(),
    asked: false,
});

fn state() -> MutexGuard<'static, State> {
    // The state stays consistent when a holder panics: every change is a single call on a map.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the handler. Called once, at the start of the process.
///
/// # Errors
/// When the platform refuses a handler.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(on_signal)?;
    Ok(())
}

/// Does what Ctrl-C does: where the terminal is in raw mode, it is a key like others.
pub fn request() {
    on_signal();
}

/// Whether Ctrl-C was pressed and somebody comes to a good end.
pub fn is_asked() -> bool {
    state().asked
}

fn on_signal() {
    let mut state = state();
    if !state.asked && !state.listeners.is_empty() {
        state.asked = true;
        for listener in state.listeners.values() {
            listener();
        }
        return;
    }
    end(&state);
}

/// Ends the process as an interrupted one, for whoever has come to its good end: files under construction are removed, which
/// a plain exit would leave.
pub fn leave() -> ! {
    end(&state())
}

fn end(state: &State) -> ! {
    for path in state.unfinished.values() {
        // Nothing to be done about a failure here: the process ends.
        let _ = if path.is_dir() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        };
    }
    for leave in state.at_exit.values() {
        leave();
    }
    std::process::exit(INTERRUPTED);
}

/// Something to be done when the process is interrupted: giving back the terminal.
#[derive(Debug)]
pub struct AtExit(u64);

impl AtExit {
    /// Registers `leave` for as long as the value lives.
    pub fn new(leave: fn()) -> Self {
        let mut state = state();
        let id = state.next_id;
        state.next_id += 1;
        state.at_exit.insert(id, leave);
        Self(id)
    }
}

impl Drop for AtExit {
    fn drop(&mut self) {
        state().at_exit.remove(&self.0);
    }
}

/// A file or folder under construction: removed when the process is interrupted.
#[derive(Debug)]
pub struct Unfinished(u64);

impl Unfinished {
    /// Registers `path` for as long as the value lives.
    pub fn new(path: &Path) -> Self {
        let mut state = state();
        let id = state.next_id;
        state.next_id += 1;
        state.unfinished.insert(id, path.to_owned());
        Self(id)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        state().unfinished.remove(&self.0);
    }
}

/// While it lives, the first Ctrl-C is a request instead of an end.
#[derive(Debug)]
pub struct Graceful {
    id: u64,
    asked: Arc<AtomicBool>,
}

impl Graceful {
    /// Starts to listen; ask [`Self::asked`] between two steps of the work.
    pub fn begin() -> Self {
        Self::with(|| {})
    }

    /// As [`Self::begin`], and calls `listener` (from another thread) when the signal comes.
    pub fn with(listener: impl Fn() + Send + 'static) -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        let mut state = state();
        let id = state.next_id;
        state.next_id += 1;
        state.listeners.insert(
            id,
            Box::new(move || {
                flag.store(true, Ordering::Relaxed);
                listener();
            }),
        );
        Self { id, asked }
    }

    /// Whether Ctrl-C was pressed since [`Self::begin`].
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        let mut state = state();
        state.listeners.remove(&self.id);
        if state.listeners.is_empty() {
            state.asked = false;
        }
    }
}
