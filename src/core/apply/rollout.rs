//! Commands about rollouts: a new version begins, its replicas change one after another,
//! and it stays or goes. Also what becomes of a copy of a version under trial that ends by
//! itself. When each of these is due is decided in `rollout`.

use super::job::{fits, save};
use super::moving;
use crate::approval;
use crate::bounds;
use crate::budget::judge;
use crate::command::{Answer, Placement, ReportKind};
use crate::consent;
use crate::disruption;
use crate::event::EventKind;
use crate::floor;
use crate::id::{Generation, JobNo, Revision};
use crate::job::{Allocation, Copy, Job, JobSpec, Movable, Move, Next, Phase, Replica, Stage};
use crate::model_budget;
use crate::quarantine;
use crate::reason::{Reason, Refusal};
use crate::rollout::{self, Count2, Course, MOST_FAILURES, Part, Rollout, Strategy, Turn};
use crate::state::State;
use crate::trust;
use std::sync::Arc;

pub(super) fn start(
    state: &mut State,
    no: JobNo,
    next: &rollout::Next,
    strategy: &Strategy,
    rollback: bool,
    by: Option<Arc<str>>,
) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no).filter(|job| !job.stopped) else { return Ok(Answer::Count(0)) };
    strategy.check()?;
    job.can_roll(next, strategy)?;
    if job.open_rollout().is_some() || next.is_of(&job.spec) {
        return Err(Refusal::new(Reason::PlanChanged, format!("job {} has another rollout, or version", job.request)));
    }
    let mut to = next.spec(&job.spec);
    bounds::guarded(&to)?;
    consent::judge(state, &to)?;
    approval::judge_new(state, &to)?;
    model_budget::judge(&to)?;
    quarantine::judge(state, &to)?;
    match rollback {
        true => floor::go_below(state, &mut to),
        false => floor::judge(state, &to)?,
    }
    let to = Arc::new(to);
    let last = job.rollout.as_ref().map_or(Revision(0), |rollout| rollout.revision).max(job.revision);
    let now = state.meta().now_ms;
    let part = if strategy.canary.is_some() { Part::Canary } else { Part::Rest };
    let rollout = Rollout {
        revision: Revision(last.0.saturating_add(1)),
        from: job.spec.clone(),
        to,
        strategy: *strategy,
        course: Course::Forward { part, paused: false },
        rollback,
        by,
        began_ms: now,
        turned_ms: now,
        progress_ms: now,
        failures: 0,
        last_failure: None,
        counts: None,
    };
    let mut job = (**job).clone();
    let before = job.state();
    job.rollout = Some(Box::new(rollout));
    emit(state, &job);
    save(state, job, before, None);
    Ok(Answer::Count(1))
}

pub(super) fn turn(state: &mut State, no: JobNo, revision: Revision, turn: &Turn) -> Result<Answer, Refusal> {
    let open = |job: &&Arc<Job>| job.open_rollout().is_some_and(|rollout| rollout.revision == revision);
    let Some(job) = state.job(no).filter(open) else { return Ok(Answer::Count(0)) };
    let now = state.meta().now_ms;
    let (kept, way_back) = (rollout::may_be_kept(state, job), trust::judge_way_back(state, job));
    let mut job = (**job).clone();
    let before = job.state();
    let Some(mut rollout) = job.rollout.take() else { return Ok(Answer::Count(0)) };
    let forward = match rollout.course {
        Course::Forward { part, paused } => Some((part, paused)),
        _ => None,
    };
    if let (Turn::Back { failed, why, counts }, Some(_), Err(refusal)) = (turn, forward, way_back) {
        return match failed {
            true => Ok(blamed(state, job, *rollout, *why, counts.clone())),
            false => Err(refusal),
        };
    }
    let course = match (turn, forward) {
        (Turn::Promote, _) if kept => Course::Done,
        (Turn::Pause, Some((part, false))) => Course::Forward { part, paused: true },
        (Turn::Resume, Some((part, true))) => Course::Forward { part, paused: false },
        (Turn::Promote, Some((Part::Canary, _))) => Course::Forward { part: Part::Rest, paused: false },
        (Turn::Promote | Turn::Watch, Some((Part::Rest, false))) if job.is_all(revision) => watched(now),
        (Turn::Promote | Turn::Done, Some((Part::Watch { .. }, _))) if job.is_all(revision) => Course::Done,
        (Turn::Back { failed, why, .. }, Some(_)) => Course::Back { failed: *failed, why: *why },
        (Turn::Undone, None) if job.is_all(job.revision) => match rollout.course {
            Course::Back { failed, why } => Course::Undone { failed, why },
            course => course,
        },
        _ => return Ok(Answer::Count(0)),
    };
    rollout.course = course;
    (rollout.turned_ms, rollout.progress_ms) = (now, now);
    if let Turn::Back { counts, .. } = turn {
        rollout.counts.clone_from(counts);
        let former = job.revision;
        let two = job.spec.movable() == Movable::Surge;
        job.replicas.iter_mut().for_each(|replica| recall(replica, former, two));
    }
    if course == Course::Done {
        job.spec = rollout.to.clone();
        job.revision = rollout.revision;
        job.replicas.iter_mut().for_each(|replica| adopt(replica, rollout.revision));
        if let Some(learned) = &mut job.learned {
            Arc::make_mut(learned).of_another_version();
        }
        // Not before: until it is there for good, what it replaces must be able to come back.
        floor::raise(state, &job.spec);
    }
    job.rollout = Some(rollout);
    emit(state, &job);
    save(state, job, before, None);
    Ok(Answer::Count(1))
}

fn watched(since_ms: u64) -> Course {
    Course::Forward { part: Part::Watch { since_ms }, paused: false }
}

/// The version is at fault, and the one before it may not come back: it stays, and what is held against it is known.
fn blamed(state: &mut State, mut job: Job, rollout: Rollout, why: Reason, counts: Option<Box<Count2>>) -> Answer {
    let before = job.state();
    let failures = rollout.failures.max(MOST_FAILURES);
    job.rollout = Some(Box::new(Rollout { failures, last_failure: Some(why), counts, ..rollout }));
    emit(state, &job);
    save(state, job, before, None);
    Answer::Count(1)
}

/// What waits, or stops and starts again in its place, does so as the version that is the job's own now.
fn adopt(replica: &mut Replica, revision: Revision) {
    match &mut replica.phase {
        Phase::Waiting { .. } => replica.revision = revision,
        Phase::Stopping { then: then @ Next::Here(_), .. } => *then = Next::Here(revision),
        _ => {}
    }
}

/// What has not begun to serve as the new version is called back at once; the rest follows
/// one by one, as it came. `two`: a replica may have two copies, so one that comes has begun.
fn recall(replica: &mut Replica, former: Revision, two: bool) {
    replica.moving = match replica.moving.take() {
        Some(Move::Coming { generation, alloc, revision, why, .. }) if two && revision != former => {
            Some(Move::Going { generation, alloc, why, revision, notice: None })
        }
        other => other,
    };
    if replica.revision == former {
        if let Phase::Stopping { then: then @ Next::Here(_), .. } = &mut replica.phase {
            *then = Next::Here(former);
        }
        return;
    }
    if let Phase::Waiting { not_before_ms, .. } = &mut replica.phase {
        // The back-off was the other version's.
        *not_before_ms = 0;
        (replica.revision, replica.restarts) = (former, 0);
    }
}

pub(super) fn renew(
    state: &mut State,
    no: JobNo,
    place: u16,
    from: Generation,
    revision: Revision,
    to: Option<&Placement>,
) -> Result<Answer, Refusal> {
    let Some(job) = state.job(no) else { return Ok(Answer::Count(0)) };
    let changed = |text: &str| Err(Refusal::new(Reason::PlanChanged, format!("job {}: {text}", job.request)));
    let Some(replica) = job.replicas.get(usize::from(place)) else { return changed("has no such replica") };
    let open = job.open_rollout().is_some() && job.target_revision() == revision && !job.stopped;
    if !open || replica.generation != from || replica.revision == revision || replica.other_allocation().is_some() {
        return changed("the replica does not change its version");
    }
    match (&replica.phase, to) {
        (Phase::Waiting { since_ms, last, .. }, None) => {
            let phase = Phase::Waiting { since_ms: *since_ms, not_before_ms: 0, last: *last };
            let next = Replica { phase, revision, restarts: 0, ..replica.clone() };
            put(state, no, place, next);
            Ok(Answer::Count(1))
        }
        (Phase::Held { alloc, .. }, None) => {
            let alloc = alloc.clone();
            trust::judge_change(state, job, replica.revision, revision)?;
            if !job.goes_back() && rollout::takes_over(state, &alloc, job.spec_of(revision)).is_none() {
                return changed("its node does not take the version, or nothing at all");
            }
            // What does not serve is not missed: a version that never comes up can always be replaced.
            if rollout::is_ready(replica) && !disruption::allows(job, &[place]) {
                return changed("as many of its replicas are missing as it lets be missing at once");
            }
            let phase = Phase::Stopping {
                alloc: alloc.clone(),
                why: Reason::Rollout,
                then: Next::Here(revision),
                notice: None,
            };
            let next = Replica { phase, moving: None, ..replica.clone() };
            put(state, no, place, next);
            Ok(Answer::Count(1))
        }
        (Phase::Held { alloc, .. }, Some(to)) => {
            if job.spec.movable() != Movable::Surge || alloc.node == to.alloc.node || to.replica != place {
                return changed("a second copy comes up on another node, where two are allowed");
            }
            trust::judge_change(state, job, replica.revision, revision)?;
            fits(state, Some(job.tenant), job.spec_of(revision), std::slice::from_ref(to), &[])?;
            super::job::together(state, &job.spec, &job.replicas, std::slice::from_ref(to))?;
            judge::check_copy(state, job, place, &to.alloc).map_err(|over| over.refusal())?;
            let next = moving::replaced(replica, to, Reason::Rollout, revision);
            moving::announce(state, &job.clone(), &next, place, Reason::Rollout);
            put(state, no, place, next);
            Ok(Answer::Count(1))
        }
        _ => changed("the replica is not to be replaced"),
    }
}

fn put(state: &mut State, no: JobNo, place: u16, next: Replica) {
    let Some(job) = state.job(no) else { return };
    let mut job = (**job).clone();
    let before = job.state();
    job.replicas[usize::from(place)] = next;
    save(state, job, before, Some(Reason::Rollout));
}

/// What a report says of the version that its copy runs.
#[derive(Clone, Copy)]
pub(super) enum News {
    Ready,
    /// It ended by its own doing, and nobody had told it to.
    Failed(Reason),
}

pub(super) fn news(spec: &JobSpec, copy: Copy<'_>, kind: &ReportKind) -> Option<News> {
    match (copy, kind) {
        (_, ReportKind::Stage(Stage::Ready)) => Some(News::Ready),
        (Copy::Own(Phase::Held { .. }) | Copy::Coming(_), ReportKind::Ended { ok, why }) => {
            let failed = !super::job::is_done(spec, *ok) && super::job::its_own(*why);
            failed.then_some(News::Failed(*why))
        }
        _ => None,
    }
}

/// Notes in the job's rollout what an agent said of a copy of the new version.
pub(super) fn heard(job: &mut Job, revision: Revision, news: Option<News>, now: u64) {
    let under_trial =
        |rollout: &&mut Box<Rollout>| rollout.revision == revision && matches!(rollout.course, Course::Forward { .. });
    let Some(rollout) = job.rollout.as_mut().filter(under_trial) else { return };
    match news {
        Some(News::Ready) => rollout.progress_ms = now,
        Some(News::Failed(why)) => {
            let more = if super::job::never_again(why) { MOST_FAILURES } else { 1 };
            rollout.failures = rollout.failures.saturating_add(more);
            rollout.last_failure = Some(why);
        }
        None => {}
    }
}

/// The copy has ended, and one of that revision follows: the one that is on its way, or one in the
/// very place at once, so that nobody else takes it meanwhile. Where the place is not to be used any
/// more, it waits for another.
pub(super) fn replaced_here(state: &State, job: &Job, replica: &Replica, revision: Revision, why: Reason) -> Replica {
    let phase = Phase::Waiting { since_ms: state.meta().now_ms, not_before_ms: 0, last: Some(why) };
    let ended = Replica { phase, revision, restarts: 0, choice: None, ..replica.clone() };
    let comes = matches!(replica.moving, Some(Move::Coming { .. }));
    // What has ended meanwhile keeps no place, either.
    let let_in = trust::judge_change(state, job, replica.revision, revision).is_ok();
    let place = replica.allocation().filter(|_| !comes && let_in);
    match place.and_then(|alloc| Some((alloc, rollout::takes_over(state, alloc, job.spec_of(revision))?))) {
        Some((alloc, shares)) => {
            let alloc = Allocation { at_ms: state.meta().now_ms, shares, ..alloc.clone() };
            let newest = Generation(replica.newest.0 + 1);
            let phase = Phase::Held { alloc, stage: Stage::Scheduled };
            let moving = replica.moving.clone().filter(|moving| matches!(moving, Move::Going { .. }));
            Replica { generation: newest, newest, phase, moving, choice: replica.choice.clone(), ..ended }
        }
        None => moving::settle(&job.spec, replica, ended),
    }
}

fn emit(state: &mut State, job: &Job) {
    let Some(rollout) = job.rollout.as_deref() else { return };
    state.emit(EventKind::Rollout {
        request: job.request.clone(),
        tenant: job.spec.tenant.clone(),
        model: job.spec.model.clone(),
        revision: rollout.revision,
        from: rollout.from.version.clone(),
        to: rollout.to.version.clone(),
        course: rollout.course,
        counts: rollout.counts.clone(),
    });
}
