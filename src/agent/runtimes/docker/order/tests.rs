//! What the engine is asked for, to the last field that keeps a container in.

use super::*;
use crate::agent::record::Launch;
use nf_core::id::{Generation, JobNo, NodeName, RequestId};
use nf_core::reconcile::ReplicaId;
use nf_core::resources::Gpus;
use nf_core::sharing::{Kept, Part};
use nf_core::testing;
use serde_json::{Value, json};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const GPU: &str = "GPU-3a1f5a8a-839f-69a8-08cf-e3fdcd01e019";

fn manifest() -> Manifest {
    let value = json!({
        "model_id": "m1", "version": "v1", "format": "test",
        "files": [{ "path": "a/model.onnx", "size": 1, "sha256": "0".repeat(64) }],
        "runtime": {
            "kind": "docker", "image": "a/b:v1", "port": 9000,
            "program": { "argv": ["/serve", "{model}", "{host}:{port}", "{dir}"], "env": { "EXTRA": "1", "HOME_OF": "x" } },
        },
    });
    Manifest::parse("a test", value.to_string().as_bytes()).unwrap()
}

fn want(uuids: &[&str]) -> Want {
    let mut spec = testing::job_spec("t1", Gpus::Whole(1));
    (spec.resources.memory, spec.resources.cpu_milli) = (2 << 30, 1500);
    Want {
        request: RequestId::new("r1").unwrap(),
        generation: Generation(3),
        spec: Arc::new(spec),
        shares: vec![],
        uuids: uuids.iter().map(|uuid| Arc::from(*uuid)).collect(),
        part: None,
        host: "127.0.0.1".into(),
        port: Some(31_007),
        stage: None,
        stop: None,
    }
}

fn facts(giving: Giving) -> Facts {
    Facts { kind: "docker", version: "1".into(), api: (1, 41), giving, init: true, missing: vec![] }
}

fn body(want: &Want, giving: Giving) -> Result<Value, String> {
    body_on(want, giving, None)
}

fn body_on(want: &Want, giving: Giving, cpus: Option<&Cpus>) -> Result<Value, String> {
    let manifest = manifest();
    let crate::models::Launch::Docker(container) = &manifest.runtime else { panic!() };
    let launch = Launch::of(ReplicaId { job: JobNo(7), replica: 2 }, want);
    let record = Record::new(NodeName::new("n1").unwrap(), launch, "boot".into(), "/health".into(), 30);
    let (model, address) = (Path::new("/data/model"), "127.0.0.1".parse().unwrap());
    let (record, facts) = (&record, &facts(giving));
    let (owner, group, image) = ("owner", "g", "sha256:1");
    let pipes = Path::new("/run/mps");
    let traceparent = Some(TRACE.to_owned());
    let manifest = &manifest;
    let order =
        Order { want, record, manifest, container, facts, image, model, address, owner, group, pipes, traceparent };
    order.body(cpus).map(|body| serde_json::to_value(body).unwrap())
}

#[test]
fn what_the_engine_would_refuse_as_too_little_is_the_least_it_takes() {
    let mut want = want(&[]);
    Arc::make_mut(&mut want.spec).resources.cpu_milli = 1;
    let body = body(&want, Giving::Cdi).unwrap();
    assert_eq!(body["HostConfig"]["NanoCpus"], json!(10_000_000));
}

#[test]
fn it_runs_on_the_cpus_beside_its_devices_and_has_all_of_the_machines_memory() {
    let cpus = Cpus::of([4, 5, 6, 12]);
    let host = |cpus| body_on(&want(&[GPU]), Giving::Cdi, cpus).unwrap()["HostConfig"].clone();
    let (bound, free) = (host(Some(&cpus)), host(None));
    assert_eq!((&bound["CpusetCpus"], &bound["CpusetMems"]), (&json!("4-6,12"), &Value::Null));
    assert_eq!((&free["CpusetCpus"], &free["NanoCpus"]), (&Value::Null, &bound["NanoCpus"]));
}

#[test]
fn a_container_is_confined() {
    let body = body(&want(&["GPU-sim-n1-0"]), Giving::Cdi).unwrap();
    let host = &body["HostConfig"];
    assert_eq!((&body["User"], &body["Image"]), (&json!("65532:65532"), &json!("sha256:1")));
    assert_eq!(body["Entrypoint"], json!(["/serve", "/model/a/model.onnx", "0.0.0.0:9000", "/model"]));
    assert_eq!((&host["ReadonlyRootfs"], &host["CapDrop"]), (&json!(true), &json!(["ALL"])));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(2u64 << 30), &json!(2u64 << 30)));
    assert_eq!((&host["NanoCpus"], &host["PidsLimit"]), (&json!(1_500_000_000), &json!(MAX_TASKS)));
    assert_eq!(host["PortBindings"], json!({ "9000/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "31007" }] }));
    let model = json!([{ "Type": "bind", "Source": "/data/model", "Target": "/model", "ReadOnly": true }]);
    assert_eq!(host["Mounts"], model);
    assert!(host["Tmpfs"]["/tmp"].as_str().unwrap().contains("nosuid"));
    for dangerous in ["CapAdd", "Devices", "Binds", "NetworkMode", "PidMode", "IpcMode", "UsernsMode", "DeviceRequests"]
    {
        assert_eq!(host[dangerous], Value::Null, "{dangerous}");
    }
    assert_eq!(host["Privileged"], json!(false));
}

#[test]
fn it_says_whose_it_is_and_knows_what_a_process_would() {
    let body = body(&want(&["GPU-sim-n1-0"]), Giving::Request).unwrap();
    let labels = &body["Labels"];
    for (label, value) in [("owner", "owner"), ("group", "g"), ("node", "n1"), ("job", "7"), ("replica", "2")] {
        assert_eq!(labels[format!("io.neural-fabric.{label}")], json!(value), "{labels}");
    }
    assert_eq!((&labels[GENERATION], &labels["io.neural-fabric.request"]), (&json!("3"), &json!("r1")));
    let env: Vec<&str> = body["Env"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    for wanted in ["NF_PORT=9000", "NF_HOST=0.0.0.0", "NF_RANK=2", "NF_MODEL_DIR=/model", "EXTRA=1", "HOME=/tmp"] {
        assert!(env.contains(&wanted), "{wanted} in {env:?}");
    }
    assert!(env.contains(&&*format!("TRACEPARENT={TRACE}")), "its spans belong to the call that it came from: {env:?}");
    let allowed = |e: &&&str| {
        ["NF_", "EXTRA", "HOME", "TMPDIR", "LANG", "CUDA_", "NVIDIA_", "TRACEPARENT="].iter().any(|p| e.starts_with(p))
    };
    assert_eq!(env.iter().filter(allowed).count(), env.len(), "nothing of the agent's own: {env:?}");
}

#[test]
fn devices_go_by_their_names() {
    let mig = "MIG-3a1f5a8a-839f-69a8-08cf-e3fdcd01e019";
    let cdi = body(&want(&[GPU, mig]), Giving::Cdi).unwrap();
    let names =
        json!([{ "Driver": "cdi", "DeviceIDs": [format!("nvidia.com/gpu={GPU}"), format!("nvidia.com/gpu={mig}")] }]);
    assert_eq!(cdi["HostConfig"]["DeviceRequests"], names);
    let void = |body: &Value| body["Env"].as_array().unwrap().contains(&json!("NVIDIA_VISIBLE_DEVICES=void"));
    assert!(void(&cdi), "and by NVIDIA's runtime none besides");
    let older = body(&want(&[GPU]), Giving::Request).unwrap();
    let request = &older["HostConfig"]["DeviceRequests"][0];
    assert_eq!((&request["Driver"], &request["DeviceIDs"]), (&json!("nvidia"), &json!([GPU])));
    assert!(!void(&older), "the engine itself says which");
    assert!(void(&body(&want(&[]), Giving::Request).unwrap()), "who holds none sees none");
    assert!(body(&want(&[GPU]), Giving::Nothing).unwrap_err().contains("Docker"));
    assert!(body(&want(&["accel0"]), Giving::Cdi).unwrap_err().contains("accel0"));
}

#[test]
fn who_has_no_port_publishes_none() {
    let mut quiet = want(&[]);
    quiet.port = None;
    assert!(body(&quiet, Giving::Cdi).unwrap_err().contains("{port}"), "its command line asks for one");
}

#[test]
fn names_are_what_engines_allow() {
    let launch = Launch::of(ReplicaId { job: JobNo(7), replica: 2 }, &want(&[]));
    let record = Record::new(NodeName::new("n1").unwrap(), launch, "boot".into(), "/health".into(), 30);
    assert_eq!(name(&record), format!("nf-n1-r1.2.g3-{}", record.key));
}

#[test]
fn a_part_that_mps_enforces_comes_with_its_limits_and_the_way_to_the_daemon() {
    let whole = body(&want(&[GPU]), Giving::Cdi).unwrap();
    let text = |body: &Value| body["Env"].to_string();
    assert!(!text(&whole).contains("CUDA_MPS") && whole["HostConfig"]["IpcMode"].is_null());
    let part = |kept| Part { kept, milli: 250, memory: 20 << 30, of: 80 << 30 };
    let shared = body(&Want { part: Some(part(Kept::Mps)), ..want(&[GPU]) }, Giving::Cdi).unwrap();
    for wanted in [
        "CUDA_MPS_PIPE_DIRECTORY=/run/mps",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=20480M",
    ] {
        assert!(text(&shared).contains(wanted), "{wanted} in {}", shared["Env"]);
    }
    assert_eq!(shared["HostConfig"]["IpcMode"], json!("host"));
    let pipes = json!({ "Type": "bind", "Source": "/run/mps", "Target": "/run/mps", "ReadOnly": false });
    assert_eq!(shared["HostConfig"]["Mounts"][1], pipes);
    // What the runtime or nobody keeps is no business of the daemon's.
    for kept in [Kept::Runtime, Kept::Accepted, Kept::Simulated] {
        let other = body(&Want { part: Some(part(kept)), ..want(&[GPU]) }, Giving::Cdi).unwrap();
        assert!(!text(&other).contains("CUDA_MPS") && other["HostConfig"]["IpcMode"].is_null(), "{kept:?}");
    }
}
