//! A replica's post: what its own task holds on to. Through it the task says how
//! far it is, hears that it should stop, finds its places on disk and writes to
//! the replica's log.

use super::executor::{ExecutorConfig, Shared, now_ms};
use super::logs;
use super::record::Launch;
use super::scrape::Said;
use crate::exchange::life::{Life, Stop};
use nf_core::id::{Generation, RequestId};
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::{Leave, ReplicaId};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

/// Where things are kept. By node, because one process may play several.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub records: PathBuf,
    pub replicas: PathBuf,
    pub logs: PathBuf,
    pub run: PathBuf,
    pub guard: PathBuf,
    data: PathBuf,
}

impl Places {
    pub(super) fn new(config: &ExecutorConfig) -> Self {
        let (data, node) = (&config.data_dir, config.node.as_str());
        Self {
            records: data.join("records").join(node),
            replicas: data.join("replicas").join(node),
            logs: data.join("logs").join(node),
            run: config.run_dir.clone(),
            guard: data.join("guard").join(node),
            data: data.clone(),
        }
    }

    pub(super) fn make(&self) -> io::Result<()> {
        // Replicas with users of their own pass through theirs; each launch's own is closed.
        for (dir, mode) in [(&self.records, 0o700), (&self.replicas, 0o711), (&self.logs, 0o700)] {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// Shared by all nodes of a process: what counts is the content.
    pub(super) fn cache(&self) -> PathBuf {
        self.data.join("cache")
    }

    /// A replica's own directory, one per launch.
    pub(super) fn replica(&self, launch: &Launch) -> PathBuf {
        self.replica_of(&launch.request, launch.id, launch.generation)
    }

    pub(super) fn replica_of(&self, request: &RequestId, id: ReplicaId, generation: Generation) -> PathBuf {
        self.replicas.join(format!("{request}.{}.{}.{generation}", id.replica, id.job))
    }

    /// One log for all launches of a replica, so that why the last one ended can still be read. The job's
    /// number is in its name: another tenant may have a job of the same request later.
    pub(super) fn log(&self, request: &RequestId, id: ReplicaId) -> PathBuf {
        self.logs.join(format!("{request}.{}.{}.log", id.replica, id.job))
    }
}

/// Who is at work in a replica's directory, off the runtime's threads: what was begun there goes on for a moment when its
/// replica is told to stop. Nothing is removed before it is over.
#[derive(Clone, Debug, Default)]
pub(super) struct Hands(Arc<RwLock<()>>);

/// One of them.
pub(super) type Hand = OwnedRwLockReadGuard<()>;

impl Hands {
    pub(super) async fn lend(&self) -> Hand {
        self.0.clone().read_owned().await
    }

    /// Returns when all are back.
    pub(super) async fn off(&self) {
        drop(self.0.write().await);
    }
}

/// See the module.
pub(super) struct Post {
    pub shared: Arc<Shared>,
    pub launch: Launch,
    pub hands: Hands,
    stop: watch::Receiver<Option<Leave>>,
}

impl Post {
    pub(super) fn new(shared: Arc<Shared>, launch: Launch, hands: Hands, stop: watch::Receiver<Option<Leave>>) -> Self {
        Self { shared, launch, hands, stop }
    }

    pub(super) fn stage(&self, stage: Stage) {
        self.shared.stage((self.launch.id, self.launch.generation), stage);
    }

    /// What its own metrics said just now; None: nothing.
    pub(super) fn said(&self, said: Option<Said>) {
        self.shared.said((self.launch.id, self.launch.generation), said);
    }

    /// What must be so before it can be started; None when it is so.
    pub(super) fn waits(&self, text: Option<&str>) {
        self.live(|life| life.waits = text.map(str::to_owned));
    }

    /// Changes what is told of the launch beside its stage.
    pub(super) fn live(&self, change: impl FnOnce(&mut Life)) {
        self.shared.live((self.launch.id, self.launch.generation), change);
    }

    /// A stop has begun: TERM comes then at the latest, and KILL, by the time of day.
    pub(super) fn stops(&self, why: Reason, term_ms: u64, kill_ms: u64) {
        let now_ms = now_ms();
        self.live(|life| {
            life.step("Draining", now_ms, Some(why.token()));
            let since_ms = life.stop.map_or(now_ms, |stop| stop.since_ms);
            life.stop = Some(Stop { since_ms, term_ms, kill_ms });
        });
    }

    /// Why it should stop; None: it should not.
    pub(super) fn asked_to_stop(&self) -> Option<Reason> {
        self.stop.borrow().map(|asked| asked.why)
    }

    /// Waits until the replica should stop, and says why.
    pub(super) async fn stop_asked(&self) -> Reason {
        let mut stop = self.stop.clone();
        loop {
            if let Some(asked) = *stop.borrow_and_update() {
                return asked.why;
            }
            if stop.changed().await.is_err() {
                // Forgotten while it runs can't be: only what is gone is forgotten.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Is over when it must be gone at once, whatever it was given before: no lease covers it any more.
    pub(super) fn fence(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stop = self.stop.clone();
        async move {
            if stop.wait_for(|asked| matches!(asked, Some(Leave { why: Reason::NodeFailure, .. }))).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// How long it may save its state first; nothing where it was not told to stop, or has no time for that.
    pub(super) fn grace(&self) -> Duration {
        self.stop.borrow().map_or(Duration::ZERO, |asked| Duration::from_millis(asked.grace_ms.into()))
    }

    /// One of its devices is broken, so that what it was asked will not be answered.
    pub(super) fn broken(&self) -> bool {
        self.stop.borrow().is_some_and(|asked| asked.broken)
    }

    /// Waits until it is told that it has no time for that any more.
    pub(super) async fn hurried(&self) {
        let mut stop = self.stop.clone();
        loop {
            if stop.borrow_and_update().is_some_and(|asked| asked.grace_ms == 0) {
                return;
            }
            if stop.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.shared.places.replica(&self.launch)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.shared.places.log(&self.launch.request, self.launch.id)
    }

    /// Writes a line of ours into the replica's log, between those of its program.
    pub(super) async fn note(&self, text: &str) {
        let (path, line) = (self.log(), format!("{} nf: {text}\n", jiff::Timestamp::now().strftime("%FT%TZ")));
        let written = tokio::task::spawn_blocking(move || logs::append(&path, line.as_bytes())).await;
        if let Ok(Err(e)) = written {
            tracing::warn!(request = %self.launch.request, error = %e, "a replica's log can't be written");
        }
    }
}
