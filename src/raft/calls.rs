//! One call's way to whoever leads: tried again, with the same intent, until its deadline. It does
//! not plan, and knows of an intent only whether it may safely be refused after a lost try.

use std::time::Instant;

use nf_core::codec;
use nf_core::plan::{Intent, Reply};
use nf_core::proposer::depends_on_state;
use nf_core::reason::{Reason, Refusal};
use nf_proto::internal as pb;

use super::membership::{Change, Failure};
use super::shared::{Lost, RETRY, Shared, Try, left};
use super::{Error, NO_LEADER, wire};

pub async fn submit(shared: &Shared, intent: Intent, deadline: Instant) -> Result<Reply, Error> {
    let mut encoded = None;
    // An earlier try may have been written.
    let mut taken = false;
    let mut pause = RETRY.0;
    let mut hint = None;
    loop {
        let leader = hint.take().or_else(|| shared.leader());
        let tried = match leader {
            Some(id) if id == shared.me.id.0 => {
                let proposed = shared.propose(intent.clone(), None, deadline).await;
                proposed.map(Try::Reply)
            }
            Some(id) => {
                let bytes = encoded.get_or_insert_with(|| codec::encode(&intent).into());
                shared.forward(id, bytes, deadline).await
            }
            None => Err(Lost::default()),
        };
        match tried {
            Ok(Try::Reply(reply)) => return answer(&intent, reply, taken),
            Ok(Try::Refused(reason)) => {
                return Err(Error::Refused(Refusal::new(Reason::FeatureLevel, reason)));
            }
            Ok(Try::Unreadable) => return Err(Error::Timeout),
            Err(elsewhere) => {
                taken |= elsewhere.taken;
                hint = elsewhere.leader.filter(|id| Some(*id) != leader);
            }
        }
        if *shared.stop.borrow() {
            return Err(if taken { Error::Timeout } else { Error::Stopping });
        }
        if left(deadline) <= pause {
            return Err(if taken { Error::Timeout } else { NO_LEADER });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// What to make of a reply. `taken`: an earlier try of the same call may have been committed, so that a refusal may only
/// say that it was: the tenant is gone, the rollout has turned, the quota is another now.
fn answer(intent: &Intent, reply: Reply, taken: bool) -> Result<Reply, Error> {
    match &reply.result {
        Err(refusal) if taken && depends_on_state(refusal) && intent.is_refused_once_done() => {
            let detail = format!(
                "the leader changed before it answered, so this may have been done; its successor said: {refusal}. Look \
                 before you ask again"
            );
            Err(Error::Refused(Refusal::new(Reason::Timeout, detail)))
        }
        _ => Ok(reply),
    }
}

pub async fn route_change(shared: &Shared, change: &Change, deadline: Instant) -> Result<(), Error> {
    let mut pause = RETRY.0;
    loop {
        let result = match shared.leader() {
            Some(id) if id == shared.me.id.0 => shared.change_here(change, deadline).await,
            Some(id) => manage(shared, id, change, deadline).await,
            None => Err(Failure::NotLeader(None)),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::NotLeader(_)) if left(deadline) > pause => {}
            Err(Failure::NotLeader(_)) => return Err(NO_LEADER),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

async fn manage(shared: &Shared, to: u64, change: &Change, deadline: Instant) -> Result<(), Failure> {
    use pb::manage_reply::Result as R;
    use pb::manage_request::Change as C;
    let mut client = shared.calls_to(to).ok_or(Failure::NotLeader(None))?;
    let change = match change {
        Change::AddLearner(member) => {
            C::AddLearner(pb::AddLearner { id: member.id.0, name: member.name.clone(), addr: member.peer.clone() })
        }
        Change::Promote(id) => C::Promote(id.0),
        Change::Remove(id) => C::Remove(id.0),
        Change::Transfer(id) => C::Transfer(id.0),
    };
    let request = pb::ManageRequest {
        route: Some(shared.peers.route(to)),
        deadline_ms: wire::put_wait(left(deadline)),
        change: Some(change),
    };
    match tokio::time::timeout(left(deadline), client.manage(request)).await {
        Err(_) => Err(Error::Timeout.into()),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => Err(Failure::NotLeader(None)),
        Ok(Err(status)) => {
            tracing::warn!(%status, "the leader did not say what became of a change");
            Err(Error::Timeout.into())
        }
        Ok(Ok(reply)) => match reply.into_inner().result {
            Some(R::Done(_)) => Ok(()),
            Some(R::NotLeader(to)) => Err(Failure::NotLeader(Some(to.leader))),
            Some(R::Refused(refusal)) => Err(Error::Refused(refusal_from(refusal)).into()),
            None => Err(Error::Timeout.into()),
        },
    }
}

fn refusal_from(refusal: pb::Refusal) -> Refusal {
    let known = Reason::ALL.iter().find(|r| r.token() == refusal.reason);
    Refusal::new(known.copied().unwrap_or(Reason::Internal), refusal.detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::TenantId;
    use nf_core::resources::Gpus;
    use nf_core::testing;

    #[test]
    fn a_refusal_after_a_lost_try_is_not_taken_for_the_outcome() {
        let delete = Intent::DeleteTenant { tenant: TenantId::new("t1").unwrap() };
        let schedule = testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(1)));
        let told = |intent: &Intent, reason: Reason, lost: bool| match answer(
            intent,
            Reply::refused(Refusal::new(reason, "no")),
            lost,
        ) {
            Ok(reply) => reply.result.unwrap_err().reason,
            Err(Error::Refused(refusal)) => refusal.reason,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(told(&delete, Reason::NotFound, false), Reason::NotFound, "the only try");
        assert_eq!(told(&delete, Reason::NotFound, true), Reason::Timeout, "the first one may have deleted it");
        let by = testing::by("ada", delete.clone());
        assert_eq!(told(&by, Reason::NotFound, true), Reason::Timeout);
        assert_eq!(told(&delete, Reason::InvalidArgument, true), Reason::InvalidArgument, "in no state");
        assert_eq!(told(&schedule, Reason::IdempotencyConflict, true), Reason::IdempotencyConflict, "it has a name");
        assert!(answer(&delete, Reply::empty(), true).is_ok());
    }
}
