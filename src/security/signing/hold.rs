//! What was signed, held against what is wanted: for whom, which model, which manifest, and
//! each file. It is asked only after the signature was verified. It does not know keys, but
//! for which tenants an operator gave them to.

use super::artefact::{self, Artefact, Listed, MANIFEST};
use super::encoding::to_hex;
use super::refusal::{elsewhere, mismatch, shown, unsupported};
use super::statement::{Deploy, Meaning};
use nf_core::id::{ModelId, TenantId, VersionId};
use nf_core::reason::Refusal;
use std::collections::BTreeSet;

/// What the caller wants the signature to be for; None: whatever it is for.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    pub tenant: Option<TenantId>,
    pub model: Option<ModelId>,
    pub version: Option<VersionId>,
    /// What the files are said to be.
    pub format: Option<String>,
}

impl Expect {
    fn differs(field: &str, wanted: &str, signed: &str) -> Refusal {
        elsewhere(
            field,
            format!(
                "signed for {}, wanted is {}; use the signature that was made for it",
                shown(signed),
                shown(wanted)
            ),
        )
    }

    fn unbound(field: &str, what: &str) -> Refusal {
        let text = format!("{what} names none; sign a deploy statement with nf model sign, which binds it");
        elsewhere(field, text)
    }

    /// Holds a statement's names against what is wanted.
    ///
    /// # Errors
    /// `SignatureBindingMismatch` naming the field.
    pub fn hold(
        &self,
        meaning: &Meaning,
        artefact: &Artefact<'_>,
        key_tenants: &BTreeSet<String>,
    ) -> Result<(), Refusal> {
        match meaning {
            Meaning::Deploy(deploy) => {
                let pairs = [
                    ("tenant_id", self.tenant.as_ref().map(TenantId::as_str), deploy.tenant_id.as_str()),
                    ("model_id", self.model.as_ref().map(ModelId::as_str), deploy.model_id.as_str()),
                    ("version", self.version.as_ref().map(VersionId::as_str), deploy.version.as_str()),
                    ("format", self.format.as_deref(), deploy.format.as_str()),
                ];
                let differs = |(_, wanted, signed): &&(&str, Option<&str>, &str)| wanted.is_some_and(|w| w != *signed);
                match pairs.iter().find(differs) {
                    Some((field, wanted, signed)) => Err(Self::differs(field, wanted.unwrap_or_default(), signed)),
                    None => Ok(()),
                }
            }
            Meaning::Model { name, .. } => {
                if let Some(model) = self.model.as_ref().filter(|m| m.as_str() != name) {
                    return Err(Self::differs("model_id", model.as_str(), name));
                }
                self.tenant_by_key(key_tenants, "a Model Signing bundle")?;
                // A key that the operator gave to a tenant vouches for the version, which the format lacks.
                match self.version.is_some() && self.tenant.is_none() {
                    true => Err(Self::unbound("version", "a Model Signing bundle")),
                    false => Ok(()),
                }
            }
            Meaning::Blob { .. } => self.hold_blob(artefact, key_tenants, "a cosign signature"),
        }
    }

    /// For signatures over bytes, which name nothing, unless the bytes are a manifest: that names model and version.
    pub fn hold_blob(
        &self,
        artefact: &Artefact<'_>,
        key_tenants: &BTreeSet<String>,
        what: &str,
    ) -> Result<(), Refusal> {
        let named = matches!(artefact, Artefact::Version { .. });
        if self.model.is_some() && !named {
            return Err(Self::unbound("model_id", what));
        }
        if self.version.is_some() && !named {
            return Err(Self::unbound("version", what));
        }
        self.tenant_by_key(key_tenants, what)
    }

    /// Where no statement names the tenant, the operator may have given the key to one.
    fn tenant_by_key(&self, key_tenants: &BTreeSet<String>, what: &str) -> Result<(), Refusal> {
        match &self.tenant {
            Some(tenant) if key_tenants.contains(tenant.as_str()) => Ok(()),
            Some(tenant) => {
                let text = format!(
                    "{what} names none, and its key is not {tenant}'s: sign a deploy statement with nf model sign, or \
                     let an operator put the key into {tenant}.pem (or, for every tenant, _all.pem) of NF_TENANT_KEYS"
                );
                Err(elsewhere("tenant_id", text))
            }
            None => Ok(()),
        }
    }
}

/// Holds an artefact against what was signed.
///
/// # Errors
/// `ArtifactMismatch` naming the first file that differs, `SignatureBindingMismatch` for another manifest.
pub fn hold_files(meaning: &Meaning, artefact: &Artefact<'_>) -> Result<(), Refusal> {
    match (meaning, artefact) {
        (Meaning::Deploy(deploy), Artefact::Version { manifest, files }) => {
            Artefact::Listing(files).hold_against(&deploy.files)?;
            hold_manifest(deploy, manifest)
        }
        (Meaning::Deploy(deploy), Artefact::Directory { root, .. }) => {
            // As nf model pull leaves it: the manifest beside its files.
            let pulled = root.join(MANIFEST).symlink_metadata().is_ok();
            let manifest = deploy.manifest_sha256.as_ref().filter(|_| pulled);
            let manifest = manifest.map(|digest| Listed { name: MANIFEST.into(), size: None, sha256: digest.0 });
            let files: Vec<Listed> = deploy.files.iter().cloned().chain(manifest).collect();
            artefact.hold_against(&files)
        }
        (Meaning::Deploy(deploy), _) => artefact.hold_against(&deploy.files),
        (Meaning::Model { files, .. }, Artefact::Version { files: there, .. }) => {
            // Who signed a directory with the manifest in it signed the program, too.
            let manifest = files.iter().any(|file| file.name == MANIFEST).then(|| artefact.whole()).transpose()?;
            let there: Vec<Listed> = there.iter().cloned().chain(manifest).collect();
            Artefact::Listing(&there).hold_against(files)
        }
        (Meaning::Model { files, .. }, Artefact::Directory { .. } | Artefact::Listing(_)) => {
            artefact.hold_against(files)
        }
        (Meaning::Model { .. }, _) => {
            Err(unsupported("artefact", "a Model Signing bundle is for a directory; give the directory"))
        }
        (Meaning::Blob { digests, .. }, _) => match artefact.whole()? {
            file if digests.contains(&file.sha256) => Ok(()),
            file => {
                let text = format!("has SHA-256 {}, which the signature is not for", to_hex(&file.sha256));
                Err(mismatch(&file.name, text))
            }
        },
    }
}

/// The files alone are not what runs: the manifest names the program.
fn hold_manifest(deploy: &Deploy, manifest: &[u8]) -> Result<(), Refusal> {
    let is = artefact::digest(manifest);
    let text = match &deploy.manifest_sha256 {
        Some(signed) if signed.0 == is => return Ok(()),
        Some(signed) => format!(
            "signed for the manifest {}, the store has {}: program, settings or kinds of data were changed after it was signed",
            to_hex(&signed.0),
            to_hex(&is)
        ),
        None => "signed without a manifest, so for any program; publish the version first, then sign it".into(),
    };
    Err(elsewhere("manifest_sha256", format!("{text} (nf model sign --store, or --sha256 {})", to_hex(&is))))
}
