//! Steps together: their order, edges of bodies, what is reported, speed.

use super::*;
use crate::config::Mask;
use crate::control::Quiet;
use fledgling_core::chat::Message;
use proptest::prelude::*;

fn mended(text: &str, config: &CleanConfig) -> (String, Vec<&'static str>) {
    let mut body = Body::Text(text.into());
    let changes = Cleaner::new(config).unwrap().mend(&mut body);
    (body.parts()[0].to_owned(), changes.names().collect())
}

fn text(text: &str) -> Body {
    Body::Text(text.into())
}

#[test]
fn what_is_clean_is_reported_as_unchanged() {
    let default = CleanConfig::default();
    for clean in ["", "plain", "Ärger, naïve – 中文\n", "fn f() {\n    x\n}\n"] {
        assert_eq!(mended(clean, &default), (clean.to_owned(), vec![]));
    }
}

#[test]
fn steps_are_named_and_work_together() {
    let default = CleanConfig::default();
    // The zero-width space hides spaces at the line's end; the form feed is a line end before it is a control character.
    let (new, names) = mended(
        "\u{feff}Cafe\u{301} \u{200b}\r\na\x0cb\u{a0}c\0\n\n\n\n",
        &default,
    );
    assert_eq!(new, "Café\na\nb c\n");
    assert_eq!(names, ["unicode", "control", "whitespace"]);
    let off = CleanConfig {
        whitespace: false,
        ..default.clone()
    };
    assert_eq!(
        mended("a \r\n\x0cb", &off).0,
        "a \r\nb",
        "line ends stay, control characters go"
    );
    // A mark meets its letter when what parted them is gone.
    assert_eq!(mended("e\u{200b}\u{301}", &default).0, "é");
    let none = CleanConfig {
        control: false,
        unicode: Unicode::Off,
        ..off
    };
    assert_eq!(mended("e\u{301}\0 \r\n", &none).1, Vec::<&str>::new());
}

#[test]
fn masks_come_through_small_letters_and_symbols() {
    let config = CleanConfig {
        lowercase: true,
        strip_symbols: true,
        mask: Mask {
            email: true,
            phone: true,
            keys: false,
        },
        ..CleanConfig::default()
    };
    let (new, names) = mended("Ask JOE@example.com → or CALL +1 415 555 2671!", &config);
    assert_eq!(new, "ask <EMAIL>  or call <PHONE>!");
    assert_eq!(
        names,
        ["mask.email", "mask.phone", "lowercase", "strip_symbols"]
    );
    assert_eq!(
        mended("<EMAIL> <KEY>", &config).0,
        "<EMAIL> key",
        "a mask that is not asked for is text"
    );
}

#[test]
fn parts_of_other_shapes_are_mended_and_what_joins_them_stays() {
    let cleaner = Cleaner::new(&CleanConfig::default()).unwrap();
    let mut body = Body::Completion {
        prompt: "\nQ: x \nA: ".into(),
        completion: " yes \n\n".into(),
    };
    assert!(cleaner.mend(&mut body).has(Mended::Whitespace));
    assert_eq!(body.parts(), ["Q: x\nA: ", " yes\n"]);
    let mut body = Body::Chat(vec![Message {
        role: "user".into(),
        content: "Hi\u{200b} \r\n".into(),
    }]);
    assert_eq!(
        cleaner.mend(&mut body).names().collect::<Vec<_>>(),
        ["control", "whitespace"]
    );
    assert_eq!(body.parts(), ["Hi\n"]);
}

#[test]
fn documents_that_are_too_short_or_too_long_go() {
    let config = CleanConfig {
        min_chars: 3,
        max_chars: 5,
        ..CleanConfig::default()
    };
    let cleaner = Cleaner::new(&config).unwrap();
    let why = |text_: &str| match cleaner.judge(&text(text_)) {
        Judgement::Keep { .. } => String::new(),
        Judgement::Drop { step, why, .. } => format!("{step}: {why}"),
    };
    assert_eq!(why("äö"), "min_chars: 2 characters are fewer than 3");
    assert_eq!(why("äöüäöü"), "max_chars: 6 characters are more than 5");
    assert_eq!(["äöü", "äöüäö"].map(why), ["", ""]);
    let default = Cleaner::new(&CleanConfig::default()).unwrap();
    assert!(matches!(
        default.judge(&text("")),
        Judgement::Drop {
            step: "min_chars",
            ..
        }
    ));
}

#[test]
fn the_language_is_told_of_what_stays_and_of_what_goes() {
    let config = CleanConfig {
        languages: vec!["eng".into()],
        gopher: true,
        ..CleanConfig::default()
    };
    let cleaner = Cleaner::new(&config).unwrap();
    let english = "This is a short sentence in English, which everybody can tell from others.";
    assert_eq!(
        cleaner.judge(&text(english)),
        Judgement::Drop {
            step: "gopher.words",
            why: "13 words are fewer than 50".into(),
            language: Some("eng"),
        }
    );
    let russian = text("Это предложение написано по-русски, и его нельзя спутать ни с чем другим.");
    assert!(matches!(
        cleaner.judge(&russian),
        Judgement::Drop {
            step: "language",
            language: Some("rus"),
            ..
        }
    ));
}

#[test]
fn settings_without_sense_are_refused() {
    let error = |config: CleanConfig| Cleaner::new(&config).unwrap_err().to_string();
    let default = CleanConfig::default;
    let limits = error(CleanConfig {
        min_chars: 9,
        max_chars: 5,
        ..default()
    });
    assert_eq!(
        limits,
        "clean.min_chars is 9 and clean.max_chars 5, between which no document is"
    );
    let confidence = error(CleanConfig {
        language_confidence: 1.5,
        ..default()
    });
    assert!(confidence.starts_with("clean.language_confidence is 1.5"));
    let language = error(CleanConfig {
        languages: vec!["english".into()],
        ..default()
    });
    assert!(
        language.contains("`english`") && language.contains("`eng`"),
        "{language}"
    );
}

#[test]
fn boilerplate_goes_and_leaves_no_hole() {
    let folder = tempfile::tempdir().unwrap();
    let counter = boilerplate::Counter::new(folder.path()).unwrap();
    for i in 0..2 {
        counter
            .add(&text(&format!("text {i} here\n\nSubscribe to us!")))
            .unwrap();
    }
    let lines = counter.finish(2, &Quiet).unwrap();
    let cleaner = Cleaner::new(&CleanConfig::default()).unwrap();
    let mut body = text("a\n\n\nSubscribe to us!\n\n\nb\n\nSubscribe to us!");
    assert_eq!(cleaner.fix_lines(&mut body, &lines), 2);
    assert_eq!(body, text("a\n\n\nb\n"));
    assert_eq!(cleaner.fix_lines(&mut body, &lines), 0);
    let mut body = Body::Completion {
        prompt: "Subscribe to us!\nA: ".into(),
        completion: " yes".into(),
    };
    assert_eq!(cleaner.fix_lines(&mut body, &lines), 1);
    assert_eq!(body.parts(), ["A: ", " yes"], "what joins them stays");
}

proptest! {
    #[test]
    fn mending_twice_is_mending_once(
        start in "[ -~\\t\\n\\r]{0,20}",
        exotic in "[\\u{a0}\\u{200b}\\u{200d}\\u{301}éक्\\u{2028}\\u{3000}\\u{feff}👩\\x0c\\n a]{0,20}",
        any in "\\PC{0,10}",
    ) {
        let (once, _) = mended(&format!("{start}{exotic}{any}"), &CleanConfig::default());
        prop_assert_eq!(mended(&once, &CleanConfig::default()), (once, vec![]));
    }
}
