//! The compliance policies P1 to P7 as one table, and what each says of an action. Only
//! *block* stops the action; what simulation bends says so, and nothing says pass that was
//! not checked. docs/policies/POLICIES.md is held against the table by a test. It does not
//! gather evidence.

use crate::approval::{self, Version};
use crate::audit::{Action, Actor, Check, Hash, Refs, Verdict};
use crate::command::{Mode, Note};
use crate::consent::{self, is_personal};
use crate::floor;
use crate::job::{Job, JobSpec, Phase, Replica};
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

/// What of a version's does not count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Why the consent that the data needs does not count.
    pub consent: Option<Reason>,
    /// Why its signature does not, although it is a good one.
    pub signature: Option<Reason>,
    /// Why the approval that let it in does not.
    pub approval: Option<Reason>,
}

impl Faults {
    /// As the state stands.
    pub fn of(state: &State, spec: &JobSpec) -> Self {
        let reason = |judged: Result<(), Refusal>| judged.err().map(|refusal| refusal.reason);
        Self {
            consent: reason(consent::judge(state, spec).map(drop)),
            signature: reason(floor::judge_again(state, spec)),
            // That its time is over withholds places and takes nothing back: so it is for every service of a day.
            approval: spec.approved_by.as_ref().and_then(|_| reason(approval::judge_back(state, spec))),
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
        matrix[2] = match (faults.approval, &spec.approved_by) {
            (Some(code), _) => block(code),
            (None, Some(_)) => said(Verdict::Pass),
            (None, None) => block(Reason::ApprovalRequired),
        };
        // Who calls has a token of one tenant, and no place is given past its quota (`apply`).
        matrix[4] = said(Verdict::Pass);
    }
    // Not asked of a version whose manifest states none.
    matrix[5] = match model_budget::judge(spec) {
        Err(refusal) => block(refusal.reason),
        Ok(()) if spec.budget.is_stated() => said(Verdict::Pass),
        Ok(()) => said(Verdict::Na),
    };
    matrix
}

/// The matrix of a job as it stands: what let it in, as far as it still counts, and what became of its bytes.
pub fn standing(state: &State, job: &Job) -> [Check; 7] {
    // Of one that is over it is told what let it in.
    let faults = if job.is_over() { Faults::default() } else { Faults::of(state, &job.spec) };
    let mut matrix = admission(&job.spec, state.meta().mode, faults);
    let other_bytes = |replica: &Replica| match replica.phase {
        Phase::Failed { why } | Phase::Waiting { last: Some(why), .. } => Some(why).filter(|why| why.is_of_bytes()),
        _ => None,
    };
    if let Some(why) = job.replicas.iter().find_map(other_bytes) {
        matrix[6] = block(why);
    } else if job.spec.manifest.is_some() && job.deployed >= job.revision {
        // Nothing becomes Ready of which the node has not read and hashed every byte.
        matrix[6] = said(Verdict::Pass);
    }
    matrix
}

/// The verdict on bytes that a node has hashed for a start: at a deploy, and at a rollback.
pub(crate) fn hashed(refused: Option<Reason>) -> Check {
    refused.map_or(said(Verdict::Pass), block)
}

/// The evidence of a version, by digest.
pub fn refs(state: &State, spec: &JobSpec) -> Refs {
    let evidence = spec.evidence.as_ref();
    Refs {
        manifest: spec.manifest.map(Hash),
        signature: evidence.map(|evidence| Hash(evidence.signature)),
        key_id: evidence.map(|evidence| evidence.key_id.clone()),
        approval: approval::judge(state, spec).ok().flatten().map(|approval| approval.digest()),
    }
}

/// Which policy a refusal for that reason is, by its place in the table; None: no policy's.
fn of_reason(reason: Reason) -> Option<usize> {
    use Reason as R;
    let place = match reason {
        R::ConsentRequired | R::ConsentRevoked => 0,
        R::SignatureRequired | R::SignatureInvalid | R::SignatureUnsupported | R::SignatureBindingMismatch => 1,
        R::HybridSignatureIncomplete | R::VerifierDisagreement | R::KeyVersionRetired | R::NoTrustRoot => 1,
        R::VerifierUnavailable | R::VersionTooOld => 1,
        R::ApprovalRequired | R::ApprovalSelf | R::ApprovalExpired | R::ApprovalMismatch | R::SignerUnknown => 2,
        R::QuotaExceeded => 4,
        R::LatencyBudgetExceeded | R::MemoryBudgetExceeded => 5,
        R::ArtifactMismatch | R::ModelCopyCorrupt => 6,
        _ => return None,
    };
    Some(place)
}

/// What the trail is told of an action on a version that a policy stopped: which version, what each policy said, by
/// what evidence. None where no policy did. `actor`: who asked.
pub fn stopped(state: &State, spec: &JobSpec, action: Action, actor: Option<&Actor>, reason: Reason) -> Option<Note> {
    let place = of_reason(reason)?;
    let mut spec = spec.clone();
    let judged = approval::judge_for(state, &spec, actor);
    let mut faults = Faults::of(state, &spec);
    match judged {
        Ok(by) => (spec.approved_by, faults.approval) = (by, None),
        Err(refusal) => faults.approval = Some(refusal.reason),
    }
    let mut checks = admission(&spec, state.meta().mode, faults);
    // Nothing was started, so no bytes were looked at.
    checks[6] = Check::default();
    checks[place] = block(reason);
    let object =
        Version { tenant: spec.tenant.clone(), model: spec.model.clone(), version: spec.version.clone() }.object();
    Some(Note { checks, refs: refs(state, &spec), ..Note::refused(action, object, reason) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Gpus;
    use crate::testing::job_spec;

    #[test]
    fn a_refusal_names_the_version_and_every_policy_with_the_one_that_blocked() {
        let state = State::new();
        let spec = JobSpec { manifest: Some([7; 32]), ..job_spec("t1", Gpus::Whole(1)) };
        let told = |reason| stopped(&state, &spec, Action::JobSchedule, None, reason);
        let reasons = [
            (Reason::ConsentRequired, 0),
            (Reason::SignatureRequired, 1),
            (Reason::ApprovalSelf, 2),
            (Reason::SignerUnknown, 2),
            (Reason::QuotaExceeded, 4),
            (Reason::MemoryBudgetExceeded, 5),
            (Reason::ArtifactMismatch, 6),
            (Reason::ModelCopyCorrupt, 6),
        ];
        for (reason, place) in reasons {
            let note = told(reason).unwrap();
            assert_eq!(note.checks[place], block(reason));
            let blocked = note.checks.iter().filter(|check| check.verdict == Verdict::Block).count();
            assert_eq!((blocked, note.refused, note.checks[3].verdict), (1, Some(reason), Verdict::Pass), "{reason}");
            assert_eq!(*note.object, format!("model/t1/{}@{}", spec.model, spec.version));
            assert_eq!(note.refs.manifest, Some(Hash([7; 32])));
        }
        assert_eq!(told(Reason::NoCapacity), None, "no policy says that there is no room");
    }

    #[test]
    fn the_page_says_what_the_table_says() {
        let page = include_str!("../../docs/policies/POLICIES.md");
        for (n, policy) in POLICIES.iter().enumerate() {
            assert_eq!(policy.name, format!("P{}", n + 1));
            assert!(page.contains(&format!("| {} | {} |", policy.name, policy.rule)), "{}", policy.name);
        }
    }
}
