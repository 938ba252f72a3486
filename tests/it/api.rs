//! The public surface over real members: REST and gRPC on one port each, on any
//! member. Bad input, idempotency, waiting, watching, failover, freshness.

use crate::surface::Surface;
use nf_proto::v1;
use nf_proto::v1::endpoint_service_client::EndpointServiceClient;
use nf_proto::v1::scheduler_service_client::SchedulerServiceClient;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tonic_types::StatusExt;

impl Surface {
    async fn send(&self, seat: usize, method: Method, path: &str, body: Option<Value>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.urls[seat]));
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.expect("an answer")
    }

    async fn call(&self, seat: usize, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let response = self.send(seat, method, path, body).await;
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn post(&self, seat: usize, path: &str, body: Value) -> (u16, Value) {
        self.call(seat, Method::POST, path, Some(body)).await
    }

    async fn get(&self, seat: usize, path: &str) -> (u16, Value) {
        self.call(seat, Method::GET, path, None).await
    }
}

fn job(tenant: &str, gpu: f64) -> Value {
    json!({"tenant_id": tenant, "model_id": "m1", "model_version": "v1", "resources": {"gpu": gpu, "mem": "4GB"},
        "constraints": {"latency_ms": 200}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_no_text_is_refused_like_anything_else() {
    let group = Surface::start(1, || None).await;
    for path in ["/schedule/%ff", "/tenants/%c3%28/quota", "/schedule/%ff/logs"] {
        let response = group.send(0, Method::GET, path, None).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        let problem: Value = response.json().await.expect("JSON");
        assert_eq!((&problem["reason"], &problem["field"]), (&json!("InvalidArgument"), &json!("path")), "{problem}");
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_registered_at_once_get_ports_of_their_own() {
    let group = Surface::start(3, || None).await;
    let register = |i: usize| {
        let group = &group;
        async move { group.post(i % 3, "/node/register", json!({"node_id": format!("p{i}"), "gpus": 1})).await.0 }
    };
    let codes = futures::future::join_all((0..6).map(register)).await;
    assert_eq!(codes, [201; 6]);
    let state = group.cluster.replica(0).applied().state;
    let ranges = state.nodes().values().map(|node| node.spec.ports.expect("ports"));
    let ranges: std::collections::BTreeSet<_> = ranges.map(|range| (range.first, range.last)).collect();
    assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.1 < b.0), "{ranges:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_hundred_at_once_one_gets_the_last_gpu_of_the_quota() {
    let group = Surface::start(3, || None).await;
    group.post(0, "/node/register", json!({"node_id": "n1", "gpus": 64})).await;
    let (code, answer) = group.call(0, Method::PUT, "/tenants/t1/quota", Some(json!({"gpu": 4}))).await;
    assert_eq!(code, 200, "{answer}");
    let deploy = |i: usize| {
        let (group, mut body) = (&group, job("t1", 1.0));
        (body["request_id"], body["queue"]) =
            (json!(format!("r{i}")), json!(if i.is_multiple_of(2) { "never" } else { "wait" }));
        async move {
            let (code, answer) = group.post(i % 3, "/schedule", body).await;
            (code, answer["reason"].as_str().or(answer["reasons"][0]["reason"].as_str()).unwrap_or("").to_owned())
        }
    };
    for i in 0..3 {
        assert_eq!(deploy(1000 + i).await.0, 201);
    }
    let answers = futures::future::join_all((0..200).map(deploy)).await;
    let count = |wanted: &str| answers.iter().filter(|(code, reason)| format!("{code} {reason}") == wanted).count();
    let (placed, refused, queued) = (count("201 "), count("429 QuotaExceeded"), count("202 WaitingForQuota"));
    assert_eq!((placed, refused + queued), (1, 199), "{answers:?}");
    assert!(refused >= 99 && queued >= 99, "{refused} {queued}");
    let state = group.cluster.replica(0).applied().state;
    let tenant = state.tenant_named(&"t1".parse().unwrap()).unwrap().no;
    assert_eq!(state.ledger().tenant(tenant).gpu_milli, 4000, "not one thousandth more");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_see_all_says_whose_job_is_meant_where_two_have_one_of_that_id() {
    let group = Surface::start(1, || None).await;
    group.post(0, "/node/register", json!({"node_id": "n1", "gpus": 4})).await;
    for tenant in ["t1", "t2"] {
        let mut body = job(tenant, 1.0);
        (body["request_id"], body["scaling"]) = (json!("one"), json!({"min": 0, "max": 2}));
        let response = group.send(0, Method::POST, "/schedule", Some(body)).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        assert_eq!(group.get(0, &location).await.1["tenant_id"], tenant, "{location}");
    }
    let acts = [
        (Method::DELETE, "/schedule/one", None),
        (Method::POST, "/schedule/one/scale", Some(json!({"replicas": 2}))),
        (Method::POST, "/rollout/one", Some(json!({"model_version": "v2"}))),
        (Method::POST, "/rollout/one/turn/pause", None),
        (Method::GET, "/schedule/one/life", None),
    ];
    for (method, path, body) in acts {
        let (code, problem) = group.call(0, method.clone(), path, body).await;
        assert_eq!((code, &problem["field"]), (409, &json!("tenant_id")), "{method} {path}: {problem}");
    }
    let (_, two) = group.post(0, "/schedule/one/scale?tenant_id=t2", json!({"replicas": 2})).await;
    assert_eq!((&two["tenant_id"], two["replicas"].as_array().map(Vec::len)), (&json!("t2"), Some(2)), "{two}");
    let (code, stopped) = group.call(0, Method::DELETE, "/schedule/one?tenant_id=t2", None).await;
    assert_eq!((code, &stopped["tenant_id"], &stopped["state"]), (200, &json!("t2"), &json!("Draining")), "{stopped}");
    let (_, other) = group.get(0, "/schedule/one?tenant_id=t1").await;
    assert_eq!((&other["state"], other["replicas"].as_array().map(Vec::len)), (&json!("Admitted"), Some(1)), "{other}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_takes_each_call() {
    let group = Surface::start(3, || None).await;
    let node = json!({"node_id": "gpu-1", "gpus": 4});
    let (code, answer) = group.post(0, "/node/register", node.clone()).await;
    assert_eq!((code, &answer["registered"], &answer["simulation"]), (201, &json!(true), &json!(true)), "{answer}");
    let (code, _) = group.post(1, "/resources/register", node).await;
    assert_eq!(code, 200);
    let (code, made_up) = group.post(2, "/node/register", json!({})).await;
    assert_eq!(code, 201);
    assert!(made_up["node_id"].as_str().is_some_and(|id| id.starts_with("node-")), "{made_up}");

    let mut ids = Vec::new();
    for seat in 0..3 {
        let response = group.send(seat, Method::POST, "/schedule", Some(job("t1", 1.0))).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["status"], "scheduled", "{answer}");
        assert_eq!((&answer["job_id"], &answer["simulation"]), (&answer["request_id"], &json!(true)));
        assert_eq!((&answer["policies"]["P2"], &answer["policies"]["P1"]), (&json!("simulated"), &json!("na")));
        assert!(answer["placement"]["devices"].as_array().is_some_and(|d| d.len() == 1), "{answer}");
        assert!(answer["placement"]["why"]["score"].is_i64(), "{answer}");
        // Read at once on another member: linearizable, so it is there.
        let (code, seen) = group.get((seat + 1) % 3, &location).await;
        assert_eq!((code, &seen["request_id"], &seen["state"]), (200, &answer["request_id"], &json!("Admitted")));
        assert!(seen["index"].as_u64() >= answer["index"].as_u64(), "{seen}");
        ids.push(answer["request_id"].as_str().expect("text").to_owned());
    }
    let (_, resources) = group.get(1, "/resources").await;
    assert_eq!((&resources["total"]["gpu"], &resources["reserved"]["gpu"]), (&json!(5.0), &json!(3.0)));

    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let (_, page) = group.get(2, &format!("/schedule?per_page=2&next_token={token}")).await;
        let rows = page["items"].as_array().expect("a list").iter();
        seen.extend(rows.map(|row| row["request_id"].as_str().expect("text").to_owned()));
        match page["next_token"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ids);

    let (code, stopped) = group.call(0, Method::DELETE, &format!("/schedule/{}", ids[0]), None).await;
    assert_eq!((code, &stopped["state"]), (200, &json!("Draining")), "{stopped}");
    let (code, other) = group.get(0, &format!("/schedule/{}?tenant_id=t2", ids[1])).await;
    assert_eq!((code, &other["reason"]), (404, &json!("NotFound")));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_waits_with_its_reasons_or_is_refused() {
    let group = Surface::start(1, || None).await;
    group.post(0, "/node/register", json!({"node_id": "gpu-1", "gpus": 4})).await;
    let (code, answer) = group.post(0, "/schedule", job("t1", 64.0)).await;
    assert_eq!((code, &answer["status"], &answer["position"]), (202, &json!("queued"), &json!(1)), "{answer}");
    let reasons: Vec<_> = answer["reasons"].as_array().expect("a list").iter().collect();
    assert_eq!((&reasons[0]["reason"], &reasons[0]["permanent"]), (&json!("ExceedsMaxQuota"), &json!(true)));
    assert!(reasons.iter().any(|r| r["reason"] == "NoMatchingDevice"), "{answer}");
    let mut never = job("t1", 64.0);
    never["queue"] = json!("never");
    let response = group.send(0, Method::POST, "/schedule", Some(never)).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let (code, problem) = (response.status().as_u16(), response.json::<Value>().await.expect("JSON"));
    assert_eq!((code, &problem["reason"], &problem["status"]), (429, &json!("QuotaExceeded"), &json!(429)));
    // Waiting jobs that are stopped are over at once; a second stop is no error.
    let path = format!("/schedule/{}", answer["request_id"].as_str().expect("text"));
    for _ in 0..2 {
        let (code, stopped) = group.call(0, Method::DELETE, &path, None).await;
        assert_eq!((code, &stopped["state"]), (200, &json!("Cancelled")), "{stopped}");
    }
    let (code, done) = group.get(0, &path).await;
    assert_eq!((code, &done["state"]), (200, &json!("Cancelled")));
    let (_, list) = group.get(0, "/schedule?finished=true").await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");

    let (code, plan) = group.post(0, "/schedule?dry_run=true", job("t2", 1.0)).await;
    assert_eq!((code, &plan["status"], &plan["dry_run"]), (200, &json!("scheduled"), &json!(true)), "{plan}");
    let mut checked = job("t2", 1.0);
    checked["check_plan"] = plan["digest"].clone();
    assert_eq!(group.post(0, "/schedule", checked.clone()).await.0, 201);
    let (code, answer) = group.post(0, "/schedule", checked).await;
    assert_eq!((code, &answer["reason"]), (409, &json!("PlanChanged")), "{answer}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_the_same_job_on_every_member() {
    let group = Surface::start(3, || None).await;
    group.post(0, "/node/register", json!({"gpus": 8})).await;
    let keyed = |seat: usize, body: Value| {
        let request = group.http.post(format!("{}/schedule", group.urls[seat])).header("idempotency-key", "k1");
        let request = request.json(&body);
        async move {
            let response = request.send().await.expect("an answer");
            let code = response.status().as_u16();
            (code, response.json::<Value>().await.expect("JSON"))
        }
    };
    let (code, first) = keyed(0, job("t1", 0.5)).await;
    assert_eq!((code, &first["replayed"]), (201, &json!(false)));
    for seat in [1, 2] {
        let (code, again) = keyed(seat, job("t1", 0.5)).await;
        assert_eq!((code, &again["replayed"]), (201, &json!(true)), "{again}");
        assert_eq!(again["request_id"], first["request_id"]);
    }
    let (code, other) = keyed(1, job("t1", 0.25)).await;
    assert_eq!((code, &other["reason"]), (409, &json!("IdempotencyConflict")));
    assert_ne!(keyed(1, job("t2", 0.5)).await.1["request_id"], first["request_id"]);
    // Also when the first one is over: the history answers.
    let path = format!("/schedule/{}", first["request_id"].as_str().expect("text"));
    group.call(2, Method::DELETE, &path, None).await;
    let (code, again) = keyed(2, job("t1", 0.5)).await;
    assert_eq!((code, &again["replayed"]), (201, &json!(true)), "{again}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_calls_are_told_what_and_where() {
    let group = Surface::start(1, || None).await;
    let mut unknown = job("t1", 1.0);
    unknown["resources"]["gpuz"] = json!(1);
    let (code, problem) = group.post(0, "/schedule", unknown).await;
    assert_eq!((code, &problem["reason"], &problem["field"]), (400, &json!("UnknownField"), &json!("resources.gpuz")));
    assert!(problem["call_id"].is_string() && problem["type"].is_string(), "{problem}");
    let cases: &[(Method, &str, &str, &str, u16, &str)] = &[
        (Method::POST, "/schedule", "text/plain", "{}", 415, "UnsupportedMediaType"),
        (Method::POST, "/schedule", "application/json", "{", 400, "InvalidArgument"),
        (Method::POST, "/schedule", "application/json", "", 400, "InvalidArgument"),
        (Method::PUT, "/schedule", "application/json", "{}", 405, "MethodNotAllowed"),
        (Method::GET, "/nothing", "application/json", "", 404, "NotFound"),
        (Method::GET, "/schedule/..%2Fx", "application/json", "", 400, "InvalidArgument"),
        (Method::GET, "/schedule/none", "application/json", "", 404, "NotFound"),
        (Method::GET, "/schedule?next_token=zzz", "application/json", "", 400, "InvalidArgument"),
        (Method::GET, "/schedule?stat=x", "application/json", "", 400, "UnknownField"),
        (Method::GET, "/events?from=18446744073709551616", "application/json", "", 400, "InvalidArgument"),
        (Method::DELETE, "/tenants/none", "application/json", "", 404, "NotFound"),
        (Method::POST, "/node/none/cordon", "application/json", "", 404, "NotFound"),
        (Method::POST, "/failover/promote", "application/json", "{\"member\":\"none\"}", 404, "NotFound"),
        (Method::DELETE, "/cluster/members/none", "application/json", "", 404, "NotFound"),
        (
            Method::POST,
            "/cluster/members",
            "application/json",
            "{\"name\":\"x\",\"peer\":\"no\"}",
            400,
            "InvalidArgument",
        ),
    ];
    for (method, path, kind, body, status, reason) in cases {
        let request = group.http.request(method.clone(), format!("{}{path}", group.urls[0]));
        let response = request.header("content-type", *kind).body(*body).send().await.expect("an answer");
        let code = response.status().as_u16();
        let problem: Value = response.json().await.expect("JSON");
        assert_eq!((code, problem["reason"].as_str()), (*status, Some(*reason)), "{method} {path}: {problem}");
    }
    let big = group.http.post(format!("{}/schedule", group.urls[0])).header("content-type", "application/json");
    let big = big.body(vec![b' '; 2 << 20]).send().await.expect("an answer");
    assert_eq!(big.status(), StatusCode::PAYLOAD_TOO_LARGE);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_share_the_port_and_agree() {
    let group = Surface::start(1, || None).await;
    group.post(0, "/node/register", json!({"node_id": "gpu-1", "gpus": 4})).await;
    let mut grpc = SchedulerServiceClient::connect(group.urls[0].clone()).await.expect("connects");
    let request = v1::ScheduleRequest {
        tenant_id: "t1".into(),
        model_id: "m1".into(),
        model_version: "v1".into(),
        resources: Some(v1::Resources { gpu: 0.5, ..Default::default() }),
        request_id: "r1".into(),
        ..Default::default()
    };
    let answer = grpc.schedule(request.clone()).await.expect("scheduled").into_inner();
    assert_eq!((answer.status.as_str(), answer.state.as_str(), answer.simulation), ("scheduled", "Admitted", true));
    assert_eq!(answer.placements.len(), 1);
    let mut same = job("t1", 0.5);
    same["request_id"] = json!("r1");
    same["resources"] = json!({"gpu": 0.5});
    same["constraints"] = json!({});
    let (code, again) = group.post(0, "/schedule", same).await;
    assert_eq!((code, &again["replayed"]), (201, &json!(true)), "one digest on both sides: {again}");
    let status = grpc.schedule(v1::ScheduleRequest { replicas: 9999, ..request }).await.expect_err("too many");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|i| i.reason.as_str()), Some("InvalidArgument"));
    assert_eq!(details.bad_request().map(|b| b.field_violations[0].field.as_str()), Some("replicas"));
    let job = grpc.get(v1::GetRequest { request_id: "r1".into(), ..Default::default() }).await.expect("got");
    assert_eq!(job.into_inner().job.map(|j| j.tenant_id), Some("t1".into()));
    let list = grpc.list(v1::ListRequest::default()).await.expect("listed").into_inner();
    assert_eq!(list.jobs.len(), 1);
    let missing = grpc.get(v1::GetRequest { request_id: "r2".into(), ..Default::default() }).await;
    assert_eq!(missing.expect_err("absent").code(), tonic::Code::NotFound);
    let mut watch = grpc.watch(v1::WatchRequest { from: 1, ..Default::default() }).await.expect("watches").into_inner();
    let mut kinds = Vec::new();
    while kinds.last().map(String::as_str) != Some("job") {
        kinds.push(watch.message().await.expect("a message").expect("an event").kind);
    }
    assert!(kinds.contains(&"node".to_owned()), "{kinds:?}");
    let stopped = grpc.stop(v1::StopRequest { request_id: "r1".into(), ..Default::default() }).await.expect("stops");
    assert_eq!(stopped.into_inner().job.map(|j| j.state), Some("Draining".into()));
    let endpoint = tonic::transport::Endpoint::new(group.urls[0].clone()).expect("a URL");
    let channel = endpoint.connect().await.expect("connects");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: "neuralfabric.v1.SchedulerService".into() };
    assert_eq!(health.check(request).await.expect("checked").into_inner().status, 1);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_what_happens_from_where_it_was_left() {
    let group = Surface::start(1, || None).await;
    group.post(0, "/node/register", json!({"gpus": 4})).await;
    let (_, page) = group.get(0, "/schedule").await;
    let index = page["index"].as_u64().expect("a number");
    let (_, first) = group.post(0, "/schedule", job("t1", 1.0)).await;
    let path = format!("/schedule?watch=true&index={index}");
    let mut stream = group.send(0, Method::GET, &path, None).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while !text.contains("event: job") || !text.ends_with("\n\n") {
        let chunk = stream.chunk().await.expect("a chunk").expect("more");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    assert!(text.contains(first["request_id"].as_str().expect("text")), "{text}");
    assert!(text.contains("\"state\":\"Admitted\""), "{text}");
    drop(stream);
    let (code, problem) = group.get(0, "/schedule?watch=true&index=1").await;
    assert!(code == 410 && problem["reason"] == "IndexCompacted" || code == 200, "{code} {problem}");
    let (_, events) = group.get(0, "/events?from=1&per_page=1000").await;
    assert!(events["items"].as_array().is_some_and(|e| e.iter().any(|e| e["kind"] == "job")), "{events}");
    // A blocking read comes back when something changed, and not before.
    let now = group.get(0, "/schedule").await.1["index"].as_u64().expect("a number");
    let path = format!("/schedule?index={now}&wait=30s");
    let change = group.post(0, "/tenants", json!({"tenant_id": "t9"}));
    let ((code, page), _) = tokio::join!(group.get(0, &path), change);
    assert!(code == 200 && page["index"].as_u64() > Some(now), "{page}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_when_asked_and_the_members_say_so() {
    let group = Surface::start(3, || None).await;
    let leader = group.cluster.leader().await;
    let to = (leader + 1) % 3;
    let name = group.cluster.seats[to].name.clone();
    let (code, plan) = group.post(leader, "/failover/promote", json!({"member": name})).await;
    assert_eq!((code, &plan["dry_run"], &plan["ok"]), (200, &json!(true), &json!(true)), "{plan}");
    assert_eq!(group.cluster.leader().await, leader);
    let (code, done) = group.post(leader, "/failover/promote", json!({"member": name, "dry_run": false})).await;
    assert_eq!((code, &done["action"], &done["to"]), (200, &json!("promote"), &json!(name)), "{done}");
    assert_eq!(group.cluster.leader().await, to);
    let (_, health) = group.get(to, "/health").await;
    assert_eq!(
        (&health["role"], &health["status"], &health["node_id"]),
        (&json!("leader"), &json!("ok"), &json!(name))
    );
    let (_, members) = group.get(to, "/cluster/members").await;
    assert_eq!(members["items"].as_array().map(Vec::len), Some(3), "{members}");
    assert_eq!(members["leader"], json!(name));
    assert_eq!(group.get(to, "/health/ready").await.0, 200);
    let (code, quota) = group.call(leader, Method::PUT, "/tenants/t1/quota", Some(json!({"gpu": 8}))).await;
    assert_eq!((code, &quota["gpu_quota"]), (200, &json!(8.0)), "{quota}");
    let metrics = group.send(to, Method::GET, "/metrics", None).await.text().await.expect("text");
    assert!(metrics.contains("nf_raft_is_leader 1"), "{metrics}");
    assert!(metrics.contains("nf_tenant_gpus{kind=\"quota\",tenant=\"t1\"} 8"), "{metrics}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_tell_the_same_endpoints() {
    let group = Surface::start(1, || None).await;
    group.post(0, "/node/register", json!({"node_id": "gpu-1", "gpus": 4})).await;
    let mut grpc = EndpointServiceClient::connect(group.urls[0].clone()).await.expect("connects");
    let wanted = v1::EndpointServiceWatchRequest { model_id: "m1".into(), ..Default::default() };
    let mut sets = grpc.watch(wanted).await.expect("a stream").into_inner();
    let first = sets.message().await.expect("a set").expect("more");
    assert!(first.endpoints.is_empty() && first.simulation && !first.heartbeat, "{first:?}");
    group.post(0, "/schedule", job("t1", 1.0)).await;
    let told = sets.message().await.expect("a set").expect("more");
    assert!(told.index > first.index);
    let (code, list) = group.get(0, "/endpoints?model_id=m1").await;
    let (one, same) = (&told.endpoints[0], &list["items"][0]);
    assert_eq!((code, one.state.as_str(), one.traffic, one.generation), (200, "Scheduled", false, 1));
    assert_eq!((&same["address"], &same["node"]), (&json!(one.address), &json!("gpu-1")), "{list}");
    assert_eq!(group.get(0, "/endpoints?model_id=m2").await.1["items"], json!([]));
    let mut stream = group.send(0, Method::GET, "/endpoints?watch=true&tenant_id=t1", None).await;
    let chunk = stream.chunk().await.expect("a chunk").expect("more");
    let text = String::from_utf8(chunk.to_vec()).expect("text");
    assert!(text.contains("event: endpoints") && text.contains(&one.address), "{text}");
    assert!(
        grpc.watch(v1::EndpointServiceWatchRequest { model_id: "../m".into(), ..Default::default() }).await.is_err()
    );
    drop((sets, stream));
    group.stop().await;
}
