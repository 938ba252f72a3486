//! Who may do what, over real members: each row of SECURITY's table about tokens, what callers leave in the trail, and how
//! streams end. Each route of the gate's table is walked in `table`. It does not check how tokens are verified;
//! `security::jwt` has its own tests.

use crate::surface::Surface;
use futures::StreamExt;
use neural_fabric::api::Resolve;
use neural_fabric::security::audit;
use neural_fabric::security::checkpoint::{self, Authorities, Halves};
use neural_fabric::security::jwt::issuer::ISSUER;
use neural_fabric::security::jwt::{Grant, Keys, Mint, Role, Verifier};
use nf_proto::v1;
use nf_proto::v1::endpoint_service_client::EndpointServiceClient;
use nf_proto::v1::scheduler_service_client::SchedulerServiceClient;
use nf_proto::v1::security_service_client::SecurityServiceClient;
use reqwest::Method;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use std::ops::Deref;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tonic::Code;
use tonic_types::StatusExt;

/// A group that asks who calls.
pub struct Group {
    surface: Surface,
    mint: Mint,
}

impl Deref for Group {
    type Target = Surface;

    fn deref(&self) -> &Surface {
        &self.surface
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Group {
    pub async fn start(members: u64) -> Self {
        Self::with_models(members, None).await
    }

    pub async fn with_models(members: u64, models: Option<Resolve>) -> Self {
        let mint = Mint::generate(ISSUER).unwrap();
        let keys = || Keys::parse("test", mint.jwks().to_string().as_bytes()).unwrap();
        let surface = Surface::with_models(members, || Some(Verifier::new(keys(), Some(ISSUER.into()))), models).await;
        Self { surface, mint }
    }

    pub async fn stop(self) {
        self.surface.stop().await;
    }

    pub fn token(&self, tenant: &str, roles: &[Role]) -> String {
        self.token_of(tenant, roles, "", 600)
    }

    fn token_of(&self, tenant: &str, roles: &[Role], id: &str, lifetime_s: u64) -> String {
        let (subject, tenant, roles, id) =
            (format!("ada of {tenant}"), tenant.to_owned(), roles.to_vec(), id.to_owned());
        let id = if id.is_empty() { uuid::Uuid::now_v7().to_string() } else { id };
        self.mint.token(&Grant { subject, tenant, roles, id, lifetime_s }, now()).unwrap()
    }

    pub async fn call(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.urls[0])).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let (code, text) = (response.status().as_u16(), response.text().await.unwrap());
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, token: &str, path: &str) -> (u16, Value) {
        self.call(token, Method::GET, path, None).await
    }

    pub async fn grpc(&self) -> tonic::transport::Channel {
        tonic::transport::Endpoint::from_shared(self.urls[0].clone()).unwrap().connect().await.unwrap()
    }
}

fn job(tenant: &str, id: &str) -> Value {
    json!({"tenant_id": tenant, "model_id": "m1", "model_version": "v1", "request_id": id, "resources": {"gpu": 0.5}})
}

pub fn with<T>(token: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn reason(status: &tonic::Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_say_who_they_are_gets_nothing() {
    let group = Group::start(1).await;
    let other = Mint::generate(ISSUER).unwrap();
    let grant = |tenant: &str| Grant {
        subject: "eve".into(),
        tenant: tenant.into(),
        roles: vec![Role::Admin],
        id: "1".into(),
        lifetime_s: 60,
    };
    let foreign = Mint::generate("https://elsewhere").unwrap().token(&grant("t1"), now()).unwrap();
    let forged = other.token(&grant("t1"), now()).unwrap();
    let expired = group.mint.token(&grant("t1"), now() - 200).unwrap();
    let nameless = group.token("", &[Role::Admin]);
    let paths =
        ["/schedule", "/resources", "/nodes", "/tenants", "/events", "/cluster/members", "/metrics", "/sd/prometheus"];
    for path in paths {
        let response = group.http.get(format!("{}{path}", group.urls[0])).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer error=\"invalid_token\"", "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        for bad in ["", "x", "a.b.c", foreign.as_str(), forged.as_str(), expired.as_str()] {
            let (code, body) = group.get(bad, path).await;
            assert_eq!((code, &body["reason"]), (401, &json!("Unauthenticated")), "{path} {bad}: {body}");
            assert!(!body["detail"].as_str().unwrap().contains("signature"), "nobody learns how close it was: {body}");
        }
        let (code, body) = group.get(&nameless, path).await;
        assert_eq!((code, &body["reason"]), (401, &json!("TenantClaimInvalid")), "{path}: {body}");
    }
    for open in ["/health", "/health/ready", "/openapi.json", "/docs"] {
        let response = group.http.get(format!("{}{open}", group.urls[0])).send().await.unwrap();
        assert_eq!(response.status(), 200, "{open}");
    }
    let health: Value = group.http.get(format!("{}/health", group.urls[0])).send().await.unwrap().json().await.unwrap();
    assert_eq!(health["auth"], "on");
    let mut client = SchedulerServiceClient::new(group.grpc().await);
    let status = client.list(v1::ListRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "Unauthenticated"));
    let status = client.list(with(&nameless, v1::ListRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "TenantClaimInvalid"));
    group.stop().await;
}

/// A job that no quota of these tests lets run, so that a stop is its end at once.
fn too_large(tenant: &str, id: &str) -> Value {
    json!({"tenant_id": tenant, "model_id": "m1", "model_version": "v1", "request_id": id, "resources": {"gpu": 64}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_each_tenants_own() {
    let group = Group::start(1).await;
    let admin = group.token("ops", &[Role::Admin, Role::Operator]);
    let of = |tenant: &str| group.token(tenant, &[Role::Operator, Role::Viewer]);
    let (ada, eve, nobody) = (of("t1"), of("t2"), of("t3"));
    group.call(&admin, Method::POST, "/node/register", Some(json!({"node_id": "n1", "gpus": 8}))).await;
    let post = async |who: &str, body: Value| group.call(who, Method::POST, "/schedule", Some(body)).await;
    // Another body under the same name, which would be a conflict within one tenant.
    let large = json!({"tenant_id": "t2", "model_id": "m2", "model_version": "v1", "request_id": "train-1"});
    for (who, body) in [(&ada, job("t1", "train-1")), (&eve, large)] {
        let (code, answer) = post(who, body).await;
        assert_eq!((code, &answer["replayed"]), (201, &json!(false)), "{answer}");
    }
    let whose = async |who: &str, path: &str| {
        let (code, answer) = group.get(who, path).await;
        (code, answer["tenant_id"].as_str().unwrap_or("-").to_owned())
    };
    assert_eq!(whose(&ada, "/schedule/train-1").await, (200, "t1".to_owned()));
    assert_eq!(whose(&eve, "/schedule/train-1").await, (200, "t2".to_owned()));
    assert_eq!(whose(&nobody, "/schedule/train-1").await.0, 404);
    // Who sees both says which; of tokens that see all, too.
    let (code, problem) = group.get(&admin, "/schedule/train-1").await;
    assert_eq!(
        (code, &problem["reason"], &problem["field"]),
        (409, &json!("Conflict"), &json!("tenant_id")),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("t1, t2") && detail.contains("tenant_id=t1"), "{detail}");
    assert_eq!(whose(&admin, "/schedule/train-1?tenant_id=t2").await, (200, "t2".to_owned()));
    let mut client = SchedulerServiceClient::new(group.grpc().await);
    let get = v1::GetRequest { request_id: "train-1".into(), ..Default::default() };
    assert_eq!(client.get(with(&admin, get.clone())).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.get(with(&eve, get)).await.unwrap().into_inner().job.unwrap().tenant_id, "t2");

    // A stop hits one's own alone.
    let (code, stopped) = group.call(&eve, Method::DELETE, "/schedule/train-1", None).await;
    assert_eq!((code, &stopped["tenant_id"]), (200, &json!("t2")), "{stopped}");
    assert_eq!(group.get(&ada, "/schedule/train-1").await.1["state"], "Admitted");

    // What is over stays its owner's when the name is used again.
    let over = async |who: &str, tenant: &str| {
        assert_eq!(post(who, too_large(tenant, "old-1")).await.0, 202);
        let (code, stopped) = group.call(who, Method::DELETE, "/schedule/old-1", None).await;
        assert_eq!((code, &stopped["state"], &stopped["tenant_id"]), (200, &json!("Cancelled"), &json!(tenant)));
    };
    over(&ada, "t1").await;
    assert_eq!(whose(&eve, "/schedule/old-1").await.0, 404);
    assert_eq!(whose(&admin, "/schedule/old-1").await, (200, "t1".to_owned()), "the only one");
    over(&eve, "t2").await;
    assert_eq!(whose(&ada, "/schedule/old-1").await, (200, "t1".to_owned()));
    assert_eq!(whose(&eve, "/schedule/old-1").await, (200, "t2".to_owned()));
    assert_eq!(whose(&admin, "/schedule/old-1").await.0, 409);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_refused_on_every_member_and_its_streams_end() {
    let group = Group::start(3).await;
    let admin = group.token("ops", &[Role::Admin]);
    let lost = group.token_of("t1", &[Role::Viewer], "lost-1", 600);
    let kept = group.token_of("t1", &[Role::Viewer], "kept-1", 600);
    assert_eq!(group.get(&lost, "/schedule").await.0, 200);
    let ada = group.token("t1", &[Role::Operator]);
    group.call(&admin, Method::POST, "/node/register", Some(json!({"node_id": "n1", "gpus": 8}))).await;
    assert_eq!(group.call(&ada, Method::POST, "/schedule", Some(job("t1", "before"))).await.0, 201);
    let paths = ["/events?watch=true", "/endpoints?watch=true", "/schedule/before/logs?follow=true"];
    let mut watches = Vec::new();
    for path in paths {
        let request = group.http.get(format!("{}{path}", group.urls[0])).bearer_auth(&lost);
        let mut watch = request.send().await.unwrap().bytes_stream();
        assert!(watch.next().await.is_some(), "the watch of {path} stands");
        watches.push((path, watch));
    }
    let wanted = v1::EndpointServiceWatchRequest::default();
    let mut endpoints = EndpointServiceClient::new(group.grpc().await);
    let mut endpoints = endpoints.watch(with(&lost, wanted)).await.unwrap().into_inner();
    assert!(endpoints.message().await.unwrap().is_some());
    let mut jobs = SchedulerServiceClient::new(group.grpc().await);
    let wanted = v1::WatchRequest { from: 1, ..Default::default() };
    let mut jobs = jobs.watch(with(&lost, wanted)).await.unwrap().into_inner();
    assert!(jobs.message().await.unwrap().is_some());
    let (code, answer) = group.call(&lost, Method::POST, "/tokens/revoke", Some(json!({"id": "lost-1"}))).await;
    assert_eq!(code, 403, "{answer}");
    let (code, answer) = group.call(&admin, Method::POST, "/tokens/revoke", Some(json!({"id": "lost-1"}))).await;
    assert_eq!((code, &answer["new"]), (200, &json!(true)), "{answer}");
    let mut client = SecurityServiceClient::new(group.grpc().await);
    let again = client.revoke_token(with(&admin, v1::RevokeTokenRequest { id: "lost-1".into() })).await.unwrap();
    assert!(!again.into_inner().is_new);
    // Something happens that each watch would tell.
    group.call(&admin, Method::POST, "/tenants", Some(json!({"tenant_id": "t1"}))).await;
    assert_eq!(group.call(&ada, Method::POST, "/schedule", Some(job("t1", "after"))).await.0, 201);
    // All are looked at, so that one that stays hides no other.
    let mut stay = Vec::new();
    for (path, mut watch) in watches {
        let mut told = String::new();
        let end = async {
            while let Some(Ok(piece)) = watch.next().await {
                told.push_str(&String::from_utf8_lossy(&piece));
            }
        };
        let ended = tokio::time::timeout(crate::harness::PATIENCE, end).await;
        if ended.is_err() || told.contains("after") || path.starts_with("/events") && !told.contains("Unauthenticated")
        {
            stay.push(format!("{path}: {}", told.chars().take(500).collect::<String>()));
        }
    }
    let over = async {
        while let Some(said) = endpoints.message().await.unwrap() {
            if said.endpoints.iter().any(|endpoint| endpoint.request_id == "after") {
                return false;
            }
        }
        true
    };
    if tokio::time::timeout(crate::harness::PATIENCE, over).await != Ok(true) {
        stay.push("EndpointService/Watch".into());
    }
    assert!(stay.is_empty(), "streams that outlive their token: {stay:#?}");
    let why = tokio::time::timeout(crate::harness::PATIENCE, async {
        loop {
            match jobs.message().await {
                Ok(Some(said)) => assert!(!format!("{said:?}").contains("after"), "{said:?}"),
                Ok(None) => return None,
                Err(status) => return Some(reason(&status)),
            }
        }
    });
    assert_eq!(why.await.expect("the stream of jobs ends").as_deref(), Some("Unauthenticated"));
    for url in &group.urls {
        let until = crate::harness::deadline();
        loop {
            let response = group.http.get(format!("{url}/schedule")).bearer_auth(&lost).send().await.unwrap();
            if response.status() == 401 {
                break;
            }
            assert!(Instant::now() < until, "{url} still takes it");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let response = group.http.get(format!("{url}/schedule")).bearer_auth(&kept).send().await.unwrap();
        assert_eq!(response.status(), 200, "{url}");
    }
    group.stop().await;
}

/// The whole trail, in pages of three lines.
pub async fn trail(group: &Surface, token: &str) -> String {
    let (mut from, mut out) = (1_u64, String::new());
    loop {
        let url = format!("{}/audit?from={from}&per_page=3", group.urls[0]);
        let response = group.http.get(url).bearer_auth(token).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let next = response.headers().get("x-nf-audit-next").map(|n| n.to_str().unwrap().parse().unwrap());
        out.push_str(&response.text().await.unwrap());
        match next {
            Some(next) => from = next,
            None => return out,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_names_who_did_what_and_each_caller_has_a_receipt() {
    let group = Group::start(3).await;
    let (admin, ada) = (group.token("ops", &[Role::Admin]), group.token("t1", &[Role::Operator, Role::Viewer]));
    group.call(&admin, Method::POST, "/node/register", Some(json!({"node_id": "n1", "gpus": 8}))).await;
    let post =
        |body: Value| group.http.post(format!("{}/schedule", group.urls[1])).bearer_auth(&ada).json(&body).send();
    let response = post(job("t1", "r1")).await.unwrap();
    let receipt: nf_core::audit::Receipt = response.headers()["x-nf-audit"].to_str().unwrap().parse().unwrap();
    let again = post(job("t1", "r1")).await.unwrap();
    assert!(!again.headers().contains_key("x-nf-audit"), "a replay did nothing");
    assert_eq!(group.call(&ada, Method::PUT, "/tenants/t1/quota", Some(json!({"gpu": 64}))).await.0, 403);
    for _ in 0..20 {
        assert_eq!(group.call(&ada, Method::POST, "/tenants", Some(json!({"tenant_id": "x"}))).await.0, 403);
    }
    let until = crate::harness::deadline();
    let text = loop {
        let text = trail(&group, &admin).await;
        if text.matches("\"result\":\"Forbidden\"").count() >= 2 {
            break text;
        }
        assert!(Instant::now() < until, "refusals are in the trail: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let summary = neural_fabric::security::audit::verify(text.as_bytes(), &[receipt], &[]).unwrap();
    assert_eq!((summary.receipts, &*summary.checkpoint.origin), (1, "test"));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |action: &str| lines.iter().filter(|l| l["entry"]["action"] == action).collect::<Vec<_>>();
    let scheduled = of("JobSchedule");
    assert_eq!(scheduled.len(), 1, "{text}");
    let entry = &scheduled[0]["entry"];
    assert_eq!(
        (&entry["actor"]["sub"], &entry["actor"]["tenant_id"], &entry["object"]),
        (&json!("ada of t1"), &json!("t1"), &json!("job/t1/r1"))
    );
    assert_eq!((&entry["checks"]["P2"]["verdict"], &entry["result"]), (&json!("simulated"), &json!("done")));
    assert_eq!(of("Call").len(), 2, "twenty refusals of a kind are one entry, and their number comes later: {text}");
    assert!(!text.contains(&ada), "no token in the trail");
    let mut client = SecurityServiceClient::new(group.grpc().await);
    let page = client.read_audit(with(&admin, v1::ReadAuditRequest::default())).await.unwrap().into_inner();
    assert!(page.next == 0 && page.lines.starts_with(&text[..text.len() / 2]), "both surfaces tell the same");
    let status = client.read_audit(with(&ada, v1::ReadAuditRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let mut heads = std::collections::BTreeSet::new();
    for seat in 0..3 {
        let replica = group.cluster.replica(seat).clone();
        let size = summary.checkpoint.size;
        crate::harness::eventually("the member has it", || {
            (replica.applied().state.audit().seq() >= size).then_some(())
        })
        .await;
        heads.insert(replica.applied().state.audit().head());
    }
    assert_eq!(heads.len(), 1, "the members agree about the past");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoters_approve_in_their_tenant_and_nobody_else_does() {
    let group = Group::start(1).await;
    let promoter = group.token("t1", &[Role::Promoter]);
    let version = |tenant: &str| json!({"tenant_id": tenant, "model_id": "m1", "model_version": "v1"});
    let body = |tenant: &str, sha256: &str, ttl: &str| {
        let mut body = version(tenant);
        (body["sha256"], body["ttl"]) = (sha256.into(), ttl.into());
        Some(body)
    };
    let good = "ab".repeat(32);
    let (code, answer) = group.call(&promoter, Method::POST, "/approvals", body("t1", &good, "1h")).await;
    assert_eq!((code, &answer["approved_by"], &answer["active"]), (201, &"ada of t1".into(), &true.into()), "{answer}");
    for (sha256, ttl, field) in [("ab", "1h", "sha256"), (&good, "25h", "ttl"), (&good, "0s", "ttl")] {
        let (code, answer) = group.call(&promoter, Method::POST, "/approvals", body("t1", sha256, ttl)).await;
        assert_eq!((code, &answer["field"]), (400, &field.into()), "{answer}");
    }
    let (code, _) = group.call(&promoter, Method::POST, "/approvals", body("t2", &good, "1h")).await;
    assert_eq!(code, 404, "another tenant's is as absent as none");
    for role in [Role::Viewer, Role::Operator, Role::Admin, Role::Node] {
        let other = group.token("t1", &[role]);
        for (path, body) in [("/approvals", body("t1", &good, "1h")), ("/approvals/revoke", Some(version("t1")))] {
            let (code, answer) = group.call(&other, Method::POST, path, body).await;
            assert_eq!((code, &answer["reason"]), (403, &"Forbidden".into()), "{role:?} {path}");
        }
    }
    let listed = |answer: &Value| answer["items"].as_array().map(Vec::len);
    let (_, seen) = group.get(&group.token("t1", &[Role::Viewer]), "/approvals").await;
    assert_eq!((listed(&seen), &seen["items"][0]["sha256"]), (Some(1), &good.as_str().into()));
    let (_, hidden) = group.get(&group.token("t2", &[Role::Viewer]), "/approvals").await;
    assert_eq!(listed(&hidden), Some(0), "{hidden}");
    let mut client = SecurityServiceClient::new(group.grpc().await);
    let of = |tenant: &str| v1::RevokeApprovalRequest {
        tenant_id: tenant.into(),
        model_id: "m1".into(),
        model_version: "v1".into(),
    };
    let all = client.list_approvals(with(&promoter, v1::ListApprovalsRequest::default())).await.unwrap().into_inner();
    assert_eq!((all.approvals.len(), all.approvals[0].approved_by.as_str()), (1, "ada of t1"));
    assert_eq!(client.revoke_approval(with(&promoter, of("t2"))).await.unwrap_err().code(), Code::NotFound);
    assert!(client.revoke_approval(with(&promoter, of("t1"))).await.unwrap().into_inner().revoked);
    assert!(!client.revoke_approval(with(&promoter, of("t1"))).await.unwrap().into_inner().revoked);
    let again = v1::ApproveVersionRequest {
        tenant_id: "t1".into(),
        model_id: "m1".into(),
        model_version: "v1".into(),
        sha256: good,
        ttl_ms: 0,
    };
    let approved = client.approve_version(with(&promoter, again)).await.unwrap().into_inner().approval.unwrap();
    assert!(approved.active && approved.digest.len() == 64, "{approved:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_brings_in_no_member() {
    let group = Group::start(1).await;
    let body = Some(json!({"id": 9, "name": "n9", "peer": "127.0.0.1:1"}));
    for role in [Role::Node, Role::Operator, Role::Promoter, Role::Viewer] {
        let token = group.token("ops", &[role]);
        let (code, answer) = group.call(&token, Method::POST, "/cluster/members", body.clone()).await;
        assert_eq!((code, &answer["reason"]), (403, &"Forbidden".into()), "{role:?}: {answer}");
    }
    let (code, _) = group.get(&group.token("ops", &[Role::Node]), "/cluster/members").await;
    assert_eq!(code, 200, "it still finds the members");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_trail_is_signed_by_the_member_that_tells_it() {
    let group = Group::start(1).await;
    let admin = group.token("ops", &[Role::Admin]);
    group.call(&admin, Method::POST, "/tenants", Some(json!({"tenant_id": "t1"}))).await;
    let (authority, name) = (&group.cluster.authority, &group.cluster.name);
    let authorities = Authorities::read(&authority.cert).unwrap();
    authority.notary(name, "n1").unwrap().unwrap().write(&group.cluster.dir(0)).unwrap();
    let holds = |text: &str| {
        let (at, signed) = audit::read_checkpoint(text.lines().last().unwrap()).unwrap();
        let by = checkpoint::verify(&signed.unwrap(), &at, &authorities, UnixTime::now());
        (by.map(|by| (by.member, by.halves)), at.size)
    };
    let by_n1 = Ok(("n1".to_owned(), Halves::Both));
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let whole = text(group.get(&admin, "/audit").await.1);
    let (by, size) = holds(&whole);
    assert_eq!(by, by_n1);
    let machine = group.token("ops", &[Role::Node]);
    assert_eq!(holds(&text(group.get(&machine, "/audit/checkpoint").await.1)).1, size);
    for role in [Role::Viewer, Role::Operator, Role::Promoter] {
        assert_eq!(group.get(&group.token("t1", &[role]), "/audit/checkpoint").await.0, 403);
    }
    let mut client = SecurityServiceClient::new(group.grpc().await);
    let line = client.read_checkpoint(with(&machine, v1::ReadCheckpointRequest {})).await.unwrap().into_inner().line;
    assert_eq!(holds(&line).0, by_n1);
    group.stop().await;
}

/// What is refused after the gate, by the tenant that is named or the rules of the group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_past_the_gate_are_in_the_trail_from_both_surfaces() {
    let group = Group::start(1).await;
    let (admin, ada) = (group.token("ops", &[Role::Admin]), group.token("t1", &[Role::Operator, Role::Viewer]));
    assert_eq!(group.call(&ada, Method::DELETE, "/schedule/r1?tenant_id=t2", None).await.0, 404);
    let mut client = SchedulerServiceClient::new(group.grpc().await);
    let of = |tenant: &str| v1::StopRequest { tenant_id: tenant.into(), request_id: "r1".into() };
    assert_eq!(client.stop(with(&ada, of("t2"))).await.unwrap_err().code(), Code::NotFound);
    let watch = v1::WatchRequest { tenant_id: "t2".into(), ..Default::default() };
    assert_eq!(client.watch(with(&ada, watch)).await.unwrap_err().code(), Code::NotFound);
    let bad = v1::ScheduleRequest { tenant_id: "t1".into(), ..Default::default() };
    assert_eq!(client.schedule(with(&ada, bad)).await.unwrap_err().code(), Code::InvalidArgument);
    let wanted = [
        ("DELETE /schedule/{request_id}", "NotFound"),
        ("RPC /neuralfabric.v1.SchedulerService/Stop", "NotFound"),
        ("RPC /neuralfabric.v1.SchedulerService/Watch", "NotFound"),
        ("RPC /neuralfabric.v1.SchedulerService/Schedule", "InvalidArgument"),
    ];
    let until = crate::harness::deadline();
    loop {
        let text = trail(&group, &admin).await;
        let told = |(what, why): &(&str, &str)| {
            let said = |line: &&str| line.contains(what) && line.contains(&format!("\"result\":\"{why}\""));
            text.lines().filter(said).count() == 1
        };
        if wanted.iter().all(told) {
            break;
        }
        assert!(Instant::now() < until, "each refusal is in the trail once: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    group.stop().await;
}
