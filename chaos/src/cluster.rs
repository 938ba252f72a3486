//! Three real members: `nf dev` forms the group, then the members are killed,
//! frozen and restarted as plain processes, the way they were started. It knows
//! the REST paths that a drill needs and nothing of what the members hold.

use crate::eventually::eventually;
use crate::process::{self, Process, Recipe};
use crate::{ports, sockets};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    recipes: BTreeMap<String, Recipe>,
    restarted: Vec<Process>,
    extra: Vec<Process>,
    dir: PathBuf,
    nf: PathBuf,
    pub http: reqwest::Client,
}

impl Cluster {
    /// Starts `nf dev` with its data below `dir`, and waits until it is ready.
    pub async fn start(nf: &Path, dir: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let port = ports::free(1)?[0];
        let mut env: BTreeMap<String, String> =
            settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        env.insert("XDG_CONFIG_HOME".into(), dir.join("config").display().to_string());
        env.insert("NF_RUN_DIR".into(), dir.join("runs").display().to_string());
        let args = ["dev", "--data-dir", &dir.join("data").display().to_string(), "--port", &port.to_string()];
        let mut dev = Process::start(Recipe {
            name: "nf dev".into(),
            program: nf.to_owned(),
            args: args.map(str::to_owned).to_vec(),
            env,
            clear_env: false,
            log: dir.join("dev.log"),
        })?;
        let http = reqwest::Client::builder().pool_max_idle_per_host(512).timeout(Duration::from_secs(60)).build()?;
        let found = eventually("nf dev is ready", Duration::from_secs(20), || async {
            let text = std::fs::read_to_string(dir.join("dev.log"))?;
            let urls = addresses(&text);
            ensure!(urls.len() >= 3, "it has named {} members so far", urls.len());
            Ok(urls)
        })
        .await;
        let urls = match found {
            Ok(urls) => urls,
            Err(error) => bail!("{error:#}; ended: {}; its output:\n{}", dev.has_ended(), dev.tail()),
        };
        let recipes = BTreeMap::new();
        let (nf, dir) = (nf.to_owned(), dir.to_owned());
        let mut cluster = Self { dev, members: vec![], recipes, restarted: vec![], extra: vec![], dir, nf, http };
        cluster.learn(&urls)?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Which child listens where, and how each was started.
    fn learn(&mut self, urls: &[(String, String)]) -> Result<()> {
        let children = process::children(self.dev.pid);
        for (name, url) in urls {
            let port: u16 = url.rsplit(':').next().and_then(|p| p.parse().ok()).context("a URL with a port")?;
            let listening = children.iter().find(|(pid, _)| sockets::listens(*pid, port));
            let (pid, argv) = listening.with_context(|| format!("no child of nf dev listens on {port}"))?;
            let recipe = Recipe {
                name: name.clone(),
                program: self.nf.clone(),
                args: argv[1..].to_vec(),
                env: process::environment(*pid),
                clear_env: true,
                log: self.dir.join(format!("{name}.log")),
            };
            self.recipes.insert(name.clone(), recipe);
            self.members.push(Member { name: name.clone(), url: url.clone(), pid: *pid });
        }
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

    /// Starts a killed member again on its data.
    pub async fn restart(&mut self, member: &Member) -> Result<()> {
        self.restarted.retain_mut(|p| !p.has_ended());
        let recipe = self.recipes.get(&member.name).context("a member that nf dev started")?.clone();
        let process = Process::start(recipe)?;
        let known = self.members.iter_mut().find(|m| m.name == member.name).context("a known member")?;
        known.pid = process.pid;
        self.restarted.push(process);
        self.wait_ready().await.with_context(|| format!("after the restart of {}", member.name))
    }

    /// Another `nf` process that ends with the cluster.
    pub fn also(&mut self, name: &str, args: &[&str]) -> Result<()> {
        let urls: Vec<_> = self.members.iter().map(|m| m.url.clone()).collect();
        let env = [
            ("NF_ADDR".to_owned(), urls.join(",")),
            ("XDG_CONFIG_HOME".to_owned(), self.dir.join("config").display().to_string()),
            ("NF_RUN_DIR".to_owned(), self.dir.join("runs").display().to_string()),
        ];
        let log = self.dir.join(format!("{name}.log"));
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let recipe =
            Recipe { name: name.into(), program: self.nf.clone(), args, env: env.into(), clear_env: false, log };
        self.extra.push(Process::start(recipe)?);
        Ok(())
    }

    /// Processor time of all members.
    pub fn cpu(&self) -> Result<Duration> {
        self.members.iter().map(|m| process::cpu(m.pid)).sum()
    }

    /// Ends everything, in the order in which a person would.
    pub async fn stop(self) -> Result<()> {
        let grace = Duration::from_secs(10);
        for process in self.extra.into_iter().chain(self.restarted) {
            process.stop(grace).await?;
        }
        // What nf dev started and we did not replace ends with it.
        ensure!(self.dev.stop(grace).await?, "nf dev had to be killed: it did not end within {grace:?}");
        Ok(())
    }
}

/// `node-1 … http://127.0.0.1:8600` in the ready lines of `nf dev`.
fn addresses(text: &str) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.by_ref().find(|w| w.starts_with("node-"));
        let url = words.find(|w| w.starts_with("http://"));
        if let (Some(name), Some(url)) = (name, url)
            && !out.iter().any(|(known, _)| known == name)
        {
            out.push((name.to_owned(), url.trim_end_matches('/').to_owned()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_lines_name_the_members() {
        let text = "  ✓ node-1  leader    http://127.0.0.1:8600   8 × H100-80G (simulated)\n\
                    ✓ node-2  follower  http://127.0.0.1:8610   8\n  Ready in 1.4 s.  Dashboard http://127.0.0.1:8600/ui";
        let expected = [("node-1", "http://127.0.0.1:8600"), ("node-2", "http://127.0.0.1:8610")];
        assert_eq!(addresses(text), expected.map(|(n, u)| (n.to_owned(), u.to_owned())));
    }
}
