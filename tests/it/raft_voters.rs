//! Who has a say and who must not: voters that change while some are gone, members that lost their
//! data, whose clock is wrong, or whose state went another way.

use std::sync::atomic::Ordering;
use std::time::Instant;

use neural_fabric::raft::{Error, MemberId};
use neural_fabric::storage::fatal::Fatal;
use neural_fabric::storage::state_db::StateDb;
use neural_fabric::storage::tables::{Change, Tables};
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use nf_core::rows::{RowChange, Table};
use nf_core::state::State;
use nf_core::testing;

use crate::harness::{Cluster, WIPED, deadline, eventually, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn the_voters_change_only_while_most_of_the_new_ones_answer() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (dead, healthy) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop_seat(dead).await;
    let ids = [cluster.seats[dead].id, cluster.seats[healthy].id];
    // The healthy one away, and the two that are left could never agree again.
    let refused = cluster.replica(leader).remove(ids[1], deadline()).await;
    assert!(matches!(&refused, Err(Error::Refused(r)) if r.reason == Reason::NotCaughtUp), "{refused:?}");
    cluster.submit(leader, tenant("still-works")).await;
    // Nor does a learner get a vote that has died, however near it was.
    let seat = cluster.add_seat();
    cluster.start_seat(seat).await;
    let (id, name, peer) = cluster.member(seat);
    cluster.replica(leader).add_learner(id, name, peer, deadline()).await.unwrap();
    cluster.agree().await;
    cluster.stop_seat(seat).await;
    let refused = cluster.replica(leader).promote(id, deadline()).await;
    assert!(matches!(&refused, Err(Error::Refused(r)) if r.reason == Reason::NotCaughtUp), "{refused:?}");
    cluster.start_seat(seat).await;
    cluster.replica(leader).promote(id, deadline()).await.unwrap();
    // The dead one may go: it is no part of the majority.
    cluster.replica(leader).remove(ids[0], deadline()).await.unwrap();
    cluster.submit(leader, tenant("without-the-dead")).await;
    cluster.stop().await;
}

/// Begins to give `seat` a vote, and lets go as soon as old and new voters decide together.
async fn half_promote(cluster: &Cluster, leader: usize, id: MemberId) {
    let replica = cluster.replica(leader).clone();
    let promoting = tokio::spawn({
        let replica = replica.clone();
        async move { replica.promote(id, deadline()).await }
    });
    while !replica.status().electorate.is_joint() && !promoting.is_finished() {
        tokio::task::yield_now().await;
    }
    promoting.abort();
}

async fn voters_decide_alone(cluster: &Cluster) {
    eventually("no change of the voters is open", || {
        cluster.running().all(|replica| !replica.status().electorate.is_joint()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_voters_goes_on_when_its_caller_is_gone() {
    let mut cluster = Cluster::start(1).await;
    for _ in 0..4 {
        let seat = cluster.add_seat();
        cluster.start_seat(seat).await;
        let (id, name, peer) = cluster.member(seat);
        cluster.replica(0).add_learner(id, name, peer, deadline()).await.unwrap();
        half_promote(&cluster, 0, id).await;
        // Again, until it says that it is done: then it is.
        cluster.replica(0).promote(id, deadline()).await.unwrap();
        assert!(!cluster.replica(0).status().electorate.is_joint(), "{id:?} decides alone with the others");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_voters_is_ended_by_the_next_leader() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let seat = cluster.add_seat();
        cluster.start_seat(seat).await;
        let (id, name, peer) = cluster.member(seat);
        let leader = cluster.leader().await;
        cluster.replica(leader).add_learner(id, name, peer, deadline()).await.unwrap();
        cluster.agree().await;
        half_promote(&cluster, leader, id).await;
        cluster.stop_seat(leader).await;
        let next = cluster.leader().await;
        cluster.submit(next, tenant(&format!("t{round}"))).await;
        voters_decide_alone(&cluster).await;
        cluster.start_seat(leader).await;
        cluster.agree().await;
    }
    cluster.stop().await;
}

/// The others' syncs commit what it is asked, so without that it would lead on and keep what its disk has yet to take.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_hands_leadership_over_and_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let term = cluster.replica(leader).status().term;
    cluster.seats[leader].disk_hangs.store(true, Ordering::Relaxed);
    cluster.submit(others[0], tenant("while-it-hangs")).await;
    eventually("another one leads", || {
        others.iter().any(|seat| cluster.replica(*seat).leading().borrow().is_some_and(|now| now > term)).then_some(())
    })
    .await;
    cluster.submit(others[0], tenant("without-it")).await;
    assert!(cluster.fatal.lock().unwrap().is_empty(), "it is not given up");
    cluster.seats[leader].disk_hangs.store(false, Ordering::Relaxed);
    cluster.agree().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_data_elects_nobody() {
    let mut cluster = Cluster::start(3).await;
    cluster.introduced().await;
    // Acknowledged by the second and the third alone; then the power goes, and the third's disk with it.
    cluster.stop_seat(0).await;
    cluster.submit(1, tenant("acknowledged")).await;
    cluster.stop_seat(1).await;
    cluster.stop_seat(2).await;
    cluster.wipe_seat(2);
    cluster.start_seat(2).await;
    cluster.start_seat(0).await;
    eventually("it sees that it had data, or has elected somebody", || {
        let refused = cluster.fatal.lock().unwrap().iter().any(|text| text == WIPED);
        (refused || cluster.running().any(|replica| replica.leading().borrow().is_some())).then_some(())
    })
    .await;
    assert!(cluster.running().all(|replica| replica.leading().borrow().is_none()), "the emptied member elected one");
    // The product ends here; see NF_DATA_DIR in daemon::wiped.
    cluster.stop_seat(2).await;
    cluster.start_seat(1).await;
    cluster.submit(0, tenant("later")).await;
    cluster.agree().await;
    let state = cluster.replica(0).applied().state;
    let known = |name: &str| state.tenants().values().any(|tenant| tenant.id.as_str() == name);
    assert!(known("acknowledged") && known("later"));
    cluster.fatal.lock().unwrap().clear();
    cluster.stop().await;
}

/// Its leader lives, so nobody asks it for its vote: what it is sent must not make it a voter again.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_data_takes_none_from_a_leader_that_lives() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.introduced().await;
    let wiped = (leader + 1) % 3;
    cluster.stop_seat(wiped).await;
    cluster.wipe_seat(wiped);
    cluster.start_seat(wiped).await;
    eventually("it sees that it had data", || {
        cluster.fatal.lock().unwrap().iter().any(|text| text == WIPED).then_some(())
    })
    .await;
    assert_eq!(cluster.replica(wiped).status().last_log_index, 0, "it has taken nothing");
    cluster.stop_seat(wiped).await;
    cluster.fatal.lock().unwrap().clear();
    cluster.submit(leader, tenant("the-others-go-on")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_wrong_clock_moves_no_time_and_goes() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let minutes: i64 = 20 * 60_000;
    // Far ahead, or far behind: log time goes on as it did.
    for (round, skew) in [minutes, -minutes].into_iter().enumerate() {
        let leader = if round == 0 { leader } else { cluster.leader().await };
        let stamp = |cluster: &Cluster| cluster.replica(leader).applied().state.meta().now_ms;
        let (before, began) = (stamp(&cluster), Instant::now());
        cluster.seats[leader].skew_ms.store(skew, Ordering::Relaxed);
        cluster.submit(leader, tenant(&format!("t{round}"))).await;
        let (grown, passed) = (stamp(&cluster) - before, began.elapsed().as_millis() as u64);
        assert!(grown < 2 * passed + 5_000, "log time grew by {grown} ms in {passed}");
        let next = eventually("somebody with a right clock leads", || {
            let leads = |seat: &usize| cluster.replica(*seat).leading().borrow().is_some();
            (0..3).find(|seat| *seat != leader && leads(seat))
        })
        .await;
        cluster.submit(next, tenant(&format!("n{round}"))).await;
        let (grown, passed) = (stamp(&cluster).max(before) - before, began.elapsed().as_millis() as u64);
        assert!(grown < 2 * passed + 5_000, "log time grew by {grown} ms in {passed}");
        cluster.seats[leader].skew_ms.store(0, Ordering::Relaxed);
    }
    cluster.stop().await;
}

/// Stops one member, changes the state on its disk in a way that its own sums do not tell, and starts it again.
async fn change_on_disk(cluster: &mut Cluster, seat: usize, change: impl Fn(&mut State)) {
    cluster.stop_seat(seat).await;
    {
        let rows = StateDb::open(&cluster.dir(seat), false, Fatal::abort()).unwrap();
        let live = rows.rows(&|table| Table::LIVE.iter().any(|live| *live as u8 == table)).unwrap();
        let table = |number: u8| *Table::ALL.iter().find(|table| **table as u8 == number).unwrap();
        let mut state = State::from_rows(live.into_iter().map(|row| (table(row.table), row.key, row.value))).unwrap();
        change(&mut state);
        let change = |row: RowChange| Change { table: row.table as u8, key: row.key, value: row.value };
        let position = rows.position().unwrap().unwrap();
        rows.commit(state.take_changes().into_iter().map(change).collect(), position).unwrap();
        rows.flush().unwrap();
    }
    cluster.start_seat(seat).await;
}

/// One member goes another way; the others, and it itself, find that within seconds. `next`: what shows it.
async fn goes_astray(change: impl Fn(&mut State), next: Option<Intent>) {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let astray = (leader + 1) % 3;
    cluster.submit(leader, testing::by("ada", tenant("t"))).await;
    cluster.agree().await;
    change_on_disk(&mut cluster, astray, change).await;
    let began = Instant::now();
    if let Some(next) = next {
        cluster.submit(leader, next).await;
    }
    eventually("the one that went astray stops", || {
        let fatal = cluster.fatal.lock().unwrap();
        fatal.iter().any(|reason| reason.contains("not the one that most others have")).then_some(())
    })
    .await;
    let id = cluster.seats[astray].id;
    eventually("the others say which one it is", || {
        let differs = cluster.differs.lock().unwrap();
        let by = |seat: usize| differs.contains(&(cluster.seats[seat].id, id));
        (by(leader) && by((leader + 2) % 3)).then_some(())
    })
    .await;
    // Pings are two seconds apart; a loaded machine has as long again.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    println!("found after {:?}", began.elapsed());
    cluster.fatal.lock().unwrap().clear();
    for seat in 0..3 {
        cluster.stop_seat(seat).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_state_is_another_than_the_others_stops() {
    goes_astray(testing::lead_astray, Some(tenant("next"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_one_members_trail_is_found_within_seconds_by_all_three() {
    // Nobody asks for anything: what is told with pings is enough.
    goes_astray(testing::fork_trail, None).await;
}
