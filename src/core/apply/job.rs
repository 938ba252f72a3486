//! Commands about jobs and their replicas.

use super::{moving, record, rollout, tenant};
use crate::approval;
use crate::budget::judge;
use crate::claim::{self, Claim, Victim};
use crate::command::{Answer, Placement, Report, ReportKind, Submission};
use crate::consent;
use crate::disruption::Notice;
use crate::event::EventKind;
use crate::floor;
use crate::id::{Generation, Incarnation, JobNo, NodeNo, Revision, TenantNo};
use crate::job::{
    Allocation, Copy, Job, JobSpec, JobState, MAX_REPLICAS, Movable, Move, Next, Phase, Ran, Replica, Restart, Stage,
};
use crate::ledger::{self, NodeUse};
use crate::model_budget;
use crate::quarantine;
use crate::quota;
use crate::reason::{Reason, Refusal};
use crate::sharing::Ask;
use crate::state::{Request, RequestKey, State};
use crate::topology::{self, Level};
use crate::trust;
use std::collections::{BTreeMap, BTreeSet};

/// How long a client-chosen id is remembered after the job's last change.
pub const KEYED_MS: u64 = 15 * 60 * 1000;
/// How long a minted id is: longer than any call, with its retries, may live.
pub const MINTED_MS: u64 = 60 * 1000;
/// Client-chosen ids remembered per tenant. At the cap a new one is refused;
/// an old one is never dropped early, since its retry would then run twice.
pub const KEYED_MAX: u32 = 100_000;
/// First back-off after a failure; doubles up to [`BACKOFF_MAX_MS`].
const BACKOFF_MS: u64 = 1_000;
const BACKOFF_MAX_MS: u64 = 300_000;
/// The same where a verifier, a store or an engine was away.
const OUTSIDE_MAX_MS: u64 = 30_000;
/// Held for so long before it failed, a replica counts its failures anew.
const CALM_MS: u64 = 2 * BACKOFF_MAX_MS;

pub(super) fn submit(
    state: &mut State,
    submission: &Submission,
    placements: &[Placement],
    claim: Option<&Claim>,
) -> Result<Answer, Refusal> {
    let spec = &submission.spec;
    if let Some(known) = state.request(&spec.tenant, &submission.request) {
        if known.body == submission.body {
            return Ok(Answer::Job { no: known.job, replayed: true });
        }
        let detail = format!("{} was used before with another request; choose a new id", submission.request);
        return Err(Refusal::field(Reason::IdempotencyConflict, "request_id", detail));
    }
    consent::judge(state, spec)?;
    approval::judge_new(state, spec)?;
    floor::judge(state, spec)?;
    quarantine::judge(state, spec)?;
    model_budget::judge(spec)?;
    well_formed(spec, placements)?;
    let known = state.tenant_named(&spec.tenant).map(|t| t.no);
    may_wait(state, known, submission, placements)?;
    fits(state, known, spec, placements, &[])?;
    together(state, spec, &[], placements)?;
    judge::check_new(state, known, spec, placements).map_err(|over| over.refusal())?;
    if let Some(claim) = claim {
        super::claim::judge_new(state, known, spec, placements, claim)?;
    }

    let tenant = tenant::ensure(state, &spec.tenant);
    let no = JobNo(state.meta().next_job);
    state.change_meta(|meta| meta.next_job += 1);
    let now = state.meta().now_ms;
    let mut job = Job {
        no,
        request: submission.request.clone(),
        tenant,
        spec: spec.clone(),
        replicas: vec![Replica::waiting(Revision(1), now); usize::from(spec.replicas)],
        stopped: false,
        claim: claim.cloned().map(Box::new),
        gave_way: None,
        created_ms: now,
        changed_ms: now,
        history: Vec::new(),
        revision: Revision(1),
        rollout: None,
        learned: None,
        deployed: Revision(0),
        ran: Ran::default(),
    };
    occupy(&mut job, placements);
    job.history.push(crate::job::Transition { at_ms: now, state: job.state(), why: None });
    emit(state, &job, None, None);
    let request = Request { job: no, body: submission.body, keyed: submission.keyed, expires_ms: u64::MAX };
    state.put_request(RequestKey::new(tenant, &submission.request), request);
    floor::raise(state, spec);
    state.put_job(job);
    if let Some(claim) = claim {
        super::claim::evict(state, claim, (&submission.request, &spec.tenant), spec.priority);
    }
    Ok(Answer::Job { no, replayed: false })
}

/// Whether a replica that ended so has done all that it had to.
pub(super) fn is_done(spec: &JobSpec, ok: bool) -> bool {
    ok && spec.constraints.restart != Restart::Always
}

/// Ends that are the version's own doing: of its program, or of what its manifest names. What the machine, the
/// store or a verifier lacks says nothing about it.
pub(super) fn its_own(why: Reason) -> bool {
    use Reason as R;
    let program =
        matches!(why, R::ExitedNonZero | R::Completed | R::ReadyTimeout | R::LivenessFailed | R::RuntimeFailed);
    // An image that no node finds is more often a wrong name than a registry that is away.
    program || never_again(why) || matches!(why, R::ImageMissing | R::ImagePullFailed)
}

/// Ends after which the same bytes would end the same way.
pub(super) fn never_again(why: Reason) -> bool {
    use Reason as R;
    matches!(
        why,
        R::ArtifactMismatch
            | R::ModelNotFound
            | R::SignatureRequired
            | R::SignatureInvalid
            | R::SignatureUnsupported
            | R::SignatureBindingMismatch
            | R::HybridSignatureIncomplete
            | R::VerifierDisagreement
            | R::KeyVersionRetired
            | R::ArtifactTooLarge
    )
}

/// Bounds of the tenant's queue and of its remembered ids.
fn may_wait(
    state: &State,
    tenant: Option<TenantNo>,
    submission: &Submission,
    placements: &[Placement],
) -> Result<(), Refusal> {
    let used = tenant.map(|no| state.ledger().tenant(no)).unwrap_or_default();
    let limit = tenant.and_then(|no| quota::quota(state, no)).map_or(quota::DEFAULT_WAITING, quota::waiting_limit);
    if placements.len() < usize::from(submission.spec.replicas) && used.waiting >= limit {
        let detail =
            format!("tenant {} has {limit} waiting jobs, its limit; retry when some run", submission.spec.tenant);
        return Err(Refusal::new(Reason::QueueFull, detail));
    }
    if submission.keyed && used.keyed >= KEYED_MAX {
        let detail =
            format!("tenant {} has {KEYED_MAX} remembered ids; retry later or without a key", submission.spec.tenant);
        return Err(Refusal::new(Reason::TooManyRequests, detail));
    }
    Ok(())
}

/// Each place is for another replica that exists, and a gang starts as one.
pub(super) fn well_formed(spec: &JobSpec, placements: &[Placement]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    let sound = placements.iter().all(|p| p.replica < spec.replicas && seen.insert(p.replica));
    let whole = !spec.gang || placements.is_empty() || placements.len() == usize::from(spec.replicas);
    match (1..=MAX_REPLICAS).contains(&spec.replicas) && sound && whole {
        true => Ok(()),
        false => Err(Refusal::new(Reason::PlanChanged, "the places don't match the job's replicas")),
    }
}

/// The judgement on a plan: quota and every dimension of every node, as if `gone` were gone.
pub(super) fn fits(
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    placements: &[Placement],
    gone: &[Victim],
) -> Result<(), Refusal> {
    fit_each(state, tenant, |_| spec, placements, gone)
}

/// The same where replicas may be of two versions: `spec` is what each of them runs. They ask for the same
/// resources, and differ in what keeps them to those.
pub(super) fn fit_each<'a>(
    state: &State,
    tenant: Option<TenantNo>,
    spec: impl Fn(u16) -> &'a JobSpec,
    placements: &[Placement],
    gone: &[Victim],
) -> Result<(), Refusal> {
    let Some(first) = placements.first().map(|placement| spec(placement.replica)) else { return Ok(()) };
    let bad = |detail: String| Err(Refusal::new(Reason::PlanChanged, detail));
    let scratch;
    let state = match gone {
        [] => state,
        gone => {
            scratch = claim::without(state, gone);
            &scratch
        }
    };
    if !quota::allows(state, tenant, &first.resources, placements.len() as u64)
        || !quota::types::allows(state, tenant, placements)
    {
        return bad(format!("tenant {} would pass its quota", first.tenant));
    }
    // What earlier placements of this command will hold.
    let mut uses: BTreeMap<NodeNo, NodeUse> = BTreeMap::new();
    for placement in placements {
        let alloc = &placement.alloc;
        let Some(node) = state.node(alloc.node).filter(|node| node.takes_work()) else {
            return bad(format!("node {} takes no work", alloc.node));
        };
        let Some(held) = state.ledger().node(alloc.node) else {
            return bad(format!("node {} has no ledger", alloc.node));
        };
        if alloc.shares.iter().any(|share| node.quarantine_of(share.device).is_some()) {
            return bad(format!("node {}: a device of the plan is in quarantine", node.name));
        }
        let used = uses.get(&alloc.node).unwrap_or(held);
        if let Err(text) = ledger::fits(&Ask::of(state, spec(placement.replica)), alloc, &node.spec, used) {
            return bad(format!("node {}: {text}", node.name));
        }
        if placements.len() > 1 {
            let mut scratch = ledger::Ledger::default();
            scratch.nodes.insert(alloc.node, used.clone().into());
            scratch.hold(TenantNo(0), (JobNo(0), placement.replica), &first.resources, alloc, &node.spec);
            uses.extend(scratch.nodes.get(&alloc.node).map(|used| (alloc.node, (**used).clone())));
        }
    }
    Ok(())
}

/// The judgement on where a job's replicas are together: `there` are those of it that exist.
pub(super) fn together(
    state: &State,
    spec: &JobSpec,
    there: &[Replica],
    placements: &[Placement],
) -> Result<(), Refusal> {
    let others = there.iter().enumerate().filter(|(no, _)| placements.iter().all(|p| usize::from(p.replica) != *no));
    let others: Vec<NodeNo> = others.filter_map(|(_, replica)| replica.home()).collect();
    if topology::keeps(state, spec, &others, placements.iter().map(|placement| placement.alloc.node)) {
        return Ok(());
    }
    let what = spec.constraints.topology.required.map_or("domain", Level::name);
    Err(Refusal::new(Reason::PlanChanged, format!("the places are not in one {what}, as the job requires")))
}

fn occupy(job: &mut Job, placements: &[Placement]) {
    for placement in placements {
        if let Some(replica) = job.replicas.get_mut(usize::from(placement.replica)) {
            replica.newest.0 += 1;
            replica.generation = replica.newest;
            replica.phase = Phase::Held { alloc: placement.alloc.clone(), stage: Stage::Scheduled };
            replica.choice = placement.why.clone();
        }
    }
}

pub(super) fn place(state: &mut State, no: JobNo, placements: &[Placement]) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no) else { return Ok(Answer::Count(0)) };
    let mut seen = BTreeSet::new();
    let mut waits = |p: &Placement| {
        let replica = job.replicas.get(usize::from(p.replica));
        replica.is_some_and(|r| r.is_waiting() && !r.is_leaving()) && seen.insert(p.replica)
    };
    if job.stopped || !placements.iter().all(&mut waits) {
        return Err(Refusal::new(Reason::PlanChanged, format!("job {} does not wait for these places", job.request)));
    }
    if !job.is_whole_with(|no| seen.contains(&no)) {
        return Err(Refusal::new(Reason::PlanChanged, format!("gang {} would not be whole", job.request)));
    }
    trust::withheld(state, job).map_or(Ok(()), Err)?;
    fit_each(state, Some(job.tenant), |replica| job.spec_for(replica), placements, &[])?;
    together(state, &job.spec, &job.replicas, placements)?;
    judge::check(state, Some(job.tenant), &job.spec, (&job.replicas, job.ran), placements)
        .map_err(|over| over.refusal())?;
    let mut job = (**job).clone();
    let before = job.state();
    occupy(&mut job, placements);
    // Replicas of another version wait for a pass of their own.
    state.room += u64::from(job.open_rollout().is_some() && job.wants_place());
    save(state, job, before, None);
    Ok(Answer::Count(placements.len() as u32))
}

pub(super) fn stop(state: &mut State, no: JobNo, why: Reason) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no) else { return Ok(Answer::Count(0)) };
    if job.stopped {
        return Ok(Answer::Count(0));
    }
    let mut job = (**job).clone();
    let before = job.state();
    job.stopped = true;
    job.claim = None;
    let spec = job.spec.clone();
    job.replicas.iter_mut().for_each(|replica| moving::stop(&spec, replica, why));
    save(state, job, before, Some(why));
    Ok(Answer::Count(1))
}

pub(super) fn reports(
    state: &mut State,
    node: NodeNo,
    incarnation: Incarnation,
    reports: &[Report],
) -> Result<Answer, Refusal> {
    // An agent of an earlier start has no say any more.
    if state.node(node).is_none_or(|n| n.incarnation != incarnation) {
        return Ok(Answer::Count(0));
    }
    Ok(Answer::Count(reports.iter().map(|r| u32::from(report(state, node, r))).sum()))
}

/// Whether the report was about something that is so and changed it.
fn report(state: &mut State, node: NodeNo, report: &Report) -> bool {
    let Some(job) = state.job(report.job) else { return false };
    let Some(replica) = job.replicas.get(usize::from(report.replica)) else { return false };
    let Some((_, alloc, copy)) = replica.copy_on(node).filter(|(generation, ..)| *generation == report.generation)
    else {
        return false;
    };
    let now = state.meta().now_ms;
    let mut next = replica.clone();
    let (ended, why) = match (copy, &report.kind) {
        (Copy::Own(Phase::Held { stage, .. }), ReportKind::Stage(new)) if stage != new => {
            next.phase = Phase::Held { alloc: alloc.clone(), stage: *new };
            (None, None)
        }
        // In a swap nobody was told to start it yet.
        (Copy::Coming(_), ReportKind::Stage(_)) if job.spec.movable() != Movable::Surge => return false,
        (Copy::Coming(_), ReportKind::Stage(new)) => match moving::came(replica, *new, told(state, job, replica)) {
            Some(came) => {
                next = came;
                (None, None)
            }
            None => return false,
        },
        (_, ReportKind::Stage(_)) => return false,
        (_, ReportKind::Ended { ok, why }) => {
            next = match copy {
                Copy::Own(Phase::Stopping { then: Next::Here(revision), why, .. }) => {
                    rollout::replaced_here(state, job, replica, *revision, *why)
                }
                // Whatever ends a version under trial, the one before it is there.
                Copy::Own(Phase::Held { .. }) if replica.revision != job.revision && !is_done(&job.spec, *ok) => {
                    rollout::replaced_here(state, job, replica, job.revision, *why)
                }
                Copy::Own(_) => {
                    let after = after_end(replica, *ok, *why, job.spec.constraints.restart, now);
                    moving::settle(&job.spec, replica, after)
                }
                Copy::Coming(_) | Copy::Going(_) => moving::other_ended(replica, *why, now),
            };
            if let Copy::Own(_) = copy {
                next.last = Some(node);
            }
            (Some((report.generation, *ok)), Some(*why))
        }
    };
    let tries = u32::from(replica.restarts) + 1;
    let heard = (replica.revision_of(report.generation), rollout::news(&job.spec, copy, &report.kind));
    let mut job = (**job).clone();
    let before = job.state();
    job.replicas[usize::from(report.replica)] = next;
    rollout::heard(&mut job, heard.0, heard.1, now);
    let refused = other_bytes(&report.kind);
    // Files that are there are no deploy.
    let runs = !job.spec.is_prefetch();
    let deployed = runs && report.kind == ReportKind::Stage(Stage::Ready) && heard.0 > job.deployed;
    if deployed {
        job.deployed = heard.0;
    }
    if deployed || refused.is_some() {
        let node = state.nodes[&node].name.clone();
        if refused.is_none_or(|why| is_told(why, tries)) {
            record::deployed(state, &job, heard.0, &node, refused);
        }
        if refused == Some(Reason::ArtifactMismatch) {
            quarantine::set(state, job.spec_of(heard.0), &node);
        }
    }
    if let (Some((generation, ok)), Some(why)) = (ended, why) {
        let node = state.nodes[&node].name.clone();
        let (request, tenant) = (job.request.clone(), job.spec.tenant.clone());
        state.emit(EventKind::Replica { request, tenant, replica: report.replica, generation, node, ok, why });
    }
    save(state, job, before, why);
    true
}

/// Why a node started nothing of a version whose bytes it looked at: the store has others than the manifest says
/// (`ArtifactMismatch`), or its own copy of them went bad (`ModelCopyCorrupt`), which is no word about the version.
fn other_bytes(kind: &ReportKind) -> Option<Reason> {
    match kind {
        ReportKind::Ended { why, ok: false } if why.is_of_bytes() => Some(*why),
        _ => None,
    }
}

/// Whether the trail is told of it. A disk that stays bad is found so by each new try: of those every row of tries that
/// is twice as long, since an entry is kept for ever. (Tries are counted to 65,536 and stay there.)
fn is_told(why: Reason, tries: u32) -> bool {
    why != Reason::ModelCopyCorrupt || (tries.is_power_of_two() && tries <= 1 << 15)
}

/// What the present copy is told when its replacement takes over now.
fn told(state: &State, job: &Job, replica: &Replica) -> Option<Notice> {
    let Some(Move::Coming { why, .. }) = &replica.moving else { return None };
    moving::notice(state, job, &replica.phase, *why)
}

/// What becomes of a replica that its agent saw end.
fn after_end(replica: &Replica, ok: bool, why: Reason, restart: Restart, now: u64) -> Replica {
    let stopping = match &replica.phase {
        Phase::Stopping { then, why, .. } => Some((*then, *why)),
        _ => None,
    };
    let again = |restarts: u16, not_before_ms: u64| Replica {
        restarts,
        phase: Phase::Waiting { since_ms: now, not_before_ms, last: Some(why) },
        choice: None,
        ..replica.clone()
    };
    let end = |phase: Phase| Replica { phase, ..replica.clone() };
    match (stopping, ok, restart) {
        (Some((Next::End, why)), ..) => end(ended_by(why)),
        (Some((Next::Again | Next::Here(_), why)), ..) => {
            let phase = Phase::Waiting { since_ms: now, not_before_ms: 0, last: Some(why) };
            Replica { phase, ..again(replica.restarts, 0) }
        }
        // Bytes that don't match their digest won't match them next time.
        (None, false, _) if never_again(why) => end(Phase::Failed { why }),
        (None, true, Restart::OnFailure | Restart::Never) => end(Phase::Succeeded),
        (None, false, Restart::Never) => end(Phase::Failed { why }),
        // No failure of its own: another port is tried soon, and its crashes are counted apart.
        (None, false, _) if why == Reason::PortTaken => {
            again(replica.restarts, now + backoff_ms(port_row(replica.newest)).min(OUTSIDE_MAX_MS))
        }
        (None, ..) => {
            // One that ran for long before it failed is no crash loop: it begins to count anew.
            let ran_ms = replica.allocation().map_or(0, |alloc| now.saturating_sub(alloc.at_ms));
            let before = if ran_ms >= CALM_MS { 0 } else { replica.restarts };
            again(before.saturating_add(1), now + backoff_ms(before).min(longest_ms(why)))
        }
    }
}

/// Of a start that waits for somebody else, the pause stays short: when they are back, so is it.
fn longest_ms(why: Reason) -> u64 {
    match why {
        Reason::VerifierUnavailable | Reason::StoreUnavailable | Reason::EngineUnavailable => OUTSIDE_MAX_MS,
        _ => BACKOFF_MAX_MS,
    }
}

/// How a replica ends that was told to stop for good.
pub(super) fn ended_by(why: Reason) -> Phase {
    match why {
        Reason::Preempted | Reason::QuotaReclaimed => Phase::Failed { why },
        _ => Phase::Cancelled,
    }
}

/// After so many launches the pause before another port is tried doubles: where strangers have
/// all ports of a node, trying them in turn must not fill the log.
const PORT_ROW: u32 = 64;

fn port_row(newest: Generation) -> u16 {
    u16::try_from(newest.0 / PORT_ROW).unwrap_or(u16::MAX)
}

/// The pause after the failure that comes after `failures` others.
pub(crate) fn backoff_ms(failures: u16) -> u64 {
    BACKOFF_MAX_MS.min(BACKOFF_MS << u32::from(failures.min(16)))
}

/// The node is Down: what it held is free, and its replicas start elsewhere.
pub(super) fn lose_node(state: &mut State, node: NodeNo) {
    release_from(state, node, |_, _| true);
}

/// The node has gone silent before its agent said a word of these replicas: most
/// likely they never began, and waiting for Down would keep their callers waiting a
/// minute. They start elsewhere at a higher generation, which fences a copy that did
/// begin after all. What may never run twice, or never again, waits for Down.
pub(super) fn release_unheard(state: &mut State, node: NodeNo) {
    let movable = |job: &Job| !job.spec.constraints.exclusive && job.spec.constraints.restart != Restart::Never;
    release_from(state, node, |job, copy| match copy {
        Copy::Own(Phase::Held { stage: Stage::Scheduled, .. }) => movable(job),
        Copy::Coming(stage) => stage == Stage::Scheduled,
        Copy::Own(_) | Copy::Going(_) => false,
    });
}

fn release_from(state: &mut State, node: NodeNo, which: impl Fn(&Job, Copy<'_>) -> bool) {
    let lost = |job: &Job, r: &Replica| r.copy_on(node).is_some_and(|(.., copy)| which(job, copy));
    let mut jobs: Vec<JobNo> =
        state.replicas_on(node).filter(|(job, _, r)| lost(job, r)).map(|(job, ..)| job.no).collect();
    jobs.dedup();
    for no in jobs {
        let old = state.jobs[&no].clone();
        let mut job = (*old).clone();
        let before = job.state();
        for replica in job.replicas.iter_mut().filter(|r| lost(&old, r)) {
            let own = replica.allocation().is_some_and(|alloc| alloc.node == node);
            *replica = moving::lost(&old, replica, own, state.meta.now_ms);
            if own {
                replica.last = Some(node);
            }
        }
        save(state, job, before, Some(Reason::NodeFailure));
    }
}

/// Writes the job back, tells what changed, and moves it to the history when it is over.
pub(super) fn save(state: &mut State, mut job: Job, before: JobState, why: Option<Reason>) {
    let now = state.meta().now_ms;
    job.note(now, before, why);
    if job.state() != before {
        emit(state, &job, Some(before), why);
    }
    if !job.is_over() {
        state.put_job(job);
        return;
    }
    let key = RequestKey::new(job.tenant, &job.request);
    if let Some(request) = state.requests.get(&key).cloned() {
        let expires_ms = now + if request.keyed { KEYED_MS } else { MINTED_MS };
        state.put_request(key, Request { expires_ms, ..request });
    }
    state.finish_job(job);
}

fn emit(state: &mut State, job: &Job, from: Option<JobState>, why: Option<Reason>) {
    let (no, request, tenant, to) = (job.no, job.request.clone(), job.spec.tenant.clone(), job.state());
    state.emit(EventKind::Job { no, request, tenant, from, to, why });
}

impl State {
    /// Books a place on a scratch copy, for planning several at once. The job need not exist.
    pub(crate) fn book(&mut self, spec: &JobSpec, replica: u16, alloc: &Allocation) {
        let tenant = self.tenant_named(&spec.tenant).map_or(TenantNo(0), |t| t.no);
        let Some(node) = self.nodes.get(&alloc.node).cloned() else { return };
        // Numbers from the top can't meet those of real jobs.
        let who = (JobNo(u64::MAX), replica);
        self.ledger.hold(tenant, who, &spec.resources, alloc, &node.spec);
        if let Some(used) = self.ledger.nodes.get(&alloc.node) {
            self.capacity.update(&node, used);
        }
    }

    /// Undoes [`State::book`].
    pub(crate) fn unbook(&mut self, spec: &JobSpec, replica: u16, alloc: &Allocation) {
        let tenant = self.tenant_named(&spec.tenant).map_or(TenantNo(0), |t| t.no);
        let Some(node) = self.nodes.get(&alloc.node).cloned() else { return };
        self.ledger.release(tenant, (JobNo(u64::MAX), replica), &spec.resources, alloc, &node.spec);
        if let Some(used) = self.ledger.nodes.get(&alloc.node) {
            self.capacity.update(&node, used);
        }
    }
}
