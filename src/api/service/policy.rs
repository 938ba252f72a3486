//! Use cases about the placement policy: read it, set it. It does not know what a
//! policy does to a decision; `nf_core::placement` does.

use super::{Call, Service, freshness};
use crate::api::convert::answer::{Freshness, whole};
use crate::api::error::Failure;
use nf_core::command::Mode;
use nf_core::id::Digest16;
use nf_core::placement::Chosen;
use nf_core::placement::hindsight::{self, Outcome};
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use nf_core::{etag, state::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The placement policy, in the form in which it is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyBody {
    /// `fragmentation`, `best-fit`, `spread`, `cost`, `latency` or `random`.
    pub policy: String,
    pub weights: WeightsBody,
    pub preemption: PreemptionBody,
    /// Raised whenever the policy is set to another.
    pub version: u64,
    /// For If-Match.
    pub etag: String,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

/// What one point of each term of a score counts, 0 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WeightsBody {
    pub fragmentation: u32,
    pub topology: u32,
    pub cost: u32,
}

/// When a job that said `preemptible` gives way to one of higher priority.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PreemptionBody {
    pub enabled: bool,
    /// Seconds for which a replica keeps its place before it may have to give way.
    pub min_run: f64,
    /// Seconds for which a job waits before it makes others give way.
    pub delay: f64,
    /// Seconds that a program which has to go may ask for to save its state.
    pub max_grace: f64,
}

impl PolicyBody {
    fn new(state: &State, read: Freshness) -> Self {
        let chosen = state.meta().placement;
        Self::of(state, chosen, read)
    }

    fn of(state: &State, chosen: Chosen, read: Freshness) -> Self {
        let Chosen { policy, weights, preemption } = chosen;
        Self {
            policy: policy.name().to_owned(),
            weights: WeightsBody {
                fragmentation: weights.fragmentation,
                topology: weights.topology,
                cost: weights.cost,
            },
            preemption: PreemptionBody {
                enabled: preemption.enabled,
                min_run: whole(preemption.min_run_ms),
                delay: whole(preemption.delay_ms),
                max_grace: whole(preemption.max_grace_ms.into()),
            },
            version: state.meta().placement_version,
            etag: etag::placement(state).to_string(),
            simulation: state.meta().mode == Mode::Simulation,
            read,
        }
    }
}

/// What one policy would have left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutcomeBody {
    pub policy: String,
    /// Replicas that would have found no place.
    pub unplaced: u32,
    /// GPUs that would be held.
    pub allocated: f64,
    /// GPUs that would be idle.
    pub idle: f64,
    /// How much of them the next request could use, by expectation over what is asked for.
    pub usable: f64,
    /// Nodes on which nothing would run.
    pub empty_nodes: u32,
}

impl OutcomeBody {
    fn new(policy: &str, outcome: Outcome) -> Self {
        Self {
            policy: policy.to_owned(),
            unplaced: outcome.unplaced,
            allocated: outcome.allocated_milli as f64 / 1000.0,
            idle: outcome.idle_milli as f64 / 1000.0,
            usable: outcome.usable_milli as f64 / 1000.0,
            empty_nodes: outcome.empty_nodes,
        }
    }
}

/// The last day's placements made again, by the policy in force and by another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TriedBody {
    /// Placements of the last day that still hold: they are what was made again.
    pub placements: u32,
    /// Of these, how many the other policy puts on another node.
    pub changed: u32,
    pub now: OutcomeBody,
    pub would_be: OutcomeBody,
    pub simulation: bool,
    #[serde(flatten)]
    pub read: Freshness,
}

impl Service {
    /// What the policy would have made of the last day; commits nothing.
    pub async fn try_placement_policy(&self, call: &Call, chosen: Chosen) -> Result<TriedBody, Failure> {
        let view = self.read(call).await?;
        let (state, read) = (view.now(), freshness(&view));
        let seen = self.search(call, move || hindsight::compare(&state, chosen)).await?;
        let meta = view.state.meta();
        Ok(TriedBody {
            placements: seen.placements,
            changed: seen.changed,
            now: OutcomeBody::new(meta.placement.policy.name(), seen.now),
            would_be: OutcomeBody::new(chosen.policy.name(), seen.then),
            simulation: meta.mode == Mode::Simulation,
            read,
        })
    }

    pub async fn placement_policy(&self, call: &Call) -> Result<PolicyBody, Failure> {
        let view = self.read(call).await?;
        Ok(PolicyBody::new(&view.state, freshness(&view)))
    }

    /// The policy as it would be; commits nothing.
    pub async fn would_be_placement_policy(&self, call: &Call, chosen: Chosen) -> Result<PolicyBody, Failure> {
        let view = self.read(call).await?;
        Ok(PolicyBody::of(&view.state, chosen, freshness(&view)))
    }

    /// `seen`: only if the policy is still that one.
    pub async fn set_placement_policy(
        &self,
        call: &Call,
        chosen: Chosen,
        seen: Option<Digest16>,
    ) -> Result<PolicyBody, Failure> {
        let (_, index) = self.commit(call, Intent::SetPlacement { chosen, seen }).await?;
        self.applied_past(index.saturating_sub(1), call.deadline).await;
        let applied = self.replica.applied();
        if applied.index < index {
            return Err(Failure::new(Reason::Timeout, "the policy is set; this member has not seen it yet"));
        }
        Ok(PolicyBody::new(&applied.state, Freshness { index: applied.index, ..Freshness::default() }))
    }
}
