//! Tasks from their files to their figures, on a tiny model.

use super::*;
use crate::{engine::Engine, testing::tiny};
use fledgling_core::{cpu::CpuEngine, model::ModelInfo};
use fledgling_data::control::Quiet;
use std::{fs, path::PathBuf};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn builtin(name: &str, rows: &str) -> Items {
    let place = Place::new();
    let file = place.file("rows.jsonl", rows);
    Items::read(&TaskConfig::open(name, &[]).unwrap(), &[file]).unwrap()
}

fn only(items: &Items) -> (Vec<String>, Vec<String>, usize) {
    assert_eq!(items.items.len(), 1);
    match &items.items[0].ask {
        Ask::Choice {
            contexts,
            choices,
            answer,
        } => (contexts.clone(), choices.clone(), *answer),
        other => panic!("{other:?}"),
    }
}

/// The prompts that lm-evaluation-harness 0.4.13 makes of these rows (`tests/peers/lm_eval_tasks.py` prints them).
#[test]
fn builtin_tasks_ask_as_the_harness_does() {
    let hellaswag = r#"{"ind": 1, "activity_label": "Removing ice", "ctx_a": "Then, the man writes [step] over.", "ctx_b": "then HE", "ctx": "x", "endings": ["a [title] b", " c  d"], "label": "1"}"#;
    let (contexts, choices, answer) = only(&builtin("hellaswag", hellaswag));
    assert_eq!(
        contexts,
        ["Removing ice: Then, the man writes over. Then he"]
    );
    assert_eq!(
        (choices, answer),
        (vec!["a.  b".replace("  ", " "), "c d".to_owned()], 1)
    );

    let arc = r#"{"id": "x", "question": "Why?", "choices": {"text": ["p", "q", "r"], "label": ["1", "2", "3"]}, "answerKey": "3"}"#;
    let published = r#"{"id": "x", "question": {"stem": "Why?", "choices": [{"text": "p", "label": "1"}, {"text": "q", "label": "2"}, {"text": "r", "label": "3"}]}, "answerKey": "3"}"#;
    for row in [arc, published] {
        let (contexts, choices, answer) = only(&builtin("arc_easy", row));
        assert_eq!(contexts, ["Question: Why?\nAnswer:"]);
        assert_eq!(
            (choices, answer),
            (["p", "q", "r"].map(str::to_owned).to_vec(), 2)
        );
    }

    let winogrande = r#"{"sentence": "Sarah beat Maria so _ won it.", "option1": "Sarah", "option2": "Maria", "answer": "2"}"#;
    let (contexts, choices, answer) = only(&builtin("winogrande", winogrande));
    assert_eq!(
        contexts,
        ["Sarah beat Maria so Sarah", "Sarah beat Maria so Maria"]
    );
    assert_eq!((choices, answer), (vec!["won it.".to_owned()], 1));

    let openbookqa = r#"{"question_stem": "The sun", "choices": {"text": ["is", "was"], "label": ["A", "B"]}, "answerKey": "A"}"#;
    let published = r#"{"question": {"stem": "The sun", "choices": [{"text": "is", "label": "A"}, {"text": "was", "label": "B"}]}, "answerKey": "A"}"#;
    for row in [openbookqa, published] {
        let (contexts, choices, answer) = only(&builtin("openbookqa", row));
        assert_eq!(
            (contexts, choices, answer),
            (
                vec!["The sun".to_owned()],
                vec!["is".to_owned(), "was".to_owned()],
                0
            )
        );
    }

    for row in [
        r#"{"passage": "P.", "question": "is it", "label": 1}"#,
        r#"{"passage": "P.", "question": "is it", "answer": true}"#,
    ] {
        let (contexts, choices, answer) = only(&builtin("boolq", row));
        assert_eq!(contexts, ["P.\nQuestion: is it?\nAnswer:"]);
        assert_eq!(
            (choices, answer),
            (vec!["no".to_owned(), "yes".to_owned()], 1)
        );
    }

    let items = builtin("lambada", r#"{"text": "she said to her dear friend"}"#);
    let want = Ask::LastWord {
        context: "she said to her dear".to_owned(),
        target: " friend".to_owned(),
    };
    assert_eq!(items.items[0].ask, want);

    let requests = concat!(
        r#"{"request_type": "loglikelihood", "doc_id": 0, "label": 1, "request": {"context": "Q:", "continuation": " a"}}"#,
        "\n",
        r#"{"request_type": "loglikelihood", "doc_id": 0, "label": 1, "request": {"context": "Q:", "continuation": " b"}}"#,
        "\n",
        r#"{"request_type": "loglikelihood", "doc_id": 1000000, "label": 1, "request": {"context": "A:", "continuation": " a"}}"#,
        "\n",
    );
    let (contexts, choices, answer) = only(&builtin("requests", requests));
    assert_eq!(
        (contexts, choices, answer),
        (
            vec!["Q:".to_owned(); 2],
            vec!["a".to_owned(), "b".to_owned()],
            1
        )
    );
}

#[test]
fn labels_may_stand_in_a_file_of_their_own() {
    let place = Place::new();
    let rows = "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\"}\n{\"goal\": \"h\", \"sol1\": \"a\", \"sol2\": \"b\"}\n";
    let file = place.file("valid.jsonl", rows);
    let task = TaskConfig::open("piqa", &[]).unwrap();
    let error = format!(
        "{:#}",
        Items::read(&task, std::slice::from_ref(&file)).unwrap_err()
    );
    assert!(
        error.contains("valid.jsonl:1: `answer` needs the field `label`"),
        "{error}"
    );
    place.file("valid-labels.lst", "0\n1\n");
    let items = Items::read(&task, std::slice::from_ref(&file)).unwrap();
    let answers = items.items.iter().map(|item| match item.ask {
        Ask::Choice { answer, .. } => answer,
        _ => 9,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [0, 1]);
    place.file("valid-labels.lst", "0\n");
    let error = format!(
        "{:#}",
        Items::read(&task, std::slice::from_ref(&file)).unwrap_err()
    );
    assert!(error.contains("has only 1 lines"), "{error}");
    place.file("valid-labels.lst", "0\n1\n1\n");
    let error = format!(
        "{:#}",
        Items::read(&task, std::slice::from_ref(&file)).unwrap_err()
    );
    assert!(error.contains("3 lines for the 2 rows"), "{error}");
}

#[test]
fn bad_rows_are_named() {
    let place = Place::new();
    let check = |task: &str, rows: &str, expect: &str| {
        let file = place.file("rows.jsonl", rows);
        let error = Items::read(&TaskConfig::open(task, &[]).unwrap(), &[file]).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expect), "{error}");
    };
    let good = r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}"#;
    check(
        "arc_easy",
        &format!("{good}\n{}", good.replace("\"A\"}", "\"E\"}")),
        "rows.jsonl:2: `answer` is `E`, which is none of the labels `A`, `B`",
    );
    check(
        "arc_easy",
        &good.replace("answerKey", "key"),
        "rows.jsonl:1: `answer` needs the field `answerKey`",
    );
    check(
        "arc_easy",
        &good.replace("\"text\"", "\"txt\""),
        "rows.jsonl:1: `choices`",
    );
    check("arc_easy", "{", "rows.jsonl:1");
    check(
        "hellaswag",
        r#"{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["x", "y"], "label": 2}"#,
        "`answer` is 2, but the 2 choices have the numbers 0 to 1",
    );
    check(
        "hellaswag",
        r#"{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["x"], "label": 0}"#,
        "two are needed",
    );
    check("lambada", r#"{"text": "word"}"#, "there is no last word");
    check("lambada", "", "has no rows");
}

fn ask(task: &str, rows: &str) -> (TaskResult, Items, ModelInfo, CpuEngine) {
    let place = Place::new();
    let task = TaskConfig::parse(task, &[], "mine").unwrap();
    let file = place.file("rows.jsonl", rows);
    let items = Items::read(&task, &[file]).unwrap();
    let (info, engine) = tiny();
    let model = Model {
        name: "tiny",
        info: &info,
        engine: Engine::Cpu(&engine),
    };
    let result = run(&model, &task, &items, &Quiet).unwrap();
    (result, items, info, engine)
}

#[test]
fn choices_are_counted_by_sum_and_by_length() {
    let rows =
        "{\"q\": \"the cat\", \"c\": [\"sat on the mat\", \"x\", \"and the dog\"], \"a\": 1}\n"
            .repeat(3);
    let task = "kind='multiple_choice'\nquestion='{{ q }}'\nchoices='c'\nanswer='a'";
    let (result, _, info, engine) = ask(task, &rows);
    let sums: Vec<f64> = ["sat on the mat", "x", "and the dog"]
        .iter()
        .map(|choice| {
            let sequence = Sequence::of_pair(&info, "the cat", &format!(" {choice}")).unwrap();
            let scored = score(Engine::Cpu(&engine), &[vec![sequence]], &Quiet, "").unwrap();
            scored[0][0].log_prob()
        })
        .collect();
    assert_eq!(result.answers[2].log_probs, sums);
    let best = argmax(sums.iter().copied());
    let best_norm = argmax(sums.iter().zip([14.0, 1.0, 11.0]).map(|(sum, n)| sum / n));
    let acc = result.metric("acc").unwrap();
    assert!((acc.value - f64::from(u8::from(best == 1))).abs() < 1e-12);
    assert_eq!(acc.stderr, Some(0.0));
    let norm = result.metric("acc_norm").unwrap().value;
    assert!((norm - f64::from(u8::from(best_norm == 1))).abs() < 1e-12);
    assert!((result.chance.unwrap() - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn classes_are_those_of_the_rows() {
    let rows = "{\"t\": \"one\", \"c\": \"b\"}\n{\"t\": \"two\", \"c\": \"a\"}\n{\"t\": \"six\", \"c\": \"b\"}\n";
    let task = "kind='classify'\nquestion='{{ t }}:'\nanswer='c'";
    let (result, items, ..) = ask(task, rows);
    assert_eq!(items.labels, ["a", "b"]);
    let confusion = result.confusion.unwrap();
    assert_eq!(confusion.counts.iter().flatten().sum::<u64>(), 3);
    assert_eq!(confusion.classes[1].support, 2);
}

#[test]
fn answers_are_written_and_compared() {
    let rows = "{\"q\": \"the\", \"a\": [\"x\", \"y\"]}\n{\"q\": \"and\", \"a\": \"z\"}\n";
    let task = "kind='generate'\nquestion='{{ q }}'\nanswer='a'\nmax_tokens=5";
    let (result, items, ..) = ask(task, rows);
    let Ask::Generate { references, .. } = &items.items[0].ask else {
        panic!("it is one");
    };
    assert_eq!(references, &["x", "y"]);
    assert!(result.answers.iter().all(|answer| !answer.said.is_empty()));
    assert!(result.metric("f1").unwrap().value < 1.0);
}

#[test]
fn examples_stand_before_each_question_and_change_nothing_but_it() {
    let place = Place::new();
    let shots = "{\"q\": \"1?\", \"a\": \"A\"}\n{\"q\": \"2?\", \"a\": \"B\"}\n{\"q\": \"3?\", \"a\": \"B\"}\n";
    place.file("shots.jsonl", shots);
    let rows = place.file("rows.jsonl", "{\"q\": \"why\", \"a\": \"B\"}\n");
    let text = "kind='classify'\nquestion='{{ q }}'\nanswer='a'\nlabels=['A','B']\nshots=2\nshots_files=['shots.jsonl']\ndescription='D. '";
    let mut task = TaskConfig::parse(text, &[], "mine").unwrap();
    place.0.path().clone_into(&mut task.folder);
    let items = Items::read(&task, std::slice::from_ref(&rows)).unwrap();
    let solved = ["1? A", "2? B", "3? B"];
    assert!(items.header.starts_with("D. ") && items.header.ends_with("\n\n"));
    let n_there = solved
        .iter()
        .filter(|text| items.header.contains(*text))
        .count();
    assert_eq!(n_there, 2, "{}", items.header);
    let again = Items::read(&task, std::slice::from_ref(&rows)).unwrap();
    assert_eq!(items, again);
    task.shots = 4;
    let error = Items::read(&task, &[rows]).unwrap_err().to_string();
    assert!(error.contains("only 3 rows"), "{error}");
}

#[test]
fn a_question_that_is_too_long_is_cut_and_counted() {
    let rows = format!(
        "{{\"text\": \"{} end\"}}\n",
        "word and the other ".repeat(60)
    );
    let (result, ..) = ask("kind='last_word'\ntext='{{ text }}'", &rows);
    assert_eq!(result.truncated, 1);
    assert!(result.metric("perplexity").unwrap().value > 1.0);
}
