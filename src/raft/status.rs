//! What a member can say about the group, as plain values.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Milliseconds since this member last heard a leader that is another one; since its start when never.
    pub silence_ms: u64,
    /// On a leader that does not vote alone: milliseconds since a quorum last acknowledged it;
    /// `u64::MAX` when none has.
    pub quorum_ms: Option<u64>,
    pub electorate: Electorate,
    pub members: Vec<MemberStatus>,
}

/// Who elects, as this member knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Electorate {
    /// Term and index of the entry that made it so; members that name the same mean the same.
    pub since: (u64, u64),
    /// Two while the voters are being changed: a majority of each decides.
    pub sets: Vec<BTreeSet<MemberId>>,
}

impl Electorate {
    /// A change of the voters is under way: old and new ones decide together.
    pub fn is_joint(&self) -> bool {
        self.sets.len() > 1
    }

    /// Whether `who` could elect a leader.
    pub fn is_majority(&self, who: &BTreeSet<MemberId>) -> bool {
        !self.sets.is_empty() && self.sets.iter().all(|set| set.intersection(who).count() * 2 > set.len())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

type Metrics = openraft::RaftMetrics<super::Core>;

impl Status {
    /// Milliseconds since this member last had word of its group: of a leader or, as the leader, of a quorum.
    pub fn stale_ms(&self) -> u64 {
        match self.role {
            Role::Leader => self.quorum_ms.unwrap_or(0),
            _ => self.silence_ms,
        }
    }

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
            silence_ms,
            quorum_ms,
            electorate: Electorate {
                since: metrics.membership_config.log_id().map_or((0, 0), |id| (id.leader_id.term, id.index)),
                sets: membership
                    .get_joint_config()
                    .iter()
                    .map(|set| set.iter().copied().map(MemberId).collect())
                    .collect(),
            },
            members: members.collect(),
        }
    }
}
