//! A replica that is played inside the agent: real HTTP on its own port with real
//! metrics, a run file that says what it is, and answers that say they are
//! simulated. Only the model is missing. It ends with the agent.

use super::answers::Doing;
use super::{answers, prepare, slices};
use crate::agent::executor::now_ms;
use crate::agent::post::Post;
use crate::agent::record::End;
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::Want;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a stopped replica goes on taking requests: whoever follows the endpoints has
/// been told by then that it drains.
const LEAD: Duration = Duration::from_millis(500);
/// Between two words on how it is doing.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// How long a stopped replica may take over the answers that it has begun.
const FINISH: Duration = Duration::from_secs(2);

/// Two replicas of this process that want one name look, and write, one after the other.
static WRITING: Mutex<()> = Mutex::new(());

/// The file in the run directory: these names are part of the contract.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RunFile {
    job: String,
    model: String,
    /// When `status` last changed, RFC 3339.
    ts: String,
    version: String,
    tenant: String,
    node: String,
    devices: Vec<String>,
    generation: u32,
    /// starting, running, stopped or failed.
    status: String,
    sim: bool,
}

impl RunFile {
    fn of(post: &Post, want: &Want) -> Self {
        let spec = &want.spec;
        Self {
            job: want.request.to_string(),
            model: spec.model.to_string(),
            ts: String::new(),
            version: spec.version.to_string(),
            tenant: spec.tenant.to_string(),
            node: post.shared.config.node.to_string(),
            devices: want.uuids.iter().map(|u| u.to_string()).collect(),
            generation: want.generation.0,
            status: String::new(),
            sim: true,
        }
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn is_of(&self, other: &Self) -> bool {
        self.job == other.job && self.tenant == other.tenant
    }

    /// Its names, the first one that is to be had. `{id}.json` belongs to the job of that id: replica 1 of job `a`
    /// leaves `a.1.json` to a job `a.1`. Of two tenants' jobs `a` it belongs to the one that was there first. What
    /// gives way goes beside it, with a character that no id has.
    fn names(&self, replica: u16) -> Vec<String> {
        let (job, tenant) = (&self.job, &self.tenant);
        let beside = format!("{job}~{replica}~{tenant}.json");
        match replica {
            0 => vec![format!("{job}.json"), beside],
            n => vec![format!("{job}.{n}.json"), format!("{job}~{n}.json"), beside],
        }
    }

    /// Whether it may have a name under which that is written.
    fn may_replace(&self, there: &Self, replica: u16) -> bool {
        self.is_of(there) || (replica == 0 && there.job != self.job)
    }

    /// Of a launch that says no more.
    fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "stopped" | "failed")
    }

    /// Where it is written: where this launch has written before, else under the first name that is to be had.
    fn place(&self, dir: &Path, replica: u16) -> PathBuf {
        let mut paths: Vec<PathBuf> = self.names(replica).into_iter().map(|name| dir.join(name)).collect();
        let there: Vec<Option<Self>> = paths.iter().map(|path| Self::read(path)).collect();
        let goes_on = |there: &Self| self.is_of(there) && there.generation == self.generation && !there.is_over();
        let own = |there: &Option<Self>| there.as_ref().is_some_and(goes_on);
        let free = |there: &Option<Self>| there.as_ref().is_none_or(|there| self.may_replace(there, replica));
        let which = there.iter().position(own).or_else(|| there.iter().position(free));
        // The last name has the tenant in it: nobody else writes there.
        paths.swap_remove(which.unwrap_or(paths.len() - 1))
    }

    /// Whole at any time: readers see the old file or the new one. Says under which name.
    fn write(&self, dir: &Path, replica: u16) -> io::Result<PathBuf> {
        fs::create_dir_all(dir)?;
        let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.place(dir, replica);
        let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        // A launch that began later, perhaps by another agent of this machine, has the last word.
        if !Self::read(&path).is_some_and(|there| self.is_of(&there) && there.generation > self.generation) {
            let partial = path.with_extension(format!("json.{}.g{}.tmp", self.node, self.generation));
            fs::write(&partial, serde_json::to_vec_pretty(self)?).map_err(told)?;
            fs::rename(&partial, &path).map_err(told)?;
        }
        Ok(path)
    }
}

/// Writes the run file with `status`; its failure is told, and does not stop the replica.
async fn tell(post: &Post, want: &Want, status: &str) {
    let mut file = RunFile::of(post, want);
    (file.status, file.ts) = (status.into(), jiff::Timestamp::now().strftime("%FT%TZ").to_string());
    let (replica, shared) = (post.launch.id.replica, post.shared.clone());
    let written = tokio::task::spawn_blocking(move || {
        let path = file.write(&shared.places.run, replica)?;
        if file.is_over()
            && let Some(surplus) = shared.ended_run_file(path)
        {
            // Someone may have removed it already.
            let _ = fs::remove_file(surplus);
        }
        Ok::<_, io::Error>(())
    });
    if let Ok(Err(e)) = written.await {
        tracing::warn!(request = %post.launch.request, error = %e, "run file not written");
    }
}

/// The whole life of a simulated replica.
pub(in crate::agent) async fn run(post: Post, want: &Want) -> End {
    tell(&post, want, "starting").await;
    let started = tokio::select! {
        started = start(&post, want) => started,
        why = post.stop_asked() => Err(End { ok: true, why }),
    };
    let end = match started {
        Err(end) => end,
        Ok(None) => End { ok: true, why: post.stop_asked().await },
        Ok(Some(mut server)) => tokio::select! {
            why = post.stop_asked() => {
                // It has nothing to save, and takes as long as if it had.
                let lead = LEAD.max(post.grace());
                let term_ms = now_ms() + millis(lead);
                post.stops(why, term_ms, term_ms + millis(FINISH));
                tokio::select! {
                    () = tokio::time::sleep(lead) => {}
                    () = post.hurried(), if lead > LEAD => {}
                }
                server.stop().await;
                End { ok: true, why }
            }
            _ = &mut server.task => End::failed(Reason::RuntimeFailed),
            never = say(&post, &server.doing) => match never {},
        },
    };
    tell(&post, want, if end.ok { "stopped" } else { "failed" }).await;
    post.note(&format!("simulated replica ended: {}", end.why)).await;
    end
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Says every so often how the replica is doing.
async fn say(post: &Post, doing: &Doing) -> Infallible {
    loop {
        post.said(Some(doing.said()));
        tokio::time::sleep(SAY_EVERY).await;
    }
}

/// Everything until it is ready. None: it has no port, so there is nothing to serve.
async fn start(post: &Post, want: &Want) -> Result<Option<Server>, End> {
    prepare(post, &want.spec).await?;
    slices::made(post, want).await?;
    post.stage(Stage::Starting);
    let (host, spec) = (&*want.host, &want.spec);
    let (server, address) = match want.port {
        None => (None, "no port".to_string()),
        Some(port) => match Server::start(host, port, spec.model.as_str(), spec.version.as_str()).await {
            Ok(server) => (Some(server), format!("http://{host}:{port}")),
            Err(e) => {
                post.note(&format!("can't serve on {host}:{port}: {e}")).await;
                let why = if e.kind() == io::ErrorKind::AddrInUse { Reason::PortTaken } else { Reason::RuntimeFailed };
                return Err(End::failed(why));
            }
        },
    };
    tell(post, want, "running").await;
    let devices = want.uuids.join(" ");
    let what = format!("{} {} for {}", spec.model, spec.version, spec.tenant);
    post.note(&format!("SIMULATED {what} on {address}; devices: {devices}; no model is loaded")).await;
    post.stage(Stage::Ready);
    Ok(server)
}

/// The replica's HTTP server. Dropped without [`Server::stop`] it ends a moment later.
struct Server {
    task: JoinHandle<io::Result<()>>,
    doing: Doing,
    stop: Option<oneshot::Sender<()>>,
}

impl Server {
    async fn start(host: &str, port: u16, model: &str, version: &str) -> io::Result<Self> {
        let listener = TcpListener::bind((host, port)).await?;
        let (router, doing) = answers::router(model.into(), version.into()).map_err(io::Error::other)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let graceful = axum::serve(listener, router).with_graceful_shutdown(async {
            // Sent or dropped: both mean the end.
            let _ = stopped.await;
        });
        Ok(Self { task: tokio::spawn(graceful.into_future()), doing, stop: Some(stop) })
    }

    /// Answers what it is answering, and gives its port back.
    async fn stop(&mut self) {
        self.stop.take();
        if tokio::time::timeout(FINISH, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
