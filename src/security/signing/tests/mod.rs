//! The verifier as a whole: every format made here and by real tools, what must be
//! refused and with which token, and a thousand mutations of each.

mod bypasses;
mod deploys;
mod fixtures;
mod forge;
mod formats;
mod mutations;

use super::*;
use forge::Sample;

/// The verdict on a sample under the usual policy.
fn judged(sample: &Sample) -> Result<Verdict, Refusal> {
    judged_with(sample, &sample.evidence, Demand::Hybrid, &Expect::default())
}

fn judged_with(sample: &Sample, evidence: &[u8], demand: Demand, expect: &Expect) -> Result<Verdict, Refusal> {
    let policy = Policy { keys: &sample.keys, roots: &sample.roots, demand, expect, now: forge::NOW };
    verify(&policy, &sample.artefact(), evidence)
}
