//! From keys and their values to what a document says.
//!
//! Only the keys that are wanted are kept; all others are passed over without a copy.

use super::Flaw;
use crate::{config::Fields, document::Body};
use fledgling_core::chat::Message;
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;
use std::{borrow::Cow, fmt};

const TEXT: &[&str] = &["text", "content", "body", "document"];
const PROMPT: &[&str] = &["prompt", "question", "instruction"];
const INPUT: &[&str] = &["input", "context"];
const COMPLETION: &[&str] = &["completion", "answer", "output", "response"];
const MESSAGES: &[&str] = &["messages", "conversations"];

/// More names than this are not listed in an error.
const MOST_NAMES: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Text,
    Prompt,
    Input,
    Completion,
    Messages,
}

const N_SLOTS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Whichever is there: messages, else a prompt and a completion, else a text.
    Any,
    Text,
    Pair,
    Messages,
    /// The whole row, as JSON in a text.
    Record,
}

/// The keys that are looked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// By slot, and in a slot the one that is preferred first.
    keys: Vec<(String, Slot)>,
    shape: Shape,
    /// Whether an input was chosen, so that a row must have it.
    input_needed: bool,
    chat: bool,
}

/// What a row had of the keys that are looked for: of each slot the preferred key that is not null.
#[derive(Debug, Default)]
pub(super) struct Picked([Option<(usize, Value)>; N_SLOTS]);

/// Why a row is no document.
pub(super) enum Misfit {
    /// Keys are not there; what was looked for.
    Missing(String),
    /// A value is of the wrong type.
    Wrong(String),
}

impl Misfit {
    /// The reason, with the names that there are.
    pub(super) fn reason<S: AsRef<str>>(self, names: &[S]) -> String {
        match self {
            Self::Wrong(reason) => reason,
            Self::Missing(what) if names.is_empty() => format!("there is no {what}, nor anything"),
            Self::Missing(what) => format!("there is no {what}, only {}", name_list(names)),
        }
    }
}

/// `a`, `b` and so on, cut short.
pub(super) fn name_list<S: AsRef<str>>(names: &[S]) -> String {
    let quoted = |name: &S| {
        let name: String = name.as_ref().chars().take(40).collect();
        format!("`{name}`")
    };
    let mut list: Vec<String> = names.iter().take(MOST_NAMES).map(quoted).collect();
    if names.len() > MOST_NAMES {
        list.push(format!("{} more", names.len() - MOST_NAMES));
    }
    list.join(", ")
}

impl Wanted {
    /// # Errors
    /// When the fields say two shapes at once.
    pub(super) fn new(fields: &Fields) -> Result<Self, String> {
        let pair = fields.prompt.is_some() || fields.completion.is_some();
        let shape = match (fields.text.is_some(), pair, fields.messages.is_some()) {
            (false, false, false) => Shape::Any,
            (true, false, false) => Shape::Text,
            (false, true, false) => Shape::Pair,
            (false, false, true) => Shape::Messages,
            _ => return Err("the fields name two shapes: either `text`, or `prompt` and `completion`, or `messages`".to_owned()),
        };
        let slots = [
            (Slot::Text, &fields.text, TEXT, Shape::Text),
            (Slot::Prompt, &fields.prompt, PROMPT, Shape::Pair),
            (Slot::Input, &fields.input, INPUT, Shape::Pair),
            (
                Slot::Completion,
                &fields.completion,
                COMPLETION,
                Shape::Pair,
            ),
            (Slot::Messages, &fields.messages, MESSAGES, Shape::Messages),
        ];
        let mut keys = Vec::new();
        for (slot, chosen, usual, its_shape) in slots {
            if shape != Shape::Any && shape != its_shape {
                continue;
            }
            match chosen {
                Some(name) => keys.push((name.clone(), slot)),
                None => keys.extend(usual.iter().map(|name| ((*name).to_owned(), slot))),
            }
        }
        Ok(Self {
            keys,
            shape,
            input_needed: fields.input.is_some(),
            chat: fields.chat == Some(true),
        })
    }

    /// Every key and its value: the row as it is, as JSON in a text.
    pub(super) fn record() -> Self {
        Self {
            keys: Vec::new(),
            shape: Shape::Record,
            input_needed: false,
            chat: false,
        }
    }

    /// Whether rows are taken as they are.
    pub(super) fn is_record(&self) -> bool {
        self.shape == Shape::Record
    }

    /// The number of a key that is looked for.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.keys.iter().position(|(key, _)| key == name)
    }

    /// Keeps the value of the key with this number, unless a better one is there.
    pub(super) fn offer(&self, picked: &mut Picked, key_idx: usize, value: Value) {
        let place = &mut picked.0[self.keys[key_idx].1 as usize];
        let better = match place {
            Some((old_idx, old)) => {
                // The same key twice: the last counts, as everywhere in JSON.
                (old.is_null() && !value.is_null())
                    || (key_idx <= *old_idx && old.is_null() == value.is_null())
                    || key_idx == *old_idx
            }
            None => true,
        };
        if better {
            *place = Some((key_idx, value));
        }
    }

    /// Whether a row with these names can be a document.
    pub(super) fn check(&self, names: &[&str]) -> Result<(), String> {
        if self.is_record() {
            return Ok(());
        }
        let mut picked = Picked::default();
        for name in names {
            if let Some(key_idx) = self.find(name) {
                self.offer(&mut picked, key_idx, Value::String(String::new()));
            }
        }
        match self.body(picked) {
            Err(missing @ Misfit::Missing(_)) => Err(missing.reason(names)),
            // An empty string is no conversation, but its column is there.
            _ => Ok(()),
        }
    }

    /// What the row says.
    pub(super) fn body(&self, mut picked: Picked) -> Result<Body, Misfit> {
        let has =
            |slot: Slot| matches!(&picked.0[slot as usize], Some((_, value)) if !value.is_null());
        let shape = match self.shape {
            Shape::Any if has(Slot::Messages) => Shape::Messages,
            Shape::Any if has(Slot::Prompt) && has(Slot::Completion) => Shape::Pair,
            Shape::Any if has(Slot::Text) => Shape::Text,
            Shape::Any => return Err(self.nothing_usual(&picked)),
            chosen => chosen,
        };
        match shape {
            Shape::Messages => {
                let (name, value) = self.value(&mut picked, Slot::Messages)?;
                let messages = messages_of(value);
                let messages =
                    messages.map_err(|reason| Misfit::Wrong(format!("`{name}`: {reason}")))?;
                Ok(Body::Chat(messages))
            }
            Shape::Pair => self.pair(&mut picked),
            _ => self.string(&mut picked, Slot::Text).map(Body::Text),
        }
    }

    fn pair(&self, picked: &mut Picked) -> Result<Body, Misfit> {
        let mut prompt = self.string(picked, Slot::Prompt)?;
        let completion = self.string(picked, Slot::Completion)?;
        let input = &picked.0[Slot::Input as usize];
        // An input that is null is one that is not there; it is so in many exported tables.
        if input.as_ref().is_some_and(|(_, value)| !value.is_null())
            || (self.input_needed && input.is_none())
        {
            let input = self.string(picked, Slot::Input)?;
            if !input.is_empty() {
                prompt.push_str("\n\n");
                prompt.push_str(&input);
            }
        }
        let body = Body::Completion { prompt, completion };
        Ok(if self.chat { body.into_chat() } else { body })
    }

    fn value(&self, picked: &mut Picked, slot: Slot) -> Result<(&str, Value), Misfit> {
        match picked.0[slot as usize].take() {
            Some((key_idx, Value::Null)) => {
                Err(Misfit::Wrong(format!("`{}` is null", self.keys[key_idx].0)))
            }
            Some((key_idx, value)) => Ok((&self.keys[key_idx].0, value)),
            None => {
                let of_slot = self.keys.iter().filter(|(_, of)| *of == slot);
                let names: Vec<String> = of_slot.map(|(name, _)| format!("`{name}`")).collect();
                Err(Misfit::Missing(names.join(" or ")))
            }
        }
    }

    fn string(&self, picked: &mut Picked, slot: Slot) -> Result<String, Misfit> {
        match self.value(picked, slot)? {
            (_, Value::String(text)) => Ok(text),
            (name, other) => {
                let is = type_name(&other);
                Err(Misfit::Wrong(format!("`{name}` is {is}, not a string")))
            }
        }
    }

    fn nothing_usual(&self, picked: &Picked) -> Misfit {
        let null = picked.0.iter().flatten().find(|(_, value)| value.is_null());
        match null {
            Some((key_idx, _)) => Misfit::Wrong(format!("`{}` is null", self.keys[*key_idx].0)),
            None => Misfit::Missing(
                "`text`, `prompt` with `completion`, `messages` or another usual name".to_owned(),
            ),
        }
    }

    /// The document in a JSON object. `row` is for the error; `one_line` says that a line number in it would mislead.
    pub(super) fn body_of_json(&self, json: &[u8], row: u64, one_line: bool) -> Result<Body, Flaw> {
        let text = std::str::from_utf8(json).map_err(|error| {
            let at = error.valid_up_to() + 1;
            Flaw::row(row, format!("invalid UTF-8 at byte {at} of the row"))
        })?;
        let mut json = serde_json::Deserializer::from_str(text);
        let picked = self.deserialize(&mut json);
        let picked = picked.and_then(|picked| json.end().map(|()| picked));
        let picked = picked.map_err(|error| Flaw::row(row, json_reason(&error, one_line)))?;
        if self.is_record() {
            return Ok(Body::Text(text.to_owned()));
        }
        self.body(picked)
            .map_err(|misfit| Flaw::row(row, misfit.reason(&keys_of(text))))
    }
}

fn json_reason(error: &serde_json::Error, one_line: bool) -> String {
    if error.is_data() {
        return "is no object with keys and values".to_owned();
    }
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    let (line, column) = (error.line(), error.column());
    if one_line {
        format!("invalid JSON at column {column}: {what}")
    } else {
        format!("invalid JSON at line {line}, column {column} of this element: {what}")
    }
}

/// The keys of an object, for an error.
fn keys_of(json: &str) -> Vec<String> {
    let object: Result<serde_json::Map<String, Value>, _> = serde_json::from_str(json);
    object.map_or_else(
        |_| Vec::new(),
        |object| object.into_iter().map(|(key, _)| key).collect(),
    )
}

impl<'de> DeserializeSeed<'de> for &Wanted {
    type Value = Picked;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Picked, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Wanted {
    type Value = Picked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Picked, A::Error> {
        let mut picked = Picked::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match self.find(&key.0) {
                Some(key_idx) => self.offer(&mut picked, key_idx, map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(picked)
    }
}

/// A key, borrowed where it holds no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A conversation in OpenAI's or `ShareGPT`'s form. In a table it stands as JSON in a string.
fn messages_of(value: Value) -> Result<Vec<Message>, String> {
    let list = match value {
        Value::Array(list) => list,
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(Value::Array(list)) => list,
            _ => return Err("is a string that holds no JSON array of messages".to_owned()),
        },
        other => {
            return Err(format!(
                "is {}, not an array of messages",
                type_name(&other)
            ));
        }
    };
    let numbered = list.into_iter().zip(1..);
    numbered
        .map(|(message, n)| message_of(message).map_err(|reason| format!("message {n} {reason}")))
        .collect()
}

fn message_of(value: Value) -> Result<Message, String> {
    let Value::Object(mut object) = value else {
        return Err(format!("is {}, not an object", type_name(&value)));
    };
    let mut take = |names: [&str; 2]| {
        let name = names.into_iter().find(|name| object.contains_key(*name));
        let missing = || format!("has no `{}` and no `{}`", names[0], names[1]);
        let name = name.ok_or_else(missing)?;
        Ok::<_, String>((name.to_owned(), object[name].take()))
    };
    let (role_name, role) = take(["role", "from"])?;
    let (content_name, content) = take(["content", "value"])?;
    let role = match role {
        Value::String(role) => role,
        other => return Err(format!("has {} as `{role_name}`", type_name(&other))),
    };
    let content = match content {
        Value::String(text) => text,
        Value::Array(parts) => parts_of(parts)?,
        other => return Err(format!("has {} as `{content_name}`", type_name(&other))),
    };
    Ok(Message {
        role: usual_role(role),
        content,
    })
}

/// OpenAI's typed parts, each on lines of its own as servers render them.
fn parts_of(parts: Vec<Value>) -> Result<String, String> {
    let mut texts = Vec::with_capacity(parts.len());
    for mut part in parts {
        let kind = part.get("type").and_then(Value::as_str);
        let kind = kind.unwrap_or("text").to_owned();
        match part.get_mut("text") {
            Some(Value::String(text)) if kind == "text" => texts.push(std::mem::take(text)),
            _ => return Err(format!("has a part of the type `{kind}` without a text")),
        }
    }
    Ok(texts.join("\n"))
}

/// `ShareGPT`'s and others' names for who speaks.
fn usual_role(role: String) -> String {
    match role.as_str() {
        "human" => "user".to_owned(),
        "gpt" | "chatgpt" | "bot" | "model" => "assistant".to_owned(),
        _ => role,
    }
}
