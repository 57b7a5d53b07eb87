//! The fields of a JSON request, read one by one, so that every refusal names its parameter.
//! `null` is the same as absent, as in OpenAI's API.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// A request's JSON object.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// When it is no JSON or no object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(ApiError::bad_request(
                "the request body must be a JSON object",
            )),
            Err(error) => Err(ApiError::bad_request(format!(
                "the request body is not valid JSON: {error}"
            ))),
        }
    }

    /// The value of `name`, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// The value of `name` taken out, unless it is absent or null.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn bool(&self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(name, "a string")),
        }
    }

    /// An integer of at least `min`; too large ones are as good as the largest.
    pub(crate) fn count(&self, name: &'static str, min: usize) -> Result<Option<usize>, ApiError> {
        let Some(count) = self.read(name, "a whole number", |value| {
            value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX))
        })?
        else {
            return Ok(None);
        };
        match usize::try_from(count) {
            Ok(count) if count >= min => Ok(Some(count)),
            _ => Err(ApiError::invalid(
                name,
                format!("`{name}` is {count}, it must be at least {min}"),
            )),
        }
    }

    /// An integer within `range`.
    pub(crate) fn count_in(
        &self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        match self.count(name, *range.start())? {
            Some(count) if count > *range.end() => Err(ApiError::invalid(
                name,
                format!("`{name}` is {count}, it must be at most {}", range.end()),
            )),
            count => Ok(count),
        }
    }

    /// Any 64-bit integer; negative ones keep their bits.
    pub(crate) fn seed(&self, name: &'static str) -> Result<Option<u64>, ApiError> {
        self.read(name, "a whole number of 64 bits", |value| {
            value
                .as_u64()
                .or_else(|| value.as_i64().map(|seed| seed as u64))
        })
    }

    pub(crate) fn number(&self, name: &'static str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number", |value| {
            value.as_f64().map(|number| number as f32)
        })
    }

    /// A number within `range`.
    pub(crate) fn number_in(
        &self,
        name: &'static str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ApiError> {
        match self.number(name)? {
            Some(number) if !range.contains(&number) => Err(ApiError::invalid(
                name,
                format!(
                    "`{name}` is {number}, it must be from {} to {}",
                    range.start(),
                    range.end()
                ),
            )),
            number => Ok(number),
        }
    }

    fn read<T>(
        &self,
        name: &'static str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|value| read(value).ok_or_else(|| wrong_type(name, expected)))
            .transpose()
    }
}

/// The error for a value of the wrong type.
pub(crate) fn wrong_type(name: &'static str, expected: &str) -> ApiError {
    ApiError::invalid(name, format!("`{name}` must be {expected}"))
}
