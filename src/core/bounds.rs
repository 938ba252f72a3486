//! Bounds of what an intent may carry, whoever built it: they keep sums from
//! overflowing and log entries from growing without end. It reads the intent alone;
//! what the state has to say to it is the business of `plan`.

use crate::command::{Member, Note};
use crate::consent::MAX_CLASSES;
use crate::job::{Evidence, JobSpec, MAX_REPLICAS, Publishers, Restart, Runtime};
use crate::mig::Geometry;
use crate::node::{Cordon, Device, DeviceKind, MAX_NUMA_NODES, NodeSpec};
use crate::placement::Chosen;
use crate::placement::policy::MOST_WEIGHT;
use crate::plan::Intent;
use crate::prefetch;
use crate::reason::Refusal;
use crate::resources::{Gpus, MAX_BYTES, MAX_DEVICES};
use crate::sharing::Sharing;
use crate::topology::Topology;

/// Longest text in an intent that is no name, in bytes: a host, an address, a reason.
pub const MAX_TEXT: usize = 1024;
/// Ports below are the system's own services' (RFC 6335, section 6).
const FIRST_PORT: u16 = 1024;
/// Longest id of a device, in bytes.
pub const MAX_UUID: usize = 128;
/// Entries of a small list: labels, prices, device types.
pub const MAX_ENTRIES: usize = 256;
/// Longest patience of a drain.
pub const MAX_DRAIN_MS: u64 = 30 * 24 * 3_600_000;
/// Entries of a list about many nodes or replicas.
pub const MAX_LIST: usize = 4096;

/// What must never run twice is something that its node can guard. A rollout may change that, too.
pub(crate) fn guarded(spec: &JobSpec) -> Result<(), Refusal> {
    if spec.runtime == Runtime::Docker && spec.constraints.exclusive {
        // Its guard would have to kill, at a time by the clock, what another program starts.
        let detail = "a container can't be guarded, so it may run twice; leave out exclusive, or publish the version as a process";
        return Err(Refusal::invalid("constraints.exclusive", detail));
    }
    Ok(())
}

/// Refuses what is out of bounds.
///
/// # Errors
/// The first field at fault.
pub fn check(intent: &Intent) -> Result<(), Refusal> {
    match intent {
        Intent::Init { cluster, .. } if cluster.is_empty() => Err(Refusal::invalid("cluster", "a group has a name")),
        Intent::Init { cluster, .. } => text("cluster", cluster, 63),
        Intent::Member(Member { api, peer, version, .. }) => {
            text("api", api, MAX_TEXT)?;
            text("peer", peer, MAX_TEXT)?;
            text("version", version, MAX_TEXT)
        }
        Intent::Register { spec, .. } => node(spec),
        Intent::Faults { faults, .. } => {
            list("faults", faults.len(), usize::from(MAX_DEVICES))?;
            faults.iter().try_for_each(|fault| text("device", &fault.uuid, MAX_UUID))
        }
        Intent::Heal { uuid, by, .. } => {
            text("device", uuid, MAX_UUID)?;
            text("by", by, MAX_TEXT)
        }
        Intent::NodeStates(states) => list("nodes", states.len(), MAX_LIST),
        Intent::Cordon { cordon: Some(Cordon { by, reason, drain, .. }), .. }
        | Intent::CordonIf { cordon: Some(Cordon { by, reason, drain, .. }), .. } => {
            text("by", by, MAX_TEXT)?;
            text("reason", reason, MAX_TEXT)?;
            match drain.and_then(|drain| drain.within_ms).is_some_and(|within| within > MAX_DRAIN_MS) {
                true => Err(Refusal::invalid("deadline", "at most 30 days")),
                false => Ok(()),
            }
        }
        Intent::Schedule { submission, .. } => job(&submission.spec),
        Intent::Consent(consent) => text("key_id", &consent.key_id, MAX_TEXT),
        Intent::Purged { copies, .. } => list("purged", copies.len(), MAX_LIST),
        Intent::StartRollout { next, strategy, .. } => {
            strategy.check()?;
            next.evidence.as_ref().map_or(Ok(()), evidence)?;
            list("data_classes", next.data_classes.len(), MAX_CLASSES)?;
            next.asked_by.as_ref().map_or(Ok(()), |who| text("asked_by", &who.subject, MAX_TEXT))?;
            next.approved_by.as_ref().map_or(Ok(()), |who| text("approved_by", who, MAX_TEXT))
        }
        Intent::SetPlacement { chosen, .. } => placement(chosen),
        Intent::Note(Note { object, refs, .. }) => {
            text("refs.key_id", refs.key_id.as_deref().unwrap_or_default(), MAX_TEXT)?;
            text("object", object, MAX_TEXT)
        }
        Intent::By { actor, intent } => {
            text("actor", &actor.subject, MAX_TEXT)?;
            text("actor", actor.issuer.as_deref().unwrap_or_default(), MAX_TEXT)?;
            match **intent {
                Intent::By { .. } => Err(Refusal::invalid("actor", "one actor")),
                _ => check(intent),
            }
        }
        Intent::RaiseLevel { members, .. } => list("members", members.len(), MAX_LIST),
        Intent::Reports { reports, .. } => list("reports", reports.len(), MAX_LIST),
        Intent::Cordon { cordon: None, .. }
        | Intent::CordonIf { cordon: None, .. }
        | Intent::SetQuotaIf { .. }
        | Intent::CreateTenant { .. }
        | Intent::DeleteTenant { .. }
        | Intent::SetQuota { .. }
        | Intent::Stop { .. }
        | Intent::RevokeToken { .. }
        | Intent::Approve { .. }
        | Intent::Disapprove(_)
        | Intent::Release(_)
        | Intent::KeyTrail(_)
        | Intent::Dissent { .. }
        | Intent::Tick
        | Intent::TurnRollout { .. }
        | Intent::Rollouts
        | Intent::Scale { .. }
        | Intent::Wake { .. }
        | Intent::PlaceWaiting
        | Intent::Moves
        | Intent::Defragment
        | Intent::Budgets
        | Intent::AddJoinToken { .. }
        | Intent::SpendJoinToken(_)
        | Intent::DropJoinToken { .. }
        | Intent::GiveUp { .. } => Ok(()),
    }
}

/// A longer minimum run time would make nobody give way for a month.
pub const MAX_MIN_RUN_MS: u64 = 30 * 24 * 3_600_000;

/// Who waits longer than a day for somebody else's place has no use for preemption.
pub const MAX_DELAY_MS: u64 = 24 * 3_600_000;
/// For so long the room of a claim may lie idle.
pub const MAX_GRACE_MS: u32 = 3_600_000;

fn placement(chosen: &Chosen) -> Result<(), Refusal> {
    let w = chosen.weights;
    for (field, weight) in [("fragmentation", w.fragmentation), ("topology", w.topology), ("cost", w.cost)] {
        if weight > MOST_WEIGHT {
            let text = format!("0 to {MOST_WEIGHT}, not {weight}");
            return Err(Refusal::invalid(format!("weights.{field}"), text));
        }
    }
    if chosen.preemption.min_run_ms > MAX_MIN_RUN_MS {
        return Err(Refusal::invalid("preemption.min_run", "at most 30 days"));
    }
    if chosen.preemption.delay_ms > MAX_DELAY_MS {
        return Err(Refusal::invalid("preemption.delay", "at most a day"));
    }
    if chosen.preemption.max_grace_ms > MAX_GRACE_MS {
        return Err(Refusal::invalid("preemption.max_grace", "at most an hour"));
    }
    Ok(())
}

fn text(field: &str, value: &str, most: usize) -> Result<(), Refusal> {
    if value.len() > most || value.chars().any(char::is_control) {
        return Err(Refusal::invalid(field, format!("{field}: at most {most} bytes, without control characters")));
    }
    Ok(())
}

fn list(field: &str, length: usize, most: usize) -> Result<(), Refusal> {
    if length > most {
        return Err(Refusal::invalid(field, format!("{field}: at most {most} entries, not {length}")));
    }
    Ok(())
}

fn job(spec: &JobSpec) -> Result<(), Refusal> {
    let r = &spec.resources;
    if let Some(scaling) = &spec.scaling {
        scaling.check(spec.replicas, spec.gang)?;
        if spec.constraints.exclusive {
            // One that leaves may still serve when the next one comes.
            let detail = "an exclusive job has a fixed number of replicas; leave out exclusive or scaling";
            return Err(Refusal::invalid("constraints.exclusive", detail));
        }
    }
    guarded(spec)?;
    prefetch::judge(spec)?;
    disruption(spec)?;
    topology(spec.constraints.topology)?;
    if spec.replicas == 0 || spec.replicas > MAX_REPLICAS {
        return Err(Refusal::invalid("replicas", format!("1 to {MAX_REPLICAS}, not {}", spec.replicas)));
    }
    let devices = match r.gpu {
        Gpus::None => true,
        Gpus::Milli(milli) => (1..1000).contains(&milli),
        Gpus::Whole(count) => (1..=MAX_DEVICES).contains(&count),
    };
    if !devices {
        let text = format!("whole devices, 1 to {MAX_DEVICES}, or a part of one, 0.001 to 0.999");
        return Err(Refusal::invalid("resources.gpu", text));
    }
    if r.tpu > MAX_DEVICES {
        return Err(Refusal::invalid("resources.tpu", format!("at most {MAX_DEVICES}, not {}", r.tpu)));
    }
    for (field, value) in [("gpu_memory", r.gpu_memory), ("cpu", r.cpu_milli), ("mem", r.memory), ("disk", r.disk)] {
        if value > MAX_BYTES {
            return Err(Refusal::invalid(format!("resources.{field}"), format!("at most {MAX_BYTES}, not {value}")));
        }
    }
    list("resources.device_type", r.device_types.len(), MAX_ENTRIES)?;
    list("constraints.labels", spec.constraints.labels.len(), MAX_ENTRIES)?;
    spec.evidence.as_ref().map_or(Ok(()), evidence)?;
    spec.approved_by.as_ref().map_or(Ok(()), |who| text("approved_by", who, MAX_TEXT))?;
    list("data_classes", spec.data_classes.len(), MAX_CLASSES)?;
    spec.asked_by.as_ref().map_or(Ok(()), |who| text("asked_by", &who.subject, MAX_TEXT))
}

/// What is preferred has to be narrower than what is required, or it says nothing.
fn topology(topology: Topology) -> Result<(), Refusal> {
    match (topology.preferred, topology.required) {
        (Some(preferred), Some(required)) if preferred >= required => {
            let (preferred, required) = (preferred.name(), required.name());
            let detail = format!(
                "all replicas are in one {required} already (topology_required), so preferring one {preferred} says \
                 nothing; prefer a narrower level, or leave one of the two out"
            );
            Err(Refusal::invalid("constraints.topology_preferred", detail))
        }
        _ => Ok(()),
    }
}

/// What a member found of a signature.
fn evidence(found: &Evidence) -> Result<(), Refusal> {
    text("evidence.key_id", &found.key_id, MAX_TEXT)?;
    let signers = match &found.publishers {
        Publishers::Unsaid => return Ok(()),
        Publishers::Unlisted { key } => return text("evidence.publishers", key, MAX_TEXT),
        Publishers::Known(signers) => signers,
    };
    list("evidence.publishers", signers.len(), MAX_ENTRIES)?;
    signers.iter().try_for_each(|who| {
        text("evidence.publishers", &who.subject, MAX_TEXT)?;
        text("evidence.publishers", who.issuer.as_deref().unwrap_or_default(), MAX_TEXT)
    })
}

/// What a job may say of how it is disturbed.
fn disruption(spec: &JobSpec) -> Result<(), Refusal> {
    let c = &spec.constraints;
    if c.checkpoint_ms.is_some_and(|ms| ms > MAX_GRACE_MS) {
        return Err(Refusal::invalid("constraints.checkpoint_grace", "at most an hour"));
    }
    if c.max_unavailable.is_none() {
        return Ok(());
    }
    let bad = |detail: &str| Err(Refusal::invalid("constraints.max_unavailable", detail));
    match () {
        () if spec.gang => bad("a gang gives way as a whole or not at all; leave out gang or max_unavailable"),
        () if c.restart == Restart::Never => {
            bad("what may not start again never comes back; leave out max_unavailable, or say another restart policy")
        }
        () if c.max_unavailable.is_some_and(|most| most > MAX_REPLICAS) => bad("at most 1024"),
        () => Ok(()),
    }
}

/// Whether a device that is said to be divided can be: a GPU of a type whose slices are known, and no slice itself.
fn divided(device: &Device) -> Result<(), Refusal> {
    let sound =
        device.kind == DeviceKind::Gpu && device.mig_profile.is_none() && Geometry::of(&device.device_type).is_some();
    if device.sharing != Sharing::Mig || sound {
        return Ok(());
    }
    let detail = format!(
        "how {} is divided into slices is not known, only {}; say another type, or another kind of sharing",
        device.device_type,
        Geometry::known()
    );
    Err(Refusal::invalid("devices.sharing", detail))
}

fn node(spec: &NodeSpec) -> Result<(), Refusal> {
    text("host", &spec.host, MAX_TEXT)?;
    list("gpus", spec.devices.len(), usize::from(MAX_DEVICES))?;
    spec.devices.iter().try_for_each(|device| text("devices.uuid", &device.uuid, MAX_UUID))?;
    spec.devices.iter().try_for_each(divided)?;
    if spec.devices.iter().any(|device| device.numa.is_some_and(|numa| numa >= MAX_NUMA_NODES)) {
        let detail = format!("no machine has a NUMA node {MAX_NUMA_NODES}: they are numbered from 0 on");
        return Err(Refusal::invalid("devices.numa", detail));
    }
    list("labels", spec.labels.len(), MAX_ENTRIES)?;
    list("cost_per_hour", spec.cost_per_hour.len(), MAX_ENTRIES)?;
    let memory = spec.devices.iter().map(|d| d.memory).max().unwrap_or(0);
    if spec.cpu_milli.max(spec.memory).max(spec.disk).max(memory) > MAX_BYTES {
        let text = format!("a node's cpu, memory or disk is too large to be true: more than {MAX_BYTES}");
        return Err(Refusal::invalid("capacity", text));
    }
    if spec.ports.is_some_and(|p| p.first > p.last || p.first < FIRST_PORT) {
        return Err(Refusal::invalid("ports", "a range from 1024 on, such as 31000-31999"));
    }
    reachable(&spec.host)
}

/// Members call a node's replicas where the node says that it is: not at the addresses of a link, which are also
/// those where clouds keep a machine's credentials, and not at those that are nobody's.
fn reachable(host: &str) -> Result<(), Refusal> {
    use std::net::IpAddr;
    let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() else { return Ok(()) };
    let bad = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match bad || address.is_unspecified() || address.is_multicast() {
        true => Err(Refusal::invalid("host", format!("{host} is no address at which members reach a node"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DeviceType, Label};
    use crate::node::PortRange;
    use crate::testing;

    fn field(intent: &Intent) -> Option<String> {
        check(intent).err().and_then(|refusal| refusal.field)
    }

    #[test]
    fn every_text_and_list_of_a_node_has_an_end() {
        let sound = || testing::node_spec(8);
        assert_eq!(check(&testing::register("n1", sound())), Ok(()));
        let refused = |change: &dyn Fn(&mut NodeSpec)| {
            let mut spec = sound();
            change(&mut spec);
            field(&testing::register("n1", spec))
        };
        let label = |i: usize| Label::new(&format!("l{i}")).unwrap();
        let kind = |i: usize| DeviceType::new(&format!("d{i}")).unwrap();
        assert_eq!(refused(&|s| s.host = "h".repeat(2000).into()).as_deref(), Some("host"));
        assert_eq!(refused(&|s| s.host = "a\nb".into()).as_deref(), Some("host"));
        for nowhere in ["169.254.169.254", "0.0.0.0", "[fe80::1]", "::ffff:169.254.1.1", "224.0.0.1", "::"] {
            assert_eq!(refused(&|s| s.host = nowhere.into()).as_deref(), Some("host"), "{nowhere}");
        }
        for somewhere in ["10.0.0.7", "node-1.example", "127.0.0.1", "[2001:db8::7]"] {
            assert_eq!(refused(&|s| s.host = somewhere.into()), None, "{somewhere}");
        }
        let ports = |first, last| refused(&|s| s.ports = Some(PortRange { first, last }));
        for (first, last) in [(80, 80), (1023, 40_000), (31_001, 31_000), (u16::MAX, 0)] {
            assert_eq!(ports(first, last).as_deref(), Some("ports"), "{first}-{last}");
        }
        assert_eq!((ports(1024, 1024), ports(31_000, u16::MAX)), (None, None));
        assert_eq!(refused(&|s| s.devices[3].uuid = "u".repeat(200).into()).as_deref(), Some("devices.uuid"));
        let labels = |s: &mut NodeSpec| s.labels = (0..300).map(|i| (label(i), label(i))).collect();
        assert_eq!(refused(&labels).as_deref(), Some("labels"));
        assert_eq!(refused(&|s| s.devices[0].numa = Some(MAX_NUMA_NODES)).as_deref(), Some("devices.numa"));
        assert_eq!(refused(&|s| s.devices[0].numa = Some(MAX_NUMA_NODES - 1)), None);
        let prices = |s: &mut NodeSpec| s.cost_per_hour = (0..300).map(|i| (kind(i), 1)).collect();
        assert_eq!(refused(&prices).as_deref(), Some("cost_per_hour"));
        // Up to 2^63 MiB, which no number of bytes has room for.
        for much in [MAX_BYTES + 1, 1 << 63, u64::MAX] {
            let fields: [fn(&mut NodeSpec, u64); 4] = [
                |s, much| s.cpu_milli = much,
                |s, much| s.memory = much,
                |s, much| s.disk = much,
                |s, much| s.devices[7].memory = much,
            ];
            for (no, set) in fields.into_iter().enumerate() {
                assert_eq!(refused(&|s| set(s, much)).as_deref(), Some("capacity"), "{no}: {much}");
                assert_eq!(refused(&|s| set(s, MAX_BYTES)), None, "{no}");
            }
        }
    }

    #[test]
    fn every_text_and_list_of_the_others_has_an_end() {
        let long: std::sync::Arc<str> = "x".repeat(5_000).into();
        let mut spec = testing::job_spec("t1", Gpus::Whole(1));
        spec.approved_by = Some(long.clone());
        assert_eq!(field(&testing::schedule("r1", spec)).as_deref(), Some("approved_by"));
        let cordon = Cordon { by: "me".into(), reason: long, at_ms: 0, drain: None };
        let node = crate::id::NodeName::new("n1").unwrap();
        assert_eq!(field(&Intent::Cordon { node, cordon: Some(cordon) }).as_deref(), Some("reason"));
    }
}
