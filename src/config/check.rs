//! Which values fit together: the mode and what it needs, the bind address, the
//! liveness times. Pure; it reads nothing but the settings.

use super::parse::{Mode, Role};
use super::{Error, Origin, Setting, Settings};
use crate::outgoing;
use crate::pqc::{self, Kind};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The guard looks at the clock this often.
const GUARD_TICK: Duration = Duration::from_millis(100);
/// A worker's certificate lives no shorter.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);

impl Settings {
    pub(super) fn check(&self) -> Result<(), Error> {
        self.check_times()?;
        self.check_public()?;
        self.check_binding()?;
        self.check_key_exchange()?;
        self.check_membership()
    }

    /// What production needs and these settings lack.
    pub fn missing(&self) -> Vec<&'static str> {
        let trust = self.cosign_key_path.is_some() || self.vault_addr.is_some();
        let needs = [
            (self.model_store_url.is_some(), "MODEL_STORE_URL"),
            (trust, "COSIGN_KEY_PATH or VAULT_ADDR"),
            (self.jwks.is_some(), "NF_JWKS"),
            (self.tls_dir.is_some(), "NF_TLS_DIR"),
        ];
        needs.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect()
    }

    /// The mode of this process. With nothing said, simulation when something is missing.
    pub fn mode(&self) -> Mode {
        match (self.simulation_mode.value, self.neural_fabric_mode.value) {
            (Some(true), _) => Mode::Simulation,
            (Some(false), _) => Mode::Production,
            (None, Some(mode)) => mode,
            (None, None) if self.missing().is_empty() => Mode::Production,
            (None, None) => Mode::Simulation,
        }
    }

    /// Whether this build can run these settings.
    ///
    /// # Errors
    /// For production: what is missing.
    pub fn can_serve(&self) -> Result<(), Error> {
        match (self.mode(), self.missing()) {
            (Mode::Simulation, _) => Ok(()),
            (Mode::Production, _) if self.pqc_mode.value == pqc::Mode::Off => Err(Error::Clash(
                "PQC_MODE=off is for simulation: without TLS nobody can prove who they are; set hybrid or classical"
                    .into(),
            )),
            (Mode::Production, missing) if missing.is_empty() => Ok(()),
            (Mode::Production, missing) => Err(Error::Missing(missing)),
        }
    }

    /// How the model store is reached.
    pub fn store_link(&self) -> outgoing::Options {
        outgoing::Options {
            allow: Some(self.store_hosts.value.clone()),
            authorities: self.store_ca.value.clone(),
            ..self.link(Kind::Store)
        }
    }

    /// How servers are reached that nobody but the operator names.
    pub fn link(&self, kind: Kind) -> outgoing::Options {
        let policy = self.key_exchange();
        outgoing::Options { kind, policy, plain: policy.mode == pqc::Mode::Off, allow: None, authorities: None }
    }

    /// How the public ports of the group that it joins are reached; a token goes over TLS, or stays on this machine.
    pub fn group_link(&self) -> outgoing::Options {
        let link = self.link(Kind::Public);
        outgoing::Options { plain: self.token.is_none(), authorities: self.ca.value.clone(), ..link }
    }

    /// Which key exchange its links have.
    pub fn key_exchange(&self) -> pqc::Policy {
        pqc::Policy { mode: self.pqc_mode.value, strict: self.pqc_strict.value.unwrap_or(false) }
    }

    /// The public address.
    pub fn public(&self) -> SocketAddr {
        self.listen.value.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, self.scheduler_port.value)))
    }

    /// The address for members and workers.
    pub fn peer(&self) -> SocketAddr {
        // Port 0 is "any free one", for both.
        let next = match self.public().port() {
            0 => 0,
            port => port.saturating_add(1),
        };
        self.peer_listen.value.unwrap_or_else(|| SocketAddr::new(self.public().ip(), next))
    }

    /// The name, or the only member's name when none is set.
    pub fn name(&self) -> String {
        self.node_name.value.clone().unwrap_or_else(|| "node-1".to_owned())
    }

    /// Where this process keeps its data, from the root: replicas and container engines stand elsewhere.
    pub fn data(&self) -> PathBuf {
        let home = || {
            let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
            let share = from("XDG_DATA_HOME").or_else(|| from("HOME").map(|home| home.join(".local/share")));
            share.unwrap_or_else(std::env::temp_dir).join("neural-fabric")
        };
        let own = || home().join(format!("{}-{}", self.name(), self.public().port()));
        let dir = self.data_dir.value.clone().unwrap_or_else(own);
        // Without a directory to stand in, it stays as it was said.
        std::path::absolute(&dir).unwrap_or(dir)
    }

    fn check_times(&self) -> Result<(), Error> {
        let clash = |text: String| Err(Error::Clash(text));
        if self.node_cert_life.value < SHORTEST_LIFE {
            return clash("NF_NODE_CERT_LIFE must be at least 10s, or no worker renews in time".into());
        }
        if self.election_min.value > self.election_max.value {
            return clash("NF_ELECTION_MIN must not be longer than NF_ELECTION_MAX".into());
        }
        if self.heartbeat.value * 3 > self.election_min.value + self.election_max.value {
            return clash("NF_HEARTBEAT is too long: three of them must fit before a follower campaigns".into());
        }
        let order = [self.beat.value, self.suspect_after.value, self.unknown_after.value, self.down_after.value];
        if !order.is_sorted_by(|a, b| a < b) {
            return clash("NF_BEAT < NF_SUSPECT_AFTER < NF_UNKNOWN_AFTER < NF_DOWN_AFTER must hold".into());
        }
        if self.network_fault_down_after.value < self.down_after.value {
            return clash("NF_NETWORK_FAULT_DOWN_AFTER must not be shorter than NF_DOWN_AFTER".into());
        }
        // The lease runs on the node's clock, which may be 1 % slow; see DESIGN.md section 3.
        let needed = self.lease.value.mul_f64(1.01) + GUARD_TICK + Duration::from_secs(5);
        if self.down_after.value < needed {
            let text =
                "NF_DOWN_AFTER must be at least 1.01 × NF_LEASE + 5.1s, or a node is given up while its lease runs";
            return clash(format!("{text} (here {}s)", needed.as_secs_f64()));
        }
        if self.lease.value < self.kill_budget.value + Duration::from_secs(30) + Duration::from_millis(1) {
            return clash("NF_LEASE must be more than 30s longer than NF_KILL_BUDGET".into());
        }
        Ok(())
    }

    /// A public port has a certificate with its key, or neither.
    fn check_public(&self) -> Result<(), Error> {
        let clash = |text: &str| Err(Error::Clash(text.into()));
        match (&self.public_cert.value, &self.public_key.value, self.pqc_mode.value) {
            (Some(_), Some(_), pqc::Mode::Off) => {
                clash("NF_PUBLIC_CERT makes the public port speak TLS, and PQC_MODE=off forbids it: unset one of them")
            }
            (Some(_), Some(_), _) | (None, None, _) => Ok(()),
            (Some(_), None, _) => clash("NF_PUBLIC_CERT needs its key: set NF_PUBLIC_KEY"),
            (None, Some(_), _) => clash("NF_PUBLIC_KEY needs its certificate: set NF_PUBLIC_CERT"),
        }
    }

    fn check_key_exchange(&self) -> Result<(), Error> {
        let policy = self.key_exchange();
        if policy.strict && policy.mode != pqc::Mode::Hybrid {
            let text = format!(
                "PQC_STRICT wants X25519MLKEM768 everywhere, and PQC_MODE is {}: unset one of them",
                policy.mode
            );
            return Err(Error::Clash(text));
        }
        let peer = self.peer();
        if policy.mode == pqc::Mode::Off && !peer.ip().is_loopback() {
            let text = format!(
                "PQC_MODE=off is for loopback alone, and NF_PEER_LISTEN ({peer}) is not: set hybrid or classical"
            );
            return Err(Error::Clash(text));
        }
        Ok(())
    }

    /// Plain text never leaves the machine.
    fn check_binding(&self) -> Result<(), Error> {
        let public = self.public();
        if public.ip().is_loopback() || self.public_cert.is_some() {
            return Ok(());
        }
        let name = if matches!(self.listen.origin, Origin::Default) { "SCHEDULER_PORT" } else { "NF_LISTEN" };
        let off = if self.pqc_mode.value == pqc::Mode::Off { "PQC_MODE=off is for loopback alone, and " } else { "" };
        Err(Error::Clash(format!(
            "{off}{name} ({public}) is not loopback while the public port has no TLS: set NF_PUBLIC_CERT and \
             NF_PUBLIC_KEY, or listen on 127.0.0.1 and put a TLS proxy in front"
        )))
    }

    fn check_membership(&self) -> Result<(), Error> {
        let clash = |text: String| Err(Error::Clash(text));
        let set = |setting: &Setting<Vec<String>>| !setting.value.is_empty();
        if !self.members.value.is_empty() && set(&self.join) {
            return clash("NF_MEMBERS forms a new group and NF_JOIN joins one: set one of the two".into());
        }
        let worker = self.role.value == Role::Worker;
        if worker && !set(&self.join) && self.members.value.is_empty() {
            let text = "a worker needs NF_JOIN, the public addresses of members, e.g. --join 127.0.0.1:8600; \
                        or NF_MEMBERS, as nf cluster join --token writes it";
            return clash(text.into());
        }
        let named = |name: &String| self.members.value.iter().any(|m| m.name == *name);
        match &self.node_name.value {
            None if !self.members.value.is_empty() || set(&self.join) => {
                clash("NF_NODE_NAME is needed with NF_MEMBERS and NF_JOIN: set --node-name".into())
            }
            // A worker is told of the members, and is none of them.
            Some(name) if !worker && !self.members.value.is_empty() && !named(name) => {
                clash(format!("NF_NODE_NAME {name} is not in NF_MEMBERS: add it there or change the name"))
            }
            _ => Ok(()),
        }
    }
}
