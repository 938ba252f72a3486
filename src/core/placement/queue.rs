//! Who is next. Waiting jobs are tried by priority, then by fair share (the
//! tenant of which the resource it uses most, as a part of its quota, is used least), then
//! by age. The first few that wait for room keep a node each, so that later and smaller work
//! can't starve them.

use super::order::Order;
use super::{Limits, preempt};
use crate::bisect;
use crate::budget::afford::{Offer, affordable};
use crate::budget::judge;
use crate::claim::Claim;
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Job, JobSpec, Phase, Replica, Whereabouts};
use crate::quota::{self, Rooms};
use crate::reason::Reason;
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use std::cmp::Ordering;
use std::sync::Arc;

pub use super::keep::{KEPT, kept_nodes};
pub(crate) use super::keep::{kept_ahead, targets};

/// Replicas of a job that wait for a place, all of one version, and what that asks for.
pub(super) struct Asker<'a> {
    pub job: &'a Job,
    pub spec: &'a Arc<JobSpec>,
    pub wanted: Vec<u16>,
}

/// The job's replicas that could be placed now: in a rollout they may be of two versions, which ask apart.
pub(super) fn askers<'a>(state: &State, job: &'a Job) -> impl Iterator<Item = Asker<'a>> + use<'a> {
    let versions = job.by_version(job.placeable(state.meta().now_ms));
    versions.into_iter().map(move |(spec, wanted)| Asker { job, spec, wanted })
}

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
    waits(state, job, |times| quota::allows(state, Some(job.tenant), &job.spec.resources, times))
}

/// The same for one of many.
pub(super) fn waits_for_room_in(rooms: &mut Rooms, state: &State, job: &Job) -> bool {
    waits(state, job, |times| rooms.allow(state, job.tenant, &job.spec.resources, times))
}

fn waits(state: &State, job: &Job, allows: impl FnOnce(u64) -> bool) -> bool {
    let now = state.meta().now_ms;
    let wanted = job.placeable(now).count() as u64;
    let times = if job.spec.gang { wanted } else { 1 };
    wanted > 0
        && job.claim.is_none()
        && allows(times)
        && quota::types::some_open(state, Some(job.tenant), &job.spec, times)
        && judge::blocks(state, job, &[]).is_none()
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
    /// Which job it is, where its other replicas say in which domain its next one has to be.
    beside: Option<JobNo>,
}

impl Shape {
    pub fn of(state: &State, Asker { job, spec, wanted }: &Asker<'_>) -> Self {
        let placed = || job.replicas.iter().any(|replica| replica.home().is_some());
        let beside = (spec.constraints.topology.required.is_some() && placed()).then_some(job.no);
        let at_once = if spec.gang { wanted.len() } else { 1 };
        Self { spec: Arc::clone(spec), at_once, takes_any: Ask::of(state, spec).takes_any(), beside }
    }

    fn key(&self) -> (&Resources, Whereabouts<'_>, usize, u16, bool, bool, Option<JobNo>) {
        let spec = &*self.spec;
        // A price is meant for all replicas.
        let priced = if spec.constraints.max_cost_per_hour.is_some() { spec.most_replicas() } else { 1 };
        let (place, engine) = (spec.constraints.whereabouts(), spec.needs_engine());
        (&spec.resources, place, self.at_once, priced, self.takes_any, engine, self.beside)
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

/// Places for as many of the replicas as quota, room and budget allow.
pub(super) fn fill<'a>(rooms: &mut Rooms, state: &State, asker: &Asker<'a>, kept: &[NodeNo]) -> Offer<'a> {
    let job = asker.job;
    let wanted = within_rooms(rooms, state, Some(job.tenant), asker.spec, asker.wanted.clone());
    let siblings = super::siblings(&job.replicas, &job.spec.constraints);
    let skip_ports = skip_ports(job, &wanted);
    let limits = Limits { held: kept.to_vec(), siblings, skip_ports, ..Limits::default() };
    let offer =
        |limits: &Limits| affordable(state, Some(job.tenant), asker.spec, (&job.replicas, job.ran), &wanted, limits);
    let spoilt = spoilt(job, &wanted);
    if spoilt.is_empty() {
        return offer(&limits);
    }
    let mut held = [kept, &*spoilt].concat();
    held.sort_unstable();
    held.dedup();
    match offer(&Limits { held, ..limits.clone() }) {
        elsewhere @ Offer::Places(_) => elsewhere,
        // A node whose disk spoils copies is better than none.
        _ => offer(&limits),
    }
}

/// Nodes on whose disks the last copies of these replicas went bad: the next ones are tried elsewhere first.
fn spoilt(job: &Job, wanted: &[u16]) -> Vec<NodeNo> {
    let bad = |replica: &&Replica| matches!(replica.phase, Phase::Waiting { last: Some(Reason::ModelCopyCorrupt), .. });
    let replicas = wanted.iter().filter_map(|no| job.replicas.get(usize::from(*no)));
    replicas.filter(bad).filter_map(|replica| replica.last).collect()
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
pub fn within_quota(state: &State, tenant: Option<TenantNo>, spec: &JobSpec, wanted: Vec<u16>) -> Vec<u16> {
    within_rooms(&mut Rooms::default(), state, tenant, spec, wanted)
}

/// The same for one of many.
fn within_rooms(
    rooms: &mut Rooms,
    state: &State,
    tenant: Option<TenantNo>,
    spec: &JobSpec,
    mut wanted: Vec<u16>,
) -> Vec<u16> {
    let mut allows = |times: u64| match tenant {
        Some(tenant) => rooms.allow(state, tenant, &spec.resources, times),
        None => quota::allows(state, None, &spec.resources, times),
    };
    let all = wanted.len() as u64;
    let few = if spec.gang { all * u64::from(allows(all)) } else { bisect::most(all, allows) };
    wanted.truncate(few as usize);
    wanted
}
