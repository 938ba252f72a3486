//! The end of a replica's processes: asked, then killed, and gone only when none is left. One that survives KILL is said
//! so, and the group need not wait for it. It does not know why they have to end.

use super::processes::Family;
use crate::agent::executor::Shared;
use crate::agent::record::{End, Launch};
use crate::agent::troubles::PROCESS_STUCK;
use nix::sys::signal::Signal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// First and longest pause between two looks at all processes, for those that should go away.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How often the group is told that the devices of one that survives KILL are not free: it forgets that after a while.
const AGAIN: Duration = Duration::from_secs(120);

pub(super) async fn signal(family: &Family, signal: Signal) -> usize {
    let family = family.clone();
    // If the runtime goes down, so do we; the processes stay for the next agent.
    tokio::task::spawn_blocking(move || family.signal(signal)).await.unwrap_or(0)
}

/// Whether no process of the family lives.
pub(in crate::agent) async fn is_gone(family: &Family) -> bool {
    let look = family.clone();
    matches!(tokio::task::spawn_blocking(move || look.members().len()).await, Ok(0))
}

/// Waits until no process of the family lives.
pub(super) async fn gone(family: &Family) {
    let mut pause = LOOK.0;
    while !is_gone(family).await {
        tokio::time::sleep(pause).await;
        pause = LOOK.1.min(pause * 2);
    }
}

/// TERM, a while, KILL; returns when nothing of it is left.
pub(in crate::agent) async fn put_down(shared: &Arc<Shared>, launch: &Launch, family: &Family, end: End) {
    signal(family, Signal::SIGTERM).await;
    if tokio::time::timeout(shared.config.stop_grace, gone(family)).await.is_err() {
        clear(family, &Stuck::of(shared, launch, end)).await;
    }
}

/// Kills until none is left. A process that the kernel does not let go of keeps its devices,
/// so this waits as long as it takes.
pub(super) async fn clear(family: &Family, stuck: &Stuck) {
    let mut pause = LOOK.0;
    loop {
        let left = signal(family, Signal::SIGKILL).await;
        if left == 0 {
            return;
        }
        stuck.look(|| format!("{left} processes survive KILL"));
        tokio::time::sleep(pause).await;
        pause = LOOK.1.min(pause * 2);
    }
}

/// Raises the alarm that something of a launch survives KILL, once that has taken too long, and ends it when it is
/// dropped: nothing is left then, or the agent goes down.
pub(super) struct Stuck {
    shared: Arc<Shared>,
    launch: Launch,
    /// As what its end counts.
    end: End,
    since: Instant,
    /// When the group was last told that its devices are not free.
    told: Mutex<Option<Instant>>,
}

impl Stuck {
    pub(super) fn of(shared: &Arc<Shared>, launch: &Launch, end: End) -> Self {
        Self { shared: shared.clone(), launch: launch.clone(), end, since: Instant::now(), told: Mutex::default() }
    }

    fn who(&self) -> String {
        let Launch { id, generation, .. } = &self.launch;
        format!("{}.{}.{}.{generation}", self.shared.config.node, id.job, id.replica)
    }

    /// Something of it is left still.
    pub(super) fn look(&self, what: impl Fn() -> String) {
        if self.since.elapsed() < self.shared.config.kill_after {
            return;
        }
        let (request, key) = (&self.launch.request, (self.launch.id, self.launch.generation));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none() {
            let text = format!("replica {} of {request}: {}; its devices stay held", self.launch.id.replica, what());
            self.shared.config.troubles.raise(PROCESS_STUCK, &self.who(), &text);
            self.shared.stuck(key, self.end, text);
        }
        if told.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.shared.config.vacancy.tell(&self.launch.uuids);
            *told = Some(Instant::now());
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.shared.config.troubles.clear(PROCESS_STUCK, &self.who());
    }
}
