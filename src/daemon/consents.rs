//! By which keys tenants sign their consents (P1): a directory with one file for each tenant,
//! read anew for each statement, so that a key that is taken away counts no more. It does not
//! know what is on record.

use crate::api::Consenting;
use crate::config::{Error as ConfigError, Settings};
use crate::security::signing::{Demand, KeyRing, MAX_EVIDENCE, consent};
use anyhow::Result;
use nf_core::id::TenantId;
use nf_core::reason::{Reason, Refusal};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// None when no directory is configured: then no statement counts.
///
/// # Errors
/// When it is no directory.
pub fn open(settings: &Settings) -> Result<Option<Consenting>> {
    let Some(dir) = settings.consent_keys.value.clone() else { return Ok(None) };
    if !dir.is_dir() {
        let text = format!("NF_CONSENT_KEYS {} is no directory; it holds TENANT.pem for each tenant", dir.display());
        return Err(ConfigError::Clash(text).into());
    }
    let demand = super::trust::demand(settings.key_exchange());
    Ok(Some(judge(dir, demand)))
}

fn judge(dir: PathBuf, demand: Demand) -> Consenting {
    Arc::new(move |tenant, statement| consent::verify(tenant, &ring(&dir, tenant)?, demand, statement))
}

fn ring(dir: &Path, tenant: &TenantId) -> Result<KeyRing, Refusal> {
    // A tenant's name is no way out of the directory: letters, digits, '-' and '_'.
    let (name, mut ring, mut bytes) = (format!("{tenant}.pem"), KeyRing::default(), Vec::new());
    let read = File::open(dir.join(&name)).and_then(|file| file.take(MAX_EVIDENCE as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => match ring.add_file(&name, &bytes) {
            Ok(()) => Ok(ring),
            Err(wrong) => {
                let text = format!("the keys of tenant {tenant} can't be used ({wrong}); nothing of it can be trusted");
                Err(Refusal::field(Reason::NoTrustRoot, "statement", text))
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!(
                "tenant {tenant} has no key here; an operator puts its public keys into {name} of NF_CONSENT_KEYS"
            );
            Err(Refusal::field(Reason::SignatureInvalid, "statement", text))
        }
        Err(error) => {
            tracing::warn!(%tenant, %error, "a tenant's consent keys can't be read");
            let text = format!("the keys of tenant {tenant} can't be read now");
            Err(Refusal::field(Reason::VerifierUnavailable, "statement", text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::signing::sign::PrivateKey;

    #[test]
    fn each_tenant_has_its_own_keys_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::new_ecdsa().unwrap();
        std::fs::write(dir.path().join("t1.pem"), &key.public).unwrap();
        let tenant = |name| TenantId::new(name).unwrap();
        let statement = consent::Statement {
            tenant_id: tenant("t1"),
            data_classes: vec![nf_core::id::Label::new("personal").unwrap()],
            model_id: None,
            model_version: None,
            issued_at: "2026-01-01T00:00:00Z".into(),
            expires_at: "2027-01-01T00:00:00Z".into(),
        };
        let private = PrivateKey::from_pem("k", &key.private).unwrap();
        let (signed, _) = consent::sign(&statement, &[private]).unwrap();
        let judge = judge(dir.path().to_owned(), Demand::Classical);
        assert!(judge(&tenant("t1"), signed.as_bytes()).is_ok());
        assert_eq!(judge(&tenant("t2"), signed.as_bytes()).unwrap_err().reason, Reason::SignatureInvalid);
        std::fs::write(dir.path().join("t2.pem"), &key.public).unwrap();
        assert_eq!(judge(&tenant("t2"), signed.as_bytes()).unwrap_err().reason, Reason::SignatureBindingMismatch);
        std::fs::remove_file(dir.path().join("t1.pem")).unwrap();
        assert!(judge(&tenant("t1"), signed.as_bytes()).is_err(), "taken away at once");
        std::fs::write(dir.path().join("t1.pem"), &key.private).unwrap();
        assert_eq!(judge(&tenant("t1"), signed.as_bytes()).unwrap_err().reason, Reason::NoTrustRoot);
    }
}
