//! Whose keys and authorities count when a model is judged for a tenant: the group's own
//! (`COSIGN_KEY_PATH`), and those that an operator gave to tenants, a directory that is read
//! anew for each verdict. A format that names no tenant counts by the latter alone: else a
//! signature for one tenant would do for each other one. It does not know formats or stores.

use crate::config::{Error as ConfigError, Settings};
use crate::security::signing::{KeyRing, MAX_EVIDENCE, Roots};
use anyhow::Result;
use nf_core::id::TenantId;
use nf_core::reason::{Reason, Refusal};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose keys sign for every tenant; no tenant's name begins so.
const ALL: &str = "_all";
const KEYS: &str = ".pem";
const ROOTS: &str = ".roots.pem";

/// See the module's text. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Signers {
    group: Arc<[PathBuf]>,
    tenants: Option<Arc<Path>>,
}

impl Signers {
    /// Looks at each file once, so that a bad one stops the start.
    ///
    /// # Errors
    /// The setting and the file that cannot be used: one clear line, no contents.
    pub fn open(settings: &Settings) -> Result<Self> {
        let path = settings.cosign_key_path.value.as_deref().unwrap_or(Path::new("")).to_string_lossy();
        let group = path.split(',').map(str::trim).filter(|one| !one.is_empty()).map(PathBuf::from).collect();
        let signers = Self { group, tenants: settings.tenant_keys.value.as_deref().map(Arc::from) };
        let clash = |name: &str, text: String| ConfigError::Clash(format!("{name}: {text}"));
        signers.ring().map_err(|refusal| clash("COSIGN_KEY_PATH", told(&refusal)))?;
        signers.look_through().map_err(|text| clash("NF_TENANT_KEYS", text))?;
        Ok(signers)
    }

    /// Nobody's signature would count.
    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.tenants.is_none()
    }

    /// The keys and authorities by which a model is judged for the tenant.
    ///
    /// # Errors
    /// `ConfigInvalid` with the file that cannot be used.
    pub fn of(&self, tenant: &TenantId) -> Result<(KeyRing, Roots), Refusal> {
        let (mut ring, mut roots) = (self.ring()?, Roots::default());
        let Some(dir) = &self.tenants else { return Ok((ring, roots)) };
        // A tenant's name is no way out of the directory: letters, digits, '-' and '_'.
        for whose in [tenant.as_str(), ALL] {
            let name = format!("{whose}{KEYS}");
            if let Some(bytes) = there(&dir.join(&name)).map_err(|e| unreadable(&name, &e))? {
                let mut own = KeyRing::default();
                own.add_file(&name, &bytes)?;
                own.pair();
                own.give(tenant);
                ring.absorb(own)?;
            }
            let name = format!("{whose}{ROOTS}");
            if let Some(bytes) = there(&dir.join(&name)).map_err(|e| unreadable(&name, &e))? {
                roots.add_file(&name, &bytes)?;
                roots.give(tenant);
            }
        }
        Ok((ring, roots))
    }

    /// The ids of all keys that count for anybody, each with the file that it is in.
    ///
    /// # Errors
    /// The file that cannot be used.
    pub fn ids(&self) -> Result<BTreeMap<String, String>, Refusal> {
        let mut rings = vec![("COSIGN_KEY_PATH".to_owned(), self.ring()?)];
        let files = self.files().map_err(|text| Refusal::new(Reason::ConfigInvalid, text))?;
        for (name, bytes) in files.into_iter().filter(|(name, _)| !name.ends_with(ROOTS)) {
            let mut ring = KeyRing::default();
            ring.add_file(&name, &bytes)?;
            rings.push((name, ring));
        }
        let ids = |(name, ring): &(String, KeyRing)| {
            ring.keys().iter().map(|key| (key.id(), name.clone())).collect::<Vec<_>>()
        };
        Ok(rings.iter().flat_map(ids).collect())
    }

    /// The group's keys. A deploy statement may be signed by any two of them, so they are halves.
    fn ring(&self) -> Result<KeyRing, Refusal> {
        let mut ring = KeyRing::default();
        for path in self.group.iter() {
            let name = path.display().to_string();
            ring.add_file(&name, &read(path).map_err(|e| unreadable(&name, &e))?)?;
        }
        ring.pair();
        Ok(ring)
    }

    fn look_through(&self) -> Result<(), String> {
        for (name, bytes) in self.files()? {
            match name.ends_with(ROOTS) {
                true => Roots::default().add_file(&name, &bytes),
                false => KeyRing::default().add_file(&name, &bytes),
            }
            .map_err(|refusal| told(&refusal))?;
        }
        Ok(())
    }

    /// Keys and authorities of tenants, by the names of their files.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>, String> {
        let (Some(dir), mut found) = (&self.tenants, Vec::new()) else { return Ok(Vec::new()) };
        let bad = |e: std::io::Error| format!("{} is no directory that can be read: {e}", dir.display());
        for entry in fs::read_dir(dir).map_err(bad)? {
            let name = entry.map_err(bad)?.file_name().to_string_lossy().into_owned();
            let Some(whose) = name.strip_suffix(ROOTS).or_else(|| name.strip_suffix(KEYS)) else { continue };
            if whose != ALL && TenantId::new(whose).is_err() {
                return Err(format!("{name} is nobody's: TENANT{KEYS}, TENANT{ROOTS}, and {ALL} for every tenant"));
            }
            let bytes = read(&dir.join(&name)).map_err(|e| format!("{name}: {e}"))?;
            found.push((name, bytes));
        }
        Ok(found)
    }
}

/// With the file in front, as its error may not name it.
pub fn told(refusal: &Refusal) -> String {
    match refusal.field.as_deref().filter(|name| !refusal.detail.starts_with(name)) {
        Some(name) => format!("{name}: {}", refusal.detail),
        None => refusal.detail.clone(),
    }
}

fn unreadable(name: &str, error: &std::io::Error) -> Refusal {
    Refusal::field(Reason::ConfigInvalid, name, format!("{name}: {error}"))
}

/// A file of bounded length.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_EVIDENCE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// None when it is not there; one that cannot be read is no absent one.
fn there(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::signing::sign::PrivateKey;

    fn signers(dir: &Path, group: &[PathBuf]) -> Signers {
        Signers { group: group.into(), tenants: Some(dir.into()) }
    }

    #[test]
    fn each_tenant_has_its_own_keys_those_of_all_and_the_groups() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let new = || PrivateKey::new_ecdsa().unwrap();
        let [group, own, all] = [new(), new(), new()];
        std::fs::write(dir.join("group"), &group.public).unwrap();
        std::fs::write(dir.join("t1.pem"), &own.public).unwrap();
        std::fs::write(dir.join("_all.pem"), &all.public).unwrap();
        let signers = signers(dir, &[dir.join("group")]);
        let of = |tenant: &str| {
            let (ring, _) = signers.of(&tenant.parse().unwrap()).unwrap();
            let given = |id: &str| ring.named(id).map(|key| key.tenants.contains(tenant));
            [given(&group.id), given(&own.id), given(&all.id)]
        };
        assert_eq!(of("t1"), [Some(false), Some(true), Some(true)]);
        assert_eq!(of("t2"), [Some(false), None, Some(true)]);
        // The operator may say of a key of the group's that it signs for a tenant.
        std::fs::write(dir.join("t2.pem"), &group.public).unwrap();
        assert_eq!(of("t2")[0], Some(true), "read anew");
        assert_eq!(of("t1")[0], Some(false));
    }

    #[test]
    fn keys_of_both_kinds_are_halves_wherever_else_they_are_listed() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let (ecdsa, pq) = (PrivateKey::new_ecdsa().unwrap(), PrivateKey::new_ml_dsa().unwrap());
        std::fs::write(dir.join("group"), format!("{}{}", ecdsa.public, pq.public)).unwrap();
        std::fs::write(dir.join("t1.pem"), &ecdsa.public).unwrap();
        let (ring, _) = signers(dir, &[dir.join("group")]).of(&"t1".parse().unwrap()).unwrap();
        assert!(ring.named(&ecdsa.id).is_some_and(|key| key.paired && key.tenants.contains("t1")));
        let (ring, _) = signers(dir, &[]).of(&"t1".parse().unwrap()).unwrap();
        assert!(ring.named(&ecdsa.id).is_some_and(|key| !key.paired));
    }

    #[test]
    fn a_file_that_is_nobodys_or_no_key_stops_the_start() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let key = PrivateKey::new_ecdsa().unwrap();
        let look = || signers(dir, &[]).look_through().err().unwrap_or_default();
        std::fs::write(dir.join("README"), "what lies here").unwrap();
        std::fs::write(dir.join("t1.pem"), &key.public).unwrap();
        assert_eq!(look(), "");
        for (name, text) in [("T1.pem", &key.public), ("t2.pem", &key.private), ("t2.roots.pem", &key.public)] {
            std::fs::write(dir.join(name), text).unwrap();
            let said = look();
            assert!(said.contains(name) && !said.contains("BEGIN"), "{name}: {said}");
            std::fs::remove_file(dir.join(name)).unwrap();
        }
    }
}
