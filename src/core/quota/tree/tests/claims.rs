//! Several claims at once: what one of them brings or takes is counted once by the others.

use super::*;
use crate::command::ReportKind;
use crate::id::{NodeName, RequestId};
use crate::placement::preempt::tests::{everything, says};
use std::sync::Arc;

/// What a tenant will hold once all is gone that was told to go, and all claims are met, counted from the jobs.
fn to_come(state: &State, tenant: TenantNo) -> u64 {
    let jobs = state.jobs().values().filter(|job| job.tenant == tenant);
    let count = |job: &Job| {
        let held = job.replicas.iter().filter(|replica| matches!(replica.phase, Phase::Held { .. })).count();
        held + job.claim.as_ref().map_or(0, |claim| claim.placements.len())
    };
    jobs.map(|job| count(job) as u64 * job.spec.resources.gpu.milli()).sum()
}

/// Replicas of the tenant that were told to give back what it had borrowed.
fn giving_back(state: &State, tenant: TenantNo) -> BTreeSet<(JobNo, usize)> {
    let jobs = state.jobs().values().filter(|job| job.tenant == tenant);
    let gives = |r: &Replica| matches!(r.phase, Phase::Stopping { why: Reason::QuotaReclaimed, .. });
    let of = |job: &Arc<Job>| {
        let each = job.replicas.iter().enumerate().filter(|(_, replica)| gives(replica));
        each.map(|(no, _)| (job.no, no)).collect::<Vec<_>>()
    };
    jobs.flat_map(of).collect()
}

/// Nodes of one GPU: a claim takes a node for itself.
fn singles(gpus: u64) -> State {
    let mut state = group(0);
    for i in 0..gpus {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(1)));
    }
    state
}

/// Two minutes for everybody who wants them to save a state.
fn with_graces(state: &mut State) {
    let mut chosen = state.meta().placement;
    chosen.preemption.max_grace_ms = 120_000;
    testing::run(state, Intent::SetPlacement { chosen, seen: None });
}

/// A job of so many GPUs, pinned to a node, that gives way and wants two minutes for it.
fn batch(tenant: &str, gpus: u16, priority: i16, node: &str) -> JobSpec {
    let mut spec = testing::job_spec(tenant, Gpus::Whole(gpus));
    spec.priority = priority;
    (spec.constraints.preemptible, spec.constraints.checkpoint_ms) = (true, Some(120_000));
    spec.constraints.node = Some(NodeName::new(node).unwrap());
    spec
}

fn has_claim(state: &State, request: &str) -> bool {
    state.job_of(&RequestId::new(request).unwrap()).unwrap().claim.is_some()
}

fn no(state: &State, tenant: &str) -> TenantNo {
    state.tenant_named(&id(tenant)).unwrap().no
}

#[test]
fn a_tenant_that_makes_its_own_work_give_way_has_borrowed_nothing_by_that() {
    let mut state = group(8);
    with_graces(&mut state);
    set(&mut state, "org", None, 0, None, None);
    set(&mut state, "a", Some("org"), 4, None, None);
    set(&mut state, "b", Some("org"), 4, None, None);
    set(&mut state, "f", None, 4, None, None);
    let mut run = |request: &str, spec: JobSpec| testing::run(&mut state, testing::schedule(request, spec));
    ["n0", "n1"].iter().for_each(|node| _ = run(&format!("f-{node}"), batch("f", 2, 9, node)));
    (0..2).for_each(|i| _ = run(&format!("low{i}"), batch("b", 1, 0, "n0")));
    (0..2).for_each(|i| _ = run(&format!("b{i}"), batch("b", 1, 5, "n1")));
    run("high", batch("b", 2, 5, "n0"));
    run("a", batch("a", 1, 0, "n1"));
    assert!(has_claim(&state, "high"), "its own less urgent work gives way to it");
    assert!(!has_claim(&state, "a"), "b holds four of its four, before and after");
    assert_eq!(to_come(&state, no(&state, "b")), 4_000);
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn what_one_owner_is_given_back_no_other_has_back_as_well() {
    let mut state = singles(8);
    with_graces(&mut state);
    set(&mut state, "org", None, 0, None, None);
    for tenant in ["a", "c", "d"] {
        set(&mut state, tenant, Some("org"), 4, None, None);
    }
    let mut run = |request: &str, tenant: &str| {
        let mut spec = testing::job_spec(tenant, Gpus::Whole(1));
        spec.constraints.checkpoint_ms = Some(120_000);
        testing::run(&mut state, testing::schedule(request, spec));
    };
    (0..6).for_each(|i| run(&format!("c{i}"), "c"));
    (0..4).for_each(|i| run(&format!("a{i}"), "a"));
    (0..2).for_each(|i| run(&format!("d{i}"), "d"));
    let claims: Vec<bool> = ["a2", "a3", "d0", "d1"].map(|request| has_claim(&state, request)).into();
    assert_eq!(claims, [true, true, false, false], "c has given back two, and the rest is its own");
    assert_eq!(to_come(&state, no(&state, "c")), 4_000);
    assert_eq!(invariants::check(&state), []);
    let _ = state.take_changes();
    assert_eq!(State::from_rows(state.live_rows()).unwrap().claimed, state.claimed);
}

#[test]
fn a_tenant_whose_own_work_gives_way_holds_no_more_than_its_quota_meanwhile() {
    let mut state = group(8);
    with_graces(&mut state);
    set(&mut state, "t", None, 8, None, None);
    let mut run = |request: &str, spec: JobSpec| testing::run(&mut state, testing::schedule(request, spec));
    (0..4).for_each(|i| _ = run(&format!("s{i}"), batch("t", 1, 5, "n0")));
    (0..4).for_each(|i| _ = run(&format!("low{i}"), batch("t", 1, 0, "n1")));
    run("high", batch("t", 2, 5, "n1"));
    assert!(has_claim(&state, "high"));
    assert_eq!(crate::quota::used(&state, no(&state, "t")).gpu_milli, 8_000);
    let crashed = state.job_of(&RequestId::new("s0").unwrap()).unwrap().clone();
    let end = ReportKind::Ended { ok: false, why: Reason::ExitedNonZero };
    says(&mut state, everything(&crashed)[0], end);
    testing::try_run_at(&mut state, Intent::PlaceWaiting, 60_000).unwrap();
    assert!(has_claim(&state, "high"), "it is still open");
    let again = state.job(crashed.no).unwrap();
    assert!(matches!(again.replicas[0].phase, Phase::Held { .. }), "{:?}", again.replicas[0].phase);
}

#[test]
fn while_claims_are_open_too_nobody_gives_back_what_is_its_own() {
    let (mut reclaimed, mut at_once) = (0, 0);
    for seed in 0..200 {
        let mut rng = Rng::new(seed + 5_000);
        let mut state = singles(rng.between(4, 10));
        with_graces(&mut state);
        set(&mut state, "org", None, 0, None, None);
        let nominal: Vec<(TenantNo, u64)> = (0..4)
            .map(|i| {
                let (name, gpus) = (format!("t{i}"), rng.between(1, 5));
                set(&mut state, &name, Some("org"), gpus, None, None);
                (no(&state, &name), gpus * 1000)
            })
            .collect();
        for i in 0..40 {
            let before: Vec<_> = nominal.iter().map(|(tenant, _)| giving_back(&state, *tenant)).collect();
            at_once += usize::from(state.claims.len() > 1);
            match rng.below(3) {
                0 => testing::run(&mut state, Intent::PlaceWaiting),
                1 if one_gone(&mut state, &mut rng) => Vec::new(),
                _ => {
                    let mut spec = testing::job_spec(&format!("t{}", rng.below(4)), Gpus::Whole(1));
                    spec.priority = rng.below(4) as i16;
                    spec.constraints.preemptible = rng.chance(500);
                    spec.constraints.checkpoint_ms = rng.chance(700).then_some(60_000);
                    testing::run(&mut state, testing::schedule(&format!("r{i}"), spec))
                }
            };
            within_limits(&state, seed);
            for ((tenant, nominal), before) in nominal.iter().zip(before) {
                if giving_back(&state, *tenant).difference(&before).next().is_some() {
                    let left = to_come(&state, *tenant);
                    assert!(left >= *nominal, "seed {seed}, step {i}: {tenant:?} is left {left} of its {nominal}");
                    reclaimed += 1;
                }
            }
        }
        assert_eq!(invariants::check(&state), []);
    }
    assert!(reclaimed > 100 && at_once > 150, "{reclaimed} times, with several claims open {at_once} times");
}

/// One of those that were told to go is gone; false where there is none.
fn one_gone(state: &mut State, rng: &mut Rng) -> bool {
    let stops = |(_, replica): &(usize, &Replica)| matches!(replica.phase, Phase::Stopping { .. });
    let of = |job: &Arc<Job>| {
        let each = job.replicas.iter().enumerate().filter(stops);
        let victim = |(no, replica): (usize, &Replica)| Victim {
            job: job.no,
            replica: no as u16,
            generation: replica.generation,
            why: Reason::Preempted,
        };
        each.map(victim).collect::<Vec<_>>()
    };
    let going: Vec<Victim> = state.jobs().values().flat_map(of).collect();
    if going.is_empty() {
        return false;
    }
    let one = *rng.pick::<Victim>(&going);
    says(state, one, ReportKind::Ended { ok: true, why: Reason::StoppedByUser });
    true
}
