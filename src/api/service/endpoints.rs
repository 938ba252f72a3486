//! Which replicas of a model take traffic: the whole set, and a feed of it that speaks
//! whenever it changes. Each message is the set as it is, so a client that missed one,
//! or comes back, has missed nothing. A replica is Draining here before its agent ends
//! it. It does not know SSE or gRPC.

use super::{Call, Service, freshness};
use crate::api::convert::answer::Freshness;
use crate::api::error::Failure;
use crate::raft::{Applied, Replica as Group};
use nf_core::command::Mode;
use nf_core::id::{Generation, ModelId, RequestId, TenantId};
use nf_core::job::{Allocation, Job, Move, Phase, Replica, Stage};
use nf_core::node::{NodeState, address};
use nf_core::state::State;
use nf_core::view;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use utoipa::ToSchema;

/// How long a feed is silent at most.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two looks at the state, so that a busy group costs a feed little.
const LOOK: Duration = Duration::from_millis(10);

/// One copy of a replica that has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointBody {
    pub tenant_id: String,
    pub model_id: String,
    pub model_version: String,
    pub request_id: String,
    pub replica: u16,
    /// Counts its launches; of two copies of a replica the one with the higher number is the newer.
    pub generation: u32,
    pub node: String,
    /// `host:port`.
    pub address: String,
    /// Scheduled, Downloading, Verifying, Starting, Ready, NotReady, Draining or Unknown (its node is silent).
    pub state: String,
    /// Whether to send it requests. A silent node's replicas may serve on, so they keep theirs.
    pub traffic: bool,
}

/// The copies of the replicas that were asked for, by job and replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointList {
    pub items: Vec<EndpointBody>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

/// Whose endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub tenant: Option<TenantId>,
    pub model: Option<ModelId>,
    pub request: Option<RequestId>,
}

impl Wanted {
    fn matches(&self, job: &Job) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == job.spec.tenant)
            && self.model.as_ref().is_none_or(|model| *model == job.spec.model)
    }

    /// The endpoints in a state.
    pub fn look(&self, state: &State) -> Vec<EndpointBody> {
        let mut out = Vec::new();
        let mut add = |job: &Job| out.extend(of_job(state, job));
        match &self.request {
            Some(request) => state.jobs_named(request).filter(|job| self.matches(job)).for_each(|job| add(job)),
            None => state.jobs().values().filter(|job| self.matches(job)).for_each(|job| add(job)),
        }
        out
    }
}

/// All of a job.
pub(super) fn of_job(state: &State, job: &Job) -> Vec<EndpointBody> {
    let mut out = Vec::new();
    // Files that wait on a node answer nobody.
    let serving = job.replicas.iter().enumerate().filter(|_| !job.spec.is_prefetch());
    for (no, replica) in serving {
        of_replica(state, job, no as u16, replica, &mut out);
    }
    out
}

/// At most two: the replica itself, and its other copy while it moves.
fn of_replica(state: &State, job: &Job, no: u16, replica: &Replica, out: &mut Vec<EndpointBody>) {
    let mut add = |alloc: &Allocation, generation: u32, stage: Option<Stage>, may_serve: bool| {
        let Some((node, port)) = state.node(alloc.node).zip(alloc.port) else { return };
        let silent = matches!(node.state, NodeState::Unknown | NodeState::Down);
        let name = match stage {
            None => "Draining",
            Some(_) if silent => "Unknown",
            Some(stage) => view::stage_name(stage),
        };
        out.push(EndpointBody {
            tenant_id: job.spec.tenant.to_string(),
            model_id: job.spec.model.to_string(),
            model_version: job.spec_of(replica.revision_of(Generation(generation))).version.to_string(),
            request_id: job.request.to_string(),
            replica: no,
            generation,
            node: node.name.to_string(),
            address: address(&node.spec.host, port),
            state: name.to_owned(),
            traffic: may_serve && stage == Some(Stage::Ready) && node.state != NodeState::Down,
        });
    };
    match &replica.phase {
        Phase::Held { alloc, stage } => add(alloc, replica.generation.0, Some(*stage), true),
        Phase::Stopping { alloc, .. } => add(alloc, replica.generation.0, None, false),
        _ => {}
    }
    match &replica.moving {
        Some(Move::Coming { generation, alloc, stage, .. }) => add(alloc, generation.0, Some(*stage), false),
        Some(Move::Going { generation, alloc, .. }) => add(alloc, generation.0, None, false),
        _ => {}
    }
}

/// What a feed says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The whole set, as of this applied index.
    Endpoints { index: u64, items: Vec<EndpointBody> },
    /// It is still the same at this index, as far as this member knows: it has had no word of its group for so many
    /// milliseconds.
    Heartbeat { index: u64, stale_ms: u64 },
}

/// A stream of sets for one watcher.
pub struct Feed {
    group: Group,
    wanted: Wanted,
    watch: watch::Receiver<Applied>,
    /// What was said last, and the state it was read from.
    last: Option<(Vec<EndpointBody>, State)>,
    looked: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Service {
    /// The endpoints now.
    pub async fn endpoints(&self, call: &Call, wanted: Wanted) -> Result<EndpointList, Failure> {
        let view = self.read(call).await?;
        let make = move || EndpointList {
            items: wanted.look(&view.state),
            simulation: view.state.meta().mode == Mode::Simulation,
            read: freshness(&view),
        };
        super::off_thread(make).await
    }

    /// The endpoints now, and again whenever they change.
    pub fn watch_endpoints(&self, wanted: Wanted) -> Result<Feed, Failure> {
        let permit = self.open_stream()?;
        Ok(Feed::new(&self.replica, wanted, permit))
    }
}

impl Feed {
    fn new(group: &Group, wanted: Wanted, permit: OwnedSemaphorePermit) -> Self {
        let watch = group.watch();
        Self { group: group.clone(), wanted, watch, last: None, looked: Instant::now(), _permit: permit }
    }

    /// The next set or heartbeat; None when the member shuts down.
    pub async fn next(&mut self) -> Option<Item> {
        let silent_until = Instant::now() + HEARTBEAT;
        loop {
            let (index, state) = {
                let applied = self.watch.borrow_and_update();
                (applied.index, applied.state.clone())
            };
            if let Some(items) = self.news((*state).clone()).await {
                return Some(Item::Endpoints { index, items });
            }
            match tokio::time::timeout_at(silent_until, self.watch.changed()).await {
                // What changes in the meantime is seen at the next look.
                Ok(Ok(())) => tokio::time::sleep_until(self.looked + LOOK).await,
                Ok(Err(_)) => return None,
                Err(_) => return Some(Item::Heartbeat { index, stale_ms: self.group.status().stale_ms() }),
            }
        }
    }

    /// The set, if it is not what was said last.
    async fn news(&mut self, state: State) -> Option<Vec<EndpointBody>> {
        let same = |before: &State| before.jobs().ptr_eq(state.jobs()) && before.nodes().ptr_eq(state.nodes());
        if self.last.as_ref().is_some_and(|(_, before)| same(before)) {
            return None;
        }
        self.looked = Instant::now();
        let (wanted, copy) = (self.wanted.clone(), state.clone());
        let items = super::off_thread(move || wanted.look(&copy)).await.ok()?;
        let said = self.last.as_ref().is_some_and(|(said, _)| *said == items);
        self.last = Some((items.clone(), state));
        (!said).then_some(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::command::{Report, ReportKind};
    use nf_core::id::{Generation, Incarnation, JobNo, NodeName};
    use nf_core::node::{Cordon, Drain};
    use nf_core::plan::Intent;
    use nf_core::resources::Gpus;
    use nf_core::testing::{job_spec, node_spec, register, run, schedule};

    fn ready(state: &mut State, node: &str, generation: u32) {
        let kind = ReportKind::Stage(Stage::Ready);
        let reports = vec![Report { job: JobNo(1), replica: 0, generation: Generation(generation), kind }];
        let node = NodeName::new(node).unwrap();
        run(state, Intent::Reports { node, incarnation: Incarnation(1), reports });
    }

    /// State and traffic of each endpoint.
    fn told(state: &State) -> Vec<(String, String, bool)> {
        let all = Wanted::default().look(state);
        all.into_iter().map(|e| (e.node, e.state, e.traffic)).collect()
    }

    fn line(node: &str, state: &str, traffic: bool) -> (String, String, bool) {
        (node.into(), state.into(), traffic)
    }

    #[test]
    fn one_copy_takes_traffic_at_any_time_of_a_move() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(1)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        assert_eq!(told(&state), [line("n1", "Scheduled", false)]);
        ready(&mut state, "n1", 1);
        run(&mut state, register("n2", node_spec(1)));
        let drain = Some(Drain { within_ms: None, force: false });
        let cordon = Some(Cordon { by: "ann".into(), reason: "fans".into(), at_ms: 0, drain });
        run(&mut state, Intent::Cordon { node: NodeName::new("n1").unwrap(), cordon });
        run(&mut state, Intent::Moves);
        assert_eq!(told(&state), [line("n1", "Ready", true), line("n2", "Scheduled", false)]);
        ready(&mut state, "n2", 2);
        assert_eq!(told(&state), [line("n2", "Ready", true), line("n1", "Draining", false)]);
        let other = Wanted { tenant: TenantId::new("t2").ok(), ..Wanted::default() };
        assert!(other.look(&state).is_empty());
    }

    #[test]
    fn a_silent_node_keeps_its_traffic_until_it_is_given_up() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(1)));
        run(&mut state, schedule("r1", job_spec("t1", Gpus::Whole(1))));
        ready(&mut state, "n1", 1);
        let mut to = |to| {
            run(&mut state, Intent::NodeStates(vec![(nf_core::id::NodeNo(1), Incarnation(1), to)]));
            told(&state)
        };
        assert_eq!(to(NodeState::Unknown), [line("n1", "Unknown", true)]);
        assert_eq!(to(NodeState::Down), []);
    }
}
