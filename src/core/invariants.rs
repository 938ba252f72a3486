//! The checker, apart from the doer: what must hold in every state, computed
//! from the stored rows alone and compared with what the setters kept. Used by
//! tests, the simulation, start-up and `nf doctor`.

use crate::budget::{Meter, Rates, Window};
use crate::capacity::CapacityIndex;
use crate::consent;
use crate::disruption;
use crate::id::{NodeNo, Revision, TenantNo};
use crate::job::{Allocation, Job, JobSpec, Movable, Move, Phase, Replica};
use crate::ledger::{self, Ledger, NodeUse, TenantUse};
use crate::mig::{self, Shape, Slice};
use crate::quota::tree;
use crate::resources::{Gpus, WHOLE};
use crate::sharing::{Kept, Sharing};
use crate::state::{RequestKey, State};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Something that must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// All violations; empty for a sound state.
pub fn check(state: &State) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut bad = |text: String| out.push(Violation(text));
    devices(state, &mut bad);
    jobs(state, &mut bad);
    quotas(state, &mut bad);
    claims(state, &mut bad);
    budgets(state, &mut bad);
    meters(state, &mut bad);
    derived(state, &mut bad);
    out
}

/// No device, port, CPU, memory or disk is held beyond what is there.
fn devices(state: &State, bad: &mut impl FnMut(String)) {
    #[derive(Default)]
    struct Sum {
        cpu: u64,
        memory: u64,
        disk: u64,
        milli: BTreeMap<u16, u64>,
        device_memory: BTreeMap<u16, u64>,
        /// Slices of divided devices, and which of their parts each takes.
        slices: BTreeMap<u16, Vec<Slice>>,
        ports: BTreeSet<u16>,
    }
    let mut sums: BTreeMap<_, Sum> = BTreeMap::new();
    for job in state.jobs().values() {
        let ask = &job.spec.resources;
        for alloc in job.replicas.iter().flat_map(Replica::allocations) {
            let Some(node) = state.node(alloc.node) else {
                bad(format!("{} holds {}, which does not exist", job.no, alloc.node));
                continue;
            };
            let sum = sums.entry(alloc.node).or_default();
            sum.cpu += ask.cpu_milli;
            sum.memory += ask.memory;
            sum.disk += ask.disk;
            for share in &alloc.shares {
                *sum.milli.entry(share.device).or_default() += u64::from(share.milli);
                *sum.device_memory.entry(share.device).or_default() += ledger::share_memory(ask, *share, &node.spec);
                if let Kept::Mig(slice) = share.kept {
                    sum.slices.entry(share.device).or_default().push(slice);
                }
            }
            if alloc.port.is_some_and(|port| !sum.ports.insert(port)) {
                bad(format!("{}: port {:?} is given twice", node.name, alloc.port));
            }
        }
    }
    for (no, sum) in sums {
        let Some(node) = state.node(no) else { continue };
        let spec = &node.spec;
        if sum.cpu > spec.cpu_milli || sum.memory > spec.memory || sum.disk > spec.disk {
            bad(format!("{}: more cpu, memory or disk is held than it has", node.name));
        }
        for (device, slices) in &sum.slices {
            if overlap(slices) {
                bad(format!("{}: slices of device {device} overlap, or begin where none may: {slices:?}", node.name));
            }
        }
        for (device, milli) in &sum.milli {
            let memory = sum.device_memory.get(device).copied().unwrap_or(0);
            let has = spec.devices.get(usize::from(*device)).map_or(0, |d| d.memory);
            if *milli > u64::from(WHOLE) || memory > has {
                bad(format!(
                    "{}: device {device} is over-committed ({milli} of 1000, {memory} of {has} bytes)",
                    node.name
                ));
            }
        }
    }
}

/// Whether two of the slices take the same part of their device, or one can't be where it is.
fn overlap(slices: &[Slice]) -> bool {
    let mut taken = BTreeSet::new();
    let media = slices.iter().filter(|slice| slice.shape == Shape::OneMedia).count();
    let mut clash = |slice: &Slice| {
        let mut parts = slice.start..slice.start.saturating_add(slice.shape.size());
        !slice.shape.starts().contains(&slice.start) || !parts.all(|part| part < mig::PARTS && taken.insert(part))
    };
    media > 1 || slices.iter().any(&mut clash)
}

/// Each job is known by its request, holds what it asks for, and lives.
fn jobs(state: &State, bad: &mut impl FnMut(String)) {
    for job in state.jobs().values() {
        if state.requests.get(&RequestKey::new(job.tenant, &job.request)).is_none_or(|r| r.job != job.no) {
            bad(format!("{} is not the job of its request {}", job.no, job.request));
        }
        // While a rollout is open there are two revisions, otherwise one.
        if job.open_rollout().is_none() && !job.is_all(job.revision) {
            bad(format!("{} has no rollout, and copies of another revision", job.no));
        }
        if job.rollout.as_ref().is_some_and(|rollout| rollout.is_open() && rollout.revision <= job.revision) {
            bad(format!("{} goes to a revision that it had", job.no));
        }
        if job.is_over() {
            bad(format!("{} has ended and is not in the history", job.no));
        }
        let ask = &job.spec.resources;
        let count = match ask.gpu {
            Gpus::None => 0,
            Gpus::Milli(_) => 1,
            Gpus::Whole(n) => usize::from(n),
        } + usize::from(ask.tpu);
        for (i, replica) in job.replicas.iter().enumerate() {
            if replica.allocations().any(|alloc| alloc.shares.len() != count) {
                bad(format!("{} replica {i} does not hold what it asks for", job.no));
            }
            if !replica.copies().all(|(_, revision, alloc)| is_kept(state, job.spec_of(revision), alloc)) {
                bad(format!("{} replica {i} holds a part of a device that is not kept as was said", job.no));
            }
            // Each copy by the version that it runs: in a rollout there are two.
            let remembered = |(_, revision, alloc): (_, Revision, &Allocation)| {
                let manifest = consent::about_people(job.spec_of(revision));
                let key = |manifest| (alloc.node, consent::copy_key(&job.spec.tenant, &manifest));
                manifest.is_none_or(|manifest| state.copies.contains_key(&key(manifest)))
            };
            if !replica.copies().all(remembered) {
                bad(format!("{} replica {i} has data about people where nobody would remove it", job.no));
            }
            if let Some(text) = moves(job, replica) {
                bad(format!("{} replica {i} {text}", job.no));
            }
            if matches!(replica.phase, Phase::Held { .. } if job.stopped) {
                bad(format!("{} was stopped and replica {i} should still run", job.no));
            }
        }
    }
}

/// Whether what kept the shares when they were given still does. (A tenant's word that was taken back is asked for
/// again at the next place.)
fn is_kept(state: &State, spec: &JobSpec, alloc: &Allocation) -> bool {
    let devices = state.node(alloc.node).map(|node| node.spec.devices.as_slice()).unwrap_or_default();
    alloc.shares.iter().all(|share| {
        let device = devices.get(usize::from(share.device)).map(|device| device.sharing);
        match share.kept {
            Kept::Alone => u32::from(share.milli) == WHOLE && device != Some(Sharing::Mig),
            Kept::Mig(slice) => device == Some(Sharing::Mig) && share.milli == slice.shape.milli(),
            Kept::Mps | Kept::Simulated => device == share.kept.by_device(),
            Kept::Runtime => spec.self_limiting && device != Some(Sharing::Mig),
            Kept::Accepted => device != Some(Sharing::Mig),
        }
    })
}

/// No service has more replicas out by others' will than it lets be missing.
fn budgets(state: &State, bad: &mut impl FnMut(String)) {
    for job in state.jobs().values().filter(|job| !job.stopped) {
        let taken = disruption::taken(job);
        if disruption::budget(&job.spec).is_some_and(|most| taken > most) {
            bad(format!("{} has {taken} replicas out by others' will, which is more than it lets be missing", job.no));
        }
    }
}

/// Who claims a place waits for it, and no two claim the same node.
fn claims(state: &State, bad: &mut impl FnMut(String)) {
    let mut of: BTreeMap<NodeNo, crate::id::JobNo> = BTreeMap::new();
    for (job, claim) in crate::claim::open(state) {
        if job.stopped || claim.placements.is_empty() || claim.victims.is_empty() {
            bad(format!("{} claims a place that it can't take", job.no));
        }
        for node in claim.nodes() {
            if *of.entry(node).or_insert(job.no) != job.no {
                bad(format!("{node} is claimed by {} and by {}", job.no, of[&node]));
            }
        }
    }
    if state.claims.len() > crate::claim::MOST_OPEN {
        bad(format!("{} claims are open", state.claims.len()));
    }
}

/// What is wrong with a replica's move.
fn moves(job: &Job, replica: &Replica) -> Option<&'static str> {
    let (own, other) = (replica.allocation(), replica.other_allocation());
    match &replica.moving {
        _ if replica.generation > replica.newest => Some("has a generation newer than its newest"),
        _ if own.zip(other).is_some_and(|(own, other)| own.node == other.node) => Some("has two copies on one node"),
        Some(Move::Coming { .. } | Move::Later { .. }) if own.is_none() => Some("is replaced and holds nothing"),
        Some(Move::Coming { .. }) if job.stopped => Some("was stopped and is replaced"),
        Some(Move::Coming { generation, .. }) if *generation <= replica.generation => {
            Some("is replaced by an older generation")
        }
        Some(Move::Going { generation, .. }) if *generation == replica.generation => {
            Some("has two copies of one generation")
        }
        Some(Move::Coming { .. }) if job.spec.movable() == Movable::Never => {
            Some("may not be started again, and moves")
        }
        Some(Move::Coming { .. })
            if job.spec.movable() == Movable::Swap && matches!(replica.phase, Phase::Held { .. }) =>
        {
            Some("must not run twice, and does not stop before its replacement starts")
        }
        Some(Move::Going { .. }) if job.spec.movable() != Movable::Surge && own.is_some() => {
            Some("must not run twice, and has a former copy beside it")
        }
        _ => None,
    }
}

/// What each tenant holds adds up. (A quota lowered under what is held is legal;
/// what may not happen is a placement beyond it, which apply refuses.)
fn quotas(state: &State, bad: &mut impl FnMut(String)) {
    let mut held: BTreeMap<_, u64> = BTreeMap::new();
    for job in state.jobs().values() {
        let holding = job.replicas.iter().flat_map(Replica::allocations).count() as u64;
        *held.entry(job.tenant).or_default() += holding * job.spec.resources.gpu.milli();
    }
    for (tenant, used) in &state.ledger().tenants {
        let sum = held.get(tenant).copied().unwrap_or(0);
        if used.gpu_milli != sum {
            bad(format!("{tenant} holds {sum} thousandths of GPUs, the ledger says {}", used.gpu_milli));
        }
    }
}

/// Each tenant's meter runs as fast as the jobs of it and those below it say, and has run forwards.
fn meters(state: &State, bad: &mut impl FnMut(String)) {
    let mut rates: BTreeMap<TenantNo, Rates> = BTreeMap::new();
    for job in state.jobs().values() {
        let of = Rates::of(state, &job.spec, &job.replicas, job.ran);
        for tenant in state.tenant(job.tenant).into_iter().flat_map(|tenant| tree::path(state, tenant)) {
            let sum = rates.entry(tenant.no).or_default();
            *sum = sum.changed(&Rates::default(), &of);
        }
    }
    for (no, meter) in &state.meters {
        if meter.rates != rates.remove(no).unwrap_or_default() {
            bad(format!("{no}'s meter runs at another rate than its jobs say"));
        }
        let forwards = |window: Window| {
            let marks = meter.marks[window as usize];
            (0..2).all(|kind| marks.before[kind] <= marks.opened[kind] && marks.opened[kind] <= meter.total[kind])
        };
        if meter.at_ms > state.meta().now_ms || !Window::ALL.into_iter().all(forwards) {
            bad(format!("{no}'s meter has run backwards"));
        }
    }
    if let Some((no, _)) = rates.into_iter().find(|(_, rates)| *rates != Rates::default()) {
        bad(format!("{no} uses something and has no meter"));
    }
}

/// Everything derived equals what the rows give.
fn derived(state: &State, bad: &mut impl FnMut(String)) {
    let fresh = rebuild(state);
    if comparable(&fresh.ledger) != comparable(&state.ledger) || fresh.ledger.types != state.ledger.types {
        bad("the ledger differs from the jobs".into());
    }
    if class_list(&fresh.capacity) != class_list(&state.capacity) {
        bad("the capacity index differs from the ledger".into());
    }
    let queues = [
        ("waiting", fresh.waiting == state.waiting),
        ("wakes", fresh.wakes == state.wakes),
        ("waits", fresh.waits == state.waits),
        ("children", fresh.children == state.children),
        ("limits by type", fresh.typed == state.typed),
        ("holding", fresh.holding == state.holding),
        ("torn gangs", fresh.torn == state.torn),
        ("claims", fresh.claims == state.claims),
        ("what is claimed", fresh.claimed == state.claimed),
        ("yielding", fresh.yielding == state.yielding),
        ("limited", fresh.limited == state.limited),
        ("services", fresh.services == state.services),
        ("rolling", fresh.rolling == state.rolling),
        ("budgets", fresh.budgets_due == state.budgets_due),
        ("expiries", fresh.expiries == state.expiries),
        ("node names", fresh.node_names == state.node_names),
        ("tenant names", fresh.tenant_names == state.tenant_names),
    ];
    for (what, _) in queues.iter().filter(|(_, same)| !same) {
        bad(format!("{what} differ from the rows"));
    }
}

/// The same rows through the same setters, from nothing.
fn rebuild(state: &State) -> State {
    let mut fresh = State { meta: state.meta.clone(), ..State::default() };
    state.nodes().values().for_each(|node| fresh.put_node((**node).clone()));
    state.tenants().values().for_each(|tenant| fresh.put_tenant((**tenant).clone()));
    for (no, meter) in &state.meters {
        fresh.load_meter(*no, Meter { rates: Rates::default(), due_ms: None, ..**meter });
    }
    state.requests.iter().for_each(|(key, request)| fresh.put_request(*key, request.clone()));
    state.jobs().values().for_each(|job| fresh.load_job((**job).clone()));
    fresh.sum_claims();
    fresh.reclass_all();
    fresh
}

/// The ledger without revisions and empty rows, which only say how we got here.
fn comparable(ledger: &Ledger) -> (BTreeMap<NodeNo, NodeUse>, BTreeMap<TenantNo, TenantUse>) {
    let bare = |used: &Arc<NodeUse>| {
        let mut used = (**used).clone();
        used.revision = 0;
        // A node that once had more devices keeps empty lines for them.
        while used.devices.last().is_some_and(|d| *d == Default::default()) {
            used.devices.pop();
        }
        used
    };
    let nodes = ledger.nodes.iter().map(|(no, used)| (*no, bare(used)));
    let tenants = ledger.tenants.iter().map(|(no, used)| (*no, *used));
    (
        nodes.filter(|(_, used)| *used != NodeUse::default()).collect(),
        tenants.filter(|(_, used)| *used != TenantUse::default()).collect(),
    )
}

fn class_list(index: &CapacityIndex) -> Vec<(&crate::capacity::Class, Vec<NodeNo>)> {
    index.classes.iter().map(|(class, nodes)| (&**class, nodes.iter().copied().collect())).collect()
}
