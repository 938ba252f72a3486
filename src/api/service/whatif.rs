//! What more nodes would change for the jobs that wait. It commits nothing; the passes
//! over the queue are the leader's own, on a copy of the state.

use super::{Call, Service, freshness};
use crate::api::convert::answer::Freshness;
use crate::api::convert::node::Registration;
use crate::api::error::Failure;
use nf_core::command::Mode;
use nf_core::id::NodeName;
use nf_core::reason::Refusal;
use nf_core::whatif::{self, LetIn, WhatIf};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A job that would get places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetInBody {
    pub tenant_id: String,
    pub request_id: String,
    /// Replicas that would have a place and have none now.
    pub replicas: u16,
    /// Replicas that would still wait.
    pub waiting: u16,
    pub nodes: Vec<String>,
}

/// What the nodes would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhatIfBody {
    /// Jobs that wait now.
    pub waiting: u32,
    /// Of these, how many would get a place.
    pub would_start: u32,
    /// And how many would wait all the same.
    pub would_wait: u32,
    /// The first thousand that would get a place.
    pub jobs: Vec<LetInBody>,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl From<LetIn> for LetInBody {
    fn from(job: LetIn) -> Self {
        Self {
            tenant_id: job.tenant.to_string(),
            request_id: job.request.to_string(),
            replicas: job.replicas,
            waiting: job.waiting,
            nodes: job.nodes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Service {
    /// Adds nodes in thought, so many of each kind.
    ///
    /// # Errors
    /// When they are too many, or not such as a group takes.
    pub async fn what_if(&self, call: &Call, kinds: Vec<(u16, Registration)>) -> Result<WhatIfBody, Failure> {
        let view = self.read(call).await?;
        let (state, read) = (view.now(), freshness(&view));
        let look = move || -> Result<WhatIf, Refusal> {
            let mut nodes = Vec::new();
            for (count, kind) in &kinds {
                for _ in 0..*count {
                    let name = format!("added-{}", nodes.len() + 1);
                    let name = NodeName::new(&name).map_err(|e| Refusal::invalid("nodes", e.to_string()))?;
                    let spec = kind.spec(&name, "127.0.0.1", None);
                    nodes.push((name, spec));
                }
            }
            whatif::with_nodes(&state, nodes)
        };
        let seen = self.search(call, look).await??;
        Ok(WhatIfBody {
            waiting: seen.waiting,
            would_start: seen.would_start,
            would_wait: seen.would_wait,
            jobs: seen.let_in.into_iter().map(LetInBody::from).collect(),
            simulation: view.state.meta().mode == Mode::Simulation,
            read,
        })
    }
}
