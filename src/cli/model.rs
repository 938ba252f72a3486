//! `nf model`: publishes a directory as a version, and pulls one; signs files and
//! verifies signatures; approves versions. It works on the store and on files directly,
//! where members read the same store, and asks the group about approvals alone.

mod approve;
mod prefetch;
mod sign;
mod verify;

pub use sign::private_keys;
pub use verify::told as told_refusal;

use super::exit::{Exit, fail};
use super::output;
use super::{Global, say};
use crate::config::{Flags, Settings, Sources};
use crate::daemon::artefact_key;
use crate::models::{self, Container, Draft, FileName, Image, Launch, Manifest, Process, Store};
use crate::sealed;
use clap::{Args, Subcommand};
use nf_core::id::{Label, ModelId, TenantId, VersionId};
use nf_core::reason::Reason;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Model {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Publish the files of a directory as a model version
    #[command(
        after_help = "Examples:\n  nf model publish ./magika --model magika --version v1 --store file:///srv/models\n  nf model publish ./m --model m --version v2 --store file:///srv/models --runtime runtime.json\n  nf model publish ./llama --model llama-8b --version v1 --store file:///srv/models --profile vllm"
    )]
    Publish(Publish),
    /// Fetch a version, check every byte, and print where it is
    #[command(
        after_help = "Examples:\n  nf model pull magika@v1 --store file:///srv/models -o json\n  nf model pull magika@v1 --store file:///srv/models --to ./magika"
    )]
    Pull(Pull),
    /// Verify an artefact's signature, without a cluster
    #[command(
        after_help = "Examples:\n  nf model verify model.safetensors --signature model.safetensors.sig --key cosign.pub\n  nf model verify ./magika --signature magika.sig --key signing.pub.pem --tenant demo --model magika --model-version v1 -o json\n\nExit: 0 verified, 6 refused (the text begins with the reason), 2 for a key or root that cannot be used."
    )]
    Verify(verify::Verify),
    /// Approve a version for production, for a limited time
    #[command(
        after_help = "Examples:\n  nf model approve magika@v1 --tenant demo --store file:///srv/models\n  nf model approve magika@v1 --tenant demo --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --ttl 4h"
    )]
    Approve(approve::Approve),
    /// Revoke an approval: what runs by it is drained and stopped, and nothing new starts
    #[command(
        after_help = "Examples:\n  nf model revoke magika@v1 --tenant demo\n  nf model revoke magika@v1 --tenant demo -o json"
    )]
    Revoke(approve::Revoke),
    /// Release a version from quarantine, once you have checked what the store holds
    #[command(
        after_help = "Examples:\n  nf model release magika@v1 --tenant demo --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n  nf model release magika@v1 --tenant demo --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 -o json"
    )]
    Release(approve::Release),
    /// Bring a version's files to nodes and keep them there, verified; nothing runs
    #[command(
        after_help = "Examples:\n  nf model prefetch magika@v1 --tenant demo --wait\n  nf model prefetch magika@v1 --tenant demo --node gpu-1 --node gpu-2 -o json\n\nEach node is a job of its own: RUNTIME prefetch in the list of jobs, Running once the files are there. Stopping it lets the\ncache evict them."
    )]
    Prefetch(prefetch::Prefetch),
    /// Return a model's jobs to the version that they ran before; its files are verified again
    #[command(
        after_help = "Examples:\n  nf model rollback magika --tenant demo\n  nf model rollback magika --tenant demo --window 1m -o json"
    )]
    Rollback(super::rollout::Rollback),
    /// Sign a deploy statement: these files, run as the manifest says, are this version, for this tenant
    #[command(
        after_help = "Examples:\n  nf model sign ./magika --tenant demo --model magika --model-version v1 --store file:///srv/models --key keys/ecdsa-p256.key.pem --key keys/ml-dsa-65.key.pem\n  nf model sign ./m --tenant demo --model m --model-version v2 --min-version v2 --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --key keys/ecdsa-p256.key.pem --key keys/ml-dsa-65.key.pem --out m.sig\n\nPublish first: what is signed is the manifest in the store, too. --sha256 is what nf model publish printed, so that nobody\nchanges the store in between."
    )]
    Sign(sign::Sign),
    /// Make an ECDSA P-256 and an ML-DSA-65 key for signing
    #[command(after_help = "Examples:\n  nf model keygen keys\n  nf model keygen keys -o json")]
    Keygen(sign::Keygen),
}

#[derive(Debug, Args)]
struct Publish {
    /// The directory with the files
    dir: PathBuf,
    #[arg(long)]
    model: ModelId,
    #[arg(long)]
    version: VersionId,
    /// The store: file:// and a directory, or s3://bucket/path and its like
    #[arg(long, env = "MODEL_STORE_URL")]
    store: String,
    /// How it is run, as JSON ({"argv":[…],"ready":{…}}, or {"image":…,"program":{"argv":[…]}} in a container);
    /// simulated when absent
    #[arg(long, value_name = "FILE")]
    runtime: Option<PathBuf>,
    /// How it is run, by the name of a model server: vllm, sglang, tensorrt-llm, triton, tgi, llama-cpp, ollama, onnx-example
    #[arg(long, value_name = "NAME", conflicts_with = "runtime")]
    profile: Option<String>,
    /// The profile's server in a container of this image, NAME@sha256:DIGEST or NAME:TAG; {port} is 8000 there
    #[arg(long, value_name = "IMAGE", requires = "profile", value_parser = Image::new)]
    image: Option<Image>,
    /// Which file is the model; the largest when absent
    #[arg(long, value_name = "PATH")]
    main: Option<String>,
    /// What the files are, e.g. onnx
    #[arg(long, default_value = "onnx")]
    format: String,
    /// The version's latency budget in milliseconds
    #[arg(long)]
    latency_ms: Option<u32>,
    /// The version's memory budget, e.g. 2GiB
    #[arg(long, value_parser = nf_core::resources::parse_bytes)]
    memory: Option<u64>,
    /// What kind of data the files hold, e.g. personal or personal-health, which need the tenant's consent; may be repeated
    #[arg(long, value_name = "CLASS")]
    data_class: Vec<Label>,
    /// Encrypt the files to this public key (artefact.pub of nf cluster init): nodes that have the private one open them
    #[arg(long, value_name = "FILE")]
    encrypt_to: Option<PathBuf>,
    /// A signature to keep with the version: nf model sign's, or one of its manifest.json (cosign)
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// The tenant that the signature is for; every tenant when absent, which counts by keys of every tenant (_all.pem of NF_TENANT_KEYS)
    #[arg(long, requires = "signature")]
    tenant: Option<TenantId>,
}

#[derive(Debug, Args)]
struct Pull {
    /// MODEL@VERSION
    version: String,
    /// The store: file:// and a directory, or s3://bucket/path and its like
    #[arg(long, env = "MODEL_STORE_URL")]
    store: String,
    /// Where to put it; MODEL-VERSION in the current directory when absent
    #[arg(long)]
    to: Option<PathBuf>,
}

impl Model {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            ModelCommand::Publish(publish) => publish.run(global).await,
            ModelCommand::Pull(pull) => pull.run(global).await,
            ModelCommand::Verify(verify) => verify.run(global),
            ModelCommand::Approve(approve) => approve.run(global).await,
            ModelCommand::Revoke(revoke) => revoke.run(global).await,
            ModelCommand::Release(release) => release.run(global).await,
            ModelCommand::Prefetch(prefetch) => prefetch.run(global).await,
            ModelCommand::Rollback(rollback) => rollback.run(global).await,
            ModelCommand::Sign(sign) => sign.run(global).await,
            ModelCommand::Keygen(keygen) => keygen.run(global),
        }
    }
}

/// The store of that URL, by links as the settings of this machine say.
fn open(url: &str) -> anyhow::Result<Store> {
    let settings = Settings::load(&Sources::process(&Flags::default()))?;
    let store = Store::open(url, &settings.store_link()).map_err(told)?;
    Ok(store.with_key(artefact_key(&settings)?))
}

/// The manifest of a version that the store must have.
async fn published(store: &Store, model: &ModelId, version: &VersionId) -> anyhow::Result<Manifest> {
    let absent = || fail(Exit::NotFound, format!("the store has no version {version} of model {model}"));
    store.resolve(model, version).await.map_err(told)?.ok_or_else(absent)
}

/// A store's error with the exit of its reason.
fn told(error: models::Error) -> anyhow::Error {
    let exit = match error.reason() {
        Reason::ModelNotFound => Exit::NotFound,
        Reason::Conflict => Exit::Conflict,
        Reason::ConfigInvalid | Reason::StoreUrlForbidden => Exit::Usage,
        Reason::ArtifactMismatch => Exit::Denied,
        Reason::StoreUnavailable => Exit::Unreachable,
        _ => Exit::Failed,
    };
    fail(exit, format!("{}: {error}", error.reason()))
}

impl Publish {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        let store = open(&self.store)?;
        let runtime = match (&self.runtime, &self.profile) {
            (None, None) => Launch::Simulated {},
            (None, Some(name)) => {
                let known = || models::profiles().collect::<Vec<_>>().join(", ");
                let unknown = || fail(Exit::Usage, format!("--profile {name}: not known; one of {}", known()));
                let program = models::profile(name).ok_or_else(unknown)?.clone();
                match self.image {
                    Some(image) => Launch::Docker(Container { image, port: Container::default_port(), program }),
                    None => Launch::Process(program),
                }
            }
            (Some(path), _) => {
                let bad = |e: &dyn std::fmt::Display| fail(Exit::Usage, format!("{}: {e}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
                let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(&e))?;
                match value.get("image") {
                    Some(_) => Launch::Docker(serde_json::from_value::<Container>(value).map_err(|e| bad(&e))?),
                    None => Launch::Process(serde_json::from_str::<Process>(&text).map_err(|e| bad(&e))?),
                }
            }
        };
        let main = self
            .main
            .as_deref()
            .map(FileName::new)
            .transpose()
            .map_err(|e| fail(Exit::Usage, format!("--main: {e}")))?;
        let encrypt_to = self.encrypt_to.as_deref().map(sealed::read_public).transpose();
        let encrypt_to = encrypt_to.map_err(|e| fail(Exit::Usage, format!("--encrypt-to: {e}")))?;
        let draft = Draft {
            encrypt_to,
            model_id: self.model.clone(),
            version: self.version.clone(),
            format: self.format,
            runtime,
            main,
            latency_ms: self.latency_ms,
            memory: self.memory,
            data_classes: self.data_class,
        };
        let manifest = models::publish(&store, &self.dir, draft).await.map_err(told)?;
        if let Some(path) = &self.signature {
            let signature = verify::small(path)?;
            let (of, version, tenant) = (self.model.clone(), self.version.clone(), self.tenant.clone());
            let sign = move || store.sign_blocking(&of, &version, tenant.as_ref(), &signature);
            let kept = tokio::task::spawn_blocking(sign).await?.map_err(told)?;
            say(format!("its signature is kept in {kept}"));
        }
        let (model, version, digest) = (&self.model, &self.version, manifest.digest().to_string());
        let value = json!({ "model_id": model, "version": version, "sha256": digest, "files": manifest.files.len() });
        let people = || format!("{model}@{version} published, sha256 {digest}\n");
        output::put(&output::object(global.style(), &value, &format!("{model}@{version}"), people)?);
        say(format!("run it with: nf run {model}@{version} --tenant demo --gpus 1 --wait"));
        Ok(())
    }
}

impl Pull {
    async fn run(self, global: &Global) -> anyhow::Result<()> {
        let (model, version) = approve::split(&self.version)?;
        let store = open(&self.store)?;
        let to = self.to.unwrap_or_else(|| PathBuf::from(format!("{model}-{version}")));
        let pulled = models::pull(&store, &model, &version, &to).await.map_err(told)?;
        let value = serde_json::to_value(&pulled)?;
        let people = || format!("{model}@{version} is in {}, sha256 {}\n", pulled.path.display(), pulled.sha256);
        output::put(&output::object(global.style(), &value, &format!("{model}@{version}"), people)?);
        Ok(())
    }
}
