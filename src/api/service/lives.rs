//! Use case: what a job's replicas have been through, as the agents of their nodes tell it
//! now. An agent that does not answer is named; the job itself says what the group knows.

use super::{Call, Service};
use crate::api::LogSource;
use crate::api::convert::answer::time;
use crate::api::error::Failure;
use crate::exchange::LogQuery;
use crate::exchange::life::{self, Life, MAX_BYTES};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use nf_core::id::{NodeName, RequestId};
use nf_core::reason::Reason;
use nf_core::reconcile::ReplicaId;
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Agents that are asked at a time.
const ASKED: usize = 16;
/// Replicas of one job that are asked about; the first ones.
const REPLICAS: usize = 256;

/// What a job's replicas have been through on the nodes where they are, or were last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LifeList {
    pub items: Vec<LifeBody>,
    /// Who could not be asked.
    pub silent: Vec<SilentBody>,
}

/// One launch of a replica. Times are by its node's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LifeBody {
    pub replica: u16,
    pub generation: u32,
    pub node: String,
    /// Each step with when it was taken, oldest first.
    pub steps: Vec<StepBody>,
    /// What must be so before it can be started, such as a device that is not free yet.
    pub waits: Option<String>,
    /// The deadlines of a stop that has begun.
    pub stop: Option<StopBody>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StepBody {
    /// Scheduled, Downloading, Verifying, Starting, Ready, NotReady, Draining, Stopped or Failed.
    pub status: String,
    pub at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// When a replica that stops is told to end, and when it is killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StopBody {
    pub since: String,
    /// TERM: by then at the latest.
    pub term_at: String,
    pub kill_at: String,
    /// Seconds from now; 0 when it has passed.
    pub term_in_s: u64,
    pub kill_in_s: u64,
}

/// A replica whose node's agent did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SilentBody {
    pub replica: u16,
    pub node: String,
    pub why: String,
}

impl LifeBody {
    fn new(replica: u16, node: &NodeName, life: Life, now_ms: u64) -> Self {
        let seconds = |until_ms: u64| until_ms.saturating_sub(now_ms).div_ceil(1_000);
        let stop = life.stop.map(|stop| StopBody {
            since: time(stop.since_ms),
            term_at: time(stop.term_ms),
            kill_at: time(stop.kill_ms),
            term_in_s: seconds(stop.term_ms),
            kill_in_s: seconds(stop.kill_ms),
        });
        let step = |step: life::Step| StepBody { status: step.status, at: time(step.at_ms), why: step.why };
        Self {
            replica,
            generation: life.generation,
            node: node.to_string(),
            steps: life.steps.into_iter().map(step).collect(),
            waits: life.waits,
            stop,
        }
    }
}

impl Service {
    /// What the job's replicas have been through where they are now; of one that has no place, where it was last.
    pub async fn lives(&self, call: &Call, request: &RequestId) -> Result<LifeList, Failure> {
        let found = self.get(call, request).await?;
        let Some(source) = &self.logs else {
            return Err(Failure::new(Reason::NotSupported, "this process asks no agents; ask a member"));
        };
        let places = found.job.replicas.iter().take(REPLICAS).flat_map(|replica| {
            let other = replica.other.as_ref().and_then(|copy| copy.place.as_ref());
            let nodes = replica.place.iter().chain(other).map(|place| &place.node).chain(&replica.last_node);
            nodes.map(|node| (replica.no, node.clone()))
        });
        let id = |replica| ReplicaId { job: found.job.no, replica };
        let asked: Vec<BoxFuture<'static, Told>> =
            places.map(|(replica, node)| ask(source.clone(), request.clone(), id(replica), node).boxed()).collect();
        let answers: Vec<Told> = futures::stream::iter(asked).buffered(ASKED).collect().await;
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        let mut list = LifeList { items: Vec::new(), silent: Vec::new() };
        for (replica, node, told) in answers {
            match told {
                Ok(lives) => {
                    list.items.extend(lives.into_iter().map(|life| LifeBody::new(replica, &node, life, now_ms)))
                }
                Err(why) => list.silent.push(SilentBody { replica, node: node.to_string(), why }),
            }
        }
        Ok(list)
    }
}

/// Of which replica, on which node, and what was said.
type Told = (u16, NodeName, Result<Vec<Life>, String>);

async fn ask(source: LogSource, request: RequestId, id: ReplicaId, node: NodeName) -> Told {
    let query = LogQuery { node: node.clone(), request, id, follow: false, tail: 0, life: true };
    let told = tokio::time::timeout(ANSWER, read(source, query)).await;
    (id.replica, node, told.unwrap_or_else(|_| Err("its agent did not answer in time".to_owned())))
}

async fn read(source: LogSource, query: LogQuery) -> Result<Vec<Life>, String> {
    let (mut pieces, mut bytes) = (source(query), Vec::new());
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > MAX_BYTES {
            return Err(format!("its agent said more than {MAX_BYTES} bytes"));
        }
    }
    life::decode(&bytes).map_err(|error| error.to_string())
}
