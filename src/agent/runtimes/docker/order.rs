//! What the engine is asked for: one container, as confined as a server of models can be.
//! A pure function of the launch; it speaks to nobody.

use crate::agent::engine::{Facts, Giving};
use crate::agent::numa::Cpus;
use crate::agent::record::Record;
use crate::agent::runtimes::cgroup::MAX_TASKS;
use crate::agent::runtimes::mps;
use crate::agent::runtimes::processes::KEY as KEY_VARIABLE;
use crate::models::{Container, Manifest, Slots};
use crate::telemetry::traces;
use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use nf_core::played::is_played;
use nf_core::reconcile::Want;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Whose data directory it belongs to: a random number that is kept there.
pub(super) const OWNER: &str = "io.neural-fabric.owner";
pub(super) const KEY: &str = "io.neural-fabric.key";
pub(super) const JOB: &str = "io.neural-fabric.job";
pub(super) const REPLICA: &str = "io.neural-fabric.replica";
pub(super) const GENERATION: &str = "io.neural-fabric.generation";
pub(super) const GROUP: &str = "io.neural-fabric.group";
pub(super) const NODE: &str = "io.neural-fabric.node";

/// Nobody's on any machine; the model's files are readable to all.
const USER: &str = "65532:65532";
/// Where it may write, and its home.
const SCRATCH: &str = "/tmp";
/// Memory-backed, hence counted as its memory. Servers compile there what they then load, so it may be executed. Its
/// owner is the program: runc gives it the mode of the image's own directory, 0755 where the image has none.
const SCRATCH_OPTIONS: &str = "rw,exec,nosuid,nodev,mode=1777,uid=65532,gid=65532,size=1g";
/// Bytes that the processes of one server may share, counted as its memory.
const SHARED: i64 = 1 << 30;
/// Docker takes no less: a hundredth of a CPU.
const LEAST_NANO_CPUS: i64 = 10_000_000;
/// What the engine keeps of its output; the agent has a log of its own.
const ENGINE_LOG: [(&str, &str); 2] = [("max-size", "8m"), ("max-file", "2")];
/// The longest name.
const MAX_NAME: usize = 200;

/// What a container is made of.
pub(super) struct Order<'a> {
    pub want: &'a Want,
    pub record: &'a Record,
    pub manifest: &'a Manifest,
    pub container: &'a Container,
    pub facts: &'a Facts,
    /// The image's id: a tag may move while we look.
    pub image: &'a str,
    /// The verified files.
    pub model: &'a Path,
    /// Where its port is published on this machine.
    pub address: IpAddr,
    pub owner: &'a str,
    pub group: &'a str,
    /// Those of the Multi-Process Service.
    pub pipes: &'a Path,
    /// The trace that its program may go on with.
    pub traceparent: Option<String>,
}

/// For people who look at the engine; what counts are the labels, and the key in it that no two share.
pub(super) fn name(record: &Record) -> String {
    let launch = &record.launch;
    let people = format!("nf-{}-{}.{}.{}", record.node, launch.request, launch.id.replica, launch.generation);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let people: String = people.chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_NAME).collect();
    format!("{people}-{}", record.key)
}

impl Order<'_> {
    /// The whole order, bound to these CPUs. Its memory is not bound: by first touch it comes from beside them, and who
    /// needs more than is there would end for it.
    ///
    /// # Errors
    /// What this container can't be given, for people.
    pub(super) fn body(&self, cpus: Option<&Cpus>) -> Result<ContainerCreateBody, String> {
        let slots = Slots {
            host: if self.address.is_ipv6() { "::" } else { "0.0.0.0" },
            port: self.want.port.map(|_| self.container.port),
            dir: Path::new(Container::MODEL),
            python: "python3",
            part: self.want.part,
        };
        let argv = self.manifest.argv(&self.container.program, &slots)?;
        let inside = format!("{}/tcp", self.container.port);
        Ok(ContainerCreateBody {
            image: Some(self.image.to_owned()),
            entrypoint: Some(argv),
            env: Some(self.environment(slots.host)),
            user: Some(USER.into()),
            working_dir: Some(SCRATCH.into()),
            labels: Some(self.labels()),
            // Whether it is well is asked by us, of the manifest's paths.
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
            exposed_ports: self.want.port.map(|_| vec![inside.clone()]),
            host_config: Some(HostConfig { cpuset_cpus: cpus.map(Cpus::to_string), ..self.confinement(inside)? }),
            ..ContainerCreateBody::default()
        })
    }

    fn confinement(&self, inside: String) -> Result<HostConfig, String> {
        let ask = &self.want.spec.held_to();
        let bytes = i64::try_from(ask.memory).ok().filter(|memory| *memory > 0);
        let nanos = ask.cpu_milli.checked_mul(1_000_000).and_then(|nanos| i64::try_from(nanos).ok());
        let published = self.want.port.map(|port| {
            let here = PortBinding { host_ip: Some(self.address.to_string()), host_port: Some(port.to_string()) };
            HashMap::from([(inside, Some(vec![here]))])
        });
        let model = Mount {
            typ: Some(MountType::BIND),
            source: Some(self.model.to_string_lossy().into_owned()),
            target: Some(Container::MODEL.into()),
            read_only: Some(true),
            ..Mount::default()
        };
        // A client speaks to the service through its pipes and through memory that the machine shares.
        let by_mps = mps::keeps(self.want);
        let pipes = self.pipes.to_string_lossy().into_owned();
        let pipes = by_mps.then(|| Mount {
            typ: Some(MountType::BIND),
            source: Some(pipes.clone()),
            target: Some(pipes),
            read_only: Some(false),
            ..Mount::default()
        });
        let core = ResourcesUlimits { name: Some("core".into()), soft: Some(0), hard: Some(0) };
        let log = ENGINE_LOG.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Ok(HostConfig {
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            init: self.facts.init.then_some(true),
            tmpfs: Some(HashMap::from([(SCRATCH.into(), SCRATCH_OPTIONS.into())])),
            shm_size: (!by_mps).then_some(SHARED),
            ipc_mode: by_mps.then(|| "host".into()),
            mounts: Some([model].into_iter().chain(pipes).collect()),
            memory: bytes,
            // As much as without swap: what is promised is memory.
            memory_swap: bytes,
            nano_cpus: nanos.filter(|nanos| *nanos > 0).map(|nanos| nanos.max(LEAST_NANO_CPUS)),
            pids_limit: Some(i64::from(MAX_TASKS)),
            // Open files are as many as the engine allows: it may not have the right to allow more.
            ulimits: Some(vec![core]),
            port_bindings: published,
            device_requests: devices(&self.want.uuids, self.facts.giving)?,
            // Whether it runs again is the group's to say.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..RestartPolicy::default() }),
            auto_remove: Some(false),
            log_config: Some(HostConfigLogConfig { typ: Some("json-file".into()), config: Some(log) }),
            ..HostConfig::default()
        })
    }

    /// Beside what the image itself sets. Nothing of the agent's own.
    fn environment(&self, host: &str) -> Vec<String> {
        let (want, manifest) = (self.want, self.manifest);
        let mut env: Vec<(&str, String)> = self.container.program.env.iter().map(|(k, v)| (&**k, v.clone())).collect();
        env.extend([
            ("HOME", SCRATCH.to_owned()),
            ("TMPDIR", SCRATCH.to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            (KEY_VARIABLE, self.record.key.clone()),
            ("NF_MODEL", manifest.model_id.to_string()),
            ("NF_MODEL_VERSION", manifest.version.to_string()),
            ("NF_MODEL_DIR", Container::MODEL.to_owned()),
            ("NF_HOST", host.to_owned()),
            ("NF_RANK", self.record.launch.id.replica.to_string()),
            ("NF_SIZE", want.spec.replicas.to_string()),
            ("CUDA_VISIBLE_DEVICES", want.uuids.join(",")),
        ]);
        env.extend(mps::limits(want, self.pipes));
        if let Some(main) = manifest.main() {
            env.push(("NF_MODEL_SHA256", main.sha256.to_string()));
        }
        if want.port.is_some() {
            env.push(("NF_PORT", self.container.port.to_string()));
        }
        if let Some(ms) = want.spec.constraints.checkpoint_ms {
            env.push(("NF_CHECKPOINT_GRACE_MS", ms.to_string()));
        }
        if let Some(traceparent) = &self.traceparent {
            env.push((traces::VARIABLE, traceparent.clone()));
        }
        // An image that asks for all GPUs gets them from NVIDIA's runtime, unless told otherwise. With
        // the device request the engine itself says which.
        if self.facts.giving != Giving::Request || want.uuids.iter().all(|uuid| is_played(uuid)) {
            env.push(("NVIDIA_VISIBLE_DEVICES", "void".to_owned()));
        }
        env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    fn labels(&self) -> HashMap<String, String> {
        let launch = &self.record.launch;
        let labels = [
            (OWNER, self.owner.to_owned()),
            (KEY, self.record.key.clone()),
            (JOB, launch.id.job.0.to_string()),
            (REPLICA, launch.id.replica.to_string()),
            (GENERATION, launch.generation.0.to_string()),
            (GROUP, self.group.to_owned()),
            (NODE, self.record.node.to_string()),
            ("io.neural-fabric.request", launch.request.to_string()),
            ("io.neural-fabric.tenant", self.want.spec.tenant.to_string()),
        ];
        labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// The request for the devices that a replica holds. Those that are only played are asked of nobody.
fn devices(uuids: &[Arc<str>], giving: Giving) -> Result<Option<Vec<DeviceRequest>>, String> {
    let real: Vec<&str> = uuids.iter().map(|uuid| &**uuid).filter(|uuid| !is_played(uuid)).collect();
    if real.is_empty() {
        return Ok(None);
    }
    if let Some(other) = real.iter().find(|uuid| !uuid.starts_with("GPU-") && !uuid.starts_with("MIG-")) {
        return Err(format!("device {other} is no GPU of NVIDIA's, and containers are given no others"));
    }
    let request = match giving {
        Giving::Cdi => DeviceRequest {
            driver: Some("cdi".into()),
            device_ids: Some(real.iter().map(|uuid| format!("nvidia.com/gpu={uuid}")).collect()),
            ..DeviceRequest::default()
        },
        Giving::Request => DeviceRequest {
            driver: Some("nvidia".into()),
            device_ids: Some(real.iter().map(ToString::to_string).collect()),
            capabilities: Some(vec![["gpu", "compute", "utility"].map(String::from).to_vec()]),
            ..DeviceRequest::default()
        },
        Giving::Nothing => return Err("this engine does not give devices to containers: use Docker".into()),
    };
    Ok(Some(vec![request]))
}

#[cfg(test)]
mod tests;
