//! Whose signatures count: reads the configured keys, or asks Vault, and judges a version
//! of the store by them, for a member at admission and for a node before the start. The
//! keys are read anew for each verdict, so that a key that is taken away counts no more.
//! At admission Vault itself is asked; a node reads its public key, and makes do with the
//! one it read last when Vault is away. It does not know formats; `security` does.

use crate::agent::executor::Judge;
use crate::config::{Error as ConfigError, Settings};
use crate::models::{self, Manifest, Store};
use crate::outgoing::Options;
use crate::pqc;
use crate::security::signing::{
    self, Artefact, Demand, Evidence, Expect, KeyRing, Listed, MAX_EVIDENCE, Policy, Roots, Verdict,
};
use crate::security::vault::{self, Place, Token, Vault};
use anyhow::Result;
use nf_core::id::TenantId;
use nf_core::job;
use nf_core::reason::{Reason, Refusal};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// One question to Vault may take so long.
const VAULT: Duration = Duration::from_secs(3);

/// See the module's text. Cloning shares it.
#[derive(Clone)]
pub struct Trust {
    keys: Arc<[PathBuf]>,
    vault: Option<Vault>,
    /// Where Vault's public key is kept for when it is away.
    kept: Arc<Path>,
    /// One writes it at a time.
    keeping: Arc<Mutex<()>>,
    demand: Demand,
    store: Store,
}

/// Where a verdict is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Admission,
    Launch,
}

/// Which signatures count beside which key exchange.
pub fn demand(policy: pqc::Policy) -> Demand {
    match (policy.strict, policy.mode) {
        (true, _) => Demand::Strict,
        (false, pqc::Mode::Hybrid) => Demand::Hybrid,
        (false, pqc::Mode::Classical | pqc::Mode::Off) => Demand::Classical,
    }
}

impl Trust {
    /// None when neither keys nor Vault are configured: then signatures are not asked for.
    ///
    /// # Errors
    /// A key file or a setting of Vault's that cannot be used: one clear line, no contents.
    pub fn open(settings: &Settings, store: Option<&Store>) -> Result<Option<Self>> {
        let Some(store) = store else { return Ok(None) };
        let vault = vault(settings)?;
        let path = settings.cosign_key_path.value.as_deref().unwrap_or(Path::new("")).to_string_lossy();
        let keys: Vec<PathBuf> =
            path.split(',').map(str::trim).filter(|one| !one.is_empty()).map(PathBuf::from).collect();
        if keys.is_empty() && vault.is_none() {
            return Ok(None);
        }
        let demand = demand(settings.key_exchange());
        let kept = settings.data().join("vault-key.json").into();
        let trust = Self { keys: keys.into(), vault, kept, keeping: Arc::default(), demand, store: store.clone() };
        trust.ring().map_err(|refusal| ConfigError::Clash(format!("COSIGN_KEY_PATH: {refusal}")))?;
        Ok(Some(trust))
    }

    fn ring(&self) -> Result<KeyRing, Refusal> {
        let mut ring = KeyRing::default();
        for path in self.keys.iter() {
            let name = path.display().to_string();
            let wrong = |e: std::io::Error| Refusal::field(Reason::ConfigInvalid, &name, format!("{name}: {e}"));
            ring.add_file(&name, &read(path).map_err(wrong)?)?;
        }
        Ok(ring)
    }

    /// The signature that lets `tenant` run the version; may block.
    ///
    /// # Errors
    /// The refusal, with a token of SECURITY's table.
    pub fn judge(&self, manifest: &Manifest, tenant: &TenantId) -> Result<job::Evidence, Refusal> {
        self.judge_at(At::Admission, manifest, tenant)
    }

    fn judge_at(&self, at: At, manifest: &Manifest, tenant: &TenantId) -> Result<job::Evidence, Refusal> {
        let judged = self.look(at, manifest, tenant);
        if let Err(refusal) = &judged {
            models::refused(models::Refused::Signature);
            if refusal.reason == Reason::VerifierDisagreement {
                let (model, version) = (&manifest.model_id, &manifest.version);
                tracing::error!(%model, %version, %refusal, "the two verifiers of ML-DSA disagree; nothing of it runs");
            }
        }
        judged
    }

    fn look(&self, at: At, manifest: &Manifest, tenant: &TenantId) -> Result<job::Evidence, Refusal> {
        let (model, version) = (&manifest.model_id, &manifest.version);
        let keys = self.ring().map_err(|refusal| {
            let text =
                format!("the keys of COSIGN_KEY_PATH cannot be used any more ({refusal}); nothing can be trusted");
            Refusal::field(Reason::NoTrustRoot, "model_version", text)
        })?;
        let unreadable = |e: models::Error| {
            let text = format!("the signature of {model} {version} cannot be read: {e}");
            Refusal::field(Reason::VerifierUnavailable, "model_version", text)
        };
        let signature = self.store.signature_blocking(model, version, tenant).map_err(unreadable)?;
        let signature = signature.ok_or_else(|| {
            let text = format!(
                "the store has no signature of {model} {version} for tenant {tenant}; sign it (nf model sign) and keep \
                 the signature with it (nf model publish --signature)"
            );
            Refusal::field(Reason::SignatureRequired, "model_version", text)
        })?;
        let evidence = Evidence::parse(&signature)?;
        let key_id = match (&self.vault, &evidence) {
            (Some(vault), Evidence::Vault { .. }) => {
                let bytes = self.store.manifest_bytes_blocking(manifest).map_err(unreadable)?;
                self.ask(at, vault, &bytes, &signature, &evidence)?
            }
            _ => {
                let verdict = self.verify(manifest, tenant, &keys, &signature, &evidence, unreadable)?;
                verdict.signatures.iter().map(|by| by.key_id.as_str()).collect::<Vec<_>>().join(",")
            }
        };
        Ok(job::Evidence { signature: Sha256::digest(&signature).into(), key_id: key_id.into() })
    }

    /// Vault's verdict, or, before a start, one by the key that it gave last.
    fn ask(
        &self,
        at: At,
        vault: &Vault,
        manifest: &[u8],
        signature: &[u8],
        evidence: &Evidence,
    ) -> Result<String, Refusal> {
        let handle = Handle::try_current().map_err(|e| unavailable(e.to_string()))?;
        if at == At::Admission {
            let version = handle.block_on(vault.verify(manifest, evidence))?;
            return Ok(vault.key_id(version));
        }
        let answer = match handle.block_on(vault.public()) {
            Ok(answer) => {
                self.keep(&answer);
                answer
            }
            Err(refusal) if refusal.reason == Reason::VerifierUnavailable => {
                let kept = read(&self.kept).map_err(|_| refusal)?;
                tracing::warn!(path = %self.kept.display(), "Vault is away; its key as it was last read judges a start");
                kept
            }
            Err(refusal) => return Err(refusal),
        };
        let keys = vault::ring(&answer).map_err(|refusal| unavailable(refusal.detail))?;
        let (roots, expect) = (Roots::default(), Expect::default());
        let now = crate::api::auth::now();
        let policy = Policy { keys: &keys, roots: &roots, demand: self.demand, expect: &expect, now };
        let artefact = Artefact::Bytes { name: "manifest.json", bytes: manifest };
        let verdict = signing::verify(&policy, &artefact, signature)?;
        let version = verdict.signatures.first().and_then(|by| by.key_version).unwrap_or_default();
        Ok(vault.key_id(version))
    }

    /// For when Vault is away. A disk that does not take it costs that, and nothing now.
    fn keep(&self, answer: &[u8]) {
        let _alone = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if read(&self.kept).is_ok_and(|kept| kept == answer) {
            return;
        }
        if let Err(error) = crate::storage::replace_file(&self.kept, answer) {
            tracing::warn!(path = %self.kept.display(), %error, "Vault's public key cannot be kept");
        }
    }

    fn verify(
        &self,
        manifest: &Manifest,
        tenant: &TenantId,
        keys: &KeyRing,
        signature: &[u8],
        evidence: &Evidence,
        unreadable: impl Fn(models::Error) -> Refusal,
    ) -> Result<Verdict, Refusal> {
        let now = crate::api::auth::now();
        let roots = Roots::default();
        let policy = |expect| Policy { keys, roots: &roots, demand: self.demand, expect, now };
        if matches!(evidence, Evidence::Envelope { .. }) {
            // A statement lists the files and says for whom; the bytes are held against the list where they are fetched.
            let (model, version) = (Some(manifest.model_id.clone()), Some(manifest.version.clone()));
            let expect = Expect { tenant: Some(tenant.clone()), model, version };
            let listed = |file: &models::Artifact| Listed {
                name: file.path.as_str().to_owned(),
                size: Some(file.size),
                sha256: file.sha256.0,
            };
            let mut files: Vec<Listed> = manifest.files.iter().map(listed).collect();
            files.sort_by(|a, b| a.name.cmp(&b.name));
            return signing::verify(&policy(&expect), &Artefact::Listing(&files), signature);
        }
        // A signature over bytes is over the manifest, which names model, version and files itself. It names no
        // tenant: whoever holds a configured key signs for the whole group.
        let bytes = self.store.manifest_bytes_blocking(manifest).map_err(unreadable)?;
        let artefact = Artefact::Bytes { name: "manifest.json", bytes: &bytes };
        signing::verify(&policy(&Expect::default()), &artefact, signature)
    }

    /// For a node, which needs no more than the verdict.
    pub fn for_node(&self) -> Judge {
        let trust = self.clone();
        Arc::new(move |manifest, tenant| trust.judge_at(At::Launch, manifest, tenant).map(drop))
    }
}

/// A file of bounded length.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_EVIDENCE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unavailable(text: String) -> Refusal {
    Refusal::field(Reason::VerifierUnavailable, "model_version", text)
}

/// The Vault of the settings; None when there is none.
///
/// # Errors
/// What of its settings cannot be used, or is missing beside `VAULT_ADDR`.
pub fn vault(settings: &Settings) -> Result<Option<Vault>> {
    let Some(url) = settings.vault_addr.value.clone() else { return Ok(None) };
    let token = match (&settings.vault_token_file.value, &settings.vault_token.value) {
        (Some(path), _) => Token::File(path.clone()),
        (None, Some(token)) => Token::Given(token.clone()),
        (None, None) => {
            let text = "VAULT_ADDR is set, so VAULT_TOKEN or NF_VAULT_TOKEN_FILE must be: Vault answers nobody else";
            return Err(ConfigError::Clash(text.into()).into());
        }
    };
    let (mount, key) = (settings.vault_mount.value.clone(), settings.vault_key.value.clone());
    let place = Place { url, mount, key, token, patience: VAULT };
    let options = Options { authorities: settings.vault_ca.value.clone(), ..settings.link(pqc::Kind::Vault) };
    let vault = Vault::new(place, &options).map_err(|refusal| ConfigError::Clash(refusal.detail))?;
    Ok(Some(vault))
}
