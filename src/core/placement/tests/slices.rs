//! Slices of divided GPUs: who places, judges, explains, evicts and releases them goes by the same rules.

use super::*;
use crate::apply;
use crate::command::{Command, Placement, Report, ReportKind};
use crate::id::{DeviceType, Incarnation, JobNo, NodeName, RequestId, TenantId};
use crate::invariants;
use crate::job::{Job, JobState, Share, Stage};
use crate::mig::{Layout, Shape, Slice};
use crate::node::NodeSpec;
use crate::placement::preempt::tests::all_gone;
use crate::plan::Intent;
use crate::reason::{Blocker, Reason};
use crate::sharing::{Kept, Sharing};
use crate::tenant::Quota;

/// H100s that are divided, or not.
fn gpus(divided: &[bool]) -> NodeSpec {
    let mut spec = testing::node_spec(divided.len() as u16);
    let both = spec.devices.iter_mut().zip(divided).filter(|(_, divided)| **divided);
    both.for_each(|(device, _)| device.sharing = Sharing::Mig);
    spec
}

fn group(divided: &[bool]) -> State {
    let mut state = State::new();
    let mut chosen = Chosen::from(Policy::Fragmentation);
    (chosen.preemption.min_run_ms, chosen.preemption.delay_ms) = (0, 0);
    testing::run(&mut state, Intent::SetPlacement { chosen, seen: None });
    quota(&mut state, 64_000);
    testing::run(&mut state, testing::register("n1", gpus(divided)));
    state
}

fn quota(state: &mut State, gpu_milli: u64) {
    let quota = Quota { gpu_milli: Some(gpu_milli), soft_sharing: true, ..Quota::default() };
    testing::run(state, Intent::SetQuota { tenant: TenantId::new("t1").unwrap(), quota });
}

fn slice(profile: &str) -> JobSpec {
    let mut spec = testing::job_spec("t1", Gpus::Whole(1));
    spec.resources.mig_profile = Some(DeviceType::new(profile).unwrap());
    spec
}

fn job(state: &State, request: &str) -> Arc<Job> {
    state.job_of(&RequestId::new(request).unwrap()).unwrap().clone()
}

/// What the job's first replica holds: the device, and the slice of it.
fn held(state: &State, request: &str) -> Option<(u16, Kept)> {
    job(state, request).replicas[0].allocation().map(|alloc| (alloc.shares[0].device, alloc.shares[0].kept))
}

fn start(state: &State, request: &str) -> Option<u8> {
    held(state, request).map(|(_, kept)| match kept {
        Kept::Mig(slice) => slice.start,
        kept => panic!("{kept:?}"),
    })
}

fn run(state: &mut State, request: &str, spec: JobSpec) {
    testing::run(state, testing::schedule(request, spec));
    assert_eq!(invariants::check(state), []);
}

fn blockers(state: &State, request: &str) -> Vec<Blocker> {
    explain::blockers(state, &job(state, request))
}

#[test]
fn slices_are_made_where_they_leave_room_for_the_largest() {
    let mut state = group(&[true]);
    for (request, profile, at) in [("a", "1g.10gb", 6), ("b", "1g.10gb", 4), ("c", "4g.40gb", 0), ("d", "1g.10gb", 5)] {
        run(&mut state, request, slice(profile));
        assert_eq!(start(&state, request), Some(at), "{request}");
    }
    let used = &state.ledger().node(NodeNo(1)).unwrap().devices[0];
    assert_eq!((used.milli, used.memory, used.slices.free()), (875, 70 << 30, 1));
    // The part that is left is none at which a slice may begin.
    run(&mut state, "e", slice("1g.10gb"));
    assert_eq!(job(&state, "e").state(), JobState::Pending);
}

#[test]
fn a_gpu_that_is_used_already_is_filled_before_an_empty_one_is_divided() {
    let mut state = group(&[true, true]);
    for request in ["a", "b", "c"] {
        run(&mut state, request, slice("2g.20gb"));
        assert_eq!(held(&state, request).unwrap().0, 0);
    }
    run(&mut state, "all", slice("7g.80gb"));
    assert_eq!(held(&state, "all").unwrap().0, 1);
    // Among nodes, too, whatever their numbers.
    let mut state = group(&[true]);
    run(&mut state, "on-one", slice("3g.40gb"));
    testing::run(&mut state, testing::register("n2", gpus(&[true])));
    run(&mut state, "beside-it", slice("3g.40gb"));
    assert_eq!(job(&state, "beside-it").replicas[0].allocation().unwrap().node, NodeNo(1));
    let why = job(&state, "beside-it").replicas[0].choice.clone().unwrap();
    assert!(why.runner_up.is_some_and(|(node, score)| node == NodeNo(2) && score < why.score), "{why:?}");
}

#[test]
fn a_divided_gpu_is_given_neither_whole_nor_in_thousandths() {
    let mut state = group(&[true]);
    for (request, gpu) in [("whole", Gpus::Whole(1)), ("part", Gpus::Milli(100))] {
        run(&mut state, request, testing::job_spec("t1", gpu));
        let said = blockers(&state, request);
        assert_eq!((said[0].reason, said[0].permanent), (Reason::NoMatchingDevice, true), "{said:?}");
        assert!(said[0].detail.contains("nothing but slices of their GPUs (MIG), by mig_profile"), "{said:?}");
    }
    // Nor is one that is not divided given in slices.
    let mut state = group(&[false]);
    run(&mut state, "slice", slice("1g.10gb"));
    assert_eq!(blockers(&state, "slice")[0].reason, Reason::NoMatchingDevice);
    // Where there are both, each gets its own.
    let mut state = group(&[true, false]);
    run(&mut state, "whole", testing::job_spec("t1", Gpus::Whole(1)));
    run(&mut state, "slice", slice("7g.80gb"));
    assert_eq!((held(&state, "whole").unwrap(), held(&state, "slice").unwrap().0), ((1, Kept::Alone), 0));
}

#[test]
fn who_waits_for_a_position_is_told_how_much_is_free_and_why_it_is_of_no_use() {
    let mut state = group(&[true]);
    for request in ["a", "b", "c", "d"] {
        run(&mut state, request, slice("1g.10gb"));
    }
    run(&mut state, "r", slice("3g.40gb"));
    let said = blockers(&state, "r");
    let expected = "4 parts of GPUs are free for slices, at most 4 on one GPU, but there is no position for 3g.40gb: it \
                    takes 4 in a row, beginning at part 0, 4";
    assert_eq!(said.iter().map(|b| b.reason).collect::<Vec<_>>(), [Reason::Resources, Reason::FragmentedCapacity]);
    assert_eq!(said[1].detail, expected);
    // With fewer than it takes, nothing is said of positions.
    run(&mut state, "e", JobSpec { priority: 1, ..slice("1g.10gb") });
    assert_eq!(blockers(&state, "r").iter().map(|b| b.reason).collect::<Vec<_>>(), [Reason::Resources]);
    // A name that no such GPU knows never fits.
    run(&mut state, "s", slice("3g.20gb"));
    assert_eq!(blockers(&state, "s")[0].reason, Reason::NoMatchingDevice);
}

/// A command that gives the first job such a share of a device.
fn place(device: u16, milli: u16, kept: Kept) -> Command {
    let alloc =
        Allocation { node: NodeNo(1), shares: vec![Share { device, milli, kept }], port: Some(31_500), at_ms: 0 };
    Command::Place { job: JobNo(1), placements: vec![Placement { replica: 0, alloc, why: None }] }
}

#[test]
fn apply_judges_slices_by_itself() {
    let mut state = group(&[]);
    run(&mut state, "r", slice("2g.20gb"));
    testing::run(&mut state, testing::register("n1", gpus(&[true, false])));
    let other = JobSpec { priority: 1, ..slice("1g.10gb") };
    run(&mut state, "in-the-way", other);
    assert_eq!(start(&state, "in-the-way"), Some(6));
    let two = |start| Kept::Mig(Slice { shape: Shape::Two, start });
    let answers = |device, milli, kept| apply::apply(&mut state.speculative(), &place(device, milli, kept)).is_ok();
    assert!(answers(0, 250, two(0)) && answers(0, 250, two(4)));
    for (device, milli, kept) in [
        (0, 250, two(1)),                                                 // none may begin there
        (0, 250, two(6)),                                                 // nor there
        (0, 250, two(250)),                                               // it ends nowhere
        (0, 125, two(0)),                                                 // another size than it is
        (0, 250, Kept::Mig(Slice { shape: Shape::OneDouble, start: 0 })), // another slice than is asked for
        (0, 250, Kept::Mig(Slice { shape: Shape::OneDouble, start: 6 })), // and in the way
        (1, 250, two(0)),                                                 // that device is not divided
        (0, 1000, Kept::Alone),                                           // and this one is
        (0, 250, Kept::Accepted),
        (0, 250, Kept::Simulated),
    ] {
        assert!(!answers(device, milli, kept), "{device} {milli} {kept:?}");
    }
    // What is there is in the way of what would overlap it.
    let mut full = state.speculative();
    apply::apply(&mut full, &place(0, 250, two(4))).unwrap();
    assert_eq!(invariants::check(&full), []);
    let mut spec = slice("2g.20gb");
    spec.constraints.zone = crate::id::Label::new("nowhere").ok();
    testing::run(&mut full, testing::schedule("late", spec));
    let late = |start| {
        let Command::Place { placements, .. } = place(0, 250, two(start)) else { unreachable!() };
        Command::Place { job: job(&full, "late").no, placements }
    };
    assert!(apply::apply(&mut full.speculative(), &late(4)).is_err());
    assert!(apply::apply(&mut full.speculative(), &late(2)).is_err(), "the port is taken");
}

#[test]
fn one_slice_of_a_gpu_has_the_engines_for_video() {
    let mut state = group(&[true]);
    for request in ["a", "b"] {
        run(&mut state, request, slice("1g.10gb+me"));
    }
    assert!(held(&state, "a").is_some() && held(&state, "b").is_none());
    run(&mut state, "plain", JobSpec { priority: 1, ..slice("1g.10gb") });
    assert!(held(&state, "plain").is_some());
}

#[test]
fn what_ends_gives_its_parts_back() {
    let mut state = group(&[true]);
    run(&mut state, "a", slice("7g.80gb"));
    run(&mut state, "b", slice("3g.40gb"));
    let first = job(&state, "a");
    let request = first.request.clone();
    testing::run(&mut state, Intent::Stop { request, tenant: None, why: Reason::StoppedByUser });
    let kind = ReportKind::Ended { ok: true, why: Reason::StoppedByUser };
    let gone = Report { job: first.no, replica: 0, generation: first.replicas[0].generation, kind };
    let node = NodeName::new("n1").unwrap();
    testing::run(&mut state, Intent::Reports { node, incarnation: Incarnation(1), reports: vec![gone] });
    assert_eq!(state.ledger().node(NodeNo(1)).unwrap().devices[0].slices, Layout::default());
    testing::run(&mut state, Intent::PlaceWaiting);
    assert_eq!(start(&state, "b"), Some(4));
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn smaller_slices_give_way_where_their_parts_make_a_position() {
    let mut state = group(&[true]);
    for request in ["a", "b", "c", "d"] {
        let mut low = slice("1g.10gb");
        low.constraints.preemptible = true;
        run(&mut state, request, low);
    }
    // They are at 6, 4, 5 and 0: the one at 0 alone is in the way of a position.
    let high = JobSpec { priority: 10, ..slice("3g.40gb") };
    run(&mut state, "high", high);
    let claim = job(&state, "high").claim.clone().expect("somebody gives way");
    assert_eq!(claim.victims.iter().map(|victim| victim.job).collect::<Vec<_>>(), [job(&state, "d").no]);
    all_gone(&mut state);
    assert_eq!(start(&state, "high"), Some(0));
    assert_eq!(invariants::check(&state), []);
}

#[test]
fn gangs_of_slices_get_as_many_as_positions_hold() {
    for (replicas, fits) in [(6, true), (7, false)] {
        let mut state = group(&[true, true]);
        run(&mut state, "gang", JobSpec { gang: true, replicas, ..slice("2g.20gb") });
        assert_eq!(job(&state, "gang").state() == JobState::Admitted, fits, "{replicas}");
    }
}

#[test]
fn a_gpu_in_use_is_not_divided_nor_made_whole() {
    let again = |state: &mut State, divided: bool| {
        let Intent::Register { name, kind, spec, .. } = testing::register("n1", gpus(&[divided])) else {
            unreachable!()
        };
        testing::try_run(state, Intent::Register { name, kind, incarnation: Incarnation(2), spec })
    };
    for divided in [true, false] {
        let mut state = group(&[divided]);
        let spec = if divided { slice("1g.10gb") } else { testing::job_spec("t1", Gpus::Whole(1)) };
        run(&mut state, "r", spec);
        let refusal = again(&mut state, !divided).unwrap_err();
        assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::Conflict, Some("devices")));
        assert!(again(&mut state, divided).is_ok());
    }
    // One of which nobody knows how it is divided can't be.
    let mut spec = gpus(&[true]);
    spec.devices[0].device_type = DeviceType::new("T4-16G").unwrap();
    let refusal = testing::try_run(&mut State::new(), testing::register("n1", spec)).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("devices.sharing"));
    assert!(refusal.detail.contains("A100-40G"), "{}", refusal.detail);
}

#[test]
fn a_slice_counts_as_a_device_and_costs_its_part() {
    let mut state = group(&[]);
    let mut spec = gpus(&[true]);
    spec.cost_per_hour.insert(spec.devices[0].device_type.clone(), 8_000_000);
    testing::run(&mut state, testing::register("n1", spec));
    quota(&mut state, 2_000);
    for request in ["a", "b", "c"] {
        run(&mut state, request, slice("1g.10gb"));
    }
    let tenant = job(&state, "a").tenant;
    assert_eq!(state.ledger().tenant(tenant).gpu_milli, 2_000);
    assert_eq!(state.ledger().types_of(tenant).map(|(_, milli)| milli).collect::<Vec<_>>(), [2_000]);
    assert!(held(&state, "c").is_none(), "as for whole GPUs");
    let alloc = job(&state, "a").replicas[0].allocation().unwrap().clone();
    assert_eq!(crate::budget::meter::price(&state, &alloc), 125 * 8_000_000);
    let mut cheap = slice("1g.10gb");
    quota(&mut state, 64_000);
    testing::run(&mut state, Intent::PlaceWaiting);
    cheap.constraints.max_cost_per_hour = Some(1_000_000);
    run(&mut state, "cheap", cheap.clone());
    assert!(held(&state, "cheap").is_some());
    cheap.constraints.max_cost_per_hour = Some(999_999);
    run(&mut state, "too-cheap", cheap);
    assert_eq!(blockers(&state, "too-cheap")[0].reason, Reason::BadConstraints);
}

#[test]
fn an_agent_is_told_the_slice_and_no_part() {
    let mut state = group(&[true]);
    run(&mut state, "a", slice("3g.40gb"));
    let desired = crate::reconcile::desired(&state, NodeNo(1));
    let want = desired.replicas.values().next().unwrap();
    let made = Slice { shape: Shape::Three, start: 4 };
    assert_eq!((want.part, want.shares[0].kept, want.uuids.len()), (None, Kept::Mig(made), 1));
}

#[test]
fn the_checker_sees_slices_that_overlap() {
    let mut state = group(&[true]);
    run(&mut state, "a", slice("1g.10gb"));
    run(&mut state, "b", slice("1g.10gb"));
    let alloc = job(&state, "a").replicas[0].allocation().unwrap().clone();
    let mut second = (*job(&state, "b")).clone();
    let port = second.replicas[0].allocation().unwrap().port;
    second.replicas[0].phase = crate::job::Phase::Held { alloc: Allocation { port, ..alloc }, stage: Stage::Scheduled };
    state.put_job(second);
    assert!(invariants::check(&state).iter().any(|found| found.0.contains("overlap")));
}

/// Slices come and go on two GPUs at random: whatever is refused has no position anywhere, and nothing overlaps.
#[test]
fn what_finds_no_place_has_no_position_on_any_gpu() {
    const PROFILES: [&str; 7] = ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"];
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut state = group(&[true, true]);
        if rng.chance(500) {
            state.meta.placement = (*rng.pick(&Policy::ALL)).into();
            state.make_rules(1);
        }
        let mut there: Vec<(JobSpec, Allocation)> = Vec::new();
        for _ in 0..30 {
            if rng.chance(400) && !there.is_empty() {
                let (spec, alloc) = there.swap_remove(rng.below(there.len() as u64) as usize);
                state.unbook(&spec, 0, &alloc);
                continue;
            }
            let at = rng.below(7) as usize;
            let spec = slice(PROFILES[at]);
            let shape = Shape::ALL[at];
            let layouts: Vec<Layout> =
                state.ledger().node(NodeNo(1)).unwrap().devices.iter().map(|device| device.slices).collect();
            let position =
                |layout: &Layout| shape.starts().iter().any(|start| layout.fits(Slice { shape, start: *start }));
            let pick = place_one(&state, &spec, &Limits::default());
            assert_eq!(pick.is_some(), layouts.iter().any(position), "seed {seed}: {} on {layouts:?}", PROFILES[at]);
            let Some(pick) = pick else { continue };
            let node = state.node(NodeNo(1)).unwrap().clone();
            let used = state.ledger().node(NodeNo(1)).unwrap();
            ledger::fits(&Ask::of(&state, &spec), &pick.alloc, &node.spec, used).unwrap();
            state.book(&spec, 0, &pick.alloc);
            there.push((spec, pick.alloc));
        }
        there.iter().for_each(|(spec, alloc)| state.unbook(spec, 0, alloc));
        let empty = |device: &ledger::DeviceUse| *device == ledger::DeviceUse::default();
        assert!(state.ledger().node(NodeNo(1)).unwrap().devices.iter().all(empty), "seed {seed}");
    }
}
