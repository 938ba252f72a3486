//! Who is next. Waiting jobs are tried by priority, then by fair share (the
//! tenant of which the resource it uses most, as a part of its quota, is used least), then
//! by age. The first few that wait for room keep a node each, so that later and smaller work
//! can't starve them.

use super::keep::Keepers;
use super::order::Order;
use super::{Limits, preempt};
use crate::budget::afford::{Offer, affordable};
use crate::budget::{Rates, judge};
use crate::claim::Claim;
use crate::id::{NodeNo, TenantNo};
use crate::job::{Constraints, Job, JobSpec, Phase, Replica};
use crate::quota;
use crate::reason::Reason;
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use crate::trust;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) use super::keep::targets;
pub use super::keep::{KEPT, kept_nodes};

/// How many waiters one pass looks at, so that a pass stays short. Most need no
/// more than a look at their quota, so this is far more than it can place.
pub const LOOKED_AT: usize = 16_384;
/// Different asks of one tenant that may fail in a pass before the pass leaves
/// the tenant alone: nobody may hold up the others with what can't run.
const FAILS: u32 = 64;
/// So many different asks of one tenant are tried in every pass; of those behind them some, and others in the next.
const ALWAYS: u32 = 32;

/// Different askers of one pass for whom others are looked for who could give way.
const TRIES: usize = 64;

/// Waiting jobs in order, up to `limit`.
pub fn waiters(state: &State, limit: usize) -> Vec<Arc<Job>> {
    in_order(state).take(limit).collect()
}

/// Waiting jobs in order, by what their tenants hold now.
fn in_order(state: &State) -> impl Iterator<Item = Arc<Job>> {
    let mut order = Order::new(state);
    std::iter::from_fn(move || order.next(state))
}

/// Whether the job waits for room, and not for its quota or the end of a back-off.
pub(super) fn waits_for_room(state: &State, job: &Job) -> bool {
    let now = state.meta().now_ms;
    let wanted = job.placeable(now).count() as u64;
    let times = if job.spec.gang { wanted } else { 1 };
    wanted > 0
        && job.claim.is_none()
        && quota::allows(state, Some(job.tenant), &job.spec.resources, times)
        && quota::types::some_open(state, Some(job.tenant), &job.spec, times)
        && judge::blocks(state, job, &[]).is_none()
}

/// One pass over the waiters: places for those that can run now, at most `limit` jobs.
pub fn pass(state: &State, limit: usize) -> Vec<crate::command::Command> {
    let mut scratch = state.speculative();
    let mut tried = Tried::default();
    let mut keepers = Keepers::new(state);
    // Each (tenant, priority, ask) for which somebody was looked for who could give way.
    let mut asked: BTreeSet<(TenantNo, i16, Shape)> = BTreeSet::new();
    let mut out = Vec::new();
    let mut order = Order::new(state);
    for _ in 0..LOOKED_AT {
        // Whoever was given something in this pass stands behind who has less now.
        let next = if out.len() == limit { None } else { order.next(&scratch) };
        let Some(job) = &next else { break };
        // It may be let in again, or be paid for, and takes no room meanwhile.
        if trust::withheld(state, job).is_some() || judge::blocks(&scratch, job, &[]).is_some() {
            continue;
        }
        let wanted = job.placeable(state.meta().now_ms).count();
        if job.claim.is_some() || wanted == 0 {
            continue;
        }
        let shape = Shape::of(state, job, wanted);
        let mut fails_now = false;
        let mut ask = Cow::Borrowed(&*job.spec);
        if waits_for_room(&scratch, job) {
            match tried.verdict(&scratch, job, &shape) {
                Verdict::Try => {
                    scratch.stand(&job.spec);
                    match fill(&scratch, job, &keepers.kept) {
                        Offer::Places(picks) => {
                            let placements: Vec<_> =
                                picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect();
                            book(&mut scratch, job, &placements);
                            out.push(crate::command::Command::Place { job: job.no, placements });
                            continue;
                        }
                        // Nobody has to make room for it, and none is kept.
                        Offer::TooDear => {
                            tried.failed(&scratch, job, shape, true);
                            continue;
                        }
                        Offer::NoRoom(narrower) => ask = narrower,
                    }
                    tried.failed(&scratch, job, shape.clone(), false);
                    fails_now = true;
                }
                Verdict::NoRoom => {}
                Verdict::Leave => continue,
            }
        }
        // What it lacks, room or quota, may be in the hands of others who have to give way.
        // Only before anything is placed: who borrowed is judged on the state as it is; the next pass goes on.
        if out.is_empty()
            && asked.len() < TRIES
            && preempt::may_help(&scratch, job)
            // Who has not waited long enough uses up no try, and speaks for no other of its kind.
            && job.may_evict(scratch.meta().now_ms, scratch.meta().placement.preemption.delay_ms).next().is_some()
            && asked.insert((job.tenant, job.spec.priority, shape))
            && let Some(claim) = make_room(&scratch, job, &ask, &keepers.kept)
        {
            out.push(crate::command::Command::Preempt { job: job.no, claim: Box::new(claim) });
            // What the victims held is neither free nor theirs any more: the next pass sees it.
            break;
        }
        if fails_now {
            keepers.keep(&scratch, job, &ask);
        }
    }
    if out.is_empty() {
        // Nobody finds a place: also those not who wait for the rest of their gang.
        return super::gangs::give_back(state);
    }
    out
}

/// What a pass has tried in vain. Nothing is released within a pass, so an equal ask fails as well.
#[derive(Default)]
struct Tried {
    /// None: for whoever asks. Some: for want of a budget, or of a device type, that only its tenant lacks.
    in_vain: BTreeSet<(Option<TenantNo>, Shape)>,
    /// There is room that the tenant can't pay.
    too_dear: BTreeSet<(TenantNo, Shape)>,
    /// Asks that another pass will try.
    another_time: BTreeSet<(TenantNo, Shape)>,
    /// How many different asks of each tenant were looked at, and how many of them failed.
    of: BTreeMap<TenantNo, (u32, u32)>,
}

enum Verdict {
    Try,
    NoRoom,
    /// Not in this pass.
    Leave,
}

impl Tried {
    fn verdict(&mut self, state: &State, job: &Job, shape: &Shape) -> Verdict {
        let known = |tenant| self.in_vain.contains(&(tenant, shape.clone()));
        if known(None) || known(Some(job.tenant)) {
            return Verdict::NoRoom;
        }
        let own = (job.tenant, shape.clone());
        if self.too_dear.contains(&own) || self.another_time.contains(&own) {
            return Verdict::Leave;
        }
        let (looked, failed) = self.of.entry(job.tenant).or_default();
        if *failed < FAILS && (*failed < ALWAYS || has_its_turn(state, *looked)) {
            return Verdict::Try;
        }
        *looked += 1;
        self.another_time.insert(own);
        Verdict::Leave
    }

    fn failed(&mut self, state: &State, job: &Job, shape: Shape, too_dear: bool) {
        let (looked, failed) = self.of.entry(job.tenant).or_default();
        (*looked, *failed) = (*looked + 1, *failed + 1);
        if too_dear {
            self.too_dear.insert((job.tenant, shape));
            return;
        }
        let own = judge::concerns(state, job.tenant) || quota::types::narrowed(state, &job.spec).is_some();
        self.in_vain.insert((own.then_some(job.tenant), shape));
    }
}

/// Whether this pass tries a tenant's ask with that many different ones before it: by lot, in some passes one in two,
/// in some one in two hundred, so that each has its turn however many there are.
fn has_its_turn(state: &State, no: u32) -> bool {
    let mix = |n: u64| (n ^ n >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let pass = mix(state.meta().now_ms ^ state.meta().base << 32);
    mix(pass ^ u64::from(no) << 8) & ((2 << (pass & 7)) - 1) == 0
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

/// Others who give way to the job, as it asks now, for all its replicas that have waited long enough, or else for
/// one of them.
fn make_room(state: &State, job: &Job, ask: &JobSpec, kept: &[NodeNo]) -> Option<Claim> {
    let wanted: Vec<u16> = job.may_evict(state.meta().now_ms, state.meta().placement.preemption.delay_ms).collect();
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

/// What decides whether a job finds a place: jobs of one shape fare alike. As it shares the spec, it costs nothing to
/// make.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    spec: Arc<JobSpec>,
    /// A gang needs room for all at once.
    at_once: usize,
    takes_any: bool,
}

impl Shape {
    pub fn of(state: &State, job: &Job, wanted: usize) -> Self {
        let at_once = if job.spec.gang { wanted } else { 1 };
        Self { spec: job.spec.clone(), at_once, takes_any: Ask::of(state, &job.spec).takes_any() }
    }

    fn key(&self) -> (&Resources, &Constraints, usize, u16, bool, bool) {
        let spec = &*self.spec;
        // A price is meant for all replicas.
        let priced = if spec.constraints.max_cost_per_hour.is_some() { spec.most_replicas() } else { 1 };
        (&spec.resources, &spec.constraints, self.at_once, priced, self.takes_any, spec.needs_engine())
    }
}

impl Ord for Shape {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Shape {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Shape {}

/// Places for as many waiting replicas of the job as quota, room and budget allow.
pub(super) fn fill<'a>(state: &State, job: &'a Job, kept: &[NodeNo]) -> Offer<'a> {
    let wanted: Vec<u16> = job.placeable(state.meta().now_ms).collect();
    let wanted = within_quota(state, Some(job.tenant), &job.spec, wanted);
    let siblings = super::siblings(&job.replicas, job.spec.constraints.arrangement);
    let limits = Limits { held: kept.to_vec(), siblings, skip_ports: skip_ports(job, &wanted) };
    affordable(state, Some(job.tenant), &job.spec, &job.replicas, &wanted, &limits)
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
