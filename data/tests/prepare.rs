//! All stages together: from files to shards, again, stopped in the middle, and with what is wrong.

#![allow(clippy::unwrap_used, reason = "a test")]

use fledgling_core::{
    gguf::Header, model::ModelInfo, quant::DType, spec::Family, testing::tiny_model,
};
use fledgling_data::{
    config::{Config, PackMode, Split},
    control::{Cancelled, Control, Quiet, Unit},
    encode::Encoder,
    prepare::{Outcome, REPORT_FILE, prepare},
    shards::{MANIFEST_FILE, Shards},
    toml_config,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

fn encoder() -> Encoder {
    let header = Header::parse(&tiny_model(Family::Llama, DType::Q8_0, 1)).unwrap();
    Encoder::from_model(&ModelInfo::from_header(&header).unwrap())
}

fn run(config: &Config) -> anyhow::Result<Outcome> {
    prepare(config, &encoder(), &Quiet)
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A config with `sources` (names within the folder) and more lines.
    fn config(&self, sources: &[&str], more: &str) -> Config {
        let mut text = format!(
            "out = '{}'\ntokenizer = 'tiny'\ncontext = 512\n",
            self.at("out").display()
        );
        text += more;
        for source in sources {
            let (path, keys) = source.split_once(' ').unwrap_or((source, ""));
            text += &format!(
                "\n[[source]]\npath = '{}'\n{keys}\n",
                self.at(path).display()
            );
        }
        toml_config::parse(&text, &[]).unwrap()
    }

    /// Every file of the dataset.
    fn dataset(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.at("out"))
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// A sentence of its own for each number.
fn sentence(i: usize) -> String {
    let words = [
        "river", "stone", "bright", "walks", "under", "seven", "quiet", "lamp",
    ];
    (0..12)
        .map(|k| format!("{}{}", words[(i * 7 + k * 3) % 8], (i * 31 + k * 17) % 97))
        .collect::<Vec<_>>()
        .join(" ")
}

fn jsonl(range: std::ops::Range<usize>) -> String {
    range
        .map(|i| serde_json::json!({"text": sentence(i)}).to_string() + "\n")
        .collect()
}

/// The texts of a split, row by row.
fn texts(out: &Path, split: Split) -> Vec<String> {
    let shards = Shards::open(out).unwrap();
    shards.verify(&Quiet).unwrap();
    let encoder = encoder();
    let Some(split) = shards.split(split) else {
        return Vec::new();
    };
    let mut texts = Vec::new();
    for idx in 0..split.n_rows() {
        let row = split.row(idx).unwrap();
        let mut start = 0;
        for len in row.segments {
            let ids = &row.tokens[start..start + len as usize];
            texts.push(encoder.tokenizer().decode(ids, true).trim().to_owned());
            start += len as usize;
        }
    }
    texts
}

const ONE: &str = "pack.mode = 'one'\nsplit.valid = 0.2\nsplit.test = 0.1\n";

#[test]
fn documents_of_all_shapes_become_rows_of_their_splits() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..40));
    place.write("b/one.txt", "a text in a file of its own");
    place.write("b/two.md", "# A page\n\nwith a line");
    place.write("b/skipped.xyz", "no format has this name");
    place.write(
        "c.csv",
        "question,answer\nwhat is it,\"a \"\"quoted\"\" thing\"\nand now,nothing\n",
    );
    let config = place.config(&["a.jsonl", "b", "c.csv"], ONE);
    let outcome = run(&config).unwrap();
    let report = outcome.report;
    let found: Vec<_> = report
        .sources
        .iter()
        .map(|s| (s.files, s.documents, s.kept))
        .collect();
    assert_eq!(found, [(1, 40, 40), (2, 2, 2), (1, 2, 2)]);
    assert_eq!(report.unread_files.values().sum::<u64>(), 1);
    let out = place.at("out");
    let all: Vec<String> = [Split::Train, Split::Valid, Split::Test]
        .into_iter()
        .flat_map(|split| texts(&out, split))
        .collect();
    assert_eq!(all.len(), 44);
    for wanted in [
        &sentence(3),
        "a text in a file of its own",
        "a \"quoted\" thing",
    ] {
        assert!(
            all.iter().any(|text| text.contains(wanted.trim())),
            "{wanted}: {all:?}"
        );
    }
    let valid = texts(&out, Split::Valid).len();
    assert!((3..=16).contains(&valid), "{valid} of 44 at a share of 0.2");
    assert!(
        fs::read_to_string(out.join(REPORT_FILE))
            .unwrap()
            .contains("44")
    );
    assert!(!out.join(".work").exists() && !out.join(".new").exists());
}

#[test]
fn threads_and_a_second_run_change_nothing_and_a_finished_one_is_not_repeated() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..300));
    let more = "[dedupe]\nnear = true\n[split]\nvalid = 0.2\n";
    let mut config = place.config(&["a.jsonl"], more);
    config.threads = 1;
    assert!(!run(&config).unwrap().up_to_date);
    let first = place.dataset();
    config.threads = 4;
    let again = run(&config).unwrap();
    assert!(again.up_to_date && again.report.n_kept() > 0);
    fs::remove_dir_all(place.at("out")).unwrap();
    assert!(!run(&config).unwrap().up_to_date);
    assert_eq!(first, place.dataset());
    config.context = 32;
    assert!(!run(&config).unwrap().up_to_date);
}

#[test]
fn duplicates_go_and_what_is_held_out_is_not_trained_on() {
    let place = Place::new();
    let long: Vec<String> = (0..4).map(sentence).collect();
    let leaked = format!("before it {} and after it", long.join(" "));
    let train = format!(
        "{{\"text\": {0:?}}}\n{{\"text\": {1:?}}}\n{{\"text\": {leaked:?}}}\n{{\"text\": {2:?}}}\n",
        sentence(50),
        sentence(50).to_uppercase() + "!",
        sentence(51),
    );
    place.write("train.jsonl", &train);
    place.write(
        "test.jsonl",
        &format!("{{\"text\": {:?}}}\n", long.join(" ")),
    );
    place.write(
        "both.jsonl",
        &format!("{{\"text\": {:?}}}\n", long.join(" ")),
    );
    let config = place.config(
        &["train.jsonl", "both.jsonl", "test.jsonl split = 'test'"],
        "pack.mode = 'one'\nsplit.valid = 0.0\n",
    );
    let report = run(&config).unwrap().report;
    let dropped: BTreeMap<_, _> = report
        .steps
        .iter()
        .map(|step| (step.name.as_str(), step.dropped))
        .collect();
    assert_eq!(
        dropped,
        BTreeMap::from([("dedupe.exact", 2), ("dedupe.leak_ngram", 1)])
    );
    let out = place.at("out");
    assert_eq!(
        texts(&out, Split::Test).len(),
        1,
        "the test set lost nothing"
    );
    let train = texts(&out, Split::Train);
    assert_eq!(train.len(), 2, "{train:?}");
    assert!(train.iter().any(|text| text.contains(&sentence(51))));
}

#[test]
fn files_outside_are_kept_out() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..20));
    let long = format!("{} {}", sentence(90), sentence(91));
    place.write(
        "a2.jsonl",
        &format!("{{\"text\": {:?}}}\n", format!("so {long} it is")),
    );
    place.write("bench.txt", &long);
    let bench = format!("{:?}", place.at("bench.txt"));
    let config = place.config(
        &["a.jsonl", "a2.jsonl"],
        &format!("split.valid = 0.0\ndedupe.decontaminate = [{bench}]\n"),
    );
    let report = run(&config).unwrap().report;
    let step = report
        .steps
        .iter()
        .find(|step| step.name == "dedupe.leak_ngram")
        .unwrap();
    assert_eq!((step.dropped, step.examples.len()), (1, 1));
    assert!(
        step.examples[0].why.contains("bench.txt"),
        "{:?}",
        step.examples
    );
    assert!(run(&config).unwrap().up_to_date);
    place.write("bench.txt", "nothing of the kind any more");
    let again = run(&config).unwrap();
    assert!(!again.up_to_date, "the files to be kept out have changed");
    assert!(
        again
            .report
            .steps
            .iter()
            .all(|step| step.name != "dedupe.leak_ngram")
    );
}

/// Stops at the nth question.
struct StopAt {
    left: AtomicUsize,
}

impl Control for StopAt {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_err()
    }
}

#[test]
fn stopped_anywhere_it_leaves_what_was_there_and_goes_on_to_the_same_result() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..60));
    let config = place.config(
        &["a.jsonl"],
        "[dedupe]\nnear = true\n[clean]\nboilerplate_docs = 50\n",
    );
    run(&config).unwrap();
    let whole = place.dataset();
    fs::remove_dir_all(place.at("out")).unwrap();
    place.write("old.jsonl", &jsonl(100..130));
    run(&place.config(&["old.jsonl"], "")).unwrap();
    let old = place.dataset();
    let mut n_stops = 0;
    for left in 0.. {
        let control = StopAt {
            left: AtomicUsize::new(left),
        };
        match prepare(&config, &encoder(), &control) {
            Ok(_) => break,
            Err(error) => {
                assert!(error.is::<Cancelled>(), "{error:#}");
                assert_eq!(place.dataset(), old, "after {left} questions");
                n_stops += 1;
            }
        }
    }
    assert!(n_stops >= 5, "{n_stops} stops tried");
    assert_eq!(place.dataset(), whole);
}

#[test]
fn lines_that_repeat_across_documents_go() {
    let place = Place::new();
    let footer = "Subscribe to our newsletter today";
    for i in 0..6 {
        place.write(
            &format!("d/{i}.txt"),
            &format!("{}\n{footer}\n", sentence(i)),
        );
    }
    place.write("d/last.txt", footer);
    let label =
        "{\"prompt\": \"which one\", \"completion\": \"Subscribe to our newsletter today\"}\n";
    place.write("labels.jsonl", label);
    let config = place.config(
        &["d", "labels.jsonl"],
        "split.valid = 0.0\nclean.boilerplate_docs = 5\npack.mode = 'one'\n",
    );
    let report = run(&config).unwrap().report;
    let texts = texts(&place.at("out"), Split::Train);
    assert_eq!(texts.len(), 7);
    let with_it: Vec<_> = texts
        .iter()
        .filter(|text| text.contains("newsletter"))
        .collect();
    assert!(
        with_it.len() == 1 && with_it[0].contains("which one"),
        "{texts:?}"
    );
    assert_eq!(report.changed["boilerplate_docs"], 7);
    assert_eq!(report.n_documents(), 8);
}

#[test]
fn a_bad_line_is_named_or_counted() {
    let place = Place::new();
    place.write(
        "a.jsonl",
        &format!("{}{{\"text\": oops}}\n{}", jsonl(0..3), jsonl(3..5)),
    );
    let mut config = place.config(&["a.jsonl"], "split.valid = 0.0\npack.mode = 'one'\n");
    let error = format!("{:#}", run(&config).unwrap_err());
    assert!(
        error.contains("a.jsonl:4") && error.contains("--skip-bad"),
        "{error}"
    );
    config.skip_bad = true;
    let report = run(&config).unwrap().report;
    assert_eq!(report.n_kept(), 5);
    let step = &report.steps[0];
    assert_eq!((step.name.as_str(), step.dropped), ("skip_bad", 1));
    assert!(step.examples[0].place.ends_with("a.jsonl:4"), "{step:?}");
}

#[test]
fn a_bad_line_ends_it_however_much_follows() {
    let place = Place::new();
    // More batches than wait between two threads.
    let many: String = (0..40).map(|_| jsonl(0..1000)).collect();
    place.write("a.jsonl", &format!("oops\n{many}"));
    let error = run(&place.config(&["a.jsonl"], "threads = 1\n")).unwrap_err();
    assert!(format!("{error:#}").contains("a.jsonl:1"), "{error:#}");
    assert!(
        !place.at("out").exists(),
        "nothing was done, so nothing is left"
    );
}

#[test]
fn mistakes_are_named_and_leave_what_was_there() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..30));
    run(&place.config(&["a.jsonl"], "")).unwrap();
    let before = place.dataset();
    place.write("empty.txt", " \n");
    let check = |sources: &[&str], more: &str, expect: &str| {
        let Err(error) = run(&place.config(sources, more)) else {
            panic!("no error: {expect}");
        };
        let error = format!("{error:#}");
        assert!(error.contains(expect), "{error}");
        assert_eq!(place.dataset(), before, "{expect}");
    };
    check(&["none.jsonl"], "", "none.jsonl");
    check(&["empty.txt"], "", "nothing is left after cleaning");
    check(&["a.jsonl"], "clean.languages = ['xyz']\n", "xyz");
    check(
        &["a.jsonl"],
        "split.valid = 0.7\nsplit.test = 0.4\n",
        "split.valid",
    );
    check(&["a.jsonl"], "dedupe.threshold = 2.0\n", "threshold");
    check(
        &["a.jsonl"],
        "clean.min_chars = 100000\n",
        "nothing is left after cleaning",
    );
    check(
        &["a.jsonl", "a.jsonl split = 'valid'"],
        "",
        "belongs to two splits",
    );
    check(
        &["a.jsonl split = 'valid'"],
        "",
        "no document is left to train on",
    );
    check(&["a.jsonl fields.text = 'body'"], "", "`body`");
}

#[test]
fn more_documents_move_none_of_the_others() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..100));
    place.write("b.jsonl", &jsonl(100..160));
    let split = |sources: &[&str], split| -> BTreeSet<String> {
        run(&place.config(sources, ONE)).unwrap();
        texts(&place.at("out"), split).into_iter().collect()
    };
    for which in [Split::Train, Split::Valid, Split::Test] {
        let few = split(&["a.jsonl"], which);
        let more = split(&["b.jsonl", "a.jsonl"], which);
        assert!(few.is_subset(&more), "{which:?}");
    }
}

#[test]
fn rows_are_packed_as_asked() {
    let place = Place::new();
    place.write("a.jsonl", &jsonl(0..50));
    for mode in [PackMode::Segments, PackMode::Concat, PackMode::One] {
        let mut config = place.config(&["a.jsonl"], "split.valid = 0.0\n");
        config.pack.mode = mode;
        run(&config).unwrap();
        let shards = Shards::open(&place.at("out")).unwrap();
        let train = shards.split(Split::Train).unwrap();
        let rows: Vec<_> = (0..train.n_rows())
            .map(|idx| train.row(idx).unwrap())
            .collect();
        let most_segments = rows.iter().map(|row| row.segments.len()).max().unwrap();
        assert_eq!(most_segments > 1, mode == PackMode::Segments);
        assert!(rows.iter().all(|row| row.n_positions() <= 512));
        let manifest: serde_json::Value =
            serde_json::from_slice(&place.dataset()[MANIFEST_FILE]).unwrap();
        assert_eq!(
            manifest["config"]["pack"]["mode"],
            serde_json::to_value(mode).unwrap()
        );
    }
}
