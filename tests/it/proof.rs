//! What tenants learn of one another where they want one place, and what is told and recorded of an action that a policy
//! stopped. Who may call at all is `auth`'s.

use crate::auth::{Group, trail, with};
use crate::surface::Surface;
use neural_fabric::api::convert::schedule::ModelFacts;
use neural_fabric::api::{Resolve, Unresolved};
use neural_fabric::security::jwt::Role;
use nf_proto::v1;
use nf_proto::v1::scheduler_service_client::SchedulerServiceClient;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Instant;
use tonic_types::StatusExt;

/// Two GPUs of a node, for a tenant whose name is in everything that it makes.
fn rival(tenant: &str, name: &str, node: &str, priority: i16, more: Value) -> Value {
    let mut constraints = json!({"node": node});
    constraints.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"tenant_id": tenant, "model_id": format!("model-{tenant}"), "model_version": "v1", "priority": priority,
        "request_id": format!("{name}-{tenant}"), "resources": {"gpu": 2}, "constraints": constraints})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_stand_in_one_anothers_way_learn_no_names() {
    let group = Group::start(1).await;
    let admin = group.token("ops", &[Role::Admin, Role::Operator]);
    let [ada, eve] = ["t1", "t2"].map(|tenant| group.token(tenant, &[Role::Operator, Role::Viewer]));
    for node in ["spared", "taken"] {
        group.call(&admin, Method::POST, "/node/register", Some(json!({"node_id": node, "gpus": 2}))).await;
    }
    let patience = async |delay: &str| {
        let body = json!({"policy": "fragmentation", "preemption": {"enabled": true, "min_run": 0, "delay": delay}});
        let (code, answer) = group.call(&admin, Method::PUT, "/policy/placement", Some(body)).await;
        assert_eq!(code, 200, "{answer}");
    };
    patience("1h").await;
    let spared = json!({"preemptible": true, "max_unavailable": 0});
    for (name, node, more) in [("kept", "spared", spared), ("low", "taken", json!({"preemptible": true}))] {
        let (code, answer) = group.call(&ada, Method::POST, "/schedule", Some(rival("t1", name, node, 0, more))).await;
        assert_eq!(code, 201, "{answer}");
    }
    let heard = std::cell::RefCell::new(Vec::new());
    let ask = async |method: Method, path: &str, body: Option<Value>| {
        let (_, answer) = group.call(&eve, method.clone(), path, body).await;
        heard.borrow_mut().push(format!("{method} {path}: {answer}"));
        answer
    };
    let mine = |name: &str, node: &str| Some(rival("t2", name, node, 50, json!({})));
    // Who has waited for nothing yet is told that somebody would give way, and that a budget is in the way.
    for (name, node, reason) in [("a", "spared", "DisruptionBudget"), ("b", "taken", "PreemptionDelayNotElapsed")] {
        let planned = ask(Method::POST, "/schedule?dry_run=true", mine(name, node)).await;
        let others = if node == "taken" { 1 } else { 0 };
        assert_eq!((&planned["victims"], &planned["victims_of_others"]), (&json!([]), &json!(others)), "{planned}");
        let never = mine(name, node).map(|mut body| {
            body["queue"] = json!("never");
            body
        });
        ask(Method::POST, "/schedule", never).await;
        ask(Method::POST, "/schedule", mine(name, node)).await;
        let explained = ask(Method::GET, &format!("/schedule/{name}-t2?explain=true"), None).await;
        let told = explained["reasons"].as_array().unwrap().iter().find(|told| told["reason"] == reason);
        let told = told.unwrap_or_else(|| panic!("{explained}"))["detail"].as_str().unwrap();
        assert!(told.contains("job of another tenant"), "{told}");
    }
    ask(Method::DELETE, "/schedule/b-t2", None).await;
    patience("0").await;
    ask(Method::POST, "/schedule?dry_run=true", mine("c", "taken")).await;
    let claimed = ask(Method::POST, "/schedule", mine("c", "taken")).await;
    let told = &claimed["reasons"][0];
    assert_eq!(told["reason"], "WaitingForPreemptedJobs", "{claimed}");
    assert!(told["detail"].as_str().unwrap().contains("1 job of another tenant"), "{told}");
    ask(Method::GET, "/schedule/c-t2?explain=true", None).await;
    ask(Method::GET, "/schedule?reasons=true", None).await;
    ask(Method::GET, "/events?per_page=1000", None).await;
    let mut client = SchedulerServiceClient::new(group.grpc().await);
    let request = v1::ScheduleRequest {
        tenant_id: "t2".into(),
        model_id: "m".into(),
        model_version: "v".into(),
        ..Default::default()
    };
    let planned = client.plan(with(&eve, v1::PlanRequest { request: Some(request) })).await.unwrap().into_inner();
    heard.borrow_mut().push(format!("{planned:?}"));
    for answer in heard.borrow().iter() {
        assert!(!answer.contains("t1"), "{answer}");
    }
    // Who gave way learns the priority, and that it was somebody else.
    let (_, low) = group.get(&ada, "/schedule/low-t1").await;
    assert_eq!(
        (&low["gave_way"]["to"], &low["gave_way"]["priority"]),
        (&json!("another tenant's"), &json!(50)),
        "{low}"
    );
    let (_, events) = group.get(&ada, "/events?per_page=1000").await;
    let gave_way = |events: &Value| {
        let all = events["items"].as_array().unwrap().iter();
        all.filter(|event| event["kind"] == "gave_way").map(|event| event["to"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(gave_way(&events), [json!("another tenant's")], "{events}");
    assert!(!events.to_string().contains("t2") && !low.to_string().contains("t2"), "{events}\n{low}");
    let (_, whole) = group.get(&admin, "/events?per_page=1000").await;
    assert_eq!(gave_way(&whole), [json!("c-t2")], "who sees every tenant's is told whose it was");
    group.stop().await;
}

/// A store in which `unsigned` has no signature that counts, and `personal` holds data about people.
fn store() -> Resolve {
    std::sync::Arc::new(|_, model, _| {
        let evidence = nf_core::job::Evidence {
            signature: [8; 32],
            key_id: "k1".into(),
            min_version: None,
            publishers: nf_core::job::Publishers::Unsaid,
        };
        let facts = ModelFacts {
            runtime: nf_core::job::Runtime::Simulated,
            manifest: [7; 32],
            evidence: Some(evidence),
            data_classes: vec![nf_core::id::Label::new("personal").unwrap()],
            self_limiting: false,
            budget: Default::default(),
        };
        match model.as_str() {
            "unsigned" => {
                let refusal = nf_core::reason::Refusal::new(nf_core::reason::Reason::SignatureRequired, "sign it");
                Err(Unresolved::Refused(refusal, Some(Box::new(ModelFacts { evidence: None, ..facts }))))
            }
            _ => Ok(Some(facts)),
        }
    })
}

/// Entries of that action, once there are so many.
async fn entries(group: &Surface, token: &str, action: &str, wanted: usize) -> Vec<Value> {
    let until = crate::harness::deadline();
    loop {
        let text = trail(group, token).await;
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["entry"].clone());
        let found: Vec<Value> = lines.filter(|entry| entry["action"] == action).collect();
        if found.len() >= wanted {
            assert_eq!(found.len(), wanted, "{text}");
            return found;
        }
        assert!(Instant::now() < until, "{wanted} entries of {action}: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_policy_stopped_is_told_and_recorded_with_the_whole_matrix() {
    let group = Group::with_models(1, Some(store())).await;
    let (admin, ada) = (group.token("ops", &[Role::Admin]), group.token("t1", &[Role::Operator]));
    let ask = async |model: &str, path: &str| {
        let body = json!({"tenant_id": "t1", "model_id": model, "model_version": "v1"});
        group.call(&ada, Method::POST, path, Some(body)).await
    };
    let verdicts = |answer: &Value| ["P1", "P2", "P3"].map(|policy| answer["policies"][policy].clone());
    // Asked what would happen, or done: the same is said, and one of the two leaves word of a version.
    for path in ["/schedule?dry_run=true", "/schedule"] {
        let (code, answer) = ask("unsigned", path).await;
        assert_eq!((code, &answer["reason"]), (422, &json!("SignatureRequired")), "{answer}");
        assert_eq!(verdicts(&answer), ["block", "block", "waived"].map(|v| json!(v)), "{answer}");
    }
    let (code, answer) = ask("personal", "/schedule").await;
    assert_eq!((code, &answer["reason"]), (403, &json!("ConsentRequired")), "{answer}");
    assert_eq!(verdicts(&answer), ["block", "pass", "waived"].map(|v| json!(v)), "{answer}");
    let mut client = SchedulerServiceClient::new(group.grpc().await);
    let wanted = v1::ScheduleRequest {
        tenant_id: "t1".into(),
        model_id: "unsigned".into(),
        model_version: "v2".into(),
        ..Default::default()
    };
    let status = client.schedule(with(&ada, wanted)).await.unwrap_err();
    let told = status.get_error_details().error_info().map(|info| info.metadata.clone()).unwrap_or_default();
    assert_eq!(told.get("P2").map(String::as_str), Some("block"), "{told:?}");
    let mut stopped = entries(&group, &admin, "JobSchedule", 3).await;
    stopped.sort_by_key(|entry| entry["object"].to_string());
    let objects = ["model/t1/personal@v1", "model/t1/unsigned@v1", "model/t1/unsigned@v2"];
    for (entry, object) in stopped.iter().zip(objects) {
        assert_eq!((&entry["object"], &entry["actor"]["sub"]), (&json!(object), &json!("ada of t1")), "{entry}");
        assert_eq!(entry["refs"]["manifest"], "07".repeat(32), "{entry}");
        let (policy, code) =
            if object.contains("personal") { ("P1", "ConsentRequired") } else { ("P2", "SignatureRequired") };
        assert_eq!(entry["checks"][policy], json!({"code": code, "verdict": "block"}), "{entry}");
        assert_eq!((&entry["result"], &entry["checks"]["P4"]["verdict"]), (&json!(code), &json!("pass")), "{entry}");
    }
    assert_eq!(stopped[0]["refs"]["key_id"], "k1", "the signature that did count is named");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_is_asked_who_they_are_what_was_stopped_is_recorded_all_the_same() {
    let group = Surface::with_models(1, || None, Some(store())).await;
    let body = json!({"tenant_id": "t1", "model_id": "unsigned", "model_version": "v1"});
    let call = group.http.post(format!("{}/schedule", group.urls[0])).json(&body).send().await.unwrap();
    assert_eq!(call.status(), 422);
    let stopped = &entries(&group, "", "JobSchedule", 1).await[0];
    assert_eq!((&stopped["actor"]["sub"], &stopped["object"]), (&json!("-"), &json!("model/t1/unsigned@v1")));
    assert_eq!(stopped["checks"]["P2"]["verdict"], "block");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_above_a_tenant_is_told_to_those_who_see_the_group() {
    let group = Group::start(1).await;
    let admin = group.token("ops", &[Role::Admin]);
    let quotas =
        [("parent-org", json!({"gpu": 4, "gpu_hours": {"day": 9}})), ("t1", json!({"gpu": 2, "parent": "parent-org"}))];
    for (tenant, quota) in quotas {
        let (code, answer) = group.call(&admin, Method::PUT, &format!("/tenants/{tenant}/quota"), Some(quota)).await;
        assert_eq!(code, 200, "{answer}");
    }
    let mine = group.token("t1", &[Role::Viewer, Role::Operator]);
    let ask =
        json!({"tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"gpu": 6}, "request_id": "r1"});
    let (code, answer) = group.call(&mine, Method::POST, "/schedule", Some(ask)).await;
    assert_eq!(code, 202, "{answer}");
    for path in ["/tenants", "/tenants/t1/quota", "/usage", "/resources", "/schedule/r1?explain=true", "/schedule/r1"] {
        let (code, told) = group.get(&mine, path).await;
        assert!(code == 200 && !told.to_string().contains("parent-org"), "{path}: {told}");
    }
    for path in ["/tenants", "/tenants/t1/quota", "/usage"] {
        let (_, told) = group.get(&admin, path).await;
        assert!(told.to_string().contains("\"parent\":\"parent-org\""), "{path}: {told}");
    }
    group.stop().await;
}
