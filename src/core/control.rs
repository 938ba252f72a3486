//! The leader's loop as a pure function: the state, what was heard from nodes,
//! and the time → intents. What it observes dies with the term. Who is alive is judged
//! in `liveness`; a leader that was itself late judges nobody.

use crate::budget;
use crate::consent;
use crate::id::NodeNo;
use crate::liveness::{self, Beats};
use crate::moves;
use crate::plan::Intent;
use crate::reason::Reason;
use crate::state::State;

pub use crate::liveness::{NetworkFault, Timeouts};

/// What the leader has heard since its term began. Times are of its own monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    beats: Beats,
    last_step_ms: u64,
    /// The state's `room` when the queue was last tried.
    tried_room: Option<u64>,
    tried_at_ms: u64,
    /// The same in log time, in which back-offs end.
    tried_wall_ms: u64,
    /// The state's `room` when replicas that have to leave were last looked at, and when.
    moved_room: Option<u64>,
    moved_at_ms: u64,
    moved_wall_ms: u64,
    /// The same for rollouts.
    rolled_room: Option<u64>,
    rolled_at_ms: u64,
    /// When budgets were last looked at.
    counted_at_ms: Option<u64>,
}

/// A step later than this says that the leader itself stood still.
pub const LATE_MS: u64 = 2_000;
/// A leader that no quorum has answered for longer may have been thought gone, and judges nobody: voters that heard
/// none may have renewed leases meanwhile.
pub const UNHEARD_MS: u64 = 2_000;
/// The queue is tried again after this long even if nothing seems to have changed.
const RETRY_MS: u64 = 5_000;
/// Replicas that have to leave are looked at again after this long.
const MOVES_MS: u64 = 1_000;
/// A look at budgets that are due is made again after this long, should it have been lost.
const BUDGETS_MS: u64 = 1_000;

impl Observations {
    /// At the start of a term.
    pub fn new(now_ms: u64) -> Self {
        Self { beats: Beats::new(now_ms), last_step_ms: now_ms, ..Self::default() }
    }

    /// This leader may have heard nothing for reasons of its own: every silence begins anew.
    pub fn stood_still(&mut self, now_ms: u64) {
        self.beats.begin_anew(now_ms);
    }

    /// A beat of the node's present incarnation arrived.
    pub fn heard(&mut self, node: NodeNo, now_ms: u64) {
        self.beats.heard(node, now_ms);
    }
}

/// The leader's two clocks, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never steps; silence is measured on it.
    pub mono_ms: u64,
    /// Since the epoch, as the next log entry would be stamped.
    pub wall_ms: u64,
    /// How long ago a quorum last answered the leader; 0 for one that votes alone.
    pub unheard_ms: u64,
}

/// What the leader should do now.
pub fn step(state: &State, seen: &mut Observations, timeouts: &Timeouts, now: Now) -> Vec<Intent> {
    let now_ms = now.mono_ms;
    if now_ms.saturating_sub(seen.last_step_ms) > LATE_MS || now.unheard_ms > UNHEARD_MS {
        // Beats may have waited outside while we stood still.
        seen.stood_still(now_ms);
    }
    seen.last_step_ms = now_ms;
    let mut out = Vec::new();
    let changes = liveness::verdicts(state, &mut seen.beats, timeouts, now_ms);
    if !changes.is_empty() {
        out.push(Intent::NodeStates(changes));
    }
    out.extend(overdue(state, now.wall_ms));
    if consent::next_due_ms(state).is_some_and(|at| at <= now.wall_ms) {
        out.push(Intent::Tick);
    }
    if budgets_are_due(state, seen, now) {
        seen.counted_at_ms = Some(now_ms);
        out.push(Intent::Budgets);
    }
    // Before the queue: what runs goes before what waits.
    if moves_are_due(state, seen, now) {
        seen.moved_room = Some(state.room());
        seen.moved_at_ms = now_ms;
        seen.moved_wall_ms = now.wall_ms;
        out.push(Intent::Moves);
    }
    if rollouts_are_due(state, seen, timeouts, now) {
        (seen.rolled_room, seen.rolled_at_ms) = (Some(state.room()), now_ms);
        out.push(Intent::Rollouts);
    }
    if queue_is_due(state, seen, now) {
        seen.tried_room = Some(state.room());
        seen.tried_at_ms = now_ms;
        seen.tried_wall_ms = now.wall_ms;
        out.push(Intent::PlaceWaiting);
    }
    out
}

/// Jobs that have run for as long as they may.
fn overdue(state: &State, now: u64) -> Vec<Intent> {
    let over = |job: &&std::sync::Arc<crate::job::Job>| {
        !job.stopped && job.ran.ever() && job.over_at(now).is_some_and(|at| at <= now)
    };
    let limited = state.limited.iter().filter_map(|no| state.job(*no));
    let stop = |job: &std::sync::Arc<crate::job::Job>| Intent::Stop {
        request: job.request.clone(),
        tenant: Some(job.spec.tenant.clone()),
        why: Reason::MaxRunTime,
    };
    limited.filter(over).map(stop).collect()
}

/// By the next deadline, which a window's end is, too.
fn budgets_are_due(state: &State, seen: &Observations, now: Now) -> bool {
    let due = budget::keep::next_ms(state).is_some_and(|at| at <= now.wall_ms);
    due && seen.counted_at_ms.is_none_or(|at| now.mono_ms.saturating_sub(at) >= BUDGETS_MS)
}

fn moves_are_due(state: &State, seen: &Observations, now: Now) -> bool {
    if !moves::wanted(state) {
        return false;
    }
    let over = moves::next_deadline_ms(state).is_some_and(|at| seen.moved_wall_ms < at && at <= now.wall_ms);
    let late = now.mono_ms.saturating_sub(seen.moved_at_ms) >= MOVES_MS;
    over || late || seen.moved_room != Some(state.room())
}

/// Copies may have come up while nobody listened: agents say so before it is judged which are late.
fn rollouts_are_due(state: &State, seen: &Observations, timeouts: &Timeouts, now: Now) -> bool {
    if seen.beats.listened_ms(now.mono_ms) < timeouts.suspect_ms {
        return false;
    }
    let late = now.mono_ms.saturating_sub(seen.rolled_at_ms) >= MOVES_MS;
    state.rollouts().next().is_some() && (late || seen.rolled_room != Some(state.room()))
}

fn queue_is_due(state: &State, seen: &Observations, now: Now) -> bool {
    // Only what ended since the last try: a waiter may stay after its back-off, for want of room.
    let woken = state.woke_between(seen.tried_wall_ms, now.wall_ms);
    let patient = state.may_evict_between(seen.tried_wall_ms, now.wall_ms);
    let late = now.mono_ms.saturating_sub(seen.tried_at_ms) >= RETRY_MS;
    state.has_waiters() && (seen.tried_room != Some(state.room()) || woken || patient || late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Incarnation, NodeName};
    use crate::node::NodeState;
    use crate::node::{NodeKind, NodeSpec};
    use crate::testing;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, wall_ms: mono_ms, unheard_ms: 0 }
    }

    fn one_node() -> State {
        let mut state = State::new();
        let spec: NodeSpec = testing::node_spec(8);
        let name = NodeName::new("n1").unwrap();
        testing::run(
            &mut state,
            Intent::Register { name, kind: NodeKind::Worker, incarnation: Incarnation(1), spec: spec.into() },
        );
        state
    }

    /// What the node's agent says of the job's only replica then.
    fn says(state: &mut State, kind: crate::command::ReportKind, at_ms: u64) {
        let job = state.jobs().values().next().unwrap();
        let (no, generation) = (job.no, job.replicas[0].generation);
        let reports = vec![crate::command::Report { job: no, replica: 0, generation, kind }];
        let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(1));
        testing::try_run_at(state, Intent::Reports { node, incarnation, reports }, at_ms).unwrap();
    }

    #[test]
    fn a_job_may_run_for_so_long_and_what_it_waits_in_between_is_no_running() {
        use crate::command::ReportKind;
        use crate::job::Stage;
        let mut state = one_node();
        let mut spec = testing::job_spec("t1", crate::resources::Gpus::Whole(1));
        spec.constraints.max_run_ms = Some(60_000);
        testing::try_run_at(&mut state, testing::schedule("r1", spec), 1_000).unwrap();
        // Twelve times it serves for four seconds, fails, and waits for twenty: more than its history remembers.
        let mut at = 1_000;
        for _ in 0..12 {
            says(&mut state, ReportKind::Stage(Stage::Ready), at);
            at += 4_000;
            says(&mut state, ReportKind::Ended { ok: false, why: Reason::ExitedNonZero }, at);
            at += 20_000 + 300_000;
            testing::try_run_at(&mut state, Intent::PlaceWaiting, at).unwrap();
            assert!(overdue(&state, at).is_empty(), "it ran for 48 seconds at most");
        }
        says(&mut state, ReportKind::Stage(Stage::Ready), at);
        let job = state.jobs().values().next().unwrap();
        assert_eq!((job.ran.until_ms(at), job.over_at(at)), (48_000, Some(at + 12_000)));
        assert!(overdue(&state, at + 11_999).is_empty());
        assert_eq!(overdue(&state, at + 12_000).len(), 1);
    }

    /// Lets `seconds` pass in steps of one second, without beats.
    fn silence(state: &mut State, seen: &mut Observations, from: u64, seconds: u64) -> Vec<NodeState> {
        let mut states = Vec::new();
        for second in 0..seconds {
            for intent in step(state, seen, &Timeouts::default(), at(from + second * 1000)) {
                testing::run(state, intent);
            }
            let now = state.nodes().values().next().unwrap().state;
            if states.last() != Some(&now) {
                states.push(now);
            }
        }
        states
    }

    #[test]
    fn silence_goes_suspect_unknown_down_and_a_beat_heals() {
        let (mut state, mut seen) = (one_node(), Observations::new(0));
        let states = silence(&mut state, &mut seen, 0, 62);
        assert_eq!(states, [NodeState::Ready, NodeState::Suspect, NodeState::Unknown, NodeState::Down]);
        seen.heard(NodeNo(1), 62_000);
        for intent in step(&state, &mut seen, &Timeouts::default(), at(62_500)) {
            testing::run(&mut state, intent);
        }
        assert_eq!(state.node(NodeNo(1)).unwrap().state, NodeState::Ready);
    }

    #[test]
    fn a_pause_of_the_leader_is_no_beat_of_a_node() {
        let (mut state, mut seen) = (one_node(), Observations::new(0));
        seen.heard(NodeNo(1), 0);
        silence(&mut state, &mut seen, 0, 62);
        assert_eq!(state.node(NodeNo(1)).unwrap().state, NodeState::Down);
        // The leader's next step is late, so the node's silence counts anew; it has still said nothing.
        assert_eq!(silence(&mut state, &mut seen, 70_000, 1), [NodeState::Down]);
    }

    #[test]
    fn a_leader_that_was_away_from_its_quorum_begins_every_silence_anew() {
        let (mut state, mut seen) = (one_node(), Observations::new(0));
        silence(&mut state, &mut seen, 0, 50);
        let away = Now { unheard_ms: UNHEARD_MS + 1, ..at(50_000) };
        assert!(step(&state, &mut seen, &Timeouts::default(), away).is_empty());
        let states = silence(&mut state, &mut seen, 51_000, 59);
        assert_eq!(states, [NodeState::Unknown], "not Down 60 s after the last beat");
        assert_eq!(silence(&mut state, &mut seen, 110_000, 1), [NodeState::Down]);
    }

    #[test]
    fn a_leader_that_stood_still_judges_nobody() {
        let (state, mut seen) = (one_node(), Observations::new(0));
        seen.heard(NodeNo(1), 0);
        assert!(step(&state, &mut seen, &Timeouts::default(), at(1_000)).is_empty());
        assert!(
            step(&state, &mut seen, &Timeouts::default(), at(600_000)).is_empty(),
            "its own pause is not the node's silence"
        );
    }
}
