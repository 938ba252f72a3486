//! Beats by way of a follower, and what rides on them.

use super::*;
use crate::exchange::Vitals;

#[tokio::test]
async fn a_follower_passes_beats_on_and_one_confirmation_serves_many() {
    let leader = Memory::new();
    leader.run(testing::register("n1", testing::node_spec(1)));
    let (address, server) = serve(Hub::new(leader.clone(), Default::default()), Caller::Member).await;
    let follower = Memory::new();
    follower.lead(None);
    follower.leader_at(address);
    let hub = Hub::new(follower, Default::default());
    let beat = |name: &str, incarnation| Beat::bare(NodeName::new(name).unwrap(), Incarnation(incarnation));
    let calls = (0..200).map(|_| hub.beat(vec![beat("n1", 1)]));
    let answers: Vec<_> = futures::future::join_all(calls).await;
    assert!(answers.iter().all(|a| a.as_ref().is_ok_and(|a| a.term == 1 && a.unknown.is_empty())), "{answers:?}");
    assert!(leader.confirmations() <= 10, "{} rounds for 200 beats", leader.confirmations());
    let answer = hub.beat(vec![beat("n1", 0), beat("n2", 1)]).await.unwrap();
    assert_eq!((answer.superseded.len(), answer.unknown.len()), (1, 1));
    // Without a quorum there is no lease.
    leader.confirm(false);
    assert!(matches!(hub.beat(vec![beat("n1", 1)]).await, Err(Error::Unavailable(_))));
    server.abort();
}

#[tokio::test]
async fn how_gpus_do_is_known_to_the_leader_and_told_by_any_member() {
    let leader = Memory::new();
    leader.run(testing::register("n1", testing::node_spec(1)));
    let leading = Hub::new(leader.clone(), Default::default());
    let (address, server) = serve(leading.clone(), Caller::Member).await;
    let follower = Memory::new();
    follower.lead(None);
    follower.leader_at(address);
    let hub = Hub::new(follower, Default::default());
    let gpu = Vitals { uuid: "GPU-0000".into(), used: 3 << 30, celsius: Some(61), ..Vitals::default() };
    let beat = |incarnation, vitals| Beat {
        node: NodeName::new("n1").unwrap(),
        incarnation: Incarnation(incarnation),
        revision_seen: 0,
        told: vec![],
        vitals,
    };
    hub.beat(vec![beat(1, vec![gpu.clone()])]).await.unwrap();
    let before = leader.state();
    assert_eq!(hub.vitals().await, Ok(vec![(NODE, vec![gpu.clone()])]));
    assert_eq!(leading.vitals().await, hub.vitals().await);
    // Another start's word is none of this one's, and what is not said any more is not known.
    hub.beat(vec![beat(0, vec![])]).await.unwrap();
    assert_eq!(hub.vitals().await, Ok(vec![(NODE, vec![gpu])]));
    hub.beat(vec![beat(1, vec![])]).await.unwrap();
    assert_eq!(hub.vitals().await, Ok(vec![]));
    assert!(before.nodes().ptr_eq(leader.state().nodes()), "nothing of it is in the state");
    server.abort();
}
