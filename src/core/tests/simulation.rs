//! Many seeds of the simulated world. A failing seed is printed with what was
//! seen; `NF_SEED_FROM=<seed> NF_SEEDS=1` runs it again, the same to the last event.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests have an environment and threads; the core has not"
)]

use nf_core::sim::{Options, Report, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")) }
}

/// The first failing seed of `seeds` from `from`, with what was seen, and how many ran.
fn hunt(from: u64, seeds: u64, threads: u64, options: &Options) -> (Option<(u64, String)>, Vec<Report>) {
    let (next, failed) = (AtomicU64::new(from), AtomicBool::new(false));
    let (first, reports) = (Mutex::new(None::<(u64, String)>), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        break;
                    }
                    let text = match catch_unwind(AssertUnwindSafe(|| run(seed, options))) {
                        Ok(report) if report.violations.is_empty() => {
                            reports.lock().unwrap().push(report);
                            continue;
                        }
                        Ok(report) => format!("{report:#?}"),
                        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
                    };
                    failed.store(true, Ordering::Relaxed);
                    let mut first = first.lock().unwrap();
                    if first.as_ref().is_none_or(|(known, _)| seed < *known) {
                        *first = Some((seed, text));
                    }
                }
            });
        }
    });
    (first.into_inner().unwrap(), reports.into_inner().unwrap())
}

#[test]
fn simulation_is_safe_and_settles_for_every_seed() {
    let (from, seeds) = (number("NF_SEED_FROM", 1), number("NF_SEEDS", 900));
    let options = Options {
        ack_before_sync: std::env::var("NF_BUG").is_ok_and(|bug| bug == "ack-before-sync"),
        unpinned: std::env::var("NF_BUG").is_ok_and(|bug| bug == "unpinned"),
        verbose: std::env::var("NF_VERBOSE").is_ok(),
        ..Options::default()
    };
    let started = std::time::Instant::now();
    let (failed, reports) = hunt(from, seeds, number("NF_THREADS", 2), &options);
    let sum = |field: fn(&Report) -> u64| reports.iter().map(field).sum::<u64>();
    println!(
        "{} seeds in {:?}: {} entries, {} superseded, {} acknowledged, {} live at the end, {} terms, {} crashes, {} moves, {} taken over, {} rolled, {} s of virtual time",
        reports.len(),
        started.elapsed(),
        sum(|r| r.entries as u64),
        sum(|r| r.superseded),
        sum(|r| r.acked as u64),
        sum(|r| r.live as u64),
        sum(|r| r.terms),
        sum(|r| r.crashes),
        sum(|r| r.moves),
        sum(|r| r.taken_over),
        sum(|r| r.rolled),
        sum(|r| r.virtual_ms) / 1000,
    );
    if let Some((seed, text)) = failed {
        panic!("seed {seed} (NF_SEED_FROM={seed} NF_SEEDS=1) after {} sound ones: {text}", reports.len());
    }
    // A world in which nothing moves would say nothing about moves.
    assert!(seeds < 500 || sum(|r| r.taken_over) > 100, "no replica was moved");
    assert!(seeds < 500 || sum(|r| r.rolled) > 100, "no rollout came to rest");
    assert!(seeds < 500 || sum(|r| r.gave_way) > 30, "nobody gave way");
    assert!(seeds < 500 || sum(|r| r.told) > 20, "no service with a budget was asked for anything");
    assert!(seeds < 500 || sum(|r| r.withdrawn) > 100, "no consent's end stopped anything");
    assert!(seeds < 500 || sum(|r| r.unpaid as u64) > 100, "nobody waited for a budget");
}

#[test]
fn simulation_of_the_same_seed_gives_the_same_trace() {
    for seed in [1, 77, 4711] {
        assert_eq!(run(seed, &Options::default()), run(seed, &Options::default()));
    }
    assert_ne!(run(1, &Options::default()).trace_hash, run(2, &Options::default()).trace_hash);
}
