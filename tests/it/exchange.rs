//! Workers, leader loop and exchange on three real members: nodes are served by any
//! of them, and the loss of the leader stops nothing and loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use neural_fabric::agent::virtual_nodes::{self, VirtualNode};
use neural_fabric::exchange::{Address, Caller, Dial, Hub, Options, Plain};
use neural_fabric::{agent, controller, exchange};
use nf_core::id::{DeviceType, Incarnation, NodeName};
use nf_core::job::JobState;
use nf_core::resources::Gpus;
use nf_core::sharing::Sharing;
use nf_core::testing;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::harness::{Cluster, eventually};

/// Finds each member's node service by the member's name.
struct Ports(BTreeMap<String, String>);

impl Dial for Ports {
    fn channel(&self, to: &Address) -> Result<tonic::transport::Channel, String> {
        let peer = to.name.as_ref().and_then(|name| self.0.get(name)).unwrap_or(&to.peer);
        Plain.channel(&Address { name: None, peer: peer.clone() })
    }
}

/// What runs beside a member's replica.
struct Side {
    hub: Hub,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn sides(cluster: &Cluster) -> (Vec<Side>, Vec<String>) {
    let mut listeners = Vec::new();
    let mut ports = BTreeMap::new();
    for seat in &cluster.seats {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.insert(seat.name.clone(), listener.local_addr().unwrap().to_string());
        listeners.push(listener);
    }
    let addresses = ports.values().cloned().collect();
    let dial: Arc<dyn Dial> = Arc::new(Ports(ports));
    let side = |(seat, listener): (usize, tokio::net::TcpListener)| {
        let hub = Hub::new(cluster.replica(seat).clone(), Options { dial: dial.clone(), ..Options::default() });
        let routes = hub.serve(Arc::new(|_| Caller::Someone));
        let server = tonic::transport::Server::builder().add_routes(routes);
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        let leading = controller::run(hub.clone(), controller::Options::default());
        let tasks = vec![tokio::spawn(async move { serving.await.unwrap() }), tokio::spawn(leading)];
        Side { hub, tasks }
    };
    (listeners.into_iter().enumerate().map(side).collect(), addresses)
}

fn nodes(count: usize) -> Vec<VirtualNode> {
    let node = |i: usize| VirtualNode {
        name: NodeName::new(&format!("v{i:04}")).unwrap(),
        cpu_milli: 64_000,
        memory: 1 << 38,
        gpus: 8,
        device_type: Some(DeviceType::new("A100").unwrap()),
        sharing: Sharing::Simulated,
        numa_nodes: None,
    };
    (0..count).map(node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_nodes_on_a_real_group_run_every_job_through_the_loss_of_the_leader() {
    const NODES: usize = 300;
    const JOBS: usize = 400;
    let mut cluster = Cluster::start(3).await;
    let (mut sides, members) = sides(&cluster).await;
    let mut options = virtual_nodes::Options::new(members, Arc::new(Plain), Incarnation(1));
    options.ready_after = Duration::from_millis(10);
    let (stop, stopped) = watch::channel(false);
    let playing = tokio::spawn(async move { virtual_nodes::run(options, &nodes(NODES), stopped).await });
    let registered = |cluster: &Cluster, seat: usize| cluster.replica(seat).applied().state.nodes().len();
    eventually("all nodes are registered", || (registered(&cluster, 0) == NODES).then_some(())).await;

    let leader = cluster.leader().await;
    let survivor = (leader + 1) % 3;
    for i in 0..JOBS {
        if i == JOBS / 2 {
            cluster.stop_seat(leader).await;
            sides[leader].tasks.drain(..).for_each(|task| task.abort());
        }
        let job = testing::job_spec(&format!("t{}", i % 50), Gpus::Whole(1));
        cluster.submit(survivor, testing::schedule(&format!("r{i}"), job)).await;
    }
    eventually("every job runs", || {
        let state = cluster.replica(survivor).applied().state;
        let all = state.jobs().len() == JOBS;
        (all && state.jobs().values().all(|job| job.state() == JobState::Running)).then_some(())
    })
    .await;
    // Beats reach the new leader, by way of whichever member the nodes' process uses.
    let beat = exchange::Beat::bare(NodeName::new("v0000").unwrap(), Incarnation(1));
    let answer = sides[survivor].hub.beat(vec![beat]).await.unwrap();
    assert!(answer.lease_ms == 45_000 && answer.unknown.is_empty() && answer.superseded.is_empty());
    cluster.agree().await;
    let state = cluster.replica(survivor).applied().state;
    assert!(nf_core::invariants::check(&state).is_empty());
    stop.send_replace(true);
    assert_eq!(playing.await.unwrap(), Ok(agent::Outcome::Stopped));
    drop(sides);
    cluster.stop().await;
}
