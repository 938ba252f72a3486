//! Random trees with limits of device types: none is ever passed, everything comes to
//! rest, and owners get the type back that is theirs.

use super::*;
use crate::id::{JobNo, TenantId};
use crate::invariants;
use crate::job::Replica;
use crate::placement::preempt::tests::to_rest;
use crate::placement::{Chosen, Policy, explain};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::tenant::{Quota, Share};
use crate::testing;

const TYPES: [&str; 2] = ["H100-80G", "A100-40G"];

fn kind(name: &str) -> DeviceType {
    DeviceType::new(name).unwrap()
}

fn id(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn share(gpus: u64, borrow: Option<u64>, lend: Option<u64>) -> Share {
    Share { gpu_milli: gpus * 1000, borrow_milli: borrow.map(|n| n * 1000), lend_milli: lend.map(|n| n * 1000) }
}

fn set(state: &mut State, name: &str, above: Option<&str>, gpus: Option<u64>, types: &[(&str, Share)]) {
    let types = types.iter().map(|(name, share)| (kind(name), *share)).collect();
    let quota = Quota { gpu_milli: gpus.map(|n| n * 1000), parent: above.map(id), types, ..Quota::default() };
    testing::run(state, Intent::SetQuota { tenant: id(name), quota });
}

/// Nodes of four GPUs, in turn of either type; and without a time in which a place is safe.
fn group(nodes: u64) -> State {
    let mut state = State::new();
    let mut chosen = Chosen::from(Policy::Fragmentation);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    for i in 0..nodes {
        let mut node = testing::node_spec(4);
        node.devices.iter_mut().for_each(|device| device.device_type = kind(TYPES[i as usize % 2]));
        testing::run(&mut state, testing::register(&format!("n{i}"), node));
    }
    state
}

fn job(tenant: &str, gpu: Gpus, types: &[&str]) -> JobSpec {
    let mut spec = testing::job_spec(tenant, gpu);
    spec.resources.device_types = crate::job::device_types(types.iter().map(|name| kind(name)).collect());
    spec
}

/// What a tenant itself holds of a type, counted from the jobs.
fn holds(state: &State, tenant: TenantNo, of: &DeviceType) -> u64 {
    let jobs = state.jobs().values().filter(|job| job.tenant == tenant);
    let allocs = jobs.flat_map(|job| job.replicas.iter().flat_map(Replica::allocations));
    let milli = |alloc: &Allocation| {
        let devices = &state.node(alloc.node).unwrap().spec.devices;
        let shares = alloc.shares.iter().filter(|share| devices[usize::from(share.device)].device_type == *of);
        shares.map(|share| u64::from(share.milli)).sum::<u64>()
    };
    allocs.map(milli).sum()
}

/// Nominal and demand of what is really held, by the definition, and whether anybody names the type.
fn sums(state: &State, tenant: &Tenant, of: &DeviceType) -> (u64, u64, bool) {
    let own = tenant.quota.types.get(of);
    let below = state.tenants().values().filter(|other| other.quota.parent.as_ref() == Some(&tenant.id));
    let start = (own.map_or(0, |share| share.gpu_milli), holds(state, tenant.no, of), own.is_some());
    below.fold(start, |(nominal, demand, named), child| {
        let (has, wants, names) = sums(state, child, of);
        let lent = child.quota.types.get(of).and_then(|share| share.lend_milli).unwrap_or(u64::MAX);
        (nominal + has, demand + wants.max(has.saturating_sub(lent)), named || names)
    })
}

fn within_limits(state: &State, seed: u64) {
    let roots = state.tenants().values().filter(|tenant| tenant.quota.parent.is_none());
    for (root, of) in roots.flat_map(|root| TYPES.map(|name| (root, kind(name)))) {
        if !sums(state, root, &of).2 {
            continue;
        }
        for no in tree::subtree(state, root) {
            let tenant = state.tenant(no).unwrap();
            let (nominal, demand, _) = sums(state, tenant, &of);
            let borrow = tenant.quota.types.get(&of).and_then(|share| share.borrow_milli).unwrap_or(1 << 40);
            let most = if tenant.quota.parent.is_none() { nominal } else { nominal + borrow };
            assert!(demand <= most, "seed {seed}: {} has {demand} of {most} {of}", tenant.id);
        }
    }
}

fn random_tree(state: &mut State, rng: &mut Rng) -> Vec<String> {
    let types = |rng: &mut Rng| {
        let mut out = Vec::new();
        for name in TYPES {
            let limits = (rng.chance(300).then(|| rng.below(4)), rng.chance(300).then(|| rng.below(4)));
            if rng.chance(700) {
                out.push((name, share(rng.below(4), limits.0, limits.1)));
            }
        }
        out
    };
    let mut all = vec!["org".to_owned()];
    set(state, "org", None, Some(rng.below(4)), &[]);
    for team in 0..rng.between(2, 3) {
        let (name, gpus) = (format!("team{team}"), rng.chance(500).then(|| rng.below(6)));
        let own = types(rng);
        set(state, &name, Some("org"), gpus, &own);
        for group in 0..rng.below(3) {
            let (below, gpus) = (format!("{name}-{group}"), rng.chance(300).then(|| rng.below(4)));
            let own = types(rng);
            set(state, &below, Some(&name), gpus, &own);
            all.push(below);
        }
        all.push(name);
    }
    all
}

#[test]
fn arrivals_in_random_trees_pass_no_limit_of_a_type_and_come_to_rest() {
    let world = |rng: &mut Rng| {
        let mut state = group(rng.between(2, 4));
        let tenants = random_tree(&mut state, rng);
        (state, tenants)
    };
    let arriving = |rng: &mut Rng, tenants: &Vec<String>| {
        let types = *rng.pick::<&[&str]>(&[&TYPES[..1], &TYPES[1..], &TYPES[..1], &TYPES[1..], &TYPES[..], &[]]);
        job(rng.pick::<String>(tenants), Gpus::Whole(rng.between(1, 2) as u16), types)
    };
    let (arrivals, evictions) = tree::tests::arrivals((50, 100), world, arriving, within_limits);
    println!("{arrivals} arrivals, {evictions} evictions");
    assert!(arrivals >= 5_000 && evictions > 100, "{arrivals} arrivals, {evictions} evictions");
}

#[test]
fn an_owner_gets_its_type_back_from_who_borrowed_it_and_nothing_of_the_other() {
    let mut state = group(2);
    set(&mut state, "org", None, None, &[]);
    set(&mut state, "a", Some("org"), None, &[(TYPES[0], share(2, None, None)), (TYPES[1], share(2, None, None))]);
    set(&mut state, "b", Some("org"), None, &[(TYPES[0], share(2, None, None)), (TYPES[1], share(2, None, None))]);
    let mut seen = BTreeSet::new();
    for i in 0..4 {
        testing::run(&mut state, testing::schedule(&format!("a{i}"), job("a", Gpus::Whole(1), &TYPES[..1])));
    }
    to_rest(&mut state, &mut seen, 0);
    let of =
        |state: &State, name: &str, i: usize| holds(state, state.tenant_named(&id(name)).unwrap().no, &kind(TYPES[i]));
    assert_eq!(of(&state, "a", 0), 4000, "two of them are borrowed");
    // Of the other type nothing is borrowed, and there is room.
    testing::run(&mut state, testing::schedule("b-other", job("b", Gpus::Whole(1), &TYPES[1..])));
    assert_eq!(to_rest(&mut state, &mut seen, 0), 0);
    for i in 0..3 {
        testing::run(&mut state, testing::schedule(&format!("b{i}"), job("b", Gpus::Whole(1), &TYPES[..1])));
        to_rest(&mut state, &mut seen, 0);
    }
    assert_eq!((of(&state, "a", 0), of(&state, "b", 0), of(&state, "b", 1)), (2000, 2000, 1000));
    let waits = state.jobs().values().find(|job| job.wants_place() && job.spec.tenant == id("b")).unwrap();
    let why = explain::blockers(&state, waits);
    assert!(why.iter().any(|b| b.reason == Reason::WaitingForQuota && b.detail.contains("1 H100-80G GPUs")), "{why:?}");
}

#[test]
fn a_job_goes_to_the_type_of_which_its_tenant_may_have_more() {
    let mut state = group(2);
    set(&mut state, "t1", None, None, &[(TYPES[0], share(1, None, None)), (TYPES[1], share(3, None, None))]);
    for i in 0..4 {
        testing::run(&mut state, testing::schedule(&format!("r{i}"), job("t1", Gpus::Whole(1), &[])));
        within_limits(&state, 0);
    }
    let no = state.tenant_named(&id("t1")).unwrap().no;
    assert_eq!((holds(&state, no, &kind(TYPES[0])), holds(&state, no, &kind(TYPES[1]))), (1000, 3000));
    testing::run(&mut state, testing::schedule("more", job("t1", Gpus::Whole(2), &TYPES[..1])));
    let waits = state.job(JobNo(5)).unwrap();
    let why = explain::blockers(&state, waits);
    let never = why.iter().find(|b| b.detail.starts_with("asks for 2 H100-80G GPUs")).unwrap();
    assert_eq!((never.reason, never.permanent), (Reason::ExceedsMaxQuota, true), "{why:?}");
    // Another tenant, with the same ask, does not suffer from it.
    testing::run(&mut state, testing::schedule("free", job("t2", Gpus::Whole(2), &TYPES[..1])));
    assert!(!state.job(JobNo(6)).unwrap().wants_place());
    assert_eq!(invariants::check(&state), []);
    let _ = state.take_changes();
    assert_eq!(invariants::check(&State::from_rows(state.live_rows()).unwrap()), []);
}

#[test]
fn a_type_that_is_shut_is_a_reason_where_the_others_are_full() {
    let mut state = group(2);
    set(&mut state, "t1", None, Some(8), &[("H100-80G", share(1, Some(0), None))]);
    set(&mut state, "t2", None, Some(8), &[]);
    testing::run(&mut state, testing::schedule("full", job("t2", Gpus::Whole(4), &["A100-40G"])));
    testing::run(&mut state, testing::schedule("own", job("t1", Gpus::Whole(1), &["H100-80G"])));
    testing::run(&mut state, testing::schedule("waits", job("t1", Gpus::Whole(1), &[])));
    let waits = state.job_of(&crate::id::RequestId::new("waits").unwrap()).unwrap().clone();
    let blockers = explain::blockers(&state, &waits);
    let quota = blockers.iter().find(|b| b.reason == Reason::WaitingForQuota).expect("H100-80G is shut");
    assert!(quota.detail.contains("H100-80G") && !quota.permanent, "{quota:?}");
    assert!(blockers.iter().any(|b| b.reason == Reason::Resources && b.nodes == 1), "{blockers:?}");
}

#[test]
fn a_gang_whose_members_may_be_of_two_types_is_not_told_that_it_never_fits() {
    let mut state = group(2);
    let four = share(4, None, None);
    set(&mut state, "t1", None, None, &[(TYPES[0], four), (TYPES[1], four)]);
    testing::run(&mut state, testing::schedule("first", job("t2", Gpus::Whole(1), &TYPES[..1])));
    let gang = |members: u16| JobSpec { gang: true, replicas: members, ..job("t1", Gpus::Whole(1), &[]) };
    testing::run(&mut state, testing::schedule("gang", gang(8)));
    testing::run(&mut state, testing::schedule("larger", gang(9)));
    let of = |state: &State, request: &str| state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap().clone();
    let never =
        |state: &State, request: &str| explain::blockers(state, &of(state, request)).iter().any(|b| b.permanent);
    assert!(!never(&state, "gang") && never(&state, "larger"));
    let first = of(&state, "first");
    let why = Reason::StoppedByUser;
    testing::run(&mut state, Intent::Stop { request: first.request.clone(), tenant: None, why });
    crate::placement::preempt::tests::all_gone(&mut state);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert!(!of(&state, "gang").wants_place(), "four of each type are its own");
    within_limits(&state, 0);
    assert_eq!(invariants::check(&state), []);
}
