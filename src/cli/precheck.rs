//! `nf precheck`: is everything there that this phase needs, before anything starts? It
//! looks at the settings and at what they name, asks no group and changes nothing but
//! its own report. docs/compliance-precheck_H.2.md describes each check.

use super::exit::{Exit, fail};
use super::output::{self, at, col};
use super::{Global, say, version};
use crate::agent::nvml;
use crate::config::parse::GpuNodes;
use crate::config::{Flags, Mode, Settings, Sources};
use crate::daemon::trust;
use crate::models::Store;
use crate::secret::Secret;
use crate::security::signing::KeyRing;
use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a service may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// What a Postgres client may ask before anything else: whether TLS is spoken. Any server answers one letter.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

#[derive(Debug, Args)]
pub struct Precheck {
    #[command(flatten)]
    flags: Flags,
    /// Where H.2_precheck.json and logs/H.2_precheck.log are written
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
    /// Require Postgres and Vault, too
    #[arg(long)]
    strict: bool,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub check: &'static str,
    /// In the words of the document: REACHABLE, UP, OK, MISSING, ERROR, NONE, or a list of nodes.
    pub status: String,
    pub detail: String,
}

impl Check {
    fn new(check: &'static str, status: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check, status: status.into(), detail: detail.into() }
    }
}

/// What follows from the looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Proceed,
    ProceedSimulation,
    Block,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Proceed => "PROCEED",
            Outcome::ProceedSimulation => "PROCEED_SIMULATION",
            Outcome::Block => "BLOCK",
        }
    }
}

/// The rule: a trust root, a store, GPU nodes, and every service that is configured answers.
pub fn outcome(checks: &[Check], mode: Mode, strict: bool) -> Outcome {
    let is = |name: &str, wanted: &str| checks.iter().any(|c| c.check == name && c.status == wanted);
    let trust = is("cosign_key", "OK") || is("vault", "UP");
    let there = trust && is("model_store", "OK") && !is("gpu_nodes", "NONE");
    let broken = checks.iter().any(|c| c.status == "ERROR");
    let wanted = !strict || (is("postgres", "REACHABLE") && is("vault", "UP"));
    match (there && !broken && wanted, mode) {
        (true, _) => Outcome::Proceed,
        (false, Mode::Simulation) => Outcome::ProceedSimulation,
        (false, Mode::Production) => Outcome::Block,
    }
}

/// All looks.
pub async fn look(settings: &Settings) -> Vec<Check> {
    let (dsn, prom) = (&settings.postgres_dsn.value, &settings.prom_url.value);
    let prom = http("prometheus", "UP", prom.as_deref(), "/-/ready", &[200]);
    let (postgres, vault, prom, store) = tokio::join!(postgres(dsn.as_ref()), vault(settings), prom, store(settings));
    vec![postgres, vault, cosign(settings), gpus(settings), store, prom]
}

async fn postgres(dsn: Option<&Secret>) -> Check {
    let name = "postgres";
    let Some(dsn) = dsn else { return Check::new(name, "MISSING", "POSTGRES_DSN is not set") };
    // The DSN holds a password: nothing of it but host and port is ever shown.
    let Some(address) = postgres_address(dsn.reveal()) else {
        return Check::new(name, "ERROR", "POSTGRES_DSN names no host; postgres://user@host:5432/db is wanted");
    };
    let ask = async {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    match tokio::time::timeout(ANSWER, ask).await {
        Ok(Ok(b'S' | b'N')) => Check::new(name, "REACHABLE", address),
        Ok(Ok(_)) => Check::new(name, "ERROR", format!("{address} answers, and not as Postgres does")),
        Ok(Err(e)) => Check::new(name, "ERROR", format!("{address}: {e}")),
        Err(_) => Check::new(name, "ERROR", format!("{address}: no answer in {} s", ANSWER.as_secs())),
    }
}

/// `host:port` of a URL or of `host=… port=…`.
fn postgres_address(dsn: &str) -> Option<String> {
    if let Some((_, rest)) = dsn.split_once("://") {
        let authority = rest.split(['/', '?']).next()?;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        // An IPv6 address stands in brackets.
        let named = host.starts_with('[') || host.split(':').next().is_some_and(|h| !h.is_empty());
        let has_port = host.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
        return named.then(|| if has_port { host.to_owned() } else { format!("{host}:5432") });
    }
    let part = |key: &str| dsn.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    Some(format!("{}:{}", part("host")?, part("port").unwrap_or("5432")))
}

async fn http(name: &'static str, up: &'static str, base: Option<&str>, path: &str, good: &[u16]) -> Check {
    let Some(base) = base else { return Check::new(name, "MISSING", "not set") };
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
        client.get(format!("{}{path}", base.trim_end_matches('/'))).send().await
    };
    match ask.await {
        Ok(answer) if good.contains(&answer.status().as_u16()) => Check::new(name, up, "answers"),
        Ok(answer) => Check::new(name, "ERROR", format!("answers {}", answer.status())),
        // The error may repeat the address, and with it a password.
        Err(e) if base.starts_with("https://") && e.is_builder() => {
            Check::new(name, "ERROR", "this build speaks no TLS to it")
        }
        Err(e) => Check::new(name, "ERROR", if e.is_timeout() { "no answer in time" } else { "cannot be reached" }),
    }
}

async fn vault(settings: &Settings) -> Check {
    let name = "vault";
    let vault = match trust::vault(settings) {
        Ok(Some(vault)) => vault,
        Ok(None) => return Check::new(name, "MISSING", "VAULT_ADDR is not set"),
        Err(e) => return Check::new(name, "ERROR", e.to_string()),
    };
    match vault.health().await {
        Ok(detail) => Check::new(name, "UP", detail),
        Err(why) => Check::new(name, "ERROR", why),
    }
}

fn cosign(settings: &Settings) -> Check {
    let name = "cosign_key";
    let Some(paths) = &settings.cosign_key_path.value else {
        return Check::new(name, "MISSING", "COSIGN_KEY_PATH is not set");
    };
    let mut ring = KeyRing::default();
    for path in paths.to_string_lossy().split(',').map(str::trim) {
        let read = std::fs::read(path).map_err(|e| format!("{path}: {e}"));
        if let Err(why) = read.and_then(|bytes| ring.add_file(path, &bytes).map_err(|refusal| refusal.to_string())) {
            return Check::new(name, "MISSING", why);
        }
    }
    Check::new(name, "OK", format!("{} public keys", ring.keys().len()))
}

fn gpus(settings: &Settings) -> Check {
    let name = "gpu_nodes";
    match &settings.gpu_nodes.value {
        GpuNodes::Played(nodes) if nodes.is_empty() => Check::new(name, "NONE", "GPU_NODES is empty"),
        GpuNodes::Played(nodes) => {
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            Check::new(name, names.join(","), "played, as GPU_NODES says")
        }
        GpuNodes::Auto => match nvml::gpus().map(Option::unwrap_or_default) {
            Ok(gpus) if gpus.is_empty() => Check::new(name, "NONE", "no GPU driver on this machine"),
            Ok(gpus) => Check::new(name, settings.name(), format!("{} devices", gpus.len())),
            Err(why) => Check::new(name, "NONE", why),
        },
    }
}

async fn store(settings: &Settings) -> Check {
    let name = "model_store";
    let Some(url) = &settings.model_store_url.value else {
        return Check::new(name, "MISSING", "MODEL_STORE_URL is not set");
    };
    let store = match Store::open(url, &settings.store_link()) {
        Ok(store) => store,
        Err(e) => return Check::new(name, "ERROR", e.to_string()),
    };
    match tokio::time::timeout(ANSWER, store.answers()).await {
        Ok(Ok(())) if store.scheme() == "file" => Check::new(name, "OK", "a directory that is there"),
        Ok(Ok(())) => Check::new(name, "OK", "answers"),
        Ok(Err(_)) if store.scheme() == "file" => Check::new(name, "ERROR", "the directory is not there"),
        Ok(Err(e)) => Check::new(name, "ERROR", e.to_string()),
        Err(_) => Check::new(name, "ERROR", "no answer in time"),
    }
}

/// The settings as they may be shown.
fn shown(settings: &Settings) -> Value {
    let set = settings.view().into_iter().filter(|(_, value, _)| !value.is_empty());
    let one = |(row, value, origin): (&crate::config::Row, String, &crate::config::Origin)| {
        (row.env.to_owned(), json!({ "value": value, "origin": origin.to_string() }))
    };
    Value::Object(set.map(one).collect::<Map<_, _>>())
}

/// Everything that is written and printed.
pub fn told(settings: &Settings, checks: &[Check], strict: bool) -> Value {
    let outcome = outcome(checks, settings.mode(), strict);
    json!({
        "phase": version::PHASE, "outcome": outcome.name(), "mode": settings.mode().name(),
        "simulation": settings.mode() == Mode::Simulation, "strict": strict, "missing": settings.missing(),
        "checks": checks, "settings": shown(settings), "generated_at": jiff::Timestamp::now().to_string(),
        "version": version::VERSION, "commit": version::COMMIT,
    })
}

/// Writes a report's file, with the directories above it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let name = || path.display().to_string();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(name)?;
    }
    std::fs::write(path, text).with_context(name)
}

impl Precheck {
    pub async fn run(self, global: &Global) -> Result<()> {
        let settings = Settings::load(&Sources::process(&self.flags))?;
        let checks = look(&settings).await;
        let value = told(&settings, &checks, self.strict);
        write(&self.out.join("H.2_precheck.json"), &format!("{}\n", serde_json::to_string_pretty(&value)?))?;
        self.log(&value, &checks)?;
        let outcome = outcome(&checks, settings.mode(), self.strict);
        let items: Vec<Value> = checks.iter().map(|check| json!(check)).collect();
        let columns =
            [col("CHECK", |v| at(v, "check")), col("STATUS", |v| at(v, "status")), col("FOUND", |v| at(v, "detail"))];
        match global.for_people() {
            true => {
                output::put(&output::list(global.style(), &items, &columns, |v| at(v, "check"))?);
                output::put(&format!("{}\n", outcome.name()));
            }
            false => output::put(&output::object(global.style(), &value, outcome.name(), String::new)?),
        }
        say(format!("mode {}; written to {}", settings.mode().name(), self.out.display()));
        match outcome {
            Outcome::Proceed | Outcome::ProceedSimulation => Ok(()),
            Outcome::Block => {
                let text = "BLOCK: production needs what is missing or broken above\n  try: nf config view";
                Err(fail(Exit::Failed, text))
            }
        }
    }

    /// One line for each look, after those of earlier runs.
    fn log(&self, value: &Value, checks: &[Check]) -> Result<()> {
        let path = self.out.join("logs/H.2_precheck.log");
        let name = || path.display().to_string();
        std::fs::create_dir_all(self.out.join("logs")).with_context(name)?;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).with_context(name)?;
        let time = at(value, "generated_at");
        let mut text = String::new();
        for check in checks {
            text.push_str(&format!("{time} {} {} {}\n", check.check, check.status, check.detail));
        }
        text.push_str(&format!("{time} outcome {}\n", at(value, "outcome")));
        file.write_all(text.as_bytes()).with_context(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(over: &[(&'static str, &str)]) -> Vec<Check> {
        let good = [
            ("postgres", "MISSING"),
            ("vault", "MISSING"),
            ("cosign_key", "OK"),
            ("gpu_nodes", "n1,n2"),
            ("model_store", "OK"),
            ("prometheus", "MISSING"),
        ];
        let status = |name: &str, usual| over.iter().find(|(n, _)| *n == name).map_or(usual, |(_, status)| *status);
        good.iter().map(|(name, usual)| Check::new(name, status(name, usual), "")).collect()
    }

    #[test]
    fn the_rule_is_the_documents() {
        let both = |checks: &[Check], strict| {
            [Mode::Production, Mode::Simulation].map(|mode| outcome(checks, mode, strict).name())
        };
        assert_eq!(both(&all(&[]), false), ["PROCEED", "PROCEED"]);
        let missing: [&[(&'static str, &str)]; 5] = [
            &[("cosign_key", "MISSING")],
            &[("gpu_nodes", "NONE")],
            &[("model_store", "MISSING")],
            &[("prometheus", "ERROR")],
            &[("postgres", "ERROR")],
        ];
        for over in missing {
            assert_eq!(both(&all(over), false), ["BLOCK", "PROCEED_SIMULATION"], "{over:?}");
        }
        assert_eq!(both(&all(&[("cosign_key", "MISSING"), ("vault", "UP")]), false), ["PROCEED", "PROCEED"]);
        assert_eq!(both(&all(&[]), true), ["BLOCK", "PROCEED_SIMULATION"]);
        assert_eq!(both(&all(&[("postgres", "REACHABLE"), ("vault", "UP")]), true), ["PROCEED", "PROCEED"]);
    }

    #[test]
    fn an_address_is_found_and_the_password_left_out() {
        for (dsn, address) in [
            ("postgres://nf:secret@db.example:6432/nf", "db.example:6432"),
            ("postgresql://db/nf", "db:5432"),
            ("postgres://[::1]/nf", "[::1]:5432"),
            ("host=db port=1 password=secret", "db:1"),
        ] {
            assert_eq!(postgres_address(dsn).as_deref(), Some(address), "{dsn}");
        }
        assert_eq!((postgres_address("nonsense"), postgres_address("postgres:///nf")), (None, None));
    }
}
