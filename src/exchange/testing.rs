//! A group of one in memory, for the tests of what hangs on a group. It plans and
//! applies at once, with nf-core's own code, and can be told to lose its leader.

use super::Group;
use crate::raft::{self, Applied, Electorate, MemberStatus, Role, Status};
use futures::future::BoxFuture;
use nf_core::command::{Answer, Mode};
use nf_core::id::MemberId;
use nf_core::plan::{Intent, Reply};
use nf_core::state::State;
use nf_core::testing;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

struct Inner {
    state: Mutex<State>,
    applied: watch::Sender<Applied>,
    leading: watch::Sender<Option<u64>>,
    /// Every intent, in order.
    intents: Mutex<Vec<Intent>>,
    confirmations: AtomicU64,
    confirms: AtomicBool,
    /// How far what a quorum confirms is ahead of what this member has applied.
    ahead: AtomicU64,
    leader: Mutex<MemberStatus>,
    quorum_ms: Mutex<Option<u64>>,
}

/// See the module's text. Clones are the same group.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

impl Memory {
    /// Leads a simulation group in term 1.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut state = State::new();
        let init = Intent::Init { cluster: "memory".into(), mode: Mode::Simulation, default_gpu_milli: 2_000 };
        testing::run(&mut state, init);
        state.take_changes();
        let applied = Applied { state: Arc::new(state.clone()), ..Applied::default() };
        let leader = MemberStatus {
            id: MemberId(1),
            name: "m1".into(),
            peer: String::new(),
            voter: true,
            matched: None,
            heard_ms: None,
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            applied: watch::channel(applied).0,
            leading: watch::channel(Some(1)).0,
            intents: Mutex::default(),
            confirmations: AtomicU64::new(0),
            confirms: AtomicBool::new(true),
            ahead: AtomicU64::new(0),
            leader: Mutex::new(leader),
            quorum_ms: Mutex::new(None),
        }))
    }

    pub fn lead(&self, term: Option<u64>) {
        self.0.leading.send_replace(term);
    }

    /// Whether a quorum answers.
    pub fn confirm(&self, confirms: bool) {
        self.0.confirms.store(confirms, Ordering::SeqCst);
    }

    /// A quorum confirms this many entries more than were applied here.
    pub fn confirm_ahead(&self, entries: u64) {
        self.0.ahead.store(entries, Ordering::SeqCst);
    }

    /// Where another process finds the leader.
    pub fn leader_at(&self, peer: String) {
        *self.0.leader.lock().unwrap() =
            MemberStatus { id: MemberId(9), name: "m9".into(), peer, voter: true, matched: None, heard_ms: None };
    }

    /// How long ago a quorum last answered; None: it votes alone.
    pub fn quorum_heard(&self, ms_ago: Option<u64>) {
        *self.0.quorum_ms.lock().unwrap() = ms_ago;
    }

    pub fn confirmations(&self) -> u64 {
        self.0.confirmations.load(Ordering::SeqCst)
    }

    pub fn intents(&self) -> Vec<Intent> {
        self.0.intents.lock().unwrap().clone()
    }

    pub fn state(&self) -> Arc<State> {
        self.0.applied.borrow().state.clone()
    }

    /// Plans, applies, publishes.
    pub fn run(&self, intent: Intent) -> Reply {
        self.0.intents.lock().unwrap().push(intent.clone());
        let mut state = self.0.state.lock().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        let result = testing::try_run_at(&mut state, intent, now).map(|answers| match answers.as_slice() {
            [only] => only.clone(),
            many => Answer::Count(many.iter().map(|a| if let Answer::Count(n) = a { *n } else { 0 }).sum()),
        });
        let index = self.0.applied.borrow().index + 1;
        state.take_changes();
        self.0.applied.send_replace(Applied { state: Arc::new(state.clone()), index, ..Applied::default() });
        Reply { result, index, ..Reply::empty() }
    }
}

impl Group for Memory {
    fn submit(&self, intent: Intent, _deadline: Instant) -> BoxFuture<'_, Result<Reply, raft::Error>> {
        Box::pin(async move { Ok(self.run(intent)) })
    }

    fn decide(&self, intent: Intent, term: u64, _deadline: Instant) -> BoxFuture<'_, Result<Reply, raft::Error>> {
        let confirmed = self.0.confirms.load(Ordering::SeqCst) && *self.0.leading.borrow() == Some(term);
        Box::pin(async move { if confirmed { Ok(self.run(intent)) } else { Err(raft::Error::Timeout) } })
    }

    fn watch(&self) -> watch::Receiver<Applied> {
        self.0.applied.subscribe()
    }

    fn leading(&self) -> watch::Receiver<Option<u64>> {
        self.0.leading.subscribe()
    }

    fn confirm_leadership(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, raft::Error>> {
        self.0.confirmations.fetch_add(1, Ordering::SeqCst);
        let confirms = self.0.confirms.load(Ordering::SeqCst);
        Box::pin(async move {
            if confirms {
                // Later than what the status says: the status of a busy leader lags behind.
                let index = self.0.applied.borrow().index + self.0.ahead.load(Ordering::SeqCst);
                tokio::task::yield_now().await;
                return Ok(index);
            }
            tokio::time::sleep_until(deadline.into()).await;
            Err(raft::Error::Timeout)
        })
    }

    fn caught_up(&self, _deadline: Instant) -> BoxFuture<'_, bool> {
        Box::pin(async { self.0.confirms.load(Ordering::SeqCst) })
    }

    fn log_ms(&self) -> u64 {
        raft::wall_clock_ms().max(self.state().meta().now_ms)
    }

    fn status(&self) -> Status {
        let leading = *self.0.leading.borrow();
        let leader = self.0.leader.lock().unwrap().clone();
        let index = self.0.applied.borrow().index;
        Status {
            id: MemberId(1),
            role: if leading.is_some() { Role::Leader } else { Role::Follower },
            term: leading.unwrap_or(0),
            leader: Some(leader.id),
            commit_index: index,
            applied_index: index,
            last_log_index: index,
            snapshot_index: 0,
            purged_index: 0,
            last_contact_ms: 0,
            silence_ms: 0,
            quorum_ms: *self.0.quorum_ms.lock().unwrap(),
            electorate: Electorate { since: (1, 1), sets: vec![[MemberId(1)].into()] },
            members: vec![leader],
        }
    }
}

/// Waits until `test` holds.
///
/// # Panics
/// When it does not within ten seconds.
pub async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !test() {
        assert!(Instant::now() < until, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
