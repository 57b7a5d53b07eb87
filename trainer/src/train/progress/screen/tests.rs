use super::{draw::Look, model::Model, *};
use crate::report::events::{Begin, Event as E, Line, Note, Sample, Step, Validation};
use ratatui::{backend::TestBackend, buffer::Buffer};

fn run(n_steps: u64) -> Model {
    let t0 = Instant::now();
    let mut model = Model::new(&History::default(), t0);
    let mut tell = |event| model.event(&Line::now(event), t0);
    tell(E::Begin(Box::new(Begin {
        run: "rust-docs".to_owned(),
        mode: "lora".to_owned(),
        base: "smollm2-135m".to_owned(),
        device: "cpu".to_owned(),
        steps: 400,
        steps_per_epoch: 100.0,
        ..Begin::default()
    })));
    for step in 0..=n_steps {
        let loss = 2.0 + 1.5 * (-(step as f64) / 60.0).exp();
        if step > 0 {
            tell(E::Step(Step {
                step,
                loss: loss + if step % 2 == 0 { 0.1 } else { -0.1 },
                lr: 2e-3,
                grad_norm: 0.5,
                tokens_per_s: 1234.0,
                tokens: 500,
                peak_bytes: Some(1 << 30),
            }));
        }
        if step.is_multiple_of(50) {
            tell(E::Validation(Validation {
                step,
                valid_loss: loss,
                valid_perplexity: loss.exp(),
            }));
        }
    }
    tell(E::Sample(Sample {
        step: 250,
        prompt: "What is a slice?".to_owned(),
        text: " A view into\x1b[31m elements.\nIt borrows them.".to_owned(),
    }));
    tell(E::Note(Note {
        step: 250,
        text: "3 rows lost their end".to_owned(),
    }));
    model
}

const COLOURS: Look = Look {
    colour: true,
    braille: true,
};

fn draw_at(model: &Model, width: u16, height: u16, look: Look) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let now = Instant::now();
    terminal
        .draw(|frame| draw::draw(frame, model, look, now))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn text_of(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let cells: Vec<_> = buffer
        .content()
        .iter()
        .map(ratatui::buffer::Cell::symbol)
        .collect();
    cells
        .chunks(width)
        .map(|row| row.concat().trim_end().to_owned() + "\n")
        .collect()
}

#[test]
fn a_small_window_has_curve_figures_and_notes() {
    let text = text_of(&draw_at(&run(250), 60, 15, COLOURS));
    println!("{text}");
    for part in [
        "rust-docs  lora of smollm2-135m  cpu",
        "q stop",
        "step 250/400  epoch 2.50",
        "62 %",
        "best     7.56 at 250",
        "held-out   2.0233",
        "grad norm  0.500",
        "tokens/s   1234",
        "memory     1.00 GiB",
        "3 rows lost their end",
        "— training ● held-out",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(text.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)));
    assert!(text.contains('●'));
}

#[test]
fn a_wide_window_has_all() {
    let text = text_of(&draw_at(&run(250), 120, 36, COLOURS));
    println!("{text}");
    for part in [
        "perplexity 7.56",
        "  before   33.12",
        "  best     7.56 at 250",
        " lr 2.00e-3 ",
        " grad norm 0.500 ",
        " text at step 250 ",
        "What is a slice? A view into [31m elements.",
        "It borrows them.",
        "step 200: held-out loss 2.0535",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn every_size_can_be_drawn_at_any_time() {
    let models = [
        Model::new(&History::default(), Instant::now()),
        run(0),
        run(1),
        run(250),
    ];
    for model in &models {
        for width in (1..=140).step_by(7) {
            for height in (1..=50).step_by(3) {
                draw_at(model, width, height, COLOURS);
            }
        }
    }
}

#[test]
fn without_colours_there_are_none() {
    let look = Look {
        colour: false,
        braille: false,
    };
    let buffer = draw_at(&run(250), 100, 30, look);
    let plain = |cell: &ratatui::buffer::Cell| {
        cell.fg == ratatui::style::Color::Reset && cell.bg == ratatui::style::Color::Reset
    };
    assert!(buffer.content().iter().all(plain));
    let text = text_of(&buffer);
    assert!(!text.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)));
}

#[test]
fn a_key_that_is_held_down_stops_once() {
    let asked = std::cell::Cell::new(0);
    let stop = || asked.set(asked.get() + 1);
    let (mut keys, mut model) = (Keys::default(), run(1));
    let press = |code, modifiers| KeyEvent::new(code, modifiers);
    let q = press(KeyCode::Char('q'), KeyModifiers::NONE);
    assert!(!keys.key(
        press(KeyCode::Char('c'), KeyModifiers::NONE),
        &mut model,
        stop
    ));
    assert!(!keys.key(
        press(KeyCode::Char('z'), KeyModifiers::CONTROL),
        &mut model,
        stop
    ));
    assert_eq!(asked.get(), 0);
    assert!(keys.key(q, &mut model, stop));
    assert!(keys.key(q, &mut model, stop));
    assert_eq!(asked.get(), 1);
    keys.asked = Instant::now().checked_sub(KEY_REPEAT);
    assert!(keys.key(
        press(KeyCode::Char('c'), KeyModifiers::CONTROL),
        &mut model,
        stop
    ));
    assert_eq!(asked.get(), 2);
}

#[test]
#[ignore = "a measurement: run with --run-ignored all --no-capture"]
fn drawing_is_cheap() {
    let model = run(400);
    let started = Instant::now();
    for _ in 0..100 {
        draw_at(&model, 160, 50, COLOURS);
    }
    println!("{:.2} ms a picture", 10.0 * started.elapsed().as_secs_f64());
}
