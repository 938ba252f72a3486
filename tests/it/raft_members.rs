//! Changes of the group: leadership handed over, members in and out, snapshots for newcomers.

use neural_fabric::daemon::TlsDial;
use neural_fabric::exchange::{Address, Dial};
use neural_fabric::raft::{Error, MemberId, Role};
use neural_fabric::security::tls::{self, PeerTls};
use nf_core::codec;
use nf_core::reason::Reason;
use nf_proto::internal as pb;
use pb::peer_service_client::PeerServiceClient;
use rustls_pki_types::UnixTime;
use tonic::Code;

use crate::harness::{Cluster, deadline, eventually, introduction, tenant};

/// Speaks Raft with the member of a seat, with these keys and under this number and name.
struct Stranger {
    client: PeerServiceClient<tonic::transport::Channel>,
    route: pb::Route,
}

impl Stranger {
    fn new(cluster: &Cluster, seat: usize, keys: PeerTls, from: u64) -> Self {
        let (to, name, peer) = cluster.member(seat);
        let me = keys.name.clone();
        let dial = TlsDial { tls: keys, names: Default::default() };
        let channel = dial.channel(&Address { name: Some(name), peer }).unwrap();
        let route = pb::Route { cluster: cluster.name.clone(), from, to: to.0, name: me };
        Self { client: PeerServiceClient::new(channel), route }
    }

    async fn vote(&mut self) -> Result<bool, Code> {
        let vote = pb::Ballot { term: 1_000, voted_for: self.route.from, committed: false };
        let request = pb::VoteRequest { route: Some(self.route.clone()), vote: Some(vote), ..Default::default() };
        self.client.vote(request).await.map(|reply| reply.into_inner().granted).map_err(|status| status.code())
    }

    /// Appends nothing, as the leader that was voted for in a term long gone.
    async fn append(&mut self, voted_for: u64) -> Result<(), Code> {
        let vote = pb::Ballot { term: 0, voted_for, committed: true };
        let message = pb::AppendRequest { route: Some(self.route.clone()), vote: Some(vote), ..Default::default() };
        let mut replies =
            self.client.append(futures::stream::iter([message])).await.map_err(|e| e.code())?.into_inner();
        replies.message().await.map(drop).map_err(|status| status.code())
    }

    async fn forward(&mut self) -> Result<(), Code> {
        let intent = codec::encode(&tenant("sneaked-in")).into();
        let request = pb::ForwardRequest {
            route: Some(self.route.clone()),
            intent,
            deadline_ms: 5_000,
            traceparent: String::new(),
        };
        self.client.forward(request).await.map(drop).map_err(|status| status.code())
    }

    /// Whether the group has heard of us; a member with an empty disk asks before it takes part.
    async fn is_known(&mut self) -> Result<bool, Code> {
        let request = pb::PingRequest { route: Some(self.route.clone()) };
        self.client.ping(request).await.map(|reply| reply.into_inner().introduced).map_err(|status| status.code())
    }

    async fn manage(&mut self) -> Result<(), Code> {
        let change = Some(pb::manage_request::Change::Remove(3));
        let request = pb::ManageRequest { route: Some(self.route.clone()), deadline_ms: 5_000, change };
        self.client.manage(request).await.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_have_a_say_in_the_group() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let refused: Result<bool, Code> = Err(Code::PermissionDenied);
    // A worker's keys say that it is none, whatever number it gives.
    for from in [1, 9] {
        let mut worker = Stranger::new(&cluster, leader, cluster.keys("w1", tls::Role::Client), from);
        assert_eq!(worker.forward().await, refused.map(drop));
        assert_eq!(worker.manage().await, refused.map(drop));
        assert_eq!(worker.vote().await, refused);
    }
    // Who is in the group speaks for itself alone.
    let (other, name, _) = cluster.member((leader + 1) % 3);
    let mut member = Stranger::new(&cluster, leader, cluster.keys(&name, tls::Role::Server), other.0);
    let third = cluster.member((leader + 2) % 3).0;
    assert_eq!(member.append(third.0).await, refused.map(drop));
    assert_eq!(member.append(other.0).await, Ok(()));
    // A member's keys without a place in the group: no say in what is committed.
    let mut outsider = Stranger::new(&cluster, leader, cluster.keys("n9", tls::Role::Server), 9);
    assert_eq!(outsider.forward().await, refused.map(drop));
    assert_eq!(outsider.manage().await, refused.map(drop));
    // Who was removed is remembered: it can't even disturb an election.
    let (id, name, peer) = cluster.member((leader + 1) % 3);
    let mut old = Stranger::new(&cluster, leader, cluster.keys(&name, tls::Role::Server), id.0);
    assert_eq!(old.is_known().await, Ok(false), "a founder that is not up yet may come");
    cluster.submit(leader, introduction(id, &name)).await;
    assert_eq!(old.is_known().await, Ok(true), "but not come back without its data");
    cluster.replica(leader).remove(id, deadline()).await.unwrap();
    let mut removed = Stranger::new(&cluster, leader, cluster.keys(&name, tls::Role::Server), id.0);
    assert_eq!(removed.forward().await, refused.map(drop));
    assert_eq!(removed.vote().await, refused);
    // Its keys say its name; another number it makes up helps it no more.
    let mut renamed = Stranger::new(&cluster, leader, cluster.keys(&name, tls::Role::Server), 77);
    assert_eq!(renamed.vote().await, refused);
    assert_eq!(renamed.append(77).await, refused.map(drop));
    // Nor does it come back under its old number, or under its old name.
    for number in [id, MemberId(4)] {
        let again = cluster.replica(leader).add_learner(number, name.clone(), peer.clone(), deadline()).await;
        assert!(matches!(&again, Err(Error::Refused(r)) if r.reason == Reason::Conflict), "{again:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_where_it_is_sent() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let to = (leader + 1) % 3;
        // Asked of a member that is neither.
        let asked = cluster.replica((leader + 2) % 3).clone();
        asked.transfer(cluster.seats[to].id, deadline()).await.unwrap();
        assert_eq!(cluster.leader().await, to);
        cluster.submit(leader, tenant(&format!("t{round}"))).await;
    }
    let leader = cluster.leader().await;
    let result = cluster.replica(leader).transfer(MemberId(9), deadline()).await;
    assert!(matches!(result, Err(Error::Refused(r)) if r.reason == Reason::NotFound));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_catches_up_by_snapshot_gets_a_vote_and_leaves() {
    let mut cluster = Cluster::start(3).await;
    for i in 0..50 {
        cluster.submit(0, tenant(&format!("t{i}"))).await;
    }
    cluster.agree().await;
    let leader = cluster.leader().await;
    let covered = cluster.replica(leader).snapshot().await.unwrap();
    assert!(covered >= 50);
    eventually("the log before the checkpoint is gone", || {
        (cluster.replica(leader).status().purged_index > 0).then_some(())
    })
    .await;

    let seat = cluster.add_seat();
    cluster.start_seat(seat).await;
    let (id, name, peer) = cluster.member(seat);
    cluster.replica(0).add_learner(id, name.clone(), peer.clone(), deadline()).await.unwrap();
    cluster.agree().await;
    assert_eq!(cluster.replica(seat).status().role, Role::Learner);
    assert!(cluster.replica(seat).status().snapshot_index > 0, "it came by snapshot");
    // The same again is fine, another under its id is not.
    cluster.replica(1).add_learner(id, name, peer.clone(), deadline()).await.unwrap();
    let taken = cluster.replica(1).add_learner(id, "other".into(), peer, deadline()).await;
    assert!(matches!(taken, Err(Error::Refused(_))), "{taken:?}");

    cluster.replica(2).promote(id, deadline()).await.unwrap();
    eventually("it votes", || {
        let status = cluster.replica(seat).status();
        status.members.iter().any(|m| m.id == id && m.voter).then_some(())
    })
    .await;
    cluster.submit(seat, tenant("through-the-newcomer")).await;

    cluster.replica(0).remove(id, deadline()).await.unwrap();
    let status = cluster.replica(cluster.leader().await).status();
    assert!(status.members.iter().all(|m| m.id != id));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_too_long_comes_back_by_snapshot() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.stop_seat(away).await;
    for i in 0..30 {
        cluster.submit(leader, tenant(&format!("t{i}"))).await;
    }
    let leader = cluster.leader().await;
    cluster.replica(leader).snapshot().await.unwrap();
    eventually("its log is gone", || (cluster.replica(leader).status().purged_index > 20).then_some(())).await;
    cluster.start_seat(away).await;
    cluster.agree().await;
    cluster.submit(away, tenant("back")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_works_and_may_grow() {
    let mut cluster = Cluster::start(1).await;
    cluster.submit(0, tenant("alone")).await;
    for _ in 0..2 {
        let seat = cluster.add_seat();
        cluster.start_seat(seat).await;
        let (id, name, peer) = cluster.member(seat);
        cluster.replica(0).add_learner(id, name, peer, deadline()).await.unwrap();
        cluster.replica(0).promote(id, deadline()).await.unwrap();
    }
    cluster.agree().await;
    cluster.stop_seat(0).await;
    cluster.submit(1, tenant("without-the-first")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_members_work_with_two_gone() {
    let mut cluster = Cluster::start(5).await;
    let leader = cluster.leader().await;
    cluster.stop_seat(leader).await;
    cluster.stop_seat((leader + 1) % 5).await;
    let seat = (leader + 2) % 5;
    cluster.submit(seat, tenant("still")).await;
    cluster.agree().await;
    cluster.stop().await;
}

/// Each member is given what `of` makes for its name.
fn rotate(cluster: &Cluster, of: impl Fn(&str) -> tls::Credentials) {
    for seat in &cluster.seats {
        seat.tls.replace(&of(&seat.name), UnixTime::now()).expect("usable credentials");
    }
}

/// A connection that is new reaches every member, and each proves itself by what it was given.
async fn reach_anew(cluster: &Cluster) {
    for seat in 0..cluster.seats.len() {
        let from = &cluster.seats[(seat + 1) % cluster.seats.len()];
        let mut caller = Stranger::new(cluster, seat, from.tls.clone(), from.id.0);
        assert!(caller.is_known().await.is_ok(), "member {seat} is reached by a new connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_change_under_load_and_no_call_fails() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (end, ended) = tokio::sync::watch::channel(false);
    // Through every member, so that most calls are forwarded over the links whose keys change.
    let load: Vec<_> = (0..6)
        .map(|task| {
            let (replica, done, ended) = (cluster.replica(task % 3).clone(), done.clone(), ended.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !*ended.borrow() {
                    let reply = replica.submit(tenant(&format!("t{task}-{n}")), deadline()).await;
                    reply.expect("no call fails").result.expect("no call is refused");
                    n += 1;
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            })
        })
        .collect();
    let calls = || done.load(std::sync::atomic::Ordering::Relaxed);
    let (old, new) = (cluster.authority.clone(), tls::Authority::create(&cluster.name).unwrap());
    let both = format!("{}{}", old.cert, new.cert);
    let of = |authority: &tls::Authority, name: &str, trusted: &str| {
        let made = authority.issue("test", name).unwrap();
        tls::Credentials { authority: trusted.to_owned(), ..made }
    };
    let stages: [(&tls::Authority, &str); 4] = [(&old, &old.cert), (&old, &both), (&new, &both), (&new, &new.cert)];
    for (authority, trusted) in stages {
        rotate(&cluster, |name| of(authority, name, trusted));
        let before = calls();
        reach_anew(&cluster).await;
        eventually("calls go on", || (calls() > before + 300).then_some(())).await;
    }
    let mut late = Stranger::new(&cluster, 0, cluster.keys("n2", tls::Role::Server), 2);
    assert!(late.is_known().await.is_err(), "the old authority counts no more");
    end.send_replace(true);
    for task in load {
        task.await.expect("no call failed");
    }
    println!("{} calls while certificates and authorities changed", calls());
    cluster.stop().await;
}
