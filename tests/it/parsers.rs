//! Every parser of outside bytes meets damaged samples, for a moment: the targets are those that
//! `make fuzz` drives for minutes. A panic is the failure; it is printed with its seed and input.

#[path = "../fuzz/targets.rs"]
mod targets;

use nf_core::sim::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use targets::TARGETS;

/// Damaged inputs for each target.
const INPUTS: u64 = 2_000;

/// Words that have meaning somewhere, so that damage is not only noise.
const WORDS: [&[u8]; 12] = [
    b"-1",
    b"NaN",
    b"1e308",
    b"18446744073709551616",
    b"\0",
    b"../x",
    b"\"\"",
    b"{",
    b"[[[[[[[[",
    b"null",
    b"\xff\xfe",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
];

fn damage(rng: &mut Rng, samples: &[Vec<u8>]) -> Vec<u8> {
    let pick = |rng: &mut Rng| samples[rng.below(samples.len() as u64) as usize].clone();
    let mut bytes = pick(rng);
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at < bytes.len() => bytes[at] = rng.below(256) as u8,
            3 => {
                let word = WORDS[rng.below(WORDS.len() as u64) as usize];
                bytes.splice(at..at, word.iter().copied());
            }
            4 => {
                let other = pick(rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let end = (at + rng.below(16) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

#[test]
fn damaged_bytes_are_refused_and_never_end_a_member() {
    let seed = std::env::var("NF_SEED_FROM").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for target in TARGETS {
        let samples = (target.samples)();
        assert!(!samples.is_empty(), "{}: no samples", target.name);
        for sample in &samples {
            (target.run)(sample);
        }
        for n in 0..INPUTS {
            let input = damage(&mut Rng::new(seed ^ n), &samples);
            let held = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
            assert!(held.is_ok(), "{}: seed {}: {:?}", target.name, seed ^ n, String::from_utf8_lossy(&input));
        }
    }
}
