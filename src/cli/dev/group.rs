//! Makes the group: keys, directories, and the command line of each member. It
//! starts processes and does not watch them.

use super::record::Member;
use super::{Up, ports};
use crate::cli::exit::{Exit, fail};
use crate::config::TABLE;
use crate::daemon::PLAYER;
use crate::security::join::Issuer;
use crate::security::jwt::issuer::JWKS_FILE;
use crate::security::notary::Notary;
use crate::security::tls::{Authority, Credentials, Role};
use anyhow::{Context as _, Result};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// The group's name in its certificates.
const CLUSTER: &str = "dev";
/// Where the keys of its tokens are, with --auth.
pub const TOKENS: &str = "tokens";

/// A member that can be started, and started again.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: String,
    pub port: u16,
    /// `H100-80G`, 8
    pub gpus: (String, u16),
    args: Vec<String>,
    log: PathBuf,
}

impl Plan {
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.port + 1)
    }

    pub fn member(&self, pid: u32) -> Member {
        Member { name: self.name.clone(), pid, api: self.api(), peer: self.peer() }
    }

    /// Starts the member. It ends by itself when this process does, however that ends.
    pub fn start(&self) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| self.log.display().to_string())?;
        let mut command = Command::new(std::env::current_exe().context("the path of nf itself")?);
        // What is set for one server on this machine is not meant for these three.
        for name in ["NF_JOIN", "NF_ROLE", "NF_ADVERTISE", "NF_MEMBER_ID", "NEURAL_FABRIC_MODE", "NF_JWKS", "NF_TOKEN"]
        {
            command.env_remove(name);
        }
        command
            .arg("serve")
            .args(&self.args)
            .arg("--stop-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            // A Ctrl-C on the terminal reaches nf dev alone, which then stops them in order.
            .process_group(0);
        command.spawn().context("starting a member")
    }

    /// The end of its log, for when it does not come up.
    pub fn last_words(&self) -> String {
        const LINES: usize = 8;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n  ")
    }
}

/// Plans the members and makes their keys and directories.
pub fn plan(up: &Up, dir: &Path) -> Result<Vec<Plan>> {
    if ![1, 3, 5].contains(&up.nodes) {
        return Err(fail(
            Exit::Usage,
            format!("--nodes {}: 1, 3 or 5, because an even number adds no safety", up.nodes),
        ));
    }
    let gpus = gpus(&up.gpus)?;
    let ports = ports::choose(up.port, up.nodes)?;
    let authority = authority(&dir.join("ca"))?;
    let player = dir.join(PLAYER).join("tls");
    if !player.join("member.key").exists() {
        authority.issue_as(CLUSTER, PLAYER, Role::Client)?.write(&player)?;
    }
    let names: Vec<_> = (1..=up.nodes).map(|n| format!("node-{n}")).collect();
    let list = names.iter().zip(&ports).map(|(name, port)| format!("{name}=127.0.0.1:{}", port + 1));
    let list = list.collect::<Vec<_>>().join(",");
    let store = match std::env::var("MODEL_STORE_URL") {
        Ok(url) if !url.is_empty() => url,
        _ => {
            let models = dir.join("models");
            std::fs::create_dir_all(&models).with_context(|| models.display().to_string())?;
            format!("file://{}", models.display())
        }
    };
    let mut plans = Vec::new();
    for (i, (name, port)) in names.iter().zip(ports).enumerate() {
        let home = dir.join(name);
        let tls = home.join("tls");
        let credentials = match Credentials::read(&tls) {
            Ok(there) => there,
            Err(_) => authority.issue(CLUSTER, name)?,
        };
        credentials.write(&tls)?;
        if Issuer::read(&tls)?.is_none() {
            authority.issuer(CLUSTER)?.write(&tls)?;
        }
        if let (None, Some(notary)) = (Notary::read(&tls)?, authority.notary(CLUSTER, name)?) {
            notary.write(&tls)?;
        }
        let (device_type, count) = gpus[i % gpus.len()].clone();
        let range = ports::replicas(port);
        let mut args = Vec::new();
        for (flag, value) in [
            ("node-name", name.clone()),
            ("cluster", CLUSTER.to_owned()),
            ("listen", format!("127.0.0.1:{port}")),
            ("peer-listen", format!("127.0.0.1:{}", port + 1)),
            ("members", list.clone()),
            ("data-dir", home.join("data").display().to_string()),
            ("tls-dir", tls.display().to_string()),
            ("simulation-mode", "true".to_owned()),
            ("gpu-nodes", format!("{name}:{device_type}:{count}")),
            ("port-range", format!("{}-{}", range.0, range.1)),
            ("model-store-url", store.clone()),
        ] {
            args.extend([format!("--{flag}"), value]);
        }
        if up.auth {
            args.extend(["--jwks".to_owned(), dir.join(TOKENS).join(JWKS_FILE).display().to_string()]);
        }
        for set in &up.set {
            let (key, value) =
                set.split_once('=').ok_or_else(|| fail(Exit::Usage, format!("--set {set}: KEY=VALUE")))?;
            let row = TABLE.iter().find(|row| row.key == key.replace('-', "_"));
            let row =
                row.ok_or_else(|| fail(Exit::Usage, format!("--set {key}: no such setting\n  try: nf config view")))?;
            args.extend([format!("--{}", row.flag()), value.to_owned()]);
        }
        plans.push(Plan { name: name.clone(), port, gpus: (device_type, count), args, log: home.join("log.txt") });
    }
    Ok(plans)
}

/// A kept directory keeps its authority, or its members would not know each other.
fn authority(dir: &Path) -> Result<Authority> {
    if dir.join("ca.key").exists() {
        return Ok(Authority::read(dir)?);
    }
    let authority = Authority::create(CLUSTER)?;
    authority.write(dir)?;
    Ok(authority)
}

/// `h100:8,a100:4` with the names that vendors use.
fn gpus(text: &str) -> Result<Vec<(String, u16)>> {
    let bad = |part: &str| fail(Exit::Usage, format!("--gpus {part}: type:count, such as h100:8"));
    let one = |part: &str| {
        let (kind, count) = part.split_once(':').unwrap_or((part, "8"));
        let kind = match kind.to_ascii_lowercase().as_str() {
            "h100" => "H100-80G".to_owned(),
            "h200" => "H200-141G".to_owned(),
            "a100" => "A100-80G".to_owned(),
            "l40s" => "L40S-48G".to_owned(),
            _ => nf_core::id::DeviceType::new(kind).map_err(|_| bad(part))?.to_string(),
        };
        let count = count.parse().ok().filter(|count| *count <= 1024).ok_or_else(|| bad(part))?;
        Ok((kind, count))
    };
    text.split(',').map(str::trim).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_device_types() {
        assert_eq!(gpus("h100:8,a100:4").unwrap(), [("H100-80G".to_owned(), 8), ("A100-80G".to_owned(), 4)]);
        assert_eq!(gpus("B200-180G:2").unwrap(), [("B200-180G".to_owned(), 2)]);
        assert!(gpus("h100:x").is_err() && gpus("../x:1").is_err() && gpus("").is_err());
    }
}
