//! Golden scenarios: `scenarios/*.txt` tell a cluster and what happens to it, one
//! command a line, and below each command, indented, what the core says. A test
//! runs every file and compares; `UPDATE_GOLDEN=1` writes what is said now, to be
//! read in the diff. The language is in scenarios/README.md.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests have an environment and threads; the core has not"
)]

#[path = "scenario/mod.rs"]
mod scenario;

use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = Path::new("tests/scenarios");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    files.sort();
    files
}

#[test]
fn every_scenario_goes_as_it_is_written() {
    let update = std::env::var("UPDATE_GOLDEN").is_ok_and(|v| v == "1");
    let mut differing = Vec::new();
    for file in files() {
        let expected = std::fs::read_to_string(&file).unwrap();
        let said = scenario::play(&expected);
        if said == expected {
            continue;
        }
        if update {
            std::fs::write(&file, said).unwrap();
        } else {
            differing.push(format!("{}:\n{}", file.display(), difference(&expected, &said)));
        }
    }
    assert!(differing.is_empty(), "UPDATE_GOLDEN=1 rewrites them; read the diff.\n{}", differing.join("\n"));
}

/// The first lines that differ, both ways.
fn difference(expected: &str, said: &str) -> String {
    let (mut a, mut b) = (expected.lines(), said.lines());
    loop {
        match (a.next(), b.next()) {
            (x, y) if x == y && x.is_some() => {}
            (x, y) => return format!("  written: {}\n  said:    {}", x.unwrap_or("(end)"), y.unwrap_or("(end)")),
        }
    }
}
