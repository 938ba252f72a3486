//! What production refuses whoever asks: nothing simulated, nothing unproven.

use super::Intent;
use crate::command::Mode;
use crate::job::{JobSpec, Runtime};
use crate::node::{NodeKind, NodeSpec};
use crate::reason::{Reason, Refusal};
use crate::sharing::Sharing;
use crate::state::State;

/// The rule of a production group, judged where it binds: the member that took the
/// call may not have known yet which group it is in.
pub(super) fn nothing_simulated(intent: &Intent) -> Result<(), Refusal> {
    match intent.bare() {
        Intent::Register { kind, spec, .. } if is_simulated(spec) || matches!(kind, NodeKind::Played(_)) => {
            let detail = "this is a production group: a simulated node has no place in it";
            Err(Refusal::new(Reason::Forbidden, detail))
        }
        Intent::Schedule { submission, .. } => proven(&submission.spec),
        _ => Ok(()),
    }
}

/// Played itself, or with what keeps those who share its devices apart only played.
fn is_simulated(spec: &NodeSpec) -> bool {
    spec.simulated || spec.devices.iter().any(|device| device.sharing == Sharing::Simulated)
}

/// The same rule for a version that takes another's place.
pub(super) fn nothing_unproven(state: &State, spec: &JobSpec) -> Result<(), Refusal> {
    match state.meta().mode {
        Mode::Production => proven(spec),
        Mode::Simulation => Ok(()),
    }
}

/// What production asks of a version, before anybody's approval.
pub(super) fn proven(spec: &JobSpec) -> Result<(), Refusal> {
    let named = format!("version {} of model {}", spec.version, spec.model);
    let refuse = |reason, text: &str| Err(Refusal::field(reason, "model_version", text));
    if spec.manifest.is_none() {
        return refuse(Reason::ModelNotFound, &format!("no store knows {named}; publish it (nf model publish)"));
    }
    if spec.runtime == Runtime::Simulated {
        let text =
            format!("{named} names no program, so it would only be played; publish it with --runtime or --profile");
        return refuse(Reason::Forbidden, &text);
    }
    if spec.evidence.is_none() {
        let text = format!("{named} came without a verified signature; sign it (nf model sign)");
        return refuse(Reason::SignatureRequired, &text);
    }
    Ok(())
}
