//! Strict reading of JSON: each object says which fields it knows, each field
//! says what it must be, and every refusal carries the field's path. It does not
//! know what the fields mean.

use super::value;
use nf_core::id::NameError;
use nf_core::reason::{Reason, Refusal, printable};
use serde_json::{Map, Value};

/// Largest body that is read.
pub const MAX_BODY: usize = 1 << 20;
/// Deepest nesting of arrays and objects.
pub const MAX_DEPTH: usize = 32;
/// Most elements of a list or map in a request.
pub const MAX_ITEMS: usize = 64;

/// Parses a body into an object's fields.
///
/// # Errors
/// A refusal that says where the body stops being JSON, or what it is instead of an object.
pub fn parse(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if body.len() > MAX_BODY {
        return Err(Refusal::new(Reason::TooLarge, format!("the body has more than {MAX_BODY} bytes")));
    }
    if depth(body) > MAX_DEPTH {
        return Err(Refusal::new(Reason::InvalidArgument, format!("the body nests deeper than {MAX_DEPTH} levels")));
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        let detail = "the body is empty; send a JSON object, e.g. {\"tenant_id\":\"t1\"}";
        return Err(Refusal::new(Reason::InvalidArgument, detail));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            Err(Refusal::new(Reason::InvalidArgument, format!("the body must be a JSON object, not {}", kind(&other))))
        }
        Err(error) => Err(Refusal::new(Reason::InvalidArgument, format!("the body is not JSON: {error}"))),
    }
}

/// Deepest nesting, counted without recursion, so that hostile input cannot exhaust the stack.
fn depth(body: &[u8]) -> usize {
    let (mut now, mut most, mut quoted, mut escaped) = (0usize, 0usize, false, false);
    for byte in body {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'{' | b'[') => {
                now += 1;
                most = most.max(now);
            }
            (false, b'}' | b']') => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn join(path: &str, key: &str) -> String {
    let shown = printable(key, 64);
    if path.is_empty() { shown } else { format!("{path}.{shown}") }
}

/// An object being read. `finish` refuses whatever was not asked for.
pub struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Object<'a> {
    pub fn top(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map, known: Vec::with_capacity(16) }
    }

    /// The field, if it is there and not null.
    pub fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        Some(Field { path: join(&self.path, key), value })
    }

    /// The field, which must be there.
    pub fn need(&mut self, key: &'static str) -> Result<Field<'a>, Refusal> {
        let path = join(&self.path, key);
        self.get(key).ok_or_else(|| Refusal::invalid(path.clone(), format!("{path} is missing")))
    }

    pub fn name<T>(&mut self, key: &'static str, new: fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Refusal> {
        self.get(key).map(|field| field.name(new)).transpose()
    }

    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, Refusal> {
        self.get(key).map(|field| field.boolean()).transpose()
    }

    pub fn integer(&mut self, key: &'static str, least: i64, most: i64) -> Result<Option<i64>, Refusal> {
        self.get(key).map(|field| field.integer(least, most)).transpose()
    }

    pub fn bytes(&mut self, key: &'static str) -> Result<Option<u64>, Refusal> {
        self.get(key).map(|field| field.bytes()).transpose()
    }

    pub fn milli(&mut self, key: &'static str) -> Result<Option<u64>, Refusal> {
        self.get(key).map(|field| field.milli()).transpose()
    }

    /// # Errors
    /// The first field that nobody asked for, with those that exist.
    pub fn finish(self) -> Result<(), Refusal> {
        let stranger = self.map.keys().find(|key| !self.known.contains(&key.as_str()));
        let Some(stranger) = stranger else { return Ok(()) };
        let path = join(&self.path, stranger);
        let detail = format!("{path} is not a known field; known here: {}", self.known.join(", "));
        Err(Refusal::field(Reason::UnknownField, path, detail))
    }
}

/// One field's value, with its path.
pub struct Field<'a> {
    pub path: String,
    pub value: &'a Value,
}

impl<'a> Field<'a> {
    fn wrong(&self, wanted: &str) -> Refusal {
        Refusal::invalid(self.path.clone(), format!("{} must be {wanted}, not {}", self.path, kind(self.value)))
    }

    /// Puts the field's path before a text about its value.
    pub fn refuse(&self, text: impl std::fmt::Display) -> Refusal {
        Refusal::invalid(self.path.clone(), format!("{}: {text}", self.path))
    }

    pub fn text(&self) -> Result<&'a str, Refusal> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub fn name<T>(&self, new: fn(&str) -> Result<T, NameError>) -> Result<T, Refusal> {
        new(self.text()?).map_err(|error| self.refuse(error))
    }

    pub fn boolean(&self) -> Result<bool, Refusal> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    /// A whole number; `6.0` is one, as JSON Schema says.
    pub fn integer(&self, least: i64, most: i64) -> Result<i64, Refusal> {
        let Value::Number(number) = self.value else { return Err(self.wrong("a whole number")) };
        let whole = number.as_i64().or_else(|| {
            let float = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0)?;
            Some(float as i64)
        });
        match whole {
            Some(whole) if (least..=most).contains(&whole) => Ok(whole),
            _ => Err(self.refuse(format!("a whole number from {least} to {most}, not {number}"))),
        }
    }

    /// A number of bytes, or a size such as `4GB`.
    pub fn bytes(&self) -> Result<u64, Refusal> {
        match self.value {
            Value::String(text) => value::bytes(text).map_err(|text| self.refuse(text)),
            Value::Number(_) => {
                let most = i64::try_from(nf_core::resources::MAX_BYTES).unwrap_or(i64::MAX);
                Ok(self.integer(0, most)?.unsigned_abs())
            }
            _ => Err(self.wrong("a size such as \"4GB\" or a number of bytes")),
        }
    }

    /// A quantity in steps of a thousandth, as a number or as text.
    pub fn milli(&self) -> Result<u64, Refusal> {
        let number = match self.value {
            Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
            Value::String(text) => return value::milli_text(text).map_err(|text| self.refuse(text)),
            _ => return Err(self.wrong("a number")),
        };
        value::milli(number).map_err(|text| self.refuse(text))
    }

    /// Money in millionths of the currency unit.
    pub fn micro(&self) -> Result<u64, Refusal> {
        let number = self.value.as_f64().ok_or_else(|| self.wrong("a number"))?;
        value::micro(number).map_err(|text| self.refuse(text))
    }

    pub fn object(&self) -> Result<Object<'a>, Refusal> {
        let map = self.value.as_object().ok_or_else(|| self.wrong("an object"))?;
        Ok(Object { path: self.path.clone(), map, known: Vec::with_capacity(16) })
    }

    /// The entries of an object whose keys the caller chose.
    pub fn entries(&self) -> Result<Vec<(&'a str, Field<'a>)>, Refusal> {
        let map = self.value.as_object().ok_or_else(|| self.wrong("an object"))?;
        self.bounded(map.len())?;
        let entry =
            |(key, value): (&'a String, &'a Value)| (key.as_str(), Field { path: join(&self.path, key), value });
        Ok(map.iter().map(entry).collect())
    }

    pub fn list(&self) -> Result<Vec<Field<'a>>, Refusal> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        self.bounded(list.len())?;
        let item = |(i, value)| Field { path: format!("{}[{i}]", self.path), value };
        Ok(list.iter().enumerate().map(item).collect())
    }

    fn bounded(&self, items: usize) -> Result<(), Refusal> {
        if items > MAX_ITEMS {
            return Err(self.refuse(format!("at most {MAX_ITEMS} entries, not {items}")));
        }
        Ok(())
    }

    /// One of the given words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Refusal> {
        let text = self.text()?;
        let known = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| self.refuse(format!("one of {}", known())))
    }
}
