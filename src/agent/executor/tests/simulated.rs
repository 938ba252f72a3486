//! Replicas that are played inside the agent: their file, their answers, their log.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_replica_writes_its_file_and_answers() {
    let w = World::new();
    let (executor, want) = (w.open(), simulated_want());
    executor.start(ID, &want);
    executor.stage_is(1, Stage::Ready).await;
    let path = w.path("run/r1.json");
    let file = run_file(&path);
    let mut fields: Vec<&str> = file.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let wanted = ["devices", "generation", "job", "model", "node", "sim", "status", "tenant", "ts", "version"];
    assert_eq!(fields, wanted);
    assert_eq!((&file["status"], &file["job"], &file["sim"]), (&"running".into(), &"r1".into(), &true.into()));

    let url = |path: &str| format!("http://127.0.0.1:{}{path}", want.port.unwrap());
    let client = Probe::client().unwrap();
    assert!(client.get(url("/health")).send().await.unwrap().status().is_success());
    let body = serde_json::json!({ "model": "m1", "messages": [{ "role": "user", "content": "hi" }] });
    let answer = client.post(url("/v1/chat/completions")).json(&body).send().await.unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((&answer["object"], &answer["simulated"]), (&"chat.completion".into(), &true.into()));
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().contains("simulated"));
    let bad = client.post(url("/v1/completions")).body("{").send().await.unwrap();
    assert_eq!(bad.status(), 400);
    let echo = client.post(url("/infer")).body("abc").send().await.unwrap().text().await.unwrap();
    assert!(echo.contains("\"echo\":\"abc\""), "{echo}");
    let metrics = client.get(url("/metrics")).send().await.unwrap().text().await.unwrap();
    for name in ["requests_waiting 0", "requests_running 0", "request_duration_seconds_count 2"] {
        assert!(metrics.contains(&format!("nf_model_{name}")), "{metrics}");
    }

    // A second replica that gets the same port is told so.
    let other = ReplicaId { replica: 1, ..ID };
    executor.start(other, &want);
    executor
        .until("taken", |e| {
            (e.actual().replicas[&other][&Generation(1)] == Condition::Gone { ok: false, why: Reason::PortTaken })
                .then_some(())
        })
        .await;
    assert_eq!(run_file(&w.path("run/r1.1.json"))["status"], "failed");

    executor.stop(ID, want.generation, Reason::StoppedByUser);
    assert_eq!(executor.gone().await, stopped());
    assert_eq!(run_file(&path)["status"], "stopped");
    // Somebody's outgoing connection may have the port for a moment.
    let address = ("127.0.0.1", want.port.unwrap());
    let free = async {
        while TcpListener::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), free).await.is_ok(), "its port is free again");
}

#[tokio::test]
async fn a_log_is_followed_until_its_replica_ends() {
    let w = World::new();
    let (executor, mut want) = (w.open(), simulated_want());
    want.port = None;
    executor.start(ID, &want);
    let lines = executor.logs(&want.request, ID, 10, true);
    executor.stage_is(1, Stage::Ready).await;
    executor.stop(ID, want.generation, Reason::ScaledDown);
    let all: Vec<_> = tokio::time::timeout(Duration::from_secs(20), lines.collect()).await.expect("it ends");
    let text: String = all.into_iter().map(|p| String::from_utf8_lossy(&p.unwrap()).into_owned()).collect();
    assert!(text.contains("SIMULATED") && text.contains("ScaledDown"), "{text}");
    let missing: Vec<_> = executor.logs(&RequestId::new("no").unwrap(), ID, 10, false).collect().await;
    assert!(matches!(&missing[..], [Err(e)] if e.kind() == io::ErrorKind::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_jobs_of_one_name_have_a_run_file_each() {
    let w = World::new();
    let executor = w.open();
    let want = |tenant: &str| {
        let mut want = simulated_want();
        want.port = None;
        Arc::make_mut(&mut want.spec).tenant = TenantId::new(tenant).unwrap();
        want
    };
    let other = ReplicaId { job: JobNo(ID.job.0 + 1), replica: 0 };
    let (first, beside) = (w.path("run/r1.json"), w.path("run/r1~0~t2.json"));
    let is = |path: &Path, tenant: &str, status: &str| {
        let file = run_file(path);
        file["tenant"] == tenant && file["status"] == status
    };
    executor.start(ID, &want("t1"));
    eventually("it has its file", || is(&first, "t1", "running")).await;
    executor.start(other, &want("t2"));
    eventually("the other's is beside it", || is(&beside, "t2", "running")).await;
    assert!(is(&first, "t1", "running"), "{}", run_file(&first));
    // Its file may be gone by now, for its age: the other goes on where it began.
    fs::remove_file(&first).unwrap();
    executor.stop(other, Generation(1), Reason::StoppedByUser);
    eventually("the other says that it is over", || is(&beside, "t2", "stopped")).await;
    executor.stop(ID, Generation(1), Reason::StoppedByUser);
    eventually("and so does this one", || is(&first, "t1", "stopped")).await;
}
