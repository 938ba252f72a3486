//! What stands in for a leader's word where none answers: voters say that they hear none
//! either. Without a leader nothing is given up, and a later one needs a vote of theirs and
//! then waits a whole Down time-out; so a majority may renew the leases of what must never
//! run twice. It starts nothing: only a leader knows what should run.
//!
//! A leader that was away from its quorum and kept its term would know nothing of such leases;
//! the controller has it judge nobody until the time-out has passed anew (ADR 85).

use super::message::NodeStart;
use crate::raft::{Electorate, Role, Status};
use nf_core::control;
use nf_core::id::{MemberId, NodeName};
use nf_core::node::NodeState;
use nf_core::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For how long a voter has to have heard no leader.
pub const SILENCE: Duration = Duration::from_secs(15);
/// How long a member has to answer.
pub const ASKED: Duration = Duration::from_secs(2);
/// Later than this after it was asked, an answer is worth nothing.
pub const ANSWERED: Duration = Duration::from_secs(3);
/// openraft may take a follower's acknowledgement for one of a message that was sent so long after it.
const CREDITED_MS: u64 = 2_000;
/// A leader in office notices before anybody can vouch. Where it judges, a quorum heard it once in any such stretch of
/// time: what it may be unheard, two steps that are nearly late, and what is credited. Who vouches was silent for longer,
/// also by the end of the asking; and the two majorities have a voter in common.
const _: () = assert!(
    SILENCE.as_millis() > (control::UNHEARD_MS + 2 * control::LATE_MS + CREDITED_MS) as u128 + ANSWERED.as_millis()
);

/// One member's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voucher {
    pub cluster: String,
    pub member: MemberId,
    pub electorate: Electorate,
    /// From when it was asked; 0: it hears a leader, or has no vote.
    pub lease_ms: u64,
    /// Nodes that have no lease by its word, whoever else vouches.
    pub refused: Vec<NodeName>,
}

/// What a majority says together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    pub lease_ms: u64,
    pub refused: BTreeSet<NodeName>,
}

/// A majority of voters that see the voters alike. Who does not vouch may still know better of a node.
pub fn verdict(said: &[Voucher]) -> Option<Vouched> {
    let mut alike: BTreeMap<(&str, &Electorate), Vec<&Voucher>> = BTreeMap::new();
    for voucher in said.iter().filter(|voucher| voucher.lease_ms > 0) {
        alike.entry((&voucher.cluster, &voucher.electorate)).or_default().push(voucher);
    }
    let elects = |electorate: &Electorate, vouchers: &[&Voucher]| {
        electorate.is_majority(&vouchers.iter().map(|voucher| voucher.member).collect())
    };
    let (_, vouchers) = alike.into_iter().find(|((_, electorate), vouchers)| elects(electorate, vouchers))?;
    let lease_ms = vouchers.iter().map(|voucher| voucher.lease_ms).min()?;
    Some(Vouched { lease_ms, refused: said.iter().flat_map(|voucher| voucher.refused.clone()).collect() })
}

impl Voucher {
    /// What the member of `status` says of `nodes`, by what it has applied.
    pub fn of(status: Status, state: &State, nodes: &[NodeStart], lease: Duration) -> Self {
        // A leader's own word counts as heard, as long as a quorum listens.
        let own_ms = if status.role == Role::Leader { status.quorum_ms.unwrap_or(0) } else { u64::MAX };
        let silent = u128::from(own_ms.min(status.silence_ms)) >= SILENCE.as_millis();
        let votes = status.electorate.sets.iter().any(|set| set.contains(&status.id));
        let counts = |start: &&NodeStart| {
            let node = state.node_named(&start.node);
            node.is_some_and(|node| node.incarnation == start.incarnation && node.state != NodeState::Down)
        };
        Self {
            cluster: state.meta().cluster.to_string(),
            member: status.id,
            electorate: status.electorate,
            lease_ms: if silent && votes { lease.as_millis() as u64 } else { 0 },
            refused: nodes.iter().filter(|start| !counts(start)).map(|start| start.node.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::group::Group;
    use crate::exchange::testing::Memory;
    use nf_core::id::Incarnation;
    use nf_core::testing;

    fn voters(since: u64, sets: &[&[u64]]) -> Electorate {
        let set = |ids: &&[u64]| ids.iter().copied().map(MemberId).collect();
        Electorate { since: (1, since), sets: sets.iter().map(set).collect() }
    }

    fn word(member: u64, electorate: &Electorate, lease_ms: u64) -> Voucher {
        Voucher { member: MemberId(member), electorate: electorate.clone(), lease_ms, ..Voucher::default() }
    }

    #[test]
    fn a_majority_that_sees_the_same_voters_vouches_and_nobody_less() {
        let three = voters(1, &[&[1, 2, 3]]);
        let lease = |said: &[Voucher]| verdict(said).map(|vouched| vouched.lease_ms);
        assert_eq!(lease(&[word(1, &three, 45), word(3, &three, 40)]), Some(40), "the shorter one");
        assert_eq!(lease(&[]), None);
        assert_eq!(lease(&[word(1, &three, 45), word(1, &three, 45)]), None, "the same one twice");
        assert_eq!(lease(&[word(1, &three, 45), word(2, &three, 0)]), None, "one hears a leader");
        assert_eq!(lease(&[word(1, &three, 45), word(4, &three, 45)]), None, "one has no vote");
        let later = voters(9, &[&[1, 2, 3]]);
        assert_eq!(lease(&[word(1, &three, 45), word(2, &later, 45)]), None, "they know of different voters");
        assert_eq!(lease(&[word(1, &Electorate::default(), 45)]), None, "it knows of none");
    }

    #[test]
    fn while_voters_change_a_majority_of_each_set_is_needed() {
        let joint = voters(2, &[&[1, 2, 3], &[3, 4, 5]]);
        let word = |member| word(member, &joint, 45);
        assert_eq!(verdict(&[word(1), word(2), word(3)]), None);
        assert!(verdict(&[word(2), word(3), word(4)]).is_some());
    }

    #[test]
    fn one_that_knows_better_of_a_node_is_believed() {
        let three = voters(1, &[&[1, 2, 3]]);
        let name = NodeName::new("n1").unwrap();
        let knows = Voucher { refused: vec![name.clone()], ..word(2, &three, 0) };
        let vouched = verdict(&[word(1, &three, 45), word(3, &three, 45), knows]).unwrap();
        assert_eq!(vouched.refused, BTreeSet::from([name]), "though it hears a leader");
    }

    #[test]
    fn only_a_voter_that_was_silent_for_long_vouches_and_only_for_the_start_that_it_knows() {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(1)));
        let start =
            |incarnation| NodeStart { node: NodeName::new("n1").unwrap(), incarnation: Incarnation(incarnation) };
        let silent = |role, silence_ms, quorum_ms| Status { role, silence_ms, quorum_ms, ..Memory::new().status() };
        let says = |status, state: &State, incarnation| {
            let Voucher { lease_ms, refused, .. } =
                Voucher::of(status, state, &[start(incarnation)], Duration::from_millis(45));
            (lease_ms, refused.len())
        };
        let follower = |ms| silent(Role::Follower, ms, None);
        assert_eq!(says(follower(14_999), &state, 1), (0, 0));
        assert_eq!(says(follower(15_000), &state, 1), (45, 0));
        assert_eq!(says(silent(Role::Leader, u64::MAX, None), &state, 1), (0, 0), "it leads alone");
        assert_eq!(says(silent(Role::Leader, u64::MAX, Some(14_999)), &state, 1), (0, 0), "it leads");
        assert_eq!(says(silent(Role::Leader, u64::MAX, Some(15_000)), &state, 1), (45, 0), "nobody follows");
        assert_eq!(says(silent(Role::Leader, 100, Some(15_000)), &state, 1), (0, 0), "it has just heard the next one");
        let learner = Status { electorate: voters(1, &[&[7]]), ..follower(15_000) };
        assert_eq!(says(learner, &state, 1), (0, 0), "it has no vote");
        assert_eq!(says(follower(15_000), &state, 2), (45, 1), "another start");
        let down = vec![(nf_core::id::NodeNo(1), Incarnation(1), NodeState::Down)];
        testing::run(&mut state, nf_core::plan::Intent::NodeStates(down));
        assert_eq!(says(follower(15_000), &state, 1), (45, 1), "given up");
    }
}
