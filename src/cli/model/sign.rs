//! `nf model sign` and `nf model keygen`: a deploy statement over files and the manifest
//! that says how they run, and the keys for it. Private keys stay on this machine; members only ever see public ones.

use super::super::exit::{Exit, fail};
use super::super::{Global, output, say};
use super::verify::{artefact, small, told};
use crate::models::{Checksum, Manifest, Store};
use crate::security::signing::sign::{self, PrivateKey};
use crate::security::signing::{Artefact, Deploy, Kind, Listed, MANIFEST};
use clap::Args;
use nf_core::id::{ModelId, TenantId, VersionId};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Sign {
    /// The file or directory to sign
    artefact: PathBuf,
    /// Who may run it
    #[arg(long)]
    tenant: TenantId,
    #[arg(long)]
    model: ModelId,
    #[arg(long, value_name = "VERSION")]
    model_version: VersionId,
    /// From then on nothing older than this version may run
    #[arg(long, value_name = "VERSION")]
    min_version: Option<VersionId>,
    /// What the files are; as the store's manifest says when absent, or onnx
    #[arg(long)]
    format: Option<String>,
    /// The store with the published version: its manifest, which says what program runs, is signed too
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The manifest's SHA-256, as nf model publish printed it; must be the store's, where that is given too
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    sha256: Option<Checksum>,
    /// A private key (PKCS#8 PEM); give an ECDSA P-256 and an ML-DSA-65 one
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Where the signature goes; beside the version in the store when absent
    #[arg(long, value_name = "FILE", required_unless_present = "store")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Keygen {
    /// Where the keys go; nothing there is overwritten
    dir: PathBuf,
}

fn write(path: &Path, text: &str, mode: u32, new: bool) -> anyhow::Result<()> {
    let bad = |e: std::io::Error| fail(Exit::Failed, format!("{}: {e}", path.display()));
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    // A key that was lost cannot be made again, so keys never replace keys.
    let options = if new { options.create_new(true) } else { options.create(true).truncate(true) };
    let mut file = options.open(path).map_err(bad)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(bad)
}

/// Private keys from files of this machine.
pub fn private_keys(paths: &[PathBuf]) -> anyhow::Result<Vec<PrivateKey>> {
    let one = |path: &PathBuf| {
        let name = path.display().to_string();
        let text = String::from_utf8(small(path)?);
        let text = text.map_err(|_| fail(Exit::Usage, format!("ConfigInvalid: {name} is not PEM")))?;
        PrivateKey::from_pem(&name, &text).map_err(|refusal| told(&refusal))
    };
    paths.iter().map(one).collect()
}

fn digest(text: &str) -> Result<Checksum, String> {
    Checksum::parse(text).ok_or_else(|| "64 hex digits in lower case, as nf model publish printed them".into())
}

impl Sign {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let keys = private_keys(&self.key)?;
        let store = self.store.as_deref().map(super::open).transpose()?;
        let published = match &store {
            Some(store) => Some(super::published(store, &self.model, &self.model_version).await?),
            None => None,
        };
        let (files, pulled) = self.files()?;
        if let Some(published) = &published {
            same_files(published, &files)?;
        }
        let manifest = agreed([self.sha256, published.as_ref().map(Manifest::digest), pulled])?;
        let format = self.format(published.as_ref())?;
        let count = files.len();
        let (tenant, model, version) = (self.tenant.clone(), self.model.clone(), self.model_version.clone());
        let mut statement = Deploy::new(tenant, model, version, format, self.min_version.clone(), files);
        if let Some(Checksum(sha256)) = manifest {
            statement = statement.with_manifest(sha256);
        }
        let envelope = sign::deploy(&statement, &keys).map_err(|refusal| told(&refusal))?;
        let out = self.keep(store, &envelope).await?;
        let kinds: Vec<&str> = keys.iter().map(|key| key.public().kind.name()).collect();
        let ids: Vec<String> = keys.iter().map(|key| key.public().id()).collect();
        let value = json!({
            "signature": out, "files": count, "sha256": statement.files_root, "algorithms": kinds, "key_ids": ids,
            "manifest_sha256": manifest, "runtime": published.as_ref().map(|published| &published.runtime),
        });
        let people = || format!("{out}: {count} files, sha256 {}, by {}\n", statement.files_root, kinds.join(" and "));
        output::put(&output::object(global.style(), &value, &out, people)?);
        self.remarks(&keys, manifest, published.as_ref());
        Ok(())
    }

    /// What is there to sign. A manifest that nf model pull left beside the files is none of them.
    fn files(&self) -> anyhow::Result<(Vec<Listed>, Option<Checksum>)> {
        let artefact = artefact(&self.artefact, self.out.as_deref())?;
        let files = artefact.list().map_err(|refusal| told(&refusal))?;
        let beside = |file: &Listed| matches!(artefact, Artefact::Directory { .. }) && file.name == MANIFEST;
        let (manifest, files): (Vec<_>, Vec<_>) = files.into_iter().partition(beside);
        Ok((files, manifest.first().map(|file| Checksum(file.sha256))))
    }

    fn format(&self, published: Option<&Manifest>) -> anyhow::Result<String> {
        match (&self.format, published) {
            (Some(said), Some(published)) if *said != published.format => {
                let text = format!("--format {said}: the version was published as {}", published.format);
                Err(fail(Exit::Usage, text))
            }
            (Some(said), _) => Ok(said.clone()),
            (None, Some(published)) => Ok(published.format.clone()),
            (None, None) => Ok("onnx".into()),
        }
    }

    /// Writes the signature where it belongs, and says where.
    async fn keep(&self, store: Option<Store>, envelope: &str) -> anyhow::Result<String> {
        match (&self.out, store) {
            (Some(out), _) => write(out, envelope, 0o644, false).map(|()| out.display().to_string()),
            (None, Some(store)) => {
                let (model, version, tenant) = (self.model.clone(), self.model_version.clone(), self.tenant.clone());
                let bytes = envelope.as_bytes().to_vec();
                let keep = move || store.sign_blocking(&model, &version, Some(&tenant), &bytes);
                tokio::task::spawn_blocking(keep).await?.map_err(super::told)
            }
            (None, None) => Err(fail(Exit::Usage, "--out FILE: where the signature goes, or --store URL")),
        }
    }

    fn remarks(&self, keys: &[PrivateKey], manifest: Option<Checksum>, published: Option<&Manifest>) {
        let hybrid = keys.iter().any(|k| k.public().kind.post_quantum())
            && keys.iter().any(|k| matches!(k.public().kind, Kind::Ecdsa(_)));
        if !hybrid {
            say("only one kind of key signed: members in PQC_MODE=hybrid refuse it; give an ECDSA and an ML-DSA key");
        }
        match (manifest, published) {
            (None, _) => {
                say("no manifest was signed, so members refuse it: publish the version, then sign with --store")
            }
            (Some(sha256), Some(published)) => {
                say(format!("its manifest {sha256} is signed too; it runs {}", published.runtime));
            }
            (Some(sha256), None) => say(format!("its manifest {sha256} is signed too")),
        }
    }
}

/// What is signed is what runs.
fn same_files(published: &Manifest, files: &[Listed]) -> anyhow::Result<()> {
    let here: BTreeMap<&str, [u8; 32]> = files.iter().map(|f| (f.name.as_str(), f.sha256)).collect();
    let there: BTreeMap<&str, [u8; 32]> = published.files.iter().map(|f| (f.path.as_str(), f.sha256.0)).collect();
    match here.keys().chain(there.keys()).find(|name| here.get(*name) != there.get(*name)) {
        Some(name) => {
            let text = format!(
                "ArtifactMismatch: {name} is not the same here and in the store; publish these files as another \
                 version, or sign what nf model pull brings"
            );
            Err(fail(Exit::Denied, text))
        }
        None => Ok(()),
    }
}

/// The one manifest that all who name one mean.
fn agreed(digests: [Option<Checksum>; 3]) -> anyhow::Result<Option<Checksum>> {
    let mut named = digests.into_iter().flatten();
    let Some(first) = named.next() else { return Ok(None) };
    match named.find(|other| *other != first) {
        Some(other) => {
            let text = format!(
                "SignatureBindingMismatch: one manifest is {first}, another {other} (--sha256, the store's, the one \
                 beside the files); look who changed the store before you sign"
            );
            Err(fail(Exit::Denied, text))
        }
        None => Ok(Some(first)),
    }
}

impl Keygen {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let dir = &self.dir;
        fs::create_dir_all(dir).map_err(|e| fail(Exit::Failed, format!("{}: {e}", dir.display())))?;
        let ecdsa = PrivateKey::new_ecdsa().map_err(|refusal| told(&refusal))?;
        let ml_dsa = PrivateKey::new_ml_dsa().map_err(|refusal| told(&refusal))?;
        let public = dir.join("signing.pub.pem");
        let secret = [dir.join("ecdsa-p256.key.pem"), dir.join("ml-dsa-65.key.pem")];
        if let Some(there) = secret.iter().chain([&public]).find(|path| path.exists()) {
            let text = format!("{} is there already; choose another directory", there.display());
            return Err(fail(Exit::Conflict, text));
        }
        write(&secret[0], &ecdsa.private, 0o600, true)?;
        write(&secret[1], &ml_dsa.private, 0o600, true)?;
        write(&public, &format!("{}{}", ecdsa.public, ml_dsa.public), 0o644, true)?;
        let shown = public.display().to_string();
        let value = json!({
            "public": shown, "private": secret, "key_ids": { "ECDSA P-256": ecdsa.id, "ML-DSA-65": ml_dsa.id },
        });
        let people =
            || format!("public   {shown}\nprivate  {}\nprivate  {}\n", secret[0].display(), secret[1].display());
        output::put(&output::object(global.style(), &value, &shown, people)?);
        say("keep the private keys away from the cluster; members need the public file alone (COSIGN_KEY_PATH)");
        Ok(())
    }
}
