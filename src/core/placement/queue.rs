//! Who is next. Waiting jobs are tried by priority, then by fair share (the
//! tenant of which the resource it uses most, as a part of its quota, is used least), then
//! by age. The first few that wait for room keep a node each, so that later and smaller work
//! can't starve them.

use super::keep::Keepers;
use super::order::Order;
use super::reserve::Reserves;
use super::{Limits, preempt};
use crate::budget::afford::{Offer, affordable, affordable_claim};
use crate::budget::{Rates, judge};
use crate::claim::Claim;
use crate::command::{Command, Placement};
use crate::id::{JobNo, NodeNo, TenantNo};
use crate::job::{Job, JobSpec, Phase, Replica, Whereabouts};
use crate::quota::{self, Rooms};
use crate::reason::Reason;
use crate::resources::Resources;
use crate::sharing::Ask;
use crate::state::State;
use crate::trust;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use super::keep::{KEPT, kept_nodes};
pub(crate) use super::keep::{kept_ahead, targets};

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

/// One pass over the waiters: places for those that can run now, at most `limit` jobs.
pub fn pass(state: &State, limit: usize) -> Vec<Command> {
    let mut pass = Pass::new(state);
    let mut order = Order::new(state);
    for _ in 0..LOOKED_AT {
        // Whoever was given something in this pass stands behind who has less now.
        let next = if pass.out.len() == limit { None } else { order.next(&pass.scratch) };
        let Some(job) = &next else { break };
        if pass.turn_of(job) {
            return pass.out;
        }
    }
    match pass.out.is_empty() {
        // Nobody finds a place: also those not who wait for the rest of their gang.
        true => super::gangs::give_back(state),
        false => pass.out,
    }
}

/// How things are when it is somebody's turn in a pass.
pub(super) struct Turn {
    /// With places for those ahead of it, and what is kept for them counted as held.
    pub state: State,
    /// Nodes that are kept for them.
    pub kept: Vec<NodeNo>,
    /// How many replicas ahead of it, of its own tenant too, found no place.
    pub missing: usize,
}

/// The turn of a job, or of a new one that would ask for `spec`. Nobody is made to give way meanwhile.
pub(super) fn turn(state: &State, spec: &JobSpec, job: Option<&Job>) -> Turn {
    let mut pass = Pass { evicts: false, ..Pass::new(state) };
    let mut order = Order::new(state);
    let mut missing = 0;
    for _ in 0..LOOKED_AT {
        let Some(ahead) = order.next(&pass.scratch) else { break };
        let is_ahead = match job {
            Some(job) => ahead.no != job.no,
            None => ahead.spec.priority >= spec.priority,
        };
        if !is_ahead {
            break;
        }
        let found = pass.out.len();
        pass.turn_of(&ahead);
        if pass.out.len() == found {
            missing += ahead.placeable(state.meta().now_ms).count();
        }
    }
    let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
    if let Some(tenant) = tenant {
        let which = pass.reserves.against(&pass.scratch, tenant, spec, job.map(|job| job.no));
        pass.reserves.count(&which, &mut pass.scratch);
    }
    Turn { state: pass.scratch, kept: pass.keepers.kept, missing }
}

/// How a pass goes on.
enum Next {
    Asker,
    Job,
    Pass,
}

/// What a look for places has come to.
enum Looked<'a> {
    Places(Vec<Placement>),
    /// What it asks for now, and whether this look found that there is none.
    NoRoom(Cow<'a, JobSpec>, bool),
    /// Quota, not room.
    Lacks,
    Leave,
}

/// What a pass has come to.
struct Pass {
    scratch: State,
    tried: Tried,
    keepers: Keepers,
    reserves: Reserves,
    rooms: Rooms,
    /// Others are made to give way.
    evicts: bool,
    /// Each (tenant, priority, ask) for which somebody was looked for who could give way.
    asked: BTreeSet<(TenantNo, i16, Shape)>,
    out: Vec<Command>,
}

impl Pass {
    fn new(state: &State) -> Self {
        Self {
            scratch: state.speculative(),
            tried: Tried::default(),
            keepers: Keepers::new(state),
            reserves: Reserves::default(),
            rooms: Rooms::default(),
            evicts: true,
            asked: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// Does what can be done for a waiter. True when that ends the pass.
    fn turn_of(&mut self, job: &Job) -> bool {
        // It may be let in again, and takes no room meanwhile.
        if job.claim.is_some() || trust::withheld(&self.scratch, job).is_some() {
            return false;
        }
        let unpaid = self.is_blocked(job);
        for asker in askers(&self.scratch, job) {
            if unpaid {
                self.reserves.add(&self.scratch, &asker);
                continue;
            }
            match self.take(&asker) {
                Next::Asker => {}
                // Its replicas of another version are judged beside these, by the next pass.
                Next::Job => break,
                Next::Pass => return true,
            }
        }
        false
    }

    fn is_blocked(&self, job: &Job) -> bool {
        judge::blocks(&self.scratch, job, &[]).is_some()
    }

    /// Gives the asker places, or else makes others give way.
    fn take(&mut self, asker: &Asker<'_>) -> Next {
        let job = asker.job;
        let shape = Shape::of(&self.scratch, asker);
        let ahead = self.reserves.against(&self.scratch, job.tenant, asker.spec, Some(job.no));
        self.reserves.count(&ahead, &mut self.scratch);
        let found = self.look(asker, &shape, ahead.is_empty());
        self.reserves.uncount(&ahead, &mut self.scratch);
        let (ask, fails_now) = match found {
            Looked::Places(placements) => {
                self.place(job, placements);
                return Next::Job;
            }
            // Nobody has to make room for what is not there to be had: it can't be paid, or is kept for others.
            Looked::Leave => return Next::Asker,
            Looked::Lacks if !ahead.is_empty() && waits_for_room(&self.scratch, job) => return Next::Asker,
            Looked::Lacks => {
                self.reserves.add(&self.scratch, asker);
                (Cow::Borrowed(&**asker.spec), false)
            }
            Looked::NoRoom(ask, now) => (ask, now),
        };
        if let Some(claim) = self.room_of_others(asker, shape, &ask) {
            self.out.push(Command::Preempt { job: job.no, claim: Box::new(claim) });
            // What the victims held is neither free nor theirs any more: the next pass sees it.
            return Next::Pass;
        }
        if fails_now && self.keepers.keep(&self.scratch, asker, &ask) {
            self.reserves.add_for_room(&self.scratch, asker);
        }
        Next::Asker
    }

    /// Looks for places, unless that was in vain before. `alone`: nothing is kept from it.
    fn look<'a>(&mut self, asker: &Asker<'a>, shape: &Shape, alone: bool) -> Looked<'a> {
        let waits = match alone {
            true => waits_for_room_in(&mut self.rooms, &self.scratch, asker.job),
            // What is kept for others is counted for this look alone.
            false => waits_for_room(&self.scratch, asker.job),
        };
        if !waits {
            return Looked::Lacks;
        }
        match self.tried.verdict(&self.scratch, asker.job, shape) {
            Verdict::Try => {}
            Verdict::NoRoom => return Looked::NoRoom(Cow::Borrowed(&**asker.spec), false),
            Verdict::Leave => return Looked::Leave,
        }
        match self.fill(asker) {
            Offer::Places(picks) => {
                Looked::Places(picks.into_iter().map(|(replica, pick)| pick.for_replica(replica)).collect())
            }
            Offer::TooDear => {
                self.tried.failed(&self.scratch, asker, shape.clone(), true);
                Looked::Leave
            }
            Offer::NoRoom(narrower) => {
                self.tried.failed(&self.scratch, asker, shape.clone(), false);
                Looked::NoRoom(narrower, true)
            }
        }
    }

    fn fill<'a>(&mut self, asker: &Asker<'a>) -> Offer<'a> {
        self.scratch.stand(asker.spec);
        fill(&self.scratch, asker, &self.keepers.kept)
    }

    fn place(&mut self, job: &Job, placements: Vec<Placement>) {
        book(&mut self.scratch, job, &placements);
        self.rooms.take(&self.scratch, job.tenant, &job.spec.resources, placements.len() as u64);
        self.out.push(Command::Place { job: job.no, placements });
    }

    /// What it lacks, room or quota, may be in the hands of others who have to give way. Only before anything is
    /// placed: who borrowed is judged on the state as it is; the next pass goes on.
    fn room_of_others(&mut self, asker: &Asker<'_>, shape: Shape, ask: &JobSpec) -> Option<Claim> {
        let job = asker.job;
        if !self.evicts || !self.out.is_empty() || self.asked.len() == TRIES || !preempt::may_help(&self.scratch, job) {
            return None;
        }
        // Who has not waited long enough uses up no try, and speaks for no other of its kind.
        let fresh =
            !patient(&self.scratch, asker).is_empty() && self.asked.insert((job.tenant, job.spec.priority, shape));
        if fresh { make_room(&self.scratch, asker, ask, &self.keepers.kept) } else { None }
    }
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

    fn failed(&mut self, state: &State, Asker { job, spec, .. }: &Asker<'_>, shape: Shape, too_dear: bool) {
        let (looked, failed) = self.of.entry(job.tenant).or_default();
        (*looked, *failed) = (*looked + 1, *failed + 1);
        if too_dear {
            self.too_dear.insert((job.tenant, shape));
            return;
        }
        let own = judge::concerns(state, job.tenant) || quota::types::narrowed(state, spec).is_some();
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
fn book(scratch: &mut State, job: &Job, placements: &[Placement]) {
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
    let siblings = super::siblings(&job.replicas, &job.spec.constraints);
    let limits = Limits { held: kept.to_vec(), siblings, ..Limits::default() };
    let paid =
        |claim: &Claim| judge::check(state, Some(job.tenant), &job.spec, &job.replicas, &claim.placements).is_ok();
    affordable_claim(state, ask, |ask| claim_for(state, ask, &wanted, &limits), paid)
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
pub(super) fn fill<'a>(state: &State, asker: &Asker<'a>, kept: &[NodeNo]) -> Offer<'a> {
    let job = asker.job;
    let wanted = within_quota(state, Some(job.tenant), asker.spec, asker.wanted.clone());
    let siblings = super::siblings(&job.replicas, &job.spec.constraints);
    let skip_ports = skip_ports(job, &wanted);
    let limits = Limits { held: kept.to_vec(), siblings, skip_ports, ..Limits::default() };
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
