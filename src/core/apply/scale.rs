//! The command that gives a service another number of replicas. Which of them go is
//! decided here, by who is missed least; where new ones run is not.

use super::job::save;
use super::moving;
use crate::command::Answer;
use crate::event::EventKind;
use crate::id::{JobNo, Revision};
use crate::job::{Job, JobSpec, MAX_REPLICAS, Phase, Replica, Stage};
use crate::reason::{Reason, Refusal};
use crate::scaling::{Target, is_wanted};
use crate::state::State;
use std::sync::Arc;

pub(super) fn scale(state: &mut State, no: JobNo, target: &Target) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no).filter(|job| !job.stopped && job.desired() != target.replicas) else {
        return Ok(Answer::Count(0));
    };
    let Some(scaling) = job.spec.scaling else {
        return Err(Refusal::new(Reason::PlanChanged, format!("job {} has a fixed number of replicas", job.request)));
    };
    if target.replicas > scaling.max {
        return Err(Refusal::new(Reason::PlanChanged, format!("job {} has at most {}", job.request, scaling.max)));
    }
    let mut job = (**job).clone();
    let (before, from) = (job.state(), job.desired());
    resize(&mut job, target.replicas, state.meta().now_ms);
    if let Some(news) = &target.learned {
        Arc::make_mut(job.learned.get_or_insert_default()).add(news, state.meta().now_ms);
    }
    let (request, tenant, model) = (job.request.clone(), job.spec.tenant.clone(), job.spec.model.clone());
    let Target { replicas: to, why, inputs, .. } = target.clone();
    state.emit(EventKind::Scaled { request, tenant, model, from, to, why, inputs });
    let why = (job.desired() < from).then_some(Reason::ScaledDown);
    save(state, job, before, why);
    Ok(Answer::Count(1))
}

/// Changes the number of wanted replicas. Those that go are the ones that are missed
/// least: waiting, then not ready, then the highest number.
fn resize(job: &mut Job, to: u16, now_ms: u64) {
    let mut wanted = job.desired();
    // What failed for good fails again: it counts as one of those that were asked for.
    let spent = job.spent();
    while wanted + spent < to && grow(&mut job.replicas, job.revision, now_ms) {
        wanted += 1;
    }
    let mut order: Vec<usize> = (0..job.replicas.len()).filter(|i| is_wanted(&job.replicas[*i].phase)).collect();
    order.sort_by_key(|i| (missed(&job.replicas[*i].phase), std::cmp::Reverse(*i)));
    let spec: Arc<JobSpec> = job.spec.clone();
    for i in order.into_iter().take(usize::from(wanted.saturating_sub(to))) {
        moving::stop(&spec, &mut job.replicas[i], Reason::ScaledDown);
    }
}

/// One replica more, under a number that is free; false when there is none. In the middle of
/// a rollout it is of the version that has proved itself, and the rollout comes to it, too.
fn grow(replicas: &mut Vec<Replica>, revision: Revision, now_ms: u64) -> bool {
    let taken_away = |r: &&mut Replica| matches!(r.phase, Phase::Cancelled) && r.has_ended();
    if let Some(ended) = replicas.iter_mut().find(taken_away) {
        // Generations go on counting, so that a copy of before can be told apart; failures do, too.
        ended.phase = Phase::Waiting { since_ms: now_ms, not_before_ms: 0, last: None };
        ended.revision = revision;
        return true;
    }
    let room = replicas.len() < usize::from(MAX_REPLICAS);
    if room {
        replicas.push(Replica::waiting(revision, now_ms));
    }
    room
}

/// How much a replica would be missed.
fn missed(phase: &Phase) -> u8 {
    match phase {
        Phase::Held { stage: Stage::Ready, .. } => 3,
        Phase::Held { .. } => 2,
        Phase::Stopping { .. } => 1,
        _ => 0,
    }
}
