//! The leader's journal of looks at services, in its data directory: JSON, one line for
//! each look, and for each autoscaler's beginning one with all that it knew. Two files
//! of a bounded size: when one is full it takes the place of the older one, and the next
//! begins with what every autoscaler knows then, so that each file can be played alone.
//! It does not know what lines mean.

use nf_core::autoscaler::journal::Record;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The name of the file that is written to.
pub const FILE: &str = "autoscale.jsonl";
/// The one before.
pub const OLDER: &str = "autoscale.1.jsonl";
/// A file is full at so many bytes.
const FULL: u64 = 32 << 20;
/// Lines of beginnings in one write; services beyond it can be played from their own beginning alone.
const BEGINNINGS: usize = 64;

/// A handle; clones share it.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    full: u64,
    /// One writer at a time, and whether the last write failed: it is said once.
    failed: Mutex<bool>,
}

impl Journal {
    /// In that folder, which is made when something is written.
    pub fn new(folder: PathBuf) -> Self {
        Self::with(folder, FULL)
    }

    fn with(folder: PathBuf, full: u64) -> Self {
        Self(Arc::new(Inner { folder, full, failed: Mutex::default() }))
    }

    /// Adds lines, off the runtime's threads. Says whether a new file should be begun.
    pub async fn put(&self, records: &[Record]) -> bool {
        let text = lines(records);
        self.write(move |inner| inner.append(&text)).await
    }

    /// Begins a new file with these lines.
    pub async fn turn(&self, beginnings: impl Iterator<Item = Record>) {
        let text = lines(&beginnings.take(BEGINNINGS).collect::<Vec<_>>());
        self.write(move |inner| inner.turn(&text)).await;
    }

    /// What can't be written is not worth a decision that comes late: it is lost, and that is said.
    async fn write(&self, write: impl FnOnce(&Inner) -> io::Result<bool> + Send + 'static) -> bool {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut failed = inner.failed.lock().unwrap_or_else(PoisonError::into_inner);
            let done = write(&inner);
            if let Err(error) = &done
                && !*failed
            {
                let folder = inner.folder.display();
                tracing::warn!(%error, %folder, "the journal of the autoscaler is not written; decisions go on");
            }
            *failed = done.is_err();
            done.unwrap_or(false)
        });
        done.await.unwrap_or(false)
    }
}

impl Inner {
    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    fn append(&self, text: &str) -> io::Result<bool> {
        fs::create_dir_all(&self.folder)?;
        Ok(append(&self.path(), text)? >= self.full)
    }

    fn turn(&self, text: &str) -> io::Result<bool> {
        fs::rename(self.path(), self.folder.join(OLDER))?;
        append(&self.path(), text)?;
        Ok(false)
    }
}

/// The size of the file with the text.
fn append(path: &Path, text: &str) -> io::Result<u64> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let before = file.metadata()?.len();
    // Half a line would spoil the one that is written when there is room again.
    file.write_all(text.as_bytes()).inspect_err(|_| drop(file.set_len(before)))?;
    Ok(before + text.len() as u64)
}

fn lines(records: &[Record]) -> String {
    let mut out = String::new();
    for record in records {
        // Numbers, names and lists: these serialize.
        if let Ok(line) = serde_json::to_string(record) {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::autoscaler::journal::{Life, Replay, Replayed};
    use nf_core::autoscaler::{Autoscaler, Limits, Reading, Service, Signals};
    use nf_core::id::{JobNo, ModelId, TenantId};

    fn life() -> Life {
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        Life { term: 3, job: JobNo(1), life: 1, tenant, model }
    }

    fn look(scaler: &mut Autoscaler, k: u64) -> Record {
        let signals = Signals {
            at_ms: k * 5_000,
            ready: Reading::of(2),
            starting: Reading::of(0),
            queue: Reading::of(k % 7),
            running: Reading::of(20),
            arrivals: Reading::of(40 + k % 9),
            p95_ms: Reading::Absurd,
            ..Signals::default()
        };
        scaler.stands_at(2);
        let decision = Box::new(scaler.step(&signals));
        Record::Look { of: life(), signals, stands_at: 2, limits: Limits::default(), decision }
    }

    fn play(path: &Path) -> Replayed {
        let mut replay = Replay::default();
        let text = fs::read_to_string(path).unwrap();
        text.lines().for_each(|line| replay.take(serde_json::from_str(line).unwrap()));
        replay.end()
    }

    #[tokio::test]
    async fn each_of_its_files_can_be_played_alone_and_there_are_two() {
        let dir = tempfile::tempdir().unwrap();
        let full = 600_000;
        let journal = Journal::with(dir.path().join("autoscale"), full);
        let mut scaler = Autoscaler::new(Service::default()).unwrap();
        journal.put(&[Record::From { of: life(), scaler: Box::new(scaler.clone()) }]).await;
        let mut turns = 0;
        for k in 1..2_000 {
            let line = look(&mut scaler, k);
            if journal.put(&[line]).await {
                turns += 1;
                journal.turn(std::iter::once(Record::From { of: life(), scaler: Box::new(scaler.clone()) })).await;
            }
        }
        let files = [FILE, OLDER].map(|name| dir.path().join("autoscale").join(name));
        assert!(turns >= 2, "{turns}");
        for file in &files {
            let size = fs::metadata(file).unwrap().len();
            assert!(size <= full + 10_000, "{size} bytes");
            let played = play(file);
            assert!(played.looks > 100 && played.without_beginning == 0, "{played:?}");
            assert_eq!(played.differences, []);
        }
        assert_eq!(fs::read_dir(dir.path().join("autoscale")).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_written_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let journal = Journal::new(file.join("autoscale"));
        let mut scaler = Autoscaler::new(Service::default()).unwrap();
        assert!(!journal.put(&[look(&mut scaler, 1)]).await);
    }
}
