//! Messages ↔ protobuf. Everything that comes from the wire is checked here, once;
//! bytes that are not what they should be are refused, never a panic.

mod vouch;

pub use vouch::{put_voucher, voucher};

use super::message::{
    Beat, BeatAnswer, Error, LogQuery, NodeReports, NodeStart, Registered, Registration, Slice, Slices, TOLD,
};
use super::sights::{self, Seen};
use super::vitals::{self, Vitals};
use crate::telemetry::traces;
use nf_core::autoscaler::source::Told;
use nf_core::codec::{self, Framed};
use nf_core::command::{DeviceFault, Report};
use nf_core::id::{Digest16, Incarnation, JobNo, NodeName, NodeNo, RequestId};
use nf_core::node::{Device, NodeKind, NodeSpec};
use nf_core::reason::{Reason, Refusal};
use nf_core::reconcile::{Desired, MAX_PURGES, ReplicaId};
use nf_proto::internal as pb;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tonic::{Code, Status};

/// Largest message either way.
pub const MESSAGE_BYTES: usize = 16 << 20;
/// Nodes in one message.
pub const NODES: usize = 4096;
/// Reports of one node in one message.
pub const REPORTS: usize = 1024;

#[derive(Serialize, Deserialize)]
struct SpecBody(NodeSpec);
#[derive(Serialize, Deserialize)]
struct DesiredBody(Arc<Desired>);
#[derive(Serialize, Deserialize)]
struct ReportsBody(Vec<Report>);
#[derive(Serialize, Deserialize)]
struct SeenBody(Seen);
#[derive(Serialize, Deserialize)]
struct ToldBody(Vec<Told>);
#[derive(Serialize, Deserialize)]
struct VitalsBody(Vec<Vitals>);
#[derive(Serialize, Deserialize)]
struct AllVitalsBody(Vec<(NodeNo, Vec<Vitals>)>);
#[derive(Serialize, Deserialize)]
struct PurgedBody(Vec<(Digest16, u64)>);
#[derive(Serialize, Deserialize)]
struct FaultsBody(Vec<DeviceFault>);

/// Gives each body its number, all of them in one list.
macro_rules! numbered {
    ($($body:ident = $kind:literal,)*) => {
        $(impl Framed for $body {
            const KIND: u16 = $kind;
        })*
        #[cfg(test)]
        const KINDS: &[u16] = &[$($kind),*];
    };
}

// Numbers from 32 on are the exchange's; nf-core has those below. A body whose shape changes gets a new one, as does
// whatever is inside it: read by the old shape, it would be taken for something else. A member that doesn't know the
// other one's kind is silent to it, and while a member is silent the autoscaler takes nothing away.
// Were used: 33 (slices without purges), 35, 37 and 38 (sights without windows and advice, without trials, with advice
// that says nothing of its signals).
numbered! {
    SpecBody = 32,
    ReportsBody = 34,
    FaultsBody = 36,
    PurgedBody = 39,
    DesiredBody = 40,
    ToldBody = 41,
    SeenBody = 42,
    VitalsBody = 43,
    AllVitalsBody = 44,
}

fn bad(field: &str, text: impl std::fmt::Display) -> Error {
    Error::Refused(Refusal::invalid(field, text.to_string()))
}

fn name(field: &str, text: &str) -> Result<NodeName, Error> {
    NodeName::new(text).map_err(|e| bad(field, e))
}

fn body<T: Framed>(field: &str, bytes: &[u8]) -> Result<T, Error> {
    codec::decode(bytes).map_err(|e| bad(field, e))
}

/// Refuses lists that are longer than `most`.
pub fn at_most(field: &str, length: usize, most: usize) -> Result<(), Error> {
    if length > most {
        return Err(bad(field, format!("at most {most} in one message, not {length}")));
    }
    Ok(())
}

// ---- errors ----

/// The status that carries `error`; the refusal's token and field ride in its metadata.
pub fn put_error(error: &Error) -> Status {
    match error {
        Error::Unavailable(text) => Status::unavailable(text.clone()),
        Error::Refused(refusal) => {
            let code = match refusal.reason {
                Reason::NotFound => Code::NotFound,
                Reason::InvalidArgument => Code::InvalidArgument,
                Reason::NodeIdentityMismatch | Reason::Forbidden => Code::PermissionDenied,
                _ => Code::FailedPrecondition,
            };
            let mut status = Status::new(code, refusal.detail.clone());
            let token = tonic::metadata::MetadataValue::from_static(refusal.reason.token());
            status.metadata_mut().insert(REASON, token);
            if let Some(field) = refusal.field.as_deref().and_then(|field| field.parse().ok()) {
                status.metadata_mut().insert(FIELD, field);
            }
            status
        }
    }
}

const REASON: &str = "nf-reason";
const FIELD: &str = "nf-field";

fn reason(token: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.token() == token)
}

/// What a status says: a refusal that names its reason, else that nobody could answer.
pub fn error(status: &Status) -> Error {
    let text = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
    match text(REASON).and_then(reason) {
        Some(reason) => Error::Refused(Refusal {
            reason,
            detail: status.message().to_owned(),
            field: text(FIELD).map(str::to_owned),
        }),
        None => Error::Unavailable(format!("{}: {}", status.code(), status.message())),
    }
}

// ---- nodes ----

pub fn put_start(start: &NodeStart) -> pb::NodeStart {
    pb::NodeStart { name: start.node.to_string(), incarnation: start.incarnation.0 }
}

pub fn start(start: Option<pb::NodeStart>) -> Result<NodeStart, Error> {
    let start = start.ok_or_else(|| bad("node", "missing"))?;
    Ok(NodeStart { node: name("node.name", &start.name)?, incarnation: Incarnation(start.incarnation) })
}

pub fn starts(list: Vec<pb::NodeStart>) -> Result<Vec<NodeStart>, Error> {
    at_most("nodes", list.len(), NODES)?;
    list.into_iter().map(|one| start(Some(one))).collect()
}

pub fn put_registration(registration: &Registration) -> pb::NodeRegistration {
    let mut spec = (*registration.spec).clone();
    let numa_nodes = put_numa_nodes(&mut spec.devices);
    pb::NodeRegistration {
        node: Some(pb::NodeStart { name: registration.node.to_string(), incarnation: registration.incarnation.0 }),
        spec: codec::encode(&SpecBody(spec)).into(),
        numa_nodes,
    }
}

/// Takes what is known of NUMA nodes out of the devices: beside them, a member that knows no such thing passes it over.
fn put_numa_nodes(devices: &mut [Device]) -> Vec<u32> {
    if devices.iter().all(|device| device.numa.is_none()) {
        return Vec::new();
    }
    devices.iter_mut().map(|device| device.numa.take().map_or(0, |numa| u32::from(numa) + 1)).collect()
}

fn numa_nodes(told: &[u32], devices: &mut [Device]) -> Result<(), Error> {
    if !told.is_empty() && told.len() != devices.len() {
        return Err(bad("numa_nodes", format!("{} for {} devices", told.len(), devices.len())));
    }
    for (device, told) in devices.iter_mut().zip(told) {
        let numa = told.checked_sub(1).map(u16::try_from).transpose();
        device.numa = numa.map_err(|_| bad("numa_nodes", format!("{told}: no machine has so many")))?;
    }
    Ok(())
}

/// Who registers over the wire is a worker.
pub fn registration(message: pb::NodeRegistration) -> Result<Registration, Error> {
    let NodeStart { node, incarnation } = start(message.node)?;
    let SpecBody(mut spec) = body("spec", &message.spec)?;
    numa_nodes(&message.numa_nodes, &mut spec.devices)?;
    Ok(Registration { node, kind: NodeKind::Worker, incarnation, spec: Arc::new(spec) })
}

pub fn put_registered(registered: &Registered) -> pb::NodeRegistered {
    use pb::node_registered::Result as R;
    let result = match registered {
        Registered::At { index, .. } => R::Index(*index),
        Registered::Superseded => R::Superseded(true),
        Registered::Refused(refusal) => R::Refused(pb::NodeRefusal {
            reason: refusal.reason.token().into(),
            detail: refusal.detail.clone(),
            field: refusal.field.clone().unwrap_or_default(),
        }),
    };
    pb::NodeRegistered { result: Some(result), new_node: matches!(registered, Registered::At { new: true, .. }) }
}

pub fn registered(message: pb::NodeRegistered) -> Result<Registered, Error> {
    use pb::node_registered::Result as R;
    match message.result {
        Some(R::Index(index)) => Ok(Registered::At { index, new: message.new_node }),
        Some(R::Superseded(_)) => Ok(Registered::Superseded),
        Some(R::Refused(refusal)) => Ok(Registered::Refused(Refusal {
            reason: reason(&refusal.reason).unwrap_or(Reason::Internal),
            detail: refusal.detail,
            field: Some(refusal.field).filter(|field| !field.is_empty()),
        })),
        None => Err(Error::Unavailable("an answer of a newer version".into())),
    }
}

// ---- beats ----

pub fn put_beat(beat: &Beat) -> pb::NodeBeat {
    let node = pb::NodeStart { name: beat.node.to_string(), incarnation: beat.incarnation.0 };
    let told = match &beat.told[..] {
        [] => Default::default(),
        told => codec::encode(&ToldBody(told.to_vec())).into(),
    };
    let vitals = match &beat.vitals[..] {
        [] => Default::default(),
        vitals => codec::encode(&VitalsBody(vitals.to_vec())).into(),
    };
    pb::NodeBeat { node: Some(node), revision_seen: beat.revision_seen, told, vitals }
}

pub fn beats(list: Vec<pb::NodeBeat>) -> Result<Vec<Beat>, Error> {
    at_most("beats", list.len(), NODES)?;
    let one = |beat: pb::NodeBeat| {
        let NodeStart { node, incarnation } = start(beat.node)?;
        // A word on load that can't be read is no reason to hold a node for dead.
        let told = match beat.told.is_empty() {
            true => Vec::new(),
            false => codec::decode::<ToldBody>(&beat.told).map(|ToldBody(told)| told).unwrap_or_default(),
        };
        at_most("told", told.len(), TOLD)?;
        let mut vitals = match beat.vitals.is_empty() {
            true => Vec::new(),
            false => codec::decode::<VitalsBody>(&beat.vitals).map(|VitalsBody(all)| all).unwrap_or_default(),
        };
        vitals.retain(|gpu| gpu.uuid.len() <= vitals::MAX_UUID);
        at_most("vitals", vitals.len(), vitals::GPUS)?;
        Ok(Beat { node, incarnation, revision_seen: beat.revision_seen, told, vitals })
    };
    list.into_iter().map(one).collect()
}

pub fn put_answer(answer: BeatAnswer) -> pb::BeatReply {
    let names = |list: Vec<NodeName>| list.iter().map(NodeName::to_string).collect();
    pb::BeatReply {
        term: answer.term,
        commit_index: answer.commit_index,
        lease_ms: answer.lease_ms,
        superseded: names(answer.superseded),
        unknown: names(answer.unknown),
    }
}

pub fn answer(reply: pb::BeatReply) -> Result<BeatAnswer, Error> {
    let names = |list: Vec<String>| list.iter().map(|text| name("node", text)).collect::<Result<Vec<_>, _>>();
    Ok(BeatAnswer {
        term: reply.term,
        commit_index: reply.commit_index,
        lease_ms: reply.lease_ms,
        superseded: names(reply.superseded)?,
        unknown: names(reply.unknown)?,
    })
}

// ---- vitals ----

pub fn put_all_vitals(all: Vec<(NodeNo, Vec<Vitals>)>) -> pb::VitalsReply {
    pb::VitalsReply { vitals: codec::encode(&AllVitalsBody(all)).into() }
}

pub fn all_vitals(reply: pb::VitalsReply) -> Result<Vec<(NodeNo, Vec<Vitals>)>, Error> {
    let AllVitalsBody(all) = body("vitals", &reply.vitals)?;
    Ok(all)
}

// ---- sights ----

pub fn put_seen(seen: Seen) -> pb::SightsReply {
    pb::SightsReply { seen: codec::encode(&SeenBody(seen)).into() }
}

pub fn seen(reply: pb::SightsReply) -> Result<Seen, Error> {
    let SeenBody(seen) = body("seen", &reply.seen)?;
    at_most("sights", seen.sights.len(), sights::MODELS)?;
    at_most("advice", seen.advice.len(), sights::MODELS)?;
    let counted = seen.sights.iter().flat_map(|sight| [&sight.answered, &sight.recent]);
    let trials = seen.sights.iter().map(|sight| sight.trials.len()).max().unwrap_or(0);
    at_most("trials", trials, sights::TRIALS)?;
    // Another build may count by more of them or by fewer: they begin alike.
    at_most("buckets", counted.map(Vec::len).max().unwrap_or(0), sights::MOST_BUCKETS)?;
    Ok(seen)
}

// ---- slices ----

pub fn put_slices(slices: Slices) -> pb::SlicesReply {
    let one = |slice: Slice| pb::NodeSlice {
        node: slice.node.to_string(),
        revision: slice.revision,
        index: slice.index,
        traces: traces::among(&*slice.desired),
        desired: codec::encode(&DesiredBody(slice.desired)).into(),
    };
    pb::SlicesReply { slices: slices.slices.into_iter().map(one).collect(), index: slices.index.unwrap_or(0) }
}

pub fn slices(reply: pb::SlicesReply) -> Result<Slices, Error> {
    at_most("slices", reply.slices.len(), NODES)?;
    let one = |slice: pb::NodeSlice| {
        let DesiredBody(desired) = body("desired", &slice.desired)?;
        traces::take(slice.traces);
        let node = name("node", &slice.node)?;
        Ok(Slice { node, revision: slice.revision, index: slice.index, desired })
    };
    let slices = reply.slices.into_iter().map(one).collect::<Result<_, Error>>()?;
    Ok(Slices { slices, index: Some(reply.index).filter(|index| *index > 0) })
}

// ---- reports ----

pub fn put_reports(reports: &NodeReports) -> pb::NodeReports {
    pb::NodeReports {
        node: Some(pb::NodeStart { name: reports.node.to_string(), incarnation: reports.incarnation.0 }),
        reports: codec::encode(&ReportsBody(reports.reports.clone())).into(),
        purged: match reports.purged.is_empty() {
            true => Default::default(),
            false => codec::encode(&PurgedBody(reports.purged.clone())).into(),
        },
    }
}

pub fn reports(message: pb::NodeReports) -> Result<NodeReports, Error> {
    let NodeStart { node, incarnation } = start(message.node)?;
    let ReportsBody(reports) = body("reports", &message.reports)?;
    at_most("reports", reports.len(), REPORTS)?;
    let purged = match message.purged.is_empty() {
        true => Vec::new(),
        false => body::<PurgedBody>("purged", &message.purged)?.0,
    };
    at_most("purged", purged.len(), MAX_PURGES)?;
    Ok(NodeReports { node, incarnation, reports, purged })
}

// ---- faults ----

pub fn put_faults(cluster: &str, node: &NodeStart, faults: &[DeviceFault]) -> pb::FaultsRequest {
    let faults = codec::encode(&FaultsBody(faults.to_vec())).into();
    pb::FaultsRequest { cluster: cluster.to_owned(), node: Some(put_start(node)), faults }
}

pub fn faults(message: pb::FaultsRequest) -> Result<(NodeStart, Vec<DeviceFault>), Error> {
    let FaultsBody(faults) = body("faults", &message.faults)?;
    at_most("faults", faults.len(), REPORTS)?;
    Ok((start(message.node)?, faults))
}

// ---- logs ----

pub fn put_query(cluster: &str, query: &LogQuery) -> pb::ReadLogsRequest {
    pb::ReadLogsRequest {
        cluster: cluster.to_owned(),
        node: query.node.to_string(),
        request: query.request.to_string(),
        job: query.id.job.0,
        replica: u32::from(query.id.replica),
        follow: query.follow,
        tail: query.tail as u64,
        life: query.life,
    }
}

pub fn query(message: &pb::ReadLogsRequest) -> Result<LogQuery, Error> {
    Ok(LogQuery {
        node: name("node", &message.node)?,
        request: RequestId::new(&message.request).map_err(|e| bad("request", e))?,
        id: ReplicaId {
            job: JobNo(message.job),
            replica: u16::try_from(message.replica).map_err(|e| bad("replica", e))?,
        },
        follow: message.follow,
        tail: usize::try_from(message.tail).unwrap_or(usize::MAX),
        life: message.life,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::testing;
    use proptest::prelude::*;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let sent = Registration {
            node: NodeName::new("n1").unwrap(),
            kind: NodeKind::Worker,
            incarnation: Incarnation(7),
            spec: Arc::new(testing::node_spec(8)),
        };
        let message = put_registration(&sent);
        assert_eq!(message.numa_nodes, [] as [u32; 0], "nothing is known, so nothing is said");
        assert_eq!(registration(message), Ok(sent));
        for one in [
            Registered::At { index: 9, new: true },
            Registered::At { index: 9, new: false },
            Registered::Superseded,
            Registered::Refused(Refusal::field(Reason::Conflict, "devices", "in use")),
        ] {
            assert_eq!(registered(put_registered(&one)), Ok(one));
        }
        let refused = Error::Refused(Refusal::field(Reason::NotFound, "node_id", "no node n1"));
        assert_eq!(error(&put_error(&refused)), refused);
    }

    #[test]
    fn numa_nodes_travel_beside_a_spec_that_older_members_read() {
        let bare = testing::node_spec(3);
        let sent = |spec: &NodeSpec| Registration {
            node: NodeName::new("n1").unwrap(),
            kind: NodeKind::Worker,
            incarnation: Incarnation(7),
            spec: Arc::new(spec.clone()),
        };
        let mut said = bare.clone();
        (said.devices[0].numa, said.devices[2].numa) = (Some(0), Some(1));
        let message = put_registration(&sent(&said));
        assert_eq!(
            (&message.spec, message.numa_nodes.as_slice()),
            (&put_registration(&sent(&bare)).spec, &[1, 0, 2][..])
        );
        assert_eq!(registration(message.clone()), Ok(sent(&said)));
        let older = pb::NodeRegistration { numa_nodes: Vec::new(), ..message.clone() };
        assert_eq!(registration(older), Ok(sent(&bare)), "an older agent says nothing of them");
        for bad in [vec![1], vec![1; 4], vec![u32::MAX; 3]] {
            let bad = registration(pb::NodeRegistration { numa_nodes: bad, ..message.clone() });
            assert!(matches!(bad, Err(Error::Refused(refusal)) if refusal.field.as_deref() == Some("numa_nodes")));
        }
    }

    #[test]
    fn each_body_has_a_number_of_its_own() {
        let kinds: std::collections::BTreeSet<u16> = KINDS.iter().copied().collect();
        assert_eq!(kinds.len(), KINDS.len(), "{KINDS:?}");
        let taken = |kind: &u16| *kind < 32 || [33, 35, 37].contains(kind);
        assert!(!kinds.iter().any(taken), "core's, or another shape's: {KINDS:?}");
        // So none is taken for another.
        assert!(codec::decode::<SeenBody>(&codec::encode(&ToldBody(Vec::new()))).is_err());
        assert!(
            codec::decode::<ToldBody>(&codec::encode(&SeenBody(Seen { epoch: 0, sights: vec![], advice: vec![] })))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kind in proptest::sample::select(KINDS),
        ) {
            let mut framed = Vec::new();
            framed.extend(kind.to_be_bytes());
            framed.extend(1u16.to_be_bytes());
            framed.extend((bytes.len() as u32).to_be_bytes());
            framed.extend(&bytes);
            for bytes in [bytes, framed] {
                let bytes = bytes::Bytes::from(bytes);
                let node = Some(pb::NodeStart { name: "n1".into(), incarnation: 1 });
                let _ = registration(pb::NodeRegistration { node: node.clone(), spec: bytes.clone(), numa_nodes: Vec::new() });
                let good = codec::encode(&ReportsBody(Vec::new())).into();
                let _ = reports(pb::NodeReports { node: node.clone(), reports: good, purged: bytes.clone() });
                let _ = reports(pb::NodeReports { node: node.clone(), reports: bytes.clone(), purged: Default::default() });
                let _ = faults(pb::FaultsRequest { cluster: String::new(), node: node.clone(), faults: bytes.clone() });
                let _ = seen(pb::SightsReply { seen: bytes.clone() });
                let _ = all_vitals(pb::VitalsReply { vitals: bytes.clone() });
                let (told, vitals) = (bytes.clone(), bytes.clone());
                let _ = beats(vec![pb::NodeBeat { node: node.clone(), revision_seen: 0, told, vitals }]);
                let slice = pb::NodeSlice { node: "n1".into(), revision: 0, index: 0, desired: bytes, traces: vec![] };
                let _ = slices(pb::SlicesReply { slices: vec![slice], index: 1 });
            }
        }
    }
}
