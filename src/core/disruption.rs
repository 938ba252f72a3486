//! Voluntary disruption: a replica that runs well is told to stop so that others have room,
//! their quota, or a node to mend. Whoever tells it so could wait, or choose another. So a
//! service may say how many of its replicas may be missing at once, and a program how long
//! it needs to save what it has done. A fault, a lost node or a lease that ends asks nobody.
//! It reads one job at a time; who is to go is decided elsewhere. See ADR 53.

use crate::id::TenantId;
use crate::job::{Job, JobSpec, Phase, Replica, Stage};
use crate::placement::policy::Preemption;
use crate::reason::{Blocker, Reason, Refusal};
use crate::rollout::is_ready;
use crate::scaling::is_wanted;
use serde::{Deserialize, Serialize};

/// A replica was told at `at_ms` (log time) that it has to go, and may save its state for so long before TERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub at_ms: u64,
    pub grace_ms: u32,
}

impl Notice {
    /// Log time at which TERM follows, unless it is gone by then.
    pub fn until_ms(self) -> u64 {
        self.at_ms.saturating_add(self.grace_ms.into())
    }
}

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
/// wants more than there is could never be asked for anything back. (A number that was used before a scale-in begins
/// anew: it says no reason for which it last left.)
fn is_missing(replica: &Replica) -> bool {
    let never_placed = matches!(replica.phase, Phase::Waiting { last: None, .. });
    !never_placed && is_wanted(&replica.phase) && !is_ready(replica)
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

/// Says whose budget stands in the way, to a tenant: of another one's job nothing but that there is one.
pub fn blocker(job: &Job, reader: &TenantId) -> Blocker {
    let (most, missing) = (budget(&job.spec).unwrap_or(0), missing(job));
    let goes_on = match most {
        0 => "none of them gives way: it goes on when the job ends, or needs fewer",
        _ => "it goes on when they serve again",
    };
    let detail = match job.spec.tenant == *reader {
        true => format!(
            "job {} (model {} of {}) lets {most} of its replicas be missing at once (max_unavailable), and {missing} of {} \
             are; {goes_on}",
            job.request,
            job.spec.model,
            job.spec.tenant,
            job.desired()
        ),
        false => format!(
            "a job of another tenant lets no more of its replicas be missing at once (max_unavailable); {goes_on}"
        ),
    };
    // Jobs end, and services become smaller: no budget stands in the way for good.
    Blocker { reason: Reason::DisruptionBudget, detail, nodes: 0, permanent: false }
}

impl Job {
    /// Since when it waits as a whole: a gang since its last member does, any other job since its first.
    pub fn waits_since(&self) -> Option<u64> {
        let times = self.replicas.iter().filter_map(Replica::waits_since);
        if self.spec.gang { times.max() } else { times.min() }
    }

    /// Every time since when somebody of it waits: each is a moment from which on somebody may make others give way.
    pub(crate) fn all_waits_since(&self) -> impl Iterator<Item = u64> + '_ {
        let whole = self.spec.gang.then(|| self.waits_since()).flatten();
        let each = self.replicas.iter().filter(|_| !self.spec.gang).filter_map(Replica::waits_since);
        whole.into_iter().chain(each)
    }

    /// Replicas that have waited long enough at `now_ms` to make others give way: `delay_ms`.
    pub fn may_evict(&self, now_ms: u64, delay_ms: u64) -> impl Iterator<Item = u16> + '_ {
        let patient = move |no: &u16| {
            let since = self.replicas.get(usize::from(*no)).and_then(Replica::waits_since);
            since.is_some_and(|since| since.saturating_add(delay_ms) <= now_ms)
        };
        let whole = !self.spec.gang || self.placeable(now_ms).all(|no| patient(&no));
        self.placeable(now_ms).filter(move |no| whole && patient(no))
    }
}

#[cfg(test)]
mod tests;
