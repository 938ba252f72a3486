//! Plans that are refused, and what planning promises.

use super::*;
use crate::id::MemberId;
use crate::job::{JobSpec, Runtime};
use crate::resources::Gpus;
use crate::testing;

fn played(name: &str, by: u64) -> Intent {
    match testing::register(name, testing::node_spec(1)) {
        Intent::Register { name, incarnation, spec, .. } => {
            Intent::Register { name, kind: NodeKind::Played(MemberId(by)), incarnation, spec }
        }
        _ => unreachable!("a registration"),
    }
}

#[test]
fn two_played_nodes_of_one_host_never_share_a_port() {
    let mut state = State::new();
    testing::run(&mut state, played("n1", 1));
    let refusal = plan(&state, &played("n2", 2)).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::Conflict, Some("ports")));
    // The same node again, or from another host, or with other ports, is fine.
    assert!(plan(&state, &played("n1", 2)).is_ok());
    for change in [|s: &mut NodeSpec| s.host = "10.0.0.9".into(), |s: &mut NodeSpec| s.ports = None] {
        let Intent::Register { name, kind, incarnation, spec } = played("n2", 2) else { unreachable!() };
        let mut spec = (*spec).clone();
        change(&mut spec);
        assert!(plan(&state, &Intent::Register { name, kind, incarnation, spec: spec.into() }).is_ok());
    }
}

#[test]
fn an_id_stays_the_one_of_the_member_that_had_it_first() {
    let member = |id: u64, name: &str| {
        let name = NodeName::new(name).unwrap();
        let text: Arc<str> = "x".into();
        let (api, peer, version) = (text.clone(), text.clone(), text);
        Intent::Member(Member { id: MemberId(id), name, api, peer, min_level: 1, max_level: 1, version })
    };
    let mut state = State::new();
    testing::run(&mut state, member(4, "d"));
    testing::run(&mut state, member(4, "d"));
    assert_eq!(plan(&state, &member(4, "e")).unwrap_err().reason, Reason::Conflict);
}

#[test]
fn a_production_group_takes_nothing_simulated_whoever_asks() {
    let mut state = State::new();
    let init = Intent::Init { cluster: "c".into(), mode: Mode::Production, default_gpu_milli: 2_000 };
    testing::run(&mut state, init);
    let spec = testing::job_spec("t1", Gpus::Whole(1));
    let refusal = plan(&state, &testing::schedule("r1", spec.clone())).unwrap_err();
    assert_eq!(refusal.reason, Reason::ModelNotFound);
    assert_eq!(plan(&state, &played("n1", 1)).unwrap_err().reason, Reason::Forbidden);
    let worker = testing::register("n1", testing::node_spec(1));
    assert_eq!(plan(&state, &worker).unwrap_err().reason, Reason::Forbidden);
    let played = JobSpec { manifest: Some([7; 32]), ..spec.clone() };
    assert_eq!(plan(&state, &testing::schedule("r1", played)).unwrap_err().reason, Reason::Forbidden);
    let spec = JobSpec { runtime: Runtime::Process, ..spec };
    let unsigned = JobSpec { manifest: Some([7; 32]), ..spec.clone() };
    let refusal = plan(&state, &testing::schedule("r1", unsigned)).unwrap_err();
    assert_eq!(refusal.reason, Reason::SignatureRequired);
    let evidence = crate::job::Evidence {
        signature: [8; 32],
        key_id: "k".into(),
        min_version: None,
        publishers: crate::job::Publishers::Unsaid,
    };
    let half_played = NodeSpec { simulated: false, ..testing::node_spec(1) };
    assert_eq!(plan(&state, &testing::register("n1", half_played)).unwrap_err().reason, Reason::Forbidden);
    testing::run(&mut state, testing::register("n1", testing::real_node_spec(1)));
    let signed = testing::schedule("r1", JobSpec { manifest: Some([7; 32]), evidence: Some(evidence), ..spec.clone() });
    assert_eq!(plan(&state, &testing::by("ada", signed.clone())).unwrap_err().reason, Reason::ApprovalRequired);
    let of = Version { tenant: spec.tenant, model: spec.model, version: spec.version };
    testing::run(&mut state, testing::by("bob", Intent::Approve { of, manifest: [7; 32], for_ms: 1000 }));
    testing::run(&mut state, testing::by("ada", signed));
}
