//! A container as the body of a replica: its end is seen, it is told to end, it is killed,
//! it is removed. An engine that does not answer is asked until it does; only when the
//! container's first process is seen gone from this machine is that enough.

use super::output::Output;
use crate::agent::engine::Fault;
use crate::agent::executor::Shared;
use crate::agent::post::Post;
use crate::agent::record::{End, Record};
use crate::agent::runtimes::ending::Stuck;
use crate::agent::runtimes::life::{Body, Ended};
use crate::agent::runtimes::processes::Identity;
use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::{KillContainerOptions, RemoveContainerOptions, WaitContainerOptions};
use futures::StreamExt;
use nf_core::reason::Reason;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between two questions to an engine that did not answer well.
const AGAIN: Duration = Duration::from_millis(500);
/// Between its end and the look at how.
const LOOK: Duration = Duration::from_millis(20);
/// How long the end of its output is waited for.
const OUTPUT: Duration = Duration::from_secs(5);
/// Tries to remove one that is surely dead, and so holds no device.
const REMOVALS: u32 = 6;

/// See the module.
pub(super) struct Container {
    docker: Docker,
    name: String,
    ended: watch::Receiver<Option<Ended>>,
    /// Both end with this value.
    watcher: JoinSet<()>,
    output: JoinSet<()>,
}

impl Container {
    /// Looks after the container of a record, whatever has become of it. `first` is its first process, when this
    /// machine shows it.
    pub(super) fn tend(docker: Docker, name: String, post: &Post, first: Option<Identity>, same_boot: bool) -> Self {
        let (tell, ended) = watch::channel(None);
        let mut watcher = JoinSet::new();
        watcher.spawn(watch_end(docker.clone(), name.clone(), first, same_boot, tell));
        let output =
            Output { docker: docker.clone(), name: name.clone(), log: post.log(), mark: post.dir().join("logged") };
        let mut following = JoinSet::new();
        following.spawn(output.follow(ended.clone()));
        Self { docker, name, ended, watcher, output: following }
    }

    async fn signal(&self, signal: &str) -> Result<(), Fault> {
        let options = KillContainerOptions { signal: signal.into() };
        match self.docker.kill_container(&self.name, Some(options)).await {
            Ok(()) => Ok(()),
            // It has ended meanwhile, or is not there.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Body for Container {
    async fn gone(&mut self) -> Ended {
        match self.ended.wait_for(Option::is_some).await.map(|ended| ended.clone()) {
            Ok(Some(ended)) => ended,
            // The watcher panicked: a bug of ours. What may be left is killed by whoever hears this.
            _ => Ended { end: End::failed(Reason::RuntimeFailed), text: "nobody watched it".into() },
        }
    }

    async fn warn(&mut self) {
        // An engine that is away must not keep it from being told; its end is waited for elsewhere.
        while self.ended.borrow().is_none() && self.signal("SIGUSR1").await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn end(&mut self) {
        while self.ended.borrow().is_none() {
            match self.signal("SIGTERM").await {
                Ok(()) => break,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        self.gone().await;
    }

    async fn clear(&mut self, stuck: &Stuck) {
        while self.ended.borrow().is_none() && !self.watcher.is_empty() {
            let killed = self.signal("SIGKILL").await;
            let _ = tokio::time::timeout(AGAIN, self.gone()).await;
            stuck.look(|| match &killed {
                Err(fault) => format!("container {} can't be killed: {}", self.name, fault.text),
                Ok(()) => format!("container {} survives KILL", self.name),
            });
            while self.watcher.try_join_next().is_some() {}
        }
    }

    async fn let_go(&mut self, shared: &Arc<Shared>, _: &Record) {
        // All that it wrote comes first: the engine's copy goes with it.
        let _ = tokio::time::timeout(OUTPUT, self.output.join_next()).await;
        let dead = self.ended.borrow().is_some();
        remove(&self.docker, &self.name, shared.config.kill_after, dead.then_some(REMOVALS)).await;
    }
}

/// Removes a container and waits until the engine has none of that name; one that is not there is fine. `tries`: as often
/// and no longer, whether the engine is silent or can't do it; what is left is swept up later. None: it may live, so it
/// keeps its devices for as long as that takes.
pub(super) async fn remove(docker: &Docker, name: &str, alarm: Duration, tries: Option<u32>) {
    let alarm = alarm.max(Duration::from_secs(1));
    let mut next = Instant::now() + alarm;
    let mut failed = 0;
    loop {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        let removed = match docker.remove_container(name, Some(options)).await {
            // A second look: some engines answer before they are through.
            Ok(()) => docker.inspect_container(name, None).await.map(|_| "it is still there".to_owned()),
            Err(error) => Err(error),
        };
        let why = match removed {
            Ok(text) => text,
            Err(error) if Fault::is_absence(&error) => return,
            Err(error) => Fault::from(error).text,
        };
        failed += 1;
        if tries.is_some_and(|tries| failed >= tries) {
            tracing::warn!(container = name, why, "a container can't be removed now, and is tried again later");
            return;
        }
        if Instant::now() >= next {
            tracing::error!(container = name, why, "a container can't be removed; its devices stay held");
            next += alarm;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Tells how it ended, once it has.
async fn watch_end(
    docker: Docker,
    name: String,
    first: Option<Identity>,
    same_boot: bool,
    tell: watch::Sender<Option<Ended>>,
) {
    let mut silent = false;
    loop {
        match docker.inspect_container(&name, None).await {
            Ok(found) => {
                if let Some(ended) = ended(&found, same_boot) {
                    tell.send_replace(Some(ended));
                    return;
                }
                silent = false;
                // Its answer says only that it is time to look again: the state has it all.
                let options = WaitContainerOptions { condition: "not-running".into() };
                let waited = std::pin::pin!(docker.wait_container(&name, Some(options))).next().await;
                if let Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) = waited {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            }
            Err(error) if Fault::is_absence(&error) => {
                let why = if same_boot { Reason::RuntimeFailed } else { Reason::NodeFailure };
                let text = "the engine has no such container: it never began, or somebody removed it".into();
                tell.send_replace(Some(Ended { end: End::failed(why), text }));
                return;
            }
            Err(error) => {
                let fault = Fault::from(error);
                if !silent {
                    tracing::warn!(container = name, why = fault.text, "what has become of a container is not known");
                    silent = true;
                }
                if let Some(lost) = lost(first, same_boot).filter(|_| fault.is_silence()) {
                    tell.send_replace(Some(lost));
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The end of one whose engine does not answer: who was its first process here, and is not any more, has taken all others
/// along, and so has the machine that booted since; the engine begins none of ours by itself. None: it may live.
pub(super) fn lost(first: Option<Identity>, same_boot: bool) -> Option<Ended> {
    let silent = "and its engine does not answer";
    match first {
        _ if !same_boot => {
            let text = format!("the machine began anew, {silent}");
            Some(Ended { end: End::failed(Reason::NodeFailure), text })
        }
        Some(first) if !first.lives() => {
            let text = format!("its processes are gone, {silent}");
            Some(Ended { end: End::failed(Reason::EngineUnavailable), text })
        }
        _ => None,
    }
}

/// None: it lives.
fn ended(found: &ContainerInspectResponse, same_boot: bool) -> Option<Ended> {
    use ContainerStateStatusEnum as Status;
    let Some(state) = &found.state else {
        let text = "the engine does not say how it is".into();
        return Some(Ended { end: End::failed(Reason::RuntimeFailed), text });
    };
    match state.status {
        Some(Status::CREATED) => {
            let text = "it was made, and never begun".into();
            return Some(Ended { end: End::failed(Reason::RuntimeFailed), text });
        }
        Some(Status::EXITED | Status::DEAD | Status::REMOVING) => {}
        // Podman has more words for being on the way; what runs, runs.
        _ if state.running == Some(false) && state.pid.unwrap_or(0) == 0 => {}
        _ => return None,
    }
    let code = state.exit_code.unwrap_or(-1);
    let (end, text) = match () {
        () if !same_boot => (End::failed(Reason::NodeFailure), "the machine began anew".to_owned()),
        () if state.oom_killed == Some(true) => {
            (End::failed(Reason::RuntimeFailed), format!("exit {code}, it used up its memory"))
        }
        () if code == 0 => (End { ok: true, why: Reason::Completed }, "exit 0".to_owned()),
        () => (End::failed(Reason::ExitedNonZero), format!("exit {code}")),
    };
    Some(Ended { end, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn end(state: serde_json::Value, same_boot: bool) -> Option<(Reason, String)> {
        let found = serde_json::from_value(json!({ "State": state })).unwrap();
        ended(&found, same_boot).map(|ended| (ended.end.why, ended.text))
    }

    #[test]
    fn how_it_ended_is_read_from_its_state() {
        assert_eq!(end(json!({ "Status": "running", "Running": true, "Pid": 7 }), true), None);
        assert_eq!(end(json!({ "Status": "paused", "Running": true, "Pid": 7 }), true), None);
        let of = |state, same_boot| end(state, same_boot).map(|(why, _)| why);
        let exited = |code: i64| json!({ "Status": "exited", "Running": false, "Pid": 0, "ExitCode": code });
        assert_eq!(of(exited(0), true), Some(Reason::Completed));
        assert_eq!(end(exited(3), true), Some((Reason::ExitedNonZero, "exit 3".into())));
        assert_eq!(of(exited(0), false), Some(Reason::NodeFailure), "the machine took it along");
        let mut eaten = exited(137);
        eaten["OOMKilled"] = json!(true);
        assert!(end(eaten, true).unwrap().1.contains("memory"));
        assert_eq!(of(json!({ "Status": "created", "ExitCode": 0 }), true), Some(Reason::RuntimeFailed));
        assert_eq!(of(json!(null), true), Some(Reason::RuntimeFailed));
    }
}
