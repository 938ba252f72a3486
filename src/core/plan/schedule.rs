//! What becomes of a schedule call: whether the job is let in, and where it goes now.

use super::draft::{Draft, Victims, binds_victims, draft, drafted};
use super::{Planned, Queueing};
use crate::approval;
use crate::audit::Actor;
use crate::command::{Command, Submission};
use crate::id::Digest16;
use crate::job::JobSpec;
use crate::reason::{Blocker, Reason, Refusal};
use crate::state::State;
use crate::{consent, disruption, floor, model_budget, quarantine};
use std::sync::Arc;

/// The job as it is let in: who approved it is named.
pub(super) fn admitted(state: &State, spec: &Arc<JobSpec>, actor: Option<&Actor>) -> Result<Arc<JobSpec>, Refusal> {
    consent::judge(state, spec)?;
    floor::judge(state, spec)?;
    quarantine::judge(state, spec)?;
    model_budget::judge(spec)?;
    disruption::judge(spec, &state.meta().placement.preemption)?;
    let approved = approval::judge_for(state, spec, actor)?;
    let mut spec = spec.clone();
    if approved.is_some() {
        let named = Arc::make_mut(&mut spec);
        named.approved_by = approved;
        named.asked_by = actor.map(Actor::person);
    }
    Ok(spec)
}

/// Refuses when planning has come out otherwise than the caller has seen.
pub(super) fn same_plan(draft: &Draft, seen: Option<Digest16>) -> Result<(), Refusal> {
    match seen.filter(|seen| draft.digest() != *seen) {
        None => Ok(()),
        Some(seen) => {
            let detail = format!("planning again gives {}, not {seen}; run nf plan again", draft.digest());
            Err(Refusal::field(Reason::PlanChanged, "check_plan", detail))
        }
    }
}

pub(super) fn schedule(
    state: &State,
    submission: &Submission,
    queueing: Queueing,
    check: Option<Digest16>,
    actor: Option<&Actor>,
) -> Result<Planned, Refusal> {
    // A retry: apply answers with the job that the first one made, or with a conflict.
    if state.request(&submission.spec.tenant, &submission.request).is_some() {
        return Planned::one(Command::Submit { submission: submission.clone(), placements: Vec::new(), claim: None });
    }
    let spec = admitted(state, &submission.spec, actor)?;
    let submission = Submission { spec, ..submission.clone() };
    // One that has to wait first makes somebody give way in a later pass, if there is need still.
    let at_once = binds_victims(state);
    let draft = match check {
        Some(_) => draft(state, &submission.spec),
        None => drafted(state, &submission.spec, if at_once { Victims::Named } else { Victims::Left }),
    };
    same_plan(&draft, check)?;
    if queueing == Queueing::Never && draft.picks.len() < usize::from(submission.spec.replicas) {
        return Err(refuse_waiting(&draft.blockers(state, &submission.spec)));
    }
    let why = draft.picks.iter().map(|(replica, pick)| (*replica, pick.why.clone())).collect();
    let placements = draft.picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect();
    let claim = draft.claim.filter(|_| at_once).map(Box::new);
    Ok(Planned { commands: vec![Command::Submit { submission, placements, claim }], why })
}

/// `queue: never`: 429 when the quota is in the way, else 503.
fn refuse_waiting(blockers: &[Blocker]) -> Refusal {
    let quota = [Reason::WaitingForQuota, Reason::ExceedsMaxQuota, Reason::BudgetExhausted];
    let text = |b: &Blocker| format!("{}: {}", b.reason, b.detail);
    let detail = blockers.iter().map(text).collect::<Vec<_>>().join("; ");
    match blockers.iter().any(|b| quota.contains(&b.reason)) {
        true => Refusal::new(Reason::QuotaExceeded, detail),
        false => Refusal::new(Reason::NoCapacity, detail),
    }
}
