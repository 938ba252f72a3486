//! Every parser of outside bytes, as a function of bytes that must not panic, with samples to begin
//! from. Two use it: the fuzzer beside this file, and a quick run in the integration tests.

use neural_fabric::api::convert::{approval, joining, json, node, policy, schedule};
use neural_fabric::security::signing::{self, Artefact, Demand, Expect, KeyRing, Roots};
use neural_fabric::security::{audit, checkpoint, join, jwt};
use neural_fabric::storage::checkpoint::Manifest as Checkpoint;
use neural_fabric::{agent, cli, config, exchange, models, pqc, raft};
use nf_core::command::Batch;
use nf_core::plan::{Intent, Reply, plan};
use nf_core::resources::Gpus;
use nf_core::rows::{self, Table};
use nf_core::state::State;
use nf_core::{apply, codec, invariants, testing};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

/// One parser, or a family of them that reads the same bytes.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "settings", run: settings, samples: settings_samples },
    Target { name: "values", run: values, samples: values_samples },
    Target { name: "json", run: bodies, samples: bodies_samples },
    Target { name: "codec", run: frames, samples: frames_samples },
    Target { name: "apply", run: entries, samples: entries_samples },
    Target { name: "rows", run: stored, samples: stored_samples },
    Target { name: "records", run: records, samples: records_samples },
    Target { name: "peers", run: peers, samples: peers_samples },
    Target { name: "agents", run: agents, samples: agents_samples },
    Target { name: "signatures", run: signatures, samples: signatures_samples },
    Target { name: "keys", run: keys, samples: keys_samples },
    Target { name: "tokens", run: tokens, samples: tokens_samples },
    Target { name: "joining", run: joiners, samples: joiners_samples },
    Target { name: "manifests", run: manifests, samples: manifests_samples },
    Target { name: "audit", run: trail, samples: trail_samples },
    Target { name: "online-place", run: online_place, samples: online_place_samples },
    Target { name: "online-autoscale", run: online_autoscale, samples: online_autoscale_samples },
    Target { name: "tables", run: tables, samples: tables_samples },
];

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn of(samples: &[&str]) -> Vec<Vec<u8>> {
    samples.iter().map(|sample| sample.as_bytes().to_vec()).collect()
}

fn settings(bytes: &[u8]) {
    let file =
        std::env::temp_dir().join(format!("nf-fuzz-{}-{:?}.toml", std::process::id(), std::thread::current().id()));
    std::fs::write(&file, bytes).expect("a temporary file");
    let none = BTreeMap::new();
    let sources = config::Sources { flags: &none, environment: HashMap::new(), file: Some(file.clone()) };
    if let Err(error) = config::Settings::load(&sources) {
        assert!(!error.to_string().is_empty());
    }
    let _ = std::fs::remove_file(file);
}

fn settings_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../cluster/config/config.example.toml").to_vec(),
        b"gpu_nodes = 3\nport = \"8600\"".to_vec(),
    ]
}

fn values(bytes: &[u8]) {
    use config::parse as p;
    let text = &text(bytes);
    let _ = (p::port(text), p::address(text), p::host(text), p::cluster(text), p::member_id(text), p::percent(text));
    let _ = (p::members(text), p::gpu_nodes(text), p::gpu_milli(text), p::place(text), p::labels(text));
    let _ = (p::prices(text), p::ports(text), p::duration(text), p::url(text), p::urls(text), p::store(text));
    let _ = (p::list(text), p::switch(text), p::mode(text), p::role(text), pqc::Mode::parse(text));
    let _ = (nf_core::resources::parse_bytes(text), agent::virtual_nodes::parse(text));
}

fn values_samples() -> Vec<Vec<u8>> {
    of(&[
        "n1:H100-80G:8,n2,n3:A100:4",
        "node-1=10.0.0.1:8601,node-2=10.0.0.2:8601",
        "H100-80G=4.25,A100=2",
        "zone=a,disk=ssd",
        "1500ms",
        "31000-31999",
        "4.5GiB",
        "sn,cpu_milli,memory_mib,gpu,model\nb1,128000,1048576,8,A100\n",
        "https://store.example/models?x=1",
    ])
}

fn bodies(bytes: &[u8]) {
    let Ok(map) = json::parse(bytes) else { return };
    let _ = (schedule::from_json(&map), schedule::scale(&map), policy::chosen(&map));
    let _ = (approval::wanted(&map), approval::named(&map), joining::wanted(&map));
    let _ = (node::registration(&map), node::launch(&map), node::cordon(&map), node::drain(&map), node::fault(&map));
    let _ = (node::quota(&map), node::new_member(&map), node::promote(&map), node::tenant(&map), node::token_id(&map));
}

fn bodies_samples() -> Vec<Vec<u8>> {
    of(&[
        r#"{"tenant_id":"t1","model_id":"m1","model_version":"v1","resources":{"gpu":1,"mem":"4GB","cpu":2.5},"constraints":{"latency_ms":200,"labels":{"a":"b"}},"replicas":2,"gang":true,"scaling":{"min":0,"max":4},"request_id":"r"}"#,
        r#"{"node_id":"n1","gpus":[{"uuid":"GPU-1","device_type":"H100","memory":"80GB"}],"labels":{"zone":"a"}}"#,
        r#"{"gpu":4,"borrowing":2,"lending":1,"parent":"research"}"#,
        r#"{"reason":"disk","deadline":"10m","force":false,"dry_run":true}"#,
        r#"{"policy":"fragmentation","weights":{"cost":3}}"#,
        r#"{"tenant_id":"t","model_id":"m","version":"v","manifest":"00","ttl":"4h"}"#,
        r#"{"id":"00000000000000000000000000000000","secret_sha256":"00","node_id":"n1","ttl":"1h"}"#,
    ])
}

fn frames(bytes: &[u8]) {
    // What decodes must encode to the same bytes, or two members would hash the same entry differently.
    if let Ok(batch) = codec::decode::<Batch>(bytes) {
        let again = codec::decode::<Batch>(&codec::encode(&batch));
        assert_eq!(again.as_ref(), Ok(&batch));
    }
    let _ = (codec::decode::<Intent>(bytes), codec::decode::<Reply>(bytes));
}

/// A small state in which most commands find something to act on, and the entries that made it.
fn small() -> &'static (State, Vec<Batch>) {
    static SMALL: OnceLock<(State, Vec<Batch>)> = OnceLock::new();
    SMALL.get_or_init(|| {
        let mut state = State::new();
        let mut batches = Vec::new();
        let service = {
            let mut spec = testing::job_spec("t1", Gpus::Whole(1));
            spec.replicas = 2;
            spec
        };
        let intents = [
            testing::register("n1", testing::node_spec(2)),
            testing::register("n2", testing::node_spec(4)),
            testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(1))),
            testing::schedule("r2", testing::job_spec("t2", Gpus::Milli(500))),
            testing::schedule("r3", service),
            testing::schedule("r4", testing::job_spec("t1", Gpus::Whole(16))),
        ];
        for intent in intents {
            let Ok(planned) = plan(&state, &intent) else { continue };
            let mut batch = Batch { base: state.meta().base, at_ms: 1_000, ..Batch::default() };
            planned.commands.into_iter().for_each(|command| batch.push(command, None));
            apply::apply_batch(&mut state, &batch);
            batches.push(batch);
        }
        (state, batches)
    })
}

fn frames_samples() -> Vec<Vec<u8>> {
    let (_, batches) = small();
    let intent = codec::encode(&testing::schedule("r9", testing::job_spec("t1", Gpus::Whole(1))));
    batches.iter().map(codec::encode).chain([intent, codec::encode(&Reply::empty())]).collect()
}

/// Whatever an entry says, apply must leave a sound state: a bad leader, or a bad bit, stops nobody.
fn entries(bytes: &[u8]) {
    let Ok(mut batch) = codec::decode::<Batch>(bytes) else { return };
    if batch.commands.len() > 64 {
        return;
    }
    let mut state = small().0.clone();
    batch.base = state.meta().base;
    apply::apply_batch(&mut state, &batch);
    let violations = invariants::check(&state);
    assert!(violations.is_empty(), "{batch:?}: {violations:?}");
}

fn entries_samples() -> Vec<Vec<u8>> {
    let state = &small().0;
    let stop = Intent::Stop {
        request: nf_core::id::RequestId::new("r1").expect("valid"),
        tenant: None,
        why: nf_core::reason::Reason::StoppedByUser,
    };
    let more = [stop, Intent::PlaceWaiting, testing::register("n3", testing::node_spec(1))];
    let planned = more.iter().filter_map(|intent| plan(state, intent).ok());
    let batch = |commands| Batch { at_ms: 2_000, commands, ..Batch::default() };
    planned.map(|planned| codec::encode(&batch(planned.commands))).chain(frames_samples()).collect()
}

/// The first byte names the table.
fn stored(bytes: &[u8]) {
    let Some((which, value)) = bytes.split_first() else { return };
    let table = Table::ALL[usize::from(*which) % Table::ALL.len()];
    let _ = State::from_rows([(table, vec![0; 16], value.to_vec())]);
    let _ = State::from_rows([(table, vec![0; 20], value.to_vec())]);
    let _ = State::from_rows([(table, vec![0; 8], value.to_vec())]);
    let _ = (rows::read_history(value), rows::read_event(value).is_ok(), rows::read_audit(value).is_ok());
}

fn stored_samples() -> Vec<Vec<u8>> {
    // A state that stores its rows, made the same way as the small one.
    let mut state = State::new();
    let mut out = Vec::new();
    for batch in &small().1 {
        apply::apply_batch(&mut state, batch);
        for row in state.take_changes() {
            let place = Table::ALL.iter().position(|table| *table == row.table).unwrap_or_default() as u8;
            out.extend(row.value.map(|value| [vec![place], value].concat()));
        }
    }
    out
}

fn records(bytes: &[u8]) {
    use raft::encoding as e;
    let _ = (e::decode_entry(1, bytes), e::decode_vote(bytes), e::decode_log_id(bytes), e::Position::decode(bytes));
    let _ = (neural_fabric::storage::frame::open(b"vote", bytes), Checkpoint::decode(bytes));
}

fn records_samples() -> Vec<Vec<u8>> {
    let manifest = Checkpoint { meta: raft::encoding::Position::default().encode().into(), parts: Vec::new() };
    let entry = frames_samples().remove(0);
    let head = [&[1_u8][..], &7_u64.to_le_bytes(), &(entry.len() as u32).to_le_bytes()].concat();
    vec![
        manifest.encode(),
        raft::encoding::Position::default().encode(),
        raft::encoding::encode_log_id(None),
        [head, entry].concat(),
        neural_fabric::storage::frame::seal(b"vote", &[0; 17]),
    ]
}

fn peers(bytes: &[u8]) {
    use nf_proto::internal as pb;
    use raft::wire;
    if let Ok(request) = pb::AppendRequest::decode(bytes) {
        let _ = wire::append(request);
    }
    if let Ok(reply) = pb::AppendReply::decode(bytes) {
        let _ = wire::append_result(reply);
    }
    if let Ok(request) = pb::VoteRequest::decode(bytes) {
        let _ = wire::vote_request(&request);
    }
    if let Ok(reply) = pb::VoteReply::decode(bytes) {
        let _ = wire::vote_response(&reply);
    }
}

fn peers_samples() -> Vec<Vec<u8>> {
    use nf_proto::internal as pb;
    let vote = Some(pb::Ballot { term: 3, voted_for: 1, committed: true });
    let id = Some(pb::LogId { term: 3, index: 9 });
    let entry = pb::Entry { term: 3, index: 10, kind: 1, body: frames_samples().remove(0).into() };
    let route = Some(pb::Route { cluster: "c".into(), from: 1, to: 2, name: "n".into() });
    let (entries, traces) = (vec![entry], Vec::new());
    let append =
        pb::AppendRequest { route: route.clone(), vote, prev: id, commit: id, entries, traces, introduced: true };
    let ask = pb::VoteRequest { route, vote, last: id, leadership_transfer: false, introduced: true };
    vec![append.encode_to_vec(), ask.encode_to_vec()]
}

fn agents(bytes: &[u8]) {
    use exchange::wire;
    use nf_proto::internal as pb;
    if let Ok(message) = pb::RegisterNodesRequest::decode(bytes) {
        message.nodes.into_iter().for_each(|node| drop(wire::registration(node)));
    }
    if let Ok(message) = pb::BeatRequest::decode(bytes) {
        let _ = wire::beats(message.beats);
    }
    if let Ok(message) = pb::ReportRequest::decode(bytes) {
        message.nodes.into_iter().for_each(|node| drop(wire::reports(node)));
    }
    if let Ok(message) = pb::FaultsRequest::decode(bytes) {
        let _ = wire::faults(message);
    }
    if let Ok(message) = pb::SlicesReply::decode(bytes) {
        let _ = wire::slices(message);
    }
    if let Ok(message) = pb::SightsReply::decode(bytes) {
        let _ = wire::seen(message);
    }
}

fn agents_samples() -> Vec<Vec<u8>> {
    use nf_proto::internal as pb;
    let start = exchange::NodeStart {
        node: nf_core::id::NodeName::new("n1").expect("valid"),
        incarnation: nf_core::id::Incarnation(1),
    };
    let registration = exchange::Registration {
        node: start.node.clone(),
        kind: nf_core::node::NodeKind::Worker,
        incarnation: start.incarnation,
        spec: testing::node_spec(2).into(),
    };
    let node = exchange::wire::put_registration(&registration);
    let register = pb::RegisterNodesRequest { cluster: "c".into(), nodes: vec![node], production: false };
    vec![register.encode_to_vec(), exchange::wire::put_faults("c", &start, &[]).encode_to_vec()]
}

const SIGNED: &[u8] = include_bytes!("../data/signing/manifest.json");

fn trusted() -> &'static (KeyRing, Roots) {
    static TRUSTED: OnceLock<(KeyRing, Roots)> = OnceLock::new();
    TRUSTED.get_or_init(|| {
        let (mut keys, mut roots) = (KeyRing::default(), Roots::default());
        for key in [
            &include_bytes!("../data/signing/p256.pub.pem")[..],
            include_bytes!("../data/signing/p384.pub.pem"),
            include_bytes!("../data/signing/rsa.pub.pem"),
            include_bytes!("../data/signing/vault.ecdsa-p256.key.json"),
        ] {
            keys.add_file("key", key).expect("a key");
        }
        roots.add_file("root", include_bytes!("../data/signing/root.pem")).expect("a root");
        (keys, roots)
    })
}

/// Nothing but the sample signatures, of the very same bytes, may count.
fn signatures(bytes: &[u8]) {
    let (keys, roots) = trusted();
    let now = 1_790_000_000;
    let policy = signing::Policy { keys, roots, demand: Demand::Classical, expect: &Expect::default(), now };
    let artefact = Artefact::Bytes { name: "manifest.json", bytes: SIGNED };
    let _ = signing::verify(&policy, &artefact, bytes);
    let other = Artefact::Bytes { name: "manifest.json", bytes: b"something else" };
    assert!(signing::verify(&policy, &other, bytes).is_err(), "a signature of other bytes counts");
}

fn signatures_samples() -> Vec<Vec<u8>> {
    [
        &include_bytes!("../data/signing/manifest.p256.sig")[..],
        include_bytes!("../data/signing/manifest.rsa.sig"),
        include_bytes!("../data/signing/manifest.dsse.sigstore.json"),
        include_bytes!("../data/signing/manifest.message.sigstore.json"),
        include_bytes!("../data/signing/model.p256.sig"),
        include_bytes!("../data/signing/model.cert.sig"),
        include_bytes!("../data/signing/vault.ecdsa-p256.sig.json"),
        b"vault:v1:MEQCIFfx7f6RViQhNHJNoXP9nBLnr5MmrYgX2LoEEStvtTGm",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

fn keys(bytes: &[u8]) {
    let _ = KeyRing::default().add_file("key", bytes);
    let _ = Roots::default().add_file("root", bytes);
    let _ = (signing::PublicKey::from_spki(bytes), signing::PublicKey::from_ed25519(bytes));
    let _ = jwt::Keys::parse("keys", bytes);
}

fn keys_samples() -> Vec<Vec<u8>> {
    let mint = jwt::Mint::generate("fuzz").expect("a key");
    [
        &include_bytes!("../data/signing/p256.pub.pem")[..],
        include_bytes!("../data/signing/rsa.pub.pem"),
        include_bytes!("../data/signing/root.pem"),
        include_bytes!("../data/signing/vault.ecdsa-p256.rotated.key.json"),
        mint.jwks().to_string().as_bytes(),
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

fn issuer() -> &'static (jwt::Verifier, String) {
    static ISSUER: OnceLock<(jwt::Verifier, String)> = OnceLock::new();
    ISSUER.get_or_init(|| {
        let mint = jwt::Mint::generate("fuzz").expect("a key");
        let keys = jwt::Keys::parse("fuzz", mint.jwks().to_string().as_bytes()).expect("keys");
        let grant = jwt::Grant {
            subject: "ada".into(),
            tenant: "t1".into(),
            roles: vec![jwt::Role::Viewer],
            id: "id".into(),
            lifetime_s: 60,
        };
        (jwt::Verifier::new(keys, None), mint.token(&grant, 1_000_000).expect("a token"))
    })
}

/// No token but the sample counts.
fn tokens(bytes: &[u8]) {
    let (verifier, token) = issuer();
    let text = text(bytes);
    if verifier.verify(&text, 1_000_000).is_ok() {
        assert_eq!(&text, token, "a token that nobody made counts");
    }
}

fn tokens_samples() -> Vec<Vec<u8>> {
    of(&[&issuer().1, "eyJhbGciOiJub25lIn0.e30."])
}

fn joiners(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(token) = join::Token::parse(&text) {
        // Blanks around it, and the padding of its secret, say nothing.
        assert_eq!(join::Token::parse(&token.text()), Ok(token));
    }
    let _ = (join::token_id(&text), join::Wish::read(&text), join::Life::of(&text));
}

fn joiners_samples() -> Vec<Vec<u8>> {
    let token = join::Token::generate().expect("random bytes").of_authority([7; 32]);
    let request = join::Applicant::generate().and_then(|applicant| applicant.request()).expect("a request");
    vec![token.text().into_bytes(), request.into_bytes()]
}

fn manifests(bytes: &[u8]) {
    let _ = models::Manifest::parse("manifest", bytes);
}

fn manifests_samples() -> Vec<Vec<u8>> {
    of(&[
        r#"{"model":"m","version":"v1","files":[{"name":"model.onnx","sha256":"0000000000000000000000000000000000000000000000000000000000000000","size":3}],"runtime":{"kind":"process","command":["python3","serve.py"],"ready":{"path":"/health"}},"memory":1000}"#,
        r#"{"model":"m","version":"v1","files":[],"runtime":{"kind":"simulated"}}"#,
    ])
}

fn trail(bytes: &[u8]) {
    let _ = audit::verify(bytes, &[], &[]);
    let text = text(bytes);
    let _ = (audit::read_checkpoint(&text), checkpoint::read(&text));
}

fn trail_samples() -> Vec<Vec<u8>> {
    of(&[
        "{\"action\":\"job.schedule\",\"actor\":{\"subject\":\"-\"},\"at\":1,\"checks\":{},\"object\":\"job/r\",\"prev\":\"00\",\"seq\":1}\n",
        "{\"checkpoint\":{\"head\":\"00\",\"origin\":\"c\",\"root\":\"00\",\"size\":1}}\n",
        "c\n1\nAAAA\n\n\u{2014} n AAAA\n",
    ])
}

fn online_place(bytes: &[u8]) {
    let _ = cli::sim::speak_place(bytes, std::io::sink(), |_| {}, Default::default());
}

fn online_place_samples() -> Vec<Vec<u8>> {
    of(&[
        "NODES 2\nn1 64000 262144 2 A10\nn2 64000 262144 4 -\nHISTORY 1\n10 1000 1024 1 500 A10|V100\nREADY\nPOD 1 1000 1024 1 500 -\nFAILED\nPOD 2 1000 1024 2 1000 -\nOK\nEND\n",
    ])
}

fn online_autoscale(bytes: &[u8]) {
    let _ = cli::sim::speak_autoscale(bytes, std::io::sink());
}

fn online_autoscale_samples() -> Vec<Vec<u8>> {
    of(&[
        "SERVICE tick_s=5 cold_start_s=60 min=0 max=10 slots=16 slo_ms=2000 service_ms=1000 gpus=1\nREADY\nTICK 5 1 0 0 3 16 40 nan\nTICK 10 1 - 0 3 1e300 40 12.5\nEND\n",
    ])
}

fn tables(bytes: &[u8]) {
    let _ = nf_core::autoscaler::replay::load::read(&text(bytes), 1, 1_000);
    let _ = neural_fabric::api::service::list::Cursor::parse(&text(bytes));
}

fn tables_samples() -> Vec<Vec<u8>> {
    of(&["t,count\n0,3\n60,9\n", "second\n0.5\n1.25\n", "l1f", "h"])
}
