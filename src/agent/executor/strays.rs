//! Launches of earlier agents that no readable record tells of. One whose record is there and can't be read keeps its
//! place: nothing starts in its stead until it is proven gone, or a person has removed the file. One that has no
//! record at all, since the data directory was lost, is ended. Who is whose is told by what processes carry.

use super::{Condition, End, Executor, Shared, held, runtimes};
use crate::agent::owned;
use crate::agent::post::Post;
use crate::agent::record::{Launch, Record, Unread};
use crate::agent::runtimes::marks::Marked;
use crate::agent::runtimes::processes::{Family, Identity};
use crate::agent::runtimes::users;
use crate::agent::troubles::RECORD_UNREADABLE;
use crate::exchange::life::Life;
use nf_core::id::{Generation, JobNo, RequestId};
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::ReplicaId;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Among the records: the machine's boot in which they were last looked at.
const BOOT: &str = "boot";
/// First and longest pause between two looks at one whose record can't be read.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Whether the machine has booted since an agent last wrote records: none of their processes is there then.
pub(super) fn booted_since(records: &Path, boot: &str) -> io::Result<bool> {
    let path = records.join(BOOT);
    let before = fs::read_to_string(&path).unwrap_or_default();
    if before != boot {
        crate::storage::replace_file(&path, boot.as_bytes()).map_err(io::Error::other)?;
    }
    Ok(!before.is_empty() && !boot.is_empty() && before != boot)
}

impl Executor {
    /// Removes directories of replicas that have no record: their processes never started.
    /// Those of records that cannot be read stay: their processes may live there.
    pub(super) fn sweep(&self, records: &[Record], unread: &[Unread]) -> io::Result<()> {
        let places = &self.shared.places;
        let known: Vec<PathBuf> = records.iter().map(|r| places.replica(&r.launch)).collect();
        for entry in fs::read_dir(&places.replicas)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !known.contains(&path)
                && !unread.iter().any(|unread| name.ends_with(&unread.directory_end()))
                && let Err(error) = owned::remove(&path)
            {
                // It costs room, and nothing else: the next start tries again.
                tracing::warn!(path = %path.display(), %error, "what is left of a replica can't be removed");
            }
        }
        Ok(())
    }

    /// Takes up what no readable record tells of.
    pub(super) fn take_up_strays(&self, recorded: &BTreeSet<String>, unread: Vec<Unread>) -> io::Result<()> {
        let marked = self.shared.config.found.below(&self.shared.places.replicas);
        for marked in marked.iter().filter(|marked| !recorded.contains(&marked.key)) {
            if !unread.iter().any(|unread| is_of(unread, marked)) {
                self.end_lost(marked);
            }
        }
        let booted = booted_since(&self.shared.places.records, &self.shared.boot)?;
        for unread in unread {
            if booted {
                tracing::warn!(path = %unread.path.display(), "the machine has booted since this record was written, which can't be read: removed");
                fs::remove_file(&unread.path)?;
                continue;
            }
            let its = marked.iter().find(|marked| is_of(&unread, marked));
            self.hold_place(unread, its)?;
        }
        Ok(())
    }

    /// Ends a launch whose record is lost.
    fn end_lost(&self, marked: &Marked) {
        let Some((request, id, generation)) = named(&marked.dir) else { return };
        let family = self.family_of(marked);
        tracing::warn!(job = %id.job, replica = id.replica, %generation, "a replica that an earlier agent left, whose record is lost, is ended");
        let launch = launch(request, id, generation, Default::default());
        let (shared, ends) = (self.shared.clone(), launch.clone());
        let end = End::failed(Reason::NodeFailure);
        let ended = async move {
            runtimes::put_down(&shared, &ends, &family, end).await;
            if let Some(group) = &family.cgroup {
                let _ = runtimes::cgroup::remove(group);
            }
            end
        };
        if held(&self.shared.slots).contains_key(&(id, generation)) {
            // Another launch has a record in its name; that one's place is its own.
            self.shared.runtime.spawn(ended);
            return;
        }
        let _ = self.insert(&launch, Condition::Stopping, Stage::Scheduled, Life::default());
        self.launch(launch, ended);
    }

    fn hold_place(&self, unread: Unread, marked: Option<&Marked>) -> io::Result<()> {
        let remains = unread.remains.clone();
        let family = match (remains.key, marked) {
            (Some(key), seen) => {
                let leader = remains.process.filter(Identity::lives).or(seen.and_then(|seen| seen.leader));
                let owner = remains.owner.filter(|owner| users::is_claimed(owner.uid, &key));
                Some(Family { key, leader, cgroup: remains.cgroup, owner })
            }
            (None, Some(marked)) => Some(self.family_of(marked)),
            (None, None) => None,
        };
        if let Some(family) = family.as_ref().filter(|_| remains.exclusive == Some(true)) {
            self.shared.guard.knows(family.clone());
        }
        let request = remains.request.or_else(|| self.request_of(&unread)).unwrap_or_else(nobody);
        // What it holds is asked of the devices and the port themselves, where the record does not say.
        let holding = nf_core::reconcile::Holding {
            devices: Some(remains.holding.devices.unwrap_or_default()),
            ..remains.holding
        };
        let launch = launch(request, unread.id, unread.generation, holding);
        let post = self.insert(&launch, Condition::Alive, Stage::Scheduled, Life::default());
        if let Some(exclusive) = remains.exclusive {
            self.shared.never_twice((unread.id, unread.generation), exclusive);
        }
        self.launch(launch, async move { hold(post, unread, family).await });
        Ok(())
    }

    /// By the name of its directory.
    fn request_of(&self, unread: &Unread) -> Option<RequestId> {
        let dirs = fs::read_dir(&self.shared.places.replicas).ok()?;
        dirs.flatten().filter_map(|entry| named(&entry.path())).find_map(|(request, id, generation)| {
            ((id, generation) == (unread.id, unread.generation)).then_some(request)
        })
    }

    fn family_of(&self, marked: &Marked) -> Family {
        let cgroup =
            self.shared.cgroups.as_ref().ok().map(|groups| groups.path(&runtimes::cgroup::name_of(&marked.key)));
        let owner = self.shared.users.as_ref().ok().and_then(|giver| giver.owner(marked.uid));
        Family { key: marked.key.clone(), leader: marked.leader, cgroup: cgroup.filter(|group| group.exists()), owner }
    }
}

fn is_of(unread: &Unread, marked: &Marked) -> bool {
    let named = marked.dir.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&unread.directory_end()));
    named || unread.remains.key.as_ref() == Some(&marked.key)
}

/// Whose directory it is: the reverse of [`super::Places::replica_of`].
fn named(dir: &Path) -> Option<(RequestId, ReplicaId, Generation)> {
    let name = dir.file_name()?.to_str()?;
    let mut parts = name.rsplitn(4, '.');
    let generation = parts.next()?.strip_prefix('g')?.parse().ok()?;
    let job = parts.next()?.strip_prefix('j')?.parse().ok()?;
    let replica = parts.next()?.parse().ok()?;
    Some((RequestId::new(parts.next()?).ok()?, ReplicaId { job: JobNo(job), replica }, Generation(generation)))
}

fn launch(request: RequestId, id: ReplicaId, generation: Generation, holding: nf_core::reconcile::Holding) -> Launch {
    Launch {
        request,
        id,
        generation,
        host: "".into(),
        port: holding.port,
        devices: holding.devices.or(Some(Vec::new())),
        uuids: Vec::new(),
    }
}

/// Of a launch of which only the numbers are known.
fn nobody() -> RequestId {
    RequestId::new("unknown").expect("a fixed name that is valid")
}

/// Keeps its place until it is proven gone or its file is removed. Told to stop, it is ended if it is known by its key.
async fn hold(post: Post, unread: Unread, family: Option<Family>) -> End {
    let Unread { path, id, generation, .. } = &unread;
    let shared: &Shared = &post.shared;
    let who = format!("{}.{}.{}.{generation}", shared.config.node, id.job, id.replica);
    let text = format!(
        "its record {} can't be read, and it may still run: nothing starts in its place. End its processes, then remove that file",
        path.display()
    );
    shared.config.troubles.raise(RECORD_UNREADABLE, &who, &text);
    post.waits(Some(&text));
    post.note(&text).await;
    let mut pause = LOOK.0;
    let (end, said) = loop {
        if !path.exists() {
            // Whoever did that wants its place free; what is known to be left of it goes.
            if let Some(family) = &family {
                runtimes::put_down(&post.shared, &post.launch, family, End::failed(Reason::RuntimeFailed)).await;
            }
            break (End::failed(Reason::RuntimeFailed), "somebody removed its record");
        }
        if let Some(family) = &family
            && runtimes::is_gone(family).await
        {
            break (End::failed(Reason::RuntimeFailed), "no process of it is left");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = LOOK.1.min(pause * 2),
            why = post.stop_asked(), if family.is_some() => {
                if let Some(family) = &family {
                    runtimes::put_down(&post.shared, &post.launch, family, End { ok: true, why }).await;
                }
                break (End { ok: true, why }, "it was ended, since it was to stop");
            }
        }
    };
    if let Some(family) = family.as_ref() {
        shared.guard.release(&family.key);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a record that can't be read can't be removed either");
        }
        _ => {}
    }
    post.note(said).await;
    post.waits(None);
    shared.config.troubles.clear(RECORD_UNREADABLE, &who);
    end
}
