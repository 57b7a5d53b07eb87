//! Metadata in memory.

use std::ops::Index;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are GGUF's own value types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(Array),
}

/// A metadata array: one variant per element type, so that a vocabulary costs no enum a word.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the variants are GGUF's own value types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(StringArray),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

macro_rules! value_from {
    ($($from:ty => $variant:expr;)*) => {$(
        impl From<$from> for Value {
            fn from(x: $from) -> Self {
                $variant(x)
            }
        }
    )*};
}
value_from! {
    u8 => Value::U8; i8 => Value::I8; u16 => Value::U16; i16 => Value::I16; u32 => Value::U32; i32 => Value::I32;
    u64 => Value::U64; i64 => Value::I64; f32 => Value::F32; f64 => Value::F64; bool => Value::Bool;
    String => Value::String; Array => Value::Array;
    &str => |x: &str| Value::String(x.to_owned());
    StringArray => |x| Value::Array(Array::String(x));
    Vec<u32> => |x| Value::Array(Array::U32(x));
    Vec<i32> => |x| Value::Array(Array::I32(x));
    Vec<u64> => |x| Value::Array(Array::U64(x));
    Vec<f32> => |x| Value::Array(Array::F32(x));
}

/// Strings in one allocation: a vocabulary of 50,000 words is read at every start, and 50,000 allocations
/// would be most of that time.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
}

impl StringArray {
    /// Takes the strings' bytes, one after the other, and their ends.
    ///
    /// # Errors
    /// The index of the first string that is no UTF-8.
    pub(super) fn from_utf8(bytes: Vec<u8>, ends: Vec<usize>) -> Result<Self, usize> {
        // One pass over all is much faster than one for each; boundaries decide whether each is valid by itself.
        match String::from_utf8(bytes) {
            Ok(text) => match ends.iter().position(|end| !text.is_char_boundary(*end)) {
                None => Ok(Self { text, ends }),
                Some(idx) => Err(idx),
            },
            Err(error) => {
                let bad = error.utf8_error().valid_up_to();
                Err(ends.partition_point(|end| *end <= bad))
            }
        }
    }
    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// The string at `idx`.
    pub fn get(&self, idx: usize) -> Option<&str> {
        let end = *self.ends.get(idx)?;
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] };
        Some(&self.text[start..end])
    }
    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator + Clone {
        (0..self.len()).map(|idx| &self[idx])
    }
    /// Adds a string at the end.
    pub fn push(&mut self, s: &str) {
        self.text.push_str(s);
        self.ends.push(self.text.len());
    }
    /// Bytes of all strings together.
    pub fn text_len_bytes(&self) -> usize {
        self.text.len()
    }
}

impl Index<usize> for StringArray {
    type Output = str;
    fn index(&self, idx: usize) -> &str {
        self.get(idx).expect("index within the array")
    }
}

impl<S: AsRef<str>> Extend<S> for StringArray {
    fn extend<I: IntoIterator<Item = S>>(&mut self, strings: I) {
        for s in strings {
            self.push(s.as_ref());
        }
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = Self::default();
        array.extend(strings);
        array
    }
}

impl std::fmt::Debug for StringArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Key-value pairs in file order. Keys are unique.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }
    /// Takes pairs in order.
    ///
    /// # Errors
    /// A key that stands twice.
    pub(super) fn from_entries(entries: Vec<(String, Value)>) -> Result<Self, String> {
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(pair[0].to_owned()),
            None => Ok(Self { entries }),
        }
    }
    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }
    /// Sets `key`, replacing what stood there.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value.into(),
            None => self.entries.push((key, value.into())),
        }
    }
    /// Removes `key`.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let idx = self.entries.iter().position(|(k, _)| k == key)?;
        Some(self.entries.remove(idx).1)
    }
    /// Sets every pair of `other`.
    pub fn extend(&mut self, other: Self) {
        for (key, value) in other.entries {
            self.set(key, value);
        }
    }
    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// All pairs in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }
    /// A string, when the key holds one.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(s) => Some(s),
            _ => None,
        }
    }
    /// Any integer type that fits, as u64.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::U8(x) => Some(x.into()),
            Value::U16(x) => Some(x.into()),
            Value::U32(x) => Some(x.into()),
            Value::U64(x) => Some(x),
            Value::I8(x) => x.try_into().ok(),
            Value::I16(x) => x.try_into().ok(),
            Value::I32(x) => x.try_into().ok(),
            Value::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }
    /// A float of either width (or an integer), as f64.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match *self.get(key)? {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            Value::I8(x) => Some(x.into()),
            Value::I16(x) => Some(x.into()),
            Value::I32(x) => Some(x.into()),
            Value::I64(x) => Some(x as f64),
            _ => self.u64(key).map(|x| x as f64),
        }
    }
    /// A bool.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match *self.get(key)? {
            Value::Bool(x) => Some(x),
            _ => None,
        }
    }
    /// An array of strings.
    pub fn strings(&self, key: &str) -> Option<&StringArray> {
        match self.get(key)? {
            Value::Array(Array::String(strings)) => Some(strings),
            _ => None,
        }
    }
    /// An array of integers of any type, as i64.
    pub fn ints(&self, key: &str) -> Option<Vec<i64>> {
        fn all<T: Copy + TryInto<i64>>(xs: &[T]) -> Option<Vec<i64>> {
            xs.iter().map(|x| (*x).try_into().ok()).collect()
        }
        match self.get(key)? {
            Value::Array(Array::U8(xs)) => all(xs),
            Value::Array(Array::I8(xs)) => all(xs),
            Value::Array(Array::U16(xs)) => all(xs),
            Value::Array(Array::I16(xs)) => all(xs),
            Value::Array(Array::U32(xs)) => all(xs),
            Value::Array(Array::I32(xs)) => all(xs),
            Value::Array(Array::U64(xs)) => all(xs),
            Value::Array(Array::I64(xs)) => all(xs),
            _ => None,
        }
    }
    /// An array of floats of either width, as f32.
    pub fn floats(&self, key: &str) -> Option<Vec<f32>> {
        match self.get(key)? {
            Value::Array(Array::F32(xs)) => Some(xs.clone()),
            Value::Array(Array::F64(xs)) => Some(xs.iter().map(|x| *x as f32).collect()),
            _ => None,
        }
    }
}
