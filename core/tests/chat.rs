//! Chat templates against transformers' own rendering (fixtures/chat/make.py).

#![allow(clippy::unwrap_used, reason = "a test")]

use fledgling_core::chat::{ChatError, ChatTemplate, Message};
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Fixture {
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    prompt: Option<String>,
    refused: Option<String>,
}

#[test]
fn prompts_equal_those_of_transformers() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/chat/cases.json")).unwrap();
    assert!(fixture.cases.len() >= 80);
    for case in fixture.cases {
        let template =
            ChatTemplate::new(&fixture.templates[&case.template], "<s>", "</s>").unwrap();
        let got = template.render(&case.messages, case.add_generation_prompt);
        let want = match (case.prompt, case.refused) {
            (Some(prompt), _) => Ok(prompt),
            (None, words) => Err(ChatError::Refused(words.unwrap())),
        };
        assert_eq!(got, want, "{} {:?}", case.template, case.messages);
    }
}

fn user(content: &str) -> Vec<Message> {
    vec![Message {
        role: "user".into(),
        content: content.into(),
    }]
}

#[test]
fn a_broken_template_is_a_syntax_error_with_its_line() {
    let error = ChatTemplate::new("a\n{% for m in %}", "", "").unwrap_err();
    assert!(
        matches!(&error, ChatError::Syntax(words) if words.contains(":2")),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let template = ChatTemplate::new("{{ strftime_now('%Y') }}", "", "").unwrap();
    let error = template.render(&user("a"), true).unwrap_err().to_string();
    assert!(error.contains("strftime_now"), "{error}");
    let template = ChatTemplate::new(
        "{% if strftime_now is defined %}no{% else %}fine{% endif %}",
        "",
        "",
    )
    .unwrap();
    assert_eq!(template.render(&user("a"), true).unwrap(), "fine");
}

#[test]
fn an_endless_template_ends() {
    let loops = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(loops, "", "").unwrap();
    assert!(matches!(
        template.render(&user("a"), true),
        Err(ChatError::Failed(_))
    ));
}
