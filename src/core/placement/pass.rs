//! One pass over those who wait, in their order: places for who can have one now, others made to
//! give way where that is all that helps, and what is left is kept for the first. A turn is a
//! pass up to one waiter: how things are when those ahead of it have had theirs.

use super::keep::Keepers;
use super::order::Order;
use super::queue::{Asker, Shape, askers, claim_for, fill, waits_for_room, waits_for_room_in};
use super::reserve::Reserves;
use super::turns::{Looks, has_its_turn};
use super::victims::Victims;
use super::{Limits, preempt};
use crate::budget::afford::{Offer, affordable_claim};
use crate::budget::{Rates, judge};
use crate::claim::Claim;
use crate::command::{Command, Placement};
use crate::id::{NodeNo, TenantNo};
use crate::job::{Job, JobSpec};
use crate::quota::{self, Rooms};
use crate::state::State;
use crate::trust;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// How many waiters one pass looks at, so that a pass stays short. Most need no
/// more than a look at their quota, so this is far more than it can place.
pub const LOOKED_AT: usize = 16_384;
/// Replicas that one pass places, so that its entry stays short. One job alone may be larger.
const PLACED: usize = 512;
/// Different asks of one tenant that may fail in a pass before the pass leaves
/// the tenant alone: nobody may hold up the others with what can't run.
const FAILS: u32 = 64;
/// So many different asks of one tenant are tried in every pass; of those behind them some, and others in the next.
const ALWAYS: u32 = 32;

/// One pass over the waiters: places for those that can run now, at most `limit` jobs.
pub fn pass(state: &State, limit: usize) -> Vec<Command> {
    let out = go_through(Pass::new(state), state, limit);
    match out.is_empty() {
        // Nobody finds a place: also those not who wait for the rest of their gang.
        true => super::gangs::give_back(state),
        false => out,
    }
}

/// The same where nobody is made to give way.
pub(crate) fn places(state: &State, limit: usize) -> Vec<Command> {
    go_through(Pass { evicts: false, ..Pass::new(state) }, state, limit)
}

fn go_through(mut pass: Pass, state: &State, limit: usize) -> Vec<Command> {
    let mut order = Order::new(state);
    let mut looks = Looks::new(&order);
    for _ in 0..LOOKED_AT {
        // Whoever was given something in this pass stands behind who has less now.
        let is_full = pass.out.len() == limit || pass.placed >= pass.most;
        let next = if is_full { None } else { order.next(&pass.scratch) };
        let Some(job) = &next else { break };
        let before = pass.out.len();
        if pass.turn_of(job) {
            return pass.out;
        }
        if pass.out.len() == before {
            looks.in_vain(state, &mut order, job.tenant);
        }
    }
    pass.out
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
    // Of those ahead each has what it could have, however many passes that would take.
    let mut pass = Pass { evicts: false, most: usize::MAX, ..Pass::new(state) };
    let mut order = Order::new(state);
    let mut looks = Looks::new(&order);
    let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
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
            if tenant != Some(ahead.tenant) {
                looks.in_vain(state, &mut order, ahead.tenant);
            }
        }
    }
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
    victims: Victims,
    out: Vec<Command>,
    /// Replicas that are placed by those, and about how many may be.
    placed: usize,
    most: usize,
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
            victims: Victims::default(),
            out: Vec::new(),
            placed: 0,
            most: PLACED,
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
        let lacks = matches!(found, Looked::Lacks);
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
        if let Some(claim) = self.room_of_others(asker, shape, &ask, lacks) {
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
        match self.fill(asker, alone) {
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

    fn fill<'a>(&mut self, asker: &Asker<'a>, alone: bool) -> Offer<'a> {
        self.scratch.stand(asker.spec);
        let most = if asker.spec.gang { usize::MAX } else { self.most.saturating_sub(self.placed) };
        let wanted = asker.wanted.iter().take(most).copied().collect();
        let mut counted = Rooms::default();
        let rooms = if alone { &mut self.rooms } else { &mut counted };
        fill(rooms, &self.scratch, &Asker { wanted, ..*asker }, &self.keepers.kept)
    }

    fn place(&mut self, job: &Job, placements: Vec<Placement>) {
        book(&mut self.scratch, job, &placements);
        self.rooms.take(&self.scratch, job.tenant, &job.spec.resources, placements.len() as u64);
        self.placed += placements.len();
        self.out.push(Command::Place { job: job.no, placements });
    }

    /// What it lacks, room or quota, may be in the hands of others who have to give way. Only before anything is
    /// placed: who borrowed is judged on the state as it is; the next pass goes on.
    fn room_of_others(&mut self, asker: &Asker<'_>, shape: Shape, ask: &JobSpec, lacks: bool) -> Option<Claim> {
        let job = asker.job;
        if !self.evicts || !self.out.is_empty() || !preempt::may_help(&self.scratch, job) {
            return None;
        }
        // Who has not waited long enough uses up no try, and speaks for no other of its kind.
        let tried =
            !patient(&self.scratch, asker).is_empty() && self.victims.is_its_turn(&self.scratch, asker, shape, lacks);
        if tried { make_room(&self.scratch, asker, ask, &self.keepers.kept) } else { None }
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

    fn failed(&mut self, state: &State, asker: &Asker<'_>, shape: Shape, too_dear: bool) {
        let tenant = asker.job.tenant;
        let (looked, failed) = self.of.entry(tenant).or_default();
        (*looked, *failed) = (*looked + 1, *failed + 1);
        if too_dear {
            self.too_dear.insert((tenant, shape));
            return;
        }
        self.in_vain.insert((is_own(state, asker).then_some(tenant), shape));
    }
}

/// Whether what is found for the asker is its tenant's own: another's budget, or quota of device types, may reach further.
pub(super) fn is_own(state: &State, asker: &Asker<'_>) -> bool {
    judge::concerns(state, asker.job.tenant) || quota::types::narrowed(state, asker.spec).is_some()
}

/// What the later ones of a pass see of a job's new places.
fn book(scratch: &mut State, job: &Job, placements: &[Placement]) {
    for placement in placements {
        scratch.book(&job.spec, placement.replica, &placement.alloc);
    }
    let prices = crate::budget::meter::prices(scratch, placements);
    let gone = Rates::of(scratch, &job.spec, &job.replicas, job.ran);
    let come = Rates::with(scratch, &job.spec, &job.replicas, job.ran, &prices);
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
    let paid = |claim: &Claim| {
        judge::check(state, Some(job.tenant), &job.spec, (&job.replicas, job.ran), &claim.placements).is_ok()
    };
    affordable_claim(state, ask, |ask| claim_for(state, ask, &wanted, &limits), paid)
}
