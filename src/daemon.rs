//! `nf serve`: brings the parts of one process up in order, and takes them down
//! in order. It wires; each part decides for itself.

mod consents;
mod follow;
mod form;
mod identity;
pub(crate) mod join;
mod links;
mod member;
mod nodes;
mod people;
pub mod public;
mod scaled;
mod signers;
mod trail;
pub(crate) mod trust;
mod wiped;
mod worker;

pub use links::{PLAYER, TlsDial};
pub use nodes::{artefact_key, engine_socket, users};
pub use people::look as signers_listed;

use crate::config::parse::Role;
use crate::config::{Error as ConfigError, Settings};
use crate::pqc;
use crate::telemetry;
use crate::telemetry::traces::{Collector, Exporting};
use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Most files that this process asks to have open at a time.
const MOST_FILES: u64 = 1 << 20;
/// How often a process that ends with its parent looks at it.
const PARENT: Duration = Duration::from_millis(200);

/// Extras of the command line that are no settings.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Written once the member answers.
    pub ready_file: Option<PathBuf>,
    pub stop_with_parent: bool,
}

/// Runs until TERM or INT.
///
/// # Errors
/// What kept the process from starting, or ended it.
pub fn run(settings: Settings, extras: Extras) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let traces = watch(&settings, runtime.handle())?;
    open_many();
    if settings.pqc_mode.value == pqc::Mode::Off {
        tracing::warn!(
            "PQC_MODE=off: members and workers speak plain text, and any process of this machine can be any of them"
        );
    }
    let mode = settings.mode().name();
    let missing = settings.missing();
    match missing.is_empty() {
        true => tracing::info!(mode, "starting"),
        false => {
            tracing::info!(mode, missing = missing.join(", "), "starting; production would also need what is missing")
        }
    }
    for (row, value, origin) in settings.view() {
        if row.unused && !value.is_empty() {
            tracing::info!(setting = row.env, %origin, "is set, and not used by this build");
        }
    }
    let outcome = runtime.block_on(async {
        match settings.role.value {
            Role::Member => member::run(&settings, &extras).await,
            Role::Worker => worker::run(&settings, &extras).await,
        }
    });
    if let Some(traces) = traces {
        traces.end();
    }
    // Blocking work that nobody waits for any more does not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Starts the log, and traces where somebody collects them.
fn watch(settings: &Settings, runtime: &Handle) -> Result<Option<Exporting>> {
    let log = settings.log.as_deref();
    let Some(endpoint) = settings.otlp_endpoint.value.clone() else {
        telemetry::init_logs(log);
        return Ok(None);
    };
    // Spans are no secret, and collectors stand beside us; a key for one that does not goes over TLS alone.
    let keys = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];
    let link = settings.link(pqc::Kind::Collector);
    let plain = link.plain || keys.iter().all(|name| std::env::var_os(name).is_none());
    let node = settings.node_name.value.clone().unwrap_or_else(|| "node-1".to_owned());
    let link = crate::outgoing::Options { plain, ..link };
    let collector = Collector { endpoint, node, version: crate::cli::VERSION, link };
    let wrong = |text| ConfigError::Clash(format!("OTEL_EXPORTER_OTLP_ENDPOINT: {text}"));
    Ok(Some(telemetry::init(log, &collector, runtime).map_err(wrong)?))
}

/// A login shell hands out 1,024 files, and lets whoever asks have many more. Each caller is a file.
fn open_many() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = hard.min(MOST_FILES);
    if soft < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        tracing::warn!(%error, files = soft, "no more files can be opened than the shell allows");
    }
}

/// Binds now, so that a taken port is told before any file is touched.
fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address);
    let listener = bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} is taken by another process: choose another with {flag} or stop it (PortTaken)",
            address.port()
        ),
        _ => anyhow::Error::new(error).context(format!("listening on {address} ({flag})")),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What ends this process.
struct Stop {
    term: Signal,
    int: Signal,
    parent: Option<u32>,
}

impl Stop {
    fn new(with_parent: bool) -> Result<Self> {
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { term, int, parent: with_parent.then(std::os::unix::process::parent_id) })
    }

    /// Returns when the process is asked to end, or its parent is gone. The second
    /// time it returns, somebody is in a hurry.
    async fn asked(&mut self) -> &'static str {
        let parent = self.parent;
        let orphaned = async {
            let mut look = tokio::time::interval(PARENT);
            loop {
                look.tick().await;
                if parent.is_some_and(|parent| std::os::unix::process::parent_id() != parent) {
                    return;
                }
            }
        };
        tokio::select! {
            _ = self.term.recv() => "TERM",
            _ = self.int.recv() => "INT",
            () = orphaned => "the parent process is gone",
        }
    }
}

fn write_ready(path: Option<&PathBuf>, url: &str) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::json!({ "addrs": [url], "pid": std::process::id() }).to_string();
    Ok(crate::storage::replace_file(&std::path::absolute(path)?, text.as_bytes())?)
}
