//! `nf join-token`: lets machines join. The secret is made here and told once; the group
//! learns its digest.

use super::exit::{Exit, fail};
use super::output::{self, Column, at, col};
use super::{Global, client, say};
use crate::security::join::Token;
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use nf_core::audit::Hash;
use nf_core::id::NodeName;
use reqwest::Method;
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub struct JoinToken {
    #[command(subcommand)]
    command: JoinTokenCommand,
}

#[derive(Debug, Subcommand)]
enum JoinTokenCommand {
    /// Let one machine join, once
    #[command(after_help = "Examples:\n  nf join-token create\n  nf join-token create --node gpu-7 --ttl 10m -o json")]
    Create {
        /// What the machine joins as
        #[arg(long, value_enum, default_value = "node")]
        role: Joiner,
        /// The only node that may join with it; when absent, any that the group does not know yet
        #[arg(long)]
        node: Option<NodeName>,
        /// How long it is valid, at most 24h
        #[arg(long, default_value = "1h")]
        ttl: String,
    },
    /// List open tokens, and used ones until they expire
    #[command(after_help = "Examples:\n  nf join-token list\n  nf join-token list -o json")]
    List,
    /// Revoke a token that was not used
    #[command(
        after_help = "Examples:\n  nf join-token revoke 0b5e7c3f8f0a6f1f8b7a9c2d01939d4c\n  nf join-token revoke 0b5e7c3f8f0a6f1f8b7a9c2d01939d4c -o json"
    )]
    Revoke {
        /// Its id, the second part of its text
        id: String,
    },
}

/// Members are made by whoever holds the authority's key, and by nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Joiner {
    /// A worker
    Node,
}

const COLUMNS: &[Column] = &[
    col("ID", |v| at(v, "id")),
    col("NODE", |v| at(v, "node_id")),
    col("BY", |v| at(v, "created_by")),
    col("EXPIRES", |v| at(v, "expires_at")),
    col("USED BY", |v| at(v, "used_by")),
];

impl JoinToken {
    pub async fn run(self, global: &Global) -> Result<()> {
        match self.command {
            JoinTokenCommand::Create { role: Joiner::Node, node, ttl } => create(global, node, &ttl).await,
            JoinTokenCommand::List => {
                let list = global.client()?.listing("/join-tokens").await?;
                output::put(&output::listing(global.style(), &list.envelope, &list.items, COLUMNS, |v| at(v, "id"))?);
                Ok(())
            }
            JoinTokenCommand::Revoke { id } => {
                let path = format!("/join-tokens/{}", client::escape(&id));
                let (_, answer) = global.client()?.change(Method::DELETE, &path, Value::Null).await?;
                let what = if at(&answer, "revoked") == "true" { "counts no more" } else { "was not open" };
                output::put(&output::object(global.style(), &answer, &id, || format!("{id} {what}\n"))?);
                Ok(())
            }
        }
    }
}

async fn create(global: &Global, node: Option<NodeName>, ttl: &str) -> Result<()> {
    let failed = |text: String| fail(Exit::Failed, text);
    let token = Token::generate().map_err(failed)?;
    let mut body = json!({
        "id": token.id.to_string(), "secret_sha256": Hash(token.secret_digest()).to_string(), "ttl": ttl,
    });
    if let Some(node) = &node {
        body["node_id"] = json!(node);
    }
    let (_, mut answer) = global.client()?.change(Method::POST, "/join-tokens", body).await?;
    let authority = Hash::parse(&at(&answer, "authority_sha256"));
    let authority = authority.ok_or_else(|| failed("the member does not say which authority is the group's".into()))?;
    let text = token.of_authority(authority.0).text();
    answer["token"] = json!(text);
    output::put(&output::object(global.style(), &answer, &text, || format!("{text}\n"))?);
    let to = answer["members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
    let name = node.map_or_else(|| "NAME".to_owned(), |node| node.to_string());
    say(format!("valid once, until {}, and shown only now. On the machine that joins:", at(&answer, "expires_at")));
    say(format!("  NF_JOIN_TOKEN={text} \\\n  nf cluster join --to {to} --name {name} --dir ./{name}"));
    Ok(())
}
