//! The whole group in one deterministic thread: openraft, our log store, state machine and
//! proposer, on virtual time, a lossy network and disks that lose what was not synced.
//!
//! A seed decides everything; the same seed gives the same trace. First faults, then healing:
//! nothing acknowledged may be lost, nobody may differ, and in the end all must agree.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

mod net;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use neural_fabric::storage::model::Sync;
use nf_core::invariants;
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use world::World;

/// Virtual time with faults, and how long healing may take after it.
const FAULTS: Duration = Duration::from_secs(45);
const HEALING: Duration = Duration::from_secs(15);

/// What a seed showed.
pub struct Trace {
    /// Folds every applied entry on every member, with its time.
    pub hash: u64,
    pub acknowledged: usize,
    pub crashes: usize,
    pub terms: u64,
    pub snapshots: usize,
    /// The most entries of one leader that were under way at once.
    pub in_flight: usize,
}

/// Runs one seed. Panics, naming the seed, when a promise is broken.
pub fn run_seed(seed: u64, sync: Sync) -> Trace {
    let mut runtime = SimRuntime::with_seed(seed);
    runtime.block_on(async move {
        let world = World::new(seed, if seed.is_multiple_of(4) { 5 } else { 3 }, sync);
        world.form().await;
        let clients = (0..3).map(|client| SimRuntime::spawn(world.clone().client(client)));
        let clients: Vec<_> = clients.chain([SimRuntime::spawn(world.clone().crowd())]).collect();
        world.torment(FAULTS).await;
        world.heal().await;
        for client in clients {
            client.await.unwrap_or_else(|e| panic!("seed {seed}: a client: {e}"));
        }
        world.agree(HEALING).await;
        check(&world)
    })
}

fn check(world: &World) -> Trace {
    let seed = world.seed();
    let states = world.states();
    let mut hashes = BTreeMap::new();
    for (id, state) in &states {
        let violations = invariants::check(state);
        assert!(violations.is_empty(), "seed {seed}: member {id}: {violations:?}");
        hashes.insert(*id, state.hash());
    }
    let first = hashes.values().next().copied();
    assert!(hashes.values().all(|hash| Some(*hash) == first), "seed {seed}: states differ: {hashes:?}");
    let acknowledged = world.acknowledged();
    let (_, state) = &states[0];
    for (request, job) in &acknowledged {
        let found = state.job_of(request).map(|found| found.no);
        assert_eq!(found, Some(*job), "seed {seed}: {request} was acknowledged as {job}");
    }
    world.trace(acknowledged.len())
}

/// A number from the environment, as the core's simulation reads it.
fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")) }
}

/// The disk as it should be, or the bug that `NF_BUG` plants.
fn disk() -> Sync {
    match std::env::var("NF_BUG").unwrap_or_default().as_str() {
        "" => Sync::Driven,
        "ack-before-sync" => Sync::Lying,
        other => panic!("NF_BUG={other}: the group knows ack-before-sync alone"),
    }
}

#[test]
fn a_hundred_seeds_keep_their_promises() {
    let (first, seeds) = (number("NF_SEED_FROM", 1), number("NF_SEEDS", 100));
    let (mut acknowledged, mut crashes, mut terms, mut snapshots, mut in_flight) = (0, 0, 0, 0, 0);
    let begun = std::time::Instant::now();
    for seed in first..first + seeds {
        let trace = run_seed(seed, disk());
        assert!(trace.acknowledged > 0, "seed {seed}: nothing was done");
        acknowledged += trace.acknowledged;
        crashes += trace.crashes;
        terms += trace.terms;
        snapshots += trace.snapshots;
        in_flight = in_flight.max(trace.in_flight);
    }
    println!(
        "{seeds} seeds in {:?}: {acknowledged} calls, at most {in_flight} entries under way, {crashes} crashes, {terms} \
         terms, {snapshots} snapshots sent",
        begun.elapsed()
    );
    assert!(crashes > 0 && terms > seeds && snapshots > 0 && in_flight > 4, "the seeds are too tame");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 8] {
        let (first, second) = (run_seed(seed, Sync::Driven), run_seed(seed, Sync::Driven));
        assert_eq!(first.hash, second.hash, "seed {seed}");
    }
}
