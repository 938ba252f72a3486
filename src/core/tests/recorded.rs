//! A log that an earlier build wrote, applied by this one: it must be read, and lead to the very state that it led to
//! then. Members of two builds apply the same log during an upgrade, and a member applies after its restart what it
//! wrote before; a constant that was changed, or a field, forks the group. What a new rule changes is for commands of a new
//! feature level (ADR 6). Before the first release it may be recorded anew: `NF_RECORD=1 cargo test -p nf-core --test
//! recorded`, and CHANGELOG says that data directories of earlier builds do not open.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "tests have an environment; the core has not")]

#[path = "world/mod.rs"]
mod world;

use nf_core::apply::apply_batch;
use nf_core::codec;
use nf_core::command::Batch;
use nf_core::sim::Rng;
use nf_core::state::State;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Operations of the world that was recorded.
const STEPS: u64 = 1_500;
/// Batches between two hashes, so that one sees where it went another way.
const EVERY: usize = 100;
/// Before the body of a frame; its last four bytes are the body's length.
const HEADER: usize = 8;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(name)
}

fn record() {
    let (mut world, mut rng) = (world::World::new(), Rng::new(2026));
    for _ in 0..STEPS {
        world.step(rng.below(u64::MAX));
    }
    world.replays_the_same();
    let log: Vec<u8> = world.batches.iter().flat_map(codec::encode).collect();
    std::fs::create_dir_all(file("")).unwrap();
    std::fs::write(file("log"), log).unwrap();
    let batches = world.batches;
    std::fs::write(file("hashes"), hashes(&batches)).unwrap();
}

/// One line for each so many batches: how many, the state's hash then, and one of all rows that were written until
/// then: events, history and counters are in no state's hash.
fn hashes(batches: &[Batch]) -> String {
    let (mut state, mut rows, mut out) = (State::new(), Sha256::new(), String::new());
    for (i, batch) in batches.iter().enumerate() {
        apply_batch(&mut state, batch);
        for change in state.take_changes() {
            rows.update([change.table as u8, change.value.is_some().into()]);
            rows.update(change.key);
            rows.update(change.value.unwrap_or_default());
        }
        if (i + 1) % EVERY == 0 || i + 1 == batches.len() {
            let written = u128::from_be_bytes(rows.clone().finalize()[..16].try_into().unwrap());
            writeln!(out, "{} {:032x} {written:032x}", i + 1, state.hash()).unwrap();
        }
    }
    out
}

fn read(mut log: &[u8]) -> Vec<Batch> {
    let mut out = Vec::new();
    while !log.is_empty() {
        let length = u32::from_be_bytes(log[HEADER - 4..HEADER].try_into().unwrap()) as usize;
        let (frame, rest) = log.split_at(HEADER + length);
        out.push(codec::decode(frame).unwrap_or_else(|e| panic!("batch {}: {e}", out.len() + 1)));
        log = rest;
    }
    out
}

#[test]
fn a_log_of_an_earlier_build_is_read_and_leads_where_it_led() {
    if std::env::var("NF_RECORD").is_ok() {
        record();
    }
    let batches = read(&std::fs::read(file("log")).unwrap());
    let told = std::fs::read_to_string(file("hashes")).unwrap();
    for (now, then) in hashes(&batches).lines().zip(told.lines()) {
        assert_eq!(now, then, "the state is another one after so many batches: see this file's head");
    }
    assert_eq!(hashes(&batches).lines().count(), told.lines().count());
    // It tells of most things that there are to tell.
    let name = |command| {
        let text = format!("{command:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    };
    let kinds: BTreeSet<String> = batches.iter().flat_map(|batch| &batch.commands).map(name).collect();
    assert!(kinds.len() >= 24, "{kinds:?}");
}
