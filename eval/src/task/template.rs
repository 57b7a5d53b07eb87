//! Templates and expressions over the fields of a row (minijinja), with mistakes named by the field.

use anyhow::{Result, anyhow, ensure};
use fledgling_data::collect::Record;
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use std::collections::{BTreeSet, HashSet};

/// More work than any sensible template makes.
const FUEL: u64 = 1_000_000;
/// More names than this are not listed in an error.
const MOST_NAMES: usize = 20;

/// The engine of all templates of a task.
#[derive(Debug)]
pub(super) struct Templates {
    environment: Environment<'static>,
}

impl Templates {
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.unwrap_or_default());
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("wikihow", |text: String| wikihow(&text));
        Self { environment }
    }

    /// Whether a template can be read at all.
    pub(super) fn check_template(&self, key: &str, source: &str) -> Result<()> {
        let parsed = self.environment.template_from_str(source);
        parsed
            .map(|_| ())
            .map_err(|error| anyhow!("`{key}`: {}", reason(&error)))
    }

    /// The same of an expression.
    pub(super) fn check_expression(&self, key: &str, source: &str) -> Result<()> {
        let parsed = self.environment.compile_expression(source);
        parsed
            .map(|_| ())
            .map_err(|error| anyhow!("`{key}`: {}", reason(&error)))
    }

    /// A template with the fields of a row.
    pub(super) fn render(&self, key: &str, source: &str, row: &Row) -> Result<String> {
        let template = self.environment.template_from_str(source);
        let template =
            template.map_err(|error| row.error(format!("`{key}`: {}", reason(&error))))?;
        let rendered = template.render(&row.value);
        rendered.map_err(|error| explain(key, &error, &template.undeclared_variables(false), row))
    }

    /// An expression with the fields of a row.
    pub(super) fn eval(&self, key: &str, source: &str, row: &Row) -> Result<Value> {
        let expression = self.environment.compile_expression(source);
        let expression =
            expression.map_err(|error| row.error(format!("`{key}`: {}", reason(&error))))?;
        let names = expression.undeclared_variables(false);
        let value = expression.eval(&row.value);
        let value = value.map_err(|error| explain(key, &error, &names, row))?;
        if value.is_undefined() {
            let missing = missing(key, &names, row);
            let other = || row.error(format!("`{key}`: `{source}` is not in this row"));
            return Err(missing.unwrap_or_else(other));
        }
        Ok(value)
    }

    /// An expression that is a list of texts.
    pub(super) fn texts(&self, key: &str, source: &str, row: &Row) -> Result<Vec<String>> {
        let value = self.eval(key, source, row)?;
        let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
        let items = value.try_iter().ok().filter(|_| is_list);
        let items = items.ok_or_else(|| {
            let is = value.kind();
            row.error(format!("`{key}`: `{source}` is a {is}, not a list"))
        })?;
        // An error in a lazy list comes as a value of its own.
        items
            .map(|item| match item.kind() {
                ValueKind::Invalid | ValueKind::Undefined => {
                    Err(row.error(format!("`{key}`: an element of `{source}` is missing")))
                }
                _ => Ok(text_of(&item)),
            })
            .collect()
    }
}

/// A row as templates see it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) place: String,
    names: Vec<String>,
    value: Value,
}

impl Row {
    /// A row, and the answer that stands for it in a file of its own.
    pub(super) fn new(mut record: Record, answer: Option<&str>) -> Self {
        if let Some(answer) = answer {
            let answer = serde_json::Value::String(answer.to_owned());
            record.fields.entry("label").or_insert(answer);
        }
        Self {
            place: record.place.to_string(),
            names: record.fields.keys().cloned().collect(),
            value: Value::from(Serde(&record.fields)),
        }
    }

    /// An error with the row's place.
    pub(super) fn error(&self, reason: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}: {reason}", self.place)
    }

    /// Fails with the row's place where something does not hold.
    pub(super) fn ensure(&self, holds: bool, reason: impl FnOnce() -> String) -> Result<()> {
        ensure!(holds, self.error(reason()));
        Ok(())
    }
}

/// A value as text, as a template writes it.
pub(super) fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn reason(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) if line > 1 => format!("{what} (line {line} of the template)"),
        _ => what,
    }
}

fn explain(key: &str, error: &Error, names: &HashSet<String>, row: &Row) -> anyhow::Error {
    let is_missing = error.kind() == ErrorKind::UndefinedError;
    let missing = missing(key, names, row).filter(|_| is_missing);
    missing.unwrap_or_else(|| {
        if is_missing {
            return row.error(format!("`{key}`: a field that it names is not in this row"));
        }
        row.error(format!("`{key}`: {}", reason(error)))
    })
}

/// Which of the names that are asked for is no field of the row.
fn missing(key: &str, names: &HashSet<String>, row: &Row) -> Option<anyhow::Error> {
    let names: BTreeSet<_> = names.iter().collect();
    let missing = names.into_iter().find(|name| !row.names.contains(name))?;
    let mut there: Vec<String> = row
        .names
        .iter()
        .take(MOST_NAMES)
        .map(|name| format!("`{name}`"))
        .collect();
    if row.names.len() > MOST_NAMES {
        there.push("more".to_owned());
    }
    let there = match there.as_slice() {
        [] => "it has none".to_owned(),
        names => format!("it has {}", names.join(", ")),
    };
    Some(row.error(format!(
        "`{key}` needs the field `{missing}`, which is not in this row ({there})"
    )))
}

/// What lm-evaluation-harness does with texts from `WikiHow` in `HellaSwag`: `[title]` becomes an end of a sentence, other brackets go.
fn wikihow(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(start) = rest.find('[') {
        let inside = &rest[start..];
        // As `.` of a regular expression, which does not match the end of a line.
        let end = inside
            .find([']', '\n'])
            .filter(|&end| inside.as_bytes()[end] == b']');
        let keep = if end.is_some() { start } else { start + 1 };
        out.push_str(&rest[..keep]);
        rest = end.map_or(&rest[keep..], |end| &inside[end + 1..]);
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_data::document::Place;
    use serde_json::json;

    fn row(fields: &serde_json::Value) -> Row {
        let place = Place {
            source: 0,
            file: "a.jsonl".to_owned(),
            row: 7,
        };
        let fields = fields.as_object().unwrap().clone();
        Row::new(Record { place, fields }, None)
    }

    #[test]
    fn wikihow_is_as_the_harness_has_it() {
        // What `preprocess` of tasks/hellaswag/utils.py makes of them.
        let check = |text: &str, want: &str| assert_eq!(wikihow(text), want);
        check(
            " How to x [title] Do it. [step] Now  go ",
            "How to x. Do it. Now go",
        );
        check("a [b", "a [b");
        check("a [b\nc] d", "a [b\nc] d");
        check("[a]b[c]", "b");
        check("[[a]b]", "b]");
        check("a [title] b", "a. b");
        check("x [a\nb [c] d", "x [a\nb d");
        check("a   b", "a  b");
    }

    #[test]
    fn fields_of_rows() {
        let templates = Templates::new();
        let row =
            row(&json!({"goal": "x\n", "choices": {"text": ["a", "b"]}, "n": 3, "s": "aB_c_d"}));
        let render = |source: &str| templates.render("question", source, &row);
        assert_eq!(render("Q: {{ goal }}\nA:\n").unwrap(), "Q: x\n\nA:\n");
        assert_eq!(
            render("{{ s.split('_')[1:] | join('_') }}|{{ s | capitalize }}").unwrap(),
            "c_d|Ab_c_d"
        );
        assert_eq!(
            templates.texts("choices", "choices.text", &row).unwrap(),
            ["a", "b"]
        );
        let error = render("{{ gaol }}").unwrap_err().to_string();
        assert!(error.contains("a.jsonl:7: `question` needs the field `gaol`, which is not in this row (it has `goal`, `choices`"), "{error}");
        let error = render("{{ choices.txt }}").unwrap_err().to_string();
        assert!(error.contains("a.jsonl:7: `question`"), "{error}");
        let error = templates
            .texts("choices", "n", &row)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is a number, not a list"), "{error}");
        let error = templates.eval("answer", "m", &row).unwrap_err().to_string();
        assert!(error.contains("needs the field `m`"), "{error}");
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let error = render(endless).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:7"), "{error}");
        assert!(templates.check_template("question", "{{ a").is_err());
        assert!(templates.check_expression("answer", "a b").is_err());
    }
}
