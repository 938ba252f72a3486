//! Whose signatures count: reads the configured keys, and judges a version of the store
//! by them, for a member at admission and for a node before the start. The keys are read
//! anew for each verdict, so that a key that is taken away counts no more. It does not
//! know formats; `security::signing` does.

use crate::agent::executor::Judge;
use crate::config::parse::Pqc;
use crate::config::{Error as ConfigError, Settings};
use crate::models::{self, Manifest, Store};
use crate::security::signing::{
    self, Artefact, Demand, Evidence, Expect, KeyRing, Listed, MAX_EVIDENCE, Policy, Roots, Verdict,
};
use anyhow::Result;
use nf_core::id::TenantId;
use nf_core::job;
use nf_core::reason::{Reason, Refusal};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// See the module's text. Cloning shares it.
#[derive(Clone)]
pub struct Trust {
    keys: Arc<[PathBuf]>,
    demand: Demand,
    store: Store,
}

impl Trust {
    /// None when no key is configured: then signatures are not asked for.
    ///
    /// # Errors
    /// A key file that cannot be used: one clear line, no contents.
    pub fn open(settings: &Settings, store: Option<&Store>) -> Result<Option<Self>> {
        let (Some(path), Some(store)) = (&settings.cosign_key_path.value, store) else { return Ok(None) };
        let keys: Vec<PathBuf> = path.to_string_lossy().split(',').map(|one| PathBuf::from(one.trim())).collect();
        let demand = match settings.pqc_mode.value {
            Pqc::Hybrid => Demand::Hybrid,
            Pqc::Classical | Pqc::Off => Demand::Classical,
        };
        let trust = Self { keys: keys.into(), demand, store: store.clone() };
        trust.ring().map_err(|refusal| ConfigError::Clash(format!("COSIGN_KEY_PATH: {refusal}")))?;
        Ok(Some(trust))
    }

    fn ring(&self) -> Result<KeyRing, Refusal> {
        let mut ring = KeyRing::default();
        for path in self.keys.iter() {
            let name = path.display().to_string();
            let wrong = |e: std::io::Error| Refusal::field(Reason::ConfigInvalid, &name, format!("{name}: {e}"));
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(wrong)?;
            file.take(MAX_EVIDENCE as u64 + 1).read_to_end(&mut bytes).map_err(wrong)?;
            ring.add_file(&name, &bytes)?;
        }
        Ok(ring)
    }

    /// The signature that lets `tenant` run the version; may block.
    ///
    /// # Errors
    /// The refusal, with a token of SECURITY's table.
    pub fn judge(&self, manifest: &Manifest, tenant: &TenantId) -> Result<job::Evidence, Refusal> {
        let judged = self.look(manifest, tenant);
        if let Err(refusal) = &judged {
            models::refused(models::Refused::Signature);
            if refusal.reason == Reason::VerifierDisagreement {
                let (model, version) = (&manifest.model_id, &manifest.version);
                tracing::error!(%model, %version, %refusal, "the two verifiers of ML-DSA disagree; nothing of it runs");
            }
        }
        judged
    }

    fn look(&self, manifest: &Manifest, tenant: &TenantId) -> Result<job::Evidence, Refusal> {
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
        let verdict = self.verify(manifest, tenant, &keys, &signature, unreadable)?;
        let key_id = verdict.signatures.iter().map(|by| by.key_id.as_str()).collect::<Vec<_>>().join("+");
        Ok(job::Evidence { signature: Sha256::digest(&signature).into(), key_id: key_id.into() })
    }

    fn verify(
        &self,
        manifest: &Manifest,
        tenant: &TenantId,
        keys: &KeyRing,
        signature: &[u8],
        unreadable: impl Fn(models::Error) -> Refusal,
    ) -> Result<Verdict, Refusal> {
        let now = crate::api::auth::now();
        let roots = Roots::default();
        let policy = |expect| Policy { keys, roots: &roots, demand: self.demand, expect, now };
        if matches!(Evidence::parse(signature)?, Evidence::Envelope { .. }) {
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
        Arc::new(move |manifest, tenant| trust.judge(manifest, tenant).map(drop))
    }
}
