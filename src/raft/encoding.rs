//! Our own bytes for entries, votes, log ids and memberships, on disk and on the wire.
//!
//! openraft's serde types are never used for that: they change between its versions. Each record
//! has a kind or version byte and is consumed to its last byte. It does not know frames or files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;

use super::types::{Entry, EntryPayload, LogId, Membership, Payload, Peer, StoredMembership, Vote};
use crate::storage::frame::{Reader, Writer, invalid};

const BLANK: u8 = 0;
const COMMANDS: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Most voters or learners a stored membership may have.
const MAX_MEMBERS: u32 = 10_000;

/// The entry's kind and body; its log id is stored beside it.
pub fn payload_parts(payload: &EntryPayload) -> (u8, Bytes) {
    match payload {
        EntryPayload::Blank => (BLANK, Bytes::new()),
        EntryPayload::Normal(payload) => (COMMANDS, payload.bytes().clone()),
        EntryPayload::Membership(membership) => {
            let body = put_membership(Writer::new(), membership).done();
            (MEMBERSHIP, Bytes::from(body))
        }
    }
}

/// The inverse of [`payload_parts`].
pub fn payload_from(kind: u8, body: Bytes) -> io::Result<EntryPayload> {
    match kind {
        BLANK if body.is_empty() => Ok(EntryPayload::Blank),
        BLANK => Err(invalid("a blank entry with a body")),
        COMMANDS => Ok(EntryPayload::Normal(Payload::encoded(body))),
        MEMBERSHIP => {
            let mut reader = Reader::new(&body);
            let membership = get_membership(&mut reader)?;
            reader.done()?;
            Ok(EntryPayload::Membership(membership))
        }
        other => Err(invalid(format!("unknown kind of entry {other}"))),
    }
}

/// A log row: kind, term, body. The index is the row's key.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let (kind, body) = payload_parts(&entry.payload);
    Writer::new().u8(kind).u64(entry.log_id.leader_id.term).bytes(&body).done()
}

pub fn decode_entry(index: u64, bytes: &[u8]) -> io::Result<Entry> {
    let mut reader = Reader::new(bytes);
    let kind = reader.u8()?;
    let term = reader.u64()?;
    let body = Bytes::copy_from_slice(reader.bytes()?);
    reader.done()?;
    Ok(Entry { log_id: LogId::new_term_index(term, index), payload: payload_from(kind, body)? })
}

pub fn encode_vote(vote: &Vote) -> Vec<u8> {
    Writer::new().u64(vote.leader_id.term).u64(vote.leader_id.voted_for).u8(u8::from(vote.committed)).done()
}

pub fn decode_vote(bytes: &[u8]) -> io::Result<Vote> {
    let mut reader = Reader::new(bytes);
    let (term, voted_for, committed) = (reader.u64()?, reader.u64()?, reader.u8()?);
    reader.done()?;
    match committed {
        0 => Ok(Vote::new(term, voted_for)),
        1 => Ok(Vote::new_committed(term, voted_for)),
        other => Err(invalid(format!("a vote's flag is {other}"))),
    }
}

pub fn encode_log_id(log_id: Option<&LogId>) -> Vec<u8> {
    put_log_id(Writer::new(), log_id).done()
}

pub fn decode_log_id(bytes: &[u8]) -> io::Result<Option<LogId>> {
    let mut reader = Reader::new(bytes);
    let log_id = get_log_id(&mut reader)?;
    reader.done()?;
    Ok(log_id)
}

/// Where the state stands: the last applied entry and the membership then in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

impl Position {
    pub fn encode(&self) -> Vec<u8> {
        let writer = put_log_id(Writer::new().u8(1), self.applied.as_ref());
        let writer = put_log_id(writer, self.membership.log_id().as_ref());
        put_membership(writer, self.membership.membership()).done()
    }

    pub fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            1 => {}
            other => return Err(invalid(format!("unknown format of position {other}"))),
        }
        let applied = get_log_id(&mut reader)?;
        let at = get_log_id(&mut reader)?;
        let membership = get_membership(&mut reader)?;
        reader.done()?;
        Ok(Self { applied, membership: StoredMembership::new(at, membership) })
    }
}

fn put_log_id(writer: Writer, log_id: Option<&LogId>) -> Writer {
    match log_id {
        None => writer.u8(0),
        Some(id) => writer.u8(1).u64(id.leader_id.term).u64(id.index),
    }
}

fn get_log_id(reader: &mut Reader<'_>) -> io::Result<Option<LogId>> {
    match reader.u8()? {
        0 => Ok(None),
        1 => {
            let term = reader.u64()?;
            Ok(Some(LogId::new_term_index(term, reader.u64()?)))
        }
        other => Err(invalid(format!("a log id's flag is {other}"))),
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a group has few members")
}

fn put_membership(mut writer: Writer, membership: &Membership) -> Writer {
    let configs = membership.get_joint_config();
    writer = writer.u32(count(configs.len()));
    for config in configs {
        writer = writer.u32(count(config.len()));
        for id in config {
            writer = writer.u64(*id);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    writer = writer.u32(count(nodes.len()));
    for (id, peer) in nodes {
        writer = writer.u64(*id).string(&peer.name).string(&peer.addr);
    }
    writer
}

fn get_count(reader: &mut Reader<'_>) -> io::Result<u32> {
    match reader.u32()? {
        n if n <= MAX_MEMBERS => Ok(n),
        n => Err(invalid(format!("{n} members are too many"))),
    }
}

fn get_membership(reader: &mut Reader<'_>) -> io::Result<Membership> {
    let mut configs = Vec::new();
    for _ in 0..get_count(reader)? {
        let mut config = BTreeSet::new();
        for _ in 0..get_count(reader)? {
            config.insert(reader.u64()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..get_count(reader)? {
        let id = reader.u64()?;
        let peer = Peer { name: reader.string()?, addr: reader.string()? };
        nodes.insert(id, peer);
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| invalid(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let peer = |name: &str| Peer { name: name.into(), addr: "127.0.0.1:1".into() };
        let nodes: BTreeMap<u64, Peer> = [(1, peer("a")), (2, peer("b")), (3, peer("c"))].into();
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], nodes).unwrap()
    }

    #[test]
    fn every_record_survives_the_round_trip() {
        let vote = Vote::new_committed(7, 3);
        assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        for id in [None, Some(LogId::new_term_index(5, 9))] {
            assert_eq!(decode_log_id(&encode_log_id(id.as_ref())).unwrap(), id);
        }
        let position = Position {
            applied: Some(LogId::new_term_index(2, 8)),
            membership: StoredMembership::new(Some(LogId::new_term_index(1, 4)), membership()),
        };
        assert_eq!(Position::decode(&position.encode()).unwrap(), position);
        let empty = Position::default();
        assert_eq!(Position::decode(&empty.encode()).unwrap(), empty);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload::encoded(Bytes::from_static(b"x"))),
            EntryPayload::Membership(membership()),
        ] {
            let entry = Entry { log_id: LogId::new_term_index(3, 11), payload };
            let bytes = encode_entry(&entry);
            assert_eq!(decode_entry(11, &bytes).unwrap(), entry);
            for cut in 0..bytes.len() {
                assert!(decode_entry(11, &bytes[..cut]).is_err());
            }
        }
    }
}
