//! The leader's look at every service: what the members' gateways see goes through
//! the autoscaler, and what it decides is submitted, with what it was decided from.
//! Everything here dies with the term but for what decisions took along; a new leader learns for
//! a while before it takes anything away. It does not decide itself.

mod gateways;
mod limits;

use crate::exchange::sights::Measured;
use crate::exchange::{Advice, Panorama};
use gateways::Gateways;
use limits::{Wanting, limits};
use nf_core::autoscaler::journal::{Life, Record};
use nf_core::autoscaler::signal::Reading;
use nf_core::autoscaler::source::{Ears, Load, Monitor};
use nf_core::autoscaler::{Autoscaler, Decision, Limits, Service, Signals, Why};
use nf_core::id::{Generation, JobNo, ModelId, NodeNo, TenantId};
use nf_core::job::{Job, Next, Phase, Replica, Stage};
use nf_core::plan::Intent;
use nf_core::reconcile::ReplicaId;
use nf_core::scaling::{Scaling, Target};
use nf_core::state::State;
use std::collections::BTreeMap;
use std::time::Duration;

/// Looks for which a new leader takes nothing away, however long it has known a service.
const SETTLE: u32 = 12;
/// What a request takes, until some were seen, in milliseconds: no job says it.
const SERVICE_MS: u64 = 1_000;

type Name = (TenantId, ModelId);

/// How services are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub every: Duration,
    /// How long a service is looked at before anything of it is taken away.
    pub settle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { every: Duration::from_secs(5), settle: Duration::from_secs(60) }
    }
}

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
    /// What it was decided from.
    pub signals: Signals,
}

impl Look {
    fn to(&self) -> u16 {
        u16::try_from(self.decision.desired).unwrap_or(u16::MAX)
    }

    /// Whether it changes something.
    fn acts(&self) -> bool {
        self.to() != self.current && !self.advisory
    }

    /// The reason that is told: advice is told as such.
    pub fn why(&self) -> Why {
        if self.advisory && self.to() != self.current { Why::AdvisoryOnly } else { self.decision.why }
    }

    /// For whoever asks what the leader would do.
    pub fn advice(&self) -> Advice {
        Advice {
            tenant: self.tenant.clone(),
            model: self.model.clone(),
            current: self.current.into(),
            desired: self.decision.desired,
            why: self.why().token().to_owned(),
            gap: self.signals.gap.map(|gap| gap.to_string()),
            age_ms: self.signals.age_ms,
            kv_m: self.signals.kv_cache.known(),
            first_token_ms: self.signals.first_token_ms.known().map(|m| m / 1000),
            advisory: self.advisory,
        }
    }

    fn intent(&self, job: &Job, scaler: &Autoscaler) -> Option<Intent> {
        let (replicas, why) = (self.to(), self.decision.why);
        let inputs = Some(Box::new(self.decision.inputs));
        let learned = Some(Box::new(scaler.learned(job.learned.as_deref())));
        let target = Target { replicas, why, inputs, seen: Some(self.current), learned };
        let (request, tenant) = (job.request.clone(), Some(job.spec.tenant.clone()));
        self.acts().then_some(Intent::Scale { request, tenant, target })
    }
}

/// What one look at all services came to.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    pub intents: Vec<Intent>,
    pub looks: Vec<Look>,
    /// For the journal.
    pub records: Vec<Record>,
}

/// One service's autoscaler.
struct Known {
    scaling: Scaling,
    scaler: Autoscaler,
    ears: Ears,
    /// Whose it is, for the journal.
    life: Life,
    /// What was wanted when it looked last, and what it said then.
    said: Option<(u16, u16)>,
}

/// One term's autoscalers.
pub struct Scaler {
    term: u64,
    pace: Pace,
    /// Autoscalers made in the term.
    made: u32,
    scalers: BTreeMap<JobNo, Known>,
    gateways: Gateways,
}

/// Replicas and jobs of one service, over all of its jobs.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    jobs: u64,
    ready: u32,
}

impl Scaler {
    pub fn new(term: u64, pace: Pace) -> Self {
        Self { term, pace, made: 0, scalers: BTreeMap::new(), gateways: Gateways::default() }
    }

    /// What every autoscaler knows now, for the beginning of a journal.
    pub fn beginnings(&self) -> impl Iterator<Item = Record> {
        self.scalers.values().map(Known::beginning)
    }

    /// One look at all services. `state` is from before the panorama: a service that was woken
    /// in between is not put back to sleep by who has not seen why.
    pub fn look(&mut self, state: &State, panorama: Panorama, at_ms: u64) -> Looked {
        let Panorama { seen, silent, told, measured } = panorama;
        let sums = self.gateways.sum_up(state, seen, &silent);
        let mut whole: BTreeMap<Name, Whole> = BTreeMap::new();
        for job in state.services().filter(|job| !job.stopped && job.desired() > 0) {
            let whole = whole.entry(name(job)).or_default();
            (whole.jobs, whole.ready) = (whole.jobs + 1, whole.ready + ready(job).len() as u32);
        }
        self.scalers.retain(|no, _| state.job(*no).is_some());
        let (mut wanting, mut seen, mut looked) = (Vec::new(), Vec::new(), Looked::default());
        for job in state.services().filter(|job| !job.stopped) {
            let Some(scaling) = job.spec.scaling else { continue };
            let name = name(job);
            let all = whole.get(&name).copied().unwrap_or(Whole { jobs: 1, ready: 0 });
            let Some(known) = self.known(job, scaling, at_ms, &mut looked.records) else { continue };
            let heard = known.ears.listen(&ready(job), &told);
            let heard = known.ears.with(heard, monitor(&measured, &name), all.ready, all.jobs);
            let (sum, unheard) = sums.of(&name);
            let load = known.ears.join(sum.share(all.jobs), &heard, unheard.is_none());
            let (gap, age_ms) = (unheard.or(heard.gap), heard.age_ms);
            let kv_cache = heard.kv_m.map_or(Reading::Missing, Reading::of_milli);
            let first_token_ms = heard.first_token_ms.map_or(Reading::Missing, Reading::of);
            let signals = Signals { at_ms, gap, age_ms, kv_cache, first_token_ms, ..signals(job, load) };
            known.scaler.stands_at(job.desired().into());
            wanting.push(Wanting { job, scaling, wish: known.scaler.wish(&signals) });
            seen.push(signals);
        }
        let limits = limits(state, &wanting);
        for ((wanting, signals), limits) in wanting.into_iter().zip(seen).zip(limits) {
            let Some(known) = self.scalers.get_mut(&wanting.job.no) else { continue };
            let look = known.decide(&wanting, signals, limits);
            looked.intents.extend(look.intent(wanting.job, &known.scaler));
            looked.records.push(known.record(&look, limits));
            looked.looks.push(look);
        }
        looked
    }

    /// Begins anew where the terms have changed, and where somebody asked for more than was said:
    /// who begins takes nothing away for a while. As many as there were before mean that nobody asked, and what was
    /// said was lost.
    fn known(&mut self, job: &Job, scaling: Scaling, at_ms: u64, records: &mut Vec<Record>) -> Option<&mut Known> {
        let asked = |known: &Known| known.said.is_some_and(|(stood, said)| job.desired() > said.max(stood).max(1));
        let service = service(job, &scaling, self.pace);
        let other = |known: &Known| known.scaling != scaling || *known.scaler.service() != service;
        if self.scalers.get(&job.no).is_none_or(|known| other(known) || asked(known)) {
            // What is stored was checked when it was accepted; what still can't be is left alone.
            let mut scaler = Autoscaler::new(service).ok()?;
            job.learned.iter().for_each(|learned| scaler.recall(learned, at_ms));
            let ears = self.scalers.remove(&job.no).map(|known| known.ears).unwrap_or_default();
            let ((tenant, model), term) = (name(job), self.term);
            self.made += 1;
            let life = Life { term, job: job.no, life: self.made, tenant, model };
            let known = Known { scaling, scaler, ears, life, said: None };
            records.push(known.beginning());
            self.scalers.insert(job.no, known);
        }
        self.scalers.get_mut(&job.no)
    }
}

fn name(job: &Job) -> Name {
    (job.spec.tenant.clone(), job.spec.model.clone())
}

fn monitor(measured: &Measured, name: &Name) -> Monitor {
    match measured {
        Measured::Nobody => Monitor::Nobody,
        Measured::Silent => Monitor::Silent,
        Measured::Said(series) => Monitor::Said(series.get(name).copied()),
    }
}

impl Known {
    fn beginning(&self) -> Record {
        Record::From { of: self.life.clone(), scaler: Box::new(self.scaler.clone()) }
    }

    fn record(&self, look: &Look, limits: Limits) -> Record {
        let Look { signals, current, decision, .. } = look;
        let (signals, decision, stands_at) = (*signals, Box::new(*decision), (*current).into());
        Record::Look { of: self.life.clone(), signals, stands_at, limits, decision }
    }

    fn decide(&mut self, wanting: &Wanting<'_>, signals: Signals, limits: Limits) -> Look {
        let Wanting { job, scaling, wish } = wanting;
        self.scaler.limit(limits);
        let decision = self.scaler.decide(*wish);
        let (tenant, model) = name(job);
        let look = Look { tenant, model, current: job.desired(), decision, advisory: scaling.advisory, signals };
        self.said = Some((look.current, if look.acts() { look.to() } else { look.current }));
        look
    }
}

fn service(job: &Job, scaling: &Scaling, pace: Pace) -> Service {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let tick_ms = ms(pace.every).max(1);
    Service {
        tick_ms,
        cold_start_ms: scaling.cold_start_ms.into(),
        min: scaling.min.into(),
        max: scaling.max.into(),
        slots: scaling.concurrency.into(),
        wait_ms: scaling.wait_ms.into(),
        promise_ms: job.spec.latency_ms().unwrap_or(0).into(),
        service_ms: SERVICE_MS,
        service_guessed: true,
        gpus: 1,
        idle_ms: scaling.idle_ms.into(),
        settle_ms: settle_ms(scaling, tick_ms).max(ms(pace.settle)),
        steps: scaling.steps,
    }
}

/// Nobody knows how far a former leader went down lately, so that where steps down are limited one of their stretches
/// passes first.
fn settle_ms(scaling: &Scaling, tick_ms: u64) -> u64 {
    let stretch = scaling.steps.down.map_or(0, |_| scaling.steps.within_ms.into());
    tick_ms.saturating_mul(SETTLE.into()).max(stretch)
}

/// What is seen of one service.
fn signals(job: &Job, load: Load) -> Signals {
    let count = |test: fn(&Phase) -> bool| {
        Reading::of(job.replicas.iter().filter(|r: &&Replica| test(&r.phase)).count() as u64)
    };
    Signals {
        ready: count(|p| matches!(p, Phase::Held { stage: Stage::Ready, .. })),
        starting: count(|p| {
            // What stops to start again elsewhere is on its way, too.
            matches!(p, Phase::Waiting { .. } | Phase::Stopping { then: Next::Again | Next::Here(_), .. })
                || matches!(p, Phase::Held { stage, .. } if *stage != Stage::Ready)
        }),
        unplaced: count(|p| matches!(p, Phase::Waiting { .. })),
        draining: count(|p| matches!(p, Phase::Stopping { then: Next::End, .. })),
        queue: Reading::of_milli(load.waiting_m),
        running: Reading::of_milli(load.running_m),
        arrivals: load.arrived.map_or(Reading::Missing, Reading::of),
        uncounted: load.uncounted,
        p95_ms: Reading::of(load.p95_ms),
        // An answer can't be there in time whose first token is not.
        first_token_within_ms: job.spec.latency_ms().map(u64::from),
        ..Signals::default()
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

#[cfg(test)]
mod tests;
