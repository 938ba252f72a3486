//! `nf consent`: a tenant's signed statement that data about people may be kept on nodes,
//! put on record and taken back. Signing needs no group; whether a statement counts is
//! decided by the group.

use super::client::escape;
use super::exit::{Exit, fail};
use super::model::{private_keys, told_refusal};
use super::output::{self, at};
use super::{Global, confirm, say};
use crate::security::signing::consent::{self, Statement};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use nf_core::audit::Hash;
use nf_core::id::{Label, ModelId, TenantId, VersionId};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Consent {
    #[command(subcommand)]
    command: ConsentCommand,
}

#[derive(Debug, Subcommand)]
enum ConsentCommand {
    /// Sign a statement with the tenant's keys
    #[command(
        after_help = "Examples:\n  nf consent sign --tenant demo --data-class personal --ttl 90d --key keys/ecdsa-p256.key.pem --key keys/ml-dsa-65.key.pem --out consent.json\n  nf consent sign --tenant demo --data-class personal-health --model m --model-version v1 --key keys/ecdsa-p256.key.pem --key keys/ml-dsa-65.key.pem --out consent.json"
    )]
    Sign(Sign),
    /// Put a signed statement on record
    #[command(
        after_help = "Examples:\n  nf consent grant consent.json --tenant demo\n  nf consent grant consent.json --tenant demo -o json"
    )]
    Grant {
        /// What nf consent sign wrote
        statement: PathBuf,
        #[arg(long)]
        tenant: TenantId,
    },
    /// Take a consent back: what runs by it stops, and every node removes its copies
    #[command(
        after_help = "Examples:\n  nf consent revoke 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --tenant demo --yes\n  nf consent revoke 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --tenant demo --yes -o json"
    )]
    Revoke {
        /// The statement's SHA-256, as nf consent list shows it
        statement: String,
        #[arg(long)]
        tenant: TenantId,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// List consents, and the nodes that may have copies
    #[command(after_help = "Examples:\n  nf consent list\n  nf consent list --tenant demo -o json")]
    List {
        #[arg(long)]
        tenant: Option<TenantId>,
    },
}

#[derive(Debug, Args)]
struct Sign {
    #[arg(long)]
    tenant: TenantId,
    /// A class of data, as manifests name it; may be repeated
    #[arg(long, value_name = "CLASS", required = true)]
    data_class: Vec<Label>,
    /// Only this model; every model of the tenant when absent
    #[arg(long)]
    model: Option<ModelId>,
    /// Only this version of it
    #[arg(long, value_name = "VERSION", requires = "model")]
    model_version: Option<VersionId>,
    /// How long it is valid, at most two years
    #[arg(long, default_value = "90d", value_parser = crate::api::convert::value::span)]
    ttl: u64,
    /// A private key of the tenant (PKCS#8 PEM); give an ECDSA P-256 and an ML-DSA-65 one
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Where to write the statement
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Sign {
    fn run(self, global: &Global) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let span = i64::try_from(self.ttl).ok().map(SignedDuration::from_millis);
        let until = span.and_then(|span| now.checked_add(span).ok());
        let until = until.ok_or_else(|| fail(Exit::Usage, "--ttl: at most two years"))?;
        let statement = Statement {
            tenant_id: self.tenant,
            data_classes: self.data_class,
            model_id: self.model,
            model_version: self.model_version,
            issued_at: now.to_string(),
            expires_at: until.to_string(),
        };
        let (envelope, id) = consent::sign(&statement, &private_keys(&self.key)?).map_err(|e| told_refusal(&e))?;
        let out = self.out.display().to_string();
        std::fs::write(&self.out, envelope).map_err(|e| fail(Exit::Failed, format!("{out}: {e}")))?;
        let id = Hash(id).to_string();
        let value = json!({ "statement": id, "file": out, "expires_at": statement.expires_at });
        let people = || format!("{out}: statement {id}, until {}\n", statement.expires_at);
        output::put(&output::object(global.style(), &value, &id, people)?);
        say(format!("put it on record with: nf consent grant {out} --tenant {}", statement.tenant_id));
        Ok(())
    }
}

impl Consent {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self.command {
            ConsentCommand::Sign(sign) => sign.run(global),
            ConsentCommand::Grant { statement, tenant } => {
                let shown = statement.display().to_string();
                let text =
                    std::fs::read_to_string(&statement).map_err(|e| fail(Exit::Usage, format!("{shown}: {e}")))?;
                let body = json!({ "tenant_id": tenant, "statement": text });
                let (_, answer) = global.client()?.change(Method::POST, "/consents", body).await?;
                let id = at(&answer, "statement");
                let people = || format!("consent {id} of {tenant} counts until {}\n", at(&answer, "expires_at"));
                output::put(&output::object(global.style(), &answer, &id, people)?);
                Ok(())
            }
            ConsentCommand::Revoke { statement, tenant, yes } => {
                confirm(&format!("stop what runs by consent {statement} of {tenant}, and remove all copies"), yes)?;
                let body = json!({ "tenant_id": tenant, "statement": statement });
                let (_, answer) = global.client()?.change(Method::POST, "/consents/revoke", body).await?;
                let what = if at(&answer, "revoked") == "true" { "revoked" } else { "did not count" };
                let people = || format!("consent {statement} of {tenant}: {what}\n");
                output::put(&output::object(global.style(), &answer, &statement, people)?);
                say("nf consent list shows which nodes have copies yet");
                Ok(())
            }
            ConsentCommand::List { tenant } => list(global, tenant).await,
        }
    }
}

async fn list(global: &Global, tenant: Option<TenantId>) -> anyhow::Result<()> {
    let only = tenant.map(|tenant| format!("?tenant_id={}", escape(tenant.as_str()))).unwrap_or_default();
    let answer = global.client()?.get(&format!("/consents{only}")).await?;
    let rows = |key: &str| answer.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let people = || {
        let mut out = String::new();
        for row in rows("items") {
            let state = if at(&row, "active") == "true" { "counts until" } else { "ended, was until" };
            let scope = [at(&row, "model_id"), at(&row, "model_version")].into_iter().filter(|text| text != "-");
            let scope = scope.collect::<Vec<_>>().join("@");
            let scope = if scope.is_empty() { "all models".to_owned() } else { scope };
            let classes =
                row["data_classes"].as_array().map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>());
            let classes = classes.unwrap_or_default().join(",");
            out.push_str(&format!(
                "{}  {}  {classes}  {scope}  {state} {}\n",
                at(&row, "statement"),
                at(&row, "tenant_id"),
                at(&row, "expires_at")
            ));
        }
        for row in rows("copies") {
            let what = if at(&row, "purging") == "true" { "has to remove" } else { "may have" };
            let version =
                format!("{}@{} of {}", at(&row, "model_id"), at(&row, "model_version"), at(&row, "tenant_id"));
            out.push_str(&format!("node {} {what} {version}\n", at(&row, "node")));
        }
        out
    };
    output::put(&output::object(global.style(), &answer, "", people)?);
    Ok(())
}
