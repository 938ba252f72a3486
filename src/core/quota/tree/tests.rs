//! Random trees of tenants and arrivals: no limit is ever passed, everything comes to
//! rest, and owners get back what is theirs.

use super::*;
use crate::apply::apply;
use crate::claim::Victim;
use crate::command::Command;
use crate::invariants;
use crate::job::JobSpec;
use crate::placement::preempt::tests::to_rest;
use crate::placement::{Chosen, Policy};
use crate::plan::Intent;
use crate::reason::Reason;
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::tenant::Quota;
use crate::testing;
use std::collections::BTreeSet;

mod claims;

fn id(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn set(state: &mut State, name: &str, above: Option<&str>, nominal: u64, borrow: Option<u64>, lend: Option<u64>) {
    let gpus = |n: u64| n * 1000;
    let quota = Quota {
        gpu_milli: Some(gpus(nominal)),
        parent: above.map(id),
        borrow_milli: borrow.map(gpus),
        lend_milli: lend.map(gpus),
        ..Quota::default()
    };
    testing::run(state, Intent::SetQuota { tenant: id(name), quota });
}

pub(super) fn group(gpus: u64) -> State {
    let mut state = State::new();
    let mut chosen = Chosen::from(Policy::Fragmentation);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    for i in 0..gpus.div_ceil(4) {
        let node = testing::node_spec((gpus - 4 * i).min(4) as u16);
        testing::run(&mut state, testing::register(&format!("n{i}"), node));
    }
    state
}

/// Two or three teams, each with up to two groups below it. Returns the leaves and all nominal GPUs.
pub(super) fn random_tree(state: &mut State, rng: &mut Rng) -> (Vec<String>, u64) {
    set(state, "org", None, 0, None, None);
    let (mut leaves, mut all) = (vec!["org".to_owned()], 0);
    let limits = |rng: &mut Rng| (rng.chance(300).then(|| rng.below(4)), rng.chance(300).then(|| rng.below(4)));
    for team in 0..rng.between(2, 3) {
        let (name, nominal, (borrow, lend)) = (format!("team{team}"), rng.below(5), limits(rng));
        set(state, &name, Some("org"), nominal, borrow, lend);
        all += nominal;
        for group in 0..rng.below(3) {
            let (below, nominal, (borrow, lend)) = (format!("{name}-{group}"), rng.below(4), limits(rng));
            set(state, &below, Some(&name), nominal, borrow, lend);
            all += nominal;
            leaves.push(below);
        }
        leaves.push(name);
    }
    (leaves, all)
}

/// Nominal and demand of what is really held, by the definition.
fn held(state: &State, tenant: &Tenant) -> (u64, u64) {
    let below = state.tenants().values().filter(|other| other.quota.parent.as_ref() == Some(&tenant.id));
    let start = (tenant.quota.gpu_milli.unwrap(), state.ledger().tenant(tenant.no).gpu_milli);
    below.fold(start, |(nominal, demand), child| {
        let (own, wants) = held(state, child);
        let kept = own.saturating_sub(child.quota.lend_milli.unwrap_or(u64::MAX));
        (nominal + own, demand + wants.max(kept))
    })
}

fn within_limits(state: &State, seed: u64) {
    for tenant in state.tenants().values() {
        let (nominal, demand) = held(state, tenant);
        let most = match tenant.quota.parent {
            None => nominal,
            Some(_) => nominal + tenant.quota.borrow_milli.unwrap_or(1 << 40),
        };
        assert!(demand <= most, "seed {seed}: {} has {demand} of {most}", tenant.id);
    }
}

/// So many arrivals of `arriving` in each of the worlds of `seeds`, with jobs stopped between them: no limit is
/// passed before or after the evictions, and everything comes to rest. Returns the arrivals and the evictions.
pub(crate) fn arrivals<W>(
    (seeds, each): (u64, u64),
    world: impl Fn(&mut Rng) -> (State, W),
    arriving: impl Fn(&mut Rng, &W) -> JobSpec,
    within_limits: impl Fn(&State, u64),
) -> (u64, u64) {
    let (mut arrivals, mut evictions) = (0u64, 0u64);
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let (mut state, drawn) = world(&mut rng);
        let mut seen = BTreeSet::new();
        for i in 0..each {
            let mut spec = arriving(&mut rng, &drawn);
            spec.priority = rng.below(4) as i16;
            spec.constraints.preemptible = rng.chance(500);
            spec.replicas = rng.between(1, 2) as u16;
            spec.gang = rng.chance(400) && spec.constraints.max_unavailable.is_none();
            testing::run(&mut state, testing::schedule(&format!("r{i}"), spec));
            arrivals += 1;
            within_limits(&state, seed);
            if rng.chance(300) {
                // The next one comes while claims are open.
                testing::run(&mut state, Intent::PlaceWaiting);
            } else {
                evictions += to_rest(&mut state, &mut seen, seed);
            }
            within_limits(&state, seed);
            if rng.chance(400)
                && let Some(job) = state.job(JobNo(rng.below(state.meta().next_job))).cloned()
            {
                let why = crate::reason::Reason::StoppedByUser;
                testing::run(&mut state, Intent::Stop { request: job.request.clone(), tenant: None, why });
                evictions += to_rest(&mut state, &mut seen, seed);
                within_limits(&state, seed);
            }
        }
        assert_eq!(invariants::check(&state), []);
    }
    (arrivals, evictions)
}

#[test]
fn ten_thousand_arrivals_in_random_trees_pass_no_limit_and_come_to_rest() {
    let world = |rng: &mut Rng| {
        let mut state = group(rng.between(4, 12));
        let (tenants, _) = random_tree(&mut state, rng);
        (state, tenants)
    };
    let arriving = |rng: &mut Rng, tenants: &Vec<String>| {
        testing::job_spec(rng.pick::<String>(tenants), Gpus::Whole(rng.between(1, 2) as u16))
    };
    let (arrivals, evictions) = arrivals((100, 100), world, arriving, within_limits);
    assert!(arrivals >= 10_000 && evictions > 500, "{arrivals} arrivals, {evictions} evictions");
}

/// How many trees: few in every run, NF_TREES for more.
#[allow(clippy::disallowed_methods, reason = "tests have an environment; the core has not")]
fn trees() -> u64 {
    std::env::var("NF_TREES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

#[test]
fn arrivals_in_random_trees_come_to_rest_with_patience_graces_and_budgets_too() {
    let world = |rng: &mut Rng| {
        let mut state = group(rng.between(4, 12));
        let mut chosen = state.meta().placement;
        (chosen.preemption.delay_ms, chosen.preemption.max_grace_ms) =
            (rng.below(3) * 1000, rng.below(2) as u32 * 30_000);
        testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
        let (tenants, _) = random_tree(&mut state, rng);
        (state, (tenants, chosen.preemption.max_grace_ms))
    };
    let arriving = |rng: &mut Rng, (tenants, most): &(Vec<String>, u32)| {
        let mut spec = testing::job_spec(rng.pick::<String>(tenants), Gpus::Whole(rng.between(1, 2) as u16));
        spec.constraints.max_unavailable = rng.chance(400).then(|| rng.below(3) as u16);
        spec.constraints.checkpoint_ms = (*most > 0 && rng.chance(300)).then(|| rng.below((*most).into()) as u32);
        spec
    };
    let (arrivals, evictions) = arrivals((trees(), 20), world, arriving, within_limits);
    assert!(evictions > arrivals / 50, "{arrivals} arrivals, {evictions} evictions");
}

#[test]
fn an_owner_gets_its_own_back_and_a_borrower_keeps_what_is_its_own() {
    let mut reclaimed = 0u64;
    for seed in 0..150 {
        let mut rng = Rng::new(seed + 1_000);
        let nominal: Vec<u64> = (0..3).map(|_| rng.between(1, 5)).collect();
        let mut state = group(nominal.iter().sum());
        set(&mut state, "org", None, 0, None, None);
        for (i, gpus) in nominal.iter().enumerate() {
            set(&mut state, &format!("t{i}"), Some("org"), *gpus, None, None);
        }
        let mut seen = BTreeSet::new();
        let mut next = 0;
        let mut flood = |state: &mut State, rng: &mut Rng, tenant: usize, jobs: u64| {
            let mut evictions = 0;
            for _ in 0..jobs {
                let mut spec = testing::job_spec(&format!("t{tenant}"), Gpus::Whole(1));
                spec.priority = rng.below(5) as i16;
                next += 1;
                testing::run(state, testing::schedule(&format!("r{next}"), spec));
                evictions += to_rest(state, &mut seen, seed);
                within_limits(state, seed);
            }
            evictions
        };
        // The first takes all there is; then the others want what is theirs, and more.
        flood(&mut state, &mut rng, 0, 20);
        for tenant in [1, 2] {
            reclaimed += flood(&mut state, &mut rng, tenant, 8);
        }
        for (i, gpus) in nominal.iter().enumerate() {
            let tenant = state.tenant_named(&id(&format!("t{i}"))).unwrap().no;
            assert_eq!(state.ledger().tenant(tenant).gpu_milli, gpus * 1000, "seed {seed}: t{i}");
        }
    }
    assert!(reclaimed > 300, "{reclaimed}");
}

#[test]
fn an_owner_gets_its_own_back_in_one_piece_wherever_the_latest_jobs_are() {
    let mut state = group(0);
    for i in 0..2 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    set(&mut state, "org", None, 0, None, None);
    set(&mut state, "a", Some("org"), 8, None, None);
    set(&mut state, "b", Some("org"), 8, None, None);
    for i in 0..16 {
        let mut spec = testing::job_spec("b", Gpus::Whole(1));
        spec.constraints.node = Some(crate::id::NodeName::new(&format!("n{}", i % 2)).unwrap());
        testing::run(&mut state, testing::schedule(&format!("b{i}"), spec));
    }
    testing::run(&mut state, testing::schedule("a", testing::job_spec("a", Gpus::Whole(8))));
    let evictions = to_rest(&mut state, &mut BTreeSet::new(), 0);
    let job = state.job_of(&crate::id::RequestId::new("a").unwrap()).unwrap();
    assert_eq!((job.state(), evictions), (crate::job::JobState::Admitted, 8));
    let rest = state.tenant_named(&id("b")).map(|b| state.ledger().tenant(b.no).gpu_milli);
    assert_eq!(rest, Some(8_000), "what is its own stays");
}

#[test]
fn no_claim_takes_more_back_than_was_borrowed() {
    let mut state = group(4);
    let mut chosen = state.meta().placement;
    chosen.preemption.delay_ms = 1_000;
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    set(&mut state, "org", None, 0, None, None);
    set(&mut state, "a", Some("org"), 1, None, None);
    set(&mut state, "b", Some("org"), 3, None, None);
    for i in 0..4 {
        testing::run(&mut state, testing::schedule(&format!("b{i}"), testing::job_spec("b", Gpus::Whole(1))));
    }
    testing::run(&mut state, testing::schedule("a", testing::job_spec("a", Gpus::Whole(1))));
    testing::try_run_at(&mut state, Intent::Tick, 1_000).unwrap();
    let commands = crate::plan::plan(&state, &Intent::PlaceWaiting).unwrap().commands;
    let [Command::Preempt { job, claim }] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(claim.victims.len(), 1);
    // With one victim more, as no planner would have it, it is refused.
    let mut greedy = claim.clone();
    let spared = state.jobs().values().find(|other| other.no != *job && claim.victims[0].job != other.no).unwrap();
    let generation = spared.replicas[0].generation;
    greedy.victims.push(Victim { job: spared.no, replica: 0, generation, why: Reason::QuotaReclaimed });
    greedy.victims.sort_unstable();
    let no = *job;
    let refused = apply(&mut state.speculative(), &Command::Preempt { job: no, claim: greedy }).unwrap_err();
    assert!(refused.detail.contains("more back than was borrowed"), "{refused}");
    assert!(apply(&mut state, &commands[0]).is_ok());
}

#[test]
fn a_tree_has_no_circles_and_a_depth() {
    let mut state = group(1);
    set(&mut state, "t0", None, 1, None, None);
    let below = |state: &mut State, name: &str, above: &str| {
        let quota = Quota { parent: Some(id(above)), ..Quota::default() };
        testing::try_run(state, Intent::SetQuota { tenant: id(name), quota }).err().and_then(|refusal| refusal.field)
    };
    for i in 1..DEPTH {
        assert_eq!(below(&mut state, &format!("t{i}"), &format!("t{}", i - 1)), None, "{i}");
    }
    let parent = Some("parent".to_owned());
    assert_eq!(below(&mut state, "deep", &format!("t{}", DEPTH - 1)), parent);
    assert_eq!(below(&mut state, "t0", "t3"), parent);
    assert_eq!(below(&mut state, "t1", "t1"), parent);
    assert_eq!(below(&mut state, "t1", "nobody"), parent);
    let gone = testing::try_run(&mut state, Intent::DeleteTenant { tenant: id("t2") });
    assert_eq!(gone.unwrap_err().reason, crate::reason::Reason::Conflict);
    let _ = state.take_changes();
    assert_eq!(invariants::check(&State::from_rows(state.live_rows()).unwrap()), []);
}

#[test]
fn a_tenant_is_told_that_a_quota_above_is_in_the_way_and_not_whose() {
    let mut state = group(16);
    set(&mut state, "parent-org", None, 5, None, None);
    for name in ["a", "b"] {
        set(&mut state, name, Some("parent-org"), 0, None, None);
    }
    testing::run(&mut state, testing::schedule("first", testing::job_spec("b", Gpus::Whole(3))));
    let told = |state: &mut State, request: &str, gpus: u16| {
        testing::run(state, testing::schedule(request, testing::job_spec("a", Gpus::Whole(gpus))));
        let job = state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap().clone();
        let reasons = crate::placement::explain::blockers(state, &job);
        reasons
            .into_iter()
            .map(|blocker| format!("{}: {}", blocker.reason, blocker.detail))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let waits = told(&mut state, "r1", 4);
    assert!(
        waits.contains("WaitingForQuota: asks for 4 GPUs, a quota above tenant a lets 2 more through now"),
        "{waits}"
    );
    let never = told(&mut state, "r2", 6);
    assert!(
        never.contains("ExceedsMaxQuota: asks for 6 GPUs, more than a quota above tenant a ever lets through"),
        "{never}"
    );
    for said in [waits, never] {
        // Neither who is above it, nor what others hold, nor how much that one has.
        assert!(!said.contains("parent-org") && !said.contains("tenant b") && !said.contains(" 5"), "{said}");
    }
}

#[test]
fn what_an_empty_tree_refuses_can_never_be_and_what_it_allows_may_wait() {
    let (mut never, mut waits) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut state = group(24);
        let (leaves, _) = random_tree(&mut state, &mut rng);
        let empty = state.clone();
        for i in 0..rng.below(12) {
            let spec = testing::job_spec(rng.pick::<String>(&leaves), Gpus::Whole(rng.between(1, 3) as u16));
            testing::run(&mut state, testing::schedule(&format!("r{i}"), spec));
        }
        for tenant in empty.tenants().values() {
            let most = most(&empty, tenant, Of::Gpus);
            assert!(check(&empty, tenant, Of::Gpus, most).is_ok(), "seed {seed}: {most} for {}", tenant.id);
            for more in (1..16).map(|gpus| gpus * 500).chain([most, most + 1]).filter(|more| *more > 0) {
                let refused = check(&empty, tenant, Of::Gpus, more);
                assert_eq!(refused.is_err(), more > most, "seed {seed}: {more} for {}, at most {most}", tenant.id);
                let Err(over) = check(&state, tenant, Of::Gpus, more) else { continue };
                assert_eq!((over.never, over.most), (more > most, most), "seed {seed}: {more} for {}", tenant.id);
                (never, waits) = (never + u32::from(over.never), waits + u32::from(!over.never));
            }
        }
    }
    assert!(never > 100 && waits > 100, "{never} {waits}");
}

#[test]
fn what_a_sibling_does_not_lend_can_never_be_had_and_keeps_nothing_from_others() {
    let mut state = group(8);
    set(&mut state, "org", None, 0, None, None);
    set(&mut state, "a", Some("org"), 2, None, None);
    set(&mut state, "b", Some("org"), 4, None, Some(0));
    set(&mut state, "c", Some("org"), 1, None, None);
    testing::run(&mut state, testing::schedule("first", testing::job_spec("a", Gpus::Whole(2))));
    // Of the seven in all, four are b's alone.
    let large = JobSpec { priority: 5, ..testing::job_spec("a", Gpus::Whole(4)) };
    testing::run(&mut state, testing::schedule("large", large));
    let job =
        |state: &State, request: &str| state.job_of(&crate::id::RequestId::new(request).unwrap()).unwrap().clone();
    let told = crate::placement::explain::blockers(&state, &job(&state, "large"));
    assert_eq!((told[0].reason, told[0].permanent), (Reason::ExceedsMaxQuota, true), "{told:?}");
    testing::run(&mut state, testing::schedule("small", testing::job_spec("a", Gpus::Whole(1))));
    assert!(!job(&state, "small").wants_place(), "nothing is kept from it for what can never run");
}
