//! Preemption against brute force on four nodes, against the hard states that other
//! schedulers got wrong, and against loops.

use super::*;
use crate::command::{Report, ReportKind};
use crate::disruption;
use crate::invariants;
use crate::job::{JobState, Phase, Restart, Stage};
use crate::placement::{Chosen, Policy, Preemption};
use crate::plan::{Intent, plan};
use crate::quota::tree::Standing;
use crate::resources::Gpus;
use crate::sim::Rng;
use crate::tenant::Quota;
use crate::testing;

/// Nothing has to hold its place for a while before it may give way.
fn at_once(state: &mut State) {
    let mut chosen = Chosen::from(Policy::Fragmentation);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    testing::run(state, Intent::SetPlacement { chosen, seen: None });
    set_quota(state, "t1", 10_000_000);
}

fn set_quota(state: &mut State, tenant: &str, gpu_milli: u64) {
    let quota = Quota { gpu_milli: Some(gpu_milli), ..Quota::default() };
    let tenant = crate::id::TenantId::new(tenant).unwrap();
    testing::run(state, Intent::SetQuota { tenant, quota });
}

fn ask(rng: &mut Rng) -> Gpus {
    match rng.below(3) {
        0 => Gpus::Milli(rng.between(2, 8) as u16 * 100),
        _ => Gpus::Whole(rng.between(1, 3) as u16),
    }
}

/// Four nodes that are nearly full of work of several priorities, some of it in gangs.
fn full(rng: &mut Rng, gangs: bool) -> State {
    full_of(rng, gangs, &["t1"])
}

/// The same with the work of several tenants, of which the first holds nearly all that it may.
fn at_quota(rng: &mut Rng) -> State {
    let mut state = full_of(rng, false, &["t1", "t2"]);
    let own = state.tenant_named(&crate::id::TenantId::new("t1").unwrap()).unwrap().no;
    let used = state.ledger().tenant(own).gpu_milli;
    set_quota(&mut state, "t1", used + 500 * rng.below(5));
    state
}

fn full_of(rng: &mut Rng, gangs: bool, tenants: &[&str]) -> State {
    let mut state = State::new();
    at_once(&mut state);
    set_quota(&mut state, "t2", 10_000_000);
    for i in 0..4 {
        let mut spec = testing::node_spec(rng.between(1, 4) as u16);
        spec.devices.iter_mut().enumerate().for_each(|(i, device)| device.island = i as u16 / 2);
        testing::run(&mut state, testing::register(&format!("n{i}"), spec));
    }
    for i in 0..rng.between(4, 10) {
        let mut spec = testing::job_spec("t1", ask(rng));
        if tenants.len() > 1 {
            spec.tenant = crate::id::TenantId::new(rng.pick::<&str>(tenants)).unwrap();
        }
        spec.priority = rng.below(4) as i16 * 5;
        spec.constraints.preemptible = rng.chance(800);
        spec.constraints.restart = if rng.chance(100) { Restart::Never } else { Restart::Always };
        spec.gang = gangs && rng.chance(300);
        spec.replicas = if spec.gang { 2 } else { 1 };
        let intent = match testing::schedule(&format!("r{i}"), spec) {
            Intent::Schedule { submission, check_plan, .. } => {
                Intent::Schedule { submission, check_plan, queueing: crate::plan::Queueing::Never }
            }
            other => other,
        };
        let _ = testing::try_run(&mut state, intent);
    }
    state
}

/// The cost of the cheapest set of units with which all of `wanted` have a place, by trying all sets.
fn brute(state: &State, spec: &JobSpec, wanted: &[u16]) -> Option<u64> {
    let (units, _) = units(state, spec, &Standing::default(), Budgets::Ignored);
    assert!(units.len() <= 12, "too many to try all");
    let allowed = |set: u32| {
        let mut gone: BTreeMap<JobNo, Vec<u16>> = BTreeMap::new();
        let members = units.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).flat_map(|(_, unit)| &unit.members);
        members.for_each(|(job, replica)| gone.entry(job.no).or_default().push(*replica));
        gone.iter().all(|(job, gone)| disruption::allows(state.job(*job).unwrap(), gone))
    };
    let fits = |set: u32| {
        let mut scratch = state.speculative();
        let gone = units.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
        gone.flat_map(|(_, unit)| &unit.members).for_each(|(job, replica)| scratch.give_back(job, *replica));
        let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
        allows(state, &scratch, tenant, spec, wanted.len() as u64)
            && place(&scratch, spec, wanted, Limits::default()).len() == wanted.len()
    };
    let cost = |set: u32| units.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, u)| u.cost).sum();
    (0..1u32 << units.len()).filter(|set| allowed(*set) && fits(*set)).map(cost).min()
}

fn cost_of(state: &State, spec: &JobSpec, claim: &Claim) -> u64 {
    let evicted = |unit: &&Unit| {
        let is = |(job, replica): &(Arc<Job>, u16)| {
            claim.victims.iter().any(|victim| (victim.job, victim.replica) == (job.no, *replica))
        };
        assert_eq!(unit.members.iter().any(is), unit.members.iter().all(is), "a gang gives way as a whole");
        unit.members.iter().any(is)
    };
    let (units, _) = units(state, spec, &Standing::default(), Budgets::Ignored);
    units.iter().filter(evicted).map(|unit| unit.cost).sum()
}

fn rival(rng: &mut Rng, most: u64) -> JobSpec {
    let mut rival = testing::job_spec("t1", ask(rng));
    rival.priority = rng.between(1, 20) as i16;
    rival.constraints.same_island = rng.chance(300);
    rival.replicas = rng.between(1, most) as u16;
    rival.gang = true;
    rival
}

/// Four nodes that are nearly full of services, most of which let few of their replicas be missing. Nearly all serve.
fn full_of_services(rng: &mut Rng) -> State {
    let mut state = State::new();
    at_once(&mut state);
    for i in 0..4 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(rng.between(1, 3) as u16)));
    }
    for i in 0..rng.between(3, 6) {
        let mut spec = testing::job_spec("t1", if rng.chance(300) { Gpus::Milli(500) } else { Gpus::Whole(1) });
        spec.priority = rng.below(4) as i16 * 5;
        spec.constraints.preemptible = true;
        spec.constraints.max_unavailable = rng.chance(800).then(|| rng.below(3) as u16);
        spec.replicas = rng.between(1, 4) as u16;
        testing::run(&mut state, testing::schedule(&format!("r{i}"), spec));
    }
    let serve = |rng: &mut Rng| rng.chance(950);
    let held: Vec<Victim> = state.jobs().values().flat_map(everything).filter(|_| serve(rng)).collect();
    held.into_iter().for_each(|replica| says(&mut state, replica, ReportKind::Stage(Stage::Ready)));
    state
}

/// Full states and somebody who finds no place there: (seed, state, spec, wanted).
fn cases(
    seeds: std::ops::Range<u64>,
    full: impl Fn(&mut Rng) -> State,
    most: u64,
) -> impl Iterator<Item = (u64, State, JobSpec, Vec<u16>)> {
    seeds.filter_map(move |seed| {
        let mut rng = Rng::new(seed);
        let state = full(&mut rng);
        let spec = rival(&mut rng, most);
        let wanted: Vec<u16> = (0..spec.replicas).collect();
        let placed = place(&state, &spec, &wanted, Limits::default()).len() == wanted.len();
        (!placed).then_some((seed, state, spec, wanted))
    })
}

#[test]
fn victims_cost_what_the_cheapest_of_all_sets_costs() {
    let (mut met, mut none) = (0, 0);
    for (seed, state, spec, wanted) in cases(0..1500, |rng| full(rng, false), 4) {
        let claim = claim(&state, &spec, &wanted, &Limits::default());
        let found = claim.as_ref().map(|claim| cost_of(&state, &spec, claim));
        assert_eq!(found, brute(&state, &spec, &wanted), "seed {seed}: {spec:?}");
        if found.is_some() { met += 1 } else { none += 1 }
    }
    assert!(met > 300 && none > 50, "{met} with victims, {none} without: the cases say little");
}

/// The claim, whose victims cost what those of the cheapest of all sets cost.
fn claimed_as_by_brute_force(seed: u64, state: &State, spec: &JobSpec, wanted: &[u16]) -> Option<Claim> {
    let claim = claim(state, spec, wanted, &Limits::default());
    let found = claim.as_ref().map(|claim| cost_of(state, spec, claim));
    assert_eq!(found, brute(state, spec, wanted), "seed {seed}: {spec:?}");
    claim
}

#[test]
fn where_quota_is_lacking_too_victims_cost_what_the_cheapest_of_all_sets_costs() {
    let (mut met, mut none, mut bound) = (0, 0, 0);
    for seed in 60_000..61_000 {
        let mut rng = Rng::new(seed);
        let state = at_quota(&mut rng);
        let spec = rival(&mut rng, 3);
        let wanted: Vec<u16> = (0..spec.replicas).collect();
        let tenant = state.tenant_named(&spec.tenant).map(|tenant| tenant.no);
        if allows(&state, &state, tenant, &spec, wanted.len() as u64) {
            continue;
        }
        let claim = claimed_as_by_brute_force(seed, &state, &spec, &wanted);
        *(if claim.is_some() { &mut met } else { &mut none }) += 1;
        let has_room = place(&state, &spec, &wanted, Limits::default()).len() == wanted.len();
        bound += u32::from(has_room && claim.is_some());
    }
    assert!(met > 200 && none > 20 && bound > 10, "{met} with victims, {none} without, {bound} for quota alone");
}

/// A tenant with a quota of ten holds twenty tenths and one job of eight, and a node is idle.
fn tenths_and_one_large() -> (State, JobSpec) {
    let mut state = State::new();
    at_once(&mut state);
    set_quota(&mut state, "t1", 10_000);
    for i in 0..3 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    let mut work = |name: String, gpu: Gpus, priority: i16| {
        let mut spec = testing::job_spec("t1", gpu);
        (spec.priority, spec.constraints.preemptible) = (priority, true);
        testing::run(&mut state, testing::schedule(&name, spec));
    };
    (0..20).for_each(|i| work(format!("tenth{i}"), Gpus::Milli(100), 0));
    work("large".into(), Gpus::Whole(8), 1);
    let mut rival = testing::job_spec("t1", Gpus::Whole(8));
    rival.priority = 5;
    (state, rival)
}

#[test]
fn one_large_job_gives_its_quota_and_not_twenty_small_ones_with_it() {
    let (state, rival) = tenths_and_one_large();
    let claim = claim(&state, &rival, &[0], &Limits::default()).unwrap();
    let gone: Vec<&str> = claim.victims.iter().map(|v| state.job(v.job).unwrap().request.as_str()).collect();
    assert_eq!(gone, ["large"]);
}

#[test]
fn with_budgets_too_victims_cost_what_the_cheapest_allowed_set_costs() {
    let (mut met, mut none, mut bound) = (0, 0, 0);
    for (seed, state, spec, wanted) in cases(50_000..52_000, full_of_services, 4) {
        if units(&state, &spec, &Standing::default(), Budgets::Ignored).0.len() > 12 {
            continue;
        }
        let claim = claimed_as_by_brute_force(seed, &state, &spec, &wanted);
        *(if claim.is_some() { &mut met } else { &mut none }) += 1;
        let free = claim_by(&state, &spec, &wanted, &Limits::default(), Budgets::Ignored);
        bound += u32::from(
            free.map(|claim| cost_of(&state, &spec, &claim)) != claim.map(|claim| cost_of(&state, &spec, &claim)),
        );
    }
    assert!(met > 200 && none > 100 && bound > 100, "{met} with victims, {none} without, {bound} bound by budgets");
}

#[test]
fn gangs_give_way_as_a_whole_and_cost_what_the_cheapest_of_all_sets_costs() {
    let (mut met, mut none, mut gangs) = (0, 0, 0);
    for (seed, state, spec, wanted) in cases(10_000..11_000, |rng| full(rng, true), 3) {
        match claimed_as_by_brute_force(seed, &state, &spec, &wanted) {
            Some(claim) => {
                met += 1;
                gangs += u32::from(claim.victims.iter().any(|v| state.job(v.job).is_some_and(|job| job.spec.gang)));
            }
            None => none += 1,
        }
    }
    assert!(met > 200 && none > 20 && gangs > 50, "{met} with victims, {gangs} of them with gangs, {none} without");
}

#[test]
fn a_claim_is_met_by_apply_as_soon_as_the_victims_are_gone() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed + 20_000);
        let mut state = full(&mut rng, true);
        testing::run(&mut state, testing::schedule("rival", rival(&mut rng, 3)));
        let of = |state: &State| state.job_of(&crate::id::RequestId::new("rival").unwrap()).cloned().unwrap();
        let Some(claim) = of(&state).claim.clone() else { continue };
        assert_eq!(invariants::check(&state), []);
        let mut victims = claim.victims.clone();
        while !victims.is_empty() {
            assert_eq!(of(&state).state(), JobState::Pending);
            let victim = victims.swap_remove(rng.below(victims.len() as u64) as usize);
            gone(&mut state, victim);
        }
        let job = of(&state);
        assert_eq!((job.state(), job.claim.is_none()), (JobState::Admitted, true), "seed {seed}");
        let places: Vec<_> = job.replicas.iter().filter_map(|r| r.allocation().map(|a| (a.node, &a.shares))).collect();
        let claimed: Vec<_> = claim.placements.iter().map(|p| (p.alloc.node, &p.alloc.shares)).collect();
        assert_eq!(places, claimed, "seed {seed}");
        assert_eq!(invariants::check(&state), []);
    }
}

/// The agent says that the replica is gone.
fn gone(state: &mut State, victim: Victim) {
    says(state, victim, ReportKind::Ended { ok: true, why: crate::reason::Reason::StoppedByUser });
}

/// All replicas that should run.
pub(crate) fn everything(job: &Arc<Job>) -> Vec<Victim> {
    let held = job.replicas.iter().enumerate().filter(|(_, r)| matches!(r.phase, Phase::Held { .. }));
    let why = crate::reason::Reason::Preempted;
    held.map(|(i, r)| Victim { job: job.no, replica: i as u16, generation: r.generation, why }).collect()
}

/// What the agent says of the replica.
pub(crate) fn says(state: &mut State, victim: Victim, kind: ReportKind) {
    let Some(job) = state.job(victim.job).cloned() else { return };
    let Some(alloc) = job.replicas[usize::from(victim.replica)].allocation() else { return };
    let node = state.node(alloc.node).unwrap().clone();
    let reports = vec![Report { job: job.no, replica: victim.replica, generation: victim.generation, kind }];
    let intent = Intent::Reports { node: node.name.clone(), incarnation: node.incarnation, reports };
    testing::run(state, intent);
}

/// Everything that was told to stop is gone.
pub(crate) fn all_gone(state: &mut State) {
    let stopping = |job: &Arc<Job>| {
        let each = job.replicas.iter().enumerate().filter(|(_, r)| matches!(r.phase, Phase::Stopping { .. }));
        let victim = |(i, r): (usize, &crate::job::Replica)| Victim {
            job: job.no,
            replica: i as u16,
            generation: r.generation,
            why: crate::reason::Reason::Preempted,
        };
        each.map(victim).collect::<Vec<_>>()
    };
    let victims: Vec<Victim> = state.jobs().values().flat_map(stopping).collect();
    victims.into_iter().for_each(|victim| gone(state, victim));
}

#[test]
fn ten_thousand_arrivals_come_to_rest_and_nobody_is_evicted_twice_by_the_same_rival() {
    let mut arrivals = 0;
    let mut evictions = 0u64;
    for seed in 0..50 {
        let mut rng = Rng::new(seed + 30_000);
        let mut state = State::new();
        at_once(&mut state);
        for i in 0..4 {
            testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(rng.between(2, 8) as u16)));
        }
        let mut seen = BTreeSet::new();
        for i in 0..200 {
            let mut spec = testing::job_spec("t1", ask(&mut rng));
            spec.priority = rng.below(6) as i16;
            spec.constraints.preemptible = rng.chance(700);
            spec.replicas = rng.between(1, 3) as u16;
            spec.gang = rng.chance(400);
            testing::run(&mut state, testing::schedule(&format!("r{i}"), spec));
            arrivals += 1;
            evictions += to_rest(&mut state, &mut seen, seed);
            // Something ends now and then: new room, so new demand on it.
            if rng.chance(500) {
                let no = JobNo(rng.below(state.meta().next_job));
                if let Some(job) = state.job(no).cloned() {
                    let why = crate::reason::Reason::StoppedByUser;
                    testing::run(&mut state, Intent::Stop { request: job.request.clone(), tenant: None, why });
                    all_gone(&mut state);
                    evictions += to_rest(&mut state, &mut seen, seed);
                }
            }
        }
        assert_eq!(invariants::check(&state), []);
    }
    assert!(arrivals >= 10_000 && evictions > 500, "{arrivals} arrivals, {evictions} evictions");
}

/// What is placed serves, where that says how much may be taken of it.
fn serve(state: &mut State) {
    let bound = |job: &&Arc<Job>| job.spec.constraints.max_unavailable.is_some();
    let held: Vec<Victim> = state.jobs().values().filter(bound).flat_map(everything).collect();
    held.into_iter().for_each(|replica| says(state, replica, ReportKind::Stage(Stage::Ready)));
}

/// Passes over the queue, and agents that do as they are told, until nothing is left to do.
pub(crate) fn to_rest(state: &mut State, seen: &mut BTreeSet<(JobNo, u16, JobNo, u32)>, seed: u64) -> u64 {
    let mut evictions = 0;
    for round in 0.. {
        assert!(round < 200, "seed {seed}: no rest");
        let open: Vec<(JobNo, Claim)> = claim::open(state).map(|(job, claim)| (job.no, claim.clone())).collect();
        for (rival, claim) in &open {
            let generations: u32 = state.job(*rival).unwrap().replicas.iter().map(|r| r.generation.0).sum();
            for victim in claim.victims.iter().filter(|victim| claim::holds(state, victim)) {
                // At the same launches of the rival: it has not lost a place since.
                let first = seen.insert((victim.job, victim.replica, *rival, generations));
                assert!(first, "seed {seed}: {victim:?} gives way to {rival} again");
                evictions += 1;
            }
        }
        all_gone(state);
        serve(state);
        let now_ms = state.meta().now_ms + state.meta().placement.preemption.delay_ms;
        testing::try_run_at(state, Intent::Tick, now_ms).unwrap();
        let commands = plan(state, &Intent::PlaceWaiting).unwrap().commands;
        if commands.is_empty() && open.is_empty() {
            return evictions;
        }
        testing::run(state, Intent::PlaceWaiting);
    }
    evictions
}

#[test]
fn nobody_gives_way_to_an_equal_nor_before_its_time_nor_against_its_word() {
    let mut state = State::new();
    at_once(&mut state);
    testing::run(&mut state, testing::register("n1", testing::node_spec(1)));
    let job = |priority: i16, preemptible: bool| {
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        (spec.priority, spec.constraints.preemptible) = (priority, preemptible);
        spec
    };
    testing::run(&mut state, testing::schedule("held", job(5, true)));
    let would = |state: &State, priority| claim(state, &job(priority, true), &[0], &Limits::default()).is_some();
    assert!(!would(&state, 5) && would(&state, 6));
    let mut chosen = Chosen::default();
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    assert!(!would(&state, 6), "it has not had its place for a minute");
    let later = Intent::CreateTenant { tenant: crate::id::TenantId::new("t2").unwrap() };
    testing::try_run_at(&mut state, later, 60_000).unwrap();
    assert!(would(&state, 6));
    chosen.preemption.enabled = false;
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    assert!(!would(&state, 6), "switched off");
}

#[test]
fn what_is_planned_is_what_a_run_with_its_digest_does_or_it_is_refused() {
    let [placed, evicting, refused] = planned_and_run(0);
    assert!(
        placed > 50 && evicting > 50 && refused > 50,
        "{placed} placed, {evicting} with victims, {refused} refused"
    );
}

#[test]
fn a_plan_promises_no_victims_where_the_run_has_to_wait_first() {
    let [placed, evicting, refused] = planned_and_run(Preemption::default().delay_ms);
    assert!(
        placed > 50 && evicting > 50 && refused > 20,
        "{placed} placed, {evicting} with victims, {refused} refused"
    );
}

/// 500 random states: how often the run was placed, would make others give way, and was refused.
fn planned_and_run(delay_ms: u64) -> [usize; 3] {
    use crate::plan::draft;
    let (mut placed, mut evicting, mut refused) = (0, 0, 0);
    for seed in 0..500 {
        let mut rng = Rng::new(seed + 40_000);
        let mut state = full(&mut rng, true);
        let mut chosen = state.meta().placement;
        chosen.preemption.delay_ms = delay_ms;
        testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
        let mut spec = rival(&mut rng, 3);
        spec.gang = rng.chance(500);
        let drafted = draft(&state, &spec);
        let run = |state: &mut State, request: &str| {
            let Intent::Schedule { submission, queueing, .. } = testing::schedule(request, spec.clone()) else {
                unreachable!("a schedule call")
            };
            testing::try_run(state, Intent::Schedule { submission, queueing, check_plan: Some(drafted.digest()) })
        };
        let (before, base) = (state.hash(), state.meta().base);
        let mut other = state.clone();
        run(&mut state, "r").unwrap_or_else(|refusal| panic!("seed {seed}: {refusal}"));
        let job = state.job_of(&crate::id::RequestId::new("r").unwrap()).unwrap();
        for (replica, pick) in &drafted.picks {
            assert_eq!(job.replicas[usize::from(*replica)].allocation(), Some(&pick.alloc), "seed {seed}");
        }
        // The digest covers who gives way exactly where the run binds them.
        let mut named = drafted.clone();
        named.claim = None;
        let bound = drafted.claim.as_ref().filter(|_| delay_ms == 0);
        assert_eq!(job.claim.as_deref(), bound, "seed {seed}");
        assert_eq!(named.digest() != drafted.digest(), bound.is_some(), "seed {seed}");
        placed += usize::from(!drafted.picks.is_empty());
        evicting += usize::from(drafted.claim.is_some());
        // Planning wrote nothing; and on a state where it would come out otherwise it is refused.
        assert_eq!((other.hash(), other.meta().base), (before, base));
        let node = other.nodes().values().nth(rng.below(4) as usize).unwrap().name.clone();
        let by = crate::node::Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain: None };
        testing::run(&mut other, Intent::Cordon { node, cordon: Some(by) });
        let same = draft(&other, &spec).digest() == drafted.digest();
        match run(&mut other, "r") {
            Ok(_) => assert!(same, "seed {seed}"),
            Err(refusal) => {
                assert_eq!(refusal.reason, crate::reason::Reason::PlanChanged, "seed {seed}");
                assert!(!same, "seed {seed}");
                refused += 1;
            }
        }
    }
    [placed, evicting, refused]
}

/// Nodes of so many GPUs that are full of work that gives way, in parts of so many thousandths.
fn full_of_parts(nodes: u16, gpus: u16, milli: u16) -> State {
    let mut state = State::new();
    at_once(&mut state);
    for i in 0..nodes {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(gpus)));
    }
    let mut low = testing::job_spec("t1", if milli == 1000 { Gpus::Whole(1) } else { Gpus::Milli(milli) });
    low.constraints.preemptible = true;
    low.replicas = nodes * gpus * (1000 / milli);
    testing::run(&mut state, testing::schedule("low", low));
    state
}

#[test]
fn a_gang_that_is_too_large_for_others_to_give_way_is_told_which_bound_that_is() {
    let told = |state: &mut State, members: u16, gpus: u16| {
        let mut gang = testing::job_spec("t1", Gpus::Whole(gpus));
        (gang.replicas, gang.gang, gang.priority) = (members, true, 5);
        testing::run(state, testing::schedule("gang", gang));
        let job = state.job_of(&crate::id::RequestId::new("gang").unwrap()).unwrap();
        let blocker = crate::placement::explain::rivals(state, job);
        (job.claim.is_some(), blocker.map_or_else(String::new, |blocker| blocker.detail))
    };
    assert!(told(&mut full_of_parts(66, 1, 1000), 64, 1).0);
    let (claims, why) = told(&mut full_of_parts(66, 1, 1000), 65, 1);
    assert!(!claims && why.contains("on 65 nodes others would have to, and at most on 64 nodes do"), "{why}");
    let (claims, why) = told(&mut full_of_parts(1, 3, 10), 1, 3);
    assert!(!claims && why.contains("300 replicas others would have to, and at most 256 replicas do"), "{why}");
}
