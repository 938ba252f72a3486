//! Entity tags: which form of an object a caller has seen, as a digest of the part
//! that operators change by hand. A caller that names one changes the object only as
//! it saw it. Computed from the rows, so nothing is stored for it. It knows no HTTP.

use crate::codec::body;
use crate::id::{Digest16, NodeName, TenantId};
use crate::node::{Cordon, Node};
use crate::placement::Chosen;
use crate::reason::{Reason, Refusal};
use crate::state::State;
use crate::tenant::{Quota, Tenant};

/// Of a tenant's quota. Another tenant of the same name, made later, has another one.
pub fn quota(tenant: &Tenant) -> Digest16 {
    Digest16::of(&[b"quota", &body(&(tenant.no, &tenant.quota), Vec::new())])
}

/// Of a node's cordon.
pub fn cordon(node: &Node) -> Digest16 {
    Digest16::of(&[b"cordon", &body(&(node.no, &node.cordon), Vec::new())])
}

/// Of the placement policy. The same policy set again after another has another one.
pub fn placement(state: &State) -> Digest16 {
    let meta = state.meta();
    Digest16::of(&[b"placement", &body(&(meta.placement_version, &meta.placement), Vec::new())])
}

/// Whether the placement policy may be set by a caller that has seen `seen`, if it says so.
///
/// # Errors
/// `StaleIndex`.
pub fn check_placement(state: &State, wanted: &Chosen, seen: Option<Digest16>) -> Result<(), Refusal> {
    match seen {
        Some(seen) if seen != placement(state) && state.meta().placement != *wanted => {
            Err(stale("the placement policy".to_owned(), seen))
        }
        _ => Ok(()),
    }
}

/// Whether a quota may be set by a caller that has seen `seen`. One that is as it is
/// wanted already is fine: a call that is made again must not fail for having worked.
///
/// # Errors
/// `StaleIndex`.
pub fn check_quota(state: &State, tenant: &TenantId, wanted: &Quota, seen: Digest16) -> Result<(), Refusal> {
    match state.tenant_named(tenant) {
        Some(known) if quota(known) == seen || known.quota == *wanted => Ok(()),
        _ => Err(stale(format!("the quota of tenant {tenant}"), seen)),
    }
}

/// Whether a cordon may be changed by a caller that has seen `seen`.
///
/// # Errors
/// `StaleIndex`. That a node is absent is for others to say.
pub fn check_cordon(state: &State, node: &NodeName, wanted: Option<&Cordon>, seen: Digest16) -> Result<(), Refusal> {
    // When it was said is not part of what is wanted.
    let said = |cordon: Option<&Cordon>| cordon.map(|c| (c.by.clone(), c.reason.clone(), c.drain));
    match state.node_named(node) {
        Some(known) if cordon(known) != seen && said(known.cordon.as_ref()) != said(wanted) => {
            Err(stale(format!("the cordon of node {node}"), seen))
        }
        _ => Ok(()),
    }
}

fn stale(what: String, seen: Digest16) -> Refusal {
    let detail = format!("{what} is not what If-Match says ({seen}): it has changed since; read it again, then decide");
    Refusal::field(Reason::StaleIndex, "If-Match", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Intent;
    use crate::testing::{node_spec, register, run, try_run};

    fn gpus(milli: u64) -> Quota {
        Quota { gpu_milli: Some(milli), ..Quota::default() }
    }

    #[test]
    fn a_quota_changes_only_as_it_was_seen() {
        let mut state = State::new();
        let tenant = TenantId::new("t1").unwrap();
        let set = |milli, seen| Intent::SetQuotaIf { tenant: tenant.clone(), quota: gpus(milli), seen };
        let of = |state: &State| quota(state.tenant_named(&tenant).unwrap());
        let refused = |state: &mut State, intent| try_run(state, intent).unwrap_err().reason;
        assert_eq!(refused(&mut state, set(1, Digest16([0; 16]))), Reason::StaleIndex, "there is none yet");
        run(&mut state, Intent::SetQuota { tenant: tenant.clone(), quota: gpus(1000) });
        let seen = of(&state);
        run(&mut state, set(2000, seen));
        assert_eq!(refused(&mut state, set(3000, seen)), Reason::StaleIndex);
        run(&mut state, set(2000, seen));
        assert_ne!(of(&state), seen);
        assert_eq!(state.tenant_named(&tenant).unwrap().quota, gpus(2000));
    }

    #[test]
    fn the_placement_policy_changes_only_as_it_was_seen_and_each_decision_goes_by_it() {
        use crate::placement::Policy;
        let mut state = State::new();
        let set = |policy: Policy, seen| Intent::SetPlacement { chosen: policy.into(), seen };
        let first = placement(&state);
        run(&mut state, set(Policy::Spread, Some(first)));
        assert_eq!(state.rules.chosen.policy, Policy::Spread);
        assert_eq!(try_run(&mut state, set(Policy::Cost, Some(first))).unwrap_err().reason, Reason::StaleIndex);
        run(&mut state, set(Policy::Spread, Some(first)));
        assert_eq!(state.meta().placement_version, 2, "what is so already is not set again");
        run(&mut state, set(Policy::Cost, None));
        let _ = state.take_changes();
        let mut again = State::from_rows(state.live_rows()).unwrap();
        assert_eq!((again.rules.chosen, placement(&again)), (Policy::Cost.into(), placement(&state)));
        run(&mut again, register("n1", node_spec(2)));
        run(
            &mut again,
            crate::testing::schedule("r1", crate::testing::job_spec("t1", crate::resources::Gpus::Whole(1))),
        );
        let job = again.jobs().values().next().unwrap();
        let choice = job.replicas[0].choice.as_ref().unwrap();
        assert_eq!(choice.score, choice.terms.total(Policy::Cost.weights()));
    }

    #[test]
    fn a_cordon_changes_only_as_it_was_seen() {
        let mut state = State::new();
        run(&mut state, register("n1", node_spec(1)));
        let node = NodeName::new("n1").unwrap();
        let by = |who: &str| Some(Cordon { by: who.into(), reason: "fans".into(), at_ms: 0, drain: None });
        let set = |cordon, seen| Intent::CordonIf { node: node.clone(), cordon, seen };
        let seen = cordon(state.node_named(&node).unwrap());
        run(&mut state, set(by("ann"), seen));
        assert_eq!(try_run(&mut state, set(by("bob"), seen)).unwrap_err().reason, Reason::StaleIndex);
        run(&mut state, set(by("ann"), seen));
        let nobody = Intent::CordonIf { node: NodeName::new("n2").unwrap(), cordon: None, seen };
        assert_eq!(try_run(&mut state, nobody).unwrap_err().reason, Reason::NotFound);
    }
}
