//! Changes of the group: leadership handed over, members in and out, snapshots for newcomers.

use neural_fabric::raft::{Error, MemberId, Role};
use nf_core::reason::Reason;

use crate::harness::{Cluster, deadline, eventually, tenant};

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
