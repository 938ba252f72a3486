//! A replica in a container: its record, its image, the order to the engine, and, after
//! that, the life that every program has. The container outlives the agent; the next one
//! finds it by the name in its record. `sweep` looks for those that no record tells of.

mod container;
mod order;
mod output;
mod sweep;

use super::ending::Stuck;
use super::life::{Ended, Running};
use super::process::{discard, make_own_dir};
use super::processes::Identity;
use super::{model_dir, mps, port_is_taken, port_taken, prepare, slices, vacancy};
use crate::agent::engine::{Facts, Fault};
use crate::agent::executor::Shared;
use crate::agent::numa::Cpus;
use crate::agent::post::Post;
use crate::agent::record::{End, Record};
use crate::models::{Image, Launch, Manifest};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse};
use bollard::query_parameters::{CreateContainerOptions, CreateImageOptions, StartContainerOptions};
use container::{Container, remove};
use futures::StreamExt;
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::Want;
use order::Order;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(in crate::agent) use sweep::sweep;

/// How long a registry may say nothing while it is pulled from.
const PULL_SILENCE: Duration = Duration::from_secs(120);
/// All that has to be there before a container can be made.
struct Ready {
    docker: Docker,
    facts: Facts,
    manifest: Manifest,
    container: crate::models::Container,
    /// The image's id.
    image: String,
    address: IpAddr,
}

/// The whole life of a replica in a container.
pub(in crate::agent) async fn run(post: Post, want: &Want) -> End {
    let ready = tokio::select! {
        ready = make_ready(&post, want) => ready,
        why = post.stop_asked() => return End { ok: true, why },
    };
    let ready = match ready {
        Ok(ready) => ready,
        Err(end) => return end,
    };
    post.stage(Stage::Starting);
    // From here on a stop waits its turn, as it does for a process.
    match begin(&post, want, &ready).await {
        Ok((record, first)) => {
            let name = record.container.clone().unwrap_or_default();
            let body = Container::tend(ready.docker, name, &post, first, true);
            Running { post, record, body }.live().await
        }
        Err(fault) => {
            refused(&post, &fault).await;
            discard(&post).await;
            End::failed(fault.why)
        }
    }
}

/// Goes on with a container that an earlier agent started.
pub(in crate::agent) async fn adopt(post: Post, mut record: Record) -> End {
    post.note("adopted by a new agent").await;
    let same_boot = record.boot == post.shared.boot;
    let (name, first) = (record.container.clone().unwrap_or_default(), record.process.filter(|_| same_boot));
    let docker = match engine_of(&post, &name, first, same_boot).await {
        Ok(docker) => docker,
        Err(lost) => {
            post.note(&lost.text).await;
            record.ended = Some(lost.end);
            super::process::save(&post.shared, &record).await;
            return lost.end;
        }
    };
    let body = Container::tend(docker, name, &post, first, same_boot);
    Running { post, record, body }.live().await
}

/// The engine of an adopted container, once it answers. One that takes the question and says nothing is waited for like
/// one that is not there, and asked no second time.
async fn engine_of(post: &Post, name: &str, first: Option<Identity>, same_boot: bool) -> Result<Docker, Ended> {
    let patience = post.shared.engine.config.patience;
    let mut absence = Absence { post, name, first, same_boot, since: Instant::now(), told: false, stuck: None };
    loop {
        let mut asking = std::pin::pin!(post.shared.engine.reach());
        let fault = loop {
            match tokio::time::timeout(patience.again, &mut asking).await {
                Ok(Ok((docker, _))) => return Ok(docker.clone()),
                Ok(Err(fault)) => break fault,
                Err(_) => absence.lasts("it takes the question and says nothing").await?,
            }
        };
        absence.lasts(&fault.text).await?;
        tokio::time::sleep(if absence.stuck.is_some() { patience.stop_again } else { patience.again }).await;
    }
}

/// An engine that does not answer for a container that is adopted.
struct Absence<'a> {
    post: &'a Post,
    name: &'a str,
    /// Its first process, when this machine shows it.
    first: Option<Identity>,
    /// The machine has not booted since it began.
    same_boot: bool,
    since: Instant,
    told: bool,
    /// It was told to stop meanwhile.
    stuck: Option<Stuck>,
}

impl Absence<'_> {
    /// What follows from that it lasts: it is told once, and so is that the container can't be stopped. Its end is found
    /// without the engine, which knows more of it, only when that was silent for a while.
    ///
    /// # Errors
    /// How it ended.
    async fn lasts(&mut self, why: &str) -> Result<(), Ended> {
        let Self { post, name, first, same_boot, .. } = *self;
        if self.since.elapsed() >= post.shared.engine.config.patience.silence
            && let Some(lost) = container::lost(first, same_boot)
        {
            return Err(lost);
        }
        if !self.told {
            post.note(&format!("waits for its engine: {why}")).await;
            // Nobody can say that it still runs, so nobody is sent to it.
            post.stage(Stage::NotReady);
            self.told = true;
        }
        if let Some(asked) = post.asked_to_stop() {
            let end = End { ok: true, why: asked };
            let stuck = self.stuck.get_or_insert_with(|| Stuck::of(&post.shared, &post.launch, end));
            stuck.look(|| format!("container {name} can't be stopped: {why}"));
        }
        Ok(())
    }
}

/// For a replica that nobody watches: whatever of it runs is removed.
pub(super) async fn put_down(shared: &Arc<Shared>, record: &Record) {
    let Some(name) = &record.container else { return };
    loop {
        if let Ok((docker, _)) = shared.engine.reach().await {
            return remove(docker, name, shared.config.kill_after, None).await;
        }
        tokio::time::sleep(shared.engine.config.patience.again).await;
    }
}

async fn refused(post: &Post, fault: &Fault) {
    post.note(&format!("can't start: {}: {}", fault.why, fault.text)).await;
    tracing::warn!(request = %post.launch.request, reason = %fault.why, text = fault.text, "a container can't be started");
}

async fn make_ready(post: &Post, want: &Want) -> Result<Ready, End> {
    if want.spec.constraints.exclusive {
        post.note("a container can't be guarded, and this job must never run twice").await;
        return Err(End::failed(Reason::NoGuard));
    }
    make_own_dir(post).await.map_err(|_| End::failed(Reason::RuntimeFailed))?;
    let Some(manifest) = prepare(post, &want.spec).await? else {
        post.note("no model version to run: the job names no manifest").await;
        return Err(End::failed(Reason::ModelNotFound));
    };
    let Launch::Docker(container) = manifest.runtime.clone() else {
        post.note("the manifest's runtime is another than the job's, which is docker").await;
        return Err(End::failed(Reason::ModelNotFound));
    };
    if post.shared.config.judge.is_some() && !container.image.is_pinned() {
        // What was signed names the manifest by digest, so the manifest must name the image so, too: whoever moves a
        // tag would else change what runs.
        post.note(&format!("image {} is not named by digest, and only signed versions run here", container.image))
            .await;
        return Err(End::failed(Reason::SignatureBindingMismatch));
    }
    match reached(post, want, &container.image).await {
        Ok((docker, facts, image, address)) => {
            slices::made(post, want).await?;
            mps::served(post, want).await?;
            vacancy::wait(post, want).await?;
            Ok(Ready { docker, facts, manifest, container, image, address })
        }
        Err(fault) => {
            refused(post, &fault).await;
            Err(End::failed(fault.why))
        }
    }
}

/// The engine with the image, and where the port is to be.
async fn reached(post: &Post, want: &Want, image: &Image) -> Result<(Docker, Facts, String, IpAddr), Fault> {
    let (docker, facts) = post.shared.engine.reach().await?;
    let id = image_id(post, docker, image).await?;
    let Some(port) = want.port else { return Ok((docker.clone(), facts.clone(), id, Ipv4Addr::UNSPECIFIED.into())) };
    let found = tokio::net::lookup_host((&*want.host, port)).await.ok().and_then(|mut found| found.next());
    let Some(address) = found else {
        let text = format!("{} is no address of this machine: see NF_ADVERTISE", want.host);
        return Err(Fault { why: Reason::RuntimeFailed, text });
    };
    if port_is_taken(&want.host, port).await {
        let text = format!("port {port} is taken by a program that is not ours");
        return Err(Fault { why: port_taken().why, text });
    }
    Ok((docker.clone(), facts.clone(), id, address.ip()))
}

/// The id of the image, which is pulled only where its digest says what will come.
async fn image_id(post: &Post, docker: &Docker, image: &Image) -> Result<String, Fault> {
    let here = |found: bollard::models::ImageInspect| {
        let text = format!("the engine does not say which image {image} is");
        found.id.ok_or(Fault { why: Reason::RuntimeFailed, text })
    };
    match docker.inspect_image(image.as_str()).await {
        Ok(found) => return here(found),
        Err(error) if !Fault::is_absence(&error) => return Err(error.into()),
        Err(_) if !image.may_be_pulled() => {
            let text =
                format!("the engine has no image {image}: load it there, or name it NAME@sha256:… to have it pulled");
            return Err(Fault { why: Reason::ImageMissing, text });
        }
        Err(_) => {}
    }
    post.stage(Stage::Downloading);
    post.note(&format!("image {image} is pulled")).await;
    let failed = |text: String| Fault { why: Reason::ImagePullFailed, text: format!("image {image}: {text}") };
    let options = CreateImageOptions { from_image: Some(image.as_str().to_owned()), ..CreateImageOptions::default() };
    let mut progress = std::pin::pin!(docker.create_image(Some(options), None, None));
    loop {
        match tokio::time::timeout(PULL_SILENCE, progress.next()).await {
            Ok(None) => break,
            Ok(Some(Ok(step))) => {
                if let Some(text) = step.error_detail.and_then(|detail| detail.message) {
                    return Err(failed(nf_core::reason::printable(&text, 300)));
                }
            }
            Ok(Some(Err(error))) => {
                let fault = Fault::from(error);
                return Err(if fault.is_silence() { fault } else { failed(fault.text) });
            }
            Err(_) => return Err(failed(format!("nothing came for {} s", PULL_SILENCE.as_secs()))),
        }
    }
    here(docker.inspect_image(image.as_str()).await.map_err(|error| failed(Fault::from(error).text))?)
}

/// Writes the record, makes the container and begins it.
async fn begin(post: &Post, want: &Want, ready: &Ready) -> Result<(Record, Option<Identity>), Fault> {
    let shared = post.shared.clone();
    // Held until it is begun or taken away, though the executor may be shut down meanwhile.
    let Some(_lock) = shared.lock() else {
        return Err(Fault { why: Reason::RuntimeFailed, text: "the agent is shutting down".into() });
    };
    let asks = &ready.container.program;
    let (node, launch, boot) = (shared.config.node.clone(), post.launch.clone(), shared.boot.clone());
    let mut record = Record::new(node, launch, boot, asks.ready.path.clone(), asks.ready.timeout_s);
    (record.live, record.drain, record.metrics) = (asks.live.clone(), asks.drain.clone(), asks.metrics.clone());
    record.listens = want.port.map(|_| ready.container.port);
    let name = order::name(&record);
    record.container = Some(name.clone());
    let (model, places, first) = (model_dir(post), shared.places.records.clone(), record.clone());
    let open = model.clone();
    let failed = |e: io::Error| Fault { why: Reason::RuntimeFailed, text: e.to_string() };
    let owner = shared.engine.owner(&places).await.map_err(failed)?;
    let written = tokio::task::spawn_blocking(move || {
        readable(&open)?;
        first.save(&places)
    });
    written.await.map_err(io::Error::other).flatten().map_err(failed)?;
    let order = Order {
        want,
        record: &record,
        manifest: &ready.manifest,
        container: &ready.container,
        facts: &ready.facts,
        image: &ready.image,
        model: &model,
        address: ready.address,
        owner,
        group: &shared.engine.config.group,
        pipes: &shared.config.mps_pipes,
        traceparent: shared.traceparent((record.launch.id, record.launch.generation)),
    };
    let near = shared.config.near.cpus(&want.uuids, want.spec.held_to().cpu_milli);
    let found = order_it(post, &ready.docker, &name, &order, near).await?;
    post.note(&format!("container {name}, image {}", ready.container.image)).await;
    let pid = found.state.and_then(|state| u32::try_from(state.pid?).ok()).filter(|pid| *pid > 1);
    record.process = pid.and_then(|pid| Identity::of_key(pid, &record.key));
    super::process::save(&shared, &record).await;
    let first = record.process;
    Ok((record, first))
}

/// Makes the container and begins it, on the CPUs beside its devices where the engine can do that: nearer memory is no
/// promise, so who does not get it runs all the same.
async fn order_it(
    post: &Post,
    docker: &Docker,
    name: &str,
    order: &Order<'_>,
    near: Option<(u16, Cpus)>,
) -> Result<ContainerInspectResponse, Fault> {
    let body = |cpus| order.body(cpus).map_err(|text| Fault { why: Reason::RuntimeFailed, text });
    let Some((node, cpus)) = near else { return make(post, docker, name, body(None)?).await };
    match make(post, docker, name, body(Some(&cpus))?).await {
        Ok(found) => {
            post.note(&format!("runs on the CPUs of NUMA node {node}, where its devices are: {cpus}")).await;
            Ok(found)
        }
        Err(fault) if denies_cpus(&fault, name) => {
            post.note(&format!("is not bound to the CPUs beside its devices ({cpus}): {}", fault.text)).await;
            make(post, docker, name, body(None)?).await
        }
        Err(fault) => Err(fault),
    }
}

/// Whether it is the CPUs that an engine does not give. It has no number for that: Docker says "Requested CPUs are not
/// available", runtimes name the file of the control group, `cpuset.cpus`. What the caller chose may hold such a word, too:
/// the container's name has the job's in it, and so have paths that are no control group's.
fn denies_cpus(fault: &Fault, name: &str) -> bool {
    if fault.is_silence() {
        return false;
    }
    let text = fault.text.replace(name, "");
    let mut words = text.split(|c: char| c.is_whitespace() || "\"'`(),;:=".contains(c));
    words.any(|word| match word.rsplit_once('/') {
        None => ["cpus", "cpuset"].contains(&&*word.to_lowercase()) || word.starts_with("cpuset."),
        Some((_, file)) => file.starts_with("cpuset."),
    })
}

/// What went wrong is taken away again.
async fn make(
    post: &Post,
    docker: &Docker,
    name: &str,
    body: ContainerCreateBody,
) -> Result<ContainerInspectResponse, Fault> {
    let begun = async {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        let made = docker.create_container(Some(options), body).await?;
        for warning in made.warnings.iter().take(8) {
            post.note(&format!("the engine warns: {}", nf_core::reason::printable(warning, 200))).await;
        }
        docker.start_container(name, None::<StartContainerOptions>).await?;
        docker.inspect_container(name, None).await
    };
    match begun.await {
        Ok(found) => Ok(found),
        Err(error) => {
            remove(docker, name, post.shared.config.kill_after, None).await;
            Err(error.into())
        }
    }
}

/// Lets everybody, and so the container's user, look into the replica's own directories.
/// The files in it are readable already, and shared with the cache.
fn readable(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            readable(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
