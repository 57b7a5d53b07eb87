//! Chat messages to a prompt, by the model's own Jinja template (`tokenizer.chat_template`), rendered by minijinja.
//!
//! The environment is the one of transformers' `apply_chat_template`: `trim_blocks` and `lstrip_blocks`, Python's string
//! and dictionary methods, `raise_exception`, a `tojson` that writes what Python's `json.dumps` writes, loop controls.
//! `strftime_now` is not there: a prompt must not depend on a clock. Templates that ask whether it is defined go on
//! without it; others fail with an error that names it.

use minijinja::{
    Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Kwargs,
};
use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

/// Name of the only template, which appears in error messages.
const NAME: &str = "chat template";
/// Instructions that a rendering may take, so that a hostile template ends. A message takes about a hundred.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the token texts that templates refer to.
    ///
    /// # Errors
    /// With the line of the template's mistake.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| ChatError::Syntax(error.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        let compiled = environment.add_template_owned(NAME, without_generation_tags(source));
        compiled.map_err(|error| ChatError::Syntax(error.to_string()))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant begins.
    ///
    /// # Errors
    /// When the template refuses the messages (`raise_exception`), with its own words, or fails.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let failed = |error: Error| match refusal(&error) {
            Some(words) => ChatError::Refused(words),
            None => ChatError::Failed(error.to_string()),
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let messages: Value = messages
            .iter()
            .map(|m| Value::from_pairs([("role", &m.role), ("content", &m.content)]))
            .collect();
        let values = context! {
            messages, add_generation_prompt,
            bos_token => &self.bos, eos_token => &self.eos, tools => (), documents => (),
        };
        template.render(values).map_err(failed)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// The words of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(words: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, words.clone()).with_source(Refusal(words)))
}

fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(Refusal(words)) = error.downcast_ref() {
            return Some(words.clone());
        }
        cause = error.source();
    }
    None
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
#[allow(
    clippy::needless_pass_by_value,
    reason = "minijinja hands the options over"
)]
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = if let Some(width) = indent {
        let spaces = vec![b' '; width.min(16)];
        let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
        value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut json, formatter,
        ))
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut json,
            PythonFormatter,
        ))
    };
    let failed = |error: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::BadSerialization,
            format!("cannot write as JSON: {error}"),
        )
    };
    written.map_err(|error| failed(&error))?;
    let json = String::from_utf8(json).map_err(|error| failed(&error))?;
    Ok(Value::from_safe_string(json))
}

/// Python's separators: `, ` and `: `.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// transformers' `{% generation %}` marks what the assistant wrote, for training masks, and renders its body. minijinja
/// has no custom tags, so it becomes an `if` that is always true, with the same white space control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start + 2], &rest[start + 2..start + len]);
        out.push_str(before);
        let name = tag.trim_matches(['-', '+']).trim();
        out.push_str(&match name {
            "generation" => tag.replace(name, "if true"),
            "endgeneration" => tag.replace(name, "endif"),
            _ => tag.to_owned(),
        });
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

/// Why a template failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template does not compile.
    #[error("the chat template does not compile: {0}")]
    Syntax(String),
    /// The template refused these messages.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// The template uses something that is not there.
    #[error("the chat template failed: {0}")]
    Failed(String),
}
