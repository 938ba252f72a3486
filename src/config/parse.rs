//! One parser per kind of setting: text in, typed value or a sentence out. An
//! empty text means "not set". They do not know which setting they serve.

use crate::secret::Secret;
use nf_core::id::{DeviceType, Label, NodeName};
use nf_core::node::MAX_NUMA_NODES;
use nf_core::sharing::Sharing;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Fixed at the group's start; see SPEC.md section 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Production,
    Simulation,
}

impl From<Mode> for nf_core::command::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Production => Self::Production,
            Mode::Simulation => Self::Simulation,
        }
    }
}

impl Mode {
    pub fn name(self) -> &'static str {
        nf_core::command::Mode::from(self).name()
    }
}

/// What this process is in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Member,
    Worker,
}

/// A first member of a new group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// `host:port` for other members.
    pub peer: String,
}

/// A node that this process plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlayedNode {
    pub name: NodeName,
    pub device_type: Option<DeviceType>,
    pub count: u16,
    /// What is said to keep those who share a GPU to their parts.
    pub sharing: Option<Sharing>,
    /// NUMA nodes that share its GPUs evenly.
    pub numa_nodes: Option<u16>,
}

/// `auto`: what is found beside the driver. Else what keeps those who share a GPU to their parts.
pub fn gpu_sharing(text: &str) -> Result<Option<Sharing>, String> {
    match text {
        "auto" => Ok(None),
        // What is real is never only played.
        text => match Sharing::named(text) {
            Some(sharing @ (Sharing::None | Sharing::Mps)) => Ok(Some(sharing)),
            _ => Err("auto, none or mps".into()),
        },
    }
}

/// Which devices this process brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuNodes {
    Auto,
    Played(Vec<PlayedNode>),
}

/// What may be said of a device that is only played.
const SHARING: &str = "none, mps, mig or simulated";
/// Most GPUs of one node, and of a default quota; bounds the arithmetic.
const MOST_GPUS: u64 = 1_000_000;
/// Most labels, or prices, of one node.
const MOST_PAIRS: usize = 64;
/// A wait longer than this is a slip of the pen.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a port from 1 to 65535".into()),
        Ok(port) => Ok(port),
    }
}

pub fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let local = text.replace("localhost:", "127.0.0.1:");
    local.parse().map(Some).map_err(|_| "an address and port such as 127.0.0.1:8600 or [::1]:8600".into())
}

pub fn host(text: &str) -> Result<Option<String>, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    // Programs want the bare address, URLs get the brackets (`nf_core::node::address`).
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare {
        "" => Ok(None),
        bare if bare.parse::<std::net::Ipv6Addr>().is_ok() => Ok(Some(bare.to_owned())),
        _ if text.len() <= 255 && text.chars().all(fine) => Ok(Some(text.to_owned())),
        _ => Err("a host name or address without port".into()),
    }
}

/// A DNS label: certificates carry the name.
fn label(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = text.starts_with('-') || text.ends_with('-');
    match !text.is_empty() && text.len() <= 63 && !edges && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err("1 to 63 of a-z 0-9 and -, not beginning or ending with -".into()),
    }
}

pub fn cluster(text: &str) -> Result<String, String> {
    label(text)
}

pub fn node_name(text: &str) -> Result<Option<String>, String> {
    (!text.is_empty()).then(|| label(text)).transpose()
}

pub fn member_id(text: &str) -> Result<Option<u64>, String> {
    match text.parse() {
        _ if text.is_empty() => Ok(None),
        Ok(id) if id > 0 => Ok(Some(id)),
        _ => Err("a number from 1 on".into()),
    }
}

/// A part of all nodes; 100 means all of them.
pub fn percent(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| (1..=100).contains(n)).ok_or_else(|| "a number from 1 to 100".into())
}

/// Requests that may wait; each of them keeps its body in memory.
///
/// # Errors
/// What it must be.
pub fn held(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| (1..=65_536).contains(n)).ok_or_else(|| "1 to 65536 requests".into())
}

pub fn role(text: &str) -> Result<Role, String> {
    match text {
        "member" => Ok(Role::Member),
        "worker" => Ok(Role::Worker),
        _ => Err("member or worker".into()),
    }
}

pub fn mode(text: &str) -> Result<Option<Mode>, String> {
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "production" => Ok(Some(Mode::Production)),
        "simulation" => Ok(Some(Mode::Simulation)),
        _ => Err("production or simulation".into()),
    }
}

pub fn switch(text: &str) -> Result<Option<bool>, String> {
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "1" | "true" | "yes" | "on" => Ok(Some(true)),
        "0" | "false" | "no" | "off" => Ok(Some(false)),
        _ => Err("true or false".into()),
    }
}

pub fn list(text: &str) -> Result<Vec<String>, String> {
    Ok(parts(text).map(str::to_owned).collect())
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

pub fn members(text: &str) -> Result<Vec<Member>, String> {
    const FORM: &str = "name=host:port, comma separated, e.g. node-1=10.0.0.1:8601,node-2=10.0.0.2:8601";
    let mut out: Vec<Member> = Vec::new();
    for part in parts(text) {
        let (name, peer) = part.split_once('=').ok_or(FORM)?;
        let (host, port_text) = peer.rsplit_once(':').ok_or(FORM)?;
        let name = label(name).map_err(|why| format!("{FORM}; the name {name:?} is not {why}"))?;
        if host.is_empty() || port(port_text).is_err() {
            return Err(FORM.into());
        }
        if out.iter().any(|m| m.name == name || m.peer == peer) {
            return Err(format!("{FORM}; {part} is there twice"));
        }
        out.push(Member { name, peer: peer.to_owned() });
    }
    match out.len() {
        0..=7 => Ok(out),
        n => Err(format!("at most 7 members, not {n}: more machines join as workers")),
    }
}

pub fn gpu_nodes(text: &str) -> Result<GpuNodes, String> {
    const FORM: &str =
        "auto, or name[:device_type[:count[:sharing[:numa_nodes]]]], comma separated, e.g. n1:H100-80G:8,n2";
    if text.is_empty() || text.eq_ignore_ascii_case("auto") {
        return Ok(GpuNodes::Auto);
    }
    let mut out: Vec<PlayedNode> = Vec::new();
    for part in parts(text) {
        let mut fields = part.split(':');
        let name = NodeName::new(fields.next().unwrap_or_default()).map_err(|e| format!("{FORM}; {e}"))?;
        let device_type = fields.next().filter(|t| !t.is_empty());
        let device_type = device_type.map(DeviceType::new).transpose().map_err(|e| format!("{FORM}; {e}"))?;
        let count = match fields.next().map(str::parse::<u16>) {
            None => 1,
            Some(Ok(count)) if count <= 1024 => count,
            Some(_) => return Err(format!("{FORM}; the count is 0 to 1024")),
        };
        let sharing = fields.next().filter(|text| !text.is_empty());
        let sharing = sharing.map(|text| Sharing::named(text).ok_or(format!("{FORM}; sharing is {SHARING}")));
        let sharing = sharing.transpose()?;
        let numa_nodes = match fields.next().map(str::parse::<u16>) {
            None => None,
            Some(Ok(count)) if (1..=MAX_NUMA_NODES).contains(&count) => Some(count),
            Some(_) => return Err(format!("{FORM}; numa_nodes is 1 to {MAX_NUMA_NODES}")),
        };
        if fields.next().is_some() {
            return Err(FORM.into());
        }
        if out.iter().any(|n| n.name == name) {
            return Err(format!("{FORM}; {name} is there twice"));
        }
        out.push(PlayedNode { name, device_type, count, sharing, numa_nodes });
    }
    Ok(GpuNodes::Played(out))
}

/// A decimal number with at most `places` digits after the point, in units of the last of them.
fn decimal(text: &str, places: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || whole.len() > 9 || fraction.len() > places || !digits(whole) || !digits(fraction) {
        return None;
    }
    format!("{whole}{fraction:0<places$}").parse().ok()
}

/// Thousandths of a GPU from a decimal count.
/// Where containers are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Wherever one is found.
    Auto,
    Off,
    Socket(PathBuf),
}

pub fn engine(text: &str) -> Result<Engine, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    match text {
        "auto" => Ok(Engine::Auto),
        "off" => Ok(Engine::Off),
        _ if path.starts_with('/') => Ok(Engine::Socket(path.into())),
        _ => Err("auto, off, or the path of a socket: only engines of this machine are spoken to".into()),
    }
}

pub fn gpu_milli(text: &str) -> Result<u64, String> {
    match decimal(text, 3).ok_or("a number of GPUs such as 2 or 0.5")? {
        milli if milli < MOST_GPUS * 1000 => Ok(milli),
        _ => Err(format!("at most {MOST_GPUS} GPUs")),
    }
}

/// The name of a region, zone or rack.
pub fn place(text: &str) -> Result<Option<Label>, String> {
    (!text.is_empty()).then(|| Label::new(text)).transpose().map_err(|e| e.to_string())
}

/// `key=value` pairs, each key once.
fn pairs(text: &str, form: &str) -> Result<Vec<(String, String)>, String> {
    let mut out: Vec<(String, String)> = Vec::new();
    for part in parts(text) {
        let (key, value) = part.split_once('=').ok_or(form)?;
        if out.iter().any(|(known, _)| known == key) {
            return Err(format!("{form}; {key} is there twice"));
        }
        out.push((key.to_owned(), value.to_owned()));
    }
    match out.len() {
        0..=MOST_PAIRS => Ok(out),
        n => Err(format!("at most {MOST_PAIRS}, not {n}")),
    }
}

pub fn labels(text: &str) -> Result<BTreeMap<Label, Label>, String> {
    const FORM: &str = "key=value, comma separated, e.g. disk=nvme,team=research";
    let label = |text: &str| Label::new(text).map_err(|e| format!("{FORM}; {e}"));
    pairs(text, FORM)?.iter().map(|(key, value)| Ok((label(key)?, label(value)?))).collect()
}

/// Millionths of the currency unit by device type.
pub fn prices(text: &str) -> Result<BTreeMap<DeviceType, u64>, String> {
    const FORM: &str = "device_type=price, comma separated, e.g. H100-80G=2.50,A100-80G=1.20";
    let price = |(kind, price): &(String, String)| {
        let kind = DeviceType::new(kind).map_err(|e| format!("{FORM}; {e}"))?;
        Ok((kind, decimal(price, 6).ok_or(FORM)?))
    };
    pairs(text, FORM)?.iter().map(price).collect()
}

pub fn ports(text: &str) -> Result<(u16, u16), String> {
    let bad = || "a range of ports such as 31000-31999".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let (first, last) = (port(first).map_err(|_| bad())?, port(last).map_err(|_| bad())?);
    if first > last { Err(bad()) } else { Ok((first, last)) }
}

/// What Linux calls a user that it can't show.
const NOBODY: u32 = 65_534;

/// User ids of replicas: the first does the killing, so there are two at least.
pub fn users(text: &str) -> Result<Option<(u32, u32)>, String> {
    let bad = || {
        "a range of at most 65536 user ids from 1000 on, such as 1900000000-1900000999, without 65534; or off"
            .to_owned()
    };
    if text == "off" {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    match (number(first), number(last)) {
        (Some(first), Some(last))
            if first >= 1_000
                && first < last
                && last - first < 65_536
                && last < u32::MAX
                && !(first..=last).contains(&NOBODY) =>
        {
            Ok(Some((first, last)))
        }
        _ => Err(bad()),
    }
}

pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "a time with its unit, such as 250ms, 5s or 1m".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..split].parse().map_err(|_| bad())?;
    let ms = match &text[split..] {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(bad()),
    };
    match ms.map(Duration::from_millis) {
        Some(time) if time.is_zero() => Err("longer than nothing, such as 250ms".into()),
        Some(time) if time <= LONGEST => Ok(time),
        _ => Err("at most 24h".into()),
    }
}

pub fn path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

pub fn dir(text: &str) -> Result<PathBuf, String> {
    path(text)?.ok_or_else(|| "a directory".into())
}

/// A time, or nothing.
pub fn span(text: &str) -> Result<Option<Duration>, String> {
    if text.is_empty() { Ok(None) } else { duration(text).map(Some) }
}

/// One word that is never absent.
pub fn word(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains(char::is_whitespace) {
        true => Err("one word".into()),
        false => Ok(text.to_owned()),
    }
}

pub fn text(text: &str) -> Result<Option<String>, String> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// A text that nothing shows.
pub fn secret(text: &str) -> Result<Option<Secret>, String> {
    Ok((!text.is_empty()).then(|| Secret::new(text)))
}

/// An address with a password in it.
pub fn secret_url(text: &str) -> Result<Option<Secret>, String> {
    Ok(url(text)?.map(Secret::new))
}

fn with_scheme(text: &str, schemes: &[&str]) -> Result<Option<String>, String> {
    let rest = |scheme: &&str| text.strip_prefix(*scheme).and_then(|r| r.strip_prefix("://"));
    match schemes.iter().find_map(rest) {
        _ if text.is_empty() => Ok(None),
        Some(rest) if !rest.is_empty() && !text.contains(char::is_whitespace) => Ok(Some(text.to_owned())),
        _ => Err(format!("a URL that begins with {}://", schemes.join(":// or "))),
    }
}

pub fn url(text: &str) -> Result<Option<String>, String> {
    with_scheme(text, &["http", "https", "redis", "rediss"])
}

pub fn urls(text: &str) -> Result<Option<String>, String> {
    for part in parts(text) {
        with_scheme(part, &["http", "https"])?;
    }
    self::text(text)
}

pub fn store(text: &str) -> Result<Option<String>, String> {
    with_scheme(text, &["file", "http", "https", "s3", "gs", "az"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "0", "65536", "-1", "NaN", "8600x"] {
            assert!(port(bad).is_err(), "{bad}");
        }
        for bad in ["", "-1", "NaN", "1e3", "2.0001", "9223372036854775808", ".5"] {
            assert!(gpu_milli(bad).is_err(), "{bad}");
        }
        for bad in ["", "5", "0s", "-5s", "5 s", "99999999999999999999s", "25h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in [
            "../x",
            "n1:H100:x",
            "n1:H100:1:2",
            "n1:H100:1:mps:x",
            "n1:H100:1:mps:0",
            "n1:H100:1:mps:1025",
            "n1:H100:1:mps:2:2",
            "n1,n1",
            "n1::99999",
        ] {
            assert!(gpu_nodes(bad).is_err(), "{bad}");
        }
        for bad in ["n1", "n1=host", "N1=h:1", "a=h:1,a=h:2", "a=h:0"] {
            assert!(members(bad).is_err(), "{bad}");
        }
        for bad in ["x", "a=b,a=c", "a=../x", "=b"] {
            assert!(labels(bad).is_err(), "{bad}");
        }
        for bad in ["H100", "H100=x", "H100=-1", "H100=1.1234567", "../x=1"] {
            assert!(prices(bad).is_err(), "{bad}");
        }
        for bad in ["", "docker.sock", "tcp://127.0.0.1:2375", "ON"] {
            assert!(engine(bad).is_err(), "{bad}");
        }
        assert!(place("../x").is_err());
        for bad in [
            "",
            "1-2",
            "2000",
            "2000-2000",
            "3000-2000",
            "65000-66000",
            "4294967294-4294967295",
            "2000-90000",
            "+2000-3000",
        ] {
            assert!(users(bad).is_err(), "{bad}");
        }
        assert!(ports("9-1").is_err() && store("nfs://x").is_err() && url("prom:9090").is_err());
    }

    #[test]
    fn what_people_write_is_read() {
        assert_eq!(gpu_milli("0.5"), Ok(500));
        assert_eq!(labels("disk=nvme, team=ml").map(|l| l.len()), Ok(2));
        assert_eq!(prices("H100-80G=2.5").map(|p| p.into_values().collect()), Ok(vec![2_500_000]));
        assert_eq!((labels("").map(|l| l.len()), place("")), (Ok(0), Ok(None)));
        assert_eq!(engine("unix:///run/d.sock"), Ok(Engine::Socket("/run/d.sock".into())));
        assert_eq!(switch("TRUE"), Ok(Some(true)));
        assert_eq!(duration("1m"), Ok(Duration::from_secs(60)));
        assert_eq!((users("off"), users("2000-2001")), (Ok(None), Ok(Some((2_000, 2_001)))));
        let nodes = gpu_nodes("n1:H100-80G:8, n2").unwrap();
        let GpuNodes::Played(nodes) = nodes else { panic!("{nodes:?}") };
        assert_eq!((nodes[0].count, nodes[1].count), (8, 1));
        let GpuNodes::Played(nodes) = gpu_nodes("n1:H100-80G:8:none").unwrap() else { panic!() };
        assert_eq!((nodes[0].sharing, nodes[0].numa_nodes), (Some(Sharing::None), None));
        let GpuNodes::Played(nodes) = gpu_nodes("n1:H100-80G:8::2").unwrap() else { panic!() };
        assert_eq!((nodes[0].sharing, nodes[0].numa_nodes), (None, Some(2)));
        assert_eq!((gpu_sharing("auto"), gpu_sharing("mps")), (Ok(None), Ok(Some(Sharing::Mps))));
        assert!(gpu_sharing("simulated").is_err() && gpu_sharing("").is_err() && gpu_sharing("MPS").is_err());
        assert_eq!(members("a=h:1,b=h:2").unwrap().len(), 2);
    }
}
