//! Who this process is in its group: name, number, keys. It does not know what
//! the group does.

use super::links::PLAYER;
use crate::config::parse::{Member, Role};
use crate::config::{Error as ConfigError, Settings};
use crate::pqc::Links;
use crate::security::tls::{self, Authority, Credentials, PeerTls};
use crate::storage;
use anyhow::{Context as _, Result, bail};
use nf_core::id::{MemberId, NodeName};
use nf_core::node::address;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// This process, as the group knows it.
#[derive(Clone)]
pub struct Me {
    pub id: MemberId,
    pub name: NodeName,
    pub cluster: String,
    pub tls: PeerTls,
    /// Where its keys are.
    pub keys: PathBuf,
    /// `host:port` that other members use.
    pub peer: String,
    /// Public address as a URL.
    pub api: String,
    /// At which replicas of this node are reached.
    pub host: String,
    pub data: PathBuf,
}

/// First members of a new group; one alone when nothing is said.
pub fn founders(settings: &Settings, peer: SocketAddr) -> Vec<Member> {
    match settings.members.value.as_slice() {
        [] if settings.join.value.is_empty() => vec![Member { name: settings.name(), peer: peer.to_string() }],
        members => members.to_vec(),
    }
}

impl Me {
    /// `public` and `peer` are the addresses that were bound.
    pub fn new(settings: &Settings, id: MemberId, public: SocketAddr, peer: SocketAddr) -> Result<Self> {
        let (name, cluster, data) = (settings.name(), settings.cluster.value.clone(), settings.data());
        same_group(&data, &cluster)?;
        make_own(&data)?;
        let founders = founders(settings, peer);
        let member = settings.role.value == Role::Member;
        let alone = member && founders.len() == 1 && settings.join.value.is_empty();
        let (tls, keys) = credentials(settings, &data, &cluster, &name, alone)?;
        let scheme = if settings.public_cert.is_some() { "https" } else { "http" };
        let host = settings.advertise.value.clone().unwrap_or_else(|| public.ip().to_string());
        let listed = founders.iter().find(|member| member.name == name).map(|member| member.peer.clone());
        let reached = match &settings.advertise.value {
            Some(host) => address(host, peer.port()),
            None => peer.to_string(),
        };
        Ok(Self {
            id,
            tls: PeerTls::in_mode(&tls, &cluster, &name, settings.key_exchange())?,
            keys,
            name: NodeName::new(&name)?,
            cluster,
            peer: listed.unwrap_or(reached),
            api: format!("{scheme}://{}", address(&host, public.port())),
            host,
            data,
        })
    }
}

impl Me {
    /// The connections of this process, inside the group and outside.
    pub fn links(&self) -> Vec<Links> {
        vec![self.tls.links().clone(), Links::outside().clone()]
    }
}

/// A data directory that is not there yet is its owner's alone: keys, state and logs lie below it. One that is there stays as
/// it is, since users of running replicas may have to pass through it.
fn make_own(data: &Path) -> Result<()> {
    if data.exists() {
        return Ok(());
    }
    let make = || {
        if let Some(above) = data.parent() {
            std::fs::create_dir_all(above)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(data)
    };
    make().with_context(|| format!("NF_DATA_DIR {}", data.display()))
}

/// Another group's data is not touched, not even its keys.
fn same_group(data: &Path, cluster: &str) -> Result<()> {
    match storage::identity::read(&data.join("raft"))? {
        Some(there) if there.cluster != cluster => Err(ConfigError::OtherCluster(format!(
            "NF_DATA_DIR {} holds member {} of group {}, not of {cluster}: choose another --data-dir, or set --cluster {2}",
            data.display(),
            there.member,
            there.cluster
        ))
        .into()),
        _ => Ok(()),
    }
}

/// The number of a founder is its place in the list.
pub fn founder_id(settings: &Settings, founders: &[Member]) -> Option<MemberId> {
    let place = founders.iter().position(|member| member.name == settings.name());
    let id = settings.member_id.value.or(place.map(|place| place as u64 + 1));
    id.map(MemberId)
}

/// What this process' keys are, and where.
type Found = (Credentials, PathBuf);

/// A member alone makes its own authority; all others were given keys.
fn credentials(settings: &Settings, data: &Path, cluster: &str, name: &str, alone: bool) -> Result<Found> {
    let given = settings.tls_dir.value.clone();
    let dir = given.clone().unwrap_or_else(|| data.join("tls"));
    if dir.join("member.key").exists() {
        return Ok((Credentials::read(&dir)?, dir));
    }
    if !alone || given.is_some() {
        bail!(
            "{} holds no keys: nf cluster init (or nf cluster join) makes them, and --tls-dir says where they are",
            dir.display()
        );
    }
    let authority = match data.join("ca").join("ca.key").exists() {
        true => Authority::read(&data.join("ca"))?,
        false => {
            let authority = Authority::create(cluster)?;
            authority.write(&data.join("ca"))?;
            // For nf sim nodes, which a newcomer tries on a member of their own.
            authority.issue_as(cluster, PLAYER, tls::Role::Client)?.write(&data.join(PLAYER).join("tls"))?;
            authority
        }
    };
    let made = authority.issue(cluster, name)?;
    made.write(&dir).with_context(|| dir.display().to_string())?;
    authority.issuer(cluster)?.write(&dir)?;
    if let Some(notary) = authority.notary(cluster, name)? {
        notary.write(&dir)?;
    }
    Ok((made, dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, metadata, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_data_directory_is_its_owner_s_alone_and_one_that_is_there_stays_as_it_is() {
        let tmp = tempfile::tempdir().unwrap();
        let (above, data) = (tmp.path().join("above"), tmp.path().join("above/data"));
        let mode = |path: &Path| metadata(path).unwrap().permissions().mode() & 0o777;
        make_own(&data).unwrap();
        assert_eq!((mode(&data), mode(&above) & 0o700), (0o700, 0o700));
        set_permissions(&data, Permissions::from_mode(0o711)).unwrap();
        make_own(&data).unwrap();
        assert_eq!(mode(&data), 0o711, "replicas' users pass through it");
    }
}
