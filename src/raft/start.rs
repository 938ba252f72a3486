//! Brings a member up and takes it down, on a runtime thread of its own, so that nothing the rest
//! of the program does delays a heartbeat. It does not know why the member is started.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use nf_proto::internal::peer_service_server::PeerServiceServer;

use super::campaign::{self, Contact};
use super::clock::GroupClock;
use super::listener;
use super::log_store::LogStore;
use super::network::Factory;
use super::options::{Options, Timing, Tuning};
use super::peers::{self, MESSAGE_BYTES, Peers};
use super::proposer::{self, Shell};
use super::reads;
use super::replica::Replica;
use super::service::Service;
use super::shared::{Me, Shared};
use super::state_machine::StateMachine;
use super::types::StoredMembership;
use super::{MemberId, Raft, StartError, leadership, relief, upkeep};
use crate::security::tls::PeerTls;
use crate::storage::fatal::Fatal;
use crate::storage::floor::Floor;
use crate::storage::identity::{self, Identity};
use crate::storage::log_db::LogDb;
use crate::storage::state_db::StateDb;

/// Threads of the member's runtime: one for the core, one for the network and applying.
const THREADS: usize = 2;
/// The task that serves the peer port.
const SERVER: &str = "serving peers";
/// How long tasks may take to end at shutdown.
const LINGER: Duration = Duration::from_secs(2);

/// Starts a member on its data directory; a fresh one waits for `initialize` or for a leader
/// that adds it as a learner.
///
/// # Errors
/// When the directory is another member's, damaged, or in use; the text names the file.
pub async fn start(options: Options) -> Result<Replica, StartError> {
    let (ready_in, ready) = oneshot::channel();
    let (stopped_in, stopped) = watch::channel(false);
    std::thread::Builder::new().name("raft".into()).spawn(move || {
        thread(options, ready_in, &stopped);
        stopped_in.send_replace(true);
    })?;
    ready.await.map_err(|_| StartError::Thread)?
}

type Ready = oneshot::Sender<Result<Replica, StartError>>;

fn thread(options: Options, ready: Ready, stopped: &watch::Receiver<bool>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).thread_name("raft-rt").enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error.into()));
            return;
        }
    };
    let handle = runtime.handle().clone();
    runtime.block_on(async move {
        let fatal = options.fatal.clone();
        let (mut member, stop) = match bring_up(options).await {
            Ok(up) => up,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let replica = Replica { shared: member.shared.clone(), runtime: handle, stopped: stopped.clone() };
        if ready.send(Ok(replica)).is_ok() {
            run(&mut member, stop, &fatal).await;
        }
        take_down(member).await;
    });
    runtime.shutdown_timeout(LINGER);
}

/// Until somebody stops the member, or Raft or one of its tasks stops by itself, which is
/// fatal: a leader without its proposer, or without reads, would go on leading.
async fn run(up: &mut Up, mut stop: watch::Receiver<bool>, fatal: &Fatal) {
    let stopping = stop.clone();
    let mut metrics = up.shared.raft.metrics();
    let broken = metrics.wait_until(|m| m.running_state.is_err());
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        broken = broken => {
            let reason = match broken {
                Ok(metrics) => format!("{:?}", metrics.running_state),
                Err(_) => "its core ended".to_owned(),
            };
            fatal.raise(&format!("raft stopped: {reason}"));
        }
        ended = up.tasks.ended() => {
            // A task may see the stop before this one does.
            if !*stopping.borrow() {
                fatal.raise(&ended);
            }
        }
    }
}

/// The tasks that a member can't do without.
#[derive(Default)]
struct Tasks(Vec<(&'static str, JoinHandle<()>)>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push((name, tokio::spawn(task)));
    }

    /// Returns when the first of them has ended, and says which and how.
    async fn ended(&mut self) -> String {
        let tasks = self.0.iter_mut().map(|(name, task)| Box::pin(async move { (*name, task.await) }));
        let ((name, how), ..) = futures::future::select_all(tasks).await;
        match how {
            Ok(()) => format!("the member's task \"{name}\" ended by itself"),
            Err(error) => format!("the member's task \"{name}\" died: {error}"),
        }
    }
}

struct Up {
    shared: Arc<Shared>,
    tasks: Tasks,
    _lock: identity::Lock,
}

async fn take_down(up: Up) {
    let Up { shared, tasks, _lock } = up;
    shared.stop.send_replace(true);
    if let Err(error) = shared.raft.shutdown().await {
        tracing::warn!(%error, "stopping raft");
    }
    let server = tasks.0.into_iter().find(|(name, task)| *name == SERVER && !task.is_finished());
    if let Some((_, server)) = server {
        let _ = tokio::time::timeout(LINGER, server).await;
    }
    upkeep::flush(&shared).await;
    let disk = shared.disk.clone();
    // An error means that the runtime is gone, and the disk with it.
    let _ = tokio::task::spawn_blocking(move || disk.close()).await;
}

/// How openraft is set up; the simulation uses the same.
pub fn config(cluster: &str, timing: Timing, tuning: Tuning) -> Result<openraft::Config, StartError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        enable_pre_vote: Some(true),
        // A restored leader could serve reads from before its restart.
        enable_leader_restore: Some(false),
        max_payload_entries: 256,
        // Checkpoints are asked for by `upkeep`, which flushes first.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: tuning.keep_entries,
        purge_batch_size: tuning.purge_entries,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    };
    config.validate().map_err(|e| StartError::Config(e.to_string()))
}

struct Stores {
    lock: identity::Lock,
    disk: Arc<LogDb>,
    log: LogStore<LogDb>,
    floor: Floor,
    tables: Arc<StateDb>,
    machine: StateMachine<StateDb>,
}

fn open_stores(options: &Options) -> Result<Stores, StartError> {
    let dir = &options.data_dir;
    let lock = identity::lock(dir)?;
    let identity = Identity { cluster: options.cluster.clone(), member: options.id.0 };
    identity::claim(dir, &identity)?;
    let create = !identity::formatted(dir);
    let on_sync = options.hooks.fsync.clone();
    let disk = LogDb::open(&dir.join("raft"), create, options.fatal.clone(), on_sync)?;
    let tables = Arc::new(StateDb::open(dir, create, options.fatal.clone())?);
    identity::mark_formatted(dir)?;
    let disk = Arc::new(disk);
    let log = LogStore::open(disk.clone())?;
    let floor = Floor::of(dir);
    floor.check(&dir.join("raft"), log.last_index())?;
    let machine = StateMachine::open(tables.clone(), options.fatal.clone())?;
    Ok(Stores { lock, disk, log, floor, tables, machine })
}

async fn bring_up(options: Options) -> Result<(Up, watch::Receiver<bool>), StartError> {
    let (options, stores) = tokio::task::spawn_blocking(move || {
        let stores = open_stores(&options);
        (options, stores)
    })
    .await
    .map_err(|_| StartError::Thread)?;
    let Stores { lock, disk, log, floor, tables, machine } = stores?;
    let (id, name, cluster) = (options.id, options.name, options.cluster);
    let tls = options.tls;
    let server_tls = tls.clone();
    let clock = Arc::new(GroupClock::new(id, options.wall));
    let peers = Arc::new(Peers::new(cluster.clone(), id.0, name, tls, clock.clone()));
    let config = Arc::new(config(&cluster, options.timing, options.tuning)?);
    let (applied, commands, marks) = (machine.watch(), machine.commands(), machine.marks());
    let factory = Factory { peers: peers.clone(), applied: applied.clone() };
    let raft = Raft::new(id.0, config, factory, log.clone(), machine).await;
    let raft = raft.map_err(|e| StartError::Io(io::Error::other(e.to_string())))?;

    let (calls, calls_out) = mpsc::channel(proposer::QUEUE);
    let (asks, asks_out) = mpsc::channel(reads::QUEUE);
    let (term_in, term) = watch::channel(None);
    let (paused, paused_out) = watch::channel(false);
    let (in_flight_in, in_flight) = watch::channel(0);
    let (stop, stop_out) = watch::channel(false);
    let shell = Shell {
        raft: raft.clone(),
        calls: calls_out,
        applied: applied.clone(),
        term: term.clone(),
        paused: paused_out,
        in_flight: in_flight_in,
        clock: stamping(raft.clone(), clock.clone()),
        hooks: options.hooks.clone(),
    };
    let shared = Arc::new(Shared {
        me: Me { cluster, id },
        raft: raft.clone(),
        log,
        disk,
        tables,
        floor,
        peers,
        clock,
        contact: Contact::default(),
        timing: options.timing,
        tuning: options.tuning,
        hooks: options.hooks,
        commands,
        marks,
        fatal: options.fatal,
        calls,
        asks,
        applied: applied.clone(),
        term,
        paused,
        in_flight,
        changing: Arc::default(),
        stop,
    });
    let established = shared.hooks.established.clone();
    let (ended_in, ended) = mpsc::unbounded_channel();
    let services = options.services.unwrap_or_default();
    let aside = options.aside.unwrap_or_else(|| Arc::new(|_, _| {}));
    let mut tasks = Tasks::default();
    serve(&mut tasks, &shared, options.listener, server_tls, services, ended_in, &stop_out, aside)?;
    tasks.spawn("leadership", leadership::follow(raft, applied, term_in, established));
    tasks.spawn("proposer", shell.run());
    tasks.spawn("reads", reads::run(shared.clone(), asks_out));
    tasks.spawn("campaign", campaign::run(shared.clone(), ended));
    tasks.spawn("upkeep", upkeep::run(shared.clone()));
    tasks.spawn("watching the disk", relief::watch_disk(shared.clone()));
    tasks.spawn("pings", peers::keep_warm(shared.clone()));
    Ok((Up { shared, tasks, _lock: lock }, stop_out))
}

fn serve(
    tasks: &mut Tasks,
    shared: &Arc<Shared>,
    listener: std::net::TcpListener,
    tls: PeerTls,
    services: Routes,
    ended: mpsc::UnboundedSender<u64>,
    stop: &watch::Receiver<bool>,
    aside: listener::Aside,
) -> Result<(), StartError> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (connections_in, connections) = mpsc::channel(16);
    tasks.spawn(
        "accepting peers",
        listener::accept(listener, tls, connections_in, ended, shared.hooks.accepted.clone(), aside),
    );
    let service = PeerServiceServer::new(Service(shared.clone()))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let server = Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .add_routes(services.add_service(service))
        .serve_with_incoming(ReceiverStream::new(connections));
    let mut stop = stop.clone();
    tasks.spawn(SERVER, async move {
        // Not gracefully: peers' streams never end by themselves.
        tokio::select! {
            served = server => if let Err(error) = served {
                tracing::warn!(%error, "serving peers");
            },
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
    Ok(())
}

fn voters(membership: &StoredMembership) -> Vec<MemberId> {
    membership.voter_ids().map(MemberId).collect()
}

/// How the proposer stamps what it writes: by all voters' clocks.
fn stamping(raft: Raft, clock: Arc<GroupClock>) -> proposer::Clock {
    Arc::new(move |term, last_ms| {
        let metrics = raft.server_metrics();
        let voters = voters(&metrics.borrow_watched().membership_config);
        clock.stamp(term, last_ms, &voters)
    })
}

/// What the machine's clock says, in milliseconds since the epoch.
pub fn wall_clock_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_task_is_noticed_and_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("reads", std::future::pending());
        let quiet = tokio::time::timeout(Duration::from_millis(20), tasks.ended()).await;
        assert!(quiet.is_err(), "nothing has ended");
        tasks.spawn("proposer", async { panic!("a bug") });
        let ended = tasks.ended().await;
        assert!(ended.contains("\"proposer\" died") && ended.contains("a bug"), "{ended}");
        let mut tasks = Tasks::default();
        tasks.spawn("upkeep", async {});
        assert!(tasks.ended().await.contains("\"upkeep\" ended by itself"));
    }
}
