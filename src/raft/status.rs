//! What a member can say about the group, as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::Instant as _;

use super::MemberId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
}

/// One member as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: MemberId,
    pub name: String,
    /// Member-to-member address.
    pub peer: String,
    pub voter: bool,
    /// Last log index known to be on it; only the leader knows.
    pub matched: Option<u64>,
    /// Milliseconds since it was last asked something that it has answered; only the leader knows, and 0 of itself.
    pub heard_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Status {
    pub id: MemberId,
    pub role: Role,
    pub term: u64,
    pub leader: Option<MemberId>,
    pub last_log_index: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    /// Last index covered by a checkpoint, 0 without one.
    pub snapshot_index: u64,
    /// Entries up to here are no longer in the log, 0 when all are.
    pub purged_index: u64,
    /// Milliseconds since this member last heard from a leader (0 on the leader).
    pub last_contact_ms: u64,
    /// On a leader that does not vote alone: milliseconds since a quorum last acknowledged it;
    /// `u64::MAX` when none has.
    pub quorum_ms: Option<u64>,
    /// A change of the voters is under way: old and new ones decide together.
    pub joint: bool,
    pub members: Vec<MemberStatus>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

type Metrics = openraft::RaftMetrics<super::Core>;

impl Status {
    pub(super) fn of(metrics: &Metrics, applied: u64, silence_ms: u64) -> Self {
        let none = BTreeMap::new();
        let replication = metrics.replication.as_ref().unwrap_or(&none);
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let answers = metrics.heartbeat.as_ref();
        let heard_ms = |id: &u64| match *id == metrics.id {
            true => answers.map(|_| 0),
            false => answers?.get(id)?.as_ref().map(|at| millis(at.elapsed())),
        };
        let members = membership.nodes().map(|(id, peer)| MemberStatus {
            id: MemberId(*id),
            name: peer.name.clone(),
            peer: peer.addr.clone(),
            voter: voters.contains(id),
            matched: replication.get(id).copied().flatten().map(|l| l.index),
            heard_ms: heard_ms(id),
        });
        let role = match metrics.state {
            openraft::ServerState::Leader => Role::Leader,
            openraft::ServerState::Follower | openraft::ServerState::Shutdown => Role::Follower,
            openraft::ServerState::Candidate => Role::Candidate,
            openraft::ServerState::Learner => Role::Learner,
        };
        let others_vote = voters.iter().any(|id| *id != metrics.id);
        let acked = metrics.last_quorum_acked.map(|at| millis(at.elapsed()));
        let quorum_ms = (role == Role::Leader && others_vote).then(|| acked.unwrap_or(u64::MAX));
        let contact = if role == Role::Leader { 0 } else { silence_ms };
        Self {
            id: MemberId(metrics.id),
            role,
            term: metrics.current_term,
            leader: metrics.current_leader.map(MemberId),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            commit_index: metrics.local_committed.map_or(0, |id| id.index),
            applied_index: applied,
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            last_contact_ms: contact,
            quorum_ms,
            joint: membership.get_joint_config().len() > 1,
            members: members.collect(),
        }
    }
}
