//! `nf model sign` and `nf model keygen`: a deploy statement over files, and the
//! keys for it. Private keys stay on this machine; members only ever see public ones.

use super::super::exit::{Exit, fail};
use super::super::{Global, output, say};
use super::verify::{artefact, small, told};
use crate::security::signing::sign::{self, PrivateKey};
use crate::security::signing::{Deploy, Kind};
use clap::Args;
use nf_core::id::{ModelId, TenantId, VersionId};
use serde_json::json;
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
    /// From now on nothing older may run
    #[arg(long, value_name = "VERSION")]
    min_version: Option<VersionId>,
    /// What the files are, e.g. onnx
    #[arg(long, default_value = "onnx")]
    format: String,
    /// A private key (PKCS#8 PEM); give an ECDSA P-256 and an ML-DSA-65 one
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Where the signature goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
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

impl Sign {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let keys = private_keys(&self.key)?;
        let files = artefact(&self.artefact, Some(&self.out))?.list().map_err(|refusal| told(&refusal))?;
        let count = files.len();
        let statement = Deploy::new(self.tenant, self.model, self.model_version, self.format, self.min_version, files);
        let envelope = sign::deploy(&statement, &keys).map_err(|refusal| told(&refusal))?;
        write(&self.out, &envelope, 0o644, false)?;
        let kinds: Vec<&str> = keys.iter().map(|key| key.public().kind.name()).collect();
        let ids: Vec<String> = keys.iter().map(|key| key.public().id()).collect();
        let out = self.out.display().to_string();
        let value = json!({
            "signature": out, "files": count, "sha256": statement.files_root, "algorithms": kinds, "key_ids": ids,
        });
        let people = || format!("{out}: {count} files, sha256 {}, by {}\n", statement.files_root, kinds.join(" and "));
        output::put(&output::object(global.style(), &value, &out, people)?);
        let hybrid = keys.iter().any(|k| k.public().kind.post_quantum())
            && keys.iter().any(|k| matches!(k.public().kind, Kind::Ecdsa(_)));
        if !hybrid {
            say("only one kind of key signed: members in PQC_MODE=hybrid refuse it; give an ECDSA and an ML-DSA key");
        }
        Ok(())
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
