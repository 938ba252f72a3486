//! Three members over real TLS: one log, one state, whoever is asked and whoever leads.

use std::time::{Duration, Instant};

use neural_fabric::raft::{Consistency, Error};
use nf_core::command::Answer;

use crate::harness::{Cluster, deadline, eventually, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_any_member_is_committed_on_all() {
    let mut cluster = Cluster::start(3).await;
    for seat in 0..3 {
        let reply = cluster.submit(seat, tenant(&format!("tenant-{seat}"))).await;
        assert_eq!(reply.result, Ok(Answer::Done));
        let view = cluster.replica(seat).read(Consistency::Stale, deadline()).await.unwrap();
        assert!(view.known_leader.is_some());
    }
    cluster.agree().await;
    let state = cluster.replica(0).applied().state;
    assert!((0..3).all(|i| state.tenants().values().any(|t| t.id.as_str() == format!("tenant-{i}"))));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linearizable_read_on_any_member_sees_every_answered_write() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..30 {
        let reply = cluster.submit(round % 3, tenant(&format!("t{round}"))).await;
        let reader = cluster.replica((round + 1) % 3);
        let view = reader.read(Consistency::Linearizable, deadline()).await.unwrap();
        assert!(view.index >= reply.index, "round {round}: read {} after {}", view.index, reply.index);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_share_entries() {
    let mut cluster = Cluster::start(3).await;
    let before = cluster.replica(0).status().last_log_index;
    let calls = (0..300).map(|i| {
        let replica = cluster.replica(i % 3).clone();
        tokio::spawn(async move { replica.submit(tenant(&format!("t{i}")), deadline()).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap().unwrap().result, Ok(Answer::Done));
    }
    cluster.agree().await;
    assert_eq!(cluster.replica(0).applied().state.tenants().len(), 300);
    let entries = cluster.replica(0).status().last_log_index - before;
    assert!(entries < 300, "{entries} entries for 300 calls");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_survive_the_loss_of_the_leader() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let survivor = cluster.replica((leader + 1) % 3).clone();
    let calling = tokio::spawn(async move {
        for i in 0..200 {
            let reply = survivor.submit(tenant(&format!("t{i}")), deadline()).await.unwrap();
            // The retry of a call that was done before its answer got lost finds its tenant there.
            assert!(reply.result.is_ok() || i > 0, "{:?}", reply.result);
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.stop_seat(leader).await;
    calling.await.unwrap();
    let new = cluster.leader().await;
    assert_ne!(new, leader);
    cluster.agree().await;
    assert_eq!(cluster.replica(new).applied().state.tenants().len(), 200);
    // It comes back and catches up.
    cluster.start_seat(leader).await;
    cluster.agree().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leader_is_replaced_soon() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.agree().await;
    let lost = Instant::now();
    cluster.stop_seat(leader).await;
    let stopping = lost.elapsed();
    cluster.leader().await;
    let took = lost.elapsed();
    println!("stopping took {stopping:?}, a new leader was there after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_calls_end_at_their_deadline() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.stop_seat((leader + 1) % 3).await;
    cluster.stop_seat((leader + 2) % 3).await;
    let begun = Instant::now();
    let limit = begun + Duration::from_secs(2);
    let result = cluster.replica(leader).submit(tenant("late"), limit).await;
    // It was written here, and may be committed once the others are back.
    assert!(matches!(result, Err(Error::Timeout)), "{result:?}");
    let result = cluster.replica(leader).read(Consistency::Linearizable, limit).await;
    assert!(result.is_err(), "a read without a quorum");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_reached_nobody_is_not_said_to_be_in_doubt() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let asked = (leader + 1) % 3;
    cluster.stop_seat(leader).await;
    cluster.stop_seat((leader + 2) % 3).await;
    // Whoever led may still be taken for the leader, and refuses connections.
    let result = cluster.replica(asked).submit(tenant("late"), Instant::now() + Duration::from_secs(2)).await;
    assert!(matches!(result, Err(Error::NoLeader { .. })), "{result:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_stops_and_starts_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3).await;
    for i in 0..20 {
        cluster.submit(i % 3, tenant(&format!("t{i}"))).await;
    }
    let hash = cluster.agree().await;
    for seat in 0..3 {
        cluster.stop_seat(seat).await;
    }
    for seat in 0..3 {
        cluster.start_seat(seat).await;
    }
    eventually("the state is back", || (cluster.replica(0).applied().state.hash() == hash).then_some(())).await;
    cluster.submit(1, tenant("after")).await;
    cluster.agree().await;
    cluster.stop().await;
}
