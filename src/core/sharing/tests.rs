//! The predicate, and that all who place, judge and explain agree on it.

use super::*;
use crate::command::{Command, Placement};
use crate::id::{NodeNo, TenantId};
use crate::job::{JobState, Share};
use crate::node::Device;
use crate::placement::{Limits, explain, place_one};
use crate::plan::{Intent, draft};
use crate::reason::{Blocker, Reason, Refusal};
use crate::rollout::{Next, Strategy};
use crate::tenant::Quota;
use crate::{apply, invariants, testing};

fn node(sharing: &[Sharing]) -> NodeSpec {
    let mut spec = testing::node_spec(sharing.len() as u16);
    spec.devices.iter_mut().zip(sharing).for_each(|(device, sharing)| device.sharing = *sharing);
    spec
}

/// A group of one node, and a tenant that accepts soft sharing, or does not.
fn group(sharing: &[Sharing], soft: bool) -> State {
    let mut state = State::new();
    accept(&mut state, soft);
    testing::run(&mut state, testing::register("n1", node(sharing)));
    state
}

fn accept(state: &mut State, soft_sharing: bool) {
    let quota = Quota { gpu_milli: Some(64_000), soft_sharing, ..Quota::default() };
    testing::run(state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
}

fn half() -> JobSpec {
    testing::job_spec("t1", Gpus::Milli(500))
}

fn blockers(state: &State) -> Vec<Blocker> {
    explain::blockers(state, state.jobs().values().next_back().unwrap())
}

#[test]
fn what_keeps_a_part() {
    let own = JobSpec { self_limiting: true, ..half() };
    let (strict, soft) = (group(&[], false), group(&[], true));
    for (device, on_strict, on_soft, on_own) in [
        (Sharing::None, None, Some(Kept::Accepted), Some(Kept::Runtime)),
        (Sharing::Mps, Some(Kept::Mps), Some(Kept::Mps), Some(Kept::Mps)),
        (Sharing::Simulated, Some(Kept::Simulated), Some(Kept::Simulated), Some(Kept::Simulated)),
    ] {
        assert_eq!(Ask::of(&strict, &half()).kept(device), on_strict);
        assert_eq!(Ask::of(&soft, &half()).kept(device), on_soft);
        assert_eq!(Ask::of(&strict, &own).kept(device), on_own);
        // Who asks for whole devices shares with nobody.
        assert_eq!(Ask::of(&strict, &testing::job_spec("t1", Gpus::Whole(1))).kept(device), Some(Kept::Alone));
    }
    assert!(
        Ask::of(&State::new(), &half()).kept(Sharing::None).is_none(),
        "a tenant that nobody knows accepts nothing"
    );
    for sharing in Sharing::ALL {
        assert_eq!(Sharing::named(sharing.name()), Some(sharing));
    }
}

#[test]
fn a_part_that_nothing_enforces_waits_with_its_reason_and_two_ways_out() {
    let mut state = group(&[Sharing::None, Sharing::None], false);
    testing::run(&mut state, testing::schedule("r1", half()));
    let said = blockers(&state);
    assert_eq!(
        said.iter().map(|b| (b.reason, b.nodes, b.permanent)).collect::<Vec<_>>(),
        [(Reason::FractionNotEnforced, 1, true)]
    );
    let job = state.jobs().values().next().unwrap().clone();
    let remedy = explain::remedy(&state, &job);
    assert_eq!(remedy.len(), 1, "{remedy:?}");
    assert!(remedy[0].contains("nf quota set t1 --soft-sharing") && remedy[0].contains("whole GPU"), "{remedy:?}");
    // Either is true.
    let mut other = state.speculative();
    testing::run(&mut other, testing::schedule("r2", testing::job_spec("t1", Gpus::Whole(1))));
    assert_eq!(other.jobs().values().next_back().unwrap().state(), JobState::Admitted);
    accept(&mut state, true);
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(state.job(job.no).unwrap().state(), JobState::Admitted);
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn what_is_proposed_would_do() {
    // Half of the GPU is held, so a whole one is no way out.
    let mut state = group(&[Sharing::None], true);
    testing::run(&mut state, testing::schedule("r1", half()));
    accept(&mut state, false);
    testing::run(&mut state, testing::schedule("r2", half()));
    let job = state.jobs().values().next_back().unwrap().clone();
    let [said] = &explain::remedy(&state, &job)[..] else { panic!() };
    assert!(said.starts_with("let the tenant accept") && !said.contains("whole GPU"), "{said}");
    // A node that enforces parts and is only cordoned goes before anybody's word.
    testing::run(&mut state, testing::register("n2", node(&[Sharing::Mps])));
    let cordon = crate::node::Cordon { by: "me".into(), reason: "fans".into(), at_ms: 0, drain: None };
    let name = crate::id::NodeName::new("n2").unwrap();
    testing::run(&mut state, Intent::Cordon { node: name, cordon: Some(cordon) });
    assert!(explain::remedy(&state, &job)[0].starts_with("uncordon node n2"), "{:?}", explain::remedy(&state, &job));
    // Nothing that the group has will do: a node is added that enforces parts.
    let mut empty = State::new();
    accept(&mut empty, false);
    testing::run(&mut empty, testing::schedule("r1", half()));
    let job = empty.jobs().values().next().unwrap().clone();
    assert!(explain::remedy(&empty, &job)[0].starts_with("add 1 node"), "{:?}", explain::remedy(&empty, &job));
}

#[test]
fn where_some_devices_enforce_they_are_waited_for_and_the_others_named() {
    let mut state = group(&[Sharing::Mps, Sharing::None], false);
    for id in ["r1", "r2"] {
        testing::run(&mut state, testing::schedule(id, half()));
    }
    assert!(state.jobs().values().all(|job| job.state() == JobState::Admitted), "both on the first device");
    testing::run(&mut state, testing::schedule("r3", half()));
    let said = blockers(&state);
    assert_eq!(
        said.iter().map(|b| (b.reason, b.permanent)).collect::<Vec<_>>(),
        [(Reason::FractionNotEnforced, false)]
    );
}

/// A command that puts half of the device under a job, with that word on what keeps it.
fn placed(state: &State, device: u16, kept: Kept) -> Command {
    let alloc =
        Allocation { node: NodeNo(1), shares: vec![Share { device, milli: 500, kept }], port: Some(31500), at_ms: 0 };
    let job = state.jobs().values().next().unwrap().no;
    Command::Place { job, placements: vec![Placement { replica: 0, alloc, why: None }] }
}

#[test]
fn apply_judges_by_the_same_predicate() {
    let refused = |answer: Result<_, Refusal>| answer.err().map(|refusal| refusal.reason);
    let mut state = group(&[Sharing::None, Sharing::Mps], false);
    // Waits for something that is not there, so that the place comes from the command alone.
    let mut spec = half();
    spec.constraints.zone = crate::id::Label::new("nowhere").ok();
    testing::run(&mut state, testing::schedule("r1", spec));
    let all = [Kept::Alone, Kept::Mps, Kept::Simulated, Kept::Runtime, Kept::Accepted];
    for (device, kept) in [0, 1].into_iter().flat_map(|device| all.map(|kept| (device, kept))) {
        let mut scratch = state.speculative();
        let outcome = apply::apply(&mut scratch, &placed(&state, device, kept));
        let right = (device, kept) == (1, Kept::Mps);
        assert_eq!(refused(outcome), (!right).then_some(Reason::PlanChanged), "{device} {kept:?}");
    }
    accept(&mut state, true);
    assert!(apply::apply(&mut state.speculative(), &placed(&state, 0, Kept::Accepted)).is_ok());
    assert!(apply::apply(&mut state.speculative(), &placed(&state, 0, Kept::Runtime)).is_err());
}

#[test]
fn what_holds_a_part_keeps_it_when_the_word_is_taken_back_and_gets_no_new_one() {
    let mut state = group(&[Sharing::None], true);
    testing::run(&mut state, testing::schedule("r1", half()));
    accept(&mut state, false);
    assert_eq!(state.jobs().values().next().unwrap().state(), JobState::Admitted);
    assert_eq!(invariants::check(&state), []);
    assert!(place_one(&state, &half(), &Limits::default()).is_none());
    assert!(draft(&state, &half()).picks.is_empty(), "plan says what schedule does");
}

#[test]
fn a_device_in_use_goes_on_enforcing() {
    let mut state = group(&[Sharing::Mps], false);
    testing::run(&mut state, testing::schedule("r1", half()));
    let again = |sharing| {
        let Intent::Register { name, kind, spec, .. } = testing::register("n1", node(&[sharing])) else {
            unreachable!()
        };
        Intent::Register { name, kind, incarnation: crate::id::Incarnation(2), spec }
    };
    let refusal = testing::try_run(&mut state, again(Sharing::None)).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::Conflict, Some("devices")));
    assert!(testing::try_run(&mut state, again(Sharing::Mps)).is_ok());
    // Nobody minds where nothing is held in parts.
    let mut whole = group(&[Sharing::Mps], false);
    testing::run(&mut whole, testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(1))));
    assert!(testing::try_run(&mut whole, again(Sharing::None)).is_ok());
}

#[test]
fn a_device_that_begins_to_enforce_does_so_when_nobody_without_limits_is_left_on_it() {
    let again = |state: &mut State, incarnation| {
        let Intent::Register { name, kind, spec, .. } = testing::register("n1", node(&[Sharing::Mps, Sharing::Mps]))
        else {
            unreachable!()
        };
        let incarnation = crate::id::Incarnation(incarnation);
        testing::run(state, Intent::Register { name, kind, incarnation, spec });
        assert_eq!(invariants::check(state), []);
        state.node(NodeNo(1)).unwrap().spec.devices.iter().map(|device| device.sharing).collect::<Vec<_>>()
    };
    for own in [true, false] {
        let mut state = group(&[Sharing::None, Sharing::None], true);
        testing::run(&mut state, testing::schedule("r1", JobSpec { self_limiting: own, ..half() }));
        assert_eq!(again(&mut state, 2), [Sharing::None, Sharing::Mps]);
        testing::run(&mut state, testing::schedule("r2", testing::job_spec("t2", Gpus::Milli(500))));
        let newest = state.jobs().values().next_back().unwrap().clone();
        assert_eq!(newest.replicas[0].allocation().unwrap().shares[0].device, 1, "not beside who has no limits");
        let first = state.jobs().values().next().unwrap().clone();
        let request = first.request.clone();
        testing::run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
        let gone = crate::command::Report {
            job: first.no,
            replica: 0,
            generation: first.replicas[0].generation,
            kind: crate::command::ReportKind::Ended { ok: true, why: Reason::StoppedByUser },
        };
        let name = crate::id::NodeName::new("n1").unwrap();
        let reports = vec![gone];
        testing::run(&mut state, Intent::Reports { node: name, incarnation: crate::id::Incarnation(2), reports });
        assert_eq!(again(&mut state, 3), [Sharing::Mps, Sharing::Mps]);
    }
}

#[test]
fn a_version_that_limits_itself_is_not_followed_in_place_by_one_that_does_not() {
    let mut state = group(&[Sharing::None], false);
    let limited = JobSpec { self_limiting: true, manifest: Some([1; 32]), ..half() };
    testing::run(&mut state, testing::schedule("r1", limited.clone()));
    let job = state.jobs().values().next().unwrap().clone();
    assert_eq!(job.replicas[0].allocation().unwrap().shares[0].kept, Kept::Runtime);
    let other = Next { self_limiting: false, manifest: Some([2; 32]), ..Next::of(&limited) };
    let refusal = job.can_roll(&other, &Strategy::default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::FractionNotEnforced);
    assert!(job.can_roll(&Next { self_limiting: true, ..other }, &Strategy::default()).is_ok());
}

#[test]
fn a_place_is_kept_by_who_still_keeps_to_it() {
    let mut state = group(&[Sharing::None], false);
    let limited = JobSpec { self_limiting: true, ..half() };
    testing::run(&mut state, testing::schedule("r1", limited.clone()));
    let job = state.jobs().values().next().unwrap().clone();
    let (node, alloc) = (state.node(NodeNo(1)).unwrap(), job.replicas[0].allocation().unwrap());
    assert_eq!(Ask::of(&state, &limited).takes_over(alloc, &node.spec), Some(alloc.shares.clone()));
    assert_eq!(Ask::of(&state, &half()).takes_over(alloc, &node.spec), None);
    // What keeps the next version need not be what kept this one.
    accept(&mut state, true);
    let (node, soft) = (state.node(NodeNo(1)).unwrap(), half());
    let shares = Ask::of(&state, &soft).takes_over(alloc, &node.spec).unwrap();
    assert_eq!(shares, [Share { kept: Kept::Accepted, ..alloc.shares[0] }]);
}

/// So many different nodes that asks are ranked for, none of which enforces anything.
fn bare(soft: bool) -> State {
    let mut state = State::new();
    accept(&mut state, soft);
    for i in 0..600u16 {
        let mut spec = node(&[Sharing::None]);
        spec.cpu_milli += u64::from(i);
        testing::run(&mut state, testing::register(&format!("n{i}"), spec));
    }
    state
}

#[test]
fn the_ranking_of_one_tenant_is_not_that_of_another() {
    let mut state = bare(true);
    let strict = testing::job_spec("t2", Gpus::Milli(500));
    for spec in [&strict, &half()] {
        (0..3).for_each(|_| state.stand(spec));
    }
    assert!(place_one(&state, &strict, &Limits::default()).is_none());
    assert!(place_one(&state, &half(), &Limits::default()).is_some(), "its tenant accepts");
}

#[test]
fn in_one_pass_the_failure_of_one_tenant_says_nothing_about_another() {
    let mut state = bare(false);
    for (id, tenant) in [("r1", "t2"), ("r2", "t1")] {
        testing::run(&mut state, testing::schedule(id, testing::job_spec(tenant, Gpus::Milli(500))));
    }
    accept(&mut state, true);
    testing::run(&mut state, Intent::PlaceWaiting);
    let states: Vec<JobState> = state.jobs().values().map(|job| job.state()).collect();
    assert_eq!(states, [JobState::Pending, JobState::Admitted]);
}

#[test]
fn nobody_gives_way_for_a_part_that_would_not_be_given() {
    let mut state = group(&[Sharing::None], true);
    testing::run(&mut state, testing::register("n2", node(&[Sharing::Mps])));
    let fill = |state: &mut State, id: &str, node: &str| {
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        (spec.priority, spec.constraints.preemptible) = (-1, true);
        spec.constraints.node = crate::id::NodeName::new(node).ok();
        testing::run(state, testing::schedule(id, spec));
    };
    fill(&mut state, "low1", "n1");
    fill(&mut state, "low2", "n2");
    accept(&mut state, false);
    let late = state.meta().now_ms + 120_000;
    testing::try_run_at(&mut state, testing::schedule("high", half()), late).unwrap();
    testing::try_run_at(&mut state, Intent::PlaceWaiting, late + 10_000).unwrap();
    let claim = state.jobs().values().next_back().unwrap().claim.clone().expect("somebody gives way");
    assert_eq!(claim.placements[0].alloc.node, NodeNo(2), "where the part is enforced");
    assert_eq!(claim.placements[0].alloc.shares[0].kept, Kept::Mps);
}

#[test]
fn the_checker_sees_a_share_that_is_not_kept_as_was_said() {
    let mut state = group(&[Sharing::Mps], false);
    testing::run(&mut state, testing::schedule("r1", half()));
    let row = (**state.node(NodeNo(1)).unwrap()).clone();
    let devices: Vec<Device> =
        row.spec.devices.iter().map(|device| Device { sharing: Sharing::None, ..device.clone() }).collect();
    let spec = NodeSpec { devices, ..(*row.spec).clone() };
    state.put_node(crate::node::Node { spec: spec.into(), ..row });
    let said = invariants::check(&state);
    assert!(said.iter().any(|violation| violation.0.contains("not kept as was said")), "{said:?}");
}

#[test]
fn a_part_in_the_words_of_limits() {
    let mut state = group(&[Sharing::Mps, Sharing::Mps], false);
    let mut spec = testing::job_spec("t1", Gpus::Milli(255));
    testing::run(&mut state, testing::schedule("r1", spec.clone()));
    spec.resources.gpu_memory = 10 << 30;
    testing::run(&mut state, testing::schedule("r2", spec));
    testing::run(&mut state, testing::schedule("r3", testing::job_spec("t1", Gpus::Whole(1))));
    let desired = crate::reconcile::desired(&state, NodeNo(1));
    let parts: Vec<Option<Part>> = desired.replicas.values().map(|want| want.part).collect();
    let [Some(first), Some(second), None] = parts[..] else { panic!("{parts:?}") };
    assert_eq!((first.kept, first.percent(), first.memory_milli()), (Kept::Mps, 25, 254), "never more than is held");
    assert_eq!((first.memory, first.of), ((80 << 30) * 255 / 1000, 80 << 30));
    assert_eq!((second.memory, second.memory_milli()), (10 << 30, 125), "memory as it was asked for");
    let least = Part { kept: Kept::Mps, milli: 1, memory: 0, of: 0 };
    assert_eq!((least.percent(), least.memory_milli()), (1, 1));
}
