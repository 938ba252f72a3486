//! The gateway before real listeners, on a group in memory.

use super::*;
use crate::exchange::testing::{Memory, eventually};
use axum::body::{Body, to_bytes};
use axum::http::header;
use nf_core::command::{Report, ReportKind};
use nf_core::id::{Incarnation, NodeName};
use nf_core::job::{JobSpec, Phase, Stage};
use nf_core::node::PortRange;
use nf_core::reason::Reason;
use nf_core::resources::Gpus;
use nf_core::scaling::{Scaling, Target};
use nf_core::testing;
use std::sync::atomic::{AtomicUsize, Ordering};
use tower::ServiceExt;

/// What a replica of the tests does, and what it saw.
#[derive(Default)]
struct Replica {
    now: AtomicUsize,
    most: AtomicUsize,
    served: AtomicUsize,
    authorized: AtomicUsize,
}

async fn answer(State(replica): State<Arc<Replica>>, headers: HeaderMap, body: Bytes) -> Response {
    let now = replica.now.fetch_add(1, Ordering::SeqCst) + 1;
    replica.most.fetch_max(now, Ordering::SeqCst);
    replica.authorized.fetch_add(usize::from(headers.contains_key(header::AUTHORIZATION)), Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    replica.now.fetch_sub(1, Ordering::SeqCst);
    replica.served.fetch_add(1, Ordering::SeqCst);
    body.into_response()
}

/// A listening replica and its port.
async fn replica() -> (Arc<Replica>, u16) {
    let replica = Arc::new(Replica::default());
    let router = Router::new().fallback(answer).with_state(replica.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (replica, port)
}

/// A node for one replica, at that port.
fn node(group: &Memory, name: &str, port: u16) {
    let mut spec = testing::node_spec(1);
    spec.ports = Some(PortRange { first: port, last: port });
    group.run(testing::register(name, spec));
}

fn spec(tenant: &str, replicas: u16, scaling: Option<Scaling>) -> JobSpec {
    JobSpec { replicas, scaling, ..testing::job_spec(tenant, Gpus::Milli(600)) }
}

/// Every placed replica is ready.
fn ready(group: &Memory) {
    let state = group.state();
    for node in state.nodes().values() {
        let reports = state.replicas_on(node.no).filter(|(.., r)| matches!(r.phase, Phase::Held { .. }));
        let kind = ReportKind::Stage(Stage::Ready);
        let reports = reports
            .map(|(job, replica, r)| Report { job: job.no, replica, generation: r.generation, kind: kind.clone() })
            .collect();
        group.run(Intent::Reports { node: node.name.clone(), incarnation: Incarnation(1), reports });
    }
}

fn gateway(group: &Memory, options: Options) -> Gateway {
    Gateway::new(Arc::new(group.clone()), Metrics::new("test", "test"), options)
}

async fn complete(gateway: &Gateway, tenant: Option<&str>, model: &str) -> (StatusCode, HeaderMap, String) {
    let mut request = axum::http::Request::post("/v1/completions").header(header::AUTHORIZATION, "Bearer secret");
    if let Some(tenant) = tenant {
        request = request.header(TENANT, tenant);
    }
    // As the gate does for callers whom it knows.
    request = request.extension(nf_core::testing::record("ada", nf_core::audit::Action::Call, String::new(), 0).actor);
    let body = format!(r#"{{"model":"{model}","prompt":"hello"}}"#);
    request = request.header(header::CONTENT_LENGTH, body.len());
    let response = gateway.router().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_spread_and_no_replica_gets_more_than_its_slots() {
    let group = Memory::new();
    let (a, b) = (replica().await, replica().await);
    node(&group, "n1", a.1);
    node(&group, "n2", b.1);
    let scaling = Scaling { min: 2, max: 2, concurrency: 2, ..Scaling::default() };
    group.run(testing::schedule("s1", spec("t1", 2, Some(scaling))));
    ready(&group);
    let gateway = gateway(&group, Options::default());
    let calls = (0..40).map(|_| complete(&gateway, None, "m1"));
    for (status, _, body) in futures::future::join_all(calls).await {
        assert_eq!((status, body.contains("hello")), (StatusCode::OK, true), "{body}");
    }
    let most = [&a.0, &b.0].map(|r| r.most.load(Ordering::SeqCst));
    assert!(most.iter().all(|most| (1..=2).contains(most)), "{most:?}");
    assert_eq!(a.0.served.load(Ordering::SeqCst) + b.0.served.load(Ordering::SeqCst), 40);
    assert_eq!(a.0.authorized.load(Ordering::SeqCst), 0, "the caller's token is ours alone");
    let seen = gateway.seen();
    let sight = &seen.sights[0];
    assert_eq!((sight.arrived, sight.waiting, sight.running, sight.failed), (40, 0, 0, 0));
    assert_eq!(sight.answered.iter().sum::<u64>(), 40);
}

/// Over a real connection: a server stops asking for a body once it has as many bytes as were said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_known_length_is_counted_where_a_server_sends_it_on() {
    let group = Memory::new();
    let (_, port) = replica().await;
    node(&group, "n1", port);
    group.run(testing::schedule("s1", spec("t1", 1, None)));
    ready(&group);
    let gateway = gateway(&group, Options::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/serve/t1/m1/x", listener.local_addr().unwrap());
    let router = gateway.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for body in ["hello", ""] {
        let answer = client.post(&url).body(body).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), body);
    }
    client.head(&url).send().await.unwrap();
    let answered = || gateway.seen().sights[0].answered.iter().sum::<u64>();
    eventually("all three are counted", || answered() == 3).await;
    assert_eq!(gateway.seen().sights[0].windows[0].good, 3);
}

/// What it has on its disk may name a port that is another tenant's by now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_not_caught_up_sends_nobody_anywhere() {
    let group = Memory::new();
    let (model, port) = replica().await;
    node(&group, "n1", port);
    group.run(testing::schedule("s1", spec("t1", 1, None)));
    ready(&group);
    group.confirm(false);
    let gateway = gateway(&group, Options::default());
    let (status, headers, body) = complete(&gateway, Some("t1"), "m1").await;
    assert_eq!((status, body.contains("NoLeader")), (StatusCode::SERVICE_UNAVAILABLE, true), "{body}");
    assert!(headers.contains_key(header::RETRY_AFTER));
    let listed = axum::http::Request::get("/v1/models").body(Body::empty()).unwrap();
    assert_eq!(gateway.router().oneshot(listed).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(model.served.load(Ordering::SeqCst), 0);
    group.confirm(true);
    let (status, _, body) = complete(&gateway, Some("t1"), "m1").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    // From then on it serves, whoever leads: that the group is away stops no model.
    group.confirm(false);
    assert_eq!(complete(&gateway, Some("t1"), "m1").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_wakes_a_sleeping_service_and_what_is_too_much_is_told_to_come_again() {
    let group = Memory::new();
    let (model, port) = replica().await;
    node(&group, "n1", port);
    let scaling = Scaling { min: 0, max: 1, concurrency: 4, ..Scaling::default() };
    group.run(testing::schedule("s1", spec("t1", 1, Some(scaling))));
    ready(&group);
    sleep(&group);
    let gateway = gateway(&group, Options { held: 10, ..Options::default() });
    let awake = tokio::spawn({
        let group = group.clone();
        async move {
            eventually("somebody wakes it", || group.state().services().any(|job| job.desired() == 1)).await;
            group.run(Intent::PlaceWaiting);
            ready(&group);
        }
    });
    let calls = (0..50).map(|_| complete(&gateway, None, "m1"));
    let answers = futures::future::join_all(calls).await;
    awake.await.unwrap();
    let good = answers.iter().filter(|(status, ..)| *status == StatusCode::OK).count();
    let late: Vec<_> = answers.iter().filter(|(status, ..)| *status == StatusCode::TOO_MANY_REQUESTS).collect();
    assert_eq!((good, late.len()), (10, 40));
    assert!(late.iter().all(|(_, headers, body)| headers.contains_key("retry-after") && body.contains("come again")));
    assert_eq!(model.served.load(Ordering::SeqCst), 10);
    let wakes: Vec<_> = group.intents().into_iter().filter(|i| matches!(i.bare(), Intent::Wake { .. })).collect();
    let by_ada = |wake: &Intent| wake.actor().is_some_and(|actor| &*actor.subject == "ada");
    assert!(!wakes.is_empty() && wakes.iter().all(by_ada), "the trail names who woke it: {wakes:?}");
}

/// The service's replicas end, and it sleeps.
fn sleep(group: &Memory) {
    let target = Target { replicas: 0, why: nf_core::autoscaler::Why::Idle, inputs: None, seen: None, learned: None };
    group.run(Intent::Scale { request: RequestId::new("s1").unwrap(), tenant: None, target });
    let state = group.state();
    let job = state.services().next().unwrap();
    let kind = ReportKind::Ended { ok: true, why: nf_core::reason::Reason::ScaledDown };
    let report = Report { job: job.no, replica: 0, generation: job.replicas[0].generation, kind };
    let node = NodeName::new("n1").unwrap();
    group.run(Intent::Reports { node, incarnation: Incarnation(1), reports: vec![report] });
    assert!(group.state().services().next().unwrap().is_asleep());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_not_there_costs_no_request() {
    let group = Memory::new();
    let (here, port) = replica().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = gone.local_addr().unwrap().port();
    node(&group, "n1", port);
    node(&group, "n2", nobody);
    drop(gone);
    group.run(testing::schedule("s1", spec("t1", 2, None)));
    ready(&group);
    let gateway = gateway(&group, Options::default());
    for _ in 0..10 {
        assert_eq!(complete(&gateway, None, "m1").await.0, StatusCode::OK);
    }
    assert_eq!(here.served.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn whose_model_it_is_must_be_clear() {
    let group = Memory::new();
    let ports = [replica().await.1, replica().await.1];
    node(&group, "n1", ports[0]);
    node(&group, "n2", ports[1]);
    for tenant in ["t1", "t2"] {
        group.run(testing::schedule(tenant, spec(tenant, 1, None)));
    }
    ready(&group);
    let gateway = gateway(&group, Options::default());
    let (status, _, body) = complete(&gateway, None, "m1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains(TENANT), "{body}");
    assert_eq!(complete(&gateway, Some("t2"), "m1").await.0, StatusCode::OK);
    assert_eq!(complete(&gateway, Some("t3"), "m1").await.0, StatusCode::NOT_FOUND);
    assert_eq!(complete(&gateway, Some("../t"), "m1").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(complete(&gateway, None, "m2").await.0, StatusCode::NOT_FOUND);
    let garbage = axum::http::Request::post("/v1/completions").body(Body::from("{\"model\":7}")).unwrap();
    assert_eq!(gateway.router().oneshot(garbage).await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_body_takes_room_as_it_comes() {
    let room = Shares::new(128, 9);
    let gather = |body: Body| body::gather(&room, None, body);
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(gather(Body::empty()).await.expect("who brings nothing takes next to nothing"));
    }
    // Says that sixteen MiB will come, and sends none of it.
    let (slow, at) = (Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()), room.clone());
    let slow = tokio::spawn(async move { body::gather(&at, None, slow).await });
    let kib = |n: usize| Body::from(vec![0; n << 10]);
    assert_eq!(gather(kib(30)).await.expect("there is room beside it").0.len(), 30 << 10);
    assert!(matches!(gather(kib(120)).await, Err(Refused::Crowded)));
    assert!(matches!(gather(kib((body::MAX_BODY >> 10) + 1)).await, Err(Refused::TooLarge(_))));
    slow.abort();
    let _ = slow.await;
    held.clear();
    gather(kib(63)).await.expect("all of it is free again");
    assert!(!room.has_bodies());
}

/// A replica that takes requests and never answers.
async fn silent() -> u16 {
    let router = Router::new().fallback(|_: Bytes| std::future::pending::<Response>());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

/// Model m1 of t1, which never answers, and m2 of t2, which does.
async fn one_silent(group: &Memory) {
    let of = [("t1", "m1", "n1", silent().await), ("t2", "m2", "n2", replica().await.1)];
    for (tenant, model, name, port) in of {
        node(group, name, port);
        let spec = JobSpec { model: ModelId::new(model).unwrap(), ..spec(tenant, 1, None) };
        group.run(testing::schedule(tenant, spec));
        ready(group);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_fills_a_gateway_keeps_no_other_out() {
    let bodies = Options { bodies_kib: 64, ..Options::default() };
    let calls = Options { of_tenant: 3, ..Options::default() };
    for (options, size) in [(bodies, 20 << 10), (calls, 16)] {
        let (group, metrics) = (Memory::new(), Metrics::new("test", "test"));
        one_silent(&group).await;
        let gateway = Gateway::new(Arc::new(group.clone()), metrics.clone(), options);
        let post = |path: &str, size: usize| {
            let request = axum::http::Request::post(path).body(Body::from(vec![b'x'; size])).unwrap();
            gateway.router().oneshot(request)
        };
        let mut stuck = tokio::task::JoinSet::new();
        for _ in 0..20 {
            stuck.spawn(post("/serve/t1/m1/x", size));
        }
        // Those that may come in stay; the others are told so.
        let mut refused = 0;
        while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(500), stuck.join_next()).await {
            let response = answer.unwrap().unwrap();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert!(response.headers().contains_key(header::RETRY_AFTER));
            assert_eq!(response.extensions().get::<Reason>(), Some(&Reason::TenantLimit));
            refused += 1;
        }
        assert!((1..=3).contains(&stuck.len()), "{} are with the replica", stuck.len());
        let page = metrics.render();
        let calls = format!("nf_gateway_tenant_requests{{tenant=\"t1\"}} {}", stuck.len());
        let told = format!("nf_gateway_refused_total{{reason=\"TenantLimit\"}} {refused}");
        assert!(page.contains(&calls) && page.contains(&told), "{calls}, {told}: {page}");
        assert_eq!(post("/serve/t2/m2/x", size).await.unwrap().status(), StatusCode::OK);
        stuck.shutdown().await;
        eventually("what they had is free again", || !gateway.is_busy()).await;
        assert!(!metrics.render().contains("nf_gateway_tenant_requests"));
    }
}

#[tokio::test]
async fn passthrough_keeps_the_rest_of_the_path() {
    let uri = |text: &str| text.parse::<axum::http::Uri>().unwrap();
    assert_eq!(rest_of(&uri("/serve/t1/m1/v2/models/x%2Fy/infer?a=1&b")), "/v2/models/x%2Fy/infer?a=1&b");
    assert_eq!(rest_of(&uri("/serve/t1/m1")), "/");
    assert_eq!(rest_of(&uri("/serve/t1/m1/?q")), "/?q");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_begin_alike_meet_the_same_replica() {
    let group = Memory::new();
    let (a, b) = (replica().await, replica().await);
    node(&group, "n1", a.1);
    node(&group, "n2", b.1);
    group.run(testing::schedule("s1", spec("t1", 2, None)));
    ready(&group);
    let gateway = gateway(&group, Options::default());
    for _ in 0..8 {
        assert_eq!(complete(&gateway, None, "m1").await.0, StatusCode::OK);
    }
    let served = [&a.0, &b.0].map(|r| r.served.load(Ordering::SeqCst));
    assert!(served == [8, 0] || served == [0, 8], "{served:?}");
}

/// Counters that moved from one series to another would go down, and rates of them would lie.
#[tokio::test]
async fn who_came_first_keeps_its_series_and_the_others_never_fall() {
    let (group, metrics) = (Memory::new(), Metrics::new("test", "test"));
    let gateway = Gateway::new(Arc::new(group.clone()), metrics.clone(), Options::default());
    let first: Vec<String> = (0..MAX_MODELS).map(|n| format!("m{n:03}")).collect();
    let late = ["zz", "a", "b", "c"];
    for model in first.iter().map(String::as_str).chain(late) {
        let spec = JobSpec { model: ModelId::new(model).unwrap(), ..spec("t1", 1, None) };
        group.run(testing::schedule(model, spec));
    }
    let tenant = TenantId::new("t1").unwrap();
    let known = |model: &str| gateway.0.tables.borrow().entry(&tenant, &ModelId::new(model).unwrap()).is_some();
    eventually("all are known", || known("c")).await;
    let serve = |model: &str| {
        let desk = gateway.desk(&tenant, &ModelId::new(model).unwrap());
        trip::Trip::new(desk, Duration::from_secs(3600), None).answered(Duration::ZERO);
    };
    let told = |model: &str, tenant: &str| {
        let name = format!("nf_slo_requests_total{{model=\"{model}\",result=\"good\",tenant=\"{tenant}\"}} ");
        metrics.render().lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
    };
    let stop = async |model: &str| {
        let (request, why) = (RequestId::new(model).unwrap(), Reason::StoppedByUser);
        group.run(Intent::Stop { request, tenant: None, why });
        eventually("it is gone", || !known(model)).await;
    };
    first.iter().for_each(|model| serve(model));
    serve("zz");
    serve("zz");
    assert_eq!((told("m099", "t1"), told("zz", "t1"), told("other", "other")), (Some(1), None, Some(2)));
    serve("a");
    assert_eq!((told("m099", "t1"), told("a", "t1"), told("other", "other")), (Some(1), None, Some(3)));
    stop("zz").await;
    serve("b");
    assert_eq!(told("other", "other"), Some(4), "it goes on though one of them is gone");
    stop("m000").await;
    serve("c");
    assert_eq!((told("m000", "t1"), told("c", "t1"), told("other", "other")), (None, Some(1), Some(4)));
}
