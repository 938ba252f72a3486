//! The nodes that this process runs: its own, and those it plays. It makes their
//! specs and executors; the agent does the rest.

use super::identity::Me;
use super::trust::Trust;
use crate::agent::engine::{self, EngineConfig};
use crate::agent::executor::{Executor, ExecutorConfig};
use crate::agent::faults::Sees;
use crate::agent::inventory::{self, Driver, Own, Wait, machine, own_devices};
use crate::agent::numa::Near;
use crate::agent::played::OpenExecutor;
use crate::agent::{Daemon, Execute, Found, NodeRegistration, Sensor, Troubles, Users, Vacancy, incarnation};
use crate::config::parse::{Engine, GpuNodes, Mode, PlayedNode};
use crate::config::{Error as ConfigError, Origin, Settings};
use crate::exchange::{NodeStart, Registration};
use crate::models::Store;
use crate::raft::Replica;
use crate::sealed::{self, PrivateKey};
use crate::telemetry::Metrics;
use crate::telemetry::alarms::DEVICE_OCCUPIED;
use anyhow::{Context as _, Result, anyhow};
use nf_core::id::{Incarnation, Label, NodeName};
use nf_core::node::{Device, DeviceKind, ENGINE_LABEL, NodeKind, NodeSpec, PortRange};
use nf_core::plan::{Intent, Reply};
use nf_core::played::{self, Played};
use nf_core::sharing::Sharing;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Times that ports are chosen for a node, and the pause for this member to see who was quicker.
const PORT_TRIES: u32 = 16;
const PORT_PAUSE: Duration = Duration::from_millis(50);
/// One registration's time.
const REGISTER: Duration = Duration::from_secs(10);

/// `NF_PORT_RANGE`.
pub fn range(settings: &Settings) -> PortRange {
    let (first, last) = settings.port_range.value;
    PortRange { first, last }
}

/// Where this process is and what it costs; the nodes that it plays are in the same place.
fn placed(settings: &Settings, spec: NodeSpec) -> NodeSpec {
    NodeSpec {
        region: settings.region.value.clone(),
        zone: settings.zone.value.clone(),
        rack: settings.rack.value.clone(),
        labels: settings.labels.value.clone(),
        cost_per_hour: settings.cost_per_hour.value.clone(),
        ..spec
    }
}

fn simulated(own: &PlayedNode, said: Option<Sharing>) -> Vec<Device> {
    let device_type = own.device_type.clone().unwrap_or_else(played::usual_type);
    let mut devices = played::devices(&own.name, played::kind_of(&device_type), &device_type, own.count, None);
    let gpus = devices.iter_mut().filter(|device| device.kind == DeviceKind::Gpu);
    gpus.for_each(|gpu| gpu.sharing = own.sharing.or(said).unwrap_or(gpu.sharing));
    played::on_numa_nodes(&mut devices, own.numa_nodes);
    devices
}

/// `NF_GPU_SHARING`, or what is found beside the driver. Where it can't be known, nothing is said to be enforced.
fn shared(settings: &Settings, data: &Path, Own { devices, simulated, order }: &mut Own) {
    if let Some(said) = settings.gpu_sharing.value {
        devices.iter_mut().filter(|device| device.kind == DeviceKind::Gpu).for_each(|gpu| gpu.sharing = said);
        return;
    }
    if *simulated || devices.is_empty() {
        return;
    }
    let marked = serving(settings, data).map(|daemon| daemon.mark(devices, order));
    let parts = devices.iter().filter(|device| device.sharing == Sharing::Mps).count();
    match marked {
        Ok(Ok(())) => tracing::info!(parts, "MPS keeps replicas to their parts of so many GPUs"),
        Ok(Err(why)) => {
            tracing::warn!(why, parts, "MPS is here, and keeps replicas to their parts of so many GPUs alone")
        }
        Err(why) => tracing::info!(why, "nothing keeps replicas to parts of this node's GPUs; see NF_GPU_SHARING"),
    }
}

/// The daemon of the Multi-Process Service, where it serves whom the agent starts.
fn serving(settings: &Settings, data: &Path) -> Result<Daemon, String> {
    let daemon = Daemon::find(&settings.mps_pipe_directory.value)?;
    // One server serves one user at a time, says its man page: the next one waits until the first has gone.
    match users(settings, data).are_given() {
        true => Err("MPS serves one user at a time, and replicas have users of their own (NF_REPLICA_USERS)".into()),
        false => Ok(daemon),
    }
}

/// `NF_CONTAINER_ENGINE`, or what is found.
pub fn engine_socket(settings: &Settings) -> Option<PathBuf> {
    match &settings.container_engine.value {
        Engine::Auto => engine::usual_socket(),
        Engine::Off => None,
        Engine::Socket(path) => Some(path.clone()),
    }
}

/// The same, or where one may yet come: an agent that starts before its engine adopts what that brings.
fn engine_later(settings: &Settings) -> Option<PathBuf> {
    let later = (settings.container_engine.value == Engine::Auto).then(|| engine::USUAL.into());
    engine_socket(settings).or(later)
}

/// Says by a label whether this machine has an engine for containers. One that is there and can't be used is told.
async fn labelled(settings: &Settings, mut spec: NodeSpec) -> Result<NodeSpec> {
    let label = Label::new(ENGINE_LABEL)?;
    // Nobody's wish but the engine's own word.
    spec.labels.remove(&label);
    let Some(socket) = engine_socket(settings) else {
        tracing::info!("this node gets no containers: no engine; see nf doctor");
        return Ok(spec);
    };
    match engine::look(&socket).await {
        Ok(facts) => {
            let missing = facts.missing.join(", ");
            tracing::info!(engine = %facts, socket = %socket.display(), missing, "this node gets containers");
            spec.labels.insert(label, Label::new(facts.kind)?);
        }
        Err(why) => tracing::warn!(why, "this node gets no containers until its agent starts again; see nf doctor"),
    }
    Ok(spec)
}

/// What this process' own node has. `GPU_NODES` may say it under the node's name.
///
/// # Errors
/// When the driver does not answer, and no earlier start has seen its GPUs.
pub async fn own_spec(settings: &Settings, me: &Me, driver: &Driver, wait: Wait) -> Result<NodeSpec> {
    let simulation = settings.mode() == Mode::Simulation;
    let (devices, simulated) = match &settings.gpu_nodes.value {
        GpuNodes::Auto => {
            let own = own_devices(driver, &me.name, &me.data, simulation, wait).await;
            let mut own = own.map_err(|e| anyhow!("asking the GPU driver: {e}"))?;
            shared(settings, &me.data, &mut own);
            (own.devices, own.simulated)
        }
        GpuNodes::Played(nodes) => match nodes.iter().find(|node| node.name == me.name) {
            Some(own) => (simulated(own, settings.gpu_sharing.value), true),
            None => (Vec::new(), simulation),
        },
    };
    let ports = Some(played::own_ports(range(settings)));
    let spec = placed(settings, inventory::node_spec(&me.host, ports, machine(&me.data), devices, simulated));
    labelled(settings, spec).await
}

/// What this process' own node has, said again when GPUs answer that did not at its start.
pub fn described(
    settings: &Settings,
    me: &Me,
    driver: Driver,
    here: &Here,
    spec: &NodeSpec,
) -> mpsc::Receiver<Arc<NodeSpec>> {
    let (to, described) = mpsc::channel(1);
    let (settings, me, near, spec) = (settings.clone(), me.clone(), here.near.clone(), spec.clone());
    near.learn(&spec);
    tokio::spawn(async move {
        let look = async || {
            let spec = own_spec(&settings, &me, &driver, Wait::Forever).await.map_err(|error| error.to_string())?;
            near.learn(&spec);
            Ok(spec)
        };
        inventory::follow(spec, look, to, inventory::LATE).await;
    });
    described
}

/// The store that model versions come from.
pub fn store(settings: &Settings, data: &Path) -> Result<Option<Store>> {
    let url = match &settings.model_store_url.value {
        Some(url) => url.clone(),
        None if settings.mode() == Mode::Simulation => {
            let models = data.join("models");
            std::fs::create_dir_all(&models).with_context(|| models.display().to_string())?;
            format!("file://{}", models.display())
        }
        None => return Ok(None),
    };
    let opened = Store::open(&url, &settings.store_link()).map_err(|e| ConfigError::Clash(e.to_string()))?;
    Ok(Some(opened.with_key(artefact_key(settings)?)))
}

/// The key that opens encrypted files, where there is one.
///
/// # Errors
/// One clear line, no contents.
pub fn artefact_key(settings: &Settings) -> Result<Option<PrivateKey>, ConfigError> {
    let read = |path: &PathBuf| sealed::read_private(path);
    let key = settings.artefact_key.value.as_ref().map(read).transpose();
    key.map_err(|text| ConfigError::Clash(format!("NF_ARTEFACT_KEY: {text}")))
}

/// What is the same for all executors of this process.
#[derive(Clone)]
pub struct Here {
    /// No earlier start of it is known. To be asked before this one is counted.
    anew: bool,
    found: Arc<Found>,
    troubles: Arc<Troubles>,
    near: Arc<Near>,
}

impl Here {
    pub fn of(me: &Me, metrics: &Metrics) -> Self {
        let metrics = metrics.clone();
        let tell = move |kind, text: Option<&str>| match text {
            Some(text) => metrics.alarms.raise(kind, text),
            None => metrics.alarms.clear(kind),
        };
        Self {
            anew: !incarnation::is_known(&me.data.join("node")),
            found: Arc::default(),
            troubles: Arc::new(Troubles::new(tell)),
            near: Arc::default(),
        }
    }
}

/// What an executor of this process is opened with.
pub fn executor_config(
    settings: &Settings,
    data: &Path,
    here: &Here,
    node: &NodeName,
    store: Option<Store>,
    trust: Option<&Trust>,
    vacancy: Vacancy,
) -> ExecutorConfig {
    ExecutorConfig {
        anew: here.anew,
        found: here.found.clone(),
        troubles: here.troubles.clone(),
        vacancy: Arc::new(vacancy),
        near: here.near.clone(),
        mps_pipes: settings.mps_pipe_directory.value.clone(),
        judge: trust.map(Trust::for_node),
        run_dir: settings.run_dir.value.clone(),
        data_dir: data.join("nodes").join(node.as_str()),
        node: node.clone(),
        store,
        model_cache: settings.model_cache.value,
        stop_grace: settings.stop_grace.value,
        kill_after: settings.kill_after.value,
        cgroups: true,
        users: users(settings, data),
        // Good also after an upgrade has replaced the file on disk.
        guard: "/proc/self/exe".into(),
        engine: EngineConfig {
            socket: engine_later(settings),
            group: settings.cluster.value.clone(),
            patience: Default::default(),
        },
    }
}

/// `NF_REPLICA_USERS`. In production programs of several tenants run beside our keys and each other's models:
/// there only who says so by name does without.
pub fn users(settings: &Settings, data: &Path) -> Users {
    let wish = &settings.replica_users;
    let asked = wish.origin != Origin::Default || settings.mode() == Mode::Production;
    Users { range: wish.value, required: wish.value.is_some() && asked, home: data.to_owned() }
}

fn played_devices(data: &Path, node: &NodeName) -> Sensor {
    Sensor::Played(data.join("nodes").join(node.as_str()).join("devices.json"))
}

/// Who sees whether this process' own devices are free, and who is told when they are not.
pub fn vacancy(settings: &Settings, me: &Me, spec: &NodeSpec, sees: &Sees, metrics: &Metrics) -> Vacancy {
    let sensor = if spec.simulated { played_devices(&me.data, &me.name) } else { Sensor::Driver };
    let metrics = metrics.clone();
    let alarm = move |text: Option<&str>| match text {
        Some(text) => metrics.alarms.raise(DEVICE_OCCUPIED, text),
        None => metrics.alarms.clear(DEVICE_OCCUPIED),
    };
    let vacancy = Vacancy::new(sensor, settings.device_wait.value, Some(sees.clone()), Some(Arc::new(alarm)))
        .beside_mps(settings.mps_pipe_directory.value.clone());
    match spec.simulated {
        true => vacancy,
        false => vacancy.remembering(me.data.join("nodes").join(me.name.as_str()).join("idle.json")),
    }
}

/// This process' own node, ready for the agent.
pub fn own(
    me: &Me,
    kind: NodeKind,
    incarnation: Incarnation,
    spec: NodeSpec,
    executor: Arc<dyn Execute>,
) -> NodeRegistration {
    let registration = Registration { node: me.name.clone(), kind, incarnation, spec: Arc::new(spec) };
    NodeRegistration { registration, executor }
}

/// The GPUs of this process' own node that are real, to be watched for faults.
pub fn watched(me: &Me, incarnation: Incarnation, spec: &NodeSpec) -> (NodeStart, Vec<Arc<str>>) {
    let real = spec.devices.iter().filter(|device| !spec.simulated && device.kind == DeviceKind::Gpu);
    (NodeStart { node: me.name.clone(), incarnation }, real.map(|device| device.uuid.clone()).collect())
}

/// Opens executors for nodes that this member plays.
pub fn opener(
    settings: &Settings,
    data: &Path,
    here: &Here,
    store: Option<Store>,
    trust: Option<Trust>,
) -> OpenExecutor {
    let (settings, data, here) = (settings.clone(), data.to_owned(), here.clone());
    Arc::new(move |name| {
        let vacancy = Vacancy::new(played_devices(&data, name), settings.device_wait.value, None, None);
        let config = executor_config(&settings, &data, &here, name, store.clone(), trust.as_ref(), vacancy);
        let executor = Executor::open(config)?;
        Ok(Arc::new(executor) as Arc<dyn Execute>)
    })
}

/// Registers the nodes of `GPU_NODES` that are not this process' own; the player takes it from there.
pub async fn register_played(settings: &Settings, me: &Me, replica: &Replica, incarnation: Incarnation) -> Result<()> {
    let GpuNodes::Played(nodes) = &settings.gpu_nodes.value else { return Ok(()) };
    for node in nodes.iter().filter(|node| node.name != me.name) {
        let mut tries = 0;
        loop {
            tries += 1;
            let reply = register_one(settings, me, replica, incarnation, node).await?;
            match reply.result {
                // Another member of this host chose the same ports at the same moment.
                Err(refusal) if refusal.field.as_deref() == Some("ports") && tries < PORT_TRIES => {
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                Err(refusal) => {
                    tracing::warn!(node = %node.name, %refusal, "GPU_NODES: the group refused this node");
                    break;
                }
                Ok(_) => break,
            }
        }
    }
    Ok(())
}

async fn register_one(
    settings: &Settings,
    me: &Me,
    replica: &Replica,
    incarnation: Incarnation,
    node: &PlayedNode,
) -> Result<Reply> {
    let state = replica.applied().state;
    let ports = played::next_ports(&state, &node.name, &me.host, range(settings));
    drop(state);
    let sharing = node.sharing.or(settings.gpu_sharing.value);
    let (gpus, device_type, numa_nodes) = (Some(node.count), node.device_type.clone(), node.numa_nodes);
    let said = Played { gpus, device_type, sharing, numa_nodes, ..Played::default() };
    let spec = placed(settings, said.spec(&node.name, &me.host, ports));
    let kind = NodeKind::Played(me.id);
    let intent = Intent::Register { name: node.name.clone(), kind, incarnation, spec: Arc::new(spec) };
    Ok(replica.submit(intent, Instant::now() + REGISTER).await?)
}
