//! Bytes on wire and disk: `{kind u16, version u16, length u32, body}`, all
//! big-endian, the body positional (postcard). A decoder consumes every byte or
//! refuses: a field that an old build would skip in silence would fork history.
//! It does not know where the bytes go.

use crate::command::{Answer, Batch};
use crate::plan::{Intent, Reply};
use serde::{Serialize, de::DeserializeOwned};

/// Why bytes were refused. The member that reads them from its log must halt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("cut short: {have} bytes where {need} are needed")]
    Short { have: usize, need: usize },
    #[error("unknown kind {0}: written by a newer version; upgrade this member")]
    Kind(u16),
    #[error("kind {kind} has version {version}, this build reads up to {max}; upgrade this member")]
    Version { kind: u16, version: u16, max: u16 },
    #[error("kind {kind}: {rest} bytes left over after the last field")]
    Left { kind: u16, rest: usize },
    #[error("kind {kind}: {text}")]
    Body { kind: u16, text: String },
}

/// What a frame holds. The numbers are part of the format: never reuse one.
pub trait Framed: Serialize + DeserializeOwned {
    const KIND: u16;
    /// Newest version that this build reads and, at its feature level, writes.
    const VERSION: u16 = 1;
}

impl Framed for Batch {
    const KIND: u16 = 1;
}
impl Framed for Intent {
    const KIND: u16 = 2;
}
impl Framed for Reply {
    const KIND: u16 = 3;
}
impl Framed for Answer {
    const KIND: u16 = 4;
}

const HEADER: usize = 8;

/// The frame of `value`.
pub fn encode<T: Framed>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&T::KIND.to_be_bytes());
    out.extend_from_slice(&T::VERSION.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    // Writing to memory fails only for types that cannot say their length; ours can.
    let mut out = postcard::to_extend(value, out).expect("our types serialize");
    let length = (out.len() - HEADER) as u32;
    out[4..HEADER].copy_from_slice(&length.to_be_bytes());
    out
}

/// The value in exactly these bytes.
///
/// # Errors
/// [`Error`], with what is wrong; never a panic, whatever the bytes.
pub fn decode<T: Framed>(bytes: &[u8]) -> Result<T, Error> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Error::Short { have: bytes.len(), need: HEADER })?;
    let kind = u16::from_be_bytes([header[0], header[1]]);
    let version = u16::from_be_bytes([header[2], header[3]]);
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if kind != T::KIND {
        return Err(Error::Kind(kind));
    }
    if version == 0 || version > T::VERSION {
        return Err(Error::Version { kind, version, max: T::VERSION });
    }
    let body = &bytes[HEADER..];
    if body.len() < length {
        return Err(Error::Short { have: body.len(), need: length });
    }
    if body.len() > length {
        return Err(Error::Left { kind, rest: body.len() - length });
    }
    exact(kind, body)
}

/// A bare body without a header, as rows are stored.
pub(crate) fn exact<T: DeserializeOwned>(kind: u16, body: &[u8]) -> Result<T, Error> {
    let (value, rest) = postcard::take_from_bytes(body).map_err(|e| Error::Body { kind, text: e.to_string() })?;
    match rest.len() {
        0 => Ok(value),
        rest => Err(Error::Left { kind, rest }),
    }
}

/// A bare body, appended to `prefix`.
pub(crate) fn body<T: Serialize>(value: &T, prefix: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(value, prefix).expect("our types serialize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        New(u64),
        Tuple(i32, bool),
        Named { text: String, list: Vec<u16>, maybe: Option<u8>, nested: Box<Shape> },
        Map(BTreeMap<u32, [u8; 2]>),
    }

    impl Framed for Vec<Shape> {
        const KIND: u16 = 0x7f01;
        const VERSION: u16 = 3;
    }

    /// Each shape that our types are made of, as every member, log and checkpoint has it. These bytes are the format: a
    /// library that writes others can't read what there is.
    #[test]
    fn the_bytes_of_the_format_do_not_change() {
        let all = vec![
            Shape::Unit,
            Shape::New(127),
            Shape::New(128),
            Shape::New(u64::MAX),
            Shape::Tuple(-1, true),
            Shape::Tuple(64, false),
            Shape::Named { text: "nf§".into(), list: vec![0, 300], maybe: Some(7), nested: Box::new(Shape::Unit) },
            Shape::Named { text: String::new(), list: vec![], maybe: None, nested: Box::new(Shape::New(0)) },
            Shape::Map([(1, [0, 255]), (16_384, [1, 2])].into()),
        ];
        let bytes = [
            &[0x7f, 0x01, 0, 3, 0, 0, 0, 54, 9][..],
            &[0],
            &[1, 127],
            &[1, 0x80, 1],
            &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[2, 1, 1],
            &[2, 0x80, 1, 0],
            &[3, 4, b'n', b'f', 0xc2, 0xa7, 2, 0, 0xac, 2, 1, 7, 0],
            &[3, 0, 0, 0, 1, 0],
            &[4, 2, 1, 0, 255, 0x80, 0x80, 1, 1, 2],
        ]
        .concat();
        assert_eq!(encode(&all), bytes);
        assert_eq!(decode::<Vec<Shape>>(&bytes).unwrap(), all);
    }
}
