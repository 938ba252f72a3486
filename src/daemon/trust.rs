//! Whether a version of the store may run: judges its signature by the configured keys, or
//! asks Vault, for a member at admission and for a node before the start. The keys are read
//! anew for each verdict, so that a key that is taken away counts no more. At admission Vault
//! itself is asked; a node reads its public key, and makes do with the one it read last when
//! Vault is away. It does not know formats; `security` does.

use super::people::People;
use super::signers::{self, Signers};
use crate::agent::executor::Judge;
use crate::config::{Error as ConfigError, Settings};
use crate::models::{self, Manifest, Store};
use crate::outgoing::Options;
use crate::pqc;
use crate::security::signing::{self, Artefact, Demand, Evidence, Expect, Listed, MANIFEST, Policy, Roots, Verdict};
use crate::security::vault::{self, Place, Token, Vault};
use crate::telemetry::Metrics;
use anyhow::Result;
use nf_core::id::TenantId;
use nf_core::job;
use nf_core::reason::{Reason, Refusal};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// One question to Vault may take so long.
const VAULT: Duration = Duration::from_secs(3);

/// Who is told that the two verifiers of ML-DSA differ: one of them is wrong, perhaps by somebody's doing.
pub type Alarm = Arc<dyn Fn(&str) + Send + Sync>;

/// The alarm of this process.
pub fn alarm(metrics: &Metrics) -> Alarm {
    let metrics = metrics.clone();
    // It stays on: what was seen once is to be looked into, also when the next signature is a good one.
    Arc::new(move |text| metrics.alarms.raise(VERIFIERS, text))
}

const VERIFIERS: &str = "verifier_disagreement";

/// See the module's text. Cloning shares it.
#[derive(Clone)]
pub struct Trust {
    signers: Signers,
    people: People,
    vault: Option<Vault>,
    /// Where Vault's public key is kept for when it is away.
    kept: Arc<Path>,
    /// One writes it at a time.
    keeping: Arc<Mutex<()>>,
    demand: Demand,
    store: Store,
    alarm: Alarm,
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
    pub fn open(settings: &Settings, store: Option<&Store>, alarm: Alarm) -> Result<Option<Self>> {
        let Some(store) = store else { return Ok(None) };
        let vault = vault(settings)?;
        let (signers, people) = (Signers::open(settings)?, People::open(settings)?);
        if signers.is_empty() && vault.is_none() {
            return Ok(None);
        }
        people.tell(&signers).map_err(ConfigError::Clash)?;
        let demand = demand(settings.key_exchange());
        let kept = settings.data().join("vault-key.json").into();
        Ok(Some(Self { signers, people, vault, kept, keeping: Arc::default(), demand, store: store.clone(), alarm }))
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
            self.tell(manifest, tenant, refusal);
        }
        judged
    }

    fn tell(&self, manifest: &Manifest, tenant: &TenantId, refusal: &Refusal) {
        if refusal.reason == Reason::VerifierDisagreement {
            let (model, version) = (&manifest.model_id, &manifest.version);
            (self.alarm)(&format!("{model} {version} of tenant {tenant} does not run: {}", refusal.detail));
        }
    }

    fn look(&self, at: At, manifest: &Manifest, tenant: &TenantId) -> Result<job::Evidence, Refusal> {
        let (model, version) = (&manifest.model_id, &manifest.version);
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
        let bytes = self.store.manifest_bytes_blocking(manifest).map_err(unreadable)?;
        let (keys, min_version) = match (&self.vault, &evidence) {
            (Some(vault), Evidence::Vault { .. }) => (vec![self.ask(at, vault, &bytes, &signature, &evidence)?], None),
            _ => {
                let verdict = self.verify(manifest, &bytes, tenant, &signature)?;
                (verdict.signatures.into_iter().map(|by| by.key_id).collect(), verdict.min_version)
            }
        };
        let publishers = self.people.of(keys.iter().map(String::as_str)).map_err(|text| {
            let text = format!("whose keys sign models cannot be read any more ({text}), so nobody could be kept from approving their own");
            Refusal::field(Reason::NoTrustRoot, "model_version", text)
        })?;
        let signature = Sha256::digest(&signature).into();
        Ok(job::Evidence { signature, key_id: keys.join(",").into(), min_version, publishers })
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
        // What a node would refuse for good is not let in, whatever Vault would say of it.
        if self.demand == Demand::Strict {
            let text = "PQC_STRICT=1 asks for both halves of a hybrid signature, and Vault's transit gives a classical one; \
                        sign it with both keys (nf model sign), or set PQC_STRICT=0";
            return Err(Refusal::field(Reason::HybridSignatureIncomplete, "model_version", text));
        }
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
                let kept = signers::read(&self.kept).map_err(|_| refusal)?;
                tracing::warn!(path = %self.kept.display(), "Vault is away; its key as it was last read judges a start");
                kept
            }
            Err(refusal) => return Err(refusal),
        };
        let keys = vault::ring(&answer).map_err(|refusal| unavailable(refusal.detail))?;
        let (roots, expect) = (Roots::default(), Expect::default());
        let now = crate::api::auth::now();
        let policy = Policy { keys: &keys, roots: &roots, demand: self.demand, expect: &expect, now };
        let artefact = Artefact::Bytes { name: MANIFEST, bytes: manifest };
        let verdict = signing::verify(&policy, &artefact, signature)?;
        let version = verdict.signatures.first().and_then(|by| by.key_version).unwrap_or_default();
        Ok(vault.key_id(version))
    }

    /// For when Vault is away. A disk that does not take it costs that, and nothing now.
    fn keep(&self, answer: &[u8]) {
        let _alone = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if signers::read(&self.kept).is_ok_and(|kept| kept == answer) {
            return;
        }
        if let Err(error) = crate::storage::replace_file(&self.kept, answer) {
            tracing::warn!(path = %self.kept.display(), %error, "Vault's public key cannot be kept");
        }
    }

    /// Holds the signature against the whole version: a statement must be for its manifest, since that names the
    /// program, the image and the kinds of data, and the files are held against the manifest where they are fetched.
    fn verify(
        &self,
        manifest: &Manifest,
        bytes: &[u8],
        tenant: &TenantId,
        signature: &[u8],
    ) -> Result<Verdict, Refusal> {
        let (keys, roots) = self.signers.of(tenant).map_err(|refusal| {
            let wrong = signers::told(&refusal);
            let text = format!("keys that sign models cannot be used any more ({wrong}); nothing can be trusted");
            Refusal::field(Reason::NoTrustRoot, "model_version", text)
        })?;
        let expect = Expect {
            tenant: Some(tenant.clone()),
            model: Some(manifest.model_id.clone()),
            version: Some(manifest.version.clone()),
            format: Some(manifest.format.clone()),
        };
        let listed = |file: &models::Artifact| Listed {
            name: file.path.as_str().to_owned(),
            size: Some(file.size),
            sha256: file.sha256.0,
        };
        let mut files: Vec<Listed> = manifest.files.iter().map(listed).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let now = crate::api::auth::now();
        let policy = Policy { keys: &keys, roots: &roots, demand: self.demand, expect: &expect, now };
        signing::verify(&policy, &Artefact::Version { manifest: bytes, files: &files }, signature)
    }

    /// For a node, which needs no more than the verdict.
    pub fn for_node(&self) -> Judge {
        let trust = self.clone();
        Arc::new(move |manifest, tenant| trust.judge_at(At::Launch, manifest, tenant).map(drop))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::models::{Draft, Launch, publish};
    use crate::security::signing::{mldsa, sign};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A store with a signed version, keys that are there, and how often the alarm was told.
    async fn lab(dir: &Path) -> (Trust, Manifest, Arc<AtomicUsize>) {
        let keys = [sign::PrivateKey::new_ecdsa().unwrap(), sign::PrivateKey::new_ml_dsa().unwrap()];
        std::fs::write(dir.join("key.pem"), format!("{}{}", keys[0].public, keys[1].public)).unwrap();
        let files = dir.join("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("m.onnx"), b"weights").unwrap();
        let store = Store::open(&format!("file://{}", dir.join("store").display()), &Options::default()).unwrap();
        let draft = Draft {
            model_id: "m".parse().unwrap(),
            version: "v1".parse().unwrap(),
            format: "onnx".into(),
            runtime: Launch::Simulated {},
            main: None,
            latency_ms: None,
            memory: None,
            data_classes: vec![],
            encrypt_to: None,
        };
        let manifest = publish(&store, &files, draft).await.unwrap();
        let path = dir.join("key.pem").display().to_string();
        let environment = [("COSIGN_KEY_PATH".to_owned(), path)].into_iter().collect();
        let settings = Settings::load(&Sources { flags: &Default::default(), environment, file: None }).unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let alarm: Alarm = Arc::new(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
        let listed = Artefact::Directory { root: &files, except: None }.list().unwrap();
        let (tenant, model, version) = (tenant(), manifest.model_id.clone(), manifest.version.clone());
        let statement =
            signing::Deploy::new(tenant.clone(), model.clone(), version.clone(), "onnx".into(), None, listed)
                .with_manifest(manifest.sha256());
        let keys = keys.map(|key| sign::PrivateKey::from_pem("k", &key.private).unwrap());
        let signature = sign::deploy(&statement, &keys).unwrap();
        store.sign_blocking(&model, &version, Some(&tenant), signature.as_bytes()).unwrap();
        (Trust::open(&settings, Some(&store), alarm).unwrap().unwrap(), manifest, told)
    }

    fn tenant() -> TenantId {
        "t1".parse().unwrap()
    }

    /// What is said of the version for a tenant, as if the two verifiers differed or not.
    async fn judged(lab: &(Trust, Manifest, Arc<AtomicUsize>), tenant: &str, split: bool) -> Option<Reason> {
        let (trust, manifest, tenant) = (lab.0.clone(), lab.1.clone(), tenant.parse().unwrap());
        let judge = move || {
            mldsa::SPLIT.set(split);
            let judged = trust.judge(&manifest, &tenant);
            mldsa::SPLIT.set(false);
            judged.err().map(|refusal| refusal.reason)
        };
        tokio::task::spawn_blocking(judge).await.unwrap()
    }

    #[tokio::test]
    async fn where_both_halves_are_wanted_a_signature_of_vaults_is_refused_before_it_is_let_in() {
        let home = tempfile::tempdir().unwrap();
        let (trust, manifest, told) = lab(home.path()).await;
        let signature = format!("vault:v1:{}", "A".repeat(96));
        let (model, version) = (&manifest.model_id, &manifest.version);
        trust.store.sign_blocking(model, version, Some(&tenant()), signature.as_bytes()).unwrap();
        // Nobody listens there: that Vault is asked at all shows as its being away.
        let environment = [("VAULT_ADDR", "http://127.0.0.1:9"), ("VAULT_TOKEN", "t")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let settings = Settings::load(&Sources { flags: &Default::default(), environment, file: None }).unwrap();
        for (demand, expected) in
            [(Demand::Hybrid, Reason::VerifierUnavailable), (Demand::Strict, Reason::HybridSignatureIncomplete)]
        {
            let trust = Trust { vault: vault(&settings).unwrap(), demand, ..trust.clone() };
            let lab = (trust, manifest.clone(), told.clone());
            assert_eq!(judged(&lab, "t1", false).await, Some(expected), "{demand:?}");
        }
    }

    #[tokio::test]
    async fn verifiers_that_disagree_are_an_alarm_and_other_refusals_are_none() {
        let home = tempfile::tempdir().unwrap();
        let lab = lab(home.path()).await;
        let told = || lab.2.load(Ordering::SeqCst);
        assert_eq!(judged(&lab, "t1", false).await, None);
        assert_eq!((judged(&lab, "t2", false).await, told()), (Some(Reason::SignatureRequired), 0));
        assert_eq!((judged(&lab, "t1", true).await, told()), (Some(Reason::VerifierDisagreement), 1));
        assert_eq!(crate::api::error::codes(Reason::VerifierDisagreement).http, 422);
        let metrics = Metrics::new("v", "c");
        alarm(&metrics)("x");
        assert_eq!(metrics.alarms.on(), [VERIFIERS]);
    }
}
