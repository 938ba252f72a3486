//! The border under fire: what is accepted, what is refused and how it is told,
//! and that nothing a client can send makes it panic.

use super::json::parse;
use super::node::{promote, quota, registration};
use super::schedule::{Schedule, from_json, naming};
use nf_core::id::{RequestId, TenantId};
use nf_core::job::{Arrangement, Restart};
use nf_core::plan::Intent;
use nf_core::reason::{Reason, Refusal};
use nf_core::resources::Gpus;
use nf_core::topology::Level;
use nf_proto::v1;
use proptest::prelude::*;

fn read(body: &str) -> Result<Schedule, Refusal> {
    from_json(&parse(body.as_bytes())?)
}

fn with(extra: &str) -> Result<Schedule, Refusal> {
    read(&format!("{{\"tenant_id\":\"t1\",\"model_id\":\"m1\",\"model_version\":\"v1\"{extra}}}"))
}

fn refused(extra: &str) -> (Reason, String) {
    let refusal = with(extra).expect_err(extra);
    (refusal.reason, refusal.field.unwrap_or_default())
}

#[test]
fn the_example_of_the_specification_is_read() {
    let got = with(r#","resources":{"gpu":1,"mem":"4GB"},"constraints":{"latency_ms":200}"#).unwrap();
    assert_eq!((got.spec.resources.gpu, got.spec.resources.memory), (Gpus::Whole(1), 4_000_000_000));
    assert_eq!((got.spec.constraints.latency_ms, got.spec.replicas), (Some(200), 1));
}

#[test]
fn nodes_in_thought_are_counted_and_bounded() {
    let added = |body: &str| {
        let read = super::node::added(&parse(body.as_bytes()).unwrap());
        read.map(|kinds| kinds.iter().map(|(count, node)| (*count, node.gpus)).collect::<Vec<_>>())
            .map_err(|refusal| (refusal.reason, refusal.field.unwrap_or_default()))
    };
    let two = r#"{"add_nodes": [{"count": 3, "gpus": 8, "cpu": 96}, {}]}"#;
    assert_eq!(added(two), Ok(vec![(3, Some(8)), (1, None)]));
    let wrong = |field: &str| Err((Reason::InvalidArgument, field.to_owned()));
    assert_eq!(added(r#"{"add_nodes": [{"count": 4000}, {"count": 97}]}"#), wrong("add_nodes"));
    assert_eq!(added(r#"{"add_nodes": {}}"#), wrong("add_nodes"));
    assert_eq!(added("{}"), wrong("add_nodes"));
    assert_eq!(added(r#"{"add_nodes": [{"count": 0}]}"#), wrong("add_nodes[0].count"));
    let unknown = Err((Reason::UnknownField, "add_nodes[0].node_id".to_owned()));
    assert_eq!(added(r#"{"add_nodes": [{"node_id": "n1"}]}"#), unknown);
}

#[test]
fn every_field_has_its_meaning() {
    let got = with(
        r#","resources":{"gpu":"0.5","gpu_memory":"16GiB","device_type":"H100-80G|A100","cpu":1.5,"disk":7.0},
        "constraints":{"spread":true,"labels":{"a":"b"},"restart":"never","max_run_time":"10m","max_cost_per_hour":1.5,
        "node":"n1","exclusive":true},"replicas":6.0,"gang":true,"priority":-5,"queue":"never","request_id":"R1""#,
    )
    .unwrap();
    let spec = &got.spec;
    assert_eq!((spec.resources.gpu, spec.resources.gpu_memory), (Gpus::Milli(500), 16 << 30));
    assert_eq!(spec.resources.device_types.iter().map(|t| t.as_str()).collect::<Vec<_>>(), ["A100", "H100-80G"]);
    assert_eq!((spec.resources.cpu_milli, spec.resources.disk), (1500, 7));
    assert_eq!((spec.constraints.arrangement, spec.constraints.restart), (Arrangement::Spread, Restart::Never));
    assert_eq!((spec.constraints.max_run_ms, spec.constraints.max_cost_per_hour), (Some(600_000), Some(1_500_000)));
    assert_eq!((spec.replicas, spec.gang, spec.priority), (6, true, -5));
    assert_eq!(got.request, RequestId::new("R1").ok());
}

#[test]
fn each_fault_is_told_with_its_path() {
    use Reason::{InvalidArgument as Bad, UnknownField as Unknown};
    let big = format!(r#","request_id":"{}""#, "a".repeat(4096));
    let many = format!(r#","resources":{{"device_type":[{}]}}"#, vec!["\"A\""; 65].join(","));
    let cases: &[(&str, Reason, &str)] = &[
        (r#","gpus":1"#, Unknown, "gpus"),
        (r#","resources":{"gpu":1,"gpuz":2}"#, Unknown, "resources.gpuz"),
        (r#","constraints":{"a\nb":2}"#, Unknown, "constraints.a\\nb"),
        (r#","resources":[]"#, Bad, "resources"),
        (r#","resources":{"gpu":true}"#, Bad, "resources.gpu"),
        (r#","resources":{"gpu":-1}"#, Bad, "resources.gpu"),
        (r#","resources":{"gpu":"NaN"}"#, Bad, "resources.gpu"),
        (r#","resources":{"gpu":1.5}"#, Bad, "resources.gpu"),
        (r#","resources":{"gpu":9223372036854775808}"#, Bad, "resources.gpu"),
        (r#","resources":{"mem":9223372036854775808}"#, Bad, "resources.mem"),
        (r#","resources":{"mem":"4XB"}"#, Bad, "resources.mem"),
        (r#","resources":{"tpu":0.5}"#, Bad, "resources.tpu"),
        (r#","resources":{"device_type":["a b"]}"#, Bad, "resources.device_type[0]"),
        (r#","replicas":0"#, Bad, "replicas"),
        (r#","replicas":1e300"#, Bad, "replicas"),
        (r#","priority":1001"#, Bad, "priority"),
        (r#","priority":1,"constraints":{"priority":2}"#, Bad, "constraints.priority"),
        (r#","constraints":{"spread":true,"pack":true}"#, Bad, "constraints"),
        (r#","constraints":{"labels":{"a":7}}"#, Bad, "constraints.labels.a"),
        (r#","constraints":{"restart":"sometimes"}"#, Bad, "constraints.restart"),
        (r#","constraints":{"max_run_time":-1}"#, Bad, "constraints.max_run_time"),
        (r#","constraints":{"node":"../x"}"#, Bad, "constraints.node"),
        (r#","constraints":{"error_rate":0}"#, Bad, "constraints.error_rate"),
        (r#","constraints":{"error_rate":0.21}"#, Bad, "constraints.error_rate"),
        (r#","scaling":{"max":2,"step_up":0}"#, Bad, "scaling.step_up"),
        (r#","scaling":{"max":2,"step_down":65536}"#, Bad, "scaling.step_down"),
        (r#","scaling":{"max":2,"step_within":"2d"}"#, Bad, "scaling.step_within"),
        (r#","scaling":{"max":2,"step_within":0}"#, Bad, "scaling.step_within"),
        (r#","check_plan":"xyz""#, Bad, "check_plan"),
        (r#","request_id":"../x""#, Bad, "request_id"),
        (r#","approved_by":"a\u0000b""#, Bad, "approved_by"),
        (&big, Bad, "request_id"),
        (&many, Bad, "resources.device_type"),
    ];
    for (extra, reason, field) in cases {
        assert_eq!(refused(extra), (*reason, (*field).to_owned()), "{extra}");
    }
    assert_eq!(read("{}").unwrap_err().field.as_deref(), Some("tenant_id"));
    let null = r#"{"tenant_id":null,"model_id":"m","model_version":"v"}"#;
    assert_eq!(read(null).unwrap_err().field.as_deref(), Some("tenant_id"));
}

fn body_of(wanted: Schedule, key: Option<&str>) -> (RequestId, nf_core::id::Digest16, bool) {
    let naming = naming(&wanted.spec.tenant, wanted.request.as_ref(), key).unwrap();
    match wanted.into_intent(naming, None) {
        Intent::Schedule { submission, .. } => (submission.request, submission.body, submission.keyed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_meaning_has_the_same_digest_and_another_has_not() {
    let one = body_of(with(r#","resources":{"gpu":1,"mem":"4GB"}"#).unwrap(), Some("k"));
    let same = body_of(with(r#","replicas":1.0,"resources":{"mem":4000000000,"gpu":"1"}"#).unwrap(), Some("k"));
    let other = body_of(with(r#","resources":{"gpu":2}"#).unwrap(), Some("k"));
    assert_eq!(one, same);
    assert!(one.2);
    assert_eq!(one.0, other.0);
    assert_ne!(one.1, other.1);
    assert!(!body_of(with("").unwrap(), None).2);
    let t2 = TenantId::new("t2").unwrap();
    assert_ne!(naming(&t2, None, Some("k")).unwrap().request, one.0);
    assert!(naming(&t2, Some(&one.0), Some("k")).is_err());
    assert!(naming(&t2, None, Some("")).is_err());
    assert!(naming(&t2, None, Some(&"k".repeat(256))).is_err());
}

/// A request that is tried again while the group is upgraded meets what an earlier build made of it: these stay as they are,
/// whatever fields are added.
#[test]
fn a_digest_is_the_same_in_every_build() {
    let rich = r#","resources":{"gpu":"0.5","gpu_memory":"16GiB","device_type":"H100-80G|A100","cpu":1.5},
        "constraints":{"spread":true,"labels":{"a":"b"},"restart":"never","max_run_time":"10m","node":"n1"},
        "replicas":6,"gang":true,"priority":-5,"queue":"never""#;
    let service = r#","scaling":{"min":0,"max":4},"constraints":{"latency_ms":200,"error_rate":0.01}"#;
    let told = ["", rich, service].map(|extra| body_of(with(extra).unwrap(), Some("k")).1.to_string());
    assert_eq!(
        told,
        ["5252ed73689030b796f7fa1bb4a24db3", "010f15d2d3355c95f0e2817398f318b9", "c8c0aeab25bcf448941a0210461865dd"]
    );
}

#[test]
fn a_node_needs_next_to_nothing() {
    let got = registration(&parse(br#"{"node_id":"n1","gpus":1}"#).unwrap()).unwrap();
    let spec = got.spec(got.name.as_ref().unwrap(), "127.0.0.1", None);
    assert_eq!(spec.devices.len(), 1);
    assert!(spec.simulated && spec.memory >= 4_000_000_000);
    assert_eq!(registration(&Default::default()).unwrap().spec(&"n2".parse().unwrap(), "h", None).devices.len(), 1);
    for bad in [r#"{"gpus":-1}"#, r#"{"gpus":1e18}"#, r#"{"node_id":"N"}"#, r#"{"gpu":1}"#, r#"{"labels":[]}"#] {
        assert!(registration(&parse(bad.as_bytes()).unwrap()).is_err(), "{bad}");
    }
    assert!(promote(&parse(br#"{"member":"a","region":"b"}"#).unwrap()).is_err());
    assert!(promote(&parse(br#"{"member":2}"#).unwrap()).unwrap().dry_run);
    assert_eq!(quota(&parse(br#"{"gpu":8,"mem":"1TiB"}"#).unwrap()).unwrap().gpu_milli, Some(8000));
}

#[test]
fn both_protocols_understand_a_request_alike() {
    let json =
        with(r#","resources":{"gpu":0.25,"cpu":2},"constraints":{"region":"eu","error_rate":0.01},"replicas":3"#)
            .unwrap();
    let message = v1::ScheduleRequest {
        tenant_id: "t1".into(),
        model_id: "m1".into(),
        model_version: "v1".into(),
        resources: Some(v1::Resources { gpu: 0.25, cpu: 2.0, ..Default::default() }),
        constraints: Some(v1::Constraints { region: "eu".into(), error_rate: 0.01, ..Default::default() }),
        replicas: 3,
        ..Default::default()
    };
    assert_eq!(super::proto::schedule(message.clone()).unwrap().0, json);
    assert_eq!(json.spec.constraints.error_ppm, Some(10_000));
    for bad in [f64::NAN, -1.0, 1.5, f64::INFINITY, 1e300] {
        let resources = Some(v1::Resources { gpu: bad, ..Default::default() });
        let refusal = super::proto::schedule(v1::ScheduleRequest { resources, ..message.clone() }).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("resources.gpu"), "{bad}");
    }
    let refusal = super::proto::schedule(v1::ScheduleRequest { queue: 99, ..message }).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("queue"));
}

#[test]
fn both_protocols_understand_how_fast_a_service_may_change() {
    let read = |scaling: &str| with(&format!(r#","scaling":{scaling}"#)).unwrap().spec.scaling.unwrap();
    let told = |scaling| {
        let names = ["t1", "m1", "v1"].map(String::from);
        let [tenant_id, model_id, model_version] = names;
        let message = v1::ScheduleRequest { tenant_id, model_id, model_version, ..Default::default() };
        let scaling = Some(v1::Scaling { min: 1, max: 9, ..scaling });
        super::proto::schedule(v1::ScheduleRequest { scaling, replicas: 1, ..message }).unwrap().0.spec.scaling.unwrap()
    };
    let usual = read(r#"{"max":9}"#);
    assert_eq!((usual.steps, told(v1::Scaling::default())), (nf_core::autoscaler::Steps::default(), usual));
    let stated = read(r#"{"max":9,"step_up":4,"step_down":1,"step_within":"2m"}"#);
    let (up, down) = (stated.steps.up.map(u16::from), stated.steps.down.map(u16::from));
    assert_eq!((up, down, stated.steps.within_ms), (Some(4), Some(1), 120_000));
    let steps = v1::Scaling { step_up: 4, step_down: 1, step_within_ms: 120_000, ..Default::default() };
    assert_eq!(told(steps), stated);
    let body = serde_json::to_value(super::answer::ScalingBody::from(&stated)).unwrap();
    assert_eq!((&body["step_up"], &body["step_within_ms"]), (&4.into(), &120_000.into()));
}

#[test]
fn both_protocols_take_racks_zones_and_regions_alike_and_name_what_is_none() {
    let wish = r#","replicas":4,"gang":true,"constraints":{"topology_required":"zone","topology_preferred":"rack"}"#;
    let (json, (rack, zone)) = (with(wish).unwrap(), (v1::TopologyLevel::Rack, v1::TopologyLevel::Zone));
    let topology = json.spec.constraints.topology;
    assert_eq!((topology.required, topology.preferred), (Some(Level::Zone), Some(Level::Rack)));
    let wished = |required: i32, preferred: i32| v1::ScheduleRequest {
        tenant_id: "t1".into(),
        model_id: "m1".into(),
        model_version: "v1".into(),
        constraints: Some(v1::Constraints {
            topology_required: required,
            topology_preferred: preferred,
            ..Default::default()
        }),
        replicas: 4,
        gang: true,
        ..Default::default()
    };
    assert_eq!(super::proto::schedule(wished(zone.into(), rack.into())).unwrap().0, json);
    let refusal = super::proto::schedule(wished(9, 0)).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("constraints.topology_required"));
    let refusal = with(r#","constraints":{"topology_preferred":"row"}"#).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("constraints.topology_preferred"));
    assert!(refusal.detail.contains("one of rack, zone, region"), "{}", refusal.detail);
}

/// Any JSON, with the real field names among the keys so that readers get deep.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let key = prop_oneof![
        prop::sample::select(vec![
            "tenant_id",
            "model_id",
            "model_version",
            "resources",
            "constraints",
            "gpu",
            "mem",
            "cpu",
            "disk",
            "labels",
            "device_type",
            "replicas",
            "priority",
            "max_run_time",
            "checkpoint_grace",
            "max_unavailable",
            "topology_required",
            "node_id",
            "gpus",
            "region",
            "member",
            "check_plan",
            "restart",
            "max_cost_per_hour",
            "request_id",
            "queue",
            "gpu_memory",
            "spread",
            "tpu",
        ])
        .prop_map(str::to_owned),
        ".{0,12}",
    ];
    let text = prop_oneof![".{0,40}", "[a-z0-9]{1,8}", "[0-9.]{1,24}[a-zA-Z]{0,3}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 12, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..12)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_json_makes_a_reader_panic(value in any_json()) {
        let map = match value {
            serde_json::Value::Object(map) => map,
            other => serde_json::Map::from_iter([("resources".to_owned(), other)]),
        };
        // With the three names in place, the readers get to the rest.
        let mut named = map.clone();
        for (key, value) in [("tenant_id", "t1"), ("model_id", "m1"), ("model_version", "v1")] {
            named.insert(key.to_owned(), value.into());
        }
        let mut nodes = map.clone();
        nodes.insert("add_nodes".to_owned(), serde_json::Value::Array(vec![map.clone().into()]));
        let _ = (super::node::added(&map), super::node::added(&nodes), super::node::dry_run(&map));
        let _ = (from_json(&map), registration(&map), quota(&map), promote(&map), super::node::launch(&map));
        if let Ok(wanted) = from_json(&named) {
            body_of(Schedule { request: None, ..wanted }, None);
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_text_makes_a_quantity_panic(text in ".{0,70}", number in any::<f64>()) {
        use super::value::*;
        let _ = (milli_text(&text), bytes(&text), span(&text), device_types(&text), digest(&text));
        let _ = (milli(number), micro(number), seconds(number));
        let _ = crate::api::service::list::Cursor::parse(&text);
    }
}
