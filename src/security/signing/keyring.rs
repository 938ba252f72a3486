//! The keys that count, read from files: PEM public keys, Vault's key answer, or a
//! raw ML-DSA key. A bundle can only choose among them. It does not verify.

use super::encoding::{self, base64};
use super::key::{Kind, PublicKey};
use super::mldsa::Parameters;
use super::refusal::{config, shown};
use super::{MAX_EVIDENCE, json};
use nf_core::id::TenantId;
use nf_core::reason::Refusal;
use serde_json::Value;

/// The most keys of one ring.
pub const MAX_KEYS: usize = 64;

/// Configured keys, in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Vec<PublicKey>,
    /// Vault's `min_decryption_version`: older versions are retired.
    oldest: Option<u64>,
}

impl KeyRing {
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The oldest version of a Vault key that still counts.
    pub fn oldest_version(&self) -> Option<u64> {
        self.oldest
    }

    /// The key that a bundle's hint or an envelope's keyid names.
    pub fn named(&self, hint: &str) -> Option<&PublicKey> {
        self.keys.iter().find(|key| key.id() == hint || key.pem_id() == hint)
    }

    /// Adds a key; what is said of one that is there already is said of it, too.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn add(&mut self, key: PublicKey) -> Result<(), Refusal> {
        if let Some(known) = self.keys.iter_mut().find(|k| k.spki() == key.spki() && k.version == key.version) {
            known.paired |= key.paired;
            known.tenants.extend(key.tenants);
            return Ok(());
        }
        if self.keys.len() == MAX_KEYS {
            return Err(config("key", format!("more than {MAX_KEYS} keys; leave out those that no longer sign")));
        }
        self.keys.push(key);
        Ok(())
    }

    /// Where both kinds are here, each key is half of a hybrid pair.
    pub fn pair(&mut self) {
        let kinds = [true, false].map(|pq| self.keys.iter().any(|key| key.kind.post_quantum() == pq));
        if kinds == [true, true] {
            self.keys.iter_mut().for_each(|key| key.paired = true);
        }
    }

    /// What these keys sign for the tenant counts also where a format names none.
    pub fn give(&mut self, tenant: &TenantId) {
        self.keys.iter_mut().for_each(|key| _ = key.tenants.insert(tenant.to_string()));
    }

    /// Takes over the keys of another ring.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn absorb(&mut self, other: KeyRing) -> Result<(), Refusal> {
        self.oldest = self.oldest.max(other.oldest);
        other.keys.into_iter().try_for_each(|key| self.add(key))
    }

    /// Adds the keys of a file; `name` is what a message calls it.
    ///
    /// # Errors
    /// `ConfigInvalid` with the file's name and what is wrong, never with its contents.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        if bytes.len() > MAX_EVIDENCE {
            return Err(config(name, format!("longer than {MAX_EVIDENCE} bytes; that is no key")));
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return self.add_raw(name, bytes) };
        if text.trim_start().starts_with('{') {
            return self.add_vault(name, bytes);
        }
        let blocks = encoding::pem(text).map_err(|e| config(name, e))?;
        if blocks.is_empty() {
            return Err(config(name, "holds no key; a PEM file with PUBLIC KEY is wanted, such as cosign.pub"));
        }
        for block in blocks {
            let key = match block.label.as_str() {
                "PUBLIC KEY" => PublicKey::from_spki(&block.der).map_err(|e| config(name, e))?,
                "CERTIFICATE" => return Err(config(name, "is a certificate; certificate roots go into --roots")),
                label if label.contains("PRIVATE KEY") => {
                    let text = "holds a private key, which a verifier must not have; give the public one \
                                (openssl pkey -in KEY -pubout, or cosign public-key)";
                    return Err(config(name, text));
                }
                label => return Err(config(name, format!("holds {}, not PUBLIC KEY", shown(label)))),
            };
            self.add(key)?;
        }
        Ok(())
    }

    fn add_raw(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let sets = [Parameters::MlDsa65, Parameters::MlDsa87];
        let Some(parameters) = sets.into_iter().find(|p| p.key_len() == bytes.len()) else {
            return Err(config(name, "is neither PEM nor a raw ML-DSA-65 (1952 bytes) or ML-DSA-87 (2592 bytes) key"));
        };
        self.add(PublicKey::from_ml_dsa(parameters, bytes).map_err(|e| config(name, e))?)
    }

    /// The answer of `GET /v1/transit/keys/KEY`: every version's public key.
    fn add_vault(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let wrong = |text: &str| config(name, format!("is JSON, but not a transit key of Vault: {text}"));
        let answer = json::parse(bytes).map_err(|e| wrong(&e))?;
        let data = answer.get("data").unwrap_or(&answer);
        let versions = data.get("keys").and_then(Value::as_object).ok_or_else(|| wrong("no data.keys"))?;
        let ed25519 = data.get("type").and_then(Value::as_str) == Some("ed25519");
        let mut found = Vec::new();
        for (version, entry) in versions {
            let number = version.parse::<u64>().map_err(|_| wrong("a version that is no number"))?;
            let text = entry.get("public_key").and_then(Value::as_str).ok_or_else(|| wrong("no public_key"))?;
            let key = match ed25519 {
                true => base64(text)
                    .ok_or("an Ed25519 key that is not base64".into())
                    .and_then(|raw| PublicKey::from_ed25519(&raw)),
                false => encoding::pem(text).and_then(|blocks| match &blocks[..] {
                    [block] if block.label == "PUBLIC KEY" => PublicKey::from_spki(&block.der),
                    _ => Err("not one PUBLIC KEY".into()),
                }),
            };
            let mut key = key.map_err(|e| wrong(&format!("version {number}: {e}")))?;
            key.version = Some(number);
            found.push(key);
        }
        let oldest = data.get("min_decryption_version").and_then(Value::as_u64);
        self.oldest = self.oldest.max(oldest);
        found.into_iter().try_for_each(|key| self.add(key))
    }

    /// Those of a kind.
    pub fn of(&self, wanted: impl Fn(Kind) -> bool) -> Vec<&PublicKey> {
        self.keys.iter().filter(|key| wanted(key.kind)).collect()
    }
}
