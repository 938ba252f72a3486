//! Beats, answered in rounds: whatever arrived while one round was under way is
//! the next round. On the leader a round confirms the leadership once, for all of
//! its beats; elsewhere it is one message to the leader. It judges no node: the
//! leader's loop takes what was heard from [`Heard`].

use super::client::Peers;
use super::group::Group;
use super::message::{Beat, BeatAnswer, Error};
use super::vitals;
use nf_core::autoscaler::source::{Told, Word};
use nf_core::id::NodeNo;
use nf_core::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Messages that may wait for the next round; beyond it agents are told to try again.
const WAITING: usize = 1024;
/// Messages in one round.
const ROUND: usize = 1024;
/// How long a round may take. A slower one leaves its agents without an answer, and they beat again.
const ROUND_TIME: Duration = Duration::from_secs(1);

/// When each node was last heard, since somebody last looked. The last beat of a
/// node replaces the earlier ones, so it never holds more than one per registered node.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Ear>>);

#[derive(Debug, Default)]
struct Ear {
    last: BTreeMap<NodeNo, Instant>,
    /// Nodes that the leader is giving up: a beat that comes too late for that earns no lease,
    /// since what the lease would let start is about to start elsewhere.
    giving_up: BTreeSet<NodeNo>,
}

impl Heard {
    fn ear(&self) -> MutexGuard<'_, Ear> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note(&self, nodes: impl IntoIterator<Item = NodeNo>, at: Instant) {
        self.ear().last.extend(nodes.into_iter().map(|node| (node, at)));
    }

    /// Takes what was heard since the last call.
    pub fn drain(&self) -> BTreeMap<NodeNo, Instant> {
        std::mem::take(&mut self.ear().last)
    }

    /// Whether the node may be given up: it has not spoken since the last call of [`Heard::drain`].
    /// It has no lease then, until [`Heard::settled`].
    pub fn give_up(&self, node: NodeNo) -> bool {
        let mut ear = self.ear();
        let silent = !ear.last.contains_key(&node);
        if silent {
            ear.giving_up.insert(node);
        }
        silent
    }

    /// Whoever was to be given up is Down now, or not.
    pub fn settled(&self) {
        self.ear().giving_up.clear();
    }

    fn has_lost(&self, nodes: &[NodeNo]) -> bool {
        let ear = self.ear();
        nodes.iter().any(|node| ear.giving_up.contains(node))
    }
}

/// What nodes' replicas said of their load, with the last beat of each node that had any.
#[derive(Clone, Debug, Default)]
pub struct Loads(Arc<Mutex<BTreeMap<NodeNo, (Instant, Vec<Told>)>>>);

/// What was said longer ago says nothing of now.
const OLD: Duration = Duration::from_secs(15);

impl Loads {
    fn note(&self, node: NodeNo, at: Instant, told: &[Told]) {
        let mut loads = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match told {
            [] => drop(loads.remove(&node)),
            told => drop(loads.insert(node, (at, told.to_vec()))),
        }
    }

    /// What was said lately, by node.
    pub fn fresh(&self) -> BTreeMap<NodeNo, Word> {
        let mut loads = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        loads.retain(|_, (at, _)| at.elapsed() < OLD);
        let age_ms = |at: &Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let word = |(at, told): &(Instant, Vec<Told>)| Word { age_ms: age_ms(at), told: told.clone() };
        loads.iter().map(|(node, said)| (*node, word(said))).collect()
    }
}

/// A message of beats that waits for its answer.
#[derive(Debug)]
struct Call {
    beats: Vec<Beat>,
    /// Passed on by another member.
    forwarded: bool,
    arrived: Instant,
    answer: oneshot::Sender<Result<BeatAnswer, Error>>,
}

/// A handle on the task that runs the rounds. The task ends with the last handle.
#[derive(Clone, Debug)]
pub struct Rounds {
    calls: mpsc::Sender<Call>,
}

impl Rounds {
    pub fn start(
        group: Arc<dyn Group>,
        peers: Peers,
        heard: Heard,
        (loads, vitals): (Loads, vitals::Told),
        lease: Duration,
    ) -> Self {
        let (calls, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(Desk { group, peers, heard, loads, vitals, lease }, waiting));
        Self { calls }
    }

    /// The leader's answer to `beats`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no leader could confirm itself in time.
    pub async fn beat(&self, beats: Vec<Beat>, forwarded: bool) -> Result<BeatAnswer, Error> {
        let (answer, answered) = oneshot::channel();
        let call = Call { beats, forwarded, arrived: Instant::now(), answer };
        self.calls.try_send(call).map_err(|_| Error::Unavailable("too many beats wait on this member".into()))?;
        answered.await.unwrap_or_else(|_| Err(Error::Unavailable("this member is stopping".into())))
    }
}

/// What a round needs.
struct Desk {
    group: Arc<dyn Group>,
    peers: Peers,
    heard: Heard,
    loads: Loads,
    vitals: vitals::Told,
    lease: Duration,
}

async fn run(desk: Desk, mut waiting: mpsc::Receiver<Call>) {
    let mut calls = Vec::new();
    while waiting.recv_many(&mut calls, ROUND).await > 0 {
        calls.retain(|call| !call.answer.is_closed());
        let leading = *desk.group.leading().borrow();
        match leading {
            Some(term) => desk.lead_round(term, std::mem::take(&mut calls)).await,
            None => desk.forward_round(std::mem::take(&mut calls)).await,
        }
    }
}

impl Desk {
    /// A beat counts as heard on arrival; its lease needs a leadership confirmed since.
    async fn lead_round(&self, term: u64, calls: Vec<Call>) {
        let state = self.group.watch().borrow().state.clone();
        let sorted: Vec<Sorted> = calls.iter().map(|call| Sorted::of(&state, &call.beats)).collect();
        for call in &calls {
            for beat in &call.beats {
                let node = state.node_named(&beat.node).filter(|node| node.incarnation == beat.incarnation);
                if let Some(node) = node {
                    self.loads.note(node.no, call.arrived, &beat.told);
                    self.vitals.note(node.no, call.arrived, &beat.vitals);
                }
            }
        }
        drop(state);
        for (call, sorted) in calls.iter().zip(&sorted) {
            self.heard.note(sorted.known.iter().copied(), call.arrived);
        }
        let confirmed = self.group.confirm_leadership(Instant::now() + ROUND_TIME).await;
        let still = *self.group.leading().borrow() == Some(term);
        for (call, sorted) in calls.into_iter().zip(sorted) {
            let answer = match &confirmed {
                Ok(_) if still && self.heard.has_lost(&sorted.known) => {
                    Err(Error::Unavailable("the group is giving a node up that has just spoken".into()))
                }
                // What the quorum confirmed, not what this member happens to know: an agent
                // starts nothing before it knows all that was committed until now.
                Ok(commit_index) if still => Ok(BeatAnswer {
                    term,
                    commit_index: *commit_index,
                    lease_ms: self.lease.as_millis() as u64,
                    superseded: sorted.superseded,
                    unknown: sorted.unknown,
                }),
                Ok(_) => Err(Error::Unavailable("leadership has just changed".into())),
                Err(error) => Err(Error::Unavailable(error.to_string())),
            };
            // An agent that has given up beats again.
            let _ = call.answer.send(answer);
        }
    }

    async fn forward_round(&self, calls: Vec<Call>) {
        let (passed_on, calls): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| call.forwarded);
        for call in passed_on {
            let _ = call.answer.send(Err(Error::Unavailable("not the leader".into())));
        }
        if calls.is_empty() {
            return;
        }
        let beats: Vec<Beat> = calls.iter().flat_map(|call| call.beats.iter().cloned()).collect();
        let answer = match tokio::time::timeout(ROUND_TIME, self.peers.beat_leader(&*self.group, beats)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Unavailable("the leader did not answer in time".into())),
        };
        for call in calls {
            let own = answer.as_ref().map(|answer| only_own(answer, &call.beats));
            let _ = call.answer.send(own.map_err(Clone::clone));
        }
    }
}

/// The nodes of a message, by what the group knows of them.
struct Sorted {
    known: Vec<NodeNo>,
    superseded: Vec<nf_core::id::NodeName>,
    unknown: Vec<nf_core::id::NodeName>,
}

impl Sorted {
    fn of(state: &State, beats: &[Beat]) -> Self {
        let mut out = Self { known: Vec::new(), superseded: Vec::new(), unknown: Vec::new() };
        for beat in beats {
            match state.node_named(&beat.node) {
                Some(node) if node.incarnation == beat.incarnation => out.known.push(node.no),
                Some(node) if node.incarnation > beat.incarnation => out.superseded.push(beat.node.clone()),
                _ => out.unknown.push(beat.node.clone()),
            }
        }
        out
    }
}

/// The part of a round's answer that is about the nodes of one message.
fn only_own(answer: &BeatAnswer, beats: &[Beat]) -> BeatAnswer {
    if answer.superseded.is_empty() && answer.unknown.is_empty() {
        return answer.clone();
    }
    let own: BTreeSet<_> = beats.iter().map(|beat| &beat.node).collect();
    let keep = |names: &[nf_core::id::NodeName]| names.iter().filter(|name| own.contains(name)).cloned().collect();
    BeatAnswer { superseded: keep(&answer.superseded), unknown: keep(&answer.unknown), ..answer.clone() }
}

#[cfg(test)]
mod tests {
    use crate::exchange::testing::Memory;
    use crate::exchange::{Beat, Hub};
    use nf_core::id::{Incarnation, NodeName, NodeNo};
    use nf_core::plan::Intent;
    use nf_core::testing;

    #[tokio::test]
    async fn a_lease_carries_what_the_quorum_confirmed() {
        let group = Memory::new();
        let index = group.run(testing::register("n1", testing::node_spec(1))).index;
        group.confirm_ahead(3);
        let hub = Hub::new(group, Default::default());
        let beat = Beat::bare(NodeName::new("n1").unwrap(), Incarnation(1));
        assert_eq!(hub.beat(vec![beat]).await.unwrap().commit_index, index + 3);
    }

    #[tokio::test]
    async fn an_earlier_starts_beat_keeps_nobody_alive() {
        let group = Memory::new();
        group.run(testing::register("n1", testing::node_spec(1)));
        let later = |incarnation| match testing::register("n1", testing::node_spec(1)) {
            Intent::Register { name, kind, spec, .. } => Intent::Register { name, kind, spec, incarnation },
            other => other,
        };
        group.run(later(Incarnation(2)));
        let hub = Hub::new(group, Default::default());
        let beat = |incarnation| Beat::bare(NodeName::new("n1").unwrap(), Incarnation(incarnation));
        // As recorded before it started anew, or made up for a start to come.
        let answer = hub.beat(vec![beat(1)]).await.unwrap();
        assert_eq!(answer.superseded, [NodeName::new("n1").unwrap()]);
        let answer = hub.beat(vec![beat(3)]).await.unwrap();
        assert_eq!(answer.unknown, [NodeName::new("n1").unwrap()]);
        assert!(hub.beats().drain().is_empty(), "nobody was heard");
        hub.beat(vec![beat(2)]).await.unwrap();
        assert_eq!(hub.beats().drain().len(), 1);
    }

    #[tokio::test]
    async fn who_is_being_given_up_has_no_lease_until_that_is_settled() {
        let group = Memory::new();
        group.run(testing::register("n1", testing::node_spec(1)));
        let hub = Hub::new(group, Default::default());
        let beat = || vec![Beat::bare(NodeName::new("n1").unwrap(), Incarnation(1))];
        hub.beat(beat()).await.unwrap();
        let heard = hub.beats();
        assert!(!heard.give_up(NodeNo(1)), "it has spoken, and nobody has looked");
        hub.beat(beat()).await.unwrap();
        heard.drain();
        assert!(heard.give_up(NodeNo(1)));
        hub.beat(beat()).await.unwrap_err();
        heard.settled();
        hub.beat(beat()).await.unwrap();
    }
}
