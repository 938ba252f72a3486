//! libFuzzer over one target of `targets.rs`, which `NF_FUZZ` names. `tests/fuzz/run` builds and
//! drives it. Without a corpus it writes the target's samples into `NF_FUZZ_CORPUS` first.

#![no_main]

#[allow(dead_code)]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use targets::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn begin() {
    let name = std::env::var("NF_FUZZ").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        println!("{}", names.join("\n"));
        std::process::exit(if name.is_empty() { 0 } else { 2 });
    };
    if let Ok(corpus) = std::env::var("NF_FUZZ_CORPUS") {
        for (n, sample) in (target.samples)().iter().enumerate() {
            std::fs::write(format!("{corpus}/sample-{n}"), sample).expect("the corpus can be written");
        }
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(bytes);
    }
});
