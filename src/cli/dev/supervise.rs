//! Runs the group: brings it up, says so, notices who dies, starts again whom it
//! is asked to, and at the end stops everybody by process id.

use super::group::{self, Plan};
use super::record::Record;
use super::{Up, health};
use crate::cli::context::{self, Context};
use crate::cli::exit::{Exit, fail};
use crate::cli::output::at;
use crate::cli::{say, signals, version};
use crate::security::Secret;
use crate::security::jwt::{MAX_LIFETIME, Role, issuer};
use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// A group that is not ready by then has a fault worth reading about.
const READY: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// From the first TERM to the second, which asks a member to end at once.
const HASTE: Duration = Duration::from_millis(200);
/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(8);

/// A member with its process, if it runs.
struct Seat {
    plan: Plan,
    child: Option<Child>,
    pid: u32,
    /// Somebody wants it back while its process is not gone yet.
    wished: bool,
}

/// Removes a temporary data directory at the end, however that comes.
struct Data {
    dir: PathBuf,
    keep: bool,
}

impl Drop for Data {
    fn drop(&mut self) {
        if !self.keep {
            // What can't be removed is under the temporary directory anyway.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn data(up: &Up) -> Result<Data> {
    let (dir, keep) = match &up.data_dir {
        Some(dir) => (std::path::absolute(dir)?, true),
        None => (std::env::temp_dir().join(format!("nf-dev-{}", std::process::id())), false),
    };
    if let Ok(old) = Record::read(Some(&dir))
        && old.members.iter().any(super::record::Member::alive)
    {
        let text = format!("a group runs in {} already\n  try: nf dev status --data-dir {0}", dir.display());
        return Err(fail(Exit::Conflict, text));
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(Data { dir, keep })
}

/// Until Ctrl-C or TERM.
pub async fn run(up: Up) -> Result<()> {
    let begun = Instant::now();
    let mut wishes = signal(SignalKind::user_defined1())?;
    let stop = signals::stop();
    tokio::pin!(stop);
    let data = data(&up)?;
    let token = if up.auth { Some(token(&data.dir)?) } else { None };
    let plans = group::plan(&up, &data.dir)?;
    let mut seats = Vec::new();
    for plan in plans {
        let child = plan.start()?;
        let pid = child.id().unwrap_or_default();
        seats.push(Seat { plan, child: Some(child), pid, wished: false });
    }
    let record = record(&data.dir, &seats);
    record.write()?;
    record.point()?;
    let ready = tokio::select! {
        ready = ready(&mut seats, token.as_deref()) => ready,
        stopped = &mut stop => stopped.map(|()| Vec::new()).map_err(Into::into),
    };
    let outcome = match ready {
        Ok(healths) if healths.is_empty() => Ok(()),
        Ok(healths) => {
            let tell = tell(&up, &record, &seats, &healths, begun, token);
            match tell {
                Ok(()) => supervise(&data.dir, &mut seats, &mut wishes, stop.as_mut()).await,
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    stop_all(&mut seats).await;
    record.erase();
    outcome
}

fn record(dir: &Path, seats: &[Seat]) -> Record {
    let members = seats.iter().map(|seat| seat.plan.member(seat.pid)).collect();
    Record { pid: std::process::id(), data_dir: dir.to_owned(), members }
}

/// Waits until every member answers, knows the leader, and sees all nodes.
async fn ready(seats: &mut [Seat], token: Option<&str>) -> Result<Vec<Value>> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let end = Instant::now() + READY;
    loop {
        for seat in seats.iter_mut() {
            if let Some(status) = seat.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                let words = seat.plan.last_words();
                return Err(fail(
                    Exit::Failed,
                    format!("{} ended at its start ({status}):\n  {words}", seat.plan.name),
                ));
            }
        }
        let mut healths = Vec::new();
        for seat in seats.iter() {
            let there = health(&http, &seat.plan.api()).await;
            let ready = http.get(format!("{}/health/ready", seat.plan.api())).timeout(super::ASK).send().await;
            let ready = ready.is_ok_and(|response| response.status().is_success());
            healths.extend(there.filter(|_| ready));
        }
        let led = healths.iter().any(|health| at(health, "role") == "leader");
        if healths.len() == seats.len() && led && nodes(&http, &seats[0].plan.api(), token).await >= seats.len() {
            return Ok(healths);
        }
        if Instant::now() > end {
            let silent: Vec<_> = seats.iter().map(|s| format!("{}: {}", s.plan.name, s.plan.last_words())).collect();
            let text = format!("not ready after {}s:\n  {}", READY.as_secs(), silent.join("\n  "));
            return Err(fail(Exit::Failed, text));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The group's issuer, made or kept, and a token of all roles that people have.
fn token(dir: &Path) -> Result<String> {
    let keys = dir.join(group::TOKENS);
    let mint = match keys.join(issuer::KEY_FILE).exists() {
        true => issuer::open(&keys),
        false => issuer::create(&keys),
    };
    let mint = mint.map_err(|refusal| fail(Exit::Failed, refusal.to_string()))?;
    let roles = [Role::Viewer, Role::Operator, Role::Promoter, Role::Admin];
    Ok(crate::cli::token::make(&mint, "dev", "demo", &roles, MAX_LIFETIME)?.token)
}

/// How many nodes are ready for work.
async fn nodes(http: &reqwest::Client, api: &str, token: Option<&str>) -> usize {
    let request = http.get(format!("{api}/resources")).timeout(super::ASK);
    let request = token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
    let list = request.send().await;
    let Ok(list) = list else { return 0 };
    let list: Value = list.json().await.unwrap_or(Value::Null);
    let nodes = list.get("nodes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter(|node| at(node, "state") == "Ready").count()
}

/// The ready line, the context, and the file for scripts.
fn tell(
    up: &Up,
    record: &Record,
    seats: &[Seat],
    healths: &[Value],
    begun: Instant,
    token: Option<String>,
) -> Result<()> {
    say(format!("  Neural Fabric {} · development cluster, not for production", version::VERSION));
    for (seat, health) in seats.iter().zip(healths) {
        let (device_type, count) = &seat.plan.gpus;
        let role = at(health, "role");
        say(format!("  ● {}  {role:<8}  {}   {count} × {device_type} (simulated)", seat.plan.name, seat.plan.api()));
    }
    let first = seats[0].plan.api();
    let seconds = begun.elapsed().as_secs_f64();
    say(format!("  Ready in {seconds:.1} s.  Health {first}/health   API {first}/openapi.json   Metrics /metrics"));
    let addrs: Vec<_> = seats.iter().map(|seat| seat.plan.api()).collect();
    if let Some(token) = &token {
        say(format!(
            "  Every caller is asked for a token. One for all roles of tenant demo, for 24 h:\n  NF_TOKEN={token}"
        ));
    }
    if !up.no_context {
        context::write("dev", &Context { addrs: addrs.clone(), token: token.map(Secret::new), ca: None })?;
        context::select("dev")?;
        say("  Context \"dev\" selected.  Try:   nf run llama-8b --tenant demo --gpus 2 --wait");
    } else {
        say(format!("  Try:   nf run llama-8b --tenant demo --gpus 2 --wait --addr {}", addrs.join(",")));
    }
    let all = match seats.len() {
        1 => "it".to_owned(),
        3 => "all three".to_owned(),
        n => format!("all {n}"),
    };
    say(format!("  Ctrl-C stops {all}.  Kill one yourself: nf dev kill leader"));
    if let Some(path) = &up.ready_file {
        let value = json!({ "addrs": addrs, "data_dir": record.data_dir, "pid": record.pid,
            "seconds": seconds, "members": record.members });
        crate::storage::replace_file(&std::path::absolute(path)?, value.to_string().as_bytes())?;
    }
    Ok(())
}

async fn supervise(
    dir: &Path,
    seats: &mut [Seat],
    wishes: &mut tokio::signal::unix::Signal,
    mut stop: std::pin::Pin<&mut impl Future<Output = std::io::Result<()>>>,
) -> Result<()> {
    loop {
        tokio::select! {
            (index, status) = any_death(seats) => {
                let seat = &mut seats[index];
                seat.child = None;
                say(format!("✗ {} died ({}); nf dev restart {0} brings it back", seat.plan.name, how(status)));
                if std::mem::take(&mut seat.wished) {
                    let name = seat.plan.name.clone();
                    begin_again(seats, &name)?;
                    record(dir, seats).write()?;
                }
            }
            _ = wishes.recv() => {
                for name in record(dir, seats).wishes() {
                    begin_again(seats, &name)?;
                }
                record(dir, seats).write()?;
            }
            stopped = &mut stop => {
                stopped?;
                return Ok(());
            }
        }
    }
}

fn begin_again(seats: &mut [Seat], name: &str) -> Result<()> {
    let Some(seat) = seats.iter_mut().find(|seat| seat.plan.name == name) else { return Ok(()) };
    if let Some(child) = &mut seat.child
        && matches!(child.try_wait(), Ok(None))
    {
        // It was killed, and takes its time to be gone: the wish is kept until then.
        seat.wished = true;
        return Ok(());
    }
    let child = seat.plan.start()?;
    seat.pid = child.id().unwrap_or_default();
    seat.child = Some(child);
    say(format!("● {name} starts again (pid {})", seat.pid));
    Ok(())
}

/// The next of the running children that ends.
async fn any_death(seats: &mut [Seat]) -> (usize, std::io::Result<ExitStatus>) {
    let waits = seats.iter_mut().enumerate().filter_map(|(i, seat)| {
        let child = seat.child.as_mut()?;
        Some(Box::pin(async move { (i, child.wait().await) }))
    });
    let waits: Vec<_> = waits.collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(waits).await.0
}

fn how(status: std::io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("signal {signal}"),
            (None, code) => format!("exit {}", code.unwrap_or_default()),
        },
        Err(error) => error.to_string(),
    }
}

/// TERM to all, and KILL to whoever is still there after the grace.
async fn stop_all(seats: &mut [Seat]) {
    let running: Vec<_> = seats.iter_mut().filter(|seat| seat.child.is_some()).collect();
    if running.is_empty() {
        return;
    }
    say("stopping …");
    for seat in &running {
        if let Err(error) = seat.plan.member(seat.pid).signal(Signal::SIGTERM) {
            say(format!("{error:#}"));
        }
    }
    // A leader would wait for somebody to hand over to, but all of them go.
    tokio::time::sleep(HASTE).await;
    for seat in &running {
        // Who is gone by now needs no second word.
        let _ = seat.plan.member(seat.pid).signal(Signal::SIGTERM);
    }
    let end = tokio::time::Instant::now() + GRACE;
    for seat in running {
        let Some(child) = &mut seat.child else { continue };
        if tokio::time::timeout_at(end, child.wait()).await.is_err() {
            say(format!("{} did not stop in {}s; killed", seat.plan.name, GRACE.as_secs()));
            if let Err(error) = child.kill().await {
                say(error);
            }
        }
        seat.child = None;
    }
}
