//! Use cases about rollouts: begin one, say something to it, see how far it has come. The
//! new version's facts are read from the store as for a schedule call; the leader judges
//! them. It moves no replica.

use super::{Call, Service};
use crate::api::convert::answer::Freshness;
use crate::api::convert::rollout::Wanted;
use crate::api::error::Failure;
use nf_core::audit::Action;
use nf_core::command::Mode;
use nf_core::id::RequestId;
use nf_core::job::{JobSpec, Runtime};
use nf_core::model_budget::ModelBudget;
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use nf_core::rollout::{Next, Outlook, Turn};

/// A rollout, and how fresh the answer is.
pub struct Told {
    pub rollout: Box<Outlook>,
    pub simulation: bool,
    pub read: Freshness,
}

impl Service {
    /// How far the job's rollout has come, or how the last one ended.
    ///
    /// # Errors
    /// When there is no such job, or its version never changed.
    pub async fn rollout(&self, call: &Call, request: &RequestId) -> Result<Told, Failure> {
        let found = self.get(call, request).await?;
        let rollout = found.job.rollout.ok_or_else(|| never(request))?;
        Ok(Told { rollout, simulation: found.simulation, read: found.read })
    }

    /// Begins a rollout: to a version, or back to the one before.
    ///
    /// # Errors
    /// As for a schedule call of that version, or because the job can't change now.
    pub async fn start_rollout(&self, call: &Call, request: &RequestId, wanted: Wanted) -> Result<Told, Failure> {
        let (tenant, call) = &self.bound(call, request).await?;
        let found = self.get(call, request).await?;
        let model = found.job.model.clone();
        call.who.acts(Some(tenant.clone()))?;
        let rollback = wanted.version.is_none();
        let version = match (wanted.version, &found.job.rollout) {
            (Some(version), _) => version,
            (None, Some(last)) if &*last.status == "successful" => last.from.clone(),
            (None, Some(last)) if last.phase.is_some() => {
                let detail = format!("job {request} goes from {} to {} now; nf rollout revert", last.from, last.to);
                return Err(Refusal::field(Reason::Conflict, "request_id", detail).into());
            }
            (None, _) => return Err(never(request)),
        };
        let action = Some(if rollback { Action::ModelRollback } else { Action::RolloutStart });
        let wish = JobSpec { version: version.clone(), ..(*found.job.spec).clone() };
        let facts = self.facts_of(call, &wish, action).await?;
        if facts.is_none() && (self.mode(call).await? == Mode::Production || found.job.spec.manifest.is_some()) {
            let detail = format!("no store knows version {version} of model {model}; publish it (nf model publish)");
            return Err(Refusal::field(Reason::ModelNotFound, "model_version", detail).into());
        }
        let next = match facts {
            Some(facts) => Next {
                version,
                runtime: facts.runtime,
                manifest: Some(facts.manifest),
                evidence: facts.evidence,
                data_classes: facts.data_classes,
                self_limiting: facts.self_limiting,
                budget: facts.budget,
                approved_by: None,
                asked_by: None,
            },
            None => Next {
                version,
                runtime: Runtime::Simulated,
                manifest: None,
                evidence: None,
                data_classes: Vec::new(),
                self_limiting: false,
                budget: ModelBudget::default(),
                approved_by: None,
                asked_by: None,
            },
        };
        let (wish, strategy) = (next.spec(&wish), wanted.strategy);
        let (tenant, next) = (Some(tenant.clone()), Box::new(next));
        let begun = Intent::StartRollout { request: request.clone(), tenant, next, strategy, rollback };
        self.say(call, begun).await.map_err(|failure| self.stopped(call, action, &wish, failure))?;
        self.deploys.count(&found.job.tenant, &found.job.model);
        self.rollout(call, request).await
    }

    /// Pauses, resumes, promotes or reverts the open rollout.
    ///
    /// # Errors
    /// When there is none, or it does not take that turn now.
    pub async fn turn_rollout(&self, call: &Call, request: &RequestId, turn: Turn) -> Result<Told, Failure> {
        let (tenant, call) = &self.bound(call, request).await?;
        let tenant = Some(tenant.clone());
        self.say(call, Intent::TurnRollout { request: request.clone(), tenant, revision: None, turn }).await?;
        self.rollout(call, request).await
    }

    async fn say(&self, call: &Call, intent: Intent) -> Result<(), Failure> {
        let reply = self.submit(call, intent).await?;
        reply.result?;
        Ok(())
    }
}

fn never(request: &RequestId) -> Failure {
    let detail = format!("job {request} never changed its version; nf rollout start {request} VERSION does");
    Refusal::field(Reason::NotFound, "request_id", detail).into()
}
