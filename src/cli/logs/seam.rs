//! Joins a log that is read anew to what was printed of it. Logs are text without numbers, so the place is found by
//! what was printed last. It reads and prints nothing itself.

/// Bytes of what was printed last that are looked for.
const KEPT: usize = 4 << 10;
/// Bytes among which they are looked for; more than an agent tells of the past.
const MOST: usize = 4 << 20;

/// See the module.
#[derive(Default)]
pub struct Seam {
    /// The end of what was printed.
    printed: Vec<u8>,
    /// What came since the way broke off, as long as the place is not found in it.
    held: Option<Vec<u8>>,
}

impl Seam {
    /// Nothing was printed yet.
    pub fn is_new(&self) -> bool {
        self.printed.is_empty()
    }

    /// Whether the place is still looked for.
    pub fn searches(&self) -> bool {
        self.held.is_some()
    }

    /// What comes from now on begins somewhere before the place, or is another log.
    pub fn breaks(&mut self) {
        self.held = (!self.is_new()).then(Vec::new);
    }

    /// What is to be printed now that this came.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(held) = &mut self.held else { return self.note(bytes.to_vec()) };
        held.extend_from_slice(bytes);
        // The last one: what is the same as what was printed last says nothing new.
        let found = held.windows(self.printed.len()).rposition(|window| window == self.printed);
        match found {
            Some(at) => {
                let rest = held.split_off(at + self.printed.len());
                self.held = None;
                self.note(rest)
            }
            None if held.len() > MOST => self.settle(),
            None => Vec::new(),
        }
    }

    /// Nothing more comes for now: the place is not there. All that was held is to be printed.
    pub fn settle(&mut self) -> Vec<u8> {
        let held = self.held.take().unwrap_or_default();
        self.note(held)
    }

    fn note(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.printed.extend_from_slice(&bytes);
        let surplus = self.printed.len().saturating_sub(KEPT);
        self.printed.drain(..surplus);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_again_is_printed_once() {
        let mut seam = Seam::default();
        assert_eq!(seam.take(b"one\ntwo\n"), b"one\ntwo\n");
        seam.breaks();
        assert_eq!(seam.take(b"zero\none\nt"), b"", "not found yet");
        assert_eq!(seam.take(b"wo\nthree\n"), b"three\n");
        assert!(!seam.searches());
        assert_eq!(seam.take(b"four\n"), b"four\n");
    }

    #[test]
    fn another_log_is_printed_whole() {
        let mut seam = Seam::default();
        seam.take(b"one\n");
        seam.breaks();
        assert_eq!(seam.take(b"elsewhere\n"), b"");
        assert_eq!(seam.settle(), b"elsewhere\n");
        assert_eq!(seam.take(b"more\n"), b"more\n");
    }

    #[test]
    fn a_log_of_which_nothing_was_printed_has_no_place() {
        let mut seam = Seam::default();
        seam.breaks();
        assert!(!seam.searches() && seam.is_new());
        assert_eq!(seam.take(b"one\n"), b"one\n");
    }

    #[test]
    fn little_is_kept_of_much() {
        let mut seam = Seam::default();
        let text: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        seam.take(text.as_bytes());
        assert!(seam.printed.len() == KEPT);
        seam.breaks();
        assert_eq!(seam.take(format!("{text}next\n").as_bytes()), b"next\n");
        seam.breaks();
        assert!(seam.take(&vec![b'x'; MOST + 1]).len() > MOST, "it is not held for ever");
    }
}
