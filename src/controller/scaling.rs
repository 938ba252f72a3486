//! The leader's look at every service: what the members' gateways see goes through
//! the autoscaler, and what it decides is submitted, with what it was decided from.
//! Everything here dies with the term; a new leader learns for a while before it
//! takes anything away. It does not decide itself.

use crate::exchange::sights::{BUCKETS, Measured, p95_ms};
use crate::exchange::{Advice, Panorama, Sight};
use nf_core::autoscaler::signal::Reading;
use nf_core::autoscaler::source::{Ears, Heard, Load, Told};
use nf_core::autoscaler::{Autoscaler, Decision, Limits, Service, Signals, Why};
use nf_core::budget::judge::most_replicas;
use nf_core::id::{Generation, JobNo, MemberId, ModelId, NodeNo, TenantId};
use nf_core::job::{Job, Next, Phase, Replica, Stage};
use nf_core::node::NodeState;
use nf_core::plan::Intent;
use nf_core::quota;
use nf_core::reconcile::ReplicaId;
use nf_core::scaling::{Scaling, Target};
use nf_core::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Looks for which a new leader takes nothing away.
const SETTLE: u32 = 12;
/// What a request takes, until some were seen, in milliseconds: no job says it.
const SERVICE_MS: u64 = 1_000;

type Name = (TenantId, ModelId);

/// What a look at one service came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub tenant: TenantId,
    pub model: ModelId,
    /// Replicas wanted when it was looked at.
    pub current: u16,
    pub decision: Decision,
    /// It is told and not carried out.
    pub advisory: bool,
}

impl Look {
    /// For whoever asks what the leader would do.
    pub fn advice(&self) -> Advice {
        Advice {
            tenant: self.tenant.clone(),
            model: self.model.clone(),
            current: self.current.into(),
            desired: self.decision.desired,
            why: self.decision.why.token().to_owned(),
            advisory: self.advisory,
        }
    }
}

/// Counters of one member's gateway at the last look.
#[derive(Clone, Debug, Default)]
struct Last {
    epoch: u64,
    sights: BTreeMap<Name, Sight>,
}

/// What all gateways saw of one model since the last look.
#[derive(Clone, Debug)]
struct Sum {
    arrived: u64,
    waiting: u64,
    running: u64,
    answered: [u64; BUCKETS],
}

impl Default for Sum {
    fn default() -> Self {
        Self { arrived: 0, waiting: 0, running: 0, answered: [0; BUCKETS] }
    }
}

impl Sum {
    fn add(&mut self, now: &Sight, before: Option<&Sight>) {
        let was = |pick: fn(&Sight) -> u64| before.map_or(0, pick);
        self.arrived += now.arrived.saturating_sub(was(|s| s.arrived));
        self.waiting += u64::from(now.waiting);
        self.running += u64::from(now.running);
        for (i, count) in now.answered.iter().enumerate().take(BUCKETS) {
            let before = before.and_then(|s| s.answered.get(i)).copied().unwrap_or(0);
            self.answered[i] += count.saturating_sub(before);
        }
    }

    /// Of the requests that were answered since the last look; 0 when there were none.
    fn p95_ms(&self) -> u64 {
        p95_ms(&self.answered).unwrap_or(0)
    }
}

/// One service's autoscaler.
struct Known {
    scaling: Scaling,
    scaler: Autoscaler,
    ears: Ears,
    /// Whether a monitoring system has told of it in this term.
    measured: bool,
    /// What it said last.
    said: Option<u16>,
}

impl Known {
    /// A monitoring system's word goes before that of the replicas' agents, but for arrivals, which only
    /// these count. Where it should say something and does not, what is known may be too little.
    fn hear(&mut self, job: &Job, told: &BTreeMap<NodeNo, Vec<Told>>, measured: &Measured, share: u64) -> Heard {
        let ready = ready(job);
        let heard = self.ears.listen(&ready, told);
        match measured {
            Measured::Nobody => heard,
            Measured::Silent => Heard { gap: true, ..heard },
            Measured::Said(loads) => match loads.get(&name(job)) {
                // It knew of the service, whose replicas are still there. One that it never told of it may not
                // scrape at all: then the agents' word, with their own gaps, is all there is.
                None => Heard { gap: heard.gap || (self.measured && !ready.is_empty()), ..heard },
                Some(load) => {
                    self.measured = true;
                    let part = |n: u64| n.div_ceil(share.max(1));
                    let arrived = heard.load.map_or(0, |load| load.arrived);
                    let (waiting_m, running_m) = (part(load.waiting_m), part(load.running_m));
                    Heard { load: Some(Load { waiting_m, running_m, arrived, ..*load }), ..heard }
                }
            },
        }
    }
}

/// One term's autoscalers.
pub struct Scaler {
    tick: Duration,
    scalers: BTreeMap<JobNo, Known>,
    last: BTreeMap<MemberId, Last>,
}

impl Scaler {
    pub fn new(tick: Duration) -> Self {
        Self { tick, scalers: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// One look at all services. `state` is from before the panorama: a service that was woken
    /// in between is not put back to sleep by who has not seen why.
    pub fn look(&mut self, state: &State, mut panorama: Panorama, at_ms: u64) -> (Vec<Intent>, Vec<Look>) {
        let (told, measured) = (std::mem::take(&mut panorama.told), std::mem::take(&mut panorama.measured));
        let sums = self.sum_up(state, panorama);
        let mut shared: BTreeMap<Name, u64> = BTreeMap::new();
        for job in state.services().filter(|job| !job.stopped && job.desired() > 0) {
            *shared.entry(name(job)).or_default() += 1;
        }
        self.scalers.retain(|no, _| state.job(*no).is_some());
        let (mut intents, mut looks) = (Vec::new(), Vec::new());
        for job in state.services().filter(|job| !job.stopped) {
            let Some(scaling) = job.spec.scaling else { continue };
            let share = shared.get(&name(job)).copied().unwrap_or(1);
            let Some(known) = self.known(job, scaling) else { continue };
            let heard = known.hear(job, &told, &measured, share);
            let signals = signals(job, at_ms, sums.as_ref().map(|sums| sums.get(&name(job))), share, heard);
            known.scaler.limit(Limits { quota: Some(within_quota(state, job)), budget: payable(state, job, scaling) });
            let current = job.desired();
            known.scaler.stands_at(current.into());
            let mut decision = known.scaler.step(&signals);
            let to = u16::try_from(decision.desired).unwrap_or(u16::MAX);
            let acts = to != current && !scaling.advisory;
            known.said = Some(if acts { to } else { current });
            if acts {
                intents.push(scale(job, to, &decision));
            } else if scaling.advisory && to != current {
                decision.why = Why::AdvisoryOnly;
            }
            let (tenant, model) = name(job);
            looks.push(Look { tenant, model, current, decision, advisory: scaling.advisory });
        }
        (intents, looks)
    }

    /// Begins anew where the terms have changed, and where somebody asked for more than was said:
    /// who begins takes nothing away for a while.
    fn known(&mut self, job: &Job, scaling: Scaling) -> Option<&mut Known> {
        let asked = |known: &Known| known.said.is_some_and(|said| job.desired() > said.max(1));
        if self.scalers.get(&job.no).is_none_or(|known| known.scaling != scaling || asked(known)) {
            // What is stored was checked when it was accepted; what still can't be is left alone.
            let scaler = Autoscaler::new(service(&scaling, self.tick)).ok()?;
            let measured = self.scalers.get(&job.no).is_some_and(|known| known.measured);
            self.scalers.insert(job.no, Known { scaling, scaler, ears: Ears::default(), measured, said: None });
        }
        self.scalers.get_mut(&job.no)
    }

    /// What came since the last look; None while a member that may still have requests is silent.
    fn sum_up(&mut self, state: &State, panorama: Panorama) -> Option<BTreeMap<Name, Sum>> {
        let mut sums: BTreeMap<Name, Sum> = BTreeMap::new();
        let mut whole = true;
        for member in &panorama.silent {
            self.last.remove(member);
            whole &= is_gone(state, *member);
        }
        for (member, seen) in panorama.seen {
            let known = self.last.remove(&member).filter(|last| last.epoch == seen.epoch);
            let sights: BTreeMap<Name, Sight> =
                seen.sights.into_iter().map(|sight| ((sight.tenant.clone(), sight.model.clone()), sight)).collect();
            // A first look knows what is there, not what came since.
            whole &= known.is_some();
            for (name, sight) in &sights {
                let before = known.as_ref().and_then(|last| last.sights.get(name));
                sums.entry(name.clone()).or_default().add(sight, before);
            }
            self.last.insert(member, Last { epoch: seen.epoch, sights });
        }
        whole.then_some(sums)
    }
}

/// Whether a member that says nothing has been given up, and all that it had with it.
fn is_gone(state: &State, member: MemberId) -> bool {
    let node = state.members().get(&member).and_then(|member| state.node_named(&member.name));
    node.is_some_and(|node| node.state == NodeState::Down)
}

fn name(job: &Job) -> Name {
    (job.spec.tenant.clone(), job.spec.model.clone())
}

fn scale(job: &Arc<Job>, to: u16, decision: &Decision) -> Intent {
    let target =
        Target { replicas: to, why: decision.why, inputs: Some(Box::new(decision.inputs)), seen: Some(job.desired()) };
    Intent::Scale { request: job.request.clone(), tenant: None, target }
}

fn service(scaling: &Scaling, tick: Duration) -> Service {
    let tick_ms = u64::try_from(tick.as_millis()).unwrap_or(u64::MAX).max(1);
    Service {
        tick_ms,
        cold_start_ms: scaling.cold_start_ms.into(),
        min: scaling.min.into(),
        max: scaling.max.into(),
        slots: scaling.concurrency.into(),
        wait_ms: scaling.wait_ms.into(),
        service_ms: SERVICE_MS,
        service_guessed: true,
        gpus: 1,
        idle_ms: scaling.idle_ms.into(),
        settle_ms: tick_ms.saturating_mul(SETTLE.into()),
    }
}

/// What is seen of one service; `sum` is None when what was seen is not whole.
fn signals(job: &Job, at_ms: u64, sum: Option<Option<&Sum>>, share: u64, heard: Heard) -> Signals {
    let count = |test: fn(&Phase) -> bool| {
        Reading::of(job.replicas.iter().filter(|r: &&Replica| test(&r.phase)).count() as u64)
    };
    let replicas = Signals {
        at_ms,
        ready: count(|p| matches!(p, Phase::Held { stage: Stage::Ready, .. })),
        starting: count(|p| {
            // What stops to start again elsewhere is on its way, too.
            matches!(p, Phase::Waiting { .. } | Phase::Stopping { then: Next::Again | Next::Here(_), .. })
                || matches!(p, Phase::Held { stage, .. } if *stage != Stage::Ready)
        }),
        draining: count(|p| matches!(p, Phase::Stopping { then: Next::End, .. })),
        ..Signals::default()
    };
    let Some(sum) = sum else { return replicas };
    let nothing = Sum::default();
    let sum = sum.unwrap_or(&nothing);
    // Several jobs of one model share what gateways see; what replicas say is their own job's.
    let part = |n: u64| n.div_ceil(share.max(1));
    let gateways = Load {
        waiting_m: part(sum.waiting).saturating_mul(1000),
        running_m: part(sum.running).saturating_mul(1000),
        arrived: part(sum.arrived),
        p95_ms: sum.p95_ms(),
    };
    let load = gateways.with(heard.load);
    Signals {
        queue: Reading::of_milli(load.waiting_m),
        running: Reading::of_milli(load.running_m),
        // A number too few: with it missing nothing is taken away, and the others still count.
        arrivals: if heard.gap { Reading::Missing } else { Reading::of(load.arrived) },
        p95_ms: Reading::of(load.p95_ms),
        ..replicas
    }
}

/// The replicas that take requests, and where.
fn ready(job: &Job) -> Vec<(NodeNo, ReplicaId, Generation)> {
    let one = |(i, replica): (usize, &Replica)| match &replica.phase {
        Phase::Held { alloc, stage: Stage::Ready } => {
            let id = ReplicaId { job: job.no, replica: u16::try_from(i).ok()? };
            Some((alloc.node, id, replica.generation))
        }
        _ => None,
    };
    job.replicas.iter().enumerate().filter_map(one).collect()
}

/// Replicas that the tenant's GPU quota has room for, those of the job included.
fn within_quota(state: &State, job: &Job) -> u32 {
    let each = job.spec.resources.gpu.milli();
    let held = job.replicas.iter().filter(|r| r.allocation().is_some()).count() as u64 * each;
    let others = state.ledger().tenant(job.tenant).gpu_milli.saturating_sub(held);
    let room = quota::gpu_limit(state, job.tenant).saturating_sub(others);
    room.checked_div(each).map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
}

/// Replicas that the budgets pay for; its least are paid in any case.
fn payable(state: &State, job: &Job, scaling: Scaling) -> Option<u32> {
    most_replicas(state, job).map(|most| most.max(scaling.min.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Seen;
    use nf_core::command::{Member, Report, ReportKind};
    use nf_core::id::{Incarnation, NodeName, NodeNo};
    use nf_core::job::JobSpec;
    use nf_core::resources::Gpus;
    use nf_core::testing;

    const TICK: u64 = 1_000;

    fn world() -> State {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
        let scaling =
            Scaling { min: 0, max: 4, concurrency: 2, idle_ms: 20_000, cold_start_ms: 1_000, ..Scaling::default() };
        let spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
        testing::run(&mut state, testing::schedule("s1", spec));
        state
    }

    fn member(id: u64, name: &str) -> Intent {
        let text: Arc<str> = "x".into();
        let (api, peer, version) = (text.clone(), text.clone(), text);
        let name = NodeName::new(name).unwrap();
        Intent::Member(Member { id: MemberId(id), name, api, peer, min_level: 1, max_level: 1, version })
    }

    fn sight(arrived: u64, waiting: u32, running: u32) -> Sight {
        let (tenant, model) = (TenantId::new("t1").unwrap(), ModelId::new("m1").unwrap());
        let mut answered = vec![0; BUCKETS];
        answered[10] = arrived.saturating_sub(u64::from(waiting + running));
        let (recent, windows) = (vec![0; BUCKETS], Default::default());
        Sight { tenant, model, arrived, failed: 0, waiting, running, answered, recent, windows, trials: vec![] }
    }

    fn seen(member: u64, epoch: u64, sight: Sight) -> (MemberId, Seen) {
        (MemberId(member), Seen { epoch, sights: vec![sight], advice: vec![] })
    }

    fn run(state: &mut State, intents: Vec<Intent>) {
        for intent in intents {
            testing::run(state, intent);
            testing::run(state, Intent::PlaceWaiting);
        }
    }

    #[test]
    fn load_on_two_members_scales_up_and_silence_never_down() {
        let mut state = world();
        testing::run(&mut state, testing::register("m2", testing::node_spec(1)));
        testing::run(&mut state, member(2, "m2"));
        let (mut state, mut scaler) = (state, Scaler::new(Duration::from_millis(TICK)));
        let mut at = 1_000_000;
        let mut came = 0;
        for _ in 0..30 {
            at += TICK;
            came += 8;
            let both = vec![seen(1, 1, sight(came, 4, 2)), seen(2, 7, sight(came, 4, 2))];
            let (intents, looks) =
                scaler.look(&state, Panorama { seen: both, silent: vec![], ..Panorama::default() }, at);
            assert_eq!(looks.len(), 1);
            run(&mut state, intents);
        }
        let desired = |state: &State| state.services().next().unwrap().desired();
        assert_eq!(desired(&state), 4);
        // One member says nothing and the other has nothing to do: that is no proof of idleness.
        for _ in 0..100 {
            at += TICK;
            let one = vec![seen(1, 1, sight(came, 0, 0))];
            let (intents, _) =
                scaler.look(&state, Panorama { seen: one, silent: vec![MemberId(2)], ..Panorama::default() }, at);
            assert_eq!(intents, []);
        }
        testing::run(&mut state, Intent::NodeStates(vec![(NodeNo(2), Incarnation(1), NodeState::Down)]));
        // Gone for good, it takes its requests along; after the idle time the service sleeps.
        let mut asleep_after = 0;
        while desired(&state) > 0 && asleep_after < 300 {
            at += TICK;
            asleep_after += 1;
            let one = vec![seen(1, 1, sight(came, 0, 0))];
            let (intents, _) =
                scaler.look(&state, Panorama { seen: one, silent: vec![MemberId(2)], ..Panorama::default() }, at);
            run(&mut state, intents);
        }
        assert!((15..200).contains(&asleep_after), "{asleep_after} s");
    }

    #[test]
    fn advice_is_told_and_not_carried_out() {
        let mut state = State::new();
        testing::run(&mut state, testing::register("n1", testing::node_spec(8)));
        let scaling = Scaling { min: 1, max: 4, concurrency: 1, advisory: true, ..Scaling::default() };
        let spec = JobSpec { scaling: Some(scaling), ..testing::job_spec("t1", Gpus::Milli(100)) };
        testing::run(&mut state, testing::schedule("s1", spec));
        let mut scaler = Scaler::new(Duration::from_millis(TICK));
        let mut told = Vec::new();
        for i in 1..20 {
            let seen = vec![seen(1, 1, sight(i * 20, 30, 1))];
            let (intents, looks) =
                scaler.look(&state, Panorama { seen, silent: vec![], ..Panorama::default() }, i * TICK);
            assert_eq!(intents, []);
            told.extend(looks.into_iter().map(|look| (look.current, look.decision.desired, look.decision.why)));
        }
        assert!(told.iter().any(|(now, to, why)| (*now, *why) == (1, Why::AdvisoryOnly) && *to > 1), "{told:?}");
    }

    #[test]
    fn a_decision_that_was_lost_is_made_again() {
        let (state, mut scaler) = (world(), Scaler::new(Duration::from_millis(TICK)));
        let said = (1..=300).map(|i| {
            let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], silent: vec![], ..Panorama::default() };
            // None of them is committed.
            scaler.look(&state, panorama, i * TICK).0.len()
        });
        let said: Vec<usize> = said.collect();
        let first = said.iter().position(|n| *n > 0).expect("it is put to sleep");
        assert!((18..=24).contains(&first), "idle for {first} s instead of 20");
        assert!(said[first..].iter().all(|n| *n == 1), "once and no more: {:?}", &said[first..]);
    }

    #[test]
    fn a_new_leader_that_has_seen_nothing_takes_nothing_away() {
        let (mut state, mut scaler) = (world(), Scaler::new(Duration::from_millis(TICK)));
        let target = Target { replicas: 4, why: Why::Asked, inputs: None, seen: None };
        let request = state.services().next().unwrap().request.clone();
        testing::run(&mut state, Intent::Scale { request, tenant: None, target });
        // Those that nobody has placed, or that stop to start elsewhere, count like the others.
        for i in 1..u64::from(SETTLE) {
            let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], silent: vec![], ..Panorama::default() };
            assert_eq!(scaler.look(&state, panorama, i * TICK).0, [], "at look {i}");
        }
    }

    #[test]
    fn a_service_that_prometheus_no_longer_tells_of_is_not_taken_for_idle() {
        let mut state = world();
        let (job, generation) = (state.services().next().unwrap().no, Generation(1));
        let ready = Report { job, replica: 0, generation, kind: ReportKind::Stage(Stage::Ready) };
        let (node, incarnation) = (NodeName::new("n1").unwrap(), Incarnation(1));
        testing::run(&mut state, Intent::Reports { node, incarnation, reports: vec![ready] });
        let service = state.services().next().unwrap();
        assert_eq!(super::ready(service).len(), 1);
        let (idle, nothing) = (BTreeMap::from([(name(service), Load::default())]), BTreeMap::new());
        // For so many looks it tells of the service, then of none; the gateways see no request.
        for (tells, sleeps) in [(5, false), (0, true), (100, true)] {
            let mut scaler = Scaler::new(Duration::from_millis(TICK));
            let said = (1..=100).map(|i| {
                let measured = Measured::Said(if i <= tells { idle.clone() } else { nothing.clone() });
                let panorama = Panorama { seen: vec![seen(1, 1, sight(0, 0, 0))], measured, ..Panorama::default() };
                scaler.look(&state, panorama, i * TICK).0.len()
            });
            assert_eq!(said.sum::<usize>() > 0, sleeps, "told for {tells} looks");
        }
    }

    #[test]
    fn the_quota_is_a_ceiling() {
        let mut state = world();
        let quota = nf_core::tenant::Quota { gpu_milli: Some(250), ..Default::default() };
        testing::run(&mut state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
        assert_eq!(within_quota(&state, state.services().next().unwrap()), 2);
    }
}
