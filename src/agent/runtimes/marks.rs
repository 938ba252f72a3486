//! Finds replicas by what their processes carry in the environment, when no record tells of them: their key, and the
//! directory that was theirs. That names the node's data directory, so that another agent's replicas, or whoever
//! else's processes, are never taken for this one's. It signals nobody.

use super::processes::{Identity, KEY, environ, leads_session, users_of};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The launch's own directory, absolute.
pub(in crate::agent) const DIR: &str = "NF_REPLICA_DIR";

/// A launch that has a process here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Marked {
    /// Its own directory, which may be gone.
    pub dir: PathBuf,
    pub key: String,
    /// The first process of its session, if that is one of those seen.
    pub leader: Option<Identity>,
    pub uid: u32,
}

/// What processes carry of a launch with that directory.
pub(in crate::agent) fn of(dir: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(dir)
}

/// All launches that have a process here, whosever they are. Looked for once: what an earlier agent left was here before
/// this process began, and a process may run a thousand nodes.
#[derive(Default)]
pub struct Found(OnceLock<Vec<Marked>>);

impl Found {
    /// Those whose directories are in `replicas`. The first time it reads all of /proc.
    pub(in crate::agent) fn below(&self, replicas: &Path) -> Vec<Marked> {
        let Ok(replicas) = std::path::absolute(replicas) else { return Vec::new() };
        let all = self.0.get_or_init(find);
        all.iter().filter(|marked| marked.dir.parent() == Some(&replicas)).cloned().collect()
    }
}

fn find() -> Vec<Marked> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    // Where another view of the files is, the same path is another directory.
    let view = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = view("self");
    let mut found: BTreeMap<(PathBuf, String), Marked> = BTreeMap::new();
    for pid in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        let Some((dir, key)) = mark(&environ(pid)) else { continue };
        let Some(process) = Identity::of(pid).filter(|_| view(&pid.to_string()) == own) else { continue };
        let uid = users_of(pid).first().copied().unwrap_or(0);
        let one = Marked { dir: dir.clone(), key: key.clone(), leader: None, uid };
        let known = found.entry((dir, key)).or_insert(one);
        if leads_session(&process) {
            (known.leader, known.uid) = (Some(process), uid);
        }
    }
    found.into_values().collect()
}

fn mark(environ: &[u8]) -> Option<(PathBuf, String)> {
    let entry = |name: &str| {
        let start = format!("{name}=");
        let entry = environ.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(start.as_bytes()))?;
        String::from_utf8(entry.to_vec()).ok().filter(|text| !text.is_empty())
    };
    Some((entry(DIR)?.into(), entry(KEY)?))
}
