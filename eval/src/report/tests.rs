//! The report in its three forms, of a report with everything in it.

use super::*;
use crate::{
    advice::Advice,
    engine::Engine,
    perplexity::{self, Pieces, Windows},
    quality::{self, Setting},
    reference,
    score::Model,
    task::{self, Items, TaskConfig},
    testing::{tiny, tiny_of},
};
use fledgling_core::{generate::GenerateParams, quant::DType};
use fledgling_data::control::Quiet;

fn everything() -> Report {
    let place = tempfile::tempdir().unwrap();
    let rows = place.path().join("rows.jsonl");
    std::fs::write(
        &rows,
        "{\"t\": \"a\", \"c\": \"x\"}\n{\"t\": \"b\", \"c\": \"</script>\"}\n",
    )
    .unwrap();
    let task = TaskConfig::parse(
        "kind='classify'\nquestion='{{ t }}'\nanswer='c'",
        &[],
        "mine",
    )
    .unwrap();
    let items = Items::read(&task, &[rows]).unwrap();
    let opened = [tiny(), tiny_of(DType::F32, 9)];
    let cut = Windows {
        window: 32,
        stride: 32,
    };
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(8);
    let setting = Setting {
        prompts: vec!["<b>the</b>".to_owned()],
        chat: false,
        params: GenerateParams {
            max_tokens: Some(8),
            ..GenerateParams::default()
        },
    };
    let mut report = Report::default();
    for ((info, engine), name) in opened.iter().zip(["one", "<two>"]) {
        let engine = Engine::Cpu(engine);
        let model = Model { name, info, engine };
        let base = Model {
            name: "one",
            info: &opened[0].0,
            engine: Engine::Cpu(&opened[0].1),
        };
        let pieces = Pieces::of_text(info, &text, cut, usize::MAX).unwrap();
        let compared =
            (name != "one").then(|| reference::compare(&base, &[model], &pieces, &Quiet));
        report.models.push(ModelReport {
            model: name.to_owned(),
            perplexity: Some(perplexity::measure(&model, &pieces, &Quiet).unwrap()),
            tokens_per_s: Some(100.0),
            tasks: vec![task::run(&model, &task, &items, &Quiet).unwrap()],
            comparison: compared.map(|compared| compared.unwrap().remove(0)),
            quality: Some(quality::write_all(&model, &setting, &Quiet).unwrap()),
        });
    }
    report.advice.push(Advice {
        text: "Do <this>.".to_owned(),
        figure: "loss 1.0".to_owned(),
        changes: vec!["train.lr=1e-4".to_owned()],
        continuing: Vec::new(),
    });
    report
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_escapes_texts() {
    let page = everything().to_html().unwrap();
    assert!(
        !page.contains("src=") && !page.contains("://"),
        "no request"
    );
    assert!(page.contains("&lt;two&gt;") && !page.contains("<two>"));
    assert!(!page.contains("<b>the</b>"));
    assert_eq!(page.matches("</script>").count(), 2, "the page's own");
    for part in [
        "Perplexity",
        "Tasks",
        "Against the reference",
        "class=\"bars\"",
        "Rate the texts",
        "Do &lt;this&gt;.",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let empty = Report::default().to_html().unwrap();
    assert!(!empty.contains("<script"));
}

#[test]
fn the_json_has_its_fixed_fields_and_standard_errors() {
    let report = everything();
    let json = report.to_json();
    let model = &json["models"][1];
    assert_eq!(model["model"], "<two>");
    for field in [
        "perplexity",
        "perplexity_stderr",
        "tokens",
        "acc",
        "acc_stderr",
        "acc_norm",
        "macro_f1",
        "tokens_per_s",
    ] {
        assert!(model[field].is_number(), "{field}: {model}");
    }
    assert_eq!(model["acc"], model["tasks"]["mine"]["acc"]);
    assert!(model["reference"]["kl"].as_f64().unwrap() > 0.0);
    assert_eq!(json["models"][0]["reference"], serde_json::Value::Null);
    assert!(model["quality"]["repetition"].is_number());
    assert_eq!(json["advice"][0]["changes"][0], "train.lr=1e-4");
}

#[test]
fn the_tables_stand_in_columns() {
    let text = everything().to_text();
    assert!(
        text.contains("mine acc") && text.contains(" ± ") && text.contains("--set train.lr=1e-4"),
        "{text}"
    );
    let first: Vec<_> = text
        .lines()
        .take(3)
        .map(|line| line.chars().count())
        .collect();
    assert!(first[0] == first[1] && first[1] == first[2], "{text}");
}

#[test]
fn digits_follow_the_standard_error() {
    let check = |value, stderr, want: &str| {
        let (value, stderr) = written(&Estimate { value, stderr });
        let text = stderr.map_or(value.clone(), |stderr| format!("{value} ± {stderr}"));
        assert_eq!(text, want);
    };
    check(0.123_456, Some(0.012_3), "0.123 ± 0.012");
    check(21.456, Some(0.3), "21.46 ± 0.30");
    check(1234.5, None, "1234");
    check(0.000_123_4, None, "0.000123");
    check(0.5, Some(0.0), "0.5000 ± 0.0000");
}
