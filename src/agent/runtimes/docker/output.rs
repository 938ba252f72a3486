//! What a container's program writes, brought from the engine into the replica's log. The
//! engine keeps it meanwhile, so an agent that was away goes on where it stopped: the time
//! of the last line that it has is kept beside the model.

use crate::agent::logs;
use bollard::Docker;
use bollard::query_parameters::LogsOptions;
use futures::StreamExt;
use jiff::Timestamp;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// Pieces that are written at once.
const AT_ONCE: usize = 256;
/// A stream that has said nothing for so long is asked for anew: Docker's own stops without a word
/// once the engine's file has begun anew under it (seen with 20.10).
const QUIET: Duration = Duration::from_secs(5);
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
        let mut last: Option<Mark> = read.unwrap_or(None);
        loop {
            let over = ended.borrow().is_some();
            self.once(&mut last).await;
            if over {
                return;
            }
            if let Ok(Err(_)) = tokio::time::timeout(AGAIN, ended.clone().wait_for(Option::is_some)).await {
                // Nobody is left who could say that it ended.
                return;
            }
        }
    }

    /// Everything after `last`, as long as the engine has something to say.
    async fn once(&self, last: &mut Option<Mark>) {
        let since = last.and_then(|last| i32::try_from(last.at.as_second()).ok()).unwrap_or(0);
        let mut had = *last;
        let options =
            LogsOptions { follow: true, stdout: true, stderr: true, timestamps: true, since, ..Default::default() };
        let stream = self.docker.logs(&self.name, Some(options)).ready_chunks(AT_ONCE);
        let mut stream = std::pin::pin!(stream);
        while let Ok(Some(pieces)) = tokio::time::timeout(QUIET, stream.next()).await {
            let mut text = Vec::new();
            let mut broken = false;
            for piece in pieces {
                match piece {
                    Ok(piece) => take(&piece.into_bytes(), &mut had, last, &mut text),
                    Err(_) => broken = true,
                }
            }
            if !text.is_empty()
                && let Err(error) = self.write(text, *last).await
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
            logs::open(&log)?.write_all(&text)?;
            logs::rotate(&log)?;
            last.map_or(Ok(()), |last| fs::write(mark, format!("{} {}", last.at, last.lines)))
        });
        written.await.map_err(io::Error::other)?
    }
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

/// One piece, `TIME TEXT`, unless it was there before: the engine can be asked for whole seconds only.
/// `had`: where the log stood when it was asked; None once what comes is new.
fn take(piece: &[u8], had: &mut Option<Mark>, last: &mut Option<Mark>, out: &mut Vec<u8>) {
    let cut = piece.iter().position(|b| *b == b' ');
    let time = cut.and_then(|cut| std::str::from_utf8(&piece[..cut]).ok()?.parse::<Timestamp>().ok());
    let (Some(cut), Some(time)) = (cut, time) else {
        // Without a time it can't be told from what was there; better twice than not at all.
        return out.extend_from_slice(piece);
    };
    match had {
        Some(mark) if time < mark.at => return,
        Some(mark) if time == mark.at && mark.lines > 0 => {
            mark.lines -= 1;
            return;
        }
        _ => *had = None,
    }
    match last {
        Some(mark) if time == mark.at => mark.lines += 1,
        // The two outputs may come a little out of order.
        Some(mark) if time < mark.at => {}
        _ => *last = Some(Mark { at: time, lines: 1 }),
    }
    out.extend_from_slice(&piece[cut + 1..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(pieces: &[&[u8]], last: Option<Mark>) -> (String, Option<Mark>) {
        let (mut out, mut had, mut last) = (Vec::new(), last, last);
        pieces.iter().for_each(|piece| take(piece, &mut had, &mut last, &mut out));
        (String::from_utf8_lossy(&out).into_owned(), last)
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

    proptest! {
        #[test]
        fn no_output_is_lost_or_breaks_us(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8)) {
            let (mut out, mut had, mut last) = (Vec::new(), None, None);
            pieces.iter().for_each(|piece| take(piece, &mut had, &mut last, &mut out));
            prop_assert!(last.is_some() || out == pieces.concat());
        }
    }
}
