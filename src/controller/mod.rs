//! The leader's loop: while this member leads, it feeds what was heard from nodes
//! to `nf_core::control` and submits what that decides. Everything it knows dies
//! with the term; it may be killed at any line and simply run again. It decides
//! nothing itself.

pub mod journal;
mod scaling;

pub use journal::Journal;
pub use scaling::{Look, Pace};

use crate::exchange::{Group, Heard, Hub};
use crate::raft;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nf_core::command::Answer;
use nf_core::control::{self, Now, Observations, Timeouts};
use nf_core::node::NodeState;
use nf_core::plan::{Intent, Reply};
use nf_core::rollout;
use scaling::{Looked, Scaler};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::time::MissedTickBehavior;

/// How long an intent may wait for the group.
const SUBMIT: Duration = Duration::from_secs(5);
/// Intents of one step that are submitted; the next step finds the others again.
const INTENTS: usize = 256;
/// A change of the state is looked at so long after the last step at the earliest.
const COALESCE: Duration = Duration::from_millis(5);
/// Pause after a pass over the queue that got no answer.
const RETRY: Duration = Duration::from_millis(100);

/// Is told what a look at all services came to; None when this member leads no more.
pub type Told = Arc<dyn Fn(Option<&[Look]>) + Send + Sync>;

/// How the loop is run.
#[derive(Clone)]
pub struct Options {
    pub timeouts: Timeouts,
    /// A step is made at least this often.
    pub tick: Duration,
    pub pace: Pace,
    /// How often replicas are moved to mend fragmentation; never when None.
    pub defrag_every: Option<Duration>,
    pub told: Told,
    /// Where looks at services are written down; nowhere when None.
    pub journal: Option<Journal>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            tick: Duration::from_millis(250),
            pace: Pace::default(),
            defrag_every: None,
            told: Arc::new(|_| ()),
            journal: None,
        }
    }
}

/// Runs until the group's handle stops. Give it a task of its own.
pub async fn run(hub: Hub, options: Options) {
    let (group, heard) = (hub.group().clone(), hub.beats());
    let mut leading = group.leading();
    loop {
        let term = *leading.borrow_and_update();
        match term {
            None => {
                if leading.changed().await.is_err() {
                    return;
                }
            }
            Some(term) => {
                tracing::info!(term, "leading: the control loop starts");
                let mut over = leading.clone();
                let _told = Withdrawn(&hub, &options.told);
                tokio::select! {
                    () = lead(&*group, term, &heard, &options) => return,
                    () = scale(&hub, term, &options) => return,
                    () = defrag(&hub, term, &options) => return,
                    ended = over.wait_for(|now| *now != Some(term)) => match ended {
                        Ok(_) => tracing::info!(term, "the term is over: the control loop ends"),
                        Err(_) => return,
                    },
                }
            }
        }
    }
}

/// Takes what the term has told back when the term is over, however it ends.
struct Withdrawn<'a>(&'a Hub, &'a Told);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        self.0.advise(None);
        (self.1)(None);
    }
}

type Submitted<'a> = BoxFuture<'a, Result<Reply, raft::Error>>;

/// In this term or not at all: what one leader heard, or did not hear, is no other's to judge by.
fn submit(group: &dyn Group, term: u64, intent: Intent) -> Submitted<'_> {
    group.decide(intent, term, Instant::now() + SUBMIT)
}

/// What is under way in the group.
#[derive(Default)]
struct UnderWay<'a> {
    term: u64,
    /// Verdicts and stops. New ones wait until these are settled: the next step
    /// finds again what still holds.
    judged: FuturesUnordered<Submitted<'a>>,
    placing: Option<Submitted<'a>>,
    /// Something changed while a pass was under way.
    again: bool,
}

/// One term. Returns when the group's handle stops.
async fn lead(group: &dyn Group, term: u64, heard: &Heard, options: &Options) {
    // What was heard before the term is not this leader's to judge by.
    heard.drain();
    heard.settled();
    let origin = Instant::now();
    let mut quorum = Quorum::default();
    let mut seen = Observations::new(0);
    let mut applied = group.watch();
    let mut tick = tokio::time::interval(options.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = UnderWay { term, ..UnderWay::default() };
    loop {
        let mono = |at: Instant| at.saturating_duration_since(origin).as_millis() as u64;
        for (node, at) in heard.drain() {
            seen.heard(node, mono(at));
        }
        let (intents, known) = {
            let state = applied.borrow_and_update().state.clone();
            let known = (state.room(), state.has_waiters());
            let now =
                Now { mono_ms: mono(Instant::now()), wall_ms: group.log_ms(), unheard_ms: quorum.unheard_ms(group) };
            (control::step(&state, &mut seen, &options.timeouts, now), known)
        };
        let intents = spare_who_spoke(intents, heard);
        under_way.take(group, intents);
        let stepped = tokio::time::Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                Some(outcome) = under_way.judged.next(), if !under_way.judged.is_empty() => {
                    log_failure(&outcome);
                    if under_way.judged.is_empty() {
                        heard.settled();
                    }
                    if outcome.is_err() {
                        // Cut off from the quorum, it was cut off from the nodes' beats, too.
                        seen.stood_still(mono(Instant::now()));
                    }
                }
                outcome = next_of(&mut under_way.placing) => under_way.placed(group, &outcome),
                changed = applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let state = applied.borrow_and_update().state.clone();
                    if known != (state.room(), state.has_waiters()) {
                        drop(state);
                        tokio::time::sleep_until(stepped + COALESCE).await;
                        break;
                    }
                }
            }
        }
    }
}

/// How long ago this leader's quorum last answered it.
#[derive(Default)]
struct Quorum {
    away: bool,
    /// By the clock that also counts while the machine sleeps, which the others do not.
    looked_us: Option<u64>,
}

impl Quorum {
    fn unheard_ms(&mut self, group: &dyn Group) -> u64 {
        let now_us = raft::clock::boot_us();
        let stood_ms = self.looked_us.replace(now_us).map_or(0, |before| now_us.saturating_sub(before) / 1000);
        let unheard_ms = group.status().quorum_ms.unwrap_or(0).max(stood_ms);
        let away = unheard_ms > control::UNHEARD_MS;
        if away && !self.away {
            tracing::warn!(
                unheard_ms,
                "no quorum answered this leader for a while: every node has its whole time anew"
            );
        }
        self.away = away;
        unheard_ms
    }
}

/// Whoever speaks while it is being judged is not given up; the others have no lease from now on.
fn spare_who_spoke(mut intents: Vec<Intent>, heard: &Heard) -> Vec<Intent> {
    for intent in &mut intents {
        if let Intent::NodeStates(changes) = intent {
            changes.retain(|(node, _, to)| *to != NodeState::Down || heard.give_up(*node));
        }
    }
    intents.retain(|intent| !matches!(intent, Intent::NodeStates(changes) if changes.is_empty()));
    intents
}

/// Looks at the services for one term. Returns when the group's handle stops.
async fn scale(hub: &Hub, term: u64, options: &Options) {
    let group = &**hub.group();
    let mut scaler = Scaler::new(term, options.pace);
    let mut tick = tokio::time::interval(options.pace.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let origin = (Instant::now(), wall_ms());
    let applied = group.watch();
    while applied.has_changed().is_ok() {
        tick.tick().await;
        let state = applied.borrow().state.clone();
        if state.services().next().is_none() && state.rollouts().next().is_none() {
            hub.advise(Some(Vec::new()));
            (options.told)(Some(&[]));
            continue;
        }
        let panorama = hub.sights().await;
        let verdicts = rollout::verdicts(&state, &panorama.trials());
        // A clock that is set must not make signals old.
        let at_ms = origin.1 + origin.0.elapsed().as_millis() as u64;
        let Looked { intents, looks, records } = scaler.look(&state, panorama, at_ms);
        drop(state);
        hub.advise(Some(looks.iter().map(Look::advice).collect()));
        (options.told)(Some(&looks));
        // A version that breaks its promise goes first.
        for intent in verdicts.into_iter().chain(intents).take(INTENTS) {
            tracing::info!(?intent, "looking at services");
            log_failure(&submit(group, term, intent).await);
        }
        if let Some(journal) = &options.journal
            && journal.put(&records).await
        {
            journal.turn(scaler.beginnings()).await;
        }
    }
}

/// Moves a few replicas now and then, for one term. Returns when the group's handle stops.
async fn defrag(hub: &Hub, term: u64, options: &Options) {
    let Some(every) = options.defrag_every else { return std::future::pending().await };
    let group = &**hub.group();
    let applied = group.watch();
    while applied.has_changed().is_ok() {
        tokio::time::sleep(every).await;
        let panorama = hub.sights().await;
        // What a member does not tell may be the very service that suffers.
        if !panorama.silent.is_empty() {
            tracing::info!(silent = ?panorama.silent, "no defragmentation: members do not say how services do");
        } else if let Some((tenant, model)) = panorama.in_breach() {
            tracing::info!(%tenant, %model, "no defragmentation while a service breaks its promise");
        } else {
            log_failure(&submit(group, term, Intent::Defragment).await);
        }
    }
}

impl<'a> UnderWay<'a> {
    fn take(&mut self, group: &'a dyn Group, intents: Vec<Intent>) {
        let judging = !self.judged.is_empty();
        for intent in intents.into_iter().take(INTENTS) {
            match intent {
                Intent::PlaceWaiting if self.placing.is_some() => self.again = true,
                Intent::PlaceWaiting => self.placing = Some(submit(group, self.term, Intent::PlaceWaiting)),
                _ if judging => {}
                intent => self.judged.push(submit(group, self.term, intent)),
            }
        }
    }

    /// A pass is over; the next one follows at once when it placed something, or when room appeared meanwhile.
    fn placed(&mut self, group: &'a dyn Group, outcome: &Result<Reply, raft::Error>) {
        log_failure(outcome);
        let some = matches!(outcome, Ok(Reply { result: Ok(Answer::Count(1..)), .. }));
        let failed = outcome.is_err();
        let term = self.term;
        self.placing = (some || failed || self.again).then(|| {
            let wait = if failed { RETRY } else { Duration::ZERO };
            let pass: Submitted<'a> = Box::pin(async move {
                tokio::time::sleep(wait).await;
                submit(group, term, Intent::PlaceWaiting).await
            });
            pass
        });
        self.again = false;
    }
}

async fn next_of(placing: &mut Option<Submitted<'_>>) -> Result<Reply, raft::Error> {
    match placing {
        Some(pass) => {
            let outcome = pass.await;
            *placing = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

/// What fails is found again by a later step.
fn log_failure(outcome: &Result<Reply, raft::Error>) {
    match outcome {
        Err(error) => tracing::debug!(%error, "an intent of the control loop"),
        Ok(Reply { result: Err(refusal), .. }) => tracing::debug!(%refusal, "an intent of the control loop"),
        Ok(_) => {}
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{Memory, eventually};
    use crate::exchange::{Beat, Hub};
    use nf_core::control::NetworkFault;
    use nf_core::id::{Incarnation, NodeName, NodeNo};
    use nf_core::node::NodeState;
    use nf_core::resources::Gpus;
    use nf_core::testing;

    fn fast() -> Options {
        let fault = NetworkFault { percent: 50, down_ms: 1_000 };
        let timeouts = Timeouts { suspect_ms: 100, unknown_ms: 200, down_ms: 400, fault };
        Options { timeouts, tick: Duration::from_millis(20), ..Options::default() }
    }

    fn started(group: &Memory, options: Options) -> (Hub, tokio::task::JoinHandle<()>) {
        let hub = Hub::new(group.clone(), Default::default());
        let task = tokio::spawn(run(hub.clone(), options));
        (hub, task)
    }

    fn state_of(group: &Memory, node: u32) -> NodeState {
        group.state().node(NodeNo(node)).unwrap().state
    }

    #[tokio::test]
    async fn a_silent_node_goes_down_and_a_beat_brings_it_back() {
        let group = Memory::new();
        group.run(testing::register("n1", testing::node_spec(2)));
        let (hub, task) = started(&group, fast());
        eventually("the node is down", || state_of(&group, 1) == NodeState::Down).await;
        let beat = || vec![Beat::bare(NodeName::new("n1").unwrap(), Incarnation(1))];
        let answer = loop {
            // Until the loop knows that its word is done, the node has no lease.
            match hub.beat(beat()).await {
                Ok(answer) => break answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert_eq!((answer.term, answer.lease_ms), (1, 45_000));
        eventually("the node is ready", || state_of(&group, 1) == NodeState::Ready).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_leader_away_from_its_quorum_gives_nobody_up() {
        let group = Memory::new();
        group.run(testing::register("n1", testing::node_spec(2)));
        group.quorum_heard(Some(control::UNHEARD_MS + 1));
        let (_hub, task) = started(&group, fast());
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        assert_eq!(state_of(&group, 1), NodeState::Ready, "though it was silent for longer than it may be");
        group.quorum_heard(Some(0));
        eventually("the node is down", || state_of(&group, 1) == NodeState::Down).await;
        task.abort();
    }

    #[tokio::test]
    async fn waiting_jobs_are_placed_when_a_node_comes() {
        let group = Memory::new();
        let (_hub, task) = started(&group, Options { tick: Duration::from_secs(60), ..Options::default() });
        for i in 0..300 {
            group.run(testing::schedule(&format!("r{i}"), testing::job_spec(&format!("t{i}"), Gpus::Milli(100))));
        }
        assert!(group.state().has_waiters());
        // More than one pass takes: the loop goes on while a pass places something.
        group.run(testing::register("n1", testing::node_spec(32)));
        eventually("all are placed", || !group.state().has_waiters()).await;
        task.abort();
    }

    #[tokio::test]
    async fn replicas_are_moved_now_and_then_where_that_is_wanted() {
        let asked = |group: &Memory| group.intents().iter().filter(|i| matches!(i, Intent::Defragment)).count();
        for (every, wanted) in [(None, false), (Some(Duration::from_millis(20)), true)] {
            let group = Memory::new();
            group.run(testing::register("n1", testing::node_spec(2)));
            let (hub, task) = started(&group, Options { defrag_every: every, ..fast() });
            hub.look_out(Arc::new(|| crate::exchange::Seen { epoch: 1, sights: vec![], advice: vec![] }));
            eventually("the node is down", || state_of(&group, 1) == NodeState::Down).await;
            if wanted {
                eventually("it is asked for", || asked(&group) > 1).await;
            }
            assert_eq!(asked(&group) > 0, wanted);
            task.abort();
        }
    }

    #[tokio::test]
    async fn what_was_told_goes_with_its_service_and_with_the_lead() {
        let group = Memory::new();
        group.run(testing::register("n1", testing::node_spec(2)));
        let spec = testing::job_spec("t1", Gpus::Milli(100));
        let scaling = Some(nf_core::scaling::Scaling::default());
        group.run(testing::schedule("s1", nf_core::job::JobSpec { scaling, ..spec }));
        let (told, last) = tokio::sync::watch::channel(None);
        let told: Told = Arc::new(move |looks| {
            let _ = told.send(looks.map(<[Look]>::len));
        });
        let timeouts = Timeouts::default();
        let pace = Pace { every: Duration::from_millis(20), ..Pace::default() };
        let (_hub, task) = started(&group, Options { timeouts, pace, told, ..fast() });
        eventually("it is told of", || *last.borrow() == Some(1)).await;
        group.lead(None);
        eventually("who leads no more tells nothing", || last.borrow().is_none()).await;
        group.lead(Some(2));
        eventually("and whoever leads then does", || *last.borrow() == Some(1)).await;
        let (request, why) = (nf_core::id::RequestId::new("s1").unwrap(), nf_core::reason::Reason::StoppedByUser);
        group.run(Intent::Stop { request, tenant: None, why });
        eventually("a service that is gone is told of no more", || *last.borrow() == Some(0)).await;
        task.abort();
    }

    #[tokio::test]
    async fn nothing_is_decided_without_the_lead() {
        let group = Memory::new();
        group.lead(None);
        group.run(testing::register("n1", testing::node_spec(2)));
        let (_hub, task) = started(&group, fast());
        group.lead(Some(2));
        eventually("it decides in its term", || state_of(&group, 1) == NodeState::Down).await;
        group.lead(None);
        tokio::task::yield_now().await;
        task.abort();
        let of_others = |i: &Intent| matches!(i, Intent::NodeStates(_));
        assert!(group.intents().iter().filter(|i| of_others(i)).count() >= 3, "step by step");
    }
}
