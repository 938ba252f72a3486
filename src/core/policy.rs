//! The compliance policies P1 to P7 as one table, and what each says of an action. Only
//! *block* stops the action; what simulation bends says so, and nothing says pass that was
//! not checked. docs/policies/POLICIES.md is held against the table by a test. It does not
//! gather evidence.

use crate::audit::{Check, Verdict};
use crate::command::Mode;
use crate::consent::{self, is_personal};
use crate::floor;
use crate::job::JobSpec;
use crate::model_budget;
use crate::reason::{Reason, Refusal};
use crate::state::State;

/// One policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: &'static str,
    pub rule: &'static str,
}

/// P1 to P7, in order.
pub const POLICIES: [Policy; 7] = [
    Policy {
        name: "P1",
        rule: "no raw personal data in model caches unless the tenant's signed consent is on record; consent revoked purges",
    },
    Policy { name: "P2", rule: "a deploy or upgrade needs a cosign or Vault signature" },
    Policy { name: "P3", rule: "promotion to production needs approval by another person than the publisher" },
    Policy { name: "P4", rule: "/health and /metrics on every member and every worker" },
    Policy { name: "P5", rule: "tenant quotas; a tenant sees only its own rows" },
    Policy { name: "P6", rule: "latency and memory budget per model" },
    Policy { name: "P7", rule: "model binaries are kept as copies and their SHA-256 verified" },
];

fn said(verdict: Verdict) -> Check {
    Check { verdict, code: None }
}

fn block(code: Reason) -> Check {
    Check { verdict: Verdict::Block, code: Some(code) }
}

/// What of a version's does not count, beside its approval.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Why the consent that the data needs does not count.
    pub consent: Option<Reason>,
    /// Why its signature does not, although it is a good one.
    pub signature: Option<Reason>,
}

impl Faults {
    /// As the state stands.
    pub fn of(state: &State, spec: &JobSpec) -> Self {
        let reason = |judged: Result<(), Refusal>| judged.err().map(|refusal| refusal.reason);
        Self {
            consent: reason(consent::judge(state, spec).map(drop)),
            signature: reason(floor::judge_again(state, spec)),
        }
    }
}

/// The matrix of an admission.
pub fn admission(spec: &JobSpec, mode: Mode, faults: Faults) -> [Check; 7] {
    let simulation = mode == Mode::Simulation;
    let mut matrix = [Check::default(); 7];
    // Not asked of a version whose manifest names no data about people.
    matrix[0] = match faults.consent {
        Some(code) => block(code),
        None if spec.data_classes.iter().any(is_personal) => said(Verdict::Pass),
        None => said(Verdict::Na),
    };
    // A property of the build: the routes are there for every admission.
    matrix[3] = said(Verdict::Pass);
    // Verified by the member that took the call, and once more by the node before the start.
    if let Some(code) = faults.signature {
        matrix[1] = block(code);
    } else if spec.evidence.is_some() {
        matrix[1] = said(Verdict::Pass);
    } else if simulation {
        matrix[1] = said(Verdict::Simulated);
    }
    if simulation {
        matrix[2] = said(Verdict::Waived);
        matrix[4] = said(Verdict::Simulated);
        // A store's bytes are verified when the replica starts; of others there are none.
        if spec.manifest.is_none() {
            matrix[6] = said(Verdict::Simulated);
        }
    } else {
        // In production the plan alone writes it, from the approval on record.
        matrix[2] = match spec.approved_by {
            Some(_) => said(Verdict::Pass),
            None => block(Reason::ApprovalRequired),
        };
    }
    // Not asked of a version whose manifest states none.
    matrix[5] = match model_budget::judge(spec) {
        Err(refusal) => block(refusal.reason),
        Ok(()) if spec.budget.is_stated() => said(Verdict::Pass),
        Ok(()) => said(Verdict::Na),
    };
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_the_table_says() {
        let page = include_str!("../../docs/policies/POLICIES.md");
        for (n, policy) in POLICIES.iter().enumerate() {
            assert_eq!(policy.name, format!("P{}", n + 1));
            assert!(page.contains(&format!("| {} | {} |", policy.name, policy.rule)), "{}", policy.name);
        }
    }
}
