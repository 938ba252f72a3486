//! What a container's program writes, brought from the engine into the replica's log. The
//! engine keeps it meanwhile, so an agent that was away goes on where it stopped: the time
//! of the last line that it has is kept beside the model.

use crate::agent::logs;
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pieces that are written at once, and how long they are gathered: the engine sends each line by
/// itself, and a file that is opened for each keeps up with few. Who does not keep up while the
/// engine's file begins anew misses what was in it.
const AT_ONCE: usize = 4096;
const GATHER: Duration = Duration::from_millis(50);
/// A stream that has said nothing for so long is asked for anew: Docker's own stops without a word
/// once the engine's file has begun anew under it (seen with 20.10).
const QUIET: Duration = Duration::from_secs(5);
/// Lines whose times are remembered, so that none is told twice.
const RECENT: usize = 1 << 14;
/// Before a stream that ended too soon is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// One container's output, and where it goes.
pub(super) struct Output {
    pub docker: Docker,
    pub name: String,
    pub log: PathBuf,
    /// Holds the time of the last line that is in the log.
    pub mark: PathBuf,
}

impl Output {
    /// Runs until the program has ended and all that it wrote is in the log.
    pub(super) async fn follow<T>(self, ended: watch::Receiver<Option<T>>) {
        let mark = self.mark.clone();
        let read = tokio::task::spawn_blocking(move || Mark::parse(&fs::read_to_string(mark).ok()?)).await;
        let mut heard = Heard { last: read.unwrap_or(None), ..Heard::default() };
        loop {
            let over = ended.borrow().is_some();
            self.once(&mut heard).await;
            if over {
                return;
            }
            if let Ok(Err(_)) = tokio::time::timeout(AGAIN, ended.clone().wait_for(Option::is_some)).await {
                // Nobody is left who could say that it ended.
                return;
            }
        }
    }

    /// Everything that was not heard yet, as long as the engine has something to say.
    async fn once(&self, heard: &mut Heard) {
        let since = heard.last.and_then(|last| i32::try_from(last.at.as_second()).ok()).unwrap_or(0);
        (heard.had, heard.unfinished) = (heard.last, [None; 2]);
        let options =
            LogsOptions { follow: true, stdout: true, stderr: true, timestamps: true, since, ..Default::default() };
        let mut stream = std::pin::pin!(self.docker.logs(&self.name, Some(options)));
        while let Some(pieces) = gathered(&mut stream).await {
            let mut text = Vec::new();
            let mut broken = false;
            for piece in pieces {
                match piece {
                    Ok(piece) => {
                        let stderr = matches!(piece, LogOutput::StdErr { .. });
                        heard.take(usize::from(stderr), &piece.into_bytes(), &mut text);
                    }
                    Err(_) => broken = true,
                }
            }
            if !text.is_empty()
                && let Err(error) = self.write(text, heard.last).await
            {
                tracing::warn!(container = self.name, %error, "a container's output can't be written");
            }
            if broken {
                return;
            }
        }
    }

    async fn write(&self, text: Vec<u8>, last: Option<Mark>) -> io::Result<()> {
        let (log, mark) = (self.log.clone(), self.mark.clone());
        let written = tokio::task::spawn_blocking(move || {
            logs::append(&log, &text)?;
            logs::rotate(&log)?;
            last.map_or(Ok(()), |last| fs::write(mark, format!("{} {}", last.at, last.lines)))
        });
        written.await.map_err(io::Error::other)?
    }
}

/// What comes within a moment of the first; None when nothing does for long, or nothing any more.
async fn gathered<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> Option<Vec<T>> {
    let mut pieces = vec![tokio::time::timeout(QUIET, stream.next()).await.ok()??];
    let until = Instant::now() + GATHER;
    while pieces.len() < AT_ONCE
        && let Ok(Some(piece)) = tokio::time::timeout_at(until, stream.next()).await
    {
        pieces.push(piece);
    }
    Some(pieces)
}

/// How far the log has come. Lines may have the same time, where the clock is coarse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    at: Timestamp,
    /// Lines of that very time that are in the log.
    lines: u64,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let (at, lines) = text.trim().split_once(' ')?;
        Some(Self { at: at.parse().ok()?, lines: lines.parse().ok()? })
    }
}

/// What was heard of a container so far.
#[derive(Default)]
struct Heard {
    last: Option<Mark>,
    /// Where the log stood when the engine was asked; None once what comes is new.
    had: Option<Mark>,
    /// The times of lines that came last.
    recent: BTreeSet<Timestamp>,
    /// Lines of the last time that come once more.
    again: u64,
    /// Of stdout and stderr, the time of a line whose end has not come: the engine gives each piece of it that time.
    unfinished: [Option<Timestamp>; 2],
}

impl Heard {
    /// One piece, `TIME TEXT`, unless it was there before: the engine can be asked for whole seconds
    /// only, and says again what is in a file that has just begun anew (seen with 20.10).
    fn take(&mut self, stream: usize, piece: &[u8], out: &mut Vec<u8>) {
        let cut = piece.iter().position(|b| *b == b' ');
        let time = cut.and_then(|cut| std::str::from_utf8(&piece[..cut]).ok()?.parse::<Timestamp>().ok());
        let (Some(cut), Some(time)) = (cut, time) else {
            // Without a time it can't be told from what was there; better twice than not at all.
            return out.extend_from_slice(piece);
        };
        let goes_on = self.unfinished[stream] == Some(time);
        let unfinished = (!piece.ends_with(b"\n")).then_some(time);
        match &mut self.had {
            Some(mark) if time < mark.at => return,
            Some(mark) if time == mark.at && mark.lines > 0 => {
                mark.lines -= 1;
                return;
            }
            _ => self.had = None,
        }
        match &mut self.last {
            Some(mark) if goes_on => mark.lines += u64::from(time == mark.at),
            Some(mark) if time < mark.at && self.recent.contains(&time) => {
                self.again = mark.lines;
                return;
            }
            Some(mark) if time == mark.at && self.again > 0 => {
                self.again -= 1;
                return;
            }
            Some(mark) if time == mark.at => mark.lines += 1,
            // The two outputs may come a little out of order.
            Some(mark) if time < mark.at => {}
            _ => (self.last, self.again) = (Some(Mark { at: time, lines: 1 }), 0),
        }
        self.recent.insert(time);
        if self.recent.len() > RECENT {
            self.recent.pop_first();
        }
        self.unfinished[stream] = unfinished;
        out.extend_from_slice(&piece[cut + 1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(pieces: &[&[u8]], last: Option<Mark>) -> (String, Option<Mark>) {
        let (mut out, mut heard) = (Vec::new(), Heard { last, had: last, ..Heard::default() });
        pieces.iter().for_each(|piece| heard.take(0, piece, &mut out));
        (String::from_utf8_lossy(&out).into_owned(), heard.last)
    }

    /// The engine gives every piece of a line over 16 KiB the time of its first, whatever came between.
    #[test]
    fn a_long_line_goes_on_after_a_line_of_the_other_stream() {
        let (mut out, mut heard) = (Vec::new(), Heard::default());
        let pieces: [(usize, &[u8]); 5] = [
            (1, b"2026-01-02T03:04:05.000000001Z be"),
            (0, b"2026-01-02T03:04:05.000000002Z line\n"),
            (1, b"2026-01-02T03:04:05.000000001Z gin"),
            (1, b"2026-01-02T03:04:05.000000001Z end\n"),
            (0, b"2026-01-02T03:04:05.000000002Z twin\n"),
        ];
        pieces.iter().for_each(|(stream, piece)| heard.take(*stream, piece, &mut out));
        assert_eq!(String::from_utf8_lossy(&out), "beline\nginend\ntwin\n");
    }

    #[test]
    fn what_the_log_has_already_is_left_out() {
        let pieces: [&[u8]; 4] = [
            b"2026-01-02T03:04:05.000000001Z one\n",
            b"2026-01-02T03:04:05.000000002Z two words\n",
            b"2026-01-02T03:04:05.000000002Z at the same time\n",
            b"2026-01-02T03:04:05.100000000Z \n",
        ];
        let all = taken(&pieces, None);
        assert_eq!(all.0, "one\ntwo words\nat the same time\n\n");
        assert_eq!(taken(&pieces, Mark::parse("2026-01-02T03:04:05.000000002Z 1")).0, "at the same time\n\n");
        let mark = all.1.unwrap();
        assert_eq!(Mark::parse(&format!("{} {}\n", mark.at, mark.lines)), Some(mark));
        assert_eq!(taken(&pieces, Some(mark)), (String::new(), Some(mark)));
        assert_eq!(taken(&[b"no time at all\n"], None).0, "no time at all\n");
        assert_eq!(Mark::parse("2026-01-02T03:04:05Z"), None);
    }

    #[test]
    fn what_the_engine_says_again_is_told_once_and_what_comes_late_is_told() {
        let time = |n: u32| format!("2026-01-02T03:04:05.{n:09}Z");
        let line = |n: u32| format!("{} line {n}\n", time(n)).into_bytes();
        let lines: Vec<Vec<u8>> = [1, 2, 4, 5, 5].map(line).into();
        // After five lines, two of one time: the last four once more, one that was late, one that is new.
        let mut pieces: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        pieces.extend_from_slice(&pieces.clone()[1..]);
        let (late, new) = (line(3), line(6));
        pieces.extend([late.as_slice(), new.as_slice(), lines[3].as_slice()]);
        let (out, last) = taken(&pieces, None);
        assert_eq!(out, "line 1\nline 2\nline 4\nline 5\nline 5\nline 3\nline 6\n");
        assert_eq!(last, Mark::parse(&format!("{} 1", time(6))));
    }

    proptest! {
        #[test]
        fn no_output_is_lost_or_breaks_us(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8)) {
            let (mut out, mut heard) = (Vec::new(), Heard::default());
            pieces.iter().for_each(|piece| heard.take(0, piece, &mut out));
            prop_assert!(heard.last.is_some() || out == pieces.concat());
        }
    }
}
