//! The container engine of this machine, Docker or Podman, by its socket: where it is,
//! what it is, what it lacks, and what its errors mean. It starts no container.

use bollard::models::{SystemInfo, SystemVersion};
use bollard::{API_DEFAULT_VERSION, Docker};
use nf_core::reason::{Reason, printable};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

/// How long the engine may take to begin an answer, in seconds: it may be busy with another's container.
const TIMEOUT_S: u64 = 60;
/// Where Docker listens when nobody says otherwise.
pub const USUAL: &str = "/var/run/docker.sock";
/// How long a first word may take, when somebody looks whether there is an engine.
const LOOK: Duration = Duration::from_secs(5);
/// The oldest API that says all we ask (Docker 19.03): device requests came with it.
const OLDEST: (u64, u64) = (1, 40);
/// How much of a CDI description is read: its kind is at the top, or behind all of its devices.
const CDI_HEAD: u64 = 4 << 20;
const CDI_FILES: usize = 64;
/// The most characters of an engine's own words that are repeated.
const WORDS: usize = 400;

/// The first of the usual places where a socket is.
pub fn usual_socket() -> Option<PathBuf> {
    usual_sockets().into_iter().find(|path| path.exists())
}

fn usual_sockets() -> Vec<PathBuf> {
    let host = std::env::var("DOCKER_HOST").ok();
    let named = host.as_deref().and_then(|host| host.strip_prefix("unix://")).map(PathBuf::from);
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("podman/podman.sock"));
    let usual = [USUAL, "/run/podman/podman.sock"].map(PathBuf::from);
    named.into_iter().chain(usual).chain(own).collect()
}

/// How the engine is asked for GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giving {
    /// By CDI name.
    Cdi,
    /// By the device request that came before.
    Request,
    /// Not at all: Podman drops either without a word in its Docker API.
    Nothing,
}

/// What an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `docker` or `podman`.
    pub kind: &'static str,
    pub version: String,
    pub api: (u64, u64),
    pub giving: Giving,
    /// It can put a first process into a container that passes signals on and waits for orphans.
    pub init: bool,
    /// Of what holds a container within bounds, that which it does not have.
    pub missing: Vec<&'static str>,
}

impl Facts {
    /// What it says of itself. `described` says whether a CDI description of GPUs is in one of the directories.
    ///
    /// # Errors
    /// Why it can't be used.
    fn of(version: &SystemVersion, info: &SystemInfo, described: fn(&[String]) -> bool) -> Result<Self, String> {
        let text = |said: &Option<String>| printable(said.as_deref().unwrap_or("?"), 40);
        let api = version.api_version.as_deref().and_then(numbers);
        let api = api.filter(|api| *api >= OLDEST).ok_or_else(|| {
            format!(
                "its API is {}, nf needs {}.{} or later: upgrade it",
                text(&version.api_version),
                OLDEST.0,
                OLDEST.1
            )
        })?;
        if info.os_type.as_deref().is_some_and(|os| os != "linux") {
            return Err(format!("it runs containers of {}, nf needs linux", text(&info.os_type)));
        }
        let parts = version.components.iter().flatten();
        let podman = parts.into_iter().any(|part| part.name.to_lowercase().contains("podman"));
        let bounds = [
            ("memory limits", info.memory_limit),
            ("cpu limits", info.cpu_cfs_quota),
            ("limits of processes", info.pids_limit),
        ];
        let has = |word: &str| info.security_options.iter().flatten().any(|option| option.contains(word));
        let mut missing: Vec<_> =
            bounds.into_iter().filter(|(_, there)| *there == Some(false)).map(|(what, _)| what).collect();
        if !podman && !has("seccomp") {
            missing.push("a seccomp filter");
        }
        // Podman brings its own, or says so when the container is made.
        let init = podman || info.init_commit.as_ref().is_some_and(|c| c.id.as_deref().is_some_and(|id| id != "N/A"));
        if !init {
            missing.push("docker-init (programs without a handler of TERM end by KILL)");
        }
        Ok(Self {
            kind: if podman { "podman" } else { "docker" },
            version: text(&version.version),
            api,
            giving: match &info.cdi_spec_dirs {
                _ if podman => Giving::Nothing,
                // An engine that could, where the NVIDIA toolkit described nothing, knows no names.
                Some(dirs) if described(dirs) => Giving::Cdi,
                _ => Giving::Request,
            },
            init,
            missing,
        })
    }
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let devices = match self.giving {
            Giving::Cdi => "GPUs by CDI",
            Giving::Request => "GPUs by the older device request",
            Giving::Nothing => "no GPUs",
        };
        write!(f, "{} {}, API {}.{}, {devices}", self.kind, self.version, self.api.0, self.api.1)
    }
}

/// Whether a CDI description of NVIDIA's GPUs lies in one of the directories.
fn described(dirs: &[String]) -> bool {
    let says = |path: PathBuf| {
        let mut head = Vec::new();
        let read = File::open(path).and_then(|file| file.take(CDI_HEAD).read_to_end(&mut head));
        read.is_ok() && String::from_utf8_lossy(&head).contains("nvidia.com/gpu")
    };
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten().take(CDI_FILES));
    files.map(|entry| entry.path()).any(says)
}

fn numbers(api: &str) -> Option<(u64, u64)> {
    let (major, minor) = api.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Asks the engine at `socket` what it is.
///
/// # Errors
/// Why it can't be used, for people.
pub async fn look(socket: &Path) -> Result<Facts, String> {
    match tokio::time::timeout(LOOK, meet(socket)).await {
        Ok(met) => met.map(|(_, facts)| facts).map_err(|fault| fault.text),
        Err(_) => Err(format!("{}: no answer within {LOOK:?}", socket.display())),
    }
}

async fn meet(socket: &Path) -> Result<(Docker, Facts), Fault> {
    let there = |error: bollard::errors::Error| {
        let fault = Fault::from(error);
        Fault { text: format!("{}: {}", socket.display(), fault.text), ..fault }
    };
    let path = socket.to_string_lossy();
    let docker = Docker::connect_with_unix(&path, TIMEOUT_S, API_DEFAULT_VERSION).map_err(there)?;
    let docker = docker.negotiate_version().await.map_err(there)?;
    let (version, info) = (docker.version().await.map_err(there)?, docker.info().await.map_err(there)?);
    let facts = tokio::task::spawn_blocking(move || Facts::of(&version, &info, described)).await;
    let facts = facts
        .unwrap_or_else(|e| Err(e.to_string()))
        .map_err(|text| Fault { why: Reason::EngineUnavailable, text: format!("{}: {text}", socket.display()) })?;
    Ok((docker, facts))
}

/// How long an engine that does not answer is waited for. Tests have less patience.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// It may be away for so long, as when it starts again together with the agent, before an end is told without it.
    pub silence: Duration,
    /// Between two looks at one that did not answer.
    pub again: Duration,
    /// The same while something of its should end.
    pub stop_again: Duration,
    /// Between two looks for containers that nothing here tells of.
    pub sweep: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let [silence, again, stop_again, sweep] = [20, 5, 1, 60].map(Duration::from_secs);
        Self { silence, again, stop_again, sweep }
    }
}

/// Where containers are run, and in whose name.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// None: this node runs no containers.
    pub socket: Option<PathBuf>,
    /// The group's name, for the people who look at the engine.
    pub group: String,
    pub patience: Patience,
}

/// An engine that is spoken to when there is something to say.
#[derive(Debug, Default)]
pub(super) struct Engine {
    pub config: EngineConfig,
    met: OnceCell<(Docker, Facts)>,
    owner: OnceCell<String>,
}

impl Engine {
    pub(super) fn new(config: EngineConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// # Errors
    /// `EngineUnavailable`, and why.
    pub(super) async fn reach(&self) -> Result<&(Docker, Facts), Fault> {
        let Some(socket) = &self.config.socket else {
            let text = "this node has no container engine: install Docker or Podman, or name its socket with NF_CONTAINER_ENGINE";
            return Err(Fault { why: Reason::EngineUnavailable, text: text.into() });
        };
        self.met.get_or_try_init(|| meet(socket)).await
    }

    /// The number that says which containers are of the data directory with these records.
    pub(super) async fn owner(&self, records: &Path) -> io::Result<&str> {
        let read = async {
            let records = records.to_owned();
            tokio::task::spawn_blocking(move || owner(&records)).await.map_err(io::Error::other)?
        };
        self.owner.get_or_try_init(|| read).await.map(String::as_str)
    }
}

/// Whether the engine at that socket sees this very directory under its path, so that what it mounts from there is ours
/// to judge: it may live in another view of the machine's files. Asked of its process, which takes root; false where that
/// can't be known.
pub(super) async fn sees(socket: &Path, dir: &Path) -> bool {
    let Ok(peer) = UnixStream::connect(socket).await.and_then(|socket| socket.peer_cred()) else { return false };
    // One in another view of the processes has no number here.
    let Some(pid) = peer.pid().filter(|pid| *pid > 0) else { return false };
    let (root, dir) = (PathBuf::from(format!("/proc/{pid}/root")), dir.to_owned());
    let same = move || {
        let theirs = fs::metadata(root.join(dir.strip_prefix("/").unwrap_or(&dir)))?;
        let ours = fs::metadata(&dir)?;
        io::Result::Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
    };
    matches!(tokio::task::spawn_blocking(same).await, Ok(Ok(true)))
}

/// See [`Engine::owner`]; made once.
fn owner(records: &Path) -> io::Result<String> {
    let path = records.join("owner");
    match fs::read_to_string(&path) {
        Ok(known) if !known.trim().is_empty() => return Ok(known.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let new = uuid::Uuid::now_v7().simple().to_string();
    let partial = path.with_extension("new");
    fs::write(&partial, &new)?;
    File::open(&partial)?.sync_all()?;
    fs::rename(&partial, &path)?;
    File::open(records)?.sync_all()?;
    Ok(new)
}

/// Why the engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub why: Reason,
    pub text: String,
}

impl Fault {
    /// It has no such container (any more).
    pub(super) fn is_absence(error: &bollard::errors::Error) -> bool {
        matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 404, .. })
    }

    /// It does not answer; a word from it would have had a number.
    pub(super) fn is_silence(&self) -> bool {
        self.why == Reason::EngineUnavailable
    }
}

impl From<bollard::errors::Error> for Fault {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        let (why, text) = match &error {
            Error::DockerResponseServerError { message, .. } => (of_words(message), message.clone()),
            Error::DockerStreamError { error } => (of_words(error), error.clone()),
            Error::JsonDataError { .. } | Error::JsonSerdeError { .. } | Error::APIVersionParseError {} => {
                (Reason::RuntimeFailed, format!("the engine answers what can't be read: {error}"))
            }
            other => (Reason::EngineUnavailable, format!("the engine does not answer: {other}")),
        };
        Self { why, text: printable(&text, WORDS) }
    }
}

/// Engines have numbers for few things, and words for the rest.
fn of_words(message: &str) -> Reason {
    let said = message.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    match () {
        () if any(&["port is already allocated", "address already in use"]) => Reason::PortTaken,
        () if any(&["no such image"]) => Reason::ImageMissing,
        () => Reason::RuntimeFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(version: serde_json::Value, info: serde_json::Value) -> Result<Facts, String> {
        let described = |dirs: &[String]| !dirs.is_empty();
        Facts::of(&serde_json::from_value(version).unwrap(), &serde_json::from_value(info).unwrap(), described)
    }

    #[test]
    fn an_engine_is_known_by_what_it_says() {
        let info = json!({
            "OSType": "linux", "MemoryLimit": true, "CpuCfsQuota": true, "PidsLimit": true,
            "SecurityOptions": ["name=seccomp,profile=default"], "InitCommit": { "ID": "de40ad0" },
        });
        let debian = facts(json!({ "Version": "20.10.24", "ApiVersion": "1.41" }), info.clone()).unwrap();
        assert_eq!((debian.kind, debian.api, debian.giving, debian.init), ("docker", (1, 41), Giving::Request, true));
        assert!(debian.missing.is_empty(), "{debian:?}");
        let mut new = info.clone();
        new["CDISpecDirs"] = json!(["/etc/cdi", "/var/run/cdi"]);
        assert_eq!(facts(json!({ "Version": "28.3.0", "ApiVersion": "1.51" }), new).unwrap().giving, Giving::Cdi);
        let podman = json!({ "Version": "4.3.1", "ApiVersion": "1.41", "Components": [{ "Name": "Podman Engine", "Version": "4.3.1" }] });
        let podman = facts(podman, info).unwrap();
        assert_eq!((podman.kind, podman.giving), ("podman", Giving::Nothing));
    }

    #[test]
    fn gpus_have_names_where_somebody_described_them() {
        let tmp = tempfile::tempdir().unwrap();
        let dirs = [tmp.path().join("none").display().to_string(), tmp.path().display().to_string()];
        assert!(!described(&dirs));
        std::fs::write(tmp.path().join("other.yaml"), "kind: vendor.test/net\n").unwrap();
        assert!(!described(&dirs));
        std::fs::write(tmp.path().join("nvidia.yaml"), "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n").unwrap();
        assert!(described(&dirs));
    }

    #[test]
    fn what_it_lacks_is_said_and_what_is_too_old_is_refused() {
        let bare = json!({ "OSType": "linux", "MemoryLimit": false, "CpuCfsQuota": true, "PidsLimit": false });
        let poor = facts(json!({ "Version": "20", "ApiVersion": "1.41" }), bare.clone()).unwrap();
        assert_eq!(poor.missing[..3], ["memory limits", "limits of processes", "a seccomp filter"]);
        for (api, says) in [(json!("1.39"), "1.39"), (json!("x"), "x"), (json!(null), "?"), (json!("1"), "1")] {
            let refused = facts(json!({ "ApiVersion": api }), bare.clone()).unwrap_err();
            assert!(refused.contains(&format!("its API is {says}")), "{refused}");
        }
        let windows = facts(json!({ "ApiVersion": "1.41" }), json!({ "OSType": "windows" })).unwrap_err();
        assert!(windows.contains("windows"));
    }

    #[test]
    fn its_words_become_reasons() {
        let of = |status_code, message: &str| {
            Fault::from(bollard::errors::Error::DockerResponseServerError { status_code, message: message.into() }).why
        };
        assert_eq!(of(500, "driver failed: Bind for 127.0.0.1:1 failed: port is already allocated"), Reason::PortTaken);
        assert_eq!(of(500, "listen tcp4 127.0.0.1:1: bind: address already in use"), Reason::PortTaken);
        assert_eq!(of(404, "No such image: a:v1"), Reason::ImageMissing);
        assert_eq!(of(500, "could not select device driver \"nvidia\""), Reason::RuntimeFailed);
        let gone = Fault::from(bollard::errors::Error::from(std::io::Error::other("gone")));
        assert!(gone.is_silence() && gone.text.contains("does not answer"));
        let long = Fault::from(bollard::errors::Error::DockerStreamError { error: "\u{1b}[2J".repeat(500) });
        assert!(!long.text.contains('\u{1b}') && long.text.len() < 20 * WORDS);
    }

    /// Engines in the same and in another view of the machine's files, played by a program that listens.
    #[tokio::test]
    async fn whether_an_engine_means_the_same_directory_is_asked_of_the_kernel() {
        if !nix::unistd::geteuid().is_root() {
            return nf_core::testing::skipped("another's view of the files is root's to see, and to make");
        }
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("replicas");
        fs::create_dir(&dir).unwrap();
        let listens = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); time.sleep(60)";
        let meant = async |before: &str| {
            let socket = tmp.path().join(if before.is_empty() { "same.sock" } else { "other.sock" });
            let script = format!("{before} exec python3 -c '{listens}' {}", socket.display());
            let mut engine = std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).spawn().unwrap();
            let begun = std::time::Instant::now();
            while UnixStream::connect(&socket).await.is_err() {
                let ended = engine.try_wait().unwrap();
                assert!(ended.is_none() && begun.elapsed() < Duration::from_secs(20), "it does not listen: {ended:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let meant = (sees(&socket, &dir).await, sees(&socket, &tmp.path().join("nowhere")).await);
            engine.kill().unwrap();
            engine.wait().unwrap();
            meant
        };
        assert_eq!(meant("").await, (true, false));
        let hidden = format!("mount -t tmpfs none {} &&", dir.display());
        assert_eq!(meant(&hidden).await, (false, false), "the same path is another directory there");
        assert!(!sees(&tmp.path().join("no.sock"), &dir).await);
    }

    #[tokio::test]
    async fn no_engine_is_said_with_the_next_step() {
        let none = Engine::default().reach().await.unwrap_err();
        assert!(none.is_silence() && none.text.contains("NF_CONTAINER_ENGINE"));
        let tmp = tempfile::tempdir().unwrap();
        let socket = tmp.path().join("docker.sock");
        let config = EngineConfig { socket: Some(socket.clone()), ..EngineConfig::default() };
        let engine = Engine::new(config);
        assert!(engine.reach().await.unwrap_err().is_silence());
        // Somebody listens who is no engine.
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
        });
        let stranger = engine.reach().await.unwrap_err();
        assert!(stranger.text.contains("docker.sock"), "{stranger:?}");
        answer.join().unwrap();
    }
}
