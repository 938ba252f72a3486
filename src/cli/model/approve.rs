//! `nf model approve`, `revoke` and `release`: a promoter's word that a version may run in
//! production, bound to the bytes of its manifest, or may be tried again. Whose word counts is decided by the group.

use super::super::exit::{Exit, fail};
use super::super::output::{self, at};
use super::super::{Global, say};
use anyhow::Result;
use clap::Args;
use nf_core::id::{ModelId, TenantId, VersionId};
use reqwest::Method;
use serde_json::json;

#[derive(Debug, Args)]
pub struct Approve {
    /// MODEL@VERSION
    version: String,
    /// The tenant that may run it
    #[arg(long)]
    tenant: TenantId,
    /// The manifest's SHA-256, as nf model publish printed it; read from the store when absent
    #[arg(long, value_name = "DIGEST")]
    sha256: Option<String>,
    /// The store: file:// and a directory, or s3://bucket/path and its like
    #[arg(long, env = "MODEL_STORE_URL")]
    store: Option<String>,
    /// How long it is valid, at most 24h
    #[arg(long, default_value = "24h")]
    ttl: String,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// MODEL@VERSION
    version: String,
    /// The tenant that may no longer run it
    #[arg(long)]
    tenant: TenantId,
}

#[derive(Debug, Args)]
pub struct Release {
    /// MODEL@VERSION
    version: String,
    /// The tenant for whom a node tried it
    #[arg(long)]
    tenant: TenantId,
    /// The SHA-256 of the manifest that was looked at, as GET /quarantine and the refusal show it
    #[arg(long, value_name = "DIGEST")]
    sha256: String,
}

/// MODEL@VERSION in two.
pub fn split(text: &str) -> Result<(ModelId, VersionId)> {
    let bad = || fail(Exit::Usage, format!("{text}: MODEL@VERSION, such as magika@v1"));
    let (model, version) = text.split_once('@').ok_or_else(bad)?;
    let wrong = |e: nf_core::id::NameError| fail(Exit::Usage, e.to_string());
    Ok((ModelId::new(model).map_err(wrong)?, VersionId::new(version).map_err(wrong)?))
}

impl Approve {
    pub async fn run(self, global: &Global) -> Result<()> {
        let (model, version) = split(&self.version)?;
        let sha256 = match (&self.sha256, &self.store) {
            (Some(said), _) => said.clone(),
            (None, Some(store)) => stored(store, &model, &version).await?,
            (None, None) => {
                let text = "say which bytes: --sha256, as nf model publish printed it, or --store to read it there";
                return Err(fail(Exit::Usage, text));
            }
        };
        let body = json!({
            "tenant_id": self.tenant, "model_id": model, "model_version": version, "sha256": sha256, "ttl": self.ttl,
        });
        let (_, answer) = global.client()?.change(Method::POST, "/approvals", body).await?;
        let people = || {
            let (by, until) = (at(&answer, "approved_by"), at(&answer, "expires_at"));
            format!("{} approved for {} by {by} until {until}, sha256 {sha256}\n", self.version, self.tenant)
        };
        output::put(&output::object(global.style(), &answer, &self.version, people)?);
        say("nf model revoke takes it back; where NF_SIGNERS is not set, somebody else must schedule it");
        Ok(())
    }
}

async fn stored(store: &str, model: &ModelId, version: &VersionId) -> Result<String> {
    let store = super::open(store)?;
    Ok(super::published(&store, model, version).await?.digest().to_string())
}

impl Revoke {
    pub async fn run(self, global: &Global) -> Result<()> {
        let (model, version) = split(&self.version)?;
        let body = json!({ "tenant_id": self.tenant, "model_id": model, "model_version": version });
        let (_, answer) = global.client()?.change(Method::POST, "/approvals/revoke", body).await?;
        let what = if at(&answer, "revoked") == "true" { "revoked" } else { "was not approved" };
        let people = || format!("{} for {}: {what}\n", self.version, self.tenant);
        output::put(&output::object(global.style(), &answer, &self.version, people)?);
        Ok(())
    }
}

impl Release {
    pub async fn run(self, global: &Global) -> Result<()> {
        let (model, version) = split(&self.version)?;
        let body = json!({
            "tenant_id": self.tenant, "model_id": model, "model_version": version, "sha256": self.sha256,
        });
        let (_, answer) = global.client()?.change(Method::POST, "/quarantine/release", body).await?;
        let what = if at(&answer, "released") == "true" { "released" } else { "was in no quarantine" };
        let people = || format!("{} for {}: {what}\n", self.version, self.tenant);
        output::put(&output::object(global.style(), &answer, &self.version, people)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_named_by_model_and_version() {
        let (model, version) = split("m@v1").unwrap();
        assert_eq!((model.as_str(), version.as_str()), ("m", "v1"));
        assert!(split("m").is_err() && split("@v1").is_err() && split("m@").is_err());
    }
}
