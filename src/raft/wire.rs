//! Between openraft's messages and ours on the wire. Every conversion from the wire may fail: a
//! missing field is a refusal, never a default. It does not know connections.

use std::time::Duration;

use nf_proto::internal as pb;
use openraft::raft::StreamAppendError;
use tonic::Status;

use super::Core;
use super::encoding;
use super::types::{Entry, EntryPayload, LogId, Vote};
use crate::telemetry::traces;

pub type AppendRequest = openraft::raft::AppendEntriesRequest<Core>;
pub type AppendResult = openraft::raft::StreamAppendResult<Core>;
pub type VoteRequest = openraft::raft::VoteRequest<Core>;
pub type VoteResponse = openraft::raft::VoteResponse<Core>;

fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

pub fn put_log_id(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, index: id.index }
}

pub fn log_id(id: &pb::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

pub fn put_vote(vote: &Vote) -> pb::Ballot {
    pb::Ballot { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}

/// A vote that must be there.
pub fn vote(vote: Option<&pb::Ballot>) -> Result<Vote, Status> {
    let vote = vote.ok_or_else(|| missing("vote"))?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, vote.voted_for)
    } else {
        Vote::new(vote.term, vote.voted_for)
    })
}

fn put_entry(entry: &Entry) -> pb::Entry {
    let (kind, body) = encoding::payload_parts(&entry.payload);
    pb::Entry { term: entry.log_id.leader_id.term, index: entry.log_id.index, kind: u32::from(kind), body }
}

fn entry(entry: pb::Entry) -> Result<Entry, Status> {
    let kind = u8::try_from(entry.kind).map_err(|_| missing("a known kind of entry"))?;
    let payload = encoding::payload_from(kind, entry.body).map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(Entry { log_id: LogId::new_term_index(entry.term, entry.index), payload })
}

/// `introduced`: the group has heard of who is asked.
pub fn put_append(request: &AppendRequest, route: Option<pb::Route>, introduced: bool) -> pb::AppendRequest {
    pb::AppendRequest {
        route,
        introduced,
        vote: Some(put_vote(&request.vote)),
        prev: request.prev_log_id.as_ref().map(put_log_id),
        commit: request.leader_commit.as_ref().map(put_log_id),
        entries: request.entries.iter().map(put_entry).collect(),
        traces: request.entries.iter().flat_map(traces_of).collect(),
    }
}

/// The traces of the jobs that an entry makes.
fn traces_of(entry: &Entry) -> Vec<pb::Traced> {
    match &entry.payload {
        // Decoded already on the leader that wrote it; one that cannot be is its reader's to report.
        EntryPayload::Normal(payload) if traces::any() => payload.batch().map_or_else(|_| Vec::new(), traces::among),
        _ => Vec::new(),
    }
}

pub fn append(request: pb::AppendRequest) -> Result<AppendRequest, Status> {
    traces::take(request.traces);
    let entries: Result<Vec<_>, _> = request.entries.into_iter().map(entry).collect();
    Ok(AppendRequest {
        vote: vote(request.vote.as_ref())?,
        prev_log_id: request.prev.as_ref().map(log_id),
        entries: entries?,
        leader_commit: request.commit.as_ref().map(log_id),
    })
}

pub fn put_append_result(result: &AppendResult) -> pb::AppendReply {
    use pb::append_reply::Result as R;
    let result = match result {
        Ok(last) => R::Matched(pb::Matched { last: last.as_ref().map(put_log_id) }),
        Err(StreamAppendError::Conflict(id)) => R::Conflict(put_log_id(id)),
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(put_vote(vote)),
    };
    pb::AppendReply { result: Some(result) }
}

pub fn append_result(reply: pb::AppendReply) -> Result<AppendResult, Status> {
    use pb::append_reply::Result as R;
    Ok(match reply.result.ok_or_else(|| missing("result"))? {
        R::Matched(matched) => Ok(matched.last.as_ref().map(log_id)),
        R::Conflict(id) => Err(StreamAppendError::Conflict(log_id(&id))),
        R::HigherVote(ballot) => Err(StreamAppendError::HigherVote(vote(Some(&ballot))?)),
    })
}

/// `introduced`: the group has heard of who is asked.
pub fn put_vote_request(request: &VoteRequest, route: pb::Route, introduced: bool) -> pb::VoteRequest {
    pb::VoteRequest {
        route: Some(route),
        vote: Some(put_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(put_log_id),
        leadership_transfer: request.leadership_transfer,
        introduced,
    }
}

pub fn vote_request(request: &pb::VoteRequest) -> Result<VoteRequest, Status> {
    let last = request.last.as_ref().map(log_id);
    let mut out = VoteRequest::new(vote(request.vote.as_ref())?, last);
    out.leadership_transfer = request.leadership_transfer;
    Ok(out)
}

/// `now_ms`: what this member's clock says.
pub fn put_vote_response(response: &VoteResponse, now_ms: u64) -> pb::VoteReply {
    pb::VoteReply {
        vote: Some(put_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(put_log_id),
        now_ms,
    }
}

pub fn vote_response(reply: &pb::VoteReply) -> Result<VoteResponse, Status> {
    let last = reply.last.as_ref().map(log_id);
    Ok(VoteResponse::new(vote(reply.vote.as_ref())?, last, reply.granted))
}

/// A waiting time as it is sent; at least 1, so that it never means "no limit".
pub fn put_wait(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1)
}
