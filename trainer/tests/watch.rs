//! What is seen of a run, while it trains and afterwards: `metrics.jsonl`, `report.html`, `fledgling runs`, the screen.

#![cfg(feature = "train")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::Place;
use fledgling::{
    report::events::{Event, Line},
    runs,
};
use fledgling_core::{quant::DType, spec::Family};
use serde_json::Value;
use std::{
    fs,
    process::{Command, Stdio},
};

/// A place with a config of a tiny run of six steps.
fn place() -> Place {
    let place = Place::new();
    place.tiny("base.gguf", Family::Gpt2, DType::F32);
    place.write("text.txt", "the cat and the hat ".repeat(40));
    place.write(
        "tiny.toml",
        "name='tiny'\nmode='lora'\nbase='base.gguf'\nthreads=1\n[data]\ntrain=['text.txt']\nvalid=['text.txt']\nmax_tokens=16\n\
         [train]\nbatch=2\nsteps=6\neval_every=3\nlr=1e-2\n",
    );
    place
}

fn events(place: &Place, run: &str) -> Vec<Event> {
    let text = fs::read_to_string(place.path(&format!("runs/{run}/metrics.jsonl"))).unwrap();
    let lines = text.lines().map(|line| Line::parse(line).unwrap());
    lines
        .inspect(|line| assert!(line.time > 1.7e9))
        .map(|line| line.event)
        .collect()
}

#[test]
fn a_run_that_is_interrupted_and_resumed_leaves_one_history_and_a_report() {
    let place = place();
    let stopped = place.run(&["train", "tiny.toml", "--until", "4"]);
    assert_eq!(stopped.status, 130, "{}", stopped.stderr);
    let list = |args: &[&str]| -> Value { place.run(args).json() };
    let run = list(&["runs", "--json"])["runs"][0].clone();
    assert_eq!(
        (&run["state"], &run["step"], &run["steps"]),
        (&"interrupted".into(), &4.into(), &6.into())
    );
    assert!(place.path("runs/tiny/report.html").is_file());
    place
        .run(&["train", "tiny.toml", "--resume", "--quiet"])
        .ok();

    let events = events(&place, "tiny");
    let steps: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Step(step) => Some(step.step),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    let begins = events.iter().filter(|e| matches!(e, Event::Begin(_)));
    assert_eq!(begins.count(), 2);
    assert!(matches!(events.last(), Some(Event::End(_))));
    let run = list(&["runs", "list", "--json"])["runs"][0].clone();
    assert_eq!(
        (&run["state"], &run["name"]),
        (&"finished".into(), &"tiny".into())
    );
    let before = run["perplexity_before"].as_f64().unwrap();
    assert!(run["perplexity"].as_f64().unwrap() < before);
    assert!(run["seconds"].as_f64().unwrap() > 0.0 && run["tokens"].as_u64().unwrap() > 100);

    let page = fs::read_to_string(place.path("runs/tiny/report.html")).unwrap();
    for part in [
        "in 2 starts",
        "Gradient norm",
        "lr = 0.01",
        "text.txt",
        ">finished<",
        "training goes on",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let other = place.path("other.html");
    place
        .run(&["runs", "report", "tiny", "-o", "other.html"])
        .ok();
    assert_eq!(fs::read_to_string(other).unwrap(), page);
    let shown = place.run(&["runs", "show", "tiny"]).ok();
    assert!(
        shown.contains("held-out loss") && shown.contains("at step 6"),
        "{shown}"
    );
}

#[test]
fn runs_are_compared_by_what_differs() {
    let place = place();
    place.run(&["train", "tiny.toml", "--quiet"]).ok();
    place
        .run(&[
            "train",
            "tiny.toml",
            "--quiet",
            "--set",
            "name=other",
            "--set",
            "train.lr=1e-3",
            "--set",
            "lora.rank=2",
        ])
        .ok();
    let text = place
        .run(&["runs", "compare", "tiny", "other", "--html", "compare.html"])
        .ok();
    let keys: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| word.contains('.') && !word.starts_with("compare"))
        .collect();
    assert!(
        keys.contains(&"train.lr") && !keys.contains(&"train.batch"),
        "{text}"
    );
    assert!(text.contains("perplexity") && text.contains("→"), "{text}");
    let page = fs::read_to_string(place.path("compare.html")).unwrap();
    assert!(page.contains("train.lr") && page.contains("<svg") && !page.contains("train.batch"));
    let json: Value = place
        .run(&["runs", "compare", "tiny", "other", "--json"])
        .json();
    assert_eq!(json["config"]["train.lr"], serde_json::json!([0.01, 0.001]));
    let wrong = place.run(&["runs", "show", "tinny"]);
    assert_eq!(wrong.status, 2);
    assert!(
        wrong.stderr.contains("did you mean `tiny`?"),
        "{}",
        wrong.stderr
    );
}

#[test]
fn broken_and_half_written_folders_are_listed_with_the_reason() {
    let place = place();
    place.write("runs/cut/run.json", "{\"format\":1,\"na");
    place.write("runs/later/run.json", "{\"format\":99,\"name\":\"later\",\"mode\":\"lora\",\"base\":{\"name\":\"b\",\"path\":\"b\",\"sha256\":\"\"},\"step\":1}");
    place.write("runs/begun/config.toml", "name = 'begun'\n");
    place.write("runs/killed/metrics.jsonl", "{\"event\":\"begin\",\"time\":1.8e9,\"step\":0,\"steps\":9,\"run\":\"killed\"}\n{\"event\":\"step\",\"time\":1.8e9,\"step\":1,\"loss\":2.0}\n{\"event\":\"st");
    place.write("runs/empty/metrics.jsonl", "");
    place.write("runs/notes/readme.txt", "no run");
    place.write("runs/file", "no folder");
    let json: Value = place.run(&["runs", "--json"]).json();
    let state = |name: &str| {
        let runs = json["runs"].as_array().unwrap();
        let run = runs
            .iter()
            .find(|run| run["folder"].as_str().unwrap().ends_with(name));
        run.map(|run| {
            (
                run["state"].clone(),
                run["reason"].as_str().unwrap_or_default().to_owned(),
            )
        })
    };
    let (cut, later) = (state("cut").unwrap(), state("later").unwrap());
    assert!(cut.0 == "broken" && cut.1.contains("run.json"), "{cut:?}");
    assert!(
        later.0 == "broken" && later.1.contains("format 99"),
        "{later:?}"
    );
    assert_eq!(state("begun").unwrap().0, "broken");
    assert_eq!(state("empty").unwrap().0, "broken");
    let killed = state("killed").unwrap();
    assert!(
        killed.0 == "interrupted" && killed.1.contains("without saying"),
        "{killed:?}"
    );
    assert_eq!((state("notes"), state("file")), (None, None));
    let text = place.run(&["runs"]).ok();
    assert!(
        text.contains("cut: broken: ") && text.contains("killed"),
        "{text}"
    );
    for name in ["cut", "begun", "killed", "empty"] {
        // What there is of them can be shown, or the error says why not.
        let shown = place.run(&["runs", "show", name]);
        assert_eq!(shown.status, 0, "{}", shown.stderr);
        let compared = place.run(&["runs", "compare", name, "killed"]);
        assert!(!compared.stderr.contains("panicked"), "{}", compared.stderr);
        let report = place.run(&["runs", "report", name]);
        assert!(!report.stderr.contains("panicked"), "{}", report.stderr);
    }
}

#[test]
fn only_one_process_trains_a_run_and_others_see_that_it_does() {
    let place = place();
    place.run(&["train", "tiny.toml", "--until", "2", "--quiet"]);
    let folder = place.path("runs/tiny");
    // The end of the first start is no longer the last line once another begins.
    let metrics = folder.join("metrics.jsonl");
    let begun = fs::read_to_string(&metrics).unwrap()
        + "{\"event\":\"begin\",\"time\":1.8e9,\"step\":2,\"steps\":6,\"run\":\"tiny\"}\n";
    fs::write(&metrics, &begun).unwrap();
    let lock = runs::lock(&folder).unwrap();
    for args in [
        ["train", "tiny.toml", "--force"],
        ["train", "tiny.toml", "--resume"],
    ] {
        let refused = place.run(&args);
        assert_eq!(refused.status, 1);
        assert!(
            refused.stderr.contains("another process trains the run"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(
        fs::read_to_string(&metrics).unwrap(),
        begun,
        "nothing was touched"
    );
    assert!(place.run(&["runs"]).ok().contains("running"));
    drop(lock);
    assert!(!place.run(&["runs"]).ok().contains("running"));
    place
        .run(&["train", "tiny.toml", "--resume", "--quiet"])
        .ok();
}

#[test]
fn hostile_texts_stay_texts() {
    let place = Place::new();
    let evil = "</title></pre><script>alert(1)</script><img src=x onerror=alert(1)>\\u001b[2J";
    let line = |event: &str, more: &str| {
        format!("{{\"event\":\"{event}\",\"time\":1.8e9,\"step\":1,{more}}}\n")
    };
    let step = |step: u64| {
        format!(
            "{{\"event\":\"step\",\"time\":1.8e9,\"step\":{step},\"loss\":2.5,\"lr\":0.1,\"grad_norm\":1.0,\"tokens_per_s\":5.0}}\n"
        )
    };
    let metrics = [
        line(
            "begin",
            &format!(
                "\"steps\":9,\"run\":\"{evil}\",\"mode\":\"{evil}\",\"base\":\"{evil}\",\"device\":\"{evil}\",\"data\":[{{\"part\":\"{evil}\",\"paths\":[\"{evil}\"]}}],\"environment\":{{\"cpu\":\"{evil}\"}}"
            ),
        ),
        step(1),
        step(2),
        line(
            "sample",
            &format!("\"prompt\":\"{evil}\",\"text\":\"{evil}\""),
        ),
        line("note", &format!("\"text\":\"{evil}\"")),
        line("checkpoint", &format!("\"path\":\"{evil}\"")),
        line(
            "end",
            &format!("\"state\":\"failed\",\"reason\":\"{evil}\""),
        ),
    ];
    for name in ["a", "b"] {
        place.write(&format!("runs/{name}/metrics.jsonl"), metrics.concat());
        place.write(
            &format!("runs/{name}/config.toml"),
            format!("name = '{evil}{name}'\nbase = '{evil}{name}'\n"),
        );
    }
    place.run(&["runs", "report", "a"]).ok();
    let text = place
        .run(&["runs", "compare", "a", "b", "--html", "compare.html"])
        .ok()
        + &place.run(&["runs"]).ok()
        + &place.run(&["runs", "show", "a"]).ok();
    assert!(!text.contains('\u{1b}'), "{text:?}");
    for file in ["runs/a/report.html", "compare.html"] {
        let page = fs::read_to_string(place.path(file)).unwrap();
        assert!(page.contains("&lt;script&gt;"), "{file}");
        for bad in [
            "<script", "<img", "src=", "href=", "http:", "https:", "url(",
        ] {
            let found = page
                .find(bad)
                .map(|at| &page[at.saturating_sub(80)..at + 20]);
            assert!(
                found.is_none_or(|found| found.contains("&lt;")),
                "{file}: {found:?}"
            );
        }
        assert!(!page.contains("<script") && !page.contains("<img"));
    }
}

/// In a terminal of its own, through `script` of util-linux.
#[cfg(target_os = "linux")]
#[test]
fn the_terminal_is_given_back() {
    let place = place();
    let inner = format!(
        "stty rows 30 cols 100; {} train tiny.toml --until 4; echo status $?; stty -a",
        env!("CARGO_BIN_EXE_fledgling")
    );
    let run = |term: &str| {
        let mut command = Command::new("script");
        let started = command
            .args(["-qec", &inner, "/dev/null"])
            .current_dir(place.path(""))
            .env("FLEDGLING_HOME", place.path("home"))
            .env("TERM", term)
            .stdin(Stdio::null())
            .output();
        let _ = fs::remove_dir_all(place.path("runs"));
        started
            .ok()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(text) = run("xterm-256color") else {
        println!("there is no `script` here: nothing was tested");
        return;
    };
    let (enter, leave) = (text.find("\u{1b}[?1049h"), text.find("\u{1b}[?1049l"));
    assert!(enter.is_some() && enter < leave, "{text:?}");
    let after = &text[leave.unwrap()..];
    assert!(
        after.contains("\u{1b}[?25h"),
        "the cursor is shown: {after:?}"
    );
    assert!(
        after.contains("held-out loss") && after.contains("step 4 of 6"),
        "{after:?}"
    );
    assert!(after.contains("status 130"), "{after:?}");
    assert!(
        after.contains(" icanon ") && after.contains(" echo "),
        "{after:?}"
    );
    let dumb = run("dumb").unwrap();
    assert!(
        !dumb.contains("\u{1b}[?1049h") && dumb.contains("status 130"),
        "{dumb:?}"
    );
}
