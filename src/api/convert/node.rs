//! The bodies of the operators' calls: a node registered by hand, a launch, a cordon,
//! a quota, a member, a move of leadership. It does not know what becomes of them.

use super::json::{Field, Object};
use super::schedule::{Schedule, from_object, labels};
use nf_core::budget::{Budgets, Window};
use nf_core::fault::Fault;
use nf_core::id::{DeviceType, Label, MemberId, NodeName, TenantId};
use nf_core::node::{Drain, MAX_NUMA_NODES};
use nf_core::reason::Refusal;
use nf_core::sharing::Sharing;
use nf_core::tenant::{Quota, Share};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most devices of one kind that a hand-registered node can have.
pub const MAX_DEVICES: i64 = 1024;

/// Most kinds of nodes that are added in thought.
const MAX_KINDS: usize = 64;

/// What a caller says of a node.
pub use nf_core::played::Played as Registration;

/// Reads a registration.
///
/// # Errors
/// The first field at fault.
pub fn registration(map: &Map<String, Value>) -> Result<Registration, Refusal> {
    let mut o = Object::top(map);
    let name = o.name("node_id", NodeName::new)?;
    let out = described(&mut o, name)?;
    o.finish()?;
    Ok(out)
}

/// Nodes that are added in thought: so many of each kind.
///
/// # Errors
/// The first field at fault.
pub fn added(map: &Map<String, Value>) -> Result<Vec<(u16, Registration)>, Refusal> {
    let mut o = Object::top(map);
    let mut out = Vec::new();
    let given = o.need("add_nodes")?;
    let kinds = given.list()?;
    if kinds.len() > MAX_KINDS {
        return Err(given.refuse(format!("at most {MAX_KINDS} kinds, not {}", kinds.len())));
    }
    let mut all = 0;
    for field in kinds {
        let mut kind = field.object()?;
        let count = kind.integer("count", 1, nf_core::whatif::MOST as i64)?.unwrap_or(1) as u16;
        let node = described(&mut kind, None)?;
        kind.finish()?;
        all += usize::from(count);
        if all > nf_core::whatif::MOST {
            return Err(given.refuse(format!("at most {} nodes in all", nf_core::whatif::MOST)));
        }
        out.push((count, node));
    }
    o.finish()?;
    Ok(out)
}

fn described(o: &mut Object<'_>, name: Option<NodeName>) -> Result<Registration, Refusal> {
    Ok(Registration {
        name,
        gpus: o.integer("gpus", 0, MAX_DEVICES)?.map(|n| n as u16),
        tpus: o.integer("tpus", 0, MAX_DEVICES)?.unwrap_or(0) as u16,
        device_type: o.name("device_type", DeviceType::new)?,
        gpu_memory: o.bytes("gpu_memory")?,
        cpu_milli: o.milli("cpu")?,
        memory: o.bytes("mem")?,
        disk: o.bytes("disk")?,
        labels: o.get("labels").map(|f| labels(&f)).transpose()?.unwrap_or_default(),
        region: o.name("region", Label::new)?,
        zone: o.name("zone", Label::new)?,
        rack: o.name("rack", Label::new)?,
        cost_per_hour: o.get("cost_per_hour").map(|f| f.micro()).transpose()?,
        sharing: o.get("sharing").map(|f| f.word(&Sharing::ALL.map(|each| (each.name(), each)))).transpose()?,
        numa_nodes: o.integer("numa_nodes", 1, MAX_NUMA_NODES.into())?.map(|n| n as u16),
    })
}

/// A launch: a schedule request pinned to a node.
///
/// # Errors
/// The first field at fault.
pub fn launch(map: &Map<String, Value>) -> Result<(Option<NodeName>, Schedule), Refusal> {
    let mut o = Object::top(map);
    let node = o.name("node_id", NodeName::new)?;
    let schedule = from_object(&mut o)?;
    o.finish()?;
    Ok((node, schedule))
}

/// The reason of a cordon.
///
/// # Errors
/// The first field at fault.
pub fn cordon(map: &Map<String, Value>) -> Result<Arc<str>, Refusal> {
    let mut o = Object::top(map);
    let reason = reason(&mut o)?;
    o.finish()?;
    Ok(reason)
}

fn reason(o: &mut Object<'_>) -> Result<Arc<str>, Refusal> {
    let given = o.get("reason").filter(|f| f.value.as_str() != Some(""));
    let reason = given.map(|f| super::schedule::approver(f.text()?).map_err(|e| f.refuse(e))).transpose()?;
    Ok(reason.unwrap_or_else(|| "no reason given".into()))
}

/// How a node is to be emptied, why, and whether only to look.
///
/// # Errors
/// The first field at fault.
pub fn drain(map: &Map<String, Value>) -> Result<(Arc<str>, Drain, bool), Refusal> {
    let mut o = Object::top(map);
    let reason = reason(&mut o)?;
    let within_ms = o.get("deadline").map(|f| super::schedule::span(&f)).transpose()?;
    let force = o.boolean("force")?.unwrap_or(false);
    let dry_run = o.boolean("dry_run")?.unwrap_or(false);
    o.finish()?;
    Ok((reason, Drain { within_ms, force }, dry_run))
}

/// What is wrong with a device: nothing said means that the caller wants it left alone.
///
/// # Errors
/// The first field at fault.
pub fn fault(map: &Map<String, Value>) -> Result<Fault, Refusal> {
    let mut o = Object::top(map);
    let xid = o.integer("xid", 1, 999)?.map(|number| Fault::Xid(number as u16));
    let kind = o.get("fault").map(|f| f.word(&[("lost", Fault::Lost), ("ecc", Fault::Ecc)])).transpose()?;
    o.finish()?;
    match (xid, kind) {
        (Some(_), Some(_)) => Err(Refusal::invalid("fault", "give xid or fault, one of them")),
        (xid, kind) => Ok(xid.or(kind).unwrap_or(Fault::Hand)),
    }
}

/// Nothing may be said.
///
/// # Errors
/// The first field, whatever it is.
pub fn nothing(map: &Map<String, Value>) -> Result<(), Refusal> {
    Object::top(map).finish()
}

/// A body that says at most whether it is only a look.
///
/// # Errors
/// The first field at fault.
pub fn dry_run(map: &Map<String, Value>) -> Result<bool, Refusal> {
    let mut o = Object::top(map);
    let dry_run = o.boolean("dry_run")?.unwrap_or(false);
    o.finish()?;
    Ok(dry_run)
}

/// # Errors
/// The first field at fault.
pub fn tenant(map: &Map<String, Value>) -> Result<TenantId, Refusal> {
    let mut o = Object::top(map);
    let tenant = o.need("tenant_id")?.name(TenantId::new)?;
    o.finish()?;
    Ok(tenant)
}

/// A token's id.
///
/// # Errors
/// The first field at fault.
pub fn token_id(map: &Map<String, Value>) -> Result<String, Refusal> {
    let mut o = Object::top(map);
    let id = o.need("id")?.text()?.to_owned();
    o.finish()?;
    Ok(id)
}

/// A quota; what is absent or null has no limit of its own.
///
/// # Errors
/// The first field at fault.
pub fn quota(map: &Map<String, Value>) -> Result<Quota, Refusal> {
    let mut o = Object::top(map);
    let out = Quota {
        gpu_milli: o.milli("gpu")?,
        cpu_milli: o.milli("cpu")?,
        memory: o.bytes("mem")?,
        tpu: o.integer("tpu", 0, 1_000_000)?.map(i64::unsigned_abs),
        waiting: o.integer("waiting", 0, 1_000_000)?.map(|n| n as u32),
        parent: o.name("parent", TenantId::new)?,
        borrow_milli: o.milli("borrow")?,
        lend_milli: o.milli("lend")?,
        budgets: budgets(&mut o)?.some(),
        types: types(&mut o)?,
        soft_sharing: o.boolean("soft_sharing")?.unwrap_or(false),
    };
    o.finish()?;
    Ok(out)
}

/// Limits of device types, by name.
fn types(o: &mut Object<'_>) -> Result<BTreeMap<DeviceType, Share>, Refusal> {
    let Some(field) = o.get("device_types") else { return Ok(BTreeMap::new()) };
    let mut out = BTreeMap::new();
    for (name, field) in field.entries()? {
        let kind = DeviceType::new(name).map_err(|error| field.refuse(error))?;
        let mut inner = field.object()?;
        let gpu_milli = inner.need("gpu")?.milli()?;
        let share = Share { gpu_milli, borrow_milli: inner.milli("borrow")?, lend_milli: inner.milli("lend")? };
        inner.finish()?;
        out.insert(kind, share);
    }
    Ok(out)
}

/// Limits over time.
fn budgets(o: &mut Object<'_>) -> Result<Budgets, Refusal> {
    let gpu_hours = o.get("gpu_hours").map_or(Ok([None; 3]), |field| by_window(&field, |limit| limit.milli()))?;
    let money = o.get("money").map_or(Ok([None; 3]), |field| by_window(&field, |limit| limit.micro()))?;
    Ok(Budgets { gpu_hours, money })
}

/// A window that is absent or null has no limit.
fn by_window(field: &Field<'_>, read: impl Fn(Field<'_>) -> Result<u64, Refusal>) -> Result<[Option<u64>; 3], Refusal> {
    let (mut inner, mut out) = (field.object()?, [None; 3]);
    for window in Window::ALL {
        out[window as usize] = inner.get(window.name()).map(&read).transpose()?;
    }
    inner.finish()?;
    Ok(out)
}

/// A member that wants to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    /// The next free number when absent.
    pub id: Option<u64>,
    pub name: NodeName,
    /// Member-to-member address, `host:port`.
    pub peer: String,
}

/// # Errors
/// The first field at fault.
pub fn new_member(map: &Map<String, Value>) -> Result<NewMember, Refusal> {
    let mut o = Object::top(map);
    let id = o.integer("id", 1, i64::MAX)?.map(i64::unsigned_abs);
    let name = o.need("name")?.name(NodeName::new)?;
    let field = o.need("peer")?;
    let peer = field.text()?;
    let port =
        peer.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    let plain = peer.len() <= 255 && peer.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b));
    if !plain || port.is_none_or(|port| port == 0) {
        return Err(field.refuse("host:port, such as 10.0.0.4:8601"));
    }
    o.finish()?;
    Ok(NewMember { id, name, peer: peer.to_owned() })
}

/// Where leadership should go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Member(String),
    Region(Label),
}

/// A request to move leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promote {
    pub target: Target,
    pub tenant: Option<TenantId>,
    /// True unless said otherwise.
    pub dry_run: bool,
}

/// # Errors
/// The first field at fault.
pub fn promote(map: &Map<String, Value>) -> Result<Promote, Refusal> {
    let mut o = Object::top(map);
    let region = o.name("region", Label::new)?;
    let member = match o.get("member") {
        None => None,
        Some(field) if field.value.is_number() => Some(field.integer(0, i64::MAX)?.to_string()),
        Some(field) => Some(field.name(NodeName::new)?.to_string()),
    };
    let tenant = o.name("tenant_id", TenantId::new)?;
    let dry_run = o.boolean("dry_run")?.unwrap_or(true);
    o.finish()?;
    let target = match (region, member) {
        (Some(region), None) => Target::Region(region),
        (None, Some(member)) => Target::Member(member),
        _ => return Err(Refusal::invalid("member", "give member (a name or number) or region, one of them")),
    };
    Ok(Promote { target, tenant, dry_run })
}

/// `3`, `m3` or a name.
pub fn member_matches(text: &str, id: MemberId, name: &str) -> bool {
    text == name || text == id.to_string() || text == id.0.to_string()
}
