//! A value and where it came from. It does not know any setting.

use super::{Error, Row};
use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag(String),
    Environment(String),
    File(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag --{name}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A parsed value, the text it was parsed from, and its origin. A secret's value is of a type that shows nothing,
/// and its text is not kept. Debug shows the origin alone: an address may hold a password, and whoever prints one
/// while looking for an error thinks of something else.
#[derive(Clone)]
pub struct Setting<T> {
    pub value: T,
    pub text: String,
    pub origin: Origin,
}

impl<T> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.origin)
    }
}

impl<T> std::ops::Deref for Setting<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A value as it was written.
#[derive(Clone)]
pub(super) struct Raw {
    pub row: &'static Row,
    pub text: String,
    pub origin: Origin,
}

impl Raw {
    pub fn parse<T>(self, parse: fn(&str) -> Result<T, String>) -> Result<Setting<T>, Error> {
        match parse(&self.text) {
            Ok(value) => {
                let hidden = self.row.secret && !self.text.is_empty();
                let text = if hidden { super::REDACTED.to_owned() } else { self.text };
                Ok(Setting { value, text, origin: self.origin })
            }
            Err(why) => {
                let shown = if self.row.secret { super::REDACTED.to_owned() } else { format!("{:?}", self.text) };
                Err(Error::Value { variable: self.row.env, origin: self.origin, shown, why })
            }
        }
    }
}
