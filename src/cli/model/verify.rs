//! `nf model verify`: holds an artefact against a signature file and configured
//! keys, on this machine alone. It decides nothing; the verifier in `security` does.

use super::super::exit::{Exit, fail};
use super::super::{Global, output};
use crate::api::error::codes;
use crate::daemon::trust;
use crate::pqc;
use crate::security::signing::{self, Artefact, Expect, KeyRing, MAX_EVIDENCE, Policy, Roots, Verdict};
use clap::Args;
use nf_core::id::{ModelId, TenantId, VersionId};
use nf_core::reason::{Reason, Refusal};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Verify {
    /// The file or directory that was signed
    artefact: PathBuf,
    /// The signature: a cosign .sig or bundle, a Sigstore bundle, a DSSE envelope, Vault's vault:vN:, raw ML-DSA
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// A public key (PEM, Vault's key answer, raw ML-DSA); repeat or separate by commas for more
    #[arg(long, value_name = "FILE", env = "COSIGN_KEY_PATH", value_delimiter = ',')]
    key: Vec<PathBuf>,
    /// Certificates (PEM) under which a signer's certificate counts
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    roots: Vec<PathBuf>,
    /// Refuse unless it was signed for this tenant
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Refuse unless it was signed as this model
    #[arg(long)]
    model: Option<ModelId>,
    /// Refuse unless it was signed as this version
    #[arg(long, value_name = "VERSION")]
    model_version: Option<VersionId>,
    /// hybrid: deploy statements need an ECDSA and an ML-DSA signature; else one is enough
    #[arg(long, value_parser = pqc::Mode::parse, value_name = "MODE", env = "PQC_MODE", default_value_t)]
    pqc_mode: pqc::Mode,
    /// Every signature must be hybrid, so formats that carry only one are refused
    #[arg(long, env = "PQC_STRICT", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1,
          default_value = "false", default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pqc_strict: bool,
}

/// The whole of a small file.
pub(super) fn small(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bad = |e: &dyn std::fmt::Display| fail(Exit::Usage, format!("ConfigInvalid: {}: {e}", path.display()));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| bad(&e))?;
    // One more than may be: the reader of the format says that it is too long.
    file.take(MAX_EVIDENCE as u64 + 1).read_to_end(&mut bytes).map_err(|e| bad(&e))?;
    Ok(bytes)
}

/// A refusal with the exit of its reason.
pub fn told(refusal: &Refusal) -> anyhow::Error {
    let code = codes(refusal.reason).exit;
    let exit = [Exit::Usage, Exit::Denied, Exit::Unreachable].into_iter().find(|e| *e as u8 == code);
    let field = refusal.field.as_deref().map(|f| format!(" (field {f})")).unwrap_or_default();
    fail(exit.unwrap_or(Exit::Failed), format!("{}: {}{field}", refusal.reason, refusal.detail))
}

/// A file or directory as something to verify or sign.
pub(super) fn artefact<'a>(path: &'a Path, except: Option<&'a Path>) -> anyhow::Result<Artefact<'a>> {
    let meta = std::fs::metadata(path);
    let meta = meta.map_err(|e| fail(Exit::Usage, format!("ConfigInvalid: {}: {e}", path.display())))?;
    Ok(if meta.is_dir() { Artefact::Directory { root: path, except } } else { Artefact::File(path) })
}

impl Verify {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        if self.key.is_empty() && self.roots.is_empty() {
            let text = "ConfigInvalid: nothing to trust: pass --key with the signer's public key (such as cosign.pub), \
                        or --roots with the certificates under which signers' certificates count";
            return Err(fail(Exit::Usage, text));
        }
        let evidence = small(&self.signature)?;
        let artefact = artefact(&self.artefact, Some(&self.signature))?;
        let outcome = self.judge(&artefact, &evidence)?;
        if let (Err(refusal), false) = (&outcome, global.for_people()) {
            output::put(&output::object(global.style(), &refused(refusal), refusal.reason.token(), String::new)?);
        }
        let verdict = outcome.map_err(|refusal| told(&refusal))?;
        let mut value = serde_json::to_value(&verdict)?;
        value["verified"] = json!(true);
        let name = artefact.name().unwrap_or_default();
        output::put(&output::object(global.style(), &value, &name, || people(&verdict))?);
        Ok(())
    }

    /// The outer error is one of settings, the inner one is the verdict's.
    fn judge(&self, artefact: &Artefact<'_>, evidence: &[u8]) -> anyhow::Result<Result<Verdict, Refusal>> {
        let (mut keys, mut roots) = (KeyRing::default(), Roots::default());
        for path in &self.key {
            keys.add_file(&path.display().to_string(), &small(path)?).map_err(|refusal| told(&refusal))?;
        }
        // As members do: where both kinds are configured, neither signs alone.
        keys.pair();
        for path in &self.roots {
            roots.add_file(&path.display().to_string(), &small(path)?).map_err(|refusal| told(&refusal))?;
        }
        let demand = trust::demand(pqc::Policy { mode: self.pqc_mode, strict: self.pqc_strict });
        let (tenant, model, version) = (self.tenant.clone(), self.model.clone(), self.model_version.clone());
        let expect = Expect { tenant, model, version, format: None };
        let now = jiff::Timestamp::now().as_second().max(0).unsigned_abs();
        Ok(signing::verify(&Policy { keys: &keys, roots: &roots, demand, expect: &expect, now }, artefact, evidence))
    }
}

fn refused(refusal: &Refusal) -> Value {
    let alarm = refusal.reason == Reason::VerifierDisagreement;
    json!({
        "verified": false, "reason": refusal.reason, "field": refusal.field, "detail": refusal.detail, "alarm": alarm,
    })
}

fn people(verdict: &Verdict) -> String {
    let mut out = format!("verified    {}", verdict.format);
    if let Some(predicate) = &verdict.predicate {
        out.push_str(&format!(", {predicate}"));
    }
    for by in &verdict.signatures {
        let how = if by.certificate { "certificate, " } else { "" };
        out.push_str(&format!("\nsigned by   {how}{} {}", by.algorithm, by.key_id));
    }
    let named = [("tenant", &verdict.tenant_id), ("model", &verdict.model_id), ("version", &verdict.version)];
    let named: Vec<String> = named.iter().filter_map(|(what, v)| Some(format!("{what} {}", v.as_ref()?))).collect();
    if !named.is_empty() {
        out.push_str(&format!("\nsigned for  {}", named.join(", ")));
    }
    if let Some(digest) = &verdict.manifest_sha256 {
        out.push_str(&format!("\nmanifest    sha256 {digest}"));
    }
    if !verdict.unbound.is_empty() {
        out.push_str(&format!("\nnot bound   {}", verdict.unbound.join(", ")));
    }
    out.push_str(&format!("\nfiles       {}, sha256 {}\n", verdict.files.len(), verdict.sha256));
    out
}
