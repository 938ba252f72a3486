//! Voluntary disruption: a replica that runs well is told to stop so that others have room,
//! their quota, or a node to mend. Whoever tells it so could wait, or choose another. So a
//! service may say how many of its replicas may be missing at once, and a program how long
//! it needs to save what it has done. A fault, a lost node or a lease that ends asks nobody.
//! It reads one job at a time; who is to go is decided elsewhere. See ADR 53.

use crate::job::{Job, JobSpec, Notice, Phase, Replica, Stage};
use crate::placement::policy::Preemption;
use crate::reason::{Blocker, Reason, Refusal};
use crate::rollout::is_ready;
use crate::scaling::is_wanted;

/// Whether a stop for that reason could as well come later, or hit another replica.
pub fn is_voluntary(why: Reason) -> bool {
    matches!(why, Reason::Preempted | Reason::QuotaReclaimed | Reason::NodeDrain | Reason::Defragmentation)
}

/// How long the job's program may take to save its state before TERM, in milliseconds: what it asked for, up to what
/// the policy allows now.
pub fn grace_ms(spec: &JobSpec, rules: &Preemption) -> u32 {
    spec.constraints.checkpoint_ms.unwrap_or(0).min(rules.max_grace_ms)
}

/// Refuses a wish for more time than the policy allows.
///
/// # Errors
/// The field, the limit, and how to raise it.
pub fn judge(spec: &JobSpec, rules: &Preemption) -> Result<(), Refusal> {
    let (asked, most) = (spec.constraints.checkpoint_ms.unwrap_or(0), rules.max_grace_ms);
    if asked <= most {
        return Ok(());
    }
    let detail = format!(
        "at most {} s by policy, not {}; ask for less, or raise it: nf policy set --max-grace {1}s",
        most / 1000,
        asked.div_ceil(1000)
    );
    Err(Refusal::invalid("constraints.checkpoint_grace", detail))
}

/// What a replica is told that has to stop now for that reason. One that never served has nothing to save.
pub(crate) fn notice(spec: &JobSpec, phase: &Phase, why: Reason, rules: &Preemption, now_ms: u64) -> Option<Notice> {
    let served = matches!(phase, Phase::Held { stage: Stage::Ready | Stage::NotReady, .. });
    let grace_ms = grace_ms(spec, rules);
    (is_voluntary(why) && served && grace_ms > 0).then_some(Notice { at_ms: now_ms, grace_ms })
}

/// How many of its replicas may be missing at once by others' will; None: any number. A gang is of no use without
/// one of its members, so it gives way as a whole.
pub fn budget(spec: &JobSpec) -> Option<u16> {
    spec.constraints.max_unavailable.filter(|_| !spec.gang)
}

/// It has had a place, is wanted, and does not serve. What never had a place is not missed yet: else a service that
/// wants more than there is could never be asked for anything back.
fn is_missing(replica: &Replica) -> bool {
    replica.newest.0 > 0 && is_wanted(&replica.phase) && !is_ready(replica)
}

/// Replicas that are missing now, for whatever reason.
pub fn missing(job: &Job) -> u16 {
    job.replicas.iter().filter(|replica| is_missing(replica)).count() as u16
}

/// Whether the job's budget allows that these replicas, too, are taken from it.
pub fn allows(job: &Job, gone: &[u16]) -> bool {
    let Some(most) = budget(&job.spec) else { return true };
    let of = |(no, replica): &(usize, &Replica)| is_missing(replica) || gone.contains(&(*no as u16));
    job.replicas.iter().enumerate().filter(of).count() <= usize::from(most)
}

/// What may be taken from a job now.
pub(crate) enum Spare {
    Any,
    /// So many that serve, and those that are missing already.
    Some(u16),
    /// It lacks more than it may: not even what is missing, which may be about to serve.
    Nothing,
}

pub(crate) fn spare(job: &Job) -> Spare {
    match budget(&job.spec) {
        None => Spare::Any,
        Some(most) => most.checked_sub(missing(job)).map_or(Spare::Nothing, Spare::Some),
    }
}

/// Whether taking the replica counts against its job's budget: it serves.
pub(crate) fn draws(job: &Job, no: u16) -> bool {
    job.replicas.get(usize::from(no)).is_some_and(|replica| !is_missing(replica))
}

/// Replicas that are out by others' will: they were told to stop, or wait for a place since. Never more than the
/// budget, at any index.
pub fn taken(job: &Job) -> u16 {
    let out = |replica: &&Replica| match &replica.phase {
        Phase::Stopping { why, .. } => is_voluntary(*why) && is_wanted(&replica.phase),
        Phase::Waiting { last: Some(why), .. } => is_voluntary(*why),
        _ => false,
    };
    job.replicas.iter().filter(out).count() as u16
}

/// Says whose budget stands in the way.
pub fn blocker(job: &Job) -> Blocker {
    let (most, missing) = (budget(&job.spec).unwrap_or(0), missing(job));
    let detail = format!(
        "job {} (model {} of {}) lets {most} of its replicas be missing at once (max_unavailable), and {missing} of {} are; \
         it goes on when they serve again",
        job.request,
        job.spec.model,
        job.spec.tenant,
        job.desired()
    );
    Blocker { reason: Reason::DisruptionBudget, detail, nodes: 0, permanent: most == 0 }
}

#[cfg(test)]
mod tests;
