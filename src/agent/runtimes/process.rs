//! A replica as a real program, up to its start: its record, its control group, a session
//! of its own, a cleared environment, its own directory, output into a file. It outlives
//! the agent; the next agent finds it by its record. `life` has what follows.

use super::cgroup::Cgroups;
use super::ending::{Stuck, clear};
use super::life::{Leader, Processes, Running};
use super::processes::{Identity, KEY, Owner};
use super::session::{self, Confinement};
use super::users::{self, Giver};
use super::{cgroup, docker, exit, marks, model_dir, mps, port_is_taken, port_taken, prepare, slices, vacancy};
use crate::agent::executor::Shared;
use crate::agent::logs;
use crate::agent::numa::Cpus;
use crate::agent::owned;
use crate::agent::post::Post;
use crate::agent::record::{self, End, Launch as Launched, Record};
use crate::agent::tpus;
use crate::models::{Launch, Manifest, Process, Slots};
use crate::telemetry::traces;
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::Want;
use nf_core::resources::Resources;
use nix::sys::signal::Signal;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How much sooner than others a replica is chosen when memory runs out, of 1000.
pub(super) const OOM_SCORE: &str = "300";
/// Looks at a control group that should be empty, and the pause between them.
const EMPTYING: u32 = 50;
const EMPTY: Duration = Duration::from_millis(20);
pub(in crate::agent) const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a record of an earlier agent has come to.
pub(in crate::agent) enum Recalled {
    /// Its process was never spawned.
    Never,
    Alive(Identity),
    /// Its first process ended while no agent was here; others of it may be left.
    Left,
    Gone(End),
}

/// Looks for the process that a record tells of.
pub(in crate::agent) fn recall(record: &Record, own_dir: &Path, boot: &str) -> Recalled {
    if let Some(end) = record.ended {
        return Recalled::Gone(end);
    }
    if record.boot != boot {
        // It may have ended before the machine did.
        let ended = record.kept.then(|| exit::read(own_dir)).flatten();
        return Recalled::Gone(ended.map_or(End::failed(Reason::NodeFailure), |ended| ended.end));
    }
    match record.process {
        Some(process) if process.lives() => Recalled::Alive(process),
        Some(_) => Recalled::Left,
        None => match record.family(None).find_leader() {
            Some(process) => Recalled::Alive(process),
            None => Recalled::Never,
        },
    }
}

/// The whole life of a process replica.
pub(in crate::agent) async fn run(post: Post, want: &Want) -> End {
    let prepared = tokio::select! {
        prepared = start(&post, want) => prepared,
        why = post.stop_asked() => return End { ok: true, why },
    };
    let (manifest, process) = match prepared {
        Ok(both) => both,
        Err(end) => return end,
    };
    post.stage(Stage::Starting);
    // From here on a stop waits its turn: a spawn is never abandoned half way.
    match spawn(&post, want, manifest, process).await {
        Ok((record, child, leader)) => {
            let body = Processes { leader: Leader::Child(child), ..processes(&post, &record, leader) };
            Running { post, record, body }.live().await
        }
        Err((why, text)) => {
            post.note(&format!("can't start: {why}: {text}")).await;
            tracing::warn!(request = %post.launch.request, reason = %why, text, "a replica can't be started");
            discard(&post).await;
            End::failed(why)
        }
    }
}

/// Goes on with a process that an earlier agent started.
pub(in crate::agent) async fn adopt(post: Post, mut record: Record, process: Identity) -> End {
    post.note(&format!("adopted by a new agent, pid {}", process.pid)).await;
    record.process = Some(process);
    save(&post.shared, &record).await;
    let body = processes(&post, &record, process);
    Running { post, record, body }.live().await
}

fn processes(post: &Post, record: &Record, leader: Identity) -> Processes {
    let kept = record.kept.then(|| post.dir());
    Processes { leader: Leader::Adopted(leader), family: record.family(Some(leader)), kept }
}

/// For a replica that nobody watches (its first process ended while no agent was
/// here, or its task panicked): whatever of it runs is killed.
pub(in crate::agent) async fn put_down(shared: &Arc<Shared>, launch: &Launched) -> End {
    let (records, id, generation) = (shared.places.records.clone(), launch.id, launch.generation);
    let mut end = End::failed(Reason::RuntimeFailed);
    let own = shared.places.replica(launch);
    let found = tokio::task::spawn_blocking(move || record::load(&records, id, generation)).await;
    if let Ok(Some(mut record)) = found {
        if record.kept
            && let Ok(Some(ended)) = tokio::task::spawn_blocking(move || exit::read(&own)).await
        {
            tracing::info!(request = %launch.request, how = ended.text, "a program ended by itself while no agent was here");
            end = ended.end;
        }
        if record.container.is_some() {
            docker::put_down(shared, &record).await;
        }
        let family = record.family(record.process.filter(Identity::lives));
        clear(&family, &Stuck::of(shared, launch, end)).await;
        let_go(shared, &record).await;
        record.ended = Some(end);
        save(shared, &record).await;
    }
    end
}

/// What must be there before a process can be: its model and its port.
async fn start(post: &Post, want: &Want) -> Result<(Manifest, Process), End> {
    make_own_dir(post).await.map_err(|_| End::failed(Reason::RuntimeFailed))?;
    let manifest = prepare(post, &want.spec).await?;
    let Some(manifest) = manifest else {
        post.note("no model version to run: the job names no manifest").await;
        return Err(End::failed(Reason::ModelNotFound));
    };
    let Launch::Process(process) = manifest.runtime.clone() else {
        post.note("the manifest's runtime is simulated, the job's is process").await;
        return Err(End::failed(Reason::ModelNotFound));
    };
    if let Some(port) = want.port
        && port_is_taken(&want.host, port).await
    {
        post.note(&format!("port {port} is taken by a program that is not ours")).await;
        return Err(port_taken());
    }
    slices::made(post, want).await?;
    mps::served(post, want).await?;
    vacancy::wait(post, want).await?;
    Ok((manifest, process))
}

pub(super) async fn make_own_dir(post: &Post) -> io::Result<()> {
    let (dir, hand) = (post.dir(), post.hands.lend().await);
    let made = tokio::task::spawn_blocking(move || {
        let _hand = hand;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&dir)?;
        builder.create(dir.join("tmp"))
    });
    let made = made.await.map_err(io::Error::other).flatten();
    if let Err(e) = &made {
        post.note(&format!("can't make the replica's directory: {e}")).await;
    }
    made
}

/// Has it guarded where it must be, then spawns it.
async fn spawn(
    post: &Post,
    want: &Want,
    manifest: Manifest,
    process: Process,
) -> Result<(Record, Child, Identity), (Reason, String)> {
    let shared = post.shared.clone();
    let ready = &process.ready;
    let (node, launch, boot) = (shared.config.node.clone(), post.launch.clone(), shared.boot.clone());
    let mut record = Record::new(node, launch, boot, ready.path.clone(), ready.timeout_s);
    (record.live, record.drain, record.metrics) =
        (process.live.clone(), process.drain.clone(), process.metrics.clone());
    record.exclusive = want.spec.constraints.exclusive;
    record.kept = exit::counts(want.spec.constraints.restart);
    if shared.cgroups.is_ok() {
        record = in_group(post, want, record).await.map_err(|e| (Reason::RuntimeFailed, e.to_string()))?;
    }
    let mut failed = record.clone();
    if let Ok(giver) = &shared.users {
        match give(giver, &shared, record).await {
            Ok(given) => record = given,
            Err(error) => {
                let_go(&shared, &failed).await;
                return Err((Reason::RuntimeFailed, format!("a user of its own: {error}")));
            }
        }
    }
    let until_ms = match record.exclusive {
        true => match shared.guard.hold(record.family(None)).await {
            Ok(until_ms) => Some(until_ms),
            Err(text) => {
                let_go(&shared, &record).await;
                return Err((Reason::NoGuard, text));
            }
        },
        false => None,
    };
    failed = record.clone();
    match spawn_held(post, want, manifest, process, record, until_ms).await {
        Ok((record, child, leader)) => {
            if record.exclusive {
                shared.guard.knows(record.family(Some(leader)));
            }
            Ok((record, child, leader))
        }
        Err(e) => {
            let_go(&shared, &failed).await;
            Err((Reason::RuntimeFailed, e.to_string()))
        }
    }
}

/// Makes its control group, bound to the CPUs beside its devices where it can be.
async fn in_group(post: &Post, want: &Want, mut record: Record) -> io::Result<Record> {
    let (shared, limits) = (post.shared.clone(), want.spec.held_to());
    let near = shared.config.near.cpus(&want.uuids, limits.cpu_milli);
    let made = tokio::task::spawn_blocking(move || {
        let groups = shared.cgroups.as_ref().map_err(|why| io::Error::other(why.clone()))?;
        let bound =
            make_group(groups, &mut record, &shared.places.records, &limits, near.as_ref().map(|(_, cpus)| cpus))?;
        io::Result::Ok((record, near.filter(|_| bound)))
    });
    let (record, bound) = made.await.map_err(io::Error::other)??;
    if let Some((node, cpus)) = bound {
        post.note(&format!("runs on the CPUs of NUMA node {node}, where its devices are: {cpus}")).await;
    }
    Ok(record)
}

/// Says whether it is bound to the CPUs. The record is written before there is a group, so that the next agent finds one
/// that a kill at any line leaves behind.
fn make_group(
    groups: &Cgroups,
    record: &mut Record,
    records: &Path,
    limits: &Resources,
    cpus: Option<&Cpus>,
) -> io::Result<bool> {
    let name = cgroup::name_of(&record.key);
    record.cgroup = Some(groups.path(&name));
    record.save(records)?;
    // Without its limits it would run wild where limits were promised.
    let made = groups.make(&name, limits, cpus);
    made.map(|(_, bound)| bound).map_err(|error| io::Error::new(error.kind(), format!("its control group: {error}")))
}

/// Finds it a user, and writes its record with that.
async fn give(giver: &Giver, shared: &Arc<Shared>, mut record: Record) -> io::Result<Record> {
    let (giver, records) = (giver.clone(), shared.places.records.clone());
    let given = tokio::task::spawn_blocking(move || giver.give(&mut record, &records).map(|_| record));
    given.await.map_err(io::Error::other)?
}

/// Writes the record, spawns, and writes the record again, all on one blocking thread.
async fn spawn_held(
    post: &Post,
    want: &Want,
    manifest: Manifest,
    process: Process,
    mut record: Record,
    until_ms: Option<u64>,
) -> io::Result<(Record, Child, Identity)> {
    let (shared, want) = (post.shared.clone(), want.clone());
    let (dir, model, log) = (post.dir(), model_dir(post), post.log());
    // Held until both records are written, though the executor may be shut down meanwhile.
    let lock = shared.lock().ok_or_else(|| io::Error::other("the agent is shutting down"))?;
    let spawned = tokio::task::spawn_blocking(move || {
        let _lock = lock;
        shared.keep_logs();
        let mut command = command(&record, &want, &manifest, &process, &dir, &model, &shared.config.mps_pipes)?;
        if let Some(traceparent) = shared.traceparent((record.launch.id, record.launch.generation)) {
            command.env(traces::VARIABLE, traceparent);
        }
        let out = logs::open(&log)?;
        if let Some(owner) = record.owner {
            users::hand_over(&dir, &model, &out, owner)?;
            let ours = |uid| shared.users.as_ref().is_ok_and(|giver| giver.owner(uid).is_some());
            tpus::Kernel::default().lend(&want.uuids, owner.uid, ours)?;
        }
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        session::lead_session(&mut command, Confinement::of_replica(record.cgroup.as_deref(), until_ms, record.owner)?);
        record.life = shared.life((record.launch.id, record.launch.generation));
        record.save(&shared.places.records)?;
        let child = Command::from(command).spawn().map_err(|error| explained(error, record.owner))?;
        let pid = child.id().ok_or_else(|| io::Error::other("ended before it began"))?;
        // When memory runs out the replica goes before the agent and the guard. One that has ended by now needs it not.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        // A child that nobody waited for keeps its pid, so this can't be another's.
        let identity = Identity::of(pid).unwrap_or(Identity { pid, start: u64::MAX });
        record.process = Some(identity);
        if let Err(e) = record.save(&shared.places.records) {
            // Unrecorded it would outlive us unseen.
            record.family(Some(identity)).signal(Signal::SIGKILL);
            return Err(e);
        }
        Ok((record, child, identity))
    });
    spawned.await.map_err(io::Error::other)?
}

/// What may be read and run by the agent's user alone can't be by a replica's own.
fn explained(error: io::Error, owner: Option<Owner>) -> io::Error {
    match owner {
        Some(Owner { uid, .. }) if error.kind() == io::ErrorKind::PermissionDenied => {
            io::Error::new(error.kind(), format!("{error}: its program must be one that user {uid}, any user, may run"))
        }
        _ => error,
    }
}

/// Nothing of it is left: its guard, its control group and its files of devices are not needed any more.
pub(super) async fn let_go(shared: &Arc<Shared>, record: &Record) {
    if record.exclusive {
        shared.guard.release(&record.key);
    }
    if let Some(owner) = record.owner {
        let uuids = record.launch.uuids.clone();
        let taken = move || tpus::Kernel::default().take_back(&uuids, owner.uid);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(taken).await {
            tracing::warn!(%error, "a device's file stays a replica's user's until the device is held again");
        }
    }
    let Some(group) = &record.cgroup else { return };
    let mut last = None;
    for _ in 0..EMPTYING {
        match cgroup::remove(group) {
            Ok(()) => return,
            Err(error) => last = Some(error),
        }
        // Who was killed is in it until the kernel has taken it apart.
        tokio::time::sleep(EMPTY).await;
    }
    tracing::warn!(path = %group.display(), error = ?last, "a replica's control group can't be removed");
}

/// The command with the environment that a replica gets: nothing of the agent's own.
fn command(
    record: &Record,
    want: &Want,
    manifest: &Manifest,
    process: &Process,
    dir: &Path,
    model: &Path,
    pipes: &Path,
) -> io::Result<std::process::Command> {
    let python = std::env::var("NF_PYTHON").ok().filter(|p| !p.is_empty()).unwrap_or_else(|| "python3".into());
    let slots = Slots { host: &want.host, port: want.port, dir: model, python: &python, part: want.part };
    let argv = manifest.argv(process, &slots).map_err(io::Error::other)?;
    let argv = if record.kept { exit::kept(argv) } else { argv };
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("an empty command line"))?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).current_dir(dir).env_clear().envs(&process.env);
    command.env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", dir).env("TMPDIR", dir.join("tmp"));
    command.env(KEY, &record.key).env(marks::DIR, marks::of(dir)?);
    command.env("NF_MODEL", manifest.model_id.as_str()).env("NF_MODEL_VERSION", manifest.version.as_str());
    command.env("NF_MODEL_DIR", model).env("NF_HOST", &*want.host);
    command.env("NF_RANK", record.launch.id.replica.to_string()).env("NF_SIZE", want.spec.replicas.to_string());
    if let Some(main) = manifest.main() {
        command.env("NF_MODEL_SHA256", main.sha256.to_string());
    }
    if let Some(port) = want.port {
        command.env("NF_PORT", port.to_string());
    }
    // Then SIGUSR1 says that it has to go, and has about so long to save its state.
    if let Some(ms) = want.spec.constraints.checkpoint_ms {
        command.env("NF_CHECKPOINT_GRACE_MS", ms.to_string());
    }
    // By uuid, never by index: an index names another device after a hot plug, and can't name a MIG slice.
    // Empty hides all devices from a replica that holds none.
    command.env("CUDA_VISIBLE_DEVICES", want.uuids.join(","));
    command.envs(mps::limits(want, pipes));
    command.envs(tpus::Kernel::default().visible(&want.uuids).map(|chips| ("TPU_VISIBLE_CHIPS", chips)));
    Ok(command)
}

pub(super) async fn save(shared: &Arc<Shared>, record: &Record) {
    let (dir, mut record) = (shared.places.records.clone(), record.clone());
    let request = record.launch.request.clone();
    record.life = shared.life((record.launch.id, record.launch.generation));
    if let Ok(Err(e)) = tokio::task::spawn_blocking(move || record.save(&dir)).await {
        tracing::error!(%request, error = %e, "a replica's record can't be written");
    }
}

/// A record without a process is of no use to the next agent. What may have been handed over to
/// the launch's user goes before it, since another launch may be that user then.
pub(super) async fn discard(post: &Post) {
    let (dir, id, generation) = (post.shared.places.records.clone(), post.launch.id, post.launch.generation);
    let own = post.dir();
    let removed = tokio::task::spawn_blocking(move || {
        owned::remove(&own)?;
        record::remove(&dir, id, generation)
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(request = %post.launch.request, %error, "what is left of a start that failed can't be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::{Generation, JobNo, NodeName, RequestId};
    use nf_core::reconcile::ReplicaId;

    #[test]
    fn a_record_tells_of_a_control_group_before_there_is_one() {
        let tmp = tempfile::tempdir().unwrap();
        let (id, generation) = (ReplicaId { job: JobNo(1), replica: 0 }, Generation(1));
        let request = RequestId::new("r1").unwrap();
        let launch = Launched { request, id, generation, host: "h".into(), port: None, devices: None, uuids: vec![] };
        let mut record = Record::new(NodeName::new("n1").unwrap(), launch, "boot".into(), "/".into(), 1);
        // As a kill before the group is made: here it can't be.
        let groups = Cgroups::played(&tmp.path().join("nowhere"), &[]);
        assert!(make_group(&groups, &mut record, tmp.path(), &Resources::default(), None).is_err());
        let told = record::load(tmp.path(), id, generation).and_then(|record| record.cgroup);
        assert_eq!(told, Some(tmp.path().join("nowhere").join(cgroup::name_of(&record.key))));
    }
}
