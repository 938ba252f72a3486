//! Who is next. Waiting jobs are tried by priority, then by fair share (the
//! tenant of which the resource it uses most, as a part of its quota, is used least), then
//! by age. The first few that wait for room keep a node each, so that later and smaller work
//! can't starve them.

use super::{Limits, devices, filter, preempt};
use crate::budget::afford::{Offer, affordable};
use crate::budget::{Rates, judge};
use crate::capacity::{Class, Flavor};
use crate::claim::{self, Claim};
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Constraints, Job, JobSpec, Phase, Replica};
use crate::quota;
use crate::reason::Reason;
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use crate::trust;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// How many of the first waiters keep room for themselves.
pub const KEPT: usize = 4;
/// Most nodes that are kept for one gang.
const KEPT_FOR_GANG: usize = 64;
/// Among how many of the first waiters those are looked for: some wait for their quota.
const HEAD: usize = 64;
/// Among how many, where some get no place at all.
const LOOKED_FOR_HEAD: usize = 1024;
/// How many waiters one pass looks at, so that a pass stays short. Most need no
/// more than a look at their quota, so this is far more than it can place.
pub const LOOKED_AT: usize = 16_384;
/// Different asks of one tenant that may fail in a pass before the pass leaves
/// the tenant alone: nobody may hold up the others with what can't run.
const FAILS: u32 = 64;

/// Different askers of one pass for whom others are looked for who could give way.
const TRIES: usize = 64;

/// Place in the order; the greatest goes first.
type Rank = (i32, Reverse<u64>, Reverse<JobNo>);

fn rank(state: &State, job: &Job) -> Rank {
    (i32::from(job.spec.priority), Reverse(quota::dominant_share(state, job.tenant)), Reverse(job.no))
}

/// Replicas of a job that wait for a place, all of one version, and what that asks for.
struct Asker<'a> {
    job: &'a Job,
    spec: &'a Arc<JobSpec>,
    wanted: Vec<u16>,
}

/// The job's replicas that could be placed now: in a rollout they may be of two versions, which ask apart.
fn askers<'a>(state: &State, job: &'a Job) -> impl Iterator<Item = Asker<'a>> {
    let versions = job.by_version(job.placeable(state.meta().now_ms));
    versions.into_iter().map(move |(spec, wanted)| Asker { job, spec, wanted })
}

/// Waiting jobs in order, up to `limit`.
pub fn waiters(state: &State, limit: usize) -> Vec<Arc<Job>> {
    in_order(state).take(limit).collect()
}

/// Waiting jobs in order. Reads the head of each tenant's queue and the next one only when that is taken.
fn in_order(state: &State) -> impl Iterator<Item = Arc<Job>> {
    let mut heap: BinaryHeap<(Rank, TenantNo)> = BinaryHeap::new();
    let next = move |after: (TenantNo, i32, JobNo)| {
        let (tenant, ..) = after;
        let found = state.waiting.get_next(&after).copied();
        found.filter(|(t, ..)| *t == tenant).and_then(|(_, _, no)| state.job(no))
    };
    let mut tenant = state.waiting.get_min().map(|(t, ..)| *t);
    while let Some(no) = tenant {
        if let Some(job) = next((no, i32::MIN, JobNo(0))) {
            heap.push((rank(state, job), no));
        }
        tenant = state.waiting.get_next(&(TenantNo(no.0 + 1), i32::MIN, JobNo(0))).map(|(t, ..)| *t);
    }
    std::iter::from_fn(move || {
        let ((priority, _, Reverse(no)), tenant) = heap.pop()?;
        if let Some(job) = next((tenant, -priority, JobNo(no.0 + 1))) {
            heap.push((rank(state, job), tenant));
        }
        state.job(no).cloned()
    })
}

/// Whether the job waits for room, and not for its quota or the end of a back-off.
fn waits_for_room(state: &State, job: &Job) -> bool {
    let now = state.meta().now_ms;
    let wanted = job.placeable(now).count() as u64;
    let times = if job.spec.gang { wanted } else { 1 };
    wanted > 0
        && job.claim.is_none()
        && quota::allows(state, Some(job.tenant), &job.spec.resources, times)
        && quota::types::some_open(state, Some(job.tenant), &job.spec, times)
        && judge::blocks(state, job, &[]).is_none()
}

/// The nodes kept for those of the first waiters that go before `priority`
/// (equal priority included: they came first).
pub fn kept_nodes(state: &State, priority: i16) -> Vec<NodeNo> {
    if !state.has_waiters() {
        return Vec::new();
    }
    // One that gets no place keeps none from others, however far ahead it is.
    let first = in_order(state).take(LOOKED_FOR_HEAD).filter(|job| trust::withheld(state, job).is_none());
    let ahead = first.take(HEAD).filter(|job| job.spec.priority >= priority && waits_for_room(state, job));
    let mut kept = claim::nodes(state);
    for job in ahead.take(KEPT) {
        // What it can't pay is not kept for it.
        for asker in askers(state, &job) {
            let ask = match judge::concerns(state, job.tenant) {
                true => fill(state, &asker, &kept),
                false => Offer::NoRoom(Cow::Borrowed(&**asker.spec)),
            };
            if let Offer::NoRoom(ask) = ask {
                kept.extend(targets(state, &ask, asker.wanted.len(), &kept));
            }
        }
    }
    kept
}

/// The nodes to keep for a waiter: one, or for a gang as many as hold it when they
/// are empty. None for a gang that all nodes together could not hold.
pub(crate) fn targets(state: &State, spec: &JobSpec, wanted: usize, taken: &[NodeNo]) -> Vec<NodeNo> {
    // Devices of which its tenant may have no more are no room for it.
    let Some(spec) = super::narrowed(state, spec) else { return Vec::new() };
    let ask = &Ask::of(state, &spec);
    let mut taken = taken.to_vec();
    let before = taken.len();
    let mut missing = if ask.gang { wanted as u64 } else { 1 };
    while missing > 0 && taken.len() - before < KEPT_FOR_GANG {
        let Some(node) = target(state, ask, &taken) else { return Vec::new() };
        taken.push(node);
        let holds = state.capacity().class(node).map_or(1, |class| devices::most(&class.flavor, ask));
        missing = missing.saturating_sub(holds.max(1));
    }
    taken.split_off(before)
}

/// The node that will most likely have room for the job first: of those that could
/// hold it when empty, the one with the most free GPU, then CPU; ties by number.
fn target(state: &State, ask: &Ask<'_>, taken: &[NodeNo]) -> Option<NodeNo> {
    // Classes come in the order of their flavors, so one verdict serves many.
    let mut judged: Option<(&Arc<Flavor>, bool)> = None;
    let mut could = |class: &'_ Class, flavor| {
        if !judged.is_some_and(|(known, _)| Arc::ptr_eq(known, flavor)) {
            judged = Some((flavor, filter::may_ever_run(flavor, ask)));
        }
        class.takes_work() && judged.is_some_and(|(_, may)| may)
    };
    if let Some(name) = &ask.constraints.node {
        let node = state.node_named(name)?.no;
        let class = state.capacity().class(node).filter(|_| !taken.contains(&node))?;
        return could(class, &class.flavor).then_some(node);
    }
    let mut best: Option<(u64, u64, Reverse<NodeNo>)> = None;
    for (class, nodes) in &state.capacity().classes {
        if !could(class, &class.flavor) {
            continue;
        }
        let Some(node) = nodes.iter().find(|node| !taken.contains(node)) else { continue };
        let rank = (class.free_gpu_milli(), class.cpu_milli, Reverse(*node));
        if best.as_ref().is_none_or(|b| rank > *b) {
            best = Some(rank);
        }
    }
    best.map(|(.., Reverse(node))| node)
}

/// One pass over the waiters: places for those that can run now, at most `limit` jobs.
pub fn pass(state: &State, limit: usize) -> Vec<crate::command::Command> {
    let mut scratch = state.speculative();
    let mut hopeless: BTreeSet<Shape> = BTreeSet::new();
    let mut fails: BTreeMap<TenantNo, u32> = BTreeMap::new();
    let waiters = waiters(state, LOOKED_AT);
    let mut kept: Vec<NodeNo> = claim::nodes(state);
    let mut keepers = 0;
    // Each (tenant, priority, ask) for which somebody was looked for who could give way.
    let mut asked: BTreeSet<(TenantNo, i16, Shape)> = BTreeSet::new();
    let mut out = Vec::new();
    let mut placed: Option<JobNo> = None;
    for asker in waiters.iter().flat_map(|job| askers(state, job)) {
        if out.len() == limit {
            break;
        }
        let (job, wanted) = (asker.job, asker.wanted.len());
        // Its replicas of another version are judged beside these, by the next pass.
        if placed == Some(job.no) {
            continue;
        }
        // It may be let in again, or be paid for, and takes no room meanwhile.
        if trust::withheld(state, job).is_some() || judge::blocks(&scratch, job, &[]).is_some() {
            continue;
        }
        let failed = fails.entry(job.tenant).or_default();
        if *failed == FAILS || job.claim.is_some() {
            continue;
        }
        let shape = shape(Ask::of(state, asker.spec), wanted);
        let mut fails_now = false;
        let mut ask = Cow::Borrowed(&**asker.spec);
        if waits_for_room(&scratch, job) && !hopeless.contains(&shape) {
            scratch.stand(asker.spec);
            match fill(&scratch, &asker, &kept) {
                Offer::Places(picks) => {
                    let placements: Vec<_> =
                        picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect();
                    placed = Some(job.no);
                    book(&mut scratch, job, &placements);
                    out.push(crate::command::Command::Place { job: job.no, placements });
                    continue;
                }
                // Nobody has to make room for it, and none is kept.
                Offer::TooDear => {
                    *failed += 1;
                    continue;
                }
                Offer::NoRoom(narrower) => ask = narrower,
            }
            // Nothing is released within a pass, so an equal ask fails as well; but not for want of a budget or
            // of a device type that only its tenant lacks.
            if !judge::concerns(&scratch, job.tenant) && quota::types::narrowed(&scratch, &job.spec).is_none() {
                hopeless.insert(shape);
            }
            *failed += 1;
            fails_now = true;
        }
        // What it lacks, room or quota, may be in the hands of others who have to give way.
        // Only before anything is placed: who borrowed is judged on the state as it is; the next pass goes on.
        if out.is_empty()
            && asked.len() < TRIES
            && preempt::may_help(&scratch, job)
            // Who has not waited long enough uses up no try, and speaks for no other of its kind.
            && !patient(&scratch, &asker).is_empty()
            && asked.insert((job.tenant, job.spec.priority, shape))
            && let Some(claim) = make_room(&scratch, &asker, &ask, &kept)
        {
            out.push(crate::command::Command::Preempt { job: job.no, claim: Box::new(claim) });
            // What the victims held is neither free nor theirs any more: the next pass sees it.
            break;
        }
        if fails_now && keepers < KEPT {
            let found = targets(&scratch, &ask, wanted, &kept);
            keepers += usize::from(!found.is_empty());
            kept.extend(found);
        }
    }
    out
}

/// What the later ones of a pass see of a job's new places.
fn book(scratch: &mut State, job: &Job, placements: &[crate::command::Placement]) {
    for placement in placements {
        scratch.book(&job.spec, placement.replica, &placement.alloc);
    }
    let prices = crate::budget::meter::prices(scratch, placements);
    let gone = Rates::of(scratch, &job.spec, &job.replicas);
    let come = Rates::with(scratch, &job.spec, &job.replicas, &prices);
    scratch.meter_job(job.tenant, &gone, &come);
}

/// Those who have waited long enough to make others give way.
fn patient(state: &State, asker: &Asker<'_>) -> Vec<u16> {
    let patient = asker.job.may_evict(state.meta().now_ms, state.meta().placement.preemption.delay_ms);
    patient.filter(|no| asker.wanted.contains(no)).collect()
}

/// Others who give way to the replicas, as they ask now: to all that have waited long enough, or else to one of them.
fn make_room(state: &State, asker: &Asker<'_>, ask: &JobSpec, kept: &[NodeNo]) -> Option<Claim> {
    let (job, wanted) = (asker.job, patient(state, asker));
    let siblings = super::siblings(&job.replicas, job.spec.constraints.arrangement);
    let limits = Limits { held: kept.to_vec(), siblings, skip_ports: 0 };
    let claim = claim_for(state, ask, &wanted, &limits)?;
    let paid = judge::check(state, Some(job.tenant), &job.spec, &job.replicas, &claim.placements);
    paid.is_ok().then_some(claim)
}

/// A claim for all of `wanted`, or, unless they are a gang, for the first of them.
pub fn claim_for(state: &State, spec: &JobSpec, wanted: &[u16], limits: &Limits) -> Option<Claim> {
    let all = preempt::claim(state, spec, wanted, limits);
    let one = || preempt::claim(state, spec, wanted.get(..1)?, limits);
    all.or_else(|| if spec.gang || wanted.len() < 2 { None } else { one() })
}

/// What decides whether a job finds a place: jobs of one shape fare alike.
type Shape<'a> = (&'a Resources, &'a Constraints, usize, u16, bool, bool);

fn shape(ask: Ask<'_>, wanted: usize) -> Shape<'_> {
    let spec = ask.spec();
    // A gang needs room for all at once, and a price is meant for all replicas.
    let at_once = if spec.gang { wanted } else { 1 };
    let priced = if spec.constraints.max_cost_per_hour.is_some() { spec.most_replicas() } else { 1 };
    (&spec.resources, &spec.constraints, at_once, priced, ask.takes_any(), filter::needs_engine(spec))
}

/// Places for as many of the replicas as quota, room and budget allow.
fn fill<'a>(state: &State, asker: &Asker<'a>, kept: &[NodeNo]) -> Offer<'a> {
    let job = asker.job;
    let wanted = within_quota(state, Some(job.tenant), asker.spec, asker.wanted.clone());
    let siblings = super::siblings(&job.replicas, job.spec.constraints.arrangement);
    let limits = Limits { held: kept.to_vec(), siblings, skip_ports: skip_ports(job, &wanted) };
    affordable(state, Some(job.tenant), asker.spec, &job.replicas, &wanted, &limits)
}

/// How many free ports to pass over for replicas whose last port was taken by
/// somebody else's program: one more with each launch, so that no try repeats another.
fn skip_ports(job: &Job, wanted: &[u16]) -> u16 {
    let taken = |replica: &&Replica| matches!(replica.phase, Phase::Waiting { last: Some(Reason::PortTaken), .. });
    let replicas = wanted.iter().filter_map(|no| job.replicas.get(usize::from(*no)));
    let launches = replicas.filter(taken).map(|replica| replica.newest.0).max().unwrap_or(0);
    u16::try_from(launches).unwrap_or(u16::MAX)
}

/// Cuts `wanted` to what the quota allows: for a gang all or none.
pub fn within_quota(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, mut wanted: Vec<u16>) -> Vec<u16> {
    while !wanted.is_empty() && !quota::allows(state, tenant, &spec.resources, wanted.len() as u64) {
        match spec.gang {
            true => wanted.clear(),
            false => drop(wanted.pop()),
        }
    }
    wanted
}
