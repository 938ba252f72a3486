//! A small world for the properties: few names, many shapes, so that operations
//! meet. Every step is checked; what is applied is kept for replay and reload.

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::autoscaler::Why;
use nf_core::budget::{Budgets, Window};
use nf_core::command::{Answer, Batch, Command, DeviceFault, Placement, Report, ReportKind, Submission};
use nf_core::consent::Consent;
use nf_core::fault::Fault;
use nf_core::id::{
    DeviceType, Digest16, Generation, Incarnation, JobNo, Label, NodeName, NodeNo, RequestId, Revision, TenantId,
    TenantNo, VersionId,
};
use nf_core::job::{Allocation, Arrangement, Constraints, Job, JobSpec, Phase, Replica, Restart, Share, Stage};
use nf_core::mig::{Shape, Slice};
use nf_core::node::{Cordon, DeviceKind, Drain, DrainState, NodeKind, NodeSpec, NodeState, PortRange};
use nf_core::plan::{Intent, Queueing, plan};
use nf_core::played;
use nf_core::reason::{Reason, Refusal};
use nf_core::reconcile::desired;
use nf_core::resources::{Gpus, Resources};
use nf_core::rollout::{Canary, Next, Strategy, Turn};
use nf_core::rows::Table;
use nf_core::scaling::{Scaling, Target};
use nf_core::sharing::{Kept, Sharing};
use nf_core::sim::{Rng, mixed};
use nf_core::state::State;
use nf_core::tenant::Quota;
use nf_core::topology::{Level, Topology};
use nf_core::{codec, disruption, invariants, quota, testing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module's text.
pub struct World {
    pub state: State,
    pub now: u64,
    pub batches: Vec<Batch>,
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    made: BTreeMap<(TenantId, RequestId), JobNo>,
}

impl World {
    pub fn new() -> Self {
        let (rows, made) = (BTreeMap::new(), BTreeMap::new());
        Self { state: State::new(), now: 1_000_000, batches: Vec::new(), rows, made }
    }

    /// Does what the number says.
    pub fn step(&mut self, op: u64) {
        let rng = &mut Rng::new(op);
        match rng.below(100) {
            // Clocks of leaders differ; log time must not go back.
            0..4 => self.now = self.now.saturating_sub(rng.below(100_000)),
            4..8 => self.now += rng.below(20_000),
            8..10 => self.now += rng.below(2_000_000),
            10..24 => {
                let command = self.garbage(rng);
                let _ = self.command(command);
            }
            24..27 => self.reloads_the_same(),
            _ => {
                let intent = self.some_intent(rng);
                self.intent(&intent);
            }
        }
    }

    /// Plans on the state and applies at the same base: nothing planned is then refused as not fitting.
    pub fn intent(&mut self, intent: &Intent) {
        self.apply(Vec::new());
        let Ok(planned) = plan(&self.state, intent) else { return };
        for command in planned.commands {
            if let Err(refusal) = self.command(command.clone()) {
                assert_ne!(refusal.reason, Reason::PlanChanged, "{command:?}: {refusal}");
            }
        }
    }

    /// Applies one command; when it is refused, it must have changed nothing.
    pub fn command(&mut self, command: Command) -> Result<Answer, Refusal> {
        let mut untouched = self.state.clone();
        let nothing = Batch { base: untouched.meta().base, at_ms: self.now, commands: Vec::new(), ..Batch::default() };
        apply_batch(&mut untouched, &nothing);
        untouched.take_changes();
        let (before, former) = (self.held(), self.state.clone());
        let answer = self.apply(vec![command.clone()]).remove(0);
        match &answer {
            Err(_) => {
                assert_eq!(untouched.hash(), self.state.hash(), "refused, and changed something");
                assert_eq!(untouched.meta(), self.state.meta(), "refused, and changed something");
            }
            Ok(Answer::Job { no, .. }) => {
                if let Command::Submit { submission, .. } = &command {
                    self.one_job((submission.spec.tenant.clone(), submission.request.clone()), *no);
                }
            }
            Ok(_) => {}
        }
        self.quota_held(&before);
        self.nothing_runs_without_consent();
        self.budgets_held(&former);
        answer
    }

    /// A remembered request names the job that it made, the first and only one.
    fn one_job(&mut self, of: (TenantId, RequestId), no: JobNo) {
        let forgotten = self.made.get(&of).is_none_or(|old| old != &no && self.state.job(*old).is_none());
        if forgotten {
            self.made.insert(of.clone(), no);
        }
        assert_eq!(self.made[&of], no, "{of:?} made two jobs");
    }

    fn held(&self) -> BTreeMap<TenantId, [u64; 4]> {
        let mut sums: BTreeMap<TenantId, [u64; 4]> = BTreeMap::new();
        for job in self.state.jobs().values() {
            let n = job.replicas.iter().flat_map(Replica::allocations).count() as u64;
            let ask = &job.spec.resources;
            let each = [ask.gpu.milli(), ask.tpu.into(), ask.cpu_milli, ask.memory];
            let sum = sums.entry(job.spec.tenant.clone()).or_default();
            sum.iter_mut().zip(each).for_each(|(sum, each)| *sum += n * each);
        }
        sums
    }

    fn quota_held(&self, before: &BTreeMap<TenantId, [u64; 4]>) {
        for (tenant, has) in self.held() {
            let had = before.get(&tenant).copied().unwrap_or_default();
            let q = self.state.tenant_named(&tenant).and_then(|t| quota::quota(&self.state, t.no)).unwrap();
            // Who has limits of types and none of all GPUs may have all of those.
            let types = q.types.values().map(|share| share.gpu_milli);
            let others = if q.types.is_empty() { self.state.meta().default_gpu_milli } else { types.sum() };
            let gpu = q.gpu_milli.unwrap_or(others);
            // In a tree it may borrow; what holds there has tests of its own (`quota::tree`).
            let row = self.state.tenant_named(&tenant).unwrap();
            let flat = quota::tree::is_flat(&self.state, row);
            let limits = [flat.then_some(gpu), q.tpu, q.cpu_milli, q.memory];
            for i in 0..4 {
                let over = limits[i].is_some_and(|limit| has[i] > limit);
                assert!(!over || has[i] <= had[i], "{tenant} went from {had:?} to {has:?}, beyond {limits:?}");
            }
        }
    }

    /// No replica that served was told to stop by others' will while its service had enough of them missing.
    fn budgets_held(&self, before: &State) {
        for job in self.state.jobs().values() {
            let Some(most) = disruption::budget(&job.spec) else { continue };
            let Some(former) = before.job(job.no) else { continue };
            let told = |(was, is): &(&Replica, &Replica)| {
                let served = matches!(was.phase, Phase::Held { stage: Stage::Ready, .. });
                let stops = matches!(&is.phase, Phase::Stopping { why, .. }
                    if disruption::is_voluntary(*why) || *why == Reason::Rollout);
                served && stops && was.generation == is.generation
            };
            let told = former.replicas.iter().zip(&job.replicas).filter(told).count();
            let missing = disruption::missing(job);
            assert!(told == 0 || missing <= most, "{} lacks {missing} of {most} after {told} were told", job.request);
        }
    }

    /// What runs about people, runs by a statement of its tenant that counts.
    fn nothing_runs_without_consent(&self) {
        let now = self.state.meta().now_ms;
        for job in self.state.jobs().values() {
            for replica in job.replicas.iter().filter(|r| matches!(r.phase, Phase::Held { .. })) {
                let spec = job.spec_of(replica.revision);
                for class in &spec.data_classes {
                    let given = |c: &Consent| c.counts(now) && c.scope.classes.contains(class);
                    let any = self.state.consents_of(&spec.tenant).any(|consent| given(consent));
                    assert!(any, "{} holds {class} and nobody consents", job.request);
                }
            }
        }
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Result<Answer, Refusal>> {
        let batch = Batch { base: self.state.meta().base, at_ms: self.now, commands, ..Batch::default() };
        let time = self.state.meta().now_ms;
        let BatchOutcome::Applied(answers) = apply_batch(&mut self.state, &batch) else { panic!("superseded") };
        assert!(self.state.meta().now_ms >= time, "log time went back");
        for change in self.state.take_changes() {
            match change.value {
                Some(value) => drop(self.rows.insert((change.table, change.key), value)),
                None => drop(self.rows.remove(&(change.table, change.key))),
            }
        }
        assert_eq!(invariants::check(&self.state), [], "after {batch:?}");
        self.batches.push(batch);
        answers
    }

    pub fn reloads_the_same(&self) {
        let live = self.rows.iter().filter(|((table, _), _)| Table::LIVE.contains(table));
        let rows = live.map(|((table, key), value)| (*table, key.clone(), value.clone()));
        let again = State::from_rows(rows).expect("rows that we wrote");
        assert_eq!(again.hash(), self.state.hash());
        if !self.rows.is_empty() {
            assert_eq!(again.meta(), self.state.meta());
        }
        assert_eq!((again.jobs(), again.nodes()), (self.state.jobs(), self.state.nodes()));
        assert_eq!((again.tenants(), again.members()), (self.state.tenants(), self.state.members()));
        assert_eq!(invariants::check(&again), []);
    }

    pub fn replays_the_same(&self) {
        let mut again = State::new();
        for batch in &self.batches {
            let batch = codec::decode::<Batch>(&codec::encode(batch)).expect("a frame that we wrote");
            apply_batch(&mut again, &batch);
            // An entry that is delivered twice is void the second time.
            assert!(matches!(apply_batch(&mut again, &batch), BatchOutcome::Superseded { .. }));
        }
        again.take_changes();
        assert_eq!((again.hash(), again.meta()), (self.state.hash(), self.state.meta()));
    }

    pub fn some_intent(&self, rng: &mut Rng) -> Intent {
        match rng.below(31) {
            0..3 => {
                let (name, kind) = (node_name(rng), NodeKind::Worker);
                let (incarnation, spec) = (Incarnation(rng.between(1, 3)), Arc::new(node(rng)));
                Intent::Register { name, kind, incarnation, spec }
            }
            3 => {
                let cordon = Cordon { by: "me".into(), reason: "test".into(), at_ms: 0, drain: drain(rng) };
                Intent::Cordon { node: node_name(rng), cordon: rng.chance(600).then_some(cordon) }
            }
            4 => Intent::NodeStates(vec![(node_no(rng), Incarnation(rng.between(1, 3)), node_state(rng))]),
            5 => Intent::SetQuota { tenant: tenant(rng), quota: some_quota(rng) },
            6 if rng.chance(300) => Intent::DeleteTenant { tenant: tenant(rng) },
            6 if rng.chance(300) => {
                let mut chosen = nf_core::placement::Chosen::from(*rng.pick(&nf_core::placement::Policy::ALL));
                chosen.preemption.min_run_ms = rng.below(3) * 1000;
                chosen.preemption.delay_ms = rng.below(3) * 2000;
                chosen.preemption.max_grace_ms = 5000 + rng.below(3) as u32 * 5000;
                Intent::SetPlacement { chosen, seen: None }
            }
            6 => Intent::CreateTenant { tenant: tenant(rng) },
            7..12 => {
                let queueing = if rng.chance(150) { Queueing::Never } else { Queueing::Wait };
                Intent::Schedule { submission: submission(rng), queueing, check_plan: None }
            }
            12..14 => {
                let (tenant, request) = self.named(rng);
                Intent::Stop { request, tenant: rng.chance(700).then_some(tenant), why: Reason::StoppedByUser }
            }
            14..17 => self.reports(rng),
            what @ 17..19 => match (what, self.named(rng)) {
                (17, (tenant, request)) => Intent::Scale { request, tenant: Some(tenant), target: target(rng) },
                (_, (tenant, request)) => Intent::Wake { tenant, request },
            },
            19 => Intent::Moves,
            20 => Intent::Defragment,
            22 => rollout(self.named(rng), rng),
            23 => {
                let (tenant, request) = self.named(rng);
                Intent::TurnRollout { request, tenant: Some(tenant), revision: None, turn: turn(rng) }
            }
            24..26 => Intent::Rollouts,
            21 => Intent::Faults { node: node_name(rng), incarnation: None, faults: vec![fault(rng)] },
            26 => Intent::Budgets,
            28 => match self.state.consents().nth(rng.below(4) as usize) {
                Some(consent) if rng.chance(500) => mixed::dissent(consent),
                _ => Intent::Consent(Box::new(mixed::consent(tenant(rng), self.now, rng))),
            },
            29 => self.purged(rng),
            30 => Intent::Tick,
            _ => Intent::PlaceWaiting,
        }
    }

    /// A job that lives, or a name that may mean none.
    fn named(&self, rng: &mut Rng) -> (TenantId, RequestId) {
        let live = self.state.jobs();
        let of = |job: &Arc<Job>| (job.spec.tenant.clone(), job.request.clone());
        let one = (!live.is_empty() && rng.chance(800)).then(|| rng.below(live.len() as u64) as usize);
        one.and_then(|n| live.values().nth(n)).map_or_else(|| (tenant(rng), request(rng)), of)
    }

    /// What an agent might say: true, stale, or about nothing that is.
    fn reports(&self, rng: &mut Rng) -> Intent {
        let node = node_name(rng);
        let mut reports = Vec::new();
        let mut incarnation = Incarnation(rng.between(1, 3));
        if let Some(row) = self.state.node_named(&node) {
            if rng.chance(800) {
                incarnation = row.incarnation;
            }
            for (job, replica, r) in self.state.replicas_on(row.no) {
                let generation = r.copy_on(row.no).map_or(r.generation, |(generation, ..)| generation);
                if rng.chance(600) {
                    reports.push(Report { job: job.no, replica, generation, kind: kind(rng) });
                }
            }
        }
        if rng.chance(300) {
            let (job, generation) = (JobNo(rng.below(12)), Generation(rng.below(4) as u32));
            reports.push(Report { job, replica: rng.below(4) as u16, generation, kind: kind(rng) });
        }
        Intent::Reports { node, incarnation, reports }
    }

    /// A node has removed what its slice names, or something else, or is an earlier start's agent.
    fn purged(&self, rng: &mut Rng) -> Intent {
        let node = node_name(rng);
        let mut copies = vec![(Digest16([rng.below(3) as u8; 16]), rng.below(40))];
        let mut incarnation = Incarnation(rng.between(1, 3));
        if let Some(row) = self.state.node_named(&node) {
            copies.extend(desired(&self.state, row.no).purge.iter().map(|purge| (purge.copy, purge.placed)));
            if rng.chance(800) {
                incarnation = row.incarnation;
            }
        }
        Intent::Purged { node, incarnation, copies }
    }

    /// Commands that no planner would make.
    fn garbage(&self, rng: &mut Rng) -> Command {
        let places = (0..rng.below(4)).map(|_| placement(rng)).collect();
        let job = JobNo(rng.below(12));
        let from = Generation(rng.below(4) as u32);
        match rng.below(18) {
            16 => Command::Consent(Box::new(mixed::consent(tenant(rng), self.now, rng))),
            17 => Command::Dissent { tenant: tenant(rng), statement: [0; 32] },
            12 => Command::StartRollout {
                job,
                next: Box::new(next(rng)),
                strategy: strategy(rng),
                rollback: rng.chance(500),
                by: None,
            },
            13 => Command::TurnRollout { job, revision: Revision(rng.between(1, 4) as u32), turn: turn(rng) },
            14 => Command::Renew {
                job,
                replica: rng.below(4) as u16,
                from,
                revision: Revision(rng.between(1, 4) as u32),
                to: rng.chance(500).then(|| placement(rng)),
            },
            15 => Command::CountUsage { tenants: vec![TenantNo(rng.below(5) as u32)] },
            10 => Command::Faults { node: node_no(rng), faults: vec![fault(rng)] },
            11 => Command::Heal { node: node_no(rng), uuid: fault(rng).uuid, by: None },
            7 => Command::Move { job, from, to: placement(rng), why: Reason::NodeDrain },
            8 => Command::Evict { job, replica: rng.below(4) as u16, from, why: Reason::NodeDrain },
            9 => Command::SetDrain {
                node: node_no(rng),
                to: *rng.pick(&[DrainState::None, DrainState::Draining, DrainState::Blocked, DrainState::Drained]),
            },
            0..2 => Command::Submit { submission: submission(rng), placements: places, claim: None },
            2..4 => Command::Place { job, placements: places },
            4 => Command::Stop { job, why: Reason::Preempted },
            5 => Command::Scale { job, target: target(rng) },
            _ => Command::SetNodeState { node: node_no(rng), incarnation: Incarnation(1), to: node_state(rng) },
        }
    }
}

fn tenant(rng: &mut Rng) -> TenantId {
    TenantId::new(&format!("t{}", rng.below(3))).unwrap()
}

fn request(rng: &mut Rng) -> RequestId {
    RequestId::new(&format!("r{}", rng.below(10))).unwrap()
}

fn node_name(rng: &mut Rng) -> NodeName {
    NodeName::new(&format!("n{}", rng.below(4))).unwrap()
}

fn node_no(rng: &mut Rng) -> NodeNo {
    NodeNo(rng.below(5) as u32)
}

fn fault(rng: &mut Rng) -> DeviceFault {
    let fault = *rng.pick(&[Fault::Xid(13), Fault::Xid(79), Fault::Xid(94), Fault::Xid(63), Fault::Lost, Fault::Hand]);
    DeviceFault { uuid: format!("GPU-{:04}", rng.below(9)).into(), fault, simulated: rng.chance(500) }
}

fn drain(rng: &mut Rng) -> Option<Drain> {
    let within_ms = rng.chance(300).then(|| rng.below(20_000));
    rng.chance(700).then(|| Drain { within_ms, force: rng.chance(200) })
}

fn node_state(rng: &mut Rng) -> NodeState {
    *rng.pick(&[NodeState::Ready, NodeState::Suspect, NodeState::Unknown, NodeState::Down, NodeState::Maintenance])
}

fn some_quota(rng: &mut Rng) -> Quota {
    Quota {
        gpu_milli: rng.chance(900).then(|| rng.below(20) * 500),
        cpu_milli: rng.chance(200).then(|| rng.below(64_000)),
        memory: rng.chance(200).then(|| rng.below(256) << 30),
        tpu: rng.chance(200).then(|| rng.below(4)),
        waiting: rng.chance(200).then(|| rng.below(3) as u32),
        parent: rng.chance(300).then(|| tenant(rng)),
        borrow_milli: rng.chance(300).then(|| rng.below(8) * 500),
        lend_milli: rng.chance(300).then(|| rng.below(8) * 500),
        types: if rng.chance(300) { types(rng) } else { BTreeMap::new() },
        budgets: if rng.chance(400) { budgets(rng).some() } else { None },
        soft_sharing: rng.chance(500),
    }
}

fn types(rng: &mut Rng) -> BTreeMap<DeviceType, nf_core::tenant::Share> {
    let mut out = BTreeMap::new();
    for name in ["H100-80G", "A100-40G"] {
        let share = nf_core::tenant::Share {
            gpu_milli: rng.below(8) * 500,
            borrow_milli: rng.chance(300).then(|| rng.below(4) * 500),
            lend_milli: rng.chance(300).then(|| rng.below(4) * 500),
        };
        if rng.chance(600) {
            out.insert(DeviceType::new(name).unwrap(), share);
        }
    }
    out
}

fn budgets(rng: &mut Rng) -> Budgets {
    let mut out = Budgets::default();
    for window in Window::ALL {
        out.gpu_hours[window as usize] = rng.chance(300).then(|| rng.below(200) * 1000);
        out.money[window as usize] = rng.chance(300).then(|| rng.below(2_000) * 1_000_000);
    }
    out
}

fn mig() -> DeviceType {
    DeviceType::new("1g.10gb").unwrap()
}

fn large() -> DeviceType {
    DeviceType::new("3g.40gb").unwrap()
}

fn zone(rng: &mut Rng) -> Option<Label> {
    rng.chance(300).then(|| Label::new(*rng.pick(&["a", "b"]) as &str).unwrap())
}

fn node(rng: &mut Rng) -> NodeSpec {
    let mut spec = testing::node_spec(rng.below(9) as u16);
    for device in &mut spec.devices {
        match rng.below(12) {
            0 => device.kind = DeviceKind::Tpu,
            1 => device.mig_profile = Some(mig()),
            2 => device.healthy = false,
            3 => device.memory = rng.between(1, 80) << 30,
            4 => device.device_type = DeviceType::new("A100-40G").unwrap(),
            5 => device.sharing = Sharing::None,
            6 => device.sharing = Sharing::Mps,
            7 => device.sharing = Sharing::Mig,
            _ => {}
        }
    }
    if spec.devices.len().is_multiple_of(4) {
        played::on_numa_nodes(&mut spec.devices, Some(2));
    }
    (spec.zone, spec.rack) = (zone(rng), zone(rng));
    match rng.below(6) {
        0 => spec.ports = None,
        1 => spec.ports = Some(PortRange { first: 31000, last: 31001 }),
        2 => spec.cpu_milli = rng.below(4_000),
        3 => spec.memory = rng.below(64) << 30,
        4 => {
            let price = if rng.chance(200) { u64::MAX } else { rng.below(90_000_000) };
            spec.cost_per_hour.insert(DeviceType::new("H100-80G").unwrap(), price);
        }
        _ => {}
    }
    spec
}

fn next(rng: &mut Rng) -> Next {
    let version = VersionId::new(&format!("v{}", rng.between(1, 4))).unwrap();
    let (manifest, data_classes) = mixed::contents(&version);
    let self_limiting = mixed::limits_itself(&version);
    Next { version, manifest, data_classes, self_limiting, ..Next::of(&testing::job_spec("t1", Gpus::None)) }
}

fn strategy(rng: &mut Rng) -> Strategy {
    let percent = rng.chance(500).then(|| rng.between(1, 99) as u8);
    Strategy {
        surge: rng.below(3) as u16,
        unavailable: rng.below(3) as u16,
        canary: rng.chance(300).then(|| Canary { percent, auto_promote: rng.chance(500) }),
        window_ms: rng.between(1, 20_000) as u32,
        ready_ms: rng.between(1, 60_000) as u32,
    }
}

fn rollout((tenant, request): (TenantId, RequestId), rng: &mut Rng) -> Intent {
    let (next, strategy, rollback) = (Box::new(next(rng)), strategy(rng), false);
    Intent::StartRollout { request, tenant: Some(tenant), next, strategy, rollback }
}

fn turn(rng: &mut Rng) -> Turn {
    let back = Turn::Back { failed: rng.chance(500), why: Reason::PromiseBroken, counts: None };
    rng.pick(&[Turn::Pause, Turn::Resume, Turn::Promote, Turn::Watch, Turn::Done, back, Turn::Undone]).clone()
}

fn target(rng: &mut Rng) -> Target {
    Target { replicas: rng.below(7) as u16, why: Why::Idle, inputs: None, seen: None, learned: None }
}

fn submission(rng: &mut Rng) -> Submission {
    let spec = job(rng);
    // Now and then the same id with the same body, although the job differs in the small.
    let body = Digest16([rng.below(2) as u8; 16]);
    Submission { request: request(rng), body, keyed: rng.chance(500), spec: Arc::new(spec) }
}

fn job(rng: &mut Rng) -> JobSpec {
    let gpu = match rng.below(8) {
        0 => Gpus::None,
        1..4 => Gpus::Milli(rng.between(1, 999) as u16),
        4..7 => Gpus::Whole(rng.between(1, 4) as u16),
        _ => Gpus::Whole(rng.between(0, 12) as u16),
    };
    let resources = Resources {
        gpu,
        gpu_memory: if rng.chance(300) { rng.between(1, 90) << 30 } else { 0 },
        device_types: if rng.chance(100) { vec![DeviceType::new("A100-40G").unwrap()] } else { Vec::new() },
        mig_profile: rng.chance(160).then(|| if rng.chance(500) { mig() } else { large() }),
        tpu: if rng.chance(100) { rng.between(1, 2) as u16 } else { 0 },
        cpu_milli: rng.below(20) * 500,
        memory: rng.below(80) << 30,
        disk: if rng.chance(100) { rng.between(1, 8) << 40 } else { 0 },
    };
    let constraints = Constraints {
        zone: zone(rng),
        arrangement: *rng.pick(&[Arrangement::Any, Arrangement::Pack, Arrangement::Spread]),
        same_island: rng.chance(200),
        max_cost_per_hour: rng.chance(100).then(|| rng.below(100_000_000)),
        node: rng.chance(100).then(|| node_name(rng)),
        restart: *rng.pick(&[Restart::Always, Restart::Always, Restart::OnFailure, Restart::Never]),
        exclusive: rng.chance(150),
        preemptible: rng.chance(500),
        max_run_ms: rng.chance(100).then(|| rng.below(10_000)),
        checkpoint_ms: rng.chance(300).then(|| rng.below(10_000) as u32),
        ..Constraints::default()
    };
    let replicas = rng.between(1, 4) as u16;
    let tenant = format!("t{}", rng.below(3));
    let priority = rng.below(3) as i16 - 1;
    let scaling = (!constraints.exclusive && rng.chance(300)).then(|| Scaling {
        min: rng.below(2) as u16,
        max: 6,
        ..Scaling::default()
    });
    let gang = scaling.is_none() && rng.chance(400);
    let budgeted = !gang && constraints.restart != Restart::Never && rng.chance(400);
    let topology = Topology {
        required: rng.chance(150).then_some(Level::Zone),
        preferred: rng.chance(150).then_some(Level::Rack),
    };
    let constraints = Constraints { topology, ..constraints };
    let constraints = Constraints { max_unavailable: budgeted.then(|| rng.below(3) as u16), ..constraints };
    let spec = testing::job_spec(&tenant, gpu);
    let version = if rng.chance(300) { VersionId::new("v2").unwrap() } else { spec.version.clone() };
    let (manifest, data_classes) = mixed::contents(&version);
    let self_limiting = mixed::limits_itself(&version);
    let spec = JobSpec { resources, constraints, replicas, gang, priority, scaling, self_limiting, ..spec };
    JobSpec { version, manifest, data_classes, ..spec }
}

fn placement(rng: &mut Rng) -> Placement {
    let share = |rng: &mut Rng| Share {
        device: rng.below(9) as u16,
        milli: *rng.pick(&[0, 1, 100, 125, 500, 1000, 1000, 1000, 1001]),
        kept: match rng.below(4) {
            0 => Kept::Mig(Slice { shape: *rng.pick(&Shape::ALL), start: rng.below(9) as u8 }),
            _ => *rng.pick(&[Kept::Alone, Kept::Alone, Kept::Mps, Kept::Simulated, Kept::Runtime, Kept::Accepted]),
        },
    };
    let mut shares: Vec<Share> = (0..rng.below(3)).map(|_| share(rng)).collect();
    if rng.chance(800) {
        shares.sort();
    }
    let port = rng.chance(800).then(|| 31000 + rng.below(4) as u16);
    Placement {
        replica: rng.below(4) as u16,
        alloc: Allocation { node: node_no(rng), shares, port, at_ms: 0 },
        why: None,
    }
}

fn kind(rng: &mut Rng) -> ReportKind {
    let stages = [Stage::Downloading, Stage::Verifying, Stage::Starting, Stage::Ready, Stage::NotReady];
    match rng.below(3) {
        0 => ReportKind::Ended {
            ok: rng.chance(500),
            why: *rng.pick(&[Reason::RuntimeFailed, Reason::ArtifactMismatch, Reason::ExitedNonZero]),
        },
        _ => ReportKind::Stage(*rng.pick(&stages)),
    }
}
