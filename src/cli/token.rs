//! `nf token`: makes tokens with the group's own issuer, offline, and revokes them.

use super::exit::{Exit, fail};
use super::output::{self, at};
use super::{Global, say};
use crate::security::jwt::{Grant, MAX_LIFETIME, Mint, Role, issuer};
use anyhow::Result;
use clap::{Args, Subcommand};
use nf_core::id::TenantId;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Create a token with the issuer's key, without the group
    #[command(
        after_help = "Examples:\n  nf token create --keys ./lab/tokens --subject ada --tenant demo --role operator\n  nf token create --keys ./lab/tokens --subject root --tenant ops --role admin --ttl 1h -o json"
    )]
    Create(Create),
    /// Revoke a token on every member
    #[command(
        after_help = "Examples:\n  nf token revoke 01939d4c7b5e7c3f8f0a6f1f8b7a9c2d\n  nf token revoke 01939d4c7b5e7c3f8f0a6f1f8b7a9c2d -o json"
    )]
    Revoke {
        /// Its id (jti), which nf token create prints to stderr
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The directory with token.key, as nf cluster init made it
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Who the token is for
    #[arg(long)]
    subject: String,
    /// The tenant that it speaks for
    #[arg(long)]
    tenant: TenantId,
    /// viewer, operator, promoter, admin or node; may be repeated. No role contains another
    #[arg(long = "role", required = true, value_parser = role)]
    roles: Vec<Role>,
    /// How long it is valid, at most 24h
    #[arg(long, default_value = "8h", value_parser = lifetime)]
    ttl: u64,
}

fn role(text: &str) -> Result<Role, String> {
    let names = || Role::ALL.map(Role::name).join(", ");
    Role::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| format!("one of {}", names()))
}

/// Seconds.
fn lifetime(text: &str) -> Result<u64, String> {
    let seconds = crate::api::convert::value::span(text)? / 1000;
    match (1..=MAX_LIFETIME).contains(&seconds) {
        true => Ok(seconds),
        false => Err("1s to 24h".to_owned()),
    }
}

/// A token, and the id by which it is revoked.
pub struct Made {
    pub token: String,
    pub id: String,
}

/// Makes a token that counts from now on.
pub fn make(mint: &Mint, subject: &str, tenant: &str, roles: &[Role], lifetime_s: u64) -> Result<Made> {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let grant = Grant {
        subject: subject.to_owned(),
        tenant: tenant.to_owned(),
        roles: roles.to_vec(),
        id: id.clone(),
        lifetime_s,
    };
    let token = mint.token(&grant, crate::api::auth::now()).map_err(|e| fail(Exit::Failed, e))?;
    Ok(Made { token, id })
}

/// The keys of a new group's tokens, and the first admin's token, which is told once and kept nowhere.
pub fn first(dir: &Path) -> Result<Made> {
    let mint = issuer::create(dir).map_err(|refusal| fail(Exit::Failed, refusal.to_string()))?;
    make(&mint, "admin", "admin", &[Role::Admin], MAX_LIFETIME)
}

impl Token {
    pub async fn run(self, global: &Global) -> Result<()> {
        match self.command {
            TokenCommand::Create(create) => create.run(global),
            TokenCommand::Revoke { id } => {
                let (_, answer) = global.client()?.change(Method::POST, "/tokens/revoke", json!({ "id": id })).await?;
                let what = if at(&answer, "new") == "true" { "revoked" } else { "was revoked before" };
                output::put(&output::object(global.style(), &answer, &id, || format!("{id} {what}\n"))?);
                Ok(())
            }
        }
    }
}

impl Create {
    fn run(self, global: &Global) -> Result<()> {
        let mint = issuer::open(&self.keys).map_err(|refusal| fail(Exit::Usage, refusal.to_string()))?;
        // Our own verifier reads tenants more strictly than names are made.
        let made = make(&mint, &self.subject, self.tenant.as_str(), &self.roles, self.ttl)?;
        let roles: Vec<&str> = self.roles.iter().map(|role| role.name()).collect();
        let value: Value = json!({
            "token": made.token, "id": made.id, "sub": self.subject, "tenant_id": self.tenant, "roles": roles,
            "expires_in_s": self.ttl,
        });
        output::put(&output::object(global.style(), &value, &made.token, || format!("{}\n", made.token))?);
        say(format!("id {}, valid for {} s; pass it to commands as NF_TOKEN", made.id, self.ttl));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_lifetimes_are_read_strictly() {
        assert_eq!((role("admin"), lifetime("24h")), (Ok(Role::Admin), Ok(MAX_LIFETIME)));
        assert!(role("root").is_err() && lifetime("25h").is_err() && lifetime("10ms").is_err());
    }
}
