//! Changes of the group, made by its leader: learners in, learners to voters, members out,
//! leadership over. Each is refused rather than begun when it could not end well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nf_core::id::NodeName;
use nf_core::node::NodeKind;
use nf_core::reason::{Reason, Refusal};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::watch;

use super::shared::Shared;
use super::status::{MemberStatus, Role, Status};
use super::types::Peer;
use super::{Core, Error, Member, MemberId, Raft};

/// A learner further behind than this is not made a voter: it would slow every commit.
const PROMOTE_LAG: u64 = 1_000;
/// How long the target of a transfer may take to catch up while writes are held back.
const CATCH_UP: Duration = Duration::from_millis(500);
/// How long a learner that was added a moment ago may take until the metrics show its first answer.
const HEARD_OF: Duration = Duration::from_secs(2);
/// How long ending somebody else's change of the voters may keep its caller.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the metrics are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// What to change.
#[derive(Clone, Debug)]
pub enum Change {
    AddLearner(Member),
    Promote(MemberId),
    Remove(MemberId),
    Transfer(MemberId),
}

type WriteError = RaftError<Core, ClientWriteError<Core>>;

/// Why a change was not made here.
#[derive(Debug)]
pub enum Failure {
    /// To be asked elsewhere.
    NotLeader(Option<u64>),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn refused(reason: Reason, text: impl Into<String>) -> Failure {
    Error::Refused(Refusal::new(reason, text)).into()
}

fn write_error(error: WriteError) -> Failure {
    match error {
        RaftError::Fatal(_) => Error::Stopping.into(),
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => Failure::NotLeader(to.leader_id),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => Error::Timeout.into(),
        RaftError::APIError(other) => refused(Reason::Conflict, other.to_string()),
    }
}

fn find(status: &Status, id: MemberId) -> Result<&MemberStatus, Failure> {
    let found = status.members.iter().find(|m| m.id == id);
    let text = format!("member {} is not in the group; nf cluster members lists them", id.0);
    found.ok_or_else(|| refused(Reason::NotFound, text))
}

/// A member that does not answer would take a vote away from those that do.
fn caught_up(id: MemberId, matched: Option<u64>, last: u64) -> Result<(), Failure> {
    let text = match matched.map(|matched| last.saturating_sub(matched)) {
        Some(lag) if lag <= PROMOTE_LAG => return Ok(()),
        Some(lag) => format!("member {} is {lag} entries behind; wait and try again", id.0),
        None => format!("member {} has not answered this leader yet; see that it runs, and try again", id.0),
    };
    Err(refused(Reason::NotCaughtUp, text))
}

/// The second step of a change whose first is committed: from then on the new voters decide alone.
async fn end_joint(raft: &Raft) -> Result<(), Failure> {
    let joint = raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1;
    if !joint {
        return Ok(());
    }
    let ended = raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await;
    ended.map(drop).map_err(write_error)
}

/// Refuses a member that has answered nothing that it was asked since `begun`. Heartbeats ask all the time.
fn answers(member: &MemberStatus, begun: Instant) -> Result<(), Failure> {
    match member.heard_ms {
        Some(ms) if Duration::from_millis(ms) <= begun.elapsed() => Ok(()),
        _ => {
            let text = format!("member {} does not answer; see that it runs, and try again", member.id.0);
            Err(refused(Reason::NotCaughtUp, text))
        }
    }
}

/// Refuses voters of whom no majority answers: with them nothing could be committed, not even the way back.
fn majority_answers<'a>(voters: impl Iterator<Item = &'a MemberStatus>, begun: Instant) -> Result<(), Failure> {
    let (here, silent): (Vec<_>, Vec<_>) = voters.partition(|member| answers(member, begun).is_ok());
    if here.len() > silent.len() {
        return Ok(());
    }
    let names: Vec<_> = silent.iter().map(|member| member.name.as_str()).collect();
    let text = format!(
        "of the {} members that would vote then, {} do not answer ({}): nothing could be decided any more; start or \
         remove those first",
        here.len() + silent.len(),
        silent.len(),
        names.join(", ")
    );
    Err(refused(Reason::NotCaughtUp, text))
}

impl Shared {
    /// Makes the change, as leader.
    pub async fn change_here(&self, change: &Change, deadline: Instant) -> Result<(), Failure> {
        let status = self.status();
        if status.role != Role::Leader {
            return Err(Failure::NotLeader(status.leader.map(|id| id.0)));
        }
        let limit = deadline.saturating_duration_since(Instant::now());
        let made = tokio::time::timeout(limit, async {
            match change {
                Change::AddLearner(member) => self.add_learner(&status, member).await,
                Change::Promote(id) => self.promote(&status, *id).await,
                Change::Remove(id) => self.remove(&status, *id).await,
                Change::Transfer(id) => self.transfer(&status, *id).await,
            }
        });
        made.await.unwrap_or(Err(Error::Timeout.into()))
    }

    async fn add_learner(&self, status: &Status, member: &Member) -> Result<(), Failure> {
        for known in &status.members {
            let same_id = known.id == member.id;
            let same = same_id && known.name == member.name && known.peer == member.peer;
            if same {
                return Ok(());
            }
            if same_id {
                let id = member.id.0;
                return Err(refused(Reason::Conflict, format!("id {id} is taken by {}", known.name)));
            }
            if known.name == member.name {
                let name = &member.name;
                return Err(refused(Reason::Conflict, format!("the name {name} is taken by {}", known.id.0)));
            }
        }
        // Who was in the group before is in the state for good, so that no id is used twice.
        if let Some(was) = self.applied.borrow().state.members().get(&member.id) {
            let text =
                format!("id {} was that of member {}; ids are not used again: choose another", member.id.0, was.name);
            return Err(refused(Reason::Conflict, text));
        }
        self.never_a_name_of_others(&member.name)?;
        let peer = Peer { name: member.name.clone(), addr: member.peer.clone() };
        let added = self.raft.add_learner(member.id.0, peer, true).await;
        added.map(drop).map_err(write_error)
    }

    /// A certificate says a name alone. Who did not hear that a name came back under another number takes its
    /// new bearer for the one that was removed, and neither votes for it nor hears it.
    fn never_a_name_of_others(&self, name: &str) -> Result<(), Failure> {
        let state = self.applied.borrow().state.clone();
        let was = state.members().values().find(|member| member.name.as_str() == name);
        if let Some(was) = was {
            let text = format!("{name} was the name of member {}; choose another name, and keys of its own", was.id.0);
            return Err(refused(Reason::Conflict, text));
        }
        let node = NodeName::new(name).ok().and_then(|name| state.node_named(&name).cloned());
        match node.is_some_and(|node| node.kind == NodeKind::Worker) {
            true => Err(refused(Reason::Conflict, format!("{name} is a worker's name; choose another"))),
            false => Ok(()),
        }
    }

    async fn promote(&self, status: &Status, id: MemberId) -> Result<(), Failure> {
        let member = find(status, id)?;
        if member.voter && !status.electorate.is_joint() {
            return Ok(());
        }
        let begun = Instant::now();
        let with_it = |status: &Status| {
            caught_up(id, find(status, id)?.matched, status.last_log_index)?;
            answers(find(status, id)?, begun)?;
            let voters = status.members.iter().filter(|m| m.voter || m.id == id);
            majority_answers(voters, begun)
        };
        self.soon(with_it).await?;
        self.change_voters(ChangeMembers::AddVoterIds(BTreeSet::from([id.0]))).await
    }

    async fn remove(&self, status: &Status, id: MemberId) -> Result<(), Failure> {
        let Ok(member) = find(status, id) else {
            return Ok(());
        };
        if id == status.id {
            return Err(refused(Reason::Conflict, "this member leads: transfer leadership first"));
        }
        let ids = BTreeSet::from([id.0]);
        if !member.voter {
            return self.change_voters(ChangeMembers::RemoveNodes(ids)).await;
        }
        let voters = status.members.iter().filter(|m| m.voter).count();
        if voters == 1 {
            return Err(refused(Reason::Conflict, "the last voter cannot be removed"));
        }
        let begun = Instant::now();
        let without_it =
            |status: &Status| majority_answers(status.members.iter().filter(|m| m.voter && m.id != id), begun);
        self.soon(without_it).await?;
        self.change_voters(ChangeMembers::RemoveVoters(ids)).await
    }

    /// Waits until `holds`: what is heard takes a moment to come and to show. Not for long.
    async fn soon(&self, holds: impl Fn(&Status) -> Result<(), Failure>) -> Result<(), Failure> {
        let until = Instant::now() + HEARD_OF;
        loop {
            match holds(&self.status()) {
                Err(_) if Instant::now() < until => tokio::time::sleep(LOOK).await,
                judged => return judged,
            }
        }
    }

    /// Changes the voters, in two steps where the old ones have to agree, and goes on when the caller is gone.
    async fn change_voters(&self, change: ChangeMembers<u64, Peer>) -> Result<(), Failure> {
        let (raft, turn) = (self.raft.clone(), self.changing.clone());
        let both = tokio::spawn(async move {
            let _turn = turn.lock_owned().await;
            end_joint(&raft).await?;
            raft.change_membership(change, false).await.map(drop).map_err(write_error)
        });
        both.await.unwrap_or(Err(Error::Stopping.into()))
    }

    /// Ends a change of the voters that somebody began and left, e.g. a leader that is gone.
    pub async fn settle(&self, status: &Status) {
        if status.role != Role::Leader || !status.electorate.is_joint() {
            return;
        }
        let Ok(_turn) = self.changing.try_lock() else { return };
        // Without a majority of both old and new voters it takes as long as they are away.
        let ended = tokio::time::timeout(SETTLE, end_joint(&self.raft)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::info!(?ended, "a change of the voters is not over yet");
        }
    }

    /// Hands leadership to a voter that has everything, and returns when it leads.
    ///
    /// openraft neither waits for the target nor takes a failed attempt back, so writes are held
    /// here until nothing is in flight and the target has it all.
    async fn transfer(&self, status: &Status, to: MemberId) -> Result<(), Failure> {
        if to == status.id {
            return Ok(());
        }
        if !find(status, to)?.voter {
            return Err(refused(Reason::NotVoter, format!("member {} does not vote; promote it first", to.0)));
        }
        let Some(_resume) = Pause::begin(&self.paused) else {
            return Err(refused(
                Reason::Conflict,
                "leadership is being handed over already; look who leads, and try again",
            ));
        };
        let caught_up = || {
            let now = self.status();
            let matched = now.members.iter().find(|m| m.id == to).and_then(|m| m.matched);
            *self.in_flight.borrow() == 0 && matched == Some(now.last_log_index)
        };
        if !eventually(CATCH_UP, caught_up).await {
            return Err(refused(Reason::NotCaughtUp, format!("member {} is behind; try again later", to.0)));
        }
        let triggered = self.raft.trigger().transfer_leader(to.0).await;
        triggered.map_err(|_| Error::Stopping)?;
        // Without a limit of its own: the caller's deadline ends it, and an election then decides.
        loop {
            match self.leader() {
                Some(leader) if leader == to.0 => return Ok(()),
                // The attempt failed and somebody was elected instead: the caller goes on there.
                Some(leader) if self.status().term > status.term => {
                    return Err(Failure::NotLeader(Some(leader)));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Forms a new group of these voters. Only on a member that has none, and on one of them.
    pub async fn initialize(&self, members: &[Member]) -> Result<(), Failure> {
        let peers: BTreeMap<u64, Peer> = members
            .iter()
            .map(|member| {
                let peer = Peer { name: member.name.clone(), addr: member.peer.clone() };
                (member.id.0, peer)
            })
            .collect();
        let names: BTreeSet<&str> = members.iter().map(|m| m.name.as_str()).collect();
        if peers.len() != members.len() || names.len() != members.len() || members.len().is_multiple_of(2) {
            return Err(refused(Reason::InvalidArgument, "a group begins with 1, 3 or 5 members, all different"));
        }
        match self.raft.initialize(peers).await {
            Ok(()) => Ok(()),
            Err(RaftError::Fatal(_)) => Err(Error::Stopping.into()),
            Err(RaftError::APIError(error)) => Err(refused(Reason::Conflict, format!("not initialized: {error}"))),
        }
    }
}

/// Holds writes back until dropped. There is one at a time: another's end would let writes through in the middle of it.
struct Pause<'a>(&'a watch::Sender<bool>);

impl<'a> Pause<'a> {
    fn begin(paused: &'a watch::Sender<bool>) -> Option<Self> {
        let begun = paused.send_if_modified(|paused| !std::mem::replace(paused, true));
        // Made when it has begun and not before: the end of one that is thrown away would be the end of another's.
        begun.then(|| Self(paused))
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

async fn eventually(limit: Duration, holds: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !holds() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_pause_neither_begins_nor_ends_the_first() {
        let paused = watch::Sender::new(false);
        let first = Pause::begin(&paused);
        assert!(first.is_some() && Pause::begin(&paused).is_none());
        assert!(*paused.borrow(), "the one that was refused has ended nothing");
        drop(first);
        assert!(!*paused.borrow());
        assert!(Pause::begin(&paused).is_some());
    }

    #[test]
    fn only_a_member_that_answers_and_is_near_gets_a_vote() {
        let reason = |matched, last| match caught_up(MemberId(4), matched, last) {
            Err(Failure::Error(Error::Refused(refusal))) => Some(refusal.reason),
            _ => None,
        };
        assert_eq!(reason(Some(10), 10), None);
        assert_eq!(reason(Some(10), 10 + PROMOTE_LAG), None);
        assert_eq!(reason(Some(10), 11 + PROMOTE_LAG), Some(Reason::NotCaughtUp));
        assert_eq!(reason(None, 10), Some(Reason::NotCaughtUp), "it never answered, however short the log");
    }
}
