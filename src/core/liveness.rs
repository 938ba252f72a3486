//! Who is alive: silence → Suspect, Unknown, Down, and back. Two guards: silence counts
//! only from when the leader itself was well, and when many nodes are silent at once the
//! network is blamed, not they. A node that comes and goes has to prove itself for longer
//! each time. It does not know what follows from a node's state.

use crate::id::{Incarnation, NodeNo};
use crate::node::{Node, NodeState};
use crate::state::State;
use std::collections::BTreeMap;

/// When silence becomes which state, in milliseconds since the last beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub suspect_ms: u64,
    pub unknown_ms: u64,
    pub down_ms: u64,
    pub fault: NetworkFault,
}

/// When many nodes are silent at once, the network is the likelier cause: they serve on,
/// and giving them up would start everything twice on what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkFault {
    /// Of a hundred nodes that are not given up, so many must be silent, and at least two.
    pub percent: u32,
    /// Silence for which nodes are given up all the same.
    pub down_ms: u64,
}

impl Default for NetworkFault {
    fn default() -> Self {
        Self { percent: 50, down_ms: 600_000 }
    }
}

impl NetworkFault {
    /// Whether `silent` of `all` nodes are too many to be dead.
    pub fn is_likely(self, silent: usize, all: usize) -> bool {
        silent >= 2 && silent as u64 * 100 >= all as u64 * u64::from(self.percent)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { suspect_ms: 5_000, unknown_ms: 15_000, down_ms: 60_000, fault: NetworkFault::default() }
    }
}

/// How many nodes are silent, and of how many, by what the group knows of them: nodes that
/// are given up, or in maintenance, count on neither side.
pub fn silent_nodes(state: &State) -> (usize, usize) {
    let counted = |node: &&std::sync::Arc<Node>| !matches!(node.state, NodeState::Down | NodeState::Maintenance);
    let silent = |node: &std::sync::Arc<Node>| matches!(node.state, NodeState::Suspect | NodeState::Unknown);
    let nodes = || state.nodes().values().filter(counted);
    (nodes().filter(|node| silent(node)).count(), nodes().count())
}

/// When each node was last heard, and how steadily. Times are of the leader's monotonic clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beats {
    /// Last beat of each node's present incarnation.
    last: BTreeMap<NodeNo, u64>,
    steady: BTreeMap<NodeNo, Steady>,
    /// Which start of each node was last found Ready, since when by its row, and when that was
    /// first seen here: one that has just registered was not silent before.
    ready: BTreeMap<NodeNo, (Incarnation, u64, u64)>,
    /// Since when a silent node's silence counts.
    grace_from_ms: u64,
    /// A gap between beats that ends a steady run.
    gap_ms: u64,
}

/// How a node beats, so that one that comes and goes does not change its state each time.
#[derive(Clone, Copy, Debug)]
struct Steady {
    since_ms: u64,
    /// Returns from silence, each soon after the one before.
    returns: u32,
}

/// A node that was steady for so long is forgiven its earlier silences.
const FORGIVEN_MS: u64 = 300_000;
/// How long a node that went silent again has to beat before it is Ready: doubled by
/// each return, up to the longest.
const PROBATION_MS: u64 = 2_000;
const LONGEST_PROBATION_MS: u64 = 60_000;

/// Verdicts of one step, so that the loss of a rack is several entries, not one huge one.
const MOST_VERDICTS: usize = 256;
impl Beats {
    pub fn new(now_ms: u64) -> Self {
        Self { grace_from_ms: now_ms, gap_ms: u64::MAX, ..Self::default() }
    }

    /// Every silence begins anew.
    pub fn begin_anew(&mut self, now_ms: u64) {
        self.grace_from_ms = now_ms;
    }

    /// How long the leader has listened without standing still.
    pub fn listened_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.grace_from_ms)
    }

    pub fn heard(&mut self, node: NodeNo, now_ms: u64) {
        let before = self.last.insert(node, now_ms);
        let gap = before.is_some_and(|at| now_ms.saturating_sub(at) > self.gap_ms && at >= self.grace_from_ms);
        let steady = self.steady.entry(node).or_insert(Steady { since_ms: now_ms, returns: 0 });
        if gap {
            let forgiven = before.is_some_and(|at| at.saturating_sub(steady.since_ms) >= FORGIVEN_MS);
            *steady = Steady { since_ms: now_ms, returns: if forgiven { 1 } else { steady.returns + 1 } };
        }
    }

    /// Whether the node has beaten for as long as it must, after it was silent: at once
    /// the first time, longer each time that it comes and goes.
    fn is_steady(&self, node: NodeNo, now_ms: u64) -> bool {
        self.steady.get(&node).is_none_or(|steady| {
            let probation = match steady.returns {
                0 | 1 => 0,
                n => (PROBATION_MS << (n - 2).min(16)).min(LONGEST_PROBATION_MS),
            };
            now_ms.saturating_sub(steady.since_ms) >= probation
        })
    }

    /// Finds nodes that have become Ready: by a beat, or because they registered.
    fn note_ready(&mut self, state: &State, now_ms: u64) {
        for node in state.nodes().values().filter(|node| node.state == NodeState::Ready) {
            let (now, since) = (node.incarnation, node.since_ms);
            let known = self.ready.get(&node.no).is_some_and(|(start, at, _)| (*start, *at) == (now, since));
            if !known {
                self.ready.insert(node.no, (now, since, now_ms));
            }
        }
    }

    /// Whether the node itself spoke within `within_ms`; the grace after a pause of ours does not count.
    fn has_spoken(&self, node: NodeNo, within_ms: u64, now_ms: u64) -> bool {
        self.last.get(&node).is_some_and(|at| now_ms.saturating_sub(*at) < within_ms)
    }

    fn silence_ms(&self, node: NodeNo, now_ms: u64) -> u64 {
        let began = self.ready.get(&node).map_or(0, |(.., seen)| *seen);
        let heard = self.last.get(&node).copied().unwrap_or(0).max(self.grace_from_ms).max(began);
        now_ms.saturating_sub(heard)
    }
}

pub(crate) fn verdicts(
    state: &State,
    seen: &mut Beats,
    timeouts: &Timeouts,
    now_ms: u64,
) -> Vec<(NodeNo, Incarnation, NodeState)> {
    seen.gap_ms = timeouts.suspect_ms;
    seen.note_ready(state, now_ms);
    let seen = &*seen;
    let fault = network_fault(state, seen, timeouts, now_ms);
    let verdict = |node: &Node| {
        let silence = seen.silence_ms(node.no, now_ms);
        let down_ms = if fault { timeouts.fault.down_ms.max(timeouts.down_ms) } else { timeouts.down_ms };
        let to = match silence {
            s if s >= down_ms => NodeState::Down,
            s if s >= timeouts.unknown_ms => NodeState::Unknown,
            s if s >= timeouts.suspect_ms => NodeState::Suspect,
            _ => NodeState::Ready,
        };
        let heard = seen.has_spoken(node.no, timeouts.suspect_ms, now_ms) && seen.is_steady(node.no, now_ms);
        let change = match (node.state, to) {
            (NodeState::Maintenance, _) => false,
            // Down ends only with a beat; the others heal with one, too.
            (from, NodeState::Ready) => from != NodeState::Ready && heard,
            // Worse only, step by step: silence never makes a node look better.
            (from, to) => to > from,
        };
        change.then_some((node.no, node.incarnation, to))
    };
    state.nodes().values().filter_map(|node| verdict(node)).take(MOST_VERDICTS).collect()
}

/// Whether so many nodes are silent that the network is to blame rather than they.
fn network_fault(state: &State, seen: &Beats, timeouts: &Timeouts, now_ms: u64) -> bool {
    let mut all = 0;
    let mut silent = 0;
    for node in state.nodes().values().filter(|n| !matches!(n.state, NodeState::Down | NodeState::Maintenance)) {
        all += 1;
        silent += usize::from(seen.silence_ms(node.no, now_ms) >= timeouts.suspect_ms);
    }
    timeouts.fault.is_likely(silent, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Now, Observations, step};
    use crate::id::NodeName;
    use crate::job::{Phase, Replica, Stage};
    use crate::plan::Intent;
    use crate::reconcile::{Action, Actual, Condition, ReplicaId, desired, diff};
    use crate::resources::Gpus;
    use crate::testing::{self, job_spec, node_spec, register, run, schedule};

    /// A leader and its nodes, a second at a time.
    struct Watch {
        state: State,
        seen: Observations,
        now: u64,
    }

    impl Watch {
        fn of(nodes: u32) -> Self {
            let mut state = State::new();
            for no in 1..=nodes {
                run(&mut state, register(&format!("n{no}"), node_spec(2)));
            }
            Self { state, seen: Observations::new(0), now: 0 }
        }

        /// Nodes other than `silent` beat each second.
        fn pass(&mut self, seconds: u64, silent: &[u32]) {
            for _ in 0..seconds {
                self.now += 1_000;
                let nodes: Vec<NodeNo> = self.state.nodes().keys().copied().collect();
                for no in nodes.into_iter().filter(|no| !silent.contains(&no.0)) {
                    self.seen.heard(no, self.now);
                }
                let now = Now { mono_ms: self.now, wall_ms: self.now, unheard_ms: 0 };
                for intent in step(&self.state, &mut self.seen, &Timeouts::default(), now) {
                    testing::try_run_at(&mut self.state, intent, self.now).unwrap();
                }
            }
        }

        fn states(&self) -> Vec<NodeState> {
            self.state.nodes().values().map(|node| node.state).collect()
        }

        fn replica(&self) -> Replica {
            self.state.jobs().values().next().unwrap().replicas[0].clone()
        }

        fn report(&mut self, node: &str, generation: u32, kind: crate::command::ReportKind) {
            let (job, generation) = (crate::id::JobNo(1), crate::id::Generation(generation));
            let reports = vec![crate::command::Report { job, replica: 0, generation, kind }];
            let node = NodeName::new(node).unwrap();
            run(&mut self.state, Intent::Reports { node, incarnation: Incarnation(1), reports });
        }
    }

    fn ready() -> crate::command::ReportKind {
        crate::command::ReportKind::Stage(Stage::Ready)
    }

    /// A job that is Ready on n1, and what its agent has.
    fn served() -> (Watch, Actual) {
        let mut watch = Watch::of(3);
        run(&mut watch.state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        watch.report("n1", 1, ready());
        let id = ReplicaId { job: crate::id::JobNo(1), replica: 0 };
        let actual = Actual {
            replicas: [(id, [(crate::id::Generation(1), Condition::Alive)].into())].into(),
            ..Actual::default()
        };
        (watch, actual)
    }

    #[test]
    fn a_cut_of_thirty_seconds_moves_and_stops_nothing() {
        let (mut watch, actual) = served();
        let before = watch.replica();
        watch.pass(30, &[1]);
        assert_eq!(watch.states(), [NodeState::Unknown, NodeState::Ready, NodeState::Ready]);
        watch.pass(5, &[]);
        assert_eq!(watch.states(), [NodeState::Ready; 3]);
        assert_eq!(watch.replica(), before, "the same generation on the same device");
        assert_eq!(diff(&desired(&watch.state, NodeNo(1)), &actual), [], "and its agent has nothing to do");
    }

    #[test]
    fn a_cut_of_ten_minutes_replaces_once_and_the_old_one_goes_on_return() {
        let (mut watch, mut actual) = served();
        watch.pass(59, &[1]);
        assert_eq!(watch.replica().generation.0, 1, "not before Down");
        watch.pass(541, &[1]);
        assert_eq!(watch.states()[0], NodeState::Down);
        let replaced = watch.replica();
        assert_eq!((replaced.generation.0, replaced.allocation().unwrap().node), (2, NodeNo(2)));
        watch.report("n2", 2, ready());
        watch.pass(60, &[]);
        assert_eq!(watch.states(), [NodeState::Ready; 3]);
        assert_eq!(watch.replica().generation.0, 2, "replaced once, and it stays there");
        let steps = diff(&desired(&watch.state, NodeNo(1)), &actual);
        let id = *actual.replicas.keys().next().unwrap();
        assert!(matches!(steps[..], [Action::Stop(stopped, ..)] if stopped == id), "{steps:?}");
        actual.replicas.clear();
        assert_eq!(diff(&desired(&watch.state, NodeNo(1)), &actual), [], "and is not started again there");
    }

    #[test]
    fn half_of_the_nodes_at_once_is_a_network_fault() {
        let mut watch = Watch::of(4);
        run(&mut watch.state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        watch.report("n1", 1, ready());
        watch.pass(300, &[1, 2]);
        assert_eq!(watch.states()[..2], [NodeState::Unknown; 2], "not given up after five minutes");
        assert_eq!(silent_nodes(&watch.state), (2, 4));
        assert!(matches!(watch.replica().phase, Phase::Held { stage: Stage::Ready, .. }));
        // An operator who knows better, or a longer time, ends the doubt.
        run(&mut watch.state, Intent::GiveUp { node: NodeName::new("n1").unwrap() });
        assert_eq!(watch.states()[0], NodeState::Down);
        assert!(watch.replica().is_waiting());
        watch.pass(1, &[1, 2]);
        assert_eq!(watch.states()[1], NodeState::Down, "now it is one of three");
        watch.pass(310, &[1, 2]);
        assert_eq!(watch.replica().generation.0, 2);
        watch.pass(10, &[]);
        assert_eq!(watch.states(), [NodeState::Ready; 4]);
    }

    #[test]
    fn a_network_fault_does_not_hold_for_ever() {
        let mut watch = Watch::of(4);
        watch.pass(599, &[1, 2]);
        assert_eq!(watch.states()[..2], [NodeState::Unknown; 2]);
        watch.pass(2, &[1, 2]);
        assert_eq!(watch.states()[..2], [NodeState::Down; 2]);
    }

    #[test]
    fn a_node_that_has_just_registered_was_not_silent_before() {
        let mut watch = Watch::of(2);
        watch.pass(300, &[]);
        run(&mut watch.state, register("late", node_spec(1)));
        watch.pass(4, &[3]);
        assert_eq!(watch.states(), [NodeState::Ready; 3], "its first beat may take a moment");
        watch.pass(57, &[3]);
        assert_eq!(watch.states()[2], NodeState::Down);
        run(&mut watch.state, register("late", node_spec(1)));
        watch.pass(4, &[3]);
        assert_eq!(watch.states()[2], NodeState::Ready, "also when it registers again");
    }

    #[test]
    fn one_node_alone_is_given_up_as_ever() {
        let mut watch = Watch::of(2);
        watch.pass(61, &[1]);
        assert_eq!(watch.states(), [NodeState::Down, NodeState::Ready]);
    }

    #[test]
    fn a_node_that_beats_is_not_given_up_by_hand() {
        let mut watch = Watch::of(2);
        watch.pass(2, &[]);
        let refusal = testing::try_run(&mut watch.state, Intent::GiveUp { node: NodeName::new("n1").unwrap() });
        assert_eq!(refusal.unwrap_err().reason, crate::reason::Reason::Conflict);
    }

    #[test]
    fn a_node_that_comes_and_goes_must_prove_itself() {
        let mut watch = Watch::of(3);
        let mut changes = 0;
        let mut was = NodeState::Ready;
        for _ in 0..40 {
            for silent in [&[1][..], &[]] {
                watch.pass(8, silent);
                changes += u32::from(watch.states()[0] != was);
                was = watch.states()[0];
            }
        }
        assert!(changes <= 10, "{changes} changes in 640 seconds");
        watch.pass(LONGEST_PROBATION_MS / 1000 + 2, &[]);
        assert_eq!(watch.states()[0], NodeState::Ready, "it is taken back in the end");
    }

    #[test]
    fn a_node_in_maintenance_may_be_silent() {
        let mut watch = Watch::of(2);
        let drain = Some(crate::node::Drain { within_ms: None, force: false });
        let cordon = crate::node::Cordon { by: "ann".into(), reason: "fans".into(), at_ms: 0, drain };
        let node = NodeName::new("n1").unwrap();
        run(&mut watch.state, Intent::Cordon { node: node.clone(), cordon: Some(cordon) });
        watch.pass(2, &[]);
        assert_eq!(watch.states()[0], NodeState::Maintenance);
        watch.pass(700, &[1]);
        assert_eq!(watch.states()[0], NodeState::Maintenance);
        run(&mut watch.state, Intent::Cordon { node, cordon: None });
        watch.pass(2, &[]);
        assert_eq!(watch.states(), [NodeState::Ready; 2]);
    }
}
