//! The gate's own table, row by row, over a real member: who may call each route, and that a tenant finds nothing of
//! another's behind any of them, in REST and gRPC alike. A route that is new is looked at because it is in the table: what
//! it needs to be asked properly has to be said here, or the tests fail.

use crate::auth::Group;
use crate::raw::{About, Methods, SHA256, rpc};
use neural_fabric::api::auth::{Access, TABLE};
use neural_fabric::security::jwt::Role;
use nf_core::command::{Report, ReportKind};
use nf_core::consent::{Consent, Scope};
use nf_core::id::{Incarnation, Label, NodeName, RequestId, TenantId};
use nf_core::plan::Intent;
use nf_core::reason::Reason;
use nf_core::resources::Gpus;
use nf_core::testing;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

const VIEW: &[Role] = &[Role::Viewer, Role::Operator, Role::Promoter, Role::Admin];
const RUN: &[Role] = &[Role::Operator];
const PROMOTE: &[Role] = &[Role::Promoter];
const RULE: &[Role] = &[Role::Admin];
const MACHINES: &[Role] = &[Role::Admin, Role::Node];

/// Who may call what, said a second time: a row of the table that changes has to change here, too.
const MAY: &[(&[Role], &[&str])] = &[
    (
        &Role::ALL,
        &[
            "GET /health",
            "GET /health/ready",
            "GET /openapi.json",
            "GET /docs",
            "GET /metrics",
            "GET /sd/prometheus",
            "RPC /grpc.health.v1.Health/Check",
            "RPC /grpc.health.v1.Health/Watch",
            "RPC /grpc.health.v1.Health/List",
            "RPC /grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "RPC /grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ],
    ),
    (
        VIEW,
        &[
            "GET /schedule",
            "GET /schedule/{request_id}",
            "GET /schedule/{request_id}/logs",
            "GET /schedule/{request_id}/life",
            "GET /rollout/{request_id}",
            "GET /services",
            "GET /slo/{tenant_id}/{model_id}",
            "GET /resources",
            "GET /endpoints",
            "GET /tenants",
            "GET /usage",
            "GET /tenants/{tenant_id}/quota",
            "GET /policy/placement",
            "GET /events",
            "GET /approvals",
            "GET /quarantine",
            "GET /consents",
            "RPC /neuralfabric.v1.SchedulerService/Get",
            "RPC /neuralfabric.v1.SchedulerService/List",
            "RPC /neuralfabric.v1.SchedulerService/GetRollout",
            "RPC /neuralfabric.v1.SchedulerService/Watch",
            "RPC /neuralfabric.v1.EndpointService/Watch",
            "RPC /neuralfabric.v1.ResourceService/Get",
            "RPC /neuralfabric.v1.ResourceService/ListUsage",
            "RPC /neuralfabric.v1.SecurityService/ListApprovals",
            "RPC /neuralfabric.v1.SecurityService/ListQuarantine",
            "RPC /neuralfabric.v1.SecurityService/ListConsents",
        ],
    ),
    (
        RUN,
        &[
            "POST /schedule",
            "DELETE /schedule/{request_id}",
            "POST /schedule/{request_id}/scale",
            "POST /rollout/{request_id}",
            "POST /rollout/{request_id}/rollback",
            "POST /rollout/{request_id}/turn/{turn}",
            "POST /node/launch",
            "RPC /neuralfabric.v1.SchedulerService/Schedule",
            "RPC /neuralfabric.v1.SchedulerService/Plan",
            "RPC /neuralfabric.v1.SchedulerService/Stop",
            "RPC /neuralfabric.v1.SchedulerService/Scale",
            "RPC /neuralfabric.v1.SchedulerService/StartRollout",
            "RPC /neuralfabric.v1.SchedulerService/TurnRollout",
        ],
    ),
    (
        PROMOTE,
        &[
            "POST /approvals",
            "POST /approvals/revoke",
            "POST /quarantine/release",
            "POST /consents",
            "POST /consents/revoke",
            "RPC /neuralfabric.v1.SecurityService/ApproveVersion",
            "RPC /neuralfabric.v1.SecurityService/RevokeApproval",
            "RPC /neuralfabric.v1.SecurityService/ReleaseVersion",
            "RPC /neuralfabric.v1.SecurityService/GrantConsent",
            "RPC /neuralfabric.v1.SecurityService/RevokeConsent",
        ],
    ),
    (&[Role::Operator, Role::Admin, Role::Node], &["GET /nodes"]),
    (
        MACHINES,
        &[
            "POST /resources/register",
            "POST /node/register",
            "GET /cluster/members",
            "GET /audit/checkpoint",
            "RPC /neuralfabric.v1.ResourceService/RegisterNode",
            "RPC /neuralfabric.v1.SecurityService/ReadCheckpoint",
        ],
    ),
    (
        RULE,
        &[
            "POST /node/{node_id}/cordon",
            "POST /node/{node_id}/uncordon",
            "POST /node/{node_id}/drain",
            "POST /node/{node_id}/down",
            "POST /node/{node_id}/devices/{device}/fault",
            "POST /node/{node_id}/devices/{device}/heal",
            "POST /defrag",
            "POST /tenants",
            "DELETE /tenants/{tenant_id}",
            "PUT /tenants/{tenant_id}/quota",
            "PUT /policy/placement",
            "POST /policy/placement/try",
            "POST /cluster/members",
            "DELETE /cluster/members/{member}",
            "POST /cluster/members/{member}/promote",
            "POST /cluster/what-if",
            "POST /cluster/snapshot",
            "POST /cluster/upgrade",
            "POST /failover/promote",
            "POST /tokens/revoke",
            "GET /join-tokens",
            "POST /join-tokens",
            "DELETE /join-tokens/{id}",
            "GET /audit",
            "RPC /neuralfabric.v1.SecurityService/RevokeToken",
            "RPC /neuralfabric.v1.SecurityService/ReadAudit",
        ],
    ),
];

/// A route's path with its open parts filled in.
fn filled(route: &str, about: About<'_>) -> String {
    let parts = [
        ("{request_id}", about.job),
        ("{tenant_id}", about.tenant.unwrap_or("nobody")),
        ("{model_id}", "m1"),
        ("{turn}", "pause"),
        ("{node_id}", "nowhere"),
        ("{device}", "0"),
        ("{member}", "9"),
        ("{id}", "none"),
    ];
    let path = parts.into_iter().fold(route.to_owned(), |path, (part, with)| path.replace(part, with));
    assert!(!path.contains('{'), "say here what {route} is filled with");
    path
}

/// A body with which the route would do what it is for. The inner None: it takes none; None: nothing is said of it here.
fn body(method: &str, route: &str, tenant: &str) -> Option<Option<Value>> {
    let version = json!({"tenant_id": tenant, "model_id": "m1", "model_version": "v1"});
    let with = |more: Value| {
        let mut body = version.as_object().unwrap().clone();
        body.extend(more.as_object().unwrap().clone());
        Some(Some(Value::Object(body)))
    };
    match (method, route) {
        ("GET" | "DELETE", _) => Some(None),
        ("POST", "/schedule" | "/node/launch") => with(json!({"request_id": "new", "resources": {"gpu": 0.5}})),
        ("POST", "/schedule/{request_id}/scale") => Some(Some(json!({"replicas": 1}))),
        ("POST", "/rollout/{request_id}") => Some(Some(json!({"model_version": "v2"}))),
        ("POST", "/rollout/{request_id}/rollback" | "/rollout/{request_id}/turn/{turn}") => Some(None),
        ("POST", "/approvals") => with(json!({"sha256": SHA256, "ttl": "1h"})),
        ("POST", "/approvals/revoke") => with(json!({})),
        ("POST", "/quarantine/release") => with(json!({"sha256": SHA256})),
        ("POST", "/consents" | "/consents/revoke") => Some(Some(json!({"tenant_id": tenant, "statement": SHA256}))),
        _ => None,
    }
}

/// The status of a call of REST, its reason and its detail; a stream's head is all of it that is read.
async fn rest(group: &Group, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, String, String) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = group.http.request(method, format!("{}{path}", group.urls[0])).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    let code = response.status().as_u16();
    if code < 300 {
        return (code, String::new(), String::new());
    }
    let told: Value = response.json().await.unwrap_or_default();
    let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
    (code, text("reason"), text("detail"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_does_its_own_and_no_more() {
    let (group, methods, mut wrong) = (Group::start(1).await, Methods::new(), Vec::new());
    let channel = group.grpc().await;
    let about = About { tenant: Some("t1"), job: "none" };
    for (method, route, _) in TABLE {
        let named = format!("{method} {route}");
        let Some((may, _)) = MAY.iter().find(|(_, routes)| routes.contains(&&*named)) else {
            wrong.push(format!("{named}: say in MAY who may"));
            continue;
        };
        for role in Role::ALL {
            let token = group.token("t1", &[role]);
            let forbidden = match *method {
                "RPC" => {
                    let told = rpc(&channel, &token, route, methods.filled(route, about)).await;
                    told.err().filter(|s| s.code() == Code::PermissionDenied).map(|s| s.message().to_owned())
                }
                _ => {
                    // What is empty is refused by those who are let in, and changes nothing.
                    let body = (*method != "GET" && *method != "DELETE").then(|| json!({}));
                    let (code, reason, detail) = rest(&group, &token, method, &filled(route, about), body).await;
                    (code == 403 && reason == "Forbidden").then_some(detail)
                }
            };
            let forbidden = forbidden.is_some_and(|detail| detail.starts_with("this needs the role "));
            if forbidden == may.contains(&role) {
                let is = if forbidden { "may not" } else { "may" };
                wrong.push(format!("{named}: {} {is}", role.name()));
            }
        }
    }
    for named in MAY.iter().flat_map(|(_, routes)| *routes) {
        if !TABLE.iter().any(|(method, route, _)| format!("{method} {route}") == *named) {
            wrong.push(format!("{named}: there is no such row"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    group.stop().await;
}

/// Whose things are there, whose caller asks, and whose never were.
const THEIRS: &str = "theirs";
const MINE: &str = "mine";
const NEVER: &str = "absent";

/// Two tenants with something of each kind that a list tells of: jobs, an approval, a consent, a version in quarantine.
async fn settled() -> Group {
    let group = Group::start(1).await;
    let admin = group.token("ops", &[Role::Admin]);
    let node = json!({"node_id": "n1", "gpus": 8});
    assert_eq!(group.call(&admin, Method::POST, "/node/register", Some(node)).await.0, 201);
    for tenant in [THEIRS, MINE] {
        let token = group.token(tenant, &[Role::Operator, Role::Promoter]);
        let version = json!({"tenant_id": tenant, "model_id": "m1", "model_version": "v1"});
        let mut job = version.clone();
        (job["request_id"], job["resources"]) = (format!("of-{tenant}").into(), json!({"gpu": 0.5}));
        let (code, told) = group.call(&token, Method::POST, "/schedule", Some(job)).await;
        assert_eq!(code, 201, "{told}");
        let mut approval = version;
        approval["sha256"] = SHA256.into();
        let (code, told) = group.call(&token, Method::POST, "/approvals", Some(approval)).await;
        assert_eq!(code, 201, "{told}");
        consented(&group, tenant).await;
        corrupted(&group, tenant).await;
    }
    group
}

async fn consented(group: &Group, tenant: &str) {
    let tenant = TenantId::new(tenant).unwrap();
    let scope = Scope { tenant, classes: [Label::new("personal").unwrap()].into(), model: None, version: None };
    let until_ms = group.cluster.replica(0).applied().state.meta().now_ms + 3_600_000;
    let said =
        Consent { statement: [7; 32], scope, until_ms, key_id: "key".into(), by: None, at_ms: 0, ended_ms: None };
    group.cluster.submit(0, Intent::Consent(Box::new(said))).await;
}

/// A node found other bytes than a manifest of that tenant says.
async fn corrupted(group: &Group, tenant: &str) {
    let request = format!("bad-of-{tenant}");
    let mut spec = testing::job_spec(tenant, Gpus::Milli(100));
    spec.manifest = Some([7; 32]);
    group.cluster.submit(0, testing::schedule(&request, spec)).await;
    let state = group.cluster.replica(0).applied().state;
    let job = state.job_of(&RequestId::new(&request).unwrap()).unwrap();
    let kind = ReportKind::Ended { ok: false, why: Reason::ArtifactMismatch };
    let report = Report { job: job.no, replica: 0, generation: job.replicas[0].newest, kind };
    let node = NodeName::new("n1").unwrap();
    let incarnation: Incarnation = state.node_named(&node).unwrap().incarnation;
    group.cluster.submit(0, Intent::Reports { node, incarnation, reports: vec![report] }).await;
}

/// Rows that a tenant's people may call; the others see what belongs to no tenant, or nothing of anybody.
fn for_people() -> impl Iterator<Item = (&'static str, &'static str)> {
    let theirs =
        |access| matches!(access, Access::Read | Access::Any | Access::Operator | Access::Promoter | Access::Places);
    TABLE.iter().filter(move |(.., access)| theirs(*access)).map(|(method, route, _)| (*method, *route))
}

/// How two answers about what is not there for the caller have to be: not found, and alike but for the name.
fn differ(named: &str, theirs: (bool, String), never: (bool, String)) -> Option<String> {
    let same = |text: &str| text.replace(THEIRS, "X").replace(NEVER, "X");
    match theirs.0 && never.0 && same(&theirs.1) == same(&never.1) {
        true => None,
        false => Some(format!("{named}: {theirs:?}, and of what never was {never:?}")),
    }
}

/// What a call of REST finds when it is about each of two tenants' things.
async fn probe_rest(group: &Group, eve: &str, (method, route): (&str, &str)) -> Vec<String> {
    let Some(own) = body(method, route, MINE) else { return vec![format!("{method} {route}: say what its body is")] };
    let mine = About { tenant: Some(MINE), job: "of-mine" };
    // Paths and bodies in which T is the tenant that it is about.
    let mut probes: Vec<(String, Option<Value>)> = Vec::new();
    if route.contains("{request_id}") {
        probes.push((filled(route, About { job: "of-T", ..mine }), own.clone()));
        probes.push((filled(route, About { job: "of-T", ..mine }) + "?tenant_id=T", own.clone()));
    }
    if route.contains("{tenant_id}") {
        probes.push((filled(route, About { tenant: Some("T"), ..mine }), own.clone()));
    }
    // It tells everybody the part that is theirs, and takes no parameter.
    if route != "/metrics" {
        for more in ["", "&watch=true", "&dry_run=true"] {
            probes.push((format!("{}?tenant_id=T{more}", filled(route, mine)), own.clone()));
        }
    }
    if let Some(of_t) = body(method, route, "T").flatten().filter(|body| body.get("tenant_id").is_some()) {
        probes.push((filled(route, mine), Some(of_t)));
    }
    let mut wrong = Vec::new();
    for (path, body) in probes {
        let ask = async |tenant: &str| {
            let body = body.as_ref().map(|body| {
                let mut body = body.clone();
                if body["tenant_id"] == "T" {
                    body["tenant_id"] = tenant.into();
                }
                body
            });
            let (code, reason, detail) = rest(group, eve, method, &path.replace('T', tenant), body).await;
            (code == 404 && reason == "NotFound", format!("{code} {reason} {detail}"))
        };
        wrong.extend(differ(&format!("{method} {path}"), ask(THEIRS).await, ask(NEVER).await));
    }
    wrong
}

async fn probe_rpc(channel: &Channel, methods: &Methods, eve: &str, path: &str) -> Vec<String> {
    let (tenant, job) = methods.names(path);
    let mut probes: Vec<(bool, bool)> = Vec::new();
    if tenant {
        probes.push((true, false));
    }
    if job {
        probes.extend([(false, true), (tenant, true)]);
    }
    let mut wrong = Vec::new();
    for (names_tenant, names_job) in probes {
        let ask = async |of: &str| {
            let job = format!("of-{}", if names_job { of } else { MINE });
            let about = About { tenant: names_tenant.then_some(of), job: &job };
            match rpc(channel, eve, path, methods.filled(path, about)).await {
                Ok(_) => (false, "it answers".to_owned()),
                Err(status) => (status.code() == Code::NotFound, format!("{:?} {}", status.code(), status.message())),
            }
        };
        let named = format!("RPC {path}, tenant {names_tenant}, job {names_job}");
        wrong.extend(differ(&named, ask(THEIRS).await, ask(NEVER).await));
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_things_are_as_absent_as_what_never_was() {
    let (group, methods, mut wrong) = (settled().await, Methods::new(), Vec::new());
    let eve = group.token(MINE, &[Role::Viewer, Role::Operator, Role::Promoter]);
    let channel = group.grpc().await;
    for (method, route) in for_people() {
        wrong.extend(match method {
            "RPC" => probe_rpc(&channel, &methods, &eve, route).await,
            _ => probe_rest(&group, &eve, (method, route)).await,
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing of it was done.
    let ops = group.token("ops", &[Role::Admin, Role::Operator]);
    let (code, job) = group.get(&ops, "/schedule/of-theirs?tenant_id=theirs").await;
    assert_eq!((code, &job["state"]), (200, &json!("Admitted")));
    // An admin changes another tenant's things when the tenant is named, and only then.
    assert_eq!(group.call(&ops, Method::DELETE, "/schedule/of-theirs", None).await.0, 404);
    let (code, told) = group.call(&ops, Method::DELETE, "/schedule/of-theirs?tenant_id=theirs", None).await;
    assert_eq!(code, 200, "{told}");
    group.stop().await;
}

/// Lists in which there is nothing of any tenant's.
const OF_NOBODY: &[&str] = &["/policy/placement", "/nodes"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_list_tells_a_tenant_of_another() {
    let (group, methods, mut wrong) = (settled().await, Methods::new(), Vec::new());
    let eve = group.token(MINE, &[Role::Viewer, Role::Operator, Role::Promoter]);
    let admin = group.token("ops", &[Role::Admin]);
    let channel = group.grpc().await;
    let lists = for_people().filter(|(method, route)| match *method {
        "RPC" => route.starts_with("/neuralfabric") && !methods.names(route).1,
        method => method == "GET" && !route.contains('{'),
    });
    for (method, route) in lists {
        let access = TABLE.iter().find(|row| (row.0, row.1) == (method, route)).unwrap().2;
        if matches!(access, Access::Operator | Access::Promoter) {
            continue;
        }
        let tells = async |token: &str| match method {
            "RPC" => {
                let none = About { tenant: None, job: "" };
                let told = rpc(&channel, token, route, methods.filled(route, none)).await;
                told.map_or_else(|status| status.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => group.get(token, route).await.1.to_string(),
        };
        let (to_eve, to_admin) = (tells(&eve).await, tells(&admin).await);
        if to_eve.contains(THEIRS) {
            wrong.push(format!("{method} {route} tells of another tenant: {to_eve}"));
        }
        // Else there would be nothing to tell, and nothing be shown by this.
        let seen =
            [(MINE, &to_eve), (THEIRS, &to_admin), (MINE, &to_admin)].iter().all(|(name, told)| told.contains(name));
        if !seen && !OF_NOBODY.contains(&route) {
            wrong.push(format!("{method} {route} should tell eve {MINE}, an admin both: {to_eve} and {to_admin}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (_, mine) = group.get(&eve, "/resources").await;
    assert_eq!((mine["nodes"].as_array().map(Vec::len), mine["total"]["gpu"].as_f64()), (Some(0), Some(8.0)));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_of_nodes_where_to_ask_for_a_place_and_nothing_of_who_is_there() {
    let group = settled().await;
    let (_, whole) = group.get(&group.token("ops", &[Role::Admin]), "/nodes").await;
    assert!(whole["items"][0]["devices"].is_array() && whole["items"][0]["host"].is_string(), "{whole}");
    let operator = group.token(MINE, &[Role::Operator]);
    let (code, seen) = group.get(&operator, "/nodes").await;
    assert_eq!(code, 200, "{seen}");
    let node = &seen["items"][0];
    assert_eq!((&node["node_id"], &node["state"], &node["schedulable"]), (&json!("n1"), &json!("Ready"), &json!(true)));
    assert_eq!(node["total"]["gpu"], whole["items"][0]["total"]["gpu"]);
    let keys: Vec<&str> = node.as_object().unwrap().keys().map(String::as_str).collect();
    let outline =
        ["device_types", "labels", "node_id", "rack", "region", "schedulable", "simulated", "state", "total", "zone"];
    assert_eq!(keys, outline, "not what is held, by how many, nor where it is reached");
    let (code, told) = group.get(&operator, "/nodes?vitals=true").await;
    assert_eq!((code, &told["reason"]), (403, &json!("Forbidden")), "{told}");
    group.stop().await;
}
