//! Lines of bounded length from another program, counted from 1. It knows no protocol.

use std::io::{self, BufRead, Read};

/// A longer line is nobody's.
const LINE_BYTES: u64 = 64 << 10;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("longer than 64 KiB")]
    TooLong,
    #[error("not UTF-8")]
    NotText,
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub struct Line<'a> {
    pub number: usize,
    pub text: &'a str,
}

pub struct Lines<R> {
    input: R,
    text: String,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, text: String::new(), number: 0 }
    }

    /// The line that was last asked for.
    pub fn number(&self) -> usize {
        self.number
    }

    /// None at the end of the input.
    pub fn next(&mut self) -> Result<Option<Line<'_>>, Fault> {
        Ok(self.advance()?.then(|| self.line()))
    }

    /// Reads the next line; false at the end of the input.
    pub fn advance(&mut self) -> Result<bool, Fault> {
        self.text.clear();
        self.number += 1;
        match self.input.by_ref().take(LINE_BYTES).read_line(&mut self.text) {
            Ok(0) => Ok(false),
            Ok(read) if read as u64 == LINE_BYTES && !self.text.ends_with('\n') => Err(Fault::TooLong),
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(Fault::NotText),
            Err(e) => Err(e.into()),
        }
    }

    /// The line that was read last.
    pub fn line(&self) -> Line<'_> {
        // Some programs begin a text with a byte order mark.
        let text = if self.number == 1 { self.text.trim_start_matches('\u{feff}') } else { &self.text };
        Line { number: self.number, text }
    }
}
