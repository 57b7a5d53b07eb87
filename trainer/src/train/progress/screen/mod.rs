//! The whole terminal as a view of the run, drawn by a thread of its own.
//!
//! The trainer sends events into a channel and goes on; the thread takes them in, reads keys and draws at most ten times a second.
//! However the process ends (the end of the run, an error, a panic, a signal), the terminal is as it was before.

mod draw;
mod model;
#[cfg(test)]
mod tests;

use super::Sink;
use crate::{
    interrupt::{self, AtExit},
    output,
    report::{events, history::History},
};
use anyhow::{Context, Result};
use draw::Look;
use model::Model;
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor,
        event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
        execute,
        terminal::{self, EnterAlternateScreen, LeaveAlternateScreen},
    },
};
use std::{
    collections::VecDeque,
    io::{self, BufWriter, IsTerminal, Stderr},
    panic,
    sync::{
        Mutex, Once, TryLockError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Between two pictures, at least.
const FRAME: Duration = Duration::from_millis(100);
/// Between two pictures when no key was pressed: drawing takes from the training.
const CALM: Duration = Duration::from_millis(250);
/// The clock goes on by itself.
const TICK: Duration = Duration::from_secs(1);
/// A key that is held down is not pressed twice.
const KEY_REPEAT: Duration = Duration::from_millis(700);
/// Lines that are said again on the normal screen at the end.
const N_SAID: usize = 40;

/// Whether the screen is taken. Held while a picture is drawn, so that nothing is drawn on a terminal that was given back.
static TAKEN: Mutex<bool> = Mutex::new(false);
static PANICS: Once = Once::new();

/// Whether this terminal can be a screen: standard error is one, it understands more than plain text, and the process is the one that
/// it listens to (a job in the background would be stopped).
pub(crate) fn is_possible() -> bool {
    let term = std::env::var("TERM").unwrap_or_default();
    io::stderr().is_terminal()
        && (cfg!(windows) || !matches!(term.as_str(), "" | "dumb"))
        && is_foreground().unwrap_or(true)
}

/// Whether the terminal's foreground process group is ours, where the system tells (Linux).
fn is_foreground() -> Option<bool> {
    // proc_pid_stat(5): the name may hold anything and ends at the last `)`; then state, ppid, pgrp, session, tty_nr, tpgid.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(2)? == fields.get(5)?)
}

#[derive(Debug)]
enum Message {
    Line(Box<events::Line>),
    Said(String),
    Close,
}

/// The screen. Dropped, it gives the terminal back.
#[derive(Debug)]
pub(super) struct Screen {
    sender: Sender<Message>,
    thread: Option<JoinHandle<VecDeque<String>>>,
    _at_exit: AtExit,
}

impl Screen {
    /// Takes the terminal, with what happened to the run before.
    pub(super) fn open(history: &History) -> Result<Self> {
        PANICS.call_once(|| {
            let previous = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                leave();
                previous(info);
            }));
        });
        let at_exit = AtExit::new(leave);
        let terminal = enter().inspect_err(|_| leave())?;
        let (sender, receiver) = channel();
        let model = Model::new(history, Instant::now());
        let thread = std::thread::Builder::new()
            .name("screen".to_owned())
            .spawn(move || show(terminal, model, &receiver))
            .inspect_err(|_| leave())?;
        let notes = sender.clone();
        output::divert_notes(Some(Box::new(move |text| {
            notes.send(Message::Said(text.to_owned())).is_ok()
        })));
        Ok(Self {
            sender,
            thread: Some(thread),
            _at_exit: at_exit,
        })
    }

    /// Gives the terminal back and says on it what was said on the screen.
    fn close(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        output::divert_notes(None);
        // A thread that has ended (the terminal went away) has given back what it could.
        let _ = self.sender.send(Message::Close);
        let said = thread.join().unwrap_or_default();
        leave();
        for line in said {
            output::note(line);
        }
    }
}

impl Sink for Screen {
    fn event(&mut self, line: &events::Line) -> Result<()> {
        // Without a thread nobody sees it any more, and the run goes on.
        let _ = self.sender.send(Message::Line(Box::new(line.clone())));
        if matches!(line.event, events::Event::End(_)) {
            self.close();
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}

type Backend = CrosstermBackend<BufWriter<Stderr>>;

fn enter() -> Result<Terminal<Backend>> {
    let mut taken = TAKEN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    terminal::enable_raw_mode().context("the terminal cannot be taken")?;
    *taken = true;
    execute!(io::stderr(), EnterAlternateScreen, cursor::Hide)?;
    let backend = CrosstermBackend::new(BufWriter::with_capacity(1 << 16, io::stderr()));
    Ok(Terminal::new(backend)?)
}

/// Gives the terminal back; a second time does nothing.
fn leave() {
    let asked = Instant::now();
    // A panic while a picture is drawn comes here from within: then the lock never comes free.
    let mut guard = loop {
        match TAKEN.try_lock() {
            Ok(guard) => break Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if asked.elapsed() > FRAME => break None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if guard.as_deref().is_some_and(|taken| !taken) {
        return;
    }
    if let Some(taken) = guard.as_deref_mut() {
        *taken = false;
    }
    // Nothing to be done about a terminal that is gone.
    let _ = execute!(io::stderr(), LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

/// The thread: draws until it is told to close or the terminal goes away. Returns what was said.
fn show(
    mut terminal: Terminal<Backend>,
    mut model: Model,
    receiver: &Receiver<Message>,
) -> VecDeque<String> {
    let look = Look {
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        braille: std::env::var("TERM").is_ok_and(|term| term != "linux"),
    };
    let mut said = VecDeque::new();
    let mut keys = Keys::default();
    let mut drawn: Option<Instant> = None;
    let (mut changed, mut pressed) = (true, false);
    loop {
        loop {
            match receiver.try_recv() {
                Ok(Message::Line(line)) => {
                    say(&mut said, line_text(&line.event));
                    model.event(&line, Instant::now());
                }
                Ok(Message::Said(text)) => {
                    model.note(&text);
                    say(&mut said, Some(text));
                }
                Ok(Message::Close) | Err(TryRecvError::Disconnected) => return said,
                Err(TryRecvError::Empty) => break,
            }
            changed = true;
        }
        // Also when the signal came from elsewhere.
        if !model.stopping && interrupt::is_asked() {
            (model.stopping, changed) = (true, true);
        }
        let due = drawn.is_none_or(|drawn| {
            let since = drawn.elapsed();
            pressed || since >= TICK || (changed && since >= CALM)
        });
        if due {
            if !picture(&mut terminal, &model, look) {
                return said;
            }
            (drawn, changed) = (Some(Instant::now()), false);
        }
        match keys.wait(FRAME, &mut model) {
            Ok(any) => pressed = any,
            Err(_) => return said,
        }
        if let Some(left) = drawn.and_then(|drawn| FRAME.checked_sub(drawn.elapsed())) {
            std::thread::sleep(left);
        }
    }
}

/// Draws once; false when the terminal is no longer ours.
fn picture(terminal: &mut Terminal<Backend>, model: &Model, look: Look) -> bool {
    let Ok(taken) = TAKEN.lock() else {
        return false;
    };
    let draw = |frame: &mut ratatui::Frame<'_>| draw::draw(frame, model, look, Instant::now());
    *taken && terminal.draw(draw).is_ok()
}

/// What is said again on the normal screen at the end.
fn line_text(event: &events::Event) -> Option<String> {
    match event {
        events::Event::Validation(validation) => Some(super::lines::validation_text(validation)),
        events::Event::Note(note) => Some(note.text.clone()),
        _ => None,
    }
}

fn say(said: &mut VecDeque<String>, text: Option<String>) {
    said.extend(text);
    if said.len() > N_SAID {
        said.pop_front();
    }
}

#[derive(Debug, Default)]
struct Keys {
    asked: Option<Instant>,
}

impl Keys {
    /// Waits for keys at most so long; whether the picture changes.
    fn wait(&mut self, patience: Duration, model: &mut Model) -> io::Result<bool> {
        let mut changed = false;
        let mut patience = patience;
        while event::poll(patience)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    changed |= self.key(key, model, interrupt::request);
                }
                Event::Resize(..) => changed = true,
                _ => {}
            }
            patience = Duration::ZERO;
        }
        Ok(changed)
    }

    /// A key was pressed. In raw mode Ctrl-C is a key like others: it is handed on as the signal that it is elsewhere.
    fn key(&mut self, key: KeyEvent, model: &mut Model, stop: impl Fn()) -> bool {
        let ctrl_c =
            key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q' | 'Q') => {}
            _ if ctrl_c => {}
            KeyCode::Up => model.scroll_by(1),
            KeyCode::Down => model.scroll_by(-1),
            KeyCode::PageUp => model.scroll_by(10),
            KeyCode::PageDown => model.scroll_by(-10),
            KeyCode::End => model.scroll_by(isize::MIN),
            KeyCode::Left => model.turn(-1),
            KeyCode::Right => model.turn(1),
            _ => return false,
        }
        if ctrl_c || matches!(key.code, KeyCode::Char(_)) {
            let repeated = self.asked.is_some_and(|asked| asked.elapsed() < KEY_REPEAT);
            if !repeated {
                self.asked = Some(Instant::now());
                stop();
            }
        }
        true
    }
}
