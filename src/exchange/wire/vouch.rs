//! [`Voucher`] ↔ protobuf.

use super::{NODES, at_most, bad, name};
use crate::exchange::message::Error;
use crate::exchange::vouch::Voucher;
use crate::raft::Electorate;
use nf_core::id::MemberId;
use nf_proto::internal as pb;

/// More voters than a group can have.
const VOTERS: usize = 64;

pub fn put_voucher(voucher: Voucher) -> pb::VouchReply {
    let (term, index) = voucher.electorate.since;
    let sets = voucher.electorate.sets.into_iter();
    pb::VouchReply {
        cluster: voucher.cluster,
        member: voucher.member.0,
        term,
        index,
        voters: sets.map(|set| pb::VoterSet { members: set.into_iter().map(|id| id.0).collect() }).collect(),
        lease_ms: voucher.lease_ms,
        refused: voucher.refused.iter().map(ToString::to_string).collect(),
    }
}

pub fn voucher(reply: pb::VouchReply) -> Result<Voucher, Error> {
    if reply.voters.len() > 2 {
        return Err(bad("voters", format!("{} sets of voters, and there are two at most", reply.voters.len())));
    }
    let set = |set: pb::VoterSet| {
        at_most("voters", set.members.len(), VOTERS)?;
        Ok(set.members.into_iter().map(MemberId).collect())
    };
    at_most("refused", reply.refused.len(), NODES)?;
    Ok(Voucher {
        cluster: reply.cluster,
        member: MemberId(reply.member),
        electorate: Electorate {
            since: (reply.term, reply.index),
            sets: reply.voters.into_iter().map(set).collect::<Result<_, Error>>()?,
        },
        lease_ms: reply.lease_ms,
        refused: reply.refused.iter().map(|text| name("refused", text)).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::NodeName;
    use proptest::prelude::*;

    fn some_voucher() -> Voucher {
        let sets = vec![[MemberId(1), MemberId(2)].into(), [MemberId(2)].into()];
        Voucher {
            cluster: "c".into(),
            member: MemberId(2),
            electorate: Electorate { since: (3, 4), sets },
            lease_ms: 45_000,
            refused: vec![NodeName::new("n1").unwrap()],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_sent() {
        assert_eq!(voucher(put_voucher(some_voucher())).unwrap(), some_voucher());
    }

    proptest! {
        #[test]
        fn what_no_member_would_say_is_refused_and_never_a_panic(
            sets in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..100), 0..4),
            refused in prop::collection::vec(".{0,80}", 0..4),
        ) {
            let voters = sets.iter().map(|set| pb::VoterSet { members: set.clone() }).collect();
            let reply = pb::VouchReply { voters, refused, ..put_voucher(some_voucher()) };
            if let Ok(taken) = voucher(reply) {
                prop_assert!(taken.electorate.sets.len() <= 2 && sets.iter().all(|set| set.len() <= VOTERS));
            }
        }
    }
}
