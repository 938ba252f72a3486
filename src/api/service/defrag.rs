//! Defragmentation: what would move and what that wins, and the call that makes the
//! moves. Which replicas they are is decided in the core, on the leader; whether the
//! services keep their promises meanwhile, the gateways say.

use super::{Call, Service, freshness};
use crate::api::convert::answer::Freshness;
use crate::api::error::Failure;
use nf_core::command::{Answer, Mode};
use nf_core::defrag::{self, Plan, Step};
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use nf_core::state::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One replica that would move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DefragMove {
    pub tenant_id: String,
    pub request_id: String,
    pub replica: u16,
    pub from: String,
    pub to: String,
    /// GPUs that the next request can use then, and cannot now.
    pub gain: f64,
}

/// A plan of moves, or what was begun of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DefragBody {
    pub dry_run: bool,
    /// Moves that were begun; 0 in a dry run.
    pub begun: u32,
    /// What would move now, as the answer was written: those that win most first.
    pub moves: Vec<DefragMove>,
    /// Replicas that are on their way for this reason.
    pub under_way: u32,
    /// GPUs that are idle.
    pub idle: f64,
    /// How much of them the next request can use, by expectation over what is asked for.
    pub usable: f64,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

fn gpus(milli: i64) -> f64 {
    milli as f64 / 1000.0
}

impl DefragBody {
    fn new(state: &State, plan: Plan, read: Freshness) -> Self {
        let name = |no| state.node(no).map_or_else(String::new, |node| node.name.to_string());
        let told = |step: Step| DefragMove {
            tenant_id: step.tenant.to_string(),
            request_id: step.request.to_string(),
            replica: step.replica,
            from: name(step.from),
            to: name(step.to.alloc.node),
            gain: gpus(step.gain_milli),
        };
        Self {
            dry_run: true,
            begun: 0,
            under_way: plan.under_way as u32,
            idle: gpus(plan.idle_milli as i64),
            usable: gpus(plan.usable_milli),
            moves: plan.steps.into_iter().map(told).collect(),
            simulation: state.meta().mode == Mode::Simulation,
            read,
        }
    }
}

impl Service {
    /// Makes the moves that win most, or says which they would be.
    ///
    /// # Errors
    /// While a node is drained, or a service breaks its promise.
    pub async fn defrag(&self, call: &Call, dry_run: bool) -> Result<DefragBody, Failure> {
        let before = self.read(call).await?;
        let (state, read) = (before.now(), freshness(&before));
        let look = move || defrag::plan(&state).map(|plan| DefragBody::new(&state, plan, read));
        let planned = self.search(call, look).await??;
        if dry_run {
            return Ok(planned);
        }
        if let Some((tenant, model)) = self.panorama().await.in_breach() {
            let detail =
                format!("service {tenant}/{model} breaks its promise now (nf slo); nothing is moved meanwhile");
            return Err(Refusal::new(Reason::Conflict, detail).into());
        }
        let (answer, index) = self.commit(call, Intent::Defragment).await?;
        let begun = if let Answer::Count(begun) = answer { begun } else { 0 };
        Ok(DefragBody { dry_run: false, begun, read: Freshness { index, ..planned.read.clone() }, ..planned })
    }
}
