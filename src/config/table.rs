//! The table of all settings: one row names the field, the environment variable,
//! the flag, the default and the meaning. Struct, flags, `nf config view` and the
//! test of the example file are made of it, so they can't disagree. It does not
//! know which values fit together.

use super::parse;
use super::value::{Raw, Setting};
use crate::outgoing::Allow;
use crate::pqc;
use crate::secret::Secret;
use nf_core::id::{DeviceType, Label};
use nf_core::sharing::Sharing;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

/// What the tools need to know of one setting.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Field of [`Settings`] and key in the config file.
    pub key: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Default as text; "" means not set.
    pub default: &'static str,
    /// Never printed.
    pub secret: bool,
    /// Understood, and of no effect yet: whoever sets it is told so.
    pub unused: bool,
    pub doc: &'static str,
}

impl Row {
    /// The flag's long name.
    pub fn flag(&self) -> &'static str {
        static NAMES: LazyLock<Vec<String>> =
            LazyLock::new(|| TABLE.iter().map(|row| row.key.replace('_', "-")).collect());
        let at = TABLE.iter().position(|row| row.key == self.key).expect("rows exist in the table alone");
        &NAMES[at]
    }
}

macro_rules! settings {
    ($( $(#[$mark:ident])* $key:ident: $type:ty = $default:literal, $env:literal, $parse:path, $doc:literal; )+) => {
        /// Every setting with its origin. Other modules are given plain values, never this.
        #[derive(Clone, Debug)]
        pub struct Settings { $(#[doc = $doc] pub $key: Setting<$type>,)+ }

        /// All settings, in the order in which people read them.
        pub const TABLE: &[Row] = &[$(Row {
            key: stringify!($key),
            env: $env,
            default: $default,
            secret: settings!(@secret $($mark)*),
            unused: settings!(@unused $($mark)*),
            doc: $doc,
        },)+];

        impl Settings {
            /// Parses each raw value; the first that can't be parsed is the error.
            pub(super) fn parse(raw: impl Fn(&'static Row) -> Raw) -> Result<Self, super::Error> {
                let mut rows = TABLE.iter();
                $(let $key = raw(rows.next().expect("one row per field")).parse($parse)?;)+
                Ok(Self { $($key,)+ })
            }

            /// Each row with its value as text and its origin.
            pub(super) fn shown(&self) -> Vec<(&'static Row, &str, &super::Origin)> {
                let values = [$((self.$key.text.as_str(), &self.$key.origin),)+];
                TABLE.iter().zip(values).map(|(row, (text, origin))| (row, text, origin)).collect()
            }
        }
    };
    (@secret secret $($rest:ident)*) => { true };
    (@secret $other:ident $($rest:ident)*) => { settings!(@secret $($rest)*) };
    (@secret) => { false };
    (@unused unused $($rest:ident)*) => { true };
    (@unused $other:ident $($rest:ident)*) => { settings!(@unused $($rest)*) };
    (@unused) => { false };
}

settings! {
    scheduler_port: u16 = "8600", "SCHEDULER_PORT", parse::port,
        "public port: REST and gRPC";
    listen: Option<SocketAddr> = "", "NF_LISTEN", parse::address,
        "public address and port; wins over scheduler_port, which is on 127.0.0.1";
    peer_listen: Option<SocketAddr> = "", "NF_PEER_LISTEN", parse::address,
        "address for members and workers, mutual TLS but in PQC_MODE=off; 127.0.0.1 and the public port + 1 when not set";
    public_cert: Option<PathBuf> = "", "NF_PUBLIC_CERT", parse::path,
        "certificate chain (PEM) of the public port, which then speaks https alone; followed while it runs";
    public_key: Option<PathBuf> = "", "NF_PUBLIC_KEY", parse::path,
        "its key (PEM)";
    advertise: Option<String> = "", "NF_ADVERTISE", parse::host,
        "host name or address at which other machines reach this one; the listening address when not set";
    node_name: Option<String> = "", "NF_NODE_NAME", parse::node_name,
        "this process' name in the group and in its certificate (a DNS label); node-1 when alone";
    cluster: String = "neural-fabric", "NF_CLUSTER", parse::cluster,
        "name of the group (a DNS label)";
    role: parse::Role = "member", "NF_ROLE", parse::role,
        "member (votes, serves the API) or worker (agent without a vote)";
    members: Vec<parse::Member> = "", "NF_MEMBERS", parse::members,
        "first members of a new group, the same list on each: name=host:peer-port, comma separated";
    member_id: Option<u64> = "", "NF_MEMBER_ID", parse::member_id,
        "this member's number, never used twice; the place in members, or the next free one with join";
    join: Vec<String> = "", "NF_JOIN", parse::list,
        "public addresses of members of the group that this process joins, comma separated";
    ca: Option<PathBuf> = "", "NF_CA", parse::path,
        "authorities (PEM) that vouch for https addresses of the group that it joins; the system's when not set";
    neural_fabric_mode: Option<parse::Mode> = "", "NEURAL_FABRIC_MODE", parse::mode,
        "production or simulation; simulation when a setting that production needs is missing";
    simulation_mode: Option<bool> = "", "SIMULATION_MODE", parse::switch,
        "true or false: says the same for this one process, and wins";
    data_dir: Option<PathBuf> = "", "NF_DATA_DIR", parse::path,
        "where this process keeps its data; $XDG_DATA_HOME/neural-fabric/NODE-PORT when not set";
    run_dir: PathBuf = "/tmp/neural_runs", "NF_RUN_DIR", parse::dir,
        "where simulated replicas write their run files";
    port_range: (u16, u16) = "31000-31999", "NF_PORT_RANGE", parse::ports,
        "ports that replicas on this node may be given";
    replica_users: Option<(u32, u32)> = "1900000000-1900000999", "NF_REPLICA_USERS", parse::users,
        "unused user ids, one for each replica where nf may switch users; off: all run as nf's own user, which production has to ask for";
    gpu_nodes: parse::GpuNodes = "auto", "GPU_NODES", parse::gpu_nodes,
        "auto (ask the driver), or name[:device_type[:count[:sharing[:numa_nodes]]]], comma separated: nodes played in simulation; types that begin with TPU are TPUs";
    gpu_sharing: Option<Sharing> = "auto", "NF_GPU_SHARING", parse::gpu_sharing,
        "what keeps replicas to their parts of this machine's GPUs: auto (mps where its control daemon is found), none or mps";
    mps_pipe_directory: PathBuf = "/tmp/nvidia-mps", "NF_MPS_PIPE_DIRECTORY", parse::dir,
        "where the control daemon of NVIDIA's Multi-Process Service has its pipes";
    container_engine: parse::Engine = "auto", "NF_CONTAINER_ENGINE", parse::engine,
        "socket of Docker or Podman for containers on this node; auto (DOCKER_HOST, then the usual places) or off";
    region: Option<Label> = "", "NF_REGION", parse::place,
        "where this machine is, for constraints and for moving leadership";
    zone: Option<Label> = "", "NF_ZONE", parse::place,
        "part of the region that fails as one";
    rack: Option<Label> = "", "NF_RACK", parse::place,
        "rack of this machine";
    labels: BTreeMap<Label, Label> = "", "NF_LABELS", parse::labels,
        "what constraints can ask of this machine: key=value, comma separated";
    cost_per_hour: BTreeMap<DeviceType, u64> = "", "NF_COST_PER_HOUR", parse::prices,
        "price of one device of a type per hour: device_type=price, comma separated";
    max_tenant_gpus: u64 = "2", "MAX_TENANT_GPUs", parse::gpu_milli,
        "GPU quota of a tenant with none of its own; read when the group is formed";
    model_store_url: Option<String> = "", "MODEL_STORE_URL", parse::store,
        "where model versions come from: file://, http(s)://, s3://, gs:// or az://; a directory of its own in simulation";
    store_hosts: Allow = "", "NF_STORE_HOSTS", Allow::parse,
        "hosts, addresses and networks where the model store may be although they are not public, comma separated";
    store_ca: Option<PathBuf> = "", "NF_STORE_CA", parse::path,
        "authorities (PEM) that vouch for the model store's server; the system's when not set";
    model_cache: u64 = "200GB", "NF_MODEL_CACHE", nf_core::resources::parse_bytes,
        "most bytes of models that a node keeps; what has not been used for the longest goes first";
    artefact_key: Option<PathBuf> = "", "NF_ARTEFACT_KEY", parse::path,
        "the group's private key for model files that are encrypted in the store; nf cluster init makes it";
    cosign_key_path: Option<PathBuf> = "", "COSIGN_KEY_PATH", parse::path,
        "public keys that sign models, comma separated; with it every published version needs a signature";
    tenant_keys: Option<PathBuf> = "", "NF_TENANT_KEYS", parse::path,
        "directory with TENANT.pem (keys) and TENANT.roots.pem (authorities) of those who sign models for a tenant alone; _all for every tenant";
    signers: Option<PathBuf> = "", "NF_SIGNERS", parse::path,
        "who owns the keys that sign models (TOML: [[signer]] with subject, keys, perhaps issuer): nobody approves what they signed, and what a key signs that it lacks does not run in production";
    consent_keys: Option<PathBuf> = "", "NF_CONSENT_KEYS", parse::path,
        "directory with TENANT.pem for each tenant: public keys that sign its consents to keep personal data on nodes";
    vault_addr: Option<String> = "", "VAULT_ADDR", parse::url,
        "Vault or OpenBao that says whose signatures of manifests count (vault:vN:…)";
    #[secret] vault_token: Option<Secret> = "", "VAULT_TOKEN", parse::secret,
        "token for it; may verify with the key and read its public half, and nothing else";
    vault_token_file: Option<PathBuf> = "", "NF_VAULT_TOKEN_FILE", parse::path,
        "file with that token, read anew each time, such as Vault's agent keeps fresh; wins over vault_token";
    vault_key: String = "nf-models", "NF_VAULT_KEY", parse::word,
        "name of the transit key that signs manifests";
    vault_mount: String = "transit", "NF_VAULT_MOUNT", parse::word,
        "where Vault's transit engine is mounted";
    vault_ca: Option<PathBuf> = "", "VAULT_CACERT", parse::path,
        "authorities (PEM) that vouch for Vault's server; the system's when not set";
    jwks: Option<String> = "", "NF_JWKS", parse::text,
        "public keys that sign tokens (JWKS): a file, watched, or an https URL; with it every caller says who it is";
    jwks_ca: Option<PathBuf> = "", "NF_JWKS_CA", parse::path,
        "authorities (PEM) of the server of an https jwks; no other ones count";
    token_issuer: Option<String> = "", "NF_TOKEN_ISSUER", parse::text,
        "the only issuer whose tokens count; any that holds a key of jwks when not set";
    #[secret] token: Option<Secret> = "", "NF_TOKEN", parse::secret,
        "token with which this process speaks to the group that it joins";
    tls_dir: Option<PathBuf> = "", "NF_TLS_DIR", parse::path,
        "ca.pem, member.pem and member.key of this process; made in the data directory when it is alone";
    node_cert_life: Duration = "24h", "NF_NODE_CERT_LIFE", parse::duration,
        "how long a worker's certificate is valid; it is renewed after two thirds of that";
    pqc_mode: pqc::Mode = "hybrid", "PQC_MODE", pqc::Mode::parse,
        "key exchange, the same on all members and workers: hybrid, classical, or off (plain text on one machine, in simulation)";
    pqc_strict: Option<bool> = "", "PQC_STRICT", parse::switch,
        "require hybrid key exchange of callers, stores, Vault and issuers, too, and both halves of every signature";
    prom_url: Option<String> = "", "PROM_URL", parse::url,
        "Prometheus to read services' queue depth and latency from; what agents read from the replicas when not set";
    otlp_endpoint: Option<String> = "", "OTEL_EXPORTER_OTLP_ENDPOINT", parse::url,
        "OpenTelemetry collector that gets traces (OTLP over HTTP); no traces are made when not set";
    #[secret] #[unused] postgres_dsn: Option<Secret> = "", "POSTGRES_DSN", parse::secret,
        "mirror for SQL users; not used by this build";
    #[secret] #[unused] redis_url: Option<Secret> = "", "REDIS_URL", parse::secret_url,
        "publishes the routing table and an event stream; not used by this build";
    #[unused] kubeconfig: Option<PathBuf> = "", "KUBECONFIG", parse::path,
        "makes the Kubernetes runtime available, never chooses it; not used by this build";
    #[secret] #[unused] openai_key: Option<Secret> = "", "OPENAI_KEY", parse::secret,
        "lets nf explain answer in prose; not used by this build";
    neural_fabric_url: Option<String> = "", "NEURAL_FABRIC_URL", parse::urls,
        "for clients: the members' public addresses, comma separated; NF_ADDR is the same and wins";
    heartbeat: Duration = "50ms", "NF_HEARTBEAT", parse::duration,
        "between heartbeats of the leader";
    election_min: Duration = "250ms", "NF_ELECTION_MIN", parse::duration,
        "shortest random part of the wait before a follower campaigns";
    election_max: Duration = "450ms", "NF_ELECTION_MAX", parse::duration,
        "longest random part of that wait; also the leader's lease";
    beat: Duration = "1s", "NF_BEAT", parse::duration,
        "between beats of a node";
    suspect_after: Duration = "5s", "NF_SUSPECT_AFTER", parse::duration,
        "silence after which a node is Suspect";
    unknown_after: Duration = "15s", "NF_UNKNOWN_AFTER", parse::duration,
        "silence after which a node gets no new replicas";
    lease: Duration = "45s", "NF_LEASE", parse::duration,
        "agent lease, from the sending of a beat";
    kill_budget: Duration = "5s", "NF_KILL_BUDGET", parse::duration,
        "how long before a lease ends the guard kills exclusive replicas; they are told to stop as long before that";
    down_after: Duration = "60s", "NF_DOWN_AFTER", parse::duration,
        "silence after which a node is given up and its replicas start elsewhere";
    scale_every: Duration = "5s", "NF_SCALE_EVERY", parse::duration,
        "how often the leader looks at the load of services that scale";
    scale_settle: Duration = "60s", "NF_SCALE_SETTLE", parse::duration,
        "how long a new leader has to know a service before it takes a replica away; twelve looks at least";
    defrag_every: Option<Duration> = "", "NF_DEFRAG_EVERY", parse::span,
        "how often the leader moves the few replicas that win most idle GPU, such as 10m; never when not set";
    network_fault_percent: u32 = "50", "NF_NETWORK_FAULT_PERCENT", parse::percent,
        "percentage of the nodes, and at least two, whose silence at once is taken for a network fault: they are not given up yet";
    network_fault_down_after: Duration = "10m", "NF_NETWORK_FAULT_DOWN_AFTER", parse::duration,
        "silence after which nodes are given up in a network fault, too; nf node down does it at once";
    stop_grace: Duration = "10s", "NF_STOP_GRACE", parse::duration,
        "how long a replica may drain after TERM before KILL";
    calls_grace: Duration = "120s", "NF_CALLS_GRACE", parse::duration,
        "how long a member that is asked to end goes on with requests to models that are under way";
    calls_hold: Duration = "60s", "NF_CALLS_HOLD", parse::duration,
        "how long a request to a model waits for a replica, one that is only being started included";
    calls_held: u32 = "256", "NF_CALLS_HELD", parse::held,
        "requests for one model that wait like that at one member; more are told to come again";
    calls_of_tenant: u32 = "2048", "NF_CALLS_OF_TENANT", parse::held,
        "requests of one tenant at one member at a time, waiting or with a replica; more are told to come again";
    device_wait: Duration = "30s", "NF_DEVICE_WAIT", parse::duration,
        "how long a replica waits for its devices to be seen free before it is started elsewhere, with an alarm";
    kill_after: Duration = "5s", "NF_KILL_AFTER", parse::duration,
        "how long a process may survive KILL before the log says so, and how often then";
    log: Option<String> = "", "NF_LOG", parse::text,
        "what is logged, e.g. debug or warn,neural_fabric::raft=debug; our own words and others' warnings when not set";
}
