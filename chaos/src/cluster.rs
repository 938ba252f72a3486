//! Three real members under `nf dev`, which also brings a killed one back. It knows
//! the REST paths that a drill needs and nothing of what the members hold.

use crate::eventually::eventually;
use crate::ports;
use crate::process::{self, Process, Recipe};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// A member as its users see it.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub url: String,
    pub pid: Pid,
}

/// A development cluster and what was started besides.
#[derive(Debug)]
pub struct Cluster {
    dev: Process,
    pub members: Vec<Member>,
    extra: Vec<Process>,
    dir: PathBuf,
    nf: PathBuf,
    pub http: reqwest::Client,
    /// What callers show, where the members ask for it: a token of all roles in tenant "demo".
    pub token: Option<String>,
}

/// What `nf dev` writes down about its members.
#[derive(Debug, Deserialize)]
struct Record {
    members: Vec<Told>,
}

#[derive(Debug, Deserialize)]
struct Told {
    name: String,
    pid: i32,
    api: String,
}

impl Cluster {
    /// Starts `nf dev` with its data below `dir`, and waits until it is ready.
    pub async fn start(nf: &Path, dir: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(nf, dir, settings, false).await
    }

    /// As [`Cluster::start`]; `auth`: every caller is asked for a token.
    pub async fn start_with(nf: &Path, dir: &Path, settings: &[(&str, &str)], auth: bool) -> Result<Self> {
        let ready = dir.join("ready.json");
        let port = ports::free(1)?[0].min(60_000);
        let mut args = vec!["dev".to_owned(), "--no-context".into(), "--port".into(), port.to_string()];
        args.extend(["--data-dir".into(), dir.join("data").display().to_string()]);
        args.extend(["--ready-file".into(), ready.display().to_string()]);
        args.extend(auth.then(|| "--auth".to_owned()));
        let runs = dir.join("runs").display().to_string();
        for (key, value) in settings.iter().chain(&[("run_dir", runs.as_str())]) {
            args.extend(["--set".into(), format!("{key}={value}")]);
        }
        let mut dev = Process::start(Recipe {
            name: "nf dev".into(),
            program: nf.to_owned(),
            args,
            env: surroundings(dir),
            log: dir.join("dev.log"),
        })?;
        let started = eventually("nf dev is ready", Duration::from_secs(40), || async {
            ensure!(ready.exists(), "it has not said so");
            Ok(())
        });
        if let Err(error) = started.await {
            bail!("{error:#}; ended: {}; its output:\n{}", dev.has_ended(), dev.tail());
        }
        let token = auth.then(|| told_token(&dir.join("dev.log"))).transpose()?;
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(token) = &token {
            headers.insert(reqwest::header::AUTHORIZATION, format!("Bearer {token}").parse()?);
        }
        let http = reqwest::Client::builder().default_headers(headers).pool_max_idle_per_host(512);
        let http = http.timeout(Duration::from_secs(60)).build()?;
        let (nf, dir) = (nf.to_owned(), dir.to_owned());
        let mut cluster = Self { dev, members: vec![], extra: vec![], dir, nf, http, token };
        cluster.learn()?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Who runs now, with which process.
    fn learn(&mut self) -> Result<()> {
        let path = self.dir.join("data/dev.json");
        let record: Record = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let member = |told: Told| Member { name: told.name, url: told.api, pid: Pid::from_raw(told.pid) };
        self.members = record.members.into_iter().map(member).collect();
        ensure!(self.members.len() == 3, "{}: {} members", path.display(), self.members.len());
        Ok(())
    }

    /// The three members have one leader and know it.
    pub async fn wait_ready(&self) -> Result<()> {
        eventually("every member is ready", Duration::from_secs(30), || async {
            for member in &self.members {
                let answer = self.http.get(format!("{}/health/ready", member.url)).send().await?;
                ensure!(answer.status().is_success(), "{} answers {}", member.name, answer.status());
            }
            Ok(())
        })
        .await
    }

    pub async fn get(&self, member: &Member, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}{path}", member.url)).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await.with_context(|| format!("{path} is not JSON"))?;
        ensure!(status.is_success(), "{} {path}: {status} {body}", member.name);
        Ok(body)
    }

    /// The member that says it leads.
    pub async fn leader(&self) -> Result<Member> {
        eventually("somebody leads", Duration::from_secs(15), || async {
            for member in &self.members {
                let quick = self.http.get(format!("{}/health", member.url)).timeout(Duration::from_millis(300));
                let Ok(answer) = quick.send().await else { continue };
                let health: Value = answer.json().await?;
                if health["role"] == "leader" {
                    return Ok(member.clone());
                }
            }
            bail!("nobody does")
        })
        .await
    }

    pub fn signal(&self, member: &Member, signal: Signal) -> Result<()> {
        kill(member.pid, signal).with_context(|| format!("{signal} to {}", member.name))
    }

    /// kill -9.
    pub fn kill(&self, member: &Member) -> Result<()> {
        self.signal(member, Signal::SIGKILL)
    }

    /// Has a killed member started again on its data.
    pub async fn restart(&mut self, member: &Member) -> Result<()> {
        let data = self.dir.join("data").display().to_string();
        self.nf(&["dev", "restart", &member.name, "--data-dir", &data]).await?;
        eventually("another process has taken its place", Duration::from_secs(10), || {
            let learnt = self.learn();
            let pid = self.members.iter().find(|m| m.name == member.name).map(|m| m.pid);
            async move {
                learnt?;
                ensure!(pid.is_some_and(|pid| pid != member.pid), "still {pid:?}");
                Ok(())
            }
        })
        .await?;
        self.wait_ready().await.with_context(|| format!("after the restart of {}", member.name))
    }

    /// Runs an `nf` command to its end.
    pub async fn nf(&self, args: &[&str]) -> Result<()> {
        let done = Command::new(&self.nf).args(args).envs(surroundings(&self.dir)).output().await?;
        ensure!(done.status.success(), "nf {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// Another `nf` process that ends with the cluster.
    pub fn also(&mut self, name: &str, args: &[&str]) -> Result<()> {
        let urls: Vec<_> = self.members.iter().map(|m| m.url.clone()).collect();
        let mut env = surroundings(&self.dir);
        env.insert("NF_ADDR".to_owned(), urls.join(","));
        env.extend(self.token.clone().map(|token| ("NF_TOKEN".to_owned(), token)));
        env.insert("NF_RUN_DIR".to_owned(), self.dir.join("runs").display().to_string());
        let log = self.dir.join(format!("{name}.log"));
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let recipe = Recipe { name: name.into(), program: self.nf.clone(), args, env, log };
        self.extra.push(Process::start(recipe)?);
        Ok(())
    }

    /// Processor time of all members.
    pub fn cpu(&self) -> Result<Duration> {
        self.members.iter().map(|m| process::cpu(m.pid)).sum()
    }

    /// Ends everything, in the order in which a person would.
    pub async fn stop(self) -> Result<()> {
        let grace = Duration::from_secs(12);
        for process in self.extra {
            process.stop(grace).await?;
        }
        ensure!(self.dev.stop(grace).await?, "nf dev had to be killed: it did not end within {grace:?}");
        Ok(())
    }
}

/// Contexts and state of this drill, not those of the person who runs it.
fn surroundings(dir: &Path) -> BTreeMap<String, String> {
    let at = |name: &str, folder: &str| (name.to_owned(), dir.join(folder).display().to_string());
    [at("XDG_CONFIG_HOME", "config"), at("XDG_STATE_HOME", "state"), at("XDG_DATA_HOME", "share")].into()
}

/// The token that `nf dev` tells once it is ready.
fn told_token(log: &Path) -> Result<String> {
    let text = std::fs::read_to_string(log)?;
    let told = text.lines().find_map(|line| line.trim().strip_prefix("NF_TOKEN="));
    told.map(str::to_owned).with_context(|| format!("{}: no token", log.display()))
}
