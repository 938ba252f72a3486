//! Callers: they schedule, stop, try again with the same id at any member, change
//! their mind about bodies, and (one of them) set quotas and cordon nodes. An
//! answer that does not come is an unknown outcome, and the call is made again.

use super::mixed;
use super::net::{Message, Peer};
use super::oracle::Oracle;
use super::rng::Rng;
use crate::autoscaler::Why;
use crate::command::{DeviceFault, Submission};
use crate::consent::Consent;
use crate::fault::Fault;
use crate::id::{DeviceType, Digest16, ModelId, NodeName, RequestId, TenantId, VersionId};
use crate::job::{Arrangement, Constraints, JobSpec, Restart, Runtime};
use crate::model_budget::ModelBudget;
use crate::node::{Cordon, Drain};
use crate::placement::{Chosen, Preemption};
use crate::plan::{Intent, Queueing, Reply};
use crate::reason::Reason;
use crate::resources::{Gpus, Resources};
use crate::rollout::{Canary, Next, Strategy, Turn};
use crate::scaling::{Scaling, Target};
use crate::tenant::Quota;
use std::sync::Arc;

const TENANTS: &[&str] = &["t1", "t2", "t3"];

/// A call under way.
#[derive(Debug)]
struct Open {
    intent: Arc<Intent>,
    again_at: u64,
}

/// One caller.
#[derive(Debug)]
pub struct Client {
    me: usize,
    operator: bool,
    open: Option<Open>,
    calls: u64,
    next_at: u64,
    /// What it has scheduled, to stop it or to try it again.
    asked: Vec<Submission>,
    /// What its tenants have agreed to, to take it back.
    consents: Vec<Consent>,
    /// Told to come to an end.
    pub winding_down: bool,
}

fn id<T>(made: Result<T, crate::id::NameError>) -> T {
    made.expect("the simulation's names are valid")
}

impl Client {
    pub fn new(me: usize) -> Self {
        let operator = me == 0;
        Self {
            me,
            operator,
            open: None,
            calls: 0,
            next_at: 0,
            asked: Vec::new(),
            consents: Vec::new(),
            winding_down: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.open.is_none()
    }

    /// What it sends now, and to how many members.
    pub fn tick(&mut self, now: u64, members: usize, nodes: usize, rng: &mut Rng) -> Vec<(Peer, Message)> {
        if self.open.is_none() && !self.winding_down && now >= self.next_at {
            let intent = if self.operator { self.operate(nodes, rng) } else { self.wish(now, nodes, rng) };
            self.calls += 1;
            self.open = Some(Open { intent: Arc::new(intent), again_at: now });
            self.next_at = now + rng.between(20, if self.operator { 2_500 } else { 500 });
        }
        let me = self.me;
        let call = self.calls;
        let Some(open) = self.open.as_mut().filter(|open| now >= open.again_at) else { return Vec::new() };
        open.again_at = now + rng.between(300, 1_500);
        let copies = if rng.chance(100) { 2 } else { 1 };
        let message = Message::Call { from: Peer::Client(me), call, intent: open.intent.clone(), hops: 0 };
        (0..copies).map(|_| (Peer::Member(rng.below(members as u64) as usize), message.clone())).collect()
    }

    pub fn on_message(&mut self, message: Message, now: u64, oracle: &mut Oracle) {
        let (call, reply) = match message {
            Message::Reply { call, reply } => (call, Some(reply)),
            Message::Retry { call } => (call, None),
            _ => return,
        };
        let Some(open) = self.open.as_mut().filter(|_| call == self.calls) else { return };
        match reply {
            Some(reply) => {
                oracle.on_reply(&open.intent, &reply);
                self.judge(&reply, oracle);
                self.open = None;
            }
            None => open.again_at = now + 100,
        }
    }

    /// Refusals that no caller of this kind may get.
    fn judge(&self, reply: &Reply, oracle: &mut Oracle) {
        let Some(open) = &self.open else { return };
        if let (Intent::Schedule { submission, .. }, Err(refusal)) = (&*open.intent, &reply.result) {
            let same = |s: &Submission| s.request == submission.request && s.spec.tenant == submission.spec.tenant;
            let changed = self.asked.iter().any(|s| same(s) && s.body != submission.body);
            let fine = match refusal.reason {
                Reason::IdempotencyConflict => changed,
                Reason::QuotaExceeded | Reason::NoCapacity | Reason::BudgetExhausted => true,
                // More time to save its state than the policy of the moment allows.
                Reason::InvalidArgument => submission.spec.constraints.checkpoint_ms.is_some(),
                Reason::ConsentRequired => !submission.spec.data_classes.is_empty(),
                _ => false,
            };
            if !fine {
                oracle.bad(format!("{} was refused with {refusal}", submission.request));
            }
        }
    }

    fn wish(&mut self, now: u64, nodes: usize, rng: &mut Rng) -> Intent {
        let known = (!self.asked.is_empty()).then(|| rng.pick(&self.asked).clone());
        match (known, rng.below(100)) {
            (Some(known), 0..30) => {
                let tenant = Some(known.spec.tenant.clone());
                Intent::Stop { request: known.request, tenant, why: Reason::StoppedByUser }
            }
            (Some(known), 30..36) => again(known),
            (Some(known), 36..38) => self.namesake(&known, rng),
            (Some(known), 42..50) if known.spec.scaling.is_some() => resize(known, rng),
            (Some(known), 50..63) => rollout(known, rng),
            (Some(known), 38..42) => {
                let body = Digest16::of(&[b"another", &known.body.0]);
                let other = Submission { body, ..known };
                self.asked.push(other.clone());
                again(other)
            }
            (_, 63..72) => self.consent(now, rng),
            _ => self.fresh(nodes, rng),
        }
    }

    /// The same under the same name, of another tenant perhaps.
    fn namesake(&mut self, known: &Submission, rng: &mut Rng) -> Intent {
        let spec = JobSpec { tenant: tenant(rng), ..(*known.spec).clone() };
        let body = Digest16::of(&[format!("{spec:?}").as_bytes()]);
        let other = Submission { body, spec: Arc::new(spec), ..known.clone() };
        self.asked.push(other.clone());
        again(other)
    }

    /// A statement of a tenant, or the end of one.
    fn consent(&mut self, now: u64, rng: &mut Rng) -> Intent {
        if !self.consents.is_empty() && rng.chance(300) {
            return mixed::dissent(rng.pick(&self.consents));
        }
        let consent = mixed::consent(tenant(rng), super::EPOCH_MS + now, rng);
        self.consents.push(consent.clone());
        Intent::Consent(Box::new(consent))
    }

    fn fresh(&mut self, nodes: usize, rng: &mut Rng) -> Intent {
        let request = id(RequestId::new(&format!("c{}-{}", self.me, self.calls + 1)));
        let spec = job(nodes, rng);
        let body = Digest16::of(&[format!("{spec:?}").as_bytes()]);
        let submission = Submission { request, body, keyed: rng.chance(700), spec: Arc::new(spec) };
        self.asked.push(submission.clone());
        let queueing = if rng.chance(100) { Queueing::Never } else { Queueing::Wait };
        Intent::Schedule { submission, queueing, check_plan: None }
    }

    fn operate(&mut self, nodes: usize, rng: &mut Rng) -> Intent {
        let node = id(NodeName::new(&format!("n{}", rng.below(nodes as u64) + 1)));
        match rng.below(10) {
            0..2 => {
                let within_ms = rng.chance(300).then(|| rng.between(100, 3_000));
                let drain = rng.chance(600).then(|| Drain { within_ms, force: rng.chance(200) });
                let cordon = Cordon { by: "operator".into(), reason: "drill".into(), at_ms: 0, drain };
                Intent::Cordon { node, cordon: Some(cordon) }
            }
            2..5 => Intent::Cordon { node, cordon: None },
            5 => {
                let fault = *rng.pick(&[Fault::Xid(13), Fault::Xid(79), Fault::Xid(63), Fault::Xid(94)]);
                let uuid: Arc<str> = format!("GPU-{:04}", rng.below(4)).into();
                match rng.chance(500) {
                    true => Intent::Heal { node, uuid, by: "operator".into() },
                    false => {
                        let faults = vec![DeviceFault { uuid, fault, simulated: true }];
                        Intent::Faults { node, incarnation: None, faults }
                    }
                }
            }
            6..9 => quota(rng),
            9 if rng.chance(600) => policy(rng),
            _ => Intent::PlaceWaiting,
        }
    }
}

/// Others give way sooner or later, and may take more or less time over it.
fn policy(rng: &mut Rng) -> Intent {
    let preemption = Preemption {
        enabled: rng.chance(900),
        min_run_ms: rng.below(3) * 300,
        delay_ms: rng.below(3) * 300,
        max_grace_ms: rng.below(4) as u32 * 1000,
    };
    let chosen = Chosen { preemption, ..Chosen::default() };
    Intent::SetPlacement { chosen, seen: None }
}

/// Sets a tenant's GPU quota, and what it may use over time.
fn quota(rng: &mut Rng) -> Intent {
    let budgets = if rng.chance(500) { mixed::budgets(rng) } else { None };
    let (gpu_milli, soft_sharing) = (Some(rng.between(1, 20) * 1000), rng.chance(500));
    let quota = Quota { gpu_milli, budgets, soft_sharing, ..Quota::default() };
    Intent::SetQuota { tenant: tenant(rng), quota }
}

fn tenant(rng: &mut Rng) -> TenantId {
    let name: &&str = rng.pick(TENANTS);
    id(TenantId::new(name))
}

/// A request for more than most quotas allow, for a planner that does not look at them.
pub fn greedy(member: usize, term: u64, rng: &mut Rng) -> Intent {
    let request = id(RequestId::new(&format!("greedy-{member}-{term}")));
    let mut spec = job(1, rng);
    (spec.resources.gpu, spec.replicas, spec.gang, spec.constraints.node) = (Gpus::Whole(1), 4, false, None);
    let body = Digest16::of(&[format!("{spec:?}").as_bytes()]);
    again(Submission { request, body, keyed: true, spec: Arc::new(spec) })
}

/// Another number for a service, or a request that wakes it.
fn resize(known: Submission, rng: &mut Rng) -> Intent {
    let (request, tenant) = (known.request, known.spec.tenant.clone());
    let target =
        Target { replicas: rng.below(5) as u16, why: Why::QueueDepth, inputs: None, seen: None, learned: None };
    match rng.chance(300) {
        true => Intent::Wake { tenant, request },
        false => Intent::Scale { request, tenant: Some(tenant), target },
    }
}

/// Another version of a job, or a word to the rollout that is under way.
fn rollout(known: Submission, rng: &mut Rng) -> Intent {
    let (request, tenant) = (known.request, Some(known.spec.tenant.clone()));
    if rng.chance(300) {
        let back = Turn::Back { failed: false, why: Reason::StoppedByUser, counts: None };
        let turn = rng.pick(&[Turn::Promote, Turn::Promote, back]).clone();
        return Intent::TurnRollout { request, tenant, revision: None, turn };
    }
    let version = version(rng);
    let (manifest, data_classes) = mixed::contents(&version);
    let self_limiting = mixed::limits_itself(&version);
    let next = Box::new(Next {
        version,
        runtime: Runtime::Simulated,
        manifest,
        evidence: None,
        data_classes,
        self_limiting,
        budget: ModelBudget::default(),
        approved_by: None,
        asked_by: None,
    });
    let auto_promote = true;
    let strategy = Strategy {
        surge: rng.below(3) as u16,
        unavailable: rng.between(1, 2) as u16,
        canary: rng.chance(300).then_some(Canary { percent: Some(30), auto_promote }),
        window_ms: rng.between(100, 3_000) as u32,
        ready_ms: 120_000,
    };
    Intent::StartRollout { request, tenant, next, strategy, rollback: false }
}

fn version(rng: &mut Rng) -> VersionId {
    id(VersionId::new(&format!("v{}", rng.between(1, 4))))
}

fn again(submission: Submission) -> Intent {
    Intent::Schedule { submission, queueing: Queueing::Wait, check_plan: None }
}

/// Some request; most can run on nodes of eight GPUs, some never can.
fn job(nodes: usize, rng: &mut Rng) -> JobSpec {
    let gpu = match rng.below(10) {
        0..4 => Gpus::Milli(rng.between(1, 9) as u16 * 100),
        4..8 => Gpus::Whole(rng.between(1, 4) as u16),
        8 => Gpus::Whole(rng.between(5, 9) as u16),
        _ => Gpus::None,
    };
    // Slices of those GPUs that are divided.
    let profile = rng.chance(100).then(|| id(DeviceType::new(*rng.pick(&["1g.10gb", "2g.20gb", "3g.40gb"]) as &str)));
    let gpu = if profile.is_some() { Gpus::Whole(1) } else { gpu };
    let replicas = if rng.chance(300) { rng.between(2, 4) as u16 } else { 1 };
    let restart = *rng.pick(&[Restart::Always, Restart::Always, Restart::OnFailure, Restart::Never]);
    let pinned = rng.chance(60).then(|| id(NodeName::new(&format!("n{}", rng.below(nodes as u64) + 1))));
    let constraints = Constraints {
        arrangement: if rng.chance(300) { Arrangement::Spread } else { Arrangement::Any },
        same_island: rng.chance(100),
        node: pinned,
        restart,
        preemptible: rng.chance(400),
        exclusive: rng.chance(150),
        max_run_ms: rng.chance(100).then(|| rng.between(500, 5_000)),
        checkpoint_ms: rng.chance(200).then(|| rng.between(100, 3_000) as u32),
        ..Constraints::default()
    };
    let resources = Resources {
        gpu,
        gpu_memory: if rng.chance(200) { rng.between(1, 60) << 30 } else { 0 },
        cpu_milli: rng.between(0, 8) * 1000,
        memory: rng.between(0, 64) << 30,
        mig_profile: profile,
        ..Resources::default()
    };
    let scaling = (!constraints.exclusive && rng.chance(150)).then(|| Scaling { min: 0, max: 5, ..Scaling::default() });
    let gang = scaling.is_none() && replicas > 1 && rng.chance(500);
    let budgeted = !gang && restart != Restart::Never && rng.chance(300);
    let constraints = Constraints { max_unavailable: budgeted.then(|| rng.below(4) as u16), ..constraints };
    let version = if rng.chance(400) { version(rng) } else { id(VersionId::new("v1")) };
    let (manifest, data_classes) = mixed::contents(&version);
    let self_limiting = mixed::limits_itself(&version);
    JobSpec {
        tenant: tenant(rng),
        model: id(ModelId::new("m1")),
        version,
        resources,
        replicas,
        gang,
        constraints,
        priority: *rng.pick(&[0, 0, 0, 10, -10]),
        runtime: Runtime::Simulated,
        manifest,
        approved_by: None,
        evidence: None,
        asked_by: None,
        data_classes,
        self_limiting,
        budget: ModelBudget::default(),
        below: None,
        scaling,
    }
}
